-- Runs that wait for their turn on a busy thread (the setting busy_thread = "queue").

-- created while another run was going; it becomes active when those before it are over
alter table runs add column waits boolean not null default false;
-- the insertion number of the newest message that the run answers: what clients add later is for later runs; null: all
alter table runs add column sees_to bigint;
-- for: the next run of a thread
create index runs_waiting on runs (thread_id, seq) where waits;

-- where a run's message stands in what later runs read: behind what its run answers; null: at its own seq
alter table messages add column place bigint;
-- for: the prompt of a run
create index messages_of_a_conversation on messages (thread_id, coalesce(place, seq), seq);
