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
use ardent_control::store::{KnownMembers, members_in};
use ardent_object_store::ObjectStore;
use ardent_safekeeper::{Safekeeper, SafekeeperConfig};

use super::roles::Place;
use crate::failure::Failure;
use crate::shell_word::shell_word;

/// In the data directory: the marks of their folders, one a line.
const MEMBERS_FILE: &str = "safekeepers";
/// Stands for a number that no folder has any more.
const GAP: &str = "-";
/// Before the mark of one that was started to join, and is no member yet.
const JOINS: char = '+';
/// In each one's folder: its mark, by which its safekeeper knows which disk it is.
const MARK_FILE: &str = "member";
/// Most safekeepers.
pub const COUNT_MAX: usize = 9;

/// Highest number that a folder gets.
const NUMBER_MAX: usize = 99;

/// A folder of a safekeeper.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot {
    mark: String,
    /// It was started to join, and counts for nothing yet.
    joins: bool,
}

/// By number, from 0; `None` where there is none any more.
type Slots = Vec<Option<Slot>>;

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
        slots[index] = Some(Slot { mark, joins: true });
        record_slots(root, &slots)?;
        self.start_one(index).await
    }

    async fn keep_one(&self, at: &ServiceAddr) -> Result<(), Failure> {
        let _turn = self.0.changing.lock().await;
        let mut slots = slots(&self.0.root)?.unwrap_or_default();
        let slot = slots.iter_mut().enumerate().find(|(index, _)| address(&self.0.files, *index) == *at);
        match slot {
            Some((_, Some(slot))) if slot.joins => slot.joins = false,
            _ => return Ok(()),
        }
        record_slots(&self.0.root, &slots)
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
        let left = slots[index].take();
        record_slots(&self.0.root, &slots)?;
        // Of one that was to join, and is not wanted any more, nothing is kept; what a member had stays until people remove it.
        if left.is_some_and(|slot| slot.joins) {
            remove_if_unused(&folder(&self.0.root, index))?;
        }
        Ok(())
    }
}

impl SafekeeperHost for Safekeepers {
    fn own(&self) -> Vec<(u32, ServiceAddr)> {
        let slots = slots(&self.0.root).unwrap_or_else(|failure| {
            warn!(error = %failure.info.message, "which safekeepers are this server's own is not known");
            None
        });
        let slots = slots.unwrap_or_default();
        let used = slots.iter().enumerate().filter(|(_, slot)| slot.is_some());
        used.map(|(index, _)| (u32::try_from(index + 1).unwrap_or(u32::MAX), address(&self.0.files, index))).collect()
    }

    fn add(&self) -> BoxFuture<'_, Result<ServiceAddr, ErrorInfo>> {
        async move { self.add_one().await.map_err(|failure| failure.info) }.boxed()
    }

    fn keep<'a>(&'a self, address: &'a ServiceAddr) -> BoxFuture<'a, Result<(), ErrorInfo>> {
        async move { self.keep_one(address).await.map_err(|failure| failure.info) }.boxed()
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

/// Removes the folder of one that has no timeline.
fn remove_if_unused(folder: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::local(format!("{} cannot be removed", folder.display()), &error);
    // What begins with a dot is left over from a copy or a deletion.
    let has_timelines = |tenant: &Path| -> io::Result<bool> {
        if !tenant.is_dir() {
            return Ok(false);
        }
        let names = fs::read_dir(tenant)?.map(|entry| Ok(entry?.file_name()));
        let names = names.collect::<io::Result<Vec<_>>>()?;
        Ok(names.iter().any(|name| !name.to_string_lossy().starts_with('.')))
    };
    for entry in fs::read_dir(folder).map_err(failed)? {
        if has_timelines(&entry.map_err(failed)?.path()).map_err(failed)? {
            return Ok(());
        }
    }
    match fs::remove_dir_all(folder) {
        // A disk is mounted there: it is empty now.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        removed => removed.map_err(failed),
    }
}

fn address(files: &DataDir, index: usize) -> ServiceAddr {
    ServiceAddr::Unix(files.run(&format!("{}.sock", name(index))))
}

/// The addresses of the safekeepers: of as many as the folder was made with, or as control's database says since they were changed while the server
/// ran; of `wanted` (or 1) in a new folder, where they are written down: a quorum of another number would not overlap with the one that holds the
/// log. While a change is on its way `wanted` is neither the old number nor the new one, and is passed over.
pub fn addresses(place: &Place, wanted: Option<u8>) -> Result<Vec<ServiceAddr>, Failure> {
    let Some(slots) = slots(&place.root)? else {
        let count = usize::from(wanted.unwrap_or(1));
        let marks = (0..count).map(|index| mark(&place.root, index)).collect::<Result<Vec<_>, _>>()?;
        record(&place.root, &marks)?;
        return Ok((0..count).map(|index| address(&place.files, index)).collect());
    };
    let known = known_members(&place.root)?;
    let there = match &known.membership {
        Some(membership) => membership.addresses(),
        None => {
            let members = slots.iter().enumerate().filter(|(_, slot)| slot.as_ref().is_some_and(|slot| !slot.joins));
            members.map(|(index, _)| address(&place.files, index)).collect()
        }
    };
    match wanted.filter(|wanted| usize::from(*wanted) != there.len()) {
        None => Ok(there),
        Some(wanted) if known.is_changing => {
            warn!(
                wanted,
                "the safekeepers are being changed, which goes on: --safekeepers says nothing until that is over"
            );
            Ok(there)
        }
        Some(wanted) => {
            let message = format!(
                "{} keeps its WAL on {} safekeeper(s), and --safekeepers asks for {wanted}",
                place.root.display(),
                there.len()
            );
            Err(Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message)).hint(format!(
                "start without --safekeepers; to keep it on {wanted}: ardent reconfigure safekeepers {wanted}"
            )))
        }
    }
}

/// What control's database says of the safekeepers; nothing before there is one.
fn known_members(root: &Path) -> Result<KnownMembers, Failure> {
    let database = root.join("control.db");
    if !database.exists() {
        return Ok(KnownMembers::default());
    }
    members_in(&database).map_err(|error| Failure::of(&error))
}

/// The marks of their folders, by their numbers; `None` in a new folder. For commands that change them while nothing runs: where they were
/// changed while the server ran, that is how it is done from then on.
pub fn recorded(root: &Path) -> Result<Option<Vec<String>>, Failure> {
    let Some(slots) = slots(root)? else { return Ok(None) };
    let gap = || {
        let message = format!("the safekeepers of {} were changed while the server ran", root.display());
        Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message)).hint(format!(
            "start ardent up --data-dir {}; then: ardent reconfigure safekeepers --replace NUMBER",
            shell_word(root)
        ))
    };
    // What an attempt that was cut off has started counts for nothing.
    let members = slots.into_iter().filter(|slot| !slot.as_ref().is_some_and(|slot| slot.joins));
    members.map(|slot| slot.map(|slot| slot.mark).ok_or_else(gap)).collect::<Result<Vec<_>, _>>().map(Some)
}

/// The marks of their folders, by their numbers, with gaps where there is none any more; `None` in a new folder. An installation from before they
/// were written down gets them written down, of what is there.
fn slots(root: &Path) -> Result<Option<Slots>, Failure> {
    let path = root.join(MEMBERS_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => {
            return parse_slots(&text).map(Some).ok_or_else(|| {
                let message = format!("{} does not name the safekeepers' folders, one a line", path.display());
                Failure::from(ErrorInfo::new(ApiErrorCode::Internal, message))
                    .hint("write into it what the file member in each folder says, in their order")
            });
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
    Ok(Some(marks.into_iter().map(|mark| Some(Slot { mark, joins: false })).collect()))
}

/// `None` if the text does not name at least one member.
fn parse_slots(text: &str) -> Option<Slots> {
    let parse = |line: &str| {
        if line == GAP {
            return Some(None);
        }
        let (mark, joins) = match line.strip_prefix(JOINS) {
            Some(mark) => (mark, true),
            None => (line, false),
        };
        is_mark(mark).then(|| Some(Slot { mark: mark.to_owned(), joins }))
    };
    let slots: Slots = text.lines().map(parse).collect::<Option<_>>()?;
    let has_members = slots.iter().flatten().any(|slot| !slot.joins);
    (slots.len() <= NUMBER_MAX && has_members).then_some(slots)
}

/// Writes down which folders are the safekeepers'.
pub fn record(root: &Path, marks: &[String]) -> Result<(), Failure> {
    write_durably(root, MEMBERS_FILE, &format!("{}\n", marks.join("\n")))
}

/// The same, with gaps and with those that are to join.
fn record_slots(root: &Path, slots: &[Option<Slot>]) -> Result<(), Failure> {
    let line = |slot: &Option<Slot>| match slot {
        Some(Slot { mark, joins: true }) => format!("{JOINS}{mark}"),
        Some(Slot { mark, joins: false }) => mark.clone(),
        None => GAP.to_owned(),
    };
    let lines: Vec<String> = slots.iter().map(line).collect();
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

/// The numbers, from 0, of those whose folders are the ones that were there; an error if too few of the members' are for a quorum.
fn present(root: &Path) -> Result<Vec<usize>, Failure> {
    let slots = slots(root)?.unwrap_or_default();
    let known = known_members(root)?.membership;
    let is_member = |slot: &Slot| match &known {
        Some(known) => known.members.iter().any(|member| member.disk.to_string() == slot.mark),
        None => !slot.joins,
    };
    let is_there = |index: usize, slot: &Slot| mark_of(root, index).as_ref() == Some(&slot.mark);
    let used = || slots.iter().enumerate().filter_map(|(index, slot)| Some((index, slot.as_ref()?)));
    let lost: Vec<(usize, &Slot)> = used().filter(|(index, slot)| !is_there(*index, slot)).collect();
    let count = match &known {
        Some(known) => known.members.len(),
        None => used().filter(|(_, slot)| !slot.joins).count(),
    };
    let lost_members: Vec<usize> = lost.iter().filter(|(_, slot)| is_member(slot)).map(|(index, _)| *index).collect();
    if lost_members.len() >= count.div_ceil(2) {
        let folders = lost_members.iter().map(|index| folder(root, *index).display().to_string());
        let message = format!(
            "{} of {count} safekeepers' folders are not what they were: {}",
            lost_members.len(),
            folders.collect::<Vec<_>>().join(", ")
        );
        return Err(Failure::from(ErrorInfo::new(ApiErrorCode::StorageUnavailable, message)).hint(
            "mount their disks; if they are lost, so may be what was committed last: docs/operations.md, \"When something is lost\"",
        ));
    }
    for (index, slot) in lost {
        let (number, folder) = (index + 1, folder(root, index));
        let what = if slot.joins {
            "Mount its disk; if it is lost, run: ardent reconfigure safekeepers --cancel".to_owned()
        } else {
            format!(
                "Mount its disk; if it is lost, run: ardent reconfigure safekeepers --replace {number}, or stop the server and run: ardent recover safekeeper {number}"
            )
        };
        warn!(folder = %folder.display(), "safekeeper {number} is not started: its folder is not what it was. {what}");
    }
    Ok(used().filter(|(index, slot)| is_there(*index, slot)).map(|(index, _)| index).collect())
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
        let fourth = mark(&place.root, 3).expect("a new one");
        marks.push(Some(Slot { mark: fourth, joins: false }));
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
    fn one_that_is_to_join_is_started_and_does_not_count() {
        let folder = tempfile::tempdir().expect("folder");
        let place = Place::open(folder.path()).expect("a new folder");
        addresses(&place, Some(3)).expect("new");
        let mut marks = slots(&place.root).expect("read").expect("there");
        marks.push(Some(Slot { mark: mark(&place.root, 3).expect("a new one"), joins: true }));
        record_slots(&place.root, &marks).expect("written");
        assert_eq!(slots(&place.root).expect("read"), Some(marks));
        assert_eq!(addresses(&place, Some(3)).expect("as it was").len(), 3);
        assert_eq!(present(&place.root).expect("all"), [0, 1, 2, 3]);
        assert_eq!(recorded(&place.root).expect("read").expect("there").len(), 3);
        fs::remove_dir_all(super::folder(&place.root, 0)).expect("removed");
        fs::remove_dir_all(super::folder(&place.root, 3)).expect("removed");
        assert_eq!(present(&place.root).expect("a majority of the members"), [1, 2]);
        fs::remove_dir_all(super::folder(&place.root, 1)).expect("removed");
        present(&place.root).expect_err("a minority of the members");
    }

    #[test]
    fn in_the_middle_of_a_change_it_starts_with_any_number() {
        use ardent_api::control::ChangePhase;
        use ardent_api::wal_service::{Member, Membership};
        use ardent_control::store::Store;
        use ardent_types::MemberGeneration;
        let folder = tempfile::tempdir().expect("folder");
        let place = Place::open(folder.path()).expect("a new folder");
        addresses(&place, Some(3)).expect("new");
        let member = |index: usize| Member {
            disk: mark_of(&place.root, index).expect("marked").parse().expect("a disk's id"),
            address: address(&place.files, index),
        };
        let list = |generation, members: &[Member]| {
            let mut members = members.to_vec();
            members.sort_by_key(|member| member.disk);
            Membership { generation: MemberGeneration::new(generation), members, ..Membership::default() }
        };
        let all = [member(0), member(1), member(2)];
        let (first, after) = (list(1, &all), list(3, &all[..1]));
        let joint =
            Membership { generation: MemberGeneration::new(2), next: Some(after.members.clone()), ..first.clone() };
        let store = Store::open(&place.root.join("control.db")).expect("made");
        store.begin_member_change(&first, &after.members).expect("written").expect("current").expect("no connector");
        for wanted in [None, Some(3), Some(1)] {
            assert_eq!(addresses(&place, wanted).expect("it goes on").len(), 3, "{wanted:?}");
        }
        let step = |from, to| store.step_members(from, to).expect("written").expect("in order");
        step((ChangePhase::Copying, &first), (ChangePhase::Joint, &joint));
        step((ChangePhase::Joint, &joint), (ChangePhase::Settled, &after));
        // Those that go are lost already: nobody needs them.
        for index in [1, 2] {
            fs::remove_dir_all(super::folder(&place.root, index)).expect("removed");
        }
        assert_eq!(present(&place.root).expect("the one that stays"), [0]);
        assert_eq!(addresses(&place, Some(3)).expect("it goes on").len(), 1);
        store.end_member_change(&all[1..], &after.members).expect("written");
        assert_eq!(addresses(&place, Some(1)).expect("as it is").len(), 1);
        let failure = addresses(&place, Some(3)).expect_err("it is over");
        assert!(failure.info.message.contains("on 1 safekeeper(s)"), "{}", failure.info.message);
    }

    #[test]
    fn the_folder_of_one_that_was_not_wanted_goes_and_one_with_timelines_stays() {
        let root = tempfile::tempdir().expect("folder");
        let (unused, used) = (root.path().join("a"), root.path().join("b"));
        fs::create_dir_all(unused.join("tenant/.copying-timeline"))
            .and_then(|()| fs::write(unused.join("member"), "x"))
            .expect("made");
        fs::create_dir_all(used.join("tenant/timeline")).expect("made");
        remove_if_unused(&unused).expect("removed");
        remove_if_unused(&used).expect("left");
        assert_eq!((unused.exists(), used.exists()), (false, true));
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
