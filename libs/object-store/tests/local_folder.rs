//! The local-folder backend: conformance, and what it leaves behind when it dies.

use std::sync::Arc;

use ardent_object_store::fault::{FailPoints, FaultAction};
use ardent_object_store::{ErrorKind, LocalFolder, ObjectName, ObjectStore, conformance, list_all};

#[test]
fn conforms() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalFolder::open(&folder.path().join("store")).unwrap();
    conformance::check(&store, folder.path());
}

#[test]
fn a_store_that_dies_at_any_point_shows_the_old_object_or_the_new_one() {
    let points = ["create", "write", "fsync", "rename", "folder_fsync"].map(|point| format!("local.{point}"));
    for point in points {
        let folder = tempfile::tempdir().unwrap();
        let name = ObjectName::new("a/b").unwrap();
        LocalFolder::open(folder.path()).unwrap().put(&name, b"old").unwrap();
        let faults = Arc::new(FailPoints::new());
        let store = LocalFolder::open_with_faults(folder.path(), faults.clone()).unwrap();
        faults.arm(&point, 1, FaultAction::Die);
        assert!(store.put(&name, b"new content").is_err(), "{point}");
        assert!(faults.is_dead());
        let store = LocalFolder::open(folder.path()).unwrap();
        let body = store.get(&name).unwrap();
        assert!(body == b"old"[..] || body == b"new content"[..], "{point}: {body:?}");
        assert_eq!(list_all(&store, "", false).unwrap().objects.len(), 1);
        assert_eq!(std::fs::read_dir(folder.path().join(".tmp")).unwrap().count(), 0, "leftovers are swept");
    }
}

#[test]
fn folders_that_a_death_left_empty_are_not_listed() {
    let folder = tempfile::tempdir().unwrap();
    let (name, other) = (ObjectName::new("a/b/c/d").unwrap(), ObjectName::new("a/e/f").unwrap());
    let folded = |prefix: &str| list_all(&LocalFolder::open(folder.path()).unwrap(), prefix, true).unwrap().folders;
    let faults = Arc::new(FailPoints::new());
    let store = LocalFolder::open_with_faults(folder.path(), faults.clone()).unwrap();
    store.put(&name, b"x").unwrap();
    store.put(&other, b"x").unwrap();
    assert_eq!(folded("a/"), ["a/b/", "a/e/"]);
    faults.arm("local.rmdir", 1, FaultAction::Die);
    store.delete(&name).unwrap();
    assert!(faults.is_dead() && folder.path().join("a/b/c").exists());
    assert_eq!(folded("a/"), ["a/e/"]);
    assert_eq!(folded(""), ["a/"]);
    LocalFolder::open(folder.path()).unwrap().put(&name, b"y").unwrap();
    assert_eq!(folded("a/"), ["a/b/", "a/e/"]);
}

#[test]
fn a_full_disk_is_worth_a_retry() {
    let folder = tempfile::tempdir().unwrap();
    let faults = Arc::new(FailPoints::new());
    let store = LocalFolder::open_with_faults(folder.path(), faults.clone()).unwrap();
    let name = ObjectName::new("a").unwrap();
    faults.arm("local.write", 1, FaultAction::DiskFull);
    assert_eq!(store.put_if_absent(&name, b"x").unwrap_err().kind(), ErrorKind::Retry);
    store.put_if_absent(&name, b"x").unwrap();
}

#[test]
fn a_failed_put_leaves_no_folder_behind() {
    let folder = tempfile::tempdir().unwrap();
    let faults = Arc::new(FailPoints::new());
    let store = LocalFolder::open_with_faults(folder.path(), faults.clone()).unwrap();
    let name = ObjectName::new("a/b/c").unwrap();
    for point in ["local.write", "local.rename"] {
        faults.arm(point, 1, FaultAction::DiskFull);
        store.put(&name, b"x").unwrap_err();
        assert!(!folder.path().join("a").exists(), "{point}");
    }
    store.put(&name, b"x").unwrap();
    assert_eq!(store.get(&name).unwrap(), b"x"[..]);
}

#[test]
fn objects_and_folders_come_and_go_under_races() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalFolder::open(folder.path()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                let name = ObjectName::new(format!("x/y/{thread}")).unwrap();
                for _ in 0..200 {
                    store.put(&name, b"v").unwrap();
                    store.delete(&name).unwrap();
                }
            });
        }
    });
    assert_eq!(list_all(&store, "", false).unwrap().objects.len(), 0);
}
