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
mod storage;
pub mod undo_file;
mod waiting;

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

/// What the names of masked templates begin with among those of branches' parents.
const TEMPLATE: &str = "masked.";

/// A name as a part of a path. Names are DNS labels, so nothing needs escaping; what is none is said before anything is asked.
pub fn path_name(name: &str) -> Result<String, Failure> {
    let error = match name.parse::<BranchName>() {
        Ok(name) => return Ok(name.into()),
        Err(error) => ErrorInfo::from(error),
    };
    Err(match template_of(name) {
        Some(template) => error
            .with_hint(format!(
                "{name} is a masked template: ardent mask report {template} shows what it masks; ardent mask list shows all"
            ))
            .into(),
        None => error.into(),
    })
}

/// The masked template that is shown under this name where its branches' parents are.
fn template_of(name: &str) -> Option<&str> {
    name.strip_prefix(TEMPLATE).filter(|template| template.parse::<BranchName>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_template_is_shown_by_its_own_command() {
        let hint = |name: &str| path_name(name).expect_err("no branch's name").info.hint.unwrap_or_default();
        assert!(hint("masked.x").contains("ardent mask report x shows"), "{}", hint("masked.x"));
        for other in ["masked.", "masked.a b", "other.x"] {
            assert!(!hint(other).contains("ardent mask"), "{other}");
        }
        assert_eq!(path_name("masked-x").expect("a name"), "masked-x");
    }
}
