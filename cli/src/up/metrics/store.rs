//! What the object store is asked, and how its cache does.

use std::fmt;
use std::sync::Arc;

use ardent_object_store::{CachedStore, CountedStore, Operation};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

type OneLabel = [(&'static str, &'static str); 1];

/// A store that is counted, below the cache where there is one: what costs money or waits for a disk.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    /// The store itself.
    pub counted: Arc<CountedStore>,
    /// The cache in front of it.
    pub cache: Option<Arc<CachedStore>>,
}

impl StoreMetrics {
    /// Adds everything.
    pub fn register(self, registry: &mut Registry) {
        registry.sub_registry_with_prefix("ardent_store").register_collector(Box::new(self));
    }
}

impl Collector for StoreMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (calls, failures, bytes) = (
            Family::<OneLabel, Counter>::default(),
            Family::<OneLabel, Counter>::default(),
            Family::<OneLabel, Counter>::default(),
        );
        let waited = Family::<OneLabel, Counter<f64, std::sync::atomic::AtomicU64>>::default();
        for operation in Operation::ALL {
            let stats = self.counted.stats(operation);
            let labels = [("operation", operation.name())];
            calls.get_or_create(&labels).inc_by(stats.calls);
            failures.get_or_create(&labels).inc_by(stats.failures);
            bytes.get_or_create(&labels).inc_by(stats.bytes);
            waited.get_or_create(&labels).inc_by(stats.waited.as_secs_f64());
        }
        put(&mut encoder, "calls", "Calls of the object store that have returned, by operation", &calls)?;
        put(&mut encoder, "failures", "Of these, failed ones", &failures)?;
        put(&mut encoder, "bytes", "Bytes of objects that went either way, by operation", &bytes)?;
        put(&mut encoder, "wait_seconds", "Time spent waiting for the object store, by operation", &waited)?;
        let Some(cache) = self.cache.as_ref().map(|cache| cache.stats()) else { return Ok(()) };
        let counters = [
            ("cache_hits", "Chunks of objects that readers found in the local cache", cache.hits),
            ("cache_misses", "Chunks of objects that readers had to wait for", cache.misses),
            ("cache_fetched_bytes", "Bytes fetched into the local cache", cache.fetched_bytes),
            ("cache_evicted_bytes", "Bytes given up to make room in the local cache", cache.evicted_bytes),
        ];
        for (name, help, value) in counters {
            put(&mut encoder, name, help, &ConstCounter::new(value))?;
        }
        let size = ConstGauge::new(i64::try_from(cache.bytes).unwrap_or(i64::MAX));
        put(&mut encoder, "cache_size_bytes", "Size of the local cache now", &size)
    }
}

fn put(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> Result<(), fmt::Error> {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}
