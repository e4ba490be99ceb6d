//! Golden bytes, truncated and corrupt input.

use ardent_pgoutput::{
    Begin, Change, Column, Commit, Message, Relation, ReplicaIdentity, Truncate, Tuple, TypeName, Update, Value,
};
use ardent_types::Lsn;
use bytes::Bytes;
use proptest::prelude::*;

fn bytes(hex: &str) -> Bytes {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex");
    digits.chunks(2).map(byte).collect()
}

fn text(value: &'static str) -> Value {
    Value::Text(Bytes::from_static(value.as_bytes()))
}

/// Messages as a server of Postgres 15 sent them, and what they say.
fn golden() -> Vec<(&'static str, Message)> {
    let key =
        |name: &str, is_key, type_oid, type_modifier| Column { is_key, name: name.into(), type_oid, type_modifier };
    vec![
        (
            "42 00000000 01573A50 0002A5B2 C5D0F1A3 000002E6",
            Message::Begin(Begin { final_lsn: Lsn::new(0x0157_3A50), committed_us: 0x0002_A5B2_C5D0_F1A3, xid: 0x2E6 }),
        ),
        (
            "43 00 00000000 01573A50 00000000 01573A80 0002A5B2 C5D0F1A3",
            Message::Commit(Commit {
                commit_lsn: Lsn::new(0x0157_3A50),
                end_lsn: Lsn::new(0x0157_3A80),
                committed_us: 0x0002_A5B2_C5D0_F1A3,
            }),
        ),
        ("4F 00000000 000000FF 6F7468657200", Message::Origin { lsn: Lsn::new(0xFF), name: "other".into() }),
        (
            "52 00004001 7075626C696300 7400 64 0002 01 696400 00000017 FFFFFFFF 00 6E00 00000413 0000000E",
            Message::Relation(Relation {
                oid: 0x4001,
                schema: "public".into(),
                name: "t".into(),
                identity: ReplicaIdentity::Default,
                columns: vec![key("id", true, 23, -1), key("n", false, 1043, 14)],
            }),
        ),
        (
            "59 00004002 00 6D6F6F6400",
            Message::Type(TypeName { oid: 0x4002, schema: "pg_catalog".into(), name: "mood".into() }),
        ),
        (
            "49 00004001 4E 0002 74 00000001 31 6E",
            Message::Insert(Change { relation: 0x4001, row: Tuple(vec![text("1"), Value::Null]), is_whole: true }),
        ),
        (
            "55 00004001 4B 0002 74 00000001 31 6E 4E 0002 74 00000001 32 75",
            Message::Update(Update {
                relation: 0x4001,
                old: Some(Tuple(vec![text("1"), Value::Null])),
                old_is_whole: false,
                new: Tuple(vec![text("2"), Value::Unchanged]),
            }),
        ),
        (
            "55 00004001 4E 0001 74 00000000",
            Message::Update(Update { relation: 0x4001, old: None, old_is_whole: false, new: Tuple(vec![text("")]) }),
        ),
        (
            "44 00004001 4F 0001 74 00000002 C3A4",
            Message::Delete(Change { relation: 0x4001, row: Tuple(vec![text("ä")]), is_whole: true }),
        ),
        (
            "54 00000002 03 00004001 00004002",
            Message::Truncate(Truncate { cascade: true, restart_identity: true, relations: vec![0x4001, 0x4002] }),
        ),
        (
            "4D 01 00000000 000000FF 6100 00000002 6263",
            Message::Logical {
                transactional: true,
                lsn: Lsn::new(0xFF),
                prefix: "a".into(),
                content: Bytes::from_static(b"bc"),
            },
        ),
    ]
}

#[test]
fn messages_are_read_as_they_are_documented() {
    for (hex, expect) in golden() {
        assert_eq!(Message::decode(bytes(hex)), Ok(expect), "{hex}");
    }
}

#[test]
fn a_message_that_is_cut_or_followed_by_more_is_refused_where_it_ends() {
    for (hex, _) in golden() {
        let whole = bytes(hex);
        for length in 0..whole.len() {
            let error = Message::decode(whole.slice(..length)).expect_err(hex);
            assert!(error.offset <= length, "{hex}: {error}");
        }
        let more = Bytes::from([&whole[..], &[0]].concat());
        assert_eq!(Message::decode(more).expect_err(hex).offset, whole.len(), "{hex}");
    }
}

#[test]
fn unknown_kinds_are_named() {
    for hex in ["5A", "49 00004001 58 0000", "49 00004001 4E 0001 62 00000000", "43 01", "54 FFFFFFFF 00"] {
        assert!(Message::decode(bytes(hex)).is_err(), "{hex}");
    }
    // The count is not believed: nothing is allocated for it.
    assert!(Message::decode(bytes("49 00004001 4E FFFF 6E")).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(mut input in proptest::collection::vec(any::<u8>(), 0..200), kind in 0usize..11) {
        if let Some(first) = input.first_mut() {
            *first = b"BCORYIUDTMS"[kind];
        }
        let length = input.len();
        if let Err(error) = Message::decode(input.into()) {
            prop_assert!(error.offset <= length);
        }
    }

    #[test]
    fn one_changed_byte_is_read_or_refused(which in 0usize..11, at in any::<proptest::sample::Index>(), byte in any::<u8>()) {
        let (hex, _) = &golden()[which];
        let mut input = bytes(hex).to_vec();
        let at = at.index(input.len());
        input[at] = byte;
        let length = input.len();
        if let Err(error) = Message::decode(input.into()) {
            prop_assert!(error.offset <= length);
        }
    }
}
