//! What control needs of others, as traits: storage and connectors are other services, which it knows by these only.
//! The program that runs all roles brings the real ones.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use ardent_api::addr::ServiceAddr;
use ardent_api::control::{
    AddTablesReply, ApiErrorCode, ErrorInfo, LogicalOptions, PreflightCheck, SkippedTable, SlotInfo, VerifyReply,
};
use ardent_api::page_service::{ManageReply, ManageRequest};
use ardent_api::wal_service::{
    CopySource, Member, MemberStanding, Membership, PromisedTerm, SafekeeperStatus, TimelineStatus,
};
use ardent_types::{DiskId, Lsn, TenantId, TimelineId};

/// How a storage service failed, as far as control acts differently on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageErrorKind {
    /// The timeline is not there.
    NotFound,
    /// The LSN is not there: ahead of the end, or below what is kept.
    OutOfRange,
    /// It forbids this: children, in use.
    Conflict,
    /// The deadline passed.
    Timeout,
    /// It does not answer.
    Unavailable,
    /// Anything else.
    Failed,
}

/// A page server or safekeeper could not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct StorageError {
    /// Kind.
    pub kind: StorageErrorKind,
    /// What failed and why, with the service's own words.
    pub message: String,
}

impl StorageError {
    /// An error of this kind.
    pub fn new(kind: StorageErrorKind, message: impl Into<String>) -> Self {
        StorageError { kind, message: message.into() }
    }
}

impl From<StorageError> for ErrorInfo {
    fn from(error: StorageError) -> ErrorInfo {
        let (code, hint) = match error.kind {
            StorageErrorKind::NotFound => (ApiErrorCode::NotFound, None),
            StorageErrorKind::OutOfRange => {
                (ApiErrorCode::InvalidArguments, Some("choose another point: ardent branch info shows which are there"))
            }
            StorageErrorKind::Conflict => (ApiErrorCode::Conflict, None),
            StorageErrorKind::Timeout => (ApiErrorCode::Timeout, Some("the same command again goes on waiting")),
            StorageErrorKind::Unavailable => (
                ApiErrorCode::StorageUnavailable,
                Some(
                    "nothing was changed: give the command again when that is mended; ardent status and the server's log may say more",
                ),
            ),
            StorageErrorKind::Failed => {
                (ApiErrorCode::Internal, Some("ardent status and the server's log may say more"))
            }
        };
        let info = ErrorInfo::new(code, error.message);
        match hint {
            Some(hint) => info.with_hint(hint),
            None => info,
        }
    }
}

/// The page server, as control uses it.
pub trait PageService: Send + Sync {
    /// Its address, for computes and connectors.
    fn addr(&self) -> ServiceAddr;
    /// A management request within `tenant`.
    fn manage(&self, tenant: TenantId, request: ManageRequest) -> BoxFuture<'_, Result<ManageReply, StorageError>>;
    /// Waits until `timeline` is ingested up to `lsn`; gives the end of the last record ingested.
    fn wait_lsn(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        lsn: Lsn,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Lsn, StorageError>>;
    /// What of its own work fails now, by timeline. Of one in another process nothing is known here: that tells it itself.
    fn problems(&self) -> Vec<(TimelineId, String)> {
        Vec::new()
    }
}

/// How far the safekeepers' log of a timeline goes, by those that answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// Up to where one of them knows it to be committed. After a crash that may be less than what was: see `flush_lsn`.
    pub commit_lsn: Lsn,
    /// Up to where one of them has it. What is committed lies below.
    pub flush_lsn: Lsn,
}

/// A branch's timeline, to be made on the safekeepers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalBranch {
    /// Tenant.
    pub tenant: TenantId,
    /// The new timeline.
    pub timeline: TimelineId,
    /// The timeline that it leaves.
    pub ancestor: TimelineId,
    /// Where: a record end.
    pub start_lsn: Lsn,
    /// Start of the record that ends there.
    pub prev_lsn: Lsn,
}

/// The safekeepers, as control uses them.
pub trait WalService: Send + Sync {
    /// Their addresses, for computes, connectors and the page server.
    fn addrs(&self) -> Vec<ServiceAddr>;
    /// Makes a branch's timeline on a quorum. Gives those that are to be made to have it yet, by [`WalService::create_on`]. Idempotent.
    fn create_branch(&self, branch: WalBranch) -> BoxFuture<'_, Result<Vec<ServiceAddr>, StorageError>>;
    /// Makes a root like the ancestor, which it does not hang on: nothing before its start can be had from it. Otherwise as
    /// [`WalService::create_branch`].
    fn create_root(&self, root: WalBranch) -> BoxFuture<'_, Result<Vec<ServiceAddr>, StorageError>>;
    /// Makes a timeline, that others have, on one that never had it: one that had it once and lost it must not get it again, as it
    /// would have forgotten what it promised.
    fn create_on<'a>(
        &'a self,
        safekeeper: &'a ServiceAddr,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'a, Result<(), StorageError>>;
    /// Forgets a timeline and its WAL on a quorum; fine if it is not there. Gives those that may have it yet.
    fn delete_timeline(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'_, Result<Vec<ServiceAddr>, StorageError>>;
    /// Forgets a timeline on one of them; fine if it is not there.
    fn delete_on<'a>(
        &'a self,
        safekeeper: &'a ServiceAddr,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'a, Result<(), StorageError>>;
    /// How far the timeline's WAL goes; `None` if the timeline is not there.
    fn log_end(&self, tenant: TenantId, timeline: TimelineId) -> BoxFuture<'_, Result<Option<LogEnd>, StorageError>>;
    /// Up to where a quorum is known to hold it.
    fn commit_lsn(&self, tenant: TenantId, timeline: TimelineId) -> BoxFuture<'_, Result<Option<Lsn>, StorageError>> {
        let end = self.log_end(tenant, timeline);
        Box::pin(async move { Ok(end.await?.map(|end| end.commit_lsn)) })
    }
    /// How each of them is, in their order.
    fn safekeepers(&self) -> BoxFuture<'_, Vec<(ServiceAddr, Result<SafekeeperStatus, StorageError>)>>;
    /// Who they are, once they were changed; of generation 0 before.
    fn membership(&self) -> Membership {
        Membership::default()
    }
    /// How they are changed; `None` where they cannot be.
    fn members(&self) -> Option<&dyn MemberService> {
        None
    }
}

/// What is asked of single safekeepers, members or not, while members change. Where a member is meant, whoever else answers at its address is not
/// asked: that is [`StorageErrorKind::Unavailable`].
pub trait MemberService: Send + Sync {
    /// From now on these are they. A list that is older than the one that is known is passed over.
    fn set_membership(&self, membership: Membership);
    /// These are copying what the members have: what is deleted meanwhile is deleted there as well. Until the next [`MemberService::set_membership`] of
    /// a later list.
    fn set_joining(&self, joining: Vec<Member>);
    /// Which disk is there.
    fn identify<'a>(&'a self, at: &'a ServiceAddr) -> BoxFuture<'a, Result<DiskId, StorageError>>;
    /// Whether no timeline is there.
    fn is_empty<'a>(&'a self, at: &'a ServiceAddr) -> BoxFuture<'a, Result<bool, StorageError>>;
    /// Facts about a timeline there.
    fn timeline_status<'a>(
        &'a self,
        of: &'a Member,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'a, Result<TimelineStatus, StorageError>>;
    /// Lets it copy a timeline. May take long.
    fn copy_timeline<'a>(&'a self, to: &'a Member, source: CopySource) -> BoxFuture<'a, Result<(), StorageError>>;
    /// Lets it forget a timeline; ends the copy of it that it is making.
    fn forget_timeline<'a>(
        &'a self,
        of: &'a Member,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'a, Result<(), StorageError>>;
    /// Tells it who the members of a timeline are, and what was promised; gives where it stands.
    fn configure<'a>(
        &'a self,
        of: &'a Member,
        timeline: (TenantId, TimelineId),
        membership: &'a Membership,
        promise: Option<PromisedTerm>,
    ) -> BoxFuture<'a, Result<MemberStanding, StorageError>>;
    /// Has a writer elected that writes nothing: it completes the log on the members, and tells where that ends. It is one until it is dropped.
    fn elect(
        &self,
        timeline: (TenantId, TimelineId),
        membership: Membership,
        token: String,
    ) -> BoxFuture<'_, Result<(Box<dyn std::any::Any + Send + Sync>, Lsn), StorageError>>;
}

/// Who can start safekeepers on folders of the server's own.
pub trait SafekeeperHost: Send + Sync {
    /// Those that it runs or should run, with their numbers, from 1.
    fn own(&self) -> Vec<(u32, ServiceAddr)>;
    /// Starts one more, on a folder that no other had. It is one that is to join: [`SafekeeperHost::keep`] says that it has.
    fn add(&self) -> BoxFuture<'_, Result<ServiceAddr, ErrorInfo>>;
    /// It is a member now. Fine if it does not run it.
    fn keep<'a>(&'a self, address: &'a ServiceAddr) -> BoxFuture<'a, Result<(), ErrorInfo>>;
    /// Stops one that it runs, and never starts it again; of one that was only to join the folder goes as well. Fine if it does not run it.
    fn remove<'a>(&'a self, address: &'a ServiceAddr) -> BoxFuture<'a, Result<(), ErrorInfo>>;
}

/// One connector, as its runtime needs to know it.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectorSpec {
    /// Its name.
    pub name: String,
    /// Tenant.
    pub tenant: TenantId,
    /// Root timeline.
    pub timeline: TimelineId,
    /// The production server's URL with its password.
    pub url: String,
    /// Ask for an immediate checkpoint.
    pub fast: bool,
    /// Most bytes per second of the base backup.
    pub max_rate_bytes: Option<u64>,
    /// Page server.
    pub pageserver: ServiceAddr,
    /// Safekeepers.
    pub safekeepers: Vec<ServiceAddr>,
    /// Who they are, once they were changed.
    pub members: Membership,
    /// Service token with the right to import.
    pub token: String,
    /// What is copied, if it follows by logical replication.
    pub logical: Option<LogicalOptions>,
}

impl std::fmt::Debug for ConnectorSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectorSpec")
            .field("name", &self.name)
            .field("tenant", &self.tenant)
            .field("timeline", &self.timeline)
            .finish_non_exhaustive()
    }
}

/// How far an import is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportProgress {
    /// `checkpoint`, `copy`, ...
    pub phase: String,
    /// Bytes copied.
    pub bytes_done: u64,
    /// Bytes to copy, an estimate; 0: not known.
    pub bytes_total: u64,
    /// Transactions of the source's that have to end before it goes on.
    pub waits_for: Vec<String>,
}

/// What an import found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Major version of the source.
    pub pg_major: u32,
    /// Name of the bootstrap superuser, if it is not `postgres`.
    pub superuser: Option<String>,
    /// Settings that computes of this tenant get.
    pub settings: BTreeMap<String, String>,
    /// The safekeepers that have yet to be told of the root timeline.
    pub away: Vec<ServiceAddr>,
}

/// What runs connectors.
pub trait ConnectorRuntime: Send + Sync {
    /// Looks at a server that may become a source. Failing checks are part of the answer; an error means that it could not
    /// be looked at.
    fn preflight<'a>(&'a self, url: &'a str) -> BoxFuture<'a, Result<Vec<PreflightCheck>, ErrorInfo>>;
    /// Copies the source into the root timeline, on page server and safekeepers, and makes its replication slot. Dropped or
    /// failed in the middle, [`Self::delete`] clears the slot away.
    fn import(
        &self,
        spec: ConnectorSpec,
        progress: mpsc::Sender<ImportProgress>,
    ) -> BoxFuture<'static, Result<Imported, ErrorInfo>>;
    /// Streams WAL into the root timeline until cancelled, reconnecting by itself; what is in its way it says in `problem`
    /// while it lasts. An error is one that waiting does not mend.
    fn follow(
        &self,
        spec: ConnectorSpec,
        cancel: CancellationToken,
        problem: watch::Sender<Option<String>>,
    ) -> BoxFuture<'static, Result<(), ErrorInfo>>;
    /// Where production's WAL is flushed to at this moment.
    fn production_flush_lsn(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<Lsn, ErrorInfo>>;
    /// What the source says about the connector's slot, of either mode; `None` if it has none.
    fn slot(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<Option<SlotInfo>, ErrorInfo>>;
    /// Whether the server at the URL has the WAL that follows on what the root timeline holds. Its slot is there afterwards. To be
    /// asked while nobody follows.
    fn can_follow(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<(), ErrorInfo>>;
    /// Drops the replication slot on the source. Fine if it is not there.
    fn delete(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<(), ErrorInfo>>;
}

/// Where a branch's Postgres listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresAt {
    /// Folder of its socket.
    pub socket_dir: PathBuf,
    /// The number in the socket's name.
    pub port: u16,
}

/// The root branch of a connector in logical mode, as what runs the connector uses it.
pub trait RootBranch: Send + Sync {
    /// Its Postgres, started if need be.
    fn wake(&self) -> BoxFuture<'_, Result<PostgresAt, ErrorInfo>>;
    /// What [`RootBranch::save`] was given last.
    fn saved(&self) -> Result<Option<String>, ErrorInfo>;
    /// Remembers how far the connector is. Durable when it returns.
    fn save(&self, state: &str) -> Result<(), ErrorInfo>;
    /// What [`RootBranch::save_script`] was given last.
    fn script(&self) -> Result<String, ErrorInfo>;
    /// Remembers SQL that is to be run later. Durable when it returns.
    fn save_script(&self, script: &str) -> Result<(), ErrorInfo>;
}

/// How a connector in logical mode is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogicalStatus {
    /// `schema`, `copy`, `index`, `catch_up`, `constraints`, `follow`.
    pub phase: String,
    /// The import is over: branches can be made.
    pub is_ready: bool,
    /// Bytes or statements that the phase has done, and all of them; 0: not known.
    pub progress: (u64, u64),
    /// Tables that are followed.
    pub tables: u64,
    /// All that production had committed up to this of its LSNs is on the root branch; absent: not known yet.
    pub applied_lsn: Option<Lsn>,
    /// For how long something has been missing; absent: something always was.
    pub lag: Option<Duration>,
    /// What production has and the root branch has not.
    pub left_out: Vec<String>,
    /// Tables that are new on production, and can be taken over.
    pub new_tables: Vec<String>,
    /// Why they could not be, where that was tried.
    pub adding_error: Option<String>,
    /// Tables that are new on production, and cannot be taken over as they are.
    pub not_followed: Vec<SkippedTable>,
    /// What else changed in production's schema, each with what to do.
    pub schema_changes: Vec<String>,
    /// Why production's schema cannot be looked at, where that has failed for a while.
    pub look_error: Option<String>,
    /// How old what is said of production's schema is, if that is more than a few seconds.
    pub look_age: Option<Duration>,
    /// Transactions of production's that have to end before it goes on.
    pub waits_for: Vec<String>,
}

/// What runs connectors in logical mode.
pub trait LogicalRuntime: Send + Sync {
    /// Looks at a server that may become a source.
    fn preflight<'a>(
        &'a self,
        url: &'a str,
        options: &'a LogicalOptions,
    ) -> BoxFuture<'a, Result<Vec<PreflightCheck>, ErrorInfo>>;
    /// Makes the root timeline, on page server and safekeepers, out of an empty cluster like the source's.
    fn begin(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<Imported, ErrorInfo>>;
    /// Copies what is not copied yet and applies changes until cancelled, reconnecting by itself; what is in its way it says in
    /// `problem` while it lasts. An error is one that waiting does not mend.
    fn run(
        &self,
        spec: ConnectorSpec,
        root: Arc<dyn RootBranch>,
        cancel: CancellationToken,
        problem: watch::Sender<Option<String>>,
    ) -> BoxFuture<'static, Result<(), ErrorInfo>>;
    /// How the connector of a root timeline is, or was when it ran last; `None`: it has not run yet.
    fn status(&self, timeline: TimelineId) -> Option<LogicalStatus>;
    /// Waits until the root branch has committed all that production has committed at this moment.
    fn bring_current(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<(), ErrorInfo>>;
    /// Has production's schema looked at, unless that was done within the last second: [`Self::status`] says then what is there. Where it
    /// fails for a while, that says so as well.
    fn look(&self, timeline: TimelineId) -> BoxFuture<'static, Result<(), ErrorInfo>>;
    /// Holds production and the root branch against one another.
    fn verify(
        &self,
        spec: ConnectorSpec,
        root: Arc<dyn RootBranch>,
    ) -> BoxFuture<'static, Result<VerifyReply, ErrorInfo>>;
    /// Runs statements on the root branch, in one transaction. To be asked while nothing is applied.
    fn run_on_root(
        &self,
        spec: ConnectorSpec,
        root: Arc<dyn RootBranch>,
        sql: String,
    ) -> BoxFuture<'static, Result<(), ErrorInfo>>;
    /// Takes over tables that are new on the source: those with these names, or all.
    fn add_tables(
        &self,
        spec: ConnectorSpec,
        root: Arc<dyn RootBranch>,
        names: Vec<String>,
    ) -> BoxFuture<'static, Result<AddTablesReply, ErrorInfo>>;
    /// Whether the server at the URL has the connector's slot and publication, and all changes that follow on those up to `applied`.
    fn can_follow(&self, spec: ConnectorSpec, applied: Option<Lsn>) -> BoxFuture<'static, Result<(), ErrorInfo>>;
    /// Drops slot and publication on the source. Fine if they are not there.
    fn delete(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<(), ErrorInfo>>;
}
