\set i random(1, 10000)
select set_config('assistd.project', 'proj_0', false);
select body from t where id = 'thread_' || (:i * 10);
