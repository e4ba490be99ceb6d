//! Foreign keys between the tables that are written.

use std::collections::{BTreeMap, BTreeSet};

use crate::outcome::ApplyError;
use crate::target::Target;
use ardent_schema_diff::{identifier, literal};

/// What a foreign key does to referring rows when what they refer to is deleted, or gets another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing: it is a check.
    None,
    /// They go as well, or get the value too.
    Cascade,
    /// They get nulls, or defaults.
    Set,
}

impl Action {
    /// Of `confdeltype` or `confupdtype`.
    fn of(letter: &str) -> Action {
        match letter {
            "c" => Action::Cascade,
            "n" | "d" => Action::Set,
            _ => Action::None,
        }
    }
}

/// A foreign key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForeignKey {
    pub name: String,
    /// Quoted, with its schema.
    pub table: String,
    /// Quoted, with its schema.
    pub references: String,
    /// What the referring rows are in, and are written under: the table itself, with all its partitions.
    pub tables: BTreeSet<String>,
    /// The same of the table that it references.
    pub referenced_tables: BTreeSet<String>,
    pub deferrable: bool,
    pub on_delete: Action,
    pub on_update: Action,
    /// Whether deleting what is referenced is checked when all rows are there, and not at once.
    pub waits: bool,
    /// Whether one of its tables is partitioned: its rows are written under other names.
    pub partitioned: bool,
    pub columns: Vec<String>,
    pub referenced_columns: Vec<String>,
}

impl ForeignKey {
    /// Whether rows of a table, that is no partitioned one, refer by it.
    pub fn is_of(&self, table: &str) -> bool {
        self.tables.contains(table)
    }

    /// Whether it refers to rows of a table, that is no partitioned one.
    pub fn refers_to(&self, table: &str) -> bool {
        self.referenced_tables.contains(table)
    }

    /// The condition for rows that refer to those of `table` that are so.
    pub fn referring(&self, table: &str, rows: &str) -> String {
        let list = |columns: &[String]| columns.iter().map(|name| identifier(name)).collect::<Vec<_>>().join(", ");
        let (columns, referenced) = (list(&self.columns), list(&self.referenced_columns));
        format!("({columns}) in (select {referenced} from only {table} where {rows})")
    }
}

const QUERY: &str = "
    select k.conname, k.conrelid::regclass, k.confrelid::regclass, k.condeferrable, k.confdeltype, k.confupdtype,
           exists (select from pg_class p where p.oid in (k.conrelid, k.confrelid) and p.relkind = 'p'),
           (select json_agg(a.attname order by c.place) from unnest(k.conkey) with ordinality as c(n, place)
              join pg_attribute a on a.attrelid = k.conrelid and a.attnum = c.n),
           (select json_agg(a.attname order by c.place) from unnest(k.confkey) with ordinality as c(n, place)
              join pg_attribute a on a.attrelid = k.confrelid and a.attnum = c.n),
           (select json_agg(t.relation::regclass::text) from (select k.conrelid union select p.relid from pg_partition_tree(k.conrelid) p) t(relation)),
           (select json_agg(t.relation::regclass::text) from (select k.confrelid union select p.relid from pg_partition_tree(k.confrelid) p) t(relation))
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
    target.rows(&sql).await?.iter().map(|row| foreign_key(row)).collect()
}

fn foreign_key(row: &[Option<String>]) -> Result<ForeignKey, ApplyError> {
    let text = |place: usize| row.get(place).cloned().flatten().unwrap_or_default();
    let list = |place: usize| {
        serde_json::from_str::<Vec<String>>(&text(place)).map_err(|source| ApplyError::Unexpected {
            what: format!("foreign key {} of {}, with {}: {source}", text(0), text(1), text(place)),
        })
    };
    Ok(ForeignKey {
        name: text(0),
        table: text(1),
        references: text(2),
        tables: list(9)?.into_iter().collect(),
        referenced_tables: list(10)?.into_iter().collect(),
        deferrable: text(3) == "t",
        on_delete: Action::of(&text(4)),
        on_update: Action::of(&text(5)),
        waits: text(4) == "a",
        partitioned: text(6) == "t",
        columns: list(7)?,
        referenced_columns: list(8)?,
    })
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

/// Orders tables so that one comes before those that it references, as far as there is such an order: in a circle those keys count that do
/// not wait.
pub(crate) fn children_first(tables: &BTreeSet<String>, keys: &[ForeignKey]) -> Vec<String> {
    // Who references a table, and whether by a key that does not wait.
    let mut referenced_by: BTreeMap<&String, BTreeMap<&String, bool>> =
        tables.iter().map(|table| (table, BTreeMap::new())).collect();
    for key in keys {
        for parent in &key.referenced_tables {
            let Some(users) = referenced_by.get_mut(parent) else { continue };
            for child in key.tables.iter().filter(|child| *child != parent && tables.contains(*child)) {
                *users.entry(child).or_default() |= !key.waits;
            }
        }
    }
    let mut ordered = Vec::new();
    while !referenced_by.is_empty() {
        let mut of_all = referenced_by.iter();
        let free = of_all.find(|(_, users)| users.is_empty());
        let free = free.or_else(|| referenced_by.iter().find(|(_, users)| !users.values().any(|at_once| *at_once)));
        let Some(next) = free.or_else(|| referenced_by.iter().next()).map(|(table, _)| *table) else { break };
        referenced_by.remove(next);
        for users in referenced_by.values_mut() {
            users.remove(next);
        }
        ordered.push(next.clone());
    }
    ordered
}

/// Whether each table comes before those that its rows go with.
pub(crate) fn is_in_order(order: &[String], keys: &[ForeignKey]) -> bool {
    keys.iter().filter(|key| key.on_delete == Action::Cascade).all(|key| {
        let child = order.iter().rposition(|table| key.is_of(table));
        let parent = order.iter().position(|table| key.refers_to(table));
        child.zip(parent).is_none_or(|(child, parent)| child < parent)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tables: &[&str], referenced_tables: &[&str]) -> ForeignKey {
        let text = |place: usize| ["k", tables[0], referenced_tables[0], "f", "c", "a", "t"][place].to_owned();
        let json = |list: &[&str]| serde_json::to_string(list).expect("plain data");
        let mut row: Vec<Option<String>> = (0..7).map(|place| Some(text(place))).collect();
        row.extend([json(&["a", "B,c"]), json(&["d", "e"]), json(tables), json(referenced_tables)].map(Some));
        foreign_key(&row).expect("it is whole")
    }

    #[test]
    fn rows_that_refer_are_told_by_all_columns() {
        let key = key(&["app.lines"], &["app.orders", "app.orders_a"]);
        assert_eq!((key.on_delete, key.on_update), (Action::Cascade, Action::None));
        assert!(key.refers_to("app.orders_a") && !key.is_of("app.orders_a"));
        assert_eq!(
            key.referring("app.orders_a", "d = '1'"),
            "(a, \"B,c\") in (select d, e from only app.orders_a where d = '1')"
        );
    }

    #[test]
    fn rows_are_ordered_by_the_names_that_they_are_written_under() {
        let check = |keys: &[ForeignKey], expect: &[&str]| {
            let tables: BTreeSet<String> = expect.iter().map(|&name| name.to_owned()).collect();
            assert_eq!(children_first(&tables, keys), expect);
        };
        check(&[key(&["b", "b_1", "b_2"], &["a", "a_1", "a_2"])], &["b_1", "b_2", "a_1", "a_2"]);
        check(&[key(&["a", "a_1"], &["b"])], &["a_1", "b"]);
        check(&[key(&["a"], &["b"]), key(&["b"], &["c"])], &["a", "b", "c"]);
        // Its own rows are in no order; nor are those of a circle.
        check(&[key(&["a"], &["a"])], &["a"]);
        check(&[key(&["a", "a_1", "a_2"], &["a", "a_1", "a_2"])], &["a_1", "a_2"]);
        let circle = [key(&["b"], &["a"]), ForeignKey { waits: true, ..key(&["a"], &["b"]) }];
        check(&circle, &["b", "a"]);
    }

    #[test]
    fn rows_that_go_with_others_are_in_order_or_not() {
        let order = ["b", "a"].map(str::to_owned);
        assert!(is_in_order(&order, &[key(&["b"], &["a"]), key(&["c"], &["a"])]));
        assert!(!is_in_order(&order, &[key(&["a"], &["b"])]));
        assert!(!is_in_order(&order, &[key(&["a"], &["a"])]));
        assert!(is_in_order(&order, &[ForeignKey { on_delete: Action::Set, ..key(&["a"], &["b"]) }]));
    }

    #[test]
    fn an_answer_that_is_none_is_an_error() {
        assert!(foreign_key(&[Some("k".to_owned())]).is_err());
    }
}
