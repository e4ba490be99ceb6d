//! Tells the page server what each timeline is to users, so that it stands in the timeline's manifest: a lost database is made anew
//! from that ([`crate::recovery`]).
//!
//! A branch's first manifest has it from the start. What changes later is told within a moment, and until it is told it is a row.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, warn};

use ardent_api::control::ErrorInfo;
use ardent_api::page_service::{DESCRIPTION_LEN_MAX, ManageRequest};
use ardent_types::{TenantId, TimelineId};

use crate::deps::{StorageError, StorageErrorKind};
use crate::service::Control;
use crate::store::Description;

/// What changes within this time is told at once: a change is several transactions, and a manifest is several writes.
const GATHERED: Duration = Duration::from_millis(200);
/// When it is tried again after the page server did not take it.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// Timelines in one go.
const BATCH: u32 = 64;

impl Control {
    /// Tells what changed, until the end.
    pub(crate) async fn keep_described(self: &Arc<Self>) {
        // What an earlier run left untold.
        let mut is_told = self.try_to_describe().await;
        loop {
            let due = async {
                if is_told {
                    self.context.store.changed().await;
                    tokio::time::sleep(GATHERED).await;
                } else {
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            };
            tokio::select! {
                () = due => {}
                () = self.cancel.cancelled() => return,
            }
            is_told = self.try_to_describe().await;
        }
    }

    async fn try_to_describe(&self) -> bool {
        let told = self.describe_untold().await;
        if let Err(error) = &told {
            warn!(%error, "what changed about branches is not in their manifests yet; trying again");
        }
        told.is_ok()
    }

    async fn describe(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        description: &Description,
    ) -> Result<(), StorageError> {
        let description = description.to_json();
        let length = description.to_string().len();
        if length > DESCRIPTION_LEN_MAX {
            // Trying again would not make it shorter.
            warn!(%timeline, length, "more is known of a timeline than its manifest may hold: it stays as it was told before");
            return Ok(());
        }
        self.context.page_service.manage(tenant, ManageRequest::Describe { timeline, description }).await.map(|_| ())
    }

    /// Tells all that was not told yet. One timeline that fails keeps no other from being told; the last failure is given.
    async fn describe_untold(&self) -> Result<(), ErrorInfo> {
        let mut result = Ok(());
        loop {
            let batch = self.context.store.untold(BATCH)?;
            let mut progress = false;
            for untold in &batch {
                // Told while it was made, or nothing to tell while it is half made.
                let told = match untold.description.as_ref().filter(|_| !untold.is_told()) {
                    None => Ok(()),
                    Some(description) => self.describe(untold.tenant, untold.timeline, description).await,
                };
                match told {
                    Ok(()) => {
                        self.context.store.told(untold)?;
                        progress = true;
                    }
                    Err(error) if error.kind == StorageErrorKind::Unavailable => return Err(error.into()),
                    Err(error) => {
                        debug!(timeline = %untold.timeline, %error, "cannot be described");
                        result = Err(error.into());
                    }
                }
            }
            if !progress || batch.len() < BATCH as usize {
                return result;
            }
        }
    }
}
