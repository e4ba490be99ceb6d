//! What the page server counts, in the form that Prometheus reads; `docs/metrics.md` lists it.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Instant;

use ardent_api::page_service::{ErrorCode, Request};
use ardent_storage::EngineStats;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::connection::Failure;
use crate::server::Shared;

/// From 10 us to 10 s, each four times the one before.
const REQUEST_BUCKETS: (f64, f64, u16) = (10e-6, 4.0, 11);

type RequestLabels = [(&'static str, &'static str); 2];

/// Counters that requests move themselves.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Histogram, fn() -> Histogram>,
    pages: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || {
            let (start, factor, length) = REQUEST_BUCKETS;
            Histogram::new(exponential_buckets(start, factor, length))
        };
        Metrics { requests: Family::new_with_constructor(histogram), pages: Counter::default() }
    }
}

impl Metrics {
    /// A request has been answered.
    pub fn answered(&self, request: &'static str, result: &Result<(), Failure>, began: Instant) {
        let outcome = result.as_ref().map_or_else(|failure| outcome(failure.code), |()| "ok");
        let labels = [("request", request), ("outcome", outcome)];
        self.requests.get_or_create(&labels).observe(began.elapsed().as_secs_f64());
    }

    /// Pages went to a client.
    pub fn pages_sent(&self, pages: u64) {
        self.pages.inc_by(pages);
    }
}

/// What a request is called in labels; `None` for parts of an import, which are counted as the request that ends it.
pub(crate) fn request_name(request: &Request) -> Option<&'static str> {
    match request {
        Request::GetPages { .. } => Some("get_pages"),
        Request::GetRelSize { .. } => Some("get_rel_size"),
        Request::GetBaseBackup { .. } => Some("get_base_backup"),
        Request::GetChanged { .. } => Some("get_changed"),
        Request::WaitLsn { .. } => Some("wait_lsn"),
        Request::Manage { .. } => Some("manage"),
        Request::KeepPart { .. } => Some("keep_part"),
        Request::GetKeptPart { .. } => Some("get_kept_part"),
        Request::Hello(_) | Request::ImportFile { .. } | Request::ImportData { .. } => None,
    }
}

fn outcome(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Refused => "refused",
        ErrorCode::TimelineNotFound => "timeline_not_found",
        ErrorCode::LsnOutOfRange => "lsn_out_of_range",
        ErrorCode::NotFound => "not_found",
        ErrorCode::Unreadable => "unreadable",
        ErrorCode::Unavailable => "unavailable",
        ErrorCode::Timeout => "timeout",
        ErrorCode::Invalid => "invalid",
        ErrorCode::Conflict => "conflict",
        ErrorCode::Fenced => "fenced",
        ErrorCode::BaseLsnExpired => "base_lsn_expired",
        ErrorCode::Internal => "internal",
    }
}

/// Registers everything that a page server tells.
pub(crate) fn register(shared: &Arc<Shared>, registry: &mut Registry) {
    let registry = registry.sub_registry_with_prefix("ardent_pageserver");
    let metrics = &shared.metrics;
    registry.register_with_unit(
        "request",
        "Time to answer a request, by kind and outcome",
        Unit::Seconds,
        metrics.requests.clone(),
    );
    registry.register("pages_sent", "Pages sent to clients", metrics.pages.clone());
    registry.register_collector(Box::new(AtScrape(Arc::downgrade(shared))));
}

/// What is looked up when somebody asks.
struct AtScrape(Weak<Shared>);

impl fmt::Debug for AtScrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtScrape")
    }
}

impl Collector for AtScrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(shared) = self.0.upgrade() else { return Ok(()) };
        let stats = shared.engine.stats();
        for (name, help, value) in counters(&stats) {
            put(&mut encoder, name, help, &ConstCounter::new(value))?;
        }
        let slowed = ConstCounter::new(stats.puts_slowed_us as f64 / 1e6);
        put(
            &mut encoder,
            "puts_slowed_seconds",
            "Time that batches of ingest waited because compaction was behind",
            &slowed,
        )?;
        let ingest = shared.followers.ingest();
        let gauges = [
            ("memory_layer_bytes", "Versions in memory that are not durable yet", stats.memory_layer_bytes),
            ("spilled_bytes", "Local files that hold versions until these are in the store", stats.spilled_bytes),
            ("page_cache_bytes", "Rebuilt pages in memory", stats.page_cache_bytes),
            ("page_cache_bytes_max", "Most of them", stats.page_cache_bytes_max),
            ("block_cache_bytes", "Blocks of layer files in memory", stats.block_cache_bytes),
            ("block_cache_bytes_max", "Most of them", stats.block_cache_bytes_max),
            ("timelines_loaded", "Timelines in memory", stats.timelines_loaded),
            (
                "compaction_debt_files",
                "Files that compaction has yet to merge, of the timeline that has most",
                stats.uncompacted_files_max,
            ),
            ("compaction_debt_bytes", "Size of the files that compaction has yet to merge", stats.uncompacted_bytes),
            (
                "read_files_bound",
                "Layer files that a read at the head visits at most, of the timeline where they are most",
                stats.files_per_read_max,
            ),
            (
                "read_deltas_bound",
                "Deltas that compacted files have of a key since its last image, of the timeline where they are most",
                stats.deltas_per_key_max,
            ),
            ("compactions_failing", "Timelines whose compaction fails now", stats.compactions_failing),
            ("timelines_followed", "Timelines whose WAL is being received", ingest.followed),
            ("timelines_failing", "Of these, the ones whose WAL cannot be received or ingested now", ingest.failing),
            (
                "ingest_lag_bytes",
                "Committed WAL that is not ingested, of the timeline that is furthest behind",
                ingest.lag_bytes_max,
            ),
        ];
        for (name, help, value) in gauges {
            put(&mut encoder, name, help, &ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)))?;
        }
        Ok(())
    }
}

fn counters(stats: &EngineStats) -> [(&'static str, &'static str, u64); 12] {
    [
        ("reads", "Keys read from storage", stats.reads),
        ("reads_cached", "Of these, answered by the page cache alone", stats.reads_cached),
        ("read_files", "Layer files that reads visited", stats.files_visited),
        ("read_deltas", "WAL records and other deltas that reads applied", stats.values_replayed),
        ("values_put", "Versions of keys ingested", stats.values_put),
        ("puts_slowed", "Batches of ingest that waited because compaction was behind", stats.puts_slowed),
        ("layers_flushed", "Layer files written from memory", stats.layers_flushed),
        (
            "layer_written_bytes",
            "Bytes of layer files written by flushes, imports and compactions",
            stats.layer_bytes_written,
        ),
        ("manifests_written", "Manifests written", stats.manifests_written),
        ("compactions", "Compactions finished", stats.compactions),
        ("layers_removed", "Layer files that compaction and garbage collection removed", stats.layers_removed),
        ("background_failures", "Failed flushes, compactions and collections", stats.background_failures),
    ]
}

fn put(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> Result<(), fmt::Error> {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

/// How ingest stands over all followed timelines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct IngestState {
    pub followed: u64,
    pub failing: u64,
    pub lag_bytes_max: u64,
}
