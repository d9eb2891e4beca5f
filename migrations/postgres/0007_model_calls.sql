-- The usage ledger.
--
-- Expands only: servers of the release before record no calls.

create table model_calls (
    seq bigint generated always as identity primary key,
    kind text not null,
    project_id text not null,
    api_key_id text not null,
    assistant_id text not null,
    thread_id text not null,
    run_id text not null,
    model text not null,
    created_at bigint not null,
    input_tokens bigint not null,
    cached_tokens bigint not null,
    output_tokens bigint not null,
    stood boolean not null,
    requests bigint not null
);
-- for: the usage of a project
create index model_calls_of_a_project on model_calls (project_id, created_at);
-- for: the usage of all projects, and rolling up
create index model_calls_by_time on model_calls (created_at);

comment on table model_calls is 'The usage ledger: one row for each call of a model; after a time (the setting usage_days), one for each day and group.';
comment on column model_calls.kind is 'completions or embeddings.';
comment on column model_calls.api_key_id is 'The API key. Empty: the caller has no stored key.';
comment on column model_calls.assistant_id is 'The assistant. Empty: a request that was forwarded.';
comment on column model_calls.thread_id is 'The thread. Empty: a request that was forwarded, or a row that was rolled up.';
comment on column model_calls.run_id is 'The run. Empty like thread_id.';
comment on column model_calls.model is 'The requested model name.';
comment on column model_calls.created_at is 'When the call was recorded, in Unix seconds; in a row that was rolled up, the start of the day in UTC.';
comment on column model_calls.input_tokens is 'Tokens of the prompt.';
comment on column model_calls.cached_tokens is 'Those of the input tokens that the model server had cached.';
comment on column model_calls.output_tokens is 'Tokens of the answer.';
comment on column model_calls.stood is 'Whether the caller has the whole answer. False: the call failed, was cancelled, or was lost with its server.';
comment on column model_calls.requests is '1; in a row that was rolled up, the number of calls.';
