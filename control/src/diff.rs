//! The diff of a branch against its branch point: two computes, the page server's list of changed blocks, and `ardent-diff`.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::{Client, NoTls};
use tracing::warn;

use ardent_api::compute::AGENT_ROLE;
use ardent_api::control::{ApiErrorCode, BranchState, DiffRequest, ErrorInfo, SCHEMA_VERSION, WakeReply};
use ardent_api::page_service::ChangedRelation;
use ardent_api::token::{Claims, Rights, Service};
use ardent_diff::{ChangeSet, CompareOptions, DiffError, DiffReport, Session, compare};
use ardent_page_client::{Binding, PageClient, PageError};
use ardent_types::Lsn;

use crate::service::Control;
use crate::store::BranchRow;

/// How long the page server may take to ingest what the branch had written when the diff was asked for.
const INGEST_TIMEOUT: Duration = Duration::from_secs(60);

impl Control {
    /// What changed on a branch since it was made. Goes on when the caller goes away, so that what it makes is cleared away.
    pub async fn diff_branch(self: &Arc<Self>, name: &str, request: DiffRequest) -> Result<DiffReport, ErrorInfo> {
        let branch = self.find_branch(name)?;
        let control = self.clone();
        let task = self.tasks.spawn(async move { control.diff(&branch, &request).await });
        task.await.map_err(|_| crate::branches::shutting_down())?
    }

    async fn diff(self: &Arc<Self>, branch: &BranchRow, request: &DiffRequest) -> Result<DiffReport, ErrorInfo> {
        let name = &branch.name;
        let parent = match branch.parent {
            Some(id) => self.context.store.branch_by_id(id)?,
            None => {
                let message = format!("{name} follows production: it has no branch point to be compared with");
                return Err(ErrorInfo::new(ApiErrorCode::RootBranch, message)
                    .with_hint(format!("make a branch of it: ardent branch create NAME --from {name}")));
            }
        };
        let (Some(parent), Some(base_timeline), Some(branch_lsn), BranchState::Ready) =
            (parent, branch.base_timeline, branch.branch_lsn, branch.state)
        else {
            let doing = if branch.state == BranchState::Deleting { "deleted" } else { "made" };
            let message = format!("branch {name} is just being {doing}");
            return Err(ErrorInfo::new(ApiErrorCode::Conflict, message).with_hint("try again in a moment"));
        };
        let base = self.create_hidden(&parent, base_timeline, branch_lsn).await?;
        let result = self.diff_with(branch, &base, branch_lsn, request).await;
        if let Err(error) = self.delete_hidden(&base).await {
            warn!(branch = %name, %error, "the compute at the branch point is not deleted yet; the housekeeper tries again");
        }
        result
    }

    async fn diff_with(
        self: &Arc<Self>,
        branch: &BranchRow,
        base: &BranchRow,
        branch_lsn: Lsn,
        request: &DiffRequest,
    ) -> Result<DiffReport, ErrorInfo> {
        let began = std::time::Instant::now();
        let read_before = self.pages_sent(branch).await?;
        let (head_at, base_at) = tokio::try_join!(self.wake_branch(branch, began), self.wake_branch(base, began))?;

        let lister = connect(&head_at, "template1").await?;
        let listed = lister
            .query("select oid, datname::text from pg_catalog.pg_database where datallowconn order by datname", &[])
            .await
            .map_err(|error| query_failed(branch, &error))?;
        let mut heads = Vec::new();
        let mut newest = Lsn::INVALID;
        for row in listed {
            let (oid, database): (u32, String) = (row.get(0), row.get(1));
            let client = connect(&head_at, &database).await?;
            let (session, lsn) = Session::open(client, "head", &database).await.map_err(|error| failed(&error))?;
            newest = newest.max(lsn);
            heads.push((oid, database, session));
        }
        // Commits, so that all WAL up to the snapshots is flushed and on its way.
        lister
            .batch_execute("set default_transaction_read_only = off; select pg_catalog.pg_logical_emit_message(true, 'ardent', 'diff')")
            .await
            .map_err(|error| query_failed(branch, &error))?;
        let to_lsn = newest;
        let changed = self.changed_blocks(branch, branch_lsn, to_lsn).await?;

        let options = CompareOptions { tables: request.tables.clone(), ..CompareOptions::default() };
        let mut databases: Vec<ChangeSet> = Vec::new();
        let mut skipped = Vec::new();
        for (oid, database, head) in &heads {
            let client = match connect(&base_at, database).await {
                Ok(client) => client,
                // Made on the branch, or renamed there.
                Err(error) if error.code == ApiErrorCode::NotFound => {
                    skipped.push(database.clone());
                    continue;
                }
                Err(error) => return Err(error),
            };
            let (old, _) = Session::open(client, "branch point", database).await.map_err(|error| failed(&error))?;
            let set = compare(&old, head, *oid, &changed, &options).await.map_err(|error| failed(&error))?;
            databases.extend(Some(set).filter(|set| !set.is_empty()));
        }
        let (read_head, read_base) = tokio::try_join!(self.pages_sent(branch), self.pages_sent(base))?;
        Ok(DiffReport {
            schema_version: SCHEMA_VERSION,
            branch: branch.name.clone(),
            from_lsn: branch_lsn,
            to_lsn,
            changed_blocks: changed.iter().flat_map(|rel| &rel.ranges).map(|range| u64::from(range.count)).sum(),
            pages_read_branch_point: read_base,
            pages_read_head: read_head.saturating_sub(read_before),
            databases,
            databases_not_compared: skipped,
        })
    }

    async fn pages_sent(&self, branch: &BranchRow) -> Result<u64, ErrorInfo> {
        Ok(self.context.timeline_status(branch.tenant, branch.timeline).await?.pages_sent)
    }

    async fn changed_blocks(&self, branch: &BranchRow, from: Lsn, to: Lsn) -> Result<Vec<ChangedRelation>, ErrorInfo> {
        let claims = Claims {
            service: Service::Pageserver,
            tenant: Some(branch.tenant),
            timeline: Some(branch.timeline),
            rights: Rights::Read,
            expires_at_s: None,
        };
        let binding =
            Binding { tenant: branch.tenant, timeline: branch.timeline, token: self.context.tokens.issue(&claims) };
        let unavailable = |error: PageError| {
            let message = format!("the page server cannot say what changed: {}", chain(&error));
            ErrorInfo::new(ApiErrorCode::StorageUnavailable, message)
        };
        let mut client = PageClient::connect(&self.context.page_service.addr(), &binding).await.map_err(unavailable)?;
        client.wait_lsn(to, INGEST_TIMEOUT).await.map_err(unavailable)?;
        client.get_changed(from, to).await.map_err(unavailable)
    }
}

async fn connect(at: &WakeReply, database: &str) -> Result<Client, ErrorInfo> {
    let mut config = tokio_postgres::Config::new();
    config.host_path(&at.socket_dir).port(at.port).user(AGENT_ROLE).dbname(database).application_name("ardent diff");
    let (client, connection) = config.connect(NoTls).await.map_err(|error| {
        let code = match error.code() {
            Some(&tokio_postgres::error::SqlState::INVALID_CATALOG_NAME) => ApiErrorCode::NotFound,
            _ => ApiErrorCode::ComputeFailed,
        };
        ErrorInfo::new(code, format!("database {database} cannot be opened for the diff: {}", chain(&error)))
    })?;
    // Ends with the client; its errors reach the queries.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a diff's connection ended");
        }
    });
    Ok(client)
}

fn failed(error: &DiffError) -> ErrorInfo {
    ErrorInfo::new(ApiErrorCode::ComputeFailed, chain(error))
}

fn query_failed(branch: &BranchRow, error: &tokio_postgres::Error) -> ErrorInfo {
    ErrorInfo::new(ApiErrorCode::ComputeFailed, format!("branch {} cannot be read: {}", branch.name, chain(error)))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
