//! Connectors' replication slots on production: looked at from time to time, so that what will hurt is said before it does.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use ardent_api::control::SlotInfo;

use crate::service::Control;
use crate::store::ConnectorRow;

/// How often a slot is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// Longest wait for production's answer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

/// What production said of each connector's slot when it was asked last.
#[derive(Default)]
pub(crate) struct Slots(Mutex<HashMap<String, Option<SlotInfo>>>);

impl Slots {
    /// `None` if production was never asked, or has no slot.
    pub fn last(&self, connector: &str) -> Option<SlotInfo> {
        self.0.lock().get(connector).cloned().flatten()
    }

    pub fn forget(&self, connector: &str) {
        self.0.lock().remove(connector);
    }
}

impl Control {
    /// Looks at a connector's slot until cancelled; what will hurt goes to the log when it begins, and when it is over.
    pub(crate) async fn watch_slot(&self, row: &ConnectorRow, cancel: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut said = false;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = ticks.tick() => {}
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.look_at_slot(row) => {}
            }
            let warnings = self.slot_warnings(&row.name);
            match (warnings.as_slice(), said) {
                ([], true) => info!(connector = %row.name, "production's slot is in no danger any more"),
                ([], false) => {}
                (warnings, false) => warn!(connector = %row.name, warnings = warnings.join("; "), "production's slot"),
                (_, true) => {}
            }
            said = !warnings.is_empty();
        }
    }

    /// Asks production. One that cannot be asked leaves what it said last.
    pub(crate) async fn look_at_slot(&self, row: &ConnectorRow) {
        let Ok(spec) = self.connector_spec_of(row) else { return };
        match tokio::time::timeout(LOOK_TIMEOUT, self.context.connectors.slot(spec)).await {
            Ok(Ok(slot)) => return drop(self.slots.0.lock().insert(row.name.clone(), slot)),
            Ok(Err(error)) => debug!(connector = %row.name, %error, "production cannot be asked about its slot"),
            Err(_) => debug!(connector = %row.name, "production does not answer when asked about its slot"),
        }
        if let Some(Some(slot)) = self.slots.0.lock().get_mut(&row.name) {
            slot.current = false;
        }
    }

    /// What will hurt.
    pub(crate) fn slot_warnings(&self, connector: &str) -> Vec<String> {
        self.slots.last(connector).and_then(|slot| warning(&slot, self.config.slot_bytes_warn)).into_iter().collect()
    }
}

/// What there is to say of a slot. `bound` is what an unlimited one may keep.
fn warning(slot: &SlotInfo, bound: u64) -> Option<String> {
    let name = &slot.name;
    let kept = slot.kept_bytes.unwrap_or(0);
    let remedy = "see why it does not follow (ardent connector status), or raise max_slot_wal_keep_size on production";
    match (slot.wal_status.as_deref(), slot.safe_bytes) {
        (Some("lost"), _) => {
            Some(format!("production has given up slot {name}: WAL that the root branch needs may be gone"))
        }
        (Some("unreserved"), _) => Some(format!(
            "production keeps {} of WAL for slot {name}, more than max_slot_wal_keep_size, and gives it up at its next checkpoint: {remedy}",
            megabytes(kept)
        )),
        (_, Some(safe)) if safe < kept => Some(format!(
            "production keeps {} of WAL for slot {name} and gives it up after {} more: {remedy}",
            megabytes(kept),
            megabytes(safe)
        )),
        (_, None) if kept >= bound => Some(format!(
            "production keeps {} of WAL for slot {name}, without limit, and its disk fills: see why it does not follow \
             (ardent connector status), set max_slot_wal_keep_size on production, or delete the connector",
            megabytes(kept)
        )),
        _ => None,
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_will_hurt_is_said_before_it_does() {
        const MB: u64 = 1 << 20;
        let slot = |wal_status: &str, kept: u64, safe: Option<u64>| SlotInfo {
            name: "ardent_1".into(),
            active: false,
            wal_status: Some(wal_status.into()),
            kept_bytes: Some(kept * MB),
            safe_bytes: safe.map(|safe| safe * MB),
            current: true,
        };
        for (slot, words) in [
            (slot("reserved", 1, None), None),
            (slot("extended", 99, None), None),
            (slot("extended", 100, None), Some("keeps 100 MB of WAL for slot ardent_1, without limit")),
            (slot("extended", 500, Some(500)), None),
            (slot("extended", 600, Some(400)), Some("gives it up after 400 MB more")),
            (slot("unreserved", 1100, Some(0)), Some("at its next checkpoint")),
            (slot("lost", 0, None), Some("has given up slot ardent_1")),
        ] {
            let said = warning(&slot, 100 * MB);
            assert_eq!(said.is_some(), words.is_some(), "{slot:?}: {said:?}");
            assert!(said.unwrap_or_default().contains(words.unwrap_or_default()), "{slot:?}");
        }
    }
}
