-- Descriptions of tables and columns, as psql's \d+ shows them. The comments in the files before describe the same columns.

comment on table assistants is 'Assistants. All times are Unix seconds. body, spec, state and metadata are JSON stored as text, which preserves the order of members and escaped NUL characters.';
comment on column assistants.seq is 'Order of insertion; breaks ties between equal times.';
comment on column assistants.version is 'Incremented by each update. An update names the version that it was computed from.';
comment on table threads is 'Threads. The row lock of a thread serializes the creation of its messages and runs.';
comment on column threads.message_seq is 'Sequence number of the newest message.';
comment on column threads.message_at is 'Time of the newest message. Later messages never have an earlier time, whatever the clocks of the servers.';
comment on column threads.active_run is 'The active run, which blocks changes of the thread.';
comment on table messages is 'Messages of threads.';
comment on column messages.seq is 'Sequence number within the thread, assigned under the row lock of the thread.';
comment on column messages.place is 'Position in the prompts of later runs, as a sequence number: the reply of a run comes after the messages that the run answers. Null: seq.';
comment on column messages.run_id is 'The run that created the message.';
comment on column messages.metadata is 'Separate from body, so that updates by clients and by runs do not conflict.';
comment on table runs is 'Runs, and the queue of runs that are due.';
comment on column runs.active is 'Whether the run has not ended. A thread has at most one active run.';
comment on column runs.version is 'Incremented by each commit. A commit names the version that it was computed from.';
comment on column runs.due_at is 'When a server may claim the run: at once if it is queued, at the end of the lease if a server drives it. Null: never.';
comment on column runs.spec is 'The request for the run. Never changes.';
comment on column runs.state is 'The status with its details, and the usage.';
comment on column runs.waits is 'Whether the run waits until earlier runs of its thread have ended (busy_thread = "queue").';
comment on column runs.sees_to is 'Sequence number of the newest message in the prompt of the run. Null: all messages.';
comment on column runs.claims is 'Number of claims. A run and this number identify a lease.';
comment on column runs.attempts is 'Attempts since the last progress, including the current one.';
comment on column runs.last_failure is 'Cause of the end of the previous attempt.';
comment on column runs.revision is 'Incremented by each commit and each saved text. Servers compare it to follow runs that other servers drive.';
comment on column runs.owner is 'Digest of the API key of the request, for fair queueing. Empty: no key.';
comment on table run_steps is 'Steps of runs.';
