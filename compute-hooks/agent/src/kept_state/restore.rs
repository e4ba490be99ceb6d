//! From the stream of a kept state into a data directory that was made a moment ago at the same position, and that nobody has used.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};

use ardent_api::compute::RunAs;
use ardent_pg_format::PgMajor;
use ardent_presence_map::PresenceMap;
use ardent_types::{BLCKSZ, BlockNumber, ForkNumber, Lsn, RelTag, oid};

use super::format::{Item, StateReader, invalid};
use super::relation_file::{RelationFile, RelationFolder, number};
use crate::data_dir::{give_away, write_file};
use crate::layout::{AUTO_CONF, PRESENCE_MAP};

/// Longest `postgresql.auto.conf`.
const AUTO_CONF_LEN_MAX: u64 = 1 << 20;

/// The data directory, and what the state must belong to.
pub(crate) struct Restore<'a> {
    pub(crate) data: &'a Path,
    pub(crate) major: PgMajor,
    pub(crate) lsn: Lsn,
    pub(crate) run_as: Option<RunAs>,
}

/// What was given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Restored {
    /// For `pg_control`: what unlogged relations were kept with.
    pub(crate) unlogged_lsn: Lsn,
    /// What `ALTER SYSTEM` wrote.
    pub(crate) settings: Option<String>,
    pub(crate) pages: u64,
    pub(crate) files: u64,
}

impl Restore<'_> {
    /// Carries `input` over. After an error the directory holds some of it, and must be made anew.
    pub(crate) fn run(self, input: impl Read) -> io::Result<Restored> {
        let mut reader = StateReader::begin(input)?;
        let header = reader.header();
        if header.lsn != self.lsn || header.major != self.major.number() {
            let (lsn, major) = (header.lsn, header.major);
            return Err(invalid(format!(
                "it is of Postgres {major} at {lsn}, and not of {} at {}",
                self.major, self.lsn
            )));
        }
        let map = PresenceMap::open(&self.data.join(PRESENCE_MAP)).map_err(io::Error::other)?;
        let mut restored = Restored { unlogged_lsn: header.unlogged_lsn, settings: None, pages: 0, files: 0 };
        loop {
            match reader.item()? {
                Item::End => return Ok(restored),
                Item::File { path, length } if path == AUTO_CONF => {
                    restored.settings = Some(text(&mut reader, length)?);
                }
                Item::File { path, length } => {
                    let target = self.target(&path)?;
                    write_file(&target, &[], self.run_as).map_err(io::Error::other)?;
                    let file = OpenOptions::new().write(true).open(&target)?;
                    let mut at = 0;
                    reader.content(length, |chunk| {
                        file.write_all_at(chunk, at)?;
                        at += chunk.len() as u64;
                        Ok(())
                    })?;
                    restored.files += 1;
                }
                Item::Pages { rel, nblocks, count } => {
                    self.pages(&mut reader, &map, rel, nblocks, count)?;
                    restored.pages += u64::from(count);
                }
            }
        }
    }

    /// Where a file goes: below `pg_stat`, or in the place of an unlogged relation's.
    fn target(&self, path: &str) -> io::Result<PathBuf> {
        let refused = || invalid(format!("it has a file {path:?}, which is not one that is kept"));
        let parts: Vec<&str> = path.split('/').collect();
        if let ["pg_stat", name] = parts[..] {
            let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
            return if plain && !name.is_empty() { Ok(self.data.join(path)) } else { Err(refused()) };
        }
        let file = self.relation_file(&parts).ok_or_else(refused)?;
        let version = self.major.tablespace_directory();
        let init = self.data.join(file.rel.with_fork(ForkNumber::Init).path(version));
        if file.rel.fork == ForkNumber::Init || !init.is_file() {
            return Err(refused());
        }
        Ok(self.data.join(file.path(version)))
    }

    fn relation_file(&self, parts: &[&str]) -> Option<RelationFile> {
        let (spcnode, dbnode, name) = match parts {
            ["base", database, name] => (oid::DEFAULT_TABLESPACE, number(database)?, name),
            ["pg_tblspc", tablespace, version, database, name] if *version == self.major.tablespace_directory() => {
                (number(tablespace)?, number(database)?, name)
            }
            _ => return None,
        };
        RelationFolder { spcnode, dbnode }.file(name)
    }

    /// Pages of a free space map, which may be longer than the page server knows or not known there at all, or of a sequence.
    fn pages<R: Read>(
        &self,
        reader: &mut StateReader<R>,
        map: &PresenceMap,
        rel: RelTag,
        nblocks: BlockNumber,
        count: u32,
    ) -> io::Result<()> {
        let version = self.major.tablespace_directory();
        let path = self.data.join(rel.path(version));
        let main = self.data.join(rel.with_fork(ForkNumber::Main).path(version));
        let fits = match rel.fork {
            ForkNumber::Fsm => main.is_file(),
            ForkNumber::Main => nblocks == 1 && main.metadata().is_ok_and(|found| found.len() == BLCKSZ as u64),
            _ => false,
        };
        if !fits {
            return Err(invalid(format!("it has {count} pages of {rel}, which is not there")));
        }
        if !path.exists() {
            File::create_new(&path)?;
            give_away(&path, self.run_as).map_err(io::Error::other)?;
        }
        let file = OpenOptions::new().write(true).open(&path)?;
        let length = u64::from(nblocks) * BLCKSZ as u64;
        if file.metadata()?.len() < length {
            file.set_len(length)?;
        }
        let entry = map.find(&rel);
        let mut page = [0; BLCKSZ];
        for _ in 0..count {
            let block = reader.page(&mut page)?;
            let page_lsn = page_lsn(&page);
            if block >= nblocks || page_lsn > self.lsn {
                return Err(invalid(format!("it has block {block} of {rel} with LSN {page_lsn}")));
            }
            file.write_all_at(&page, u64::from(block) * BLCKSZ as u64)?;
            if let Some(entry) = entry.as_ref().filter(|entry| entry.is_absent(block)) {
                entry.set_present(block);
            }
        }
        Ok(())
    }
}

/// What `ALTER SYSTEM` wrote, if the state begins with it.
pub(super) fn settings(input: impl Read) -> io::Result<Option<String>> {
    let mut reader = StateReader::begin(input)?;
    match reader.item()? {
        Item::File { path, length } if path == AUTO_CONF => text(&mut reader, length).map(Some),
        _ => Ok(None),
    }
}

fn text<R: Read>(reader: &mut StateReader<R>, length: u64) -> io::Result<String> {
    if length > AUTO_CONF_LEN_MAX {
        return Err(invalid(format!("{AUTO_CONF} of {length} bytes")));
    }
    let mut bytes = Vec::new();
    reader.content(length, |chunk| {
        bytes.extend_from_slice(chunk);
        Ok(())
    })?;
    String::from_utf8(bytes).map_err(|_| invalid(format!("{AUTO_CONF} is not UTF-8")))
}

fn page_lsn(page: &[u8; BLCKSZ]) -> Lsn {
    let half = |at: usize| u64::from(u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]));
    Lsn::new(half(0) << 32 | half(4))
}
