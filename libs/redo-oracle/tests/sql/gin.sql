-- GIN records: pending list, posting lists and trees, their splits, recompression, page deletion.
CREATE TABLE g (id int, a int[]) WITH (autovacuum_enabled = off);
CREATE INDEX g_fast ON g USING gin (a) WITH (fastupdate = on, gin_pending_list_limit = 64);
CREATE INDEX g_slow ON g USING gin (a) WITH (fastupdate = off);
INSERT INTO g SELECT n, ARRAY[n % 5, n % 100, n] FROM generate_series(1, 12000) n;
SELECT gin_clean_pending_list('g_fast');
INSERT INTO g SELECT n, ARRAY[1, 2, n % 1000] FROM generate_series(1, 8000) n;
-- Rows deep in the middle of posting trees, in freed places.
DELETE FROM g WHERE id % 3 = 0;
VACUUM g;
INSERT INTO g SELECT n, ARRAY[1, 2, n % 50] FROM generate_series(1, 6000) n;
-- Whole posting-tree pages empty out.
DELETE FROM g WHERE id BETWEEN 2000 AND 11000;
VACUUM g;
VACUUM g;
INSERT INTO g SELECT n, ARRAY[1, 2, 3] FROM generate_series(1, 5000) n;
DELETE FROM g;
VACUUM g;
VACUUM g;
INSERT INTO g SELECT n, ARRAY[n % 7, n] FROM generate_series(1, 3000) n;
-- One key in all rows: a deep posting tree that splits inside.
CREATE TABLE gd (a int[]);
CREATE INDEX gd_idx ON gd USING gin (a) WITH (fastupdate = off);
INSERT INTO gd SELECT '{1}' FROM generate_series(1, 25000);
-- Text keys, wide entries, empty and null items.
CREATE TABLE gt (t tsvector);
CREATE INDEX gt_idx ON gt USING gin (t) WITH (fastupdate = off);
INSERT INTO gt SELECT to_tsvector('simple', string_agg(md5((n * 13 + k)::text), ' '))
  FROM generate_series(1, 400) n, generate_series(1, 12) k GROUP BY n;
INSERT INTO gt VALUES (''), (NULL);
DELETE FROM gt WHERE ctid IN (SELECT ctid FROM gt LIMIT 200);
VACUUM gt;
