//! Which statement last changed a row: from the row's version to its transaction, and from there, by the log, to the statement.
//!
//! ```text
//!  row on the branch's Postgres ──► xmin, place in the table's file
//!        │ log of the timeline that the transaction is of (the branch's, or one that it descends from)
//!        ▼
//!  transaction ──► its statements that wrote ── several ──► page server: at the end of which of them is the version on its page?
//! ```
//!
//! The page server has every change of the page since history is kept, so no WAL is read again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use ardent_api::control::{ApiErrorCode, ErrorInfo, SCHEMA_VERSION};
use ardent_api::page_service::BlockRange;
use ardent_api::token::{Claims, Rights, Service};
use ardent_diff::unquoted;
use ardent_page_client::{Binding, PageClient, PageError};
use ardent_pg_format::page::{self, ItemState};
use ardent_statement_log::{
    BlameFound, BlameReply, BlameRequest, KnownTransaction, LogEntry, Outcome, find_transaction, statements_of,
};
use ardent_types::{BLCKSZ, ForkNumber, Lsn, RelTag, TimelineId, with_causes};

use crate::diff::connect;
use crate::service::Control;
use crate::statement_log::refuse_root;
use crate::store::BranchRow;

/// How long the page server may take to ingest the end of a statement.
const INGEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the version of a row is that is seen now.
struct Version {
    /// The table's name, with its schema.
    table: String,
    xmin: u32,
    block: u32,
    item: u16,
    rel: RelTag,
}

/// Where a transaction was found.
struct Located {
    branch: String,
    timeline: TimelineId,
    folder: PathBuf,
    transaction: KnownTransaction,
}

/// What the logs say of a transaction.
enum Search {
    Found(Located),
    /// It is older than anything that was recorded.
    Before(Option<String>),
    /// It ran while the log was kept, and is not in it.
    Missing,
}

impl Control {
    /// Finds the statement that last changed a row. Wakes the branch.
    pub(crate) async fn blame(self: &Arc<Self>, name: &str, request: BlameRequest) -> Result<BlameReply, ErrorInfo> {
        let branch = self.find_branch(name)?;
        refuse_root(&branch)?;
        let at = self.wake_branch(&branch, Instant::now()).await?;
        let database = request.database.clone().unwrap_or_else(|| branch.database.clone());
        let client = connect(&at, &database).await?;
        let version = find_version(&client, &branch, &request).await?;
        let own_folder = self.written_log(&branch).await?;
        let mut reply = BlameReply {
            schema_version: SCHEMA_VERSION,
            branch: branch.name.clone(),
            database,
            table: version.table.clone(),
            key: request.key.clone(),
            xid: version.xmin,
            found: BlameFound::Unknown,
            on_branch: None,
            message: String::new(),
            statements: Vec::new(),
        };
        let control = self.clone();
        let (row, xmin) = (branch.clone(), version.xmin);
        let searching = tokio::task::spawn_blocking(move || control.search(&row, own_folder, xmin));
        match searching.await.map_err(|_| crate::branches::shutting_down())?? {
            Search::Found(located) => self.name_statement(&mut reply, &branch, &version, located).await?,
            Search::Before(oldest) => {
                reply.found = BlameFound::Unchanged;
                let kept = self.kept_by_last_rebase(&branch)?;
                reply.message = match (oldest, kept) {
                    (Some(_), Some(kept)) => format!(
                        "as the last rebase left it, or the state that it went onto: its version is of transaction {xmin}. What changed it before: ardent branch blame {kept} {} {}",
                        version.table,
                        request.key.join(",")
                    ),
                    (Some(since), None) => {
                        format!("unchanged since {since}: its version is of transaction {xmin}, before that")
                    }
                    (None, _) => "nothing is recorded of the branch or of those that it was made from".to_owned(),
                };
                if reply.message.starts_with("nothing") {
                    reply.found = BlameFound::Unknown;
                }
            }
            Search::Missing => {
                reply.message = format!(
                    "transaction {xmin} changed it on the branch, and is not in the log: that part is dropped, or the transaction did not say what it ran"
                );
            }
        }
        Ok(reply)
    }

    /// Looks for the transaction in the logs of the timelines that the branch's history is made of, the newest first.
    fn search(&self, branch: &BranchRow, own_folder: PathBuf, xid: u32) -> Result<Search, ErrorInfo> {
        let mut oldest = None;
        let family = self.rebase_family(branch)?;
        for (timeline, end) in self.history(branch)? {
            let owner = self.context.store.branch_of_timeline(timeline)?.filter(|owner| owner.id != branch.id);
            let mut places = vec![(branch.name.clone(), own_folder.clone())];
            // What ran on a timeline before a rebase exchanged it is in the log of the branch that was on it then.
            for other in family.iter().chain(&owner).filter(|other| other.id != branch.id) {
                places.push((other.known_name().to_string(), self.statement_log_folder(other.id)));
            }
            let mut is_missing = false;
            for (name, folder) in places {
                let found = find_transaction(&folder, timeline, end.unwrap_or(Lsn::MAX), xid);
                let found = found.map_err(|error| ErrorInfo::new(ApiErrorCode::Internal, with_causes(&error)))?;
                match found {
                    Ok(transaction) => {
                        return Ok(Search::Found(Located { branch: name, timeline, folder, transaction }));
                    }
                    Err(Some(header)) if !precedes(xid, header.first_xid as u32) => is_missing = true,
                    Err(Some(_)) if timeline == branch.timeline => oldest = Some("the branch point".to_owned()),
                    Err(Some(_)) => oldest = Some(format!("the branch point of {name}")),
                    Err(None) => {}
                }
            }
            if is_missing {
                return Ok(Search::Missing);
            }
        }
        Ok(Search::Before(oldest))
    }

    /// Says which statement of the transaction it was.
    async fn name_statement(
        &self,
        reply: &mut BlameReply,
        branch: &BranchRow,
        version: &Version,
        located: Located,
    ) -> Result<(), ErrorInfo> {
        let Located { branch: on_branch, timeline, folder, transaction } = located;
        let xid = version.xmin;
        let reading = tokio::task::spawn_blocking(move || {
            statements_of(&folder, transaction.session, transaction.first..=transaction.last)
        });
        let statements = reading.await.map_err(|_| crate::branches::shutting_down())?;
        let statements = statements.map_err(|error| ErrorInfo::new(ApiErrorCode::Internal, with_causes(&error)))?;
        let mut wrote: Vec<LogEntry> = statements
            .into_iter()
            .filter(|entry| entry.is_write() && !matches!(entry.outcome, Outcome::Failed | Outcome::RolledBack))
            .collect();
        reply.on_branch = Some(on_branch);
        if wrote.len() > 1 {
            match self.first_with_version(branch, timeline, version, &wrote).await {
                Ok(Some(at)) => wrote = vec![wrote.swap_remove(at)],
                Ok(None) => {
                    reply.message = format!(
                        "transaction {xid} changed it: one of these statements did, and the table was rewritten since"
                    );
                }
                Err(error) => {
                    reply.message = format!(
                        "transaction {xid} changed it: one of these statements did; which one cannot be told: {error}"
                    );
                }
            }
        }
        match wrote.len() {
            0 => {
                reply.message = format!("transaction {xid} changed it; its statements are not in the log");
            }
            1 => reply.found = BlameFound::Statement,
            _ => reply.found = BlameFound::Transaction,
        }
        reply.statements = wrote;
        Ok(())
    }

    /// The first of some statements, in their order, after which the version is on its page.
    async fn first_with_version(
        &self,
        branch: &BranchRow,
        timeline: TimelineId,
        version: &Version,
        statements: &[LogEntry],
    ) -> Result<Option<usize>, String> {
        let failed = |error: PageError| with_causes(&error);
        let claims = Claims {
            service: Service::Pageserver,
            tenant: Some(branch.tenant),
            timeline: Some(timeline),
            rights: Rights::Read,
            expires_at_s: None,
        };
        let binding = Binding { tenant: branch.tenant, timeline, token: self.context.tokens.issue(&claims) };
        let mut client = PageClient::connect(&self.context.page_service.addr(), &binding).await.map_err(failed)?;
        let Some(last) = statements.iter().filter_map(|entry| entry.lsn_to).max() else { return Ok(None) };
        client.wait_lsn(last, INGEST_TIMEOUT).await.map_err(failed)?;
        // Once written, it stays where it is for as long as its transaction runs.
        let (mut from, mut to) = (0, statements.len());
        while from < to {
            let middle = from + (to - from) / 2;
            let lsn = statements[middle].lsn_to.unwrap_or(last);
            let has_block = client.get_rel_size(lsn, version.rel).await.map_err(failed)?;
            let is_there = has_block.is_some_and(|size| version.block < size) && {
                let range = BlockRange { start: version.block, count: 1 };
                let bytes = client.get_pages(lsn, version.rel, &[range]).await.map_err(failed)?;
                has_version(&bytes, version.item, version.xmin)
            };
            if is_there {
                to = middle;
            } else {
                from = middle + 1;
            }
        }
        Ok((from < statements.len()).then_some(from))
    }
}

/// Whether transaction id `first` is older than `second`, as Postgres compares them.
fn precedes(first: u32, second: u32) -> bool {
    // Frozen and bootstrap ids are older than all.
    const FIRST_NORMAL: u32 = 3;
    if first < FIRST_NORMAL || second < FIRST_NORMAL { first < second } else { (first.wrapping_sub(second) as i32) < 0 }
}

/// Whether a version that `xmin` wrote stands at this place of a page.
fn has_version(bytes: &[u8], item: u16, xmin: u32) -> bool {
    let Ok(bytes) = <&[u8; BLCKSZ]>::try_from(bytes) else { return false };
    let Some(pointer) = page::item(bytes, item) else { return false };
    let at = usize::from(pointer.offset);
    pointer.state == ItemState::Normal && bytes.get(at..at + 4) == Some(&xmin.to_le_bytes()[..])
}

/// A table as people name it.
struct Table {
    oid: u32,
    name: String,
    quoted: String,
}

/// Looks the row up.
async fn find_version(client: &Client, branch: &BranchRow, request: &BlameRequest) -> Result<Version, ErrorInfo> {
    let failed = |error: tokio_postgres::Error| {
        ErrorInfo::new(
            ApiErrorCode::ComputeFailed,
            format!("branch {} cannot be read: {}", branch.name, with_causes(&error)),
        )
    };
    let table = find_table(client, branch, &request.table).await?;
    let columns = client.query(KEY_QUERY, &[&table.oid]).await.map_err(failed)?;
    if columns.is_empty() {
        let message = format!("table {} has neither a primary key nor a unique one without nulls", table.name);
        return Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, message).with_hint(format!(
            "a row has no name then: ardent branch log {} --writes --grep {}",
            branch.name, request.table
        )));
    }
    if columns.len() != request.key.len() {
        let names: Vec<String> = columns.iter().map(|column| column.get("name")).collect();
        let message = format!("the key of {} has {} columns: {}", table.name, columns.len(), names.join(", "));
        return Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, message)
            .with_hint("values are parted by commas, in that order, and quoted as in CSV where they have one"));
    }
    let conditions: Vec<String> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let (quoted, kind): (String, String) = (column.get("quoted"), column.get("type"));
            format!("r.{quoted} = (${}::text)::{kind}", at + 1)
        })
        .collect();
    let query = format!(
        "select r.xmin::text::bigint as xmin, (r.ctid::text::point)[0]::bigint as block, (r.ctid::text::point)[1]::int as item,
           pg_catalog.pg_relation_filenode(r.tableoid) as relnode,
           case c.reltablespace when 0 then d.dattablespace else c.reltablespace end as spcnode, d.oid as dbnode
         from {} r join pg_catalog.pg_class c on c.oid = r.tableoid
           join pg_catalog.pg_database d on d.datname = pg_catalog.current_database()
         where {}",
        table.quoted,
        conditions.join(" and ")
    );
    let key: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = request.key.iter().map(|value| value as _).collect();
    let rows = client.query(&query, &key).await.map_err(|error| match error.code() {
        Some(code) if code.code().starts_with("22") => {
            let message = format!("{} is no key of {}: {}", request.key.join(","), table.name, with_causes(&error));
            ErrorInfo::new(ApiErrorCode::InvalidArguments, message)
        }
        _ => failed(error),
    })?;
    let Some(row) = rows.first() else {
        let message = format!("{} has no row {} now", table.name, request.key.join(","));
        return Err(ErrorInfo::new(ApiErrorCode::NotFound, message).with_hint(format!(
            "if it was deleted: ardent branch log {} --writes --grep {}",
            branch.name, request.table
        )));
    };
    let number = |name: &str| u32::try_from(row.get::<_, i64>(name)).unwrap_or(0);
    let item = u16::try_from(row.get::<_, i32>("item")).unwrap_or(0);
    let (spcnode, dbnode, relnode) = (row.get("spcnode"), row.get("dbnode"), row.get("relnode"));
    let rel = RelTag { spcnode, dbnode, relnode, fork: ForkNumber::Main };
    Ok(Version { table: table.name, xmin: number("xmin"), block: number("block"), item, rel })
}

/// The columns of the primary key, or else of the first unique one that cannot be null, in its order.
const KEY_QUERY: &str = "
with key as (
  select i.indkey, i.indnkeyatts from pg_catalog.pg_index i
  where i.indrelid = $1 and i.indisunique and i.indimmediate and i.indisvalid and i.indpred is null and i.indexprs is null
    and not exists (
      select from pg_catalog.pg_attribute a
      where a.attrelid = $1 and a.attnum = any (i.indkey) and not a.attnotnull)
  order by i.indisprimary desc, i.indexrelid limit 1)
select a.attname::text as name, pg_catalog.quote_ident(a.attname) as quoted, pg_catalog.format_type(a.atttypid, a.atttypmod) as type
from key, pg_catalog.generate_series(0, key.indnkeyatts - 1) at, pg_catalog.pg_attribute a
where a.attrelid = $1 and a.attnum = key.indkey[at] order by at";

async fn find_table(client: &Client, branch: &BranchRow, wanted: &str) -> Result<Table, ErrorInfo> {
    const QUERY: &str = "
select c.oid, n.nspname || '.' || c.relname as name,
  pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) as quoted,
  c.relkind::text as kind
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p')
  and (c.relname = $1 or n.nspname || '.' || c.relname = $1 or ($2 = c.relname and ($3::text is null or $3 = n.nspname)))
  and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
order by n.nspname";
    let parts = unquoted(wanted);
    let (schema, name) = match &parts[..] {
        [name] => (None, Some(name)),
        [schema, name] => (Some(schema), Some(name)),
        _ => (None, None),
    };
    let rows = client.query(QUERY, &[&wanted, &name, &schema]).await.map_err(|error| {
        ErrorInfo::new(
            ApiErrorCode::ComputeFailed,
            format!("branch {} cannot be read: {}", branch.name, with_causes(&error)),
        )
    })?;
    match &rows[..] {
        [] => Err(ErrorInfo::new(ApiErrorCode::NotFound, format!("branch {} has no table {wanted}", branch.name))
            .with_hint("write it as name or schema.name; --database says in which database")),
        [row] => Ok(Table { oid: row.get("oid"), name: row.get("name"), quoted: row.get("quoted") }),
        several => {
            let names: Vec<String> = several.iter().map(|row| row.get("name")).collect();
            Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, format!("there are several tables {wanted}"))
                .with_hint(format!("name one of {}", names.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transaction_ids_are_compared_around_their_end() {
        assert!(precedes(700, 701) && !precedes(701, 701) && !precedes(702, 701));
        assert!(precedes(u32::MAX - 5, 10) && !precedes(10, u32::MAX - 5));
        assert!(precedes(2, 3_000_000_000), "frozen");
    }

    #[test]
    fn a_version_is_known_by_its_place_and_transaction() {
        let mut bytes = [0; BLCKSZ];
        page::init(&mut bytes, 0);
        let item = page::ItemId { offset: 8000, state: ItemState::Normal, length: 40 };
        bytes[24..28].copy_from_slice(&item.to_raw().to_le_bytes());
        page::set_lower(&mut bytes, 28);
        page::set_upper(&mut bytes, 8000);
        bytes[8000..8004].copy_from_slice(&742_u32.to_le_bytes());
        assert!(has_version(&bytes, 1, 742));
        assert!(!has_version(&bytes, 1, 743) && !has_version(&bytes, 2, 742) && !has_version(&bytes[1..], 1, 742));
    }
}
