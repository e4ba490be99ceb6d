//! Following production: one task for each connector, which begins again whenever it ends, until it is stopped.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use ardent_api::control::ErrorInfo;
use ardent_api::page_service::ManageRequest;

use crate::service::Control;
use crate::store::ConnectorRow;

/// Pauses between attempts to follow a source after an error that waiting alone does not mend: doubled from the first to the last.
const FOLLOW_PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// A follower that ran this long starts over with the shortest pause.
const FOLLOW_STEADY: Duration = Duration::from_secs(60);
/// Why a connector is not followed that has no follower.
const NOBODY_FOLLOWS: &str = "nobody tries to, as while the connector is moved or resumed, or as long as the page server is away \
     (the server's log says which)";

/// A root timeline that is being followed.
pub(super) struct Follower {
    cancel: CancellationToken,
    problem: watch::Receiver<Option<String>>,
    /// Since when there has been a problem.
    interrupted: watch::Receiver<Option<Instant>>,
    /// Set while it does not try, because of what waiting alone does not mend.
    given_up: watch::Receiver<Option<String>>,
    ended: CancellationToken,
    /// Rung when it has to begin again with what control knows now.
    anew: Arc<Notify>,
}

/// Since when connectors have no follower.
pub(super) struct Unfollowed {
    /// None has one before.
    begun: Instant,
    left: Mutex<HashMap<String, Instant>>,
    /// Why the last attempt to give one a follower failed.
    failed: Mutex<HashMap<String, String>>,
}

impl Default for Unfollowed {
    fn default() -> Self {
        Unfollowed { begun: Instant::now(), left: Mutex::default(), failed: Mutex::default() }
    }
}

impl Unfollowed {
    /// Notes that it has none from now on, if that is not noted yet.
    fn note(&self, connector: &str) {
        self.left.lock().entry(connector.to_owned()).or_insert_with(Instant::now);
    }

    pub(super) fn forget(&self, connector: &str) {
        self.left.lock().remove(connector);
        self.failed.lock().remove(connector);
    }

    /// Keeps why it could not be given one.
    fn fail(&self, connector: &str, why: &ErrorInfo) {
        self.failed.lock().insert(connector.to_owned(), why.to_string());
    }

    fn why(&self, connector: &str) -> Option<String> {
        self.failed.lock().get(connector).cloned()
    }

    fn since(&self, connector: &str) -> Instant {
        self.left.lock().get(connector).copied().unwrap_or(self.begun)
    }
}

impl Control {
    /// Receives production's WAL from now on, through the safekeepers into the page server.
    pub(crate) async fn start_following(self: &Arc<Self>, row: &ConnectorRow) -> Result<(), ErrorInfo> {
        // A root branch with a compute is received while that runs, as any branch is.
        if row.logical.is_none() {
            let request =
                ManageRequest::FollowWal { timeline: row.timeline, safekeepers: self.context.wal_service.addrs() };
            self.context.page_service.manage(row.tenant, request).await?;
        }
        let cancel = self.cancel.child_token();
        let ended = CancellationToken::new();
        let (problem_in, problem) = watch::channel(None);
        let (given_up_in, given_up) = watch::channel(None);
        let (interrupted_in, interrupted) = watch::channel(None);
        let anew = Arc::new(Notify::new());
        let follower = Follower {
            cancel: cancel.clone(),
            problem: problem.clone(),
            interrupted,
            given_up,
            ended: ended.clone(),
            anew: Arc::clone(&anew),
        };
        if self.connectors.followers.lock().insert(row.name.clone(), follower).is_some() {
            warn!(connector = %row.name, "was followed already");
        }
        self.connectors.unfollowed.forget(&row.name);
        let (control, row) = (self.clone(), row.clone());
        self.tasks.spawn(async move {
            tokio::join!(
                control.follow(&row, cancel.clone(), &anew, problem_in, given_up_in),
                note_interruptions(problem, interrupted_in),
                control.watch_slot(&row, cancel.clone())
            );
            ended.cancel();
        });
        Ok(())
    }

    async fn follow(
        &self,
        row: &ConnectorRow,
        cancel: CancellationToken,
        anew: &Notify,
        problem: watch::Sender<Option<String>>,
        given_up: watch::Sender<Option<String>>,
    ) {
        let mut pause = FOLLOW_PAUSE.0;
        while !cancel.is_cancelled() {
            let began = Instant::now();
            let this_time = cancel.child_token();
            let following = async {
                match self.connector_spec_of(row) {
                    Ok(_) if row.logical.is_some() => self.run_logical(row, this_time.clone(), problem.clone()).await,
                    Ok(spec) => self.context.connectors.follow(spec, this_time.clone(), problem.clone()).await,
                    Err(error) => Err(error),
                }
            };
            tokio::pin!(following);
            let outcome = tokio::select! {
                outcome = &mut following => outcome,
                () = anew.notified() => {
                    this_time.cancel();
                    if let Err(error) = following.await {
                        debug!(connector = %row.name, %error, "ended to begin again");
                    }
                    continue;
                }
            };
            if cancel.is_cancelled() {
                return;
            }
            let why = match outcome {
                Ok(()) => "the source ended the stream".to_owned(),
                Err(error) => error.message,
            };
            if began.elapsed() > FOLLOW_STEADY {
                pause = FOLLOW_PAUSE.0;
            }
            warn!(connector = %row.name, why, retry_s = pause.as_secs(), "production is not being followed");
            problem.send_replace(Some(why.clone()));
            given_up.send_replace(Some(why));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = cancel.cancelled() => return,
            }
            given_up.send_replace(None);
            pause = (pause * 2).min(FOLLOW_PAUSE.1);
        }
    }

    /// Whether somebody follows it, or tries to.
    pub(crate) fn is_followed(&self, name: &str) -> bool {
        self.connectors.followers.lock().contains_key(name)
    }

    /// Whether a connector is being followed, and why not.
    pub(crate) fn following(&self, name: &str) -> (bool, Option<String>) {
        match self.connectors.followers.lock().get(name) {
            None => (false, None),
            Some(follower) => {
                let problem = follower.problem.borrow().as_deref().map(|why| for_connector(why, name));
                (problem.is_none(), problem)
            }
        }
    }

    /// That it could not be given a follower, after a start or a change.
    pub(crate) fn note_unfollowed(&self, name: &str, why: &ErrorInfo) {
        self.connectors.unfollowed.fail(name, why);
    }

    /// Why it has no follower, if giving it one has failed.
    pub(crate) fn why_unfollowed(&self, name: &str) -> Option<String> {
        self.connectors.unfollowed.why(name)
    }

    /// For how long production has not been followed, and why, if it is not at this moment.
    pub(super) fn interruption(&self, name: &str) -> Option<(Duration, String)> {
        let followers = self.connectors.followers.lock();
        let Some(follower) = followers.get(name) else {
            let since = self.connectors.unfollowed.since(name);
            let why = self.connectors.unfollowed.why(name);
            return Some((since.elapsed(), why.unwrap_or_else(|| NOBODY_FOLLOWS.to_owned())));
        };
        let since = *follower.interrupted.borrow();
        let problem = follower.problem.borrow().as_deref().map(|why| for_connector(why, name));
        since.zip(problem).map(|(since, problem)| (since.elapsed(), problem))
    }

    /// Lets whoever follows it begin again with what control knows now. It stays followed, whatever is away meanwhile.
    pub(crate) fn follow_anew(&self, name: &str) {
        if let Some(follower) = self.connectors.followers.lock().get(name) {
            follower.anew.notify_one();
        }
    }

    /// Ends when production is not followed any more and waiting does not mend it; says why.
    pub(crate) async fn given_up(&self, name: &str) -> String {
        let follower = self.connectors.followers.lock().get(name).map(|follower| follower.given_up.clone());
        if let Some(mut given_up) = follower
            && let Ok(why) = given_up.wait_for(Option::is_some).await
            && let Some(why) = why.clone()
        {
            return for_connector(&why, name);
        }
        // Nobody follows it: it is just being started or deleted.
        std::future::pending().await
    }

    pub(crate) async fn stop_following(&self, name: &str) {
        let follower = {
            let mut followers = self.connectors.followers.lock();
            // Before it is seen to have none.
            self.connectors.unfollowed.note(name);
            followers.remove(name)
        };
        if let Some(follower) = follower {
            follower.cancel.cancel();
            follower.ended.cancelled().await;
        }
    }
}

/// Keeps since when there has been a problem, until nobody tells of any more.
async fn note_interruptions(mut problem: watch::Receiver<Option<String>>, interrupted: watch::Sender<Option<Instant>>) {
    loop {
        let is_interrupted = problem.borrow_and_update().is_some();
        interrupted.send_if_modified(|since| {
            let changed = since.is_some() != is_interrupted;
            if changed {
                *since = is_interrupted.then(Instant::now);
            }
            changed
        });
        if problem.changed().await.is_err() {
            return;
        }
    }
}

/// The commands that a problem names, as they are to be typed.
pub(crate) fn for_connector(why: &str, name: &str) -> String {
    ["resume", "verify"].iter().fold(why.to_owned(), |why, command| {
        why.replace(&format!("connector {command} NAME"), &format!("connector {command} {name}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_interruption_begins_with_its_first_problem_and_ends_with_the_last() {
        let (problem, problem_out) = watch::channel(None);
        let (interrupted_in, mut interrupted) = watch::channel(None);
        let noting = tokio::spawn(note_interruptions(problem_out, interrupted_in));
        problem.send_replace(Some("connection refused".to_owned()));
        let since = *interrupted.wait_for(Option::is_some).await.expect("it is noted");
        problem.send_replace(Some("no route to host".to_owned()));
        problem.send_replace(None);
        drop(interrupted.wait_for(Option::is_none).await.expect("it is noted"));
        problem.send_replace(Some("connection refused".to_owned()));
        let again = *interrupted.wait_for(Option::is_some).await.expect("it is noted");
        assert!(again > since, "another interruption");
        drop(problem);
        noting.await.expect("it ends");
    }

    #[test]
    fn connectors_have_no_follower_since_the_start_or_since_they_lost_it() {
        let unfollowed = Unfollowed::default();
        assert_eq!(unfollowed.since("shop"), unfollowed.begun);
        unfollowed.note("shop");
        assert!(unfollowed.since("shop") > unfollowed.begun);
        assert_eq!(unfollowed.since("other"), unfollowed.begun);
        unfollowed.forget("shop");
        assert_eq!(unfollowed.since("shop"), unfollowed.begun);
    }

    #[test]
    fn commands_can_be_typed_as_they_are_said() {
        let why = "column NAME: ardent connector resume NAME --sql STATEMENTS";
        assert_eq!(for_connector(why, "shop"), "column NAME: ardent connector resume shop --sql STATEMENTS");
        let told = "table s.t was written anew: ardent connector verify NAME compares them";
        assert_eq!(
            for_connector(told, "shop"),
            "table s.t was written anew: ardent connector verify shop compares them"
        );
    }
}
