-- Which releases can use the database, so that an older program does not misread the tables of a newer one.
--
-- Expands only: servers of the release before do not use this table.

-- One row.
create table schema_support (
    oldest_migration bigint not null, -- last migration of the oldest release that can use the database
    written_by text not null -- version of the newest release that has migrated the database
);
insert into schema_support (oldest_migration, written_by) values (0, '');
