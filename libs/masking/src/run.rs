//! Masks a cluster that nobody else uses.
//!
//! Everything that could hold what was there before is written anew, catalogs included: dead versions of rows, columns that were
//! dropped, statistics, indexes, TOAST. What remains in files that were replaced is none of this module's business: whoever made the
//! cluster for this has to see that nobody can read those.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use ardent_api::compute::USUAL_DATABASES;
use ardent_types::sql::{self, literal, quoted};

use crate::catalog::{Database, read_database};
use crate::plan::{Plan, PlanError, PlannedTable, plan};
use crate::report::{ColumnReport, MaskReport, SecretsReport};
use crate::rules::{LargeObjects, Rules};

/// Longest wait for sessions that still see what was there before.
const OTHERS_DEADLINE: Duration = Duration::from_secs(60);
const OTHERS_POLL: Duration = Duration::from_millis(50);

/// Nothing of the cluster's own runs, names are written with their schemas, dates as one format has them, and nothing waits for ever.
const SESSION: &str = "set session_replication_role = replica; set search_path = ''; set statement_timeout = 0;
    set lock_timeout = '1min'; set idle_in_transaction_session_timeout = 0; set default_transaction_read_only = off;
    set timezone = 'UTC'; set datestyle = 'ISO'; set intervalstyle = 'postgres'; set extra_float_digits = 1;
    set bytea_output = 'hex'; set xmloption = 'content'; set row_security = on; set default_transaction_isolation = 'read committed';
    select pg_catalog.set_config(name, '0', false) from pg_catalog.pg_settings
        where name in ('idle_session_timeout', 'transaction_timeout')";

/// What could still see rows as they were, or write them: workers of autovacuum, transactions, slots.
const OTHERS: &str = "select count(*) from pg_stat_activity
    where pid <> pg_backend_pid() and (backend_type = 'autovacuum worker' or backend_xmin is not null or backend_xid is not null)";

/// Relations with files of their own that hold anything, which a rewrite is to replace. Those of other sessions' temporary tables are
/// never written. Materialized views without rows are not rewritten, and empty.
const FILES: &str = "select c.oid, pg_relation_filenode(c.oid), c.oid::regclass::text from pg_class c
    where c.relkind in ('r', 'm', 't') and c.relpersistence <> 't' and pg_relation_filenode(c.oid) is not null
        and pg_relation_size(c.oid) > 0";

/// Rows of a table without a replica identity that is published cannot be changed. Nobody is subscribed to what is being masked.
const SILENCE_PUBLICATIONS: &str = "update pg_publication set pubupdate = false where pubupdate returning oid";
const PUBLISH_AGAIN: &str = "update pg_publication set pubupdate = true where oid = any ($1::oid[]) returning oid";

/// Takes the unique indexes of a table, or of its partitions, from what rows are written into; a rebuilt one is ready again.
const PUT_ASIDE: &str = "update pg_index i set indisready = false
    where i.indrelid in (select $1::text::regclass union select relid from pg_partition_tree($1::text::regclass))
        and i.indisready and (i.indisunique or i.indisexclusion)
        and exists (select from pg_class c where c.oid = i.indexrelid and c.relkind = 'i')
    returning i.indexrelid, i.indexrelid::regclass::text, i.indisvalid";

/// Materialized views that have rows.
const VIEWS: &str =
    "select c.oid::regclass::text from pg_class c where c.relkind = 'm' and c.relispopulated order by c.oid";

const CLEAR_PASSWORDS: &str = "update pg_authid set rolpassword = null where rolpassword is not null";
/// Settings of extensions and of applications, which some keep keys in. Postgres does not expect a list with nothing in it.
const CLEAR_SETTINGS: [&str; 2] = [
    "delete from pg_db_role_setting
        where not exists (select from unnest(setconfig) s where split_part(s, '=', 1) not like '%.%')",
    "update pg_db_role_setting set setconfig =
            array(select s from unnest(setconfig) s where split_part(s, '=', 1) not like '%.%')
        where exists (select from unnest(setconfig) s where split_part(s, '=', 1) like '%.%')",
];
const CLEAR_SUBSCRIPTIONS: &str = "update pg_subscription set subconninfo = 'dbname=masked', subenabled = false";
const CLEAR_FOREIGN: [&str; 4] = [
    "update pg_foreign_data_wrapper set fdwoptions = null where fdwoptions is not null",
    "update pg_foreign_server set srvoptions = null where srvoptions is not null",
    "update pg_user_mapping set umoptions = null where umoptions is not null",
    "update pg_foreign_table set ftoptions = null where ftoptions is not null",
];
const CLEAR_LARGE_OBJECTS: &str = "delete from pg_largeobject";
const CLEAR_STATISTICS: [&str; 2] = ["delete from pg_statistic", "delete from pg_statistic_ext_data"];

/// Why a cluster could not be masked. It is to be thrown away then.
#[derive(Debug, thiserror::Error)]
pub enum MaskError {
    /// A database cannot be opened.
    #[error("database {database} cannot be opened")]
    Connect {
        /// Which.
        database: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The rules leave something open.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Postgres refuses.
    #[error("{doing}")]
    Postgres {
        /// What was being done, and where.
        doing: String,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A database that nobody can open, nor drop by halves.
    #[error("database {0} was left half dropped, so that what it holds cannot be masked: drop it on production's side")]
    HalfDropped(String),
    /// Values outside of the range that they are to be exchanged in.
    #[error("{place}: {count} value(s) are not in the range of {action}: widen it, or take permute without one")]
    OutOfRange {
        /// The column.
        place: String,
        /// How many.
        count: u64,
        /// The rule.
        action: String,
    },
    /// Others go on.
    #[error("other sessions of the branch do not end, and see what was there before")]
    Others,
    /// Something is as it was.
    #[error("database {database}: {relations} could not be written anew, and may hold what was there before")]
    NotRewritten {
        /// Where.
        database: String,
        /// Which, at most ten.
        relations: String,
    },
    /// Views that depend on something that is not there.
    #[error("database {database}: materialized view {view} cannot be made of masked rows")]
    View {
        /// Where.
        database: String,
        /// Which.
        view: String,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
}

/// Opens a session as a superuser in a database.
pub type Connect = dyn Fn(String) -> Pin<Box<dyn Future<Output = Result<Client, Box<dyn std::error::Error + Send + Sync>>> + Send>>
    + Send
    + Sync;

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// `rows` or `rewrite`.
    pub phase: &'static str,
    /// Where: a table, or a database.
    pub place: String,
    /// Tables that are done, and all of them.
    pub done: u64,
    /// See `done`.
    pub of: u64,
}

/// A masking of a cluster.
pub struct Masking<'a> {
    connect: &'a Connect,
    rules: &'a Rules,
}

impl std::fmt::Debug for Masking<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Masking").finish_non_exhaustive()
    }
}

/// The databases that can be opened now, all of the cluster. Ones that nobody could connect to are opened for it; their names come
/// second.
async fn connectable_databases(client: &Client) -> Result<(Vec<String>, Vec<String>), MaskError> {
    let listed = "select datname::text, datallowconn, datconnlimit from pg_database order by datname";
    let (mut all, mut closed) = (Vec::new(), Vec::new());
    for row in client.query(listed, &[]).await.map_err(doing("databases cannot be listed"))? {
        let (name, is_open, limit): (String, bool, i32) = (get(&row, 0)?, get(&row, 1)?, get(&row, 2)?);
        // What a DROP DATABASE that was interrupted leaves (`DATCONNLIMIT_INVALID_DB`).
        if limit == -2 {
            return Err(MaskError::HalfDropped(name));
        }
        if !is_open {
            let open = format!("alter database {} allow_connections true", quoted(&name));
            client.batch_execute(&open).await.map_err(doing(&format!("database {name} cannot be opened")))?;
            closed.push(name.clone());
        }
        all.push(name);
    }
    Ok((all, closed))
}

impl<'a> Masking<'a> {
    /// By these rules, in the cluster that `connect` opens sessions in.
    pub fn new(connect: &'a Connect, rules: &'a Rules) -> Self {
        Masking { connect, rules }
    }

    async fn open(&self, database: &str) -> Result<Client, MaskError> {
        let opened = (self.connect)(database.to_owned()).await;
        let client = opened.map_err(|source| MaskError::Connect { database: database.to_owned(), source })?;
        client.batch_execute(SESSION).await.map_err(doing(&format!("database {database} cannot be used")))?;
        Ok(client)
    }

    /// A session in whichever of the usual databases lets in, for what concerns the whole cluster.
    async fn open_any(&self) -> Result<Client, MaskError> {
        let [first, other] = USUAL_DATABASES;
        match self.open(first).await {
            // Its error says why, unless another can be opened.
            Err(error @ MaskError::Connect { .. }) => self.open(other).await.map_err(|_| error),
            opened => opened,
        }
    }

    /// What would become of each column. Changes nothing but whom databases let in.
    pub async fn check(&self) -> Result<Plan, MaskError> {
        let client = self.open_any().await?;
        let (databases, _) = connectable_databases(&client).await?;
        self.plan(&databases).await
    }

    async fn plan(&self, databases: &[String]) -> Result<Plan, MaskError> {
        let mut found: Vec<Database> = Vec::new();
        for name in databases {
            let client = self.open(name).await?;
            let read = read_database(&client, name).await;
            found.push(read.map_err(doing(&format!("the catalogs of database {name} cannot be read")))?);
        }
        Ok(plan(self.rules, &found)?)
    }

    /// Masks all of it, by `key`, which should be random and forgotten. Nothing is changed if the rules leave something open.
    pub async fn run(
        &self,
        key: &[u8; 32],
        mut progress: impl FnMut(Progress) + Send,
    ) -> Result<MaskReport, MaskError> {
        let client = self.open_any().await?;
        let (databases, closed) = connectable_databases(&client).await?;
        let plan = self.plan(&databases).await?;
        // What it would write from now on would be statistics of rows as they were.
        let quiet = "alter system set autovacuum = off";
        client.batch_execute(quiet).await.map_err(doing("autovacuum cannot be switched off"))?;
        let reload = "select pg_reload_conf(), (select count(pg_terminate_backend(pid)) from pg_stat_activity where backend_type = 'autovacuum worker')";
        client.query(reload, &[]).await.map_err(doing("autovacuum cannot be switched off"))?;
        wait_for_others(&client).await?;
        let mut report = MaskReport::default();
        report.secrets.prepared_transactions = self.roll_back_prepared(&client).await?;
        self.clear_shared(&client, &mut report.secrets).await?;
        let of = plan.tables.iter().filter(|table| table.statement.is_some()).count() as u64;
        let mut done = 0;
        for database in &databases {
            let client = self.open(database).await?;
            self.clear_database(&client, database, &mut report.secrets).await?;
            let silent = set_publishing(&client, database, SILENCE_PUBLICATIONS, &[]).await?;
            for table in plan.tables.iter().filter(|table| table.name.database == *database) {
                if table.statement.is_some() {
                    progress(Progress { phase: "rows", place: table.name.to_string(), done, of });
                    done += 1;
                }
                report.columns.extend(mask_table(&client, table, key).await?);
            }
            set_publishing(&client, database, PUBLISH_AGAIN, &silent).await?;
            for sequence in plan.sequences.iter().filter(|sequence| sequence.database == *database) {
                let moved = client.execute(&sequence.statement, &[]).await;
                moved
                    .map_err(doing(&format!("database {database}: the sequence {} cannot be moved", sequence.name)))?;
            }
            progress(Progress { phase: "rewrite", place: database.clone(), done, of });
            refresh_views(&client, database).await?;
            report.relations_rewritten += rewrite(&client, database).await?;
        }
        for database in closed {
            let close = format!("alter database {} allow_connections false", quoted(&database));
            client
                .batch_execute(&close)
                .await
                .map_err(doing(&format!("database {database} cannot be closed again")))?;
        }
        Ok(report)
    }

    /// Their rows would be seen by nobody, and stay.
    async fn roll_back_prepared(&self, client: &Client) -> Result<u64, MaskError> {
        let listed = client.query("select gid, database::text from pg_prepared_xacts", &[]).await;
        let listed = listed.map_err(doing("prepared transactions cannot be listed"))?;
        for row in &listed {
            let (gid, database): (String, String) = (get(row, 0)?, get(row, 1)?);
            let client = self.open(&database).await?;
            let roll_back = format!("rollback prepared {}", literal(&gid));
            let rolled_back = client.batch_execute(&roll_back).await;
            rolled_back.map_err(doing(&format!("the prepared transaction {gid:?} cannot be rolled back")))?;
        }
        Ok(listed.len() as u64)
    }

    async fn clear_shared(&self, client: &Client, secrets: &mut SecretsReport) -> Result<(), MaskError> {
        let failed = || doing("secrets of the whole cluster cannot be cleared");
        secrets.role_passwords = client.execute(CLEAR_PASSWORDS, &[]).await.map_err(failed())?;
        for clear in CLEAR_SETTINGS {
            secrets.settings += client.execute(clear, &[]).await.map_err(failed())?;
        }
        secrets.subscriptions = client.execute(CLEAR_SUBSCRIPTIONS, &[]).await.map_err(failed())?;
        Ok(())
    }

    async fn clear_database(
        &self,
        client: &Client,
        database: &str,
        secrets: &mut SecretsReport,
    ) -> Result<(), MaskError> {
        let failed = |what: &str| doing(&format!("database {database}: {what} cannot be cleared"));
        for clear in CLEAR_FOREIGN {
            secrets.foreign_options +=
                client.execute(clear, &[]).await.map_err(failed("options of foreign servers"))?;
        }
        if self.rules.large_objects == LargeObjects::Empty {
            let pages = client.execute(CLEAR_LARGE_OBJECTS, &[]).await.map_err(failed("large objects"))?;
            *secrets.large_object_pages.get_or_insert(0) += pages;
        }
        Ok(())
    }
}

/// Runs one of the two statements; gives the publications that it changed.
async fn set_publishing(
    client: &Client,
    database: &str,
    statement: &str,
    publications: &[u32],
) -> Result<Vec<u32>, MaskError> {
    let failed = || doing(&format!("database {database}: publications cannot be changed"));
    let parameters: &[&(dyn ToSql + Sync)] = &[&publications];
    let prepared = client.prepare(statement).await.map_err(failed())?;
    let changed = client.query(&prepared, &parameters[..prepared.params().len()]).await.map_err(failed())?;
    changed.iter().map(|row| get(row, 0)).collect()
}

async fn mask_table(client: &Client, table: &PlannedTable, key: &[u8; 32]) -> Result<Vec<ColumnReport>, MaskError> {
    let mut columns = table.columns();
    let Some(statement) = &table.statement else { return Ok(columns) };
    let failed = || doing(&format!("the rows of {} cannot be masked", table.name));
    for check in &table.checks {
        let outside: i64 = get(&client.query_one(&check.statement, &[]).await.map_err(failed())?, 0)?;
        if outside != 0 {
            let place = format!("{}, column {}", table.name, check.column);
            return Err(MaskError::OutOfRange { place, count: outside.unsigned_abs(), action: check.action.text() });
        }
    }
    let aside = if table.permutes { UniqueIndexes::put_aside(client, table).await? } else { UniqueIndexes::default() };
    generate(client, table, "by default").await?;
    let prepared = client.prepare(statement).await.map_err(failed())?;
    let key: &[u8] = key;
    let parameters: &[&(dyn ToSql + Sync)] = &[&key];
    // Without an action that hashes, it has none.
    let counts = client.query_one(&prepared, &parameters[..prepared.params().len()]).await.map_err(failed())?;
    generate(client, table, "always").await?;
    aside.make_anew(client, table).await?;
    let count = |at: usize| Ok::<u64, MaskError>(u64::try_from(get::<i64>(&counts, at)?).unwrap_or_default());
    let changed = columns.iter_mut().zip(&table.columns).filter(|(_, planned)| planned.action != crate::Action::Keep);
    for (index, (column, _)) in changed.enumerate() {
        column.rows = Some(count(0)?);
        column.values = Some(count(1 + 2 * index)?);
        column.unchanged = Some(count(2 + 2 * index)?);
    }
    Ok(columns)
}

/// Lets identities that are always generated be changed, or no longer.
async fn generate(client: &Client, table: &PlannedTable, when: &str) -> Result<(), MaskError> {
    for column in &table.always_generated {
        let relation = qualified(table);
        let alter = format!("alter table {relation} alter column {column} set generated {when}");
        let altered = client.batch_execute(&alter).await;
        altered.map_err(doing(&format!("the identity {column} of {} cannot be altered", table.name)))?;
    }
    Ok(())
}

fn qualified(table: &PlannedTable) -> String {
    sql::qualified(&table.name.schema, &table.name.table)
}

/// Indexes of a table that refuse equal values. While rows are changed one by one, a value that two rows exchange is there twice.
#[derive(Debug, Default)]
struct UniqueIndexes {
    /// Each by name, and its statement.
    anew: Vec<(String, String)>,
}

impl UniqueIndexes {
    /// Nothing is written into them from now on.
    async fn put_aside(client: &Client, table: &PlannedTable) -> Result<UniqueIndexes, MaskError> {
        let failed = || doing(&format!("unique indexes of {} cannot be put aside", table.name));
        let relation = qualified(table);
        let mut anew = Vec::new();
        for row in client.query(PUT_ASIDE, &[&relation]).await.map_err(failed())? {
            let (oid, name, is_valid): (u32, String, bool) = (get(&row, 0)?, get(&row, 1)?, get(&row, 2)?);
            // What was not whole before is not what is looked at: a rewrite fills it.
            let statement = match is_valid {
                true => format!("reindex index {name}"),
                false => format!("update pg_index set indisready = true where indexrelid = {oid}"),
            };
            anew.push((name, statement));
        }
        Ok(UniqueIndexes { anew })
    }

    /// Makes them of the rows as they are now, which they refuse if two are equal.
    async fn make_anew(&self, client: &Client, table: &PlannedTable) -> Result<(), MaskError> {
        for (name, statement) in &self.anew {
            let made = client.batch_execute(statement).await;
            made.map_err(doing(&format!("the unique index {name} of {} cannot be made anew", table.name)))?;
        }
        Ok(())
    }
}

/// All of them first without rows, so that none is made of another's rows as they were.
async fn refresh_views(client: &Client, database: &str) -> Result<(), MaskError> {
    let failed = || doing(&format!("database {database}: materialized views cannot be emptied"));
    let mut views = Vec::new();
    for row in client.query(VIEWS, &[]).await.map_err(failed())? {
        let view: String = get(&row, 0)?;
        let empty = format!("refresh materialized view {view} with no data");
        client.batch_execute(&empty).await.map_err(failed())?;
        views.push(view);
    }
    // One that depends on another comes after it: found by trying, however they depend on each other through views and functions.
    while !views.is_empty() {
        let (mut left, mut last_error) = (Vec::new(), None);
        let before = views.len();
        for view in views {
            if let Err(error) = client.batch_execute(&format!("refresh materialized view {view}")).await {
                last_error = Some(error);
                left.push(view);
            }
        }
        if let Some(source) = last_error.filter(|_| left.len() == before) {
            return Err(MaskError::View { database: database.to_owned(), view: left.swap_remove(0), source });
        }
        views = left;
    }
    Ok(())
}

/// Writes every relation of a database anew, and sees that none was left out; gives how many.
async fn rewrite(client: &Client, database: &str) -> Result<u64, MaskError> {
    let failed = |what: &str| doing(&format!("database {database}: {what}"));
    for clear in CLEAR_STATISTICS {
        client.execute(clear, &[]).await.map_err(failed("statistics cannot be emptied"))?;
    }
    wait_for_others(client).await?;
    let before = files(client).await.map_err(failed("files cannot be listed"))?;
    client.batch_execute("vacuum full").await.map_err(failed("tables cannot be written anew"))?;
    let after = files(client).await.map_err(failed("files cannot be listed"))?;
    let same = |(oid, (file, _)): &(&u32, &(u32, String))| before.get(oid).is_some_and(|(old, _)| old == file);
    let left: BTreeSet<&str> = after.iter().filter(same).map(|(_, (_, name))| &name[..]).collect();
    if !left.is_empty() {
        let relations = left.into_iter().take(10).collect::<Vec<_>>().join(", ");
        return Err(MaskError::NotRewritten { database: database.to_owned(), relations });
    }
    client.batch_execute("analyze").await.map_err(failed("statistics cannot be made"))?;
    Ok(after.len() as u64)
}

async fn files(client: &Client) -> Result<BTreeMap<u32, (u32, String)>, tokio_postgres::Error> {
    let rows = client.query(FILES, &[]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?)))).collect()
}

/// A version of a row that somebody may still see is not removed.
async fn wait_for_others(client: &Client) -> Result<(), MaskError> {
    let deadline = Instant::now() + OTHERS_DEADLINE;
    loop {
        let others = client.query_one(OTHERS, &[]).await.map_err(doing("sessions cannot be listed"))?;
        if get::<i64>(&others, 0)? == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(MaskError::Others);
        }
        tokio::time::sleep(OTHERS_POLL).await;
    }
}

fn get<'r, T: tokio_postgres::types::FromSql<'r>>(row: &'r Row, at: usize) -> Result<T, MaskError> {
    row.try_get(at).map_err(doing("an answer is not understood"))
}

fn doing(what: &str) -> impl FnOnce(tokio_postgres::Error) -> MaskError + use<> {
    let doing = what.to_owned();
    move |source| MaskError::Postgres { doing, source }
}
