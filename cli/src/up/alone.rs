//! Each role as a process of its own, on one host: what `ardent up` runs together.
//!
//! The roles share the installation's folder, which holds the keys by which they know each other, and meet at the addresses
//! that they are given.

use std::fs;
use std::path::Path;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use ardent_api::addr::ServiceAddr;
use ardent_api::token::TokenVerifier;
use ardent_safekeeper::{Safekeeper, SafekeeperConfig};

use super::data_lock::DataLock;
use super::keys::read_verifier;
use super::metrics::Metrics;
use super::roles::{
    PageKeeping, Place, Services, Task, bind_proxy, open_store, serve_proxy, start_control, start_page_server,
};
use super::{data_dir, object_store, run_until_signal};
use crate::args::{ControlArgs, PageserverArgs, ProxyArgs, SafekeeperArgs};
use crate::failure::Failure;
use crate::output::{Output, pairs};

/// `schema_version` of [`Ready`].
const SCHEMA_VERSION: u32 = 1;

/// What a role prints when it serves.
#[derive(Serialize)]
struct Ready {
    schema_version: u32,
    role: &'static str,
    address: String,
}

fn announce(output: &Output, role: &'static str, address: String) -> Result<(), Failure> {
    let ready = Ready { schema_version: SCHEMA_VERSION, role, address };
    output.data(&ready, |ready| pairs(&[("ready", ready.role.to_owned()), ("address", ready.address.clone())]))
}

fn addresses(listen: &[ServiceAddr]) -> String {
    listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// `ardent safekeeper`.
pub fn safekeeper(output: &Output, args: &SafekeeperArgs) -> Result<(), Failure> {
    run_until_signal(output, args.log_json, async || {
        let archive = args.archive.as_ref().map(|place| object_store::open_archive(place, args.archive_ca.as_deref()));
        let config = SafekeeperConfig {
            listen_replication: args.listen_replication.clone(),
            tls_names: args.tls_name.clone(),
            archive: archive.transpose()?,
            ..SafekeeperConfig::new(args.data_dir.clone(), args.listen.clone(), read_verifier(&args.key)?)
        };
        let verifier = config.verifier.clone();
        let mut metrics = Metrics::bind(&args.metrics).await?;
        let safekeeper =
            Safekeeper::start(config, CancellationToken::new()).await.map_err(|error| Failure::of(&error))?;
        safekeeper.register_metrics(metrics.registry());
        metrics.check(safekeeper.problems());
        let metrics = metrics.serve(verifier);
        let announced = announce(output, "safekeeper", addresses(safekeeper.addresses()));
        Ok((announced, async move {
            stop_telling(metrics).await;
            safekeeper.shutdown().await;
        }))
    })
}

/// `ardent pageserver`.
pub fn page_server(output: &Output, args: &PageserverArgs) -> Result<(), Failure> {
    run_until_signal(output, args.log_json, async || {
        let token = read_text(&args.token_file)?;
        fs::create_dir_all(&args.data_dir)
            .map_err(|error| Failure::local(format!("{} cannot be made", args.data_dir.display()), &error))?;
        let lock = DataLock::take(&args.data_dir)?;
        let verifier: TokenVerifier = read_verifier(&args.key)?;
        let (folder, retention) = (args.data_dir.clone(), args.history.retention());
        let store = open_store(folder.clone(), args.store.clone()).await?;
        let keeping = PageKeeping { folder, store, page_cache_size: args.memory.page_cache_size, retention };
        let mut metrics = Metrics::bind(&args.metrics).await?;
        let (listen, telling) = (&args.listen, verifier.clone());
        let (server, _) = start_page_server(keeping, listen, &args.safekeeper, verifier, token, &mut metrics).await?;
        let metrics = metrics.serve(telling);
        let announced = announce(output, "pageserver", addresses(&args.listen));
        Ok((announced, async move {
            stop_telling(metrics).await;
            server.stop("page server").await;
            drop(lock);
        }))
    })
}

/// `ardent control`.
pub fn control(output: &Output, args: &ControlArgs) -> Result<(), Failure> {
    run_until_signal(output, args.log_json, async || {
        let root = data_dir(args.data_dir.as_ref())?;
        let place = Place::open(&root)?;
        let lock = DataLock::take(&root)?;
        let (page_server, safekeepers) = (args.pageserver.clone(), args.safekeeper.clone());
        let services = Services { page_server, engine: None, safekeepers, host: None };
        let mut metrics = Metrics::bind(&args.metrics).await?;
        let (computes, api, front) = (&args.computes, args.api_listen, &args.front);
        let control =
            start_control(&place, services, computes, (args.keep, args.sources.clone()), api, front, &mut metrics)
                .await?;
        let metrics = metrics.serve(place.issuer.verifier());
        let announced = super::announce(output, args.no_login, control.control(), control.address());
        Ok((announced, async move {
            stop_telling(metrics).await;
            control.shutdown().await;
            drop(lock);
        }))
    })
}

/// `ardent proxy`.
pub fn proxy(output: &Output, args: &ProxyArgs) -> Result<(), Failure> {
    run_until_signal(output, args.log_json, async || {
        let place = Place::open(&data_dir(args.data_dir.as_ref())?)?;
        let mut metrics = Metrics::bind(&args.metrics).await?;
        let proxy = bind_proxy(&place, &args.front).await?;
        proxy.register_metrics(metrics.registry());
        let metrics = metrics.serve(place.issuer.verifier());
        let address = proxy.local_addr().unwrap_or(args.front.listen);
        let serving = serve_proxy(proxy);
        let announced = announce(output, "proxy", address.to_string());
        Ok((announced, async move {
            stop_telling(metrics).await;
            serving.stop("proxy").await;
        }))
    })
}

async fn stop_telling(metrics: Option<Task>) {
    if let Some(metrics) = metrics {
        metrics.stop("metrics").await;
    }
}

fn read_text(path: &Path) -> Result<String, Failure> {
    let text = fs::read_to_string(path).map_err(|error| {
        Failure::local(format!("{} cannot be read", path.display()), &error)
            .hint("ardent keys --data-dir DIR makes an installation's keys and says where they are")
    })?;
    Ok(text.trim().to_owned())
}
