-- Postgres stores descriptions of tables and columns in this migration. SQLite has no such descriptions.
select 1;
