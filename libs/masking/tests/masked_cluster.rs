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
fn a_cluster_whose_first_database_lets_nobody_in_is_masked() {
    let server = start();
    server.sql("create table t (a text); insert into t values ('xSECRETxa')");
    server.sql("alter database template1 allow_connections false");
    run(&server, r#"{ "version": 1, "types": { "text": "hash" } }"#, 1).expect("masked");
    assert_eq!(server.sql("select a <> 'xSECRETxa' from t"), "t");
    assert_eq!(server.sql("select datname from pg_database where not datallowconn order by 1"), "template0\ntemplate1");
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
        let text = ardent_types::with_causes(&error);
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    let fixed = r#"{ "version": 1, "types": { "text": "hash", "jsonb": "null" }, "columns": { "postgres.public.t": { "a": { "fixed": "masked" } } } }"#;
    check(fixed, &["postgres.public.d", "short"]);
    let short = r#"{ "version": 1, "types": { "text": "hash", "public.short": "null", "jsonb": "null" }, "columns": { "postgres.public.t": { "a": { "fixed": "masked" } } } }"#;
    check(short, &["postgres.public.t", "t_a_check"]);
}

/// Whole numbers in every place that they are unique in, and what refers to them.
const NUMBERS: &str = "
    create table accounts (id int generated always as identity primary key, code smallint unique, ref numeric(10,0) unique,
        parent int references accounts, late int unique deferrable initially deferred, twice bigint generated always as (id * 2::bigint) stored unique);
    create unique index on accounts (id, code) where code > 3; create unique index on accounts (abs(id));
    create index plain on accounts (id);
    insert into accounts (code, ref, late) select i, i * 1000, i from generate_series(1, 500) i;
    update accounts set parent = id / 2 where id > 1;
    create table invoices (id bigserial primary key, account bigint not null references accounts);
    insert into invoices (account) select 1 + i % 500 from generate_series(1, 900) i;
    create table parted (id int primary key default nextval('public.invoices_id_seq')) partition by hash (id);
    create table parted_0 partition of parted for values with (modulus 2, remainder 0);
    create table parted_1 partition of parted for values with (modulus 2, remainder 1);
    insert into parted select i from generate_series(1, 300) i;
    create table visits (account int) partition by range (account);
    create table visits_0 partition of visits (foreign key (account) references accounts) for values from (minvalue) to (maxvalue);
    insert into visits select id from accounts;
    create table codes (code int primary key); insert into codes select generate_series(101, 300);
    create table classes (n bigint primary key, place int);
    insert into classes select n, row_number() over (order by n) from (select unnest(array[-9223372036854775808, -2147483649, -2147483648, -32769,
        -32768, -1, 0, 1, 16383, 16384, 28671, 28672, 32767, 32768, 1073741823, 1073741824, 2130706431, 2130706432, 2147483647, 2147483648,
        9007199254740991, 9007199254740992, 9223372036854775807]) n) v;
    create table small (n smallint primary key); insert into small select generate_series(-32768, 32767);
    create table labels (label text default 'n' || nextval('invoices_id_seq')); insert into labels default values;
    create sequence down increment -1; create table falling (n int primary key default nextval('down')); insert into falling select from generate_series(1, 50);
    create publication p for all tables;";

const NUMBER_RULES: &str = r#"{ "version": 1,
    "types": { "integer": "keep" },
    "columns": {
        "postgres.public.accounts": { "id": "permute", "code": "permute", "ref": "permute", "late": "permute" },
        "postgres.public.invoices": { "id": "permute" },
        "postgres.public.parted": { "id": "permute" },
        "postgres.public.labels": { "label": "keep" },
        "postgres.public.codes": { "code": { "permute_in": [101, 300] } },
        "postgres.public.classes": { "n": "permute" },
        "postgres.public.small": { "n": "permute" },
        "postgres.public.falling": { "n": "permute" } } }"#;

#[test]
fn unique_numbers_are_exchanged_and_what_refers_to_them_follows() {
    let masked = |key: u8| {
        let server = start();
        server.sql(NUMBERS);
        let report = run(&server, NUMBER_RULES, key).expect("masked");
        (server, report)
    };
    let (server, report) = masked(7);
    let sql = |query: &str| server.sql(query);
    let rule = |table: &str, column: &str| {
        let of = report.columns.iter().find(|found| found.table == table && found.column == column).expect("covered");
        format!("{} by {}", of.action, of.rule)
    };
    assert_eq!(rule("invoices", "account"), "permute by reference");
    assert_eq!(rule("accounts", "parent"), "permute by reference");
    assert_eq!(rule("visits", "account"), "permute by reference", "by a key that one partition has");
    assert_eq!(rule("codes", "code"), "permute in 101 to 300 by column");

    // As many as before, and each that refers to one refers to the same.
    assert_eq!(
        sql("select count(distinct id), count(distinct code), count(distinct ref), count(distinct late) from accounts"),
        "500|500|500|500"
    );
    assert_eq!(sql("select count(*) from invoices i join accounts a on a.id = i.account"), "900");
    assert_eq!(
        sql("select count(*) from accounts a join accounts p on p.id = a.parent where a.code is not null"),
        "499"
    );
    assert_eq!(sql("select count(*) from visits join accounts on id = account"), "500");
    assert_eq!(sql("select count(*) from accounts where twice = id * 2::bigint"), "500");
    assert_eq!(sql("select count(distinct id), count(distinct tableoid) from parted"), "300|2");
    // Numbers of all types become the same, which is what held these together.
    assert_eq!(sql("select count(*) from accounts where code = id and late = id"), "500");
    assert_eq!(sql("select count(*) from parted p join invoices i using (id)"), "300");

    // Where each is taken, each is there again, at another's place.
    assert_eq!(sql("select count(distinct code), min(code), max(code) from codes"), "200|101|300");
    assert_eq!(sql("select count(distinct n), min(n), max(n) from small"), "65536|-32768|32767");
    let small = report.columns.iter().find(|column| column.table == "small").expect("covered");
    assert!(small.unchanged.is_some_and(|unchanged| (1..40).contains(&unchanged)), "0, and few by chance: {small:?}");
    let classes = "select string_agg(width_bucket(n, array[-2147483648, -32768, 0, 1, 16384, 28672, 32768, 1073741824, 2130706432, 2147483648,
        9007199254740992])::text, ' ' order by place) from classes";
    assert_eq!(sql(classes), "0 0 1 1 2 2 3 4 4 5 5 6 6 7 7 8 8 9 9 10 10 11 11");
    assert_eq!(sql("select n from classes where place = 7"), "0");

    // Nothing of the order is left: about half of what followed each other still does, and no distance is seen again and again.
    let order = "select count(*) filter (where id > before) between 170 and 330, count(distinct id - before) > 400
        from (select ref, id, lag(id) over (order by ctid) as before from accounts) a where before is not null";
    assert_eq!(sql(order), "t|t");

    // Indexes are what they were, identities, and publications, of tables without a key too.
    assert_eq!(sql("select pubupdate from pg_publication"), "t");
    assert_eq!(
        sql("select attidentity from pg_attribute where attrelid = 'accounts'::regclass and attname = 'id'"),
        "a"
    );
    let indexes = "select count(*), bool_and(indisready and indisvalid) from pg_index i join pg_class c on c.oid = i.indrelid where relnamespace = 'public'::regnamespace";
    assert_eq!(sql(indexes), "16|t");
    let taken = "select id from accounts order by id limit 1";
    let duplicate =
        server.try_sql_in("postgres", &format!("insert into accounts (id) overriding system value {taken}"));
    assert!(duplicate.expect_err("it is taken").contains("accounts_pkey"));
    assert_eq!(
        sql("set enable_seqscan = off; select count(*) from accounts where id in (select account from invoices)"),
        "500"
    );

    // Sequences go on behind.
    sql(
        "insert into accounts (code) values (null); insert into invoices (account) select min(id) from accounts; insert into parted default values; insert into falling default values",
    );
    assert_eq!(sql("select max(id) > 1000 from accounts"), "t");
    assert_eq!(
        sql("select (select max(id) from parted) - (select max(id) from invoices)"),
        "1",
        "one sequence fills both"
    );
    assert_eq!(sql("select count(*) from falling where n < -100"), "51");

    // Without the key it is another permutation.
    let (other, _) = masked(8);
    let order = "select string_agg(code::text, ' ' order by ctid) from codes";
    assert_ne!(other.sql(order), server.sql(order));
}

#[test]
fn a_number_outside_of_its_range_stops_it() {
    let server = start();
    server.sql("create table t (n int primary key); insert into t values (1), (99), (100), (-5)");
    let rules = |range: &str| {
        format!(r#"{{ "version": 1, "columns": {{ "postgres.public.t": {{ "n": {{ "permute_in": {range} }} }} }} }}"#)
    };
    let error = run(&server, &rules("[1, 99]"), 1).expect_err("it cannot be exchanged with others");
    assert_eq!(
        error.to_string(),
        "postgres.public.t, column n: 2 value(s) are not in the range of permute in 1 to 99: widen it, or take permute without one"
    );
    assert_eq!(server.sql("select string_agg(n::text, ' ' order by n) from t"), "-5 1 99 100");
    run(&server, &rules("[-5, 100]"), 1).expect("masked");
    assert_eq!(server.sql("select count(distinct n) from t where n between -5 and 100"), "4");
}
