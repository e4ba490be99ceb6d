//! Sequences of both sides.

use std::collections::{BTreeMap, BTreeSet};

use ardent_schema_diff::Identity;
use ardent_types::sql::{self, literal};

use crate::catalog::{Catalog, Sequence, field};
use crate::change_set::SequenceChange;
use crate::compare::{ChangedFiles, CompareOptions};
use crate::error::DiffError;
use crate::session::Session;

/// How many values Postgres logs a sequence ahead, at most (`SEQ_LOG_VALS` in `sequence.c`).
pub const LOGGED_AHEAD: u64 = 32;

/// Which values of a sequence count as one. Postgres logs a sequence some values ahead of what it gave out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SequenceFooting {
    /// Those that both sides show: each side began with what was logged, and one that nobody touched is the same on both.
    #[default]
    Shown,
    /// Also the value that one side shows and the one that it has logged: the other may have read that from the log.
    Logged,
}

/// The sequences that changed, by schema and name.
pub(crate) async fn compare(
    base: &Session,
    head: &Session,
    (old, new): (&Catalog, &Catalog),
    files: &ChangedFiles<'_>,
    options: &CompareOptions,
) -> Result<Vec<SequenceChange>, DiffError> {
    let mut changes = Vec::new();
    for (before, after) in pairs(old, new, options.identity) {
        let Some(shown) = after.or(before) else { continue };
        let may_differ = before.map(|sequence| sequence.file) != after.map(|sequence| sequence.file)
            || files.contains_key(&shown.file)
            || options.whole;
        if !may_differ || !options.wants(&shown.schema, &shown.name) {
            continue;
        }
        let (old, new) = tokio::try_join!(sequence_state(base, before), sequence_state(head, after))?;
        // One with another OID was made anew, on one side alone.
        let is_one = before.map(|sequence| sequence.oid) == after.map(|sequence| sequence.oid);
        let footing = if is_one { options.footing } else { SequenceFooting::Shown };
        let is_rewritten = is_one && before.map(|sequence| sequence.file) != after.map(|sequence| sequence.file);
        if is_rewritten && footing == SequenceFooting::Logged && may_be_only_altered(old, new) {
            continue;
        }
        if let Some(new) = changed_to(old, new, footing) {
            changes.push(SequenceChange {
                schema: shown.schema.clone(),
                name: shown.name.clone(),
                old: old.map(|state| state.last),
                old_called: old.map(|state| state.called),
                new: new.map(|state| state.last),
                new_called: new.map(|state| state.called),
            });
        }
    }
    changes.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
    Ok(changes)
}

fn pairs<'a>(
    old: &'a Catalog,
    new: &'a Catalog,
    identity: Identity,
) -> Vec<(Option<&'a Sequence>, Option<&'a Sequence>)> {
    match identity {
        Identity::Oid => {
            let oids: BTreeSet<u32> = old.sequences.keys().chain(new.sequences.keys()).copied().collect();
            oids.into_iter().map(|oid| (old.sequences.get(&oid), new.sequences.get(&oid))).collect()
        }
        Identity::Name => {
            let mut by_name: BTreeMap<(&str, &str), (Option<&Sequence>, Option<&Sequence>)> = BTreeMap::new();
            for sequence in old.sequences.values() {
                by_name.entry((&sequence.schema, &sequence.name)).or_default().0 = Some(sequence);
            }
            for sequence in new.sequences.values() {
                by_name.entry((&sequence.schema, &sequence.name)).or_default().1 = Some(sequence);
            }
            by_name.into_values().collect()
        }
    }
}

/// What a sequence's row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SequenceState {
    last: i64,
    called: bool,
    /// `last_value` as it was logged: what is there after a crash, and what a compute reads that was made at an LSN.
    logged: i64,
    increment: i64,
}

impl SequenceState {
    /// Whether the two are one: what one shows, the other has logged.
    fn is_logged_by(self, other: SequenceState) -> bool {
        let is_from_log = self.last == self.logged || other.last == other.logged;
        self.called && other.called && self.logged == other.logged && is_from_log
    }

    /// Whether more values were given out here than there.
    fn is_past(self, other: i64) -> bool {
        if self.increment > 0 { self.last > other } else { self.last < other }
    }
}

/// What to show of the head's state, if it is another than the base's. Users see `last_value` and `is_called`: these are compared. A
/// base that is read at an LSN which the head's Postgres ran through shows the logged value, so the head's logged value is taken there as well.
fn changed_to(
    old: Option<SequenceState>,
    new: Option<SequenceState>,
    footing: SequenceFooting,
) -> Option<Option<SequenceState>> {
    let (Some(before), Some(after)) = (old, new) else { return (old != new).then_some(new) };
    if (before.last, before.called) == (after.last, after.called) {
        return None;
    }
    if footing == SequenceFooting::Shown {
        return Some(new);
    }
    if after.is_logged_by(before) {
        return None;
    }
    // It went on, though what was logged for the base had not all been given out: shown as it is, it would seem to have gone back.
    let logged = SequenceState { last: after.logged, ..after };
    Some(Some(if !after.is_past(before.last) && logged.is_past(before.last) { logged } else { after }))
}

/// Whether `ALTER SEQUENCE` may be all that became of the base: it makes a new file, as `RESTART` does, and keeps the value. A base that is
/// read from the log shows up to [`LOGGED_AHEAD`] values more than there were: what lies among those may have been given out before, or be
/// the value that was kept. `RESTART` leaves a sequence that was not called.
fn may_be_only_altered(old: Option<SequenceState>, new: Option<SequenceState>) -> bool {
    let (Some(before), Some(after)) = (old, new) else { return false };
    let behind = (i128::from(before.last) - i128::from(after.last)) * i128::from(before.increment.signum());
    let ahead_max = i128::from(LOGGED_AHEAD) * i128::from(before.increment.unsigned_abs());
    let is_from_log = before.called && before.last == before.logged;
    let logged = SequenceState { last: after.logged, ..after };
    // One that has gone past the base's gave out values since.
    let is_untouched = after.last == after.logged || !logged.is_past(before.last);
    is_from_log && after.called && (0..=ahead_max).contains(&behind) && is_untouched
}

async fn sequence_state(session: &Session, sequence: Option<&Sequence>) -> Result<Option<SequenceState>, DiffError> {
    let Some(sequence) = sequence else { return Ok(None) };
    let name = sql::qualified(&sequence.schema, &sequence.name);
    let row = format!(
        "select s.last_value, s.is_called, s.log_cnt, i.seqincrement from {name} s, pg_sequence i where i.seqrelid = {}::regclass",
        literal(&name)
    );
    let rows = session.query(&row, &[]).await?;
    let row = rows.first().ok_or_else(|| session.unexpected("a sequence without a row"))?;
    let (last, called): (i64, bool) = (field(session, row, 0)?, field(session, row, 1)?);
    let (ahead, increment): (i64, i64) = (field(session, row, 2)?, field(session, row, 3)?);
    // Postgres logs no value that is none of the sequence's.
    let logged = ahead.checked_mul(increment).and_then(|ahead| last.checked_add(ahead)).unwrap_or(last);
    Ok(Some(SequenceState { last, called, logged, increment }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sequence that shows `last` and has logged `ahead` values more.
    fn state(last: i64, ahead: i64) -> SequenceState {
        SequenceState { last, called: true, logged: last + ahead, increment: 1 }
    }

    #[test]
    fn a_sequence_is_changed_where_users_see_another_value() {
        type State = Option<SequenceState>;
        let check = |old: State, new: State, expect: Option<State>| {
            assert_eq!(changed_to(old, new, SequenceFooting::Shown), expect);
        };
        check(Some(state(33, 0)), Some(state(33, 0)), None);
        check(Some(state(33, 0)), Some(state(33, 5)), None);
        check(Some(state(33, 0)), Some(state(34, 32)), Some(Some(state(34, 32))));
        // `RESTART` and one value, near to what was logged before.
        check(Some(state(33, 0)), Some(state(1, 32)), Some(Some(state(1, 32))));
        let unused = SequenceState { called: false, ..state(1, 0) };
        check(Some(unused), Some(unused), None);
        check(Some(unused), Some(state(1, 32)), Some(Some(state(1, 32))));
        check(Some(state(1, 0)), None, Some(None));
        check(None, Some(state(1, 0)), Some(Some(state(1, 0))));
        check(None, None, None);
    }

    #[test]
    fn a_sequence_that_was_logged_ahead_is_the_same_untouched() {
        let check = |old: SequenceState, new: SequenceState, expect: Option<SequenceState>| {
            assert_eq!(changed_to(Some(old), Some(new), SequenceFooting::Logged), expect.map(Some));
        };
        // The base has it from the log; the head has what it gave out itself, or the same after a crash.
        check(state(33, 0), state(5, 28), None);
        check(state(33, 0), state(33, 0), None);
        check(state(5, 28), state(33, 0), None);
        // It went on: past what was logged, or after a restart, which logs anew.
        check(state(33, 0), state(45, 21), Some(state(45, 21)));
        check(state(33, 0), state(6, 32), Some(SequenceState { last: 38, ..state(6, 32) }));
        // It was set back.
        check(state(33, 0), state(10, 0), Some(state(10, 0)));
        // Two that both gave out values of their own.
        check(state(34, 32), state(40, 26), Some(state(40, 26)));
        let unused = SequenceState { called: false, ..state(33, 0) };
        check(unused, state(33, 0), Some(state(33, 0)));
        let down = |last, logged| SequenceState { last, called: true, logged, increment: -1 };
        check(down(-33, -33), down(-5, -33), None);
        check(down(-33, -33), down(-6, -38), Some(down(-38, -38)));
    }

    #[test]
    fn what_alter_sequence_keeps_is_not_set_back() {
        let check = |old: SequenceState, new: SequenceState, expect: bool| {
            assert_eq!(may_be_only_altered(Some(old), Some(new)), expect, "{old:?} {new:?}");
        };
        // 11 was given out, 43 logged; the new file has what was given out, with nothing logged ahead.
        let by = |increment, state: SequenceState| SequenceState { increment, ..state };
        check(state(43, 0), state(11, 0), true);
        check(state(43, 0), by(2, state(11, 0)), true);
        check(state(43, 0), by(-1, state(11, 0)), true);
        check(by(10, state(430, 0)), state(110, 0), true);
        check(by(10, state(430, 0)), state(109, 0), false);
        check(by(-1, state(-43, 0)), by(-1, state(-11, 0)), true);
        // Values were given out since: what was logged for them is past the base's, or they are none that are new to it.
        check(state(43, 0), by(2, state(13, 64)), false);
        assert_eq!(
            changed_to(Some(state(43, 0)), Some(by(2, state(13, 64))), SequenceFooting::Logged),
            Some(Some(SequenceState { last: 77, ..by(2, state(13, 64)) }))
        );
        check(by(10, state(430, 0)), state(111, 32), true);
        check(state(43, 0), by(-1, state(29, -32)), false);
        // It was set back: further than was logged, or by `RESTART`.
        check(state(43, 0), state(10, 0), false);
        check(state(43, 0), state(1, 32), false);
        check(state(43, 0), SequenceState { called: false, ..state(11, 0) }, false);
        // What the base shows is what was given out.
        check(state(43, 5), state(30, 0), false);
        check(SequenceState { called: false, ..state(43, 0) }, state(30, 0), false);
        check(state(11, 0), state(43, 0), false);
        let limits = by(i64::MIN, state(i64::MIN, 0));
        check(limits, by(1, state(i64::MAX, 0)), true);
        assert!(!may_be_only_altered(None, Some(limits)) && !may_be_only_altered(Some(limits), None));
    }
}
