//! The diff on two real servers: one is a copy of the other from before the changes.

use ardent_api::page_service::{BlockRange, ChangedRelation};
use ardent_diff::{ChangeSet, CompareOptions, RowChange, Session, TableChange, TableState, compare, render_stat};
use ardent_test_pg::{StopMode, TestPg, TestPgOptions, server_command};
use ardent_types::{ForkNumber, RelTag, oid};

const SCHEMA: &str = "
    create table users (id int primary key, name text, note text default 'x');
    insert into users select g, 'user ' || g from generate_series(1, 2000) g;
    create table keyless (a int, b text);
    insert into keyless select g % 3, 'same' from generate_series(1, 9) g;
    create table fat (id int primary key, body text);
    alter table fat alter column body set storage external;
    insert into fat select g, repeat(md5(g::text), 400) from generate_series(1, 5) g;
    create table rewritten (id int primary key, v int);
    insert into rewritten select g, g from generate_series(1, 10) g;
    create table gone (id int primary key);
    insert into gone values (1), (2);
    create table widened (id int primary key, v int);
    insert into widened select g, g from generate_series(1, 5) g;
    create table quoted (\"Odd \"\"name\" int primary key, \"select\" text);
    create table untouched (id int primary key);
    insert into untouched values (1);
    create sequence numbers;
    create table partitioned (id int primary key, v int) partition by range (id);
    create table part_low partition of partitioned for values from (0) to (100);
    create table part_high partition of partitioned for values from (100) to (200);
    insert into partitioned values (1, 1), (150, 1);
    create table prepared (id int primary key, v int);
    insert into prepared values (1, 1), (2, 2);
    begin; update prepared set v = 20 where id = 2; prepare transaction 'later';
";

const CHANGES: &str = "
    insert into users values (9001, 'new one', null);
    update users set name = 'renamed' where id = 7;
    update users set name = name where id = 8;
    delete from users where id = 1500;
    update users set id = 9002 where id = 9;
    insert into keyless values (0, 'same');
    delete from keyless where ctid = (select min(ctid) from keyless where a = 1);
    update fat set body = repeat(md5('changed'), 400) where id = 3;
    update fat set id = 40 where id = 4;
    alter table rewritten alter column v type bigint;
    update rewritten set v = 100 where id = 1;
    drop table gone;
    create table fresh (id int primary key, v text);
    insert into fresh values (1, 'a');
    alter table widened add column w int default 5;
    update widened set w = 6 where id = 2;
    alter table widened rename column v to value;
    insert into quoted values (1, e'it''s a \\\\ b');
    select nextval('numbers'), nextval('numbers');
    update partitioned set v = 2 where id = 150;
    commit prepared 'later';
    vacuum users;
";

fn run(pg: &TestPg, script: &str) {
    for statement in script.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
        // Statements that belong to one transaction go in one call.
        if statement.starts_with("begin") || statement.starts_with("update prepared") {
            continue;
        }
        if statement.starts_with("prepare transaction") {
            let whole = script.split("begin;").nth(1).expect("a transaction");
            pg.sql(&format!("begin; {whole}"));
            continue;
        }
        pg.sql(statement);
    }
}

async fn open(pg: &TestPg, side: &'static str) -> Session {
    let (client, connection) =
        tokio_postgres::connect(&pg.socket_url("postgres"), tokio_postgres::NoTls).await.expect("connected");
    tokio::spawn(connection);
    Session::open(client, side, "postgres").await.expect("a session").0
}

/// Everything counts as changed: this test is about rows, not about which blocks.
fn all_blocks(pg: &TestPg) -> Vec<ChangedRelation> {
    let sql = "select pg_relation_filenode(oid), pg_relation_size(oid) / 8192 from pg_class \
               where relkind in ('r', 'm', 'S') and relname <> 'untouched' and relnamespace = 'public'::regnamespace";
    let dbnode: u32 = pg.sql("select oid from pg_database where datname = 'postgres'").trim().parse().expect("an OID");
    let parse = |line: &str| {
        let (relnode, nblocks) = line.split_once('|')?;
        let (relnode, count): (u32, u32) = (relnode.parse().ok()?, nblocks.parse().ok()?);
        let rel = RelTag { spcnode: oid::DEFAULT_TABLESPACE, dbnode, relnode, fork: ForkNumber::Main };
        let ranges = if count > 0 { vec![BlockRange { start: 0, count }] } else { vec![] };
        Some(ChangedRelation { rel, nblocks_from: Some(count), nblocks_to: Some(count), ranges })
    };
    pg.sql(sql).lines().filter_map(parse).collect()
}

fn table<'a>(set: &'a ChangeSet, name: &str) -> &'a TableChange {
    set.tables.iter().find(|table| table.name == name).unwrap_or_else(|| panic!("{name} is not in {set:?}"))
}

fn rows(table: &TableChange) -> Vec<RowChange> {
    table.rows.to_vec().expect("few")
}

fn row(values: &[&str]) -> Vec<Option<String>> {
    values.iter().map(|value| (*value != "NULL").then(|| (*value).to_owned())).collect()
}

fn insert(values: &[&str]) -> RowChange {
    RowChange::Insert { new: row(values) }
}

fn delete(values: &[&str]) -> RowChange {
    RowChange::Delete { old: row(values) }
}

fn update(old: &[&str], new: &[&str]) -> RowChange {
    RowChange::Update { old: row(old), new: row(new) }
}

#[test]
fn every_kind_of_change_is_shown_exactly() {
    let mut head = TestPg::start(TestPgOptions::default().set("max_prepared_transactions", "5"));
    run(&head, SCHEMA);
    head.stop(StopMode::Fast);
    let root = ardent_test_pg::temp_dir();
    let copy = root.path().join("data");
    let copied = server_command("cp").arg("-a").arg(head.data_dir()).arg(&copy).status().expect("cp runs");
    assert!(copied.success());
    let mut base = TestPg::adopt(root, copy, head.superuser());
    base.start_server();
    head.start_server();
    run(&head, CHANGES);

    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let set = runtime.block_on(async {
        let (old, new) = (open(&base, "branch point").await, open(&head, "head").await);
        let changed = all_blocks(&head);
        let database = changed.first().expect("changes").rel.dbnode;
        let set = compare(&old, &new, database, &changed, &CompareOptions::default()).await.expect("compared");
        // Without knowing what changed, everything is read, and the same comes out.
        let whole = CompareOptions { whole: true, ..CompareOptions::default() };
        let everything = compare(&old, &new, database, &[], &whole).await.expect("compared");
        assert_eq!((&everything.tables, &everything.sequences), (&set.tables, &set.sequences));
        assert!(!everything.schema.is_empty(), "the catalogs too");
        // With next to no memory too.
        let little = CompareOptions { memory_bytes: 1000, ..CompareOptions::default() };
        assert_eq!(compare(&old, &new, database, &changed, &little).await.expect("compared"), set);
        set
    });

    let users = table(&set, "users");
    assert_eq!(users.key, ["id"]);
    let expect = vec![
        update(&["7", "user 7", "x"], &["7", "renamed", "x"]),
        insert(&["9001", "new one", "NULL"]),
        insert(&["9002", "user 9", "x"]),
        delete(&["1500", "user 1500", "x"]),
        delete(&["9", "user 9", "x"]),
    ];
    assert_eq!(rows(users), expect);
    assert_eq!(rows(table(&set, "keyless")), [insert(&["0", "same"]), delete(&["1", "same"])]);
    assert_eq!(table(&set, "keyless").copies.to_vec().expect("few"), [3, 3], "at the branch point");
    let fat = rows(table(&set, "fat"));
    assert_eq!(fat.len(), 3);
    assert!(
        matches!(&fat[0], RowChange::Update { new, .. } if new[1].as_ref().is_some_and(|body| body.len() == 12_800))
    );
    assert_eq!(rows(table(&set, "rewritten")), [update(&["1", "1"], &["1", "100"])]);
    let gone = table(&set, "gone");
    assert_eq!((gone.state, rows(gone)), (TableState::Dropped, vec![delete(&["1"]), delete(&["2"])]));
    let fresh = table(&set, "fresh");
    assert_eq!((fresh.state, rows(fresh)), (TableState::Created, vec![insert(&["1", "a"])]));
    let widened = table(&set, "widened");
    assert_eq!(widened.columns_added, ["w"]);
    assert_eq!(rows(widened), [update(&["2", "2", "5"], &["2", "2", "6"])]);
    assert_eq!(rows(table(&set, "quoted")), [insert(&["1", "it's a \\ b"])]);
    assert_eq!(rows(table(&set, "part_high")), [update(&["150", "1"], &["150", "2"])]);
    assert_eq!(rows(table(&set, "prepared")), [update(&["2", "2"], &["2", "20"])]);
    assert!(!set.tables.iter().any(|table| table.name == "part_low" || table.name == "untouched"));
    let numbers: Vec<_> = set.sequences.iter().map(|change| (change.name.as_str(), change.old, change.new)).collect();
    assert_eq!(numbers, [("numbers", Some(1), Some(2))]);
    let mut stat = Vec::new();
    render_stat(&mut stat, &[set]).expect("memory can be written");
    let stat = String::from_utf8(stat).expect("text");
    assert!(stat.contains("public.users") && stat.contains("+2 ~1 -2"), "{stat}");
}
