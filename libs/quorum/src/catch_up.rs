//! When a change of members may be settled, for one timeline.
//!
//! ```text
//!  ask all of the old members to take the joint configuration ──a majority has──► what they had promised and held is the goal
//!  ask the next members to take it, with the goal's promise ──a majority, and all that join, have reached it──► caught up
//! ```
//!
//! Who brings the next members' logs there is the timeline's writer, or, where it has none, one that is elected for it.

use std::collections::BTreeMap;

use ardent_api::wal_service::ProposerId;
use ardent_types::{Lsn, Term};

use crate::bug::{Bug, Bugs};
use crate::configuration::{Configuration, DiskId};

/// A term, and who was promised it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The term.
    pub term: Term,
    /// To whom; [`ProposerId::NONE`]: to nobody who could claim it.
    pub proposer: ProposerId,
}

/// How far a log goes: logs are compared by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    /// The last term at or below `flush_lsn`.
    pub term: Term,
    /// First byte that is not durable.
    pub flush_lsn: Lsn,
}

/// Where an acceptor stands, answered after the configuration that came with the question is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What it goes by.
    pub configuration: Configuration,
    /// Its promise.
    pub promise: Promise,
    /// Its log's end.
    pub position: LogPosition,
    /// Whether the writer that it promised its term has begun. If not, that one may yet cut the log back to what it was when it was promised.
    pub has_begun: bool,
}

/// How a change stands for one timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatchUpVerdict {
    /// Ask again: the old members have not all the say yet, or next members lag.
    Pending,
    /// The change may be settled.
    CaughtUp,
    /// Somebody goes by a later configuration already.
    Superseded(Configuration),
}

#[derive(Clone, Copy, Debug)]
struct Goal {
    promise: Promise,
    position: LogPosition,
}

/// The state machine. It may be dropped and made again at any time: it only asks.
#[derive(Debug)]
pub struct CatchUp {
    joint: Configuration,
    standings: BTreeMap<DiskId, Standing>,
    goal: Option<Goal>,
    superseded: Option<Configuration>,
    bugs: Bugs,
}

impl CatchUp {
    /// For the change that `joint` is in. Panics if it is in none: that is the caller's bug.
    pub fn new(joint: Configuration) -> Self {
        assert!(joint.next().is_some(), "generation {} changes nothing", joint.generation());
        CatchUp { joint, standings: BTreeMap::new(), goal: None, superseded: None, bugs: Bugs::default() }
    }

    #[cfg(test)]
    pub(crate) fn set_bugs(&mut self, bugs: Bugs) {
        self.bugs = bugs;
    }

    /// The configuration that it is about.
    pub fn joint(&self) -> &Configuration {
        &self.joint
    }

    /// Who is to be asked now, to take [`CatchUp::joint`] and this promise.
    pub fn questions(&self) -> Vec<(DiskId, Option<Promise>)> {
        let promise = self.goal.map(|goal| goal.promise);
        self.joint.everyone().into_iter().map(|disk| (disk, promise)).collect()
    }

    /// An answer from this disk.
    pub fn heard(&mut self, disk: DiskId, standing: Standing) {
        if standing.configuration.generation() > self.joint.generation() {
            self.superseded = Some(standing.configuration);
        } else if standing.configuration == self.joint {
            self.standings.insert(disk, standing);
            self.set_goal();
        }
    }

    /// Whatever a majority of the old members took part in before, one of a majority that has taken the joint configuration knows of:
    /// no writer gets a term of the old configuration alone any more, and nothing more is committed in it.
    fn set_goal(&mut self) {
        let members = self.joint.members();
        let taken = || members.iter().filter_map(|disk| self.standings.get(disk));
        if self.goal.is_some() || taken().count() <= members.len() / 2 {
            return;
        }
        let promise = taken().map(|standing| standing.promise).max_by_key(|promise| promise.term);
        let position = taken().map(|standing| standing.position).max();
        self.goal = promise.zip(position).map(|(promise, position)| Goal { promise, position });
    }

    /// Whether this disk knows all that was promised, and holds all that was committed, before the change.
    pub fn is_caught_up(&self, disk: DiskId) -> bool {
        let Some((goal, standing)) = self.goal.zip(self.standings.get(&disk)) else { return false };
        let promised = standing.promise.term >= goal.promise.term;
        let stays = standing.has_begun || self.bugs.has(Bug::CountedBeforeBegin);
        let holds = standing.position >= goal.position || self.bugs.has(Bug::CountedTooEarly);
        promised && holds && stays
    }

    /// Next members that have not caught up.
    pub fn lagging(&self) -> impl Iterator<Item = DiskId> {
        self.joint.next().into_iter().flatten().filter(|disk| !self.is_caught_up(**disk)).copied()
    }

    /// How it stands.
    pub fn verdict(&self) -> CatchUpVerdict {
        if let Some(later) = &self.superseded {
            return CatchUpVerdict::Superseded(later.clone());
        }
        let next = self.joint.next().expect("checked when it was made");
        let caught_up = next.iter().filter(|disk| self.is_caught_up(**disk)).count();
        // One that joins is there to hold what it is told: the change waits for it, also where a majority does without.
        if caught_up > next.len() / 2 && self.joint.joining().all(|disk| self.is_caught_up(disk)) {
            CatchUpVerdict::CaughtUp
        } else {
            CatchUpVerdict::Pending
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: DiskId = DiskId::new(1);
    const B: DiskId = DiskId::new(2);
    const C: DiskId = DiskId::new(3);
    const D: DiskId = DiskId::new(4);

    fn standing(configuration: &Configuration, promised: u64, term: u64, flush: u64) -> Standing {
        Standing {
            configuration: configuration.clone(),
            promise: Promise { term: Term::new(promised), proposer: ProposerId::new(7) },
            position: LogPosition { term: Term::new(term), flush_lsn: Lsn::new(flush) },
            has_begun: true,
        }
    }

    #[test]
    fn one_that_joins_counts_when_it_has_what_the_old_ones_had() {
        let joint = Configuration::first([A, B, C]).begin_change([A, B, D]).expect("settled");
        let mut catch_up = CatchUp::new(joint.clone());
        catch_up.heard(A, standing(&joint, 5, 3, 200));
        assert_eq!(catch_up.questions()[0], (A, None));
        catch_up.heard(B, standing(&joint, 4, 4, 100));
        let promise = Promise { term: Term::new(5), proposer: ProposerId::new(7) };
        assert_eq!(catch_up.questions()[3], (D, Some(promise)));
        let mut check = |disk, promised, term, flush, expect| {
            catch_up.heard(disk, standing(&joint, promised, term, flush));
            assert_eq!(catch_up.verdict(), expect, "{disk} with {promised} {term} {flush}");
        };
        check(D, 5, 3, 300, CatchUpVerdict::Pending);
        check(D, 4, 4, 100, CatchUpVerdict::Pending);
        check(D, 5, 4, 100, CatchUpVerdict::Pending);
        check(B, 5, 4, 100, CatchUpVerdict::CaughtUp);
        check(D, 5, 4, 99, CatchUpVerdict::Pending);
        check(D, 6, 5, 50, CatchUpVerdict::CaughtUp);
        catch_up.heard(D, Standing { has_begun: false, ..standing(&joint, 6, 5, 50) });
        assert_eq!(catch_up.verdict(), CatchUpVerdict::Pending, "what it has may yet be cut off");
    }

    #[test]
    fn answers_in_other_configurations_do_not_count() {
        let first = Configuration::first([A]);
        let joint = first.begin_change([B]).expect("settled");
        let mut catch_up = CatchUp::new(joint.clone());
        catch_up.heard(A, standing(&first, 1, 1, 100));
        catch_up.heard(B, standing(&joint, 1, 1, 100));
        assert_eq!(catch_up.verdict(), CatchUpVerdict::Pending);
        let later = joint.cancelled().expect("a change is on its way");
        catch_up.heard(A, standing(&later, 1, 1, 100));
        assert_eq!(catch_up.verdict(), CatchUpVerdict::Superseded(later));
    }
}
