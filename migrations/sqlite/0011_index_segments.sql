-- The indexes of large vector stores, which do not have to be in memory to be searched.
--
-- Expands only: servers of the release before do not use these tables.

-- Segments of the indexes of large vector stores.
create table vector_store_segments (
    seq integer primary key autoincrement,
    id text not null unique,
    vector_store_id text not null,
    created_at bigint not null,
    remove_at bigint, -- some hours after its creation if it is not published, immediately if it was replaced. Null: never
    embedding_model text, -- the model of the vectors and its dimensions, as model@dimensions. Null: there are none
    vectors text not null, -- blocks: in vector_store_segment_parts
    chunks bigint not null, -- number of chunks
    body blob not null -- the files and the lengths of the chunks, encoded
);
-- for: the segments of a vector store
create index segments_of_a_vector_store on vector_store_segments (vector_store_id, seq);
-- for: remove segments
create index segments_to_remove on vector_store_segments (remove_at) where remove_at is not null;

-- The inverted lists and the vectors of segments.
create table vector_store_segment_parts (
    segment_id text not null,
    number bigint not null, -- below 4096: the lists of the terms with these highest 12 bits. From 4096: blocks of vectors
    data blob not null,
    primary key (segment_id, number)
);

-- Which server writes segments of a vector store.
create table vector_store_index_claims (
    vector_store_id text primary key not null,
    owner text not null, -- made up for each claim
    due_at bigint not null -- when another server can claim it
);
