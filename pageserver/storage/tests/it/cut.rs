//! Roots cut from a timeline's history: what they hold, and what cannot be had from them (PS-10).

use std::collections::{BTreeMap, BTreeSet};

use ardent_object_store::fault::{FailPoints, FaultAction};
use ardent_storage::{BranchPoint, CutError, CutRoot, Engine, ErrorKind, ReadError, Timeline, TimelineError};
use ardent_types::{BlockNumber, ForkNumber, Key, RelTag};
use bytes::Bytes;

use crate::support::*;

const ROOT: u8 = 1;
const SOURCE: u8 = 2;
const CUT: u8 = 3;
const GONE: RelTag = RelTag { relnode: 16_500, ..REL };
const INHERITED: RelTag = RelTag { relnode: 16_600, ..REL };
/// What no catalog names.
const UNNAMED: RelTag = RelTag { relnode: 16_550, ..REL };
/// Where the source is cut.
const AT: u64 = 0x300;

fn size(blocks: BlockNumber) -> ardent_pg_redo::Value {
    ardent_pg_redo::Value::Image(Bytes::copy_from_slice(&blocks.to_le_bytes()))
}

fn no_size() -> ardent_pg_redo::Value {
    ardent_pg_redo::Value::Image(Bytes::new())
}

fn cut(at: u64) -> CutRoot {
    let metadata = BTreeMap::from([("named".to_owned(), serde_json::json!("yes"))]);
    CutRoot {
        tenant: TENANT,
        timeline: timeline_id(CUT),
        source: timeline_id(SOURCE),
        at: lsn(at),
        without: BTreeSet::from([UNNAMED]),
        metadata,
    }
}

/// A branch of a root that has overwritten, cut short and dropped what was secret, and kept what it did not touch.
fn source(engine: &Engine) -> std::sync::Arc<Timeline> {
    let root = empty_root(engine, ROOT);
    let before = vec![
        (Key::RelSize(REL), lsn(0x110), size(3)),
        (Key::RelSize(GONE), lsn(0x110), size(1)),
        (Key::RelSize(INHERITED), lsn(0x110), size(1)),
        (block(0), lsn(0x110), image("secret-0")),
        (block(1), lsn(0x110), image("secret-1")),
        (block(2), lsn(0x110), image("secret-2")),
        (Key::RelBlock(GONE, 0), lsn(0x110), image("secret-gone")),
        (Key::RelBlock(INHERITED, 0), lsn(0x110), image("plain")),
        (Key::RelSize(UNNAMED), lsn(0x110), size(1)),
        (Key::RelSize(UNNAMED.with_fork(ForkNumber::Vm)), lsn(0x110), size(1)),
        (Key::RelBlock(UNNAMED, 0), lsn(0x110), image("secret-unnamed")),
        (Key::AuxFile(7), lsn(0x110), image("small")),
        (Key::AuxFile(8), lsn(0x110), image("secret-small")),
    ];
    root.put(before, at(0x110)).unwrap();
    root.flush().unwrap();
    engine.create_branch(TENANT, timeline_id(SOURCE), timeline_id(ROOT), None).unwrap();
    let source = engine.timeline(TENANT, timeline_id(SOURCE)).unwrap();
    source.put(vec![(block(0), lsn(0x118), delta("+more"))], at(0x118)).unwrap();
    source.flush().unwrap();
    source.put(vec![(block(1), lsn(0x2F0), image("masked"))], at(0x2F0)).unwrap();
    let masked = vec![
        (Key::RelSize(REL), lsn(AT), size(2)),
        (Key::RelSize(GONE), lsn(AT), no_size()),
        (block(0), lsn(AT), image("masked-0")),
        (block(1), lsn(AT), delta("-1")),
        (Key::AuxFile(8), lsn(AT), image("")),
    ];
    source.put(masked, at(AT)).unwrap();
    let after = vec![(block(0), lsn(0x310), image("later"))];
    source.put(after, at(0x310)).unwrap();
    source
}

/// What the cut holds is what the source held there, whatever happens to the timelines that it was made of.
fn check_content(cut: &Timeline, at: u64) {
    assert_eq!(text(cut, block(0), at).as_deref(), Some("masked-0"));
    assert_eq!(text(cut, block(1), at).as_deref(), Some("masked-1"));
    assert_eq!(text(cut, Key::RelBlock(INHERITED, 0), at).as_deref(), Some("plain"));
    assert_eq!(text(cut, Key::AuxFile(7), at).as_deref(), Some("small"));
    for gone in [block(2), Key::RelBlock(GONE, 0), Key::RelSize(GONE), Key::RelBlock(UNNAMED, 0), Key::AuxFile(8)] {
        assert_eq!(text(cut, gone, at), None, "{gone}");
    }
    assert_eq!(cut.get(&Key::RelSize(REL), lsn(at)).unwrap().unwrap()[..], 2u32.to_le_bytes());
}

#[test]
fn a_cut_root_has_what_the_source_had_at_one_lsn_and_nothing_from_before() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    let source = source(&engine);
    // The negative control: the source still gives all of it.
    assert_eq!(text(&source, block(0), 0x118).as_deref(), Some("secret-0+more"));
    assert_eq!(text(&source, Key::RelBlock(GONE, 0), 0x118).as_deref(), Some("secret-gone"));

    let point = engine.cut_root(cut(AT)).unwrap();
    assert_eq!(point, BranchPoint { lsn: lsn(AT), prev_lsn: lsn(AT - 8) });
    let root = engine.timeline(TENANT, timeline_id(CUT)).unwrap();
    assert!(root.ancestor().is_none() && root.last_record() == at(AT));
    assert_eq!(root.get_metadata("named"), Some(serde_json::json!("yes")));
    check_content(&root, AT);
    for early in [1, 0x110, 0x118, AT - 1] {
        assert!(matches!(root.get(&block(0), lsn(early)), Err(ReadError::Retired { .. })), "at {early:#x}");
        let branch = engine.create_branch(TENANT, timeline_id(9), timeline_id(CUT), Some(lsn(early)));
        assert!(matches!(branch, Err(TimelineError::Retired { .. })), "at {early:#x}");
    }
    assert!(matches!(root.get(&block(0), lsn(0x310)), Err(ReadError::NotYet { .. })));

    // Nothing is in its layers but what was read.
    let (versions, damaged) = root.verify().unwrap();
    assert!(damaged.is_empty());
    assert_eq!(versions, 6, "two sizes, a small value, three blocks");
    let everything = Key::Checkpoint..=Key::RelBlock(RelTag { spcnode: u32::MAX, ..REL }, u32::MAX);
    assert_eq!(root.changed_keys(everything, lsn(1), lsn(AT)).unwrap().len(), 6);

    // Again: the same. Then without what it was made of, after a restart, and on a branch of it.
    assert_eq!(engine.cut_root(cut(AT)).unwrap(), point);
    drop(source);
    engine.delete_timeline(TENANT, timeline_id(SOURCE)).unwrap();
    engine.delete_timeline(TENANT, timeline_id(ROOT)).unwrap();
    check_content(&root, AT);
    drop(root);
    engine.shutdown().unwrap();
    drop(engine);
    let engine = open(folder.path());
    engine.create_branch(TENANT, timeline_id(4), timeline_id(CUT), None).unwrap();
    let branch = engine.timeline(TENANT, timeline_id(4)).unwrap();
    branch.put(vec![(block(1), lsn(AT + 8), delta("-branch"))], at(AT + 8)).unwrap();
    check_content(&branch, AT);
    assert_eq!(text(&branch, block(1), AT + 8).as_deref(), Some("masked-1-branch"));
    for early in [0x110, 0x118, AT - 1] {
        assert!(matches!(branch.get(&block(0), lsn(early)), Err(ReadError::Retired { .. })), "at {early:#x}");
    }
}

#[test]
fn a_cut_that_crashed_is_made_anew_and_never_read_from_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let faults = std::sync::Arc::new(FailPoints::new());
    {
        let engine = Engine::open(config(folder.path(), &faults)).unwrap();
        let source = source(&engine);
        source.flush().unwrap();
        // The first manifest of the new root passes, the one that ends its import does not.
        faults.arm("manifest.before", 2, FaultAction::Fail);
        let failed = engine.cut_root(cut(AT)).unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Retry, "{failed:?}");
        let half = engine.timeline(TENANT, timeline_id(CUT)).unwrap();
        assert!(half.is_importing());
        assert!(matches!(half.get(&block(0), lsn(AT)), Err(ReadError::Importing { .. })));
        let branch = engine.create_branch(TENANT, timeline_id(4), timeline_id(CUT), None);
        assert!(matches!(branch, Err(TimelineError::Importing { .. })));
    }
    let engine = open(folder.path());
    engine.cut_root(cut(AT)).unwrap();
    check_content(&engine.timeline(TENANT, timeline_id(CUT)).unwrap(), AT);
    // And one that is given up leaves nothing.
    engine.delete_timeline(TENANT, timeline_id(CUT)).unwrap();
    assert!(
        !folder.path().join("store/timelines").join(TENANT.to_string()).join(timeline_id(CUT).to_string()).exists()
    );
}

#[test]
fn what_cannot_be_read_or_lies_elsewhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    let source = source(&engine);
    let before = engine.cut_root(cut(0x10F)).unwrap_err();
    assert!(matches!(before, CutError::Timeline(TimelineError::Retired { .. })), "an ancestor's state: {before:?}");
    let ahead = engine.cut_root(cut(0x999)).unwrap_err();
    assert!(matches!(ahead, CutError::Timeline(TimelineError::NotYet { .. })), "{ahead:?}");
    // A change without what it changes.
    let lost = RelTag { relnode: 16_700, ..REL };
    source.put(vec![(Key::RelSize(lost), lsn(0x320), size(1))], at(0x320)).unwrap();
    source.put(vec![(Key::RelBlock(lost, 0), lsn(0x328), delta("nothing below"))], at(0x328)).unwrap();
    let unreadable = engine.cut_root(cut(0x328)).unwrap_err();
    assert!(matches!(unreadable, CutError::Read(ReadError::Rebuild { .. })), "{unreadable:?}");
    assert!(
        engine.timeline(TENANT, timeline_id(CUT)).unwrap().is_importing(),
        "and nobody can use what there is of it"
    );
    let other = engine.cut_root(cut(AT)).unwrap_err();
    assert!(matches!(other, CutError::Timeline(TimelineError::Conflict { .. })), "{other:?}");
}
