//! Sequences: set behind everything else, because they do not go back with a transaction.

use std::collections::{BTreeMap, BTreeSet};

use ardent_diff::{LOGGED_AHEAD, RowChange, SequenceChange};
use ardent_schema_diff::{literal, qualified};

use super::Run;
use crate::outcome::ApplyError;
use crate::target::TextRow;

/// A sequence that may be about to go.
pub(super) struct MayGo {
    /// Its OID, as text: another one may have its name afterwards.
    oid: Option<String>,
    /// What sets it to where it is.
    back: SequenceChange,
}

impl Run<'_> {
    /// Where sequences are that may be about to go.
    pub(super) async fn sequences_that_may_go(&self) -> Result<Vec<MayGo>, ApplyError> {
        let mut found = Vec::new();
        for change in self.set.sequences.iter().filter(|change| change.new.is_none()) {
            let name = qualified(&change.schema, &change.name);
            let oid = self.oid_of(&name).await?;
            if oid.is_none() {
                continue;
            }
            let rows = self.target.rows(&format!("select last_value, is_called from {name}")).await?;
            let value = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
            let called = rows.first().and_then(|row| row.get(1)?.as_deref()) == Some("t");
            let (schema, name) = (change.schema.clone(), change.name.clone());
            let (old, old_called) = (None, None);
            let back = SequenceChange { schema, name, old, old_called, new: value, new_called: Some(called) };
            found.push(MayGo { oid, back });
        }
        Ok(found)
    }

    /// The OID of the relation of that name, as text.
    async fn oid_of(&self, name: &str) -> Result<Option<String>, ApplyError> {
        let rows = self.target.rows(&format!("select to_regclass({})::oid", literal(name))).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
    }

    /// What is gone of them comes back where it was.
    pub(super) async fn keep_gone_sequences(&mut self, before: Vec<MayGo>) -> Result<(), ApplyError> {
        for MayGo { oid, back } in before {
            if self.oid_of(&qualified(&back.schema, &back.name)).await? != oid {
                self.applied.inverse.sequences.push(back);
            }
        }
        Ok(())
    }

    /// The sequences of the target before its schema is changed.
    pub(super) async fn sequences_before(&self) -> Result<Before, ApplyError> {
        let mut before = Before::default();
        if !self.set.sequences.iter().any(|change| change.new.is_some()) {
            return Ok(before);
        }
        let sql = "select c.oid, n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'S'";
        for row in self.target.rows(sql).await? {
            let [Some(oid), Some(schema), Some(name)] = &row[..] else {
                return Err(ApplyError::Unexpected { what: format!("{row:?} for a sequence") });
            };
            before.names.insert(oid.clone(), (schema.clone(), name.clone()));
        }
        // Statements may use a sequence, or make one anew for a column that stays.
        if self.rows_chosen || self.set.schema.statements.is_empty() {
            return Ok(before);
        }
        for change in self.set.sequences.iter().filter(|change| change.new.is_some()) {
            let name = qualified(&change.schema, &change.name);
            if let Some(there) = self.sequence_there(&name).await? {
                before.states.insert(name, there);
            }
        }
        Ok(before)
    }

    /// The sequence of that name, if there is one.
    async fn sequence_there(&self, name: &str) -> Result<Option<There>, ApplyError> {
        let Some(oid) = self.oid_of(name).await? else { return Ok(None) };
        let sql = format!(
            "select s.last_value, s.is_called, i.seqincrement, i.seqcycle, i.seqmin, i.seqmax from {name} s, pg_sequence i where i.seqrelid = {oid}"
        );
        let rows = self.target.rows(&sql).await?;
        let there = rows.first().and_then(|row| There::read(oid, row));
        there
            .map(Some)
            .ok_or_else(|| ApplyError::Unexpected { what: format!("{rows:?} for the state of sequence {name}") })
    }

    /// What sequences are to be set to, by the names that they have when everything else is done.
    pub(super) async fn check_sequences(&mut self, before: &Before) -> Result<Vec<Setting>, ApplyError> {
        let mut wanted = Vec::new();
        let belonging = if self.rows_chosen { Some(self.sequences_of_tables().await?) } else { None };
        for change in &self.set.sequences {
            let (Some(value), called) = (change.new, change.new_called.unwrap_or(true)) else { continue };
            let branch = Position { value, called };
            let name = qualified(&change.schema, &change.name);
            if belonging.as_ref().is_some_and(|belonging| !belonging.contains(&name)) {
                continue;
            }
            if belonging.is_some() {
                self.applied.notes.push(format!("sequence {name} belongs to a table that gets rows: it is set too"));
            }
            let Some(now) = self.sequence_there(&name).await? else {
                self.applied.notes.push(format!("sequence {name} is not in the target: it is not set"));
                continue;
            };
            let base = change.old.map(|value| Position { value, called: change.old_called.unwrap_or(true) });
            let (known_as, is_new) = match before.names.get(&now.oid) {
                Some(known_as) => (known_as.clone(), false),
                None => ((change.schema.clone(), change.name.clone()), true),
            };
            // One that was made just now gave out nothing, unless it is in the place of another.
            let was = before.states.get(&name).filter(|was| was.oid == now.oid || (is_new && base.is_some()));
            let target = match (is_new, was) {
                (_, Some(was)) => Some(was.position),
                (true, None) => None,
                (false, None) => Some(now.position),
            };
            let Some(target) = target else {
                let back = base.map(|base| moved(&known_as, branch, base));
                wanted.push(Setting { name, to: branch, back, seen: None });
                continue;
            };
            let increment = was.map_or(now.stride.increment, |was| was.stride.increment);
            match decide(now.stride, increment, base, branch, target) {
                Decision::There if is_new => {
                    let back = Some(moved(&known_as, target, target));
                    wanted.push(Setting { name, to: target, back, seen: None });
                }
                Decision::There => self.applied.already_there += 1,
                Decision::Set { on_both_sides } => {
                    if on_both_sides {
                        self.applied.notes.push(match base {
                            Some(_) => format!(
                                "sequence {name} moved on both sides: it goes on from where the branch is, which is further"
                            ),
                            None => format!(
                                "sequence {name} was in the target already: it goes on from where the branch is, which is further"
                            ),
                        });
                    }
                    let back = Some(moved(&known_as, branch, target));
                    // Nobody else takes numbers of one that was made just now.
                    let seen = (!is_new).then(|| Seen { at: now.position, base, known_as });
                    wanted.push(Setting { name, to: branch, back, seen });
                }
            }
        }
        Ok(wanted)
    }

    /// Sequences that give values to columns of tables which get new rows.
    async fn sequences_of_tables(&self) -> Result<BTreeSet<String>, ApplyError> {
        let mut found = BTreeSet::new();
        for change in &self.set.tables {
            let mut rows = change.rows.iter();
            let inserts = rows.find_map(|row| match row {
                Ok(RowChange::Insert { .. }) => Some(Ok(())),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            });
            if inserts.transpose()?.is_none() {
                continue;
            }
            let table = literal(&qualified(&change.schema, &change.name));
            let sql = format!(
                "select s.oid::regclass from pg_class s join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = s.oid
                  where s.relkind = 'S' and d.refclassid = 'pg_class'::regclass and d.refobjid = to_regclass({table}) and d.deptype in ('a', 'i')
                 union select s.oid::regclass from pg_attrdef f join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid
                    join pg_class s on d.refclassid = 'pg_class'::regclass and s.oid = d.refobjid and s.relkind = 'S'
                  where f.adrelid = to_regclass({table})"
            );
            found.extend(self.target.rows(&sql).await?.into_iter().filter_map(|row| row.into_iter().next().flatten()));
        }
        Ok(found)
    }

    /// Sets a sequence, if nobody has taken a number since it was looked at; else it is looked at again. A dry run could not take that back.
    pub(super) async fn sequence(&mut self, mut setting: Setting) -> Result<(), ApplyError> {
        while !self.options.dry_run && !self.is_set(&setting).await? {
            match self.decided_again(setting).await? {
                Some(again) => setting = again,
                None => {
                    self.applied.already_there += 1;
                    return Ok(());
                }
            }
        }
        self.applied.sequences += 1;
        self.applied.inverse.sequences.extend(setting.back);
        Ok(())
    }

    /// Sets it, by one statement that looks where it is. False if it is not where it was seen.
    async fn is_set(&self, setting: &Setting) -> Result<bool, ApplyError> {
        let Setting { name, to: Position { value, called }, seen, .. } = setting;
        let mut sql = format!("select setval({}, {value}, {called}) from {name} s", literal(name));
        if let Some(Seen { at: Position { value, called }, .. }) = seen {
            sql.push_str(&format!(" where s.last_value = {value} and s.is_called = {called}"));
        }
        Ok(!self.target.rows(&sql).await?.is_empty())
    }

    /// What becomes of a sequence that has gone on since it was seen; nothing, if it is further by now.
    async fn decided_again(&mut self, setting: Setting) -> Result<Option<Setting>, ApplyError> {
        let Setting { name, to, seen, .. } = setting;
        let (Some(seen), Some(now)) = (seen, self.sequence_there(&name).await?) else {
            return Err(ApplyError::Unexpected { what: format!("nothing for the state of sequence {name}") });
        };
        if decide(now.stride, now.stride.increment, seen.base, to, now.position) == Decision::There {
            return Ok(None);
        }
        let back = Some(moved(&seen.known_as, to, now.position));
        Ok(Some(Setting { name, to, back, seen: Some(Seen { at: now.position, ..seen }) }))
    }
}

/// What a sequence's row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    /// `last_value`.
    value: i64,
    /// `is_called`: the value was given out.
    called: bool,
}

/// How a sequence goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stride {
    increment: i64,
    /// How many numbers one that cycles goes through.
    cycle: Option<i128>,
}

impl Stride {
    /// The number that comes next, with no regard to where the sequence ends.
    fn next(self, at: Position) -> i128 {
        i128::from(at.value) + if at.called { i128::from(self.increment) } else { 0 }
    }

    /// How far it is from one position to another, in the direction of the sequence. One that cycles is never behind.
    fn way(self, from: Position, to: Position) -> i128 {
        let ahead = (self.next(to) - self.next(from)) * i128::from(self.increment.signum());
        match self.cycle {
            Some(length) if ahead < 0 => ahead + length,
            _ => ahead,
        }
    }
}

/// A sequence of the target.
#[derive(Debug)]
struct There {
    /// Its OID, as text.
    oid: String,
    position: Position,
    stride: Stride,
}

impl There {
    /// From `last_value`, `is_called`, increment, whether it cycles, least and greatest value.
    fn read(oid: String, row: &TextRow) -> Option<There> {
        let [Some(value), Some(called), Some(increment), Some(cycles), Some(min), Some(max)] = &row[..] else {
            return None;
        };
        let (min, max): (i64, i64) = (min.parse().ok()?, max.parse().ok()?);
        let cycle = (cycles == "t").then(|| i128::from(max) - i128::from(min) + 1);
        let position = Position { value: value.parse().ok()?, called: called == "t" };
        Some(There { oid, position, stride: Stride { increment: increment.parse().ok()?, cycle } })
    }
}

/// The target's sequences before its schema is changed.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// Schema and name of each, by its OID.
    names: BTreeMap<String, (String, String)>,
    /// Those that statements may change, by the quoted name.
    states: BTreeMap<String, There>,
}

/// A sequence that is to be set.
#[derive(Debug)]
pub(super) struct Setting {
    /// Its name, quoted.
    name: String,
    to: Position,
    /// What takes it back; absent: it goes.
    back: Option<SequenceChange>,
    /// Where it is to be when it is set; absent: nobody else sees it.
    seen: Option<Seen>,
}

/// A sequence when it was decided what becomes of it.
#[derive(Debug)]
struct Seen {
    at: Position,
    /// Where it was at the branch point.
    base: Option<Position>,
    /// Schema and name by which it is taken back.
    known_as: (String, String),
}

/// The change that takes a sequence back, by the name that it has then.
fn moved((schema, name): &(String, String), from: Position, to: Position) -> SequenceChange {
    SequenceChange {
        schema: schema.clone(),
        name: name.clone(),
        old: Some(from.value),
        old_called: Some(from.called),
        new: Some(to.value),
        new_called: Some(to.called),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// The target is where the branch is, or further; or the branch did nothing.
    There,
    /// It goes on from where the branch is.
    Set {
        /// The target gave out values too.
        on_both_sides: bool,
    },
}

/// What becomes of a sequence that is in the target: where only the branch moved it, it goes where that is, be it back; where both did, or
/// each has made it, the one that is further in the direction that it has now serves both. `increment` is the one with which the target's
/// values were given out.
fn decide(stride: Stride, increment: i64, base: Option<Position>, branch: Position, target: Position) -> Decision {
    if target == branch || base == Some(branch) {
        return Decision::There;
    }
    if base == Some(target) {
        return Decision::Set { on_both_sides: false };
    }
    let is_untouched = base.is_some_and(|base| is_logged_by(base, target, increment));
    let is_further = match base {
        // A cycle has no first number: what counts is how far each went.
        Some(base) if stride.cycle.is_some() => is_untouched || stride.way(base, branch) > stride.way(base, target),
        _ => Stride { cycle: None, ..stride }.way(target, branch) > 0,
    };
    if is_further { Decision::Set { on_both_sides: !is_untouched } } else { Decision::There }
}

/// Whether the target is where the branch began: that was read from the log, which is some values ahead of what was given out.
fn is_logged_by(base: Position, target: Position, increment: i64) -> bool {
    let ahead = (i128::from(base.value) - i128::from(target.value)) * i128::from(increment.signum());
    let ahead_max = i128::from(LOGGED_AHEAD) * i128::from(increment.unsigned_abs());
    base.called && target.called && (0..=ahead_max).contains(&ahead)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: Stride = Stride { increment: 1, cycle: None };
    const DOWN: Stride = Stride { increment: -1, cycle: None };
    const SET: Decision = Decision::Set { on_both_sides: false };
    const SET_ON_BOTH: Decision = Decision::Set { on_both_sides: true };

    fn at(value: i64) -> Position {
        Position { value, called: true }
    }

    fn unused(value: i64) -> Position {
        Position { value, called: false }
    }

    #[test]
    fn the_one_that_is_further_serves_both() {
        let check = |stride: Stride, base: Option<i64>, branch: i64, target: i64, expect: Decision| {
            let decided = decide(stride, stride.increment, base.map(at), at(branch), at(target));
            assert_eq!(decided, expect, "{stride:?} {base:?} {branch} {target}");
        };
        // The branch alone moved it, or set it back.
        check(UP, Some(100), 120, 100, SET);
        check(UP, Some(100), 5, 100, SET);
        check(DOWN, Some(-100), -120, -100, SET);
        // Applied already, or on both sides.
        check(UP, Some(100), 120, 120, Decision::There);
        check(UP, Some(100), 120, 130, Decision::There);
        check(UP, Some(100), 120, 110, SET_ON_BOTH);
        check(DOWN, Some(-100), -120, -130, Decision::There);
        check(DOWN, Some(-100), -120, -110, SET_ON_BOTH);
        // Both made it.
        check(UP, None, 3, 3, Decision::There);
        check(UP, None, 3, 50, Decision::There);
        check(UP, None, 50, 3, SET_ON_BOTH);
        check(DOWN, None, -3, -50, Decision::There);
        check(DOWN, None, -50, -3, SET_ON_BOTH);
        // The branch did nothing.
        check(UP, Some(100), 100, 7, Decision::There);
    }

    #[test]
    fn what_the_log_is_ahead_is_no_move_of_the_target() {
        let check = |stride: Stride, base: i64, branch: i64, target: i64, expect: Decision| {
            let decided = decide(stride, stride.increment, Some(at(base)), at(branch), at(target));
            assert_eq!(decided, expect, "{stride:?} {base} {branch} {target}");
        };
        check(UP, 43, 60, 11, SET);
        check(UP, 43, 60, 10, SET_ON_BOTH);
        check(UP, 43, 20, 11, SET);
        check(UP, 43, 5, 11, Decision::There);
        check(Stride { increment: 10, cycle: None }, 430, 600, 110, SET);
        check(DOWN, -43, -60, -11, SET);
        check(DOWN, -43, -60, -10, SET_ON_BOTH);
        // One that nobody had called is not what the log explains.
        assert_eq!(decide(UP, 1, Some(at(33)), at(40), unused(1)), SET_ON_BOTH);
    }

    #[test]
    fn a_number_that_was_not_given_out_comes_next() {
        assert_eq!(decide(UP, 1, None, at(1), unused(1)), SET_ON_BOTH);
        assert_eq!(decide(UP, 1, None, unused(1), at(1)), Decision::There);
        assert_eq!(decide(UP, 1, None, unused(2), at(1)), Decision::There);
        let limits = Stride { increment: i64::MIN, cycle: Some(1 << 64) };
        assert_eq!(decide(limits, i64::MIN, Some(at(i64::MAX)), at(i64::MIN), at(0)), SET_ON_BOTH);
    }

    #[test]
    fn one_that_cycles_is_measured_from_the_branch_point() {
        let round = Stride { increment: 1, cycle: Some(100) };
        let check = |base: i64, branch: i64, target: i64, expect: Decision| {
            assert_eq!(decide(round, 1, Some(at(base)), at(branch), at(target)), expect, "{base} {branch} {target}");
        };
        check(90, 3, 95, SET_ON_BOTH);
        check(90, 95, 3, Decision::There);
        check(90, 3, 80, SET);
        check(40, 60, 50, SET_ON_BOTH);
        let back = Stride { increment: -1, cycle: Some(100) };
        assert_eq!(decide(back, -1, Some(at(10)), at(98), at(5)), SET_ON_BOTH);
    }

    #[test]
    fn the_direction_that_it_has_then_counts() {
        // It was at 100 and went up, and goes down on the branch; the target went on, or was never there. And the other way round.
        assert_eq!(decide(DOWN, 1, Some(at(100)), at(90), at(120)), SET_ON_BOTH);
        assert_eq!(decide(UP, -1, Some(at(-100)), at(-90), at(-120)), SET_ON_BOTH);
        assert_eq!(decide(DOWN, 1, Some(at(100)), at(90), at(80)), Decision::There);
    }
}
