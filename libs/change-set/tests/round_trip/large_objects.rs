//! Large objects, with their owners, privileges and comments.

use ardent_change_set::{ApplyError, ApplyOptions, Conflict};
use ardent_diff::TableState;

use crate::pair::Pair;

/// The fixed large objects are 7001, 7002 and 7003, of the superuser.
fn with_roles() -> Pair {
    let pair = Pair::alone();
    pair.sql("create role ann; create role \"Bob\"; create role ghost");
    pair
}

#[test]
fn owners_privileges_and_comments_there_and_back() {
    let pair = with_roles();
    for statement in [
        "select lo_create(7004), lo_from_bytea(7005, 'gone')",
        "grant select on large object 7004 to ann with grant option; comment on large object 7004 is 'was'",
        "alter large object 7005 owner to ann; grant update on large object 7005 to \"Bob\"; comment on large object 7005 is 'goes'",
    ] {
        pair.sql_in("base", statement);
    }
    pair.copy("base", "head");
    for statement in [
        "alter large object 7001 owner to ann; grant select on large object 7001 to \"Bob\"; comment on large object 7001 is 'it''s new'",
        "select lo_put(7002, 3, '\\x0102'), lo_truncate(lo_open(7002, 131072), 3000); comment on large object 7002 is 'too'",
        "revoke all on large object 7004 from ann; grant select, update on large object 7004 to public; comment on large object 7004 is null",
        "select lo_unlink(7005)",
        "select lo_create(7010); alter large object 7010 owner to \"Bob\"; revoke update on large object 7010 from \"Bob\"",
        "comment on large object 7010 is 'empty'",
    ] {
        pair.sql_in("head", statement);
    }
    let set = pair.round_trip("large objects");
    let found: Vec<_> =
        set.large_objects.iter().map(|change| (change.oid, change.state, change.properties())).collect();
    let expect = [
        (7001, TableState::Kept, vec!["owner", "privileges", "comment"]),
        (7002, TableState::Kept, vec!["comment"]),
        (7004, TableState::Kept, vec!["privileges", "comment"]),
        (7005, TableState::Dropped, vec![]),
        (7010, TableState::Created, vec![]),
    ];
    assert_eq!(found, expect);
    pair.assert_scripted(&set, "large objects");

    // What the target has by now is left as it is, and not undone.
    pair.copy("base", "target");
    pair.sql_in("target", "alter large object 7001 owner to ann; grant select on large object 7001 to \"Bob\"");
    pair.sql_in("target", "comment on large object 7004 is null");
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    assert_eq!((applied.conflicts, applied.already_there), (vec![], 2));
    pair.assert_equal("target", "head", "some of it was there", &set);
    let left: Vec<_> =
        applied.inverse.large_objects.iter().map(|change| (change.oid, change.properties())).take(3).collect();
    assert_eq!(left, [(7001, vec!["comment"]), (7002, vec!["comment"]), (7004, vec!["privileges"])]);
}

#[test]
fn what_both_gave_one_is_a_conflict() {
    let pair = with_roles();
    let check = |branch: &str, target: &str, expect: &[&str]| {
        pair.copy("base", "head");
        pair.sql_in("head", branch);
        let set = pair.diff();
        pair.copy("base", "target");
        pair.sql_in("target", target);
        let applied = pair.apply("target", &set, &ApplyOptions::default());
        let whys: Vec<&str> = applied
            .conflicts
            .iter()
            .map(|conflict| match conflict {
                Conflict::LargeObject { oid: 7001, why } => why.as_str(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(whys, expect, "{branch} / {target}");
        assert_eq!(applied.already_there, u64::from(expect.is_empty()), "{branch} / {target}");
    };
    let (to_ann, to_bob) = ("alter large object 7001 owner to ann", "alter large object 7001 owner to \"Bob\"");
    let access = "both gave it another owner or other privileges";
    check(to_ann, to_bob, &[access]);
    check(to_ann, "grant select on large object 7001 to ann", &[access]);
    check(to_ann, to_ann, &[]);
    let comment = |text: &str| format!("comment on large object 7001 is '{text}'");
    check(&comment("a"), &comment("b"), &["both gave it another comment"]);
    check(&comment("a"), &comment("a"), &[]);
    let unlink = "select lo_unlink(7001)";
    let deleted = ["another comment", "another owner or other privileges"];
    let deleted = deleted.map(|what| format!("the branch deleted it; the target gave it {what}"));
    check(unlink, &comment("b"), &[&deleted[0]]);
    check(unlink, to_bob, &[&deleted[1]]);
}

#[test]
fn one_that_both_made_the_same_is_there_already() {
    let pair = with_roles();
    let content = "decode(repeat('0a0b00', 2000), 'hex')";
    let made = format!("select lo_from_bytea(7010, {content}), lo_create(7011); comment on large object 7010 is 'new'");
    pair.copy("base", "head");
    pair.sql_in("head", &made);
    let set = pair.diff();
    let check = |there: &str, expect: &[u32], already_there: u64| {
        pair.copy("base", "target");
        pair.sql_in("target", &made);
        pair.sql_in("target", there);
        let applied = pair.apply("target", &set, &ApplyOptions::default());
        let conflicts: Vec<u32> = applied
            .conflicts
            .iter()
            .map(|conflict| match conflict {
                Conflict::LargeObject { oid, .. } => *oid,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!((&conflicts[..], applied.already_there), (expect, already_there), "{there}");
    };
    check("select 1", &[], 2);
    check("select lo_put(7010, 5999, '\\x01')", &[7010], 1);
    check("select lo_put(7010, 6000, '\\x00')", &[7010], 1);
    check("select lo_truncate(lo_open(7010, 131072), 5999)", &[7010], 1);
    check("comment on large object 7010 is 'other'", &[7010], 1);
    check("alter large object 7011 owner to ann", &[7011], 1);
    check("select lo_put(7011, 0, '\\x00')", &[7011], 1);
}

#[test]
fn pages_that_the_target_has_already_are_left() {
    let pair = Pair::new();
    pair.copy("base", "head");
    pair.sql_in("head", "select lo_put(7002, 3, '\\x0102'), lo_truncate(lo_open(7002, 131072), 3000)");
    pair.sql_in("head", "select lo_put(7001, 0, '\\xff'); comment on large object 7001 is 'new'");
    let set = pair.diff();
    pair.copy("base", "target");
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    assert_eq!((applied.conflicts, applied.already_there), (vec![], 0));
    let again = pair.apply("target", &set, &ApplyOptions::default());
    assert_eq!((&again.conflicts[..], again.already_there, again.is_unchanged()), (&[][..], 3, true));
    pair.assert_equal("target", "head", "applied twice", &set);
    // Of two changed pages the target has one.
    pair.copy("base", "target");
    pair.sql_in("target", "select lo_put(7002, 3, '\\x0102')");
    let applied = pair.apply("target", &set, &ApplyOptions::default());
    assert!(matches!(&applied.conflicts[..], [Conflict::LargeObject { oid: 7002, .. }]), "{:?}", applied.conflicts);
}

#[test]
fn a_role_that_the_target_does_not_have_is_named() {
    let pair = with_roles();
    pair.copy("base", "head");
    pair.sql_in("head", "comment on large object 7002 is 'x'; grant select on large object 7001 to ghost");
    let set = pair.diff();
    pair.copy("base", "target");
    pair.sql("alter role ghost rename to visible");
    let refused = pair.try_apply("target", &set, &ApplyOptions::default());
    let Err(ApplyError::Statement { statement, source }) = &refused else { panic!("{refused:?}") };
    assert_eq!(statement, "GRANT SELECT ON LARGE OBJECT 7001 TO ghost");
    let message = source.as_db_error().map(|error| error.message());
    assert_eq!(message, Some("role \"ghost\" does not exist"));
    pair.assert_equal("target", "base", "nothing was done", &set);
}
