-- Projects, service accounts, API keys, limits, and the log of their changes.
--
-- Expands only: servers of the release before do not use these tables.

create table projects (
    seq bigint generated always as identity,
    id text primary key,
    created_at bigint not null,
    archived_at bigint,
    status text not null,
    name text not null,
    external_key_id text,
    residency text
);
comment on table projects is 'Projects: each has its own API keys and objects.';
comment on column projects.seq is 'Order of insertion, for equal times.';
comment on column projects.archived_at is 'When the project was archived. Null: it is active.';
comment on column projects.status is 'active or archived.';
comment on column projects.external_key_id is 'Stored and returned; no effect.';
comment on column projects.residency is 'Stored and returned; no effect.';
-- for: list projects
create index projects_page on projects (created_at, seq);
insert into projects (id, created_at, status, name)
values ('proj_default', floor(extract(epoch from now()))::bigint, 'active', 'Default project');

create table service_accounts (
    seq bigint generated always as identity,
    id text primary key,
    project_id text not null,
    created_at bigint not null,
    name text not null,
    role text not null
);
comment on table service_accounts is 'Service accounts of projects, which own API keys.';
comment on column service_accounts.role is 'owner, member or none. An account without a role cannot use the project.';
-- for: list service accounts of a project
create index service_accounts_of_a_project on service_accounts (project_id, created_at, seq);

create table api_keys (
    seq bigint generated always as identity,
    id text primary key,
    project_id text not null,
    service_account_id text not null default '',
    digest text not null,
    redacted_value text not null,
    name text not null,
    created_at bigint not null,
    expires_at bigint,
    last_used_at bigint
);
comment on table api_keys is 'API keys. The keys themselves are not stored.';
comment on column api_keys.project_id is 'The project. Empty: a key of the administration.';
comment on column api_keys.service_account_id is 'The service account that owns the key. Empty: none.';
comment on column api_keys.digest is 'The SHA-256 digest of the key, in hex.';
comment on column api_keys.redacted_value is 'The first and last characters of the key.';
comment on column api_keys.expires_at is 'When the key expires. Null: never.';
comment on column api_keys.last_used_at is 'When the key was last used, with an accuracy of about a minute. Null: never.';
-- for: authenticate a request
create unique index api_keys_by_digest on api_keys (digest);
-- for: list keys of a project, and of the administration
create index api_keys_of_a_project on api_keys (project_id, created_at, seq);
-- for: delete a service account
create index api_keys_of_a_service_account on api_keys (service_account_id) where service_account_id <> '';

create table project_limits (
    project_id text primary key,
    requests_per_minute bigint,
    active_runs bigint,
    tokens_per_minute bigint,
    tokens_per_day bigint,
    tokens_per_month bigint
);
comment on table project_limits is 'Limits of projects. Null: the value of the setting. 0: no limit.';
comment on column project_limits.active_runs is 'Runs that have not ended, at the same time.';
comment on column project_limits.tokens_per_minute is 'Input and output tokens of model calls.';

create table audit_log (
    seq bigint generated always as identity,
    id text primary key,
    created_at bigint not null,
    type text not null,
    project_id text not null,
    resource_id text not null,
    actor text not null,
    actor_key_id text not null,
    request_id text not null,
    details text not null
);
comment on table audit_log is 'Changes of projects, service accounts, API keys and limits.';
comment on column audit_log.type is 'The event: project.created and others.';
comment on column audit_log.project_id is 'The project. Empty: none.';
comment on column audit_log.resource_id is 'The object that was changed.';
comment on column audit_log.actor is 'Who made the change: stored_key, configured_key, local or command_line.';
comment on column audit_log.actor_key_id is 'The stored API key of the request. Empty: none.';
comment on column audit_log.request_id is 'The ID of the request. Empty: the command line.';
comment on column audit_log.details is 'The details of the event, as JSON.';
-- for: list audit logs
create index audit_log_page on audit_log (created_at, seq);
-- for: list audit logs of a project
create index audit_log_of_a_project on audit_log (project_id, created_at, seq);

create table access_revision (
    revision bigint not null
);
comment on table access_revision is 'One row. Each change of the tables above increments it, and servers then read keys and limits again. Its lock also serializes these changes.';
insert into access_revision (revision) values (0);
