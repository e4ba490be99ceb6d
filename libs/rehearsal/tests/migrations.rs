//! Migrations on a real server: what is reported is what they did.

use std::time::Duration;

use ardent_pg_wire::ConnectConfig;
use ardent_rehearsal::{Blocks, LockMode, RehearsalReport, StatementReport, StatementState, rehearse, render};
use ardent_sql_script::{PsqlCommands, Script};
use ardent_test_pg::{TestPg, TestPgOptions};
use tokio_util::sync::CancellationToken;

const SCHEMA: &str = "
    create table users (id int primary key, name text, age int);
    insert into users select n, 'user ' || n, n from generate_series(1, 1000) n;
    create table orders (id int primary key, user_id int references users on delete cascade);
    insert into orders select n, n from generate_series(1, 1000) n;
    create table log (what text);
    create function log() returns trigger language plpgsql as $$ begin insert into log values (tg_op); return null; end $$;
    create trigger log after update on users for each row execute function log();
    create role app login; grant all on schema public to app; grant all on all tables in schema public to app; alter table users owner to app; alter table orders owner to app";

fn server() -> TestPg {
    let pg = TestPg::start(TestPgOptions::default());
    pg.sql(SCHEMA);
    pg
}

async fn rehearse_as(pg: &TestPg, role: &str, text: &str) -> RehearsalReport {
    let script = Script::parse(text.as_bytes(), PsqlCommands::Refused).expect("a script");
    let config = ConnectConfig::unix(pg.socket_dir(), pg.port(), role).with_database("postgres");
    rehearse(&config, &script, &CancellationToken::new(), |_| {}).await.expect("it can be rehearsed")
}

/// The locks of a statement, in short, without those that block nobody.
fn locks(statement: &StatementReport) -> Vec<(String, LockMode)> {
    let strong = statement.locks.iter().filter(|lock| lock.blocks > Blocks::Neither);
    strong.map(|lock| (lock.relation.clone(), lock.mode)).collect()
}

fn written(statement: &StatementReport) -> Vec<(&str, [u64; 3])> {
    statement.rows.iter().map(|rows| (rows.relation.as_str(), [rows.inserted, rows.updated, rows.deleted])).collect()
}

fn rewritten(statement: &StatementReport) -> Vec<&str> {
    statement.rewritten.iter().map(|one| one.relation.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_are_run_one_by_one_and_told_of() {
    let pg = server();
    // By a role that may do no more than the migration needs.
    let report = rehearse_as(
        &pg,
        "app",
        "alter table users alter id type bigint;       -- 0: rewrites
         create index on users (name);                  -- 1: blocks writes
         create index concurrently by_age on users (age);
         update users set age = 0 where id <= 10;       -- 3: and a trigger writes
         delete from users where id <= 5;               -- 4: and a cascade
         do $$ begin raise notice 'hello'; insert into log values ('x'), ('y'); end $$;
         set statement_timeout = '1min';
         begin;
         set transaction isolation level repeatable read;
         alter table orders add column note text default 'x';
         select pg_sleep(0.2);
         commit;
         truncate orders;
         vacuum users;
         create table fresh (id int); insert into fresh select 1; drop table fresh;
         reindex index concurrently by_age;
         select 1",
    )
    .await;
    let all = &report.statements;
    let shown = render(&report);
    assert!(report.succeeded && !report.ends_in_transaction && !report.interrupted, "{shown}");
    assert!(
        all.iter().all(|one| one.state == StatementState::Done && one.duration_us.is_some_and(|us| us > 0)),
        "{shown}"
    );
    let exclusive = |relation: &str| (relation.to_owned(), LockMode::AccessExclusive);

    assert!(locks(&all[0]).contains(&exclusive("public.users")), "{shown}");
    // An index on a column of another type is another index.
    assert_eq!(rewritten(&all[0]), ["public.users"], "{shown}");
    assert!(all[0].rewritten[0].bytes >= 8192 && all[0].wal_bytes.is_some_and(|bytes| bytes > 40_000), "{shown}");
    assert_eq!(locks(&all[1]), [("public.users".to_owned(), LockMode::Share)], "{shown}");
    assert!(rewritten(&all[1]).is_empty() && !all[1].locks_sampled, "{shown}");

    assert!(all[2].locks_sampled && locks(&all[2]).is_empty(), "{shown}");
    assert_eq!(written(&all[3]), [("public.log", [10, 0, 0]), ("public.users", [0, 10, 0])], "{shown}");
    assert!(
        locks(&all[3]).is_empty() && all[3].locks.iter().any(|lock| lock.mode == LockMode::RowExclusive),
        "{shown}"
    );
    assert_eq!(written(&all[4]), [("public.orders", [0, 0, 5]), ("public.users", [0, 0, 5])], "{shown}");
    assert_eq!(written(&all[5]), [("public.log", [2, 0, 0])], "{shown}");
    assert_eq!(all[5].notices.iter().map(|notice| notice.message.as_str()).collect::<Vec<_>>(), ["hello"]);

    // A lock is held until the transaction's end.
    let alter = &all[9];
    let lock = alter.locks.iter().find(|lock| lock.mode == LockMode::AccessExclusive).expect("ALTER TABLE takes one");
    assert!(lock.relation == "public.orders" && lock.held_us >= 200_000 && lock.until_statement == 12, "{shown}");
    assert!(rewritten(alter).is_empty(), "{shown}");
    let orders = report.blocked.iter().find(|one| one.relation == "public.orders").expect("it was blocked");
    assert!(orders.reads_us >= 200_000 && orders.writes_us >= orders.reads_us, "{shown}");
    let users = report.blocked.iter().find(|one| one.relation == "public.users").expect("it was blocked");
    assert!(users.reads_us > 0 && users.writes_us >= users.reads_us, "{shown}");
    assert_eq!((orders.from_statement, orders.until_statement), (10, 12), "{shown}");
    assert!(all[12].locks.iter().all(|lock| lock.held_us > 0), "{shown}");

    assert_eq!(rewritten(&all[12]), ["public.orders", "public.orders_pkey"], "{shown}");
    assert!(all[12].rewritten.iter().all(|one| one.emptied), "{shown}");
    assert_eq!(all[12].rewritten[1].table.as_deref(), Some("public.orders"));
    // What the migration made itself is nobody else's.
    assert!(all[14..17].iter().all(|one| one.locks.is_empty() && one.rewritten.is_empty()), "{shown}");
    assert_eq!(written(&all[15]), [("public.fresh", [1, 0, 0])], "{shown}");
    assert_eq!(report.wal_bytes, all.iter().filter_map(|one| one.wal_bytes).sum::<u64>());
    assert_eq!(pg.sql("select count(*), max(age) from users where id <= 10"), "5|0");

    let json = serde_json::to_value(&report).expect("plain data");
    assert_eq!(json["statements"][1]["locks"][0]["mode"], "SHARE");
    assert_eq!(json["statements"][1]["locks"][0]["blocks"], "writes");
    assert_eq!(json["statements"][1]["state"], "done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_error_ends_it_and_is_placed_in_the_file() {
    let pg = server();
    let report = rehearse_as(
        &pg,
        "postgres",
        "insert into log values ('kept');\nbegin;\nlock table orders in exclusive mode;\nselect 'é',\n  wrong from users;\nselect 2;\ncommit;",
    )
    .await;
    let states: Vec<StatementState> = report.statements.iter().map(|one| one.state).collect();
    let (done, failed, not_run) = (StatementState::Done, StatementState::Failed, StatementState::NotRun);
    assert_eq!(states, [done, done, done, failed, not_run, not_run]);
    let error = report.statements[3].error.as_ref().expect("it failed");
    assert_eq!((error.sqlstate.as_str(), error.line, error.column), ("42703", 5, 3));
    assert!(!report.succeeded && !report.ends_in_transaction);
    assert_eq!(report.statements[2].locks[0].until_statement, 4, "held until the error");
    assert_eq!(pg.sql("select count(*) from log"), "1", "what was committed before stays");

    // A commit that is refused is the statement's error too.
    pg.sql("create table later (a int references users deferrable initially deferred)");
    let report = rehearse_as(&pg, "postgres", "select 1; insert into later values (-1); select 2").await;
    let error = report.statements[1].error.as_ref().expect("it failed");
    assert_eq!((error.sqlstate.as_str(), error.line, error.column), ("23503", 1, 11));
    assert_eq!(pg.sql("select count(*) from later"), "0");

    // A transaction that the file leaves open.
    let report = rehearse_as(&pg, "postgres", "begin; alter table users add column a int").await;
    assert!(!report.succeeded && report.ends_in_transaction && render(&report).contains("rolled back"));
    assert_eq!(pg.sql("select count(*) from pg_attribute where attrelid = 'users'::regclass and attname = 'a'"), "0");

    // A session that ends.
    let report = rehearse_as(&pg, "postgres", "select pg_terminate_backend(pg_backend_pid()); select 2").await;
    assert_eq!(report.statements[0].error.as_ref().map(|error| error.sqlstate.as_str()), Some("57P01"));
    assert_eq!(report.statements[1].state, StatementState::NotRun);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_several_transactions_is_watched_and_what_takes_too_long_can_be_ended() {
    let pg = server();
    let report = rehearse_as(
        &pg,
        "postgres",
        "do $$ begin lock table users in share mode; perform pg_sleep(0.3); commit; lock table orders; perform pg_sleep(0.3); commit; end $$",
    )
    .await;
    let one = &report.statements[0];
    assert!(one.locks_sampled, "{}", render(&report));
    let held: Vec<_> = one.locks.iter().map(|lock| (lock.relation.as_str(), lock.mode)).collect();
    assert_eq!(held, [("public.orders", LockMode::AccessExclusive), ("public.users", LockMode::Share)]);
    let total = one.duration_us.expect("it was run");
    for lock in &one.locks {
        assert!(lock.held_us >= 300_000 && lock.held_us < total, "{}", render(&report));
    }

    let script = Script::parse(b"select pg_sleep(600); select 2", PsqlCommands::Refused).expect("a script");
    let config = ConnectConfig::unix(pg.socket_dir(), pg.port(), "postgres").with_database("postgres");
    let interrupt = CancellationToken::new();
    let rehearsal = rehearse(&config, &script, &interrupt, |_| {});
    let (report, ()) = tokio::join!(rehearsal, async {
        let running =
            "select count(*) from pg_stat_activity where query like 'select pg_sleep(600)%' and state = 'active'";
        while pg.sql(running) == "0" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        interrupt.cancel();
    });
    let report = report.expect("it can be rehearsed");
    assert!(report.interrupted && !report.succeeded);
    assert_eq!(report.statements[0].error.as_ref().map(|error| error.sqlstate.as_str()), Some("57014"));
    assert_eq!(report.statements[1].state, StatementState::NotRun);
}
