//! Who waits for whom. Reads wait for nobody: not for a store that takes its time to write, nor for what holds a commit, a flush or a
//! compaction. Deletion waits for what is being written.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use ardent_object_store::fault::FailPoints;
use ardent_object_store::{
    ListPage, ListRequest, MemoryStore, ObjectMeta, ObjectName, ObjectPart, ObjectStore, StoreError, UnfinishedUpload,
    list_all,
};
use ardent_storage::{CommitError, Engine, EngineConfig, Timeline};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::support::*;

/// How long reads that wait for nobody may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store whose writes, deletes and lists wait while it is shut.
#[derive(Debug, Default)]
struct Gated {
    store: MemoryStore,
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Gate {
    is_shut: bool,
    /// Only what writes a file waits.
    for_files_alone: bool,
    waiting: usize,
}

impl Gated {
    fn pass(&self) {
        self.pass_as(false);
    }

    fn pass_as(&self, is_file: bool) {
        let mut gate = self.gate.lock();
        if gate.for_files_alone && !is_file {
            return;
        }
        gate.waiting += 1;
        self.changed.notify_all();
        while gate.is_shut {
            self.changed.wait(&mut gate);
        }
        gate.waiting -= 1;
    }

    fn shut(&self) {
        self.gate.lock().is_shut = true;
    }

    fn shut_for_files(&self) {
        *self.gate.lock() = Gate { is_shut: true, for_files_alone: true, waiting: 0 };
    }

    fn open(&self) {
        self.gate.lock().is_shut = false;
        self.changed.notify_all();
    }

    fn wait_until_somebody_waits(&self) {
        let mut gate = self.gate.lock();
        while gate.waiting == 0 {
            assert!(!self.changed.wait_for(&mut gate, PATIENCE).timed_out(), "nobody came to the gate");
        }
    }
}

impl ObjectStore for Gated {
    fn put(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        self.pass();
        self.store.put(name, body)
    }
    fn put_if_absent(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        self.pass();
        self.store.put_if_absent(name, body)
    }
    fn put_file(&self, name: &ObjectName, path: &Path) -> Result<(), StoreError> {
        self.pass_as(true);
        self.store.put_file(name, path)
    }
    fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.store.get(name)
    }
    fn get_part(&self, name: &ObjectName, range: Range<u64>) -> Result<ObjectPart, StoreError> {
        self.store.get_part(name, range)
    }
    fn head(&self, name: &ObjectName) -> Result<ObjectMeta, StoreError> {
        self.store.head(name)
    }
    fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.pass();
        self.store.list(request)
    }
    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.pass();
        self.store.delete(name)
    }
    fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.store.unfinished_uploads()
    }
    fn give_up_upload(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.store.give_up_upload(upload)
    }
}

const BRANCH_AT: u64 = 0x100 + 8 * 20;
const LAST: u64 = 0x100 + 8 * 40;

fn expected(number: u64, upto: u64) -> Option<String> {
    let text: String = (1..=40).filter(|n| n % 4 == number && 0x100 + 8 * n <= upto).map(|n| format!("{n}.")).collect();
    Some(text).filter(|text| !text.is_empty())
}

/// A root with a branch, both with files and with versions in memory.
fn world(folder: &Path) -> (Arc<Gated>, Arc<Engine>, Arc<Timeline>, Arc<Timeline>) {
    let store = Arc::new(Gated::default());
    let config = EngineConfig {
        store: store.clone(),
        compact_at_l0_files: 2,
        page_cache_bytes: 0,
        block_cache_bytes: 0,
        ..config(folder, &Arc::new(FailPoints::new()))
    };
    let engine = Engine::open(config).unwrap();
    let root = empty_root(&engine, 1);
    for n in 1..=40u64 {
        let value = if n <= 4 { image(format!("{n}.")) } else { delta(format!("{n}.")) };
        root.put(vec![(block((n % 4) as u32), lsn(0x100 + 8 * n), value)], at(0x100 + 8 * n)).unwrap();
        if n % 10 == 0 && n < 40 {
            root.flush().unwrap();
        }
        if n == 20 {
            engine.create_branch(TENANT, timeline_id(2), timeline_id(1), None).unwrap();
        }
    }
    root.set_metadata("fact", "known".into()).unwrap();
    let branch = engine.timeline(TENANT, timeline_id(2)).unwrap();
    branch.put(vec![(block(1), lsn(BRANCH_AT + 8), delta("b"))], at(BRANCH_AT + 8)).unwrap();
    (store, engine, root, branch)
}

/// Everything that a reader asks for, while nothing can be written.
fn read_everything(engine: &Engine, root: &Timeline, branch: &Timeline) {
    for number in 0..4 {
        assert_eq!(text(root, block(number as u32), LAST), expected(number, LAST));
        assert_eq!(text(branch, block(number as u32), BRANCH_AT), expected(number, BRANCH_AT));
    }
    assert_eq!(text(branch, block(1), BRANCH_AT + 8), expected(1, BRANCH_AT).map(|text| format!("{text}b")));
    assert_eq!(root.scan(block(0)..=block(9), lsn(LAST)).unwrap().len(), 4);
    assert_eq!(root.changed_keys(block(0)..=block(9), lsn(LAST - 8), lsn(LAST)).unwrap().len(), 1);
    assert_eq!(root.branch_point(Some(lsn(LAST - 8))).unwrap().1.lsn, lsn(LAST - 8));
    assert_eq!(root.get_metadata("fact"), Some("known".into()));
    assert_eq!(root.last_record().end, lsn(LAST));
    assert!(root.durable_record().end <= lsn(LAST));
    root.check_owned().unwrap();
    assert!(root.sizes().files > 0);
    assert_eq!(engine.timeline(TENANT, timeline_id(1)).unwrap().id(), root.id());
}

/// Runs `writing` on a store that is shut, and reads meanwhile.
fn check(writing: impl FnOnce(&Engine, &Timeline, &Timeline) + Send) {
    let folder = tempfile::tempdir().unwrap();
    let (store, engine, root, branch) = world(folder.path());
    store.shut();
    let (done, is_done) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| writing(&engine, &root, &branch));
        store.wait_until_somebody_waits();
        scope.spawn(|| {
            read_everything(&engine, &root, &branch);
            done.send(()).unwrap();
        });
        let answered = is_done.recv_timeout(PATIENCE);
        store.open();
        answered.expect("reads wait for a write that is under way");
    });
    read_everything(&engine, &root, &branch);
}

#[test]
fn reads_do_not_wait_for_a_flush() {
    check(|_, root, _| root.flush().unwrap());
}

#[test]
fn reads_do_not_wait_for_compaction() {
    check(|_, root, _| root.compact().unwrap());
}

#[test]
fn reads_do_not_wait_for_garbage_collection() {
    check(|_, _, branch| {
        branch.flush().unwrap();
        branch.collect_garbage(lsn(BRANCH_AT + 8)).unwrap();
    });
}

#[test]
fn reads_do_not_wait_for_leases_metadata_and_new_branches() {
    check(|_, root, _| root.lease("l", lsn(LAST), Duration::from_secs(60)).unwrap());
    check(|_, root, _| root.set_metadata("fact", "known".into()).unwrap());
    check(|engine, _, _| {
        engine.create_branch(TENANT, timeline_id(3), timeline_id(1), None).unwrap();
    });
}

#[test]
fn a_file_that_is_being_stored_goes_with_its_deleted_timeline() {
    let folder = tempfile::tempdir().unwrap();
    let (store, engine, _root, branch) = world(folder.path());
    store.shut_for_files();
    std::thread::scope(|scope| {
        let flushing = scope.spawn(|| branch.flush());
        store.wait_until_somebody_waits();
        let deleting = scope.spawn(|| engine.delete_timeline(TENANT, timeline_id(2)));
        while branch.check_owned().is_ok() {
            std::thread::yield_now();
        }
        // Time to delete all that there is, if it did not wait.
        std::thread::sleep(Duration::from_millis(100));
        store.open();
        deleting.join().unwrap().unwrap();
        assert!(matches!(*flushing.join().unwrap().unwrap_err(), CommitError::Deleted { .. }));
    });
    branch.flush().unwrap_err();
    let left = list_all(&*store, &format!("timelines/{TENANT}/{}/", timeline_id(2)), false).unwrap().objects;
    assert!(left.is_empty(), "{left:?}");
}
