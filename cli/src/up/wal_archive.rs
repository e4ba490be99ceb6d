//! Whether WAL goes to the store as well.

use std::path::Path;

use super::safekeepers::write_durably;
use crate::failure::Failure;

/// In the data directory: there once WAL goes to the store.
const FILE: &str = "wal-archive";

/// Whether it does: as `wanted`, or where the store is far away. Once it did, it must: what the page server has not taken yet may be in
/// the archive alone.
pub fn chosen(root: &Path, wanted: Option<bool>, is_far: bool) -> Result<bool, Failure> {
    let path = root.join(FILE);
    let is_on =
        path.try_exists().map_err(|error| Failure::local(format!("{} cannot be read", path.display()), &error))?;
    if is_on && wanted == Some(false) {
        let message = "WAL of this installation is archived in its store, and may be nowhere else";
        return Err(Failure::usage(message).hint("start without --wal-archive off"));
    }
    let is_wanted = is_on || wanted.unwrap_or(is_far);
    if is_wanted && !is_on {
        write_durably(root, FILE, "on\n")?;
    }
    Ok(is_wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_on_for_a_store_that_is_far_away_and_stays_on() {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path();
        assert!(!chosen(root, None, false).expect("a folder beside"));
        assert!(!chosen(root, Some(false), true).expect("not wanted"));
        assert!(chosen(root, None, true).expect("far"));
        assert!(chosen(root, None, false).expect("as it was"));
        assert!(chosen(root, Some(false), true).is_err());
        let folder = tempfile::tempdir().expect("folder");
        assert!(chosen(folder.path(), Some(true), false).expect("wanted"));
    }
}
