SET lock_timeout = 20000;
-- What goes beyond one relation's pages and stays until the end: databases in both strategies, tablespaces, prepared transactions,
-- multixacts, sequences, maps that are cut to nothing and grow again, origins, unlogged relations.
CREATE TABLE c (id int PRIMARY KEY, v int, pad text);
INSERT INTO c SELECT g, g, repeat('c', 100) FROM generate_series(1, 20000) g;
VACUUM (FREEZE) c;
SELECT count(*), sum(v) FROM c;
-- The map is cut off with the heap and must come back empty: only the first page is all-visible in the end.
CREATE TABLE emptied AS SELECT g AS id, repeat('e', 200) AS pad FROM generate_series(1, 5000) g;
VACUUM (FREEZE) emptied;
DELETE FROM emptied;
VACUUM emptied;
INSERT INTO emptied SELECT g, repeat('e', 200) FROM generate_series(1, 40) g;
VACUUM emptied;
INSERT INTO emptied SELECT g, repeat('f', 200) FROM generate_series(41, 3000) g;
UPDATE emptied SET pad = 'g' WHERE id % 40 = 0;
-- Cut in the middle of the map page's bits.
CREATE TABLE cut AS SELECT g AS id, repeat('k', 200) AS pad FROM generate_series(1, 5000) g;
VACUUM (FREEZE) cut;
DELETE FROM cut WHERE id > 700;
VACUUM cut;
INSERT INTO cut SELECT g, repeat('l', 200) FROM generate_series(701, 4000) g;
SELECT count(*) FROM cut;
CREATE TABLE truncated (id serial PRIMARY KEY, t text);
INSERT INTO truncated (t) SELECT 'row' FROM generate_series(1, 3000);
VACUUM truncated;
BEGIN; TRUNCATE truncated RESTART IDENTITY; INSERT INTO truncated (t) SELECT 'new' FROM generate_series(1, 70); COMMIT;
TRUNCATE truncated;
INSERT INTO truncated (t) SELECT 'newer' FROM generate_series(1, 900);
BEGIN; TRUNCATE truncated; INSERT INTO truncated (t) VALUES ('never'); ROLLBACK;
-- Sequences in the middle of what they have logged, at its end, and set.
CREATE SEQUENCE middle; SELECT nextval('middle') FROM generate_series(1, 5);
CREATE SEQUENCE at_end CACHE 1; SELECT nextval('at_end') FROM generate_series(1, 33);
CREATE SEQUENCE down INCREMENT -7; SELECT nextval('down') FROM generate_series(1, 40);
CREATE SEQUENCE was_set; SELECT setval('was_set', 1000, false); SELECT setval('was_set', 2000);
-- Multixacts: several lockers of one row, and updates of locked rows.
BEGIN;
SELECT count(*) FROM (SELECT * FROM c WHERE id <= 600 FOR KEY SHARE) s;
SAVEPOINT a;
UPDATE c SET v = v + 1 WHERE id <= 300;
SAVEPOINT b;
SELECT count(*) FROM (SELECT * FROM c WHERE id BETWEEN 200 AND 500 FOR NO KEY UPDATE) s;
RELEASE b;
COMMIT;
-- Many subtransactions, a third of them rolled back.
DO $$ BEGIN FOR i IN 1..20000 LOOP
  BEGIN INSERT INTO c VALUES (100000 + i, i, 'sub'); IF i % 3 = 0 THEN RAISE EXCEPTION 'x'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END;
END LOOP; END $$;
-- Scans that leave hints and dead index items.
DELETE FROM c WHERE id BETWEEN 5000 AND 6000;
SET enable_seqscan = off;
SELECT count(*) FROM c WHERE id BETWEEN 4900 AND 6100;
SELECT count(*) FROM c WHERE id BETWEEN 4900 AND 6100;
RESET enable_seqscan;
-- Prepared transactions: kept, committed, rolled back; one that drops, one that made a table.
CREATE TABLE dropped_by_prepared AS SELECT * FROM generate_series(1, 1000) g;
CREATE TABLE prepared (id int, t text);
BEGIN; INSERT INTO prepared VALUES (-1, 'prepared'); SAVEPOINT s; INSERT INTO prepared VALUES (-2, 'prepared, sub'); PREPARE TRANSACTION 'kept';
BEGIN; CREATE TABLE made_by_prepared AS SELECT * FROM generate_series(1, 1000) g; PREPARE TRANSACTION 'kept with a table';
BEGIN; DROP TABLE dropped_by_prepared; PREPARE TRANSACTION 'drops';
COMMIT PREPARED 'drops';
BEGIN; CREATE TABLE never_made AS SELECT * FROM generate_series(1, 1000) g; PREPARE TRANSACTION 'gone';
ROLLBACK PREPARED 'gone';
-- Maps of mapped catalogs, and rewrites.
VACUUM FULL pg_class;
VACUUM FULL pg_authid;
CLUSTER c USING c_pkey;
REINDEX TABLE c;
ALTER TABLE c ALTER COLUMN v TYPE bigint;
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY); INSERT INTO unlogged SELECT generate_series(1, 500);
ALTER TABLE unlogged SET LOGGED;
CREATE UNLOGGED TABLE stays_unlogged (id int PRIMARY KEY); INSERT INTO stays_unlogged SELECT generate_series(1, 500);
ALTER TABLE truncated SET UNLOGGED;
CREATE TEMPORARY TABLE temporary AS SELECT * FROM generate_series(1, 1000) g;
-- Large objects, an origin, a message.
SELECT lo_from_bytea(0, decode(repeat('ab', 5000), 'hex')) FROM generate_series(1, 20);
SELECT pg_replication_origin_create('elsewhere'); SELECT pg_replication_origin_advance('elsewhere', '0/ABCD');
SELECT pg_logical_emit_message(true, 'test', 'message'); SELECT pg_create_restore_point('here'); SELECT pg_switch_wal();
-- Whole databases, and what is written in the copies.
CHECKPOINT;
CREATE DATABASE origin;
\c origin
CREATE TABLE t AS SELECT g AS id, repeat('t', 50) AS pad FROM generate_series(1, 9000) g;
CREATE INDEX ON t (id);
CREATE INDEX ON t USING gist (point(id, id));
CREATE INDEX ON t USING spgist (pad);
VACUUM (FREEZE) t;
CREATE TABLE dirty AS SELECT g AS id FROM generate_series(1, 5000) g;
DELETE FROM dirty WHERE id % 5 = 0;
\c postgres
CREATE DATABASE kept_by_wal TEMPLATE origin STRATEGY wal_log;
CREATE DATABASE kept_by_files TEMPLATE origin STRATEGY file_copy;
CREATE DATABASE moved TEMPLATE origin;
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE space LOCATION '';
CREATE TABLESPACE other_space LOCATION '';
ALTER DATABASE moved SET TABLESPACE space;
CREATE TABLE in_space (id int PRIMARY KEY) TABLESPACE other_space; INSERT INTO in_space SELECT generate_series(1, 3000);
ALTER TABLE in_space SET TABLESPACE space;
DROP TABLESPACE other_space;
CREATE DATABASE dropped TEMPLATE origin;
DROP DATABASE dropped;
\c kept_by_files
INSERT INTO t SELECT g, 'file' FROM generate_series(1, 700) g; UPDATE t SET pad = 'new' WHERE id < 50; VACUUM t;
\c kept_by_wal
DELETE FROM t WHERE id BETWEEN 20 AND 3000; SELECT count(*) FROM t; VACUUM t; INSERT INTO dirty SELECT 1 FROM generate_series(1, 300);
\c moved
UPDATE t SET id = -id WHERE id % 100 = 0; VACUUM (FREEZE) dirty;
