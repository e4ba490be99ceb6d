//! How the safekeepers are, for `ardent status` and `ardent doctor`.

use std::collections::HashMap;

use ardent_api::addr::ServiceAddr;
use ardent_api::control::{ArchiveStallInfo, ErrorInfo, SCHEMA_VERSION, SafekeeperInfo, SafekeepersReply};
use ardent_api::wal_service::{ArchiveStall, SafekeeperStatus};
use ardent_types::TimelineId;

use crate::deps::{StorageError, StorageErrorKind};
use crate::service::Control;

impl Control {
    /// Asks all of them; one that is silent is waited for a few seconds at most.
    pub async fn safekeepers(&self) -> Result<SafekeepersReply, ErrorInfo> {
        let branches = self.context.store.branches()?;
        let names: HashMap<TimelineId, String> =
            branches.into_iter().filter(|row| row.is_listed()).map(|row| (row.timeline, row.name)).collect();
        let (known, change) = self.context.store.membership_and_change()?;
        let membership = known.unwrap_or_else(|| self.context.wal_service.membership());
        let asked = self.context.wal_service.safekeepers().await;
        let addresses: Vec<ServiceAddr> = asked.iter().map(|(address, _)| address.clone()).collect();
        let numbers = self.numbers_of(&addresses);
        let safekeepers = asked.into_iter().zip(numbers).map(|((address, said), number)| {
            let disk = membership.everyone().into_iter().find(|member| member.address == address);
            SafekeeperInfo { disk: disk.map(|member| member.disk), ..info(number, &address, said, &names) }
        });
        Ok(SafekeepersReply {
            schema_version: SCHEMA_VERSION,
            safekeepers: safekeepers.collect(),
            generation: membership.generation.get(),
            change: change.map(|change| self.describe_change(&change)),
        })
    }
}

fn info(
    number: u32,
    address: &ServiceAddr,
    said: Result<SafekeeperStatus, StorageError>,
    names: &HashMap<TimelineId, String>,
) -> SafekeeperInfo {
    // One that refuses or does not understand the question does answer.
    let is_up = said.as_ref().err().is_none_or(|error| error.kind != StorageErrorKind::Unavailable);
    let (status, error) = match said {
        Ok(status) => (Some(status), None),
        Err(error) => (None, Some(error.message)),
    };
    let stalls = status.as_ref().map_or(&[][..], |status| &status.archive_stalls);
    SafekeeperInfo {
        number,
        address: address.to_string(),
        disk: None,
        is_up,
        error,
        disk_free_bytes: status.as_ref().map(|status| status.disk_free_bytes),
        disk_size_bytes: status.as_ref().map(|status| status.disk_size_bytes),
        kept_for_others_bytes: status.as_ref().map(|status| status.kept_for_others_bytes),
        archives: status.as_ref().map(|status| status.archives),
        archive_stalls: stalls.iter().map(|stall| stall_info(stall, names)).collect(),
        archive_stalls_total: status.as_ref().map_or(0, |status| status.archive_stalls_total),
    }
}

fn stall_info(stall: &ArchiveStall, names: &HashMap<TimelineId, String>) -> ArchiveStallInfo {
    ArchiveStallInfo {
        branch: names.get(&stall.timeline).cloned(),
        timeline: stall.timeline,
        lsn: stall.lsn,
        for_s: stall.for_s,
        error: stall.message.clone(),
    }
}
