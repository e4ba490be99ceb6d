//! What a change does for each timeline: copies it to those that join, and sees to it that it catches up with them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tracing::info;

use ardent_api::control::ChangePhase;
use ardent_api::token::{Claims, Rights, Service};
use ardent_api::wal_service::{CopySource, Member, MemberStanding, Membership, PromisedTerm, TimelineStatus};
use ardent_quorum::{CatchUp, CatchUpVerdict, Configuration, LogPosition, Promise, Standing};
use ardent_types::{DiskId, TimelineId};

use super::{ChangeError, Timeline, configuration_of, is_majority};
use crate::deps::{MemberService, StorageErrorKind};
use crate::service::Control;
use crate::store::MemberChange;
use crate::writers::Writer;

/// How long until a timeline that has not caught up is asked about again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How often a timeline that nobody writes may be found behind before somebody is elected for it.
const PATIENCE: u32 = 3;
/// How often a timeline is asked about before others get their turn, and what it waits for is said.
const ASKED_MAX: u32 = 100;
/// How long a token for copying a timeline is good.
const COPY_TOKEN_S: u64 = 24 * 3600;

fn standing_of(said: &MemberStanding) -> Option<Standing> {
    Some(Standing {
        configuration: Configuration::of(&said.membership)?,
        promise: Promise { term: said.promise.term, proposer: said.promise.proposer },
        position: LogPosition { term: said.last_term, flush_lsn: said.flush_lsn },
        has_begun: said.has_begun,
    })
}

impl Control {
    /// That so few members have a timeline that nothing can have been committed to it: fine only while it is made or deleted.
    fn nowhere(&self, timeline: TimelineId) -> Result<(), ChangeError> {
        if !self.is_made_of(|made| made == timeline)? {
            return Ok(());
        }
        let what = "most safekeepers answer that they do not have it, and a branch is on it; mount their disks";
        Err(ChangeError::Waits(format!("timeline {timeline}: {what}")))
    }

    /// Until those that join have all timelines, near enough to what the others have that these still keep what follows.
    pub(super) async fn copy_all(
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
    pub(super) async fn catch_up_all(
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
        let mut writer: Option<Writer> = None;
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
                writer = self.elect_for(service, timeline, joint).await?.map(|(writer, _)| writer);
                if writer.is_some() {
                    info!(timeline = %timeline.1, "nobody writes it: a writer was elected for the change of the safekeepers");
                }
            }
            tokio::time::sleep(ASK_AGAIN_AFTER).await;
        }
        let lagging: Vec<String> =
            core.lagging().filter_map(|disk| joint.address_of(disk)).map(ToString::to_string).collect();
        let what = match lagging.is_empty() {
            true => "its writer is not connected to the next safekeepers yet".to_owned(),
            false => format!("{} has not caught up yet", lagging.join(", ")),
        };
        Err(ChangeError::Waits(format!("timeline {}: {what}", timeline.1)))
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
