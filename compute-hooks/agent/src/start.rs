//! From a specification to a Postgres that accepts connections.
//!
//! ```text
//!  elect a term on the quorum ─┬─► end of log E ── warm directory that ends at E ──────────────► start Postgres
//!  connect to the page server ─┘        └─ none ► wait for E, lease E, base backup at E,
//!                                                 checkpoint record at E through the quorum ──► start Postgres
//!
//!  a Postgres whose agent was lost ──► elect a term: the log is still its own ──► connect to it
//! ```

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ardent_api::compute::{ComputeSpec, RunAs, Sandbox, Usage};
use ardent_api::page_service::{ErrorCode, KeptAt};
use ardent_page_client::{Binding, PageClient, PageError};
use ardent_pg_format::{ClusterState, PgMajor};
use ardent_statement_log::SegmentHeader;
use ardent_types::{Lsn, PgTli, Term, WalSegmentSize, with_causes};
use ardent_wal_client::{Elected, Proposer, ProposerConfig, WalReader};
use bytes::Bytes;
use tokio::io::AsyncWrite;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::channel::Events;
use crate::cold_start::{self, Origin};
use crate::data_dir::{make_folder, write_file};
use crate::error::ComputeError;
use crate::kept_state::{self, Restored};
use crate::layout::{AUTO_CONF, Layout, PORT, PRESENCE_MAP, View};
use crate::lease::{self, Lease, LeaseTimes, LeasedAt};
use crate::limits::{self, ControlGroup};
use crate::memory::{Memory, WarmMarker};
use crate::page_door::PageDoor;
use crate::parent::{Left, Parent};
use crate::pid_file;
use crate::policy::{self, GateInput, MappedPage, PolicyGate, RowCounter};
use crate::postgres_log::PostgresLog;
use crate::postmaster::Postmaster;
use crate::programs::ServerPrograms;
use crate::roles::{RolesNews, RolesWatch};
use crate::sandbox;
use crate::serving::Serving;
use crate::settings::{self, SettingsInput, SourceLimits};
use crate::shipping::{Shipper, still_its_own};
use crate::start_point::{self, StartPoint};
use crate::statement_log::{LogStart, StatementLog};
use crate::trash;
use crate::wal_sender::WalSender;

/// How long a page server may be away when a compute starts.
const PAGESERVER_PATIENCE: Duration = Duration::from_secs(30);
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// One request to wait for ingestion; it is repeated while there is progress to hope for.
const INGEST_WAIT: Duration = Duration::from_secs(10);
const INGEST_PATIENCE: Duration = Duration::from_secs(600);
/// How often `postmaster.pid` is looked at during a start.
const READY_POLL: Duration = Duration::from_millis(1);
const READY_PATIENCE: Duration = Duration::from_secs(60);
/// How long a Postgres whose agent was lost may take to give the next one a replication connection.
const TAKE_OVER_PATIENCE: Duration = Duration::from_secs(10);
/// How long reading WAL again, to count its rows, may take without progress.
const COUNT_PATIENCE: Duration = Duration::from_secs(30);

/// What stays the same over a compute's life.
#[derive(Debug)]
pub(crate) struct Compute {
    pub(crate) spec: ComputeSpec,
    pub(crate) layout: Layout,
    pub(crate) memory: Memory,
    view: View,
    major: PgMajor,
    programs: ServerPrograms,
    /// Settings of the source that the server programs here are too old for.
    unknown_settings: Vec<&'static str>,
    run_as: Option<RunAs>,
    parent: Parent,
}

/// A compute that accepts connections.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) postmaster: Postmaster,
    pub(crate) postmaster_pid: u32,
    pub(crate) shipper: Shipper,
    pub(crate) sender: WalSender,
    pub(crate) door: PageDoor,
    pub(crate) roles: RolesWatch,
    /// The roles as they came from production, where control does not know them yet.
    pub(crate) first_roles: Option<RolesNews>,
    /// Absent: what the branch runs is not recorded.
    pub(crate) statements: Option<StatementLog>,
    pub(crate) usage: watch::Receiver<Usage>,
    /// The page that says what absent pages are read at.
    pub(crate) policy: MappedPage,
    pub(crate) lease: Lease,
    pub(crate) log: PostgresLog,
    pub(crate) term: Term,
    pub(crate) serving: Arc<Serving>,
    pub(crate) how: How,
}

/// How it came to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Cold,
    Warm,
    /// It served already, with an agent that was lost.
    TakenOver,
}

/// A data directory that Postgres can be started on.
struct Prepared {
    limits: SourceLimits,
    lease: Lease,
    /// On which of its timelines Postgres goes on writing.
    tli: PgTli,
    segment_size: WalSegmentSize,
    /// A kept data directory, and the end of the log that it left.
    warm: Option<KeptAt>,
}

impl Compute {
    /// Checks the specification and prepares the compute's folder.
    pub(crate) fn new(spec: ComputeSpec, parent: Parent) -> Result<Self, ComputeError> {
        let major = PgMajor::from_number(spec.pg_major)
            .ok_or_else(|| ComputeError::Invalid(format!("Postgres {} is not supported", spec.pg_major)))?;
        let programs = ServerPrograms::find(spec.pg_major, spec.pg_bin_dir.as_deref())?;
        let is_unknown = |name: &&str| spec.settings.contains_key(*name) && !programs.knows_setting(name);
        let unknown_settings: Vec<_> = settings::NEW_IN_MINORS.into_iter().filter(is_unknown).collect();
        if !unknown_settings.is_empty() {
            tracing::warn!(
                ?unknown_settings,
                "the server programs here are older than the source, and know less settings"
            );
        }
        let layout = Layout::new(&spec)?;
        let run_as = identity(spec.run_as)?;
        let view = layout.view(spec.sandbox);
        let memory = Memory::open(&layout.memory, spec.timeline);
        // Others may pass through to the folders that are theirs, and see nothing.
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&layout.compute_dir);
        made.map_err(ComputeError::io("cannot make the folder", &layout.compute_dir))?;
        memory.save(&layout.memory)?;
        for folder in [&layout.run, &layout.door] {
            make_folder(folder, run_as)?;
        }
        Ok(Compute { spec, layout, memory, view, major, programs, unknown_settings, run_as, parent })
    }

    /// Starts Postgres, warm if that is possible.
    pub(crate) async fn start<W: AsyncWrite + Unpin>(&self, events: &mut Events<W>) -> Result<Started, ComputeError> {
        let (elected, client) = tokio::join!(self.elect(), self.connect_patiently());
        let (proposer, elected) = elected?;
        let mut client = client?;
        events.progress(format!("writing in term {} from {}", elected.term, elected.end_lsn)).await;
        let prepared = match self.try_warm(&mut client, &elected).await? {
            Some(prepared) => prepared,
            None => self.make_cold(&mut client, &proposer, &elected, events).await?,
        };
        let pageserver = self.spec.pageserver.clone();
        let mut door = PageDoor::open(&self.layout.door_socket(), pageserver, self.page_binding())?;
        let log = PostgresLog::open(&self.layout.log)?;
        let mut roles = RolesWatch::open(&self.layout.roles_socket(), &self.layout.run)?;
        self.write_configuration(&prepared)?;
        let gate = self.open_gate(&proposer, &elected, prepared.segment_size).await?;
        let usage = gate.usage();
        let policy = MappedPage::create(&self.layout.policy)?;
        policy.get().read_at(prepared.lease.base_lsn());
        let statements = self.open_statement_log(&prepared)?;
        let mut postmaster = self.spawn(&prepared, &log).await?;
        events.progress("Postgres is starting").await;
        let writer = (proposer, elected.term);
        let ready = async {
            // Before anybody can write: from then on what was kept is not this compute's state any more.
            let outdated = self.outdate_kept_state(&mut client, prepared.warm);
            tokio::try_join!(self.until_ready(&mut postmaster, &log, &mut roles, writer, gate, &prepared), outdated)
        };
        let ((postmaster_pid, shipper, sender, first_roles), ()) = tokio::select! {
            ready = ready => ready?,
            () = door.serve() => unreachable!("the door serves for ever"),
        };
        let Prepared { lease, warm, .. } = prepared;
        let how = if warm.is_some() { How::Warm } else { How::Cold };
        let (term, serving) = (elected.term, shipper.serving.clone());
        Ok(Started {
            postmaster,
            postmaster_pid,
            shipper,
            sender,
            door,
            roles,
            first_roles,
            statements,
            usage,
            policy,
            lease,
            log,
            term,
            serving,
            how,
        })
    }

    /// Goes on with a Postgres whose agent was lost, if its log is still its own.
    pub(crate) async fn take_over(&self, left: Left) -> Result<Started, ComputeError> {
        let cannot = |why: String| {
            ComputeError::Invalid(format!("the Postgres of an agent that was lost cannot be taken over: {why}"))
        };
        let agents_lost = left.server.agents_lost;
        let is_sandboxed = self.spec.sandbox == Sandbox::Bubblewrap;
        let control = start_point::read_control_file(&self.layout.data)?;
        let serving = Serving::of_left(&self.layout.serving, &self.spec)
            .ok_or_else(|| cannot(format!("{} is not readable", self.layout.serving.display())))?;
        let (name, times) = (self.memory.lease.clone(), LeaseTimes::of(&self.spec));
        let lease = Lease::held(self.spec.pageserver.clone(), self.binding(), name, serving.held(), times);
        let (limits, tli) = (start_point::limits(&control), control.checkpoint.tli);
        let prepared = Prepared { limits, lease, tli, segment_size: control.wal_segment_size, warm: None };
        let group = self.control_group(limits::processes_max(self.sessions_max(&prepared)));
        let left = Postmaster::take_over(left, is_sandboxed, group);
        // From here on it ends if this fails.
        let mut postmaster = left.map_err(|error| cannot(error.to_string()))?;
        if !policy::can_be_taken_over(&self.spec.policy) {
            return Err(cannot("the branch's policy counts what open transactions have changed".to_owned()));
        }
        let inner_pid = pid_file::ready_pid(&self.layout.data).ok_or_else(|| cannot("it does not serve".to_owned()))?;
        let postmaster_pid = postmaster.identify(inner_pid).map_err(|error| cannot(error.to_string()))?;
        let pageserver = self.spec.pageserver.clone();
        let mut door = PageDoor::open(&self.layout.door_socket(), pageserver, self.page_binding())?;
        let roles = RolesWatch::take_over(&self.layout.roles_socket(), &self.layout.run, agents_lost)?;
        let since_us =
            pid_file::started_us(&self.layout.data).ok_or_else(|| cannot("since when is not known".to_owned()))?;
        let start = self.log_start(&prepared)?;
        let statements = start.map(|start| StatementLog::take_over(&start, since_us)).transpose()?;
        let log = PostgresLog::open(&self.layout.log)?;
        let policy = MappedPage::create(&self.layout.policy)?;
        let serving = Arc::new(serving);
        let mut usage = None;
        let connecting = async {
            let (elected, client) = tokio::join!(self.elect(), self.connect_patiently());
            let (proposer, elected) = elected?;
            let config = self.proposer_config();
            still_its_own(&config, &elected, serving.term())?;
            serving.set_term(elected.term);
            let renewed = prepared.lease.take(&mut client?).await;
            renewed.map_err(ComputeError::pageserver("renewing the lease", prepared.lease.base_lsn()))?;
            let input = self.gate_input(&proposer, 0, prepared.segment_size);
            let gate = PolicyGate::take_over(&self.layout.policy, &input)?;
            usage = Some(gate.usage());
            let shipper = Shipper {
                proposer,
                config,
                term: elected.term,
                socket: self.layout.postgres_socket(),
                postmaster_pid,
                gate,
                tli: prepared.tli,
                serving: serving.clone(),
                stopping: CancellationToken::new(),
            };
            // The walsender of the agent before may be there for a moment yet, and its slot in use.
            let connected = tokio::time::timeout(TAKE_OVER_PATIENCE, shipper.reconnect()).await;
            let sender = connected.map_err(|_| cannot("it takes no replication connection".to_owned()))??;
            Ok((shipper, sender))
        };
        let (shipper, sender) = tokio::select! {
            connected = connecting => connected?,
            status = postmaster.exited() => {
                return Err(ComputeError::Crashed { status: status.to_string(), log: log.tail() });
            }
            () = door.serve() => unreachable!("the door serves for ever"),
        };
        let usage = usage.ok_or_else(|| cannot("nothing is counted".to_owned()))?;
        let (lease, term) = (prepared.lease, shipper.term);
        Ok(Started {
            postmaster,
            postmaster_pid,
            shipper,
            sender,
            door,
            roles,
            first_roles: None,
            statements,
            usage,
            policy,
            lease,
            log,
            term,
            serving,
            how: How::TakenOver,
        })
    }

    /// Tells whoever would start another agent that there is something to take over.
    pub(crate) fn tell_serving(&self, postmaster: &Postmaster) {
        self.parent.tell_serving(postmaster.sandbox_init());
    }

    /// From here on every older writer is refused.
    async fn elect(&self) -> Result<(Proposer, Elected), ComputeError> {
        Proposer::elect(self.proposer_config(), CancellationToken::new()).await.map_err(ComputeError::writing)
    }

    fn proposer_config(&self) -> ProposerConfig {
        let spec = &self.spec;
        ProposerConfig {
            membership: spec.members.clone(),
            ..ProposerConfig::new(spec.tenant, spec.timeline, spec.safekeepers.clone(), spec.token.clone())
        }
    }

    pub(crate) fn binding(&self) -> Binding {
        Binding { tenant: self.spec.tenant, timeline: self.spec.timeline, token: self.spec.token.clone() }
    }

    /// What backends may do at the page server: read.
    fn page_binding(&self) -> Binding {
        Binding { token: self.spec.page_token.clone(), ..self.binding() }
    }

    fn lease_on(&self, base_lsn: Lsn, map_lsn: Lsn) -> Lease {
        let (name, at) = (self.memory.lease.clone(), LeasedAt { base_lsn, map_lsn });
        Lease::new(self.spec.pageserver.clone(), self.binding(), name, at, LeaseTimes::of(&self.spec))
    }

    async fn connect_patiently(&self) -> Result<PageClient, ComputeError> {
        let deadline = Instant::now() + PAGESERVER_PATIENCE;
        loop {
            let binding = self.binding();
            let connecting = PageClient::connect(&self.spec.pageserver, &binding);
            // One that takes connections and says nothing is as good as none.
            let connected = tokio::time::timeout_at(deadline, connecting).await.unwrap_or_else(|_| {
                let addr = self.spec.pageserver.clone();
                Err(PageError::Lost { addr, source: std::io::ErrorKind::TimedOut.into() })
            });
            match connected {
                Err(error) if error.is_retryable() && Instant::now() < deadline => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                outcome => {
                    return outcome.map_err(ComputeError::pageserver("connecting to the page server", Lsn::INVALID));
                }
            }
        }
    }

    /// A kept data directory is good if it was stopped cleanly, on this boot of this host, if the quorum's log ends where its
    /// own does, and if the pages it lacks can still be had.
    async fn try_warm(&self, client: &mut PageClient, elected: &Elected) -> Result<Option<Prepared>, ComputeError> {
        let Some(marker) = WarmMarker::take(&self.layout.warm_marker, &self.spec) else { return Ok(None) };
        let control = match start_point::read_control_file(&self.layout.data) {
            Ok(control) => control,
            Err(error) => {
                tracing::warn!(%error, "the kept data directory is not used");
                return Ok(None);
            }
        };
        let same_end = marker.end_lsn == elected.end_lsn && marker.checkpoint_lsn == elected.prev_lsn;
        let untouched = control.state == ClusterState::ShutDown
            && control.checkpoint_lsn == marker.checkpoint_lsn
            && self.layout.data.join(PRESENCE_MAP).is_file();
        if !same_end || !untouched || marker.term > elected.term {
            return Ok(None);
        }
        let lease = self.lease_on(marker.base_lsn, marker.map_lsn);
        match lease.take(client).await {
            Ok(()) => {}
            Err(error) if lease::lost(&error) => return Ok(None),
            Err(error) => return Err(ComputeError::pageserver("renewing the lease", marker.base_lsn)(error)),
        }
        let limits = start_point::limits(&control);
        let tli = control.checkpoint.tli;
        let warm = Some(KeptAt { lsn: marker.end_lsn, term: marker.term });
        Ok(Some(Prepared { limits, lease, tli, segment_size: control.wal_segment_size, warm }))
    }

    async fn make_cold<W: AsyncWrite + Unpin>(
        &self,
        client: &mut PageClient,
        proposer: &Proposer,
        elected: &Elected,
        events: &mut Events<W>,
    ) -> Result<Prepared, ComputeError> {
        self.layout.keep_settings();
        trash::discard(&self.layout.compute_dir, &self.layout.data)?;
        let end = elected.end_lsn;
        self.wait_for_ingestion(client, end, events).await?;
        let lease = self.lease_on(end, end);
        lease.take(client).await.map_err(ComputeError::pageserver("taking the lease", end))?;
        let (origin, restored) = self.make_directory(client, elected).await?;
        events.progress("the data directory is made").await;
        let unlogged_lsn = restored.as_ref().map(|restored| restored.unlogged_lsn);
        let point = StartPoint::new(&origin, end, elected.prev_lsn, unlogged_lsn)?;
        let bytes = Bytes::from(point.wal.bytes.clone());
        proposer.append(point.wal.start, bytes).await.map_err(ComputeError::writing)?;
        point.write(&self.layout.data, self.run_as)?;
        write_file(&self.layout.data.join("PG_VERSION"), format!("{}\n", self.major).as_bytes(), self.run_as)?;
        if let Ok(text) = std::fs::read_to_string(&self.layout.kept_settings) {
            let kept = settings::kept_settings(&text);
            write_file(&self.layout.data.join(AUTO_CONF), kept.as_bytes(), self.run_as)?;
        }
        // Postgres must not be seen running on a record that no quorum holds.
        let mut flushed = proposer.flushed();
        tokio::select! {
            error = proposer.closed() => return Err(ComputeError::writing(error)),
            Ok(_) = flushed.wait_for(|position| *position >= point.wal.record.end) => {}
        }
        let (tli, segment_size) = (origin.header.pg_tli, origin.header.wal_segment_size);
        Ok(Prepared { limits: point.limits, lease, tli, segment_size, warm: None })
    }

    /// A data directory from the base backup at the end of the log, with what the last compute left there, if it left anything.
    async fn make_directory(
        &self,
        client: &mut PageClient,
        elected: &Elected,
    ) -> Result<(Origin, Option<Restored>), ComputeError> {
        let (data, end) = (&self.layout.data, elected.end_lsn);
        let origin = cold_start::receive(client, end, data, self.major, self.run_as).await?;
        let warn = |error: &dyn std::error::Error| {
            let error = with_causes(error);
            tracing::warn!(error, "what the last compute left is not given back: the start is as after a crash");
        };
        let state = match kept_state::find(client, self.spec.timeline).await {
            Ok(state) => state,
            Err(error) => {
                warn(&error);
                None
            }
        };
        let Some(state) = state else { return Ok((origin, None)) };
        // Settings that this host remembers are at least as new.
        let wants_settings = !self.layout.kept_settings.exists();
        if state.outdated || state.at.lsn != end || state.at.term >= elected.term {
            if wants_settings {
                match kept_state::settings(client, &state).await {
                    Ok(settings) => self.layout.remember_settings(settings.as_deref())?,
                    Err(error) => warn(&error),
                }
            }
            return Ok((origin, None));
        }
        match kept_state::restore(client, self, &state).await {
            Ok(restored) => {
                tracing::info!(
                    files = restored.files,
                    pages = restored.pages,
                    "what the last compute left is given back"
                );
                if wants_settings {
                    self.layout.remember_settings(restored.settings.as_deref())?;
                }
                Ok((origin, Some(restored)))
            }
            Err(error) => {
                warn(&error);
                // Some of it may be there.
                trash::discard(&self.layout.compute_dir, data)?;
                let mut client = self.connect_patiently().await?;
                let origin = cold_start::receive(&mut client, end, data, self.major, self.run_as).await?;
                Ok((origin, None))
            }
        }
    }

    /// A compute that goes on from its own folder takes what it left with it.
    async fn outdate_kept_state(&self, client: &mut PageClient, at: Option<KeptAt>) -> Result<(), ComputeError> {
        match at.filter(|_| self.leaves_state()) {
            Some(at) => kept_state::outdate(client, self.spec.timeline, at).await,
            None => Ok(()),
        }
    }

    /// Whether what it leaves is worth keeping: a branch that takes no writes has nothing of its own.
    pub(crate) fn leaves_state(&self) -> bool {
        !self.spec.policy.read_only
    }

    pub(crate) fn major(&self) -> PgMajor {
        self.major
    }

    pub(crate) fn run_as(&self) -> Option<RunAs> {
        self.run_as
    }

    /// The gate at the end of the log, with the count of rows brought up to there.
    async fn open_gate(
        &self,
        proposer: &Proposer,
        elected: &Elected,
        segment_size: WalSegmentSize,
    ) -> Result<PolicyGate, ComputeError> {
        let (policy, usage) = (&self.spec.policy, self.spec.usage);
        let mut rows_changed = 0;
        if policy.max_rows_changed.is_some() && usage.counted_to.is_valid() {
            rows_changed =
                usage.rows_changed + self.count_rows(usage.counted_to, elected.end_lsn, segment_size).await?;
        }
        PolicyGate::open(&self.layout.policy, &self.gate_input(proposer, rows_changed, segment_size))
    }

    fn gate_input(&self, proposer: &Proposer, rows_changed: u64, segment_size: WalSegmentSize) -> GateInput<'_> {
        GateInput {
            branch: &self.spec.branch,
            policy: &self.spec.policy,
            branch_lsn: self.spec.branch_lsn,
            rows_changed,
            start: proposer.next_lsn(),
            major: self.major,
            segment_size,
        }
    }

    /// Counts the rows of WAL that an earlier run wrote and did not tell of: it ended by force.
    async fn count_rows(&self, from: Lsn, end: Lsn, segment_size: WalSegmentSize) -> Result<u64, ComputeError> {
        let spec = &self.spec;
        let failed = |error: &dyn std::error::Error| ComputeError::Safekeeper {
            reason: format!("the rows changed since {from} cannot be counted: {}", with_causes(error)),
        };
        let mut counter = RowCounter::new(from, self.major, segment_size);
        let mut rows = 0;
        if from >= end {
            return Ok(rows);
        }
        let mut reader = WalReader::connect(&spec.safekeepers, spec.tenant, spec.timeline, &spec.token, from)
            .await
            .map_err(|error| failed(&error))?;
        while reader.next_lsn() < end {
            let chunk = tokio::time::timeout(COUNT_PATIENCE, reader.next()).await;
            let chunk = chunk.map_err(|elapsed| failed(&elapsed))?.map_err(|error| failed(&error))?;
            rows = counter.take(chunk.start, chunk.bytes)?;
        }
        Ok(rows)
    }

    async fn wait_for_ingestion<W: AsyncWrite + Unpin>(
        &self,
        client: &mut PageClient,
        lsn: Lsn,
        events: &mut Events<W>,
    ) -> Result<(), ComputeError> {
        let deadline = Instant::now() + INGEST_PATIENCE;
        loop {
            match client.wait_lsn(lsn, INGEST_WAIT).await {
                Ok(_) => return Ok(()),
                Err(PageError::Server { code: ErrorCode::Timeout, .. }) if Instant::now() < deadline => {
                    events.progress(format!("waiting for the page server to reach {lsn}")).await;
                }
                Err(error) => return Err(ComputeError::pageserver("waiting for the page server", lsn)(error)),
            }
        }
    }

    /// The libraries that the source preloads: those that are installed here, and those that are not and are left out.
    pub(crate) fn preload_libraries(&self) -> (Vec<String>, Vec<String>) {
        let wished = self.spec.settings.get("shared_preload_libraries").map_or("", String::as_str);
        settings::library_list(wished).into_iter().partition(|name| self.programs.has_library(name))
    }

    /// What the branch runs is recorded from the first statement on: without the log there is no start.
    fn open_statement_log(&self, prepared: &Prepared) -> Result<Option<StatementLog>, ComputeError> {
        self.log_start(prepared)?.map(|start| StatementLog::open(&start)).transpose()
    }

    fn log_start(&self, prepared: &Prepared) -> Result<Option<LogStart<'_>>, ComputeError> {
        let Some(spec) = &self.spec.statement_log else { return Ok(None) };
        let control = start_point::read_control_file(&self.layout.data)?;
        let header = SegmentHeader { timeline: self.spec.timeline, first_xid: control.checkpoint.next_xid };
        let (sessions_max, bell) = (self.sessions_max(prepared), self.layout.bell_socket());
        Ok(Some(LogStart { spec, rings: &self.layout.rings, bell, header, sessions_max, run_as: self.run_as }))
    }

    /// Processes of Postgres's that its settings allow.
    fn sessions_max(&self, prepared: &Prepared) -> u64 {
        settings::processes(&settings::postmaster_arguments(&self.settings_input(prepared)))
    }

    fn settings_input<'a>(&'a self, prepared: &'a Prepared) -> SettingsInput<'a> {
        SettingsInput {
            major: self.major,
            branch: &self.spec.branch,
            view: &self.view,
            limits: &prepared.limits,
            wishes: &self.spec.settings,
            unknown: &self.unknown_settings,
            libraries: self.preload_libraries().0,
            records_statements: self.spec.statement_log.is_some(),
            read_only: self.spec.policy.read_only,
            port: PORT,
            base_lsn: prepared.lease.map_lsn(),
        }
    }

    fn write_configuration(&self, prepared: &Prepared) -> Result<(), ComputeError> {
        let write = |name: &str, text: &str| write_file(&self.layout.data.join(name), text.as_bytes(), self.run_as);
        write("postgresql.conf", &settings::configuration_file(&self.settings_input(prepared)))?;
        write("pg_hba.conf", &settings::hba_file(nix::unistd::geteuid().is_root()))?;
        write("pg_ident.conf", &settings::ident_file())?;
        empty_folder(&self.layout.run)
    }

    async fn spawn(&self, prepared: &Prepared, log: &PostgresLog) -> Result<Postmaster, ComputeError> {
        let arguments = settings::postmaster_arguments(&self.settings_input(prepared));
        let sandbox = self.spec.sandbox;
        let most = limits::processes_max(settings::processes(&arguments));
        let (layout, run_as) = (&self.layout, self.run_as);
        let line = sandbox::command(sandbox, layout, &self.view, &self.programs, run_as, most, &arguments)?;
        let group = self.control_group(most);
        if let Some(group) = &group {
            group.end_orphans();
        }
        let is_sandboxed = sandbox == Sandbox::Bubblewrap;
        let spawned = Postmaster::spawn(&self.parent, line, &log.file, is_sandboxed, group).await;
        spawned.map_err(|error| match error {
            ComputeError::NoSandbox { reason } => {
                ComputeError::NoSandbox { reason: format!("{reason}: {}", log.tail()) }
            }
            error => error,
        })
    }

    /// The group that its processes are in, or are put in.
    fn control_group(&self, processes_max: u64) -> Option<ControlGroup> {
        let limits = &self.spec.limits;
        let group = ControlGroup::create(&format!("ardent-{}", self.spec.timeline), limits, processes_max);
        let is_asked = [limits.memory_bytes, limits.cpus_milli].into_iter().flatten().any(|limit| limit > 0);
        if group.is_none() && is_asked {
            tracing::warn!("no control group can be made here: memory and processors are not limited");
        }
        let listing = group.as_ref().map(ControlGroup::listing).unwrap_or_default();
        if let Err(error) = std::fs::write(&self.layout.groups, listing) {
            tracing::warn!(%error, "a control group may stay if this agent is killed: {} cannot be written", self.layout.groups.display());
        }
        group
    }

    /// Waits until Postgres accepts connections and replication streams.
    async fn until_ready(
        &self,
        postmaster: &mut Postmaster,
        log: &PostgresLog,
        roles: &mut RolesWatch,
        (proposer, term): (Proposer, Term),
        gate: PolicyGate,
        prepared: &Prepared,
    ) -> Result<(u32, Shipper, WalSender, Option<RolesNews>), ComputeError> {
        let inner_pid = tokio::select! {
            pid = wait_for_ready_pid(&self.layout.data) => pid,
            status = postmaster.exited() => {
                return Err(ComputeError::PostgresFailed { status: status.to_string(), log: log.tail() });
            }
            () = tokio::time::sleep(READY_PATIENCE) => {
                let status = format!("not ready after {} s", READY_PATIENCE.as_secs());
                return Err(ComputeError::PostgresFailed { status, log: log.tail() });
            }
        };
        let refused = |reason: String| ComputeError::PostgresRefused { reason };
        let pid = postmaster.identify(inner_pid).map_err(|error| refused(error.to_string()))?;
        let held = prepared.lease.to_held();
        let serving = Arc::new(Serving::begin(&self.layout.serving, &self.spec, term, held));
        let shipper = Shipper {
            proposer,
            config: self.proposer_config(),
            serving,
            term,
            socket: self.layout.postgres_socket(),
            postmaster_pid: pid,
            gate,
            tli: prepared.tli,
            stopping: CancellationToken::new(),
        };
        // Before anybody can have changed a role: what is there now came from production. Side by side, as both wait for a process of
        // Postgres's to come up.
        let look = async { if self.spec.roles_known { None } else { roles.look().await } };
        let (sender, first_roles) = tokio::join!(shipper.connect(), look);
        let sender = sender.map_err(|error| refused(with_way_out(&with_causes(&error), &self.spec.branch)))?;
        Ok((pid, shipper, sender, first_roles))
    }
}

/// Why a Postgres that runs does not let its agent in, and what can be done: nobody can connect to take back what keeps everybody out,
/// such as a `transaction_timeout` of a millisecond.
fn with_way_out(why: &str, branch: &str) -> String {
    format!(
        "{why} (if a setting of the branch is the cause, as after ALTER SYSTEM: ardent branch restore {branch} --at TIME makes the branch \
         what it was before; ardent branch create OTHER --from {branch} makes another one with its data and without that setting)"
    )
}

/// Postgres's user: root must name one, anybody else is it.
fn identity(run_as: Option<RunAs>) -> Result<Option<RunAs>, ComputeError> {
    let own = nix::unistd::geteuid();
    match run_as {
        Some(RunAs { uid: 0, .. }) => Err(ComputeError::Invalid("Postgres cannot run as root".to_owned())),
        None if own.is_root() => {
            Err(ComputeError::Invalid("running as root takes a user to run Postgres as".to_owned()))
        }
        Some(other) if own.is_root() => Ok(Some(other)),
        Some(RunAs { uid, .. }) if uid != own.as_raw() => {
            Err(ComputeError::Invalid(format!("only root can run Postgres as user {uid}")))
        }
        _ => Ok(None),
    }
}

async fn wait_for_ready_pid(data: &Path) -> u32 {
    let mut poll = tokio::time::interval(READY_POLL);
    loop {
        poll.tick().await;
        if let Some(pid) = pid_file::ready_pid(data) {
            return pid;
        }
    }
}

/// Removes sockets and lock files that a killed Postgres left.
fn empty_folder(folder: &Path) -> Result<(), ComputeError> {
    let entries = std::fs::read_dir(folder).map_err(ComputeError::io("cannot list", folder))?;
    for entry in entries.flatten() {
        let path = entry.path();
        std::fs::remove_file(&path).map_err(ComputeError::io("cannot remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_that_lets_nobody_in_comes_with_the_way_out() {
        let said = with_way_out("terminating connection due to transaction timeout", "dev");
        for words in ["transaction timeout (", "ardent branch restore dev --at TIME", "create OTHER --from dev"] {
            assert!(said.contains(words), "no {words:?} in {said}");
        }
    }
}
