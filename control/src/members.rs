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
//! The protocol, and why it is right: `docs/quorum.md`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::{info, warn};

use ardent_api::addr::ServiceAddr;
use ardent_api::control::{
    ApiErrorCode, BranchState, ChangePhase, ChangeSafekeepersRequest, ErrorInfo, SafekeeperChange,
};
use ardent_api::page_service::ManageRequest;
use ardent_api::token::{Claims, Rights, Service};
use ardent_api::wal_service::{CopySource, Member, MemberStanding, Membership, PromisedTerm, TimelineStatus};
use ardent_quorum::{CatchUp, CatchUpVerdict, Configuration, LogPosition, Promise, Standing};
use ardent_types::{DiskId, MemberGeneration, TenantId, TimelineId};

use crate::deps::{MemberService, StorageError, StorageErrorKind};
use crate::service::Control;
use crate::store::{MemberChange, Outdated, StoreError};

/// Most safekeepers.
const COUNT_MAX: usize = 9;
/// Timelines that are worked on at once.
const AT_ONCE: usize = 8;
/// How long until it is tried again after something was in the way.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long until a timeline that has not caught up is asked about again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How often a timeline that nobody writes may be found behind before somebody is elected for it.
const PATIENCE: u32 = 3;
/// How often a timeline is asked about before others get their turn, and what it waits for is said.
const ASKED_MAX: u32 = 100;
/// How often the page server is told where the safekeepers are: it may have been started again with what was true once.
const NAME_EVERY: Duration = Duration::from_secs(10);
/// How long a token for copying a timeline is good.
const COPY_TOKEN_S: u64 = 24 * 3600;

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

type Timeline = (TenantId, TimelineId);

fn invalid(message: impl Into<String>) -> ErrorInfo {
    ErrorInfo::new(ApiErrorCode::InvalidArguments, message)
}

fn conflict(message: impl Into<String>) -> ErrorInfo {
    ErrorInfo::new(ApiErrorCode::Conflict, message)
}

fn sorted(mut members: Vec<Member>) -> Vec<Member> {
    members.sort_by_key(|member| member.disk);
    members
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

fn standing_of(said: &MemberStanding) -> Option<Standing> {
    Some(Standing {
        configuration: Configuration::of(&said.membership)?,
        promise: Promise { term: said.promise.term, proposer: said.promise.proposer },
        position: LogPosition { term: said.last_term, flush_lsn: said.flush_lsn },
        has_begun: said.has_begun,
    })
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
        let Some(change) = self.context.store.member_change()? else { return Ok(None) };
        let progress = self.changing.progress.lock().clone();
        let texts = |members: Vec<Member>| members.iter().map(|member| member.address.to_string()).collect();
        Ok(Some(SafekeeperChange {
            phase: change.phase,
            adding: texts(change.joining()),
            removing: texts(change.leaving()),
            timelines_done: progress.done,
            timelines: progress.all,
            problem: progress.problem,
        }))
    }

    /// Begins a change; gives it as it is then.
    pub async fn change_safekeepers(&self, request: &ChangeSafekeepersRequest) -> Result<SafekeeperChange, ErrorInfo> {
        let _turn = self.changing.asking.lock().await;
        let service = self.member_service()?;
        let store = &self.context.store;
        if let Some(change) = store.member_change()? {
            return Err(conflict(format!(
                "a change of the safekeepers is on its way already: {}",
                change.phase.as_str()
            ))
            .with_hint("ardent status shows it; to give it up: ardent reconfigure safekeepers --cancel"));
        }
        self.check_page_server().await?;
        let listed = self.listed_members(service, request).await?;
        let leaving = listed.leaving();
        let stays = listed.present.len() - leaving.len();
        let count = request.count.map_or(0, usize::from);
        let own = usize::from(request.add_own) + count.saturating_sub(stays);
        let after = stays + request.add.len() + own;
        if after == 0 || after > COUNT_MAX {
            return Err(invalid(format!("there would be {after} safekeepers: there can be 1 to {COUNT_MAX}")));
        }
        if leaving.is_empty() && own == 0 && request.add.is_empty() {
            return Err(invalid("that changes nothing: the safekeepers are these already"));
        }
        let mut joining = Vec::with_capacity(after);
        for address in &request.add {
            joining.push(self.check_joining(service, address, &listed).await?);
        }
        if own > 0 && self.host.is_none() {
            return Err(invalid("this server starts no safekeepers of its own")
                .with_hint("start one with ardent safekeeper on an empty folder, and give its address: --add ADDR"));
        }

        let first = Membership {
            generation: MemberGeneration::new(1),
            members: sorted(listed.present.iter().map(|listed| listed.member.clone()).collect()),
            ..Membership::default()
        };
        let current = match self.membership()? {
            Some(known) => known,
            None => {
                let first = self.known_elsewhere(service, &first).await?.unwrap_or(first);
                self.context.tokens.seal(&first)
            }
        };
        let gone: HashSet<DiskId> = leaving.iter().map(|member| member.disk).collect();
        let mut started = Vec::new();
        let begun = self.begin_change(service, &current, &gone, joining, own, &mut started).await;
        let to = match begun {
            Ok(to) => to,
            Err(error) => {
                // A request that is refused leaves nothing.
                for address in &started {
                    self.remove_own(address).await;
                }
                return Err(error);
            }
        };
        // From here on the store says who they are, and not what the server was started with.
        service.set_membership(current);
        info!(safekeepers = to.len(), "the safekeepers are being changed");
        *self.changing.progress.lock() = Progress::default();
        self.changing.wanted.notify_one();
        self.safekeeper_change()?.ok_or_else(|| conflict("the change was ended meanwhile"))
    }

    /// Starts what the server starts itself, whose addresses go to `started`, and begins the change in the store. Gives who there are to be.
    async fn begin_change(
        &self,
        service: &dyn MemberService,
        current: &Membership,
        gone: &HashSet<DiskId>,
        mut joining: Vec<Member>,
        own: usize,
        started: &mut Vec<ServiceAddr>,
    ) -> Result<Vec<Member>, ErrorInfo> {
        for _ in 0..own {
            let member = self.start_own(service, current, &joining, started).await?;
            joining.push(member);
        }
        let stay = current.members.iter().filter(|member| !gone.contains(&member.disk)).cloned();
        let to = sorted(stay.chain(joining).collect());
        if to.windows(2).any(|pair| pair[0].disk == pair[1].disk) {
            return Err(invalid("one safekeeper would be there twice"));
        }
        match self.context.store.begin_member_change(current, &to)? {
            Ok(Ok(())) => Ok(to),
            Ok(Err(connector)) => Err(conflict(format!("connector {connector} is just being made"))
                .with_hint("wait until ardent connector list shows it as ready, or delete it")),
            Err(outdated) => Err(conflict(outdated.to_string()).with_hint("try again")),
        }
    }

    async fn remove_own(&self, address: &ServiceAddr) {
        let Some(host) = &self.host else { return };
        if let Err(error) = host.remove(address).await {
            warn!(%address, error = %error.message, "a safekeeper that was started for nothing still runs");
        }
    }

    /// Before anything begins: it has to be told of the change, and one of an older version cannot be.
    async fn check_page_server(&self) -> Result<(), ErrorInfo> {
        match self.name_safekeepers().await {
            Ok(()) => Ok(()),
            Err(ChangeError::Storage(error)) if error.kind == StorageErrorKind::Unavailable => Err(error.into()),
            Err(error) => {
                Err(conflict(format!("the page server cannot be told of a change of the safekeepers: {error}"))
                    .with_hint("all roles must be of one version: start the page server with this one"))
            }
        }
    }

    /// Gives up the change that is on its way.
    pub async fn cancel_safekeeper_change(&self) -> Result<(), ErrorInfo> {
        let _turn = self.changing.asking.lock().await;
        let service = self.member_service()?;
        loop {
            let nothing = || ErrorInfo::new(ApiErrorCode::NotFound, "no change of the safekeepers is on its way");
            let change = self.context.store.member_change()?.ok_or_else(nothing)?;
            let current = self.membership()?.ok_or_else(nothing)?;
            let next = match change.phase {
                ChangePhase::Copying => current.clone(),
                ChangePhase::Joint => {
                    let cancelled = configuration_of(&current).cancelled();
                    let cancelled = cancelled.map_err(|refused| conflict(refused.to_string()))?;
                    self.context.tokens.seal(&follow(&current, None, &cancelled))
                }
                ChangePhase::Cancelled => return Ok(()),
                ChangePhase::Settled => {
                    return Err(conflict("the change is settled: the new safekeepers decide alone already")
                        .with_hint("when it is over, change them back"));
                }
            };
            let step = self.context.store.step_members((change.phase, &current), (ChangePhase::Cancelled, &next))?;
            if step.is_ok() {
                // Those that were to join are told of deletions until they have forgotten all.
                if change.phase == ChangePhase::Joint {
                    service.set_membership(next);
                }
                info!("the change of the safekeepers is given up");
                self.changing.given_up.notify_one();
                self.changing.wanted.notify_one();
                return Ok(());
            }
        }
    }

    /// Who there are, each with its number; those that the request removes are marked.
    async fn listed_members(
        &self,
        service: &dyn MemberService,
        request: &ChangeSafekeepersRequest,
    ) -> Result<Listed, ErrorInfo> {
        if request.count.is_some() && (!request.add.is_empty() || !request.remove.is_empty() || request.add_own > 0) {
            return Err(invalid("either a number of safekeepers, or which of them come and go"));
        }
        let numbered = self.context.store.membership()?;
        let addresses = self.context.wal_service.addrs();
        let mut present: Vec<ListedMember> = Vec::with_capacity(addresses.len());
        for (number, address) in self.numbers_of(&addresses).into_iter().zip(&addresses) {
            let of_store = numbered.iter().flat_map(|known| &known.members).filter(|member| member.address == *address);
            for disk in of_store.map(|member| Some(member.disk)).chain(numbered.is_none().then_some(None)) {
                let member = Member { disk: disk.unwrap_or(DiskId::new(0)), address: address.clone() };
                present.push(ListedMember { number, member, leaves: false });
            }
        }
        for word in &request.remove {
            let mut found = present
                .iter_mut()
                .filter(|listed| listed.number.to_string() == *word || listed.member.address.to_string() == *word);
            let listed = found.next().ok_or_else(|| {
                invalid(format!("{word} is no safekeeper")).with_hint("ardent status shows their numbers and addresses")
            })?;
            listed.leaves = true;
        }
        if let Some(count) = request.count {
            let mut numbers: Vec<u32> = present.iter().map(|listed| listed.number).collect();
            numbers.sort_unstable();
            let last = numbers.into_iter().nth(usize::from(count)).unwrap_or(u32::MAX);
            for listed in present.iter_mut().filter(|listed| listed.number >= last) {
                listed.leaves = true;
            }
        }
        if numbered.is_none() {
            for listed in &mut present {
                listed.member.disk = self.first_disk(service, listed).await?;
            }
        }
        Ok(Listed { present })
    }

    /// Which disk one of generation 0 is on, at the first change. There is nobody to say whether it is the one that always was, but one that has
    /// nothing of what there is cannot be it: its disk is not mounted, or lost.
    async fn first_disk(&self, service: &dyn MemberService, listed: &ListedMember) -> Result<DiskId, ErrorInfo> {
        let (address, number) = (&listed.member.address, listed.number);
        let found = async {
            let disk = service.identify(address).await?;
            let is_blank = self.is_made_of(|_| true)? && service.is_empty(address).await?;
            let blank = || {
                conflict(format!("safekeeper {number} at {address} has nothing of what this installation keeps"))
                    .with_hint(format!(
                        "mount its disk, and start it; if it is lost: ardent reconfigure safekeepers --replace {number}"
                    ))
            };
            if is_blank { Err(blank()) } else { Ok(disk) }
        };
        match found.await {
            // Which disk that was nobody knows any more, and it is not to come back: one that no disk has stands for it.
            Err(_) if listed.leaves => Ok(DiskId::generate()),
            found => found,
        }
    }

    /// Whether a branch is ready on a timeline that `is_it` is true for: most safekeepers have that.
    fn is_made_of(&self, is_it: impl Fn(TimelineId) -> bool) -> Result<bool, StoreError> {
        let branches = self.context.store.branches()?;
        Ok(branches.iter().any(|row| row.state == BranchState::Ready && is_it(row.timeline)))
    }

    /// That so few members have a timeline that nothing can have been committed to it: fine only while it is made or deleted.
    fn nowhere(&self, timeline: TimelineId) -> Result<(), ChangeError> {
        if !self.is_made_of(|made| made == timeline)? {
            return Ok(());
        }
        let what = "most safekeepers answer that they do not have it, and a branch is on it; mount their disks";
        Err(ChangeError::Waits(format!("timeline {timeline}: {what}")))
    }

    /// Who the safekeepers say that they are, if they were ever changed: this server's database may have been lost since. `first` is what it would
    /// be otherwise.
    async fn known_elsewhere(
        &self,
        service: &dyn MemberService,
        first: &Membership,
    ) -> Result<Option<Membership>, ErrorInfo> {
        let mut newest: Option<Membership> = None;
        for timeline in self.context.store.all_timelines()? {
            let mut failed = None;
            let mut answered = 0;
            for member in &first.members {
                // Nobody takes generation 0: it only asks.
                match service.configure(member, timeline, &Membership::default(), None).await {
                    Ok(said) => {
                        answered += 1;
                        let is_newer =
                            newest.as_ref().is_none_or(|known| known.generation < said.membership.generation);
                        newest = if is_newer { Some(said.membership) } else { newest };
                    }
                    Err(error) if error.kind == StorageErrorKind::NotFound => answered += 1,
                    Err(error) => failed = Some(error),
                }
            }
            // A majority of them was told of whatever was settled.
            if let Some(error) = failed.filter(|_| !is_majority(answered, &first.members)) {
                return Err(error.into());
            }
        }
        let Some(newest) = newest.filter(|newest| newest.generation > MemberGeneration::default()) else {
            return Ok(None);
        };
        let disks = |members: &[Member]| members.iter().map(|member| member.disk).collect::<Vec<_>>();
        if newest.is_changing() || disks(&newest.members) != disks(&first.members) {
            let addresses: Vec<String> = newest.addresses().iter().map(ToString::to_string).collect();
            let message = format!(
                "this server's database does not know that its safekeepers were changed: they are {} (generation {})",
                addresses.join(", "),
                newest.generation
            );
            return Err(conflict(message).with_hint("start the server with all of these, and with no others"));
        }
        Ok(Some(Membership { members: first.members.clone(), ..newest }))
    }

    /// As people call them: by their folders' numbers; others by the numbers that are left, in their order.
    pub(crate) fn numbers_of(&self, addresses: &[ServiceAddr]) -> Vec<u32> {
        let own = self.host.as_ref().map(|host| host.own()).unwrap_or_default();
        numbers(&own, addresses)
    }

    /// One that joins is there, is none of those that are, and has nothing from another time.
    async fn check_joining(
        &self,
        service: &dyn MemberService,
        address: &ServiceAddr,
        listed: &Listed,
    ) -> Result<Member, ErrorInfo> {
        let disk = service.identify(address).await?;
        if listed.present.iter().any(|present| present.member.disk == disk) {
            return Err(invalid(format!("the safekeeper at {address} is one of them already")));
        }
        if !service.is_empty(address).await? {
            return Err(conflict(format!("the safekeeper at {address} has WAL from another time"))
                .with_hint("start it on an empty folder"));
        }
        Ok(Member { disk, address: address.clone() })
    }

    /// One of the server's own that is no member: one that an attempt left over, or a new one.
    async fn start_own(
        &self,
        service: &dyn MemberService,
        current: &Membership,
        joining: &[Member],
        started: &mut Vec<ServiceAddr>,
    ) -> Result<Member, ErrorInfo> {
        let host = self.host.as_ref().ok_or_else(|| conflict("this server starts no safekeepers of its own"))?;
        let is_used =
            |address: &ServiceAddr| current.members.iter().chain(joining).any(|member| member.address == *address);
        for (_, address) in host.own() {
            if !is_used(&address) && service.is_empty(&address).await.is_ok_and(|is_empty| is_empty) {
                return Ok(Member { disk: service.identify(&address).await?, address });
            }
        }
        let address = host.add().await?;
        started.push(address.clone());
        Ok(Member { disk: service.identify(&address).await?, address })
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
        let (Some(change), Some(current)) = (store.member_change()?, self.membership()?) else { return Ok(false) };
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
                service.set_joining(Vec::new());
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

    /// Until those that join have all timelines, near enough to what the others have that these still keep what follows.
    async fn copy_all(
        &self,
        service: &dyn MemberService,
        change: &MemberChange,
        current: &Membership,
    ) -> Result<(), ChangeError> {
        let joining = change.joining();
        if joining.is_empty() {
            return Ok(());
        }
        loop {
            let copied = std::sync::atomic::AtomicU64::new(0);
            self.for_each_timeline(ChangePhase::Copying, |timeline| {
                let (joining, copied) = (&joining, &copied);
                async move {
                    let count = self.copy_one(service, timeline, &current.members, joining).await?;
                    copied.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
                    Ok(())
                }
            })
            .await?;
            if copied.into_inner() == 0 {
                return Ok(());
            }
        }
    }

    /// Gives a timeline to those that join and lack it, or have too little of it. They must be no members of it. Gives to how many.
    async fn copy_one(
        &self,
        service: &dyn MemberService,
        (tenant, id): Timeline,
        members: &[Member],
        joining: &[Member],
    ) -> Result<u64, ChangeError> {
        let lock = self.context.timeline_locks.of(id);
        let _guard = lock.lock().await;
        // What is being made now is made where it belongs, or is found next time.
        let Some((source, status)) = self.best_source(service, (tenant, id), members).await? else {
            return self.nowhere(id).map(|()| 0);
        };
        let mut count = 0;
        for joins in joining {
            match service.timeline_status(joins, tenant, id).await {
                Ok(has) if has.flush_lsn >= status.oldest_lsn => continue,
                Ok(_) => service.forget_timeline(joins, tenant, id).await?,
                Err(error) if error.kind == StorageErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
            self.copy_to(service, joins, source, (tenant, id)).await?;
            count += 1;
        }
        Ok(count)
    }

    async fn copy_to(
        &self,
        service: &dyn MemberService,
        joins: &Member,
        source: &Member,
        (tenant, timeline): Timeline,
    ) -> Result<(), ChangeError> {
        let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        let token = self.context.tokens.issue(&Claims {
            service: Service::Safekeeper,
            tenant: Some(tenant),
            timeline: Some(timeline),
            rights: Rights::Read,
            expires_at_s: Some(now_s + COPY_TOKEN_S),
        });
        let source = CopySource { tenant, timeline, address: source.address.clone(), token };
        service.copy_timeline(joins, source).await?;
        info!(%timeline, to = %joins.address, "a safekeeper that joins has a timeline");
        Ok(())
    }

    /// The member that has most of a timeline; `None` if none has it, as far as a quorum of them says.
    async fn best_source<'a>(
        &self,
        service: &dyn MemberService,
        (tenant, id): Timeline,
        members: &'a [Member],
    ) -> Result<Option<(&'a Member, TimelineStatus)>, ChangeError> {
        let asked = join_all(members.iter().map(|member| service.timeline_status(member, tenant, id))).await;
        let (mut best, mut lacking, mut failed): (Option<(&Member, TimelineStatus)>, _, _) = (None, 0, None);
        for (member, said) in members.iter().zip(asked) {
            match said {
                Ok(status) if best.as_ref().is_none_or(|(_, best)| best.commit_lsn < status.commit_lsn) => {
                    best = Some((member, status));
                }
                Ok(_) => {}
                Err(error) if error.kind == StorageErrorKind::NotFound => lacking += 1,
                Err(error) => failed = Some(error),
            }
        }
        match (best, failed) {
            (Some(best), _) => Ok(Some(best)),
            (None, Some(error)) if !is_majority(lacking, members) => Err(error.into()),
            (None, _) => Ok(None),
        }
    }

    /// Until all timelines have caught up with the joint list.
    async fn catch_up_all(
        self: &Arc<Self>,
        service: &dyn MemberService,
        change: &MemberChange,
        joint: &Membership,
    ) -> Result<(), ChangeError> {
        let joining = change.joining();
        self.for_each_timeline(ChangePhase::Joint, |timeline| {
            self.catch_up_timeline(service, timeline, &joining, joint)
        })
        .await
    }

    /// One timeline.
    async fn catch_up_timeline(
        self: &Arc<Self>,
        service: &dyn MemberService,
        timeline: Timeline,
        joining: &[Member],
        joint: &Membership,
    ) -> Result<(), ChangeError> {
        // Made or deleted one at a time; what is begun to be made from now on is made on all of the joint list.
        let lock = self.context.timeline_locks.of(timeline.1);
        let _guard = lock.lock().await;
        let mut core = CatchUp::new(configuration_of(joint));
        let mut writer: Option<Box<dyn std::any::Any + Send>> = None;
        let mut alone = 0;
        for _ in 0..ASKED_MAX {
            self.still(ChangePhase::Joint)?;
            let round = self.ask_members(service, timeline, joint, &mut core).await;
            if round.is_nowhere(joint) {
                return self.nowhere(timeline.1);
            }
            match core.verdict() {
                // Its writer knows the next members once it is connected to them: before that, who leaves may be all that it knows.
                CatchUpVerdict::CaughtUp if round.is_written(joint) || !self.expects_writer(timeline.1)? => {
                    return Ok(());
                }
                CatchUpVerdict::CaughtUp => {
                    tokio::time::sleep(ASK_AGAIN_AFTER).await;
                    continue;
                }
                CatchUpVerdict::Superseded(later) => {
                    let generation = later.generation();
                    return Err(ChangeError::Waits(format!(
                        "timeline {}: a safekeeper goes by generation {generation} already, which this server did not make",
                        timeline.1
                    )));
                }
                CatchUpVerdict::Pending => {}
            }
            // Only what joins now may be given what it lacks: one that was a member before may have forgotten what it promised.
            let lacking: Vec<&Member> = joining.iter().filter(|joins| round.lacks(joins)).collect();
            if let Some(joins) = lacking.first() {
                match self.best_source(service, timeline, &joint.members).await? {
                    Some((source, _)) => self.copy_to(service, joins, source, timeline).await?,
                    None => tokio::time::sleep(ASK_AGAIN_AFTER).await,
                }
                continue;
            }
            alone = if round.has_writer || writer.is_some() { 0 } else { alone + 1 };
            if alone >= PATIENCE {
                alone = 0;
                writer = self.elect_for(service, timeline, joint).await?;
            }
            tokio::time::sleep(ASK_AGAIN_AFTER).await;
        }
        let lagging: Vec<String> =
            core.lagging().filter_map(|disk| joint.address_of(disk)).map(ToString::to_string).collect();
        Err(ChangeError::Waits(format!("timeline {}: {} has not caught up yet", timeline.1, lagging.join(", "))))
    }

    /// Asks all of them once.
    async fn ask_members(
        &self,
        service: &dyn MemberService,
        timeline: Timeline,
        joint: &Membership,
        core: &mut CatchUp,
    ) -> Round {
        let asking = core.questions().into_iter().filter_map(|(disk, promise)| {
            let member = joint.member(disk)?;
            let promise = promise.map(|promise| PromisedTerm { term: promise.term, proposer: promise.proposer });
            Some(async move { (disk, service.configure(member, timeline, joint, promise).await) })
        });
        let mut round = Round::default();
        for (disk, said) in join_all(asking).await {
            match said {
                Ok(said) => {
                    round.has_writer |= said.has_writer;
                    if said.has_writer && said.membership.generation == joint.generation {
                        round.written.insert(disk);
                    }
                    if let Some(standing) = standing_of(&said) {
                        core.heard(disk, standing);
                    }
                }
                // Of the one that was meant: whoever else answers at its address is not asked.
                Err(error) if error.kind == StorageErrorKind::NotFound => _ = round.lacking.insert(disk),
                Err(error) => tracing::debug!(%disk, %error, "a safekeeper cannot be told of the members"),
            }
        }
        round
    }

    /// Whether somebody writes the timeline, as far as this server knows: a compute, or a connector that follows production.
    fn expects_writer(&self, timeline: TimelineId) -> Result<bool, ChangeError> {
        let branches = self.context.store.branches()?;
        let branch = branches.iter().find(|row| row.timeline == timeline);
        if branch.is_some_and(|branch| self.pool.has_slot(branch.id)) {
            return Ok(true);
        }
        let connectors = self.context.store.connectors()?;
        let connector = connectors.iter().find(|row| row.timeline == timeline && row.logical.is_none());
        Ok(connector.is_some_and(|row| self.following(&row.name) == (true, None)))
    }

    /// A writer that writes nothing, for a timeline that nobody else writes; `None` if somebody may be about to.
    async fn elect_for(
        &self,
        service: &dyn MemberService,
        (tenant, timeline): Timeline,
        joint: &Membership,
    ) -> Result<Option<Box<dyn std::any::Any + Send>>, ChangeError> {
        let branch = self.context.store.branches()?.into_iter().find(|row| row.timeline == timeline);
        // While the gate is closed nobody wakes the branch; one that is awake, or about to be, has a writer of its own.
        let _closed = match &branch {
            Some(branch) => Some(self.pool.close_gate(branch.id).await),
            None => None,
        };
        if branch.as_ref().is_some_and(|branch| self.pool.has_slot(branch.id)) {
            return Ok(None);
        }
        let token = self.context.tokens.issue(&Claims {
            service: Service::Safekeeper,
            tenant: Some(tenant),
            timeline: Some(timeline),
            rights: Rights::Write,
            expires_at_s: None,
        });
        info!(%timeline, "nobody writes it: a writer is elected for the change of the safekeepers");
        Ok(Some(service.elect((tenant, timeline), joint.clone(), token).await?))
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

/// The numbers of those at `addresses`, of which `own` have theirs.
fn numbers(own: &[(u32, ServiceAddr)], addresses: &[ServiceAddr]) -> Vec<u32> {
    let mut free = (1..).filter(|number| !own.iter().any(|(taken, _)| taken == number));
    let number_of = |address: &ServiceAddr| match own.iter().find(|(_, own)| own == address) {
        Some((number, _)) => *number,
        None => free.next().expect("there are more numbers than safekeepers"),
    };
    addresses.iter().map(number_of).collect()
}

/// What one round of questions found.
#[derive(Default)]
struct Round {
    has_writer: bool,
    /// Those that a writer is connected to that goes by the joint list.
    written: HashSet<DiskId>,
    /// Who does not have the timeline.
    lacking: HashSet<DiskId>,
}

impl Round {
    /// Whether a writer is connected to a majority of the next members.
    fn is_written(&self, joint: &Membership) -> bool {
        let next = joint.next.as_deref().unwrap_or_default();
        next.iter().filter(|member| self.written.contains(&member.disk)).count() > next.len() / 2
    }

    fn lacks(&self, member: &Member) -> bool {
        self.lacking.contains(&member.disk)
    }

    /// Whether so many of the old members lack it that nothing can have been committed: it is not made yet, or gone.
    fn is_nowhere(&self, joint: &Membership) -> bool {
        is_majority(joint.members.iter().filter(|member| self.lacks(member)).count(), &joint.members)
    }
}

/// The safekeepers as people know them.
struct Listed {
    present: Vec<ListedMember>,
}

struct ListedMember {
    number: u32,
    member: Member,
    leaves: bool,
}

impl Listed {
    fn leaving(&self) -> Vec<&Member> {
        self.present.iter().filter(|listed| listed.leaves).map(|listed| &listed.member).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_safekeepers_have_one_number() {
        let address = |name: &str| ServiceAddr::Unix(format!("/run/{name}").into());
        let check = |own: &[(u32, &str)], addresses: &[&str], expect: &[u32]| {
            let own: Vec<(u32, ServiceAddr)> = own.iter().map(|(number, name)| (*number, address(name))).collect();
            let addresses: Vec<ServiceAddr> = addresses.iter().map(|name| address(name)).collect();
            assert_eq!(numbers(&own, &addresses), expect);
        };
        check(&[], &["a", "b"], &[1, 2]);
        check(&[(1, "a"), (3, "c")], &["a", "c"], &[1, 3]);
        check(&[(2, "b"), (3, "c")], &["x", "b", "y", "c"], &[1, 2, 4, 3]);
    }
}
