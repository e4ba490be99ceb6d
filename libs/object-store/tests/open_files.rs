//! A folder when no more files can be opened: an error that is worth another attempt, and says what to raise. Alone in its program, as the
//! limit is the whole process's.

use ardent_object_store::{ErrorKind, LocalFolder, ObjectName, ObjectStore};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[test]
fn without_a_descriptor_a_call_is_to_be_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalFolder::open(folder.path()).unwrap();
    let name = ObjectName::new("a/b").unwrap();
    store.put(&name, b"body").unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // Standard input, output and error are what there may be.
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
    let refused = [store.get(&name).map(drop), store.put(&name, b"other"), store.put_if_absent(&name, b"other")];
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    for (call, refused) in ["get", "put", "put_if_absent"].iter().zip(refused) {
        let error = refused.expect_err(call);
        assert_eq!(error.kind(), ErrorKind::Retry, "{call}: {error}");
        assert!(error.to_string().contains("LimitNOFILE"), "{call}: {error}");
    }
    assert_eq!(store.get(&name).unwrap(), "body");
}
