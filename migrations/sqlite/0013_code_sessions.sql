-- Sessions of the code interpreter, for the usage of projects, and the files that their code has written.
--
-- Expands only: servers of the release before run no code.

create table code_sessions (
    id text primary key,
    project_id text not null,
    thread_id text not null,
    opened_at bigint not null,
    calls bigint not null,
    run_ms bigint not null -- how long code ran, in milliseconds
);

create index code_sessions_of_a_thread on code_sessions (thread_id, opened_at, id);
create index code_sessions_by_time on code_sessions (opened_at, project_id);

-- The newest file with each path below /mnt/data.
create table code_files (
    project_id text not null,
    thread_id text not null,
    path text not null,
    file_id text not null,
    primary key (thread_id, path)
);
