//! Extensions of packages: what production makes with each, and what a branch then can.

use ardent_test_pg::TestPgOptions;

use crate::psql::{sql, try_sql};

/// Names more of them, separated by commas, beside those that come with Postgres: `postgis`, `vector`, `wal2json`.
const PACKAGES_VARIABLE: &str = "ARDENT_TEST_PACKAGES";

/// One extension as it is used on production and on a branch. Everything that it makes is called `of_` and its name.
#[derive(Clone, Copy, Debug)]
pub struct Extension {
    /// As in `CREATE EXTENSION`, but for output plugins.
    pub name: &'static str,
    /// A setting of production's.
    setting: Option<(&'static str, &'static str)>,
    /// What production makes, one call after another.
    setup: &'static [&'static str],
    /// Queries with the same answers on production and on a new branch.
    same: &'static [&'static str],
    /// A query, and the index that it uses.
    indexed: Option<(&'static str, &'static str)>,
    /// What a new branch refuses, with words of the error.
    refused: Option<(&'static str, &'static str)>,
    /// What is changed on the branch, one call after another.
    changes: &'static [&'static str],
    /// A query with its answer afterwards.
    then: (&'static str, &'static str),
    /// The table that a diff shows afterwards.
    changed_table: Option<&'static str>,
}

const POINTS_AT_ITSELF: &str = "do $$ begin execute format('alter server of_itself options (set host %L, set port %L)',
    split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port')); end $$";

const CONTRIB: [Extension; 6] = [
    Extension {
        name: "pg_trgm",
        setting: None,
        setup: &["create extension if not exists pg_trgm;
            create table of_trgm (id int primary key, word text);
            insert into of_trgm select n, md5(n::text) from generate_series(1, 2000) n;
            create index of_trgm_word on of_trgm using gin (word gin_trgm_ops)"],
        same: &[
            "select count(*), min(word) from of_trgm where word like '%abc%'",
            "select round(similarity('ardent', 'ardently')::numeric, 3)",
        ],
        indexed: Some(("select count(*) from of_trgm where word like '%abc%'", "of_trgm_word")),
        refused: None,
        changes: &["update of_trgm set word = 'xyzzy-' || id where id % 400 = 0; insert into of_trgm values (5000, 'xyzzy')"],
        then: ("select count(*) from of_trgm where word like '%xyzzy%'", "6"),
        changed_table: Some("of_trgm"),
    },
    Extension {
        name: "hstore",
        setting: None,
        setup: &["create extension hstore;
            create table of_hstore (id int primary key, attrs hstore);
            insert into of_hstore select n, hstore(array['n', n::text, 'color', (array['red', 'green', 'blue'])[n % 3 + 1]])
                from generate_series(1, 1500) n;
            create index of_hstore_attrs on of_hstore using gin (attrs)"],
        same: &["select count(*), sum((attrs -> 'n')::int) from of_hstore where attrs @> 'color=>red'"],
        indexed: Some(("select count(*) from of_hstore where attrs @> 'color=>red'", "of_hstore_attrs")),
        refused: None,
        changes: &["update of_hstore set attrs = attrs || 'color=>white, new=>1' where id between 10 and 14"],
        then: ("select count(*) from of_hstore where attrs @> 'color=>white'", "5"),
        changed_table: Some("of_hstore"),
    },
    Extension {
        name: "btree_gist",
        setting: None,
        setup: &["create extension btree_gist;
            create table of_gist (id int primary key, room int, during int4range,
                constraint of_gist_free exclude using gist (room with =, during with &&));
            insert into of_gist select n, n % 20, int4range(n * 10, n * 10 + 5) from generate_series(1, 1000) n"],
        same: &["select count(*), min(id) from of_gist where room = 3 and during && int4range(100, 2000)"],
        indexed: Some(("select count(*) from of_gist where room = 3 and during && int4range(100, 2000)", "of_gist_free")),
        refused: Some(("insert into of_gist values (5000, 3, '[30,31)')", "of_gist_free")),
        changes: &["delete from of_gist where id = 40;
            insert into of_gist values (5000, 3, '[1,3)'), (5001, 0, '[400,405)')"],
        then: ("select count(*) from of_gist where room in (0, 3) and during && int4range(1, 405) and id >= 5000", "2"),
        changed_table: Some("of_gist"),
    },
    Extension {
        name: "pgcrypto",
        setting: None,
        setup: &["create extension pgcrypto;
            create table of_crypto (id int primary key, secret bytea, hash text);
            insert into of_crypto select n, pgp_sym_encrypt('secret ' || n, 'key'), encode(digest(n::text, 'sha256'), 'hex')
                from generate_series(1, 100) n;
            create index of_crypto_digest on of_crypto (digest(hash, 'sha1'))"],
        same: &[
            "select count(*), md5(string_agg(pgp_sym_decrypt(secret, 'key'), ',' order by id)) from of_crypto",
            "select id from of_crypto where digest(hash, 'sha1') = digest(encode(digest('77', 'sha256'), 'hex'), 'sha1')",
        ],
        indexed: Some((
            "select id from of_crypto where digest(hash, 'sha1') = digest(encode(digest('77', 'sha256'), 'hex'), 'sha1')",
            "of_crypto_digest",
        )),
        refused: Some(("select pgp_sym_decrypt(secret, 'another key') from of_crypto", "Wrong key")),
        changes: &["update of_crypto set secret = pgp_sym_encrypt('changed', 'key') where id = 7;
            insert into of_crypto select 500, pgp_sym_encrypt('new', 'key'), crypt('password', gen_salt('md5'))"],
        then: (
            "select string_agg(pgp_sym_decrypt(secret, 'key'), ',' order by id) from of_crypto where id in (7, 500)",
            "changed,new",
        ),
        changed_table: Some("of_crypto"),
    },
    Extension {
        name: "postgres_fdw",
        setting: None,
        setup: &["create extension postgres_fdw;
            create table of_fdw (id int primary key, word text);
            insert into of_fdw select n, md5(n::text) from generate_series(1, 100) n;
            create server of_itself foreign data wrapper postgres_fdw options (host '', port '', dbname 'shop');
            create user mapping for public server of_itself options (user 'postgres');
            create foreign table of_fdw_remote (id int, word text) server of_itself options (table_name 'of_fdw')",
            POINTS_AT_ITSELF, "select count(*) from of_fdw_remote"],
        same: &["select srvname, fdwname, pg_get_userbyid(srvowner) from pg_foreign_server join pg_foreign_data_wrapper w on w.oid = srvfdw"],
        indexed: None,
        // A branch reaches nobody else.
        refused: Some(("select count(*) from of_fdw_remote", "could not connect to server")),
        changes: &[POINTS_AT_ITSELF, "insert into of_fdw_remote values (5000, 'by the wrapper')"],
        then: ("select count(*) from of_fdw_remote", "101"),
        changed_table: Some("of_fdw"),
    },
    Extension {
        name: "pg_stat_statements",
        setting: None,
        setup: &["create extension pg_stat_statements"],
        same: &["select extversion from pg_extension where extname = 'pg_stat_statements'"],
        indexed: None,
        refused: None,
        changes: &["select 'counted' as of_statements"],
        then: ("select calls from pg_stat_statements where query like 'select $1 as of_statements'", "1"),
        changed_table: None,
    },
];

const PACKAGES: [Extension; 3] = [
    Extension {
        name: "postgis",
        setting: None,
        setup: &["create extension postgis;
            create table of_postgis (id int primary key, name text, at geometry(Point, 4326));
            insert into of_postgis select n, 'place ' || n, st_setsrid(st_makepoint(n % 360 - 180, n * 7 % 180 - 90), 4326)
                from generate_series(1, 3000) n;
            create index of_postgis_at on of_postgis using gist (at);
            create table of_postgis_areas (id int primary key, area geography(Polygon));
            insert into of_postgis_areas select n, st_buffer(st_makepoint(n, n)::geography, 10000 * n) from generate_series(1, 40) n;
            create index on of_postgis_areas using gist (area)"],
        same: &[
            "select postgis_lib_version(), postgis_proj_version(), count(*) from spatial_ref_sys",
            "select count(*), sum(id) from of_postgis where at && st_makeenvelope(-10, -10, 10, 10, 4326)",
            "select md5(string_agg(st_astext(at), ',' order by id)) from of_postgis",
            "select round(sum(st_area(area))::numeric) from of_postgis_areas where st_dwithin(area, st_makepoint(9, 9)::geography, 1000)",
            "select st_astext(st_transform(st_setsrid(st_makepoint(13.4, 52.5), 4326), 3857), 3)",
        ],
        indexed: Some((
            "select count(*) from of_postgis where at && st_makeenvelope(-10, -10, 10, 10, 4326)",
            "of_postgis_at",
        )),
        refused: Some((
            "insert into of_postgis values (9999, 'a line', 'SRID=4326;LINESTRING(0 0, 1 1)')",
            "does not match column type",
        )),
        changes: &["update of_postgis set at = st_setsrid(st_makepoint(100.5, 13.7), 4326) where id = 77;
            insert into of_postgis values (9000, 'new', st_setsrid(st_makepoint(100.6, 13.8), 4326))"],
        then: ("select count(*) from of_postgis where at && st_makeenvelope(100.4, 13.6, 100.7, 13.9, 4326)", "2"),
        changed_table: Some("of_postgis"),
    },
    Extension {
        name: "vector",
        setting: None,
        setup: &["create extension vector;
            create table of_vector (id int primary key, v vector(3));
            insert into of_vector select n, array[sin(n), cos(n), n / 100.0]::vector from generate_series(1, 2000) n;
            create index of_vector_hnsw on of_vector using hnsw (v vector_l2_ops);
            create index of_vector_lists on of_vector using ivfflat (v vector_cosine_ops) with (lists = 10)"],
        same: &[
            "select md5(string_agg(v::text, ',' order by id)) from of_vector",
            "select string_agg(id::text, ',') from (select id from of_vector order by v <-> '[0.5,0.5,10]' limit 5) near",
        ],
        indexed: Some(("select id from of_vector order by v <-> '[0.5,0.5,10]' limit 5", "of_vector_hnsw")),
        refused: Some(("insert into of_vector values (9999, '[1,2]')", "expected 3 dimensions")),
        changes: &["insert into of_vector values (5000, '[7,7,7]'); update of_vector set v = '[7,7,7.5]' where id = 3"],
        then: (
            "select string_agg(id::text, ',') from (select id from of_vector order by v <-> '[7,7,7]' limit 2) near",
            "5000,3",
        ),
        changed_table: Some("of_vector"),
    },
    Extension {
        name: "wal2json",
        setting: Some(("output_plugin_libraries", "pgoutput, wal2json")),
        setup: &[
            "create table of_wal2json (id int primary key, word text)",
            "select pg_create_logical_replication_slot('of_wal2json', 'wal2json')",
            "insert into of_wal2json values (1, 'on production')",
            "select pg_logical_slot_get_changes('of_wal2json', null, null)",
        ],
        same: &["select count(*), max(word) from of_wal2json"],
        indexed: None,
        // Production's slots are production's.
        refused: Some(("select pg_logical_slot_get_changes('of_wal2json', null, null)", "does not exist")),
        changes: &[
            "select pg_create_logical_replication_slot('of_wal2json', 'wal2json')",
            "insert into of_wal2json values (2, 'on the branch')",
        ],
        then: (
            "select count(*) from pg_logical_slot_get_changes('of_wal2json', null, null) where data like '%on the branch%'",
            "1",
        ),
        changed_table: Some("of_wal2json"),
    },
];

impl Extension {
    /// Those that come with Postgres, and those that `$ARDENT_TEST_PACKAGES` names.
    pub fn all() -> Vec<Extension> {
        let named = std::env::var(PACKAGES_VARIABLE).unwrap_or_default();
        let mut named: Vec<&str> = named.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        let mut found = CONTRIB.to_vec();
        found.extend(PACKAGES.iter().filter(|package| named.contains(&package.name)));
        named.retain(|name| !PACKAGES.iter().any(|package| package.name == *name));
        assert!(named.is_empty(), "{PACKAGES_VARIABLE} names {named:?}, which no test knows");
        found
    }

    /// Production's settings with what it needs.
    pub fn with_settings(options: TestPgOptions, extension: &Extension) -> TestPgOptions {
        match extension.setting {
            Some((name, value)) => options.set(name, value),
            None => options,
        }
    }

    /// Makes it, with its table and what else is tested, in the database `shop` of production at `url`.
    pub fn set_up(&self, url: &str) {
        for statement in self.setup {
            sql(url, statement);
        }
    }

    /// A new branch has what production has; it can be used there, and changed.
    pub fn check(&self, production: &str, branch: &str) {
        for query in self.same {
            assert_eq!(sql(branch, query), sql(production, query), "{}: {query}", self.name);
        }
        if let Some((query, index)) = self.indexed {
            let plan = sql(branch, &format!("set enable_seqscan = off; explain (costs off) {query}"));
            assert!(plan.contains(index), "{index} is not in\n{plan}");
            let by_index = sql(branch, &format!("set enable_seqscan = off; {query}"));
            assert_eq!(by_index, sql(production, query), "{}: {query}", self.name);
        }
        if let Some((statement, words)) = self.refused {
            let said = try_sql(branch, statement).expect_err(statement);
            assert!(said.contains(words), "{words} is not in\n{said}");
        }
        for change in self.changes {
            sql(branch, change);
        }
        let (query, answer) = self.then;
        assert_eq!(sql(branch, &format!("set enable_seqscan = off; {query}")), answer, "{}: {query}", self.name);
    }

    /// The table that a diff of the branch shows afterwards.
    pub fn changed_table(&self) -> Option<&'static str> {
        self.changed_table
    }
}
