//! Whatever a branch became, its change set makes the same of another branch, and the inverse takes that back. Where the other branch
//! was changed too, what both changed is a conflict, and nothing else is.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::process::Command;

use ardent_test_pg::{RandomTables, TestPg, differing_lines, program, state};
use ardent_tests::{House, production_options, sql, try_sql};
use rand::Rng as _;
use serde_json::Value;

/// Seeds that are run unless `ARDENT_ROUND_TRIPS` says how many.
const SEEDS: u64 = 2;
/// Statements that change the branch that goes there and back.
const CHANGES: usize = 8;
/// Statements that change rows of each of two sides.
const CHANGES_OF_A_SIDE: usize = 6;

fn seeds() -> RangeInclusive<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("ARDENT_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("ARDENT_ROUND_TRIPS").unwrap_or(SEEDS),
    }
}

#[test]
fn random_changes_go_there_and_back_and_beside_those_of_others() {
    let production = TestPg::start(production_options());
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let mut conflicts = 0;
    for seed in seeds() {
        println!("seed {seed}; alone: ARDENT_SEED={seed} cargo test -p ardent-tests --test round_trip");
        let mut random = RandomTables::new(seed);
        let schema = random.schema().join(";\n");
        production.sql(&format!("drop schema if exists app cascade; {}\n{schema}", RandomTables::BEFORE));
        let [work, rows, copy] = ["work", "rows", "copy"].map(|name| house.branch(name, "main"));
        there_and_back(&house, &mut random, &work, &copy);
        conflicts += beside_others(&house, &mut random, &rows, &copy);
        house.ok(&["branch", "delete", "--for-good", "work", "rows", "copy"]);
    }
    println!("{conflicts} conflicts");
    assert!(conflicts > 0 || seeds().count() == 1, "no row was changed on both sides");
}

fn there_and_back(house: &House, random: &mut RandomTables, work: &str, copy: &str) {
    let ask = |query: &str| sql(work, query);
    for _ in 0..CHANGES {
        let change = if random.rng.random_bool(0.5) { random.of_rows(&ask) } else { random.of_schema(&ask) };
        make(work, change);
    }
    let (original, wanted) = (state_at(house, "copy", copy), state_at(house, "work", work));
    assert_ne!(original, wanted, "no change was made");
    let [changes, undo, redo] = ["work", "undo", "redo"].map(|name| file(house, name));
    house.ok(&["branch", "diff", "work", "-o", &changes]);
    apply(house, &changes, copy, &undo);
    assert_same(house, copy, &wanted, "applied");
    apply(house, &undo, copy, &redo);
    assert_same(house, copy, &original, "undone");
}

/// One that Postgres refuses is none.
fn make(url: &str, change: Option<String>) {
    if let Some(Err(error)) = change.map(|statement| try_sql(url, &statement)) {
        assert!(error.contains("ERROR:"), "the branch has failed, not the statement: {error}");
    }
}

/// `pg_dump` reads at the compute's own socket: those of other majors speak no TLS.
fn state_at(house: &House, branch: &str, url: &str) -> String {
    let awake = house.json(&["branch", "wake", branch]);
    let folder = awake["socket_dir"].as_str().expect("a wake tells the folder of its socket");
    let (port, (_, database)) = (&awake["port"], url.rsplit_once('/').expect("a URL with a database"));
    let database = database.split('?').next().expect("a text has a beginning");
    // By whoever runs the test, to whom the server's folders belong.
    let mut pg_dump = Command::new(program("pg_dump"));
    pg_dump.args(["-h", folder, "-p", &port.to_string(), "-U", "postgres", "-d", database]);
    state(&|query: &str| sql(url, query), &mut pg_dump)
}

#[track_caller]
fn assert_same(house: &House, copy: &str, wanted: &str, what: &str) {
    let got = state_at(house, "copy", copy);
    assert!(got == wanted, "{what}: {}", differing_lines(wanted, &got));
}

fn file(house: &House, name: &str) -> String {
    house.data_dir().join(format!("../{name}.changes")).display().to_string()
}

#[track_caller]
fn apply(house: &House, changes: &str, url: &str, inverse: &str) {
    let done = house.ardent(&["branch", "apply", changes, "--to", url, "--inverse", inverse]);
    assert_eq!(done.code, 0, "{done:?}\nserver's log: {}", house.log());
}

/// Changes rows of the branch `rows` and of what its changes are applied to. Gives how many rows were a conflict.
fn beside_others(house: &House, random: &mut RandomTables, rows: &str, target: &str) -> usize {
    let base = Rows::at(target);
    for url in [rows, target] {
        for _ in 0..CHANGES_OF_A_SIDE {
            make(url, random.of_rows(&|query: &str| sql(url, query)));
        }
    }
    let (ours, theirs) = (Rows::at(rows), Rows::at(target));
    let wanted = conflicts(&base, &ours, &theirs);
    let undo = file(house, "undo");
    let done = house.ardent(&["--json", "branch", "apply", "rows", "--to", target, "--inverse", &undo]);
    let reply: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    assert_eq!(told(&reply, &base), wanted, "{reply}");
    let (code, expect) = if wanted.is_empty() { (0, sum(&base, &ours, &theirs)) } else { (6, theirs) };
    assert_eq!(done.code, code, "{done:?}");
    assert_eq!(Rows::at(target), expect);
    wanted.len()
}

/// Values by column, as their types write them.
type Row = BTreeMap<String, Option<String>>;
/// A table, and a key or a row without one.
type Place = (String, Row);
/// How often each was told, and the columns that are at odds.
type Conflicts = BTreeMap<Place, (i64, BTreeSet<String>)>;

/// The rows of all tables, without columns that Postgres computes.
#[derive(Debug, Default, PartialEq)]
struct Rows {
    keyed: BTreeMap<Place, Row>,
    /// How many there are.
    keyless: BTreeMap<Place, i64>,
}

impl Rows {
    fn at(url: &str) -> Rows {
        let queries = sql(
            url,
            "with tables as (
               select c.oid, c.oid::regclass as name,
                 (select i.indkey::int2[] from pg_index i where i.indrelid = c.oid and i.indisunique order by i.indisprimary desc limit 1) as key
               from pg_class c where c.relkind = 'r' and c.relnamespace = 'app'::regnamespace
             ), parts as (
               select t.name, t.key, a.attnum,
                 format('%L, case when num_nulls(%I) = 0 then format(''%%s'', %I) end', a.attname, a.attname, a.attname) as part
               from tables t join pg_attribute a on a.attrelid = t.oid
               where a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
             ), queries as (
               select format('select json_build_array(%L, json_build_object(%s), json_build_object(%s)) from only %s', name,
                 string_agg(part, ', ') filter (where attnum = any (key)), string_agg(part, ', '), name) as query
               from parts group by name, key
             )
             select string_agg(query, ' union all ') from queries",
        );
        // As change sets have values.
        let settings =
            "set datestyle = 'ISO, YMD'; set timezone = 'UTC'; set extra_float_digits = 1; set lc_monetary = 'C'";
        let mut rows = Rows::default();
        for line in sql(url, &format!("{settings}; {queries}")).lines() {
            let read = serde_json::from_str::<(String, Row, Row)>(line);
            let (table, key, row) = read.unwrap_or_else(|error| panic!("{error}: {line}"));
            if key.is_empty() {
                *rows.keyless.entry((table, row)).or_default() += 1;
            } else {
                rows.keyed.insert((table, key), row);
            }
        }
        rows
    }

    fn count(&self, row: &Place) -> i64 {
        self.keyless.get(row).copied().unwrap_or_default()
    }
}

/// What is a conflict, decided from three states and from nothing that applying knows: a value that both sides changed in different
/// ways, where being there no more is another value; rows without a key that are alike, of which one side has more than before and the other less.
fn conflicts(base: &Rows, ours: &Rows, theirs: &Rows) -> Conflicts {
    let mut found = Conflicts::new();
    for place in base.keyed.keys().chain(ours.keyed.keys()) {
        let sides = [base, ours, theirs].map(|rows| rows.keyed.get(place));
        let columns = sides.iter().flatten().flat_map(|row| row.keys());
        let at_odds = |column: &&String| {
            let [was, ours, theirs] = sides.map(|row| row.map(|row| &row[*column]));
            ours != was && theirs != was && ours != theirs
        };
        let columns: BTreeSet<String> = columns.filter(at_odds).cloned().collect();
        if !columns.is_empty() {
            found.insert(place.clone(), (1, columns));
        }
    }
    for (row, was) in &base.keyless {
        let (ours, theirs) = (ours.count(row) - was, theirs.count(row) - was);
        if ours * theirs < 0 {
            found.insert(row.clone(), (1, BTreeSet::new()));
        }
    }
    found
}

/// What is there when both sides' changes are and none is a conflict.
fn sum(base: &Rows, ours: &Rows, theirs: &Rows) -> Rows {
    let mut rows = Rows::default();
    for place in ours.keyed.keys().chain(theirs.keyed.keys()) {
        let [was, ours, theirs] = [base, ours, theirs].map(|rows| rows.keyed.get(place));
        let row = match (ours, theirs) {
            (ours, theirs) if ours == was => theirs.cloned(),
            (ours, theirs) if theirs == was => ours.cloned(),
            (Some(ours), Some(theirs)) => {
                let kept = |column: &String| was.is_some_and(|was| was[column] == ours[column]);
                let value = |column: &String| if kept(column) { &theirs[column] } else { &ours[column] };
                Some(ours.keys().map(|column| (column.clone(), value(column).clone())).collect())
            }
            _ => None,
        };
        rows.keyed.extend(row.map(|row| (place.clone(), row)));
    }
    for row in ours.keyless.keys().chain(theirs.keyless.keys()) {
        // As many as a side has that got some, and as few as one that lost some: once, if both did the same.
        let (was, ours, theirs) = (base.count(row), ours.count(row), theirs.count(row));
        let count = match ours.cmp(&was) {
            Ordering::Greater => ours.max(theirs),
            Ordering::Less => ours.min(theirs),
            Ordering::Equal => theirs,
        };
        rows.keyless.extend((count != 0).then(|| (row.clone(), count)));
    }
    rows
}

/// The conflicts of an answer.
fn told(reply: &Value, base: &Rows) -> Conflicts {
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let name = |value: &Value| text(value).expect("a name");
    let mut all = Conflicts::new();
    for conflict in list(&reply["conflicts"]) {
        assert_eq!(conflict["conflict"], "row", "{conflict}");
        let table = name(&conflict["table"]);
        let mut key: Row = list(&conflict["key"]).iter().map(|pair| (name(&pair[0]), text(&pair[1]))).collect();
        // A row without a key is told by all its values, also by those that Postgres computes from others.
        if let Some((_, known)) = base.keyless.keys().find(|(other, _)| *other == table) {
            key.retain(|column, _| known.contains_key(column));
        }
        let (count, columns) = all.entry((table, key)).or_default();
        *count += 1;
        columns.extend(list(&conflict["columns"]).iter().map(|column| name(&column["column"])));
    }
    all
}
