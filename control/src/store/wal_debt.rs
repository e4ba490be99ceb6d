//! What safekeepers that were away have yet to be told.

use rusqlite::{Row, Transaction, params};

use ardent_api::addr::ServiceAddr;
use ardent_types::{TenantId, TimelineId};

use super::{Store, StoreError, parsed};

/// What a safekeeper has yet to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalDuty {
    /// Make a timeline that the others have.
    Create,
    /// Forget a timeline that the others have forgotten.
    Delete,
}

impl WalDuty {
    fn as_str(self) -> &'static str {
        match self {
            WalDuty::Create => "create",
            WalDuty::Delete => "delete",
        }
    }
}

/// What one safekeeper has yet to be told about one timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalDebt {
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline.
    pub timeline: TimelineId,
    /// Which safekeeper.
    pub safekeeper: ServiceAddr,
    /// What it is to do.
    pub duty: WalDuty,
}

impl WalDebt {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let duty: String = row.get("duty")?;
        Ok(WalDebt {
            tenant: parsed(row, "tenant_id")?,
            timeline: parsed(row, "timeline_id")?,
            safekeeper: parsed(row, "safekeeper")?,
            // The schema's CHECK leaves no third word.
            duty: if duty == WalDuty::Create.as_str() { WalDuty::Create } else { WalDuty::Delete },
        })
    }
}

/// Records what the safekeepers that were away have to do, in place of what was to be done on this timeline before.
pub(super) fn replace(
    transaction: &Transaction<'_>,
    (tenant, timeline): (TenantId, TimelineId),
    duty: WalDuty,
    away: &[ServiceAddr],
) -> rusqlite::Result<()> {
    let id = timeline.to_string();
    transaction.execute("DELETE FROM wal_debts WHERE timeline_id = ?1", params![id])?;
    for safekeeper in away {
        transaction.execute(
            "INSERT INTO wal_debts (tenant_id, timeline_id, safekeeper, duty) VALUES (?1, ?2, ?3, ?4)",
            params![tenant.to_string(), id, safekeeper.to_string(), duty.as_str()],
        )?;
    }
    Ok(())
}

impl Store {
    /// All debts, or those of one timeline, the oldest first: an ancestor's come before its branches'.
    pub fn wal_debts(&self, timeline: Option<TimelineId>) -> Result<Vec<WalDebt>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT tenant_id, timeline_id, safekeeper, duty FROM wal_debts
                 WHERE ?1 IS NULL OR timeline_id = ?1 ORDER BY rowid",
            )?;
            statement.query_map(params![timeline.map(|id| id.to_string())], WalDebt::read)?.collect()
        })
    }

    /// A debt is settled.
    pub fn remove_wal_debt(&self, debt: &WalDebt) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .execute(
                    "DELETE FROM wal_debts WHERE timeline_id = ?1 AND safekeeper = ?2 AND duty = ?3",
                    params![debt.timeline.to_string(), debt.safekeeper.to_string(), debt.duty.as_str()],
                )
                .map(|_| ())
        })
    }
}
