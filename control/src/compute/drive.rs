//! One compute from start to end: specification, child process, events, and the restart after a crash.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use ardent_api::compute::{ComputeCommand, ComputeEvent, ComputeSpec, StatementLogSpec};
use ardent_api::control::{ApiErrorCode, ErrorInfo};
use ardent_api::page_service::ManageRequest;
use ardent_api::token::{Claims, Rights, Service};
use ardent_types::ComputeId;

use crate::compute::pool::{PoolConfig, RunningCompute, SlotState};
use crate::compute::process::{ProcessIdentity, end_process};
use crate::context::{Context, LEASE_TTL};
use crate::store::{BranchRow, ComputeRow};

/// A crashed compute is started again at once, but not more often than this in a row: what crashes at every start would
/// otherwise keep the host busy. The next connection tries again.
const RESTARTS_MAX: u32 = 3;
/// A compute that ran this long has not crashed "in a row".
const STEADY_AFTER: Duration = Duration::from_secs(60);
/// What ends a compute for good: starting it again by itself would only repeat it. The next connection does.
const FINAL: [&str; 3] = ["fenced", "policy", "limit"];
/// How long a token given to an agent is good for. An agent that runs longer keeps its connections; its token is only read when
/// one is made.
const TOKEN_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long the last lines of an agent that has ended may take to arrive.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Longest line that an agent may send.
const EVENT_LEN_MAX: usize = 16 << 20;

/// What a slot's task is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DriveCommand {
    /// Stop cleanly.
    Stop,
    /// End at once: nothing of it is needed any more.
    Kill,
}

/// Told when the log of statements is written.
pub(crate) type LogRequested = oneshot::Sender<()>;

/// How one run of the agent ended.
enum RunEnd {
    /// Stopped, by command or for idleness.
    Stopped,
    /// Ended without being asked to, after it ran.
    Crashed(String),
}

/// One compute's life.
pub(crate) struct Drive {
    context: Arc<Context>,
    branch: BranchRow,
    state: watch::Sender<SlotState>,
    commands: mpsc::Receiver<DriveCommand>,
    log_requests: mpsc::Receiver<LogRequested>,
}

/// A started agent.
struct Agent {
    child: Child,
    stdin: ChildStdin,
    events: Lines<BufReader<ChildStdout>>,
    identity: Option<ProcessIdentity>,
    postmaster: Option<ProcessIdentity>,
}

impl Drive {
    pub(crate) fn new(
        context: Arc<Context>,
        branch: BranchRow,
        state: watch::Sender<SlotState>,
        commands: mpsc::Receiver<DriveCommand>,
        log_requests: mpsc::Receiver<LogRequested>,
    ) -> Self {
        Drive { context, branch, state, commands, log_requests }
    }

    /// Runs the compute until it is stopped, idle, or beyond help.
    pub(crate) async fn run(mut self) -> Result<(), ErrorInfo> {
        self.follow_wal(true).await?;
        let (context, timeline) = (self.context.clone(), self.branch.timeline);
        // A safekeeper that was away when the branch was made may be needed now: its writer meets it as soon as it has been told.
        let telling = async {
            if let Err(error) = context.settle_wal_debts(Some(timeline)).await {
                warn!(%timeline, %error, "what safekeepers missed cannot be read");
            }
            std::future::pending().await
        };
        let outcome = tokio::select! {
            outcome = self.run_with_restarts() => outcome,
            () = telling => unreachable!("it pends for ever"),
        };
        // An idle branch needs no receiver on the page server. If this fails, the receiver stays, and costs little.
        if let Err(error) = self.follow_wal(false).await {
            warn!(branch = %self.branch.name, %error, "the page server keeps receiving a suspended branch's WAL");
        }
        outcome
    }

    async fn run_with_restarts(&mut self) -> Result<(), ErrorInfo> {
        let mut restarts = 0;
        loop {
            let began = Instant::now();
            let row = self.context.store.begin_compute(self.branch.id, self.context.pool.first_uid)?;
            let spec_file = self.write_spec(&row).map_err(|error| {
                self.failed(format!("the compute's folder cannot be made: {error}"))
                    .with_hint("see whether the disk is full or read-only")
            })?;
            self.end_leftovers(&row).await?;
            let mut agent = self.spawn(&spec_file)?;
            self.context.store.set_processes(row.id, agent.identity.as_ref(), None)?;
            let end = self.attend(&mut agent, &row).await;
            self.reap(&mut agent, &row).await?;
            match end? {
                RunEnd::Stopped => return Ok(()),
                RunEnd::Crashed(why) => {
                    self.context.metrics.crashed();
                    if began.elapsed() > STEADY_AFTER {
                        restarts = 0;
                    }
                    restarts += 1;
                    if restarts > RESTARTS_MAX {
                        return Err(self.failed(format!("Postgres crashed {restarts} times in a row: {why}")));
                    }
                    warn!(branch = %self.branch.name, why, restarts, "compute crashed; starting it again");
                    self.state.send_replace(SlotState::Starting);
                }
            }
        }
    }

    /// Makes the page server receive the timeline's WAL, or stop.
    async fn follow_wal(&self, follow: bool) -> Result<(), ErrorInfo> {
        let timeline = self.branch.timeline;
        let request = if follow {
            ManageRequest::FollowWal { timeline, safekeepers: self.context.wal_service.addrs() }
        } else {
            ManageRequest::UnfollowWal { timeline }
        };
        self.context.page_service.manage(self.branch.tenant, request).await?;
        Ok(())
    }

    /// Ends what an earlier run of ours left behind in this compute's folder.
    async fn end_leftovers(&self, row: &ComputeRow) -> Result<(), ErrorInfo> {
        for process in [&row.agent, &row.postmaster].into_iter().flatten() {
            if !end_process(process, Duration::ZERO).await {
                return Err(self.failed(format!("process {} of an earlier run cannot be ended", process.pid)));
            }
        }
        Ok(())
    }

    /// Makes the compute's folder and its specification, which holds the token.
    fn write_spec(&self, row: &ComputeRow) -> io::Result<PathBuf> {
        let pool = &self.context.pool;
        let compute_dir = make_compute_dir(&pool.computes_dir, row)?;
        let expires = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + TOKEN_LIFETIME;
        let token = |service, rights| {
            self.context.tokens.issue(&Claims {
                service,
                tenant: Some(self.branch.tenant),
                timeline: Some(self.branch.timeline),
                rights,
                expires_at_s: Some(expires.as_secs()),
            })
        };
        let branch = self.branch_now()?;
        let connector = self.context.store.connector(&self.branch.connector).map_err(io::Error::other)?;
        let connector = connector.ok_or_else(|| io::Error::other("the branch's connector is gone"))?;
        let pg_major = connector.pg_major.ok_or_else(|| io::Error::other("the connector was never imported"))?;
        let spec = ComputeSpec {
            tenant: self.branch.tenant,
            timeline: self.branch.timeline,
            branch: self.branch.name.clone(),
            pg_major,
            pg_bin_dir: pool.pg_bin_dirs.get(&pg_major).cloned(),
            compute_dir,
            lib_dir: pool.lib_dir.clone(),
            pageserver: self.context.page_service.addr(),
            safekeepers: self.context.wal_service.addrs(),
            members: self.context.wal_service.membership(),
            token: token(Service::Any, Rights::Write),
            page_token: token(Service::Pageserver, Rights::Read),
            run_as: row.uid.map(PoolConfig::run_as),
            sandbox: pool.sandbox,
            policy: branch.policy,
            branch_lsn: branch.branch_lsn.unwrap_or_default(),
            usage: branch.usage,
            limits: pool.limits,
            statement_log: self.statement_log(),
            roles_known: branch.roles_known,
            settings: connector.settings,
            idle_timeout_s: branch.idle_timeout_s,
            lease_renewal_ms: None,
            lease_ttl_ms: None,
        };
        // Beside the folder, not in it: the folder belongs to the compute's own user, who must not see the token.
        let path = pool.computes_dir.join(format!("{}.spec", row.id));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(&serde_json::to_vec(&spec)?)?;
        Ok(path)
    }

    /// Where what the branch runs is recorded. Computes of the server's own are read from, and a root's applies what production ran.
    fn statement_log(&self) -> Option<StatementLogSpec> {
        let logs = &self.context.pool.statement_log;
        let is_recorded = logs.bytes_max > 0 && !self.branch.hidden && !self.branch.is_root();
        is_recorded.then(|| StatementLogSpec { dir: logs.folder(self.branch.id), bytes_max: logs.bytes_max })
    }

    /// As it is set now: it may have changed since the branch was looked up.
    fn branch_now(&self) -> io::Result<BranchRow> {
        let row = self.context.store.branch_by_id(self.branch.id).map_err(io::Error::other)?;
        row.ok_or_else(|| io::Error::other("the branch is gone"))
    }

    fn spawn(&self, spec_file: &Path) -> Result<Agent, ErrorInfo> {
        let cannot = |error: io::Error| self.failed(format!("the agent cannot be started: {error}"));
        let (program, arguments) = self
            .context
            .pool
            .agent_command
            .split_first()
            .ok_or_else(|| self.failed("no agent program is set".into()))?;
        let mut child = Command::new(program)
            .args(arguments)
            .arg("--spec")
            .arg(spec_file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C in a terminal goes to a whole process group; computes are stopped by us, in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(cannot)?;
        let missing = || self.failed("the agent has no standard input or output".into());
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let identity = child.id().and_then(ProcessIdentity::of);
        Ok(Agent { child, stdin, events: BufReader::new(stdout).lines(), identity, postmaster: None })
    }

    /// Follows the agent's events until it has ended.
    async fn attend(&mut self, agent: &mut Agent, row: &ComputeRow) -> Result<RunEnd, ErrorInfo> {
        let mut ran = false;
        let mut asked_to_stop = false;
        let mut exited = false;
        let mut kill_at: Option<Instant> = None;
        let began = std::time::Instant::now();
        let mut logs_wanted: VecDeque<(u64, LogRequested)> = VecDeque::new();
        let mut logs_asked = 0;
        loop {
            let late = async {
                match kill_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                line = agent.events.next_line() => match line {
                    Ok(Some(line)) => parse_event(&line),
                    Ok(None) | Err(_) => return self.ended_without_a_word(ran, asked_to_stop),
                },
                Some(command) = self.commands.recv() => {
                    if command == DriveCommand::Kill {
                        self.state.send_replace(SlotState::Stopping);
                        // It fails only if the agent has ended by itself; Postgres ends with it.
                        let _ = agent.child.start_kill();
                        return Ok(RunEnd::Stopped);
                    }
                    if !asked_to_stop {
                        asked_to_stop = true;
                        self.state.send_replace(SlotState::Stopping);
                        kill_at = Some(Instant::now() + self.context.pool.stop_deadline * 2);
                        self.send_stop(agent).await;
                    }
                    continue;
                },
                Some(done) = self.log_requests.recv() => {
                    logs_asked += 1;
                    logs_wanted.push_back((logs_asked, done));
                    self.send(agent, &ComputeCommand::WriteLog { number: logs_asked }).await;
                    continue;
                }
                // Its pipe may be held open by a child of its own: what it said before it ended is read, then it is over.
                _ = agent.child.wait(), if !exited => {
                    exited = true;
                    kill_at = Some(Instant::now() + LAST_WORDS);
                    continue;
                }
                () = late => {
                    if !exited {
                        warn!(branch = %self.branch.name, "the agent does not stop; killing it");
                        return Ok(RunEnd::Stopped);
                    }
                    return self.ended_without_a_word(ran, asked_to_stop);
                }
            };
            match event {
                None => {}
                Some(ComputeEvent::Progress { step, elapsed_ms }) => {
                    debug!(branch = %self.branch.name, step, elapsed_ms, "compute");
                }
                Some(ComputeEvent::Roles { number, roles }) => {
                    self.context.store.take_roles(self.branch.id, &roles)?;
                    self.send(agent, &ComputeCommand::RolesTaken { number }).await;
                }
                Some(ComputeEvent::LogWritten { number }) => {
                    while logs_wanted.front().is_some_and(|(wanted, _)| *wanted <= number)
                        && let Some((_, done)) = logs_wanted.pop_front()
                    {
                        // Whoever asked may be gone.
                        let _ = done.send(());
                    }
                }
                Some(ComputeEvent::Usage { usage }) => self.context.store.put_usage(self.branch.id, usage)?,
                Some(ComputeEvent::Ready { socket_dir, port, base_lsn, postmaster_pid, warm, missing_libraries }) => {
                    ran = true;
                    self.context.metrics.started(began, warm);
                    agent.postmaster = ProcessIdentity::of(postmaster_pid);
                    self.context.store.set_processes(row.id, agent.identity.as_ref(), agent.postmaster.as_ref())?;
                    let incarnation = row.incarnation;
                    info!(branch = %self.branch.name, incarnation, warm, %base_lsn, "compute is up");
                    if !missing_libraries.is_empty() {
                        warn!(branch = %self.branch.name, ?missing_libraries, "it runs without libraries that production preloads");
                    }
                    if !asked_to_stop {
                        let id = row.id;
                        let running = RunningCompute { id, incarnation, socket_dir, port, warm, missing_libraries };
                        self.state.send_replace(SlotState::Running(running));
                    }
                    self.ask_again(agent, &logs_wanted).await;
                    // Nobody has to wait for ours: the agent holds a lease of its own already.
                    self.lease(row.id, base_lsn).await;
                }
                Some(ComputeEvent::TakenOver { postmaster_pid }) => {
                    warn!(branch = %self.branch.name, postmaster_pid, "the agent was lost; another has taken its Postgres over");
                    self.context.metrics.agent_lost();
                    if asked_to_stop {
                        self.send_stop(agent).await;
                    }
                    self.ask_again(agent, &logs_wanted).await;
                }
                Some(ComputeEvent::BaseMoved { base_lsn }) => self.lease(row.id, base_lsn).await,
                Some(ComputeEvent::Idle) => {
                    asked_to_stop = true;
                    kill_at = Some(Instant::now() + self.context.pool.stop_deadline * 2);
                    self.state.send_replace(SlotState::Stopping);
                }
                Some(ComputeEvent::Stopped { clean, end_lsn }) => {
                    info!(branch = %self.branch.name, clean, ?end_lsn, "compute has stopped");
                    if !clean {
                        self.context.store.remove_lease(row.id)?;
                    }
                    return Ok(RunEnd::Stopped);
                }
                Some(ComputeEvent::Failed { code, message }) if asked_to_stop => {
                    warn!(branch = %self.branch.name, code, message, "compute failed while it stopped");
                    self.context.store.remove_lease(row.id)?;
                    return Ok(RunEnd::Stopped);
                }
                Some(ComputeEvent::Failed { code, message }) => {
                    warn!(branch = %self.branch.name, code, message, "compute failed");
                    return if ran && !FINAL.contains(&code.as_str()) {
                        Ok(RunEnd::Crashed(message))
                    } else {
                        Err(self.failed(message))
                    };
                }
            }
        }
    }

    fn ended_without_a_word(&self, ran: bool, asked_to_stop: bool) -> Result<RunEnd, ErrorInfo> {
        let why = "the agent ended without a word".to_owned();
        match (asked_to_stop, ran) {
            (true, _) => Ok(RunEnd::Stopped),
            (false, true) => Ok(RunEnd::Crashed(why)),
            (false, false) => {
                Err(self.failed(why).with_hint("connect again to start it anew; the server's log says more"))
            }
        }
    }

    /// Pins what the compute reads. The page server refuses to drop it for as long as the lease is renewed.
    async fn lease(&self, compute: ComputeId, base_lsn: ardent_types::Lsn) {
        let leased = async {
            let name = self.context.store.put_lease(compute, self.branch.timeline, base_lsn)?;
            let (timeline, ttl_s) = (self.branch.timeline, LEASE_TTL.as_secs());
            let request = ManageRequest::Lease { timeline, name, lsn: base_lsn, ttl_s };
            self.context.page_service.manage(self.branch.tenant, request).await?;
            Ok::<(), ErrorInfo>(())
        };
        // Not fatal: the renewal tries again within minutes, and nothing is dropped before the time horizon.
        if let Err(error) = leased.await {
            warn!(branch = %self.branch.name, %error, "the compute's lease could not be taken; it will be tried again");
        }
    }

    /// Repeats what an agent may not have heard: it was starting, or it is another now.
    async fn ask_again(&self, agent: &mut Agent, logs_wanted: &VecDeque<(u64, LogRequested)>) {
        if let Some((number, _)) = logs_wanted.back() {
            self.send(agent, &ComputeCommand::WriteLog { number: *number }).await;
        }
    }

    async fn send_stop(&self, agent: &mut Agent) {
        let deadline_ms = u64::try_from(self.context.pool.stop_deadline.as_millis()).unwrap_or(u64::MAX);
        self.send(agent, &ComputeCommand::Stop { deadline_ms }).await;
    }

    async fn send(&self, agent: &mut Agent, command: &ComputeCommand) {
        let mut line = serde_json::to_vec(command).expect("plain data");
        line.push(b'\n');
        if let Err(error) = agent.stdin.write_all(&line).await {
            debug!(branch = %self.branch.name, %error, "the agent reads no commands any more");
        }
    }

    /// Sees to it that nothing of this run is left: an agent that was killed may leave its postmaster behind.
    async fn reap(&self, agent: &mut Agent, row: &ComputeRow) -> Result<(), ErrorInfo> {
        const AFTER_LAST_WORD: Duration = Duration::from_secs(2);
        if tokio::time::timeout(AFTER_LAST_WORD, agent.child.wait()).await.is_err() {
            // It cannot be waited for only if it is gone already.
            let _ = agent.child.kill().await;
        }
        if let Some(postmaster) = &agent.postmaster
            && !end_process(postmaster, Duration::from_millis(500)).await
        {
            return Err(self.failed(format!("Postgres (process {}) cannot be ended", postmaster.pid)));
        }
        self.context.store.set_processes(row.id, None, None)?;
        Ok(())
    }

    fn failed(&self, why: String) -> ErrorInfo {
        ErrorInfo::new(ApiErrorCode::ComputeFailed, format!("branch {} cannot be started: {why}", self.branch.name))
    }
}

/// The event in a line. What is no event is logged and skipped: a library that prints must not end a compute.
fn parse_event(line: &str) -> Option<ComputeEvent> {
    if line.len() > EVENT_LEN_MAX {
        warn!(length = line.len(), "an agent's line is too long to be an event");
        return None;
    }
    match serde_json::from_str(line) {
        Ok(event) => Some(event),
        Err(error) => {
            // Not the line itself: reports of roles hold verifiers.
            warn!(length = line.len(), %error, "an agent's line is no event");
            None
        }
    }
}

/// The compute's folder: its own user's, and nobody else's.
fn make_compute_dir(computes_dir: &Path, row: &ComputeRow) -> io::Result<PathBuf> {
    let path = computes_dir.join(row.id.to_string());
    match fs::DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    if let Some(uid) = row.uid {
        std::os::unix::fs::chown(&path, Some(uid), Some(uid))?;
    }
    Ok(path)
}
