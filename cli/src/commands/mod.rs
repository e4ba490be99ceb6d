//! The commands that talk to a server, or to files.

pub mod apply;
pub mod branch;
pub mod checkpoint;
pub mod connector;
mod deletion;
pub mod diff;
mod diff_lines;
mod disk_space;
pub mod doctor;
pub mod history;
pub mod inspect;
mod inspect_verify;
pub mod log;
pub mod man;
pub mod mask;
mod pager;
pub mod psql;
pub mod rebase;
pub mod reconfigure;
pub mod recover;
pub mod rehearse;
mod safekeeper_change;
mod safekeepers;
pub mod session;

use ardent_api::control::{BranchName, ErrorInfo};

use crate::failure::Failure;

/// Waits for SIGINT or SIGTERM.
pub async fn wait_for_signal() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

/// A name as a part of a path. Names are DNS labels, so nothing needs escaping; what is none is said before anything is asked.
pub fn path_name(name: &str) -> Result<String, Failure> {
    Ok(name.parse::<BranchName>().map_err(ErrorInfo::from)?.into())
}
