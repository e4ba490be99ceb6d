//! The safekeepers of one process, each on a folder of its own.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use ardent_api::addr::ServiceAddr;
use ardent_api::control::{ApiErrorCode, ErrorInfo};
use ardent_safekeeper::{Safekeeper, SafekeeperConfig};

use super::roles::Place;
use crate::failure::Failure;

/// In the data directory: how many there are.
const COUNT_FILE: &str = "safekeepers";
/// In each one's folder: that it is the one that was there.
const MARK_FILE: &str = "member";
/// Most safekeepers.
pub const COUNT_MAX: usize = 9;

/// All of them that are there, running, with their numbers from 0.
pub struct Safekeepers(Vec<(usize, Safekeeper)>);

impl Safekeepers {
    /// Starts one for each address whose folder is there, or none.
    pub async fn start(place: &Place, addresses: &[ServiceAddr]) -> Result<Self, Failure> {
        let mut started = Safekeepers(Vec::with_capacity(addresses.len()));
        for index in present(&place.root, addresses.len())? {
            let address = &addresses[index];
            let config =
                SafekeeperConfig::new(folder(&place.root, index), vec![address.clone()], place.issuer.verifier());
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

    /// Ends all, with what is in memory saved.
    pub async fn shutdown(self) {
        for (_, safekeeper) in self.0 {
            safekeeper.shutdown().await;
        }
    }
}

/// The addresses of as many safekeepers as the folder was made with; of `wanted` (or 1) in a new folder, where the number is
/// written down: a quorum of another number would not overlap with the one that holds the log.
pub fn addresses(place: &Place, wanted: Option<u8>) -> Result<Vec<ServiceAddr>, Failure> {
    let count = match (recorded(&place.root)?, wanted) {
        (Some(there), Some(wanted)) if there != usize::from(wanted) => {
            let message = format!(
                "{} keeps its WAL on {there} safekeeper(s), and --safekeepers asks for {wanted}",
                place.root.display()
            );
            return Err(Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message))
                .hint(format!("start without --safekeepers, or begin a new folder with: ardent up --data-dir DIR --safekeepers {wanted}")));
        }
        (Some(there), _) => there,
        (None, wanted) => {
            let count = usize::from(wanted.unwrap_or(1));
            for index in 0..count {
                mark(&place.root, index)?;
            }
            record(&place.root, count)?;
            count
        }
    };
    Ok((0..count).map(|index| ServiceAddr::Unix(place.files.run(&format!("{}.sock", name(index))))).collect())
}

/// How many there are; `None` in a new folder. An installation from before the number was written down gets it written down, with what
/// is there.
pub fn recorded(root: &Path) -> Result<Option<usize>, Failure> {
    let path = root.join(COUNT_FILE);
    let failed = |error: &io::Error| Failure::local(format!("{} cannot be read", path.display()), error);
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(count) if (1..=COUNT_MAX).contains(&count) => return Ok(Some(count)),
            _ => {
                let message =
                    format!("{} does not say how many safekeepers there are: {:?}", path.display(), text.trim());
                return Err(Failure::from(ErrorInfo::new(ApiErrorCode::Internal, message))
                    .hint("write their number into it, as --safekeepers was at the first start"));
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(&error)),
    }
    // A first start that was cut off left no database.
    if !root.join("control.db").exists() {
        return Ok(None);
    }
    let there: Vec<usize> = (0..COUNT_MAX).filter(|index| folder(root, *index).exists()).collect();
    let Some(last) = there.last() else { return Ok(None) };
    for index in &there {
        mark(root, *index)?;
    }
    record(root, last + 1)?;
    Ok(Some(last + 1))
}

/// Writes down how many there are.
pub fn record(root: &Path, count: usize) -> Result<(), Failure> {
    write_durably(&root.join(COUNT_FILE), &format!("{count}\n"))
}

/// Makes the folder of one, if it is not there, and marks it: one without the mark is a disk that is not mounted, or a new one.
pub fn mark(root: &Path, index: usize) -> Result<(), Failure> {
    let folder = folder(root, index);
    fs::create_dir_all(&folder)
        .map_err(|error| Failure::local(format!("{} cannot be made", folder.display()), &error))?;
    let mark = folder.join(MARK_FILE);
    if mark.exists() { Ok(()) } else { write_durably(&mark, &format!("safekeeper {}\n", index + 1)) }
}

/// Whether its folder is the one that was there.
pub fn is_marked(root: &Path, index: usize) -> bool {
    folder(root, index).join(MARK_FILE).exists()
}

fn write_durably(path: &Path, text: &str) -> Result<(), Failure> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(|error| Failure::local(format!("{} cannot be written", path.display()), &error))
}

/// The numbers, from 0, of those whose folders are there; an error if too few are for a quorum.
fn present(root: &Path, count: usize) -> Result<Vec<usize>, Failure> {
    let (there, lost): (Vec<usize>, Vec<usize>) = (0..count).partition(|index| is_marked(root, *index));
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
        assert_eq!(present(&place.root, 3).expect("all"), [0, 1, 2]);
        // Gone, and a mount point without its disk.
        fs::remove_dir_all(folder.path().join("safekeeper-2")).expect("removed");
        assert_eq!(addresses(&place, None).expect("as it was").len(), 3);
        assert_eq!(present(&place.root, 3).expect("a majority"), [0, 2]);
        fs::create_dir(folder.path().join("safekeeper-2")).expect("made");
        assert_eq!(present(&place.root, 3).expect("a majority"), [0, 2]);
        fs::remove_dir_all(folder.path().join("safekeeper")).expect("removed");
        assert_eq!(addresses(&place, None).expect("as it was").len(), 3);
        let failure = present(&place.root, 3).expect_err("a minority");
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
        assert_eq!(present(&place.root, 3).expect("all"), [0, 1, 2]);
    }
}
