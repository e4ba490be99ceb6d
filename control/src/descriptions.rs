//! Tells the page server what each timeline is to users, so that it stands in the timeline's manifest: a lost database is made anew
//! from that ([`crate::recovery`]).
//!
//! A branch's first manifest has it from the start. What changes later is told within a moment, and until it is told it is a row.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, warn};

use ardent_api::control::ErrorInfo;
use ardent_api::page_service::ManageRequest;

use crate::deps::StorageErrorKind;
use crate::service::Control;
use crate::store::Description;

/// How often what changed is told.
const PERIOD: Duration = Duration::from_millis(500);
/// The same while the page server does not take it.
const PERIOD_AFTER_FAILURE: Duration = Duration::from_secs(10);
/// Timelines in one go.
const BATCH: u32 = 64;

impl Control {
    /// Tells what changed, until the end.
    pub(crate) async fn keep_described(self: &Arc<Self>) {
        let mut wait = PERIOD;
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.cancel.cancelled() => return,
            }
            wait = match self.describe_untold().await {
                Ok(()) => PERIOD,
                Err(error) => {
                    warn!(%error, "what changed about branches is not in their manifests yet; trying again");
                    PERIOD_AFTER_FAILURE
                }
            };
        }
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
                    Some(description) => {
                        let request = ManageRequest::Describe {
                            timeline: untold.timeline,
                            description: Description::to_json(description),
                        };
                        self.context.page_service.manage(untold.tenant, request).await.map(|_| ())
                    }
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
