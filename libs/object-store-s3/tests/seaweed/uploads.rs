//! Death and errors within an upload in parts: the object is there whole or not at all, what is left in the bucket is found, and goes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use ardent_object_store::fault::{FailPoints, FaultAction};
use ardent_object_store::{ErrorKind, ObjectName, ObjectStore, StoreError};
use ardent_object_store_s3::{S3Keys, S3Location, S3Options, S3Store};

use crate::house::House;

/// Three parts.
const LEN: u32 = (17 << 20) + 12_345;
/// Where to strike, for which time, and what the store has then: an upload that is not finished, or the object.
const DEATHS: [(&str, u64, Left); 12] = [
    ("begin", 1, Left::Nothing),
    ("begin.answer", 1, Left::Upload),
    ("part", 1, Left::Upload),
    ("part", 2, Left::Upload),
    ("part", 3, Left::Upload),
    ("part.answer", 1, Left::Upload),
    ("part.answer", 2, Left::Upload),
    ("part.answer", 3, Left::Upload),
    ("complete", 1, Left::Upload),
    ("complete.answer", 1, Left::Object),
    ("abort", 1, Left::Upload),
    ("abort.answer", 1, Left::Nothing),
];
/// Tells a process of this test that it is to die, where, and in which store.
const CHILD: &str = "ARDENT_UPLOAD_CHILD";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    Upload,
    Object,
}

fn name() -> ObjectName {
    ObjectName::new("large").unwrap()
}

fn body() -> Vec<u8> {
    (0..LEN).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn upload(store: &S3Store, folder: &Path) -> Result<(), StoreError> {
    let path = folder.join("file");
    std::fs::write(&path, body()).unwrap();
    store.put_file(&name(), &path)
}

/// Before an upload is given up, it has failed.
fn arm(faults: &FailPoints, point: &str, strike: u64, action: FaultAction) {
    if point.starts_with("abort") {
        faults.arm("multipart.complete", 1, FaultAction::Fail);
    }
    faults.arm(&format!("multipart.{point}"), strike, action);
}

/// What is left is found and removed, and the object can be stored all the same.
fn check(house: &House, folder: &Path, case: &str, left: Left) {
    let store = house.store("p");
    let uploads = store.unfinished_uploads().unwrap();
    assert_eq!(uploads.len(), usize::from(left == Left::Upload), "{case}: {uploads:?}");
    match store.get(&name()) {
        Ok(there) => assert!(left == Left::Object && there == body(), "{case}"),
        Err(error) => assert!(left != Left::Object && error.kind() == ErrorKind::NotFound, "{case}: {error}"),
    }
    upload(&store, folder).unwrap_or_else(|error| panic!("{case}: {error}"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for upload in &uploads {
        assert_eq!(upload.name, name(), "{case}");
        assert!(upload.begun_s.abs_diff(now) < 600, "{case}: begun just now, by the store's clock: {upload:?}");
        store.give_up_upload(upload).unwrap();
        // It need not be there.
        store.give_up_upload(upload).unwrap();
    }
    assert_eq!(store.unfinished_uploads().unwrap(), [], "{case}");
    assert!(store.get(&name()).unwrap() == body(), "{case}: the object has nothing to do with the upload that went");
    store.delete(&name()).unwrap();
}

#[test]
fn the_list_of_deaths_has_every_point() {
    let (house, scratch) = (House::new(), tempfile::tempdir().unwrap());
    let faults = Arc::new(FailPoints::new());
    faults.record();
    let store = house.store_with(S3Options { faults: faults.clone(), ..house.options() });
    upload(&store, scratch.path()).unwrap();
    faults.arm("multipart.complete", 1, FaultAction::Fail);
    upload(&store, scratch.path()).unwrap_err();
    let mut listed: Vec<String> = DEATHS.map(|(point, ..)| format!("multipart.{point}")).into();
    listed.sort_unstable();
    listed.dedup();
    let passed = faults.passed();
    assert_eq!(passed.keys().cloned().collect::<Vec<_>>(), listed);
    assert_eq!(passed["multipart.part"], 6, "three parts each time");
    assert_eq!(store.unfinished_uploads().unwrap(), []);
}

#[test]
fn after_death_at_any_point_the_object_is_whole_or_absent_and_what_is_left_can_go() {
    let (house, scratch) = (House::new(), tempfile::tempdir().unwrap());
    for (point, strike, left) in DEATHS {
        let faults = Arc::new(FailPoints::new());
        arm(&faults, point, strike, FaultAction::Die);
        let store = house.store_with(S3Options { faults: faults.clone(), ..house.options() });
        let outcome = upload(&store, scratch.path());
        assert!(faults.is_dead() && outcome.is_err(), "{point} {strike}: {outcome:?}");
        check(&house, scratch.path(), &format!("{point} {strike}"), left);
    }
}

#[test]
fn a_process_that_ends_at_any_point_leaves_what_can_be_found() {
    let (house, scratch) = (House::new(), tempfile::tempdir().unwrap());
    let program = std::env::current_exe().unwrap();
    for (point, strike, left) in DEATHS {
        let (access, secret) = house.server.keys();
        let (strike_text, folder) = (strike.to_string(), scratch.path().display().to_string());
        let spec = [point, &strike_text, &house.url("p"), access, secret, &folder].join(" ");
        let child = Command::new(&program)
            .args(["--exact", "uploads::the_process_that_ends", "--nocapture", "--test-threads=1"])
            .env(CHILD, spec)
            .stderr(Stdio::null())
            .output()
            .unwrap();
        assert!(child.status.code().is_none(), "it did not die at {point} {strike}: {child:?}");
        check(&house, scratch.path(), &format!("{point} {strike}"), left);
    }
}

/// Not a test by itself: what the one above starts.
#[test]
fn the_process_that_ends() {
    let Ok(spec) = std::env::var(CHILD) else { return };
    let words: Vec<&str> = spec.splitn(6, ' ').collect();
    let faults = Arc::new(FailPoints::new());
    arm(&faults, words[0], words[1].parse().unwrap(), FaultAction::Abort);
    let keys = S3Keys { access: words[3].to_owned(), secret: words[4].to_owned() };
    let options = S3Options { keys: Some(keys), faults, ..S3Options::default() };
    let store = S3Store::open(&S3Location::parse(words[2]).unwrap(), &options).unwrap();
    panic!("it lives: {:?}", upload(&store, Path::new(words[5])));
}

#[test]
fn one_error_at_any_point_is_over_when_it_is_over() {
    let (house, scratch) = (House::new(), tempfile::tempdir().unwrap());
    for (point, strike, left) in DEATHS {
        let faults = Arc::new(FailPoints::new());
        arm(&faults, point, strike, FaultAction::Fail);
        let store = house.store_with(S3Options { faults, ..house.options() });
        upload(&store, scratch.path()).unwrap_err();
        // Whose id is known is given up at once, if giving up doesn't fail.
        let stays = matches!(point, "begin.answer" | "abort");
        let left = if left == Left::Upload && !stays { Left::Nothing } else { left };
        check(&house, scratch.path(), &format!("{point} {strike}"), left);
    }
}

#[test]
fn a_long_list_of_uploads_comes_whole_and_without_those_beside_it() {
    let house = House::new();
    let beside = house.store("beside");
    let scratch = tempfile::tempdir().unwrap();
    let begin = |store: &str| {
        let faults = Arc::new(FailPoints::new());
        faults.arm("multipart.begin.answer", 1, FaultAction::Die);
        let location = house.location(&house.server.endpoint(), store);
        let store = S3Store::open(&location, &S3Options { faults, ..house.options() }).unwrap();
        upload(&store, scratch.path()).unwrap_err();
    };
    begin("beside");
    for _ in 0..5 {
        begin("p");
    }
    let store = house.store("p");
    let found = store.unfinished_uploads().unwrap();
    assert_eq!(found.len(), 5, "{found:?}");
    found.iter().for_each(|upload| store.give_up_upload(upload).unwrap());
    assert_eq!(store.unfinished_uploads().unwrap(), []);
    assert_eq!(beside.unfinished_uploads().unwrap().len(), 1, "another's is not ours");
}
