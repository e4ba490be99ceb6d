//! `CREATE DATABASE ... STRATEGY file_copy` and moves between tablespaces: the record names a source and a target, and means the
//! source's content at that point (checklist 37). Copied a batch at a time, so that memory stays bounded.

use std::vec::IntoIter;

use ardent_pg_redo::Value;
use ardent_types::{BlockNumber, Key, Lsn, RelTag};
use bytes::Bytes;

use super::blocks::{unreadable, zero_page};
use super::database::WITHOUT_VERSION_FILE;
use super::error::Fault;
use super::{Ingest, Progress, Step, StepResult, decode_size};
use crate::state::ReadState;

/// A batch is handed over when it holds so much.
const BATCH_BYTES: usize = 32 << 20;
/// Pages read at a time.
const PAGES_PER_READ: u32 = 256;

/// A copy under way.
#[derive(Debug)]
pub(super) struct DatabaseCopy {
    lsn: Lsn,
    relations: IntoIter<(RelTag, BlockNumber)>,
    current: Option<(RelTag, std::ops::Range<BlockNumber>)>,
}

/// Tablespace and database.
type Folder = (u32, u32);

impl Ingest {
    pub(super) fn copy_database<S: ReadState>(
        &mut self,
        step: &mut Step<'_, S>,
        source: Folder,
        target: Folder,
    ) -> StepResult<S, Progress> {
        if !step.out.values.is_empty() {
            return Ok(Progress::FlushFirst);
        }
        let mut copy = match self.copy.take().filter(|copy| copy.lsn == step.lsn) {
            Some(copy) => copy,
            None => self.begin_copy(step, source, target)?,
        };
        while step.out.size_bytes() < BATCH_BYTES {
            let Some((rel, blocks)) = &mut copy.current else {
                match copy.relations.next() {
                    Some((rel, blocks)) => {
                        self.set_size(step, in_folder(rel, target), Some(blocks));
                        copy.current = Some((rel, 0..blocks));
                        continue;
                    }
                    None => return Ok(Progress::Done),
                }
            };
            if blocks.start >= blocks.end {
                copy.current = None;
                continue;
            }
            let part = blocks.start..blocks.end.min(blocks.start.saturating_add(PAGES_PER_READ));
            blocks.start = part.end;
            copy_blocks(step, *rel, in_folder(*rel, target), part)?;
        }
        self.copy = Some(copy);
        Ok(Progress::FlushFirst)
    }

    fn begin_copy<S: ReadState>(
        &mut self,
        step: &mut Step<'_, S>,
        source: Folder,
        target: Folder,
    ) -> StepResult<S, DatabaseCopy> {
        let read = |key| step.state.get(key).map_err(Fault::State);
        let folder = read(Key::Database { spcnode: source.0, dbnode: source.1 })?.filter(|value| !value.is_empty());
        let map = read(Key::RelMap { spcnode: source.0, dbnode: source.1 })?.filter(|value| !value.is_empty());
        let sizes = step.state.scan(Key::rel_sizes(source.0, source.1)).map_err(Fault::State)?;
        let relations = sizes.into_iter().filter_map(|(key, size)| match key {
            Key::RelSize(rel) => Some((rel, decode_size(Some(size))?)),
            _ => None,
        });
        let relations: Vec<_> = relations.collect();
        let folder = folder.unwrap_or_else(|| Bytes::from_static(WITHOUT_VERSION_FILE));
        step.push_image(Key::Database { spcnode: target.0, dbnode: target.1 }, folder);
        if let Some(map) = map {
            step.push_image(Key::RelMap { spcnode: target.0, dbnode: target.1 }, map);
        }
        Ok(DatabaseCopy { lsn: step.lsn, relations: relations.into_iter(), current: None })
    }
}

fn in_folder(rel: RelTag, (spcnode, dbnode): Folder) -> RelTag {
    RelTag { spcnode, dbnode, ..rel }
}

fn copy_blocks<S: ReadState>(
    step: &mut Step<'_, S>,
    from: RelTag,
    to: RelTag,
    blocks: std::ops::Range<BlockNumber>,
) -> StepResult<S> {
    let Some(last) = blocks.end.checked_sub(1) else { return Ok(()) };
    let scanned = step.state.scan(Key::RelBlock(from, blocks.start)..=Key::RelBlock(from, last));
    let mut pages = match scanned {
        Ok(pages) => pages.into_iter().peekable(),
        // One page of these can't be rebuilt: find out which.
        Err(error) if S::unreadable(&error).is_some() => return copy_one_by_one(step, from, to, blocks),
        Err(error) => return Err(Fault::State(error)),
    };
    for block in blocks {
        let page = pages.next_if(|(key, _)| *key == Key::RelBlock(from, block)).map(|(_, page)| page);
        step.push(Key::RelBlock(to, block), page_value(page));
    }
    Ok(())
}

fn copy_one_by_one<S: ReadState>(
    step: &mut Step<'_, S>,
    from: RelTag,
    to: RelTag,
    blocks: std::ops::Range<BlockNumber>,
) -> StepResult<S> {
    for block in blocks {
        let value = match step.state.get(Key::RelBlock(from, block)) {
            Ok(page) => page_value(page),
            Err(error) => match S::unreadable(&error) {
                Some(reason) => unreadable(format_args!("copied from {from} block {block}: {reason}")),
                None => return Err(Fault::State(error)),
            },
        };
        step.push(Key::RelBlock(to, block), value);
    }
    Ok(())
}

/// A block that has no version is one of zeros.
fn page_value(page: Option<Bytes>) -> Value {
    page.filter(|page| !page.is_empty()).map_or_else(zero_page, Value::Image)
}
