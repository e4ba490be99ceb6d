//! Facts about a safekeeper as a whole.

use std::io;
use std::path::PathBuf;

use nix::sys::statvfs::statvfs;

use ardent_api::wal_service::SafekeeperStatus;

use crate::archive::Stalls;
use crate::failure::TimelineError;
use crate::registry::Registry;

/// Why they cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatusError {
    #[error("the disk of {path} cannot be looked at")]
    Disk { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Timelines(#[from] TimelineError),
}

/// Looks at the disk and asks all workers. `stalls`: of the archive, if there is one.
pub(crate) async fn status(registry: &Registry, stalls: Option<&Stalls>) -> Result<SafekeeperStatus, StatusError> {
    let path = registry.data_dir().to_owned();
    let looked = tokio::task::spawn_blocking(move || {
        let disk = statvfs(&path).map_err(|errno| StatusError::Disk { path, source: errno.into() })?;
        #[allow(clippy::useless_conversion, reason = "the types differ between platforms")]
        let bytes = |blocks: nix::libc::fsblkcnt_t| u64::from(blocks).saturating_mul(u64::from(disk.fragment_size()));
        Ok::<_, StatusError>((bytes(disk.blocks_available()), bytes(disk.blocks())))
    });
    let (disk_free_bytes, disk_size_bytes) = looked.await.map_err(|_| TimelineError::Stopping)??;
    let (archive_stalls, archive_stalls_total) = stalls.map(Stalls::told).unwrap_or_default();
    Ok(SafekeeperStatus {
        disk_free_bytes,
        disk_size_bytes,
        kept_for_others_bytes: registry.kept_for_others_bytes().await?,
        archives: stalls.is_some(),
        archive_stalls,
        archive_stalls_total,
    })
}
