//! Storage and production in memory: what they hold, and what tests set of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Barrier, watch};

use ardent_api::addr::ServiceAddr;
use ardent_api::control::SlotInfo;
use ardent_api::wal_service::ArchiveStall;
use ardent_control::deps::{StorageError, StorageErrorKind, WalBranch};
use ardent_types::{Lsn, TimelineId};

use super::members::FakeMembers;

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
    pub members: FakeMembers,
    /// Safekeepers that are asked how they are meet the test here, and again before they answer.
    pub answer_held: Option<Arc<Barrier>>,
    /// Where the page server was told that the safekeepers are, each time.
    pub named: Vec<Vec<ServiceAddr>>,
    /// It is of a version that cannot be told.
    pub old_page_server: bool,
    /// It cannot begin to follow.
    pub follow_wal_fails: bool,
    /// What of the page server's own work fails.
    pub page_server_problems: Vec<(TimelineId, String)>,
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
pub(super) fn held<T: 'static>() -> BoxFuture<'static, T> {
    Box::pin(std::future::pending())
}

impl FakeState {
    pub(super) fn is_held(&mut self, at: Held) -> bool {
        self.reached |= self.held == Some(at);
        self.held == Some(at)
    }
}

pub struct Fakes {
    pub state: Mutex<FakeState>,
    /// How far the page server has ingested, and production has written.
    pub ingested: watch::Sender<Lsn>,
    pub production: watch::Sender<Lsn>,
    pub(super) this: Weak<Fakes>,
}

impl Fakes {
    pub(super) fn new() -> Arc<Self> {
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

pub(super) fn down(who: &str) -> StorageError {
    StorageError::new(StorageErrorKind::Unavailable, format!("the {who} does not answer"))
}
