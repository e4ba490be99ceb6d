//! The publication on production, as it is remembered: while it is another one, changes are missed, and nothing that comes later shows
//! that. So that it was changed is noticed even if it was put back: its rows in production's catalogs are new versions then.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::logical::config::RootBranch;
use crate::logical::copy::encode;
use crate::logical::error::{LogicalError, source};
use crate::logical::state::LogicalState;

const PUBLICATION: &str = "
    select p.oid, p.pubowner, p.xmin::text, pg_catalog.concat_ws(', ', case when not p.pubinsert then 'inserts' end,
        case when not p.pubupdate then 'updates' end, case when not p.pubdelete then 'deletes' end,
        case when not p.pubtruncate then 'truncates' end), p.pubviaroot
    from pg_catalog.pg_publication p where p.pubname = $1";
/// Of tables that are there: each with its row in the publication, if it has one.
const TABLES: &str = "
    select c.oid, r.oid::text || '/' || r.xmin::text, r.prqual is not null, r.prattrs is not null
    from pg_catalog.pg_class c left join pg_catalog.pg_publication_rel r on r.prrelid = c.oid and r.prpubid = $1
    where c.oid = any ($2) order by c.oid";

/// What is remembered of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Published {
    oid: u32,
    owner: u32,
    /// Who wrote its row.
    version: String,
    /// The rows of tables, by the tables' OIDs: each one's OID, and who wrote it.
    tables: BTreeMap<u32, String>,
}

impl Published {
    /// Tables that were added to it.
    pub fn add(&mut self, new: Published) {
        self.tables.extend(new.tables);
    }

    /// What somebody has changed since this was remembered, though all is sent again. Another owner leaves a new version of its row,
    /// and is sent the same.
    fn difference(&self, now: &Published, names: &BTreeMap<u32, String>) -> Option<String> {
        if now.version != self.version && now.owner == self.owner {
            return Some("what it sends was altered, and put back".to_owned());
        }
        let (oid, _) = now.tables.iter().find(|(oid, row)| self.tables.get(oid).is_some_and(|kept| kept != *row))?;
        let name = names.get(oid).map_or("", String::as_str);
        Some(format!("table {name} was taken out of it, and put back"))
    }
}

/// The publication as it is; an error if it does not send all changes of these tables (names by OIDs).
pub(crate) async fn published(
    production: &Client,
    publication: &str,
    names: &BTreeMap<u32, String>,
) -> Result<Published, LogicalError> {
    let reading = source("looking at its publication");
    let row = production.query_opt(PUBLICATION, &[&publication]).await.map_err(&reading)?;
    let Some(row) = row else {
        return Err(LogicalError::PublicationDropped { publication: publication.to_owned() });
    };
    let changed =
        |change: String| Err(LogicalError::PublicationChanged { publication: publication.to_owned(), change });
    let (oid, owner, version, lacking): (u32, u32, String, String) = (row.get(0), row.get(1), row.get(2), row.get(3));
    if !lacking.is_empty() {
        return changed(format!("it does not send {lacking}"));
    }
    if row.get(4) {
        return changed("it sends partitions' changes as their parents' (publish_via_partition_root)".to_owned());
    }
    let oids: Vec<u32> = names.keys().copied().collect();
    let mut tables = BTreeMap::new();
    for row in production.query(TABLES, &[&oid, &oids]).await.map_err(&reading)? {
        let table: u32 = row.get(0);
        let name = names.get(&table).map_or("", String::as_str);
        let Some(entry) = row.get::<_, Option<String>>(1) else {
            return changed(format!("table {name} is not in it any more"));
        };
        if row.get(2) {
            return changed(format!("rows of table {name} are filtered"));
        }
        if row.get(3) {
            return changed(format!("not all columns of table {name} are sent"));
        }
        tables.insert(table, entry);
    }
    Ok(Published { oid, owner, version, tables })
}

/// Makes sure that production sends all changes of the tables that are followed, and has done so ever since that was seen before. What is
/// not remembered yet is from here on.
pub(crate) async fn check(production: &Client, publication: &str, branch: &dyn RootBranch) -> Result<(), LogicalError> {
    let names = LogicalState::read(branch)?.names();
    let now = published(production, publication, &names).await;
    // Read anew: others have written meanwhile.
    let mut state = LogicalState::read(branch)?;
    let before = state.clone();
    let checked = match (now, &state.publication) {
        (Ok(now), Some(kept)) if now.oid != kept.oid => {
            Err(LogicalError::PublicationDropped { publication: publication.to_owned() })
        }
        (Ok(now), Some(kept)) => match kept.difference(&now, &names) {
            Some(change) => Err(LogicalError::PublicationChanged { publication: publication.to_owned(), change }),
            None => Ok(now),
        },
        (now, _) => now,
    };
    let outcome = match checked {
        Ok(now) => {
            state.publication = Some(now);
            Ok(())
        }
        Err(error) => {
            state.is_objected_to |= error.is_tampering();
            Err(error)
        }
    };
    if state != before {
        branch.save(&encode(&state)).map_err(LogicalError::Branch)?;
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_back_is_told_and_what_sends_the_same_is_not() {
        let names = BTreeMap::from([(1, "s.t".to_owned()), (2, "s.u".to_owned())]);
        let tables = BTreeMap::from([(1, "11/700".to_owned())]);
        let kept = Published { oid: 5, owner: 10, version: "700".into(), tables };
        assert_eq!(kept.difference(&kept, &names), None);
        let mut more = kept.clone();
        more.add(Published { tables: BTreeMap::from([(2, "12/710".to_owned())]), ..kept.clone() });
        assert_eq!(kept.difference(&more, &names), None, "a table that was not followed before");
        let owned = Published { owner: 11, version: "710".into(), ..kept.clone() };
        assert_eq!(kept.difference(&owned, &names), None, "it has another owner");
        let altered = Published { version: "710".into(), ..kept.clone() };
        assert!(kept.difference(&altered, &names).is_some_and(|change| change.contains("altered")));
        let again = Published { tables: BTreeMap::from([(1, "13/711".to_owned())]), ..kept.clone() };
        assert!(kept.difference(&again, &names).is_some_and(|change| change.contains("table s.t")));
        let dropped = Published { tables: BTreeMap::new(), ..kept.clone() };
        assert_eq!(kept.difference(&dropped, &names), None, "that table is not on production any more");
    }
}
