//! A start on a folder that no server has run on. What it would be refused for is looked at before anything is made, so that nothing is left of a
//! start that is refused.

use std::path::Path;

use tokio::net::TcpListener;

use ardent_api::control::ApiErrorCode;
use ardent_control::service::listen_tcp;
use ardent_proxy::ProxyError;

use super::data_lock::DataLock;
use super::metrics::Metrics;
use super::object_store::{self, StorePlace};
use super::roles::{confinement, refuse_off_host, start_failed};
use crate::args::UpArgs;
use crate::failure::Failure;

/// Refuses arguments that cannot be served, if it is the first start on `root`. Makes nothing there, and holds nothing: a port that is taken from here
/// on is met when it is needed.
pub async fn check(args: &UpArgs, root: &Path) -> Result<(), Failure> {
    if DataLock::was_taken(root) {
        return Ok(());
    }
    refuse_off_host(args.api_listen)?;
    if !args.computes.no_sandbox {
        confinement(args.computes.no_sandbox)?;
    }
    // Together, as two of them may be the same port.
    let listen = args.front.listen;
    let front = TcpListener::bind(listen).await;
    let _front =
        front.map_err(|source| Failure::of(&ProxyError::Listen { listen, source }).code(ApiErrorCode::Conflict))?;
    let _api = listen_tcp(args.api_listen).await.map_err(|error| start_failed(&error))?;
    let _metrics = Metrics::bind(&args.metrics).await?;
    if let Some(place @ StorePlace::S3(_)) = args.store.store.clone() {
        let store = args.store.clone();
        let examining = tokio::task::spawn_blocking(move || object_store::examine(&place, &store));
        examining.await.map_err(|error| Failure::local("the store could not be examined", &error))??;
    }
    Ok(())
}
