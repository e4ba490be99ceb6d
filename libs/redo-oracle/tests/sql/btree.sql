-- B-tree records: splits left and right, deduplication, posting splits, deletion of pages up to new fast roots.
CREATE TABLE b (k int, d int, t text);
CREATE INDEX b_k ON b (k);
CREATE INDEX b_d ON b (d);
CREATE INDEX b_t ON b (t);
CREATE INDEX b_r ON b ((k * 7919 % 100003));
INSERT INTO b SELECT g, g % 10, md5(g::text) FROM generate_series(1, 7000) g;
INSERT INTO b SELECT 10000 - g, g % 100, md5((g * 31)::text) FROM generate_series(1, 7000) g;
-- Wide keys make many levels.
CREATE TABLE w (k text);
CREATE INDEX w_k ON w (k);
INSERT INTO w SELECT repeat(md5(g::text), 30) || g FROM generate_series(1, 3000) g;
-- TIDs in the middle of posting lists: rows go to pages freed before.
DELETE FROM b WHERE k % 3 = 0;
VACUUM b;
INSERT INTO b SELECT g, g % 10, md5(g::text) FROM generate_series(1, 4000) g;
DELETE FROM b WHERE d = 3 AND k % 2 = 0;
VACUUM b;
-- Dead items that scans find are deleted when the page fills up.
CREATE TABLE q (k int, v int, pad text) WITH (autovacuum_enabled = off);
CREATE UNIQUE INDEX q_k ON q (k);
CREATE INDEX q_v ON q (v);
INSERT INTO q SELECT g, g, 'x' FROM generate_series(1, 2000) g;
DO $$ BEGIN FOR i IN 1..15 LOOP UPDATE q SET v = v + 1 WHERE k % 4 = 0; END LOOP; END $$;
UPDATE q SET v = v + 1; UPDATE q SET v = v - 1; UPDATE q SET v = v + 1; UPDATE q SET v = v - 1;
SET enable_seqscan = off;
SELECT count(*) FROM q WHERE k > 0; SELECT count(*) FROM q WHERE v > 0;
UPDATE q SET v = v + 1; UPDATE q SET v = v - 1; UPDATE q SET v = v + 1;
SELECT count(*) FROM q WHERE v > 0;
DELETE FROM q WHERE k < 1900;
SELECT count(*) FROM q WHERE k > 0; SELECT count(*) FROM q WHERE v > 0;
INSERT INTO q SELECT g, g, 'y' FROM generate_series(1, 1899) g;
RESET enable_seqscan;
-- Page deletion of leaves, of inner pages, and reuse.
DELETE FROM w WHERE k < (SELECT k FROM w ORDER BY k OFFSET 2900 LIMIT 1);
VACUUM w; VACUUM w;
INSERT INTO w SELECT repeat(md5(g::text), 30) || g FROM generate_series(1, 2000) g;
DELETE FROM w;
VACUUM w; VACUUM w; VACUUM w;
INSERT INTO w SELECT repeat(md5(g::text), 30) || g FROM generate_series(1, 2000) g;
DELETE FROM b WHERE k BETWEEN 1000 AND 6500;
VACUUM b; VACUUM b;
INSERT INTO b SELECT g, g % 10, md5(g::text) FROM generate_series(1, 5000) g;
-- A fast root below the true root.
CREATE TABLE f (k int, pad text);
CREATE INDEX f_k ON f (k, pad);
INSERT INTO f SELECT g, repeat('f', 500) FROM generate_series(1, 6000) g;
DELETE FROM f WHERE k < 5990;
VACUUM f; VACUUM f;
INSERT INTO f SELECT g, repeat('g', 500) FROM generate_series(6001, 9000) g;
