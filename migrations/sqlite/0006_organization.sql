-- Projects, service accounts, API keys, limits, and the log of their changes.
--
-- Expands only: servers of the release before do not use these tables.

-- Projects: each has its own API keys and objects.
create table projects (
    seq integer primary key autoincrement, -- order of insertion, for equal times
    id text not null unique,
    created_at bigint not null,
    archived_at bigint, -- when the project was archived. Null: it is active
    status text not null, -- active or archived
    name text not null,
    external_key_id text, -- stored and returned; no effect
    residency text -- stored and returned; no effect
);
-- for: list projects
create index projects_page on projects (created_at, seq);
insert into projects (id, created_at, status, name)
values ('proj_default', unixepoch(), 'active', 'Default project');

-- Service accounts of projects, which own API keys.
create table service_accounts (
    seq integer primary key autoincrement,
    id text not null unique,
    project_id text not null,
    created_at bigint not null,
    name text not null,
    role text not null -- owner, member or none. An account without a role cannot use the project
);
-- for: list service accounts of a project
create index service_accounts_of_a_project on service_accounts (project_id, created_at, seq);

-- API keys. The keys themselves are not stored.
create table api_keys (
    seq integer primary key autoincrement,
    id text not null unique,
    project_id text not null, -- the project. Empty: a key of the administration
    service_account_id text not null default '', -- the service account that owns the key. Empty: none
    digest text not null, -- the SHA-256 digest of the key, in hex
    redacted_value text not null, -- the first and last characters of the key
    name text not null,
    created_at bigint not null,
    expires_at bigint, -- when the key expires. Null: never
    last_used_at bigint -- when the key was last used, with an accuracy of about a minute. Null: never
);
-- for: authenticate a request
create unique index api_keys_by_digest on api_keys (digest);
-- for: list keys of a project, and of the administration
create index api_keys_of_a_project on api_keys (project_id, created_at, seq);
-- for: delete a service account
create index api_keys_of_a_service_account on api_keys (service_account_id) where service_account_id <> '';

-- Limits of projects. Null: the value of the setting. 0: no limit.
create table project_limits (
    project_id text primary key,
    requests_per_minute bigint,
    active_runs bigint, -- runs that have not ended, at the same time
    tokens_per_minute bigint, -- input and output tokens of model calls
    tokens_per_day bigint,
    tokens_per_month bigint
);

-- Changes of projects, service accounts, API keys and limits.
create table audit_log (
    seq integer primary key autoincrement,
    id text not null unique,
    created_at bigint not null,
    type text not null, -- the event: project.created and others
    project_id text not null, -- the project. Empty: none
    resource_id text not null, -- the object that was changed
    actor text not null, -- who made the change: stored_key, configured_key, local or command_line
    actor_key_id text not null, -- the stored API key of the request. Empty: none
    request_id text not null, -- the ID of the request. Empty: the command line
    details text not null -- the details of the event, as JSON
);
-- for: list audit logs
create index audit_log_page on audit_log (created_at, seq);
-- for: list audit logs of a project
create index audit_log_of_a_project on audit_log (project_id, created_at, seq);

-- One row. Each change of the tables above increments it, and servers then read keys and limits again. Its lock also
-- serializes these changes.
create table access_revision (
    revision bigint not null
);
insert into access_revision (revision) values (0);
