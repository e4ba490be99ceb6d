//! The safekeepers of one process, each on a folder of its own.

use std::fs;
use std::path::{Path, PathBuf};

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use ardent_api::addr::ServiceAddr;
use ardent_api::control::{ApiErrorCode, ErrorInfo};
use ardent_safekeeper::{Safekeeper, SafekeeperConfig};

use super::roles::Place;
use crate::failure::Failure;

/// All of them, running.
pub struct Safekeepers(Vec<Safekeeper>);

impl Safekeepers {
    /// Starts one for each address, or none.
    pub async fn start(place: &Place, addresses: &[ServiceAddr]) -> Result<Self, Failure> {
        let mut started = Safekeepers(Vec::with_capacity(addresses.len()));
        for (index, address) in addresses.iter().enumerate() {
            let config =
                SafekeeperConfig::new(folder(&place.root, index), vec![address.clone()], place.issuer.verifier());
            match Safekeeper::start(config, CancellationToken::new()).await {
                Ok(safekeeper) => started.0.push(safekeeper),
                Err(error) => {
                    started.shutdown().await;
                    return Err(Failure::of(&error));
                }
            }
        }
        Ok(started)
    }

    /// Adds what they count, each under its number where there are several.
    pub fn register_metrics(&self, registry: &mut Registry) {
        for (index, safekeeper) in self.0.iter().enumerate() {
            let number = (index + 1).to_string();
            safekeeper.register_metrics(registry.sub_registry_with_label(("safekeeper".into(), number.into())));
        }
    }

    /// Ends all, with what is in memory saved.
    pub async fn shutdown(self) {
        for safekeeper in self.0 {
            safekeeper.shutdown().await;
        }
    }
}

/// The addresses of as many safekeepers as the folder was made with; of `wanted` (or 1) in a new folder, where the number is
/// written down: a quorum of another number would not overlap with the one that holds the log.
pub fn addresses(place: &Place, wanted: Option<u8>) -> Result<Vec<ServiceAddr>, Failure> {
    let count = match (recorded(&place.root)?, wanted) {
        (Some(there), Some(wanted)) if there != usize::from(wanted) => {
            let message = format!(
                "{} keeps its WAL on {there} safekeeper(s), and --safekeepers asks for {wanted}",
                place.root.display()
            );
            return Err(Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message))
                .hint(format!("start without --safekeepers, or begin a new folder with: ardent up --data-dir DIR --safekeepers {wanted}")));
        }
        (Some(there), _) => there,
        (None, wanted) => {
            let count = usize::from(wanted.unwrap_or(1));
            // The first one comes last: a folder that was left half made counts as new.
            for index in (0..count).rev() {
                let folder = folder(&place.root, index);
                fs::create_dir_all(&folder)
                    .map_err(|error| Failure::local(format!("{} cannot be made", folder.display()), &error))?;
            }
            count
        }
    };
    Ok((0..count).map(|index| ServiceAddr::Unix(place.files.run(&format!("{}.sock", name(index))))).collect())
}

/// How many there are in the folder; `None` in a new one.
fn recorded(root: &Path) -> Result<Option<usize>, Failure> {
    let mut count = 0;
    loop {
        let folder = folder(root, count);
        match folder.try_exists() {
            Ok(true) => count += 1,
            Ok(false) => return Ok((count > 0).then_some(count)),
            Err(error) => return Err(Failure::local(format!("{} cannot be read", folder.display()), &error)),
        }
    }
}

/// `safekeeper`, `safekeeper-2`, `safekeeper-3`.
fn name(index: usize) -> String {
    if index == 0 { "safekeeper".to_owned() } else { format!("safekeeper-{}", index + 1) }
}

fn folder(root: &Path, index: usize) -> PathBuf {
    root.join(name(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_the_first_start_stays() {
        let folder = tempfile::tempdir().expect("folder");
        let place = Place::open(folder.path()).expect("a new folder");
        assert_eq!(addresses(&place, Some(3)).expect("new").len(), 3);
        assert_eq!(addresses(&place, None).expect("as it is").len(), 3);
        let failure = addresses(&place, Some(1)).expect_err("another number");
        assert_eq!(failure.info.code, ApiErrorCode::Conflict);
    }
}
