-- Budgets of projects that all servers share.

create table request_windows (
    project_id text primary key,
    started_at bigint not null,
    taken bigint not null,
    granted bigint not null
);

create table project_locks (
    project_id text primary key,
    uses bigint not null
);

create table token_reservations (
    id text primary key,
    project_id text not null,
    tokens bigint not null,
    expires_at bigint not null
);
-- for: sum of the reservations of a project
create index token_reservations_of_a_project on token_reservations (project_id);
-- for: delete expired reservations
create index token_reservations_expiring on token_reservations (expires_at);
