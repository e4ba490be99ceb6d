//! What the store remembers of a timeline, as it is also kept in the timeline's manifest: enough to make a lost store anew
//! ([`crate::recovery`]).
//!
//! Triggers of the schema count what changes about a timeline. What was not told yet is asked for, told, and marked with the count
//! that it was asked for at: what changed meanwhile is told again.

use std::collections::BTreeMap;

use ring::digest::{SHA256, digest};
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use ardent_api::control::LogicalOptions;
use ardent_api::policy::BranchPolicy;
use ardent_types::{BranchId, Lsn, TenantId, TimelineId};

use super::branch::CREDENTIAL_COLUMNS;
use super::checkpoint::CheckpointRow;
use super::connector::COLUMNS as CONNECTOR_COLUMNS;
use super::masked::MaskedDescription;
use super::timeline::SwitchKind;
use super::{ConnectorRow, CredentialRow, Store, StoreError, parsed, parsed_option};

/// The format that this program writes; it reads those up to it.
pub const DESCRIPTION_FORMAT: u32 = 1;

/// What a timeline is to users. Secrets are sealed. See `docs/formats/manifest.md`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// [`DESCRIPTION_FORMAT`] of the program that wrote it.
    pub format: u32,
    /// The branch that is on the timeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<BranchDescription>,
    /// The connector whose root timeline it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connector: Option<ConnectorDescription>,
    /// The branch that was on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub past: Option<PastDescription>,
    /// How the masked template that is on it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masked: Option<MaskedDescription>,
}

/// A branch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchDescription {
    /// Id.
    pub id: BranchId,
    /// Name; of a deleted branch the one that it had.
    pub name: String,
    /// The connector that it descends from.
    pub connector: String,
    /// The branch that it was made from.
    pub parent: Option<BranchId>,
    /// What it is compared with, where that is not where its timeline begins.
    pub base: Option<(TimelineId, Lsn)>,
    /// Since when it is on its timeline, if not since it was made; microseconds since the Unix epoch.
    pub since_us: Option<i64>,
    /// When it was deleted.
    pub deleted_us: Option<i64>,
    /// How long its history is kept, in seconds.
    pub retention_s: Option<u64>,
    /// Made by the server for its own needs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hidden: bool,
    /// The branch whose state a rebase has kept here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_of: Option<BranchId>,
    /// Its limits.
    pub policy: BranchPolicy,
    /// Rows changed when this was written, and up to where they were counted.
    pub rows_changed: u64,
    /// See `rows_changed`.
    pub rows_counted_to: Option<Lsn>,
    /// Role of its URL.
    pub role: String,
    /// Database of its URL.
    pub database: String,
    /// Suspended after this long without activity.
    pub idle_timeout_s: u64,
    /// When it will be deleted.
    pub expires_us: Option<i64>,
    /// When it was made.
    pub created_us: i64,
    /// Its roles' passwords.
    pub credentials: Vec<CredentialDescription>,
    /// Its newest checkpoints, in the order in which they were made; they may be on other timelines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checkpoints: Vec<CheckpointRow>,
}

/// A role's password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialDescription {
    /// Role.
    pub role: String,
    /// The sealed password, hexadecimal.
    pub password_sealed: Option<String>,
    /// Name that the role had when it was sealed.
    pub sealed_for: Option<String>,
    /// SCRAM-SHA-256 verifier.
    pub verifier: String,
    /// When it stops being good.
    pub expires_us: Option<i64>,
}

/// A connector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectorDescription {
    /// Name.
    pub name: String,
    /// The source's sealed URL, hexadecimal.
    pub url_sealed: String,
    /// The source's URL without its password.
    pub source: String,
    /// Ask for an immediate checkpoint.
    pub fast: bool,
    /// Most bytes per second of the base backup.
    pub max_rate_bytes: Option<u64>,
    /// Major version.
    pub pg_major: Option<u32>,
    /// The bootstrap superuser's name.
    pub superuser: Option<String>,
    /// Settings that computes get.
    pub settings: BTreeMap<String, String>,
    /// In logical mode, what is copied.
    pub logical: Option<LogicalOptions>,
    /// In logical mode, what is followed.
    pub logical_state: Option<String>,
    /// How this host sorted texts otherwise.
    pub collation_warning: Option<String>,
    /// Only masked branches can be made of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub masked_only: bool,
    /// When it was made.
    pub created_us: i64,
}

/// A branch that has left the timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastDescription {
    /// Which.
    pub branch: BranchId,
    /// From when it was on it, microseconds since the Unix epoch.
    pub since_us: i64,
    /// Until when.
    pub until_us: i64,
    /// `reset` or `restore`.
    pub ended_by: SwitchKind,
    /// To be deleted.
    pub leaving: bool,
    /// Only what hangs on it is kept.
    pub retired: bool,
}

/// A timeline of which something is not in its manifest yet.
#[derive(Clone, Debug)]
pub struct Untold {
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline.
    pub timeline: TimelineId,
    /// What is to be told; `None`: nothing, as it is half made or about to go.
    pub description: Option<Description>,
    changed: i64,
    is_told: bool,
}

impl Untold {
    /// Whether the manifest has this already.
    pub fn is_told(&self) -> bool {
        self.is_told
    }
}

impl Description {
    /// As it is kept.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("plain data")
    }

    /// What was kept; why it cannot be read otherwise.
    pub fn from_json(json: &serde_json::Value) -> Result<Description, String> {
        let format = json.get("format").and_then(serde_json::Value::as_u64);
        if format.is_some_and(|format| format > u64::from(DESCRIPTION_FORMAT)) {
            return Err("its description is of a newer ardent: recover with that".to_owned());
        }
        Description::deserialize(json).map_err(|error| format!("its description cannot be read: {error}"))
    }

    /// Its digest, by which it is told from another.
    pub fn digest(&self) -> Vec<u8> {
        digest(&SHA256, &serde_json::to_vec(self).expect("plain data")).as_ref().to_vec()
    }
}

impl Store {
    /// Some of the timelines whose manifests lack something.
    pub fn untold(&self, limit: u32) -> Result<Vec<Untold>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT d.timeline_id, t.tenant_id, d.changed, d.digest FROM descriptions d JOIN timelines t ON t.id = d.timeline_id
                 WHERE d.changed <> d.told LIMIT ?1",
            )?;
            let rows = statement.query_map(params![limit], |row| {
                Ok((
                    parsed(row, "timeline_id")?,
                    parsed(row, "tenant_id")?,
                    row.get("changed")?,
                    row.get::<_, Option<Vec<u8>>>("digest")?,
                ))
            })?;
            rows.map(|row| {
                let (timeline, tenant, changed, told) = row?;
                let description = describe(connection, timeline, Half::LeftOut)?;
                let is_told = description.as_ref().map(Description::digest) == told;
                Ok(Untold { tenant, timeline, description, changed, is_told })
            })
            .collect()
        })
    }

    /// The manifest has this.
    pub fn told(&self, untold: &Untold) -> Result<(), StoreError> {
        let digest = untold.description.as_ref().map(Description::digest);
        // Lost in a crash, it is told once more.
        self.note(|transaction| {
            transaction
                .execute(
                    "UPDATE descriptions SET told = ?2, digest = ?3 WHERE timeline_id = ?1",
                    params![untold.timeline.to_string(), untold.changed, digest],
                )
                .map(|_| ())
        })
    }

    /// The description of a timeline that is being made for a branch.
    pub fn description(&self, timeline: TimelineId) -> Result<Option<Description>, StoreError> {
        self.read(|connection| describe(connection, timeline, Half::Included))
    }
}

/// The manifest was made with this.
pub(super) fn made_with(
    transaction: &Transaction<'_>,
    timeline: TimelineId,
    description: &Description,
) -> rusqlite::Result<()> {
    transaction
        .execute(
            "UPDATE descriptions SET digest = ?2 WHERE timeline_id = ?1",
            params![timeline.to_string(), description.digest()],
        )
        .map(|_| ())
}

/// What becomes of what is half made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Included,
    LeftOut,
}

fn describe(connection: &Connection, timeline: TimelineId, half: Half) -> rusqlite::Result<Option<Description>> {
    let id = timeline.to_string();
    let branch = connection
        .prepare_cached(
            "SELECT id, name, state, connector, parent_id, base_timeline_id, base_lsn, since_us, deleted_us, deleted_name, retention_s,
                hidden, kept_of, policy, rows_changed, rows_counted_to, role, database, idle_timeout_s, expires_us, created_us
             FROM branches WHERE timeline_id = ?1 AND (state = 'ready' OR ?2 AND state = 'creating')",
        )?
        .query_row(params![id, half == Half::Included], BranchDescription::read)
        .optional()?;
    let branch = match branch {
        Some(mut branch) => {
            branch.credentials = credentials(connection, branch.id)?;
            branch.checkpoints = super::checkpoint::newest(connection, branch.id)?;
            Some(branch)
        }
        None => None,
    };
    let connector = connection
        .prepare_cached(&format!(
            "SELECT {CONNECTOR_COLUMNS}, logical_state FROM connectors WHERE timeline_id = ?1 AND state = 'ready'"
        ))?
        .query_row(params![id], |row| {
            Ok(ConnectorDescription::new(ConnectorRow::read(row)?, row.get("logical_state")?))
        })
        .optional()?;
    let past = connection
        .prepare_cached(
            "SELECT branch_id, since_us, until_us, ended_by, leaving, retired FROM past_timelines WHERE timeline_id = ?1",
        )?
        .query_row(params![id], |row| {
            Ok(PastDescription {
                branch: parsed(row, "branch_id")?,
                since_us: row.get("since_us")?,
                until_us: row.get("until_us")?,
                ended_by: SwitchKind::read(row, "ended_by")?,
                leaving: row.get("leaving")?,
                retired: row.get("retired")?,
            })
        })
        .optional()?;
    let masked = match branch.as_ref().filter(|branch| branch.is_template()) {
        Some(branch) => super::masked::by_branch(connection, branch.id)?,
        None => None,
    };
    let masked = masked.map(|made| made.description()).transpose();
    let masked = masked.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    let is_something = branch.is_some() || connector.is_some() || past.is_some();
    Ok(is_something.then_some(Description { format: DESCRIPTION_FORMAT, branch, connector, past, masked }))
}

impl BranchDescription {
    /// Whether it is a masked template.
    pub fn is_template(&self) -> bool {
        super::masked::template_name_of(&self.name).is_some()
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let deleted_name: Option<String> = row.get("deleted_name")?;
        let (base, base_lsn) = (parsed_option(row, "base_timeline_id")?, parsed_option(row, "base_lsn")?);
        Ok(BranchDescription {
            id: parsed(row, "id")?,
            name: match deleted_name {
                Some(name) => name,
                None => row.get("name")?,
            },
            connector: row.get("connector")?,
            parent: parsed_option(row, "parent_id")?,
            base: base.zip(base_lsn),
            since_us: row.get("since_us")?,
            deleted_us: row.get("deleted_us")?,
            retention_s: row.get("retention_s")?,
            hidden: row.get("hidden")?,
            kept_of: parsed_option(row, "kept_of")?,
            policy: super::branch::parsed_policy(row)?,
            rows_changed: row.get("rows_changed")?,
            rows_counted_to: parsed_option(row, "rows_counted_to")?,
            role: row.get("role")?,
            database: row.get("database")?,
            idle_timeout_s: row.get("idle_timeout_s")?,
            expires_us: row.get("expires_us")?,
            created_us: row.get("created_us")?,
            credentials: Vec::new(),
            checkpoints: Vec::new(),
        })
    }
}

fn credentials(connection: &Connection, branch: BranchId) -> rusqlite::Result<Vec<CredentialDescription>> {
    let sql = format!("SELECT {CREDENTIAL_COLUMNS} FROM credentials WHERE branch_id = ?1 ORDER BY role");
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(params![branch.to_string()], CredentialRow::read)?;
    rows.map(|row| {
        let row = row?;
        Ok(CredentialDescription {
            role: row.role,
            password_sealed: row.password_sealed.map(hex::encode),
            sealed_for: row.sealed_for,
            verifier: row.verifier,
            expires_us: row.expires_us,
        })
    })
    .collect()
}

impl ConnectorDescription {
    fn new(row: ConnectorRow, logical_state: Option<String>) -> Self {
        ConnectorDescription {
            name: row.name,
            url_sealed: hex::encode(row.url_sealed),
            source: row.source,
            fast: row.fast,
            max_rate_bytes: row.max_rate_bytes,
            pg_major: row.pg_major,
            superuser: row.superuser,
            settings: row.settings,
            logical: row.logical,
            logical_state,
            collation_warning: row.collation_warning,
            masked_only: row.masked_only,
            created_us: row.created_us,
        }
    }
}
