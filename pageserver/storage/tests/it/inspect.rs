//! What people see who look into a store: what is there, and where it is damaged.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use ardent_object_store::{CountedStore, LocalFolder, ObjectName, ObjectStore, Operation, list_all};
use ardent_pg_redo::Value;
use ardent_storage::{
    InspectError, find_timeline, inspect_layer, inspect_manifest, inspect_manifest_object, inspect_page, layers_of,
    verify_layer,
};

use crate::support::*;

/// A root with a layer of images and one of deltas, and a branch with a layer of its own; the store's folder.
fn prepare(folder: &std::path::Path) -> (PathBuf, Arc<dyn ObjectStore>) {
    let engine = open(folder);
    let root = engine.create_root(TENANT, timeline_id(1), facts(0x100)).unwrap();
    let page = |text: &str| bytes::Bytes::from(text.repeat(8192)[..8192].to_owned());
    root.import_images(&[(block(0), page("a")), (block(1), page("b"))]).unwrap();
    root.finish_import().unwrap();
    root.put(vec![(block(1), lsn(0x110), Value::Image(page("c")))], at(0x110)).unwrap();
    root.flush().unwrap();
    engine.create_branch(TENANT, timeline_id(2), timeline_id(1), None).unwrap();
    let branch = engine.timeline(TENANT, timeline_id(2)).unwrap();
    branch.put(vec![(block(1), lsn(0x120), Value::Image(page("d")))], at(0x120)).unwrap();
    branch.flush().unwrap();
    let path = folder.join("store");
    let store = LocalFolder::attach(&path).unwrap();
    (path, Arc::new(store))
}

#[test]
fn manifests_layers_and_pages_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let (_, store) = prepare(folder.path());
    assert_eq!(find_timeline(&*store, timeline_id(2)).unwrap(), TENANT);
    let missing = find_timeline(&*store, timeline_id(7)).unwrap_err();
    assert!(matches!(missing, InspectError::NotFound { .. }), "{missing}");

    let manifest = inspect_manifest(&*store, TENANT, timeline_id(2)).unwrap();
    assert_eq!(manifest.manifest["ancestor"]["timeline"], timeline_id(1).to_string());
    let object = ObjectName::new(manifest.object.clone()).unwrap();
    assert_eq!(inspect_manifest_object(&*store, &object).unwrap(), manifest);

    let layers = layers_of(&*store, TENANT, timeline_id(1)).unwrap();
    assert_eq!(layers.len(), 2);
    for layer in &layers {
        let info = inspect_layer(&store, &layer.object, 10).unwrap();
        let expect = if info.kind == "image" { (2, 2) } else { (1, 1) };
        assert_eq!((info.versions_checked, info.versions.len()), expect, "{info:?}");
    }

    let at = |timeline, number, upto: Option<u64>| {
        inspect_page(&store, TENANT, timeline_id(timeline), &block(number), upto.map(lsn)).unwrap()
    };
    let crc = |text: &str| Some(format!("{:08x}", crc32fast::hash(text.repeat(8192).as_bytes())));
    assert_eq!(at(2, 1, None).content_crc32, crc("d"), "the last record by itself");
    assert_eq!(at(2, 1, Some(0x110)).content_crc32, crc("c"), "by way of the ancestor");
    assert_eq!((at(1, 0, None).content_crc32, at(1, 0, None).content_bytes), (crc("a"), Some(8192)));
    assert_eq!((at(1, 5, None).content_bytes, at(1, 5, None).problem), (None, None), "absent");
}

#[test]
fn a_layer_is_verified_whole_with_one_request_for_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (path, store) = prepare(folder.path());
    let counted = Arc::new(CountedStore::new(store.clone()));
    let far: Arc<dyn ObjectStore> = counted.clone();
    let layers = layers_of(&*store, TENANT, timeline_id(1)).unwrap();
    for layer in &layers {
        let versions = inspect_layer(&store, &layer.object, 0).unwrap().versions_checked;
        assert_eq!(verify_layer(&far, layer).unwrap(), versions);
    }
    assert_eq!(counted.stats(Operation::GetPart).calls, layers.len() as u64);
    let file = path.join(layers[0].object.as_str());
    let mut bytes = fs::read(&file).unwrap();
    // In the first group's checksum.
    bytes[9] ^= 0x40;
    fs::write(&file, bytes).unwrap();
    assert!(matches!(verify_layer(&far, &layers[0]), Err(InspectError::Corrupt(_))));
}

#[test]
fn a_whole_layer_in_the_place_of_another_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let (path, store) = prepare(folder.path());
    let root = layers_of(&*store, TENANT, timeline_id(1)).unwrap();
    let branch = layers_of(&*store, TENANT, timeline_id(2)).unwrap();
    let (first, second, third) = (&root[0], &root[1], &branch[0]);
    for (named, other) in [(first, second), (second, first), (second, third), (third, first)] {
        let file = path.join(named.object.as_str());
        let own = fs::read(&file).unwrap();
        fs::copy(path.join(other.object.as_str()), &file).unwrap();
        assert!(inspect_layer(&store, &named.object, 0).is_ok(), "by itself it is whole");
        match verify_layer(&store, named) {
            Err(InspectError::Corrupt(corrupt)) => assert!(corrupt.expected.contains("manifest"), "{corrupt}"),
            other => panic!("{other:?}"),
        }
        fs::write(&file, own).unwrap();
        assert!(verify_layer(&store, named).is_ok());
    }
}

#[test]
fn damage_is_said_with_file_offset_and_keys() {
    let folder = tempfile::tempdir().unwrap();
    let (path, store) = prepare(folder.path());
    let damaged = |object: &ObjectName| match inspect_layer(&store, object, 0) {
        Err(InspectError::Corrupt(corrupt)) => corrupt,
        other => panic!("{other:?}"),
    };
    for named in layers_of(&*store, TENANT, timeline_id(1)).unwrap() {
        let layer = named.object.clone();
        let file = path.join(layer.as_str());
        let whole = fs::read(&file).unwrap();
        for at in [0, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            fs::write(&file, bytes).unwrap();
            // Padding and reserved bytes are no damage.
            if inspect_layer(&store, &layer, 0).is_ok() {
                continue;
            }
            let corrupt = damaged(&layer);
            assert!(corrupt.file.contains(layer.file_name()), "{corrupt}");
            assert!(!corrupt.keys.is_empty() && !corrupt.expected.is_empty(), "{corrupt}");
        }
        fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        assert!(damaged(&layer).to_string().contains("corrupt at offset"));
        fs::remove_file(&file).unwrap();
        assert!(matches!(inspect_layer(&store, &layer, 0), Err(InspectError::NotFound { .. })));
        assert!(matches!(verify_layer(&store, &named), Err(InspectError::NotFound { .. })));
        fs::write(&file, &whole).unwrap();
        assert!(verify_layer(&store, &named).is_ok());
    }
    let manifests = list_all(&*store, "timelines/", false).unwrap().objects;
    let manifest = manifests.iter().find(|object| object.name.as_str().contains("/manifest/")).unwrap();
    let file = path.join(manifest.name.as_str());
    let mut bytes = fs::read(&file).unwrap();
    bytes[40] ^= 1;
    fs::write(&file, bytes).unwrap();
    let error = inspect_manifest_object(&*store, &manifest.name).unwrap_err();
    assert!(error.to_string().contains("the checksum of the JSON"), "{error}");
}
