-- Files, uploads and their parts. The bytes are in the folder or bucket of the setting files_url.
--
-- Expands only: servers of the release before do not use these tables.

create table files (
    seq bigint generated always as identity,
    id text primary key,
    project_id text not null,
    created_at bigint not null,
    status text not null,
    purpose text not null,
    remove_at bigint,
    body text
);
comment on table files is 'Files. The row is inserted before the bytes are stored, and becomes visible afterwards.';
comment on column files.seq is 'Order of insertion, for equal times.';
comment on column files.status is 'pending: the bytes are being received; processed; deleted: the bytes are being deleted.';
comment on column files.purpose is 'Empty while pending.';
comment on column files.remove_at is 'When row and bytes are removed: the end of the lease of a pending file, or when it expires. Null: never.';
comment on column files.body is 'The file as JSON. Null while pending.';
-- for: list files of a project
create index files_of_a_project on files (project_id, created_at, seq);
-- for: remove files
create index files_to_remove on files (remove_at) where remove_at is not null;

create table uploads (
    seq bigint generated always as identity,
    id text primary key,
    project_id text not null,
    created_at bigint not null,
    status text not null,
    expires_at bigint not null,
    body text not null
);
comment on table uploads is 'Uploads: files that are sent in parts.';
comment on column uploads.status is 'pending, completed or cancelled. A pending upload after expires_at is expired.';
comment on column uploads.body is 'The upload as JSON.';
-- for: delete old uploads
create index uploads_by_expiry on uploads (expires_at);

create table upload_parts (
    seq bigint generated always as identity,
    id text primary key,
    project_id text not null,
    upload_id text not null,
    created_at bigint not null,
    status text not null,
    bytes bigint not null,
    remove_at bigint
);
comment on table upload_parts is 'Parts of uploads, each with its own bytes until the upload ends.';
comment on column upload_parts.status is 'pending: the bytes are being received; stored; deleted: the bytes are being deleted.';
comment on column upload_parts.bytes is 'Size in bytes. 0 while pending.';
comment on column upload_parts.remove_at is 'When row and bytes are removed: the end of the lease of a pending part, or when the upload expires.';
-- for: parts of an upload
create index parts_of_an_upload on upload_parts (upload_id);
-- for: remove parts
create index upload_parts_to_remove on upload_parts (remove_at) where remove_at is not null;
