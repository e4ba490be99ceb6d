//! What every backend must do, as one suite that each backend's tests run: `conformance::check(&store, scratch_folder)`.
//!
//! Panics with the expectation that does not hold, as tests do.

use std::path::Path;

use crate::error::{ErrorKind, StoreError};
use crate::name::ObjectName;
use crate::store::{ListRequest, ObjectStore, list_all};

/// Length of a file that S3 takes in several parts.
const LARGE_FILE_LEN: usize = (17 << 20) + 12_345;

/// Runs the suite against an empty `store`. `scratch` is a folder for local files.
pub fn check(store: &dyn ObjectStore, scratch: &Path) {
    writes_and_reads(store);
    ranges(store);
    conditional_puts(store);
    files_become_objects(store, scratch);
    listings(store);
    deletes(store);
    assert_eq!(list_all(store, "", false).expect("list").objects, [], "the suite leaves nothing behind");
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).expect("the suite's names are good")
}

fn kind<T: std::fmt::Debug>(result: Result<T, StoreError>) -> ErrorKind {
    result.expect_err("an error was expected").kind()
}

fn writes_and_reads(store: &dyn ObjectStore) {
    let a = name("conf/a");
    assert_eq!(kind(store.get(&a)), ErrorKind::NotFound);
    assert_eq!(kind(store.head(&a)), ErrorKind::NotFound);
    assert_eq!(kind(store.get_range(&a, 0..1)), ErrorKind::NotFound);
    store.put(&a, b"one").expect("put");
    store.put(&a, b"second").expect("put replaces");
    assert_eq!(&store.get(&a).expect("get")[..], b"second");
    assert_eq!(store.head(&a).expect("head").size_bytes, 6);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let listed = list_all(store, "conf/a", false).expect("list").objects;
    for meta in listed.iter().chain([&store.head(&a).expect("head")]) {
        assert!(meta.modified_s.abs_diff(now) < 600, "written just now, by the store's clock: {meta:?}");
    }
    store.put(&a, b"").expect("an empty object is an object");
    assert_eq!(store.get(&a).expect("get").len(), 0);
    assert_eq!(kind(store.head(&name("conf"))), ErrorKind::NotFound, "a folder is not an object");
    store.delete(&a).expect("delete");
}

fn ranges(store: &dyn ObjectStore) {
    let a = name("conf/range");
    let body: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    store.put(&a, &body).expect("put");
    for range in [0..1, 0..100_000, 99_999..100_000, 5_000..70_000, 7..7] {
        let expect = &body[range.start as usize..range.end as usize];
        assert_eq!(&store.get_range(&a, range.clone()).expect("range")[..], expect, "{range:?}");
    }
    for range in [0..100_001, 100_000..100_001, 1 << 40..(1 << 40) + 1] {
        assert_eq!(kind(store.get_range(&a, range)), ErrorKind::OutOfRange);
    }
    let part = store.get_part(&a, 99_990..1 << 40).expect("a part that ends with the object");
    assert_eq!((&part.body[..], part.object_size_bytes), (&body[99_990..], 100_000));
    assert_eq!(kind(store.get_part(&a, 100_000..100_001)), ErrorKind::OutOfRange);
    store.delete(&a).expect("delete");
}

fn conditional_puts(store: &dyn ObjectStore) {
    let a = name("conf/once/a");
    store.put_if_absent(&a, b"first").expect("the name is free");
    assert_eq!(kind(store.put_if_absent(&a, b"later")), ErrorKind::Precondition);
    assert_eq!(&store.get(&a).expect("get")[..], b"first");
    store.delete(&a).expect("delete");
    let winners = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..8u8)
            .map(|racer| {
                let a = &a;
                scope.spawn(move || store.put_if_absent(a, &[racer]).map(|()| racer))
            })
            .collect();
        let outcomes = racers.into_iter().map(|racer| racer.join().expect("racers don't panic"));
        outcomes.filter_map(Result::ok).collect::<Vec<u8>>()
    });
    assert_eq!(winners.len(), 1, "exactly one conditional put wins");
    assert_eq!(&store.get(&a).expect("get")[..], &winners[..]);
    store.delete(&a).expect("delete");
}

fn files_become_objects(store: &dyn ObjectStore, scratch: &Path) {
    let path = scratch.join("conformance-upload");
    std::fs::write(&path, b"from a file").expect("scratch folder is writable");
    let a = name("conf/file");
    store.put_file(&a, &path).expect("put_file");
    assert!(!path.exists(), "the file is gone once it is an object");
    assert_eq!(&store.get(&a).expect("get")[..], b"from a file");
    assert!(store.put_file(&a, &path).is_err(), "a missing file is an error");
    // Larger than what a backend sends in one piece.
    let body: Vec<u8> = (0..LARGE_FILE_LEN as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&path, &body).expect("scratch folder is writable");
    store.put_file(&a, &path).expect("put_file replaces");
    assert_eq!(store.head(&a).expect("head").size_bytes, body.len() as u64);
    assert!(store.get(&a).expect("get") == body, "a large object is what the file was");
    let middle = LARGE_FILE_LEN as u64 / 2;
    let part = store.get_range(&a, middle - 1000..middle + 1000).expect("range");
    assert_eq!(&part[..], &body[middle as usize - 1000..middle as usize + 1000]);
    store.delete(&a).expect("delete");
}

fn listings(store: &dyn ObjectStore) {
    let names = ["l/a", "l/b/1", "l/b/2", "l/b-x", "l/c/d/e", "m"];
    for text in names {
        store.put(&name(text), text.as_bytes()).expect("put");
    }
    let list = |prefix: &str, folded, page_size| {
        let mut request = ListRequest { prefix: prefix.to_owned(), folded, page_size, ..Default::default() };
        let (mut objects, mut folders): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
        loop {
            let page = store.list(&request).expect("list");
            objects.extend(page.objects.iter().map(|meta| meta.name.to_string()));
            folders.extend(page.folders);
            match page.next {
                Some(token) => request.token = Some(token),
                // Not every server that speaks S3 has one order over all pages.
                None => {
                    objects.sort_unstable();
                    folders.sort_unstable();
                    return (objects, folders);
                }
            }
        }
    };
    let all = ["l/a", "l/b-x", "l/b/1", "l/b/2", "l/c/d/e", "m"];
    for page_size in [None, Some(1), Some(2), Some(5)] {
        assert_eq!(list("", false, page_size).0, all);
        assert_eq!(list("l/", false, page_size).0, all[..5]);
        assert_eq!(list("l/b", false, page_size).0, all[1..4]);
        let (objects, folders) = list("l/", true, page_size);
        assert_eq!((objects, folders), (vec!["l/a".into(), "l/b-x".into()], vec!["l/b/".into(), "l/c/".into()]));
    }
    let found = list_all(store, "l/", false).expect("list").objects;
    assert_eq!(found.iter().map(|meta| meta.name.as_str()).collect::<Vec<_>>(), all[..5], "list_all sorts");
    assert_eq!(list("none/", false, None).0.len(), 0);
    // A folder whose objects are gone may be named for a while.
    let (objects, folders) = list("", true, None);
    assert!(objects == ["m"] && folders.contains(&"l/".to_owned()), "{objects:?} {folders:?}");
    for text in names {
        store.delete(&name(text)).expect("delete");
    }
}

fn deletes(store: &dyn ObjectStore) {
    let a = name("conf/deep/er/a");
    store.delete(&a).expect("deleting what isn't there is fine");
    store.put(&a, b"x").expect("put");
    store.delete(&a).expect("delete");
    assert_eq!(kind(store.get(&a)), ErrorKind::NotFound);
    store.put(&a, b"again").expect("a name can be used again");
    store.delete(&a).expect("delete");
    let many: Vec<ObjectName> = (0..25).map(|number| name(&format!("conf/many/{number}"))).collect();
    for name in &many[..20] {
        store.put(name, b"x").expect("put");
    }
    store.delete_many(&many).expect("those that aren't there don't matter");
    store.delete_many(&[]).expect("nothing to delete");
}
