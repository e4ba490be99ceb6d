//! From a data directory that was shut down to the stream of its kept state.
//!
//! The directory was Postgres's, and whoever ran there may have put anything in its place: files are reached from an open folder to the
//! next, no link is followed, and only plain files are read.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use ardent_pg_format::PgMajor;
use ardent_presence_map::PresenceMap;
use ardent_types::{BLCKSZ, ForkNumber, RelTag, oid};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::format::{Header, StateWriter};
use super::relation_file::{RelationFile, RelationFolder, number};
use crate::layout::{AUTO_CONF, PRESENCE_MAP};

/// Largest `postgresql.auto.conf`, and largest file below `pg_stat`.
const AUTO_CONF_LEN_MAX: u64 = 1 << 20;
/// `SEQ_MAGIC`, at the special space of a sequence's only page (`sequence.c`).
const SEQUENCE_MAGIC: u32 = 0x1717;
const SEQUENCE_SPECIAL: u16 = BLCKSZ as u16 - 8;
/// Where a page header has `pd_special`.
const PD_SPECIAL_AT: usize = 16;
/// A fork's file that is full.
const FULL_FILE_LEN: u64 = 1 << 30;

/// How much of what is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Unlogged relations, all together: with more of them, none is kept.
    pub(crate) unlogged_bytes: u64,
    /// Free space maps and sequences: what is over it is left out.
    pub(crate) pages_bytes: u64,
    /// Files below `pg_stat`: what is over it is left out.
    pub(crate) stat_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { unlogged_bytes: 256 << 20, pages_bytes: 64 << 20, stat_bytes: 64 << 20 }
    }
}

/// What was found, for the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) pages: u64,
    pub(crate) unlogged_files: u64,
    /// Unlogged relations that are not kept, in bytes.
    pub(crate) unlogged_bytes_dropped: u64,
}

/// A data directory to look through.
pub(crate) struct Collect<'a> {
    pub(crate) data: &'a Path,
    pub(crate) major: PgMajor,
    pub(crate) header: Header,
    pub(crate) limits: Limits,
}

impl Collect<'_> {
    /// Writes the state to `out`.
    pub(crate) fn run<W: Write>(self, out: W) -> io::Result<(W, Found)> {
        let root = Folder::root(self.data)?;
        let path = self.data.join(PRESENCE_MAP);
        if !path.symlink_metadata()?.is_file() {
            return Err(io::Error::other("the presence map is no file"));
        }
        let map = PresenceMap::open(&path).map_err(io::Error::other)?;
        let mut writer = StateWriter::begin(out, self.header)?;
        if let Some((file, length)) = root.file(AUTO_CONF)?
            && length <= AUTO_CONF_LEN_MAX
        {
            writer.file(AUTO_CONF, length, file)?;
        }
        self.statistics(&root, &mut writer)?;
        let mut found = Found::default();
        let folders = self.folders(&root)?;
        let unlogged = self.unlogged(&folders, &mut found)?;
        let mut left = self.limits.pages_bytes;
        for (place, folder) in &folders {
            for name in folder.names()? {
                let Some(file) = place.file(&name) else { continue };
                let main = file.rel.with_fork(ForkNumber::Main);
                if unlogged.all.contains(&main) {
                    if unlogged.kept && file.rel.fork != ForkNumber::Init {
                        found.unlogged_files += self.unlogged_file(folder, &name, file, &mut writer)?;
                    }
                } else if file.segment == 0 {
                    found.pages += self.pages(folder, &name, file.rel, &map, &mut left, &mut writer)?;
                }
            }
        }
        Ok((writer.end()?, found))
    }

    fn statistics<W: Write>(&self, root: &Folder, writer: &mut StateWriter<W>) -> io::Result<()> {
        let Some(folder) = root.folder("pg_stat")? else { return Ok(()) };
        let mut left = self.limits.stat_bytes;
        for name in folder.names()? {
            let Some((file, length)) = folder.file(&name)?.filter(|(_, length)| *length <= left) else { continue };
            left -= length;
            writer.file(&format!("pg_stat/{name}"), length, file)?;
        }
        Ok(())
    }

    /// All folders of relations.
    fn folders(&self, root: &Folder) -> io::Result<Vec<(RelationFolder, Folder)>> {
        let mut folders = Vec::new();
        if let Some(folder) = root.folder("global")? {
            folders.push((RelationFolder { spcnode: oid::GLOBAL_TABLESPACE, dbnode: 0 }, folder));
        }
        if let Some(base) = root.folder("base")? {
            add_databases(&base, oid::DEFAULT_TABLESPACE, &mut folders)?;
        }
        if let Some(tablespaces) = root.folder("pg_tblspc")? {
            for name in tablespaces.names()? {
                let Some(spcnode) = number(&name) else { continue };
                let Some(tablespace) = tablespaces.folder(&name)? else { continue };
                if let Some(version) = tablespace.folder(self.major.tablespace_directory())? {
                    add_databases(&version, spcnode, &mut folders)?;
                }
            }
        }
        Ok(folders)
    }

    fn unlogged(&self, folders: &[(RelationFolder, Folder)], found: &mut Found) -> io::Result<Unlogged> {
        let mut all = BTreeSet::new();
        for (place, folder) in folders {
            let inits = folder.names()?.into_iter().filter_map(|name| place.file(&name));
            all.extend(inits.filter(|file| file.rel.fork == ForkNumber::Init).map(|file| main_of(file.rel)));
        }
        let mut bytes = 0;
        for (place, folder) in folders {
            for name in folder.names()? {
                let is_data =
                    |file: &RelationFile| file.rel.fork != ForkNumber::Init && all.contains(&main_of(file.rel));
                if place.file(&name).as_ref().is_some_and(is_data) {
                    bytes += folder.file(&name)?.map_or(0, |(_, length)| length);
                }
            }
        }
        let kept = bytes <= self.limits.unlogged_bytes;
        found.unlogged_bytes_dropped = if kept { 0 } else { bytes };
        Ok(Unlogged { all, kept })
    }

    fn unlogged_file<W: Write>(
        &self,
        folder: &Folder,
        name: &str,
        file: RelationFile,
        writer: &mut StateWriter<W>,
    ) -> io::Result<u64> {
        let Some((content, length)) = folder.file(name)? else { return Ok(0) };
        writer.file(&file.path(self.major.tablespace_directory()), length, content)?;
        Ok(1)
    }

    /// The pages of a free space map, or of a sequence, that this compute has itself.
    fn pages<W: Write>(
        &self,
        folder: &Folder,
        name: &str,
        rel: RelTag,
        map: &PresenceMap,
        left: &mut u64,
        writer: &mut StateWriter<W>,
    ) -> io::Result<u64> {
        if !matches!(rel.fork, ForkNumber::Fsm | ForkNumber::Main) {
            return Ok(0);
        }
        let entry = map.find(&rel);
        let is_absent = |block: u32| entry.as_ref().is_some_and(|entry| entry.is_absent(block));
        if rel.fork == ForkNumber::Main && is_absent(0) {
            return Ok(0);
        }
        let Some((file, length)) = folder.file(name)? else { return Ok(0) };
        if length == 0 || length >= FULL_FILE_LEN || (rel.fork == ForkNumber::Main && length != BLCKSZ as u64) {
            return Ok(0);
        }
        let nblocks = (length / BLCKSZ as u64) as u32;
        let mut pages = Vec::new();
        for block in (0..nblocks).filter(|block| !is_absent(*block)) {
            let mut page = vec![0; BLCKSZ];
            file.read_exact_at(&mut page, u64::from(block) * BLCKSZ as u64)?;
            let wanted = match rel.fork {
                ForkNumber::Main => is_sequence(&page),
                _ => page.iter().any(|byte| *byte != 0),
            };
            if wanted {
                pages.push((block, page));
            }
        }
        let bytes = (pages.len() * BLCKSZ) as u64;
        if pages.is_empty() || bytes > *left {
            return Ok(0);
        }
        *left -= bytes;
        writer.pages(rel, nblocks, &pages)?;
        Ok(pages.len() as u64)
    }
}

struct Unlogged {
    /// Main forks.
    all: BTreeSet<RelTag>,
    kept: bool,
}

fn main_of(rel: RelTag) -> RelTag {
    rel.with_fork(ForkNumber::Main)
}

fn is_sequence(page: &[u8]) -> bool {
    let special = u16::from_le_bytes([page[PD_SPECIAL_AT], page[PD_SPECIAL_AT + 1]]);
    let at = usize::from(SEQUENCE_SPECIAL);
    special == SEQUENCE_SPECIAL && page[at..at + 4] == SEQUENCE_MAGIC.to_le_bytes()
}

fn add_databases(parent: &Folder, spcnode: u32, folders: &mut Vec<(RelationFolder, Folder)>) -> io::Result<()> {
    for name in parent.names()? {
        let Some(dbnode) = number(&name) else { continue };
        if let Some(folder) = parent.folder(&name)? {
            folders.push((RelationFolder { spcnode, dbnode }, folder));
        }
    }
    Ok(())
}

/// An open folder.
struct Folder(File);

impl Folder {
    fn root(path: &Path) -> io::Result<Folder> {
        File::open(path).map(Folder)
    }

    /// A folder in it; `None` if there is none of that name, or something else.
    fn folder(&self, name: &str) -> io::Result<Option<Folder>> {
        Ok(self.open(name, OFlag::O_DIRECTORY)?.map(Folder))
    }

    /// A plain file in it and its length; `None` if there is none of that name, or something else.
    fn file(&self, name: &str) -> io::Result<Option<(File, u64)>> {
        let Some(file) = self.open(name, OFlag::O_NONBLOCK)? else { return Ok(None) };
        let metadata = file.metadata()?;
        Ok(metadata.is_file().then_some((file, metadata.len())))
    }

    fn open(&self, name: &str, flags: OFlag) -> io::Result<Option<File>> {
        use nix::errno::Errno;
        let flags = flags | OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        match openat(&self.0, name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The names in it that are text, sorted.
    fn names(&self) -> io::Result<Vec<String>> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()));
        let entries = std::fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name()));
        let mut names: Vec<String> = entries
            .filter_map(|name| name.map(|name| name.into_string().ok()).transpose())
            .collect::<Result<_, _>>()?;
        names.sort_unstable();
        Ok(names)
    }
}
