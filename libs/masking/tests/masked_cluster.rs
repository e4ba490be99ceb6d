//! A cluster with secrets in every corner, masked: none is in any file of it that is left.

use std::fs;
use std::path::Path;

use ardent_masking::{Connect, MaskError, MaskReport, Masking, Progress, Rules};
use ardent_test_pg::{TestPg, TestPgOptions};
use tokio_postgres::{Client, NoTls};

/// What nothing may be left of. Each place has a number of its own behind it.
const SECRET: &str = "xSECRETx";

fn start() -> TestPg {
    // What is compressed cannot be found by looking at files; the secrets are long only where TOAST is meant.
    TestPg::start(
        TestPgOptions::default()
            .set("max_prepared_transactions", "5")
            .set("autovacuum", "off")
            .set("wal_recycle", "off"),
    )
}

async fn connect(config: String, database: String) -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
    let mut config: tokio_postgres::Config = config.parse()?;
    let (client, connection) = config.dbname(&database).connect(NoTls).await?;
    // It ends with the client.
    tokio::spawn(async move { connection.await.expect("the connection lasts") });
    Ok(client)
}

fn run(server: &TestPg, rules: &str, key: u8) -> Result<MaskReport, MaskError> {
    let config = format!("host={} port={} user=postgres", server.socket_dir().display(), server.port());
    let open: Box<Connect> = Box::new(move |database| Box::pin(connect(config.clone(), database)));
    let rules = Rules::parse(rules).expect("good rules");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let mut phases: Vec<Progress> = Vec::new();
    let report = runtime.block_on(Masking::new(&open, &rules).run(&[key; 32], |progress| phases.push(progress)));
    assert!(report.is_err() || phases.iter().any(|progress| progress.phase == "rewrite"));
    report
}

/// The secrets that are left in files of relations, by what stands behind the word.
fn found(server: &TestPg) -> Vec<String> {
    // Files that were replaced go at a checkpoint, ones that were cut to nothing at the next.
    server.sql("checkpoint");
    server.sql("checkpoint");
    let mut found = Vec::new();
    for folder in ["base", "global", "pg_xact", "pg_multixact", "pg_twophase"] {
        search(&server.data_dir().join(folder), &mut found);
    }
    found.sort();
    found.dedup();
    found
}

fn search(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            search(&path, found);
            continue;
        }
        let bytes = fs::read(&path).expect("a file");
        for at in 0..bytes.len().saturating_sub(SECRET.len()) {
            if bytes[at..].starts_with(SECRET.as_bytes()) {
                let behind = bytes[at + SECRET.len()..].iter().take_while(|byte| byte.is_ascii_lowercase());
                found.push(behind.map(|byte| char::from(*byte)).collect());
            }
        }
    }
}

const PLANTED: &str = "
    create table people (id int primary key, mail text unique, name varchar(40), age int, born date, at timestamptz, ref uuid, blob bytea,
        twice text generated always as (mail || '!') stored, gone text, doc jsonb, small varchar(12));
    alter table people alter doc set storage external;
    create index on people (lower(mail));
    create statistics s on mail, name from people;
    insert into people (id, mail, name, age, born, at, ref, blob, gone, doc, small) select i, 'xSECRETxmail' || i, 'xSECRETxname', i, '2001-02-03', '2001-02-03 04:05:06+00',
        md5(i::text)::uuid, 'xSECRETxblob', 'xSECRETxdropped', jsonb_build_object('a', 'xSECRETxdoc' || repeat('-', 9000)), 'xSECRETxfit' from generate_series(1, 30) i;
    insert into people (id) values (1000);
    update people set mail = 'xSECRETxold' || id where id <= 3;
    update people set mail = 'xSECRETxnew' || id where id <= 3;
    delete from people where id = 4;
    alter table people drop gone;
    create table orders (person text references people (mail), part int, note text) partition by range (part);
    create table orders_1 partition of orders for values from (0) to (100);
    create table orders_2 partition of orders for values from (100) to (200);
    insert into orders select mail, id, 'xSECRETxnote' from people where mail is not null;
    insert into orders select 'xSECRETxnew1', 150, 'xSECRETxnote';
    create materialized view seen as select mail from people;
    create materialized view seen_twice as select mail || '?' as mail from seen;
    create view seen_again as select * from seen;
    create materialized view not_seen as select 1 with no data;
    create table audit (what text);
    create function audited() returns trigger language plpgsql as $$ begin insert into public.audit values (old.mail); return new; end $$;
    create trigger audit after update on people for each row execute function audited();
    select lo_from_bytea(0, 'xSECRETxlo');
    alter table people enable row level security; alter table people force row level security;
    create role app login password 'xSECRETxrole';
    alter role app set app.key = 'xSECRETxsetting'; alter role app set work_mem = '5MB'; alter database postgres set app.single = 'xSECRETxsingle';
    create subscription sub connection 'host=127.0.0.1 port=1 password=xSECRETxsub' publication p with (connect = false, slot_name = none, enabled = false);
    create foreign data wrapper w; create server s foreign data wrapper w options (host 'xSECRETxserver');
    create user mapping for app server s options (password 'xSECRETxuser');
    create foreign table f (a int) server s options (table_name 'xSECRETxtable');
    comment on role app is 'plain';
    alter database template1 set idle_session_timeout = '500ms';
    analyze; checkpoint;";

const RULES: &str = r#"{ "version": 1,
    "types": { "integer": "keep", "uuid": "hash" },
    "columns": {
        "postgres.public.people": { "mail": "email", "name": "name", "born": { "shift_days": 20 }, "at": { "shift_days": 20 },
            "age": { "number": [18, 19] }, "blob": "hash", "doc": { "fixed": "{\"masked\": true}" }, "small": "hash" },
        "postgres.public.orders": { "person": "email", "note": "null" },
        "postgres.public.audit": { "*": "hash" },
        "other.public.kept": { "*": "hash" } } }"#;

#[test]
fn nothing_of_what_was_is_left_in_any_file() {
    let server = start();
    server.sql(PLANTED);
    server.sql("begin; insert into audit values ('xSECRETxprepared'); prepare transaction 'it''s'");
    server.sql("create database other");
    server.sql_in("other", "create table kept (a text); insert into kept values ('xSECRETxother'); delete from kept; insert into kept values (null), ('xSECRETxmail1')");
    server.sql("alter database other allow_connections false");
    let planted = found(&server);
    for place in [
        "mail", "name", "blob", "dropped", "doc", "old", "new", "note", "lo", "setting", "single", "sub", "server",
        "user", "table", "prepared", "other", "fit",
    ] {
        assert!(planted.iter().any(|found| found == place), "the search finds {place}: {planted:?}");
    }
    let report = run(&server, RULES, 7).expect("masked");
    assert_eq!(found(&server), Vec::<String>::new());

    let count = |table: &str, column: &str| {
        let of = report.columns.iter().find(|found| found.table == table && found.column == column).expect("covered");
        (of.rows, of.values, of.unchanged)
    };
    assert_eq!(count("people", "mail"), (Some(30), Some(29), Some(0)));
    assert_eq!(count("orders", "note"), (Some(30), Some(30), Some(0)));
    assert_eq!(count("orders", "part"), (None, None, None), "kept");
    assert_eq!(count("kept", "a"), (Some(2), Some(1), Some(0)));
    assert_eq!(report.columns.len(), 10 + 3 + 1 + 1);
    let secrets = &report.secrets;
    assert_eq!((secrets.role_passwords, secrets.settings, secrets.subscriptions), (1, 2, 1));
    assert_eq!((secrets.foreign_options, secrets.large_object_pages, secrets.prepared_transactions), (3, Some(1), 1));

    let sql = |query: &str| server.sql(query);
    // Equal values stay equal, also between tables and databases; NULL stays NULL; keys hold.
    assert_eq!(sql("select count(*) from orders o join people p on p.mail = o.person"), "30");
    assert_eq!(
        sql("select count(*), count(distinct mail) from people where mail like 'user-%@example.invalid'"),
        "29|29"
    );
    assert_eq!(
        sql("select count(*) from people where id = 1000 and mail is null and name is null and born is null"),
        "1"
    );
    assert_eq!(sql("select count(*) from people where twice = mail || '!'"), "29", "generated columns follow");
    assert_eq!(sql("select distinct age from people where age not in (18, 19)"), "");
    let days = "select max(abs(born - '2001-02-03')) <= 20, min(abs(born - '2001-02-03')) >= 1 from people";
    assert_eq!(sql(days), "t|t");
    assert_eq!(sql("select count(*) from people where at::time = '04:05:06' and at <> '2001-02-03 04:05:06+00'"), "29");
    assert_eq!(sql("select distinct doc->>'masked' from people where doc is not null"), "true");
    assert_eq!(sql("select distinct length(small) from people where small is not null"), "12");
    assert_eq!(
        sql("select count(*) from seen_twice s join people p on s.mail = p.mail || '?'"),
        "29",
        "made of masked rows"
    );
    assert_eq!(sql("select relispopulated from pg_class where relname = 'not_seen'"), "f");
    assert_eq!(sql("select count(*) from audit"), "0", "no trigger ran");
    assert_eq!(sql("select count(*), sum(length(lo_get(oid))) from pg_largeobject_metadata"), "1|0");
    assert_eq!(sql("select setconfig from pg_db_role_setting where setrole <> 0"), "{work_mem=5MB}");
    assert_eq!(sql("select count(*) > 0 from pg_stats where tablename = 'people' and attname = 'mail'"), "t");
    assert_eq!(sql("select datname from pg_database where not datallowconn order by 1"), "other\ntemplate0");
    assert_eq!(
        sql("select convalidated from pg_constraint where conrelid = 'orders'::regclass and contype = 'f'"),
        "t"
    );
}

#[test]
fn rules_that_leave_something_open_change_nothing_and_failures_name_the_place() {
    let server = start();
    server.sql(
        "create table t (a text check (a <> 'masked'), b jsonb); insert into t values ('xSECRETxa', '{}');
        create domain short as text check (length(value) < 12); create table d (s short); insert into d values ('xSECRETxd')",
    );
    let left = run(&server, r#"{ "version": 1, "types": { "text": "hash" } }"#, 1).expect_err("jsonb has no rule");
    assert!(matches!(&left, MaskError::Plan(error) if error.unnamed.len() == 1), "{left}");
    assert_eq!(server.sql("select a from t"), "xSECRETxa");
    assert_eq!(server.sql("show autovacuum"), "off");
    let check = |rules: &str, words: &[&str]| {
        let error = run(&server, rules, 1).expect_err("it cannot be done");
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    let fixed = r#"{ "version": 1, "types": { "text": "hash", "jsonb": "null" }, "columns": { "postgres.public.t": { "a": { "fixed": "masked" } } } }"#;
    check(fixed, &["postgres.public.d", "short"]);
    let short = r#"{ "version": 1, "types": { "text": "hash", "public.short": "null", "jsonb": "null" }, "columns": { "postgres.public.t": { "a": { "fixed": "masked" } } } }"#;
    check(short, &["postgres.public.t", "t_a_check"]);
}
