//! The safekeepers of one process, each on a folder of its own.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use ardent_api::addr::ServiceAddr;
use ardent_api::control::{ApiErrorCode, ErrorInfo};
use ardent_control::secrets::random_bytes;
use ardent_object_store::ObjectStore;
use ardent_safekeeper::{Safekeeper, SafekeeperConfig};

use super::roles::Place;
use crate::failure::Failure;

/// In the data directory: the marks of their folders, one a line.
const MEMBERS_FILE: &str = "safekeepers";
/// In each one's folder: its mark.
const MARK_FILE: &str = "member";
/// Most safekeepers.
pub const COUNT_MAX: usize = 9;

/// All of them that are there, running, with their numbers from 0.
pub struct Safekeepers(Vec<(usize, Safekeeper)>);

impl Safekeepers {
    /// Starts one for each address whose folder is there, or none. With `archive` whole segments of WAL go there.
    pub async fn start(
        place: &Place,
        addresses: &[ServiceAddr],
        archive: Option<Arc<dyn ObjectStore>>,
    ) -> Result<Self, Failure> {
        let mut started = Safekeepers(Vec::with_capacity(addresses.len()));
        let there = if addresses.is_empty() { Vec::new() } else { present(&place.root)? };
        for index in there {
            let address = &addresses[index];
            let config = SafekeeperConfig {
                archive: archive.clone(),
                ..SafekeeperConfig::new(folder(&place.root, index), vec![address.clone()], place.issuer.verifier())
            };
            match Safekeeper::start(config, CancellationToken::new()).await {
                Ok(safekeeper) => started.0.push((index, safekeeper)),
                Err(error) => {
                    started.shutdown().await;
                    return Err(Failure::of(&error));
                }
            }
        }
        Ok(started)
    }

    /// Adds what they count, each under its number where there are several.
    pub fn register_metrics(&self, registry: &mut Registry) {
        for (index, safekeeper) in &self.0 {
            let number = (index + 1).to_string();
            safekeeper.register_metrics(registry.sub_registry_with_label(("safekeeper".into(), number.into())));
        }
    }

    /// What does not work of them at present.
    pub fn problems(&self) -> impl Fn() -> Vec<String> + Send + Sync + use<> {
        let all: Vec<_> = self.0.iter().map(|(index, safekeeper)| (index + 1, safekeeper.problems())).collect();
        move || {
            let mut found = Vec::new();
            for (number, problems) in &all {
                found.extend(problems().into_iter().map(|problem| format!("safekeeper {number}: {problem}")));
            }
            found
        }
    }

    /// Ends all, with what is in memory saved.
    pub async fn shutdown(self) {
        for (_, safekeeper) in self.0 {
            safekeeper.shutdown().await;
        }
    }
}

/// The addresses of as many safekeepers as the folder was made with; of `wanted` (or 1) in a new folder, where they are
/// written down: a quorum of another number would not overlap with the one that holds the log.
pub fn addresses(place: &Place, wanted: Option<u8>) -> Result<Vec<ServiceAddr>, Failure> {
    let count = match (recorded(&place.root)?, wanted) {
        (Some(there), Some(wanted)) if there.len() != usize::from(wanted) => {
            let message = format!(
                "{} keeps its WAL on {} safekeeper(s), and --safekeepers asks for {wanted}",
                place.root.display(),
                there.len()
            );
            return Err(Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message)).hint(format!(
                "start without --safekeepers; to keep it on {wanted}: ardent reconfigure safekeepers {wanted}"
            )));
        }
        (Some(there), _) => there.len(),
        (None, wanted) => {
            let count = usize::from(wanted.unwrap_or(1));
            let marks = (0..count).map(|index| mark(&place.root, index)).collect::<Result<Vec<_>, _>>()?;
            record(&place.root, &marks)?;
            count
        }
    };
    Ok((0..count).map(|index| ServiceAddr::Unix(place.files.run(&format!("{}.sock", name(index))))).collect())
}

/// The marks of their folders, in their order; `None` in a new folder. An installation from before they were written down gets them
/// written down, of what is there.
pub fn recorded(root: &Path) -> Result<Option<Vec<String>>, Failure> {
    let path = root.join(MEMBERS_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let marks: Vec<String> = text.lines().map(str::to_owned).collect();
            if (1..=COUNT_MAX).contains(&marks.len()) && marks.iter().all(|mark| is_mark(mark)) {
                return Ok(Some(marks));
            }
            let message = format!("{} does not name the safekeepers' folders, one a line", path.display());
            return Err(Failure::from(ErrorInfo::new(ApiErrorCode::Internal, message))
                .hint("write into it what the file member in each folder says, in their order"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Failure::local(format!("{} cannot be read", path.display()), &error)),
    }
    // A first start that was cut off left no database.
    if !root.join("control.db").exists() {
        return Ok(None);
    }
    let Some(last) = (0..COUNT_MAX).rev().find(|index| folder(root, *index).exists()) else { return Ok(None) };
    let mark_or_lost = |index| if folder(root, index).exists() { mark(root, index) } else { new_mark() };
    let marks = (0..=last).map(mark_or_lost).collect::<Result<Vec<_>, _>>()?;
    record(root, &marks)?;
    Ok(Some(marks))
}

/// Writes down which folders are the safekeepers'.
pub fn record(root: &Path, marks: &[String]) -> Result<(), Failure> {
    write_durably(root, MEMBERS_FILE, &format!("{}\n", marks.join("\n")))
}

/// Makes the folder of one, if it is not there, and marks it with what no other folder has, if it is not marked: a disk that is not
/// mounted has no mark, and one that was replaced and comes back has another. Gives the mark.
pub fn mark(root: &Path, index: usize) -> Result<String, Failure> {
    let folder = folder(root, index);
    fs::create_dir_all(&folder)
        .map_err(|error| Failure::local(format!("{} cannot be made", folder.display()), &error))?;
    if let Some(mark) = mark_of(root, index) {
        return Ok(mark);
    }
    let mark = new_mark()?;
    put_mark(root, index, &mark)?;
    Ok(mark)
}

/// Marks a folder that is there.
pub fn put_mark(root: &Path, index: usize, mark: &str) -> Result<(), Failure> {
    write_durably(&folder(root, index), MARK_FILE, &format!("{mark}\n"))
}

/// The mark of its folder, if it has one.
pub fn mark_of(root: &Path, index: usize) -> Option<String> {
    let text = fs::read_to_string(folder(root, index).join(MARK_FILE)).ok()?;
    let mark = text.trim();
    is_mark(mark).then(|| mark.to_owned())
}

/// One that no folder has.
pub fn new_mark() -> Result<String, Failure> {
    let bytes = random_bytes::<16>().map_err(|error| Failure::of(&error))?;
    Ok(hex::encode(bytes))
}

fn is_mark(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Under another name first: a crash leaves the old content or the new.
pub(super) fn write_durably(folder: &Path, name: &str, text: &str) -> Result<(), Failure> {
    let (path, fresh) = (folder.join(name), folder.join(format!("{name}.new")));
    let write = || {
        let mut file = File::create(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|error| Failure::local(format!("{} cannot be written", path.display()), &error))
}

/// The numbers, from 0, of those whose folders are the ones that were there; an error if too few are for a quorum.
fn present(root: &Path) -> Result<Vec<usize>, Failure> {
    let marks = recorded(root)?.unwrap_or_default();
    let count = marks.len();
    let (there, lost): (Vec<usize>, Vec<usize>) =
        (0..count).partition(|index| mark_of(root, *index).as_ref() == Some(&marks[*index]));
    let names = |lost: &[usize]| {
        lost.iter().map(|index| folder(root, *index).display().to_string()).collect::<Vec<_>>().join(", ")
    };
    if there.len() <= count / 2 {
        let message =
            format!("{} of {count} safekeepers' folders are not what they were: {}", lost.len(), names(&lost));
        return Err(Failure::from(ErrorInfo::new(ApiErrorCode::StorageUnavailable, message)).hint(
            "mount their disks; if they are lost, so may be what was committed last: docs/operations.md, \"When something is lost\"",
        ));
    }
    for index in &lost {
        let number = index + 1;
        warn!(
            folder = %folder(root, *index).display(),
            "safekeeper {number} is not started: its folder is not what it was. Mount its disk, or stop the server and run: ardent recover safekeeper {number}"
        );
    }
    Ok(there)
}

/// `safekeeper`, `safekeeper-2`, `safekeeper-3`.
fn name(index: usize) -> String {
    if index == 0 { "safekeeper".to_owned() } else { format!("safekeeper-{}", index + 1) }
}

/// The folder of the one with this number, from 0.
pub fn folder(root: &Path, index: usize) -> PathBuf {
    root.join(name(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_the_first_start_stays() {
        let folder = tempfile::tempdir().expect("folder");
        let place = Place::open(folder.path()).expect("a new folder");
        assert_eq!(addresses(&place, Some(3)).expect("new").len(), 3);
        assert_eq!(addresses(&place, None).expect("as it is").len(), 3);
        let failure = addresses(&place, Some(1)).expect_err("another number");
        assert_eq!(failure.info.code, ApiErrorCode::Conflict);
    }

    #[test]
    fn a_folder_that_is_gone_or_empty_does_not_make_the_quorum_smaller() {
        let folder = tempfile::tempdir().expect("folder");
        let place = Place::open(folder.path()).expect("a new folder");
        addresses(&place, Some(3)).expect("new");
        assert_eq!(present(&place.root).expect("all"), [0, 1, 2]);
        // Gone, and a mount point without its disk.
        fs::remove_dir_all(folder.path().join("safekeeper-2")).expect("removed");
        assert_eq!(addresses(&place, None).expect("as it was").len(), 3);
        assert_eq!(present(&place.root).expect("a majority"), [0, 2]);
        fs::create_dir(folder.path().join("safekeeper-2")).expect("made");
        assert_eq!(present(&place.root).expect("a majority"), [0, 2]);
        // A folder that was replaced and comes back has acknowledged nothing of what came meanwhile.
        let (second, old) = (folder.path().join("safekeeper-2"), folder.path().join("old"));
        let mut marks = recorded(&place.root).expect("read").expect("there");
        fs::write(second.join(MARK_FILE), format!("{}\n", marks[1])).expect("written");
        assert_eq!(present(&place.root).expect("it is back"), [0, 1, 2]);
        fs::rename(&second, &old).expect("moved");
        marks[1] = mark(&place.root, 1).expect("another one");
        record(&place.root, &marks).expect("written");
        assert_eq!(present(&place.root).expect("all"), [0, 1, 2]);
        fs::remove_dir_all(&second).and_then(|()| fs::rename(&old, &second)).expect("moved back");
        assert_eq!(present(&place.root).expect("a majority"), [0, 2]);
        fs::remove_dir_all(folder.path().join("safekeeper")).expect("removed");
        assert_eq!(addresses(&place, None).expect("as it was").len(), 3);
        let failure = present(&place.root).expect_err("a minority");
        assert!(failure.info.message.contains("safekeeper-2"), "{}", failure.info.message);
        // A new folder does not take its place by itself.
        let failure = addresses(&place, Some(1)).expect_err("another number");
        assert_eq!(failure.info.code, ApiErrorCode::Conflict);
    }

    #[test]
    fn an_older_installation_keeps_its_number() {
        let folder = tempfile::tempdir().expect("folder");
        let place = Place::open(folder.path()).expect("a new folder");
        for name in ["safekeeper", "safekeeper-2", "safekeeper-3"] {
            fs::create_dir(folder.path().join(name)).expect("made");
        }
        fs::write(folder.path().join("control.db"), b"").expect("written");
        assert_eq!(addresses(&place, None).expect("as it is").len(), 3);
        assert_eq!(present(&place.root).expect("all"), [0, 1, 2]);
    }
}
