//! Slot and publication of a connector in logical mode in the hands of somebody else on production: nothing is missed without a word, and
//! nothing is said where nothing is missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ardent_test_pg::{StopMode, TestPg};
use ardent_tests::{House, managed, managed_url, side_by_side, sql, wait_until};

const SHOP: &str = "
    set role app;
    create table t (id int primary key, n int);
    create table u (id int primary key, n int);
    insert into t select n, n from generate_series(1, 10) n;
    insert into u select n, n from generate_series(1, 10) n;
";

/// The name of slot and publication.
fn own_name(production: &TestPg) -> String {
    production.sql_in("shop", "select slot_name from pg_replication_slots")
}

/// Waits until following has stopped with all of these words; what was said.
#[track_caller]
fn stops(house: &House, words: &[&str]) -> String {
    wait_until(&format!("it stops with {words:?}"), 60, || {
        let problem = house.json(&["connector", "status", "shop"])["problem"].as_str().map(str::to_owned)?;
        words.iter().all(|word| problem.contains(word)).then_some(problem)
    })
}

fn resume(house: &House, statements: &str) {
    house.ok(&["connector", "resume", "shop", "--sql", statements]);
}

/// Does something to the slot while `ardent up` is down.
fn while_down(house: &mut House, production: &TestPg, statements: &[&str]) {
    house.stop();
    wait_until("nobody uses the slot", 60, || {
        (production.sql_in("shop", "select bool_or(active) from pg_replication_slots") == "f").then_some(())
    });
    for statement in statements {
        production.sql_in("shop", statement);
    }
    house.up();
}

#[test]
fn nothing_is_missed_without_a_word_and_nothing_is_said_where_nothing_is_missed() {
    // One of them waits twice for what production is told from time to time.
    side_by_side(&[
        ("what somebody else does", what_somebody_else_does_to_slot_and_publication_stops),
        ("nothing is missed", nothing_is_said_where_nothing_is_missed),
    ]);
}

fn what_somebody_else_does_to_slot_and_publication_stops() {
    let production = managed("shop");
    production.sql_in("shop", SHOP);
    let mut house = House::start();
    house.connect_logical(&production, &[]);
    let name = own_name(&production);
    let run = |statement: &str| production.sql_in("shop", &statement.replace("NAME", &name));

    // A table that was not published for a while.
    run("alter publication NAME drop table t");
    run("update t set n = 100 where id = 1");
    run("insert into t values (11, 11)");
    run("alter publication NAME add table only t");
    run("insert into t values (12, 12)");
    let said = stops(&house, &["publication", "table public.t was taken out of it", "connector resume shop --sql"]);
    assert!(said.contains(&name) && said.contains("under another name"), "{said}");
    house.ardent(&["branch", "create", "late", "--from", "shop"]).refused(1, &["production"]);
    // A restart changes nothing, and neither does trying again.
    house.stop();
    house.up();
    stops(&house, &["table public.t was taken out of it"]);
    house.ardent(&["connector", "resume", "shop"]).refused(1, &["taken out of it"]);
    // Whoever knows what was missed makes up for it; what is sent comes by itself.
    resume(&house, "update t set n = 100 where id = 1; insert into t values (11, 11)");
    house.assert_equal_to_production();

    // An operation that was not sent for a while, and one that still is not.
    run("alter publication NAME set (publish = 'insert')");
    run("delete from t where id = 2");
    run("alter publication NAME set (publish = 'insert, update, delete, truncate')");
    stops(&house, &["what it sends was altered, and put back"]);
    resume(&house, "delete from t where id = 2");
    house.assert_equal_to_production();
    run("alter publication NAME set (publish = 'insert')");
    stops(&house, &["it does not send updates, deletes, truncates"]);
    run("alter publication NAME set (publish = 'insert, update, delete, truncate')");
    resume(&house, "select 1");
    house.assert_equal_to_production();
    run("alter publication NAME set table only t where (id > 5), only u");
    stops(&house, &["rows of table public.t are filtered"]);
    run("alter publication NAME set table only t, only u");
    resume(&house, "select 1");
    house.assert_equal_to_production();

    // A slot that was moved, and one that was made anew under the same name.
    let advance = format!("select pg_replication_slot_advance('{name}', pg_current_wal_lsn())");
    while_down(&mut house, &production, &["insert into t values (20, 20)", &advance]);
    stops(&house, &[&name, "somebody has moved it or made it anew"]);
    resume(&house, "insert into t values (20, 20)");
    house.assert_equal_to_production();
    let drop = format!("select pg_drop_replication_slot('{name}')");
    let make = format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')");
    while_down(&mut house, &production, &["insert into t values (21, 21)", &drop, &make]);
    stops(&house, &[&name, "somebody has moved it or made it anew"]);
    resume(&house, "insert into t values (21, 21)");
    run("insert into t values (22, 22)");
    house.assert_equal_to_production();

    // One that is gone; then only the publication cannot be dropped.
    while_down(&mut house, &production, &[&drop]);
    let said = stops(&house, &["is not on production any more", "connect production once more under another name"]);
    assert!(!said.contains("restore-command"), "{said}");
    run("alter publication NAME owner to current_user");
    let deleted = house.ardent(&["connector", "delete", "shop", "--yes"]);
    assert_eq!(deleted.code, 0, "{deleted:?}");
    let printed = format!("{}{}", deleted.stdout, deleted.stderr);
    assert!(printed.contains(&format!("the publication {name} could not be dropped, which keeps no WAL")), "{printed}");
    assert!(!printed.contains("pg_drop_replication_slot"), "{printed}");
}

fn follows(house: &House) {
    wait_until("it follows", 60, || {
        let status = house.json(&["connector", "status", "shop"]);
        (status["following"] == true && status["logical"]["applied_lsn"].is_string()).then_some(())
    });
}

fn schema_changes(house: &House) -> Vec<String> {
    let status = house.json(&["connector", "status", "shop"]);
    let changes = status["logical"]["schema_changes"].as_array().expect("a list");
    changes.iter().filter_map(|change| change.as_str().map(str::to_owned)).collect()
}

fn nothing_is_said_where_nothing_is_missed() {
    let mut production = managed("shop");
    production.sql_in("shop", SHOP);
    let mut house = House::start();
    house.connect_logical(&production, &[]);
    let name = own_name(&production);

    // Ends in the middle of traffic: what was committed was confirmed without being written down.
    let (url, goes_on) = (managed_url(&production, "shop"), Arc::new(AtomicBool::new(true)));
    let writing = thread::spawn({
        let goes_on = goes_on.clone();
        move || {
            let mut id = 1000;
            while goes_on.load(Ordering::Relaxed) {
                sql(&url, &format!("insert into t values ({id}, 0); update u set n = n where id = 1"));
                id += 1;
            }
            id
        }
    });
    for _ in 0..3 {
        house.kill_server();
        house.up();
        follows(&house);
    }
    house.stop();
    house.up();
    goes_on.store(false, Ordering::Relaxed);
    assert!(writing.join().expect("production takes all of it") > 1000);
    house.assert_equal_to_production();

    // Between changes production is told of what concerns no table: as far as that is written down.
    for _ in 0..2 {
        production.sql("create table elsewhere as select generate_series(1, 10000)");
        let at = production.sql("drop table elsewhere; select pg_current_wal_lsn()");
        wait_until("production is told", 60, || {
            let told = format!("select confirmed_flush_lsn >= '{at}' from pg_replication_slots");
            (production.sql_in("shop", &told) == "t").then_some(())
        });
        house.kill_server();
        house.up();
        follows(&house);
    }
    // A server that stops waits for those who follow it, and not for long.
    production.stop(StopMode::Fast);
    production.start_server();
    production.sql_in("shop", "insert into t values (100, 100)");
    wait_until("they are equal again", 60, || (house.ardent(&["connector", "verify", "shop"]).code == 0).then_some(()));

    // Catalogs that are tidied up, another owner, tables that are emptied and packed.
    for statement in [
        "vacuum full pg_publication",
        "vacuum freeze pg_publication_rel",
        &format!("alter publication {name} owner to current_user"),
        "truncate t",
        "vacuum full t",
        // Nobody is sent what its rows hold now.
        "alter table u alter column n type int using n * 10",
    ] {
        production.sql_in("shop", statement);
    }
    let told = wait_until("it is said", 60, || Some(schema_changes(&house)).filter(|changes| !changes.is_empty()));
    assert!(told.len() == 1 && told[0].contains("table public.u was written anew"), "{told:?}");
    assert!(told[0].contains("connector verify"), "{told:?}");
    let verified = house.ardent(&["connector", "verify", "shop"]);
    assert_eq!(verified.code, 3, "{verified:?}");
    assert_eq!(schema_changes(&house).len(), 1, "they are not equal");
    resume(&house, "update u set n = n * 10");
    house.assert_equal_to_production();
    wait_until("it is said no more", 60, || schema_changes(&house).is_empty().then_some(()));

    // One that is made again does not help.
    production.sql_in("shop", &format!("drop publication {name}"));
    production.sql_in("shop", "insert into t values (200, 200)");
    stops(&house, &["the publication", "was dropped on production", "under another name"]);
    production.sql_in("shop", &format!("create publication {name} for table only t, only u"));
    house.ardent(&["connector", "resume", "shop"]).refused(1, &["does not help"]);
}
