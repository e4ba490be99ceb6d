//! Which blocks changed between two LSNs.

use ardent_api::page_service::{BlockRange, ChangedRelation, ErrorCode, Response};
use ardent_types::{ForkNumber, Key, Lsn, RelTag};

use crate::connection::{Bound, Connection, Failure};
use crate::limits;
use crate::pages::decode_size;

impl Connection<'_> {
    /// Answers with main forks only: what other forks hold follows from them.
    pub(crate) fn get_changed(&mut self, bound: &Bound, id: u64, from: Lsn, to: Lsn) -> Result<(), Failure> {
        if from > to {
            return Err(Failure::new(ErrorCode::Invalid, format!("{from} is past {to}")));
        }
        let timeline = self.readable(bound, to)?;
        let first = RelTag { spcnode: 0, dbnode: 0, relnode: 0, fork: ForkNumber::Main };
        let last = RelTag { spcnode: u32::MAX, dbnode: u32::MAX, relnode: u32::MAX, fork: ForkNumber::Init };
        let sizes = Key::RelSize(first)..=Key::RelSize(last);
        let blocks = Key::RelBlock(first, 0)..=Key::RelBlock(last, u32::MAX);
        let mut relations: Vec<ChangedRelation> = Vec::new();
        let mut changed = self.read(&timeline, |timeline| timeline.changed_keys(sizes.clone(), from, to))?;
        changed.extend(self.read(&timeline, |timeline| timeline.changed_keys(blocks.clone(), from, to))?);
        let mut rels: Vec<(RelTag, Option<u32>)> = changed
            .into_iter()
            .filter_map(|key| match key {
                Key::RelSize(rel) => Some((rel, None)),
                Key::RelBlock(rel, block) => Some((rel, Some(block))),
                _ => None,
            })
            .filter(|(rel, _)| rel.fork == ForkNumber::Main)
            .collect();
        rels.sort_unstable();
        rels.dedup();
        for (rel, block) in rels {
            if relations.last().is_none_or(|relation| relation.rel != rel) {
                let size = |lsn| -> Result<Option<u32>, Failure> {
                    let value = self.read(&timeline, |timeline| timeline.get(&Key::RelSize(rel), lsn))?;
                    decode_size(rel, value.as_deref())
                };
                let (nblocks_from, nblocks_to) = (size(from)?, size(to)?);
                relations.push(ChangedRelation { rel, nblocks_from, nblocks_to, ranges: Vec::new() });
            }
            if let (Some(block), Some(relation)) = (block, relations.last_mut()) {
                add_block(relation, block);
            }
        }
        self.send_changed(id, relations)
    }

    fn send_changed(&mut self, id: u64, relations: Vec<ChangedRelation>) -> Result<(), Failure> {
        let mut frame = Vec::new();
        let mut ranges = 0;
        for relation in relations {
            let is_full =
                frame.len() >= limits::RELATIONS_PER_FRAME || ranges + relation.ranges.len() > limits::RANGES_PER_FRAME;
            if is_full && !frame.is_empty() {
                self.reply(&Response::Changed { id, last: false, relations: std::mem::take(&mut frame) })?;
                ranges = 0;
            }
            for part in split(relation) {
                ranges += part.ranges.len();
                frame.push(part);
                if ranges >= limits::RANGES_PER_FRAME {
                    self.reply(&Response::Changed { id, last: false, relations: std::mem::take(&mut frame) })?;
                    ranges = 0;
                }
            }
        }
        self.reply(&Response::Changed { id, last: true, relations: frame })
    }
}

/// Adds a block past all earlier ones. A block at or past the end at both LSNs came and went: nobody can read it.
fn add_block(relation: &mut ChangedRelation, block: u32) {
    let end = relation.nblocks_from.unwrap_or(0).max(relation.nblocks_to.unwrap_or(0));
    if block >= end {
        return;
    }
    match relation.ranges.last_mut() {
        Some(range) if range.start + range.count == block => range.count += 1,
        _ => relation.ranges.push(BlockRange { start: block, count: 1 }),
    }
}

/// Cuts a relation with very many ranges into several entries that each fit a frame.
fn split(relation: ChangedRelation) -> Vec<ChangedRelation> {
    if relation.ranges.len() <= limits::RANGES_PER_FRAME {
        return vec![relation];
    }
    let parts = relation.ranges.chunks(limits::RANGES_PER_FRAME);
    parts.map(|ranges| ChangedRelation { ranges: ranges.to_vec(), ..relation.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(from: Option<u32>, to: Option<u32>) -> ChangedRelation {
        let rel = RelTag { spcnode: 1663, dbnode: 5, relnode: 7, fork: ForkNumber::Main };
        ChangedRelation { rel, nblocks_from: from, nblocks_to: to, ranges: Vec::new() }
    }

    #[test]
    fn blocks_join_into_ranges_and_vanished_ones_are_left_out() {
        let mut changed = relation(Some(4), Some(9));
        [0, 1, 3, 8, 9, 20].into_iter().for_each(|block| add_block(&mut changed, block));
        let range = |start, count| BlockRange { start, count };
        assert_eq!(changed.ranges, [range(0, 2), range(3, 1), range(8, 1)]);
        let mut dropped = relation(None, None);
        add_block(&mut dropped, 0);
        assert_eq!(dropped.ranges, []);
    }
}
