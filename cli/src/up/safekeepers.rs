//! The safekeepers of one process, each on a folder of its own.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use ardent_api::addr::ServiceAddr;
use ardent_api::control::{ApiErrorCode, ErrorInfo};
use ardent_api::token::TokenVerifier;
use ardent_control::DataDir;
use ardent_control::deps::SafekeeperHost;
use ardent_control::secrets::random_bytes;
use ardent_object_store::ObjectStore;
use ardent_safekeeper::{Safekeeper, SafekeeperConfig};

use super::roles::Place;
use crate::failure::Failure;

/// In the data directory: the marks of their folders, one a line.
const MEMBERS_FILE: &str = "safekeepers";
/// Stands for a number that no folder has any more.
const GAP: &str = "-";
/// In each one's folder: its mark, by which its safekeeper knows which disk it is.
const MARK_FILE: &str = "member";
/// Most safekeepers.
pub const COUNT_MAX: usize = 9;

/// Highest number that a folder gets.
const NUMBER_MAX: usize = 99;

/// All of them that are there, running. A cheap handle.
#[derive(Clone)]
pub struct Safekeepers(Arc<Inner>);

struct Inner {
    root: PathBuf,
    files: DataDir,
    verifier: TokenVerifier,
    archive: Option<Arc<dyn ObjectStore>>,
    /// By their numbers, from 0.
    running: Mutex<Vec<(usize, Safekeeper)>>,
    /// One comes or goes at a time.
    changing: tokio::sync::Mutex<()>,
}

impl Safekeepers {
    /// Starts all whose folders are there, or none. With `archive` whole segments of WAL go there.
    pub async fn start(place: &Place, archive: Option<Arc<dyn ObjectStore>>) -> Result<Self, Failure> {
        let started = Safekeepers(Arc::new(Inner {
            root: place.root.clone(),
            files: place.files.clone(),
            verifier: place.issuer.verifier(),
            archive,
            running: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        }));
        for index in present(&place.root)? {
            if let Err(failure) = started.start_one(index).await {
                started.shutdown().await;
                return Err(failure);
            }
        }
        Ok(started)
    }

    async fn start_one(&self, index: usize) -> Result<ServiceAddr, Failure> {
        let inner = &self.0;
        let address = address(&inner.files, index);
        let config = SafekeeperConfig {
            archive: inner.archive.clone(),
            ..SafekeeperConfig::new(folder(&inner.root, index), vec![address.clone()], inner.verifier.clone())
        };
        let safekeeper =
            Safekeeper::start(config, CancellationToken::new()).await.map_err(|error| Failure::of(&error))?;
        inner.running.lock().push((index, safekeeper));
        Ok(address)
    }

    /// Adds what they count, each under its number where there are several. One that is added later is counted after the next start.
    pub fn register_metrics(&self, registry: &mut Registry) {
        for (index, safekeeper) in &*self.0.running.lock() {
            let number = (index + 1).to_string();
            safekeeper.register_metrics(registry.sub_registry_with_label(("safekeeper".into(), number.into())));
        }
    }

    /// What does not work of them at present.
    pub fn problems(&self) -> impl Fn() -> Vec<String> + Send + Sync + use<> {
        let inner = Arc::clone(&self.0);
        move || {
            let mut found = Vec::new();
            for (index, safekeeper) in &*inner.running.lock() {
                let number = index + 1;
                found.extend(
                    safekeeper.problems()().into_iter().map(|problem| format!("safekeeper {number}: {problem}")),
                );
            }
            found
        }
    }

    /// Ends all, with what is in memory saved.
    pub async fn shutdown(&self) {
        let running = std::mem::take(&mut *self.0.running.lock());
        for (_, safekeeper) in running {
            safekeeper.shutdown().await;
        }
    }

    async fn add_one(&self) -> Result<ServiceAddr, Failure> {
        let _turn = self.0.changing.lock().await;
        let root = &self.0.root;
        let mut slots = slots(root)?.unwrap_or_default();
        let is_free = |index: &usize| slots.get(*index).is_none_or(Option::is_none) && is_empty(&folder(root, *index));
        let index = (0..NUMBER_MAX).find(is_free).ok_or_else(|| {
            let message = format!("{} has folders of {NUMBER_MAX} safekeepers", root.display());
            Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message))
                .hint("remove those that are not used any more")
        })?;
        let mark = mark(root, index)?;
        if slots.len() <= index {
            slots.resize(index + 1, None);
        }
        slots[index] = Some(mark);
        record_slots(root, &slots)?;
        self.start_one(index).await
    }

    async fn remove_one(&self, at: &ServiceAddr) -> Result<(), Failure> {
        let _turn = self.0.changing.lock().await;
        let mut slots = slots(&self.0.root)?.unwrap_or_default();
        let Some(index) = (0..slots.len()).find(|index| address(&self.0.files, *index) == *at) else { return Ok(()) };
        let stopping = {
            let mut running = self.0.running.lock();
            let found = running.iter().position(|(running, _)| *running == index);
            found.map(|found| running.swap_remove(found).1)
        };
        if let Some(safekeeper) = stopping {
            safekeeper.shutdown().await;
        }
        slots[index] = None;
        record_slots(&self.0.root, &slots)
    }
}

impl SafekeeperHost for Safekeepers {
    fn own(&self) -> Vec<(u32, ServiceAddr)> {
        let slots = slots(&self.0.root).ok().flatten().unwrap_or_default();
        let used = slots.iter().enumerate().filter(|(_, slot)| slot.is_some());
        used.map(|(index, _)| (u32::try_from(index + 1).unwrap_or(u32::MAX), address(&self.0.files, index))).collect()
    }

    fn add(&self) -> BoxFuture<'_, Result<ServiceAddr, ErrorInfo>> {
        async move { self.add_one().await.map_err(|failure| failure.info) }.boxed()
    }

    fn remove<'a>(&'a self, address: &'a ServiceAddr) -> BoxFuture<'a, Result<(), ErrorInfo>> {
        async move { self.remove_one(address).await.map_err(|failure| failure.info) }.boxed()
    }
}

/// Whether nothing is there that a new safekeeper would find.
fn is_empty(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return !folder.exists() };
    entries.into_iter().all(|entry| entry.is_ok_and(|entry| entry.file_name() == "lost+found"))
}

fn address(files: &DataDir, index: usize) -> ServiceAddr {
    ServiceAddr::Unix(files.run(&format!("{}.sock", name(index))))
}

/// The addresses of as many safekeepers as the folder was made with, or has since it was changed; of `wanted` (or 1) in a new folder, where
/// they are written down: a quorum of another number would not overlap with the one that holds the log.
pub fn addresses(place: &Place, wanted: Option<u8>) -> Result<Vec<ServiceAddr>, Failure> {
    let all = |slots: &[Option<String>]| {
        let used = slots.iter().enumerate().filter(|(_, slot)| slot.is_some());
        used.map(|(index, _)| address(&place.files, index)).collect::<Vec<_>>()
    };
    match (slots(&place.root)?, wanted) {
        (Some(there), wanted) => {
            let there = all(&there);
            let Some(wanted) = wanted.filter(|wanted| usize::from(*wanted) != there.len()) else { return Ok(there) };
            let message = format!(
                "{} keeps its WAL on {} safekeeper(s), and --safekeepers asks for {wanted}",
                place.root.display(),
                there.len()
            );
            Err(Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message)).hint(format!(
                "start without --safekeepers; to keep it on {wanted}: ardent reconfigure safekeepers {wanted}"
            )))
        }
        (None, wanted) => {
            let count = usize::from(wanted.unwrap_or(1));
            let marks = (0..count).map(|index| mark(&place.root, index)).collect::<Result<Vec<_>, _>>()?;
            record(&place.root, &marks)?;
            Ok((0..count).map(|index| address(&place.files, index)).collect())
        }
    }
}

/// The marks of their folders, by their numbers; `None` in a new folder. For commands that change them while nothing runs: where they were
/// changed while the server ran, that is how it is done from then on.
pub fn recorded(root: &Path) -> Result<Option<Vec<String>>, Failure> {
    let Some(slots) = slots(root)? else { return Ok(None) };
    let gap = || {
        let message = format!("the safekeepers of {} were changed while the server ran", root.display());
        Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message))
            .hint("start it, and run: ardent reconfigure safekeepers --replace NUMBER")
    };
    slots.into_iter().map(|slot| slot.ok_or_else(gap)).collect::<Result<Vec<_>, _>>().map(Some)
}

/// The marks of their folders, by their numbers, with gaps where there is none any more; `None` in a new folder. An installation from before they
/// were written down gets them written down, of what is there.
fn slots(root: &Path) -> Result<Option<Vec<Option<String>>>, Failure> {
    let path = root.join(MEMBERS_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let slots: Vec<Option<String>> = text.lines().map(|line| (line != GAP).then(|| line.to_owned())).collect();
            let mut marks = slots.iter().flatten();
            if (1..=NUMBER_MAX).contains(&slots.len())
                && slots.iter().any(Option::is_some)
                && marks.all(|mark| is_mark(mark))
            {
                return Ok(Some(slots));
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
    Ok(Some(marks.into_iter().map(Some).collect()))
}

/// Writes down which folders are the safekeepers'.
pub fn record(root: &Path, marks: &[String]) -> Result<(), Failure> {
    write_durably(root, MEMBERS_FILE, &format!("{}\n", marks.join("\n")))
}

/// The same, with gaps.
fn record_slots(root: &Path, slots: &[Option<String>]) -> Result<(), Failure> {
    let lines: Vec<&str> = slots.iter().map(|slot| slot.as_deref().unwrap_or(GAP)).collect();
    write_durably(root, MEMBERS_FILE, &format!("{}\n", lines.join("\n")))
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
    let slots = slots(root)?.unwrap_or_default();
    let used: Vec<usize> = (0..slots.len()).filter(|index| slots[*index].is_some()).collect();
    let count = used.len();
    let (there, lost): (Vec<usize>, Vec<usize>) =
        used.into_iter().partition(|index| mark_of(root, *index) == slots[*index]);
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
            "safekeeper {number} is not started: its folder is not what it was. Mount its disk; if it is lost, run: ardent reconfigure safekeepers --replace {number}, or stop the server and run: ardent recover safekeeper {number}"
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
    fn a_number_that_went_leaves_a_gap_and_is_not_missed() {
        let folder = tempfile::tempdir().expect("folder");
        let place = Place::open(folder.path()).expect("a new folder");
        addresses(&place, Some(3)).expect("new");
        let mut marks = slots(&place.root).expect("read").expect("there");
        marks[1] = None;
        marks.push(Some(mark(&place.root, 3).expect("a new one")));
        record_slots(&place.root, &marks).expect("written");
        assert_eq!(slots(&place.root).expect("read"), Some(marks));
        assert_eq!(present(&place.root).expect("all that there are"), [0, 2, 3]);
        let sockets = addresses(&place, Some(3)).expect("as it is");
        assert!(sockets[2].to_string().ends_with("safekeeper-4.sock"), "{sockets:?}");
        let failure = recorded(&place.root).expect_err("they were changed while the server ran");
        assert_eq!(failure.info.code, ApiErrorCode::Conflict);
        fs::write(place.root.join(MEMBERS_FILE), "-\n").expect("written");
        slots(&place.root).expect_err("none is left");
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
