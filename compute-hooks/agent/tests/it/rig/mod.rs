//! Everything around an agent: a safekeeper, a page server that serves a stopped cluster, control's end of the channel.

mod page_server;
mod recovery;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ardent_api::addr::ServiceAddr;
use ardent_api::compute::{
    ComputeCommand, ComputeEvent, ComputeLimits, ComputeSpec, RoleReport, RunAs, Sandbox, StatementLogSpec, Usage,
};
use ardent_api::policy::BranchPolicy;
use ardent_api::token::{Claims, Rights, Service, TokenIssuer};
use ardent_pg_format::ControlFile;
use ardent_pg_format::encode::{WalStream, shutdown_checkpoint};
use ardent_safekeeper::{Safekeeper, SafekeeperConfig};
use ardent_statement_log::{Amount, LOG_LEN_MIN, LogEntry, LogFilter, read_log};
use ardent_test_pg::{StopMode, TestPg, TestPgOptions, bin_dir_of, test_major};
use ardent_types::{Lsn, TenantId, TimelineId};
use ardent_wal_client::{SafekeeperClient, TimelineSpec};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, Lines};
use tokio_util::sync::CancellationToken;

pub use page_server::FakePageServer;

/// Longest wait for anything.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Past the ids of people, and of what control and user namespaces give out. Process ids take 22 bits at most.
const FIRST_ID: u32 = 1 << 30;
const WORLDS_MAX: u32 = 1 << 8;

/// One tenant with one timeline, from a source cluster that has been stopped.
pub struct World {
    pub source: TestPg,
    pub page_server: FakePageServer,
    pub safekeeper: Option<Safekeeper>,
    pub timeline: TimelineSpec,
    pub token: String,
    page_token: String,
    issuer: Arc<TokenIssuer>,
    run_as: Option<RunAs>,
    pub folder: tempfile::TempDir,
}

impl World {
    /// A source with `options`, on which `sql` was run before it was stopped.
    pub async fn new(options: TestPgOptions, sql: &str) -> World {
        let mut source = TestPg::start(options);
        if !sql.is_empty() {
            source.sql(sql);
        }
        source.stop(StopMode::Fast);
        let folder = ardent_test_pg::temp_dir();
        let issuer = TokenIssuer::from_key(&TokenIssuer::generate_key().expect("key")).expect("valid");
        let (tenant, timeline) = (TenantId::generate(), TimelineId::generate());
        let claims =
            |service, rights, timeline| Claims { service, tenant: Some(tenant), timeline, rights, expires_at_s: None };
        let token = issuer.issue(&claims(Service::Any, Rights::Write, Some(timeline)));
        let page_token = issuer.issue(&claims(Service::Pageserver, Rights::Read, Some(timeline)));
        let timeline = timeline_of(source.data_dir(), tenant, timeline);
        let page_server = FakePageServer::start(folder.path(), source.data_dir(), &token, &page_token);
        let mut world = World {
            source,
            page_server,
            safekeeper: None,
            timeline,
            token,
            page_token,
            issuer: Arc::new(issuer),
            run_as: nix::unistd::geteuid().is_root().then(own_identity),
            folder,
        };
        world.start_safekeeper().await;
        let manage = world.issuer.issue(&claims(Service::Any, Rights::Manage, None));
        let mut client = SafekeeperClient::connect(&world.safekeeper_addr(), tenant, &manage).await.expect("connects");
        client.create_timeline(world.timeline).await.expect("created");
        world
    }

    pub fn safekeeper_dir(&self) -> PathBuf {
        self.folder.path().join("safekeeper")
    }

    fn safekeeper_addr(&self) -> ServiceAddr {
        ServiceAddr::Unix(self.folder.path().join("safekeeper.sock"))
    }

    pub async fn start_safekeeper(&mut self) {
        let config = SafekeeperConfig::new(self.safekeeper_dir(), vec![self.safekeeper_addr()], self.issuer.verifier());
        let started = Safekeeper::start(config, CancellationToken::new()).await.expect("safekeeper starts");
        self.safekeeper = Some(started);
    }

    pub async fn stop_safekeeper(&mut self) {
        self.safekeeper.take().expect("runs").shutdown().await;
    }

    pub fn compute_dir(&self) -> PathBuf {
        self.folder.path().join("c")
    }

    pub fn spec(&self) -> ComputeSpec {
        ComputeSpec {
            tenant: self.timeline.tenant,
            timeline: self.timeline.timeline,
            branch: "dev".into(),
            pg_major: test_major(),
            pg_bin_dir: Some(bin_dir_of(test_major())),
            compute_dir: self.compute_dir(),
            lib_dir: self.library_dir(),
            pageserver: self.page_server.addr.clone(),
            safekeepers: vec![self.safekeeper_addr()],
            members: ardent_api::wal_service::Membership::default(),
            token: self.token.clone(),
            page_token: self.page_token.clone(),
            run_as: self.run_as,
            sandbox: Sandbox::Bubblewrap,
            roles_known: true,
            policy: BranchPolicy::default(),
            branch_lsn: self.timeline.start_lsn,
            usage: Usage::default(),
            limits: ComputeLimits::default(),
            statement_log: None,
            settings: BTreeMap::from([("timezone".to_owned(), "UTC".to_owned())]),
            idle_timeout_s: 0,
            lease_renewal_ms: None,
            lease_ttl_ms: None,
        }
    }

    /// A folder with the library that Postgres loads. A copy, because the checkout may lie where Postgres's user can't go.
    fn library_dir(&self) -> PathBuf {
        let folder = self.folder.path().join("lib");
        std::fs::create_dir_all(&folder).expect("folder");
        let library = ardent_extension_tests::compute_library();
        let target = folder.join(format!("libardent_compute_{}.so", test_major()));
        // Once: writing over a library that a server has mapped crashes that server.
        if !target.exists() {
            std::fs::copy(library, target).unwrap_or_else(|error| panic!("{}: {error}", library.display()));
        }
        folder
    }

    /// Starts an agent and waits until it is ready.
    pub async fn start(&self) -> Agent {
        self.start_with(self.spec()).await
    }

    pub async fn start_with(&self, spec: ComputeSpec) -> Agent {
        let mut agent = Agent::spawn(spec);
        agent.until_ready().await;
        agent
    }
}

/// A user and group that nothing else on this host runs as, as control gives one to each compute: the kernel counts
/// processes by user, so one world's limit would be another's too.
fn own_identity() -> RunAs {
    static WORLDS: AtomicU32 = AtomicU32::new(0);
    let world = WORLDS.fetch_add(1, Ordering::Relaxed);
    assert!(world < WORLDS_MAX, "more worlds in one process than identities");
    let id = FIRST_ID + std::process::id() * WORLDS_MAX + world;
    RunAs { uid: id, gid: id }
}

/// The same with a lease that is renewed many times a second.
pub fn quick_renewal(spec: ComputeSpec) -> ComputeSpec {
    ComputeSpec { lease_renewal_ms: Some(50), ..spec }
}

/// The user that a stock server runs as when tests run as root.
pub fn unprivileged() -> Option<RunAs> {
    let user = nix::unistd::User::from_name("postgres").expect("readable").expect("postgresql-15 is installed");
    nix::unistd::geteuid().is_root().then(|| RunAs { uid: user.uid.as_raw(), gid: user.gid.as_raw() })
}

/// The timeline that begins where a stopped cluster's WAL ends.
fn timeline_of(data_dir: &Path, tenant: TenantId, timeline: TimelineId) -> TimelineSpec {
    let bytes = std::fs::read(data_dir.join("global/pg_control")).expect("pg_control");
    let control = ControlFile::decode(&bytes).expect("valid");
    let stream = WalStream {
        major: control.major,
        segment_size: control.wal_segment_size,
        tli: control.checkpoint.tli,
        system_id: control.system_id,
    };
    // The record is there already; only its length is wanted.
    let (wal, _) = shutdown_checkpoint(stream, control.checkpoint_lsn, Lsn::new(8), &control.checkpoint);
    TimelineSpec {
        tenant,
        timeline,
        pg_major: control.major.number(),
        system_id: control.system_id,
        pg_tli: control.checkpoint.tli,
        wal_segment_size: control.wal_segment_size,
        start_lsn: wal.record.end,
        prev_lsn: control.checkpoint_lsn,
        ancestor: None,
    }
}

/// What a ready event says.
#[derive(Clone, Debug)]
pub struct Ready {
    pub socket_dir: PathBuf,
    pub base_lsn: Lsn,
    pub postmaster_pid: u32,
    pub warm: bool,
    pub missing_libraries: Vec<String>,
}

/// An agent in this process, and control's end of its channel.
pub struct Agent {
    stdin: Option<DuplexStream>,
    events: Lines<BufReader<DuplexStream>>,
    task: tokio::task::JoinHandle<ExitCode>,
    pub ready: Option<Ready>,
    pub steps: Vec<(String, u64)>,
    /// What it told last.
    pub roles: Vec<RoleReport>,
    pub usage: Usage,
}

impl Agent {
    pub fn spawn(spec: ComputeSpec) -> Agent {
        let (stdin, agent_stdin) = tokio::io::duplex(4096);
        let (agent_stdout, stdout) = tokio::io::duplex(1 << 20);
        let task = tokio::spawn(ardent_agent::run(spec, agent_stdin, agent_stdout));
        let events = BufReader::new(stdout).lines();
        Agent {
            stdin: Some(stdin),
            events,
            task,
            ready: None,
            steps: Vec::new(),
            roles: Vec::new(),
            usage: Usage::default(),
        }
    }

    /// The next event that is no progress; `None` when the agent has ended.
    pub async fn event(&mut self) -> Option<ComputeEvent> {
        loop {
            match self.any_event().await {
                Some(ComputeEvent::BaseMoved { .. }) => {}
                event => return event,
            }
        }
    }

    /// Waits until the base has moved; to where.
    pub async fn until_moved(&mut self) -> Lsn {
        match self.any_event().await {
            Some(ComputeEvent::BaseMoved { base_lsn }) => base_lsn,
            other => panic!("not moved: {other:?}"),
        }
    }

    async fn any_event(&mut self) -> Option<ComputeEvent> {
        loop {
            let line = tokio::time::timeout(DEADLINE, self.events.next_line()).await.expect("an event in time");
            match serde_json::from_str(&line.expect("readable")?).expect("an event") {
                ComputeEvent::Progress { step, elapsed_ms } => self.steps.push((step, elapsed_ms)),
                ComputeEvent::Roles { number, roles } => {
                    self.roles = roles;
                    self.order(&ComputeCommand::RolesTaken { number }).await;
                }
                ComputeEvent::Usage { usage } => self.usage = usage,
                event => return Some(event),
            }
        }
    }

    pub async fn until_ready(&mut self) {
        match self.event().await {
            Some(ComputeEvent::Ready { socket_dir, base_lsn, postmaster_pid, warm, missing_libraries, .. }) => {
                self.ready = Some(Ready { socket_dir, base_lsn, postmaster_pid, warm, missing_libraries });
            }
            other => panic!("not ready: {other:?}"),
        }
    }

    pub fn ready(&self) -> &Ready {
        self.ready.as_ref().expect("ready")
    }

    pub async fn stop(&mut self, deadline: Duration) -> (bool, Option<Lsn>) {
        self.ask_to_stop(deadline).await;
        self.until_stopped().await
    }

    pub async fn ask_to_stop(&mut self, deadline: Duration) {
        let deadline_ms = u64::try_from(deadline.as_millis()).expect("short");
        self.order(&ComputeCommand::Stop { deadline_ms }).await;
    }

    async fn order(&mut self, command: &ComputeCommand) {
        let mut line = serde_json::to_vec(command).expect("plain");
        line.push(b'\n');
        if let Some(stdin) = &mut self.stdin {
            // An agent that has ended listens no more, and says so by its events.
            let _ = stdin.write_all(&line).await;
        }
    }

    pub async fn until_stopped(&mut self) -> (bool, Option<Lsn>) {
        match self.event().await {
            Some(ComputeEvent::Stopped { clean, end_lsn }) => {
                assert_eq!(self.event().await, None, "the last event");
                (clean, end_lsn)
            }
            other => panic!("not stopped: {other:?}"),
        }
    }

    /// The code of the failure that ends the agent.
    pub async fn until_failed(&mut self) -> (String, String) {
        match self.event().await {
            Some(ComputeEvent::Failed { code, message }) => {
                assert_eq!(self.event().await, None, "the last event");
                (code, message)
            }
            other => panic!("not failed: {other:?}"),
        }
    }

    /// What happens when control dies.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    pub async fn exit_code(self) -> ExitCode {
        tokio::time::timeout(DEADLINE, self.task).await.expect("ends in time").expect("does not panic")
    }

    pub async fn connect(&self) -> Client {
        Client::connect(&self.ready().socket_dir, "postgres").await
    }

    /// A client's session with options of its own, as a connection string gives them.
    pub async fn connect_with(&self, options: &str) -> Client {
        Client::try_connect_with(&self.ready().socket_dir, "postgres", options).await.expect("connects")
    }

    /// One statement on a connection of its own: the first column of the first row, or nothing.
    pub async fn sql(&self, sql: &str) -> String {
        self.connect().await.sql(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }
}

/// The log of a compute's statements.
pub struct StatementLog {
    folder: tempfile::TempDir,
}

impl StatementLog {
    /// Makes a compute keep one.
    pub fn new(spec: &mut ComputeSpec) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        spec.statement_log = Some(StatementLogSpec { dir: folder.path().join("log"), bytes_max: LOG_LEN_MIN });
        StatementLog { folder }
    }

    /// All that is in it.
    pub fn entries(&self) -> Vec<LogEntry> {
        let mut entries = Vec::new();
        let summary = read_log(&self.folder.path().join("log"), &LogFilter::default(), Amount::All, |entry| {
            entries.push(entry);
            ControlFlow::Continue(())
        });
        assert_eq!(summary.expect("read").damaged, Vec::<String>::new());
        entries
    }
}

/// A client's session.
pub struct Client {
    pub client: tokio_postgres::Client,
    _connection: tokio::task::JoinHandle<()>,
}

impl Client {
    pub async fn connect(socket_dir: &Path, user: &str) -> Client {
        Self::try_connect(socket_dir, user).await.expect("connects")
    }

    pub async fn try_connect(socket_dir: &Path, user: &str) -> Result<Client, tokio_postgres::Error> {
        Self::try_connect_with(socket_dir, user, "").await
    }

    pub async fn try_connect_with(
        socket_dir: &Path,
        user: &str,
        options: &str,
    ) -> Result<Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(socket_dir).port(5432).user(user).dbname("postgres").options(options);
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        let _connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Client { client, _connection })
    }

    pub async fn sql(&self, sql: &str) -> Result<String, tokio_postgres::Error> {
        let rows = self.client.simple_query(sql).await?;
        Ok(rows
            .iter()
            .find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("").to_owned()),
                _ => None,
            })
            .unwrap_or_default())
    }
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
