//! Control on fakes: storage and production in memory, a shell script as the agent, and a client of the API.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod members;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use ardent_api::addr::ServiceAddr;
use ardent_api::compute::Sandbox;
use ardent_api::control::{
    AddTablesReply, ApiErrorCode, CheckOutcome, ErrorInfo, LogicalOptions, PreflightCheck, SlotInfo, VerifyReply,
};
use ardent_api::page_service::{ManageReply, ManageRequest, TimelineStatus, UnnamedFiles, UnnamedRelation};
use ardent_api::wal_service::{ArchiveStall, Membership, SafekeeperStatus};
use ardent_control::deps::{
    ConnectorRuntime, ConnectorSpec, ImportProgress, Imported, LogEnd, LogicalRuntime, LogicalStatus, MemberService,
    PageService, RootBranch, StorageError, StorageErrorKind, WalBranch, WalService,
};
use ardent_control::{Control, ControlConfig, Dependencies, PoolConfig, PublicAddress, RunningControl};
use ardent_types::{Lsn, TenantId, TimelineId};

pub const SOURCE: &str = "postgresql://app:s3cret@prod.example/shop";

/// A timeline on the fake page server.
#[derive(Clone, Debug)]
pub struct FakeTimeline {
    pub ancestor: Option<TimelineId>,
    pub branch_lsn: Lsn,
    pub following: bool,
}

/// The state of storage and production.
#[derive(Default)]
pub struct FakeState {
    pub page_server: BTreeMap<TimelineId, FakeTimeline>,
    pub safekeeper: BTreeMap<TimelineId, WalBranch>,
    pub leases: BTreeMap<String, Lsn>,
    /// Logs that go on behind what the safekeepers say to be committed, and until where: whoever is elected finds that.
    pub left_by_crash: BTreeMap<TimelineId, Lsn>,
    pub slots: u32,
    pub requests: Vec<String>,
    /// How often the page server was asked how far it is.
    pub status_asked: usize,
    pub page_server_down: bool,
    pub safekeeper_down: bool,
    /// A second safekeeper, which the quorum does not need.
    pub second: BTreeSet<TimelineId>,
    pub second_away: bool,
    pub archive_stalls: Vec<ArchiveStall>,
    pub production_down: bool,
    pub preflight_fails: bool,
    pub import_fails: bool,
    /// An import waits while this is set.
    pub import_held: bool,
    /// Where the page server begins branches, whatever it is asked for.
    pub begins_at: Option<Lsn>,
    /// The making of a timeline goes no further than this.
    pub held: Option<Held>,
    /// Whether it has come there.
    pub reached: bool,
    /// Times before this one are not retained any more, microseconds.
    pub oldest_us: i64,
    /// Timelines of which the page server keeps only what others need.
    pub retired: Vec<TimelineId>,
    /// A logical import goes no further than the copy.
    pub copy_held: bool,
    /// The root timelines whose logical connectors run, and how often one was begun.
    pub logical_running: Vec<TimelineId>,
    pub logical_begun: usize,
    /// Statements that were run on root branches.
    pub ran_on_root: Vec<String>,
    /// What production says of the slot.
    pub slot: Option<SlotInfo>,
    /// Physical connectors that are followed, and the URL of the last one.
    pub followers: usize,
    pub followed_url: String,
    /// What timelines' manifests say of them, and which were told after they were made.
    pub descriptions: BTreeMap<TimelineId, serde_json::Value>,
    pub described: Vec<TimelineId>,
    /// How long history is kept, where that was said.
    pub retention_s: BTreeMap<TimelineId, u64>,
    pub members: members::FakeMembers,
    /// Where the page server was told that the safekeepers are, each time.
    pub named: Vec<Vec<ServiceAddr>>,
    /// It is of a version that cannot be told.
    pub old_page_server: bool,
    /// It cannot begin to follow.
    pub follow_wal_fails: bool,
}

/// Where the making of a timeline is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    BeforePageServer,
    AfterPageServer,
    BeforeSafekeeper,
    AfterSafekeeper,
}

/// A call that is never answered.
fn held<T: 'static>() -> BoxFuture<'static, T> {
    Box::pin(std::future::pending())
}

impl FakeState {
    fn is_held(&mut self, at: Held) -> bool {
        self.reached |= self.held == Some(at);
        self.held == Some(at)
    }
}

pub struct Fakes {
    pub state: Mutex<FakeState>,
    /// How far the page server has ingested, and production has written.
    pub ingested: watch::Sender<Lsn>,
    pub production: watch::Sender<Lsn>,
    this: Weak<Fakes>,
}

impl Fakes {
    fn new() -> Arc<Self> {
        Arc::new_cyclic(|this| Fakes {
            this: this.clone(),
            state: Mutex::default(),
            ingested: watch::channel(Lsn::new(0x1000)).0,
            production: watch::channel(Lsn::new(0x1000)).0,
        })
    }

    pub fn timelines(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.page_server.len(), state.safekeeper.len())
    }
}

fn down(who: &str) -> StorageError {
    StorageError::new(StorageErrorKind::Unavailable, format!("the {who} does not answer"))
}

impl PageService for Fakes {
    fn addr(&self) -> ServiceAddr {
        ServiceAddr::Unix("/fake/pageserver.sock".into())
    }

    fn manage(&self, _tenant: TenantId, request: ManageRequest) -> BoxFuture<'_, Result<ManageReply, StorageError>> {
        let mut state = self.state.lock();
        let is_create = matches!(request, ManageRequest::CreateBranch { .. });
        if is_create && state.is_held(Held::BeforePageServer) {
            return held();
        }
        let answer = if state.page_server_down { Err(down("page server")) } else { self.answer(&mut state, request) };
        if is_create && state.is_held(Held::AfterPageServer) {
            return held();
        }
        Box::pin(async move { answer })
    }

    fn wait_lsn(
        &self,
        _tenant: TenantId,
        _timeline: TimelineId,
        lsn: Lsn,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Lsn, StorageError>> {
        let mut ingested = self.ingested.subscribe();
        Box::pin(async move {
            match tokio::time::timeout(timeout, ingested.wait_for(|at| *at >= lsn)).await {
                Ok(Ok(at)) => Ok(*at),
                _ => Err(StorageError::new(StorageErrorKind::Timeout, "not ingested yet")),
            }
        })
    }
}

impl Fakes {
    fn answer(&self, state: &mut FakeState, request: ManageRequest) -> Result<ManageReply, StorageError> {
        let missing = || StorageError::new(StorageErrorKind::NotFound, "no such timeline");
        let ingested = *self.ingested.borrow();
        match request {
            ManageRequest::BranchPoint { timeline, at } => {
                state.page_server.get(&timeline).ok_or_else(missing)?;
                Ok(ManageReply::Branch { lsn: at.unwrap_or(ingested), prev_lsn: Lsn::new(0xF00) })
            }
            ManageRequest::CreateBranch { timeline, ancestor, at, description } => {
                state.requests.push(format!("branch at {at:?}"));
                if !state.page_server.contains_key(&ancestor) {
                    return Err(missing());
                }
                let branch_lsn = state.begins_at.or(at).unwrap_or(ingested);
                let new = FakeTimeline { ancestor: Some(ancestor), branch_lsn, following: false };
                let made = state.page_server.entry(timeline).or_insert(new);
                state.descriptions.extend(description.map(|description| (timeline, description)));
                Ok(ManageReply::Branch { lsn: made.branch_lsn, prev_lsn: Lsn::new(0xF00) })
            }
            ManageRequest::Describe { timeline, description } => {
                state.page_server.get(&timeline).ok_or_else(missing)?;
                state.described.push(timeline);
                state.descriptions.insert(timeline, description);
                Ok(ManageReply::Done)
            }
            ManageRequest::DeleteTimeline { timeline } => {
                state.descriptions.remove(&timeline);
                if state.page_server.values().any(|other| other.ancestor == Some(timeline)) {
                    return Err(StorageError::new(StorageErrorKind::Conflict, "it has children"));
                }
                state.page_server.remove(&timeline).map(|_| ManageReply::Done).ok_or_else(missing)
            }
            ManageRequest::FindUnnamedFiles { timeline } => {
                state.page_server.get(&timeline).ok_or_else(missing)?;
                let left =
                    UnnamedRelation { tablespace: 1663, database: 5, file: 16_400, bytes: 8192, database_exists: true };
                let (found, bytes) = (1, left.bytes);
                Ok(ManageReply::UnnamedFiles(UnnamedFiles { lsn: ingested, found, bytes, relations: vec![left] }))
            }
            ManageRequest::TimelineStatus { timeline } => {
                state.status_asked += 1;
                let found = state.page_server.get(&timeline).ok_or_else(missing)?;
                Ok(ManageReply::Timeline(TimelineStatus {
                    timeline,
                    ancestor: found.ancestor,
                    ancestor_lsn: found.branch_lsn,
                    last_record_lsn: ingested,
                    prev_record_lsn: Lsn::new(0xF00),
                    disk_consistent_lsn: ingested,
                    retained_from_lsn: Lsn::new(1),
                    pg_major: 15,
                    logical_size_bytes: Some(8192),
                    problem: None,
                    pages_sent: 0,
                    stored_bytes: 100,
                    consistent_from_lsn: Lsn::new(0x1000),
                    following: found.following,
                    last_commit_us: Some(1_000_000),
                    oldest_lsn: Some(found.branch_lsn.max(Lsn::new(1))),
                    oldest_commit_us: Some(1),
                }))
            }
            ManageRequest::FollowWal { .. } if state.follow_wal_fails => Err(down("page server")),
            ManageRequest::NameSafekeepers { safekeepers } if !state.old_page_server => {
                state.named.push(safekeepers);
                Ok(ManageReply::Done)
            }
            ManageRequest::FollowWal { timeline, .. } => {
                state.page_server.get_mut(&timeline).ok_or_else(missing)?.following = true;
                Ok(ManageReply::Done)
            }
            ManageRequest::UnfollowWal { timeline } => {
                state.page_server.get_mut(&timeline).ok_or_else(missing)?.following = false;
                Ok(ManageReply::Done)
            }
            ManageRequest::RetireTimeline { timeline } => {
                state.page_server.get(&timeline).ok_or_else(missing)?;
                state.retired.push(timeline);
                Ok(ManageReply::Done)
            }
            ManageRequest::SetRetention { timeline, retention_s } => {
                state.page_server.get(&timeline).ok_or_else(missing)?;
                match retention_s {
                    Some(seconds) => state.retention_s.insert(timeline, seconds),
                    None => state.retention_s.remove(&timeline),
                };
                Ok(ManageReply::Done)
            }
            ManageRequest::LsnForTimestamp { timestamp_us, .. } if timestamp_us < state.oldest_us => {
                Err(StorageError::new(StorageErrorKind::OutOfRange, "the time lies before 0/00000001"))
            }
            ManageRequest::LsnForTimestamp { timestamp_us, .. } => {
                Ok(ManageReply::LsnForTimestamp { lsn: Lsn::new(timestamp_us as u64) })
            }
            ManageRequest::Lease { name, lsn, .. } => {
                state.leases.insert(name, lsn);
                Ok(ManageReply::Done)
            }
            other => Err(StorageError::new(StorageErrorKind::Failed, format!("not faked: {other:?}"))),
        }
    }
}

/// A timeline whose WAL cannot be archived.
pub fn stall(timeline: TimelineId) -> ArchiveStall {
    let message = "it holds other WAL".to_owned();
    ArchiveStall { tenant: TenantId::generate(), timeline, lsn: Lsn::new(0x0100_0000), for_s: 90, message }
}

fn second() -> ServiceAddr {
    ServiceAddr::Unix("/fake/safekeeper-2.sock".into())
}

impl WalService for Fakes {
    fn addrs(&self) -> Vec<ServiceAddr> {
        let first = || vec![ServiceAddr::Unix("/fake/safekeeper.sock".into()), second()];
        self.state.lock().members.list.as_ref().map_or_else(first, Membership::addresses)
    }

    fn membership(&self) -> Membership {
        self.state.lock().members.list.clone().unwrap_or_default()
    }

    fn members(&self) -> Option<&dyn MemberService> {
        Some(self)
    }

    fn create_branch(&self, branch: WalBranch) -> BoxFuture<'_, Result<Vec<ServiceAddr>, StorageError>> {
        let mut state = self.state.lock();
        if state.is_held(Held::BeforeSafekeeper) {
            return held();
        }
        let answer = if state.safekeeper_down {
            Err(down("safekeeper"))
        } else {
            state.safekeeper.insert(branch.timeline, branch);
            if state.second_away {
                Ok(vec![second()])
            } else {
                state.second.insert(branch.timeline);
                Ok(Vec::new())
            }
        };
        if state.is_held(Held::AfterSafekeeper) {
            return held();
        }
        Box::pin(async move { answer })
    }

    fn create_root(&self, root: WalBranch) -> BoxFuture<'_, Result<Vec<ServiceAddr>, StorageError>> {
        self.create_branch(root)
    }

    fn create_on<'a>(
        &'a self,
        safekeeper: &'a ServiceAddr,
        _tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'a, Result<(), StorageError>> {
        assert_eq!(*safekeeper, second());
        let mut state = self.state.lock();
        let answer = if state.second_away { Err(down("second safekeeper")) } else { Ok(()) };
        if answer.is_ok() {
            assert!(state.safekeeper.contains_key(&timeline), "the others have it");
            state.second.insert(timeline);
        }
        Box::pin(async move { answer })
    }

    fn delete_timeline(
        &self,
        _tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'_, Result<Vec<ServiceAddr>, StorageError>> {
        let mut state = self.state.lock();
        let answer = if state.safekeeper_down {
            Err(down("safekeeper"))
        } else {
            state.safekeeper.remove(&timeline);
            if state.second_away {
                Ok(vec![second()])
            } else {
                state.second.remove(&timeline);
                Ok(Vec::new())
            }
        };
        Box::pin(async move { answer })
    }

    fn safekeepers(&self) -> BoxFuture<'_, Vec<(ServiceAddr, Result<SafekeeperStatus, StorageError>)>> {
        let addresses = self.addrs();
        let state = self.state.lock();
        let first = SafekeeperStatus {
            disk_free_bytes: 1 << 30,
            disk_size_bytes: 2 << 30,
            kept_for_others_bytes: 0,
            archives: true,
            archive_stalls_total: state.archive_stalls.len() as u64,
            archive_stalls: state.archive_stalls.clone(),
        };
        let of_second = if state.second_away { Err(down("second safekeeper")) } else { Ok(first.clone()) };
        let all = addresses.into_iter().map(|address| {
            let said = if address == second() { of_second.clone() } else { Ok(first.clone()) };
            (address, said)
        });
        let all = all.collect();
        Box::pin(async move { all })
    }

    fn delete_on<'a>(
        &'a self,
        safekeeper: &'a ServiceAddr,
        _tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'a, Result<(), StorageError>> {
        assert_eq!(*safekeeper, second());
        let mut state = self.state.lock();
        let answer = if state.second_away { Err(down("second safekeeper")) } else { Ok(()) };
        if answer.is_ok() {
            state.second.remove(&timeline);
        }
        Box::pin(async move { answer })
    }

    fn log_end(&self, _tenant: TenantId, timeline: TimelineId) -> BoxFuture<'_, Result<Option<LogEnd>, StorageError>> {
        let state = self.state.lock();
        let found = state.safekeeper.get(&timeline).map(|branch| {
            let commit_lsn = branch.start_lsn;
            LogEnd { commit_lsn, flush_lsn: state.left_by_crash.get(&timeline).map_or(commit_lsn, |left| *left) }
        });
        Box::pin(async move { Ok(found) })
    }
}

impl LogicalRuntime for Fakes {
    fn preflight<'a>(
        &'a self,
        url: &'a str,
        _options: &'a LogicalOptions,
    ) -> BoxFuture<'a, Result<Vec<PreflightCheck>, ErrorInfo>> {
        ConnectorRuntime::preflight(self, url)
    }

    fn begin(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<Imported, ErrorInfo>> {
        let mut state = self.state.lock();
        state.logical_begun += 1;
        let root = FakeTimeline { ancestor: None, branch_lsn: Lsn::INVALID, following: false };
        state.page_server.insert(spec.timeline, root);
        Box::pin(async move { Ok(Imported { pg_major: 15, superuser: None, settings: BTreeMap::new(), away: vec![] }) })
    }

    fn run(
        &self,
        spec: ConnectorSpec,
        root: Arc<dyn RootBranch>,
        cancel: CancellationToken,
        _problem: watch::Sender<Option<String>>,
    ) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        let mut state = self.state.lock();
        state.slots = state.slots.max(1);
        state.logical_running.push(spec.timeline);
        Box::pin(async move {
            if root.saved()?.is_none() {
                root.save("copying")?;
            }
            cancel.cancelled().await;
            Ok(())
        })
    }

    fn status(&self, timeline: TimelineId) -> Option<LogicalStatus> {
        let state = self.state.lock();
        let is_ready = !state.copy_held;
        let phase = if is_ready { "follow" } else { "copy" }.to_owned();
        let status = LogicalStatus { phase, is_ready, progress: (5, 10), ..LogicalStatus::default() };
        state.logical_running.contains(&timeline).then_some(status)
    }

    fn bring_current(&self, _spec: ConnectorSpec) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        let down = self.state.lock().production_down;
        let refused = ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, "connection refused");
        Box::pin(async move { if down { Err(refused) } else { Ok(()) } })
    }

    fn add_tables(
        &self,
        _spec: ConnectorSpec,
        _root: Arc<dyn RootBranch>,
        names: Vec<String>,
    ) -> BoxFuture<'static, Result<AddTablesReply, ErrorInfo>> {
        let reply = AddTablesReply {
            schema_version: 1,
            name: String::new(),
            at_lsn: None,
            added: names,
            skipped: Vec::new(),
            left_out: Vec::new(),
        };
        Box::pin(async move { Ok(reply) })
    }

    fn verify(
        &self,
        _spec: ConnectorSpec,
        _root: Arc<dyn RootBranch>,
    ) -> BoxFuture<'static, Result<VerifyReply, ErrorInfo>> {
        let at_lsn = *self.production.borrow();
        let reply = VerifyReply {
            schema_version: 1,
            name: String::new(),
            at_lsn,
            equal: true,
            tables: vec![],
            sequences_behind: vec![],
            not_followed: vec![],
            schema_differences: vec![],
        };
        Box::pin(async move { Ok(reply) })
    }

    fn run_on_root(
        &self,
        _spec: ConnectorSpec,
        _root: Arc<dyn RootBranch>,
        sql: String,
    ) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        self.state.lock().ran_on_root.push(sql);
        Box::pin(async move { Ok(()) })
    }

    fn can_follow(&self, spec: ConnectorSpec, _applied: Option<Lsn>) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        ConnectorRuntime::can_follow(self, spec)
    }

    fn delete(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        ConnectorRuntime::delete(self, spec)
    }
}

impl ConnectorRuntime for Fakes {
    fn preflight<'a>(&'a self, _url: &'a str) -> BoxFuture<'a, Result<Vec<PreflightCheck>, ErrorInfo>> {
        let outcome = if self.state.lock().preflight_fails { CheckOutcome::Failed } else { CheckOutcome::Ok };
        let check = PreflightCheck {
            name: "replication_privilege".into(),
            outcome,
            message: "role app may not replicate".into(),
            fix: Some("ALTER ROLE app REPLICATION".into()),
        };
        Box::pin(async move { Ok(vec![check]) })
    }

    fn import(
        &self,
        spec: ConnectorSpec,
        progress: mpsc::Sender<ImportProgress>,
    ) -> BoxFuture<'static, Result<Imported, ErrorInfo>> {
        assert!(spec.url.contains("s3cret"), "the runtime gets the whole URL");
        let mut production = self.production.subscribe();
        let held = {
            let mut state = self.state.lock();
            state.slots += 1;
            let root = FakeTimeline { ancestor: None, branch_lsn: Lsn::INVALID, following: false };
            state.page_server.insert(spec.timeline, root);
            state.import_held
        };
        let fails = self.state.lock().import_fails;
        Box::pin(async move {
            let step = ImportProgress { phase: "copy".into(), bytes_done: 5, bytes_total: 10 };
            let _ = progress.send(step).await;
            if held {
                let _ = production.changed().await;
            }
            if fails {
                let message = "the source closed the connection in the middle of the copy";
                return Err(ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, message));
            }
            Ok(Imported { pg_major: 15, superuser: Some("root".into()), settings: BTreeMap::new(), away: vec![] })
        })
    }

    fn follow(
        &self,
        spec: ConnectorSpec,
        cancel: CancellationToken,
        _problem: watch::Sender<Option<String>>,
    ) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        let mut state = self.state.lock();
        state.followers += 1;
        state.followed_url = spec.url;
        let fakes = self.this.upgrade().expect("it answers");
        Box::pin(async move {
            cancel.cancelled().await;
            fakes.state.lock().followers -= 1;
            Ok(())
        })
    }

    fn production_flush_lsn(&self, _spec: ConnectorSpec) -> BoxFuture<'static, Result<Lsn, ErrorInfo>> {
        let answer = if self.state.lock().production_down {
            Err(ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, "connection refused"))
        } else {
            Ok(*self.production.borrow())
        };
        Box::pin(async move { answer })
    }

    fn slot(&self, _spec: ConnectorSpec) -> BoxFuture<'static, Result<Option<SlotInfo>, ErrorInfo>> {
        let state = self.state.lock();
        let refused = ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, "connection refused");
        let answer = if state.production_down { Err(refused) } else { Ok(state.slot.clone()) };
        Box::pin(async move { answer })
    }

    fn can_follow(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        let is_other = spec.url.contains("other.example");
        assert_eq!(self.state.lock().followers, 0, "nobody follows meanwhile");
        let other = ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, "the server is another cluster");
        Box::pin(async move { if is_other { Err(other) } else { Ok(()) } })
    }

    fn delete(&self, _spec: ConnectorSpec) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        let mut state = self.state.lock();
        let answer = if state.production_down {
            Err(ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, "connection refused"))
        } else {
            state.slots = state.slots.saturating_sub(1);
            Ok(())
        };
        Box::pin(async move { answer })
    }
}

/// A data directory, its fakes, and control while it runs.
pub struct World {
    pub folder: tempfile::TempDir,
    pub fakes: Arc<Fakes>,
    pub token: String,
    /// How long deleted branches and history are kept, from the next start on.
    pub keep_deleted: Duration,
    pub retention: Duration,
    /// What suspended computes may leave, from the next start on.
    pub warm_bytes_max: Option<u64>,
    running: Option<RunningControl>,
    /// Control's own, so that it can end as in a crash.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.crash();
    }
}

impl World {
    pub async fn new() -> World {
        let folder = tempfile::tempdir().expect("folder");
        let mut world = World {
            folder,
            fakes: Fakes::new(),
            token: String::new(),
            keep_deleted: Duration::ZERO,
            retention: Duration::from_secs(7 * 86_400),
            warm_bytes_max: None,
            running: None,
            runtime: None,
        };
        world.start().await;
        world.token = world.control().new_user_token("test").expect("token");
        world
    }

    /// Stops control, and starts it again with deleted branches kept for this long.
    pub async fn keep_deleted_for(&mut self, keep_deleted: Duration) {
        self.stop().await;
        self.keep_deleted = keep_deleted;
        self.start().await;
    }

    /// A world with one connector named `shop`.
    pub async fn connected() -> World {
        let world = World::new().await;
        let events = world.connect("shop").await;
        assert_eq!(events.last().expect("events")["event"], "done", "{events:?}");
        world
    }

    pub fn config(&self) -> ControlConfig {
        let root = self.folder.path();
        let agent = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/world/fake-agent.sh");
        ControlConfig {
            data_dir: root.to_owned(),
            listen: "127.0.0.1:0".parse().expect("address"),
            public: PublicAddress { host: "localhost".into(), port: 7432, wildcard: true },
            proxy_address: "127.0.0.1".into(),
            ca_file: root.join("keys/ca.pem"),
            pool: PoolConfig {
                computes_dir: root.join("computes"),
                agent_command: vec![OsString::from("sh"), agent.into()],
                lib_dir: root.join("lib"),
                pg_bin_dirs: BTreeMap::new(),
                sandbox: Sandbox::None,
                first_uid: None,
                limits: ardent_api::compute::ComputeLimits::default(),
                warm_bytes_max: self.warm_bytes_max,
                statement_log: ardent_control::StatementLogs { dir: root.join("logs"), bytes_max: 0 },
                wake_timeout: Duration::from_secs(20),
                stop_deadline: Duration::from_secs(5),
            },
            retention: self.retention,
            keep_deleted: self.keep_deleted,
            slot_bytes_warn: 100 << 20,
        }
    }

    pub async fn start(&mut self) {
        let dependencies = Dependencies {
            page_service: self.fakes.clone(),
            wal_service: self.fakes.clone(),
            safekeeper_host: Some(self.fakes.clone()),
            connectors: self.fakes.clone(),
            logical: self.fakes.clone(),
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        let starting = runtime.spawn(Control::start(self.config(), dependencies, CancellationToken::new()));
        self.running = Some(starting.await.expect("no panic").expect("control starts"));
        self.runtime = Some(runtime);
    }

    pub async fn stop(&mut self) {
        if let Some((running, runtime)) = self.running.take().zip(self.runtime.as_ref()) {
            runtime.spawn(running.shutdown()).await.expect("no panic");
        }
        self.crash();
    }

    /// Ends control where it stands: no task goes on, nothing is tidied up.
    pub fn crash(&mut self) {
        self.running = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub fn control(&self) -> &Arc<Control> {
        self.running.as_ref().expect("it runs").control()
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("run/control.sock")
    }

    /// A request on TCP with the token; status and body.
    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let (status, text) = self.call_raw(method, path, body, Some(&self.token)).await;
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    pub async fn call_raw(&self, method: &str, path: &str, body: Option<Value>, token: Option<&str>) -> (u16, String) {
        let address = self.running.as_ref().expect("it runs").address();
        let stream = tokio::net::TcpStream::connect(address).await.expect("connects");
        request(stream, method, path, body, token).await
    }

    /// A request on the Unix socket without a token.
    pub async fn internal(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let stream = tokio::net::UnixStream::connect(self.socket()).await.expect("connects");
        let (status, text) = request(stream, method, path, body, None).await;
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, value) = self.call("GET", path, None).await;
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    pub async fn create_branch(&self, body: Value) -> Value {
        let (status, value) = self.call("POST", "/v1/branches", Some(body)).await;
        assert_eq!(status, 200, "{value}");
        value
    }

    /// Creates a connector; the lines that came.
    pub async fn connect(&self, name: &str) -> Vec<Value> {
        let body = json!({ "name": name, "url": SOURCE });
        let (_, text) = self.call_raw("POST", "/v1/connectors", Some(body), Some(&self.token)).await;
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    }

    pub async fn fails(&self, method: &str, path: &str, body: Option<Value>, code: ApiErrorCode) -> Value {
        let (status, value) = self.call(method, path, body).await;
        assert_eq!(value["error"]["code"], code.as_str(), "{value}");
        assert_eq!(status, code.http_status());
        assert_eq!(value["schema_version"], 1);
        value["error"].clone()
    }

    /// The folder of the branch's compute, once it was started.
    pub fn compute_dir(&self, branch: &str) -> Option<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path().join("computes")).expect("folder");
        entries.filter_map(Result::ok).map(|entry| entry.path()).find(|path| {
            let spec = std::fs::read_to_string(path.with_extension("spec")).unwrap_or_default();
            path.is_dir() && spec.contains(&format!("\"branch\":\"{branch}\""))
        })
    }

    /// Process ids of the agents that were started for the branch, in order.
    pub fn starts(&self, branch: &str) -> Vec<i32> {
        let text = self.compute_dir(branch).map(|dir| std::fs::read_to_string(dir.join("starts")).unwrap_or_default());
        text.unwrap_or_default().lines().map(|line| line.parse().expect("a process id")).collect()
    }
}

async fn request<S>(stream: S, method: &str, path: &str, body: Option<Value>, token: Option<&str>) -> (u16, String)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("handshake");
    let connection = tokio::spawn(connection);
    let mut request = hyper::Request::builder().method(method).uri(path).header("host", "ardent");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let bytes = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
    let request = request.body(Full::new(bytes)).expect("request");
    let response = sender.send_request(request).await.expect("an answer");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("the whole body").to_bytes();
    connection.abort();
    (status, String::from_utf8(body.to_vec()).expect("text"))
}

/// Waits until `holds`, for at most 20 seconds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
