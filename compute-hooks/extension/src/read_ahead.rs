//! Decides how much to ask for beside the block that is needed.
//!
//! Knows numbers only. A backend reads few relations in sequence at a time, so a few streams are remembered and the one
//! that was idle longest gives way.

use ardent_types::{BlockNumber, RelTag};

/// Relations whose reading is followed at a time.
const STREAMS_MAX: usize = 16;
/// A window from this size on is followed by the next one without being asked for.
const PIPELINE_FROM: u32 = 16;

/// One relation fork that is being read.
#[derive(Clone, Copy, Debug)]
struct Stream {
    rel: RelTag,
    /// End of what was asked for.
    next: BlockNumber,
    window: u32,
    used: u64,
}

/// The streams of one backend.
#[derive(Debug, Default)]
pub struct ReadAhead {
    streams: [Option<Stream>; STREAMS_MAX],
    clock: u64,
}

/// Blocks to ask for: `[start, start + count)`, as far as they are absent and exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First block.
    pub start: BlockNumber,
    /// At least 1.
    pub count: u32,
}

impl ReadAhead {
    /// `block` is absent and needed, as the first of `wanted` blocks: what to ask for at once. It starts at `block`.
    pub fn on_miss(&mut self, rel: RelTag, block: BlockNumber, wanted: u32, max: u32) -> Window {
        let stream = self.stream(rel);
        // Blocks that are there already are skipped by a sequential reader without our hearing of them.
        let reach = stream.next.saturating_add(stream.window.max(8));
        let sequential = stream.window > 0 && (stream.next..=reach).contains(&block);
        let grown = if sequential { stream.window.saturating_mul(2) } else { 1 };
        stream.window = grown.max(wanted).min(max);
        stream.next = block.saturating_add(stream.window);
        Window { start: block, count: stream.window }
    }

    /// A window of `rel` was asked for, or is being used: what to ask for next so that it is there in time.
    pub fn next_window(&mut self, rel: RelTag, max: u32) -> Option<Window> {
        let stream = self.stream(rel);
        if stream.window < PIPELINE_FROM {
            return None;
        }
        stream.window = stream.window.saturating_mul(2).min(max);
        let start = stream.next;
        stream.next = start.checked_add(stream.window)?;
        Some(Window { start, count: stream.window })
    }

    /// A larger window failed: begin again with single blocks.
    pub fn reset(&mut self, rel: RelTag) {
        self.stream(rel).window = 0;
    }

    fn stream(&mut self, rel: RelTag) -> &mut Stream {
        self.clock += 1;
        let used = self.clock;
        let known = self.streams.iter().position(|stream| stream.is_some_and(|stream| stream.rel == rel));
        let at = known.unwrap_or_else(|| {
            let idle = |at: &usize| self.streams[*at].map_or(0, |stream| stream.used);
            (0..STREAMS_MAX).min_by_key(idle).unwrap_or(0)
        });
        let slot = &mut self.streams[at];
        if known.is_none() {
            *slot = None;
        }
        let stream = slot.get_or_insert(Stream { rel, next: 0, window: 0, used });
        stream.used = used;
        stream
    }
}

#[cfg(test)]
mod tests {
    use ardent_types::ForkNumber;

    use super::*;

    fn rel(relnode: u32) -> RelTag {
        RelTag { spcnode: 1663, dbnode: 5, relnode, fork: ForkNumber::Main }
    }

    #[test]
    fn sequential_reads_grow_and_random_reads_do_not() {
        let mut ahead = ReadAhead::default();
        let mut block = 0;
        let mut counts = Vec::new();
        for _ in 0..9 {
            let window = ahead.on_miss(rel(1), block, 1, 128);
            assert_eq!(window.start, block);
            counts.push(window.count);
            block += window.count;
        }
        assert_eq!(counts, [1, 2, 4, 8, 16, 32, 64, 128, 128]);
        for block in [70_000, 5, 900, 40_000] {
            assert_eq!(ahead.on_miss(rel(1), block, 1, 128).count, 1);
        }
    }

    #[test]
    fn a_read_of_several_blocks_is_asked_for_whole_and_grows_from_there() {
        let mut ahead = ReadAhead::default();
        assert_eq!(ahead.on_miss(rel(1), 50, 16, 128), Window { start: 50, count: 16 });
        assert_eq!(ahead.on_miss(rel(1), 66, 16, 128), Window { start: 66, count: 32 });
        assert_eq!(ahead.on_miss(rel(1), 9000, 16, 128), Window { start: 9000, count: 16 });
        // A block that could not be had together with others is asked for alone.
        assert_eq!(ahead.on_miss(rel(1), 9000, 16, 1), Window { start: 9000, count: 1 });
    }

    #[test]
    fn the_next_window_follows_only_a_stream_that_has_shown_itself() {
        let mut ahead = ReadAhead::default();
        assert_eq!(ahead.next_window(rel(1), 128), None);
        let mut block = 0;
        while ahead.next_window(rel(1), 128).is_none() {
            block += ahead.on_miss(rel(1), block, 1, 128).count;
            assert!(block < 100);
        }
        assert_eq!(ahead.next_window(rel(1), 128), Some(Window { start: 31 + 32, count: 64 }));
        ahead.reset(rel(1));
        assert_eq!(ahead.on_miss(rel(1), 127, 1, 128), Window { start: 127, count: 1 });
    }

    #[test]
    fn many_relations_share_few_streams_and_block_numbers_do_not_overflow() {
        let mut ahead = ReadAhead::default();
        for relnode in 0..100 {
            assert_eq!(ahead.on_miss(rel(relnode), u32::MAX - 1, 1, 128).count, 1);
        }
        assert_eq!(ahead.on_miss(rel(99), u32::MAX, 1, 128).count, 2);
        assert_eq!(ahead.on_miss(rel(0), 7, 1, 128).count, 1);
    }
}
