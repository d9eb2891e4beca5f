-- Vector stores: files whose text is split into chunks, which searches find by their words and their embeddings.
--
-- Expands only: servers of the release before do not use these tables.

-- Vector stores.
create table vector_stores (
    seq integer primary key autoincrement, -- order of insertion, for equal times
    id text not null unique,
    project_id text not null,
    created_at bigint not null,
    status text not null, -- live; deleted: its files are being removed
    version bigint not null, -- raised by each change of what can be found
    purged_version bigint not null, -- the highest changed_version of the files whose rows were removed
    last_active_at bigint not null, -- last search, modification or addition of files. Of a deleted one: when it was deleted
    expires_at bigint, -- null: never
    remove_at bigint, -- when its files are removed: immediately if it is deleted, a day after it has expired. Null: never
    body text not null -- the settings of the client as JSON
);
-- for: list vector stores of a project
create index vector_stores_of_a_project on vector_stores (project_id, created_at, seq);
-- for: remove vector stores
create index vector_stores_to_remove on vector_stores (remove_at) where remove_at is not null;

-- The files of vector stores, which are also the jobs that process them.
create table vector_store_files (
    seq integer primary key autoincrement,
    id text not null unique,
    project_id text not null,
    vector_store_id text not null,
    file_id text not null,
    filename text not null, -- a copy, which searches return
    created_at bigint not null,
    status text not null, -- in_progress, completed, failed, cancelled; deleted: its chunks are being removed
    usage_bytes bigint not null, -- size of the text. 0 until it is completed
    attributes text not null, -- as JSON
    chunking text not null, -- the chunking strategy as JSON
    last_error text, -- as JSON. Null unless it has failed
    language text, -- of the text. Null: unknown
    embedding_model text, -- the model of the embeddings and its dimensions, as model@dimensions. Null: there are none
    chunks bigint, -- number of chunks. Null: not all of them are stored
    changed_version bigint not null, -- the version of the vector store after the last change. 0: it could never be found
    deleted_at bigint, -- 0: of a vector store that is removed
    remove_at bigint, -- when its chunks, and then its row, are removed. Null unless it is deleted
    due_at bigint, -- when it can be claimed, or the end of the lease. Null unless it is in progress
    claims bigint not null, -- raised by each claim, and when a client ends the job: the fence of the lease
    attempts bigint not null, -- since it last made progress
    last_failure text -- the cause of the last failed attempt
);
-- for: a file of a vector store; a file is there once
create unique index vector_store_files_by_file on vector_store_files (vector_store_id, file_id) where status <> 'deleted';
-- for: the vector stores of a deleted file; cursors that were deleted
create index vector_store_files_of_a_file on vector_store_files (file_id, vector_store_id);
-- for: list files of a vector store
create index vector_store_files_page on vector_store_files (vector_store_id, created_at, seq) where status <> 'deleted';
-- for: counts and sizes; list files of a vector store with a status
create index vector_store_files_by_status on vector_store_files (vector_store_id, status, created_at, seq, usage_bytes)
where status <> 'deleted';
-- for: changes of what can be found
create index vector_store_files_changed on vector_store_files (vector_store_id, changed_version, seq)
where changed_version > 0;
-- for: claim the files of the vector stores in turn
create index vector_store_files_due on vector_store_files (vector_store_id, due_at, seq) where due_at is not null;
-- for: remove deleted files
create index vector_store_files_to_remove on vector_store_files (remove_at) where remove_at is not null;

-- The chunks of the files of vector stores.
create table vector_store_chunks (
    store_file_id text not null, -- vector_store_files.id
    number bigint not null, -- position in the file, from 0
    project_id text not null,
    vector_store_id text not null,
    text text not null,
    overlap_bytes bigint not null, -- leading bytes of the text that the chunk before has as well
    tokens bigint not null,
    terms blob not null, -- the words of the text, analysed
    content_hash blob not null, -- SHA-256 of the text
    embedding blob, -- little-endian 16-bit floats. Null: none, or not yet
    primary key (store_file_id, number)
);
-- for: embeddings of equal texts
create index vector_store_chunks_by_content on vector_store_chunks (project_id, content_hash) where embedding is not null;

-- Batches of files that were added to a vector store together.
create table vector_store_file_batches (
    seq integer primary key autoincrement,
    id text not null unique,
    project_id text not null,
    vector_store_id text not null,
    created_at bigint not null,
    is_cancelled boolean not null,
    store_file_ids text not null -- vector_store_files.id of its files, as a JSON array
);
-- for: remove the batches of a vector store
create index batches_of_a_vector_store on vector_store_file_batches (vector_store_id);
