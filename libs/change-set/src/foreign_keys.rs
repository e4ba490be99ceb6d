//! Foreign keys between the tables that are written.

use std::collections::{BTreeMap, BTreeSet};

use crate::outcome::ApplyError;
use crate::target::Target;
use ardent_schema_diff::{identifier, literal};

/// A foreign key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForeignKey {
    pub name: String,
    /// Quoted, with its schema.
    pub table: String,
    /// Quoted, with its schema.
    pub references: String,
    pub deferrable: bool,
    /// Whether deleting what is referenced changes what refers to it.
    pub acts_on_delete: bool,
    /// Whether one of its tables is partitioned: its rows are written under other names.
    pub partitioned: bool,
    pub columns: Vec<String>,
    pub referenced_columns: Vec<String>,
}

const QUERY: &str = "
    select k.conname, k.conrelid::regclass, k.confrelid::regclass, k.condeferrable, k.confdeltype in ('c', 'n', 'd'),
           (select string_agg(quote_ident(a.attname), ',' order by c.place) from unnest(k.conkey) with ordinality as c(n, place)
              join pg_attribute a on a.attrelid = k.conrelid and a.attnum = c.n),
           (select string_agg(quote_ident(a.attname), ',' order by c.place) from unnest(k.confkey) with ordinality as c(n, place)
              join pg_attribute a on a.attrelid = k.confrelid and a.attnum = c.n),
           exists (select from pg_class p where p.oid in (k.conrelid, k.confrelid) and p.relkind = 'p')
      from pg_constraint k where k.contype = 'f' and k.conparentid = 0";

/// All that touch one of these tables (quoted, with their schemas).
pub(crate) async fn of_tables(target: &Target<'_>, tables: &BTreeSet<String>) -> Result<Vec<ForeignKey>, ApplyError> {
    let list: Vec<String> = tables.iter().map(|name| format!("to_regclass({})", literal(name))).collect();
    if list.is_empty() {
        return Ok(Vec::new());
    }
    // A partition's foreign keys are its partitioned table's.
    let above = format!(
        "select p.oid from pg_class c, lateral (select c.oid union select relid from pg_partition_ancestors(c.oid)) p(oid) where c.oid in ({})",
        list.join(", ")
    );
    let sql = format!("{QUERY} and (k.conrelid in ({above}) or k.confrelid in ({above})) order by 2, 1");
    let rows = target.rows(&sql).await?;
    let text = |row: &[Option<String>], place: usize| row.get(place).cloned().flatten().unwrap_or_default();
    let list = |text: String| text.split(',').map(str::to_owned).collect();
    Ok(rows
        .iter()
        .map(|row| ForeignKey {
            name: text(row, 0),
            table: text(row, 1),
            references: text(row, 2),
            deferrable: text(row, 3) == "t",
            acts_on_delete: text(row, 4) == "t",
            partitioned: text(row, 7) == "t",
            columns: list(text(row, 5)),
            referenced_columns: list(text(row, 6)),
        })
        .collect())
}

/// Makes those that are checked at once wait until the end.
pub(crate) fn defer(keys: &[ForeignKey]) -> Vec<String> {
    let alter = |key: &&ForeignKey| {
        format!("ALTER TABLE {} ALTER CONSTRAINT {} DEFERRABLE INITIALLY DEFERRED", key.table, identifier(&key.name))
    };
    keys.iter().filter(|key| !key.deferrable).map(|key| alter(&key)).collect()
}

/// Undoes [`defer`].
pub(crate) fn restore(keys: &[ForeignKey]) -> Vec<String> {
    let alter = |key: &&ForeignKey| {
        format!("ALTER TABLE {} ALTER CONSTRAINT {} NOT DEFERRABLE", key.table, identifier(&key.name))
    };
    keys.iter().filter(|key| !key.deferrable).map(|key| alter(&key)).collect()
}

/// Orders tables so that one comes before those that it references, as far as there is such an order.
pub(crate) fn children_first(tables: &BTreeSet<String>, keys: &[ForeignKey]) -> Vec<String> {
    let mut referenced_by: BTreeMap<&String, BTreeSet<&String>> =
        tables.iter().map(|table| (table, BTreeSet::new())).collect();
    for key in keys.iter().filter(|key| key.table != key.references && tables.contains(&key.table)) {
        if let Some(users) = referenced_by.get_mut(&key.references) {
            users.insert(&key.table);
        }
    }
    let mut ordered = Vec::new();
    while !referenced_by.is_empty() {
        let free = referenced_by.iter().find(|(_, users)| users.is_empty()).map(|(table, _)| *table);
        // In a circle any will do: the keys wait.
        let Some(next) = free.or_else(|| referenced_by.keys().next().copied()) else { break };
        referenced_by.remove(next);
        for users in referenced_by.values_mut() {
            users.remove(next);
        }
        ordered.push(next.clone());
    }
    ordered
}
