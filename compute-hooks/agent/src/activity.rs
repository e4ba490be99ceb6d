//! Whether anybody uses the compute.
//!
//! Every now and then a short session asks Postgres who is there. A compute is busy while a client backend runs a
//! statement or is in a transaction, and while a session holds what it would lose by being ended: advisory locks,
//! temporary tables, channels it listens to, cursors that outlive transactions (the library marks sessions with the last two
//! by a lock). Sessions that are open and idle don't count, prepared statements or not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use crate::session::Sessions;

/// Shortest and longest time between two looks.
const LOOK_EVERY_MIN: Duration = Duration::from_secs(1);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(10);
/// Looks per idle time.
const LOOKS_PER_IDLE_TIME: u32 = 10;
/// A look that takes longer failed.
const LOOK_DEADLINE: Duration = Duration::from_secs(10);

/// One row: sessions at work, seconds since the last change of any session's state (empty: no session), sessions begun
/// since the start, sessions open.
const QUERY: &str = "
select
  (select count(*) from pg_catalog.pg_stat_activity
    where backend_type = 'client backend' and pid <> pg_catalog.pg_backend_pid()
      and (state is distinct from 'idle'
           or pid in (select l.pid from pg_catalog.pg_locks l where l.locktype in ('advisory', 'userlock')))),
  (select pg_catalog.min(extract(epoch from pg_catalog.clock_timestamp() - state_change))
    from pg_catalog.pg_stat_activity
    where backend_type = 'client backend' and pid <> pg_catalog.pg_backend_pid()),
  (select coalesce(pg_catalog.sum(sessions), 0) from pg_catalog.pg_stat_database where datname <> 'template1'),
  (select count(*) from pg_catalog.pg_stat_activity
    where backend_type = 'client backend' and pid <> pg_catalog.pg_backend_pid())";

/// Watches one compute.
#[derive(Debug)]
pub(crate) struct ActivityWatch {
    sessions: Sessions,
    data_dir: PathBuf,
    idle_time: Duration,
    last_active: Instant,
    sessions_seen: Option<u64>,
}

/// What one look saw.
#[derive(Clone, Debug, PartialEq)]
struct Look {
    busy: u64,
    quiet_for: Option<Duration>,
    sessions_begun: u64,
    open_sessions: u64,
}

impl ActivityWatch {
    pub(crate) fn new(socket_dir: &Path, data_dir: &Path, idle_time: Duration) -> Self {
        ActivityWatch {
            sessions: Sessions::new(socket_dir),
            data_dir: data_dir.to_owned(),
            idle_time,
            last_active: Instant::now(),
            sessions_seen: None,
        }
    }

    /// Waits until the idle time has passed without activity; for ever if there is none. Cancel-safe: a look that was given up
    /// is made again.
    pub(crate) async fn idle(&mut self) {
        if self.idle_time.is_zero() {
            return std::future::pending().await;
        }
        let every = (self.idle_time / LOOKS_PER_IDLE_TIME).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX);
        loop {
            tokio::time::sleep(every).await;
            match tokio::time::timeout(LOOK_DEADLINE, self.look()).await {
                Ok(Ok(look)) => self.take_in(&look),
                // A server that cannot be asked is not known to be idle.
                Ok(Err(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "activity cannot be looked at");
                    self.last_active = Instant::now();
                }
                Err(_) => {
                    tracing::warn!("a look at the activity took too long");
                    self.last_active = Instant::now();
                }
            }
            if self.last_active.elapsed() >= self.idle_time {
                return;
            }
        }
    }

    fn take_in(&mut self, look: &Look) {
        let now = Instant::now();
        let begun_since =
            self.sessions_seen.replace(look.sessions_begun).is_some_and(|seen| seen != look.sessions_begun);
        if look.busy > 0 || begun_since || (look.open_sessions > 0 && self.has_temporary_tables()) {
            self.last_active = now;
        } else if let Some(quiet_since) = look.quiet_for.and_then(|quiet| now.checked_sub(quiet)) {
            self.last_active = self.last_active.max(quiet_since);
        }
    }

    /// Temporary tables are in their own database's catalog only, but their files tell: `tBACKEND_RELFILENODE`. Looked for
    /// only when a session would be ended by suspending now.
    fn has_temporary_tables(&self) -> bool {
        if self.last_active.elapsed() < self.idle_time.saturating_sub(LOOK_EVERY_MAX) {
            return false;
        }
        let Ok(databases) = std::fs::read_dir(self.data_dir.join("base")) else { return false };
        let files =
            databases.flatten().filter_map(|database| std::fs::read_dir(database.path()).ok()).flatten().flatten();
        files.into_iter().any(|file| is_temporary(file.file_name().as_encoded_bytes()))
    }

    async fn look(&self) -> Result<Look, tokio_postgres::Error> {
        let rows = self.sessions.ask(QUERY).await?;
        let field = |column: usize| rows.first().and_then(|row| row.get(column)).and_then(Option::as_deref);
        let number = |column: usize| field(column).and_then(|text| text.parse().ok()).unwrap_or(0);
        let seconds = field(1).and_then(|text| text.parse::<f64>().ok());
        Ok(Look {
            busy: number(0),
            quiet_for: seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()),
            sessions_begun: number(2),
            open_sessions: number(3),
        })
    }
}

fn is_temporary(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(b"t") else { return false };
    rest.first().is_some_and(u8::is_ascii_digit) && rest.contains(&b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(busy: u64, quiet_s: Option<u64>, sessions_begun: u64) -> Look {
        let quiet_for = quiet_s.map(Duration::from_secs);
        Look { busy, quiet_for, sessions_begun, open_sessions: 0 }
    }

    #[tokio::test(start_paused = true)]
    async fn activity_is_work_new_sessions_and_recent_changes() {
        let nowhere = Path::new("/nonexistent");
        let watch = ActivityWatch::new(nowhere, nowhere, Duration::from_secs(60));
        let watch = std::sync::Mutex::new(watch);
        let quiet_after = async |advance_s: u64, seen: Look| {
            tokio::time::advance(Duration::from_secs(advance_s)).await;
            let mut watch = watch.lock().expect("one test");
            watch.take_in(&seen);
            watch.last_active.elapsed().as_secs()
        };
        assert_eq!(quiet_after(100, look(0, None, 3)).await, 100, "the first count of sessions is no activity");
        assert_eq!(quiet_after(10, look(0, None, 3)).await, 110);
        assert_eq!(quiet_after(10, look(0, None, 4)).await, 0, "a session came and went");
        assert_eq!(quiet_after(10, look(1, Some(500), 4)).await, 0, "a statement is running");
        assert_eq!(quiet_after(50, look(0, Some(20), 4)).await, 20, "a session was at work 20 s ago");
        assert_eq!(quiet_after(50, look(0, Some(500), 4)).await, 70, "an old change is older news");
    }

    #[test]
    fn temporary_files_are_told_from_tables() {
        assert!(is_temporary(b"t3_16384") && is_temporary(b"t12_16384_fsm"));
        assert!(!is_temporary(b"16384") && !is_temporary(b"16384_fsm") && !is_temporary(b"true"));
    }
}
