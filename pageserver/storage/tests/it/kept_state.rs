//! What a timeline's last compute left: whole or not at all, and never an older one's.

use std::sync::Arc;

use ardent_object_store::fault::FailPoints;
use ardent_object_store::{LocalFolder, ObjectStore, list_all};
use ardent_storage::{KeptStateError, KeptStateId, OrphanKind, Timeline, survey};
use ardent_types::Term;

use crate::support::*;

fn id(term: u64, end: u64) -> KeptStateId {
    KeptStateId { lsn: lsn(end), term: Term::new(term) }
}

fn keep(timeline: &Timeline, id: KeptStateId, parts: &[&str]) -> Result<(), KeptStateError> {
    for (number, part) in (0..).zip(parts) {
        timeline.keep_part(id, number, part.as_bytes())?;
    }
    timeline.keep_state(id, parts.len() as u32)
}

fn kept(timeline: &Timeline) -> Option<(KeptStateId, bool, String)> {
    let head = timeline.kept_state().unwrap()?;
    let parts = (0..head.parts() as u32).map(|number| timeline.kept_part(head.id, number).unwrap());
    let text = parts.map(|part| String::from_utf8(part.to_vec()).unwrap()).collect();
    Some((head.id, head.outdated, text))
}

#[test]
fn a_state_is_kept_until_a_newer_writer_leaves_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    let root = empty_root(&engine, 1);
    assert_eq!(kept(&root), None);
    keep(&root, id(3, 0x200), &["one ", "two"]).unwrap();
    let expect = Some((id(3, 0x200), false, "one two".to_owned()));
    assert_eq!(kept(&root), expect);
    // Half of another changes nothing, also when it is given up for good.
    root.keep_part(id(4, 0x300), 0, b"half").unwrap();
    assert_eq!(kept(&root), expect);
    let survey_now = || survey(&LocalFolder::open(&folder.path().join("store")).unwrap()).unwrap();
    let found = survey_now();
    assert_eq!(found.unknown, Vec::<String>::new());
    assert_eq!(found.orphans.iter().map(|orphan| orphan.kind).collect::<Vec<_>>(), [OrphanKind::KeptPart]);
    assert!(matches!(root.keep_state(id(4, 0x300), 2), Err(KeptStateError::OutOfOrder { .. })));
    assert!(matches!(root.keep_part(id(4, 0x300), 1, b"x"), Err(KeptStateError::OutOfOrder { .. })));
    // An older writer, which does not know that it is.
    assert!(
        matches!(keep(&root, id(2, 0x900), &["old"]), Err(KeptStateError::Fenced { term, .. }) if term == Term::new(3))
    );
    assert_eq!(kept(&root), expect);
    keep(&root, id(4, 0x300), &["new"]).unwrap();
    assert_eq!(kept(&root), Some((id(4, 0x300), false, "new".to_owned())));
    assert!(matches!(root.kept_part(id(3, 0x200), 0), Err(KeptStateError::NotFound { .. })));
    assert_eq!(survey_now().orphans, [], "the parts of the others are gone");

    root.outdate_kept_state(id(3, 0x200)).unwrap();
    assert_eq!(kept(&root).map(|(_, outdated, _)| outdated), Some(false), "another one");
    root.outdate_kept_state(id(4, 0x300)).unwrap();
    drop((root, engine));
    let engine = open(folder.path());
    let root = engine.timeline(TENANT, timeline_id(1)).unwrap();
    assert_eq!(kept(&root), Some((id(4, 0x300), true, "new".to_owned())));
    // Not a branch's.
    engine.create_branch(TENANT, timeline_id(2), timeline_id(1), None).unwrap();
    let branch = engine.timeline(TENANT, timeline_id(2)).unwrap();
    assert_eq!(kept(&branch), None);
    keep(&branch, id(1, 0x300), &["branch"]).unwrap();
    drop(branch);
    engine.delete_timeline(TENANT, timeline_id(2)).unwrap();
    let store = LocalFolder::open(&folder.path().join("store")).unwrap();
    let left = list_all(&store as &dyn ObjectStore, &format!("timelines/{TENANT}/{}/", timeline_id(2)), false).unwrap();
    assert_eq!(left.objects, [], "it goes with its timeline");
}

#[test]
fn damage_is_named_and_the_next_state_is_good_again() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    let root = empty_root(&engine, 1);
    keep(&root, id(3, 0x200), &["one", "two"]).unwrap();
    let store = LocalFolder::open_with_faults(&folder.path().join("store"), Arc::new(FailPoints::new())).unwrap();
    let kept_objects = list_all(&store, &format!("timelines/{TENANT}/{}/kept/", timeline_id(1)), false).unwrap();
    let (head, parts): (Vec<_>, Vec<_>) =
        kept_objects.objects.into_iter().partition(|object| object.name.file_name() == "head");
    store.put(&parts[1].name, b"tow").unwrap();
    root.kept_part(id(3, 0x200), 0).unwrap();
    let error = root.kept_part(id(3, 0x200), 1).unwrap_err();
    assert!(matches!(&error, KeptStateError::Corrupt(file) if file.file == parts[1].name.as_str()), "{error}");
    store.put(&head[0].name, b"nonsense").unwrap();
    assert!(matches!(root.kept_state(), Err(KeptStateError::Corrupt(_))));
    root.outdate_kept_state(id(3, 0x200)).unwrap();
    keep(&root, id(4, 0x300), &["new"]).unwrap();
    assert_eq!(kept(&root), Some((id(4, 0x300), false, "new".to_owned())));
}
