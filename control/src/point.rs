//! The point that a branch leaves its parent at.

use std::str::FromStr;
use std::time::Duration;

use tokio::time::Instant;

use ardent_api::control::{ApiErrorCode, ErrorInfo};
use ardent_api::page_service::{ManageReply, ManageRequest, TimelineStatus};
use ardent_types::{Lsn, TenantId, TimelineId};

use crate::context::Context;
use crate::deps::{ConnectorSpec, StorageError, StorageErrorKind};
use crate::store::{BranchRow, now_us};

/// Longest wait for the page server to ingest what the parent had committed.
const FRESHNESS_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for production's answer to where its WAL ends.
const PRODUCTION_TIMEOUT: Duration = Duration::from_secs(5);

/// What a user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PointSpec {
    /// All that the parent had committed when the call came.
    Now,
    /// What the page server has, without asking anybody.
    Latest,
    /// A position.
    Lsn(Lsn),
    /// A time, in microseconds since the Unix epoch.
    Time(i64),
}

impl FromStr for PointSpec {
    type Err = ErrorInfo;

    fn from_str(text: &str) -> Result<Self, ErrorInfo> {
        if text == "latest" {
            return Ok(PointSpec::Latest);
        }
        if text == "now" {
            return Ok(PointSpec::Now);
        }
        if let Ok(lsn) = text.parse::<Lsn>() {
            return Ok(PointSpec::Lsn(lsn));
        }
        // A space instead of the T is how people write it, and psql.
        match text.replacen(' ', "T", 1).parse::<jiff::Timestamp>() {
            Ok(time) => Ok(PointSpec::Time(time.as_microsecond())),
            Err(_) => Err(ErrorInfo::new(
                ApiErrorCode::InvalidArguments,
                format!("{text:?} is no point in a branch's history"),
            )
            .with_hint("give latest, an LSN such as 0/16B3748, or a time with its zone such as 2026-01-31T12:00:00Z")),
        }
    }
}

/// Where to branch, and how long it took to get there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    /// The end of a record.
    pub lsn: Lsn,
    /// Where that record starts.
    pub prev_lsn: Lsn,
    /// Of the time, what was spent waiting for WAL to be ingested.
    pub waited: Duration,
}

impl Context {
    /// Facts about a timeline from the page server.
    pub(crate) async fn timeline_status(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<TimelineStatus, StorageError> {
        match self.page_service.manage(tenant, ManageRequest::TimelineStatus { timeline }).await? {
            ManageReply::Timeline(status) => Ok(status),
            other => Err(unexpected_reply("a timeline's status", &other)),
        }
    }

    /// Resolves `spec` on `parent`. `connector` is its connector if `parent` is a root.
    pub(crate) async fn resolve_point(
        &self,
        parent: &BranchRow,
        connector: Option<ConnectorSpec>,
        spec: PointSpec,
    ) -> Result<Point, ErrorInfo> {
        match spec {
            PointSpec::Latest => Ok(self.point_at(parent, None).await?),
            PointSpec::Lsn(lsn) => Ok(self.point_at(parent, Some(lsn)).await?),
            PointSpec::Time(timestamp_us) => {
                let request = ManageRequest::LsnForTimestamp { timeline: parent.timeline, timestamp_us };
                match self.page_service.manage(parent.tenant, request).await? {
                    ManageReply::LsnForTimestamp { lsn } => Ok(self.point_at(parent, Some(lsn)).await?),
                    other => Err(unexpected_reply("an LSN for a time", &other).into()),
                }
            }
            PointSpec::Now => {
                let committed = match connector {
                    Some(connector) => Some(self.production_lsn(parent, connector).await?),
                    None => self.wal_service.commit_lsn(parent.tenant, parent.timeline).await?,
                };
                let point = self.point_at(parent, None).await?;
                match committed.filter(|lsn| point.lsn < *lsn) {
                    None => Ok(point),
                    Some(lsn) => {
                        let waited = self.wait_for_ingest(parent, lsn).await?;
                        Ok(Point { waited, ..self.point_at(parent, None).await? })
                    }
                }
            }
        }
    }

    /// The branch point that `at` gives; absent: the last record ingested.
    pub(crate) async fn point_at(&self, parent: &BranchRow, at: Option<Lsn>) -> Result<Point, StorageError> {
        let request = ManageRequest::BranchPoint { timeline: parent.timeline, at };
        match self.page_service.manage(parent.tenant, request).await? {
            ManageReply::Branch { lsn, prev_lsn } => Ok(Point { lsn, prev_lsn, waited: Duration::ZERO }),
            other => Err(unexpected_reply("a branch point", &other)),
        }
    }

    async fn production_lsn(&self, parent: &BranchRow, connector: ConnectorSpec) -> Result<Lsn, ErrorInfo> {
        let asked = tokio::time::timeout(PRODUCTION_TIMEOUT, self.connectors.production_flush_lsn(connector)).await;
        let why = match asked {
            Ok(Ok(lsn)) => return Ok(lsn),
            Ok(Err(error)) => error.message,
            Err(_) => format!("it did not answer within {} s", PRODUCTION_TIMEOUT.as_secs()),
        };
        let message = format!("production ({}) cannot be asked where its WAL ends: {why}", parent.connector);
        Err(self.production_unavailable(parent, message).await)
    }

    /// The error with what can be had instead.
    pub(crate) async fn production_unavailable(&self, parent: &BranchRow, message: String) -> ErrorInfo {
        let status = self.timeline_status(parent.tenant, parent.timeline).await.ok();
        let age = status.and_then(|status| status.last_commit_us).map(|at_us| age_text(now_us(), at_us));
        let hint = match age {
            Some(age) => format!("--at latest branches from what is here: its newest commit is {age} old"),
            None => "--at latest branches from what is here".to_owned(),
        };
        ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, message).with_hint(hint)
    }

    /// Waits until the page server has the branch's WAL up to `lsn`.
    async fn wait_for_ingest(&self, parent: &BranchRow, lsn: Lsn) -> Result<Duration, ErrorInfo> {
        let began = Instant::now();
        let status = self.timeline_status(parent.tenant, parent.timeline).await?;
        if status.last_record_lsn >= lsn {
            return Ok(Duration::ZERO);
        }
        // A suspended branch's WAL is not received; what it committed last may still be missing after a crash of the page
        // server.
        if !status.following {
            let request = ManageRequest::FollowWal { timeline: parent.timeline, safekeepers: self.wal_service.addrs() };
            self.page_service.manage(parent.tenant, request).await?;
        }
        match self.page_service.wait_lsn(parent.tenant, parent.timeline, lsn, FRESHNESS_TIMEOUT).await {
            Ok(_) => Ok(began.elapsed()),
            Err(error) if error.kind == StorageErrorKind::Timeout => {
                let message = format!(
                    "the page server has not ingested {} up to {lsn} within {} s",
                    parent.name,
                    FRESHNESS_TIMEOUT.as_secs()
                );
                Err(ErrorInfo::new(ApiErrorCode::Timeout, message)
                    .with_hint("ardent connector status shows the lag; --at latest does not wait"))
            }
            Err(error) => Err(error.into()),
        }
    }
}

pub(crate) fn unexpected_reply(request: &str, reply: &ManageReply) -> StorageError {
    let kind = match reply {
        ManageReply::Done => "nothing",
        ManageReply::Branch { .. } => "a branch",
        ManageReply::Timeline(_) => "a timeline",
        ManageReply::Timelines { .. } => "timelines",
        ManageReply::LsnForTimestamp { .. } => "an LSN",
        ManageReply::KeptState { .. } => "a kept state",
        ManageReply::OldestRunning { .. } => "where transactions began",
        ManageReply::UnnamedFiles(_) => "unnamed files",
    };
    StorageError::new(StorageErrorKind::Failed, format!("the page server answered {request} with {kind}"))
}

fn age_text(now_us: i64, at_us: i64) -> String {
    let seconds = now_us.saturating_sub(at_us).max(0) / 1_000_000;
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_words_lsns_or_times() {
        let check = |text: &str, expect: PointSpec| assert_eq!(text.parse::<PointSpec>(), Ok(expect), "{text}");
        check("latest", PointSpec::Latest);
        check("now", PointSpec::Now);
        check("0/16B3748", PointSpec::Lsn(Lsn::new(0x16B_3748)));
        check("1970-01-01T00:00:01Z", PointSpec::Time(1_000_000));
        check("1970-01-01 01:00:01+01", PointSpec::Time(1_000_000));
        for bad in ["", "yesterday", "2026-01-31T12:00:00"] {
            assert!(bad.parse::<PointSpec>().is_err(), "{bad:?} parsed");
        }
    }

    #[test]
    fn ages_are_for_people() {
        for (seconds, text) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 days")] {
            assert_eq!(age_text(seconds * 1_000_000, 0), text);
        }
    }
}
