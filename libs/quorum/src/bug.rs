//! Deliberate bugs, so that the simulation can show that it finds them. Outside tests none can be switched on.

/// A way to break the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "switched on by the simulation only"))]
pub(crate) enum Bug {
    /// A vote is answered before it is durable.
    VoteNotPersisted,
    /// A second proposer gets the same term.
    VoteTwice,
    /// WAL is acknowledged when it is written, before it is fsynced.
    AckBeforeFsync,
    /// WAL of an older term is accepted.
    StaleTermAccepted,
    /// A tail that diverges from the elected writer's log is kept.
    NoTruncation,
    /// The term history of an elected writer is not durable before it is acknowledged.
    HistoryNotPersisted,
    /// A `Begin` that arrives twice cuts the log twice.
    BeginTwice,
    /// WAL that starts past the end of the log is accepted.
    GapAccepted,
    /// Commit after one acknowledgement instead of a quorum's.
    CommitAtOne,
    /// The election is won with a minority of votes.
    MinorityElection,
    /// The donor is chosen by length alone, not by its last term.
    DonorByLength,
    /// The log is not completed on a quorum before the writer starts.
    NoCompletion,
    /// An acceptor takes what it has made durable for committed, although there are others.
    CommitUnasked,
    /// WAL that becomes durable after another term was promised is still taken for committed. (Found by the simulation, seed 47 of one node.)
    CommitAfterPromise,
    /// The commit position moves to where bytes are, not to a record end.
    CommitMidRecord,
    /// WAL fetched for a laggard is not protected by the term.
    FetchUnfenced,
    /// WAL that was fetched for an earlier election of the same proposer is used. (Found by the simulation, seed 5667 of five
    /// nodes.)
    StaleFetch,
    /// A configuration that an acceptor takes is not durable before it answers.
    GenerationNotPersisted,
    /// Writers of an older configuration are answered.
    OldGenerationAccepted,
    /// What was written under the configuration before is still acknowledged to its writer.
    AckAfterChange,
    /// What was to be committed under the configuration before is still taken for committed.
    CommitAfterChange,
    /// While members change, a majority of the next ones decides.
    NextMajorityOnly,
    /// While members change, a majority of the old ones decides.
    OldMajorityOnly,
    /// A next member counts before it holds what the old ones did.
    CountedTooEarly,
    /// A next member counts by what it may yet be told to cut off. (Found by the simulation, seed 226 of one node and three spare.)
    CountedBeforeBegin,
    /// Whoever answers at a member's address counts for it.
    DiskNotChecked,
    /// A writer whose clock was set back waits until it shows what it showed before.
    ClockNeverSetBack,
    /// A writer that has to try again names for the log the one that it found at first.
    PreviousTermKept,
}

/// The bugs that are switched on: none outside tests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bugs {
    #[cfg(test)]
    active: Option<Bug>,
}

impl Bugs {
    #[cfg(test)]
    pub(crate) fn with(active: Option<Bug>) -> Self {
        Bugs { active }
    }

    #[cfg(test)]
    pub(crate) fn has(self, bug: Bug) -> bool {
        self.active == Some(bug)
    }

    #[cfg(not(test))]
    #[inline]
    pub(crate) fn has(self, _bug: Bug) -> bool {
        false
    }
}
