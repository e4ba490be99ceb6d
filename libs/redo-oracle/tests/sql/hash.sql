-- Hash index records: inserts, bucket splits, overflow pages, bitmaps, squeezing, vacuum of one page.
CREATE TABLE ha (k int, v int) WITH (autovacuum_enabled = off);
CREATE INDEX ha_k ON ha USING hash (k);
CREATE INDEX ha_v ON ha USING hash (v) WITH (fillfactor = 10);
INSERT INTO ha SELECT n, n % 20 FROM generate_series(1, 6000) n;
DELETE FROM ha WHERE k % 2 = 0;
VACUUM ha;
INSERT INTO ha SELECT n, 7 FROM generate_series(1, 6000) n;
-- Chains of overflow pages that are each half empty are packed from the end.
DELETE FROM ha WHERE v = 7 AND k % 3 > 0;
VACUUM ha;
DELETE FROM ha WHERE v = 7;
VACUUM ha;
INSERT INTO ha SELECT n, n % 3 FROM generate_series(1, 6000) n;
DELETE FROM ha WHERE k > 100;
VACUUM ha;
VACUUM ha;
-- Dead items that scans find give way to new ones.
SET enable_seqscan = off;
SET enable_bitmapscan = off;
CREATE TABLE hd (k int, v int) WITH (autovacuum_enabled = off);
CREATE INDEX hd_k ON hd USING hash (k);
INSERT INTO hd SELECT 1, n FROM generate_series(1, 300) n;
DELETE FROM hd WHERE k = 1;
SELECT count(*) FROM hd WHERE k = 1;
INSERT INTO hd SELECT 1, n FROM generate_series(1, 1200) n;
DELETE FROM hd WHERE k = 1;
SELECT count(*) FROM hd WHERE k = 1;
INSERT INTO hd SELECT 1, n FROM generate_series(1, 1200) n;
RESET enable_seqscan;
RESET enable_bitmapscan;
-- An index made large at once.
CREATE TABLE hb AS SELECT n AS k FROM generate_series(1, 10000) n;
CREATE INDEX hb_k ON hb USING hash (k);
INSERT INTO hb SELECT n FROM generate_series(1, 10000) n;
