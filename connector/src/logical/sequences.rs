//! Sequences: their values are not among the changes, so they are read and set.
//!
//! On the root they are ahead of production's, by about what production takes until they are read again, so that no branch gives a value
//! that a row has already. One whose bounds were widened on production ends at those that it has here, which is no error: it gives no
//! value then. That its definition is another one is told with the rest of the schema.

use std::collections::HashMap;

use ardent_api::control::LogicalOptions;
use ardent_types::sql::{literal, qualified};
use tokio_postgres::Client;

use crate::logical::error::{LogicalError, root, source};

const VALUES: &str = "
    select s.schemaname::text, s.sequencename::text, s.last_value, s.increment_by, s.cycle, s.min_value, s.max_value
    from pg_catalog.pg_sequences s
    where s.schemaname !~ '^pg_' and (cardinality($1::text[]) = 0 or s.schemaname = any ($1)) and s.last_value is not null";

/// A sequence that has given a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SequenceValue {
    pub schema: String,
    pub name: String,
    pub last: i64,
    pub increment: i64,
    pub cycles: bool,
    pub min: i64,
    pub max: i64,
}

/// Values that a sequence is ahead at least.
const AHEAD_MIN: i64 = 32;

/// What the root's sequences are at, and what production's were when they were read last.
#[derive(Debug, Default)]
pub(crate) struct Sequences {
    here: Option<HashMap<(String, String), i64>>,
    seen: HashMap<(String, String), i64>,
}

impl Sequences {
    /// The root's are to be read again.
    pub fn forget(&mut self) {
        self.here = None;
    }

    /// Whether the root has to be asked before anything can be said.
    pub fn must_ask(&self) -> bool {
        self.here.is_none()
    }

    pub fn learn(&mut self, here: Vec<SequenceValue>) {
        self.here = Some(here.into_iter().map(|own| ((own.schema, own.name), own.last)).collect());
    }

    /// The statements that bring the root's ahead of production's.
    pub fn statements(&mut self, production: &[SequenceValue]) -> Vec<String> {
        let mut statements = Vec::new();
        let here = self.here.get_or_insert_default();
        for sequence in production {
            let key = (sequence.schema.clone(), sequence.name.clone());
            let before = self.seen.insert(key.clone(), sequence.last);
            if !is_behind(sequence, here.get(&key).copied()) {
                continue;
            }
            let value = sequence.ahead(before);
            statements.push(set(sequence, value));
            here.insert(key, value);
        }
        statements
    }
}

impl SequenceValue {
    /// A value that production will not have given before it is read again, as far as one can tell from how it went since it was at
    /// `before`.
    fn ahead(&self, before: Option<i64>) -> i64 {
        if self.cycles {
            return self.last;
        }
        let taken = before.map_or(0, |before| self.last.abs_diff(before));
        let ahead = i64::try_from(taken.saturating_mul(2))
            .unwrap_or(i64::MAX)
            .max(self.increment.saturating_abs().saturating_mul(AHEAD_MIN));
        let value = if self.increment > 0 { self.last.saturating_add(ahead) } else { self.last.saturating_sub(ahead) };
        value.clamp(self.min, self.max)
    }
}

/// Sets a sequence of the root, within the bounds that it has there. Of one that production has made since the import, nothing is known
/// there.
fn set(sequence: &SequenceValue, value: i64) -> String {
    let name = literal(&qualified(&sequence.schema, &sequence.name));
    format!(
        "select pg_catalog.setval(s.seqrelid, least(greatest('{value}'::bigint, s.seqmin), s.seqmax)) \
         from pg_catalog.pg_sequence s where s.seqrelid = pg_catalog.to_regclass({name})"
    )
}

pub(crate) async fn read(
    client: &Client,
    options: &LogicalOptions,
) -> Result<Vec<SequenceValue>, tokio_postgres::Error> {
    let rows = client.query(VALUES, &[&options.schemas]).await?;
    let value = |row: &tokio_postgres::Row| SequenceValue {
        schema: row.get(0),
        name: row.get(1),
        last: row.get(2),
        increment: row.get(3),
        cycles: row.get(4),
        min: row.get(5),
        max: row.get(6),
    };
    Ok(rows.iter().map(value).collect())
}

/// Whether a sequence that is at `here` would give a value that production's may have given.
pub(crate) fn is_behind(production: &SequenceValue, here: Option<i64>) -> bool {
    match here {
        None => true,
        // There is no ahead on a circle.
        Some(here) if production.cycles => here != production.last,
        Some(here) if production.increment > 0 => here < production.last,
        Some(here) => here > production.last,
    }
}

/// Sets the root's sequences that are behind; how many.
pub(crate) async fn bring_up(
    production: &Client,
    client: &Client,
    options: &LogicalOptions,
) -> Result<usize, LogicalError> {
    let wanted = read(production, options).await.map_err(source("reading its sequences"))?;
    let here = read(client, options).await.map_err(root("reading its sequences"))?;
    let mut statements = Vec::new();
    for sequence in &wanted {
        let own = here.iter().find(|own| (&own.schema, &own.name) == (&sequence.schema, &sequence.name));
        if is_behind(sequence, own.map(|own| own.last)) {
            statements.push(set(sequence, sequence.ahead(None)));
        }
    }
    if !statements.is_empty() {
        client.batch_execute(&statements.join("; ")).await.map_err(root("setting sequences"))?;
    }
    Ok(statements.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(last: i64, increment: i64, cycles: bool) -> SequenceValue {
        SequenceValue { schema: "s".into(), name: "q".into(), last, increment, cycles, min: -1000, max: 1000 }
    }

    #[test]
    fn the_root_stays_ahead_by_what_production_takes() {
        let mut sequences = Sequences::default();
        assert!(sequences.must_ask());
        sequences.learn(vec![sequence(5, 1, false)]);
        assert!(sequences.statements(&[sequence(5, 1, false)]).is_empty());
        let made = sequences.statements(&[sequence(10, 1, false)]);
        assert!(made.len() == 1 && made[0].contains("greatest('42'::bigint"), "{made:?}");
        assert!(sequences.statements(&[sequence(42, 1, false)]).is_empty(), "it is ahead yet");
        let made = sequences.statements(&[sequence(442, 1, false)]);
        assert!(made[0].contains("'1000'::bigint"), "never past its end: {made:?}");
        assert!(made[0].contains("s.seqmin), s.seqmax)"), "nor past the one that it has here: {made:?}");
        assert_eq!(sequence(10, -1, false).ahead(None), -22);
        assert_eq!(sequence(10, 1, true).ahead(None), 10);
    }

    #[test]
    fn ahead_depends_on_the_direction() {
        let at = |increment, cycles| sequence(10, increment, cycles);
        assert!(is_behind(&at(1, false), Some(9)) && is_behind(&at(1, false), None));
        assert!(!is_behind(&at(1, false), Some(10)) && !is_behind(&at(1, false), Some(11)));
        assert!(is_behind(&at(-1, false), Some(11)) && !is_behind(&at(-1, false), Some(9)));
        assert!(is_behind(&at(1, true), Some(11)), "a circle has no ahead");
    }
}
