//! A database of very many tables, from its import to the diff of a branch. `make test-full AREA=storage` says how many.

use std::time::Instant;

use ardent_test_pg::TestPg;
use ardent_tests::{House, production_options, sql};

/// Tables that one transaction makes.
const TABLES_PER_TRANSACTION: u32 = 500;
/// One in so many has a key and a row.
const FILLED_EVERY: u32 = 100;

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    println!("{what}: {:.2} s", began.elapsed().as_secs_f64());
    done
}

fn make_tables(production: &TestPg, tables: u32) {
    for first in (1..=tables).step_by(TABLES_PER_TRANSACTION as usize) {
        let last = (first + TABLES_PER_TRANSACTION - 1).min(tables);
        production.sql(&format!(
            "do $$ begin
               for n in {first}..{last} loop
                 execute format('create table t_%s (id int, v int)', n);
                 if n % {FILLED_EVERY} = 0 then
                   execute format('alter table t_%s add primary key (id)', n);
                   execute format('insert into t_%s values (1, 0)', n);
                 end if;
               end loop;
             end $$"
        ));
    }
}

#[test]
fn a_database_of_very_many_tables_is_imported_branched_and_compared() {
    let Ok(text) = std::env::var("ARDENT_TABLES") else {
        eprintln!("ARDENT_TABLES says no number of tables: make test-full AREA=storage");
        return;
    };
    let tables: u32 = text.parse().expect("ARDENT_TABLES is a number");
    assert!(tables >= FILLED_EVERY, "a table with a row is among them from {FILLED_EVERY} on");
    let production = TestPg::start(production_options().set("max_wal_size", "4GB"));
    timed(&format!("{tables} tables made"), || make_tables(&production, tables));
    let mut house = House::start();
    timed("connector create", || house.connect("main", &production.tcp_url("postgres", "postgres")));

    let url = timed("branch create", || house.branch("work", "main"));
    assert_eq!(timed("the first row, cold", || sql(&url, "select v from t_100")), "0");
    let count = "select count(*) from pg_class where relkind = 'r' and relname ~ '^t_[0-9]+$'";
    assert_eq!(timed("all tables counted", || sql(&url, count)), tables.to_string());
    sql(&url, "update t_100 set v = 1");
    let stat = timed("branch diff --stat of one changed row", || house.json(&["branch", "diff", "work", "--stat"]));
    let changed = &stat["databases"][0]["tables"];
    assert_eq!(changed.as_array().map(Vec::len), Some(1), "{stat}");
    assert_eq!((&changed[0]["name"], &changed[0]["updated"]), (&"t_100".into(), &1.into()), "{stat}");

    timed("branch suspend", || house.ok(&["branch", "suspend", "work"]));
    assert_eq!(timed("the first row, warm", || sql(&url, "select v from t_100")), "1");
    // What is there once it is known that nothing was left in memory alone.
    house.kill_server();
    timed("ardent up after a kill", || house.up());
    assert_eq!(timed("the first row after it", || sql(&url, "select v from t_100")), "1");
    assert_eq!(production.sql("select v from t_100"), "0");
    println!("memory of ardent up since then, at most: {} MB", house.memory_peak_bytes() >> 20);
}
