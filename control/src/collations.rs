//! Branches on a host that sorts texts otherwise than production: the indexes that depend on it are made anew, and the catalogs are told.

use std::sync::Arc;
use std::time::Instant;

use tokio_postgres::Client;
use tracing::info;

use ardent_api::collations::COLLATIONS_IN_USE;
use ardent_api::control::{ApiErrorCode, ErrorInfo, ReindexReply, ReindexedDatabase, SCHEMA_VERSION};
use ardent_types::with_causes;

use crate::branches::shutting_down;
use crate::diff::{connect, connect_anywhere};
use crate::service::Control;
use crate::store::BranchRow;

/// Nothing of the branch's own is run, and names are written with their schemas. Whoever uses a table meanwhile is waited for, with a limit.
const ALONE: &str = "set session_replication_role = replica; set search_path = ''; set statement_timeout = 0; set lock_timeout = '1min'";

/// All that are of another version than they are recorded with. One without a recorded version cannot be given any.
const REFRESH_COLLATIONS: &str = "do $$ declare name text; begin
    for name in select format('%I.%I', n.nspname, l.collname)
        from pg_catalog.pg_collation l join pg_catalog.pg_namespace n on n.oid = l.collnamespace
        where l.collprovider in ('c', 'i') and l.collversion is not null
            and l.collencoding in (-1, (select encoding from pg_catalog.pg_database where datname = pg_catalog.current_database()))
            and l.collversion <> pg_catalog.pg_collation_actual_version(l.oid)
    loop execute 'alter collation ' || name || ' refresh version'; end loop; end $$";

/// Those that nobody can connect to as well: new databases are made from them.
const REFRESH_DATABASES: &str = "do $$ declare name text; begin
    for name in select datname from pg_catalog.pg_database
        where datcollversion is not null and datcollversion <> pg_catalog.pg_database_collation_actual_version(oid)
    loop execute format('alter database %I refresh collation version', name); end loop; end $$";

impl Control {
    /// What there is to say of a branch that was made of production as it is.
    pub(crate) fn collation_warnings(&self, branch: &BranchRow) -> Result<Vec<String>, ErrorInfo> {
        let parent = branch.parent.map(|id| self.context.store.branch_by_id(id)).transpose()?.flatten();
        if !parent.is_some_and(|parent| parent.is_root()) {
            return Ok(Vec::new());
        }
        let connector = self.context.store.connector(&branch.connector)?;
        let warning = connector.and_then(|connector| connector.collation_warning);
        Ok(warning.into_iter().collect())
    }

    /// Makes those indexes of a branch anew whose texts were sorted by another version of a collation than this host has. The same again
    /// finds nothing to do. Goes on when the caller goes away.
    pub async fn reindex_collations(self: &Arc<Self>, name: &str) -> Result<ReindexReply, ErrorInfo> {
        let (control, name) = (self.clone(), name.to_owned());
        let task = self.tasks.spawn(async move { control.reindex(&name).await });
        task.await.map_err(|_| shutting_down())?
    }

    async fn reindex(&self, name: &str) -> Result<ReindexReply, ErrorInfo> {
        let branch = self.find_branch(name)?;
        if branch.policy.read_only {
            let message = format!("branch {name} is read-only: its indexes cannot be made anew");
            return Err(ErrorInfo::new(ApiErrorCode::Conflict, message).with_hint(format!(
                "allow writing first: ardent branch policy {name} --read-only off, then: ardent branch create {name} --reindex-collations"
            )));
        }
        let at = self.wake_branch(&branch, Instant::now()).await?;
        let failed = |error: tokio_postgres::Error| reindex_failed(&branch, &error.into());
        let lister = connect_anywhere(&at, &branch).await?;
        lister.batch_execute(ALONE).await.map_err(failed)?;
        let listed = lister
            .query("select datname::text from pg_catalog.pg_database where datallowconn and datconnlimit <> -2 order by datname", &[])
            .await
            .map_err(failed)?;
        let mut databases = Vec::new();
        for row in listed {
            let database: String = row.try_get(0).map_err(failed)?;
            let client = connect(&at, &database).await?;
            let (collations, indexes) =
                reindex_database(&client).await.map_err(|error| reindex_failed(&branch, &error))?;
            if !collations.is_empty() {
                info!(
                    branch = name,
                    database,
                    indexes = indexes.len(),
                    "indexes were made anew in this host's order of texts"
                );
                databases.push(ReindexedDatabase { database, collations, indexes });
            }
        }
        // Last: until then, the same again begins where it was interrupted.
        lister.batch_execute(REFRESH_DATABASES).await.map_err(failed)?;
        Ok(ReindexReply { schema_version: SCHEMA_VERSION, name: name.to_owned(), databases })
    }
}

/// Why indexes cannot be made anew. A branch's superuser can make its catalogs answer anything.
#[derive(Debug, thiserror::Error)]
enum ReindexError {
    #[error("Postgres refuses")]
    Postgres(#[from] tokio_postgres::Error),
    #[error("the list of indexes is no list of names")]
    Answer(#[from] serde_json::Error),
}

/// The collations that sort otherwise, and the indexes that were made anew.
async fn reindex_database(client: &Client) -> Result<(Vec<String>, Vec<String>), ReindexError> {
    client.batch_execute(ALONE).await?;
    let (mut collations, mut indexes) = (Vec::new(), Vec::new());
    for row in client.query(COLLATIONS_IN_USE, &[]).await? {
        let (name, version, actual): (String, Option<String>, Option<String>) =
            (row.try_get(1)?, row.try_get(4)?, row.try_get(5)?);
        if version == actual {
            continue;
        }
        let unknown = || "unknown".to_owned();
        collations.push(format!("{name}, {} to {}", version.unwrap_or_else(unknown), actual.unwrap_or_else(unknown)));
        indexes.extend(serde_json::from_str::<Vec<String>>(row.try_get(6)?)?);
    }
    // One may depend on several.
    indexes.sort();
    indexes.dedup();
    for index in &indexes {
        client.batch_execute(&format!("reindex index {index}")).await?;
    }
    if !collations.is_empty() {
        client.batch_execute(REFRESH_COLLATIONS).await?;
    }
    Ok((collations, indexes))
}

fn reindex_failed(branch: &BranchRow, error: &ReindexError) -> ErrorInfo {
    let message = format!("indexes of branch {} cannot be made anew: {}", branch.name, with_causes(error));
    ErrorInfo::new(ApiErrorCode::ComputeFailed, message)
        .with_hint(format!("it goes on with: ardent branch create {} --reindex-collations", branch.name))
}
