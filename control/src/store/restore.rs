//! A lost store, made anew from what timelines' manifests say.

use rusqlite::{Transaction, params};

use ardent_types::{Lsn, TenantId, TimelineId};

use super::branch::policy_text;
use super::description::{BranchDescription, ConnectorDescription, PastDescription};
use super::masked::{self, MaskedRow};
use super::{Store, StoreError, checkpoint};

/// A timeline as storage has it, with what it is to users.
#[derive(Clone, Debug)]
pub struct TimelineRow {
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline.
    pub timeline: TimelineId,
    /// What it hangs on: timeline, where, and where the record begins that ends there.
    pub ancestor: Option<(TimelineId, Lsn, Lsn)>,
    /// The connector whose root it is.
    pub connector: Option<ConnectorDescription>,
    /// The branch that is on it.
    pub branch: Option<BranchDescription>,
    /// The branch that was on it.
    pub past: Option<PastDescription>,
    /// How the masked template that is on it was made.
    pub masked: Option<MaskedRow>,
}

impl Store {
    /// Fills an empty store, in one transaction. What the rows refer to must be among them.
    pub fn restore(&self, rows: &[TimelineRow]) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.execute_batch("PRAGMA defer_foreign_keys = ON")?;
            rows.iter().try_for_each(|row| insert(transaction, row))
        })
    }
}

fn insert(transaction: &Transaction<'_>, row: &TimelineRow) -> rusqlite::Result<()> {
    let (tenant, timeline) = (row.tenant.to_string(), row.timeline.to_string());
    let (ancestor, lsn, prev_lsn) = match row.ancestor {
        Some((ancestor, lsn, prev_lsn)) => {
            (Some(ancestor.to_string()), Some(lsn.to_string()), Some(prev_lsn.to_string()))
        }
        None => (None, None, None),
    };
    if let Some(connector) = &row.connector {
        transaction
            .execute("INSERT INTO tenants (id, created_us) VALUES (?1, ?2)", params![tenant, connector.created_us])?;
    }
    transaction.execute(
        "INSERT INTO timelines (id, tenant_id, ancestor_id, branch_lsn, prev_lsn) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![timeline, tenant, ancestor, lsn, prev_lsn],
    )?;
    if let Some(connector) = &row.connector {
        insert_connector(transaction, &tenant, &timeline, connector)?;
    }
    if let Some(branch) = &row.branch {
        insert_branch(transaction, &timeline, branch)?;
        if let Some(made) = &row.masked {
            masked::insert(transaction, branch.id, made)?;
        }
    }
    if let Some(past) = &row.past {
        transaction.execute(
            "INSERT INTO past_timelines (timeline_id, branch_id, since_us, until_us, ended_by, leaving, retired)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                timeline,
                past.branch.to_string(),
                past.since_us,
                past.until_us,
                past.ended_by.as_str(),
                past.leaving,
                past.retired
            ],
        )?;
    }
    Ok(())
}

fn insert_connector(
    transaction: &Transaction<'_>,
    tenant: &str,
    timeline: &str,
    connector: &ConnectorDescription,
) -> rusqlite::Result<()> {
    transaction
        .execute(
            "INSERT INTO connectors (name, tenant_id, timeline_id, state, url_sealed, source, fast, max_rate_bytes, pg_major,
                superuser, settings, created_us, logical, logical_state, collation_warning, masked_only)
             VALUES (?1, ?2, ?3, 'ready', ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            params![
                connector.name,
                tenant,
                timeline,
                unhex(&connector.url_sealed)?,
                connector.source,
                connector.fast,
                connector.max_rate_bytes,
                connector.pg_major,
                connector.superuser,
                serde_json::to_string(&connector.settings).expect("a map of strings is plain data"),
                connector.created_us,
                connector.logical.as_ref().map(|options| serde_json::to_string(options).expect("plain data")),
                connector.logical_state,
                connector.collation_warning,
                connector.masked_only
            ],
        )
        .map(|_| ())
}

fn insert_branch(transaction: &Transaction<'_>, timeline: &str, branch: &BranchDescription) -> rusqlite::Result<()> {
    let id = branch.id.to_string();
    // As a deletion that can be undone leaves it.
    let name = if branch.deleted_us.is_some() { format!("deleted.{id}") } else { branch.name.clone() };
    transaction.execute(
        "INSERT INTO branches (id, name, state, connector, parent_id, timeline_id, hidden, read_only, role, database,
            idle_timeout_s, expires_us, created_us, policy, rows_changed, rows_counted_to, base_timeline_id, base_lsn, since_us,
            deleted_us, deleted_name, retention_s, kept_of)
         VALUES (?1, ?2, 'ready', ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22)",
        params![
            id,
            name,
            branch.connector,
            branch.parent.map(|parent| parent.to_string()),
            timeline,
            branch.hidden,
            branch.policy.read_only,
            branch.role,
            branch.database,
            branch.idle_timeout_s,
            branch.expires_us,
            branch.created_us,
            policy_text(&branch.policy),
            branch.rows_changed,
            branch.rows_counted_to.map(|lsn| lsn.to_string()),
            branch.base.map(|(base, _)| base.to_string()),
            branch.base.map(|(_, lsn)| lsn.to_string()),
            branch.since_us,
            branch.deleted_us,
            branch.deleted_us.map(|_| &branch.name),
            branch.retention_s,
            branch.kept_of.map(|id| id.to_string())
        ],
    )?;
    for credential in &branch.credentials {
        transaction.execute(
            "INSERT INTO credentials (branch_id, role, password_sealed, sealed_for, verifier, expires_us)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                id,
                credential.role,
                credential.password_sealed.as_deref().map(unhex).transpose()?,
                credential.sealed_for,
                credential.verifier,
                credential.expires_us
            ],
        )?;
    }
    branch.checkpoints.iter().try_for_each(|row| checkpoint::insert(transaction, &id, row))
}

fn unhex(text: &str) -> rusqlite::Result<Vec<u8>> {
    hex::decode(text).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}
