//! A server is imported while it is written to; a branch holds what it held.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use ardent_test_pg::{TempDir, TestPg, temp_dir};
use ardent_tests::{
    Extension, House, Ledger, Load, in_database, pg_program, production_options, sql, table_sums, wait_until,
};

const SHOP: &str = "
    create extension pg_trgm;
    create schema sales;
    create sequence sales.numbers increment 3 start 100;
    create table sales.customers (id int primary key, name text, mail text unique);
    insert into sales.customers select n, 'customer ' || n, n || '@example.com' from generate_series(1, 2000) n;
    create index on sales.customers using gin (name gin_trgm_ops);
    create index on sales.customers (lower(name)) where id % 2 = 0;
    create table sales.events (at date, id bigint default nextval('sales.numbers'), note text, primary key (at, id))
        partition by range (at);
    create table sales.events_old partition of sales.events for values from (minvalue) to ('2026-01-01');
    create table sales.events_new partition of sales.events for values from ('2026-01-01') to (maxvalue);
    insert into sales.events (at, note) select date '2025-06-01' + n, 'note ' || n from generate_series(1, 500) n;
    create table sales.documents (id int primary key, body text, raw bytea);
    alter table sales.documents alter body set storage external;
    insert into sales.documents
        select n, repeat(md5(n::text), 400), decode(repeat(md5((-n)::text), 300), 'hex') from generate_series(1, 60) n;
    create view sales.recent as select * from sales.events where at >= '2026-01-01';
    create materialized view sales.per_month as
        select date_trunc('month', at) as month, count(*) from sales.events group by 1;
    create function sales.twice(n int) returns int language sql immutable as 'select 2 * n';
    create table sales.audit (id bigserial primary key, what text);
    create function sales.log() returns trigger language plpgsql as
        $$ begin insert into sales.audit (what) values (tg_op || ' ' || new.id); return new; end $$;
    create trigger log after insert or update on sales.customers for each row execute function sales.log();
    update sales.customers set name = name || '!' where id <= 50;
    delete from sales.customers where id between 100 and 150;
    create unlogged table sales.scratch (n int);
    insert into sales.scratch select generate_series(1, 1000);
    create table sales.pending (n int primary key);
    select lo_from_bytea(70001, decode(repeat('00ff42', 20000), 'hex'));
    vacuum analyze sales.customers;
";

/// Folders for tablespaces of production.
struct Tablespaces {
    root: TempDir,
}

impl Tablespaces {
    /// Makes the first of these tablespaces, and folders for all.
    fn make(production: &TestPg, names: &[&str]) -> Tablespaces {
        let spaces = Tablespaces { root: temp_dir() };
        let owner = fs::metadata(spaces.root.path()).expect("it is there");
        for name in names {
            let path = spaces.root.path().join(name);
            fs::create_dir(&path).expect("a folder can be made");
            chown(&path, Some(owner.uid()), Some(owner.gid())).expect("its owner can be set");
        }
        spaces.create(production, names[0]);
        spaces
    }

    fn create(&self, production: &TestPg, name: &str) {
        let path = self.root.path().join(name);
        production.sql(&format!("create tablespace {name} location '{}'", path.display()));
    }
}

/// A ledger that knows when its rows were written.
const TIMED_LEDGER: &str = "create table ledger (n int primary key, at timestamptz not null default clock_timestamp())";

/// Tables that come and go. Each transaction makes one, notes its number in `steps`, and drops the last but one with its note.
struct Steps {
    stop: Arc<AtomicBool>,
    maker: JoinHandle<()>,
}

impl Steps {
    /// Starts making them at `url`, and waits for the first two.
    fn start(url: &str) -> Steps {
        sql(url, "create table steps (n int primary key)");
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, at) = (Arc::clone(&stop), url.to_owned());
        let maker = thread::spawn(move || {
            for step in 3u32.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let before = step - 2;
                sql(
                    &at,
                    &format!(
                        "create table step_{step} as select generate_series(1, 100) as a; create index on step_{step} (a);
                         alter table step_{step} add b text default 'later'; insert into steps values ({step});
                         drop table if exists step_{before}; delete from steps where n = {before}"
                    ),
                );
            }
        });
        wait_until("two steps are made", 60, || (sql(url, "select count(*) from steps") == "2").then_some(()));
        Steps { stop, maker }
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.maker.join().expect("no statement fails");
    }

    /// Sees to it that the tables are those that are noted, whole.
    fn check(url: &str) {
        let noted = sql(url, "select string_agg('step_' || n, ',' order by n) from steps");
        let tables = "select string_agg(relname, ',' order by substr(relname, 6)::int) from pg_class
            where relkind = 'r' and relname ~ '^step_[0-9]+$'";
        assert_eq!(sql(url, tables), noted);
        assert_eq!(noted.split(',').count(), 2, "{noted}");
        for table in noted.split(',') {
            let rows = format!("select count(*), sum(a), count(*) filter (where b = 'later') from {table}");
            assert_eq!(sql(url, &rows), "100|5050|100", "{table}");
        }
    }
}

/// Makes a branch while pgbench, a ledger and DDL write, and sees to it that it is of one moment: one at which everything was there that
/// was acknowledged before the command was called, and nothing that was begun after it returned.
fn check_a_branch_made_under_writes(house: &House, production: &TestPg, ledger: &Ledger) {
    let acknowledged = ledger.so_far();
    let branch = house.branch("moving", "shop");
    let returned = production.sql("select clock_timestamp()");
    ledger.wait_for_more();
    let url = in_database(&branch, "load");
    assert!(!acknowledged.is_empty());
    acknowledged.check(&url);
    let begun_later = format!("select count(*) from ledger where at > '{returned}'");
    assert_eq!(sql(&url, &begun_later), "0", "rows from after {returned}");
    assert_ne!(production.sql_in("load", &begun_later), "0", "production goes on");
    let balances = sql(
        &url,
        "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),
                (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history)",
    );
    let balances: Vec<&str> = balances.split('|').collect();
    assert!(
        balances.iter().all(|balance| *balance == balances[0]),
        "accounts, tellers, branches, history: {balances:?}"
    );
    Steps::check(&url);
    check_structure(&[&url]);
    house.ok(&["branch", "delete", "moving"]);
}

/// `pg_amcheck` of heaps and indexes.
fn check_structure(arguments: &[&str]) {
    let checked = pg_program("pg_amcheck")
        .args(["--install-missing", "--heapallindexed"])
        .args(arguments)
        .output()
        .expect("pg_amcheck can be run");
    let said = [checked.stdout, checked.stderr].concat();
    assert!(checked.status.success(), "pg_amcheck: {}", String::from_utf8_lossy(&said));
}

#[test]
fn a_branch_equals_the_production_it_was_taken_from() {
    let extensions = Extension::all();
    // What extensions need: their library from the start, and what output plugins read.
    let options = production_options().set("shared_preload_libraries", "pg_stat_statements");
    let options = extensions.iter().fold(options.set("wal_level", "logical"), Extension::with_settings);
    let production = TestPg::start(options);
    for database in ["shop", "other", "load"] {
        production.sql(&format!("create database {database}"));
    }
    for statement in SHOP.split(";\n    ").map(str::trim).filter(|statement| !statement.is_empty()) {
        production.sql_in("shop", statement);
    }
    for extension in &extensions {
        extension.set_up(&production.socket_url("shop"));
    }
    production.sql_in("other", "create table only_here as select n, n::text as word from generate_series(1, 300) n");
    let spaces = Tablespaces::make(&production, &["early", "late"]);
    production.sql("create database in_space tablespace early");
    production.sql_in("in_space", "create table t as select n, repeat('s', n) as word from generate_series(1, 300) n");
    production.sql_in("shop", "create table sales.moved (n int primary key) tablespace early");
    production.sql_in("shop", "insert into sales.moved select generate_series(1, 5000)");
    production.sql("create database copied_early template other strategy file_copy");
    let made = pg_program("pgbench")
        .args(["-i", "-q", "-s", "2", "-d"])
        .arg(production.socket_url("load"))
        .output()
        .expect("pgbench can be run");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    production.sql_in("shop", "begin; insert into sales.pending values (1), (2); prepare transaction 'in flight'");

    let house = House::start();
    let load = Load::start(&production, "load");
    production.sql_in("load", TIMED_LEDGER);
    let ledger = Ledger::start(&production.socket_url("load"));
    let steps = Steps::start(&production.socket_url("load"));
    house.connect("shop", &production.tcp_url("postgres", "shop"));
    check_a_branch_made_under_writes(&house, &production, &ledger);
    ledger.finish();
    steps.finish();
    // What commits after the import comes by WAL.
    production.sql_in("shop", "insert into sales.pending values (3); select nextval('sales.numbers')");
    production.sql_in("shop", "update sales.documents set body = repeat('new', 5000) where id % 10 = 0");
    production.sql("create database later");
    production.sql_in("later", "create table t as select generate_series(1, 100) n");
    production.sql("create database copied template other strategy file_copy");
    production.sql("create database logged template other strategy wal_log");
    production.sql_in("copied", "insert into only_here values (301, 'after the copy')");
    spaces.create(&production, "late");
    production.sql_in("shop", "alter table sales.moved set tablespace late");
    production.sql_in("shop", "create index on sales.moved ((n % 7)) tablespace late");
    production.sql("create database in_late template other tablespace late strategy file_copy");
    load.stop(&production);
    let branch = house.branch("copy", "shop");

    let databases = ["shop", "other", "load", "later", "in_space", "copied_early", "copied", "logged", "in_late"];
    for database in databases {
        let wanted = table_sums(&production.socket_url(database));
        assert!(!wanted.is_empty());
        assert_eq!(wanted, table_sums(&in_database(&branch, database)), "tables of {database}");
    }
    for query in [
        "select count(*), min(at), max(note) from sales.recent",
        "select sales.twice(21)",
        "select count(*), string_agg(name, ',' order by id) from sales.customers where name like '%mer 4%!'",
        "select loid, md5(lo_get(loid)) from pg_largeobject group by loid order by loid",
        "select count(*), sum(n) from sales.moved where n % 7 = 3",
        "select count(*), string_agg(spcname, ',' order by spcname) from pg_tablespace",
        "select gid, database from pg_prepared_xacts",
        "select count(*) from pg_trigger where not tgisinternal",
        "select datname, encoding, datcollate from pg_database order by 1",
    ] {
        assert_eq!(production.sql_in("shop", query), sql(&branch, query), "{query}");
    }
    // As after a crash: an unlogged table is empty, and a sequence may have skipped values but repeats none.
    assert_eq!(sql(&branch, "select count(*) from sales.scratch"), "0");
    let next = |text: String| text.parse::<i64>().expect("a number");
    let there = next(production.sql_in("shop", "select last_value from sales.numbers"));
    assert!(next(sql(&branch, "select nextval('sales.numbers')")) > there);
    // The transaction in flight can be ended on the branch, and is in flight in production still.
    sql(&branch, "commit prepared 'in flight'");
    assert_eq!(sql(&branch, "select string_agg(n::text, ',' order by n) from sales.pending"), "1,2,3");
    assert_eq!(production.sql_in("shop", "select string_agg(n::text, ',') from sales.pending"), "3");
    assert_eq!(production.sql("select count(*) from pg_prepared_xacts"), "1");

    // Extensions are used there as on production, and a diff shows the rows of their types.
    for extension in &extensions {
        extension.check(&production.socket_url("shop"), &branch);
    }
    let shown = house.ok(&["branch", "diff", "copy", "--stat"]);
    for table in extensions.iter().filter_map(Extension::changed_table) {
        assert!(shown.contains(&format!("public.{table}")), "{table} is not in\n{shown}");
    }
    let rows = house.ok(&["branch", "diff", "copy", "--table", "of_hstore"]);
    assert!(rows.contains("id=14") && rows.contains("white"), "{rows}");

    check_structure(&["--all", "--maintenance-db", &branch]);
}
