//! The keys by which the roles of one installation know each other.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use ardent_api::token::{Rights, Service, TokenVerifier};

use super::data_dir;
use super::roles::Place;
use crate::args::KeysArgs;
use crate::failure::Failure;
use crate::output::{Output, pairs};

/// `schema_version` of [`Keys`].
const SCHEMA_VERSION: u32 = 1;

/// Where they are.
#[derive(Serialize)]
struct Keys {
    schema_version: u32,
    /// Public key: page server and safekeepers check tokens with it.
    service_key: PathBuf,
    /// The page server's token for reading WAL from safekeepers.
    pageserver_token: PathBuf,
    /// The token for metrics and health of every role.
    metrics_token: PathBuf,
}

/// `ardent keys`.
pub fn run(output: &Output, args: &KeysArgs) -> Result<(), Failure> {
    let place = Place::open(&data_dir(args.data_dir.as_ref())?)?;
    let keys = Keys {
        schema_version: SCHEMA_VERSION,
        service_key: place.files.key("service.pub"),
        pageserver_token: place.files.key("pageserver.token"),
        metrics_token: metrics_token(&place)?,
    };
    write(&keys.service_key, &place.issuer.verifier().to_text())?;
    // Tokens without an end differ by nothing from each other: writing it again takes nothing from who has the first.
    write(&keys.pageserver_token, &place.token(Service::Safekeeper, Rights::Write))?;
    output.data(&keys, |keys| {
        pairs(&[
            ("service key", keys.service_key.display().to_string()),
            ("page server's token", keys.pageserver_token.display().to_string()),
            ("metrics token", keys.metrics_token.display().to_string()),
        ])
    })
}

/// Writes the token that opens metrics and health; gives its file.
pub fn metrics_token(place: &Place) -> Result<PathBuf, Failure> {
    let path = place.files.key("metrics.token");
    write(&path, &place.token(Service::Metrics, Rights::Read))?;
    Ok(path)
}

/// The verifier in a file that `ardent keys` wrote.
pub fn read_verifier(path: &Path) -> Result<TokenVerifier, Failure> {
    let hint = "ardent keys --data-dir DIR makes an installation's keys and says where they are";
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::local(format!("{} cannot be read", path.display()), &error).hint(hint))?;
    TokenVerifier::from_text(text.trim())
        .ok_or_else(|| Failure::usage(format!("{} holds no public key", path.display())).hint(hint))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::local(format!("{} cannot be written", path.display()), &error);
    let temporary = path.with_extension("new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary).map_err(failed)?;
    writeln!(file, "{text}").and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}
