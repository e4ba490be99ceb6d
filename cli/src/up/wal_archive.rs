//! Whether WAL goes to the store as well.

use std::path::Path;

use ardent_object_store::{ErrorKind, ObjectName, ObjectStore};
use ardent_storage::WAL_ARCHIVE_MARK;

use super::safekeepers::write_durably;
use crate::failure::Failure;

/// In the data directory: there once the store has its mark, so that a start need not ask it.
const FILE: &str = "wal-archive";

/// Whether it does: as `wanted`, or where the store is far away. Once it did, it must: what the page server has not taken yet may be in
/// the archive alone. So that is marked in the store, which outlives this host. Blocks.
pub fn chosen(root: &Path, store: &dyn ObjectStore, wanted: Option<bool>, is_far: bool) -> Result<bool, Failure> {
    let path = root.join(FILE);
    let is_known = path.try_exists();
    let is_known = is_known.map_err(|error| Failure::local(format!("{} cannot be read", path.display()), &error))?;
    let mark = ObjectName::new(WAL_ARCHIVE_MARK.to_owned()).expect("a good name");
    let is_on = is_known
        || match store.head(&mark) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(Failure::of(&error)),
        };
    if is_on && wanted == Some(false) {
        let message = "WAL of this installation is archived in its store, and may be nowhere else";
        return Err(Failure::usage(message).hint("start without --wal-archive off"));
    }
    let is_wanted = is_on || wanted.unwrap_or(is_far);
    if is_wanted && !is_on {
        store.put(&mark, b"").map_err(|error| Failure::of(&error))?;
    }
    if is_wanted && !is_known {
        write_durably(root, FILE, "on\n")?;
    }
    Ok(is_wanted)
}

#[cfg(test)]
mod tests {
    use ardent_object_store::MemoryStore;

    use super::*;

    #[test]
    fn it_is_on_for_a_store_that_is_far_away_and_stays_on() {
        let (folder, store) = (tempfile::tempdir().expect("folder"), MemoryStore::new());
        let root = folder.path();
        assert!(!chosen(root, &store, None, false).expect("a folder beside"));
        assert!(!chosen(root, &store, Some(false), true).expect("not wanted"));
        assert!(chosen(root, &store, None, true).expect("far"));
        assert!(chosen(root, &store, None, false).expect("as it was"));
        assert!(chosen(root, &store, Some(false), true).is_err());
        // On another host, with the store alone.
        let other = tempfile::tempdir().expect("folder");
        assert!(chosen(other.path(), &store, Some(false), false).is_err());
        assert!(chosen(other.path(), &store, None, false).expect("as it was"));
        let fresh = tempfile::tempdir().expect("folder");
        assert!(chosen(fresh.path(), &MemoryStore::new(), Some(true), false).expect("wanted"));
    }
}
