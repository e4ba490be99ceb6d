//! What the server holds about a branch: who logs in, what it may change, what it can reach.

use std::net::TcpListener;

use ardent_test_pg::TestPg;
use ardent_tests::{House, is_chroot, production_options, sql, try_sql, wait_until};

/// The same connection string for another role.
fn as_role(url: &str, role: &str, password: &str) -> String {
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let (_, server) = rest.split_once('@').expect("a URL with a role");
    format!("{scheme}://{role}:{password}@{server}")
}

/// The error of a connection string that must not work.
fn refused(url: &str) -> String {
    try_sql(url, "select 1").expect_err("it was let in")
}

fn compute_state(house: &House, name: &str) -> String {
    house.json(&["branch", "info", name])["compute"].as_str().expect("a word").to_owned()
}

#[test]
fn roles_of_a_branch_log_in_also_while_it_is_asleep() {
    let production = TestPg::start(production_options());
    production.sql("create role app login password 'of-production'; create table t (n int)");
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let branch = house.branch("dev", "main");
    let denied = "password authentication failed";
    let error = refused(&as_role(&branch, "app", "of-production"));
    assert!(error.contains(denied), "nobody's password is production's: {error}");
    assert!(error.contains("ardent branch info dev --print-url"), "{error}");

    sql(&branch, "create role made login password 'one' in role pg_read_all_data");
    let one = as_role(&branch, "made", "one");
    assert_eq!(sql(&one, "select current_user"), "made", "at once");
    house.ok(&["branch", "suspend", "dev"]);
    assert!(refused(&as_role(&branch, "made", "wrong")).contains(denied));
    assert!(refused(&as_role(&branch, "app", "of-production")).contains(denied));
    assert_eq!(compute_state(&house, "dev"), "suspended", "a wrong password wakes nothing");
    assert_eq!(sql(&one, "select current_user"), "made", "after a wake");

    sql(
        &branch,
        "alter role app password 'on-the-branch'; alter role made password 'two'; create role gone login password 'x'",
    );
    sql(&branch, "create role late login password 'x' valid until '2001-01-01'; create role off login password 'x'");
    sql(&branch, "alter role off nologin; drop role gone; alter role made rename to renamed");
    house.ok(&["branch", "suspend", "dev"]);
    for (role, password) in [("made", "two"), ("renamed", "one"), ("gone", "x"), ("late", "x"), ("off", "x")] {
        assert!(refused(&as_role(&branch, role, password)).contains(denied), "{role}");
    }
    assert_eq!(compute_state(&house, "dev"), "suspended");
    assert_eq!(sql(&as_role(&branch, "renamed", "two"), "select current_user"), "renamed");
    assert_eq!(sql(&as_role(&branch, "app", "on-the-branch"), "select current_user"), "app");

    // Another branch of the same production knows nothing of all that, and neither does a branch of the branch.
    let child = house.branch("child", "dev");
    assert_eq!(sql(&child, "select count(*) from pg_roles where rolname = 'renamed'"), "1");
    assert!(refused(&as_role(&child, "renamed", "two")).contains(denied), "a password belongs to one branch");

    // The role of the printed URL, renamed and disabled.
    sql(&branch, "create role boss superuser login password 'boss'");
    let boss = as_role(&branch, "boss", "boss");
    sql(&boss, "alter role postgres rename to nobody_special; insert into t values (1)");
    let renamed = house.ok(&["branch", "info", "dev", "--print-url"]);
    assert!(renamed.contains("//nobody_special:"), "{renamed}");
    assert_eq!(sql(&renamed, "select current_user"), "nobody_special");
    sql(&boss, "alter role nobody_special nologin");
    house.ok(&["branch", "suspend", "dev"]);
    assert!(refused(&renamed).contains(denied));
    assert_eq!(sql(&boss, "select count(*) from t"), "1");
    let diff = house.json(&["branch", "diff", "dev"]);
    assert!(["\"t\"", "public.t"].iter().any(|name| diff.to_string().contains(name)), "{diff}");

    // A password set by SQL is not ours to print; a new one replaces it.
    let unknown = house.ardent(&["branch", "info", "dev", "--print-url", "--role", "boss"]);
    assert!(
        unknown.code == 6 && unknown.stderr.contains("ardent branch password dev --role boss"),
        "{}",
        unknown.stderr
    );
    let new = house.ok(&["branch", "password", "dev", "--role", "boss"]);
    assert_eq!(sql(&new, "select current_user"), "boss");
    assert!(refused(&boss).contains(denied));
}

#[test]
fn policies_are_set_shown_held_and_lifted() {
    let production = TestPg::start(production_options());
    production.sql("create table t (n int primary key); insert into t select generate_series(1, 1000)");
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));

    // Its time passes while the others are looked at.
    let brief = house.ok(&["branch", "create", "brief", "--expires", "10s", "--print-url"]);
    assert_eq!(sql(&brief, "select 1"), "1");

    let url = house.ok(&["branch", "create", "ro", "--read-only", "--statement-timeout", "700ms", "--print-url"]);
    let error = try_sql(&url, "set default_transaction_read_only = off; delete from t").expect_err("read-only");
    assert!(error.contains("read-only") && error.contains("ardent branch policy ro --read-only off"), "{error}");
    let error = try_sql(&url, "set statement_timeout = 0; select pg_sleep(30)").expect_err("too long");
    let next = "ardent branch policy ro --statement-timeout";
    assert!(error.contains("statement-timeout 700 ms") && error.contains(next), "{error}");
    assert_eq!(sql(&url, "select count(*) from t"), "1000");
    let info = house.json(&["branch", "info", "ro"]);
    assert_eq!((&info["read_only"], &info["statement_timeout_ms"]), (&true.into(), &700.into()));
    let diff = house.json(&["branch", "diff", "ro"]);
    assert_eq!(diff["databases"].as_array().map(Vec::len), Some(0), "{diff}");
    // Writing goes on on a branch of it, and on itself once that is allowed.
    let child = house.branch("child", "ro");
    sql(&child, "delete from t where n = 1");
    house.ok(&["branch", "policy", "ro", "--read-only", "off", "--statement-timeout", "none"]);
    sql(&url, "delete from t where n = 2; select pg_sleep(0.8)");

    let url = house.ok(&["branch", "create", "few", "--max-rows-changed", "10", "--print-url"]);
    sql(&url, "delete from t where n <= 6");
    let error = try_sql(&url, "update t set n = n + 10000").expect_err("too many");
    assert!(error.contains("max-rows-changed 10") && error.contains("ardent branch diff few"), "{error}");
    assert_eq!(sql(&url, "select count(*), max(n) from t"), "994|1000");
    wait_until("the count is known", 30, || {
        let info = house.json(&["branch", "info", "few"]);
        (info["rows_changed"].as_u64() > Some(10)).then_some(())
    });
    house.ok(&["branch", "suspend", "few"]);
    assert!(try_sql(&url, "delete from t where n = 7").is_err(), "also after a rest");
    house.ok(&["branch", "policy", "few", "--max-rows-changed", "5000"]);
    sql(&url, "delete from t where n = 7");
    assert!(house.ok(&["branch", "policy", "few"]).contains("max-rows-changed"));

    let url = house.ok(&["branch", "create", "small", "--max-bytes-written", "4MB", "--print-url"]);
    let error =
        try_sql(&url, "create table big as select n, repeat(md5(n::text), 50) from generate_series(1, 50000) n");
    assert!(error.expect_err("too much").contains("max-bytes-written 4194304"));
    assert_eq!(sql(&url, "select count(*) from t"), "1000");

    wait_until("the password expires", 30, || try_sql(&brief, "select 1").is_err().then_some(()));
    let new = house.ok(&["branch", "info", "brief", "--print-url"]);
    assert_ne!(new, brief);
    assert_eq!(sql(&new, "select 1"), "1");
}

#[test]
fn a_branch_reaches_neither_production_nor_what_production_works_with() {
    let production = TestPg::start(
        production_options()
            .set("archive_mode", "on")
            .set("archive_command", "true")
            .set("max_logical_replication_workers", "4"),
    );
    production.sql("create extension dblink; create extension postgres_fdw; create table t (n int)");
    production
        .sql("create subscription s connection 'host=127.0.0.1 port=1 dbname=x' publication p with (connect = false)");
    production.sql("alter subscription s enable");
    let house = House::start();
    let production_url = production.tcp_url("postgres", "postgres");
    house.connect("main", &production_url);
    let branch = house.branch("one", "main");
    let other = house.branch("two", "main");
    sql(&other, "select 1");

    // Nothing that production does towards others goes on here.
    assert_eq!(sql(&branch, "show archive_mode"), "off");
    assert_eq!(
        sql(&branch, "select count(*) from pg_stat_activity where backend_type like 'logical replication%'"),
        "0"
    );
    assert_eq!(sql(&branch, "select subenabled from pg_subscription"), "t", "though it is still switched on");
    for setting in ["archive_mode", "max_logical_replication_workers", "listen_addresses", "archive_command"] {
        let _ = try_sql(&branch, &format!("alter system set {setting} = default"));
    }
    house.ok(&["branch", "suspend", "one"]);
    assert_eq!(sql(&branch, "show archive_mode"), "off");
    assert_eq!(
        sql(&branch, "select count(*) from pg_stat_activity where backend_type like 'logical replication%'"),
        "0"
    );

    // To production, through what Postgres has for that.
    let error = try_sql(&branch, &format!("select dblink_connect('{production_url}')")).expect_err("no network");
    assert!(error.contains("could not establish connection"), "{error}");
    let (_, address) = production_url.split_once("127.0.0.1:").expect("a TCP address");
    let port: u16 = address.split('/').next().and_then(|port| port.parse().ok()).expect("a port");
    let fdw = format!(
        "create server prod foreign data wrapper postgres_fdw options (host '127.0.0.1', port '{port}', dbname 'postgres');
         create user mapping for current_user server prod options (user 'postgres');
         create foreign table far (n int) server prod options (table_name 't');
         select * from far"
    );
    let error = try_sql(&branch, &fdw).expect_err("no network");
    assert!(error.contains("could not connect to server"), "{error}");

    // Everything else goes on.
    assert_eq!(sql(&other, "select 1"), "1");
    house.ok(&["branch", "suspend", "one"]);
    assert_eq!(sql(&branch, "select 1"), "1");
    assert_eq!(production.sql("select count(*) from t"), "0");
}

/// Runs a shell command on the compute; gives what it printed, in one line.
fn shell(url: &str, command: &str) -> String {
    let quoted = command.replace('\'', "''");
    sql(
        url,
        &format!(
            "set client_min_messages = error; drop table if exists out; create unlogged table out (line text);
             copy out from program '{{ {quoted}; }} 2>&1 || true' with (format csv, delimiter e'\\x01', quote e'\\x02');
             select coalesce(string_agg(line, ' '), '') from out"
        ),
    )
}

#[test]
fn a_crash_leaves_unlogged_tables_empty_and_usable_and_settings_as_they_were() {
    let production = TestPg::start(production_options());
    production.sql("create unlogged table u (id int primary key); insert into u values (1)");
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let branch = house.branch("one", "main");
    assert_eq!(sql(&branch, "select count(*) from u"), "0", "as after a crash");
    sql(&branch, "insert into u values (2)");
    sql(&branch, "alter system set work_mem = '7MB'");
    house.ok(&["branch", "suspend", "one"]);
    assert_eq!(sql(&branch, "select count(*) from u where id = 2"), "1", "a clean rest keeps them");
    let _ = try_sql(&branch, "copy (select 1) to program 'kill -9 $PPID; sleep 5'");
    wait_until("Postgres is started again", 60, || try_sql(&branch, "select 1").ok());
    assert_eq!(sql(&branch, "select count(*) from u"), "0");
    sql(&branch, "insert into u values (3)");
    assert_eq!(sql(&branch, "set enable_seqscan = off; select id from u where id = 3"), "3");
    assert_eq!(sql(&branch, "show work_mem"), "7MB");
}

#[test]
fn an_unprivileged_user_runs_it_all_in_a_sandbox() {
    let production = TestPg::start(production_options());
    production.sql("create table t (n int); insert into t select generate_series(1, 10)");
    let mut house = House::prepare_unprivileged();
    if is_chroot() {
        // The kernel makes no user namespaces there. That is said, and nobody runs without a sandbox who has not asked for that.
        let (listen, api) = house.ports();
        let arguments = house.up_arguments(listen, api);
        let arguments: Vec<&str> =
            arguments.iter().map(String::as_str).filter(|argument| *argument != "--no-sandbox").collect();
        house.ardent(&arguments).refused(2, &["computes cannot be confined", "this is a chroot", "--no-sandbox"]);
        return;
    }
    house.up();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let branch = house.branch("one", "main");
    sql(&branch, "insert into t values (11)");
    assert_eq!(shell(&branch, "ls -A /home /root /var/lib 2>&1 | grep -c 'No such file'"), "3");
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bound");
    let port = listener.local_addr().expect("bound").port();
    let dialled = shell(&branch, &format!("bash -c \"(exec 3<>/dev/tcp/127.0.0.1/{port}) && echo connected\""));
    assert!(dialled.contains("refused"), "{dialled}");
    house.ok(&["branch", "suspend", "one"]);
    assert_eq!(sql(&branch, "select count(*) from t"), "11");
    listener.set_nonblocking(true).expect("set");
    assert!(listener.accept().is_err(), "nobody came");
}

/// Statements and outcomes of a branch's log.
fn log(house: &House, arguments: &[&str]) -> Vec<(String, String)> {
    let document = house.json(&[&["branch", "log", "dev"], arguments].concat());
    let word = |entry: &serde_json::Value, field: &str| entry[field].as_str().expect("a word").to_owned();
    let entries = document["entries"].as_array().expect("entries");
    entries.iter().map(|entry| (word(entry, "statement"), word(entry, "outcome"))).collect()
}

#[test]
fn what_a_branch_ran_is_recorded_and_rows_are_traced_to_statements() {
    let production = TestPg::start(production_options());
    production.sql("create table users (id int primary key, name text); insert into users select n, 'old' from generate_series(1, 9) n");
    production
        .sql("create table parts (a int, b text, c int, primary key (a, b)); insert into parts values (7, 'x,y', 0)");
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let branch = house.branch("dev", "main");
    sql(&branch, "set application_name = 'agent-7'; update users set name = 'one' where id = 2");
    let failing = "begin; update users set name = 'gone' where id = 3; savepoint s; select * from missing";
    assert!(try_sql(&branch, failing).is_err());
    assert!(try_sql(&branch, "select 1 from").is_err());
    sql(&branch, "create role bob login password 'hunter2'; do $$ begin perform 1; update parts set c = 1; end $$");
    let several = "insert into users values (10, 'a'); update users set name = 'b' where id = 1; savepoint s;
        update users set name = 'lost' where id = 4; rollback to s; update users set name = 'c' where id = 1";
    sql(&branch, &format!("begin; {several}; commit"));

    let expect = [
        ("set application_name = 'agent-7'", "committed"),
        ("update users set name = 'one' where id = 2", "committed"),
        ("begin", "rolled_back"),
        ("update users set name = 'gone' where id = 3", "rolled_back"),
        ("savepoint s", "rolled_back"),
        ("begin; update users set name = 'gone' where id = 3; savepoint s; select * from missing", "failed"),
        ("select 1 from", "failed"),
        ("create role bob login password '***'", "committed"),
        ("do $$ begin perform 1; update parts set c = 1; end $$", "committed"),
        ("begin", "committed"),
        ("insert into users values (10, 'a')", "committed"),
        ("update users set name = 'b' where id = 1", "committed"),
        ("savepoint s", "committed"),
        ("update users set name = 'lost' where id = 4", "rolled_back"),
        ("rollback to s", "committed"),
        ("update users set name = 'c' where id = 1", "committed"),
        ("commit", "committed"),
    ];
    let expect: Vec<(String, String)> = expect.map(|(text, outcome)| (text.to_owned(), outcome.to_owned())).into();
    assert_eq!(log(&house, &["--role", "postgres"]), expect);
    house.ok(&["branch", "suspend", "dev"]);
    assert_eq!(log(&house, &["--role", "postgres", "--all"]), expect, "also while it sleeps");
    assert_eq!(compute_state(&house, "dev"), "suspended");
    assert_eq!(log(&house, &["--failed", "--limit", "1"]), expect[6..7]);
    assert_eq!(log(&house, &["--application", "AGENT-7"]), expect[..2]);
    // Where the client was: this host, whatever it says itself.
    assert_eq!(log(&house, &["--client", "127.0.0.1", "--role", "postgres", "--all"]), expect);
    assert_eq!(log(&house, &["--client", "192.0.2.1"]), []);
    let entry = &house.json(&["branch", "log", "dev", "--limit", "1"])["entries"][0];
    assert!(entry["client_address"].as_str().is_some_and(|address| address.starts_with("127.0.0.1:")), "{entry}");
    let lines = house.ok(&["branch", "log", "dev", "--grep", "missing", "--ndjson"]);
    assert!(lines.contains("\"sqlstate\":\"42P01\"") && lines.contains("\"type\":\"end\""), "{lines}");
    let table = house.ok(&["branch", "log", "dev", "--writes"]);
    assert!(table.contains("STATEMENT") && table.contains("agent-7") && !table.contains("hunter2"), "{table}");

    let blame = |branch: &str, table: &str, key: &str| house.json(&["branch", "blame", branch, table, key]);
    let text = |reply: &serde_json::Value| reply["statements"][0]["statement"].as_str().unwrap_or_default().to_owned();
    for (table, key, statement) in [
        ("users", "2", &expect[1].0),
        ("public.users", "1", &expect[15].0),
        ("users", "10", &expect[10].0),
        ("parts", "7,\"x,y\"", &expect[8].0),
    ] {
        let reply = blame("dev", table, key);
        assert_eq!((reply["found"].as_str(), &text(&reply)), (Some("statement"), statement), "{table} {key}: {reply}");
    }
    assert_eq!(blame("dev", "users", "3")["found"], "unchanged", "that was rolled back");
    let missing = house.ardent(&["branch", "blame", "dev", "users", "77"]);
    assert!(missing.code == 5 && missing.stderr.contains("has no row 77"), "{}", missing.stderr);
    house.branch("child", "dev");
    let reply = blame("child", "users", "2");
    assert_eq!((reply["on_branch"].as_str(), text(&reply)), (Some("dev"), expect[1].0.clone()), "{reply}");

    house.ok(&["branch", "delete", "child"]);
    house.ok(&["branch", "reset", "dev"]);
    sql(&branch, "update users set name = 'again' where id = 5");
    assert_eq!(log(&house, &["--role", "postgres"]).len(), expect.len() + 1, "the log stays with the branch");
    assert_eq!(
        blame("dev", "users", "2")["found"],
        "unchanged",
        "the new history has another transaction of that number"
    );
    assert_eq!(text(&blame("dev", "users", "5")), "update users set name = 'again' where id = 5");
    assert_eq!(text(&blame("dev", "public.\"users\"", "5")), "update users set name = 'again' where id = 5");
}
