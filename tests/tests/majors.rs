//! The whole job in short for productions of other majors, side by side with one of 15 in the same server.
//!
//! The other tests of this crate are its long form, with `ARDENT_TEST_MAJOR`: `make test-full AREA=majors`.

use std::path::Path;

use ardent_test_pg::{StopMode, TestPg, bin_dir_of, clients_dir_of, other_majors, server_command, temp_dir};
use ardent_tests::{
    House, Ledger, Load, Process, in_database, pg_program, production_options, sql, table_sums, wait_until,
};
use serde_json::json;

const SHOP: &str = "
    create table customers (id int primary key, name text, mail text unique);
    insert into customers select n, 'customer ' || n, n || '@example.com' from generate_series(1, 3000) n;
    create index on customers (lower(name));
    create table documents (id int generated always as identity primary key, body text);
    alter table documents alter body set storage external;
    insert into documents (body) select repeat(md5(n::text), 300) from generate_series(1, 200) n;
    create unlogged table scratch as select generate_series(1, 100) n;
    create materialized view initials as select left(name, 1) as letter, count(*) from customers group by 1;
    update customers set name = name || '!' where id % 10 = 0;
    delete from customers where id between 100 and 150";

/// What a branch's users can do to every session, those of Ardent among them, since 17.
const AGAINST_ARDENT: &str = "
    create function turn_away() returns event_trigger language plpgsql as $$
        begin
            if current_setting('application_name') in ('ardent agent', 'ardent diff') then raise 'not you'; end if;
        end $$;
    create event trigger turn_away on login execute function turn_away()";

/// A production of one major and the branches of it.
struct Shop {
    major: u32,
    production: TestPg,
}

impl Shop {
    fn open(major: u32) -> Shop {
        let production = TestPg::start(production_options().major(major));
        production.sql(SHOP);
        production.sql(Ledger::TABLE);
        Shop { major, production }
    }

    fn root(&self) -> String {
        format!("shop-{}", self.major)
    }

    fn url(&self) -> String {
        self.production.tcp_url("postgres", "postgres")
    }

    fn connect(&self, house: &House) {
        house.connect(&self.root(), &self.url());
    }

    /// A branch, which runs the same major and holds the same rows.
    fn branch(&self, house: &House) -> String {
        let branch = house.branch(&format!("copy-{}", self.major), &self.root());
        let version = sql(&branch, "show server_version_num");
        assert_eq!(version, self.production.sql("show server_version_num"));
        assert!(version.starts_with(&self.major.to_string()), "{version}");
        assert_eq!(table_sums(&branch), table_sums(&self.url()));
        branch
    }
}

#[test]
fn the_whole_job_for_each_other_major_beside_15() {
    let majors = other_majors();
    let mut house = majors.iter().fold(House::prepare(), |house, &major| house.with_server_of(major));
    house.up();
    let old = Shop::open(15);
    sorted_otherwise(&old.production);
    old.connect(&house);
    let old_branch = old.branch(&house);
    indexes_are_made_anew_where_texts_sort_otherwise(&house, &old);
    for major in majors {
        let name = format!("{major}={}", bin_dir_of(major).display());
        let found = house.ok(&["doctor", "--pg-bin", &name]);
        for check in [format!("ok       postgres_{major}:"), format!("ok       compute_library_{major}:")] {
            assert!(found.contains(&check), "{check} is not in\n{found}");
        }
        let new = Shop::open(major);
        the_whole_job(&house, &new);
        // A production that was taken to a new major is another cluster: it is imported beside the old one.
        let to_new = ["connector", "move", &old.root(), &new.url()];
        house.ardent(&to_new).refused(1, &["another cluster", "--name OTHER"]);
        assert_eq!(sql(&old_branch, "insert into scratch values (1); select count(*) from scratch"), "1");
        sql(&old_branch, "truncate scratch");
    }
}

/// From 16 to 18, the majors that there is a `pg_upgrade` for: where both are tested. (15.20 gives columns an option, `pg_attver`, which none of
/// the later majors' servers that tests may fetch knows: `pg_upgrade` fails.)
#[test]
fn a_production_that_pg_upgrade_takes_to_a_new_major_is_imported_beside_the_old_one() {
    let (from, to) = (16, 18);
    let majors = other_majors();
    if !(majors.contains(&from) && majors.contains(&to)) {
        return;
    }
    let mut house = House::prepare().with_server_of(from).with_server_of(to);
    house.up();
    let mut old = Shop::open(from);
    old.connect(&house);
    let old_branch = old.branch(&house);
    let sums = table_sums(&old.url());
    old.production.stop(StopMode::Fast);

    let mut upgraded = TestPg::start(production_options().major(to).initdb_arg("--no-data-checksums"));
    upgraded.stop(StopMode::Fast);
    upgrade(&old.production, &upgraded);
    upgraded.start_server();
    let new = Shop { major: to, production: upgraded };
    house.ardent(&["connector", "move", &old.root(), &new.url()]).refused(1, &["another cluster", "--name OTHER"]);
    new.connect(&house);
    let branch = new.branch(&house);
    assert_eq!(table_sums(&branch), sums);
    // What was made of the old one stays, and more can be made of its last state.
    sql(&old_branch, "insert into scratch values (1000)");
    assert_eq!(sql(&old_branch, "select max(n) from scratch"), "1000");
    house.ardent(&["branch", "create", "late", "--from", &old.root()]).refused(1, &["--at latest"]);
    let last = house.ok(&["branch", "create", "last", "--from", &old.root(), "--at", "latest", "--print-url"]);
    assert_eq!(table_sums(&last), sums);
    house.stop();
}

/// Runs the new major's `pg_upgrade` from one stopped server's folder to another's.
fn upgrade(old: &TestPg, new: &TestPg) {
    let folder = temp_dir();
    let programs = |major: u32| {
        let all = folder.path().join(major.to_string());
        std::fs::create_dir(&all).expect("a folder can be made");
        for dir in [bin_dir_of(major), clients_dir_of(major)] {
            for entry in std::fs::read_dir(dir).expect("programs can be listed") {
                let path = entry.expect("an entry").path();
                let link = all.join(path.file_name().expect("it has a name"));
                if !link.exists() {
                    std::os::unix::fs::symlink(&path, link).expect("a link can be made");
                }
            }
        }
        all
    };
    let done = server_command(clients_dir_of(new.major()).join("pg_upgrade"))
        .current_dir(folder.path())
        .arg("--old-bindir")
        .arg(programs(old.major()))
        .arg("--new-bindir")
        .arg(programs(new.major()))
        .arg("--old-datadir")
        .arg(old.data_dir())
        .arg("--new-datadir")
        .arg(new.data_dir())
        .args(["--username", "postgres", "--no-sync"])
        .output()
        .expect("pg_upgrade can be run");
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    // It says which of its logs holds the cause.
    let log = said.split('"').find(|text| text.ends_with(".log")).and_then(|path| std::fs::read_to_string(path).ok());
    assert!(done.status.success(), "{said}\n{}", log.unwrap_or_default());
}

fn what_it_ran_is_known(house: &House, name: &str) {
    let failed = house.json(&["branch", "log", name, "--failed", "--limit", "1"]);
    assert_eq!(failed["entries"], json!([]), "{failed}");
    let log = house.json(&["branch", "log", name, "--grep", "documents set body"]);
    let entry = &log["entries"][0];
    assert_eq!((&entry["rows"], &entry["outcome"]), (&67.into(), &"committed".into()), "{log}");
    let blame = house.json(&["branch", "blame", name, "documents", "3"]);
    assert_eq!(
        (&blame["found"], &blame["statements"][0]["statement"]),
        (&"statement".into(), &entry["statement"]),
        "{blame}"
    );
}

/// A database as a host leaves it whose ICU was exchanged: the index is in the order of another version than searches.
fn sorted_otherwise(production: &TestPg) {
    production.sql("create database sorted template template0 locale_provider icu icu_locale 'en' locale 'C'");
    production.sql_in(
        "sorted",
        "create collation changed (provider = icu, locale = 'en');
         create table words (id int primary key, word text collate changed, plain text, code text collate \"C\");
         insert into words select n, chr(97 + n % 26) || (array['ä', 'å', 'ö', 'z', 'a'])[n % 5 + 1] || n, 'p' || n, 'c' || n
             from generate_series(1, 500) n;
         create index words_word on words (word);
         create index words_plain on words (plain);
         create index words_code on words (code);
         create index words_pattern on words (plain text_pattern_ops);
         update pg_collation set colliculocale = 'sv', collversion = '1.0' where collname = 'changed';
         update pg_database set datcollversion = '1.0' where datname = 'sorted'",
    );
}

/// Whether a database of a branch is clean, and what was said of it.
fn amcheck(branch: &str, database: &str) -> (bool, String) {
    let checked = pg_program("pg_amcheck")
        .args(["--install-missing", "--heapallindexed", &in_database(branch, database)])
        .output()
        .expect("pg_amcheck can be run");
    (checked.status.success(), String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned())
}

fn indexes_are_made_anew_where_texts_sort_otherwise(house: &House, old: &Shop) {
    let report = house.json(&["connector", "preflight", "postgresql", &old.url()]);
    let checks = report["checks"].as_array().expect("a list");
    let check = checks.iter().find(|check| check["name"] == "collation_version").expect("it is looked at");
    assert_eq!(check["outcome"], "warning", "{check}");
    let said = check.to_string();
    for words in ["database sorted", "public.changed", "public.words_word", "the default", "public.words_plain"] {
        assert!(said.contains(words), "{words} is not in {said}");
    }
    assert!(!said.contains("words_code") && !said.contains("words_pattern"), "{said}");

    let told = house.ardent(&["branch", "create", "sorted", "--from", &old.root()]);
    assert!(told.code == 0 && told.stderr.contains("--reindex-collations"), "{told:?}");
    let branch = house.ok(&["branch", "info", "sorted", "--print-url"]);
    let (clean, said) = amcheck(&branch, "sorted");
    assert!(!clean && said.contains("words_word"), "{said}");
    let mended = house.json(&["branch", "create", "sorted", "--from", &old.root(), "--reindex-collations"]);
    let reindexed = &mended["reindexed"][0];
    assert_eq!(reindexed["indexes"], json!(["public.words_plain", "public.words_word"]), "{mended}");
    let (clean, said) = amcheck(&branch, "sorted");
    assert!(clean, "{said}");
    let again = house.json(&["branch", "create", "sorted", "--from", &old.root(), "--reindex-collations"]);
    assert_eq!(again["reindexed"], json!([]), "{again}");
    house.ok(&["branch", "delete", "sorted"]);
}

/// Production ends transactions that last longer than a second, since 17, and this one waits longer than that for a lock.
fn apply_in_spite_of_locks_and_timeouts(house: &House, shop: &Shop, changes: &str, undo: &str) {
    if shop.major >= 17 {
        shop.production.sql("alter database postgres set transaction_timeout = '1s'");
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let unhurried = if shop.major >= 17 { "set transaction_timeout = 0; " } else { "" };
            shop.production
                .sql(&format!("{unhurried}begin; select 1 from customers limit 1; select pg_sleep(3); commit"));
        });
        wait_until("the lock is held", 30, || {
            let held = shop.production.sql(
                "select count(*) from pg_locks where relation = 'customers'::regclass and granted and pid <> pg_backend_pid()",
            );
            (held != "0").then_some(())
        });
        house.ok(&["branch", "apply", changes, "--to", &shop.url(), "--inverse", undo]);
    });
    if shop.major >= 17 {
        shop.production.sql("alter database postgres reset transaction_timeout");
    }
}

/// A trigger that looks before it writes keeps no query of an agent's out; one that does not is named.
fn queries_in_spite_of_login_triggers(house: &House, name: &str, branch: &str) {
    let mut mcp = house.mcp(&[], None);
    let count = json!({ "branch": name, "sql": "select count(*) >= 0 from logins" });
    sql(
        branch,
        "create table logins (at timestamptz);
         create function note() returns event_trigger language plpgsql as $$ begin
             if current_setting('transaction_read_only') = 'off' then insert into logins values (now()); end if;
         end $$;
         create event trigger note on login execute function note()",
    );
    assert_eq!(mcp.ok("query", count.clone())["rows"], json!([["t"]]));
    sql(
        branch,
        "create or replace function note() returns event_trigger language plpgsql as
             $$ begin insert into logins values (now()); end $$",
    );
    let error = mcp.refused("query", count.clone());
    assert!(error["message"].as_str().is_some_and(|message| message.contains("login event trigger")), "{error}");
    mcp.ok("execute", json!({ "branch": name, "sql": "alter event trigger note disable" }));
    assert_eq!(mcp.ok("query", count)["rows"], json!([["t"]]));
}

/// A summarizer would keep a server from being stopped in time.
fn what_17_can_summarize_is_off(house: &House, name: &str, branch: &str) {
    sql(branch, "alter system set summarize_wal = on");
    sql(branch, "select pg_reload_conf()");
    sql(branch, "create table after_it as select 1 as n");
    assert_eq!(sql(branch, "show summarize_wal"), "off");
    house.ok(&["branch", "suspend", name]);
    assert_eq!(sql(branch, "select n from after_it"), "1");
}

fn the_whole_job(house: &House, shop: &Shop) {
    // Import under load, and following.
    let made = pg_program("pgbench").args(["-i", "-q", "-d"]).arg(shop.production.socket_url("postgres")).output();
    assert!(made.expect("pgbench can be run").status.success());
    let load = Load::start(&shop.production, "postgres");
    shop.connect(house);
    shop.production.sql("insert into documents (body) select repeat('late', 3000)");
    shop.production.sql("vacuum analyze customers");
    load.stop(&shop.production);
    let branch = shop.branch(house);
    let name = format!("copy-{}", shop.major);
    assert_eq!(sql(&branch, "select count(*) from scratch"), "0", "an unlogged table is empty, as after a crash");
    let checked = pg_program("pg_amcheck")
        .args(["--all", "--install-missing", "--heapallindexed", "--maintenance-db", &branch])
        .output()
        .expect("pg_amcheck can be run");
    let said = [checked.stdout, checked.stderr].concat();
    assert!(checked.status.success(), "pg_amcheck: {}", String::from_utf8_lossy(&said));

    // Commits are not lost with their compute.
    let ledger = Ledger::start(&branch);
    ledger.wait_for_more();
    house.kill_one("the compute's postmaster", |process| {
        Process::is_postmaster(process) && process.command.contains(&bin_dir_of(shop.major).display().to_string())
    });
    ledger.wait_for_more();
    let acknowledged = ledger.finish();
    acknowledged.check(&branch);

    // Asleep and awake, warm and cold.
    sql(
        &branch,
        "update documents set body = repeat('branch', 1000) where id % 3 = 0; delete from customers where id < 50",
    );
    what_it_ran_is_known(house, &name);
    let before = table_sums(&branch);
    for cold in [false, true] {
        house.ok(&["branch", "suspend", &name]);
        if cold {
            // Those of the majors before are awake, too.
            for branch in house.json(&["branch", "list"])["branches"].as_array().expect("a list") {
                if branch["parent"].is_string() {
                    house.ok(&["branch", "suspend", branch["name"].as_str().expect("a name")]);
                }
            }
            house.throw_computes_away();
        }
        assert_eq!(table_sums(&branch), before, "cold: {cold}");
    }

    // A branch of the branch is apart from it.
    let child = house.branch(&format!("child-{}", shop.major), &name);
    assert_eq!(table_sums(&child), before);
    sql(&child, "delete from customers; create index on documents (id)");
    assert_eq!(table_sums(&branch), before);
    if shop.major >= 17 {
        queries_in_spite_of_login_triggers(house, &format!("child-{}", shop.major), &child);
        what_17_can_summarize_is_off(house, &format!("child-{}", shop.major), &child);
    }

    // What was changed is shown, brought into production, and taken back.
    sql(
        &branch,
        "truncate ledger; alter table customers rename column mail to email; alter table customers add column age int not null default 5;
         alter table documents add column size int generated always as (length(body)) stored; create view adults as select * from customers where age > 17;
         update customers set name = 'changed' where id = 777; insert into customers values (9000, 'new', 'new@x', 18)",
    );
    if shop.major >= 17 {
        sql(&branch, AGAINST_ARDENT);
    }
    let shown = house.ok(&["branch", "diff", &name]);
    for line in ["ALTER TABLE public.customers RENAME COLUMN mail TO email;", "name: 'customer 777' -> changed"] {
        assert!(shown.contains(line), "{line} is not in\n{shown}");
    }
    let file = |kind: &str| format!("{}/../{kind}-{}.changes", house.data_dir().display(), shop.major);
    let (changes, undo) = (file("work"), file("undo"));
    house.ok(&["branch", "diff", &name, "-o", &changes]);
    assert!(Path::new(&changes).exists());
    let production_before = table_sums(&shop.url());
    apply_in_spite_of_locks_and_timeouts(house, shop, &changes, &undo);
    let without_view =
        |sums: String| sums.lines().filter(|line| !line.starts_with("initials")).collect::<Vec<_>>().join("\n");
    assert_eq!(without_view(table_sums(&shop.url())), without_view(table_sums(&branch)));
    house.ok(&["branch", "apply", &undo, "--to", &shop.url()]);
    assert_eq!(table_sums(&shop.url()), production_before);
}
