//! Large objects on two databases of a real server: only what is in changed blocks is read.

use ardent_api::page_service::{BlockRange, ChangedRelation};
use ardent_diff::{CompareOptions, LargeObjectChange, Part, Session, Sides, TableState, compare};
use ardent_test_pg::{TestPg, TestPgOptions};
use ardent_types::{ForkNumber, RelTag, oid};

const OBJECTS: &str = "create table t (); select count(lo_create(n)) from generate_series(1001, 3000) n";

const CHANGES: &str = "
    alter large object 1001 owner to ann; grant select on large object 1002 to \"Bob\";
    comment on large object 1003 is 'a comment'; comment on table t is 'of no large object';
    select lo_unlink(1004); select lo_create(5000);
    alter large object 1005 owner to ann; alter large object 1005 owner to current_user";

async fn open(pg: &TestPg, database: &str) -> Session {
    let (client, connection) =
        tokio_postgres::connect(&pg.socket_url(database), tokio_postgres::NoTls).await.expect("connected");
    tokio::spawn(connection);
    Session::open(client, database, database).await.expect("a session").0
}

/// All blocks of one of the catalogs.
fn blocks(pg: &TestPg, dbnode: u32, catalog: &str) -> ChangedRelation {
    let number = |sql: &str| -> u32 { pg.sql_in("head", sql).parse().expect("a number") };
    let relnode = number(&format!("select pg_relation_filenode('{catalog}')"));
    let count = number(&format!("select pg_relation_size('{catalog}') / 8192"));
    let rel = RelTag { spcnode: oid::DEFAULT_TABLESPACE, dbnode, relnode, fork: ForkNumber::Main };
    let ranges = vec![BlockRange { start: 0, count }];
    ChangedRelation { rel, nblocks_from: Some(count), nblocks_to: Some(count), ranges }
}

#[test]
fn owners_privileges_and_comments_are_read_from_changed_blocks() {
    let pg = TestPg::start(TestPgOptions::default());
    pg.sql("create role ann; create role \"Bob\"");
    pg.sql("create database base");
    pg.sql_in("base", OBJECTS);
    pg.sql("create database head template base");
    pg.sql_in("head", CHANGES);
    let dbnode: u32 = pg.sql("select oid from pg_database where datname = 'head'").parse().expect("an OID");
    let objects = blocks(&pg, dbnode, "pg_largeobject_metadata");
    let comments = blocks(&pg, dbnode, "pg_description");
    assert!(objects.nblocks_to > Some(5), "the objects are in several blocks");

    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let found = |changed: &[ChangedRelation], whole: bool| -> Vec<LargeObjectChange> {
        runtime.block_on(async {
            let (base, head) = (open(&pg, "base").await, open(&pg, "head").await);
            let options = CompareOptions { part: Part::Rows, whole, ..CompareOptions::default() };
            compare(&base, &head, dbnode, changed, &options).await.expect("compared").large_objects
        })
    };
    let told = |changes: &[LargeObjectChange]| -> Vec<(u32, TableState, Vec<&'static str>)> {
        changes.iter().map(|change| (change.oid, change.state, change.properties())).collect()
    };
    let kept = |oid: u32, property: &'static str| (oid, TableState::Kept, vec![property]);
    let (owner, privileges, comment) = (kept(1001, "owner"), kept(1002, "privileges"), kept(1003, "comment"));
    let (gone, new) = ((1004, TableState::Dropped, vec![]), (5000, TableState::Created, vec![]));
    let access = vec![owner.clone(), privileges.clone(), gone.clone(), new.clone()];
    let all = vec![owner, privileges, comment.clone(), gone, new];
    assert_eq!(told(&found(&[objects.clone(), comments.clone()], false)), all);
    assert_eq!(told(&found(&[], true)), all);
    assert_eq!(told(&found(&[comments.clone()], false)), [comment]);
    assert_eq!(told(&found(&[objects.clone()], false)), access);
    // The first objects' rows are where they were, or behind all others.
    let first = BlockRange { start: 0, count: 1 };
    let last = ChangedRelation { ranges: vec![BlockRange { start: 1, ..objects.ranges[0] }], ..objects.clone() };
    assert!(found(&[last], false).iter().all(|change| change.oid != 1004), "the block that it was in is not read");
    let first = found(&[ChangedRelation { ranges: vec![first], ..objects }, comments], false);
    let deleted = first.iter().find(|change| change.oid == 1004).expect("the block that it was in is read");
    let access = deleted.access.as_ref().and_then(|access| access.old.as_ref()).expect("its owner is known");
    assert_eq!(access.owner, pg.superuser());
    let said = first.iter().find(|change| change.oid == 1003).and_then(|change| change.comment.clone());
    assert_eq!(said, Some(Sides { old: None, new: Some("a comment".to_owned()) }));
}
