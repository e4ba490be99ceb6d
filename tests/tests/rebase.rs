//! A branch's changes go onto newer production: by a rebase of the branch, or into production itself by its connector.

use ardent_test_pg::TestPg;
use ardent_tests::{House, production_options, sql, table_sums};

#[test]
fn changes_go_onto_newer_production_or_nothing_happens() {
    let production = TestPg::start(production_options());
    production.sql(
        "create table users (id int primary key, name text, mail text unique); insert into users select n, 'user ' || n, n || '@x' from generate_series(1, 500) n;
         create sequence numbers",
    );
    let url = production.tcp_url("postgres", "postgres");
    let house = House::start();
    house.connect("main", &url);
    let branch = house.branch("work", "main");
    sql(
        &branch,
        "update users set name = 'branch' where id in (7, 8); delete from users where id = 9; insert into users values (1000, 'new', 'new@x')",
    );
    // Two rows exchange a unique value.
    sql(
        &branch,
        "update users set mail = null where id = 20; update users set mail = '20@x' where id = 21; update users set mail = '21@x' where id = 20",
    );
    sql(&branch, "alter table users add column age int default 5");
    sql(&branch, "select lo_from_bytea(7001, '\\x0102'), nextval('numbers')");
    let child = house.branch("child", "work");
    let before = table_sums(&branch);
    production.sql(
        "update users set name = 'production' where id in (7, 300); insert into users values (2000, 'theirs', null)",
    );

    // A branch of somebody's, under a name that a rebase would give: it is no state that was kept.
    let lookalike = house.branch("work-before-rebase-1", "main");
    sql(&lookalike, "delete from users");
    house.ardent(&["branch", "rebase", "work", "--undo"]).refused(5, &["no state of work"]);

    let refused = house.ardent(&["branch", "rebase", "work"]);
    refused.refused(6, &["1 conflict"]);
    assert!(refused.stdout.contains("name: was user 7, branch branch, parent production"), "{}", refused.stdout);
    assert_eq!(table_sums(&branch), before, "nothing has changed");
    house.ok(&["branch", "rebase", "work", "--dry-run", "--prefer", "branch"]);
    assert_eq!(table_sums(&branch), before, "nothing has changed");

    let reply = house.json(&["branch", "rebase", "work", "--prefer", "branch"]);
    assert_eq!(
        (&reply["rebased"], &reply["settled"], &reply["rows"]["updated"]),
        (&true.into(), &1.into(), &4.into()),
        "{reply}"
    );
    assert_eq!((&reply["large_objects"], &reply["sequences"]), (&1.into(), &1.into()), "{reply}");
    let kept = reply["kept_as"].as_str().expect("a name").to_owned();
    assert_eq!(kept, "work-before-rebase-2", "the other name is taken");
    let seen = "select string_agg(concat_ws('|', id, name, mail, age), ',' order by id) from users where id in (7, 8, 9, 20, 21, 300, 1000, 2000)";
    let expect = "7|branch|7@x|5,8|branch|8@x|5,20|user 20|21@x|5,21|user 21|20@x|5,300|production|300@x|5,1000|new|new@x|5,2000|theirs|5";
    assert_eq!(sql(&branch, seen), expect, "the same connection string");
    let diff = house.ok(&["branch", "diff", "work", "--stat"]);
    assert!(diff.contains("+1 ~4 -1"), "{diff}");
    let blamed = house.ok(&["branch", "blame", "work", "users", "8"]);
    assert!(blamed.contains(&format!("ardent branch blame {kept} public.users 8")), "{blamed}");
    assert!(house.ok(&["branch", "blame", &kept, "users", "8"]).contains("update users set name = 'branch'"));
    let old = house.ok(&["branch", "info", &kept, "--print-url"]);
    assert_eq!(table_sums(&old), before, "the state from before is there");
    assert_eq!(table_sums(&child), before, "and what was made from it");
    house.ardent(&["branch", "delete", &kept]).refused(6, &["child"]);

    let undone = house.ok(&["branch", "rebase", "work", "--undo"]);
    assert!(undone.contains("has the other state again") && !undone.contains("statements"), "{undone}");
    assert_eq!(table_sums(&branch), before);
    let blamed = house.ok(&["branch", "blame", "work", "users", "300"]);
    assert!(blamed.contains("unchanged since the branch point"), "{blamed}");
    house.ok(&["branch", "rebase", "work", "--undo"]);
    assert_eq!(sql(&branch, seen), expect);

    // Again, with nothing new: what a comparison's reading tidies up is no writing.
    let again = house.json(&["branch", "rebase", "work"]);
    assert_eq!((&again["rebased"], &again["rows"]["updated"]), (&true.into(), &4.into()), "{again}");
    assert_eq!(sql(&branch, seen), expect);
    house.ok(&["branch", "rebase", "work", "--dry-run"]);
    assert_eq!(sql(&lookalike, "select count(*) from users"), "0", "left alone by all of that");

    // Into production, by its connector: nobody is asked without a terminal.
    let undo = house.data_dir().join("../undo.changes");
    let undo = undo.to_str().expect("a plain path");
    let untouched = table_sums(&url);
    house.ardent(&["branch", "apply", "work", "--to", "main"]).refused(2, &["--yes"]);
    // Nobody is asked about a server that is not there.
    house.ardent(&["branch", "apply", "work", "--to", "nobody"]).refused(5, &["nobody"]);
    house.ardent(&["branch", "blame", "users", "8"]).refused(2, &["ardent branch blame NAME users 8"]);
    house.ok(&["branch", "apply", "work", "--to", "main", "--dry-run"]);
    assert_eq!(table_sums(&url), untouched);
    let applied = house.ok(&["branch", "apply", "work", "--to", "main", "--yes", "--inverse", undo]);
    assert!(applied.contains("--to main"), "{applied}");
    assert_eq!(sql(&url, seen), expect);
    house.ok(&["branch", "apply", undo, "--to", "main", "--yes"]);
    assert_eq!(table_sums(&url), untouched);
    house.ardent(&["branch", "apply", undo, "--to", "nobody", "--yes"]).refused(5, &["nobody"]);
}
