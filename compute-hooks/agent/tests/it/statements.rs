//! What is recorded of what sessions run, and of what functions, cursors and errors make of it.

use ardent_statement_log::{EntryKind, LogEntry, Outcome};
use ardent_test_pg::TestPgOptions;

use crate::rig::{DEADLINE, StatementLog, World};

const SOURCE: &str = "
    create table t (id int primary key, v text);
    insert into t select n, 'old' from generate_series(1, 100) n;
    create role app login superuser;
    create function changes(n int) returns int language plpgsql as $$
        begin
            begin
                update t set v = 'inner' where id = n;
                perform 1 / (n - n);
            exception when division_by_zero then
                update t set v = 'caught' where id = n;
            end;
            return (select count(*) from t);
        end $$;
    create function folded() returns int immutable language plpgsql as $$ begin return (select 1); end $$;
    create function at_commit() returns trigger language plpgsql as $$ begin perform count(*) from t; return null; end $$;
    create constraint trigger at_commit after update on t deferrable initially deferred
        for each row when (new.id = 50) execute function at_commit()";

/// One that is looked for, and the only one.
fn only<'a>(entries: &'a [LogEntry], statement: &str) -> &'a LogEntry {
    let found: Vec<&LogEntry> = entries.iter().filter(|entry| entry.statement == statement).collect();
    assert_eq!(
        found.len(),
        1,
        "{statement} in {:#?}",
        entries.iter().map(|entry| &entry.statement).collect::<Vec<_>>()
    );
    found[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_statement_of_a_client_is_one_entry_whatever_it_runs_by_itself() {
    let world = World::new(TestPgOptions::default(), SOURCE).await;
    let mut spec = world.spec();
    let log = StatementLog::new(&mut spec);
    let mut agent = world.start_with(spec).await;
    let mut session = agent.connect().await;
    let long = format!("select '{}' as long", "x".repeat(40_000));
    for sql in [
        "select changes(7)",
        "update t set v = 'deferred' where id = 50",
        "select folded()",
        "do $$ begin perform changes(8); end $$",
        "with new as (insert into t values (200, 'cte') returning id) select * from new",
        "copy (select * from t limit 5) to '/tmp/five'",
        "vacuum t",
        &long,
        "set role app",
        "select current_user",
        "reset role",
        "set log_min_messages = panic",
    ] {
        session.sql(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    assert!(session.sql("select 1 / (id - id) from t").await.is_err());
    session.sql("set log_min_messages = warning").await.expect("set");
    session.sql("begin; set role app").await.expect("begun");
    assert!(session.sql("select nothing").await.is_err());
    session.sql("rollback").await.expect("rolled back, and another role again");
    assert!(session.client.query("select v from t where id = $1", &[&7_i32]).await.is_ok());
    assert!(session.client.query("insert into t values ($1, 'twice')", &[&7_i32]).await.is_err());
    // As text it would be longer than any text may be.
    let large = vec![7u8; 540 << 20];
    let inserted = session.client.query_one("select length($1::bytea)", &[&large]).await;
    assert_eq!(inserted.expect("a parameter of any length").get::<_, i32>(0), 540 << 20);
    drop(large);
    let transaction = session.client.transaction().await.expect("begun");
    let portal = transaction.bind("select id from t order by id limit 30", &[]).await.expect("bound");
    for _ in 0..3 {
        assert_eq!(transaction.query_portal(&portal, 10).await.expect("fetched").len(), 10);
    }
    transaction.execute("update t set v = 'rolled back' where id = 9", &[]).await.expect("updated");
    drop(transaction);
    session.sql("select 'the last'").await.expect("answered");
    let (clean, _) = agent.stop(DEADLINE).await;
    assert!(clean);

    let entries = log.entries();
    let of = |statement: &str| only(&entries, statement);
    let writes = of("select changes(7)");
    assert_eq!((writes.rows, writes.outcome), (Some(1), Outcome::Committed));
    assert!(
        writes.lsn_from < writes.lsn_to && writes.lsn_to <= writes.end_lsn && writes.duration_us > Some(0),
        "{writes:?}"
    );
    let deferred = of("update t set v = 'deferred' where id = 50");
    assert_eq!((deferred.rows, deferred.outcome), (Some(1), Outcome::Committed));
    assert_eq!((of("select folded()").outcome, of("select folded()").xid), (Outcome::Done, None));
    assert_eq!(of("do $$ begin perform changes(8); end $$").outcome, Outcome::Committed);
    let cte = of("with new as (insert into t values (200, 'cte') returning id) select * from new");
    assert_eq!((cte.rows, cte.outcome), (Some(1), Outcome::Committed));
    assert_eq!(of("copy (select * from t limit 5) to '/tmp/five'").rows, Some(5));
    of("vacuum t");
    let cut = entries.iter().find(|entry| entry.statement_bytes == long.len() as u64).expect("it is there");
    assert_eq!(cut.statement, long[..16 << 10]);
    let other = of("select current_user");
    assert_eq!((&other.session_role[..], &other.role[..]), ("postgres", "app"));
    let unlogged = of("select 1 / (id - id) from t");
    assert_eq!((unlogged.sqlstate.as_deref(), unlogged.error.as_deref()), (Some("22012"), None));
    assert_eq!(of("select v from t where id = $1").parameters.as_deref(), Some("$1 = '7'"));
    let twice = of("insert into t values ($1, 'twice')");
    assert_eq!((twice.sqlstate.as_deref(), twice.parameters.as_deref()), (Some("23505"), Some("$1 = '7'")));
    assert_eq!(of("select length($1::bytea)").parameters.as_deref(), Some("$1 = '(566231040 bytes)'"));
    assert!(twice.error.as_deref().is_some_and(|error| error.contains("t_pkey")), "{twice:?}");
    assert_eq!(of("select id from t order by id limit 30").rows, Some(30), "as one, with all that was fetched");
    assert_eq!(of("update t set v = 'rolled back' where id = 9").outcome, Outcome::RolledBack);
    of("select 'the last'");
    // Nothing of what functions, triggers and the planner ran, and nothing of the agent's own.
    let inner = ["perform", "(select 1)", "count(*)", "'inner'", "pg_authid"];
    let stray = entries
        .iter()
        .find(|entry| !entry.statement.starts_with("do ") && inner.iter().any(|part| entry.statement.contains(part)));
    assert_eq!(stray, None);
    assert!(entries.iter().all(|entry| entry.kind == EntryKind::Statement && !entry.is_own), "{entries:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_where_the_proxy_says_and_no_session_says_so_itself() {
    let world = World::new(TestPgOptions::default(), SOURCE).await;
    let mut spec = world.spec();
    let log = StatementLog::new(&mut spec);
    let mut agent = world.start_with(spec).await;
    let said = agent.connect_with("-c ardent.client_address=192.0.2.7:50000").await;
    said.sql("select 'by the proxy'").await.expect("answered");
    for sql in [
        "set ardent.client_address = '203.0.113.9:1'",
        "select set_config('ardent.client_address', '203.0.113.9:1', true)",
        "alter role app set ardent.client_address = '203.0.113.9:1'",
        "alter system set ardent.client_address = '203.0.113.9:1'",
    ] {
        assert!(said.sql(sql).await.is_err(), "{sql}");
    }
    said.sql("set application_name = 'other'; select 'still'").await.expect("answered");
    assert_eq!(said.sql("show ardent.client_address").await.expect("shown"), "192.0.2.7:50000");
    // From within the sandbox, where whoever is a superuser runs what they like.
    said.sql("create extension dblink").await.expect("made");
    let forged = "host=%s user=postgres dbname=postgres options=''-c ardent.client_address=203.0.113.9:1''";
    said.sql(&format!(
        "select dblink_exec(format('{forged}', current_setting('unix_socket_directories')), 'create table forged()')"
    ))
    .await
    .expect("a branch's own processes may connect");
    agent.connect().await.sql("select 'past the proxy'").await.expect("answered");
    let (clean, _) = agent.stop(DEADLINE).await;
    assert!(clean);

    let entries = log.entries();
    let client = |statement: &str| only(&entries, statement).client_address.clone();
    let said = Some("192.0.2.7:50000".to_owned());
    assert_eq!((client("select 'by the proxy'"), client("select 'still'")), (said.clone(), said));
    assert_eq!((client("create table forged()"), client("select 'past the proxy'")), (None, None));
}
