//! Page by page.

use std::collections::{BTreeMap, BTreeSet};

use ardent_pg_ingest::ReadState;
use ardent_types::{BLCKSZ, BlockNumber, ForkNumber, Key, RelTag, with_causes};

use super::directory::DataDirectory;
use super::leave::{Leave, Leaves, never_logged};
use super::report::{EndDifference, EndReport};
use super::{EndError, EndState};
use crate::store::{PageBytes, page_lsn};

/// `GistBuildLSN`
const GIST_BUILD_LSN: u64 = 1;
const ZEROS: PageBytes = [0; BLCKSZ];

/// Compares all forks that either side has, but free space maps (WAL has little of them) and the data of unlogged relations.
pub(super) fn relations(state: &EndState, directory: &DataDirectory, report: &mut EndReport) -> Result<(), EndError> {
    let sizes = sizes(state)?;
    let on_disk: BTreeSet<RelTag> = directory.forks()?.into_iter().collect();
    let all: BTreeSet<RelTag> = on_disk.iter().chain(sizes.keys()).copied().collect();
    for &rel in &all {
        let init = rel.with_fork(ForkNumber::Init);
        if rel.fork == ForkNumber::Fsm || rel.fork != ForkNumber::Init && all.contains(&init) {
            continue;
        }
        report.relations += 1;
        let server = directory.fork(rel)?;
        let server_blocks = (server.len() / BLCKSZ) as u32;
        let ours = sizes.get(&rel).copied();
        // Map forks are made without a record, and then are empty.
        if on_disk.contains(&rel) != ours.is_some() && (rel.fork != ForkNumber::Vm || ours.is_some()) {
            let who = if ours.is_some() { "Postgres has no file for it" } else { "we have no size for it" };
            report.differs(EndDifference::of_fork(rel, format!("{who}; blocks: {ours:?} and {server_blocks}")));
        }
        for block in 0..server_blocks.max(ours.unwrap_or(0)) {
            let at = block as usize * BLCKSZ;
            let server = server.get(at..at + BLCKSZ).map_or(&ZEROS, |page| page.try_into().expect("a page's length"));
            let exists = ours.is_some_and(|blocks| block < blocks);
            report.pages += 1;
            page(state, (rel, block), exists, server, report);
        }
    }
    report.keys = state.contents.len() as u64;
    Ok(())
}

fn sizes(state: &EndState) -> Result<BTreeMap<RelTag, BlockNumber>, EndError> {
    let all = *Key::rel_sizes(0, 0).start()..=*Key::rel_sizes(u32::MAX, u32::MAX).end();
    let sizes = state.contents.scan(all)?.into_iter().filter_map(|(key, size)| match key {
        Key::RelSize(rel) => Some((rel, u32::from_le_bytes(size[..].try_into().ok()?))),
        _ => None,
    });
    Ok(sizes.collect())
}

fn page(
    state: &EndState,
    (rel, block): (RelTag, BlockNumber),
    exists: bool,
    server: &PageBytes,
    report: &mut EndReport,
) {
    let content = if exists { state.contents.get(Key::RelBlock(rel, block)) } else { Ok(None) };
    let mut ours = Box::new(ZEROS);
    match content {
        Ok(None) => {}
        Ok(Some(content)) if content.len() == BLCKSZ => ours.copy_from_slice(&content),
        Ok(Some(content)) => {
            let what = format!("our page has {} bytes", content.len());
            return report.differs(EndDifference::of_page(rel, block, what));
        }
        Err(error) => return report.differs(EndDifference::of_page(rel, block, with_causes(&error))),
    }
    if *ours == *server {
        report.identical_pages += 1;
    }
    if *ours == ZEROS || *server == ZEROS {
        let server_is_empty = *server != ZEROS && never_logged(server);
        if server_is_empty {
            report.leave(Leave::NeverLogged, BLCKSZ as u64, BLCKSZ as u64);
        }
        if *ours != *server && !server_is_empty {
            let who = if *ours == ZEROS { "ours" } else { "Postgres's" };
            let what = format!("{who} is all zeros; LSNs {} and {}", page_lsn(&ours), page_lsn(server));
            report.differs(EndDifference::of_page(rel, block, what));
        }
        return;
    }
    let is_map = rel.fork == ForkNumber::Vm;
    let mut leaves = if is_map { Leaves::of_map(&ours, server) } else { Leaves::of(&ours, server) };
    if is_map {
        report.map_pages += 1;
        if let Some(last) = state.notes.maps_logged_empty.get(&(rel, block)) {
            leaves.map_logged_empty(*last);
        }
    }
    if state.notes.hints_without_image.get(&(rel, block)).is_some_and(|hint| *hint == page_lsn(server)) {
        leaves.other_lsn(Leave::HintWithoutImage);
    }
    if never_logged(server) && leaves.are_empty_spgist() {
        return report.leave(Leave::NeverLogged, BLCKSZ as u64, BLCKSZ as u64);
    }
    let early = page_lsn(server).get();
    if early == 0 && rel.fork == ForkNumber::Init || early == GIST_BUILD_LSN && leaves.is_gist() {
        leaves.other_lsn(Leave::WrittenBeforeLogged);
    }
    for (leave, bytes, differing) in leaves.used() {
        report.leave(leave, bytes, differing);
    }
    let differences = leaves.differences();
    if let Some(&first) = differences.first() {
        let what = format!("{} bytes; LSNs {} and {}", differences.len(), page_lsn(&ours), page_lsn(server));
        let mut difference = EndDifference::of_page(rel, block, what);
        let end = (first + 32).min(BLCKSZ);
        difference.offset = Some(first);
        (difference.ours, difference.server) = (ours[first..end].to_vec(), server[first..end].to_vec());
        report.differs(difference);
    }
}
