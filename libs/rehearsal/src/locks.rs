//! Which locks were held from when to when, from looks at what is held.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// How a table is locked, from weak to strong, in Postgres's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[allow(missing_docs, reason = "each is named by Postgres's own word")]
pub enum LockMode {
    #[serde(rename = "ACCESS SHARE")]
    AccessShare,
    #[serde(rename = "ROW SHARE")]
    RowShare,
    #[serde(rename = "ROW EXCLUSIVE")]
    RowExclusive,
    #[serde(rename = "SHARE UPDATE EXCLUSIVE")]
    ShareUpdateExclusive,
    #[serde(rename = "SHARE")]
    Share,
    #[serde(rename = "SHARE ROW EXCLUSIVE")]
    ShareRowExclusive,
    #[serde(rename = "EXCLUSIVE")]
    Exclusive,
    #[serde(rename = "ACCESS EXCLUSIVE")]
    AccessExclusive,
}

/// What others cannot do to a table while a lock on it is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocks {
    /// They read and write; at most the like of `ALTER TABLE`, `CREATE INDEX` and `VACUUM` waits.
    Neither,
    /// `INSERT`, `UPDATE` and `DELETE` wait.
    Writes,
    /// `SELECT` waits too.
    ReadsAndWrites,
}

impl LockMode {
    /// From what `pg_locks` calls it.
    pub(crate) fn of_pg_locks(mode: &str) -> Option<LockMode> {
        Some(match mode {
            "AccessShareLock" => LockMode::AccessShare,
            "RowShareLock" => LockMode::RowShare,
            "RowExclusiveLock" => LockMode::RowExclusive,
            "ShareUpdateExclusiveLock" => LockMode::ShareUpdateExclusive,
            "ShareLock" => LockMode::Share,
            "ShareRowExclusiveLock" => LockMode::ShareRowExclusive,
            "ExclusiveLock" => LockMode::Exclusive,
            "AccessExclusiveLock" => LockMode::AccessExclusive,
            // SIReadLock blocks nobody.
            _ => return None,
        })
    }

    /// What others cannot do meanwhile: by the conflict table of "Explicit Locking" in Postgres's documentation, reading takes ACCESS
    /// SHARE, writing ROW EXCLUSIVE.
    pub fn blocks(self) -> Blocks {
        match self {
            LockMode::AccessExclusive => Blocks::ReadsAndWrites,
            LockMode::Exclusive | LockMode::ShareRowExclusive | LockMode::Share => Blocks::Writes,
            _ => Blocks::Neither,
        }
    }
}

impl fmt::Display for LockMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LockMode::AccessShare => "ACCESS SHARE",
            LockMode::RowShare => "ROW SHARE",
            LockMode::RowExclusive => "ROW EXCLUSIVE",
            LockMode::ShareUpdateExclusive => "SHARE UPDATE EXCLUSIVE",
            LockMode::Share => "SHARE",
            LockMode::ShareRowExclusive => "SHARE ROW EXCLUSIVE",
            LockMode::Exclusive => "EXCLUSIVE",
            LockMode::AccessExclusive => "ACCESS EXCLUSIVE",
        })
    }
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Blocks::Neither => "neither reads nor writes",
            Blocks::Writes => "writes",
            Blocks::ReadsAndWrites => "reads and writes",
        })
    }
}

/// A lock on a relation, by its OID.
pub(crate) type Lock = (u32, LockMode);

/// A lock, from when to when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    pub lock: Lock,
    /// Statements are counted from 0: the one that took it, and the one that let go of it.
    pub taken_by: usize,
    pub until: usize,
    /// Its longest possible extent: from the last moment at which it was known not to be held, to the first at which it was known
    /// not to be held any more.
    pub from: Duration,
    pub to: Duration,
}

/// Follows a session's locks.
#[derive(Debug, Default)]
pub(crate) struct LockWatch {
    statement: usize,
    held: BTreeMap<Lock, (usize, Duration)>,
    done: Vec<Hold>,
}

impl LockWatch {
    /// What is seen from here on is this statement's.
    pub fn statement(&mut self, number: usize) {
        self.statement = number;
    }

    /// At some moment between the two, these were held.
    pub fn see(&mut self, after: Duration, by: Duration, held: &BTreeSet<Lock>) {
        let gone: Vec<Lock> = self.held.keys().filter(|lock| !held.contains(lock)).copied().collect();
        for lock in gone {
            self.let_go(lock, by);
        }
        for lock in held {
            self.held.entry(*lock).or_insert((self.statement, after));
        }
    }

    /// The transaction has ended: nothing is held any more.
    pub fn end(&mut self, at: Duration) {
        self.see(at, at, &BTreeSet::new());
    }

    fn let_go(&mut self, lock: Lock, at: Duration) {
        if let Some((taken_by, from)) = self.held.remove(&lock) {
            self.done.push(Hold { lock, taken_by, until: self.statement, from, to: at });
        }
    }

    /// All that were let go of.
    pub fn holds(self) -> Vec<Hold> {
        self.done
    }
}

/// The longest stretch that pieces of time make together, if there is a piece.
pub(crate) fn longest(mut pieces: Vec<(Duration, Duration)>) -> Option<(Duration, Duration)> {
    pieces.sort_unstable();
    let mut longest: Option<(Duration, Duration)> = None;
    let mut stretch: Option<(Duration, Duration)> = None;
    for (from, to) in pieces {
        let joined = match stretch {
            Some((start, end)) if from <= end => (start, end.max(to)),
            _ => (from, to),
        };
        let length = |(from, to): (Duration, Duration)| to.saturating_sub(from);
        if longest.is_none_or(|longest| length(joined) > length(longest)) {
            longest = Some(joined);
        }
        stretch = Some(joined);
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn locks_are_held_from_the_last_look_without_them_to_the_first_without_them_again() {
        let (weak, strong) = ((1, LockMode::RowExclusive), (1, LockMode::AccessExclusive));
        let mut watch = LockWatch::default();
        watch.statement(3);
        watch.see(ms(10), ms(11), &BTreeSet::new());
        watch.see(ms(20), ms(22), &BTreeSet::from([weak]));
        watch.see(ms(30), ms(32), &BTreeSet::from([weak, strong]));
        watch.statement(4);
        watch.see(ms(40), ms(42), &BTreeSet::from([strong]));
        watch.end(ms(50));
        let hold = |lock, taken_by, until, from, to| Hold { lock, taken_by, until, from: ms(from), to: ms(to) };
        assert_eq!(watch.holds(), [hold(weak, 3, 4, 20, 42), hold(strong, 3, 4, 30, 50)]);
    }

    #[test]
    fn a_lock_that_is_taken_again_is_another() {
        let lock = (1, LockMode::Share);
        let mut watch = LockWatch::default();
        watch.see(ms(1), ms(2), &BTreeSet::from([lock]));
        watch.end(ms(5));
        watch.statement(1);
        watch.see(ms(6), ms(7), &BTreeSet::from([lock]));
        watch.end(ms(9));
        let times: Vec<_> = watch.holds().iter().map(|hold| (hold.taken_by, hold.from, hold.to)).collect();
        assert_eq!(times, [(0, ms(1), ms(5)), (1, ms(6), ms(9))]);
    }

    #[test]
    fn stretches_are_joined() {
        assert_eq!(longest(Vec::new()), None);
        let pieces = vec![(ms(8), ms(9)), (ms(1), ms(4)), (ms(3), ms(7)), (ms(2), ms(3))];
        assert_eq!(longest(pieces), Some((ms(1), ms(7))));
    }

    #[test]
    fn modes_block_what_postgres_documents() {
        for (name, blocks) in [
            ("AccessShareLock", Blocks::Neither),
            ("RowShareLock", Blocks::Neither),
            ("RowExclusiveLock", Blocks::Neither),
            ("ShareUpdateExclusiveLock", Blocks::Neither),
            ("ShareLock", Blocks::Writes),
            ("ShareRowExclusiveLock", Blocks::Writes),
            ("ExclusiveLock", Blocks::Writes),
            ("AccessExclusiveLock", Blocks::ReadsAndWrites),
        ] {
            assert_eq!(LockMode::of_pg_locks(name).map(LockMode::blocks), Some(blocks), "{name}");
        }
        assert_eq!(LockMode::of_pg_locks("SIReadLock"), None);
    }
}
