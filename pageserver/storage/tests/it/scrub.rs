//! What lies in a store beside what manifests name: leftovers are found, and removed once they are old enough; the same on a folder
//! and on S3.

use std::sync::Arc;

use ardent_object_store::fault::{FailPoints, FaultAction};
use ardent_object_store::{LocalFolder, ObjectName, ObjectStore, list_all};
use ardent_object_store_s3::{S3Keys, S3Location, S3Options, S3Store};
use ardent_pg_format::segment::wal_file_name;
use ardent_storage::{Engine, EngineConfig, OrphanKind, RemovedOrphans, WAL_ARCHIVE_MARK, remove_orphans, survey};
use ardent_test_s3::{Fault, FaultProxy, Seaweed};
use ardent_types::TimelineId;

use crate::support::*;

const FAR_FUTURE_S: u64 = u64::MAX;

fn name(text: String) -> ObjectName {
    ObjectName::new(text).unwrap()
}

fn check(store: Arc<dyn ObjectStore>) {
    let folder = tempfile::tempdir().unwrap();
    let config = EngineConfig { store: store.clone(), ..config(folder.path(), &Arc::new(FailPoints::new())) };
    let engine = Engine::open(config.clone()).unwrap();
    let root = empty_root(&engine, 1);
    root.put(vec![(block(0), lsn(0x110), image("a"))], at(0x110)).unwrap();
    root.flush().unwrap();
    engine.create_branch(TENANT, timeline_id(2), timeline_id(1), None).unwrap();
    let whole: Vec<_> = list_all(&*store, "", false).unwrap().objects.into_iter().map(|object| object.name).collect();

    // What crashes leave: a layer that no manifest names, a pin of a branch that never came to be, layers of a timeline whose
    // manifests are gone, and something that this version does not know.
    let below = |timeline: TimelineId| format!("timelines/{TENANT}/{timeline}");
    let layer = name(format!("{}/layers/d0-0000000000000110-0000000000000000-0", below(timeline_id(1))));
    let pin = name(format!("{}/children/{}/0000000000000108.0000000000000100", below(timeline_id(1)), timeline_id(9)));
    let lost = name(format!("{}/layers/d0-0000000000000110-0000000000000000-0", below(timeline_id(8))));
    let foreign = name("elsewhere/file".to_owned());
    for (object, body) in [(&layer, &b"layer"[..]), (&pin, b""), (&lost, b"lost"), (&foreign, b"?")] {
        store.put(object, body).unwrap();
    }

    let found = survey(&*store).unwrap();
    let kinds: Vec<_> = found.orphans.iter().map(|orphan| (orphan.object.as_str(), orphan.kind)).collect();
    let expect = [
        (layer.as_str(), OrphanKind::Layer),
        (pin.as_str(), OrphanKind::BranchMarker),
        (lost.as_str(), OrphanKind::NoTimeline),
    ];
    assert_eq!(kinds.len(), expect.len(), "{kinds:?}");
    assert!(expect.iter().all(|orphan| kinds.contains(orphan)), "{kinds:?}");
    assert_eq!((found.problems.len(), found.unknown.as_slice()), (0, &["elsewhere/file".to_owned()][..]));
    assert_eq!(found.timelines.len(), 2);

    // Young ones may be something that is just being made.
    let now = found.orphans.iter().map(|orphan| orphan.modified_s).min().unwrap();
    let kept = remove_orphans(&*store, &found, now).unwrap();
    assert_eq!(kept, RemovedOrphans { objects: 0, bytes: 0, too_young: 3 });
    let removed = remove_orphans(&*store, &found, FAR_FUTURE_S).unwrap();
    assert_eq!(removed, RemovedOrphans { objects: 3, bytes: 9, too_young: 0 });
    store.delete(&foreign).unwrap();
    let left: Vec<_> = list_all(&*store, "", false).unwrap().objects.into_iter().map(|object| object.name).collect();
    assert_eq!(left, whole, "nothing that is needed went");

    // A deletion that was cut off after its manifest is a leftover as a whole, and takes its pin at the parent along.
    drop((root, engine));
    let manifests = list_all(&*store, &format!("{}/manifest/", below(timeline_id(2))), false).unwrap().objects;
    let newest = manifests.iter().map(|object| object.name.clone()).max().unwrap();
    mark_deleted(&*store, &newest);
    let found = survey(&*store).unwrap();
    assert!(!found.orphans.is_empty());
    assert!(found.orphans.iter().all(|orphan| orphan.kind == OrphanKind::DeletedTimeline), "{:?}", found.orphans);
    remove_orphans(&*store, &found, FAR_FUTURE_S).unwrap();
    assert_eq!(list_all(&*store, &below(timeline_id(2)), false).unwrap().objects, []);
    assert_eq!(list_all(&*store, &format!("{}/children/", below(timeline_id(1))), false).unwrap().objects, []);
    let engine = Engine::open(config).unwrap();
    assert_eq!(text(&engine.timeline(TENANT, timeline_id(1)).unwrap(), block(0), 0x110).as_deref(), Some("a"));

    // What a manifest names and is not there is said, with whose reads that concerns.
    let layers = list_all(&*store, &format!("{}/layers/", below(timeline_id(1))), false).unwrap().objects;
    store.delete(&layers[0].name).unwrap();
    let problems = survey(&*store).unwrap().problems;
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains(layers[0].name.as_str()) && problems[0].contains("is missing"), "{problems:?}");
}

#[test]
fn archived_wal_goes_with_the_history_that_it_belongs_to() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &Arc::new(FailPoints::new()));
    let store = config.store.clone();
    let engine = Engine::open(config.clone()).unwrap();
    let root = empty_root(&engine, 1);
    let (size, tli) = (root.facts().wal_segment_size, root.facts().pg_tli);
    let segment = |timeline: u8, number: u64| {
        let file = wal_file_name(tli, number, size);
        name(format!("timelines/{TENANT}/{}/wal/{file}", timeline_id(timeline)))
    };
    let there = |timeline: u8| -> Vec<ObjectName> {
        let listed = list_all(&*store, &format!("timelines/{TENANT}/{}/wal/", timeline_id(timeline)), false).unwrap();
        listed.objects.into_iter().map(|object| object.name).collect()
    };
    let archived = |timeline: u8, numbers: std::ops::Range<u64>| -> Vec<ObjectName> {
        numbers.map(|number| segment(timeline, number)).collect()
    };
    store.put(&name(WAL_ARCHIVE_MARK.to_owned()), b"").unwrap();
    for object in archived(1, 0..7) {
        store.put(&object, b"wal").unwrap();
    }
    let in_segment = |number: u64| number * size.bytes() + 0x100;
    for end in [in_segment(3), 5 * size.bytes() - 8, 5 * size.bytes(), in_segment(6)] {
        root.put(vec![(block(0), lsn(end), image("a"))], at(end)).unwrap();
    }
    root.flush().unwrap();
    root.collect_garbage(lsn(in_segment(3))).unwrap();
    assert_eq!(there(1), archived(1, 3..7), "the segment with the horizon is kept");
    root.collect_garbage(lsn(in_segment(4))).unwrap();
    assert_eq!(there(1), archived(1, 3..7), "so is that with the record before the horizon");
    // Up to a segment's very end it is needed.
    root.collect_garbage(lsn(5 * size.bytes() - 8)).unwrap();
    assert_eq!(there(1), archived(1, 4..7));
    root.collect_garbage(lsn(5 * size.bytes())).unwrap();
    assert_eq!(there(1), archived(1, 5..7));

    // One that comes late is a leftover; what is kept is none, and counts.
    assert_eq!(survey(&*store).unwrap().orphans, []);
    store.put(&segment(1, 2), b"late").unwrap();
    let found = survey(&*store).unwrap();
    let kinds: Vec<_> = found.orphans.iter().map(|orphan| (orphan.object.as_str(), orphan.kind)).collect();
    assert_eq!(kinds, [(segment(1, 2).as_str(), OrphanKind::OldWal)]);
    assert!(found.unknown.is_empty() && found.timelines[0].stored_bytes > found.timelines[0].layer_bytes + 10);
    remove_orphans(&*store, &found, FAR_FUTURE_S).unwrap();
    assert_eq!(there(1), archived(1, 5..7));

    // What the process before has left is found by the next.
    store.put(&segment(1, 4), b"late").unwrap();
    drop((root, engine));
    let engine = Engine::open(config).unwrap();
    let root = engine.timeline(TENANT, timeline_id(1)).unwrap();
    root.collect_garbage(lsn(5 * size.bytes())).unwrap();
    assert_eq!(there(1), archived(1, 5..7));
    engine.create_branch(TENANT, timeline_id(2), timeline_id(1), None).unwrap();
    for object in archived(2, 6..9) {
        store.put(&object, b"wal").unwrap();
    }
    // A retired timeline has no history of its own; a deleted one nothing.
    root.retire().unwrap();
    assert_eq!(there(1), []);
    assert_eq!(there(2), archived(2, 6..9));
    engine.delete_timeline(TENANT, timeline_id(2)).unwrap();
    assert_eq!(there(2), []);
}

/// Writes what a page server writes first when it deletes a timeline, and dies.
fn mark_deleted(store: &dyn ObjectStore, newest: &ObjectName) {
    let bytes = store.get(newest).unwrap();
    let (header, json) = bytes.split_at(16);
    let mut manifest: serde_json::Value = serde_json::from_slice(json).unwrap();
    let next = manifest["generation"].as_u64().unwrap() + 1;
    manifest["generation"] = next.into();
    manifest["deleted"] = true.into();
    let json = serde_json::to_vec(&manifest).unwrap();
    let mut body = header[..8].to_vec();
    body.extend_from_slice(&(json.len() as u32).to_le_bytes());
    body.extend_from_slice(&crc32fast::hash(&json).to_le_bytes());
    body.extend_from_slice(&json);
    let folder = newest.as_str().rsplit_once('/').unwrap().0;
    store.put_if_absent(&name(format!("{folder}/{next:016x}")), &body).unwrap();
}

#[test]
fn leftovers_in_a_folder_are_found_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    check(Arc::new(LocalFolder::open(folder.path()).unwrap()));
}

/// A store in a bucket of its own.
fn bucket(server: &Seaweed, bucket: &str, faults: &Arc<FailPoints>) -> Arc<S3Store> {
    bucket_at(&server.endpoint(), server, bucket, faults)
}

/// The same by way of `endpoint`.
fn bucket_at(endpoint: &str, server: &Seaweed, bucket: &str, faults: &Arc<FailPoints>) -> Arc<S3Store> {
    server.make_bucket(bucket);
    let location = S3Location::parse(&format!("s3://{bucket}/store?endpoint={endpoint}")).unwrap();
    let (access, secret) = server.keys();
    let keys = S3Keys { access: access.to_owned(), secret: secret.to_owned() };
    let options = S3Options { keys: Some(keys), faults: faults.clone(), ..S3Options::default() };
    Arc::new(S3Store::open(&location, &options).unwrap())
}

#[test]
fn leftovers_in_a_bucket_are_found_and_removed() {
    check(bucket(&Seaweed::shared(), "scrub", &Arc::default()));
}

#[test]
fn an_upload_that_was_cut_off_is_found_and_removed_once_it_is_old_enough() {
    let (server, faults, folder) = (Seaweed::shared(), Arc::new(FailPoints::new()), tempfile::tempdir().unwrap());
    let dying = bucket(&server, "uploads", &faults);
    let config = config(folder.path(), &Arc::new(FailPoints::new()));
    let engine = Engine::open(EngineConfig { store: dying.clone(), ..config }).unwrap();
    empty_root(&engine, 1).flush().unwrap();
    let store = bucket(&server, "uploads", &Arc::default());
    assert_eq!(survey(&*store).unwrap().orphans, []);
    let path = folder.path().join("file");
    let layer = name(format!("timelines/{TENANT}/{}/layers/i1-0000000000000110-0000000000000000-0", timeline_id(1)));
    // One below a timeline that there is, one below none, and one whose name is not ours.
    let elsewhere =
        name(format!("timelines/{TENANT}/{}/layers/i1-0000000000000110-0000000000000000-0", timeline_id(9)));
    for object in [&layer, &elsewhere, &name("elsewhere/file".to_owned())] {
        std::fs::write(&path, vec![7; 17 << 20]).unwrap();
        faults.arm("multipart.complete", 1, FaultAction::Die);
        dying.put_file(object, &path).unwrap_err();
        faults.reset();
    }
    let found = survey(&*store).unwrap();
    let mut objects: Vec<_> = found.orphans.iter().map(|orphan| (orphan.object.as_str(), orphan.kind)).collect();
    objects.sort_unstable();
    let kind = OrphanKind::UnfinishedUpload;
    assert_eq!(objects, [(layer.as_str(), kind), (elsewhere.as_str(), kind)]);
    assert_eq!((found.unknown.as_slice(), found.uploads_refused), (&["elsewhere/file".to_owned()][..], None));
    let found = survey(&*store).unwrap();
    let begun = found.orphans.iter().map(|orphan| orphan.modified_s).min().unwrap();
    let kept = remove_orphans(&*store, &found, begun).unwrap();
    assert_eq!(kept, RemovedOrphans { objects: 0, bytes: 0, too_young: 2 });
    assert_eq!(survey(&*store).unwrap(), found, "what is young may be under way");
    let removed = remove_orphans(&*store, &found, FAR_FUTURE_S).unwrap();
    assert_eq!(removed, RemovedOrphans { objects: 2, bytes: 0, too_young: 0 });
    assert_eq!(survey(&*store).unwrap().orphans, []);
    assert_eq!(store.unfinished_uploads().unwrap().len(), 1, "what is not ours stays");
    assert_eq!(survey(&*store).unwrap().timelines.len(), 1);
}

/// From now on whoever asks for the uploads gets this answer; all else goes to the server.
fn answer_lists_of_uploads(proxy: &FaultProxy, status: u16, code: &'static str) {
    proxy.plan(move |request| {
        let is_asked = ["?uploads", "&uploads"].iter().any(|word| request.target.contains(word));
        if is_asked { Fault::Answer { status, code } } else { Fault::None }
    });
}

#[test]
fn a_store_that_does_not_list_uploads_is_surveyed_all_the_same() {
    let (server, folder) = (Seaweed::shared(), tempfile::tempdir().unwrap());
    let proxy = FaultProxy::start(server.address());
    let store = bucket_at(&proxy.endpoint(), &server, "refusing", &Arc::default());
    let config = config(folder.path(), &Arc::new(FailPoints::new()));
    let engine = Engine::open(EngineConfig { store: store.clone(), ..config }).unwrap();
    empty_root(&engine, 1).flush().unwrap();
    let lost = name(format!("timelines/{TENANT}/{}/layers/d0-0000000000000110-0000000000000000-0", timeline_id(8)));
    store.put(&lost, b"lost").unwrap();
    answer_lists_of_uploads(&proxy, 403, "AccessDenied");
    let found = survey(&*store).unwrap();
    let refused = found.uploads_refused.as_deref().expect("it says that it could not look");
    assert!(refused.contains("list of uploads") && refused.contains("docs/s3.md"), "{refused}");
    assert_eq!((found.timelines.len(), found.problems.len()), (1, 0));
    let orphans: Vec<_> = found.orphans.iter().map(|orphan| (orphan.object.as_str(), orphan.kind)).collect();
    assert_eq!(orphans, [(lost.as_str(), OrphanKind::NoTimeline)]);
    // What it cannot list it cannot remove; the rest goes.
    let removed = remove_orphans(&*store, &found, FAR_FUTURE_S).unwrap();
    assert_eq!(removed, RemovedOrphans { objects: 1, bytes: 4, too_young: 0 });
    // Any other answer says nothing of what is there, and is no survey.
    answer_lists_of_uploads(&proxy, 400, "MalformedXML");
    survey(&*store).unwrap_err();
}
