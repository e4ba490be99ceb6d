//! Random schema changes from a seed. A change that Postgres refuses is no change.

use ardent_test_pg::TestPg;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

/// A source of random changes.
pub struct Changes {
    rng: StdRng,
    counter: u32,
}

const TABLES: &str = "select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
    where c.relkind in ('r', 'p') and c.oid >= 16384 and n.nspname !~ '^pg_' order by 1";
const PARTITIONED: &str = "select oid::regclass from pg_class where relkind = 'p' and oid >= 16384 order by 1";
const PLACES: &str = "select format('alter table %s detach partition %s', inhparent::regclass, inhrelid::regclass) from pg_inherits i \
    join pg_class c on c.oid = i.inhparent and c.relkind = 'p' order by 1";
const TYPES: &[&str] = &[
    "int",
    "bigint",
    "text",
    "varchar(40)",
    "numeric(12,2)",
    "date",
    "timestamptz",
    "boolean",
    "jsonb",
    "int[]",
    "uuid",
    "text collate \"C\"",
];

impl Changes {
    pub fn new(seed: u64) -> Changes {
        Changes { rng: StdRng::seed_from_u64(seed), counter: 0 }
    }

    /// Makes `count` changes that Postgres takes, or gives up after many more attempts.
    pub fn apply(&mut self, pg: &TestPg, database: &str, count: usize) {
        let (mut made, mut tried) = (0, 0);
        while made < count && tried < count * 4 {
            tried += 1;
            let sql = self.change(pg, database);
            if pg.try_sql_in(database, &sql).is_ok() {
                made += 1;
            }
        }
    }

    fn pick(&mut self, pg: &TestPg, database: &str, query: &str) -> String {
        let rows = pg.sql_in(database, query);
        let lines: Vec<&str> = rows.lines().collect();
        lines.choose(&mut self.rng).map(|line| (*line).to_owned()).unwrap_or_else(|| "nothing".to_owned())
    }

    fn name(&mut self, prefix: &str) -> String {
        self.counter += 1;
        // Names come again now and then.
        if self.rng.random_bool(0.2) {
            format!("{prefix}_{}", self.rng.random_range(1..=self.counter))
        } else {
            format!("{prefix}_{}", self.counter)
        }
    }

    fn change(&mut self, pg: &TestPg, database: &str) -> String {
        let table = self.pick(pg, database, TABLES);
        let columns = format!(
            "select quote_ident(attname) from pg_attribute where attrelid = '{table}'::regclass and attnum > 0 and not attisdropped"
        );
        let column = self.pick(pg, database, &columns);
        let named = |query: &str| query.to_owned();
        let a_type = TYPES.choose(&mut self.rng).copied().unwrap_or("int");
        match self.rng.random_range(0..46) {
            0 => {
                let (table, other) = (self.name("t"), a_type);
                format!("create table public.{table} (id int primary key, v {other}, w int default 3 check (w > 0))")
            }
            1 => format!("create table public.{} (like {table} including defaults)", self.name("t")),
            2 => format!("drop table {table} cascade"),
            3 => {
                let name = self.name("t");
                format!("alter table {table} rename to {name}")
            }
            4 | 5 => format!("alter table {table} add column {} {a_type}", self.name("c")),
            6 => format!(
                "alter table {table} add column {} int not null default {}",
                self.name("c"),
                self.rng.random_range(0..100)
            ),
            7 => format!("alter table {table} drop column {column}"),
            8 => format!("alter table {table} drop column {column} cascade"),
            9 => format!("alter table {table} rename column {column} to {}", self.name("c")),
            10 | 11 => {
                let plain = a_type.split(" collate").next().unwrap_or(a_type);
                format!("alter table {table} alter column {column} type {a_type} using {column}::text::{plain}")
            }
            12 => format!("alter table {table} alter column {column} set not null"),
            13 => format!("alter table {table} alter column {column} drop not null"),
            14 => format!("alter table {table} alter column {column} drop default"),
            15 => format!("alter table {table} alter column {column} set default null"),
            16 => format!("create index {} on {table} ({column})", self.name("i")),
            17 => format!("create unique index {} on {table} ({column}) where {column} is not null", self.name("i")),
            18 => {
                format!("alter table {table} add constraint {} check ({column} is not null) not valid", self.name("k"))
            }
            19 => format!("alter table {table} add constraint {} unique ({column})", self.name("k")),
            20 => {
                let other = self.pick(pg, database, TABLES);
                format!(
                    "alter table {table} add constraint {} foreign key ({column}) references {other} on delete set null",
                    self.name("f")
                )
            }
            21 => {
                let query = named(
                    "select format('alter table %s drop constraint %I cascade', conrelid::regclass, conname) from pg_constraint where conrelid >= 16384 order by 1",
                );
                self.pick(pg, database, &query)
            }
            22 => {
                let query = named(
                    "select format('drop index %s', indexrelid::regclass) from pg_index where indexrelid >= 16384 and not indisprimary order by 1",
                );
                self.pick(pg, database, &query)
            }
            23 => {
                let query = named(
                    "select format('alter index %s rename to ', indexrelid::regclass) from pg_index where indexrelid >= 16384 and indrelid >= 16384 \
                     and indrelid in (select oid from pg_class where relkind in ('r', 'p')) order by 1",
                );
                format!("{}{}", self.pick(pg, database, &query), self.name("i"))
            }
            24 => format!("create view public.{} as select {column} from {table}", self.name("v")),
            25 => format!("create view public.{} as select * from {table}", self.name("v")),
            26 => {
                let view = self.pick(
                    pg,
                    database,
                    "select oid::regclass from pg_class where relkind = 'v' and oid >= 16384 order by 1",
                );
                if self.rng.random_bool(0.5) {
                    format!("drop view {view} cascade")
                } else {
                    format!("create view public.{} as select * from {view}", self.name("v"))
                }
            }
            27 => format!(
                "create function public.{}(a int, b text default 'x') returns int language sql as 'select {}'",
                self.name("f"),
                self.rng.random_range(0..9)
            ),
            28 => {
                let query = "select oid::regprocedure from pg_proc where oid >= 16384 and prokind = 'f' and proname ~ '^f_' order by 1";
                let function = self.pick(pg, database, query);
                format!("drop function {function} cascade")
            }
            29 => format!("create type public.{} as enum ('a', 'b')", self.name("e")),
            30 => {
                let place = ["", " before 'b'", " after 'a'"].choose(&mut self.rng).copied().unwrap_or_default();
                let a_type = self.pick(
                    pg,
                    database,
                    "select oid::regtype from pg_type where typtype = 'e' and oid >= 16384 order by 1",
                );
                format!("alter type {a_type} add value '{}'{place}", self.name("l"))
            }
            31 => {
                let a_type = self.pick(
                    pg,
                    database,
                    "select oid::regtype from pg_type where typtype in ('e', 'd', 'r') and oid >= 16384 order by 1",
                );
                format!("alter table {table} add column {} {a_type}", self.name("c"))
            }
            32 => format!("comment on column {table}.{column} is '{}'", self.name("say")),
            33 => format!(
                "grant select ({column}), update on {table} to {}",
                ["reader", "writer", "public"].choose(&mut self.rng).copied().unwrap_or("reader")
            ),
            34 => format!(
                "revoke all on {table} from {}",
                ["reader", "writer", "public"].choose(&mut self.rng).copied().unwrap_or("reader")
            ),
            35 => format!(
                "alter table {table} owner to {}",
                ["owner_a", "owner_b", "postgres"].choose(&mut self.rng).copied().unwrap_or("postgres")
            ),
            36 => format!(
                "create trigger {} after insert on {table} for each row execute function sales.log()",
                self.name("g")
            ),
            37 => format!("create policy {} on {table} using ({column} is not null)", self.name("p")),
            38 => {
                let schema = self.name("s");
                format!("create schema {schema}; alter table {table} set schema {schema}")
            }
            39 => {
                let (name, more) = (self.name("t"), if self.rng.random_bool(0.5) { ", w int" } else { "" });
                format!("create table public.{name} (id int, k int{more}, primary key (id, k)) partition by list (k)")
            }
            40 | 41 => {
                let (whole, name, k) =
                    (self.pick(pg, database, PARTITIONED), self.name("t"), self.rng.random_range(0..5));
                let bound =
                    if self.rng.random_bool(0.2) { "default".to_owned() } else { format!("for values in ({k})") };
                let below = if self.rng.random_bool(0.3) { " partition by list (k)" } else { "" };
                format!("create table public.{name} partition of {whole} {bound}{below}")
            }
            42 => self.pick(pg, database, PLACES),
            43 => {
                let detach = self.pick(pg, database, PLACES);
                let gone = detach.rsplit(' ').next().unwrap_or_default();
                format!("{detach}; drop table {gone} cascade")
            }
            44 => {
                let whole = self.pick(pg, database, PARTITIONED);
                let (name, user, pair) = (self.name("f"), self.name("c"), self.name("c"));
                format!(
                    "alter table {table} add column {user} int, add column {pair} int, add constraint {name} foreign key ({user}, {pair}) references {whole}"
                )
            }
            _ => format!(
                "alter table {table} set (fillfactor = {}); alter table {table} alter column {column} set statistics {}",
                self.rng.random_range(50..100),
                self.rng.random_range(1..200)
            ),
        }
    }
}
