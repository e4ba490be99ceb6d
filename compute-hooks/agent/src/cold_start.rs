//! A new data directory from the page server's base backup.

use std::path::Path;

use ardent_api::compute::RunAs;
use ardent_api::page_service::{BackupItem, BaseBackupHeader};
use ardent_page_client::{PageClient, PageError};
use ardent_pg_format::PgMajor;
use ardent_types::Lsn;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::data_dir::DataDirBuilder;
use crate::error::ComputeError;

/// Parts of the base backup on their way from the network to the disk.
const ITEMS_IN_FLIGHT_MAX: usize = 256;

/// The facts of a base backup that a data directory is made from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) header: BaseBackupHeader,
    /// `pg_control` as it was imported.
    pub(crate) control_file: Bytes,
}

/// Receives the base backup at `lsn` into a new data directory at `root`, which lacks then only what [`Origin`] is for.
pub(crate) async fn receive(
    client: &mut PageClient,
    lsn: Lsn,
    root: &Path,
    major: PgMajor,
    run_as: Option<RunAs>,
) -> Result<Origin, ComputeError> {
    let (items, waiting) = mpsc::channel(ITEMS_IN_FLIGHT_MAX);
    let owned_root = root.to_owned();
    let building = tokio::task::spawn_blocking(move || build(&owned_root, major, lsn, run_as, waiting));
    let received = forward(client, lsn, items).await;
    // The builder fails first when both fail: its end is what stops the forwarding.
    building.await.map_err(|error| ComputeError::Invalid(format!("making the data directory failed: {error}")))??;
    let origin = received?;
    if origin.header.lsn != lsn || origin.header.pg_major != major.number() {
        return Err(ComputeError::Invalid(format!(
            "the page server sent a base backup of Postgres {} at {} instead of {} at {lsn}",
            origin.header.pg_major, origin.header.lsn, major
        )));
    }
    Ok(origin)
}

async fn forward(client: &mut PageClient, lsn: Lsn, items: mpsc::Sender<BackupItem>) -> Result<Origin, ComputeError> {
    let failed = |error: PageError| ComputeError::pageserver("receiving the base backup", lsn)(error);
    let mut stream = client.base_backup(lsn).await.map_err(failed)?;
    let (mut header, mut control_file) = (None, None);
    while let Some(item) = stream.next().await.map_err(failed)? {
        match item {
            BackupItem::Header(found) => header = Some(found),
            BackupItem::ControlFile(found) => control_file = Some(found),
            item => {
                if items.send(item).await.is_err() {
                    return Err(ComputeError::Invalid("the data directory could not be made".to_owned()));
                }
            }
        }
    }
    match (header, control_file) {
        (Some(header), Some(control_file)) => {
            // Says that nothing is missing: a builder whose sender is merely dropped knows that the rest never came.
            let _ = items.send(BackupItem::End).await;
            Ok(Origin { header, control_file })
        }
        _ => Err(ComputeError::Invalid("the base backup has no header or no control file".to_owned())),
    }
}

fn build(
    root: &Path,
    major: PgMajor,
    lsn: Lsn,
    run_as: Option<RunAs>,
    mut items: mpsc::Receiver<BackupItem>,
) -> Result<(), ComputeError> {
    let mut builder = DataDirBuilder::begin(root, major, lsn, run_as)?;
    loop {
        match items.blocking_recv() {
            Some(BackupItem::End) => return builder.finish(),
            Some(item) => builder.add(item)?,
            // The reason is the receiving side's to tell.
            None => return Ok(()),
        }
    }
}
