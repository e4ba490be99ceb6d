//! Production, as connectors of both modes see it.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use ardent_api::control::{
    AddTablesReply, ApiErrorCode, CheckOutcome, ErrorInfo, LogicalOptions, PreflightCheck, SlotInfo, VerifyReply,
};
use ardent_control::deps::{
    ConnectorRuntime, ConnectorSpec, ImportProgress, Imported, LogicalRuntime, LogicalStatus, RootBranch,
};
use ardent_types::{Lsn, TimelineId};

use super::fakes::{FakeTimeline, Fakes};

impl LogicalRuntime for Fakes {
    fn preflight<'a>(
        &'a self,
        url: &'a str,
        _options: &'a LogicalOptions,
    ) -> BoxFuture<'a, Result<Vec<PreflightCheck>, ErrorInfo>> {
        ConnectorRuntime::preflight(self, url)
    }

    fn begin(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<Imported, ErrorInfo>> {
        let mut state = self.state.lock();
        state.logical_begun += 1;
        let root = FakeTimeline { ancestor: None, branch_lsn: Lsn::INVALID, following: false };
        state.page_server.insert(spec.timeline, root);
        Box::pin(async move { Ok(Imported { pg_major: 15, superuser: None, settings: BTreeMap::new(), away: vec![] }) })
    }

    fn run(
        &self,
        spec: ConnectorSpec,
        root: Arc<dyn RootBranch>,
        cancel: CancellationToken,
        _problem: watch::Sender<Option<String>>,
    ) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        let mut state = self.state.lock();
        state.slots = state.slots.max(1);
        state.logical_running.push(spec.timeline);
        Box::pin(async move {
            if root.saved()?.is_none() {
                root.save("copying")?;
            }
            cancel.cancelled().await;
            Ok(())
        })
    }

    fn status(&self, timeline: TimelineId) -> Option<LogicalStatus> {
        let state = self.state.lock();
        let is_ready = !state.copy_held;
        let phase = if is_ready { "follow" } else { "copy" }.to_owned();
        let status = LogicalStatus { phase, is_ready, progress: (5, 10), ..LogicalStatus::default() };
        state.logical_running.contains(&timeline).then_some(status)
    }

    fn bring_current(&self, _spec: ConnectorSpec) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        let down = self.state.lock().production_down;
        let refused = ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, "connection refused");
        Box::pin(async move { if down { Err(refused) } else { Ok(()) } })
    }

    fn look(&self, _timeline: TimelineId) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        Box::pin(async { Ok(()) })
    }

    fn add_tables(
        &self,
        _spec: ConnectorSpec,
        _root: Arc<dyn RootBranch>,
        names: Vec<String>,
    ) -> BoxFuture<'static, Result<AddTablesReply, ErrorInfo>> {
        let reply = AddTablesReply {
            schema_version: 1,
            name: String::new(),
            at_lsn: None,
            added: names,
            skipped: Vec::new(),
            left_out: Vec::new(),
        };
        Box::pin(async move { Ok(reply) })
    }

    fn verify(
        &self,
        _spec: ConnectorSpec,
        _root: Arc<dyn RootBranch>,
    ) -> BoxFuture<'static, Result<VerifyReply, ErrorInfo>> {
        let at_lsn = *self.production.borrow();
        let reply = VerifyReply {
            schema_version: 1,
            name: String::new(),
            at_lsn,
            equal: true,
            tables: vec![],
            sequences_behind: vec![],
            not_followed: vec![],
            schema_differences: vec![],
        };
        Box::pin(async move { Ok(reply) })
    }

    fn run_on_root(
        &self,
        _spec: ConnectorSpec,
        _root: Arc<dyn RootBranch>,
        sql: String,
    ) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        self.state.lock().ran_on_root.push(sql);
        Box::pin(async move { Ok(()) })
    }

    fn can_follow(&self, spec: ConnectorSpec, _applied: Option<Lsn>) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        ConnectorRuntime::can_follow(self, spec)
    }

    fn delete(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        ConnectorRuntime::delete(self, spec)
    }
}

impl ConnectorRuntime for Fakes {
    fn preflight<'a>(&'a self, _url: &'a str) -> BoxFuture<'a, Result<Vec<PreflightCheck>, ErrorInfo>> {
        let outcome = if self.state.lock().preflight_fails { CheckOutcome::Failed } else { CheckOutcome::Ok };
        let check = PreflightCheck {
            name: "replication_privilege".into(),
            outcome,
            message: "role app may not replicate".into(),
            fix: Some("ALTER ROLE app REPLICATION".into()),
        };
        Box::pin(async move { Ok(vec![check]) })
    }

    fn import(
        &self,
        spec: ConnectorSpec,
        progress: mpsc::Sender<ImportProgress>,
    ) -> BoxFuture<'static, Result<Imported, ErrorInfo>> {
        assert!(spec.url.contains("s3cret"), "the runtime gets the whole URL");
        let mut production = self.production.subscribe();
        let held = {
            let mut state = self.state.lock();
            state.slots += 1;
            let root = FakeTimeline { ancestor: None, branch_lsn: Lsn::INVALID, following: false };
            state.page_server.insert(spec.timeline, root);
            state.import_held
        };
        let fails = self.state.lock().import_fails;
        Box::pin(async move {
            let step =
                ImportProgress { phase: "copy".into(), bytes_done: 5, bytes_total: 10, ..ImportProgress::default() };
            let _ = progress.send(step).await;
            if held {
                let _ = production.changed().await;
            }
            if fails {
                let message = "the source closed the connection in the middle of the copy";
                return Err(ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, message));
            }
            Ok(Imported { pg_major: 15, superuser: Some("root".into()), settings: BTreeMap::new(), away: vec![] })
        })
    }

    fn follow(
        &self,
        spec: ConnectorSpec,
        cancel: CancellationToken,
        _problem: watch::Sender<Option<String>>,
    ) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        let mut state = self.state.lock();
        state.followers += 1;
        state.followed_url = spec.url;
        let fakes = self.this.upgrade().expect("it answers");
        Box::pin(async move {
            cancel.cancelled().await;
            fakes.state.lock().followers -= 1;
            Ok(())
        })
    }

    fn production_flush_lsn(&self, _spec: ConnectorSpec) -> BoxFuture<'static, Result<Lsn, ErrorInfo>> {
        let answer = if self.state.lock().production_down {
            Err(ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, "connection refused"))
        } else {
            Ok(*self.production.borrow())
        };
        Box::pin(async move { answer })
    }

    fn slot(&self, _spec: ConnectorSpec) -> BoxFuture<'static, Result<Option<SlotInfo>, ErrorInfo>> {
        let state = self.state.lock();
        let refused = ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, "connection refused");
        let answer = if state.production_down { Err(refused) } else { Ok(state.slot.clone()) };
        Box::pin(async move { answer })
    }

    fn can_follow(&self, spec: ConnectorSpec) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        let is_other = spec.url.contains("other.example");
        assert_eq!(self.state.lock().followers, 0, "nobody follows meanwhile");
        let other = ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, "the server is another cluster");
        Box::pin(async move { if is_other { Err(other) } else { Ok(()) } })
    }

    fn delete(&self, _spec: ConnectorSpec) -> BoxFuture<'static, Result<(), ErrorInfo>> {
        let mut state = self.state.lock();
        let answer = if state.production_down {
            Err(ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, "connection refused"))
        } else {
            state.slots = state.slots.saturating_sub(1);
            Ok(())
        };
        Box::pin(async move { answer })
    }
}
