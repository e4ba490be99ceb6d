//! The log: lines on standard error.

use tracing_subscriber::EnvFilter;

/// Starts logging. `ARDENT_LOG` says how much (`info` if it does not), in the form of `RUST_LOG`.
pub fn start(json: bool) {
    let filter = EnvFilter::try_from_env("ARDENT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // A second start in one process keeps the first.
    let _ = if json { builder.json().try_init() } else { builder.try_init() };
}
