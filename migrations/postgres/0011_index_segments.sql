-- The indexes of large vector stores, which do not have to be in memory to be searched.
--
-- Expands only: servers of the release before do not use these tables.

create table vector_store_segments (
    seq bigint generated always as identity,
    id text primary key,
    vector_store_id text not null,
    created_at bigint not null,
    remove_at bigint,
    embedding_model text,
    vectors text not null,
    chunks bigint not null,
    body bytea not null
);
comment on table vector_store_segments is 'Segments of the indexes of large vector stores.';
comment on column vector_store_segments.remove_at is
    'When it is removed: some hours after its creation if it is not published, immediately if it was replaced. Null: never.';
comment on column vector_store_segments.embedding_model is
    'The model of the vectors and its dimensions, as model@dimensions. Null: there are none.';
comment on column vector_store_segments.vectors is
    'blocks: in vector_store_segment_parts; database: in vector_store_vectors, which needs the extension vector.';
comment on column vector_store_segments.chunks is 'Number of chunks.';
comment on column vector_store_segments.body is 'The files and the lengths of the chunks, encoded.';
-- for: the segments of a vector store
create index segments_of_a_vector_store on vector_store_segments (vector_store_id, seq);
-- for: remove segments
create index segments_to_remove on vector_store_segments (remove_at) where remove_at is not null;

create table vector_store_segment_parts (
    segment_id text not null,
    number bigint not null,
    data bytea not null,
    primary key (segment_id, number)
);
-- They are encoded compactly, so compression would only take time.
alter table vector_store_segment_parts alter column data set storage external;
comment on table vector_store_segment_parts is 'The inverted lists and the vectors of segments.';
comment on column vector_store_segment_parts.number is
    'Below 4096: the lists of the terms with these highest 12 bits. From 4096: blocks of vectors.';

create table vector_store_index_claims (
    vector_store_id text primary key,
    owner text not null,
    due_at bigint not null
);
comment on table vector_store_index_claims is 'Which server writes segments of a vector store.';
comment on column vector_store_index_claims.owner is 'Made up for each claim.';
comment on column vector_store_index_claims.due_at is 'When another server can claim it.';
