//! Control's connectors in logical mode, run by the connector crate.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use ardent_agent::ServerPrograms;
use ardent_api::control::{AddTablesReply, ApiErrorCode, ErrorInfo, LogicalOptions, PreflightCheck, VerifyReply};
use ardent_connector::HostFacts;
use ardent_connector::logical::{
    self, LogicalConfig, LogicalError, LogicalHandle, LogicalPhase, RootAt, RootFuture, add_tables, bootstrap,
    bring_current, can_follow_logical, delete_logical, logical_connector, preflight_logical, run_on_root, verify,
};
use ardent_control::deps::{ConnectorSpec, Imported, LogicalRuntime, LogicalStatus, RootBranch};
use ardent_pg_format::PgMajor;
use ardent_types::{Lsn, TimelineId};

use super::connectors::config;

/// Those that run, by root timeline, and those that ran last and are stopped.
#[derive(Default)]
struct Known {
    running: HashMap<TimelineId, LogicalHandle>,
    stopped: HashMap<TimelineId, logical::LogicalStatus>,
}

impl Known {
    fn status(&self, timeline: TimelineId) -> Option<logical::LogicalStatus> {
        let running = self.running.get(&timeline).map(LogicalHandle::status);
        running.or_else(|| self.stopped.get(&timeline).cloned())
    }

    /// It does not run any more: what it came to is kept, to be told beside why.
    fn stop(&mut self, timeline: TimelineId) {
        if let Some(handle) = self.running.remove(&timeline) {
            let mut status = handle.status();
            status.is_streaming = false;
            self.stopped.insert(timeline, status);
        }
    }
}

/// Runs connectors in logical mode in this process.
pub struct LogicalConnectors {
    host: Arc<HostFacts>,
    /// Folders of server programs, by major.
    programs: Arc<BTreeMap<u32, PathBuf>>,
    known: Arc<Mutex<Known>>,
}

impl LogicalConnectors {
    /// Connectors that use the server programs of this machine.
    pub fn new(host: Arc<HostFacts>, pg_bin_dirs: &BTreeMap<u32, PathBuf>) -> Self {
        let folder = |major: PgMajor| {
            let given = pg_bin_dirs.get(&major.number()).map(PathBuf::as_path);
            Some((major.number(), ServerPrograms::find(major.number(), given).ok()?.bin_dir))
        };
        let programs = Arc::new(PgMajor::ALL.into_iter().filter_map(folder).collect());
        LogicalConnectors { host, programs, known: Arc::default() }
    }

    /// Adds how far behind production they are.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("ardent_logical");
        registry.register_collector(Box::new(Lag(self.known.clone())));
    }

    fn handle(&self, timeline: TimelineId) -> Result<LogicalHandle, ErrorInfo> {
        self.known.lock().running.get(&timeline).cloned().ok_or_else(|| {
            ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, "the connector does not run at this moment")
                .with_hint("ardent connector status says why")
        })
    }
}

impl LogicalRuntime for LogicalConnectors {
    fn preflight<'a>(
        &'a self,
        url: &'a str,
        options: &'a LogicalOptions,
    ) -> BoxFuture<'a, Result<Vec<PreflightCheck>, ErrorInfo>> {
        async move { preflight_logical(url, options, &self.host, &self.programs).await.map_err(|error| failed(&error)) }
            .boxed()
    }

    fn begin(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<Imported, ErrorInfo>> {
        let programs = self.programs.clone();
        async move {
            let config = logical_config(spec, &programs);
            let imported = bootstrap(&config).await.map_err(|error| failed(&error))?;
            Ok(Imported {
                pg_major: imported.spec.pg_major,
                superuser: Some(imported.superuser),
                settings: imported.settings,
                away: imported.away,
            })
        }
        .boxed()
    }

    fn run(
        &self,
        spec: ConnectorSpec,
        root: Arc<dyn RootBranch>,
        cancel: CancellationToken,
        problem: watch::Sender<Option<String>>,
    ) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        let (handle, run) = logical_connector(self.known.lock().status(spec.timeline));
        let listed = Listed::new(&self.known, spec.timeline, handle.clone());
        let programs = self.programs.clone();
        async move {
            let _listed = listed;
            let config = logical_config(spec, &programs);
            let mut status = handle.watch();
            let running = run.run(&config, Arc::new(Root(root)), cancel);
            tokio::pin!(running);
            loop {
                tokio::select! {
                    ended = &mut running => return ended.map_err(|error| failed(&error)),
                    Ok(()) = status.changed() => {
                        let why = status.borrow_and_update().last_error.clone();
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

    fn status(&self, timeline: TimelineId) -> Option<LogicalStatus> {
        let status = self.known.lock().status(timeline)?;
        Some(LogicalStatus {
            phase: status.phase.word().to_owned(),
            is_ready: status.phase == LogicalPhase::Follow,
            progress: status.progress,
            tables: status.tables as u64,
            applied_lsn: Some(status.applied_lsn).filter(|lsn| *lsn > Lsn::INVALID),
            lag: status.lag(),
            look_age: status.look_age(),
            left_out: status.left_out,
            new_tables: status.new_tables,
            adding_error: status.adding_error,
            not_followed: status.not_followed,
            schema_changes: status.schema_changes,
            look_error: status.look_error,
            waits_for: status.waits_for,
        })
    }

    fn bring_current(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        let handle = self.handle(spec.timeline);
        let programs = self.programs.clone();
        async move {
            let config = logical_config(spec, &programs);
            bring_current(&config, &handle?).await.map_err(|error| failed(&error))
        }
        .boxed()
    }

    fn look(&self, timeline: TimelineId) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        let handle = self.handle(timeline);
        async move { handle?.look().await.map_err(|error| failed(&error)) }.boxed()
    }

    fn verify(
        &self,
        spec: ConnectorSpec,
        root: Arc<dyn RootBranch>,
    ) -> BoxFuture<'static, Result<VerifyReply, ErrorInfo>> {
        let handle = self.handle(spec.timeline);
        let programs = self.programs.clone();
        async move {
            let config = logical_config(spec, &programs);
            verify(&config, &handle?, &Root(root)).await.map_err(|error| failed(&error))
        }
        .boxed()
    }

    fn run_on_root(
        &self,
        spec: ConnectorSpec,
        root: Arc<dyn RootBranch>,
        sql: String,
    ) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        let programs = self.programs.clone();
        async move {
            let config = logical_config(spec, &programs);
            run_on_root(&config, &Root(root), &sql).await.map_err(|error| failed(&error))
        }
        .boxed()
    }

    fn add_tables(
        &self,
        spec: ConnectorSpec,
        root: Arc<dyn RootBranch>,
        names: Vec<String>,
    ) -> BoxFuture<'static, Result<AddTablesReply, ErrorInfo>> {
        let handle = self.handle(spec.timeline);
        let programs = self.programs.clone();
        async move {
            let config = logical_config(spec, &programs);
            add_tables(&config, &handle?, &Root(root), &names).await.map_err(|error| failed(&error))
        }
        .boxed()
    }

    fn can_follow(&self, spec: ConnectorSpec, applied: Option<Lsn>) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        let programs = self.programs.clone();
        async move {
            let config = logical_config(spec, &programs);
            can_follow_logical(&config, applied).await.map_err(|error| failed(&error))
        }
        .boxed()
    }

    fn delete(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        self.known.lock().stopped.remove(&spec.timeline);
        let programs = self.programs.clone();
        async move {
            let config = logical_config(spec, &programs);
            delete_logical(&config).await.map_err(|error| failed(&error))
        }
        .boxed()
    }
}

fn logical_config(spec: ConnectorSpec, programs: &Arc<BTreeMap<u32, PathBuf>>) -> LogicalConfig {
    let options = spec.logical.clone().unwrap_or_default();
    LogicalConfig { connector: config(spec), options, programs: programs.clone() }
}

fn failed(error: &LogicalError) -> ErrorInfo {
    let code = match error {
        LogicalError::Root { .. } | LogicalError::Branch(_) => ApiErrorCode::ComputeFailed,
        _ => ApiErrorCode::ConnectorUnavailable,
    };
    ErrorInfo::new(code, error.chain())
}

/// Control's root branch, as the connector crate wants it.
struct Root(Arc<dyn RootBranch>);

impl ardent_connector::logical::RootBranch for Root {
    fn wake(&self) -> RootFuture<'_> {
        Box::pin(async move {
            let at = self.0.wake().await?;
            Ok(RootAt { socket_dir: at.socket_dir, port: at.port })
        })
    }

    fn saved(&self) -> Result<Option<String>, ErrorInfo> {
        self.0.saved()
    }

    fn save(&self, state: &str) -> Result<(), ErrorInfo> {
        self.0.save(state)
    }

    fn script(&self) -> Result<String, ErrorInfo> {
        self.0.script()
    }

    fn save_script(&self, script: &str) -> Result<(), ErrorInfo> {
        self.0.save_script(script)
    }
}

/// A connector's place in the list, for as long as it runs.
struct Listed {
    known: Arc<Mutex<Known>>,
    timeline: TimelineId,
}

impl Listed {
    fn new(known: &Arc<Mutex<Known>>, timeline: TimelineId, handle: LogicalHandle) -> Self {
        let mut list = known.lock();
        list.stopped.remove(&timeline);
        list.running.insert(timeline, handle);
        drop(list);
        Listed { known: known.clone(), timeline }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.known.lock().stop(self.timeline);
    }
}

/// How far connectors are behind: of all, the worst.
struct Lag(Arc<Mutex<Known>>);

impl fmt::Debug for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lag")
    }
}

impl Collector for Lag {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let known = self.0.lock();
        let running = known.running.values().map(LogicalHandle::status);
        // Those that are stopped fall behind, too.
        let all: Vec<_> = running.chain(known.stopped.values().cloned()).collect();
        drop(known);
        let bytes = all.iter().map(|status| i64::try_from(status.lag_bytes()).unwrap_or(i64::MAX)).max();
        let bytes = ConstGauge::new(bytes.unwrap_or(0));
        let help = "Log that production has and that is not applied, of the logical connector that is furthest behind";
        bytes.encode(encoder.encode_descriptor("lag_bytes", help, None, bytes.metric_type())?)?;
        let seconds = all.iter().filter_map(|status| status.lag()).max().unwrap_or_default();
        let seconds = ConstGauge::new(seconds.as_secs_f64());
        let help = "For how long the logical connector that is furthest behind has been behind";
        seconds.encode(encoder.encode_descriptor("lag_seconds", help, None, seconds.metric_type())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stopped_connector_came_to_is_kept_until_it_runs_again() {
        let known = Arc::new(Mutex::new(Known::default()));
        let timeline = TimelineId::generate();
        let mut came_to = logical::LogicalStatus::default();
        (came_to.phase, came_to.is_streaming) = (LogicalPhase::Follow, true);
        (came_to.tables, came_to.applied_lsn) = (3, Lsn::new(7));
        came_to.new_tables.push("s.t".into());
        came_to.last_error = Some("stopped".into());
        assert!(known.lock().status(timeline).is_none());
        let (handle, _run) = logical_connector(Some(came_to));
        let listed = Listed::new(&known, timeline, handle);
        assert_eq!(known.lock().status(timeline).and_then(|status| status.last_error), None, "it is tried again");
        drop(listed);
        let kept = known.lock().status(timeline).expect("it is known");
        assert_eq!((kept.phase, kept.tables, kept.applied_lsn), (LogicalPhase::Follow, 3, Lsn::new(7)));
        assert_eq!((kept.new_tables, kept.is_streaming), (vec!["s.t".to_owned()], false));
        let _again = Listed::new(&known, timeline, logical_connector(None).0);
        assert!(known.lock().stopped.is_empty());
    }
}
