//! What must always hold. Each has an id, one sentence and one function; the simulation, tests and the production code's
//! asserts call the same functions.

use ardent_api::wal_service::TermStart;
use ardent_types::{Lsn, Term};

use crate::configuration::{Configuration, DiskId, MemberGeneration};

/// An invariant does not hold: this is a bug, or a disk or peer broke its promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{id} is broken: {what}")]
pub struct Violation {
    /// The invariant.
    pub id: &'static str,
    /// What was seen.
    pub what: String,
}

fn check(holds: bool, id: &'static str, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { id, what: what() }) }
}

/// SK-1: an acceptor's durable term never decreases, over crashes too.
pub fn term_never_decreases(before: Term, after: Term) -> Result<(), Violation> {
    check(after >= before, "SK-1", || format!("term {before} became {after}"))
}

/// SK-2: at most one proposer is elected in a term.
pub fn one_writer_per_term(term: Term, first: u128, second: u128) -> Result<(), Violation> {
    check(first == second, "SK-2", || format!("proposers {first} and {second} were both elected in term {term}"))
}

/// SK-3: two acceptors whose logs share a term hold the same bytes up to the end of that term in both.
pub fn logs_match(common: Lsn, first_difference: Option<Lsn>) -> Result<(), Violation> {
    check(first_difference.is_none_or(|at| at >= common), "SK-3", || {
        format!("logs that are the same up to {common} by their terms differ at {first_difference:?}")
    })
}

/// SK-4: whatever a proposer reported as committed is part of every later elected writer's log, unchanged.
pub fn elected_log_holds_committed(committed: &[u8], log: &[u8]) -> Result<(), Violation> {
    check(log.starts_with(committed), "SK-4", || {
        let same = committed.iter().zip(log).take_while(|(a, b)| a == b).count();
        format!("{} bytes were committed, an elected log of {} bytes has the first {same}", committed.len(), log.len())
    })
}

/// SK-5: an acceptor's commit position is never past what is durable on it.
pub fn commit_is_durable(commit: Lsn, flush: Lsn) -> Result<(), Violation> {
    check(commit <= flush, "SK-5", || format!("commit {commit} is past the durable end {flush}"))
}

/// SK-6: what an acceptor acknowledged as durable is there after a crash, up to the last whole record.
pub fn acknowledged_survives(acknowledged_records_end: Lsn, recovered: Lsn) -> Result<(), Violation> {
    check(recovered >= acknowledged_records_end, "SK-6", || {
        format!("records up to {acknowledged_records_end} were acknowledged, {recovered} was recovered")
    })
}

/// SK-7: the commit position is a record end.
pub fn commit_is_record_end(commit: Lsn, is_record_end: bool) -> Result<(), Violation> {
    check(is_record_end, "SK-7", || format!("commit {commit} is in the middle of a record"))
}

/// SK-8: what a reader was served is never undone: it is a prefix of what is committed.
pub fn served_is_committed(served: &[u8], committed: &[u8]) -> Result<(), Violation> {
    check(committed.starts_with(served), "SK-8", || {
        format!("{} bytes were served that are not a prefix of the {} committed ones", served.len(), committed.len())
    })
}

/// SK-9: a term history ascends in terms and positions.
pub fn history_ascends(history: &[TermStart]) -> Result<(), Violation> {
    check(history.is_sorted_by(|a, b| a.term < b.term && a.lsn <= b.lsn), "SK-9", || format!("{history:?}"))
}

/// SK-10: what a proposer reported as flushed and committed is on the disks of a quorum.
pub fn quorum_holds_committed(holders: usize, quorum: usize, commit: Lsn) -> Result<(), Violation> {
    check(holders >= quorum, "SK-10", || {
        format!("commit {commit} is durable on {holders} acceptors, {quorum} are needed")
    })
}

/// SK-11: while a quorum is up and connected and only one proposer asks, it is elected and its WAL is committed.
pub fn progress_is_made(committed: bool, waited_us: u64) -> Result<(), Violation> {
    check(committed, "SK-11", || format!("nothing was committed in {waited_us} us without faults"))
}

/// SK-12: an acceptor's durable generation never decreases, over crashes too.
pub fn generation_never_decreases(before: MemberGeneration, after: MemberGeneration) -> Result<(), Violation> {
    check(after >= before, "SK-12", || format!("generation {before} became {after}"))
}

/// SK-13: a generation is one configuration, everywhere. (Generation 0 is none: nobody was told of one.)
pub fn one_configuration_per_generation(first: &Configuration, second: &Configuration) -> Result<(), Violation> {
    let generation = first.generation();
    let same = generation != second.generation() || generation == MemberGeneration::default() || first == second;
    check(same, "SK-13", || format!("{first:?} and {second:?} have the same generation"))
}

/// SK-14: when a change of members is settled, a majority of the next members holds everything that is committed.
pub fn next_members_hold_committed(settled: &Configuration, holds: impl Fn(DiskId) -> bool) -> Result<(), Violation> {
    check(settled.is_quorum(&holds), "SK-14", || {
        let holders = settled.members().iter().filter(|disk| holds(**disk)).count();
        format!("{holders} of {} members of generation {} hold it", settled.members().len(), settled.generation())
    })
}

/// SK-15: an answer counts only for the disk that it was given for.
pub fn answer_is_the_members(member: DiskId, answered: DiskId) -> Result<(), Violation> {
    check(member == answered, "SK-15", || format!("disk {answered} was counted for disk {member}"))
}

/// SK-16: a change of members that a quorum of all of them could end does end, or is cancelled, without faults.
pub fn change_ends(ended: bool, waited_us: u64) -> Result<(), Violation> {
    check(ended, "SK-16", || format!("the change was on its way {waited_us} us after the faults"))
}

/// SK-17: the log that an election finds is one that the last writer before made, up to a record end of it: nobody else has added to it.
pub fn found_log_is_its_makers(found: &[u8], made: &[u8]) -> Result<(), Violation> {
    check(made.starts_with(found), "SK-17", || {
        let same = made.iter().zip(found).take_while(|(a, b)| a == b).count();
        format!("of {} bytes that were found, the writer that is named for them made the first {same}", found.len())
    })
}
