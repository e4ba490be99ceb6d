//! Random tables with columns of many types, and random changes of whatever is there.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::contents::Ask;

/// Types with an expression for a value of theirs made from a number `n`.
const TYPES: &[(&str, &str)] = &[
    ("int", "n"),
    ("bigint", "n * 3000000000"),
    ("smallint", "n % 30000"),
    ("numeric", "n / 7.0"),
    ("numeric(12, 3)", "n / 3.0"),
    ("float8", "n / 7.0"),
    ("text", "'text ' || n"),
    ("varchar(30)", "'it''s ' || n"),
    ("char(8)", "'c' || n % 1000"),
    ("boolean", "n % 2 = 0"),
    ("date", "date '2026-01-01' + n % 1000"),
    ("timestamp", "timestamp '2026-01-01' + n * interval '1 hour'"),
    ("timestamptz", "timestamptz '2026-01-01 00:00+02' + n * interval '1 hour'"),
    ("time", "time '00:00' + n * interval '1 second'"),
    ("interval", "n * interval '1 day 2 hours'"),
    ("uuid", "md5(n::text)::uuid"),
    ("bytea", "decode(md5(n::text), 'hex')"),
    ("json", "json_build_object('n', n)"),
    ("jsonb", "jsonb_build_object('n', n, 'list', array[n, null])"),
    ("int[]", "array[n, null, n + 1]"),
    ("text[]", "array['a,b', 'q\"' || n, null]"),
    ("numeric[][]", "array[[n, 1.50], [2.0, n]]::numeric[][]"),
    ("int4range", "int4range(n, n + 5)"),
    ("numrange", "numrange(n, null)"),
    ("tstzrange", "tstzrange('2026-01-01', timestamptz '2026-01-01' + n * interval '1 day', '[)')"),
    ("int8multirange", "int8multirange(int8range(n, n + 2), int8range(n + 10, n + 20))"),
    ("inet", "('10.0.' || n % 250 || '.1/16')::inet"),
    ("macaddr", "'08:00:2b:01:02:03'::macaddr"),
    ("bit(6)", "(n % 64)::bit(6)"),
    ("varbit", "(n % 64)::bit(6)::varbit"),
    ("point", "point(n, -n)"),
    ("box", "box(point(0, 0), point(n, n))"),
    ("tsvector", "to_tsvector('simple', 'word ' || n)"),
    ("money", "n::money"),
    ("xid", "(n % 1000)::text::xid"),
    ("app.mood", "(array['bad', 'good']::app.mood[])[1 + n % 2]"),
    ("app.mood[]", "array['bad']::app.mood[]"),
    ("app.positive", "1 + abs(n)"),
    ("app.positive[]", "array[1 + abs(n)]::app.positive[]"),
    ("app.place", "row('a, \"b\" ' || n, n)::app.place"),
    ("app.place[]", "array[row(null, n)::app.place, null]"),
    ("app.span", "app.span(n::float8, n + 1.5)"),
];

/// Types that can be keys, and be parted by range and by hash.
const KEY_TYPES: &[(&str, &str)] = &[
    ("int", "n"),
    ("bigint", "n * 3000000000"),
    ("text", "'key \"' || n || '\"'"),
    ("uuid", "md5(n::text)::uuid"),
    ("timestamptz", "timestamptz '2026-01-01 00:00+02' + n * interval '1 hour'"),
    ("numeric", "n / 8.0"),
    ("bytea", "decode(md5(n::text), 'hex')"),
];

const NAMES: &[&str] =
    &["alpha", "beta", "\"Gamma Δ\"", "delta", "\"select\"", "eps", "\"dot.ted\"", "eta", "theta", "iota"];

/// A stream of statements from a seed: tables in a schema `app`, and changes of whatever is in that schema. A change may be one
/// that Postgres refuses.
#[derive(Debug)]
pub struct RandomTables {
    /// For whatever else is decided by the same seed.
    pub rng: StdRng,
}

/// A column as it is just now.
struct Column {
    name: String,
    data_type: String,
    is_key: bool,
}

/// An expression for a new value of a type; none is known for some that changes made.
fn value(data_type: &str, n: i64) -> Option<String> {
    let known = |types: &[(&str, &'static str)]| {
        types.iter().find(|(name, _)| *name == data_type).map(|(_, expression)| *expression)
    };
    let usual = match data_type {
        "integer" => "int",
        "character varying(30)" => "varchar(30)",
        "character(8)" => "char(8)",
        "double precision" => "float8",
        "timestamp without time zone" => "timestamp",
        "timestamp with time zone" => "timestamptz",
        "time without time zone" => "time",
        "integer[]" => "int[]",
        "numeric(12,3)" => "numeric(12, 3)",
        "bit varying" => "varbit",
        other => other,
    };
    let expression = known(TYPES).or_else(|| {
        TYPES.iter().chain(KEY_TYPES).find(|(name, _)| *name == usual).map(|(_, expression)| *expression)
    })?;
    Some(format!("(select {expression} from (values ({n})) v(n))"))
}

impl RandomTables {
    /// What a database must have before: the schema, and types that columns are of.
    pub const BEFORE: &'static str = "create schema app;
        create type app.mood as enum ('bad', 'good');
        create type app.place as (street text, number int);
        create domain app.positive as int check (value > 0);
        create type app.span as range (subtype = float8);";

    /// The stream of a seed, from its beginning.
    pub fn new(seed: u64) -> RandomTables {
        RandomTables { rng: StdRng::seed_from_u64(seed) }
    }

    fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list.choose(&mut self.rng).cloned().expect("a list that is not empty")
    }

    fn number(&mut self) -> i64 {
        self.rng.random_range(1..400)
    }

    /// Statements that make a table, with what it takes to be found again: a key of one or two columns, a unique one, or none.
    fn table(&mut self, name: &str) -> Vec<String> {
        let (key_type, key_value) = self.pick(KEY_TYPES);
        let count = self.rng.random_range(1..7);
        let columns: Vec<(&str, &str, &str)> = NAMES[2..]
            .iter()
            .take(count)
            .map(|column| {
                let (data_type, expression) = self.pick(TYPES);
                (*column, data_type, expression)
            })
            .collect();
        let mut list = vec![format!("k {key_type} not null"), "l int not null".to_owned()];
        let (mut names, mut values) =
            (vec!["k".to_owned(), "l".to_owned()], vec![key_value.to_owned(), "n % 7".to_owned()]);
        for (column, data_type, expression) in &columns {
            list.push(format!("{column} {data_type}"));
            names.push((*column).to_owned());
            values.push(format!("case when n % 11 = 0 then null else {expression} end"));
        }
        match self.rng.random_range(0..5) {
            0 => list.push("made int generated always as (l * 2) stored".to_owned()),
            1 => list.push("given int generated by default as identity".to_owned()),
            2 => list.push("always bigint generated always as identity".to_owned()),
            3 => list.push("counted serial".to_owned()),
            _ => {}
        }
        let (mut end, mut parts) = (String::new(), Vec::new());
        match self.rng.random_range(0..8) {
            0 => {
                end = " partition by list (l)".to_owned();
                parts.push(format!("create table app.{name}_low partition of app.{name} for values in (0, 1, 2)"));
                parts.push(format!("create table app.{name}_rest partition of app.{name} default"));
            }
            1 => {
                end = " partition by hash (k)".to_owned();
                for part in 0..2 {
                    parts.push(format!("create table app.{name}_{part} partition of app.{name} for values with (modulus 2, remainder {part})"));
                }
            }
            2 => {
                end = " partition by range (l)".to_owned();
                parts.push(format!("create table app.{name}_a partition of app.{name} for values from (0) to (4) partition by range (l)"));
                parts.push(format!("create table app.{name}_aa partition of app.{name}_a for values from (0) to (2)"));
                parts.push(format!("create table app.{name}_ab partition of app.{name}_a for values from (2) to (4)"));
                parts.push(format!("create table app.{name}_b partition of app.{name} for values from (4) to (100)"));
            }
            _ => {}
        }
        let key = match self.rng.random_range(0..6) {
            0 => None,
            1 => Some(format!("alter table app.{name} add unique (k, l)")),
            2 => Some(format!("alter table app.{name} add primary key (l, k)")),
            3 if end.is_empty() => Some(format!("alter table app.{name} add primary key (k)")),
            _ => Some(format!("alter table app.{name} add primary key (k, l)")),
        };
        let rows = self.rng.random_range(0..80);
        let mut statements = vec![format!("create table app.{name} ({}){end}", list.join(", "))];
        statements.extend(parts);
        statements.extend(key);
        statements.push(format!(
            "insert into app.{name} ({}) select {} from generate_series(1, {rows}) n",
            names.join(", "),
            values.join(", ")
        ));
        if self.rng.random_bool(0.2) {
            // Values that are stored beside their row.
            statements.push(format!("alter table app.{name} add column fat text; alter table app.{name} alter fat set storage external; update app.{name} set fat = repeat(md5(l::text), 100 + l)"));
        }
        statements
    }

    /// Statements that make some tables with rows, where [`RandomTables::BEFORE`] is.
    pub fn schema(&mut self) -> Vec<String> {
        (0..5).flat_map(|number| self.table(&format!("r{number}"))).collect()
    }

    /// A change of rows; none if nothing fits.
    pub fn of_rows(&mut self, ask: Ask<'_>) -> Option<String> {
        let table = tables(ask).choose(&mut self.rng).cloned()?;
        let columns = columns(ask, &table);
        let n = self.number();
        let modulus = self.rng.random_range(2..9);
        let filter = format!("abs(hashtext(x::text)) % {modulus} = 0");
        match self.rng.random_range(0..7) {
            0 => Some(format!("delete from {table} x where {filter}")),
            1 | 2 => {
                let values: Vec<(String, String)> = columns
                    .iter()
                    .filter_map(|column| Some((column.name.clone(), value(&column.data_type, n + 1000)?)))
                    .collect();
                let (names, values): (Vec<_>, Vec<_>) = values.into_iter().unzip();
                (!names.is_empty())
                    .then(|| format!("insert into {table} ({}) values ({})", names.join(", "), values.join(", ")))
            }
            3 if n % 10 == 0 => Some(format!("truncate {table} cascade")),
            kind => {
                let free: Vec<&Column> = columns.iter().filter(|column| !column.is_key || kind == 6).collect();
                let column = free.choose(&mut self.rng)?;
                let new = if n % 6 == 0 { "null".to_owned() } else { value(&column.data_type, n)? };
                Some(format!("update {table} x set {} = {new} where {filter}", column.name))
            }
        }
    }

    /// A change of the schema; none if nothing fits.
    pub fn of_schema(&mut self, ask: Ask<'_>) -> Option<String> {
        let table = tables(ask).choose(&mut self.rng).cloned()?;
        let columns = columns(ask, &table);
        let column = columns.choose(&mut self.rng).map(|column| column.name.clone())?;
        let other = columns.choose(&mut self.rng).map(|column| column.name.clone())?;
        let n = self.number();
        let (data_type, expression) = self.pick(TYPES);
        let default = format!("(select {expression} from (values ({n})) v(n))");
        Some(match self.rng.random_range(0..34) {
            0 => format!("alter table {table} add column new_{n} {data_type}"),
            1 => format!("alter table {table} add column new_{n} int default {n}"),
            2 => format!("alter table {table} add column new_{n} {data_type}; update {table} set new_{n} = {default}"),
            3 => format!("alter table {table} add column made_{n} text generated always as ('x' || {n}) stored"),
            4 => format!("alter table {table} add column id_{n} bigint generated always as identity"),
            5 => format!("alter table {table} drop column {column}"),
            6 => format!("alter table {table} drop column {column} cascade"),
            7 | 8 => format!("alter table {table} rename column {column} to named_{n}"),
            9 => format!("alter table {table} rename to table_{n}"),
            10 => format!("alter table {table} alter {column} type text using {column}::text"),
            11 => format!("alter table {table} alter {column} type bigint"),
            12 => format!("alter table {table} alter {column} set default null"),
            13 => format!("alter table {table} alter {column} set not null"),
            14 => format!("create index index_{n} on {table} ({column}, {other})"),
            15 => format!("create unique index unique_{n} on {table} ({column}, l, k)"),
            16 => format!("alter table {table} add constraint check_{n} check ({column} is not null) not valid"),
            17 => format!("alter table {table} add constraint check_{n} check (l < {n} + 1000)"),
            18 => format!("comment on column {table}.{column} is 'it''s {n}'"),
            19 => format!("create view app.view_{n} as select {column} as a, count(*) as b from {table} group by 1"),
            20 => format!("create table app.new_{n} (like {table} including all)"),
            21 => format!("create table app.copy_{n} as select * from {table} limit {}", n % 20),
            22 => format!("drop table {table}"),
            23 => format!("drop table {table} cascade"),
            24 => format!("alter type app.mood add value if not exists 'mood {n}'"),
            25 => format!("alter type app.mood rename value 'good' to 'good_{n}'"),
            26 => format!("alter type app.place add attribute extra_{n} int"),
            27 => format!("alter domain app.positive add constraint small_{n} check (value < 1000000 + {n})"),
            28 => format!(
                "create function app.f_{n}(x int) returns int language sql immutable as 'select x + {n}'; alter table {table} add constraint uses_{n} check (app.f_{n}(l) > l)"
            ),
            29 => format!(
                "create table app.child_{n} (id int primary key, parent_l int, note app.mood default 'bad'); insert into app.child_{n} select n, n, 'bad' from generate_series(1, 5) n; create policy p_{n} on app.child_{n} using (id > 0)"
            ),
            30 => format!(
                "create type app.kind_{n} as enum ('a', 'b'); alter table {table} add column kind_{n} app.kind_{n} default 'a'"
            ),
            31 => format!(
                "create sequence app.seq_{n}; alter table {table} add column seq_{n} int default nextval('app.seq_{n}')"
            ),
            32 => format!("alter table {table} set unlogged"),
            _ => format!("create statistics app.stat_{n} on l, k from {table}"),
        })
    }
}

/// Ordinary tables and partitioned ones, quoted.
fn tables(ask: Ask<'_>) -> Vec<String> {
    let sql = "select oid::regclass from pg_class where relkind in ('r', 'p') and relnamespace = 'app'::regnamespace order by relname";
    ask(sql).lines().map(str::to_owned).collect()
}

/// Columns that a statement can give a value.
fn columns(ask: Ask<'_>, table: &str) -> Vec<Column> {
    let sql = format!(
        "select quote_ident(attname), format_type(atttypid, atttypmod), exists (select from pg_index i where i.indrelid = attrelid and i.indisprimary and attnum = any (i.indkey))
         from pg_attribute where attrelid = '{}'::regclass and attnum > 0 and not attisdropped and attgenerated = '' and attidentity <> 'a' order by attnum",
        table.replace('\'', "''")
    );
    let column = |line: &str| {
        let mut fields = line.split('|').map(str::to_owned);
        let (name, data_type, is_key) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Column { name, data_type, is_key: is_key == "t" })
    };
    ask(&sql).lines().filter_map(column).collect()
}
