//! What a new branch starts from: a masked template, a branch, or the root of a connector.

use ardent_api::control::{ApiErrorCode, BranchState, CreateBranchRequest, ErrorInfo};

use crate::branches::not_found;
use crate::service::Control;
use crate::store::BranchRow;

impl Control {
    /// The branch that a new one starts from.
    pub(crate) fn parent_of(&self, request: &CreateBranchRequest) -> Result<BranchRow, ErrorInfo> {
        if let Some(template) = &request.masked {
            if request.from.is_some() {
                let message = "a branch is made from another branch or from a masked template, not from both";
                return Err(
                    ErrorInfo::new(ApiErrorCode::InvalidArguments, message).with_hint("leave --from or --masked out")
                );
            }
            return self.template_to_branch(template);
        }
        if let Some(from) = &request.from {
            let parent = self.find_branch(from)?;
            return match parent.state {
                BranchState::Ready => Ok(parent),
                BranchState::Creating => {
                    Err(ErrorInfo::new(ApiErrorCode::Conflict, format!("branch {from} is still being made"))
                        .with_hint("try again in a moment"))
                }
                BranchState::Deleting | BranchState::Deleted => Err(not_found(from)),
            };
        }
        self.root_meant(request.connector.as_deref())
    }

    /// The root of this connector, or of the only one.
    fn root_meant(&self, connector: Option<&str>) -> Result<BranchRow, ErrorInfo> {
        let mut roots = self.context.store.branches()?;
        roots.retain(|row| row.is_root() && row.is_listed());
        if let Some(name) = connector {
            return roots.into_iter().find(|root| root.connector == name).ok_or_else(|| {
                let message = format!("there is no connector {name}, or nothing can be branched from it yet");
                ErrorInfo::new(ApiErrorCode::NotFound, message).with_hint(
                    "ardent connector list shows which there are, ardent connector switch NAME makes one the default",
                )
            });
        }
        match roots.as_slice() {
            [root] => Ok(root.clone()),
            [] => Err(ErrorInfo::new(
                ApiErrorCode::NotFound,
                "there is nothing to branch from: no database is connected",
            )
            .with_hint(
                "connect one: ardent connector create postgresql 'postgresql://ROLE:PASSWORD@HOST:PORT/DATABASE'",
            )),
            several => {
                let names: Vec<&str> = several.iter().map(|row| row.name.as_str()).collect();
                Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, "there is more than one connector to branch from")
                    .with_hint(format!(
                        "say which with --from: {}; ardent connector switch NAME makes one the default",
                        names.join(", ")
                    )))
            }
        }
    }
}
