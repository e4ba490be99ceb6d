//! A branch's changes are shown, brought into production, and taken back.

use std::fs;

use ardent_test_pg::TestPg;
use ardent_tests::{House, production_options, sql, table_sums};

#[test]
fn changes_are_shown_applied_and_undone() {
    let production = TestPg::start(production_options());
    production.sql(
        "create table users (id int primary key, name text, mail text); insert into users select n, 'user ' || n, n || '@x' from generate_series(1, 2000) n;
         create table gone (id int primary key); insert into gone values (1)",
    );
    let url = production.tcp_url("postgres", "postgres");
    let house = House::start();
    house.connect("main", &url);
    let branch = house.branch("work", "main");
    sql(&branch, "select lo_from_bytea(7001, '\\x0102')");
    sql(
        &branch,
        "alter table users rename column mail to email; alter table users add column age int default 5; update users set name = 'changed' where id = 7;
         delete from users where id = 8; insert into users values (3000, 'new', 'new@x', 1); drop table gone; create index on users (name)",
    );

    let people = house.ok(&["branch", "diff", "work"]);
    for line in [
        "ALTER TABLE public.users RENAME COLUMN mail TO email;",
        "DROP TABLE public.gone;",
        "~ id=7 name: 'user 7' -> changed",
        "public.users: +1 ~1 -1",
    ] {
        assert!(people.contains(line), "{line} is not in\n{people}");
    }
    let json = house.json(&["branch", "diff", "work", "--schema-only"]);
    let statements = json["databases"][0]["schema"]["statements"].as_array().map_or(0, Vec::len);
    assert!(statements >= 4, "{json}");
    assert_eq!(house.ardent(&["branch", "diff", "work", "--exit-code", "--stat"]).code, 3);
    let file = house.data_dir().join("../work.changes");
    let undo = house.data_dir().join("../undo.changes");
    let (file, undo) = (file.to_str().expect("a plain path"), undo.to_str().expect("a plain path"));
    house.ok(&["branch", "diff", "work", "-o", file]);

    let before = table_sums(&url);
    production.sql("update users set name = 'mine' where id = 7");
    let refused = house.ardent(&["branch", "apply", file, "--to", &url]);
    assert_eq!(refused.code, 6, "{}", refused.stderr);
    assert!(refused.stdout.contains("name: was user 7, branch changed, target mine"), "{}", refused.stdout);
    production.sql("update users set name = 'user 7' where id = 7");
    assert_eq!(table_sums(&url), before);

    house.ok(&["branch", "apply", file, "--to", &url, "--dry-run"]);
    assert_eq!(table_sums(&url), before);
    house.ok(&["branch", "apply", file, "--to", &url, "--inverse", undo]);
    assert_eq!(table_sums(&url), table_sums(&branch));
    assert_eq!(production.sql("select lo_get(7001)"), "\\x0102");
    house.ok(&["branch", "apply", undo, "--to", &url]);
    assert_eq!(table_sums(&url), before);

    let mut damaged = fs::read(file).expect("the file is there");
    if let Some(last) = damaged.last_mut() {
        *last ^= 1;
    }
    fs::write(file, damaged).expect("the file can be written");
    let refused = house.ardent(&["branch", "apply", file, "--to", &url]);
    assert!(refused.code == 1 && refused.stderr.contains("damaged"), "{}", refused.stderr);
}
