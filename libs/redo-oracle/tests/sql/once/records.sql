-- Record types that the other workloads do not reach, most of which reference no block. Needs wal_level = logical and
-- track_commit_timestamp = on. Run by scripts/verify-redo.sh, which then freezes all databases so that transaction status, commit
-- times and multixacts are truncated.
SET lock_timeout = 20000;
-- What was prepared before holds the oldest transaction back. Something is prepared again in the end.
SELECT format('ROLLBACK PREPARED %L', gid) FROM pg_prepared_xacts WHERE database = current_database() \gexec
-- A catalog is rewritten while somebody decodes.
SELECT pg_create_logical_replication_slot('decoder', 'pgoutput');
CREATE TABLE like_a_catalog (id int, t text) WITH (user_catalog_table = true);
INSERT INTO like_a_catalog SELECT g, 'x' FROM generate_series(1, 100) g;
UPDATE like_a_catalog SET t = 'y' WHERE id < 10;
VACUUM FULL like_a_catalog;
SELECT pg_drop_replication_slot('decoder');
-- Truncation as decoders see it.
CREATE TABLE cut_down (id int); INSERT INTO cut_down VALUES (1); TRUNCATE cut_down;
-- Pages of indexes that are taken again.
CREATE TABLE again (id int, p point); CREATE INDEX again_id ON again (id); CREATE INDEX again_p ON again USING gist (p);
INSERT INTO again SELECT g, point(g, g) FROM generate_series(1, 30000) g;
DELETE FROM again WHERE id > 100; VACUUM again;
SELECT count(pg_current_xact_id()); SELECT count(pg_current_xact_id());
VACUUM again;
INSERT INTO again SELECT g, point(g, -g) FROM generate_series(30001, 60000) g;
-- Backup, switch, restore point, message, origin.
SELECT pg_backup_start('verify', true);
SELECT count(*) FROM pg_backup_stop(false);
SELECT pg_create_restore_point('here'); SELECT pg_switch_wal();
SELECT pg_logical_emit_message(false, 'verify', 'message');
SELECT pg_replication_origin_create('for a while'); SELECT pg_replication_origin_advance('for a while', '0/1234');
SELECT pg_replication_origin_drop('for a while');
-- Multixacts that fill pages of offsets and members: each has a member of its own.
CREATE TABLE locked (id int PRIMARY KEY, v int); INSERT INTO locked SELECT g, 0 FROM generate_series(1, 5000) g;
DO $$ BEGIN
  PERFORM 1 FROM locked FOR KEY SHARE;
  FOR i IN 1..5000 LOOP
    BEGIN UPDATE locked SET v = 1 WHERE id = i; EXCEPTION WHEN division_by_zero THEN NULL; END;
  END LOOP;
END $$;
-- More transactions than a segment of their status holds: each subtransaction writes what is not logged.
CREATE TEMPORARY TABLE spent (i int);
DO $$ BEGIN
  FOR a IN 1..110 LOOP
    FOR b IN 1..10000 LOOP
      BEGIN INSERT INTO spent VALUES (b); EXCEPTION WHEN division_by_zero THEN NULL; END;
    END LOOP;
    COMMIT;
  END LOOP;
END $$;
