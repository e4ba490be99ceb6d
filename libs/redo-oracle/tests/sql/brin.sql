-- BRIN records: summaries inserted, updated in place and elsewhere, revmap growth, desummarising.
CREATE TABLE br (id int, t text, pad text) WITH (fillfactor = 20, autovacuum_enabled = off);
CREATE INDEX br_one ON br USING brin (id) WITH (pages_per_range = 1);
CREATE INDEX br_text ON br USING brin (t) WITH (pages_per_range = 1, autosummarize = off);
CREATE INDEX br_bloom ON br USING brin (id int4_bloom_ops) WITH (pages_per_range = 2);
CREATE INDEX br_multi ON br USING brin (id int4_minmax_multi_ops) WITH (pages_per_range = 2);
INSERT INTO br SELECT n, 't' || n, repeat('p', 700) FROM generate_series(1, 1500) n;
SELECT brin_summarize_new_values('br_one'), brin_summarize_new_values('br_text');
SELECT brin_summarize_new_values('br_bloom'), brin_summarize_new_values('br_multi');
-- Summaries that grow no longer fit where they are.
UPDATE br SET t = t || repeat('wide', 1 + id % 200) WHERE id % 3 = 0;
UPDATE br SET id = -id WHERE id % 5 = 0;
INSERT INTO br SELECT n, repeat('zz', n % 300), 'x' FROM generate_series(1, 2000) n;
SELECT brin_desummarize_range('br_one', n) FROM generate_series(0, 60, 3) n;
SELECT brin_desummarize_range('br_text', n) FROM generate_series(0, 60, 2) n;
SELECT brin_summarize_new_values('br_one'), brin_summarize_new_values('br_text');
VACUUM br;
-- More than one revmap page: 1360 ranges each; the pages that data had taken there are evacuated.
CREATE TABLE bw (id int, pad char(1800));
CREATE INDEX bw_idx ON bw USING brin (id, pad) WITH (pages_per_range = 1);
INSERT INTO bw SELECT n, 'x' FROM generate_series(1, 6500) n;
SELECT brin_summarize_new_values('bw_idx');
VACUUM bw;
