//! What the proxy counts, in the form that Prometheus reads; `docs/metrics.md` lists it.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use crate::session::SessionError;

/// Counters that all sessions share.
#[derive(Debug)]
pub(crate) struct Metrics {
    open: Gauge,
    ended: Family<[(&'static str, &'static str); 1], Counter>,
    connects: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            open: Gauge::default(),
            ended: Family::default(),
            // From 1 ms to 33 s, each twice the one before.
            connects: Histogram::new(exponential_buckets(1e-3, 2.0, 16)),
        }
    }
}

impl Metrics {
    /// Adds everything to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("ardent_proxy");
        let connects = "From the proved password to a session on a compute, with the wake where one was needed";
        registry.register("connections", "Open connections, authenticated or not", self.open.clone());
        registry.register("connections_ended", "Connections that have ended, by how", self.ended.clone());
        registry.register_with_unit("connect", connects, Unit::Seconds, self.connects.clone());
    }

    /// A client that has proved its password has a session on a compute.
    pub fn connected(&self, began: Instant) {
        self.connects.observe(began.elapsed().as_secs_f64());
    }
}

/// Counts a connection from its making until it is dropped: a session that is cancelled ends by being dropped.
pub(crate) struct Counted<'a> {
    metrics: &'a Metrics,
    how: &'static str,
}

impl<'a> Counted<'a> {
    pub fn new(metrics: &'a Metrics) -> Self {
        metrics.open.inc();
        Counted { metrics, how: "lost" }
    }

    /// It has ended by itself.
    pub fn end(mut self, result: &Result<(), SessionError>) {
        self.how = match result {
            Ok(()) => "done",
            Err(SessionError::Refused(_)) => "refused",
            Err(SessionError::Dropped(_)) => "dropped",
            Err(SessionError::Io(_)) => "lost",
        };
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.metrics.open.dec();
        self.metrics.ended.get_or_create(&[("outcome", self.how)]).inc();
    }
}
