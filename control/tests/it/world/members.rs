//! Safekeepers that can be changed: what is asked of each, and where a change is held.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};

use ardent_api::addr::ServiceAddr;
use ardent_api::control::{ChangePhase, ErrorInfo};
use ardent_api::wal_service::{
    CopySource, Member, MemberStanding, Membership, PromisedTerm, ProposerId, TimelineSpec, TimelineStatus,
};
use ardent_control::deps::{MemberService, SafekeeperHost, StorageError, StorageErrorKind};
use ardent_types::{DiskId, Lsn, MemberGeneration, PgTli, SystemId, TenantId, Term, TimelineId, WalSegmentSize};

use super::Fakes;

/// What is known of them.
#[derive(Default)]
pub struct FakeMembers {
    /// What control goes by; `None` as long as it was not told of a change.
    pub list: Option<Membership>,
    pub joining: Vec<Member>,
    /// Those that the server started itself, and what became of them.
    pub own: Vec<(u32, ServiceAddr)>,
    pub kept: BTreeSet<String>,
    pub removed: BTreeSet<String>,
    /// What those that join have.
    pub copied: BTreeSet<(String, TimelineId)>,
    /// Those without anything.
    pub blank: BTreeSet<String>,
    /// The first two say that they have no timeline.
    pub lost: bool,
    /// The last list that each was told.
    pub told: BTreeMap<String, Membership>,
    /// A change goes no further than what it does in this phase.
    pub hold: Option<ChangePhase>,
    /// Whether it has come there.
    pub reached: bool,
}

pub fn address(number: usize) -> ServiceAddr {
    let name = if number == 1 { "safekeeper".to_owned() } else { format!("safekeeper-{number}") };
    ServiceAddr::Unix(format!("/fake/{name}.sock").into())
}

fn disk_at(at: &ServiceAddr) -> DiskId {
    let fold = |sum: u128, byte: u8| sum.wrapping_mul(257).wrapping_add(u128::from(byte));
    DiskId::new(at.to_string().bytes().fold(0, fold))
}

impl Fakes {
    fn has(&self, of: &Member, timeline: TimelineId) -> Result<(), StorageError> {
        let state = self.state.lock();
        let is_first = [address(1), address(2)].contains(&of.address);
        let has = match is_first {
            true => state.page_server.contains_key(&timeline) && !state.members.lost,
            false => state.members.copied.contains(&(of.address.to_string(), timeline)),
        };
        if has { Ok(()) } else { Err(StorageError::new(StorageErrorKind::NotFound, "it does not have the timeline")) }
    }

    /// Until the test lets it go on.
    async fn pass(&self, phase: ChangePhase) {
        loop {
            {
                let mut state = self.state.lock();
                if state.members.hold != Some(phase) {
                    return;
                }
                state.members.reached = true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl MemberService for Fakes {
    fn set_membership(&self, membership: Membership) {
        self.state.lock().members.list = Some(membership);
    }

    fn set_joining(&self, joining: Vec<Member>) {
        self.state.lock().members.joining = joining;
    }

    fn identify<'a>(&'a self, at: &'a ServiceAddr) -> BoxFuture<'a, Result<DiskId, StorageError>> {
        async move { Ok(disk_at(at)) }.boxed()
    }

    fn is_empty<'a>(&'a self, at: &'a ServiceAddr) -> BoxFuture<'a, Result<bool, StorageError>> {
        let state = self.state.lock();
        let is_first = [address(1), address(2)].contains(at);
        let has_copy = state.members.copied.iter().any(|(of, _)| *of == at.to_string());
        let is_empty = state.members.blank.contains(&at.to_string()) || !(is_first || has_copy);
        async move { Ok(is_empty) }.boxed()
    }

    fn timeline_status<'a>(
        &'a self,
        of: &'a Member,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'a, Result<TimelineStatus, StorageError>> {
        let spec = TimelineSpec {
            tenant,
            timeline,
            pg_major: 15,
            system_id: SystemId::new(1),
            pg_tli: PgTli::new(1),
            wal_segment_size: WalSegmentSize::DEFAULT,
            start_lsn: Lsn::new(0x800),
            prev_lsn: Lsn::new(0x700),
            ancestor: None,
        };
        let (flush_lsn, oldest_lsn) = (Lsn::new(0x1000), Lsn::new(0x800));
        let term = Term::new(1);
        let status =
            TimelineStatus { spec, term, flush_lsn, commit_lsn: flush_lsn, oldest_lsn, durable_lsn: oldest_lsn };
        async move { self.has(of, timeline).map(|()| status) }.boxed()
    }

    fn copy_timeline<'a>(&'a self, to: &'a Member, source: CopySource) -> BoxFuture<'a, Result<(), StorageError>> {
        async move {
            self.pass(ChangePhase::Copying).await;
            self.state.lock().members.copied.insert((to.address.to_string(), source.timeline));
            Ok(())
        }
        .boxed()
    }

    fn forget_timeline<'a>(
        &'a self,
        of: &'a Member,
        _tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'a, Result<(), StorageError>> {
        self.state.lock().members.copied.remove(&(of.address.to_string(), timeline));
        async move { Ok(()) }.boxed()
    }

    fn configure<'a>(
        &'a self,
        of: &'a Member,
        (_, timeline): (TenantId, TimelineId),
        membership: &'a Membership,
        _promise: Option<PromisedTerm>,
    ) -> BoxFuture<'a, Result<MemberStanding, StorageError>> {
        async move {
            match (membership.generation.get(), membership.is_changing()) {
                (0, _) => {}
                (_, true) => self.pass(ChangePhase::Joint).await,
                (_, false) => self.pass(ChangePhase::Settled).await,
            }
            self.has(of, timeline)?;
            let mut state = self.state.lock();
            let told = state.members.told.entry(of.address.to_string()).or_default();
            if membership.generation > told.generation {
                *told = membership.clone();
            }
            Ok(MemberStanding {
                disk: of.disk,
                membership: told.clone(),
                promise: PromisedTerm { term: Term::new(1), proposer: ProposerId::NONE },
                last_term: Term::new(1),
                flush_lsn: Lsn::new(0x1000),
                has_begun: true,
                has_writer: membership.generation > MemberGeneration::default(),
                oldest_lsn: Lsn::new(0x800),
            })
        }
        .boxed()
    }

    fn elect(
        &self,
        (_, timeline): (TenantId, TimelineId),
        _membership: Membership,
        _token: String,
    ) -> BoxFuture<'_, Result<(Box<dyn std::any::Any + Send + Sync>, Lsn), StorageError>> {
        let mut state = self.state.lock();
        state.requests.push(format!("elect {timeline}"));
        let left = state.left_by_crash.remove(&timeline);
        let end = left.or_else(|| state.safekeeper.get(&timeline).map(|branch| branch.start_lsn));
        drop(state);
        self.ingested.send_modify(|at| *at = (*at).max(left.unwrap_or(*at)));
        async move { Ok((Box::new(()) as Box<dyn std::any::Any + Send + Sync>, end.unwrap_or(Lsn::INVALID))) }.boxed()
    }
}

impl SafekeeperHost for Fakes {
    fn own(&self) -> Vec<(u32, ServiceAddr)> {
        self.state.lock().members.own.clone()
    }

    fn add(&self) -> BoxFuture<'_, Result<ServiceAddr, ErrorInfo>> {
        let mut state = self.state.lock();
        let number = (3..).find(|number| !state.members.own.iter().any(|(own, _)| own == number)).expect("a number");
        let added = address(number as usize);
        state.members.own.push((number, added.clone()));
        async move { Ok(added) }.boxed()
    }

    fn keep<'a>(&'a self, address: &'a ServiceAddr) -> BoxFuture<'a, Result<(), ErrorInfo>> {
        self.state.lock().members.kept.insert(address.to_string());
        async move { Ok(()) }.boxed()
    }

    fn remove<'a>(&'a self, address: &'a ServiceAddr) -> BoxFuture<'a, Result<(), ErrorInfo>> {
        let mut state = self.state.lock();
        state.members.own.retain(|(_, own)| own != address);
        state.members.removed.insert(address.to_string());
        async move { Ok(()) }.boxed()
    }
}
