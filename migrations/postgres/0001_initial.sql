-- The first schema. Every time is in whole Unix seconds. `body`, `spec`, `state` and `metadata` hold JSON as text: text
-- keeps the order of members and takes escaped NUL characters, which jsonb refuses.

create table assistants (
    seq bigint generated always as identity, -- order of insertion, for equal times
    id text primary key,
    created_at bigint not null,
    version bigint not null, -- raised by each change; a change names the one it was made from
    body text not null
);
-- for: list assistants
create index assistants_page on assistants (created_at, seq);

create table threads (
    seq bigint generated always as identity,
    id text primary key,
    created_at bigint not null,
    version bigint not null,
    message_seq bigint not null, -- the insertion number of the newest message
    message_at bigint not null, -- its time: later ones get no earlier one, whatever the clocks say
    active_run text, -- the run that locks the thread; message creation checks it under this row's lock
    body text not null
);
-- for: list threads
create index threads_page on threads (created_at, seq);

create table messages (
    id text primary key,
    thread_id text not null,
    seq bigint not null, -- given under the thread's row lock
    created_at bigint not null,
    run_id text, -- the run that wrote it
    metadata text not null, -- apart from the body, so that a client's change and a run's text do not meet
    body text not null
);
-- for: list messages, and the prompt of a run
create index messages_page on messages (thread_id, created_at, seq);
-- for: list messages by run
create index messages_of_a_run on messages (run_id) where run_id is not null;

create table runs (
    seq bigint generated always as identity,
    id text primary key,
    thread_id text not null,
    created_at bigint not null,
    expires_at bigint not null,
    active boolean not null, -- not over yet: locks its thread
    version bigint not null, -- raised by each commit; a commit names the one it was made from
    due_at bigint, -- when an executor may take it: at once in the queue, at the lease's end otherwise; null: never
    spec text not null, -- what was asked for; never changes
    state text not null, -- where it stands, and its usage
    metadata text not null
);
-- the rule: one active run a thread
create unique index one_active_run_a_thread on runs (thread_id) where active;
-- for: list runs of a thread
create index runs_page on runs (thread_id, created_at, seq);
-- for: take the run that has waited longest
create index runs_due on runs (due_at, seq) where due_at is not null;

create table run_steps (
    seq bigint generated always as identity,
    id text primary key,
    run_id text not null,
    thread_id text not null,
    created_at bigint not null,
    body text not null
);
-- for: list steps of a run
create index run_steps_page on run_steps (run_id, created_at, seq);
-- for: delete a thread
create index run_steps_of_a_thread on run_steps (thread_id);
