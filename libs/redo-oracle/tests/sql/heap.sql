-- Heap records: single and multi inserts, updates of each kind, locks, in-place, pruning, vacuum, freezing.
CREATE TABLE h (id int, pad text, v int) WITH (fillfactor = 70);
INSERT INTO h SELECT g, repeat('x', g % 300), g FROM generate_series(1, 3000) g;
CREATE INDEX h_id ON h (id);
UPDATE h SET v = v + 1 WHERE id % 3 = 0;
UPDATE h SET pad = pad || 'tail' WHERE id % 5 = 0;
UPDATE h SET pad = 'head' || pad WHERE id % 7 = 0;
UPDATE h SET id = -id WHERE id % 50 = 0;
UPDATE h SET pad = NULL WHERE id % 11 = 0;
UPDATE h SET v = NULL, pad = repeat('grown', 100) WHERE id % 13 = 0;
DELETE FROM h WHERE id % 17 = 0;
SELECT count(*) FROM h WHERE id > 0;
VACUUM h;
INSERT INTO h SELECT g, 'after vacuum', g FROM generate_series(1, 500) g;
UPDATE h SET v = 0 WHERE id BETWEEN 100 AND 200;
VACUUM (FREEZE) h;
SELECT count(*) FROM (SELECT * FROM h WHERE id BETWEEN 300 AND 400 FOR UPDATE) s;
SELECT count(*) FROM (SELECT * FROM h WHERE id BETWEEN 500 AND 600 FOR KEY SHARE) s;
UPDATE h SET v = -1 WHERE id BETWEEN 450 AND 520;
DELETE FROM h WHERE id BETWEEN 700 AND 800;
VACUUM (FREEZE) h;
-- Subtransactions: locks turn into multixacts, rolled back inserts are pruned.
BEGIN;
SELECT count(*) FROM (SELECT * FROM h WHERE id BETWEEN 900 AND 950 FOR SHARE) s;
SAVEPOINT a;
UPDATE h SET v = 77 WHERE id BETWEEN 900 AND 950;
SAVEPOINT b;
DELETE FROM h WHERE id BETWEEN 920 AND 930;
ROLLBACK TO b;
SELECT count(*) FROM (SELECT * FROM h WHERE id BETWEEN 940 AND 990 FOR NO KEY UPDATE) s;
ROLLBACK TO a;
UPDATE h SET pad = 'again' WHERE id BETWEEN 930 AND 940;
COMMIT;
-- Locks on rows that a transaction has locked before, through an update chain.
BEGIN;
SELECT count(*) FROM (SELECT * FROM h WHERE id BETWEEN 1000 AND 1040 FOR KEY SHARE) s;
SAVEPOINT s1;
UPDATE h SET v = 1 WHERE id BETWEEN 1000 AND 1040;
SAVEPOINT s2;
SELECT count(*) FROM (SELECT * FROM h WHERE id BETWEEN 1000 AND 1040 FOR UPDATE) s;
COMMIT;
-- Speculative insertion.
CREATE TABLE u (k int PRIMARY KEY, v int);
INSERT INTO u SELECT g, g FROM generate_series(1, 200) g ON CONFLICT (k) DO NOTHING;
INSERT INTO u SELECT g, g FROM generate_series(100, 300) g ON CONFLICT (k) DO UPDATE SET v = u.v + 1;
-- Rows that move between partitions.
CREATE TABLE p (k int, v text) PARTITION BY RANGE (k);
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200);
INSERT INTO p SELECT g, 'row' FROM generate_series(0, 199) g;
UPDATE p SET k = k + 100 WHERE k < 50;
-- Pages that lose all their rows, then are cut off.
CREATE TABLE t AS SELECT g AS id, repeat('t', 200) AS pad FROM generate_series(1, 3000) g;
VACUUM (FREEZE) t;
DELETE FROM t WHERE id > 500;
VACUUM t;
INSERT INTO t SELECT g, repeat('n', 200) FROM generate_series(1, 2000) g;
VACUUM t;
TRUNCATE t;
INSERT INTO t SELECT g, repeat('o', 200) FROM generate_series(1, 100) g;
-- TOAST.
CREATE TABLE big (id int, doc text);
ALTER TABLE big ALTER doc SET STORAGE EXTERNAL;
INSERT INTO big SELECT g, repeat(md5(g::text), 300) FROM generate_series(1, 50) g;
UPDATE big SET doc = repeat(md5(id::text), 200) WHERE id % 2 = 0;
DELETE FROM big WHERE id % 3 = 0;
VACUUM big;
-- COPY into a table made in the same transaction can freeze at once.
BEGIN;
CREATE TABLE frozen (id int, pad text);
COPY frozen FROM PROGRAM 'seq 1 3000 | sed "s/$/\tfrozen/"' (FREEZE);
COMMIT;
COPY frozen FROM PROGRAM 'seq 1 500 | sed "s/$/\tmore/"';
INSERT INTO frozen SELECT g, 'onto frozen pages' FROM generate_series(1, 100) g;
VACUUM frozen;
DELETE FROM frozen WHERE id % 10 = 0;
-- In-place updates come from ANALYZE, VACUUM and CREATE INDEX on the catalog.
ANALYZE h;
ANALYZE u;
CREATE SEQUENCE s1 CACHE 1;
SELECT count(nextval('s1')) FROM generate_series(1, 100);
SELECT setval('s1', 5000);
ALTER SEQUENCE s1 RESTART WITH 10 INCREMENT BY 3;
SELECT count(nextval('s1')) FROM generate_series(1, 100);
CREATE EXTENSION IF NOT EXISTS bloom;
CREATE TABLE bl (a int, b int, c int);
INSERT INTO bl SELECT g, g % 100, g % 7 FROM generate_series(1, 4000) g;
CREATE INDEX bl_idx ON bl USING bloom (a, b, c);
INSERT INTO bl SELECT g, g % 100, g % 7 FROM generate_series(1, 4000) g;
DELETE FROM bl WHERE b < 50;
VACUUM bl;
INSERT INTO bl SELECT g, g % 100, g % 7 FROM generate_series(1, 1000) g;
-- A second session: locks on rows that an open transaction has updated, and speculative insertions that lose.
CREATE EXTENSION IF NOT EXISTS dblink;
SELECT dblink_connect('other', format('host=%s port=%s user=%s dbname=%s',
  split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port'), current_user, current_database()));
CREATE TABLE l (k int PRIMARY KEY, v int);
INSERT INTO l SELECT g, g FROM generate_series(1, 300) g;
VACUUM (FREEZE) l;
BEGIN;
UPDATE l SET v = v + 1 WHERE k <= 100;
UPDATE l SET v = v + 1 WHERE k <= 50;
SELECT dblink_exec('other', 'BEGIN');
SELECT * FROM dblink('other', 'SELECT count(*) FROM (SELECT k FROM l WHERE k <= 120 FOR KEY SHARE) s') AS t (n int);
UPDATE l SET v = v + 1 WHERE k <= 30;
SELECT dblink_exec('other', 'SAVEPOINT a');
SELECT * FROM dblink('other', 'SELECT count(*) FROM (SELECT k FROM l WHERE k BETWEEN 200 AND 250 FOR SHARE) s') AS t (n int);
SELECT count(*) FROM (SELECT k FROM l WHERE k BETWEEN 220 AND 270 FOR SHARE) s;
COMMIT;
SELECT dblink_exec('other', 'ROLLBACK TO a');
SELECT dblink_exec('other', 'COMMIT');
VACUUM l;
DELETE FROM l WHERE k % 2 = 0;
-- Two-phase commit, and whole databases in both strategies.
BEGIN;
INSERT INTO l SELECT g, g FROM generate_series(1000, 1100) g;
PREPARE TRANSACTION 'one';
BEGIN;
UPDATE l SET v = 0 WHERE k < 100;
SAVEPOINT s;
DELETE FROM l WHERE k = 1;
PREPARE TRANSACTION 'two';
COMMIT PREPARED 'one';
ROLLBACK PREPARED 'two';
CREATE DATABASE short_by_wal STRATEGY wal_log;
CREATE DATABASE short_by_file TEMPLATE template0 STRATEGY file_copy;
DROP DATABASE short_by_wal;
DROP DATABASE short_by_file;
SELECT dblink_disconnect('other');
