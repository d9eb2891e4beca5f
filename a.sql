\set i random(1, 10000)
select body from t where id = 'thread_' || (:i * 10) and project_id = 'proj_0';
