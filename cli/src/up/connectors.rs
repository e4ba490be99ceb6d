//! Control's connectors, run by the connector crate.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use ardent_agent::ServerPrograms;
use ardent_api::control::{ApiErrorCode, ErrorInfo, PreflightCheck, SlotInfo};
use ardent_connector::{
    Archive, ClusterCheck, ConnectorConfig, ConnectorError, FollowState, FollowStatus, HostFacts, ImportPhase,
    MajorFacts, PositionProbe, RestoreCommand,
};
use ardent_control::deps::{ConnectorRuntime, ConnectorSpec, ImportProgress, Imported};
use ardent_pg_format::PgMajor;
use ardent_types::{Lsn, TimelineId};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::library;

/// A connection that asks production for its position is closed after this long without a question.
const PROBE_IDLE_MAX: Duration = Duration::from_secs(60);

/// Runs connectors in this process.
pub struct Connectors {
    host: Arc<HostFacts>,
    /// Of each root timeline that has been asked for.
    probes: Mutex<HashMap<TimelineId, Arc<PositionProbe>>>,
    /// What fetches archived WAL.
    restore_command: Option<RestoreCommand>,
    /// How far each root timeline that is followed is.
    followed: Followed,
}

type Followed = Arc<Mutex<HashMap<TimelineId, watch::Receiver<FollowStatus>>>>;

impl Connectors {
    /// Connectors whose preflight compares a source with this machine.
    pub fn new(pg_bin_dirs: &BTreeMap<u32, PathBuf>, restore_command: Option<RestoreCommand>) -> Self {
        Connectors {
            host: Arc::new(host_facts(pg_bin_dirs)),
            probes: Mutex::default(),
            restore_command,
            followed: Followed::default(),
        }
    }

    /// With the archive of its production.
    fn config(&self, spec: ConnectorSpec) -> ConnectorConfig {
        let connector = spec.name.clone();
        let archive = self.restore_command.clone().map(|command| Archive { command, connector });
        ConnectorConfig { archive, ..config(spec) }
    }

    /// What preflight compares a source with.
    pub fn host(&self) -> Arc<HostFacts> {
        self.host.clone()
    }

    /// Adds how far behind production they are.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("ardent_connector");
        registry.register_collector(Box::new(Lag(self.followed.clone())));
    }

    fn probe(&self, timeline: TimelineId) -> Arc<PositionProbe> {
        self.probes.lock().entry(timeline).or_default().clone()
    }
}

impl ConnectorRuntime for Connectors {
    fn preflight<'a>(&'a self, url: &'a str) -> BoxFuture<'a, Result<Vec<PreflightCheck>, ErrorInfo>> {
        async move { ardent_connector::preflight(url, &self.host).await.map_err(|error| failed(&error)) }.boxed()
    }

    fn import(
        &self,
        spec: ConnectorSpec,
        progress: mpsc::Sender<ImportProgress>,
    ) -> BoxFuture<'static, Result<Imported, ErrorInfo>> {
        async move {
            let config = config(spec);
            let (steps_in, mut steps) = mpsc::channel::<ardent_connector::ImportProgress>(16);
            let import = ardent_connector::import(&config, steps_in);
            tokio::pin!(import);
            let imported = loop {
                tokio::select! {
                    imported = &mut import => break imported.map_err(|error| failed(&error))?,
                    Some(step) = steps.recv() => {
                        let phase = match step.phase {
                            ImportPhase::Checkpoint => "checkpoint",
                            ImportPhase::Copy => "copy",
                            ImportPhase::Finish => "finish",
                        };
                        let told = ImportProgress {
                            phase: phase.to_owned(),
                            bytes_done: step.bytes_done,
                            bytes_total: step.bytes_total,
                            ..ImportProgress::default()
                        };
                        // A listener that is slow misses a figure; the next one says more.
                        let _ = progress.try_send(told);
                    }
                }
            };
            Ok(Imported {
                pg_major: imported.spec.pg_major,
                superuser: Some(imported.superuser),
                settings: imported.settings,
                away: imported.away,
            })
        }
        .boxed()
    }

    fn follow(
        &self,
        spec: ConnectorSpec,
        cancel: CancellationToken,
        problem: watch::Sender<Option<String>>,
    ) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        let probe = self.probe(spec.timeline);
        let (status_in, mut status) = watch::channel(FollowStatus::default());
        let followed = Listed::new(&self.followed, spec.timeline, status.clone());
        let config = self.config(spec);
        async move {
            let _followed = followed;
            let mut tick = tokio::time::interval(PROBE_IDLE_MAX / 2);
            let follow = ardent_connector::follow(&config, cancel, status_in);
            tokio::pin!(follow);
            loop {
                tokio::select! {
                    _ = tick.tick() => probe.close_idle(PROBE_IDLE_MAX),
                    ended = &mut follow => return ended.map_err(|error| failed(&error)),
                    Ok(()) = status.changed() => {
                        let now = status.borrow_and_update();
                        let why = match now.state {
                            FollowState::Streaming => None,
                            FollowState::Connecting | FollowState::Waiting => now.last_error.clone(),
                        };
                        problem.send_if_modified(|shown| {
                            let changed = *shown != why;
                            *shown = why;
                            changed
                        });
                    }
                }
            }
        }
        .boxed()
    }

    fn production_flush_lsn(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<Lsn, ErrorInfo>> {
        let probe = self.probe(spec.timeline);
        let check = if spec.logical.is_some() { ClusterCheck::LeftOut } else { ClusterCheck::IsRoots };
        async move { probe.flush_lsn(&config(spec), check).await.map_err(|error| failed(&error)) }.boxed()
    }

    fn slot(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<Option<SlotInfo>, ErrorInfo>> {
        async move {
            let config = config(spec);
            let slot = ardent_connector::slot_status(&config).await.map_err(|error| failed(&error))?;
            Ok(slot.map(|slot| SlotInfo {
                name: config.slot_name(),
                active: slot.active,
                wal_status: slot.wal_status,
                kept_bytes: slot.kept_bytes,
                safe_bytes: slot.safe_wal_bytes.map(|bytes| u64::try_from(bytes).unwrap_or(0)),
                current: true,
            }))
        }
        .boxed()
    }

    fn can_follow(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        // What is asked from now on is asked there.
        self.probes.lock().remove(&spec.timeline);
        let config = self.config(spec);
        async move { ardent_connector::can_follow(&config).await.map_err(|error| failed(&error)) }.boxed()
    }

    fn delete(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        self.probes.lock().remove(&spec.timeline);
        async move { ardent_connector::delete(&config(spec)).await.map_err(|error| failed(&error)) }.boxed()
    }
}

pub(super) fn config(spec: ConnectorSpec) -> ConnectorConfig {
    ConnectorConfig {
        tenant: spec.tenant,
        timeline: spec.timeline,
        url: spec.url,
        fast: spec.fast,
        max_rate_bytes: spec.max_rate_bytes,
        archive: None,
        pageserver: spec.pageserver,
        safekeepers: spec.safekeepers,
        members: spec.members,
        token: spec.token,
    }
}

fn failed(error: &ConnectorError) -> ErrorInfo {
    let code = match error {
        ConnectorError::PageServer(_) | ConnectorError::Safekeeper(_) | ConnectorError::Proposer(_) => {
            ApiErrorCode::StorageUnavailable
        }
        _ => ApiErrorCode::ConnectorUnavailable,
    };
    ErrorInfo::new(code, error.chain())
}

/// What preflight compares a source with.
fn host_facts(pg_bin_dirs: &BTreeMap<u32, PathBuf>) -> HostFacts {
    let facts = |major: u32| {
        let programs = ServerPrograms::find(major, pg_bin_dirs.get(&major).map(PathBuf::as_path)).ok()?;
        let compute_library = library::embedded(major).is_some();
        Some((major, MajorFacts { compute_library, libraries: libraries(&programs), bin_dir: Some(programs.bin_dir) }))
    };
    HostFacts {
        majors: PgMajor::ALL.into_iter().filter_map(|major| facts(major.number())).collect(),
        libc_version: libc_version(),
        locales: locales(),
    }
}

/// Names of the loadable libraries beside the server programs, without `.so`.
fn libraries(programs: &ServerPrograms) -> Option<Vec<String>> {
    let prefix = programs.bin_dir.parent()?;
    // The second one where the server lies in a folder of its own, beside the libraries that it is linked with.
    let folders = [prefix.join("lib"), prefix.join("lib/postgresql")].map(|folder| std::fs::read_dir(folder).ok());
    let entries: Vec<_> = folders.into_iter().flatten().collect();
    let names = entries.into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let libraries: Vec<String> = names.filter_map(|name| name.strip_suffix(".so").map(str::to_owned)).collect();
    (!libraries.is_empty()).then_some(libraries)
}

fn libc_version() -> Option<String> {
    let text = output("getconf", &["GNU_LIBC_VERSION"])?;
    text.split_ascii_whitespace().nth(1).map(str::to_owned)
}

fn locales() -> Option<Vec<String>> {
    let text = output("locale", &["-a"])?;
    Some(text.lines().map(ardent_connector::normalize_locale).collect())
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    ardent_open_files::as_before(&mut command);
    let output = command.args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A followed timeline's place in the list, for as long as it is followed.
struct Listed {
    followed: Followed,
    timeline: TimelineId,
}

impl Listed {
    fn new(followed: &Followed, timeline: TimelineId, status: watch::Receiver<FollowStatus>) -> Self {
        followed.lock().insert(timeline, status);
        Listed { followed: followed.clone(), timeline }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.followed.lock().remove(&self.timeline);
    }
}

/// How far connectors are behind: of all, the worst.
struct Lag(Followed);

impl fmt::Debug for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lag")
    }
}

impl Collector for Lag {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let followed: Vec<FollowStatus> = self.0.lock().values().map(|status| status.borrow().clone()).collect();
        let bytes = ConstGauge::new(
            followed.iter().map(|status| i64::try_from(status.lag_bytes()).unwrap_or(i64::MAX)).max().unwrap_or(0),
        );
        let help = "WAL that production has and our quorum has not, of the connector that is furthest behind";
        bytes.encode(encoder.encode_descriptor("lag_bytes", help, None, bytes.metric_type())?)?;
        let seconds = followed.iter().filter_map(|status| status.lag()).max().unwrap_or_default();
        let seconds = ConstGauge::new(seconds.as_secs_f64());
        let help = "For how long the connector that is furthest behind has been behind";
        seconds.encode(encoder.encode_descriptor("lag_seconds", help, None, seconds.metric_type())?)
    }
}
