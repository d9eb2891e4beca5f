-- Leases that are counted and renewed, attempts that are bounded, and a queue that is fair.
--
-- Expands only: servers of the release before insert and update runs without these columns, and their defaults keep that
-- working. The older names (waits, sees_to, place) are replaced when no such server is left; see docs/migrations.md.

-- raised by each claim: a lease is a run and this number
alter table runs add column claims bigint not null default 0;
-- attempts since the run last made progress, the one under way included
alter table runs add column attempts bigint not null default 0;
-- what ended the attempt before
alter table runs add column last_failure text;
-- raised by each commit and each saved text: what readers on other servers compare
alter table runs add column revision bigint not null default 0;
-- who asked for the run (a digest of the API key): owners take turns in the queue; '': nobody in particular
alter table runs add column owner text not null default '';
-- for: claim the oldest due run of each owner in turn; takes the place of runs_due
create index runs_due_by_owner on runs (owner, due_at, seq) where due_at is not null;
drop index runs_due;
-- for: end runs whose cancellation was not carried out
create index runs_cancelling on runs (id) where substr(state, 1, 22) = '{"state":{"cancelling"';

-- one row, written to check that the disk takes writes
create table checks (count bigint not null);
insert into checks values (0);
