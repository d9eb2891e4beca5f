-- The sizes of vector stores by day, for the usage of projects.
--
-- Expands only: servers of the release before measure nothing.

create table vector_store_sizes (
    project_id text not null,
    day bigint not null, -- the start of the day in UTC, in Unix seconds
    usage_bytes bigint not null, -- size of the texts of all vector stores of the project, as measured last on this day
    primary key (day, project_id)
);
