//! A start without control's database, or with one that knows nothing, where timelines are there: what knew them is lost, and a server
//! that began anew beside them would refuse everybody's passwords and find `ardent recover control` in its way.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ardent_api::control::{ApiErrorCode, ErrorInfo};
use ardent_types::{TenantId, TimelineId};

use super::object_store;
use crate::args::StoreArgs;
use crate::failure::Failure;
use crate::shell_word::shell_word;

/// What the names of the safekeepers' folders begin with.
const SAFEKEEPER: &str = "safekeeper";
/// In a timeline's folder of a safekeeper's, for as long as it has it.
const STATE_FILE: &str = "state";

/// Refuses to start on `root` if there is no database, or a blank one, but timelines: in a safekeeper's folder, or in the store. Writes nothing. Blocks: where there is
/// no database it asks the store for listings.
pub fn refuse(root: &Path, args: &StoreArgs) -> Result<(), Failure> {
    let database = root.join("control.db");
    let is_there = database.try_exists();
    let is_there =
        is_there.map_err(|error| Failure::local(format!("{} cannot be read", database.display()), &error))?;
    // One that cannot be read says why when it is opened.
    let is_blank = is_there && matches!(ardent_control::store::is_blank(&database), Ok(true));
    if is_there && !is_blank {
        return Ok(());
    }
    let is_gone = if is_blank { "knows nothing" } else { "is gone" };
    let recover = recover_command(root, args);
    let pages = root.join("pageserver");
    let with_wal = folder_with_timelines(root)
        .map_err(|error| Failure::local(format!("{} cannot be read", root.display()), &error))?;
    let (message, hint) = if let Some(folder) = with_wal {
        (
            format!("{} {is_gone}, and {} has WAL of branches that it knew", database.display(), folder.display()),
            format!("have it made anew from the store: {recover}; to begin with nothing, choose another --data-dir"),
        )
    } else if !is_blank && object_store::has_timelines(&pages, args)? {
        // What is left of connectors that were deleted may be in the store of a blank one.
        (
            format!("{} is not there, and the store has the pages of an installation", database.display()),
            format!(
                "if it was this one, or one whose host is lost: {recover}; otherwise choose another prefix or folder with --store"
            ),
        )
    } else {
        return Ok(());
    };
    Err(Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message)).hint(hint))
}

/// What brings the database back.
fn recover_command(root: &Path, args: &StoreArgs) -> String {
    let mut command = format!("ardent recover control --data-dir {}", shell_word(root));
    if let Some(store) = &args.store {
        // Where it is a folder, any letter may be in it.
        command.push_str(&format!(" --store '{}'", store.url().replace('\'', r"'\''")));
    }
    if let Some(ca) = &args.store_ca {
        command.push_str(&format!(" --store-ca {}", shell_word(ca)));
    }
    command
}

/// The first safekeeper's folder in an installation's that has a timeline.
fn folder_with_timelines(root: &Path) -> io::Result<Option<PathBuf>> {
    for safekeeper in folders(root)? {
        let is_one = safekeeper.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(SAFEKEEPER));
        if is_one && has_timeline(&safekeeper)? {
            return Ok(Some(safekeeper));
        }
    }
    Ok(None)
}

fn has_timeline(safekeeper: &Path) -> io::Result<bool> {
    for tenant in folders(safekeeper)?.iter().filter(|path| is_named_by::<TenantId>(path)) {
        let timelines = folders(tenant)?;
        let mut timelines = timelines.iter().filter(|path| is_named_by::<TimelineId>(path));
        if timelines.any(|timeline| timeline.join(STATE_FILE).exists()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The folders in one, by name; none if it is not there.
fn folders(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn is_named_by<Id: FromStr>(path: &Path) -> bool {
    path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.parse::<Id>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(store: Option<&str>) -> StoreArgs {
        StoreArgs { store: store.map(|text| text.parse().expect("a store")), store_ca: None, cache_size: 1 << 20 }
    }

    /// The hint of the refusal; `None` if it may start.
    fn hint(root: &Path, args: &StoreArgs) -> Option<String> {
        let failure = refuse(root, args).err()?;
        assert_eq!(failure.info.code, ApiErrorCode::Conflict);
        assert!(failure.info.message.contains("control.db"), "{}", failure.info.message);
        failure.info.hint
    }

    fn put(path: &Path) {
        fs::create_dir_all(path.parent().expect("a folder")).and_then(|()| fs::write(path, b"x")).expect("written");
    }

    #[test]
    fn wal_without_a_database_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path();
        assert_eq!(hint(&root.join("new"), &args(None)), None, "a new one");
        let tenant = root.join("safekeeper-2").join(TenantId::generate().to_string());
        // As a first start that was cut off, and a deletion, leave them.
        put(&root.join("safekeeper-2/member"));
        fs::create_dir_all(tenant.join(TimelineId::generate().to_string())).expect("made");
        assert_eq!(hint(root, &args(None)), None, "no timeline");
        put(&tenant.join(TimelineId::generate().to_string()).join(STATE_FILE));
        let said = hint(root, &args(None)).expect("refused");
        assert!(said.contains(&format!("ardent recover control --data-dir {};", root.display())), "{said}");
        put(&root.join("control.db"));
        assert_eq!(hint(root, &args(None)), None, "it is there");
        fs::write(root.join("control.db"), b"").expect("written");
        assert_eq!(hint(root, &args(None)), Some(said), "it knows nothing");
    }

    #[test]
    fn a_store_in_use_without_a_database_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let (root, elsewhere) = (folder.path().join("data"), folder.path().join("pages"));
        let store = format!("file:{}", elsewhere.display());
        assert_eq!(hint(&root, &args(Some(&store))), None, "a new one");
        put(&elsewhere.join("wal-archive"));
        assert_eq!(hint(&root, &args(Some(&store))), None, "no timeline");
        // As a deletion that was cut off leaves it, which a scrub removes.
        put(&elsewhere.join("timelines/a/b/layers/1"));
        put(&elsewhere.join("timelines/a/c/children/1"));
        assert_eq!(hint(&root, &args(Some(&store))), None, "no timeline any more");
        put(&elsewhere.join("timelines/b/c/manifest/1"));
        let said = hint(&root, &args(Some(&store))).expect("refused");
        let command = format!("ardent recover control --data-dir {} --store '{store}';", root.display());
        assert!(said.contains(&command) && said.contains("another prefix"), "{said}");
        assert_eq!(hint(&root, &args(None)), None, "another store");
        put(&root.join("pageserver/store/timelines/a/b/manifest/1"));
        assert!(hint(&root, &args(None)).is_some(), "its own");
        assert!(!root.join("pageserver/store-location").exists(), "nothing is written");
    }

    #[test]
    fn the_command_reaches_the_store_as_it_was_given() {
        let url = "s3://bucket/a/?endpoint=https://minio.example.com&region=x&path-style=false&profile=p";
        let said = recover_command(Path::new("/srv/a"), &args(Some(url)));
        assert_eq!(said, format!("ardent recover control --data-dir /srv/a --store '{url}'"));
        assert_eq!(recover_command(Path::new("/srv/a"), &args(None)), "ardent recover control --data-dir /srv/a");
        let said = recover_command(Path::new("/srv/my a"), &args(Some("file:/srv/it's")));
        assert_eq!(said, r"ardent recover control --data-dir '/srv/my a' --store 'file:/srv/it'\''s'");
    }
}
