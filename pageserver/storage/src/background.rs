//! The engine's threads: one stores frozen layers, one may write them to local files before, one compacts, one looks after what is old or idle.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use ardent_types::with_causes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, unbounded};

use crate::engine::{Engine, WeakEngine};
use crate::error::{CommitError, ErrorKind};
use crate::shared::Shared;
use crate::timeline::Timeline;

/// A third of what others get of a processor that is fought over.
const COMPACTION_NICE: i32 = 5;
/// How often the others look around.
const ROUND: Duration = Duration::from_secs(1);
/// For how long an open layer is kept that is old, in the age that makes it old, when the store has failed another timeline.
const WAITS_FOR_OTHERS: u32 = 10;
/// How long to leave a timeline alone whose flush has failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The running threads.
pub(crate) struct Background {
    /// Closed to end the threads.
    stop: Sender<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Background {
    pub(crate) fn start(engine: &Arc<Engine>) -> std::io::Result<Background> {
        let (stop, stopped) = bounded::<()>(0);
        // As many entries as freezes, and those wait when too many layers do.
        let (queue, frozen) = unbounded();
        let only_once = engine.shared().flush_queue.set(queue);
        assert!(only_once.is_ok(), "the background is started once");
        let spill = engine.shared().config.spill.then(|| {
            let (queue, to_spill) = unbounded();
            let only_once = engine.shared().spill_queue.set(queue);
            assert!(only_once.is_ok(), "the background is started once");
            (to_spill, stopped.clone())
        });
        let flush_stop = stopped.clone();
        let (compact_stop, compact_weak) = (stopped.clone(), Arc::downgrade(engine));
        let at_work = AtWork::begin(engine.shared());
        let weak = Arc::downgrade(engine);
        let mut threads = vec![
            std::thread::Builder::new()
                .name("ardent-flush".to_owned())
                .spawn(move || frozen_loop(&frozen, &flush_stop, "a flush failed", Timeline::flush_frozen))?,
            std::thread::Builder::new().name("ardent-compact".to_owned()).spawn(move || {
                let _at_work = at_work;
                stand_back();
                compact_loop(&compact_weak, &compact_stop);
            })?,
            std::thread::Builder::new().name("ardent-tend".to_owned()).spawn(move || tend_loop(&weak, &stopped))?,
        ];
        if let Some((frozen, stopped)) = spill {
            let spill = |timeline: &Timeline| timeline.spill_frozen().map_err(Arc::new);
            let what = "a layer could not be written to a local file";
            let thread = std::thread::Builder::new().name("ardent-spill".to_owned());
            threads.push(thread.spawn(move || frozen_loop(&frozen, &stopped, what, spill))?);
        }
        Ok(Background { stop, threads })
    }

    /// Ends the threads and joins them.
    pub(crate) fn stop(self) {
        drop(self.stop);
        for thread in self.threads {
            if thread.thread().id() == std::thread::current().id() {
                // The last handle to the engine was dropped by this very thread, which ends now.
                continue;
            }
            if thread.join().is_err() {
                tracing::error!("a background thread of the storage engine panicked");
            }
        }
    }
}

/// Does `work` on each timeline that comes with frozen layers, and again where it failed.
fn frozen_loop(
    frozen: &Receiver<Weak<Timeline>>,
    stopped: &Receiver<()>,
    failure: &'static str,
    work: impl Fn(&Timeline) -> Result<(), Arc<CommitError>>,
) {
    let mut failed: Vec<Weak<Timeline>> = Vec::new();
    loop {
        let wait = if failed.is_empty() { Duration::MAX } else { RETRY_AFTER };
        let next = crossbeam_channel::select! {
            recv(frozen) -> next => next.ok(),
            recv(stopped) -> _ => return,
            default(wait.min(Duration::from_secs(3600))) => None,
        };
        let due = next.into_iter().chain(if frozen.is_empty() { std::mem::take(&mut failed) } else { Vec::new() });
        for weak in due {
            if stopped.try_recv() != Err(TryRecvError::Empty) {
                return;
            }
            // What comes of it once comes of all that is queued for it: a store that is away takes its time to say so.
            let Some(timeline) = weak.upgrade().filter(|_| !failed.iter().any(|other| other.ptr_eq(&weak))) else {
                continue;
            };
            if let Err(error) = work(&timeline) {
                tracing::warn!(timeline = %timeline.id(), error = %with_causes(&error), "{failure}");
                // A timeline that is another's now has nothing to write. Anything else, a failing disk even, may be mended, and until it is
                // written again its writers wait.
                if !matches!(error.kind(), ErrorKind::Fenced | ErrorKind::NotFound) {
                    failed.push(weak);
                }
            }
        }
    }
}

/// While it is there, somebody compacts: nobody waits for a thread that has ended, however it did.
struct AtWork(Arc<Shared>);

impl AtWork {
    fn begin(shared: &Arc<Shared>) -> AtWork {
        shared.set_compacting(true);
        AtWork(Arc::clone(shared))
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.set_compacting(false);
    }
}

/// Lets whoever reads or commits run before the calling thread. If that takes too long, debt slows ingest (see [`crate::debt`]).
fn stand_back() {
    // SAFETY: no pointers. For Linux, 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, COMPACTION_NICE) } < 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "compaction runs like any thread");
    }
}

fn compact_loop(engine: &WeakEngine, stopped: &Receiver<()>) {
    while stopped.recv_timeout(ROUND) == Err(RecvTimeoutError::Timeout) {
        // A step each in turn: one that is written to without end does not hold up the others.
        let mut is_at_work = true;
        while is_at_work {
            is_at_work = false;
            let Some(timelines) = engine.upgrade().map(|engine| engine.loaded()) else { return };
            for timeline in timelines {
                if stopped.try_recv() != Err(TryRecvError::Empty) {
                    return;
                }
                is_at_work |= timeline.compact_step_again();
            }
        }
    }
}

fn tend_loop(engine: &WeakEngine, stopped: &Receiver<()>) {
    while stopped.recv_timeout(ROUND) == Err(RecvTimeoutError::Timeout) {
        let Some(engine) = engine.upgrade() else { return };
        for timeline in engine.loaded() {
            if let Err(error) = tend(&engine, timeline) {
                tracing::warn!(error = %with_causes(&error), "background work on a timeline failed");
            }
        }
    }
}

fn tend(engine: &Engine, timeline: Arc<Timeline>) -> Result<(), Arc<crate::CommitError>> {
    let config = &engine.shared().config;
    let age = timeline.writer.lock().open_since.map(|since| since.elapsed()).unwrap_or_default();
    // While the store is away, one layer that grows is better than many that wait. What fails another timeline alone is no reason to wait for ever.
    let is_awaited = timeline.flush_state.lock().last_error.is_some()
        || (engine.shared().is_store_away() && age < WAITS_FOR_OTHERS * config.open_layer_age_max);
    if age >= config.open_layer_age_max && !is_awaited {
        timeline.freeze();
    }
    if timeline.idle_for() >= config.idle_unload_after && !timeline.is_importing() {
        engine.unload(timeline)?;
    }
    Ok(())
}
