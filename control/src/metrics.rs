//! What control counts, in the form that Prometheus reads; `docs/metrics.md` lists it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tracing::warn;

use ardent_api::control::{ComputeState, ErrorInfo};

use crate::service::Control;

type OneLabel = [(&'static str, &'static str); 1];

/// Counters that what control does moves itself.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    creations: Histogram,
    starts: Family<OneLabel, Histogram, fn() -> Histogram>,
    crashes: Counter,
    agents_lost: Counter,
    warm_bytes: Gauge,
    warm_dropped: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        // From 1 ms to 33 s, each twice the one before.
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(1e-3, 2.0, 16));
        Metrics {
            creations: histogram(),
            starts: Family::new_with_constructor(histogram),
            crashes: Counter::default(),
            agents_lost: Counter::default(),
            warm_bytes: Gauge::default(),
            warm_dropped: Counter::default(),
        }
    }
}

impl Metrics {
    /// A branch was made.
    pub fn created(&self, began: Instant) {
        self.creations.observe(began.elapsed().as_secs_f64());
    }

    /// A compute accepts connections.
    pub fn started(&self, began: Instant, warm: bool) {
        let kind = if warm { "warm" } else { "cold" };
        self.starts.get_or_create(&[("start", kind)]).observe(began.elapsed().as_secs_f64());
    }

    /// What the folders of suspended computes take.
    pub fn warm_folders(&self, bytes: u64) {
        self.warm_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// One of them was removed.
    pub fn warm_dropped(&self) {
        self.warm_dropped.inc();
    }

    /// A compute ended without having been asked to.
    pub fn crashed(&self) {
        self.crashes.inc();
    }

    /// An agent was lost, and its Postgres went on with another.
    pub fn agent_lost(&self) {
        self.agents_lost.inc();
    }
}

/// Registers everything that control tells.
pub(crate) fn register(control: &Arc<Control>, registry: &mut Registry) {
    let registry = registry.sub_registry_with_prefix("ardent_control");
    let metrics = &control.context.metrics;
    let creations = "Time to make a branch, with the wait for what production had committed";
    registry.register_with_unit("branch_create", creations, Unit::Seconds, metrics.creations.clone());
    let starts = "Time from starting a compute's agent until its Postgres accepts connections";
    registry.register_with_unit("compute_start", starts, Unit::Seconds, metrics.starts.clone());
    let taken_over = "Agents that were lost while their Postgres went on with another";
    registry.register("compute_agents_lost", taken_over, metrics.agents_lost.clone());
    registry.register("compute_crashes", "Computes that ended without having been asked to", metrics.crashes.clone());
    let warm = "Local disk that suspended branches take to start warm";
    registry.register("warm_bytes", warm, metrics.warm_bytes.clone());
    let dropped = "Suspended branches that will not start warm, as their time was over or there was too much";
    registry.register("warm_dropped", dropped, metrics.warm_dropped.clone());
    registry.register_collector(Box::new(AtScrape(Arc::downgrade(control))));
}

/// What is looked up when somebody asks.
struct AtScrape(Weak<Control>);

impl fmt::Debug for AtScrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtScrape")
    }
}

struct Counts {
    branches: i64,
    computes: BTreeMap<&'static str, i64>,
    connectors: i64,
    connectors_failing: i64,
    connectors_warned: i64,
    /// Of all slots the most, and the least; absent: no slot has a limit.
    slot_kept_bytes: i64,
    slot_safe_bytes: Option<i64>,
}

impl AtScrape {
    fn counts(control: &Control) -> Result<Counts, ErrorInfo> {
        let mut counts = Counts {
            branches: 0,
            computes: ["starting", "running", "stopping"].map(|state| (state, 0)).into(),
            connectors: 0,
            connectors_failing: 0,
            connectors_warned: 0,
            slot_kept_bytes: 0,
            slot_safe_bytes: None,
        };
        for branch in control.context.store.branches()? {
            counts.branches += i64::from(!branch.is_root() && !branch.hidden && branch.template_name().is_none());
            let state = match control.pool.state(branch.id) {
                ComputeState::Starting => "starting",
                ComputeState::Running => "running",
                ComputeState::Stopping => "stopping",
                ComputeState::Suspended | ComputeState::None => continue,
            };
            *counts.computes.entry(state).or_default() += 1;
        }
        for connector in control.context.store.connectors()? {
            counts.connectors += 1;
            counts.connectors_failing += i64::from(!control.following(&connector.name).0);
            counts.connectors_warned += i64::from(!control.slot_warnings(&connector.name).is_empty());
            if let Some(slot) = control.slots.last(&connector.name) {
                let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
                counts.slot_kept_bytes = counts.slot_kept_bytes.max(gauge(slot.kept_bytes.unwrap_or(0)));
                let least = counts.slot_safe_bytes.into_iter().chain(slot.safe_bytes.map(gauge)).min();
                counts.slot_safe_bytes = least;
            }
        }
        Ok(counts)
    }
}

impl Collector for AtScrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(control) = self.0.upgrade() else { return Ok(()) };
        let counts = match Self::counts(&control) {
            Ok(counts) => counts,
            Err(error) => {
                // What cannot be told is absent, which alerts can be set on.
                warn!(%error, "branches and computes cannot be counted for metrics");
                return Ok(());
            }
        };
        let mut gauges = vec![
            ("branches", "Branches, the roots not among them", counts.branches),
            ("connectors", "Productions that are connected", counts.connectors),
            ("connectors_failing", "Of these, the ones that are not being followed now", counts.connectors_failing),
            ("connectors_warned", "Of these, the ones whose slot on production is in danger", counts.connectors_warned),
            (
                "slot_kept_bytes",
                "WAL that a production keeps for our slot, of the one that keeps most",
                counts.slot_kept_bytes,
            ),
        ];
        if let Some(bytes) = counts.slot_safe_bytes {
            let help =
                "WAL that a production may still write before it gives our slot up, of the one that is nearest to it";
            gauges.push(("slot_safe_bytes", help, bytes));
        }
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let computes: Family<OneLabel, Gauge> = Family::default();
        for (state, count) in counts.computes {
            computes.get_or_create(&[("state", state)]).set(count);
        }
        computes.encode(encoder.encode_descriptor("computes", "Computes, by state", None, computes.metric_type())?)
    }
}
