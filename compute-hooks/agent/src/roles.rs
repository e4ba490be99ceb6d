//! Which roles the branch has, for the proxy to check passwords with while the branch is asleep.
//!
//! ```text
//!  backend that has committed a change ── knocks ──► RolesWatch ── reads pg_authid ──► Roles event ──► control
//!       ▲                                               │ ▲                                              │
//!       └───────────── hangs up ◄───────────────────────┘ └──────────── RolesTaken ◄────────────────────┘
//! ```
//!
//! The library knocks after commands that change roles; changes made in other ways are found at the next look, at the
//! latest when the compute stops.

use std::path::Path;
use std::time::Duration;

use ardent_api::compute::RoleReport;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;

use crate::error::ComputeError;
use crate::page_door::listen;
use crate::session::{Rows, Sessions};

/// How often roles are looked at without being told.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A look that takes longer failed.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);
/// Most backends that wait at a time; more find an answer in their own patience's end.
const WAITING_MAX: usize = 1000;

/// The bootstrap superuser and all roles that somebody made. Times that never come count as none.
const QUERY: &str = "
select oid, rolname, rolcanlogin,
  case when isfinite(rolvaliduntil) then (extract(epoch from rolvaliduntil) * 1000000)::bigint end, rolpassword
from pg_catalog.pg_authid where oid = 10 or oid >= 16384 order by oid";

/// A report's number, and all roles.
pub(crate) type RolesNews = (u64, Vec<RoleReport>);

/// Watches one compute's roles.
#[derive(Debug)]
pub(crate) struct RolesWatch {
    listener: UnixListener,
    sessions: Sessions,
    /// What control was told last.
    told: Option<Vec<RoleReport>>,
    number: u64,
    next_look: Instant,
    /// Who knocked, and the report that has to be taken before they are let go; absent: not read yet.
    waiting: Vec<(Option<u64>, UnixStream)>,
}

impl RolesWatch {
    /// Listens at `socket` for the compute whose Postgres is reached in `run`.
    pub(crate) fn open(socket: &Path, run: &Path) -> Result<Self, ComputeError> {
        Self::after(socket, run, 0)
    }

    /// The same after so many agents of this Postgres were lost: an answer to one of them is none to this one, which looks first.
    pub(crate) fn take_over(socket: &Path, run: &Path, agents_lost: u32) -> Result<Self, ComputeError> {
        let watch = Self::after(socket, run, u64::from(agents_lost) << 32)?;
        Ok(RolesWatch { next_look: Instant::now(), ..watch })
    }

    fn after(socket: &Path, run: &Path, number: u64) -> Result<Self, ComputeError> {
        Ok(RolesWatch {
            listener: listen(socket)?,
            sessions: Sessions::new(run),
            told: None,
            number,
            next_look: Instant::now() + LOOK_EVERY,
            waiting: Vec::new(),
        })
    }

    /// Waits until there is something to tell. Cancel-safe: a look that was given up is made again.
    pub(crate) async fn news(&mut self) -> RolesNews {
        loop {
            let knocked = self.waiting.iter().any(|(number, _)| number.is_none());
            if knocked || Instant::now() >= self.next_look {
                if let Some(news) = self.look().await {
                    return news;
                }
                continue;
            }
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) if self.waiting.len() < WAITING_MAX => self.waiting.push((None, stream)),
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%error, "nobody can say that roles have changed");
                        tokio::time::sleep(LOOK_DEADLINE).await;
                    }
                },
                () = tokio::time::sleep_until(self.next_look) => {}
            }
        }
    }

    /// Looks now. Whoever waits is let go if there is nothing new.
    pub(crate) async fn look(&mut self) -> Option<RolesNews> {
        let seen = tokio::time::timeout(LOOK_DEADLINE, self.sessions.ask(QUERY)).await;
        self.next_look = Instant::now() + LOOK_EVERY;
        let roles = match seen {
            Ok(Ok(rows)) => parse(rows),
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the roles cannot be looked at");
                None
            }
            Err(_) => {
                tracing::warn!("a look at the roles took too long");
                None
            }
        };
        let news = roles.filter(|roles| self.told.as_ref() != Some(roles));
        let Some(roles) = news else {
            let told = self.number;
            self.waiting.retain_mut(|(number, _)| number.is_some_and(|number| number <= told));
            return None;
        };
        self.number += 1;
        for (number, _) in &mut self.waiting {
            number.get_or_insert(self.number);
        }
        self.told = Some(roles.clone());
        Some((self.number, roles))
    }

    /// Control has taken in what it was told with `number`.
    pub(crate) fn taken(&mut self, number: u64) {
        self.waiting.retain(|(wanted, _)| wanted.is_none_or(|wanted| wanted > number));
    }
}

fn parse(rows: Rows) -> Option<Vec<RoleReport>> {
    let role = |row: Vec<Option<String>>| {
        let [oid, name, can_login, valid_until, password] = <[Option<String>; 5]>::try_from(row).ok()?;
        Some(RoleReport {
            oid: oid?.parse().ok()?,
            name: name?,
            can_login: can_login? == "t",
            valid_until_us: valid_until.and_then(|text| text.parse().ok()),
            password,
        })
    };
    rows.into_iter().map(role).collect()
}
