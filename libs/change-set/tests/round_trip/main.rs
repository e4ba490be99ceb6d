//! Applied to a copy of the branch point, a change set gives the branch's state; its inverse gives the original back; what a
//! concurrent change of the target makes a conflict of is reported, and nothing else.

use ardent_api::page_service::{BlockRange, ChangedRelation};
use ardent_change_set::{Applied, ApplyOptions, Conflict, apply};
use ardent_diff::{ChangeSet, CompareOptions, Part, Session, compare};
use ardent_test_pg::{TestPg, TestPgOptions, program, server_command};
use ardent_types::{ForkNumber, RelTag, oid};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls};

const SCHEMA: &str = "
    create schema app;
    create type app.mood as enum ('bad', 'good');
    create type app.place as (street text, number int);
    create domain app.positive as int check (value > 0);
    create table app.users (id int generated always as identity primary key, name text, mail text unique, mood app.mood default 'good',
        home app.place, age app.positive, tags text[], data jsonb, raw bytea, at timestamptz, span int4range, price numeric(10, 2),
        twice int generated always as (id * 2) stored, flag boolean, code char(6));
    insert into app.users (name, mail, mood, home, age, tags, data, raw, at, span, price, flag, code)
        select 'user ' || n, n || '@x', 'bad', row('a \"street', n)::app.place, n, array['a', 'b,c', null], jsonb_build_object('n', n), '\\xdeadbeef',
               '2026-01-01', int4range(n, n + 5), n / 7.0, n % 2 = 0, 'c' || n from generate_series(1, 60) n;
    create table app.orders (id bigserial primary key, user_id int references app.users on delete cascade, note text, total int default 0);
    insert into app.orders (user_id, note, total) select n % 60 + 1, 'order ' || n, n from generate_series(1, 150) n;
    create table app.tree (id int primary key, above int references app.tree, label text);
    insert into app.tree select n, nullif(n / 2, 0), 'node ' || n from generate_series(1, 40) n;
    create table app.keyless (a int, b text, c json);
    insert into app.keyless select n % 5, repeat('x', n % 3), '{\"a\": 1}' from generate_series(1, 30) n;
    create table app.unique_only (code text not null unique, v int);
    insert into app.unique_only select 'c' || n, n from generate_series(1, 20) n;
    create table app.events (id int, at date, note text, primary key (id, at)) partition by range (at);
    create table app.events_a partition of app.events for values from ('2026-01-01') to ('2026-07-01');
    create table app.events_b partition of app.events for values from ('2026-07-01') to ('2027-01-01');
    insert into app.events select n, date '2026-01-01' + n * 3, 'event ' || n from generate_series(1, 100) n;
    create table app.fat (id int primary key, body text);
    alter table app.fat alter body set storage external;
    insert into app.fat select n, repeat(md5(n::text), 300) from generate_series(1, 6) n;
    create table app.seats (id int primary key, seat text not null unique, place int not null, floor int not null, unique (floor, place));
    insert into app.seats select n, 's' || n, n % 10, n / 10 from generate_series(1, 40) n;
    create table app.kinds (id int primary key, f8 float8, f4 float4, n numeric, iv interval, u uuid, ip inet, b bit(4), vb varbit, ts timestamp, tz timetz,
        r numrange, mr int4multirange, p point, j json, jb jsonb, grid int[][], places app.place[], positives app.positive[], moods app.mood[], tsv tsvector,
        m money, mac macaddr, o oid, nm name, c \"char\", lsn pg_lsn, path text generated always as (u::text || '/' || coalesce(o::text, '')) stored);
    insert into app.kinds select k, 'NaN', 'Infinity', 'NaN', '1 year 2 mons -3 days 04:05:06.7', md5(k::text)::uuid, '10.0.0.1/8', '1010', '101', 'infinity', '12:00+02',
        numrange(k, null), int4multirange(int4range(1, 3), int4range(k + 5, k + 9)), point(k, -0.0), '{\"a\": [1, null]}', '{\"a\": {\"b\": \"ü\"}}', array[[1, 2], [3, null]],
        array[row('a,\"b', k)::app.place, null], array[k]::app.positive[], '{bad,good}', to_tsvector('simple', 'a word ' || k), k * 1.25, '08:00:2b:01:02:03', k, 'name ' || k, 'x', '0/16B3748'
        from generate_series(1, 20) k;
    create table app.log (id serial primary key, what text);
    create function app.log() returns trigger language plpgsql as $$ begin insert into app.log (what) values (tg_op); return null; end $$;
    create trigger log after insert or update or delete on app.orders for each row execute function app.log();
    create sequence app.numbers;
    create view app.rich as select id, name from app.users where price > 3;
    create materialized view app.totals as select user_id, sum(total) as total from app.orders group by user_id;
    select lo_from_bytea(7001, '\\x000102'), lo_from_bytea(7002, decode(repeat('ab', 5000), 'hex')), lo_from_bytea(7003, '\\x00');
";

/// A change set as people see it who must find out what is wrong with it.
fn script(set: &ChangeSet) -> String {
    let mut out = Vec::new();
    ardent_change_set::script(&mut out, set).expect("memory can be written");
    String::from_utf8_lossy(&out).into_owned()
}

struct Pair {
    pg: TestPg,
    runtime: Runtime,
}

impl Pair {
    fn new() -> Pair {
        let pg = TestPg::start(TestPgOptions::default().set("fsync", "off"));
        pg.sql("create database base");
        pg.sql_in("base", SCHEMA);
        Pair { pg, runtime: Runtime::new().expect("a runtime") }
    }

    fn copy(&self, from: &str, to: &str) {
        self.pg.sql(&format!("drop database if exists {to}"));
        self.pg.sql(&format!("create database {to} template {from}"));
    }

    async fn connect(&self, database: &str) -> Client {
        let (client, connection) =
            tokio_postgres::connect(&self.pg.socket_url(database), NoTls).await.expect("connected");
        tokio::spawn(connection);
        client
    }

    /// Everything counts as changed: which blocks did is the page server's word.
    fn diff(&self) -> ChangeSet {
        let dbnode: u32 = self.pg.sql("select oid from pg_database where datname = 'head'").parse().expect("an OID");
        let sql = "select pg_relation_filenode(oid), pg_relation_size(oid) / 8192 from pg_class \
            where relkind in ('r', 'm', 'S') and pg_relation_filenode(oid) is not null";
        let mut changed = Vec::new();
        for side in ["base", "head"] {
            for line in self.pg.sql_in(side, sql).lines() {
                let (relnode, count) = line.split_once('|').expect("two fields");
                let (relnode, count): (u32, u32) =
                    (relnode.parse().expect("a number"), count.parse().expect("a number"));
                let rel = RelTag { spcnode: oid::DEFAULT_TABLESPACE, dbnode, relnode, fork: ForkNumber::Main };
                let ranges = vec![BlockRange { start: 0, count: count.max(1) }];
                changed.push(ChangedRelation { rel, nblocks_from: Some(count), nblocks_to: Some(count), ranges });
            }
        }
        self.runtime.block_on(async {
            let (base, _) = Session::open(self.connect("base").await, "branch point", "base").await.expect("a session");
            let (head, _) = Session::open(self.connect("head").await, "head", "head").await.expect("a session");
            compare(&base, &head, dbnode, &changed, &CompareOptions::default()).await.expect("compared")
        })
    }

    fn apply(&self, database: &str, set: &ChangeSet, options: &ApplyOptions) -> Applied {
        let result = self.runtime.block_on(async { apply(&self.connect(database).await, set, options, |_| {}).await });
        result.unwrap_or_else(|error| {
            let cause = std::error::Error::source(&error).map(|source| format!("{source:?}")).unwrap_or_default();
            panic!("{error}: {cause}\n{}", script(set))
        })
    }

    /// Schema, rows, sequences and large objects, as text. Columns are in the order of their names: one that comes back comes last.
    fn state(&self, database: &str) -> String {
        let output = server_command(program("pg_dump"))
            .args(["--schema-only", "-d"])
            .arg(self.pg.socket_url(database))
            .output()
            .expect("pg_dump runs");
        assert!(output.status.success());
        let dump = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut lines: Vec<&str> =
            dump.lines().filter(|line| !line.contains("restrict ")).map(|line| line.trim_end_matches(',')).collect();
        lines.sort_unstable();
        let queries = self.pg.sql_in(
            database,
            "select string_agg(format('select %L, (select coalesce(string_agg(r, E''\\n'' order by r collate \"C\"), '''') from (select row(%s)::text as r from only %s) x)', c.oid::regclass,
                (select string_agg(quote_ident(attname), ', ' order by attname) from pg_attribute a where a.attrelid = c.oid and attnum > 0 and not attisdropped), c.oid::regclass), ' union all ' order by c.oid::regclass::text)
             from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind in ('r', 'm') and c.oid >= 16384",
        );
        let rows = if queries.is_empty() { String::new() } else { self.pg.sql_in(database, &queries) };
        let sequences = self.pg.sql_in(database, "select string_agg(format('select %L, last_value, is_called from %s', oid::regclass, oid::regclass), ' union all ' order by oid::regclass::text) from pg_class where relkind = 'S'");
        let sequences = if sequences.is_empty() { sequences } else { self.pg.sql_in(database, &sequences) };
        let objects = self.pg.sql_in(database, "select oid, md5(lo_get(oid)) from pg_largeobject_metadata order by 1");
        format!("{}\n{rows}\n{sequences}\n{objects}", lines.join("\n"))
    }

    fn assert_equal(&self, got: &str, wanted: &str, what: &str, set: &ChangeSet) {
        let (got, wanted) = (self.state(got), self.state(wanted));
        if got != wanted {
            let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
            let (a, b) = (lines(&wanted), lines(&got));
            panic!(
                "{what}: missing {:#?}\nsurplus {:#?}\n{}",
                a.difference(&b).collect::<Vec<_>>(),
                b.difference(&a).collect::<Vec<_>>(),
                script(set)
            );
        }
    }

    /// Runs each statement of a script on the branch; gives up on none.
    fn change(&self, database: &str, statements: &[String]) {
        for statement in statements {
            // One that is refused changes nothing.
            let _ = self.pg.try_sql_in(database, statement);
        }
    }

    fn round_trip(&self, what: &str) -> ChangeSet {
        let set = self.diff();
        self.copy("base", "target");
        let applied = self.apply("target", &set, &ApplyOptions { dry_run: true, ..ApplyOptions::default() });
        assert_eq!(applied.conflicts, [], "{what}");
        let applied = self.apply("target", &set, &ApplyOptions::default());
        assert_eq!((applied.conflicts, applied.already_there), (vec![], 0), "{what}");
        self.assert_equal("target", "head", &format!("{what}: applied"), &set);
        let undone = self.apply("target", &applied.inverse, &ApplyOptions::default());
        assert_eq!(undone.conflicts, [], "{what}: undone\n{}", script(&applied.inverse));
        self.assert_equal("target", "base", &format!("{what}: undone"), &applied.inverse);
        set
    }
}

const CHANGES: &[&str] = &[
    "update app.users set name = 'changed', mood = 'good', data = data || '{\"x\": [1]}', raw = '\\x00', tags = '{}', flag = null where id in (3, 4)",
    "insert into app.users (name, mail) values ('new', 'new@x')",
    "delete from app.users where id = 10",
    "update app.users set mail = 'free@x' where id = 1",
    "update app.users set mail = '1@x' where id = 2",
    "update app.users set mail = null where id in (30, 31)",
    "update app.users set mail = '31@x' where id = 30",
    "update app.users set mail = '30@x' where id = 31",
    "update app.seats set seat = seat || '?', place = place + 100 where id in (1, 2, 3)",
    "update app.seats set seat = 's' || (id % 3 + 1), place = id % 3 + 1 where id in (1, 2, 3)",
    "update app.kinds set f8 = '-0', n = 1.10, iv = '-1 mon', ip = null, ts = '-infinity', r = 'empty', mr = '{}', p = '(1,2)', j = '{\"b\":  1}', jb = 'null', grid = '{}' where id = 3",
    "update app.kinds set places = array[row(null, null)::app.place], positives = null, moods = '{}', tsv = $$'it''s':1$$, m = -1, c = '', nm = 'other' where id = 4",
    "delete from app.kinds where id = 5",
    "insert into app.kinds (id, f4, b, vb, nm) values (100, '1e-30', '0000', '', 'new')",
    "insert into app.orders (user_id, note) select max(id), 'for the new one' from app.users",
    "insert into app.tree values (100, 101, 'a'), (101, 100, 'b')",
    "delete from app.tree where id in (40, 20)",
    "delete from app.keyless where ctid = (select min(ctid) from app.keyless where a = 1)",
    "insert into app.keyless values (9, 'new', '{\"z\": 2}'), (9, 'new', '{\"z\": 2}')",
    "update app.unique_only set v = -1 where code = 'c3'",
    "update app.events set at = '2026-12-30' where id = 1",
    "update app.fat set body = repeat('new', 4000) where id = 2",
    "alter table app.users add column score int not null default 3",
    "update app.users set score = 9 where id = 5",
    "alter table app.users drop column tags",
    "alter table app.users rename column name to full_name",
    "alter table app.orders rename to purchases",
    "alter table app.tree alter label type varchar(100)",
    "create table app.fresh (id int primary key, v text, w int references app.tree)",
    "insert into app.fresh values (1, 'one', 3), (2, null, null)",
    "drop table app.unique_only",
    "select nextval('app.numbers'), nextval('app.numbers')",
    "create index on app.users (full_name)",
    "select lo_put(7001, 1, '\\xffff'), lo_unlink(7003), lo_from_bytea(7009, '\\x0908'), lo_truncate(lo_open(7002, 131072), 100)",
];

#[test]
fn every_kind_of_change_there_and_back() {
    let pair = Pair::new();
    pair.copy("base", "head");
    for change in CHANGES {
        pair.pg.sql_in("head", change);
    }
    pair.round_trip("all changes");
}

#[test]
fn a_row_that_the_target_added_below_a_deleted_one_is_a_conflict() {
    let pair = Pair::new();
    pair.copy("base", "head");
    pair.pg.sql_in("head", "delete from app.users where id = 10");
    let set = pair.diff();
    pair.copy("base", "target");
    pair.pg.sql_in(
        "target",
        "set session_replication_role = replica; insert into app.orders (id, user_id) values (5000, 10)",
    );
    let applied = pair.apply("target", &set, &ApplyOptions { part: Part::Rows, ..ApplyOptions::default() });
    assert!(
        matches!(&applied.conflicts[..], [Conflict::Row { table, .. }] if table == "app.users"),
        "{:?}",
        applied.conflicts
    );
    assert_eq!(pair.pg.sql_in("target", "select count(*) from app.orders where user_id = 10"), "4");
}

/// `ARDENT_SEEDS` says how many, `ARDENT_SEED` which one alone.
#[test]
fn random_changes_there_and_back() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds: Vec<u64> = match number("ARDENT_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("ARDENT_SEEDS").unwrap_or(3)).collect(),
    };
    let pair = Pair::new();
    for seed in seeds {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        pair.copy("base", "head");
        let statements: Vec<String> = (0..30).map(|_| random_change(&mut rng)).collect();
        pair.change("head", &statements);
        pair.round_trip(&format!("seed {seed}"));
    }
}

fn random_change(rng: &mut StdRng) -> String {
    let n = rng.random_range(1..70);
    let word = ["a", "it''s", "x\\y", "", "long long long", "ü"].choose(rng).copied().unwrap_or("a");
    match rng.random_range(0..34) {
        30 => format!("update app.seats set seat = 'x' || id where id % 9 = {}", n % 9),
        // Two rows exchange a value that must be there and be unique.
        31 => {
            let (a, b) = (rng.random_range(1..21), rng.random_range(21..41));
            format!(
                "do $$ declare x text; y text; begin select seat into x from app.seats where id = {a}; select seat into y from app.seats where id = {b};
                 update app.seats set seat = 'moving' where id = {a}; update app.seats set seat = x where id = {b}; update app.seats set seat = y where id = {a}; end $$"
            )
        }
        32 => format!(
            "update app.kinds set f8 = {n} / 7.0, iv = make_interval(days => {n}), r = numrange({n}, {n} + 1), places = array[row('{word}', {n})::app.place],
             j = json_build_object('k' || {n}, {n}), grid = array[[{n}]] where id % 5 = {}",
            n % 5
        ),
        33 => format!(
            "update app.kinds set nm = '{word}', ip = null, m = {n}::money, moods = array['good']::app.mood[], o = {n}, jb = jsonb_build_array({n}, '{word}'::text) where id = {}",
            n % 20 + 1
        ),
        0 => format!("update app.users set name = '{word}', price = {n}.5, flag = not flag where id % 7 = {}", n % 7),
        1 => format!("update app.users set mail = '{n}@x' where id = {}", rng.random_range(1..60)),
        2 => format!("delete from app.users where id = {n}"),
        3 => format!(
            "insert into app.users (name, mail, home, span) values ('{word}', '{n}@y', row('{word}', {n}), '[1,{n}]')"
        ),
        4 => format!(
            "update app.users set mood = 'good', tags = array['{word}'], data = '{{\"k\": {n}}}' where id = {n}"
        ),
        5 => format!("insert into app.orders (user_id, note, total) values ({n}, '{word}', {n})"),
        6 => format!("delete from app.orders where id % 11 = {}", n % 11),
        7 => format!("update app.orders set user_id = {n} where id = {}", rng.random_range(1..150)),
        8 => format!("insert into app.tree values ({}, {n}, '{word}')", n + 100),
        9 => format!("delete from app.tree where id = {n}"),
        10 => format!("update app.tree set above = null where id % 5 = {}", n % 5),
        11 => format!("delete from app.keyless where ctid in (select ctid from app.keyless limit {})", n % 4),
        12 => format!("insert into app.keyless values ({n}, '{word}', null)"),
        13 => format!("update app.keyless set b = '{word}' where a = {}", n % 5),
        14 => format!("update app.unique_only set code = 'd' || code where v = {n}"),
        15 => format!("update app.events set at = at + 30 where id = {n}"),
        16 => format!("update app.fat set body = repeat('{word}', 2000) where id = {}", n % 7),
        17 => format!("alter table app.orders add column extra_{n} int default {n}"),
        18 => format!("alter table app.tree add column more_{n} text"),
        19 => "alter table app.users drop column price cascade".to_owned(),
        20 => format!("alter table app.users rename column code to code_{n}"),
        21 => "alter table app.orders alter total type bigint".to_owned(),
        22 => format!("create table app.new_{n} as select * from app.users limit {}", n % 9),
        23 => "drop table app.unique_only".to_owned(),
        24 => "select nextval('app.numbers')".to_owned(),
        25 => format!("create index index_{n} on app.users (at)"),
        26 => "alter table app.tree rename to nodes".to_owned(),
        27 => format!("select lo_put(7002, {}, '\\xff{n:02}')", n * 100),
        28 => "truncate app.keyless".to_owned(),
        _ => format!("update app.users set home.number = {n}, age = {n}, at = now() where id = {n}"),
    }
}
