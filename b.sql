\set i random(1, 10000)
begin;
select set_config('assistd.project', 'proj_0', true);
select body from t where id = 'thread_' || (:i * 10);
commit;
