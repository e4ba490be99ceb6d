//! What foreign keys do by themselves: to rows that the change set deletes or changes, and to no row that the target alone changed.

use std::collections::{BTreeMap, BTreeSet};

use ardent_change_set::{ApplyOptions, Conflict};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::pair::{Pair, script};
use crate::seeds;

const TREE: &str =
    "create table app.twigs (id int primary key, parent int default 1 references app.twigs on delete ACTION, p text);
     insert into app.twigs select n, nullif(n / 2, 0), 'p' || n from generate_series(1, 100) n";
const PARTED: &str = "create table app.bills (id int, placed date, primary key (id, placed)) partition by range (placed);
     create table app.bills_a partition of app.bills for values from ('2026-01-01') to ('2026-07-01') partition by range (placed);
     create table app.bills_aa partition of app.bills_a for values from ('2026-01-01') to ('2026-04-01');
     create table app.bills_def partition of app.bills default;
     create table app.lines (id int, bill int, placed date, n int, primary key (id, placed), foreign key (bill, placed) references app.bills on delete cascade) partition by range (placed);
     create table app.lines_a partition of app.lines for values from ('2026-01-01') to ('2026-07-01');
     create table app.lines_def partition of app.lines default;
     insert into app.bills select n, date '2026-01-01' + n % 2 * 300 from generate_series(1, 20) n;
     insert into app.lines select n, n % 20 + 1, date '2026-01-01' + (n % 20 + 1) % 2 * 300, n from generate_series(1, 200) n";
const CIRCLE: &str = "create table app.depts (id int primary key, head int); create table app.emps (id int primary key, dept int references app.depts on delete ACTION);
     insert into app.depts select n, null from generate_series(1, 3) n; insert into app.emps select n, n % 3 + 1 from generate_series(1, 150) n;
     alter table app.depts add foreign key (head) references app.emps; update app.depts set head = id + 2";
const CODES: &str = "create table app.places (id int primary key, code text unique); create table app.trips (id int primary key, code text references app.places (code) on update ACTION);
     insert into app.places select n, 'c' || n from generate_series(1, 5) n; insert into app.trips select n, 'c' || n from generate_series(1, 4) n";
const UNIQUE: &str = "create table app.names (name text unique); create table app.uses (id int primary key, name text references app.names (name) on delete ACTION);
     insert into app.names values ('a'), ('b'), (null); insert into app.uses values (1, 'a'), (2, 'b')";
const INHERITED: &str = "create table app.par (id int primary key); create table app.kid (id int primary key, par int references app.par on delete cascade);
     create table app.kid_more () inherits (app.kid); insert into app.par values (1), (2)";

/// What the branch does and what the target does meanwhile, on tables with each of these actions; and the table with the conflict, if it is one.
fn check(pair: &Pair, before: &str, actions: &[&str], branch: &str, target: &str, conflict: Option<&str>) {
    for action in actions {
        let what = format!("on delete or update {action}: {branch} / {target}");
        pair.new_base(&[before.replace("ACTION", action)]);
        pair.copy("base", "head");
        pair.sql_in("head", branch);
        let set = pair.diff();
        pair.copy("base", "target");
        pair.sql_in("target", target);
        let there = pair.rows("target");
        let dry = pair.apply("target", &set, &ApplyOptions { dry_run: true, ..ApplyOptions::default() });
        let applied = pair.apply("target", &set, &ApplyOptions::default());
        assert_eq!((&dry.conflicts, dry.rows), (&applied.conflicts, applied.rows), "{what}");
        let tables: Vec<&str> = applied
            .conflicts
            .iter()
            .map(|conflict| match conflict {
                Conflict::Row { table, .. } => table.as_str(),
                other => panic!("{what}: {other:?}"),
            })
            .collect();
        assert_eq!(tables, conflict.into_iter().collect::<Vec<_>>(), "{what}: {:?}", applied.conflicts);
        if conflict.is_none() {
            if target == "select 1" {
                pair.assert_equal("target", "head", &what, &set);
            }
            let undone = pair.apply("target", &applied.inverse, &ApplyOptions::default());
            assert_eq!(undone.conflicts, [], "{what}: undone\n{}", script(&applied.inverse));
        }
        assert_eq!(pair.rows("target"), there, "{what}");
    }
}

const NOTHING: &str = "select 1";
const ON_DELETE: &[&str] = &["cascade", "set null", "set default"];

#[test]
fn rows_that_the_target_added_below_rows_of_the_same_table_are_a_conflict() {
    let pair = Pair::new();
    let check = |branch: &str, target: &str, conflict| check(&pair, TREE, ON_DELETE, branch, target, conflict);
    let (leaf, below) = ("delete from app.twigs where id = 99", "insert into app.twigs values (900, 99, 'new')");
    check(leaf, below, Some("app.twigs"));
    check(leaf, "update app.twigs set parent = 99 where id = 7", Some("app.twigs"));
    check(leaf, "insert into app.twigs values (900, 98, 'new')", None);
    // With children, which go or lose it, and are in the change set.
    let parent = "delete from app.twigs where id = 20";
    check(parent, NOTHING, None);
    check(parent, "insert into app.twigs values (900, 20, 'new')", Some("app.twigs"));
    check("delete from app.twigs where id in (20, 40, 41, 80, 81, 82, 83)", NOTHING, None);
    // A child that is kept goes elsewhere first.
    check("update app.twigs set parent = 3 where id in (40, 41); delete from app.twigs where id = 20", NOTHING, None);
    check(
        "update app.twigs set parent = 3, p = 'moved' where id = 40; delete from app.twigs where id = 20",
        "update app.twigs set p = 'theirs' where id = 3",
        None,
    );
    check("update app.twigs set p = 'x' where id = 40; delete from app.twigs where id = 99", below, Some("app.twigs"));
    // Undone, a circle goes as a whole; and so it does when the branch deletes it.
    check("insert into app.twigs values (500, 501, 'a'), (501, 500, 'b'), (502, 502, 'c')", NOTHING, None);
    let circle = format!("{TREE}; insert into app.twigs values (500, 501, 'a'), (501, 500, 'b')");
    let both = "delete from app.twigs where id in (500, 501)";
    self::check(&pair, &circle, ON_DELETE, both, NOTHING, None);
    self::check(&pair, &circle, ON_DELETE, both, "insert into app.twigs values (900, 501, 'new')", Some("app.twigs"));
    // More than go at once, each below the one before.
    let chain = TREE.replace("nullif(n / 2, 0)", "nullif(n - 1, 0)").replace("100", "260");
    self::check(&pair, &chain, &["cascade"], "delete from app.twigs where id = 2", NOTHING, None);
}

#[test]
fn rows_of_partitions_are_referred_to_by_the_partitioned_table() {
    let pair = Pair::new();
    let check = |branch: &str, target: &str, conflict| check(&pair, PARTED, &["cascade"], branch, target, conflict);
    check("delete from app.bills where id = 3", NOTHING, None);
    check("delete from app.bills where id in (4, 5)", NOTHING, None);
    check("delete from app.lines where bill = 3; delete from app.bills where id = 3", NOTHING, None);
    check(
        "insert into app.bills values (99, '2026-02-01'); insert into app.lines values (999, 99, '2026-02-01', 1)",
        NOTHING,
        None,
    );
    for (bill, placed, part) in [(3, "2026-10-28", "app.bills_def"), (4, "2026-01-01", "app.bills_aa")] {
        let line = format!("insert into app.lines values (900, {bill}, '{placed}', 1)");
        let delete = format!("delete from app.bills where id = {bill}");
        check(&delete, &line, Some(part));
        // What refers need not be in the change set at all.
        let empty = format!("{PARTED}; delete from app.lines where bill = {bill}");
        self::check(&pair, &empty, &["cascade"], &delete, &line, Some(part));
    }
    // Tables that inherit have no part in it.
    let delete = "delete from app.par where id = 1";
    self::check(&pair, INHERITED, &["cascade"], delete, "insert into app.kid_more values (9, 1)", None);
    self::check(&pair, INHERITED, &["cascade"], delete, "insert into app.kid values (9, 1)", Some("app.par"));
}

#[test]
fn foreign_keys_in_a_circle() {
    let pair = Pair::new();
    let check = |branch: &str, target: &str, conflict| check(&pair, CIRCLE, ON_DELETE, branch, target, conflict);
    let new = "insert into app.depts values (9, null); insert into app.emps values (900, 9); update app.depts set head = 900 where id = 9";
    check(new, NOTHING, None);
    check(new, "insert into app.emps values (901, 1)", None);
    let delete = "update app.depts set head = null; update app.emps set dept = 3 where dept = 2; delete from app.depts where id = 2";
    check(delete, NOTHING, None);
    check(delete, "insert into app.emps values (901, 2)", Some("app.depts"));
    check(delete, "update app.emps set dept = 2 where id = 3", Some("app.depts"));
    let head = "update app.depts set head = null where id = 2; delete from app.depts where id = 2";
    self::check(&pair, CIRCLE, &["set null"], head, NOTHING, None);
    self::check(&pair, CIRCLE, &["set null"], head, "insert into app.emps values (901, 2)", Some("app.depts"));
}

#[test]
fn rows_that_the_target_added_below_a_changed_value_are_a_conflict() {
    let pair = Pair::new();
    let actions = ["cascade", "set null"];
    let check = |branch: &str, target: &str, conflict| check(&pair, CODES, &actions, branch, target, conflict);
    check("update app.places set code = 'new' where id = 2", NOTHING, None);
    check("update app.places set code = 'new' where id = 2", "insert into app.trips values (90, 'c3')", None);
    check(
        "update app.places set code = 'new' where id = 2",
        "insert into app.trips values (90, 'c2')",
        Some("app.places"),
    );
    check(
        "update app.places set code = 'new' where id = 5",
        "insert into app.trips values (90, 'c5')",
        Some("app.places"),
    );
}

#[test]
fn rows_that_refer_to_rows_without_a_key() {
    let pair = Pair::new();
    let check = |actions: &[&str], branch: &str, target: &str, conflict| {
        check(&pair, UNIQUE, actions, branch, target, conflict)
    };
    let delete = "delete from app.names where name = 'a'";
    check(ON_DELETE, delete, NOTHING, None);
    check(ON_DELETE, delete, "insert into app.uses values (9, 'a')", Some("app.names"));
    check(&["cascade"], "delete from app.uses where id = 1; delete from app.names where name = 'a'", NOTHING, None);
}

#[test]
fn a_materialized_view_that_was_not_refreshed_is_named() {
    let pair = Pair::new();
    pair.new_base(&["create materialized view app.busy as select user_id from app.orders; create materialized view app.other as select 1 as a".to_owned()]);
    pair.copy("base", "head");
    pair.sql_in("head", "update app.orders set total = 7 where id = 1");
    pair.sql_in("head", "refresh materialized view app.totals");
    let set = pair.diff();
    pair.copy("base", "target");
    let named = |notes: &[String]| -> Vec<bool> {
        ["app.totals", "app.busy", "app.other"].map(|name| notes.iter().any(|note| note.contains(name))).to_vec()
    };
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    assert_eq!(named(&applied.notes), [false, true, false], "{:?}", applied.notes);
    let undone = pair.apply("target", &applied.inverse, &ApplyOptions::default());
    assert_eq!(named(&undone.notes), [true, true, false], "{:?}", undone.notes);
}

/// Rows by table and key: the columns that are no key, as text; an empty one is null.
type Rows = BTreeMap<(String, String), Vec<String>>;
/// Table and place of a column that refers, table and column that it refers to; without a column, the key.
type Reference = (&'static str, usize, &'static str, Option<usize>);

/// Departments and people who refer to themselves and to each other, in partitions or not, and what refers to a department by a value that is no
/// key.
struct Company {
    rng: StdRng,
    has_badges: bool,
    next: u32,
}

impl Company {
    fn new(seed: u64) -> Company {
        Company { rng: StdRng::seed_from_u64(seed), has_badges: false, next: 0 }
    }

    fn reference(&mut self, to: &str) -> String {
        let actions = ["no action", "cascade", "cascade", "set null", "set default"];
        let mut pick = || actions.choose(&mut self.rng).copied().unwrap_or("cascade");
        format!("references {to} on delete {} on update {}", pick(), pick())
    }

    fn schema(&mut self) -> Vec<String> {
        self.has_badges = self.rng.random_bool(0.5);
        let dept =
            if self.has_badges { "code text unique, head int)" } else { "code text, head int) partition by hash (id)" };
        let is_parted = self.rng.random_bool(0.5);
        let emp = if is_parted { ") partition by range (id)" } else { ")" };
        let (of_dept, of_boss, of_head, of_code) = (
            self.reference("fk.dept"),
            self.reference("fk.emp"),
            self.reference("fk.emp"),
            self.reference("fk.dept (code)"),
        );
        let mut statements =
            vec!["create schema fk".to_owned(), format!("create table fk.dept (id int primary key, {dept}")];
        if !self.has_badges {
            statements
                .push("create table fk.dept_0 partition of fk.dept for values with (modulus 2, remainder 0)".into());
            statements
                .push("create table fk.dept_1 partition of fk.dept for values with (modulus 2, remainder 1)".into());
        }
        statements.push(format!("create table fk.emp (id int primary key, dept int default 1, boss int{emp}"));
        if is_parted {
            statements.push(
                "create table fk.emp_a partition of fk.emp for values from (0) to (14) partition by range (id)".into(),
            );
            statements.push("create table fk.emp_aa partition of fk.emp_a for values from (0) to (6)".into());
            statements.push("create table fk.emp_ab partition of fk.emp_a for values from (6) to (14)".into());
            statements.push("create table fk.emp_b partition of fk.emp default".into());
        }
        statements.push("insert into fk.dept select n, 'c' || n, n * 2 from generate_series(1, 8) n".into());
        statements
            .push("insert into fk.emp select n, n % 8 + 1, nullif(n / 3, 0) from generate_series(1, 24) n".into());
        statements
            .push(format!("alter table fk.emp add foreign key (dept) {of_dept}, add foreign key (boss) {of_boss}"));
        statements.push(format!("alter table fk.dept add foreign key (head) {of_head}"));
        if self.has_badges {
            statements.push(format!("create table fk.badge (id int primary key, code text {of_code})"));
            statements.push("insert into fk.badge select n, 'c' || n from generate_series(1, 6) n".into());
        }
        statements
    }

    /// `first`: where the numbers of one side's new rows begin.
    fn change(&mut self, first: u32) -> String {
        self.next += 1;
        let new = first + self.next;
        let (dept, emp, other) =
            (self.rng.random_range(1..9), self.rng.random_range(1..25), self.rng.random_range(1..25));
        match self.rng.random_range(0..14) {
            // The first is what others get by default.
            0 | 1 => format!("delete from fk.dept where id = {dept} and id > 1"),
            2 | 3 => format!("delete from fk.emp where id = {emp}"),
            4 => format!("insert into fk.emp values ({new}, {dept}, {emp})"),
            5 => format!("insert into fk.dept values ({new}, 'c{new}', {emp})"),
            6 => format!("update fk.emp set dept = {dept} where id = {emp}"),
            7 => format!("update fk.emp set boss = {other} where id = {emp}"),
            8 => format!("update fk.dept set head = {emp} where id = {dept}"),
            9 if self.has_badges => format!("update fk.dept set code = 'c{new}' where id = {dept}"),
            10 if self.has_badges => format!("insert into fk.badge select {new}, code from fk.dept where id = {dept}"),
            11 => format!("update fk.emp set id = {new} where id = {emp}"),
            // Its code goes for a moment then, and badges with it.
            12 if !self.has_badges => format!("update fk.dept set id = {new} where id = {dept} and id > 1"),
            _ => format!(
                "insert into fk.dept values ({new}, 'c{new}', null); insert into fk.emp values ({new}, {new}, {new}); update fk.dept set head = {new} where id = {new}"
            ),
        }
    }

    fn references(&self) -> Vec<Reference> {
        let all = [
            ("emp", 0, "dept", None),
            ("emp", 1, "emp", None),
            ("dept", 1, "emp", None),
            ("badge", 0, "dept", Some(0)),
        ];
        all[..if self.has_badges { 4 } else { 3 }].to_vec()
    }

    fn rows(&self, pair: &Pair, database: &str) -> Rows {
        let mut rows = Rows::new();
        for (table, columns) in [("dept", "code, head"), ("emp", "dept, boss"), ("badge", "code")] {
            if table == "badge" && !self.has_badges {
                continue;
            }
            for line in pair.sql_in(database, &format!("select id, {columns} from fk.{table}")).lines() {
                let mut fields = line.split('|').map(str::to_owned);
                let key = fields.next().expect("a key");
                rows.insert((table.to_owned(), key), fields.collect());
            }
        }
        rows
    }

    /// Whether every row refers to one that there is, and no department has another's code.
    fn is_sound(&self, rows: &Rows) -> bool {
        let value = |row: &(&(String, String), &Vec<String>), place: Option<usize>| match place {
            None => row.0.1.clone(),
            Some(place) => row.1[place].clone(),
        };
        let of_table = |table: &'static str| rows.iter().filter(move |row| row.0.0 == table);
        let codes = || of_table("dept").map(|row| value(&row, Some(0)));
        let are_unique = !self.has_badges || codes().collect::<BTreeSet<_>>().len() == codes().count();
        are_unique
            && self.references().into_iter().all(|(table, place, to, column)| {
                let there: BTreeSet<String> = of_table(to).map(|row| value(&row, column)).collect();
                of_table(table).all(|row| row.1[place].is_empty() || there.contains(&row.1[place]))
            })
    }
}

/// What both sides made of a state; none if they are at odds about a row.
fn sum(base: &Rows, head: &Rows, other: &Rows) -> Option<Rows> {
    let keys: BTreeSet<&(String, String)> = base.keys().chain(head.keys()).chain(other.keys()).collect();
    let mut sum = Rows::new();
    for key in keys {
        let merged = match (base.get(key), head.get(key), other.get(key)) {
            (base, head, other) if head == base => other.cloned(),
            (base, head, other) if other == base || other == head => head.cloned(),
            (Some(base), Some(head), Some(other)) => {
                let column = |place: usize| match (&base[place], &head[place], &other[place]) {
                    (base, head, other) if head == base => Some(other.clone()),
                    (base, head, other) if other == base || other == head => Some(head.clone()),
                    _ => None,
                };
                Some((0..base.len()).map(column).collect::<Option<Vec<String>>>()?)
            }
            _ => return None,
        };
        if let Some(row) = merged {
            sum.insert(key.clone(), row);
        }
    }
    Some(sum)
}

/// A conflict is where both sides are at odds about a row, or where their sum has a row that refers to none; else the target has the sum, and
/// what it had before when that is undone.
#[test]
fn random_rows_that_refer_to_each_other() {
    let pair = Pair::new();
    let (mut with, mut without) = (0, 0);
    let asked = seeds();
    // These are small.
    let count = if asked.len() == 1 { 1 } else { 12 * asked.len() };
    for seed in (asked[0]..).take(count) {
        println!("seed {seed}");
        let mut company = Company::new(seed);
        pair.new_base(&company.schema());
        let moves = company.rng.random_range(0..4);
        for (side, count, first) in [("head", 4, 1000), ("other", moves, 2000)] {
            pair.copy("base", side);
            let changes: Vec<String> = (0..count).map(|_| company.change(first)).collect();
            println!("{side}: {}", changes.join("; "));
            pair.change(side, &changes);
        }
        let [base, head, other] = ["base", "head", "other"].map(|side| company.rows(&pair, side));
        assert!([&base, &head, &other].into_iter().all(|rows| company.is_sound(rows)), "seed {seed}");
        let expect = sum(&base, &head, &other).filter(|rows| company.is_sound(rows));
        let set = pair.diff();
        pair.copy("other", "target");
        let applied = pair.apply("target", &set, &ApplyOptions::default());
        assert_eq!(
            applied.conflicts.is_empty(),
            expect.is_some(),
            "seed {seed}: {:?}\n{}",
            applied.conflicts,
            script(&set)
        );
        match expect {
            Some(expect) => {
                without += 1;
                assert_eq!(company.rows(&pair, "target"), expect, "seed {seed}\n{}", script(&set));
                let undone = pair.apply("target", &applied.inverse, &ApplyOptions::default());
                assert_eq!(undone.conflicts, [], "seed {seed}: undone\n{}", script(&applied.inverse));
            }
            None => with += 1,
        }
        assert_eq!(company.rows(&pair, "target"), other, "seed {seed}");
    }
    println!("{with} with conflicts, {without} without");
}

/// The way back attaches the partition after the rows: the foreign key gives way to that.
#[test]
fn a_partition_that_rows_referred_to_is_detached_and_comes_back() {
    let pair = Pair::new();
    pair.sql_in(
        "base",
        "create table app.m (id int primary key) partition by range (id); create table app.m1 partition of app.m for values from (0) to (10);
         create table app.r (id int primary key, mid int references app.m); insert into app.m values (1); insert into app.r values (1, 1)",
    );
    pair.copy("base", "head");
    pair.sql_in("head", "delete from app.r; alter table app.m detach partition app.m1");
    pair.round_trip("a detached partition");
}

/// A key that others follow by `ON UPDATE` goes by `ON DELETE` as any other, as long as nobody changes it.
#[test]
fn rows_of_a_tenant_go_together() {
    let pair = Pair::new();
    pair.sql_in(
        "base",
        "create table app.c (t int, id int, up int, primary key (t, id),
             foreign key (t, up) references app.c on delete cascade on update cascade);
         insert into app.c values (1, 1, null), (1, 2, 1), (1, 3, 2)",
    );
    pair.copy("base", "head");
    pair.sql_in("head", "delete from app.c where id = 2");
    pair.round_trip("a subtree");
}
