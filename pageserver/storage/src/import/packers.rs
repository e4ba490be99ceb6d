//! The threads that pack groups while more content comes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{JoinHandle, available_parallelism};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;

use super::piece::{Packed, Piece};
use crate::layer::{BlockPacker, Effort, GroupBuilder};
use crate::stored_key::StoredKey;

/// One connection does not bring more than these can pack.
const THREADS_MAX: usize = 4;
/// Groups that wait for each thread.
const WAITING_PER_THREAD: usize = 8;

/// A full group: each key from the first on, without a gap.
pub(super) struct FullGroup {
    /// Of two values of one key that of the higher number counts.
    pub(super) number: u64,
    pub(super) first: StoredKey,
    pub(super) content: GroupBuilder,
}

/// See the module's documentation. They end when this is dropped.
pub(super) struct Packers {
    waiting: Sender<FullGroup>,
    /// Emptied, to be filled again.
    spare: Receiver<GroupBuilder>,
    done: Arc<Done>,
    threads: Vec<JoinHandle<()>>,
}

struct Done {
    pieces: Mutex<io::Result<Vec<(u64, Piece)>>>,
    bytes: AtomicUsize,
}

impl Packers {
    pub(super) fn start() -> io::Result<Packers> {
        let count = available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX));
        let (waiting, groups) = bounded::<FullGroup>(count * WAITING_PER_THREAD);
        let (emptied, spare) = unbounded();
        let done = Arc::new(Done { pieces: Mutex::new(Ok(Vec::new())), bytes: AtomicUsize::new(0) });
        let mut packers = Packers { waiting, spare, done, threads: Vec::new() };
        for _ in 0..count {
            let (groups, emptied, done) = (groups.clone(), emptied.clone(), packers.done.clone());
            let thread = std::thread::Builder::new().name("ardent-pack".to_owned());
            packers.threads.push(thread.spawn(move || {
                let packed = pack(&groups, &emptied, &done);
                if let Err(error) = packed {
                    *done.pieces.lock() = Err(error);
                    // Whoever has groups for it learns why when they are asked for; until then nobody waits for ever.
                    groups.iter().for_each(drop);
                }
            })?);
        }
        Ok(packers)
    }

    /// An empty group.
    pub(super) fn empty_group(&self) -> GroupBuilder {
        self.spare.try_recv().unwrap_or_default()
    }

    /// Waits while as many groups wait as may.
    pub(super) fn pack(&self, group: FullGroup) {
        self.waiting.send(group).expect("the threads take groups for as long as this is there");
    }

    /// Memory of what is packed, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.done.bytes.load(Ordering::Relaxed)
    }

    /// All that was given to them, in no order.
    pub(super) fn finish(self) -> io::Result<Vec<(u64, Piece)>> {
        let Packers { waiting, threads, done, .. } = self;
        drop(waiting);
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        std::mem::replace(&mut *done.pieces.lock(), Ok(Vec::new()))
    }
}

fn pack(groups: &Receiver<FullGroup>, emptied: &Sender<GroupBuilder>, done: &Done) -> io::Result<()> {
    let mut packer = BlockPacker::new(Effort::Usual)?;
    for FullGroup { number, first, mut content } in groups {
        let count = content.count();
        let block = Bytes::copy_from_slice(packer.pack(content.finish())?);
        content.clear();
        // Nobody takes it back once the last group is on its way.
        let _ = emptied.send(content);
        let packed = Packed::new(first, count, block).expect("its keys were all there");
        let piece = Piece::Packed(packed);
        done.bytes.fetch_add(piece.weight(), Ordering::Relaxed);
        match &mut *done.pieces.lock() {
            Ok(pieces) => pieces.push((number, piece)),
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}
