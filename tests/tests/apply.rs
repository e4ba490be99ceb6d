//! A branch's changes are shown, brought into production, and taken back.

use std::fs::{self, File};

use ardent_test_pg::TestPg;
use ardent_tests::{Background, House, production_options, sql, table_sums, wait_until};

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
    let stat = house.json(&["branch", "diff", "work", "--stat"]);
    let database = &stat["databases"][0];
    assert_eq!(database["schema"]["statements"], statements, "{stat}");
    let users = database["tables"].as_array().and_then(|tables| tables.iter().find(|table| table["name"] == "users"));
    assert_eq!(users.map(|users| (&users["inserted"], &users["updated"])), Some((&1.into(), &1.into())), "{stat}");
    assert!(!stat.to_string().contains("new@x"), "counts alone: {stat}");
    let file = house.data_dir().join("../work.changes");
    let undo = house.data_dir().join("../undo.changes");
    let (file, undo) = (file.to_str().expect("a plain path"), undo.to_str().expect("a plain path"));
    house.ok(&["branch", "diff", "work", "-o", file]);

    let before = table_sums(&url);
    production.sql("update users set name = 'mine' where id = 7");
    // A change set is not lost by a slip.
    house
        .ardent(&["branch", "apply", file, "--to", &url, "--inverse", file])
        .refused(2, &["would be replaced by its own inverse", "--inverse"]);
    house.ardent(&["branch", "diff", "work", "-o", file, "--sql"]).refused(2, &["--sql"]);
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

    rehearse(&house);
    assert_eq!(table_sums(&url), before);

    let mut damaged = fs::read(file).expect("the file is there");
    if let Some(last) = damaged.last_mut() {
        *last ^= 1;
    }
    fs::write(file, damaged).expect("the file can be written");
    let refused = house.ardent(&["branch", "apply", file, "--to", &url]);
    assert!(refused.code == 1 && refused.stderr.contains("damaged"), "{}", refused.stderr);
}

/// Of a table that loses a column nothing changes but the catalog: what rows had in it, only production has.
#[test]
fn what_goes_without_a_changed_block_is_undone_with_its_values() {
    let production = TestPg::start(production_options());
    production.sql(
        "create table users (id int primary key, name text, note text); insert into users select n, 'user ' || n, 'note ' || n from generate_series(1, 3000) n;
         create table loose (a int, b text); insert into loose select n % 3, 'b' || n % 4 from generate_series(1, 30) n;
         create table parted (id int primary key, v text) partition by range (id); create table parted_1 partition of parted for values from (0) to (100);
         insert into parted select n, 'v' || n from generate_series(1, 50) n;
         create type place as (street text, number int); create table homes (id int primary key, at place, others place[]);
         insert into homes select n, row('street', n)::place, array[row('other', n)::place] from generate_series(1, 50) n;
         create unlogged table scratch (id int primary key, v text); insert into scratch select n, 'v' || n from generate_series(1, 50) n",
    );
    let url = production.tcp_url("postgres", "postgres");
    let house = House::start();
    house.connect("main", &url);
    let branch = house.branch("work", "main");
    sql(
        &branch,
        "alter table users drop column note; alter table loose drop column b; alter table parted drop column v;
         alter type place drop attribute number; drop table scratch",
    );
    let [file, undo, redo] =
        ["work", "undo", "redo"].map(|name| house.data_dir().join(format!("../{name}.changes")).display().to_string());
    house.ok(&["branch", "diff", "work", "-o", &file]);

    // What production does meanwhile goes and comes back with the rest.
    production.sql("insert into users values (5000, 'later', 'of production''s own'); update users set note = 'changed' where id = 7");
    let scratch = "select count(*), md5(string_agg(t::text, ' ' order by id)) from scratch t";
    let (before, scratched) = (table_sums(&url), production.sql(scratch));
    house.ok(&["branch", "apply", &file, "--to", &url, "--dry-run"]);
    assert_eq!(table_sums(&url), before);
    house.ok(&["branch", "apply", &file, "--to", &url, "--inverse", &undo]);
    assert_eq!(
        production
            .sql("select to_regclass('scratch') is null and (select at::text from homes where id = 1) = '(street)'"),
        "t"
    );
    let applied = table_sums(&url);
    assert_ne!(applied, before);
    house.ok(&["branch", "apply", &undo, "--to", &url, "--inverse", &redo]);
    assert_eq!((table_sums(&url), production.sql(scratch)), (before, scratched));
    house.ok(&["branch", "apply", &redo, "--to", &url]);
    assert_eq!(table_sums(&url), applied);
}

/// A migration on a branch of its own, which is gone afterwards, however it ends.
fn rehearse(house: &House) {
    let path = house.data_dir().join("../migrate.sql");
    let file = path.to_str().expect("a plain path");
    let write = |text: &str| fs::write(&path, text).expect("the file can be written");
    let rehearsals = || {
        let branches = house.json(&["branch", "list"]);
        let names = branches["branches"].as_array().expect("a list").iter().filter_map(|one| one["name"].as_str());
        names.filter(|name| name.starts_with("rehearsal-")).map(str::to_owned).collect::<Vec<_>>()
    };

    write(
        "begin; -- one\nalter table users alter id type bigint;\ninsert into gone values (2);\ncommit;\n\
         create index concurrently on users (mail);\nselect 'a',\n  wrong from users;\nselect 3",
    );
    let failed = house.ardent(&["--json", "branch", "rehearse", file]);
    failed.refused(1, &["statement 6 fails", "42703", "line 7"]);
    let report: serde_json::Value = serde_json::from_str(&failed.stdout).expect("one object");
    let statements = &report["statements"];
    assert_eq!(statements[1]["rewritten"][0]["relation"], "public.users", "{report}");
    assert_eq!(statements[1]["locks"][0]["mode"], "ACCESS EXCLUSIVE", "{report}");
    assert_eq!(
        (&statements[1]["locks"][0]["until_statement"], &statements[2]["rows"][0]["inserted"]),
        (&4.into(), &1.into())
    );
    assert_eq!(
        (&statements[5]["error"]["line"], &statements[5]["error"]["column"]),
        (&7.into(), &3.into()),
        "{report}"
    );
    assert_eq!(
        (&statements[6]["state"], &report["blocked"][0]["relation"]),
        (&"not_run".into(), &"public.users".into())
    );
    let diff = &report["diff"]["databases"][0];
    assert_eq!(diff["schema"]["statements"].as_array().map(Vec::len), Some(2), "{report}");
    assert_eq!(rehearsals(), Vec::<String>::new());

    write("alter table users add column plan text default 'free';\nupdate users set plan = 'paid' where id = 7;\n");
    let people = house.ok(&["branch", "rehearse", file, "--from", "main", "--keep"]);
    for line in [
        "ACCESS EXCLUSIVE on public.users, held ",
        ": blocks reads and writes",
        "rows     public.users: 1 updated",
        "succeeded: 2 of 2 statements",
        "ALTER TABLE public.users ADD COLUMN plan",
        "~ id=7 plan: free -> paid",
    ] {
        assert!(people.contains(line), "{line} is not in\n{people}");
    }
    let kept = rehearsals();
    assert_eq!(kept.len(), 1);
    house.ok(&["branch", "delete", "--for-good", &kept[0]]);

    // What the statements did is told, though what is different afterwards cannot be: a row has a value that its type lost.
    write(
        "create type mood as enum ('good');\ncreate table moods (id int primary key, mood mood);\n\
         insert into moods values (1, 'good');\ndelete from pg_enum where enumtypid = 'mood'::regtype;\n",
    );
    let failed = house.ardent(&["--json", "branch", "rehearse", file]);
    failed.refused(1, &["what is different afterwards cannot be told"]);
    let report: serde_json::Value = serde_json::from_str(&failed.stdout).expect("one object");
    assert_eq!(
        (&report["succeeded"], &report["statements"][3]["state"], &report["diff"]),
        (&true.into(), &"done".into(), &serde_json::Value::Null),
        "{report}"
    );
    assert_eq!(rehearsals(), Vec::<String>::new());

    write("select 1;\n\\i other.sql\n");
    house.ardent(&["branch", "rehearse", file]).refused(2, &["line 2: \\i other.sql", "psql"]);
    house.ardent(&["branch", "rehearse", "nowhere.sql"]).refused(5, &["nowhere.sql", "standard input"]);
    write("select 1");
    house.ardent(&["branch", "rehearse", file, "--role", "nobody"]).refused(1, &["role nobody"]);
    write("select pg_sleep(600)");
    let running = house.background(&["branch", "rehearse", file]);
    wait_until("the rehearsal has a branch", 60, || (!rehearsals().is_empty()).then_some(()));
    running.interrupt();
    running.finish().refused(1, &["interrupted"]);
    assert_eq!(rehearsals(), Vec::<String>::new());
}

#[test]
fn chosen_rows_and_objects_are_applied_to_a_url_and_to_production_itself() {
    let production = TestPg::start(production_options());
    production.sql(
        "create table users (id int primary key, name text); insert into users select n, 'user ' || n from generate_series(1, 20) n;
         create table lines (a int, b text, v int, primary key (a, b)); insert into lines values (1, 'x,y', 1), (2, 'z', 1)",
    );
    let url = production.tcp_url("postgres", "postgres");
    let house = House::start();
    house.connect("main", &url);
    let branch = house.branch("work", "main");
    sql(
        &branch,
        "alter table users add column age int default 5; create index users_age on users (age); update users set name = 'changed', age = 6 where id in (2, 3);
         delete from users where id = 4; insert into users values (30, 'new', 7); update lines set v = 2",
    );
    let before = table_sums(&url);
    let people = house.ok(&["branch", "diff", "work", "--stat"]);
    for line in ["  column age of table public.users", "  index public.users_age of table public.users", "created"] {
        assert!(people.contains(line), "{line} is not in\n{people}");
    }

    let undo = house.data_dir().join("../undo.changes");
    let undo = undo.to_str().expect("a plain path");
    let apply =
        |more: &[&str]| house.json(&[&["branch", "apply", "work", "--to", &url, "--inverse", undo], more].concat());
    let counts = |reply: &serde_json::Value| {
        ["statements", "inserted", "updated", "deleted"].map(|field| reply[field].as_u64().unwrap_or(u64::MAX))
    };

    // Rows, by a key of one and of two columns.
    let rows = ["--row", "public.users:2", "--row", "users:4", "--row", "lines:1,\"x,y\""];
    let dry = apply(&[&rows[..], &["--dry-run"]].concat());
    assert_eq!((counts(&dry), dry["applied"].as_bool()), ([0, 0, 2, 1], Some(false)), "{dry}");
    assert_eq!(table_sums(&url), before);
    let done = apply(&rows);
    assert_eq!((counts(&done), done["applied"].as_bool()), ([0, 0, 2, 1], Some(true)), "{done}");
    assert!(done["notes"].to_string().contains("age"), "{done}");
    // All of it is there: nothing is done, what undoes the first time stays, and none is written.
    let idle = apply(&rows);
    assert_eq!((counts(&idle), &idle["inverse_file"]), ([0; 4], &serde_json::Value::Null), "{idle}");
    let none = house.data_dir().join("../none.changes");
    let to = ["branch", "apply", "work", "--to", &url, "--inverse", none.to_str().expect("a plain path")];
    let idle = house.ok(&[&to[..], &rows].concat());
    assert!(idle.contains("nothing is to be done; ") && !idle.contains("undo it"), "{idle}");
    assert!(!none.exists(), "an undo of nothing");
    assert_eq!(
        production.sql("select string_agg(id || name, ' ' order by id) from users where id in (2, 3, 4, 30)"),
        "2changed 3user 3"
    );
    assert_eq!(production.sql("select string_agg(v::text, ' ' order by a) from lines"), "2 1");
    house.ok(&["branch", "apply", undo, "--to", &url]);
    assert_eq!(table_sums(&url), before);

    // An object that needs another one.
    let index = ["--object", "index public.users_age of table public.users"];
    let refused = house.ardent(&[&["branch", "apply", "work", "--to", &url], &index[..]].concat());
    refused.refused(
        2,
        &["needs column age of table public.users", "--object 'column age of table public.users'", "--with-needed"],
    );
    let refused = house.ardent(&["branch", "apply", "work", "--to", "main", "--yes", "--row", "users:5"]);
    refused.refused(2, &["did not change row users:5", "ardent branch diff"]);
    assert_eq!(house.ardent(&["branch", "apply", "work", "--to", &url, "--row", "users"]).code, 2);
    assert_eq!(table_sums(&url), before);

    // Into production, by the connector; what it was made of the target's own is found out there.
    production.sql("update users set name = 'mine' where id = 3");
    let refused = house.ardent(&["branch", "apply", "work", "--to", "main", "--yes", "--row", "users:3"]);
    assert!(
        refused.code == 6 && refused.stdout.contains("name: was user 3, branch changed, target mine"),
        "{refused:?}"
    );
    let done = house.json(
        &[
            &[
                "branch",
                "apply",
                "work",
                "--to",
                "main",
                "--yes",
                "--with-needed",
                "--row",
                "users:30",
                "--inverse",
                undo,
            ],
            &index[..],
        ]
        .concat(),
    );
    assert_eq!(
        (counts(&done), done["taken_along"].to_string()),
        ([2, 1, 0, 0], "[\"column age of table public.users\"]".to_owned()),
        "{done}"
    );
    assert_eq!(production.sql("select name || age from users where id = 30"), "new7");
    assert_eq!(production.sql("select count(*) from users where age = 5 and name = 'mine'"), "1");
    house.ok(&["branch", "apply", undo, "--to", "main", "--yes"]);
    production.sql("update users set name = 'user 3' where id = 3");
    assert_eq!(table_sums(&url), before);
}

/// However an apply ends: where production was changed, the file that undoes it is whole.
#[test]
fn what_undoes_it_is_kept_before_production_commits() {
    let production = TestPg::start(production_options());
    production.sql(
        "create table notes (id int primary key, text text);
         insert into notes select n, md5(n::text) || md5('x' || n) || md5('y' || n) from generate_series(1, 5000) n",
    );
    let url = production.tcp_url("postgres", "postgres");
    let house = House::start();
    house.connect("main", &url);
    let branch = house.branch("work", "main");
    sql(&branch, "update notes set text = 'changed'");
    let (before, changed) = (table_sums(&url), table_sums(&branch));
    let path = |name: &str| house.data_dir().join(format!("../{name}")).display().to_string();
    let undo = path("undo.changes");
    let start = |to: &str, inverse: &str| {
        house.background(&["branch", "apply", "work", "--to", to, "--yes", "--inverse", inverse])
    };
    let undone = || {
        assert_eq!(table_sums(&url), changed);
        house.ok(&["branch", "apply", &undo, "--to", &url]);
        assert_eq!(table_sums(&url), before);
        fs::remove_file(&undo).expect("it is there");
    };

    // Nobody reads what it says.
    let unheard = |mut running: Background| {
        drop(running.errors());
        running.finish().code
    };
    for to in [url.as_str(), "main"] {
        assert_eq!(unheard(start(to, &undo)), 0);
        undone();
    }
    let no_branch = ["branch", "info", "nobody"];
    assert_eq!(unheard(house.background(&no_branch)), house.ardent(&no_branch).code);

    // A commit that waits for a standby which is not there: nobody has heard of it yet.
    let standby = |name: &str| {
        production.sql(&format!("alter system set synchronous_standby_names = '{name}'"));
        production.sql("select pg_reload_conf()");
    };
    let sessions = "from pg_stat_activity where application_name = 'ardent branch apply'";
    let commits = || {
        let waiting = production.sql(&format!("select count(*) {sessions} and wait_event = 'SyncRep'"));
        (waiting == "1").then_some(())
    };
    for to in [url.as_str(), "main"] {
        standby("nobody");
        let killed = start(to, &undo);
        wait_until("production commits", 120, commits);
        killed.kill();
        assert_eq!(killed.finish().code, -1);
        standby("");
        wait_until("production has committed", 60, || {
            (production.sql("select count(*) from notes where text = 'changed'") == "5000").then_some(())
        });
        undone();

        standby("nobody");
        let lost = start(to, &undo);
        wait_until("production commits", 120, commits);
        production.sql(&format!("select pg_terminate_backend(pid) {sessions}"));
        let to = if to == "main" { "--to main" } else { "--to URL" };
        lost.finish().refused(1, &["it is not known whether the target was changed", "--dry-run", &undo, to]);
        standby("");
        undone();
    }

    // Who goes before what undoes it is kept has changed nothing, and holds no lock on production.
    let pipe = path("pipe");
    assert_eq!(house.other("mkfifo", &[pipe.as_str()]).code, 0);
    let gone = start("main", &pipe);
    let _unread = File::open(&pipe).expect("it is opened by who writes it, too");
    wait_until("all but the commit is done", 120, || {
        let idle = "state = 'idle in transaction' and clock_timestamp() - state_change > '500 ms'";
        let waiting = production.sql(&format!("select count(*) {sessions} and {idle}"));
        (waiting == "1").then_some(())
    });
    gone.kill();
    assert_eq!(gone.finish().code, -1);
    wait_until("production is let go", 60, || {
        (production.sql(&format!("select count(*) {sessions}")) == "0").then_some(())
    });
    assert_eq!(table_sums(&url), before);
}
