-- SP-GiST records: leaves added and moved, nodes added, prefixes split, all-the-same tuples, vacuum of leaves, roots, redirections.
CREATE TABLE sp (t text, p point) WITH (autovacuum_enabled = off);
CREATE INDEX sp_t ON sp USING spgist (t);
CREATE INDEX sp_q ON sp USING spgist (p);
CREATE INDEX sp_k ON sp USING spgist (p kd_point_ops);
INSERT INTO sp SELECT md5(n::text), point(n % 131, n % 37) FROM generate_series(1, 6000) n;
INSERT INTO sp SELECT 'common prefix ' || n, point(n, n) FROM generate_series(1, 3000) n;
INSERT INTO sp SELECT 'common other ' || n, point(5, 5) FROM generate_series(1, 2000) n;
INSERT INTO sp SELECT repeat('long', 100) || n, point(n / 7.0, 1) FROM generate_series(1, 800) n;
INSERT INTO sp SELECT 'same', point(1, 1) FROM generate_series(1, 3000);
INSERT INTO sp SELECT chr(32 + n % 220) || n, point(-n, n) FROM generate_series(1, 4000) n;
INSERT INTO sp SELECT NULL, NULL FROM generate_series(1, 1500);
DELETE FROM sp WHERE t LIKE 'common p%' OR (p[0])::int % 3 = 0;
VACUUM sp;
INSERT INTO sp SELECT 'common prefix ' || n || 'x', point(n, -n) FROM generate_series(1, 3000) n;
VACUUM sp;
DELETE FROM sp WHERE t < 'a';
VACUUM sp;
INSERT INTO sp SELECT md5((n * 3)::text), point(n % 131, n % 41) FROM generate_series(1, 3000) n;
DELETE FROM sp;
VACUUM sp;
VACUUM sp;
INSERT INTO sp SELECT 'again ' || n, point(n, n) FROM generate_series(1, 500) n;
-- A root that is a leaf.
CREATE TABLE sr (t text) WITH (autovacuum_enabled = off);
CREATE INDEX sr_t ON sr USING spgist (t);
INSERT INTO sr SELECT 'r' || n FROM generate_series(1, 50) n;
DELETE FROM sr WHERE t LIKE '%1%';
VACUUM sr;
INSERT INTO sr SELECT 's' || n FROM generate_series(1, 20) n;
-- Network addresses and ranges have their own operator classes.
CREATE TABLE sn (i inet, r int4range);
CREATE INDEX sn_i ON sn USING spgist (i);
CREATE INDEX sn_r ON sn USING spgist (r);
INSERT INTO sn SELECT ('10.' || n % 200 || '.' || n % 99 || '.' || n % 250)::inet, int4range(n, n + n % 50)
  FROM generate_series(1, 4000) n;
DELETE FROM sn WHERE lower(r) % 3 = 1;
VACUUM sn;
