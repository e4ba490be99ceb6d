//! Changing who the safekeepers are while everything runs.
//!
//! ```text
//!  asked ──► copying ──► joint ──► settled ──► over
//!               │          │
//!               └──────────┴──► cancelled ──► over
//! ```
//!
//! The list and the phase are in the store; each step is one transaction there that takes effect only if it follows from what is there. What a
//! phase does may be done again at any time, so that a change goes on after whatever ended the server. It is one change for all timelines:
//!
//! - copying: those that join get each timeline as the others have it. They are no members yet, nothing depends on them.
//! - joint: whoever writes needs a majority of the old ones and one of the next ones. It is over when all timelines have caught up
//!   ([`CatchUp`]); one that nobody writes gets a writer for a moment, if it needs one.
//! - settled, cancelled: the members are told for each timeline, then those that are members no more forget everything.
//!
//! `request.rs`: what somebody asks for, and what is refused. `timelines.rs`: what is done for each timeline. The protocol, and why it is right:
//! `docs/quorum.md`.

mod request;
mod timelines;

pub use request::check_safekeeper_count;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::{info, warn};

use ardent_api::control::{ApiErrorCode, BranchState, ChangePhase, ErrorInfo, SafekeeperChange};
use ardent_api::page_service::ManageRequest;
use ardent_api::wal_service::{Member, Membership};
use ardent_quorum::Configuration;
use ardent_types::{DiskId, MemberGeneration, TenantId, TimelineId};

use crate::deps::{MemberService, StorageError, StorageErrorKind};
use crate::service::Control;
use crate::store::{MemberChange, Outdated, StoreError};
use crate::writers::ElectError;

/// Timelines that are worked on at once.
const AT_ONCE: usize = 8;
/// How long until it is tried again after something was in the way.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How often the page server is told where the safekeepers are: it may have been started again with what was true once.
const NAME_EVERY: Duration = Duration::from_secs(10);

/// How far the change is that is under way, and what is in its way.
#[derive(Default)]
pub(crate) struct Changing {
    /// Rung when there is something to do.
    wanted: Notify,
    /// Rung when what is being done is for a change that was given up: a copy may take an hour.
    given_up: Notify,
    /// One is begun or given up at a time.
    asking: tokio::sync::Mutex<()>,
    progress: Mutex<Progress>,
}

#[derive(Clone, Default)]
struct Progress {
    done: u64,
    all: u64,
    problem: Option<String>,
}

/// Why a change cannot go on now.
#[derive(Debug, thiserror::Error)]
enum ChangeError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It was given up, or somebody else took the step.
    #[error(transparent)]
    Outdated(#[from] Outdated),
    #[error("{0}")]
    Waits(String),
}

impl From<ElectError> for ChangeError {
    fn from(error: ElectError) -> ChangeError {
        match error {
            ElectError::Store(error) => error.into(),
            ElectError::Storage(error) => error.into(),
        }
    }
}

type Timeline = (TenantId, TimelineId);

fn conflict(message: impl Into<String>) -> ErrorInfo {
    ErrorInfo::new(ApiErrorCode::Conflict, message)
}

/// Whether so many lack a timeline that nothing of it can have been committed.
fn is_majority(lacking: usize, members: &[Member]) -> bool {
    lacking > members.len() / 2
}

/// The list after it, which `next` makes of its configuration; addresses stay.
fn follow(current: &Membership, to: Option<&[Member]>, configuration: &Configuration) -> Membership {
    let known: BTreeMap<DiskId, &Member> =
        current.everyone().into_iter().chain(to.into_iter().flatten()).map(|member| (member.disk, member)).collect();
    let list = |disks: &[DiskId]| disks.iter().map(|disk| known[disk].clone()).collect();
    Membership {
        generation: configuration.generation(),
        members: list(configuration.members()),
        next: configuration.next().map(list),
        ..Membership::default()
    }
}

fn configuration_of(membership: &Membership) -> Configuration {
    Configuration::of(membership).expect("the store holds lists that are in order")
}

impl Control {
    fn member_service(&self) -> Result<&dyn MemberService, ErrorInfo> {
        self.context.wal_service.members().ok_or_else(|| conflict("the safekeepers of this server cannot be changed"))
    }

    /// Who the safekeepers are, sealed for all who are told; `None` as long as they never changed.
    fn membership(&self) -> Result<Option<Membership>, StoreError> {
        Ok(self.context.store.membership()?.map(|known| self.context.tokens.seal(&known)))
    }

    /// The change that is on its way, for people.
    pub(crate) fn safekeeper_change(&self) -> Result<Option<SafekeeperChange>, ErrorInfo> {
        Ok(self.context.store.member_change()?.map(|change| self.describe_change(&change)))
    }

    pub(crate) fn describe_change(&self, change: &MemberChange) -> SafekeeperChange {
        let progress = self.changing.progress.lock().clone();
        let texts = |members: Vec<Member>| members.iter().map(|member| member.address.to_string()).collect();
        SafekeeperChange {
            phase: change.phase,
            adding: texts(change.joining()),
            removing: texts(change.leaving()),
            timelines_done: progress.done,
            timelines: progress.all,
            problem: progress.problem,
        }
    }

    /// Whether a branch is ready on a timeline that `is_it` is true for: most safekeepers have that.
    fn is_made_of(&self, is_it: impl Fn(TimelineId) -> bool) -> Result<bool, StoreError> {
        let branches = self.context.store.branches()?;
        Ok(branches.iter().any(|row| row.state == BranchState::Ready && is_it(row.timeline)))
    }

    /// Carries changes out, until the server ends.
    pub(crate) async fn keep_members(self: &Arc<Self>) {
        loop {
            let advanced = tokio::select! {
                advanced = self.advance_change() => advanced,
                // What was begun of it may be dropped anywhere: what a phase does may be done again.
                () = self.changing.given_up.notified() => continue,
                () = self.cancel.cancelled() => return,
            };
            let pause = match advanced {
                Ok(true) | Err(ChangeError::Outdated(_)) => continue,
                Ok(false) => self.name_safekeepers_again().await,
                Err(error) => {
                    warn!(%error, "the change of the safekeepers waits");
                    self.changing.progress.lock().problem = Some(error.to_string());
                    RETRY_AFTER
                }
            };
            tokio::select! {
                () = self.changing.wanted.notified() => {}
                () = tokio::time::sleep(pause) => {}
                () = self.cancel.cancelled() => return,
            }
        }
    }

    /// Where they were changed once, a page server that is started again with what was true before is told anew. Gives how long until the next time.
    async fn name_safekeepers_again(&self) -> Duration {
        if self.context.wal_service.membership().generation == MemberGeneration::default() {
            return NAME_EVERY;
        }
        match self.name_safekeepers().await {
            Ok(()) => NAME_EVERY,
            Err(error) => {
                tracing::debug!(%error, "the page server cannot be told where the safekeepers are");
                RETRY_AFTER
            }
        }
    }

    /// Tells the page server where WAL is.
    async fn name_safekeepers(&self) -> Result<(), ChangeError> {
        let request = ManageRequest::NameSafekeepers { safekeepers: self.context.wal_service.addrs() };
        self.context.page_service.manage(TenantId::NONE, request).await?;
        Ok(())
    }

    /// Does what the change that is on its way needs next. False: there is none.
    async fn advance_change(self: &Arc<Self>) -> Result<bool, ChangeError> {
        let store = &self.context.store;
        let (Some(current), Some(change)) = store.membership_and_change()? else { return Ok(false) };
        let current = self.context.tokens.seal(&current);
        let Some(service) = self.context.wal_service.members() else {
            return Err(ChangeError::Waits("the safekeepers of this server cannot be changed".to_owned()));
        };
        match change.phase {
            ChangePhase::Copying => {
                service.set_joining(change.joining());
                self.copy_all(service, &change, &current).await?;
                let joint = configuration_of(&current).begin_change(change.to.iter().map(|member| member.disk));
                let joint = joint.map_err(|refused| ChangeError::Waits(refused.to_string()))?;
                let joint = self.context.tokens.seal(&follow(&current, Some(change.to.as_slice()), &joint));
                store.step_members((ChangePhase::Copying, &current), (ChangePhase::Joint, &joint))??;
                info!(generation = %joint.generation, "old and new safekeepers decide together");
                service.set_membership(joint);
            }
            ChangePhase::Joint => {
                self.name_safekeepers().await?;
                self.catch_up_all(service, &change, &current).await?;
                let settled = configuration_of(&current).settled();
                let settled = settled.map_err(|refused| ChangeError::Waits(refused.to_string()))?;
                let settled = self.context.tokens.seal(&follow(&current, None, &settled));
                store.step_members((ChangePhase::Joint, &current), (ChangePhase::Settled, &settled))??;
                info!(generation = %settled.generation, "the new safekeepers decide");
                service.set_membership(settled);
            }
            ChangePhase::Settled => self.end_change(service, &change, change.leaving(), &current).await?,
            ChangePhase::Cancelled => {
                service.set_joining(change.joining());
                self.end_change(service, &change, change.joining(), &current).await?;
            }
        }
        *self.changing.progress.lock() = Progress::default();
        Ok(true)
    }

    /// Whether the change has not been given up meanwhile.
    fn still(&self, phase: ChangePhase) -> Result<(), ChangeError> {
        let now = self.context.store.member_change()?.map(|change| change.phase);
        if now == Some(phase) { Ok(()) } else { Err(ChangeError::Outdated(Outdated)) }
    }

    /// Does something for each timeline, some at once; all of it is tried, and the first failure told.
    async fn for_each_timeline<F: Future<Output = Result<(), ChangeError>>>(
        &self,
        phase: ChangePhase,
        work: impl Fn(Timeline) -> F,
    ) -> Result<(), ChangeError> {
        let timelines = self.context.store.all_timelines()?;
        {
            let mut progress = self.changing.progress.lock();
            (progress.done, progress.all) = (0, timelines.len() as u64);
        }
        let mut working = futures_util::stream::iter(timelines.into_iter().map(|timeline| {
            let work = &work;
            async move {
                self.still(phase)?;
                work(timeline).await
            }
        }))
        .buffer_unordered(AT_ONCE);
        let mut first = Ok(());
        while let Some(done) = working.next().await {
            match done {
                Ok(()) => self.changing.progress.lock().done += 1,
                Err(ChangeError::Outdated(outdated)) => return Err(outdated.into()),
                Err(error) => first = first.and(Err(error)),
            }
        }
        if first.is_ok() {
            self.changing.progress.lock().problem = None;
        }
        first
    }

    /// Tells the members, then lets those that are members no more forget everything.
    async fn end_change(
        self: &Arc<Self>,
        service: &dyn MemberService,
        change: &MemberChange,
        leaving: Vec<Member>,
        current: &Membership,
    ) -> Result<(), ChangeError> {
        self.name_safekeepers().await?;
        self.for_each_timeline(change.phase, |timeline| self.tell(service, timeline, current, &leaving)).await?;
        self.follow_connectors_anew()?;
        let away = self.forget_all(service, &leaving).await?;
        for member in &away {
            warn!(address = %member.address, "a safekeeper that is a member no more is away, and keeps what it has");
        }
        if let Some(host) = &self.host {
            for member in &current.members {
                let kept = host.keep(&member.address).await;
                kept.map_err(|error| ChangeError::Waits(error.to_string()))?;
            }
            for member in &leaving {
                let removed = host.remove(&member.address).await;
                removed.map_err(|error| ChangeError::Waits(error.to_string()))?;
            }
        }
        // Before anybody can see that it is over: nobody joins any more.
        service.set_joining(Vec::new());
        self.context.store.end_member_change(&leaving, &current.members)?;
        info!(generation = %current.generation, "the change of the safekeepers is over");
        Ok(())
    }

    /// Tells the members of a timeline who they are. A majority is needed: what left is not asked by writers any more then.
    async fn tell(
        &self,
        service: &dyn MemberService,
        timeline: Timeline,
        current: &Membership,
        leaving: &[Member],
    ) -> Result<(), ChangeError> {
        let asked = join_all(
            current
                .members
                .iter()
                .map(|member| async move { (member.disk, service.configure(member, timeline, current, None).await) }),
        );
        let (mut told, mut failed) = (HashSet::new(), None);
        for (disk, said) in asked.await {
            match said {
                Ok(_) => _ = told.insert(disk),
                // One that lacks it is told by its first writer.
                Err(error) if error.kind == StorageErrorKind::NotFound => _ = told.insert(disk),
                Err(error) => failed = Some(error),
            }
        }
        // Those that leave refuse what still counts on them; one that is away is not needed for that.
        let _ = join_all(leaving.iter().map(|member| service.configure(member, timeline, current, None))).await;
        match failed {
            Some(error) if !configuration_of(current).is_quorum(|disk| told.contains(&disk)) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Connectors know safekeepers by the list that they were started with. What follows by logical replication writes through a compute, which
    /// knows.
    fn follow_connectors_anew(&self) -> Result<(), ChangeError> {
        for row in self.context.store.connectors()?.iter().filter(|row| row.logical.is_none()) {
            self.follow_anew(&row.name);
        }
        Ok(())
    }

    /// Lets them forget all timelines. Gives those that are away.
    async fn forget_all<'a>(
        &self,
        service: &dyn MemberService,
        leaving: &'a [Member],
    ) -> Result<Vec<&'a Member>, ChangeError> {
        let mut away = Vec::new();
        for member in leaving {
            let timelines = self.context.store.all_timelines()?;
            let forgetting = futures_util::stream::iter(timelines.into_iter().map(Ok::<_, StorageError>));
            let forgetting = forgetting.try_for_each_concurrent(AT_ONCE, |(tenant, timeline)| {
                service.forget_timeline(member, tenant, timeline)
            });
            if let Err(error) = forgetting.await {
                warn!(address = %member.address, %error, "a safekeeper that is a member no more has not forgotten all");
                away.push(member);
            }
        }
        Ok(away)
    }
}
