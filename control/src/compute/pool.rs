//! The computes that run, and the way to one that does.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::warn;

use ardent_api::compute::{ComputeLimits, RunAs, Sandbox};
use ardent_api::control::{ApiErrorCode, BranchState, ComputeState, ErrorInfo};
use ardent_types::{BranchId, ComputeId};

use crate::compute::drive::{Drive, DriveCommand, LogRequested};
use crate::compute::warm::WarmFolders;
use crate::context::Context;
use crate::statement_log::StatementLogs;
use crate::store::BranchRow;

/// Readers of one log that may wait at a time for it to be written.
const LOG_REQUESTS_MAX: usize = 16;
/// How long they wait.
const LOG_PATIENCE: Duration = Duration::from_secs(3);

/// How computes are run.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Folder with one folder per compute.
    pub computes_dir: PathBuf,
    /// Program and first arguments of an agent; `--spec FILE` follows.
    pub agent_command: Vec<OsString>,
    /// Where the extension library is unpacked.
    pub lib_dir: PathBuf,
    /// Folders with server programs, by major version; others are searched by the agent.
    pub pg_bin_dirs: BTreeMap<u32, PathBuf>,
    /// How computes are confined.
    pub sandbox: Sandbox,
    /// Give each compute a user id of its own, from here on. For servers that run as root.
    pub first_uid: Option<u32>,
    /// What each compute may use of the host.
    pub limits: ComputeLimits,
    /// Most local disk that the folders of all suspended computes take together; absent: a quarter of what is free without them.
    pub warm_bytes_max: Option<u64>,
    /// Where what branches run is recorded.
    pub statement_log: StatementLogs,
    /// Longest that a wake may take.
    pub wake_timeout: Duration,
    /// How long a stop may take before the agent gives up a clean one.
    pub stop_deadline: Duration,
}

impl PoolConfig {
    /// The identity of a compute with this user id.
    pub(crate) fn run_as(uid: u32) -> RunAs {
        RunAs { uid, gid: uid }
    }
}

/// A compute that accepts connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningCompute {
    /// Its id.
    pub id: ComputeId,
    /// Which start of it.
    pub incarnation: u64,
    /// Folder with the socket.
    pub socket_dir: PathBuf,
    /// Port number in the socket's name.
    pub port: u16,
    /// A kept folder was started again.
    pub warm: bool,
    /// Libraries that production preloads and this host lacks.
    pub missing_libraries: Vec<String>,
}

/// What a slot's task tells those who wait.
#[derive(Clone, Debug)]
pub(crate) enum SlotState {
    /// On its way up.
    Starting,
    /// Up.
    Running(RunningCompute),
    /// On its way down.
    Stopping,
    /// The task has ended; the slot is empty.
    Gone(Result<(), ErrorInfo>),
}

#[derive(Clone)]
struct Slot {
    state: watch::Receiver<SlotState>,
    commands: mpsc::Sender<DriveCommand>,
    log_requests: mpsc::Sender<LogRequested>,
}

/// All running computes.
pub struct ComputePool {
    context: Arc<Context>,
    slots: Mutex<HashMap<BranchId, Slot>>,
    /// Why a branch's last start failed, until it runs again.
    problems: Mutex<HashMap<BranchId, String>>,
    pub(super) warm: WarmFolders,
    tasks: TaskTracker,
    closing: std::sync::atomic::AtomicBool,
    /// Shared by wakes while they look for a slot, held alone by whoever must not have a compute started meanwhile.
    gates: Mutex<HashMap<BranchId, Arc<RwLock<()>>>>,
}

/// While this is held, wakes of the branch wait.
pub(crate) struct ClosedGate {
    _held: OwnedRwLockWriteGuard<()>,
}

impl ComputePool {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        ComputePool {
            context,
            slots: Mutex::default(),
            problems: Mutex::default(),
            warm: WarmFolders::default(),
            tasks: TaskTracker::new(),
            closing: std::sync::atomic::AtomicBool::new(false),
            gates: Mutex::default(),
        }
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// Keeps the branch's compute from being started until what this gives is dropped. One that runs goes on.
    pub(crate) async fn close_gate(&self, branch: BranchId) -> ClosedGate {
        ClosedGate { _held: self.gate(branch).write_owned().await }
    }

    /// The same, if nobody looks for the branch's compute at this moment, or keeps it from being started.
    pub(crate) fn try_close_gate(&self, branch: BranchId) -> Option<ClosedGate> {
        self.gate(branch).try_write_owned().ok().map(|held| ClosedGate { _held: held })
    }

    fn gate(&self, branch: BranchId) -> Arc<RwLock<()>> {
        let mut gates = self.gates.lock();
        // Those that nobody holds or waits for are only ever referred to from here.
        gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        gates.entry(branch).or_default().clone()
    }

    /// A running compute for the branch and whether it ran already. Callers at the same time share one start; a caller
    /// that goes away does not end it.
    pub(crate) async fn wake(self: &Arc<Self>, branch: &BranchRow) -> Result<(RunningCompute, bool), ErrorInfo> {
        let limit = self.context.pool.wake_timeout;
        let deadline = Instant::now() + limit;
        let mut was_running = true;
        loop {
            let gate = self.gate(branch.id);
            let open = tokio::time::timeout_at(deadline, gate.read()).await;
            let open = open.map_err(|_| self.wake_timed_out(branch, limit))?;
            let mut state = self.slot(branch)?.state;
            drop(open);
            let started_here = !matches!(*state.borrow(), SlotState::Stopping);
            loop {
                let now = state.borrow_and_update().clone();
                match now {
                    SlotState::Running(running) => return Ok((running, was_running)),
                    SlotState::Gone(Err(error)) if started_here => return Err(error),
                    // It was on its way down when we came: start it again.
                    SlotState::Gone(_) => break,
                    SlotState::Starting | SlotState::Stopping => was_running = false,
                }
                match tokio::time::timeout_at(deadline, state.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => break,
                    Err(_) => return Err(self.wake_timed_out(branch, limit)),
                }
            }
            if Instant::now() >= deadline {
                return Err(self.wake_timed_out(branch, limit));
            }
        }
    }

    fn wake_timed_out(&self, branch: &BranchRow, limit: Duration) -> ErrorInfo {
        let problems = self.context.page_service.problems();
        let of_storage = problems.iter().find(|(timeline, _)| *timeline == branch.timeline);
        let why = match (of_storage, self.problem(branch.id)) {
            (Some((_, problem)), _) => format!("; the page server cannot keep up its store: {problem}"),
            (None, Some(problem)) => format!("; the last start: {problem}"),
            // It may be the same, or nothing to do with this one.
            (None, None) if !problems.is_empty() => {
                "; the page server cannot keep up its store for other branches: ardent status tells why".to_owned()
            }
            (None, None) => String::new(),
        };
        let message = format!("branch {} did not start within {} s{why}", branch.name, limit.as_secs());
        ErrorInfo::new(ApiErrorCode::Timeout, message)
            .with_hint(format!("it goes on starting; see ardent branch info {}", branch.name))
    }

    /// Stops the branch's compute and waits until it is gone; whether it ran.
    pub(crate) async fn suspend(&self, branch: BranchId) -> Result<bool, ErrorInfo> {
        self.end(branch, DriveCommand::Stop).await
    }

    /// The same for a branch that is deleted next and has no clients: it need not end in order.
    pub(crate) async fn kill(&self, branch: BranchId) -> Result<bool, ErrorInfo> {
        self.end(branch, DriveCommand::Kill).await
    }

    async fn end(&self, branch: BranchId, command: DriveCommand) -> Result<bool, ErrorInfo> {
        let Some(slot) = self.slots.lock().get(&branch).cloned() else { return Ok(false) };
        // A full queue holds a stop already; a closed one has ended.
        let _ = slot.commands.try_send(command);
        let mut state = slot.state;
        let gone = async {
            while !matches!(*state.borrow_and_update(), SlotState::Gone(_)) {
                if state.changed().await.is_err() {
                    break;
                }
            }
        };
        // The task itself kills what does not stop; this only bounds a hang of the machine.
        let limit = self.context.pool.stop_deadline * 3;
        tokio::time::timeout(limit, gone).await.map_err(|_| {
            ErrorInfo::new(ApiErrorCode::Timeout, format!("Postgres did not stop within {} s", limit.as_secs()))
        })?;
        Ok(true)
    }

    /// Waits until what the branch's sessions have heard as done is in its log. A compute that does not answer in time has written
    /// most of it.
    pub(crate) async fn write_log(&self, branch: BranchId) {
        let Some(slot) = self.slots.lock().get(&branch).cloned() else { return };
        // Only then are such commands read.
        if !matches!(*slot.state.borrow(), SlotState::Running(_)) {
            return;
        }
        let (done, written) = oneshot::channel();
        let writing = async {
            if slot.log_requests.send(done).await.is_ok() {
                // Without an answer it has ended, and written all.
                let _ = written.await;
            }
        };
        if tokio::time::timeout(LOG_PATIENCE, writing).await.is_err() {
            warn!(%branch, "the compute does not say that the log of its statements is written");
        }
    }

    /// What the branch's compute does.
    pub(crate) fn state(&self, branch: BranchId) -> ComputeState {
        match self.slots.lock().get(&branch).map(|slot| slot.state.borrow().clone()) {
            None | Some(SlotState::Gone(_)) => ComputeState::Suspended,
            Some(SlotState::Starting) => ComputeState::Starting,
            Some(SlotState::Running(_)) => ComputeState::Running,
            Some(SlotState::Stopping) => ComputeState::Stopping,
        }
    }

    /// Libraries that production preloads and that the branch's Postgres, if it runs, runs without.
    pub(crate) fn missing_libraries(&self, branch: BranchId) -> Vec<String> {
        match self.slots.lock().get(&branch).map(|slot| slot.state.borrow().clone()) {
            Some(SlotState::Running(running)) => running.missing_libraries,
            _ => Vec::new(),
        }
    }

    /// Why the branch's last start failed.
    pub(crate) fn problem(&self, branch: BranchId) -> Option<String> {
        self.problems.lock().get(&branch).cloned()
    }

    pub(crate) fn forget_problem(&self, branch: BranchId) {
        self.problems.lock().remove(&branch);
    }

    /// Whether the branch has a compute: up, on its way up, or on its way down.
    pub(crate) fn has_slot(&self, branch: BranchId) -> bool {
        self.slots.lock().contains_key(&branch)
    }

    /// How many run.
    pub(crate) fn running(&self) -> u64 {
        let slots = self.slots.lock();
        slots.values().filter(|slot| matches!(*slot.state.borrow(), SlotState::Running(_))).count() as u64
    }

    /// Stops all and waits for them. No wake succeeds afterwards.
    pub(crate) async fn close(&self) {
        self.closing.store(true, std::sync::atomic::Ordering::SeqCst);
        let slots: Vec<Slot> = self.slots.lock().values().cloned().collect();
        for slot in slots {
            let _ = slot.commands.try_send(DriveCommand::Stop);
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The branch's slot; an empty one gets a task that starts the compute.
    fn slot(self: &Arc<Self>, branch: &BranchRow) -> Result<Slot, ErrorInfo> {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(&branch.id) {
            return Ok(slot.clone());
        }
        if self.closing.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(ErrorInfo::new(ApiErrorCode::ComputeFailed, "the server is shutting down")
                .with_hint("start it again with ardent up"));
        }
        // Under this lock: a delete marks the row first and looks for a slot then, so one of the two sees the other. As it is now:
        // it may be on another timeline since the caller looked.
        let row = self.context.store.branch_by_id(branch.id)?;
        let Some(row) = row.filter(|row| row.state == BranchState::Ready && row.deleted.is_none()) else {
            return Err(crate::branches::not_found(&branch.name));
        };
        let (state_in, state) = watch::channel(SlotState::Starting);
        let (commands, commands_out) = mpsc::channel(4);
        let (log_requests, log_requests_out) = mpsc::channel(LOG_REQUESTS_MAX);
        let slot = Slot { state, commands, log_requests };
        slots.insert(branch.id, slot.clone());
        let drive = Drive::new(self.context.clone(), row, state_in.clone(), commands_out, log_requests_out);
        let pool = self.clone();
        let id = branch.id;
        self.tasks.spawn(async move {
            let outcome = drive.run().await;
            match &outcome {
                Ok(()) => pool.problems.lock().remove(&id),
                Err(error) => pool.problems.lock().insert(id, error.message.clone()),
            };
            // Out of the map before the news: whoever hears `Gone` finds an empty slot.
            pool.slots.lock().remove(&id);
            state_in.send_replace(SlotState::Gone(outcome));
        });
        Ok(slot)
    }
}
