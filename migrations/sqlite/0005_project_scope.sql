-- The project of each object. What exists belongs to the default project.
--
-- Expands only: servers of the release before insert rows without the column, which then belong to the default project.

alter table assistants add column project_id text not null default 'proj_default';
alter table threads add column project_id text not null default 'proj_default';
alter table messages add column project_id text not null default 'proj_default';
alter table runs add column project_id text not null default 'proj_default';
alter table run_steps add column project_id text not null default 'proj_default';

-- for: list assistants of a project; replaces assistants_page
create index assistants_of_a_project on assistants (project_id, created_at, seq);
drop index assistants_page;
-- for: list threads of a project; replaces threads_page
create index threads_of_a_project on threads (project_id, created_at, seq);
drop index threads_page;
