//! A connector's production at another address, or another server in its place: after a fail-over, or when a name or password changes.

use std::sync::Arc;

use tracing::{info, warn};

use ardent_api::control::{ConnectorInfo, ErrorInfo, MoveConnectorRequest};

use crate::branches::shutting_down;
use crate::connectors::url_context;
use crate::pgurl::PgUrl;
use crate::service::Control;
use crate::store::ConnectorRow;

impl Control {
    /// Follows the server at another URL from now on, if it has what follows on the root timeline. Goes on when the caller goes away.
    pub async fn move_connector(
        self: &Arc<Self>,
        name: &str,
        request: MoveConnectorRequest,
    ) -> Result<ConnectorInfo, ErrorInfo> {
        let url = PgUrl::parse(&request.url)?;
        let (control, name) = (self.clone(), name.to_owned());
        let task = self.tasks.spawn(async move {
            let lock = control.name_lock(&name);
            let _guard = lock.lock().await;
            let row = control.find_ready_connector(&name)?;
            // Only one connection can use the slot.
            let applied = control.context.logical.status(row.timeline).and_then(|status| status.applied_lsn);
            control.stop_following(&name).await;
            let url_sealed = control.context.keyring.seal(&url_context(row.tenant), request.url.as_bytes())?;
            let moved = ConnectorRow { url_sealed, source: url.to_string(), ..row.clone() };
            let outcome = control.try_move(&moved, applied).await;
            let followed = if outcome.is_ok() { &moved } else { &row };
            control.start_following(followed).await?;
            outcome?;
            info!(connector = %name, source = %moved.source, "the connector was moved");
            control.connector_status_of(&moved).await
        });
        task.await.map_err(|_| shutting_down())?
    }

    async fn try_move(&self, moved: &ConnectorRow, applied: Option<ardent_types::Lsn>) -> Result<(), ErrorInfo> {
        let spec = self.connector_spec_of(moved)?;
        let checked = match moved.logical {
            Some(_) => self.context.logical.can_follow(spec, applied).await,
            None => self.context.connectors.can_follow(spec).await,
        };
        if let Err(error) = checked {
            warn!(connector = %moved.name, source = %moved.source, %error, "the connector was not moved");
            return Err(if error.hint.is_some() {
                error
            } else {
                error.with_hint(format!("connector {} stays where it was: ardent connector status {0}", moved.name))
            });
        }
        Ok(self.context.store.move_connector(&moved.name, &moved.url_sealed, &moved.source)?)
    }
}
