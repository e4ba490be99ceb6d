//! Connectors that give out masked data only: whatever would put other data behind a URL is refused.
//!
//! | of a branch that is not masked | |
//! | --- | --- |
//! | making it, having it back after it was deleted | refused, in the transaction that would do it |
//! | resetting it, rebasing it | refused: newer data would be behind its URL |
//! | its URL, its passwords; restoring and rewinding it, taking a rebase back | as before: that data was behind its URL already |
//! | comparing it, checking rules on it, masking it | as before: what is made for this has no name that anybody could connect to |

use tracing::info;

use ardent_api::control::{
    ApiErrorCode, BranchState, ConnectorInfo, ConnectorState, ErrorInfo, UpdateConnectorRequest,
};

use crate::service::Control;
use crate::store::{BranchRow, ConnectorRow};

/// Most branches that are named.
const NAMED_MAX: usize = 10;

impl Control {
    /// Changes a connector's settings; also of one that is being made.
    pub async fn update_connector(
        &self,
        name: &str,
        request: &UpdateConnectorRequest,
    ) -> Result<ConnectorInfo, ErrorInfo> {
        let row = self.find_connector(name)?;
        if row.state == ConnectorState::Deleting {
            return Err(ErrorInfo::new(ApiErrorCode::Conflict, format!("connector {name} is being deleted"))
                .with_hint("ardent connector list shows which there are"));
        }
        if let Some(masked_only) = request.masked_only {
            self.context.store.set_masked_only(name, masked_only)?;
            info!(connector = name, masked_only, "connector is changed");
        }
        let row = self.find_connector(name)?;
        let status = self.context.timeline_status(row.tenant, row.timeline).await.ok();
        self.connector_info(&row, status.as_ref(), None)
    }

    /// How many branches of a connector are not masked, and the names of the first; `None` if they need not be.
    pub(crate) fn unmasked(&self, row: &ConnectorRow) -> Result<Option<(u64, Vec<String>)>, ErrorInfo> {
        if !row.masked_only {
            return Ok(None);
        }
        let mut names = self.context.store.unmasked_branches(&row.name)?;
        let count = names.len() as u64;
        names.truncate(NAMED_MAX);
        Ok(Some((count, names)))
    }

    /// Refuses what would put newer data behind a branch's URL, if that would not be masked and has to be. `done` is what was asked for,
    /// as in "cannot be reset".
    pub(crate) fn check_not_withheld(&self, branch: &BranchRow, done: &str) -> Result<(), ErrorInfo> {
        if !self.context.store.is_withheld(branch.id)? {
            return Ok(());
        }
        let what = format!("branch {} is not masked, and cannot be {done}", branch.known_name());
        Err(self.withheld(&branch.connector, &what))
    }

    /// The refusal, with the next command.
    pub(crate) fn withheld(&self, connector: &str, what: &str) -> ErrorInfo {
        let templates = match self.templates() {
            Ok(templates) => templates,
            Err(error) => return error,
        };
        let newest = templates
            .iter()
            .filter(|row| row.connector == connector && row.state == BranchState::Ready)
            .max_by_key(|row| row.created_us)
            .and_then(BranchRow::template_name);
        let hint = match newest {
            Some(template) => format!("make a masked branch: ardent branch create NAME --masked {template}"),
            None => format!(
                "mask its data first: ardent mask create TEMPLATE --from {connector} --rules FILE; then: ardent branch create NAME --masked TEMPLATE"
            ),
        };
        let message = format!("connector {connector} gives out masked data only: {what}");
        ErrorInfo::new(ApiErrorCode::Conflict, message).with_hint(hint)
    }
}
