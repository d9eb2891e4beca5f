-- Vector stores: files whose text is split into chunks, which searches find by their words and their embeddings.
--
-- Expands only: servers of the release before do not use these tables.

create table vector_stores (
    seq bigint generated always as identity,
    id text primary key,
    project_id text not null,
    created_at bigint not null,
    status text not null,
    version bigint not null,
    purged_version bigint not null,
    last_active_at bigint not null,
    expires_at bigint,
    remove_at bigint,
    body text not null
);
comment on table vector_stores is 'Vector stores.';
comment on column vector_stores.seq is 'Order of insertion, for equal times.';
comment on column vector_stores.status is 'live; deleted: its files are being removed.';
comment on column vector_stores.version is 'Raised by each change of what can be found.';
comment on column vector_stores.purged_version is 'The highest changed_version of the files whose rows were removed.';
comment on column vector_stores.last_active_at is
    'Last search, modification or addition of files. Of a deleted one: when it was deleted.';
comment on column vector_stores.expires_at is 'Null: never.';
comment on column vector_stores.remove_at is
    'When its files are removed: immediately if it is deleted, a day after it has expired. Null: never.';
comment on column vector_stores.body is 'The settings of the client as JSON.';
-- for: list vector stores of a project
create index vector_stores_of_a_project on vector_stores (project_id, created_at, seq);
-- for: remove vector stores
create index vector_stores_to_remove on vector_stores (remove_at) where remove_at is not null;

create table vector_store_files (
    seq bigint generated always as identity,
    id text primary key,
    project_id text not null,
    vector_store_id text not null,
    file_id text not null,
    filename text not null,
    created_at bigint not null,
    status text not null,
    usage_bytes bigint not null,
    attributes text not null,
    chunking text not null,
    last_error text,
    language text,
    embedding_model text,
    chunks bigint,
    changed_version bigint not null,
    deleted_at bigint,
    remove_at bigint,
    due_at bigint,
    claims bigint not null,
    attempts bigint not null,
    last_failure text
);
comment on table vector_store_files is 'The files of vector stores, which are also the jobs that process them.';
comment on column vector_store_files.filename is 'A copy, which searches return.';
comment on column vector_store_files.status is
    'in_progress, completed, failed, cancelled; deleted: its chunks are being removed.';
comment on column vector_store_files.usage_bytes is 'Size of the text. 0 until it is completed.';
comment on column vector_store_files.attributes is 'As JSON.';
comment on column vector_store_files.chunking is 'The chunking strategy as JSON.';
comment on column vector_store_files.last_error is 'As JSON. Null unless it has failed.';
comment on column vector_store_files.language is 'Of the text. Null: unknown.';
comment on column vector_store_files.embedding_model is
    'The model of the embeddings and its dimensions, as model@dimensions. Null: there are none.';
comment on column vector_store_files.chunks is 'Number of chunks. Null: not all of them are stored.';
comment on column vector_store_files.changed_version is
    'The version of the vector store after the last change. 0: it could never be found.';
comment on column vector_store_files.deleted_at is '0: of a vector store that is removed.';
comment on column vector_store_files.remove_at is
    'When its chunks, and then its row, are removed. Null unless it is deleted.';
comment on column vector_store_files.due_at is
    'When it can be claimed, or the end of the lease. Null unless it is in progress.';
comment on column vector_store_files.claims is
    'Raised by each claim, and when a client ends the job: the fence of the lease.';
comment on column vector_store_files.attempts is 'Since it last made progress.';
comment on column vector_store_files.last_failure is 'The cause of the last failed attempt.';
-- for: a file of a vector store; a file is there once
create unique index vector_store_files_by_file on vector_store_files (vector_store_id, file_id) where status <> 'deleted';
-- for: the vector stores of a deleted file; cursors that were deleted
create index vector_store_files_of_a_file on vector_store_files (file_id, vector_store_id);
-- for: list files of a vector store
create index vector_store_files_page on vector_store_files (vector_store_id, created_at, seq) where status <> 'deleted';
-- for: counts and sizes; list files of a vector store with a status
create index vector_store_files_by_status on vector_store_files (vector_store_id, status, created_at, seq)
include (usage_bytes) where status <> 'deleted';
-- for: changes of what can be found
create index vector_store_files_changed on vector_store_files (vector_store_id, changed_version, seq)
where changed_version > 0;
-- for: claim the files of the vector stores in turn
create index vector_store_files_due on vector_store_files (vector_store_id, due_at, seq) where due_at is not null;
-- for: remove deleted files
create index vector_store_files_to_remove on vector_store_files (remove_at) where remove_at is not null;

create table vector_store_chunks (
    store_file_id text not null,
    number bigint not null,
    project_id text not null,
    vector_store_id text not null,
    text text not null,
    overlap_bytes bigint not null,
    tokens bigint not null,
    terms bytea not null,
    content_hash bytea not null,
    embedding bytea,
    primary key (store_file_id, number)
);
comment on table vector_store_chunks is 'The chunks of the files of vector stores.';
comment on column vector_store_chunks.store_file_id is 'vector_store_files.id.';
comment on column vector_store_chunks.number is 'Position in the file, from 0.';
comment on column vector_store_chunks.overlap_bytes is
    'Leading bytes of the text that the chunk before has as well.';
comment on column vector_store_chunks.terms is 'The words of the text, analysed.';
comment on column vector_store_chunks.content_hash is 'SHA-256 of the text.';
comment on column vector_store_chunks.embedding is 'Little-endian 16-bit floats. Null: none, or not yet.';
-- for: embeddings of equal texts
create index vector_store_chunks_by_content on vector_store_chunks (project_id, content_hash) where embedding is not null;

create table vector_store_file_batches (
    seq bigint generated always as identity,
    id text primary key,
    project_id text not null,
    vector_store_id text not null,
    created_at bigint not null,
    is_cancelled boolean not null,
    store_file_ids text not null
);
comment on table vector_store_file_batches is 'Batches of files that were added to a vector store together.';
comment on column vector_store_file_batches.store_file_ids is 'vector_store_files.id of its files, as a JSON array.';
-- for: remove the batches of a vector store
create index batches_of_a_vector_store on vector_store_file_batches (vector_store_id);
