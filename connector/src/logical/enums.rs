//! Labels that production has added to its enums: the stream says nothing of them but the first row that has one.

use std::collections::BTreeMap;

use ardent_types::sql::{literal, qualified};
use tokio_postgres::Client;

use crate::logical::config::{LogicalConfig, RootBranch};
use crate::logical::error::{LogicalError, root, source};
use crate::logical::session::{connect_root, connect_source};

const LABELS: &str = "
    select n.nspname::text, t.typname::text, pg_catalog.array_agg(e.enumlabel::text order by e.enumsortorder)
    from pg_catalog.pg_enum e join pg_catalog.pg_type t on t.oid = e.enumtypid
        join pg_catalog.pg_namespace n on n.oid = t.typnamespace
    group by 1, 2";

/// Labels in their order, by schema and name of the type.
type Enums = BTreeMap<(String, String), Vec<String>>;

/// Adds the labels that the root's enums lack, each at its place; how many. An early label does no harm: no row has it yet.
pub(crate) async fn bring_labels(config: &LogicalConfig, branch: &dyn RootBranch) -> Result<usize, LogicalError> {
    let production = connect_source(&config.connector.url).await?;
    let theirs = read(&production).await.map_err(source("reading its enums"))?;
    let at = branch.wake().await.map_err(LogicalError::Branch)?;
    let client = connect_root(&at, config.connector.connect_config()?.database()).await?;
    let ours = read(&client).await.map_err(root("reading its enums"))?;
    let mut added = 0;
    for (name, ours) in &ours {
        let Some(theirs) = theirs.get(name) else { continue };
        for statement in missing(&qualified(&name.0, &name.1), ours, theirs) {
            tracing::info!(statement, "production added to an enum: the root follows");
            let done = client.batch_execute(&statement).await;
            done.map_err(|source| LogicalError::Schema { statement, source })?;
            added += 1;
        }
    }
    Ok(added)
}

async fn read(client: &Client) -> Result<Enums, tokio_postgres::Error> {
    let rows = client.query(LABELS, &[]).await?;
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect())
}

/// The statements that add what is missing; none where a label was renamed, or is in another place: that is not for us to tell.
fn missing(type_name: &str, ours: &[String], theirs: &[String]) -> Vec<String> {
    let mut kept = theirs.iter().filter(|label| ours.contains(label));
    if !ours.iter().all(|label| kept.next() == Some(label)) {
        return Vec::new();
    }
    let add = |(at, label): (usize, &String)| {
        let place = match at.checked_sub(1).map(|before| &theirs[before]) {
            Some(before) => format!(" after {}", literal(before)),
            None => ours.first().map(|first| format!(" before {}", literal(first))).unwrap_or_default(),
        };
        format!("alter type {type_name} add value if not exists {}{place}", literal(label))
    };
    theirs.iter().enumerate().filter(|(_, label)| !ours.contains(label)).map(add).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_to_their_place() {
        let check = |ours: &[&str], theirs: &[&str], expect: &[&str]| {
            let list = |labels: &[&str]| labels.iter().map(|&label| label.to_owned()).collect::<Vec<_>>();
            assert_eq!(missing("t", &list(ours), &list(theirs)), expect);
        };
        check(&["a", "b"], &["a", "b"], &[]);
        check(
            &["b", "d"],
            &["a", "b", "it's", "c", "d", "e"],
            &[
                "alter type t add value if not exists 'a' before 'b'",
                "alter type t add value if not exists 'it''s' after 'b'",
                "alter type t add value if not exists 'c' after 'it''s'",
                "alter type t add value if not exists 'e' after 'd'",
            ],
        );
        check(&[], &["a"], &["alter type t add value if not exists 'a'"]);
        // Renamed, or another order: what was meant cannot be told.
        check(&["a", "b"], &["a", "c"], &[]);
        check(&["a", "b"], &["b", "a", "c"], &[]);
    }
}
