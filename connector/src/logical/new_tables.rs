//! Takes over tables that are new on production: their definitions, their rows as of a moment, and every change from then on.
//!
//! ```text
//!  nothing is applied ─► published ─► moment ─► root held there ─► one transaction: tables, rows, indexes ─► remembered ─► it goes on
//! ```
//!
//! Whatever is interrupted leaves the root as it was. That tables are published whose changes are to be passed over is remembered before
//! they are: up to the end they are not followed, as before, and are taken over when this is asked for again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;

use ardent_api::control::{AddTablesReply, SCHEMA_VERSION, SkippedTable};
use ardent_pg_wire::{Connection, SlotLifetime};
use ardent_sql_script::{PsqlCommands, Script};
use ardent_types::Lsn;
use ardent_types::sql::{qualified, quoted};

use crate::logical::config::{LogicalConfig, RootBranch};
use crate::logical::copy::{Moment, Pace, copy_rows, encode};
use crate::logical::dump_statement::{Weight, for_root, summary, weight};
use crate::logical::error::{LogicalError, passes, reading, root, source};
use crate::logical::publication::published;
use crate::logical::run::LogicalHandle;
use crate::logical::same_columns::SameColumns;
use crate::logical::schema::{self, Dump};
use crate::logical::sequences;
use crate::logical::session::{connect_root, connect_source};
use crate::logical::state::{LogicalPhase, LogicalState, TableState};
use crate::logical::tables::{SourceTable, tables};
use crate::logical::waits::within;

/// How long production may take for a snapshot: it waits for the transactions that run.
const MOMENT_PATIENCE: Duration = Duration::from_secs(60);

/// Partitioned tables of chosen schemas: they have no rows of their own, and their partitions need them. The parameter: the schemas; none:
/// all.
const PARTITIONED: &str = "
    select n.nspname::text, c.relname::text from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.relkind = 'p' and n.nspname !~ '^pg_' and (cardinality($1::text[]) = 0 or n.nspname = any ($1)) order by c.oid";
const HERE: &str = "
    select n.nspname::text, c.relname::text from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p')";

/// A schema and a name.
type Named = (String, String);

/// What production has in the schemas that were chosen, and is not followed.
#[derive(Debug)]
pub(crate) struct NewOnProduction {
    pub can_be_added: Vec<SourceTable>,
    /// The others, but for those that were there when the connector was made: it says so of these.
    pub skipped: Vec<SkippedTable>,
}

impl NewOnProduction {
    /// Of the tables that were found.
    pub fn of(found: &[SourceTable], state: &LogicalState) -> NewOnProduction {
        let mut new = NewOnProduction { can_be_added: Vec::new(), skipped: Vec::new() };
        for table in found.iter().filter(|table| !state.tables.contains_key(&table.oid)) {
            let rows = left_out_rows(&table.full_name());
            match why_not(table, state.follows(&table.schema, &table.name)) {
                None => new.can_be_added.push(table.clone()),
                Some(_) if state.left_out.iter().any(|text| text.starts_with(&rows)) => {}
                Some(why) => new.skipped.push(SkippedTable { table: table.full_name(), why }),
            }
        }
        new
    }
}

/// What is to be taken over.
struct Wanted {
    tables: Vec<SourceTable>,
    /// Partitioned tables that the root has not.
    partitioned: Vec<Named>,
    /// Tables that the root has, and that are not followed: what is in them is not production's.
    replaced: Vec<Named>,
    skipped: Vec<SkippedTable>,
}

/// Takes over the tables that are not followed: those with these names (`schema.name`, or all).
pub async fn add_tables(
    config: &LogicalConfig,
    handle: &LogicalHandle,
    branch: &dyn RootBranch,
    names: &[String],
) -> Result<AddTablesReply, LogicalError> {
    let state = LogicalState::read(branch)?;
    if state.phase != LogicalPhase::Follow {
        return Err(LogicalError::Refused(
            "the connector is still being made: tables can be added when it follows".into(),
        ));
    }
    let production = connect_source(&config.connector.url).await?;
    let at = branch.wake().await.map_err(LogicalError::Branch)?;
    let database = config.connector.connect_config()?.database().to_owned();
    let client = connect_root(&at, &database).await?;
    let wanted = Wanted::find(config, &production, &client, &state, names).await?;
    let mut reply = AddTablesReply {
        schema_version: SCHEMA_VERSION,
        name: String::new(),
        at_lsn: None,
        added: Vec::new(),
        skipped: wanted.skipped.clone(),
        left_out: Vec::new(),
    };
    if wanted.tables.is_empty() {
        return Ok(reply);
    }
    let paused = handle.pause().await?;
    // Whoever had it stopped before may have taken some over: those are followed by now, and are left alone.
    let state = LogicalState::read(branch)?;
    let still_new = wanted.tables.iter().filter(|table| !state.tables.contains_key(&table.oid));
    let names: Vec<String> = still_new.map(SourceTable::full_name).collect();
    if names.is_empty() {
        return Ok(reply);
    }
    let wanted = Wanted::find(config, &production, &client, &state, &names).await?;
    if wanted.tables.is_empty() {
        reply.skipped.extend(wanted.skipped);
        return Ok(reply);
    }
    // Read anew: the lookout has written meanwhile.
    let mut state = LogicalState::read(branch)?;
    state.passed_over.extend(wanted.tables.iter().map(|table| table.oid));
    branch.save(&encode(&state)).map_err(LogicalError::Branch)?;
    let publication = config.connector.slot_name();
    publish(&production, &publication, &wanted.tables).await?;
    let new = wanted.tables.iter().map(|table| (table.oid, table.full_name())).collect();
    let published = published(&production, &publication, &new).await?;
    // After the publication: what began before has ended by this moment, so its rows show, and all later changes are sent.
    let name = format!("{}_add", config.connector.slot_name());
    let taking = Moment::take(config, &name, SlotLifetime::Temporary);
    let moment = within(&config.connector.url, MOMENT_PATIENCE, taking).await??;
    let copied_at = moment.slot.consistent_lsn;
    let mut seen = moment.reader(&config.connector.connect_config()?).await?;
    wanted.are_as_found(&mut seen).await?;
    let dump = wanted.dump(config, &production, &moment).await?;
    let held = paused.hold_at(copied_at).await?;
    let mut taking = Taking { seen: &mut seen, client: &client, left_out: &mut reply.left_out };
    let mut columns = taking.all(config, &wanted, &dump).await?;
    // Up to there more may have been learned of other tables.
    let mut state = LogicalState::read(branch)?;
    for table in &wanted.tables {
        state.passed_over.remove(&table.oid);
        let SourceTable { oid, schema, name, bytes, .. } = table.clone();
        let columns = columns.remove(&oid).unwrap_or_default();
        state.tables.insert(oid, TableState { schema, name, bytes, copied_at: Some(copied_at), columns });
        reply.added.push(table.full_name());
    }
    if let Some(kept) = &mut state.publication {
        kept.add(published);
    }
    state.left_out.extend(reply.left_out.iter().cloned());
    branch.save(&encode(&state)).map_err(LogicalError::Branch)?;
    drop(held);
    reply.at_lsn = Some(copied_at).filter(|lsn| *lsn > Lsn::INVALID);
    Ok(reply)
}

impl Wanted {
    async fn find(
        config: &LogicalConfig,
        production: &Client,
        client: &Client,
        state: &LogicalState,
        names: &[String],
    ) -> Result<Wanted, LogicalError> {
        let named = |rows: Vec<tokio_postgres::Row>| -> Vec<Named> {
            rows.iter().map(|row| (row.get(0), row.get(1))).collect()
        };
        let here = named(client.query(HERE, &[]).await.map_err(root("listing its tables"))?);
        let partitioned = production.query(PARTITIONED, &[&config.options.schemas]).await;
        let partitioned = named(partitioned.map_err(source("listing its partitioned tables"))?);
        let mut wanted = Wanted {
            tables: Vec::new(),
            partitioned: partitioned.into_iter().filter(|table| !here.contains(table)).collect(),
            replaced: Vec::new(),
            skipped: Vec::new(),
        };
        let new = tables(production, &config.options).await?.into_iter();
        let new: Vec<SourceTable> = new.filter(|table| !state.tables.contains_key(&table.oid)).collect();
        if let Some(unknown) = names.iter().find(|name| !new.iter().any(|table| table.full_name() == **name)) {
            return Err(LogicalError::Refused(format!(
                "{unknown} is no table of production's that is not followed yet, in the schemas that were chosen; write it as SCHEMA.NAME"
            )));
        }
        for table in new {
            let full_name = table.full_name();
            if !names.is_empty() && !names.contains(&full_name) {
                continue;
            }
            match why_not(&table, state.follows(&table.schema, &table.name)) {
                Some(why) => wanted.skipped.push(SkippedTable { table: full_name, why }),
                None => {
                    let key = (table.schema.clone(), table.name.clone());
                    wanted.replaced.extend(here.contains(&key).then_some(key));
                    wanted.tables.push(table);
                }
            }
        }
        Ok(wanted)
    }

    /// Makes sure that at the moment these tables had the names that they were found by: another one in the place of one of them is not
    /// what was published.
    async fn are_as_found(&self, seen: &mut Connection) -> Result<(), LogicalError> {
        let oids: Vec<String> = self.tables.iter().map(|table| table.oid.to_string()).collect();
        let sql = format!(
            "select c.oid, n.nspname, c.relname from pg_catalog.pg_class c \
             join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid in ({})",
            oids.join(", ")
        );
        let found = seen.query(&sql).await.map_err(reading("looking for the new tables"))?;
        for table in &self.tables {
            let row = [table.oid.to_string(), table.schema.clone(), table.name.clone()].map(Some);
            if !found.rows.iter().any(|found| found[..] == row) {
                return Err(LogicalError::Refused(format!(
                    "table {} was dropped or renamed on production while it was taken over: nothing was changed here, try it again",
                    table.full_name()
                )));
            }
        }
        Ok(())
    }

    /// The definitions, as of the moment.
    async fn dump(&self, config: &LogicalConfig, production: &Client, moment: &Moment) -> Result<Dump, LogicalError> {
        let of_tables = self.tables.iter().map(|table| qualified(&table.schema, &table.name));
        let of_partitioned = self.partitioned.iter().map(|(schema, name)| qualified(schema, name));
        let names: Vec<String> = of_tables.chain(of_partitioned).collect();
        schema::dump_tables(config, schema::major(production).await?, &moment.slot.snapshot, &names).await
    }
}

/// How it is said that a table's rows are left out; why follows.
pub(crate) fn left_out_rows(full_name: &str) -> String {
    format!("rows of table {full_name}: ")
}

/// Why a table cannot be followed. One that was dropped on production and made anew: what hangs on the old one cannot be known to fit
/// the new one.
fn why_not(table: &SourceTable, is_followed_under_its_name: bool) -> Option<String> {
    let owner = &table.owner;
    let why = if is_followed_under_its_name {
        format!(
            "it was dropped on production and made anew. Drop the old one on the root branch with ardent connector resume NAME --sql \
             'drop table {}', then add it",
            table.quoted()
        )
    } else if !table.is_logged {
        "it is unlogged, so its changes are not sent".to_owned()
    } else if !table.has_identity {
        "it has no primary key or other replica identity (a key with a generated column is none: that column is not sent)".to_owned()
    } else if !table.is_owned {
        let (owner, table) = (quoted(owner), table.quoted());
        format!(
            "publishing it takes its ownership: GRANT {owner} TO the role of the connector's URL, or ALTER TABLE {table} OWNER TO that role"
        )
    } else if !table.is_readable {
        "the role of the connector's URL may not read all of its rows".to_owned()
    } else {
        return None;
    };
    Some(why)
}

async fn publish(production: &Client, publication: &str, tables: &[SourceTable]) -> Result<(), LogicalError> {
    const PUBLISHED: &str = "select r.prrelid from pg_catalog.pg_publication_rel r \
         join pg_catalog.pg_publication p on p.oid = r.prpubid where p.pubname = $1";
    let published = production.query(PUBLISHED, &[&publication]).await.map_err(source("reading the publication"))?;
    let published: Vec<u32> = published.iter().map(|row| row.get(0)).collect();
    let missing = tables.iter().filter(|table| !published.contains(&table.oid));
    let missing: Vec<String> = missing.map(|table| format!("only {}", table.quoted())).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let add = format!("alter publication {} add table {}", quoted(publication), missing.join(", "));
    production.batch_execute(&add).await.map_err(source("adding to the publication"))
}

/// The transaction on the root.
struct Taking<'a> {
    seen: &'a mut Connection,
    client: &'a Arc<Client>,
    left_out: &'a mut Vec<String>,
}

impl Taking<'_> {
    /// What comes back: by each table's OID, which columns its rows came from.
    async fn all(
        &mut self,
        config: &LogicalConfig,
        wanted: &Wanted,
        dump: &Dump,
    ) -> Result<BTreeMap<u32, SameColumns>, LogicalError> {
        let before = Script::parse(dump.before_rows.as_bytes(), PsqlCommands::Skipped)?;
        let after = Script::parse(dump.after_rows.as_bytes(), PsqlCommands::Skipped)?;
        let made_before: Vec<&str> = before.statements().filter(|statement| !attaches(statement)).collect();
        let made_after: Vec<&str> = after.statements().filter(|statement| !attaches(statement)).collect();
        let is_foreign_key = |statement: &&&str| weight(statement) == Weight::ForeignKey;
        self.needed("begin").await?;
        for (schema, name) in &wanted.replaced {
            self.needed(&format!("drop table {}", qualified(schema, name))).await?;
        }
        for statement in made_before {
            self.made(statement).await?;
        }
        let pace = Pace::new(config.connector.max_rate_bytes);
        let mut columns = BTreeMap::new();
        for table in &wanted.tables {
            let name = (table.schema.as_str(), table.name.as_str());
            columns.insert(table.oid, copy_rows(self.seen, self.client, table.oid, name, &pace).await?);
        }
        for statement in made_after.iter().filter(|statement| !is_foreign_key(statement)) {
            self.made(statement).await?;
        }
        // With their indexes there, partitions are attached with these; before, they would get others.
        for statement in before.statements().chain(after.statements()).filter(|statement| attaches(statement)) {
            self.made(statement).await?;
        }
        for statement in made_after.iter().filter(is_foreign_key) {
            self.made(statement).await?;
        }
        for table in &wanted.tables {
            self.needed(&format!("analyze {}", table.quoted())).await?;
        }
        let production = connect_source(&config.connector.url).await?;
        sequences::bring_up(&production, self.client, &config.options).await?;
        self.needed("commit").await?;
        Ok(columns)
    }

    /// Runs a statement that `pg_dump` wrote. What rows do without may be refused: that is noted.
    async fn made(&mut self, statement: &str) -> Result<(), LogicalError> {
        let Some(statement) = for_root(statement) else { return Ok(()) };
        let kind = weight(&statement);
        if kind == Weight::Needed {
            return self.needed(&statement).await;
        }
        self.needed("savepoint wished").await?;
        match self.client.batch_execute(&statement).await {
            Ok(()) => self.needed("release wished").await,
            Err(error) if passes(&error) => Err(LogicalError::Schema { statement: summary(&statement), source: error }),
            Err(error) => {
                self.needed("rollback to wished; release wished").await?;
                // Newer programs set what older servers do not know.
                if kind != Weight::Setting {
                    let why = error.as_db_error().map_or_else(String::new, |error| error.message().to_owned());
                    self.left_out.push(format!("{}: {why}", summary(&statement)));
                }
                Ok(())
            }
        }
    }

    async fn needed(&mut self, statement: &str) -> Result<(), LogicalError> {
        let done = self.client.batch_execute(statement).await;
        done.map_err(|source| LogicalError::Schema { statement: summary(statement), source })
    }
}

/// Whether a statement makes a table or an index a partition.
fn attaches(statement: &str) -> bool {
    let upper = statement.to_ascii_uppercase();
    upper.starts_with("ALTER ") && upper.contains(" ATTACH PARTITION ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_followed_whole_is_taken() {
        let table = SourceTable {
            oid: 1,
            schema: "s".into(),
            name: "t".into(),
            bytes: 0,
            is_logged: true,
            has_identity: true,
            is_owned: true,
            owner: "boss".into(),
            is_readable: true,
        };
        assert_eq!(why_not(&table, false), None);
        assert!(why_not(&table, true).is_some_and(|why| why.contains("made anew")));
        for (other, word) in [
            (SourceTable { is_logged: false, ..table.clone() }, "unlogged"),
            (SourceTable { has_identity: false, ..table.clone() }, "replica identity"),
            (SourceTable { is_owned: false, ..table.clone() }, "GRANT \"boss\""),
            (SourceTable { is_readable: false, ..table }, "read"),
        ] {
            let why = why_not(&other, false).expect("it cannot be");
            assert!(why.contains(word), "{why}");
        }
        assert!(attaches("ALTER TABLE ONLY s.p ATTACH PARTITION s.c FOR VALUES IN (1)"));
        assert!(attaches("ALTER INDEX s.p_pkey ATTACH PARTITION s.c_pkey"));
        assert!(!attaches("CREATE TABLE s.t (note text DEFAULT ' ATTACH PARTITION ')"));
    }
}
