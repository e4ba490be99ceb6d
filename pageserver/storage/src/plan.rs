//! What compaction and garbage collection should do next: pure functions of a timeline's layers.
//!
//! - Uncompacted files (level 0, each over the whole key space) are merged into files by key range when there are several.
//! - Where a read would visit many delta files, or apply many deltas, images are made; unless the deltas are small beside the images that they would
//!   cause to be rewritten: then the younger deltas are merged with each other, so that their number stays logarithmic. At twice the bounds images are
//!   made all the same, and before anything else: who writes faster than files are merged is held up meanwhile ([`crate::debt`]).
//! - Deltas whose last version has left retention make room once an image at or above them exists, so one is made when they
//!   are many.
//! - A file goes when no LSN that is retained, or pinned, needs it (PS-6).

use ardent_types::Lsn;

use crate::layer::{LayerDesc, LayerKind};
use crate::retention::RETIRED;
use crate::stored_key::{KeyRange, StoredKey};

/// Thresholds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) compact_at_l0_files: usize,
    pub(crate) images_at_delta_files: usize,
    pub(crate) images_at_deltas_per_key: u64,
    pub(crate) layer_file_bytes: u64,
}

/// Most level-0 files that one job merges.
const MERGE_FILES_MAX: usize = 32;
/// Images are rewritten when the deltas above them are at least this fraction of their size.
const IMAGE_REWRITE_FRACTION: u64 = 4;
/// A delta file is merged with the younger ones above it if it is at most so many times as large as they are together. The more, the fewer files
/// lie above each other until their deltas are worth new images, and the more often each is written.
const YOUNG_GROWTH: u64 = 4;
/// About how many files of the normal size one job makes.
const JOB_FILES: u64 = 16;

/// One step of compaction. Indexes are those of the slice given to [`plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Replace these delta files by ones sorted by key, with the same versions.
    Merge {
        /// Oldest first.
        inputs: Vec<usize>,
    },
    /// Make images of these keys as of an LSN. Removes nothing.
    Images {
        /// Range.
        keys: KeyRange,
        /// At.
        lsn: Lsn,
    },
}

/// The next job, if there is something to do.
pub(crate) fn plan(layers: &[LayerDesc], policy: &Policy, retained_from: Lsn) -> Option<Job> {
    let parts = parts(layers);
    bound_depth(layers, policy, &parts, Bound::Twice)
        .or_else(|| merge_level_0(layers, policy))
        .or_else(|| bound_depth(layers, policy, &parts, Bound::Once))
        .or_else(|| free_retired(layers, policy, parts, retained_from))
}

fn is_delta(layer: &LayerDesc) -> bool {
    layer.kind == LayerKind::Delta
}

fn merge_level_0(layers: &[LayerDesc], policy: &Policy) -> Option<Job> {
    let mut inputs: Vec<usize> =
        (0..layers.len()).filter(|at| is_delta(&layers[*at]) && layers[*at].level == 0).collect();
    if inputs.len() < policy.compact_at_l0_files.max(1) {
        return None;
    }
    inputs.sort_by_key(|at| layers[*at].upto);
    inputs.truncate(MERGE_FILES_MAX);
    Some(Job::Merge { inputs })
}

/// A stretch of the key space over which the same layers speak.
struct Part {
    keys: KeyRange,
    /// Newest image, holes or not.
    image: Option<usize>,
    /// Level-1 deltas that reads at the head visit, newest first.
    deltas: Vec<usize>,
}

impl Part {
    fn deltas_per_key(&self, layers: &[LayerDesc]) -> u64 {
        self.deltas.iter().map(|at| layers[*at].versions_per_key()).sum()
    }
}

fn parts(layers: &[LayerDesc]) -> Vec<Part> {
    let mut starts: Vec<StoredKey> = vec![StoredKey::MIN];
    for layer in layers {
        starts.push(layer.keys.first);
        starts.extend(layer.keys.last.successor());
    }
    starts.sort_unstable();
    starts.dedup();
    let ends = starts.iter().skip(1).map(|next| next.predecessor().expect("not the first key"));
    let ends = ends.chain(std::iter::once(StoredKey::MAX));
    let part = |first: StoredKey, last: StoredKey| {
        let covering = || (0..layers.len()).filter(move |at| layers[*at].keys.contains(&first));
        let image = covering().filter(|at| !is_delta(&layers[*at])).max_by_key(|at| layers[*at].upto);
        let floor = image.map_or(Lsn::INVALID, |at| layers[at].upto);
        let above = |at: &usize| is_delta(&layers[*at]) && layers[*at].level > 0 && layers[*at].upto > floor;
        let mut deltas: Vec<usize> = covering().filter(above).collect();
        deltas.sort_by_key(|at| std::cmp::Reverse(layers[*at].upto));
        Part { keys: KeyRange { first, last }, image, deltas }
    };
    starts.iter().zip(ends).map(|(first, last)| part(*first, last)).collect()
}

/// Neighbouring parts that a condition holds for, taken together up to the size of a job.
struct Stretch {
    keys: KeyRange,
    images: Vec<usize>,
    deltas: Vec<usize>,
    /// Deltas that lie above each other, where there are most.
    depth: usize,
    /// As in [`Part::deltas_per_key`], where there are most.
    deltas_per_key: u64,
}

impl Stretch {
    fn all(layers: &[LayerDesc], policy: &Policy, parts: &[Part], wanted: impl Fn(&Part) -> bool) -> Vec<Stretch> {
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut goes_on = false;
        for part in parts {
            if !wanted(part) {
                goes_on = false;
                continue;
            }
            let alone = Stretch {
                keys: part.keys,
                images: part.image.into_iter().collect(),
                deltas: part.deltas.clone(),
                depth: part.deltas.len(),
                deltas_per_key: part.deltas_per_key(layers),
            };
            let longer = stretches.last().filter(|_| goes_on).map(|last| last.with(&alone));
            let bytes = |stretch: &Stretch| size(layers, &stretch.images) + size(layers, &stretch.deltas);
            match longer.filter(|longer| bytes(longer) <= JOB_FILES * policy.layer_file_bytes) {
                Some(longer) => *stretches.last_mut().expect("there is a last one") = longer,
                None => stretches.push(alone),
            }
            goes_on = true;
        }
        stretches
    }

    fn with(&self, next: &Stretch) -> Stretch {
        let union = |a: &[usize], b: &[usize]| {
            let mut all = [a, b].concat();
            all.sort_unstable();
            all.dedup();
            all
        };
        Stretch {
            keys: KeyRange { first: self.keys.first, last: next.keys.last },
            images: union(&self.images, &next.images),
            deltas: union(&self.deltas, &next.deltas),
            depth: self.depth.max(next.depth),
            deltas_per_key: self.deltas_per_key.max(next.deltas_per_key),
        }
    }
}

fn size(layers: &[LayerDesc], of: &[usize]) -> u64 {
    of.iter().map(|at| layers[*at].bytes).sum()
}

/// Which of the bounds on what a read visits and applies.
#[derive(Clone, Copy, Debug)]
enum Bound {
    Once,
    Twice,
}

fn bound_depth(layers: &[LayerDesc], policy: &Policy, parts: &[Part], bound: Bound) -> Option<Job> {
    let times = match bound {
        Bound::Once => 1,
        Bound::Twice => 2,
    };
    let has_many_files = |depth: usize, times: usize| depth > times * policy.images_at_delta_files;
    let has_many_deltas = |deltas: u64, times: u64| deltas > times * policy.images_at_deltas_per_key;
    let is_deep = |part: &Part| {
        has_many_files(part.deltas.len(), times) || has_many_deltas(part.deltas_per_key(layers), times as u64)
    };
    Stretch::all(layers, policy, parts, is_deep).iter().find_map(|stretch| {
        let is_worth_it = size(layers, &stretch.deltas) * IMAGE_REWRITE_FRACTION >= size(layers, &stretch.images);
        // Merging files leaves as many deltas as there were.
        if is_worth_it || has_many_deltas(stretch.deltas_per_key, 2) {
            return images(layers, stretch);
        }
        let merge = small_young(layers, &stretch.deltas, policy).map(|inputs| Job::Merge { inputs });
        // The deltas' sizes grow with age, so their number is logarithmic; twice the bound is still too many.
        merge.or_else(|| if has_many_files(stretch.depth, 2) { images(layers, stretch) } else { None })
    })
}

fn images(layers: &[LayerDesc], stretch: &Stretch) -> Option<Job> {
    let lsn = stretch.deltas.iter().map(|at| layers[*at].upto).max()?;
    Some(Job::Images { keys: stretch.keys, lsn })
}

/// The youngest deltas, as long as each is at most [`YOUNG_GROWTH`] times as large as the younger ones together; oldest first.
fn small_young(layers: &[LayerDesc], deltas: &[usize], policy: &Policy) -> Option<Vec<usize>> {
    let mut young: Vec<usize> = deltas.to_vec();
    young.sort_by_key(|at| std::cmp::Reverse(layers[*at].upto));
    let mut together = 0;
    let mut taken = 0;
    for at in &young {
        let bytes = layers[*at].bytes;
        if taken > 0 && (bytes > YOUNG_GROWTH * together || together + bytes > JOB_FILES * policy.layer_file_bytes) {
            break;
        }
        together += bytes;
        taken += 1;
    }
    young.truncate(taken);
    young.reverse();
    (young.len() > 1).then_some(young)
}

/// Images as of the newest delta that lies below `retained_from` as a whole, where such deltas take much space.
fn free_retired(layers: &[LayerDesc], policy: &Policy, mut parts: Vec<Part>, retained_from: Lsn) -> Option<Job> {
    let is_retired = |at: &usize| layers[*at].upto <= retained_from;
    for part in &mut parts {
        part.deltas.retain(is_retired);
    }
    Stretch::all(layers, policy, &parts, |part| !part.deltas.is_empty()).iter().find_map(|stretch| {
        let bytes = size(layers, &stretch.deltas);
        let is_worth_it = 2 * bytes >= size(layers, &stretch.images) + policy.layer_file_bytes;
        if is_worth_it { images(layers, stretch) } else { None }
    })
}

/// The layers that no LSN from `retained_from` on, and none of `pins`, needs. See the proof in `docs/formats/layers.md`. Of a
/// retired timeline only the pins count.
pub(crate) fn unneeded(layers: &[LayerDesc], retained_from: Lsn, pins: &[Lsn]) -> Vec<usize> {
    let head = (retained_from != RETIRED).then_some(retained_from);
    let is_unneeded = |at: &usize| {
        let layer = &layers[*at];
        let (covered_from, is_seen_by): (_, fn(&LayerDesc, Lsn) -> bool) = match layer.kind {
            // A reader at `lsn` needs it unless an image lies between its last version that the reader sees and `lsn`.
            LayerKind::Delta => (layer.upto, |layer, lsn| lsn > layer.after),
            // ... unless a newer image does.
            LayerKind::Image => (Lsn::new(layer.upto.get().saturating_add(1)), |layer, lsn| lsn >= layer.upto),
        };
        if layer.upto > retained_from {
            return false;
        }
        let readers = pins.iter().copied().filter(|pin| *pin < retained_from).chain(head);
        readers.filter(|lsn| is_seen_by(layer, *lsn)).all(|lsn| {
            let from = if layer.kind == LayerKind::Delta { covered_from.min(lsn) } else { covered_from };
            has_images(layers, &layer.keys, from, lsn)
        })
    };
    (0..layers.len()).filter(is_unneeded).collect()
}

/// The largest LSN such that images without holes from there to `lsn` cover all of `keys`.
pub(crate) fn image_floor(layers: &[LayerDesc], keys: &KeyRange, lsn: Lsn) -> Option<Lsn> {
    let images = layers.iter().filter(|layer| !is_delta(layer) && layer.upto <= lsn && layer.keys.overlaps(keys));
    let mut floors: Vec<Lsn> = images.map(|layer| layer.upto).collect();
    floors.sort_unstable();
    floors.into_iter().rev().find(|floor| has_images(layers, keys, *floor, lsn))
}

/// Whether every key of `keys` has an image layer with an LSN from `from` to `to`, both included.
fn has_images(layers: &[LayerDesc], keys: &KeyRange, from: Lsn, to: Lsn) -> bool {
    let good = |layer: &&LayerDesc| !is_delta(layer) && layer.holes == 0 && from <= layer.upto && layer.upto <= to;
    let mut ranges: Vec<KeyRange> = layers.iter().filter(good).map(|layer| layer.keys).collect();
    ranges.sort_unstable_by_key(|range| range.first);
    let mut next = keys.first;
    for range in ranges {
        if range.first > next {
            return false;
        }
        if range.last >= keys.last {
            return true;
        }
        if range.last >= next {
            next = range.last.successor().expect("not the last key, as it is below one");
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::debt::{Debt, DebtLimits, Pace};
    use crate::layer::{BlockCache, Layer};
    use crate::layer_map::LayerMap;
    use crate::object_names::TimelineNames;
    use ardent_object_store::{MemoryStore, ObjectStore};
    use ardent_types::{ForkNumber, Key, RelTag, TenantId, TimelineId};

    fn key(block: u32) -> StoredKey {
        let rel = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Main };
        StoredKey::from(&Key::RelBlock(rel, block))
    }

    fn layer(kind: LayerKind, level: u8, blocks: (u32, u32), after: u64, upto: u64, bytes: u64) -> LayerDesc {
        LayerDesc {
            file: String::new(),
            kind,
            level,
            keys: KeyRange { first: key(blocks.0), last: key(blocks.1) },
            after: Lsn::new(after),
            upto: Lsn::new(upto),
            bytes,
            entries: 1,
            key_count: 1,
            boundaries: false,
            holes: 0,
        }
    }

    fn delta(level: u8, blocks: (u32, u32), after: u64, upto: u64) -> LayerDesc {
        layer(LayerKind::Delta, level, blocks, after, upto, 100)
    }

    fn image(blocks: (u32, u32), upto: u64) -> LayerDesc {
        layer(LayerKind::Image, 1, blocks, 0, upto, 100)
    }

    const POLICY: Policy = Policy {
        compact_at_l0_files: 3,
        images_at_delta_files: 2,
        images_at_deltas_per_key: 40,
        layer_file_bytes: 1000,
    };

    #[test]
    fn level_0_is_merged_oldest_first_when_there_are_enough() {
        let two = [delta(0, (0, 9), 10, 20), delta(0, (0, 9), 0, 10)];
        assert_eq!(plan(&two, &POLICY, Lsn::INVALID), None);
        let three = [two[0].clone(), two[1].clone(), delta(0, (0, 9), 20, 30)];
        assert_eq!(plan(&three, &POLICY, Lsn::INVALID), Some(Job::Merge { inputs: vec![1, 0, 2] }));
    }

    #[test]
    fn images_are_made_where_deltas_pile_up_and_nowhere_else() {
        let layers = [delta(1, (0, 9), 0, 10), delta(1, (5, 9), 10, 20), delta(1, (7, 20), 20, 30)];
        let keys = KeyRange { first: key(7), last: key(9) };
        assert_eq!(plan(&layers, &POLICY, Lsn::INVALID), Some(Job::Images { keys, lsn: Lsn::new(30) }));
        let mut done = layers.to_vec();
        done.push(image((7, 9), 30));
        assert_eq!(plan(&done, &POLICY, Lsn::INVALID), None);
    }

    #[test]
    fn images_are_made_where_keys_have_many_deltas() {
        let mut layers = [delta(1, (0, 9), 0, 10), delta(1, (0, 9), 10, 20)];
        for layer in &mut layers {
            (layer.entries, layer.key_count) = (200, 10);
        }
        assert_eq!(plan(&layers, &POLICY, Lsn::INVALID), None);
        layers[0].entries = 210;
        let keys = KeyRange { first: key(0), last: key(9) };
        assert_eq!(plan(&layers, &POLICY, Lsn::INVALID), Some(Job::Images { keys, lsn: Lsn::new(20) }));
    }

    #[test]
    fn small_deltas_above_a_large_image_are_merged_with_each_other() {
        let mut layers = vec![layer(LayerKind::Image, 1, (0, 9), 0, 10, 1_000_000)];
        layers.extend(
            [(10, 20, 900), (20, 30, 100), (30, 40, 100)]
                .map(|(after, upto, bytes)| layer(LayerKind::Delta, 1, (0, 9), after, upto, bytes)),
        );
        assert_eq!(plan(&layers, &POLICY, Lsn::INVALID), Some(Job::Merge { inputs: vec![2, 3] }));
    }

    #[test]
    fn where_reads_are_twice_too_deep_images_come_before_level_0() {
        let level_0 = (0..3).map(|n| delta(0, (0, 9), 100 + 10 * n, 110 + 10 * n));
        let deep = |files: u64| (0..files).map(|n| delta(1, (0, 9), 10 * n, 10 * n + 10));
        let check = |files: u64, expect: Job| {
            let layers: Vec<_> = deep(files).chain(level_0.clone()).collect();
            assert_eq!(plan(&layers, &POLICY, Lsn::INVALID), Some(expect), "{files} files");
        };
        check(4, Job::Merge { inputs: vec![4, 5, 6] });
        check(5, Job::Images { keys: KeyRange { first: key(0), last: key(9) }, lsn: Lsn::new(50) });
        let mut many = vec![layer(LayerKind::Image, 1, (0, 9), 0, 10, 1_000_000), delta(1, (0, 9), 10, 20)];
        many.extend(level_0);
        (many[1].entries, many[1].key_count) = (810, 10);
        let images = Job::Images { keys: KeyRange { first: key(0), last: key(9) }, lsn: Lsn::new(20) };
        assert_eq!(plan(&many, &POLICY, Lsn::INVALID), Some(images), "however large the images are beside the deltas");
    }

    #[test]
    fn a_delta_goes_once_images_cover_all_its_keys_for_every_reader() {
        let delta = delta(1, (0, 9), 10, 20);
        let check = |images: &[LayerDesc], retained_from: u64, pins: &[u64], expect: bool| {
            let mut layers = vec![delta.clone()];
            layers.extend_from_slice(images);
            let pins: Vec<Lsn> = pins.iter().copied().map(Lsn::new).collect();
            assert_eq!(unneeded(&layers, Lsn::new(retained_from), &pins).contains(&0), expect);
        };
        check(&[], 100, &[], false);
        check(&[image((0, 9), 20)], 100, &[], true);
        check(&[image((0, 9), 19)], 100, &[], false);
        check(&[image((0, 4), 20), image((5, 9), 25)], 100, &[], true);
        check(&[image((0, 4), 20), image((6, 9), 25)], 100, &[], false);
        check(&[image((0, 9), 25)], 24, &[], false);
        check(&[image((0, 9), 25)], 19, &[], false);
        // Pins: before the delta, in it, between it and the image, after.
        check(&[image((0, 9), 25)], 100, &[10], true);
        check(&[image((0, 9), 25)], 100, &[11], false);
        check(&[image((0, 9), 25)], 100, &[24], false);
        check(&[image((0, 9), 25)], 100, &[25], true);
        check(&[image((0, 9), 25), image((0, 9), 15)], 100, &[15], true);
        let mut holed = image((0, 9), 25);
        holed.holes = 1;
        check(&[holed], 100, &[], false);
    }

    #[test]
    fn an_image_goes_once_a_newer_one_serves_all_its_readers() {
        let layers = [image((0, 9), 10), image((0, 20), 30)];
        assert_eq!(unneeded(&layers, Lsn::new(29), &[]), Vec::<usize>::new());
        assert_eq!(unneeded(&layers, Lsn::new(30), &[]), [0]);
        assert_eq!(unneeded(&layers, Lsn::new(30), &[Lsn::new(10)]), Vec::<usize>::new());
        assert_eq!(unneeded(&layers, Lsn::new(30), &[Lsn::new(9)]), [0]);
    }

    /// Carries out jobs on descriptions alone until there is none; every file covers as many bytes as it did.
    fn settle(layers: &mut Vec<LayerDesc>, policy: &Policy, retained_from: Lsn, image_bytes: u64) -> u64 {
        let mut written = 0;
        for round in 0.. {
            assert!(round < 10_000, "compaction comes to an end");
            let Some(job) = plan(layers, policy, retained_from) else { return written };
            match job {
                Job::Merge { inputs } => {
                    assert!(inputs.len() > 1, "a merge of one file gains nothing");
                    assert!(inputs.windows(2).all(|pair| layers[pair[0]].upto <= layers[pair[1]].upto), "oldest first");
                    let merged: Vec<LayerDesc> = inputs.iter().map(|at| layers[*at].clone()).collect();
                    let (after, upto) =
                        (merged.iter().map(|l| l.after).min().unwrap(), merged.iter().map(|l| l.upto).max().unwrap());
                    let bytes: u64 = merged.iter().map(|l| l.bytes).sum();
                    let first = merged.iter().map(|l| l.keys.first).min().unwrap();
                    let last = merged.iter().map(|l| l.keys.last).max().unwrap();
                    layers.retain(|layer| !merged.contains(layer));
                    let keys = KeyRange { first, last };
                    let (entries, key_count) = (bytes / 10, merged.iter().map(|l| l.key_count).max().unwrap());
                    let file = format!("m{round}");
                    let merged =
                        LayerDesc { file, level: 1, keys, after, upto, bytes, entries, key_count, ..merged[0].clone() };
                    written += bytes;
                    layers.push(merged);
                }
                Job::Images { keys, lsn } => {
                    assert!(lsn <= layers.iter().map(|layer| layer.upto).max().unwrap());
                    let bytes = image_bytes;
                    let file = format!("i{round}");
                    let image =
                        LayerDesc { file, keys, upto: lsn, bytes, ..layer(LayerKind::Image, 1, (0, 0), 0, 0, 0) };
                    written += bytes;
                    layers.push(image);
                }
            }
            let gone = unneeded(layers, retained_from, &[]);
            let mut at = 0;
            layers.retain(|_| {
                at += 1;
                !gone.contains(&(at - 1))
            });
        }
        written
    }

    /// What writers look at.
    fn debt_of(layers: &[LayerDesc]) -> Debt {
        let names = TimelineNames { tenant: TenantId::from_bytes([1; 16]), timeline: TimelineId::from_bytes([2; 16]) };
        let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new());
        let cache = Arc::new(BlockCache::new(0));
        let layer = |desc: &LayerDesc| {
            Layer::new(desc.clone(), names.layer("file").expect("a good name"), store.clone(), cache.clone())
        };
        *LayerMap::new(layers.iter().map(layer).collect()).debt()
    }

    /// Files that a read at the head visits at worst, over all keys.
    fn worst_read(layers: &[LayerDesc]) -> usize {
        let level_0 = layers.iter().filter(|layer| is_delta(layer) && layer.level == 0).count();
        parts(layers).iter().map(|part| part.deltas.len() + usize::from(part.image.is_some())).max().unwrap_or(0)
            + level_0
    }

    #[test]
    fn a_table_is_written_few_times_however_small_what_is_flushed_is_beside_it() {
        let policy = Policy {
            compact_at_l0_files: 3,
            images_at_delta_files: 2,
            images_at_deltas_per_key: 32,
            layer_file_bytes: 1 << 40,
        };
        for (flushed_bytes, times_max) in [(100_000, 4), (10_000, 8), (1_000, 12), (100, 16)] {
            // A table of a million bytes, of as many keys that none has many versions before images are due for other reasons.
            let mut layers = vec![layer(LayerKind::Image, 1, (0, 999_999), 0, 10, 1_000_000)];
            let (mut lsn, mut flushed, mut written) = (10, 0, 0);
            while flushed < 2_000_000 {
                let made = layer(LayerKind::Delta, 0, (0, 999_999), lsn, lsn + 10, flushed_bytes);
                let entries = flushed_bytes / 10;
                layers.push(LayerDesc { file: format!("f{lsn}"), entries, key_count: 10_000 * entries, ..made });
                flushed += flushed_bytes;
                lsn += 10;
                written += flushed_bytes + settle(&mut layers, &policy, Lsn::new(lsn - 10), 1_000_000);
            }
            let times = written / flushed;
            assert!(
                times <= times_max,
                "flushes of {flushed_bytes} bytes: each is written {times} times, images counted"
            );
        }
    }

    #[test]
    fn whatever_is_flushed_compaction_ends_and_bounds_what_a_read_visits() {
        use rand::rngs::StdRng;
        use rand::{Rng, SeedableRng};
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            let policy = Policy {
                compact_at_l0_files: rng.random_range(2..6),
                images_at_delta_files: rng.random_range(1..5),
                images_at_deltas_per_key: rng.random_range(4..64),
                layer_file_bytes: rng.random_range(500..5_000),
            };
            let mut layers = Vec::new();
            let (mut lsn, mut flushed, mut written) = (0, 0, 0);
            for round in 0..60 {
                let next = lsn + rng.random_range(1..50);
                let first = rng.random_range(0..100);
                let blocks = (first, first + rng.random_range(0..100));
                let bytes = rng.random_range(10..2_000);
                let key_count = u64::from(blocks.1 - blocks.0 + 1);
                let file = format!("f{round}");
                let made = layer(LayerKind::Delta, 0, blocks, lsn, next, bytes);
                layers.push(LayerDesc { file, entries: bytes / 10, key_count, ..made });
                flushed += bytes;
                lsn = next;
                let horizon = Lsn::new(lsn.saturating_sub(rng.random_range(0..500)));
                let limits = DebtLimits {
                    compact_at_l0_files: policy.compact_at_l0_files,
                    open_layer_bytes_max: 2_000,
                    images_at_delta_files: policy.images_at_delta_files,
                    images_at_deltas_per_key: policy.images_at_deltas_per_key,
                };
                let is_waited_for = |layers: &[LayerDesc]| limits.pace(&debt_of(layers), 1 << 20) != Pace::Free;
                if is_waited_for(&layers) {
                    assert!(plan(&layers, &policy, horizon).is_some(), "seed {seed}: writers wait for nothing");
                }
                if rng.random_bool(0.4) {
                    continue;
                }
                written += settle(&mut layers, &policy, horizon, 2_000);
                let limit = policy.compact_at_l0_files + 2 * policy.images_at_delta_files + 1;
                let worst = worst_read(&layers);
                assert!(!is_waited_for(&layers), "seed {seed}: writers wait where all is done: {:?}", debt_of(&layers));
                assert!(
                    worst <= debt_of(&layers).files_per_read(),
                    "seed {seed}: what is told is what reads visit at most"
                );
                assert!(worst <= limit, "seed {seed}: a read visits {worst} files, the limit is {limit}");
            }
            assert!(flushed > 0 && written < flushed * 400, "seed {seed}: {written} bytes written for {flushed}");
        }
    }
}
