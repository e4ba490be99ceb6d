//! Columns that have another one's name on production, or were made anew under their own, while no change of their table has come.
//!
//! Both catalogs look alike by their names then, and rows hold other values: a swap of two names sends nothing, nor does a column that
//! is dropped and made anew. The table's next change would stop; this is what is said up to there.

use std::collections::{BTreeSet, HashMap};

use ardent_types::sql::quoted;
use tokio_postgres::Client;

use crate::logical::altered::{Altered, Followed};
use crate::logical::ddl;
use crate::logical::error::LogicalError;
use crate::logical::partitions::TableName;
use crate::logical::relation::all_root_columns;
use crate::logical::same_columns::{OtherColumn, SourceNumbers};
use crate::logical::state::{LogicalState, TableState};

/// A followed table with such columns.
#[derive(Clone, Debug)]
pub(crate) struct Replaced {
    pub table: Followed,
    pub columns: Vec<OtherColumn>,
}

/// What is to be said of tables with such columns.
#[derive(Clone, Debug, Default)]
pub(crate) struct ToldReplaced {
    pub told: Vec<String>,
    /// These are spoken for: what else differs in them by name may be right once that is done.
    pub tables: BTreeSet<TableName>,
}

impl Replaced {
    /// Those of all followed tables, as both catalogs are. Production's may be ahead of the root's: what is still to come may bring the
    /// root's there.
    pub async fn find(
        production: &Client,
        client: &Client,
        state: &LogicalState,
    ) -> Result<Vec<Replaced>, LogicalError> {
        let is_known = |&(_, table): &(&u32, &TableState)| !table.columns.pairs.is_empty();
        let known: Vec<(&u32, &TableState)> = state.tables.iter().filter(is_known).collect();
        let here: Vec<u32> = known.iter().map(|(_, table)| table.columns.root_oid).collect();
        let there: Vec<u32> = known.iter().map(|(oid, _)| **oid).collect();
        let mut here = all_root_columns(client, &here).await?;
        let mut there = SourceNumbers::read_all(production, &there).await?;
        let mut replaced = Vec::new();
        for (oid, TableState { schema, name, columns: same, .. }) in known {
            let (Some(columns), Some(source)) = (here.remove(&same.root_oid), there.remove(oid)) else { continue };
            let others = same.others(columns.iter().map(|column| column.name.as_str()), &source, &columns);
            if !others.is_empty() {
                let (oid, schema, name, same) = (*oid, schema.clone(), name.clone(), same.clone());
                replaced
                    .push(Replaced { table: Followed { oid, schema, name, same, source, columns }, columns: others });
            }
        }
        Ok(replaced)
    }

    /// Whether production's table was found to be as it is now. Where the root has reached that moment since, nothing is still to come that
    /// would bring its columns there.
    pub fn was_found(&self, before: &[Replaced]) -> bool {
        before.iter().any(|found| found.table.oid == self.table.oid && found.table.source == self.table.source)
    }

    /// What happened, column by column.
    pub fn why(&self) -> String {
        let whys: Vec<String> = self.columns.iter().map(OtherColumn::why).collect();
        whys.join("; ")
    }

    /// The statements that make the root's table, or the partitioned one that it belongs to, production's; or why there are none.
    async fn statements(
        &self,
        production: &Client,
        client: &Client,
        altered: &Altered,
    ) -> Result<Result<Vec<String>, String>, LogicalError> {
        let Followed { same, source, columns, .. } = &self.table;
        let table = altered.quoted();
        let dropped = same.dropped(source, columns);
        let names = columns.iter().map(|column| column.name.clone()).filter(|name| !dropped.contains(name)).collect();
        let mut statements: Vec<String> =
            dropped.iter().map(|name| format!("alter table {table} drop column {}", quoted(name))).collect();
        let Some(renamings) = in_order(same.renamed(source, columns), names) else {
            return Ok(Err("another column has one of these names here".to_owned()));
        };
        for (from, to) in renamings {
            statements.push(format!("alter table {table} rename column {} to {}", quoted(&from), quoted(&to)));
        }
        for column in self.columns.iter().filter(|column| column.here.is_none()) {
            match ddl::as_it_is(production, client, &column.name, altered).await? {
                Ok(more) => statements.extend(more),
                Err(why) => return Ok(Err(why)),
            }
        }
        Ok(Ok(statements))
    }
}

impl ToldReplaced {
    /// What is said of those that were found, once for all partitions of a table.
    pub async fn of(
        replaced: &[Replaced],
        production: &Client,
        client: &Client,
        state: &LogicalState,
    ) -> Result<ToldReplaced, LogicalError> {
        let mut all = ToldReplaced::default();
        if replaced.is_empty() {
            return Ok(all);
        }
        let tables: HashMap<u32, TableState> = state.tables.iter().map(|(oid, table)| (*oid, table.clone())).collect();
        for found in replaced {
            let Followed { schema, name, .. } = &found.table;
            let own = TableName { schema: schema.clone(), name: name.clone() };
            if all.tables.contains(&own) {
                continue;
            }
            let altered = Altered::find(production, client, found.table.clone(), &tables).await?;
            let (full_name, made) = match altered {
                Ok(altered) => {
                    let followed = altered.followed.iter();
                    all.tables.extend(
                        followed.map(|table| TableName { schema: table.schema.clone(), name: table.name.clone() }),
                    );
                    all.tables.insert(altered.table());
                    (altered.full_name(), found.statements(production, client, &altered).await?)
                }
                Err(why) => (own.full_name(), Err(why)),
            };
            all.tables.insert(own);
            all.told.push(tell(&full_name, &found.why(), made));
        }
        Ok(all)
    }
}

fn tell(table: &str, what: &str, statements: Result<Vec<String>, String>) -> String {
    let what = format!(
        "table {table}: {what}. Rows here hold in it what production's do not, and the table's next change stops"
    );
    match statements {
        Ok(statements) => format!("{what}: do the same here ({})", statements.join("; ")),
        Err(why) => format!("{what}: bring it into production's form, with the values of production's rows ({why})"),
    }
}

/// Renamings, one after another, none to a name that another column has at that time; none if one that keeps its name is in the way.
/// `names`: those of all columns before.
fn in_order(mut wanted: Vec<(String, String)>, mut names: BTreeSet<String>) -> Option<Vec<(String, String)>> {
    let gets_free = |to: &String| !names.contains(to) || wanted.iter().any(|(from, _)| from == to);
    if !wanted.iter().all(|(_, to)| gets_free(to)) {
        return None;
    }
    let mut renamings = Vec::new();
    while !wanted.is_empty() {
        let (at, to) = match wanted.iter().position(|(_, to)| !names.contains(to)) {
            Some(at) => (at, None),
            // They stand in a circle: one of them steps aside.
            None => (0, Some(aside(&wanted[0].0, &names))),
        };
        let (from, last) = wanted.remove(at);
        let now = to.clone().unwrap_or_else(|| last.clone());
        names.remove(&from);
        names.insert(now.clone());
        if to.is_some() {
            wanted.push((now.clone(), last));
        }
        renamings.push((from, now));
    }
    Some(renamings)
}

/// A name like this one that no column has.
fn aside(name: &str, names: &BTreeSet<String>) -> String {
    // Room for the rest, whatever the name's characters take: Postgres cuts names after 63 bytes.
    let start: String = name.chars().take(12).collect();
    let mut candidates = (0_u32..).map(|number| format!("{start}_aside{number}"));
    candidates.find(|candidate| !names.contains(candidate)).expect("there are fewer columns than numbers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(names: &[&str], wanted: &[(&str, &str)], expect: &[(&str, &str)]) {
        let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect()
        };
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(in_order(pairs(wanted), names), Some(pairs(expect)));
    }

    #[test]
    fn columns_get_their_names_one_after_another() {
        check(&["id", "a"], &[("a", "b")], &[("a", "b")]);
        check(&["id", "a", "b"], &[("a", "b"), ("b", "c")], &[("b", "c"), ("a", "b")]);
        check(&["id", "a", "b"], &[("a", "b"), ("b", "a")], &[("a", "a_aside0"), ("b", "a"), ("a_aside0", "b")]);
        check(
            &["a_aside0", "a", "b", "c"],
            &[("a", "b"), ("b", "c"), ("c", "a")],
            &[("a", "a_aside1"), ("c", "a"), ("b", "c"), ("a_aside1", "b")],
        );
        let in_the_way = in_order(vec![("a".into(), "b".into())], ["a".to_owned(), "b".to_owned()].into());
        assert_eq!(in_the_way, None, "b keeps its name");
    }

    #[test]
    fn it_is_said_what_happened_and_what_to_do() {
        let said = tell("s.t", "column a is another one by now", Ok(vec!["one".into(), "two".into()]));
        assert!(said.starts_with("table s.t: column a is another one") && said.ends_with("(one; two)"), "{said}");
        let said = tell("s.t", "column a is another one by now", Err("nobody knows".into()));
        assert!(said.contains("production's form") && said.ends_with("(nobody knows)"), "{said}");
    }
}
