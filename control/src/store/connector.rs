//! Connectors.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension as _, Row, params};

use ardent_api::addr::ServiceAddr;
use ardent_api::control::{ConnectorState, LogicalOptions};
use ardent_types::{BranchId, TenantId, TimelineId};

use crate::deps::Imported;

use super::wal_debt::{self, WalDuty};
use super::{Store, StoreError, parsed};

/// A connector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectorRow {
    /// Name, also of its root branch.
    pub name: String,
    /// Tenant.
    pub tenant: TenantId,
    /// Root timeline.
    pub timeline: TimelineId,
    /// Where it is in its life.
    pub state: ConnectorState,
    /// The source's URL, sealed.
    pub url_sealed: Vec<u8>,
    /// The source's URL without its password.
    pub source: String,
    /// Ask for an immediate checkpoint.
    pub fast: bool,
    /// Most bytes per second of the base backup.
    pub max_rate_bytes: Option<u64>,
    /// Major version, once imported.
    pub pg_major: Option<u32>,
    /// Name of the bootstrap superuser, if it is not `postgres`.
    pub superuser: Option<String>,
    /// Settings that computes get.
    pub settings: BTreeMap<String, String>,
    /// What is copied, if it follows by logical replication.
    pub logical: Option<LogicalOptions>,
    /// How this host sorted texts otherwise than production when it was made.
    pub collation_warning: Option<String>,
    /// Only masked branches can be made of it.
    pub masked_only: bool,
    /// When it was made, microseconds since the Unix epoch.
    pub created_us: i64,
}

pub(super) const COLUMNS: &str = "name, tenant_id, timeline_id, state, url_sealed, source, fast, max_rate_bytes, pg_major, superuser, settings, logical, collation_warning, masked_only, created_us";

impl ConnectorRow {
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let state: String = row.get("state")?;
        let settings: String = row.get("settings")?;
        let settings = serde_json::from_str(&settings).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
        })?;
        let logical: Option<String> = row.get("logical")?;
        let logical = logical.map(|text| serde_json::from_str(&text)).transpose().map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
        })?;
        Ok(ConnectorRow {
            name: row.get("name")?,
            tenant: parsed(row, "tenant_id")?,
            timeline: parsed(row, "timeline_id")?,
            // The schema's CHECK leaves no fourth word.
            state: match state.as_str() {
                "creating" => ConnectorState::Creating,
                "ready" => ConnectorState::Ready,
                _ => ConnectorState::Deleting,
            },
            url_sealed: row.get("url_sealed")?,
            source: row.get("source")?,
            fast: row.get("fast")?,
            max_rate_bytes: row.get("max_rate_bytes")?,
            pg_major: row.get("pg_major")?,
            superuser: row.get("superuser")?,
            settings,
            logical,
            collation_warning: row.get("collation_warning")?,
            masked_only: row.get("masked_only")?,
            created_us: row.get("created_us")?,
        })
    }
}

/// Why a connector cannot be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotInserted {
    /// A branch or another connector has its name.
    NameTaken,
    /// A change of the safekeepers is on its way.
    SafekeepersChange,
}

impl Store {
    /// Adds a connector that is being created, with its tenant and root timeline. False: the name is taken, by a connector or
    /// a branch.
    pub fn insert_connector(&self, row: &ConnectorRow) -> Result<Result<(), NotInserted>, StoreError> {
        self.write(|transaction| {
            let taken: bool = transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM connectors WHERE name = ?1) OR EXISTS (SELECT 1 FROM branches WHERE name = ?1)",
                params![row.name],
                |row| row.get(0),
            )?;
            if taken {
                return Ok(Err(NotInserted::NameTaken));
            }
            // It makes its root timeline on those that it is told of, and these are just changing.
            let is_changing: bool = transaction
                .query_row("SELECT EXISTS (SELECT 1 FROM membership_change)", [], |row| row.get(0))?;
            if is_changing {
                return Ok(Err(NotInserted::SafekeepersChange));
            }
            let (tenant, timeline) = (row.tenant.to_string(), row.timeline.to_string());
            transaction.execute("INSERT INTO tenants (id, created_us) VALUES (?1, ?2)", params![tenant, row.created_us])?;
            transaction
                .execute("INSERT INTO timelines (id, tenant_id) VALUES (?1, ?2)", params![timeline, tenant])?;
            transaction.execute(
                "INSERT INTO connectors (name, tenant_id, timeline_id, state, url_sealed, source, fast, max_rate_bytes, logical,
                    collation_warning, created_us)
                 VALUES (?1, ?2, ?3, 'creating', ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                params![
                    row.name,
                    tenant,
                    timeline,
                    row.url_sealed,
                    row.source,
                    row.fast,
                    row.max_rate_bytes,
                    row.logical.as_ref().map(|options| serde_json::to_string(options).expect("plain data")),
                    row.collation_warning,
                    row.created_us
                ],
            )?;
            Ok(Ok(()))
        })
    }

    /// The connector with this name.
    pub fn connector(&self, name: &str) -> Result<Option<ConnectorRow>, StoreError> {
        self.read(|connection| {
            connection
                .query_row(
                    &format!("SELECT {COLUMNS} FROM connectors WHERE name = ?1"),
                    params![name],
                    ConnectorRow::read,
                )
                .optional()
        })
    }

    /// All connectors, by name.
    pub fn connectors(&self) -> Result<Vec<ConnectorRow>, StoreError> {
        self.read(|connection| {
            let mut statement =
                connection.prepare_cached(&format!("SELECT {COLUMNS} FROM connectors ORDER BY name"))?;
            statement.query_map([], ConnectorRow::read)?.collect()
        })
    }

    /// The import is done: the connector is ready, and its root branch exists.
    pub fn connector_ready(
        &self,
        row: &ConnectorRow,
        imported: &Imported,
        root: &super::BranchRow,
        credential: &super::CredentialRow,
    ) -> Result<(), StoreError> {
        let settings = serde_json::to_string(&imported.settings).expect("a map of strings is plain data");
        self.write(|transaction| {
            transaction.execute(
                "UPDATE connectors SET state = 'ready', pg_major = ?2, superuser = ?3, settings = ?4 WHERE name = ?1",
                params![row.name, imported.pg_major, imported.superuser, settings],
            )?;
            wal_debt::replace(transaction, (row.tenant, row.timeline), WalDuty::Create, &imported.away)?;
            super::branch::insert(transaction, root)?;
            super::branch::put_credential(transaction, root.id, credential)
        })
    }

    /// The source is reached at another URL from now on.
    pub fn move_connector(&self, name: &str, url_sealed: &[u8], source: &str) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .execute(
                    "UPDATE connectors SET url_sealed = ?2, source = ?3 WHERE name = ?1",
                    params![name, url_sealed, source],
                )
                .map(|_| ())
        })
    }

    /// A connector in logical mode has a root timeline: its root branch exists, for nobody to see yet.
    pub fn logical_begun(
        &self,
        row: &ConnectorRow,
        imported: &Imported,
        root: &super::BranchRow,
        credential: &super::CredentialRow,
    ) -> Result<(), StoreError> {
        let settings = serde_json::to_string(&imported.settings).expect("a map of strings is plain data");
        self.write(|transaction| {
            transaction.execute(
                "UPDATE connectors SET pg_major = ?2, superuser = ?3, settings = ?4 WHERE name = ?1",
                params![row.name, imported.pg_major, imported.superuser, settings],
            )?;
            wal_debt::replace(transaction, (row.tenant, row.timeline), WalDuty::Create, &imported.away)?;
            super::branch::insert(transaction, root)?;
            super::branch::put_credential(transaction, root.id, credential)
        })
    }

    /// Its import is done: branches can be made.
    pub fn logical_ready(&self, row: &ConnectorRow) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.execute("UPDATE connectors SET state = 'ready' WHERE name = ?1", params![row.name])?;
            transaction
                .execute("UPDATE branches SET hidden = 0 WHERE connector = ?1 AND parent_id IS NULL", params![row.name])
                .map(|_| ())
        })
    }

    /// How far a connector in logical mode is.
    pub fn logical_state(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.logical_text(name, "logical_state")
    }

    /// SQL that it runs later.
    pub fn logical_script(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.logical_text(name, "logical_script")
    }

    fn logical_text(&self, name: &str, column: &str) -> Result<Option<String>, StoreError> {
        self.read(|connection| {
            connection
                .query_row(&format!("SELECT {column} FROM connectors WHERE name = ?1"), params![name], |row| row.get(0))
                .optional()
                .map(Option::flatten)
        })
    }

    /// Remembers how far it is.
    pub fn set_logical_state(&self, name: &str, state: &str) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .execute("UPDATE connectors SET logical_state = ?2 WHERE name = ?1", params![name, state])
                .map(|_| ())
        })
    }

    /// Remembers SQL that it runs later.
    pub fn set_logical_script(&self, name: &str, script: &str) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .execute("UPDATE connectors SET logical_script = ?2 WHERE name = ?1", params![name, script])
                .map(|_| ())
        })
    }

    /// Marks a connector for deletion, unless branches were made from it: then their names. Deleted branches that could be had back
    /// don't count: they go with it.
    pub fn begin_delete_connector(&self, name: &str) -> Result<Result<(), Vec<String>>, StoreError> {
        self.write(|transaction| {
            let mut statement = transaction
                .prepare(
                    "SELECT name FROM branches WHERE connector = ?1 AND parent_id IS NOT NULL AND deleted_us IS NULL ORDER BY name",
                )?;
            let branches: Vec<String> =
                statement.query_map(params![name], |row| row.get(0))?.collect::<Result<_, _>>()?;
            if branches.is_empty() {
                transaction.execute("UPDATE connectors SET state = 'deleting' WHERE name = ?1", params![name])?;
                return Ok(Ok(()));
            }
            Ok(Err(branches))
        })
    }

    /// Forgets a connector with its root branch, timeline and tenant. `away` are the safekeepers that may have its WAL yet.
    pub fn remove_connector(&self, row: &ConnectorRow, away: &[ServiceAddr]) -> Result<(), StoreError> {
        self.write(|transaction| {
            wal_debt::replace(transaction, (row.tenant, row.timeline), WalDuty::Delete, away)?;
            let timeline = row.timeline.to_string();
            transaction.execute("DELETE FROM leases WHERE timeline_id = ?1", params![timeline])?;
            transaction.execute(
                "DELETE FROM computes WHERE branch_id IN
                    (SELECT id FROM branches WHERE connector = ?1 AND parent_id IS NULL)",
                params![row.name],
            )?;
            transaction
                .execute("DELETE FROM branches WHERE connector = ?1 AND parent_id IS NULL", params![row.name])?;
            transaction.execute("DELETE FROM connectors WHERE name = ?1", params![row.name])?;
            transaction.execute("DELETE FROM timelines WHERE id = ?1", params![timeline])?;
            transaction.execute("DELETE FROM tenants WHERE id = ?1", params![row.tenant.to_string()]).map(|_| ())
        })
    }

    /// The root branch of a connector, once it is ready.
    pub fn root_branch_id(&self, connector: &str) -> Result<Option<BranchId>, StoreError> {
        self.read(|connection| {
            connection
                .query_row(
                    "SELECT id FROM branches WHERE connector = ?1 AND parent_id IS NULL",
                    params![connector],
                    |row| parsed(row, "id"),
                )
                .optional()
        })
    }
}
