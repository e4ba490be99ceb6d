//! Which term wrote which part of a log.

use ardent_api::wal_service::TermStart;
use ardent_types::{Lsn, Term};

/// The terms of a log, ascending, each with the position from which on its writer wrote. A term that wrote nothing may be
/// missing. Empty: nobody has written yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TermHistory(Vec<TermStart>);

impl TermHistory {
    /// A history from entries that a message or file gave; `None` when terms or positions do not ascend.
    pub fn from_entries(entries: Vec<TermStart>) -> Option<Self> {
        entries.is_sorted_by(|a, b| a.term < b.term && a.lsn <= b.lsn).then_some(TermHistory(entries))
    }

    /// The entries.
    pub fn entries(&self) -> &[TermStart] {
        &self.0
    }

    /// The last term, 0 when nobody has written.
    pub fn last_term(&self) -> Term {
        self.0.last().map_or(Term::new(0), |entry| entry.term)
    }

    /// The part that a log of this length can have: entries at or below `flush_lsn`.
    #[must_use]
    pub fn up_to(&self, flush_lsn: Lsn) -> TermHistory {
        let count = self.0.partition_point(|entry| entry.lsn <= flush_lsn);
        TermHistory(self.0[..count].to_vec())
    }

    /// The writer of `term` starts at `lsn`. Panics unless both are past what is there: that is the caller's bug.
    pub fn push(&mut self, term: Term, lsn: Lsn) {
        if let Some(last) = self.0.last() {
            assert!(last.term < term, "term {term} after term {}", last.term);
            assert!(last.lsn <= lsn, "a term that starts at {lsn} after one that started at {}", last.lsn);
            if last.lsn == lsn {
                // The term before wrote nothing, so no log can hold a byte of it.
                self.0.pop();
            }
        }
        self.0.push(TermStart { term, lsn });
    }

    /// Where the term at `index` ends: where the next one starts, or at `end`.
    fn term_end(&self, index: usize, end: Lsn) -> Lsn {
        self.0.get(index + 1).map_or(end, |next| next.lsn.min(end))
    }

    /// Up to where a log `(theirs, their_flush)` is surely the same as the log of `self`, whose end is `our_end`.
    ///
    /// Two logs are the same up to the end of the last term that both have: within one term there is one writer, and that
    /// writer made them the same up to its start.
    pub fn common_lsn(&self, our_end: Lsn, theirs: &TermHistory, their_flush: Lsn) -> Lsn {
        let shared = self.0.iter().enumerate().rev().find_map(|(ours_at, ours)| {
            let theirs_at = theirs.0.binary_search_by_key(&ours.term, |entry| entry.term).ok()?;
            Some(self.term_end(ours_at, our_end).min(theirs.term_end(theirs_at, their_flush)))
        });
        // Without a shared term only the timeline's start is shared, where the oldest term of either starts.
        let start = || self.0.first().map_or(our_end, |entry| entry.lsn).min(their_flush);
        shared.unwrap_or_else(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(entries: &[(u64, u64)]) -> TermHistory {
        let entries = entries.iter().map(|(term, lsn)| TermStart { term: Term::new(*term), lsn: Lsn::new(*lsn) });
        TermHistory::from_entries(entries.collect()).expect("ascending")
    }

    #[test]
    fn common_lsn_is_the_end_of_the_last_shared_term() {
        let check = |ours: &[(u64, u64)], theirs: &[(u64, u64)], flush: u64, expect: u64| {
            let common = history(ours).common_lsn(Lsn::new(500), &history(theirs), Lsn::new(flush));
            assert_eq!(common, Lsn::new(expect), "{ours:?} and {theirs:?} up to {flush}");
        };
        check(&[(1, 100)], &[], 100, 100);
        check(&[(1, 100), (3, 200)], &[(1, 100)], 150, 150);
        check(&[(1, 100), (3, 200)], &[(1, 100)], 250, 200);
        check(&[(1, 100), (3, 200)], &[(1, 100), (2, 180)], 250, 180);
        check(&[(1, 100), (3, 200)], &[(1, 100), (2, 220)], 250, 200);
        check(&[(2, 100)], &[(1, 100)], 250, 100);
        check(&[(1, 100), (3, 200)], &[(1, 100), (3, 200)], 900, 500);
    }

    #[test]
    fn up_to_and_push() {
        let mut ours = history(&[(1, 100), (3, 200)]);
        assert_eq!(ours.up_to(Lsn::new(199)).last_term(), Term::new(1));
        assert_eq!(ours.up_to(Lsn::new(200)).last_term(), Term::new(3));
        ours.push(Term::new(5), Lsn::new(200));
        assert_eq!(ours, history(&[(1, 100), (5, 200)]));
    }
}
