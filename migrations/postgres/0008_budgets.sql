-- Budgets of projects that all servers share.

create table request_windows (
    project_id text primary key,
    started_at bigint not null,
    taken bigint not null,
    granted bigint not null
);
comment on table request_windows is 'The current minute of each project with a limit of requests per minute.';
comment on column request_windows.started_at is 'The first request after the end of the previous window.';
comment on column request_windows.taken is 'Requests that servers have taken, whether they have used them or not.';
comment on column request_windows.granted is 'Requests that the last statement took.';

create table project_locks (
    project_id text primary key,
    uses bigint not null
);
comment on table project_locks is 'Projects with limits of tokens or active runs. The row lock of a project serializes what counts towards a limit.';
comment on column project_locks.uses is 'Number of attempts to reserve tokens.';

create table token_reservations (
    id text primary key,
    project_id text not null,
    tokens bigint not null,
    expires_at bigint not null
);
comment on table token_reservations is 'Estimated tokens of model calls that have not ended, of projects with limits of tokens.';
comment on column token_reservations.id is 'The run, or a forwarded request.';
comment on column token_reservations.expires_at is 'When the reservation ends if its server was lost.';
-- for: sum of the reservations of a project
create index token_reservations_of_a_project on token_reservations (project_id);
-- for: delete expired reservations
create index token_reservations_expiring on token_reservations (expires_at);
