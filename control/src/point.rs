//! The point that a branch leaves its parent at.

use std::str::FromStr;
use std::time::Duration;

use tokio::time::Instant;

use ardent_api::control::{ApiErrorCode, ErrorInfo};
use ardent_api::page_service::{ManageReply, ManageRequest, TimelineStatus};
use ardent_types::{Lsn, TenantId, TimelineId};

use crate::context::Context;
use crate::deps::{ConnectorSpec, StorageError, StorageErrorKind};
use crate::history::check_past;
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
        if let Some(time) = parse_time(text) {
            return Ok(PointSpec::Time(time.as_microsecond()));
        }
        let is_local = parse_time(&format!("{text}Z")).is_some() || text.parse::<jiff::civil::Date>().is_ok();
        let (message, hint) = if is_local {
            (
                format!("{text:?} does not say in which time zone"),
                format!("for UTC: {text}Z; or with an offset such as +01:00"),
            )
        } else {
            let hint = "give latest, an LSN such as 0/16B3748, or a time with its zone such as 2026-01-31T12:00:00Z";
            (format!("{text:?} is no point in a branch's history"), hint.to_owned())
        };
        Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, message).with_hint(hint))
    }
}

/// A time with its zone, in any of ISO 8601's forms with a calendar date, or as psql prints it.
pub(crate) fn parse_time(text: &str) -> Option<jiff::Timestamp> {
    let text = text.trim();
    // A space instead of the T, and before the zone, is how people write it.
    let (date, time) = text.split_once([' ', 'T', 't'])?;
    let time = time.replace(' ', "");
    format!("{date}T{time}").parse().ok()
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
            PointSpec::Lsn(lsn) => {
                self.check_own(parent, lsn).await?;
                let mut last = self.point_at(parent, None).await?;
                let mut waited = Duration::ZERO;
                if last.lsn < lsn {
                    waited = self.catch_up(parent, connector).await?;
                    last = self.point_at(parent, None).await?;
                }
                if last.lsn < lsn {
                    return Err(self.ahead(parent, lsn).await);
                }
                self.point_in_range(parent, lsn, waited).await
            }
            PointSpec::Time(timestamp_us) => {
                check_past(timestamp_us)?;
                let status = self.timeline_status(parent.tenant, parent.timeline).await?;
                // What is not ingested yet may have been committed before that time.
                let waited = match status.last_commit_us.is_some_and(|last_us| last_us > timestamp_us) {
                    true => Duration::ZERO,
                    false => self.catch_up(parent, connector).await?,
                };
                let lsn = self.lsn_of_time(parent, parent.tenant, timestamp_us).await?;
                self.point_in_range(parent, lsn, waited).await
            }
            PointSpec::Now => {
                let committed = self.committed(parent, connector).await?;
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

    /// The branch point at `lsn`; outside of what is kept, an error that names the range.
    async fn point_in_range(&self, parent: &BranchRow, lsn: Lsn, waited: Duration) -> Result<Point, ErrorInfo> {
        match self.point_at(parent, Some(lsn)).await {
            Ok(point) => Ok(Point { waited, ..point }),
            Err(error) if error.kind == StorageErrorKind::OutOfRange => {
                let message = format!("{lsn} is before all that is kept of branch {}", parent.name);
                Err(self.with_range(parent, StorageError::new(StorageErrorKind::OutOfRange, message)).await)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Refuses an LSN from before a branch was made: that is its parent's history, as a time is that lies there.
    async fn check_own(&self, branch: &BranchRow, lsn: Lsn) -> Result<(), ErrorInfo> {
        let Some(begins) = self.begins_at(branch)?.filter(|begins| lsn < *begins) else { return Ok(()) };
        let message = format!("{lsn} is before branch {} was made, at {begins}", branch.name);
        Err(self.with_range(branch, StorageError::new(StorageErrorKind::OutOfRange, message)).await)
    }

    /// Where a branch leaves its parent's history; absent: it is a root. A restore made a timeline that hangs on another one of the branch's.
    fn begins_at(&self, branch: &BranchRow) -> Result<Option<Lsn>, ErrorInfo> {
        let past = self.store.past_timelines(branch.id)?;
        let is_own =
            |timeline: TimelineId| timeline == branch.timeline || past.iter().any(|past| past.timeline == timeline);
        let (mut timeline, mut begins) = (branch.timeline, None);
        while is_own(timeline) {
            let Some((ancestor, lsn)) = self.store.ancestor(timeline)? else { break };
            (timeline, begins) = (ancestor, Some(lsn));
        }
        Ok(begins)
    }

    /// Up to where `parent` has committed.
    async fn committed(&self, parent: &BranchRow, connector: Option<ConnectorSpec>) -> Result<Option<Lsn>, ErrorInfo> {
        match connector {
            Some(connector) => Ok(Some(self.production_lsn(parent, connector).await?)),
            None => Ok(self.wal_service.commit_lsn(parent.tenant, parent.timeline).await?),
        }
    }

    /// Waits until the page server has all that `parent` has committed so far.
    async fn catch_up(&self, parent: &BranchRow, connector: Option<ConnectorSpec>) -> Result<Duration, ErrorInfo> {
        match self.committed(parent, connector).await? {
            Some(lsn) => self.wait_for_ingest(parent, lsn).await,
            None => Ok(Duration::ZERO),
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
        if connector.logical.is_some() {
            return self.logical_lsn(parent, connector).await;
        }
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
    pub(crate) async fn wait_for_ingest(&self, parent: &BranchRow, lsn: Lsn) -> Result<Duration, ErrorInfo> {
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
                let branch = (parent.name.as_str(), parent.timeline);
                Err(not_ingested(branch, lsn, &error.message, &self.page_service.problems()))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What is said of a wait for the page server that was in vain: with what of its own work fails, where that is known, and else with what
/// it said (`said`).
fn not_ingested(
    (name, timeline): (&str, TimelineId),
    lsn: Lsn,
    said: &str,
    problems: &[(TimelineId, String)],
) -> ErrorInfo {
    let seconds = FRESHNESS_TIMEOUT.as_secs();
    let message = format!("the page server has not ingested {name} up to {lsn} within {seconds} s");
    // What one timeline cannot write is memory that another lacks.
    let problem = problems.iter().find(|(of, _)| *of == timeline).or(problems.first());
    let message = match problem {
        None => {
            return ErrorInfo::new(ApiErrorCode::Timeout, format!("{message} ({said})"))
                .with_hint("ardent connector status shows the lag; --at latest does not wait");
        }
        Some((of, problem)) if *of == timeline => format!("{message}: {problem}"),
        Some((of, problem)) => format!("{message}; of timeline {of}: {problem}"),
    };
    ErrorInfo::new(ApiErrorCode::Timeout, message)
        .with_hint("see whether the store is there, has room and can be written: ardent status shows all that fails; then give the command again")
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
        for same in [
            "1970-01-01T00:01Z",
            "1970-01-01t00:01:00z",
            "19700101T000100Z",
            "1970-01-01T00:01:00.000Z",
            "1970-01-01T00:01:00,000Z",
            "1970-01-01T01:01:00+01:00",
            "1970-01-01T01:01:00+0100",
            "1969-12-31 19:01:00 -05:00",
            "1970-01-01 00:01:00 Z",
            "1970-01-01 00:01:00.000000+00",
        ] {
            check(same, PointSpec::Time(60_000_000));
        }
        check("1970-01-01T00:00:00.000001Z", PointSpec::Time(1));
        for bad in ["", "yesterday", "0/", "2026-13-01T00:00:00Z", "2026-01-31T25:00:00Z", "Z"] {
            let error = bad.parse::<PointSpec>().expect_err(bad);
            assert!(error.message.contains("is no point"), "{error}");
        }
        for local in ["2026-01-31T12:00:00", "2026-01-31 12:00", "2026-01-31"] {
            let error = local.parse::<PointSpec>().expect_err(local);
            assert!(error.message.contains("time zone"), "{error}");
        }
    }

    #[test]
    fn who_waited_in_vain_hears_what_fails_of_the_store() {
        let (own, other) = (TimelineId::generate(), TimelineId::generate());
        let check = |problems: &[(TimelineId, &str)], message: &str, hint: &str| {
            let problems: Vec<_> = problems.iter().map(|(of, problem)| (*of, (*problem).to_owned())).collect();
            let error = not_ingested(("main", own), Lsn::new(0x10), "compaction is behind", &problems);
            assert_eq!(error.code, ApiErrorCode::Timeout);
            assert_eq!(
                error.message,
                format!("the page server has not ingested main up to 0/00000010 within 60 s{message}")
            );
            assert!(error.hint.as_ref().is_some_and(|found| found.contains(hint)), "{:?}", error.hint);
        };
        check(&[], " (compaction is behind)", "--at latest");
        check(&[(other, "stuck"), (own, "read-only")], ": read-only", "ardent status");
        check(&[(other, "stuck")], &format!("; of timeline {other}: stuck"), "ardent status");
    }

    #[test]
    fn ages_are_for_people() {
        for (seconds, text) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 days")] {
            assert_eq!(age_text(seconds * 1_000_000, 0), text);
        }
    }
}
