//! The commands that talk to a server, or to files.

pub mod apply;
pub mod branch;
pub mod connector;
pub mod diff;
mod diff_lines;
pub mod doctor;
pub mod history;
pub mod inspect;
mod pager;
pub mod psql;
pub mod rebase;
pub mod recover;
pub mod rehearse;
pub mod session;

use ardent_api::control::{BranchName, ErrorInfo};

use crate::failure::Failure;

/// A name as a part of a path. Names are DNS labels, so nothing needs escaping; what is none is said before anything is asked.
fn path_name(name: &str) -> Result<String, Failure> {
    Ok(name.parse::<BranchName>().map_err(ErrorInfo::from)?.into())
}
