-- The usage ledger.
--
-- Expands only: servers of the release before record no calls.

-- one row for each call of a model; after a time (the setting usage_days), one for each day and group
create table model_calls (
    seq integer primary key,
    -- 'completions' or 'embeddings'
    kind text not null,
    project_id text not null,
    -- empty: the caller has no stored key
    api_key_id text not null,
    -- empty: a request that was forwarded
    assistant_id text not null,
    -- empty: a request that was forwarded, or a row that was rolled up
    thread_id text not null,
    run_id text not null,
    model text not null,
    -- Unix seconds; the start of the day, in UTC, in a row that was rolled up
    created_at bigint not null,
    input_tokens bigint not null,
    cached_tokens bigint not null,
    output_tokens bigint not null,
    -- whether the caller has the whole answer; false: it failed, was cancelled, or was lost with its server
    stood boolean not null,
    -- 1; the number of calls in a row that was rolled up
    requests bigint not null
);
-- for: the usage of a project
create index model_calls_of_a_project on model_calls (project_id, created_at);
-- for: the usage of all projects, and rolling up
create index model_calls_by_time on model_calls (created_at);
