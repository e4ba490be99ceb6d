//! Unique values that go from one updated row to another.
//!
//! Postgres looks for doubles after every row, so two rows cannot exchange values in two updates. Such values are taken away
//! from all rows first, which leaves nulls for a moment, and then given.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use ardent_schema_diff::literal;

use crate::guard::Guarded;
use crate::outcome::ApplyError;
use crate::target::Target;

/// A column whose values go from row to row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moving {
    /// Its name in the target.
    pub name: String,
    /// It must be allowed to be null for the moment.
    pub not_null: bool,
}

/// Columns of unique indexes that are checked at once: name, whether it is `NOT NULL`, whether it is one of several of an index.
/// Not those of the primary key, which is never updated; and not those that others follow by `ON UPDATE`.
const UNIQUE_COLUMNS: &str = "
    select a.attname, a.attnotnull, bool_or(i.indnkeyatts > 1 or i.indexprs is not null)
      from pg_index i
      join lateral (select unnest(i.indkey::int2[])
                    union select d.refobjsubid::int2 from pg_depend d
                           where d.classid = 'pg_class'::regclass and d.objid = i.indexrelid and d.refobjid = i.indrelid) k(attnum) on true
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum and a.attnum > 0 and a.attgenerated = ''
     where i.indisunique and i.indimmediate and not i.indisprimary
       and not exists (select from pg_index p where p.indrelid = i.indrelid and p.indisprimary and a.attnum = any (p.indkey::int2[]))
       and not exists (select from pg_constraint f where f.contype = 'f' and f.confrelid = i.indrelid and a.attnum = any (f.confkey)
                          and f.confupdtype in ('c', 'n', 'd'))
       and i.indrelid = ";

/// Bits that stand for the values which rows give up, whatever their number: a value that seems to be among them and is not costs
/// an update too many.
const BITS: u64 = 1 << 23;

/// Columns of `table` whose values go from one of its updated rows to another, by their place.
pub(crate) async fn moving(
    target: &Target<'_>,
    table: &str,
    guarded: &Guarded<'_>,
    names: &[&str],
) -> Result<BTreeMap<usize, Moving>, ApplyError> {
    let mut moving = BTreeMap::new();
    // One row alone takes from none.
    if guarded.updates.len() < 2 {
        return Ok(moving);
    }
    let sql = format!("{UNIQUE_COLUMNS}{}::regclass group by 1, 2 order by 1", literal(table));
    for row in target.rows(&sql).await? {
        let [Some(name), not_null, of_several] = &row[..] else { continue };
        let Some(place) = names.iter().position(|column| *column == name) else { continue };
        let is_moving = match of_several.as_deref() {
            // Any two updates may be at odds: what the index sees of a row is more than this value.
            Some("t") => updates_of(guarded, place)? > 1,
            _ => goes_round(guarded, place)?,
        };
        if is_moving {
            let not_null = not_null.as_deref() == Some("t");
            moving.insert(place, Moving { name: name.clone(), not_null });
        }
    }
    Ok(moving)
}

fn updates_of(guarded: &Guarded<'_>, place: usize) -> Result<u64, ApplyError> {
    let mut count = 0;
    for update in guarded.updates.iter() {
        count += update?.set.iter().filter(|assignment| assignment.0 == place).count() as u64;
    }
    Ok(count)
}

/// Whether a row gets a value that another gives up.
fn goes_round(guarded: &Guarded<'_>, place: usize) -> Result<bool, ApplyError> {
    let bit = |value: &String| {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        let bit = hasher.finish() % BITS;
        ((bit / 64) as usize, 1u64 << (bit % 64))
    };
    let mut given_up = vec![0u64; (BITS / 64) as usize];
    for update in guarded.updates.iter() {
        for (_, old, _) in update?.set.iter().filter(|assignment| assignment.0 == place) {
            if let Some((word, mask)) = old.as_ref().map(bit) {
                given_up[word] |= mask;
            }
        }
    }
    for update in guarded.updates.iter() {
        for (_, _, new) in update?.set.iter().filter(|assignment| assignment.0 == place) {
            if new.as_ref().map(bit).is_some_and(|(word, mask)| given_up[word] & mask != 0) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
