//! What a safekeeper counts, in the form that Prometheus reads; `docs/metrics.md` lists it.

use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Counters that the disk workers and connections share. Clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    appended: Counter,
    flushes: Histogram,
    failures: Counter,
    archived: Counter,
    archive_failures: Counter,
    loaded: Gauge,
    kept_for_others: Gauge,
    connections: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            appended: Counter::default(),
            // From 50 us to 1.6 s, each twice the one before.
            flushes: Histogram::new(exponential_buckets(50e-6, 2.0, 16)),
            failures: Counter::default(),
            archived: Counter::default(),
            archive_failures: Counter::default(),
            loaded: Gauge::default(),
            kept_for_others: Gauge::default(),
            connections: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Adds everything to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("ardent_safekeeper");
        let flushes = "Time of one fsync of a timeline's WAL, which serves all appends before it";
        registry.register("appended_bytes", "WAL received from writers", self.appended.clone());
        registry.register_with_unit("flush", flushes, Unit::Seconds, self.flushes.clone());
        registry.register("failures", "Requests that failed, of writers that are fenced too", self.failures.clone());
        registry.register("archived_bytes", "WAL put into the object store, before compression", self.archived.clone());
        let failures = "Attempts to archive a WAL segment that failed; each is tried again";
        registry.register("archive_failures", failures, self.archive_failures.clone());
        registry.register("timelines_loaded", "Timelines in memory", self.loaded.clone());
        let kept = "WAL that is on this disk only since another safekeeper lacks it";
        registry.register("kept_for_others_bytes", kept, self.kept_for_others.clone());
        registry.register("connections", "Open connections", self.connections.clone());
    }

    pub fn appended(&self, bytes: usize) {
        self.appended.inc_by(bytes as u64);
    }

    pub fn flushed(&self, began: Instant) {
        self.flushes.observe(began.elapsed().as_secs_f64());
    }

    pub fn failed(&self) {
        self.failures.inc();
    }

    /// A segment is archived; `None` if another safekeeper has done it.
    pub fn archived(&self, bytes: Option<u64>) {
        self.archived.inc_by(bytes.unwrap_or(0));
    }

    pub fn archive_failed(&self) {
        self.archive_failures.inc();
    }

    /// So many timelines more, or fewer.
    pub fn loaded_changed(&self, by: i64) {
        self.loaded.inc_by(by);
    }

    /// So many bytes more, or fewer.
    pub fn kept_for_others_changed(&self, by: i64) {
        self.kept_for_others.inc_by(by);
    }

    /// A connection is open for as long as what this gives is kept.
    pub fn connected(&self) -> Connected {
        self.connections.inc();
        Connected(self.connections.clone())
    }
}

/// An open connection.
pub(crate) struct Connected(Gauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}
