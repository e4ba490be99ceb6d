//! Policies and roles: what the agent holds and tells, whatever a superuser does inside.

use std::time::{Duration, Instant};

use ardent_api::compute::ComputeSpec;
use ardent_api::policy::BranchPolicy;
use ardent_test_pg::TestPgOptions;

use crate::rig::{Agent, Client, DEADLINE, World};

const SOURCE: &str =
    "create table t (id int primary key, v text); insert into t select i, 'v' from generate_series(1, 1000) i;
    create sequence s; create role reader login password 'production''s'";

async fn world() -> World {
    World::new(TestPgOptions::default().set("max_prepared_transactions", "5"), SOURCE).await
}

fn with_policy(world: &World, policy: BranchPolicy) -> ComputeSpec {
    ComputeSpec { policy, ..world.spec() }
}

/// Runs `sql`, which must fail; gives SQLSTATE, message, detail and hint.
async fn refused(client: &Client, sql: &str) -> (String, String) {
    let error = client.sql(sql).await.err().unwrap_or_else(|| panic!("{sql} was not refused"));
    let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}"));
    let text = [Some(error.message()), error.detail(), error.hint()].into_iter().flatten().collect::<Vec<_>>();
    (error.code().code().to_owned(), text.join(" / "))
}

async fn names_the_policy(client: &Client, sql: &str, code: &str, policy: &str) {
    let (found, text) = refused(client, sql).await;
    assert_eq!(found, code, "{sql}: {text}");
    assert!(text.contains("policy") && text.contains(policy) && text.contains("ardent branch policy"), "{sql}: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_branch_takes_no_change_from_its_superuser() {
    let world = world().await;
    let policy = BranchPolicy { read_only: true, ..BranchPolicy::default() };
    let mut agent = world.start_with(with_policy(&world, policy)).await;
    let client = agent.connect().await;
    for sql in [
        "insert into t values (0, 'x')",
        "begin read write; delete from t; commit",
        "set default_transaction_read_only = off; set transaction_read_only = off; update t set v = 'x'",
        "with gone as (delete from t returning 1) select count(*) from gone",
        "create table u (i int)",
        "create temp table u (i int)",
        "select nextval('s')",
        "select * from t for update",
        "select lo_create(4711)",
        "truncate t",
        "drop table t",
        "vacuum t",
        "reindex table t",
        "do $$ begin insert into t values (0, 'x'); end $$",
        "copy t from program 'echo 0,x' csv",
    ] {
        let _ = client.sql("rollback").await;
        let (code, text) = refused(&client, sql).await;
        let named = text.contains("read-only") && text.contains("ardent branch policy");
        assert!(code == "25006" && named, "{sql}: {code} {text}");
    }
    client.sql("rollback").await.expect("no transaction is fine");
    assert_eq!(client.sql("select count(*) from t where v = 'v'").await.expect("reads"), "1000");
    assert_eq!(client.sql("select sum(id) from t group by v").await.expect("reads"), "500500");
    drop(client);
    let (clean, end) = agent.stop(DEADLINE).await;
    assert!(clean);
    world.check_wal(end.expect("clean"));
    assert_eq!(world.recover().sql("select count(*), min(id) from t"), "1000|1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_asked_to_read_leaves_nothing_behind() {
    let world = world().await;
    let mut agent = world.start_with(world.spec()).await;
    let other = agent.connect().await;
    for sql in [
        "create extension dblink; create extension pg_surgery; create extension file_fdw",
        "create function writes() returns int language plpgsql as $$ begin delete from t; return 1; end $$",
        "create function runs() returns int language plpgsql as $$ begin copy t to program 'cat > /tmp/gone'; return 1; end $$",
        "create function as_owner() returns int security definer language sql as $$ delete from t returning 1 $$",
        "create function ends(pid int) returns bool language plpgsql as $$ declare x bool; begin x := pg_terminate_backend(pid); return x; end $$",
        "create procedure commits() language plpgsql as $$ begin commit; delete from t; end $$",
        "insert into t values (-1, lo_from_bytea(4711, 'x')::text)",
    ] {
        other.sql(sql).await.expect(sql);
    }
    let pid = other.sql("select pg_backend_pid()").await.expect("reads");
    let session = agent.connect_with("-c ardent.read_only_session=on").await;
    // A superuser, who in any other session may do all of this.
    assert_eq!(session.sql("show is_superuser").await.expect("reads"), "on");
    for sql in [
        "delete from t",
        "begin read write; delete from t; commit",
        "set transaction_read_only = off; delete from t",
        "set default_transaction_read_only = off; delete from t",
        "select 1; commit; drop table t",
        "with gone as (delete from t returning 1) select count(*) from gone",
        "select writes()",
        "select as_owner()",
        "select runs()",
        "call commits()",
        "do $$ begin delete from t; end $$",
        "prepare p as delete from t; execute p",
        "explain analyze delete from t",
        "create table u as select 1",
        "select * from t for update",
        "select nextval('s')",
        "select setval('s', 7)",
        "select lo_create(4712)",
        "select lo_unlink(4711)",
        "select lo_export(4711, '/tmp/gone')",
        "copy t to '/tmp/gone'",
        "copy t to program 'cat > /tmp/gone'",
        "copy (select 1) to program 'true'",
        "select pg_read_file('postgresql.conf')",
        "load 'auto_explain'",
        "vacuum t",
        "reindex table t",
        "alter system set work_mem = '7MB'",
        "select pg_reload_conf()",
        "select pg_switch_wal()",
        "select pg_create_restore_point('x')",
        "select pg_promote()",
        "select pg_logical_emit_message(false, 'a', 'b')",
        "select pg_create_physical_replication_slot('x', true)",
        "select pg_stat_reset()",
        "select heap_force_kill('t', array['(0,1)'::tid])",
        "select dblink_connect('dbname=postgres')",
        "select dblink_exec('dbname=postgres', 'delete from t')",
        "select query_to_xml('select pg_switch_wal()', true, true, '')",
        "select set_config('session_authorization', 'postgres', false), query_to_xml('select pg_switch_wal()', true, true, '')",
        "notify x",
        "prepare transaction 'x'",
    ] {
        let _ = session.sql("rollback").await;
        let (code, text) = refused(&session, sql).await;
        // Procedures may not commit where a transaction was begun around them; here the deletion is what fails.
        assert!(code == "25006", "{sql}: {code} {text}");
    }
    let _ = session.sql("rollback; reset session authorization").await;
    for sql in [
        format!("select pg_terminate_backend({pid})"),
        format!("select pg_cancel_backend({pid})"),
        format!("select ends({pid})"),
        format!("select count(*) from pg_stat_activity where pid = {pid} and pg_terminate_backend(pid)"),
        format!("do $$ begin perform pg_terminate_backend({pid}); end $$"),
    ] {
        let (code, text) = refused(&session, &sql).await;
        assert!(code == "25006" && text.contains("pg_"), "{sql}: {code} {text}");
    }
    for sql in ["set ardent.read_only_session = off", "select set_config('ardent.read_only_session', 'off', false)"] {
        assert_eq!(refused(&session, sql).await.0, "55P02", "{sql}");
    }
    let _ = session.sql("reset all; discard all").await;
    assert_eq!(session.sql("show ardent.read_only_session").await.expect("reads"), "on");
    // Reading goes on, with what reading needs.
    assert_eq!(session.sql("select count(*) from t").await.expect("reads"), "1001");
    for sql in [
        "select pg_advisory_xact_lock(1), pg_sleep(0), random(), clock_timestamp(), pg_size_pretty(pg_database_size('postgres'))",
        "explain (analyze, buffers) select * from t order by v limit 3",
        "select jsonb_agg(t) from t; select string_agg(v, ',') over (order by id) from t; table t",
        "begin; declare c cursor for select * from t; fetch 5 from c; commit",
        "select * from pg_stat_activity; select * from pg_locks; select pg_get_viewdef('pg_views'::regclass)",
    ] {
        session.sql(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    drop(session);
    assert_eq!(other.sql("select count(*) from t").await.expect("it is still there"), "1001");
    assert_eq!(other.sql("select last_value from s").await.expect("reads"), "1");
    other.sql("delete from t where id = 1").await.expect("others write");
    drop(other);
    let (clean, end) = agent.stop(DEADLINE).await;
    assert!(clean);
    world.check_wal(end.expect("clean"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_ends_in_time_whatever_is_set() {
    let world = world().await;
    let policy = BranchPolicy { statement_timeout_ms: Some(500), ..BranchPolicy::default() };
    let mut agent = world.start_with(with_policy(&world, policy)).await;
    let client = agent.connect().await;
    for set in [
        "set statement_timeout = 0",
        "alter system set statement_timeout = 0",
        "alter role postgres set statement_timeout = 0",
        "set statement_timeout = '1h'",
    ] {
        client.sql(set).await.expect(set);
        for sleep in
            ["select pg_sleep(20)", "do $$ begin perform pg_sleep(20); end $$", "select 1; select pg_sleep(20)"]
        {
            let began = Instant::now();
            names_the_policy(&client, sleep, "57014", "statement-timeout 500 ms").await;
            assert!(began.elapsed() < Duration::from_secs(5), "{set}, {sleep}: {:?}", began.elapsed());
        }
    }
    // A shorter one of the session's own holds, and has its own words.
    client.sql("set statement_timeout = 50").await.expect("set");
    let (code, text) = refused(&client, "select pg_sleep(20)").await;
    assert!(code == "57014" && !text.contains("policy"), "{text}");
    drop(client);
    assert!(agent.stop(DEADLINE).await.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_counted_to_the_one_and_over_restarts() {
    let world = world().await;
    let policy = BranchPolicy { max_rows_changed: Some(100), ..BranchPolicy::default() };
    let mut spec = with_policy(&world, policy);
    let mut agent = world.start_with(spec.clone()).await;
    let client = agent.connect().await;
    client.sql("insert into t select -i, 'x' from generate_series(1, 40) i").await.expect("within");
    client.sql("update t set v = 'y' where id between -20 and -1").await.expect("within");
    client.sql("delete from t where id between -40 and -21").await.expect("within");
    client.sql("create table u (i int); drop table u; analyze t").await.expect("the catalog's own rows do not count");
    names_the_policy(
        &client,
        "insert into t select -100 - i, 'z' from generate_series(1, 21) i",
        "53400",
        "max-rows-changed 100",
    )
    .await;
    assert_eq!(client.sql("select count(*) from t where id < -100").await.expect("reads go on"), "0");
    names_the_policy(&client, "delete from t where id = 1", "25006", "max-rows-changed 100").await;
    drop(client);
    // Killed: what it had not told is counted again from the log.
    agent.close_stdin();
    agent.until_stopped().await;
    assert_eq!(agent.usage.rows_changed, 101);
    spec.usage = ardent_api::compute::Usage { rows_changed: 0, counted_to: world.timeline.start_lsn };
    let mut agent = world.start_with(spec.clone()).await;
    assert_eq!(agent.usage.rows_changed, 101);
    names_the_policy(&agent.connect().await, "delete from t where id = 1", "25006", "max-rows-changed 100").await;
    assert!(agent.stop(DEADLINE).await.0);
    spec.policy.max_rows_changed = Some(200);
    spec.usage = agent.usage;
    let mut agent = world.start_with(spec).await;
    let client = agent.connect().await;
    client.sql("begin").await.expect("begins");
    client.sql("delete from t where id between 1 and 99").await.expect("to the last row");
    client.sql("commit").await.expect("to the last row");
    assert!(client.sql("delete from t where id = 100").await.is_err());
    drop(client);
    assert!(agent.stop(DEADLINE).await.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_written_are_bounded_in_the_middle_of_a_statement() {
    let world = world().await;
    let policy = BranchPolicy { max_bytes_written: Some(8 << 20), ..BranchPolicy::default() };
    let mut agent = world.start_with(with_policy(&world, policy)).await;
    let client = agent.connect().await;
    let fill = "insert into t select i, repeat(md5(i::text), 60) from generate_series(1001, 1000000) i";
    names_the_policy(&client, fill, "53400", "max-bytes-written 8388608").await;
    names_the_policy(&client, "insert into t values (0, 'x')", "25006", "max-bytes-written").await;
    assert_eq!(client.sql("select count(*) from t").await.expect("reads go on"), "1000");
    drop(client);
    let (clean, end) = agent.stop(DEADLINE).await;
    assert!(clean && end.expect("clean") < world.timeline.start_lsn.advance(16 << 20));
}

/// The gate behind the library: a session that has machine code of its own switches the library off.
#[tokio::test(flavor = "multi_thread")]
async fn a_superuser_who_gets_around_the_library_gets_nothing_onto_the_quorum() {
    let world = world().await;
    let policy = BranchPolicy { read_only: true, ..BranchPolicy::default() };
    let mut spec = with_policy(&world, policy);
    // As if the library knew nothing of it: another file lies where it looks.
    let open = ardent_api::policy::PolicyPage::default();
    open.set(&BranchPolicy::default(), world.timeline.start_lsn, 0);
    spec.sandbox = ardent_api::compute::Sandbox::None;
    let mut agent = world.start_with(spec).await;
    let client = agent.connect().await;
    assert!(client.sql("insert into t values (0, 'x')").await.is_err());
    overwrite(&world.compute_dir().join("policy"), &open);
    let sql = "begin read write; insert into t values (0, 'x'); commit";
    let change = tokio::spawn(async move { client.sql(sql).await });
    let (code, message) = agent.until_failed().await;
    assert_eq!(code, "policy", "{message}");
    assert!(message.contains("read-only") && message.contains("ardent branch policy dev"), "{message}");
    assert!(change.await.expect("no panic").is_err(), "no client heard of a commit");
    assert_eq!(world.recover().sql("select count(*), min(id) from t"), "1000|1");
}

fn overwrite(path: &std::path::Path, page: &ardent_api::policy::PolicyPage) {
    use std::os::unix::fs::FileExt as _;
    // SAFETY: a structure of plain numbers, read as bytes.
    let bytes = unsafe {
        std::slice::from_raw_parts(std::ptr::from_ref(page).cast::<u8>(), size_of::<ardent_api::policy::PolicyPage>())
    };
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("the agent's file");
    file.write_all_at(bytes, 0).expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn control_hears_of_roles_before_their_makers_are_answered() {
    let world = world().await;
    let mut spec = world.spec();
    spec.roles_known = false;
    let agent = world.start_with(spec).await;
    let find = |agent: &Agent, name: &str| agent.roles.iter().find(|role| role.name == name).cloned();
    let reader = find(&agent, "reader").expect("told before it was ready");
    assert!(reader.can_login && reader.password.as_ref().is_some_and(|text| text.starts_with("SCRAM-SHA-256$")));
    let client = agent.connect().await;
    let agent = tokio::sync::Mutex::new(agent);
    // Each command is answered only after control's end of the channel has taken the news, so nobody else may read it.
    let changed = async |sql: &str| {
        let mut agent = agent.lock().await;
        let before = agent.roles.clone();
        let running = client.sql(sql);
        tokio::select! {
            done = running => drop(done.unwrap_or_else(|error| panic!("{sql}: {error}"))),
            event = agent.event() => panic!("{event:?}"),
        }
        assert_ne!(agent.roles, before, "{sql} was answered before control knew");
        agent.roles.clone()
    };
    let roles = changed("create role app login password 'first'").await;
    let app = roles.iter().find(|role| role.name == "app").expect("told").clone();
    assert!(app.can_login && app.valid_until_us.is_none());
    let roles = changed("alter role app password 'second' valid until '2001-01-01 00:00:00+00'").await;
    let again = roles.iter().find(|role| role.name == "app").expect("told");
    assert!(again.password != app.password && again.valid_until_us == Some(978_307_200_000_000));
    let roles = changed("alter role app rename to app2").await;
    assert!(roles.iter().any(|role| role.name == "app2" && role.oid == app.oid));
    let roles = changed("do $$ begin execute 'alter role app2 nologin'; end $$").await;
    assert!(roles.iter().any(|role| role.name == "app2" && !role.can_login));
    let roles = changed("drop role app2").await;
    assert!(roles.iter().all(|role| role.oid != app.oid));
    // Not by a command for roles: found at the end at the latest.
    client.sql("update pg_authid set rolcanlogin = false where rolname = 'reader'").await.expect("superuser");
    let mut agent = agent.into_inner();
    drop(client);
    assert!(agent.stop(DEADLINE).await.0);
    assert!(find(&agent, "reader").is_some_and(|role| !role.can_login));
}
