-- Files, uploads and their parts. The bytes are in the folder or bucket of the setting files_url.
--
-- Expands only: servers of the release before do not use these tables.

-- Files. The row is inserted before the bytes are stored, and becomes visible afterwards.
create table files (
    seq integer primary key autoincrement, -- order of insertion, for equal times
    id text not null unique,
    project_id text not null,
    created_at bigint not null,
    status text not null, -- pending: the bytes are being received; processed; deleted: the bytes are being deleted
    purpose text not null, -- empty while pending
    remove_at bigint, -- when row and bytes are removed: the end of the lease of a pending file, or when it expires. Null: never
    body text -- the file as JSON. Null while pending
);
-- for: list files of a project
create index files_of_a_project on files (project_id, created_at, seq);
-- for: remove files
create index files_to_remove on files (remove_at) where remove_at is not null;

-- Uploads: files that are sent in parts.
create table uploads (
    seq integer primary key autoincrement,
    id text not null unique,
    project_id text not null,
    created_at bigint not null,
    status text not null, -- pending, completed or cancelled. A pending upload after expires_at is expired
    expires_at bigint not null,
    body text not null -- the upload as JSON
);
-- for: delete old uploads
create index uploads_by_expiry on uploads (expires_at);

-- Parts of uploads, each with its own bytes until the upload ends.
create table upload_parts (
    seq integer primary key autoincrement,
    id text not null unique,
    project_id text not null,
    upload_id text not null,
    created_at bigint not null,
    status text not null, -- pending: the bytes are being received; stored; deleted: the bytes are being deleted
    bytes bigint not null, -- size in bytes. 0 while pending
    remove_at bigint -- when row and bytes are removed: the end of the lease of a pending part, or when the upload expires
);
-- for: parts of an upload
create index parts_of_an_upload on upload_parts (upload_id);
-- for: remove parts
create index upload_parts_to_remove on upload_parts (remove_at) where remove_at is not null;
