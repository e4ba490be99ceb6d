//! One call of a tool: what it may use, and how it tells of itself while it runs.

use std::sync::Arc;
use std::time::Duration;

use rmcp::RoleServer;
use rmcp::model::{ProgressNotificationParam, ProgressToken};
use rmcp::service::{Peer, RequestContext};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::Trouble;
use crate::api::Api;
use crate::failure::Failure;

/// How often a call that takes long says that it is still there: clients give up on those that say nothing.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// Most lines of progress that wait to be sent; more are dropped.
const LINES_MAX: usize = 16;

/// A call.
pub struct Call {
    /// The server, with the rights of whoever calls.
    pub api: Arc<Api>,
    /// Cancelled when the client takes the call back, or goes.
    pub cancelled: CancellationToken,
    /// What must come to its end before the process may go.
    work: TaskTracker,
    peer: Peer<RoleServer>,
    progress: Option<ProgressToken>,
}

/// Takes lines of progress, from any thread.
#[derive(Clone)]
pub struct Progress(mpsc::Sender<String>);

impl Progress {
    /// Says how far it is. Dropped if the client does not keep up.
    pub fn say(&self, line: &str) {
        let _dropped = self.0.try_send(line.to_owned());
    }
}

impl Call {
    /// A call with what its request says.
    pub fn new(api: Api, context: &RequestContext<RoleServer>, work: &TaskTracker) -> Self {
        Call {
            api: Arc::new(api),
            cancelled: context.ct.clone(),
            work: work.clone(),
            peer: context.peer.clone(),
            progress: context.meta.get_progress_token(),
        }
    }

    /// Does what blocks. If the call is taken back this answers at once, and what the server began goes on there.
    pub async fn blocking<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(&Api, &Progress) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Trouble> {
        let (progress, said) = mpsc::channel(LINES_MAX);
        let (api, progress) = (Arc::clone(&self.api), Progress(progress));
        let working = tokio::task::spawn_blocking(move || work(&api, &progress));
        tokio::select! {
            done = self.followed(what, working, said) => done,
            () = self.cancelled.cancelled() => Err(Trouble::Cancelled),
        }
    }

    /// Does what blocks and must come to its end; it looks itself at whether the call was taken back. The process waits for it.
    pub async fn to_its_end<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(&Api, &Progress) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Trouble> {
        let (progress, said) = mpsc::channel(LINES_MAX);
        let (api, progress) = (Arc::clone(&self.api), Progress(progress));
        let working = self.work.spawn_blocking(move || work(&api, &progress));
        self.followed(what, working, said).await
    }

    async fn followed<T>(
        &self,
        what: &str,
        mut working: JoinHandle<Result<T, Failure>>,
        mut said: mpsc::Receiver<String>,
    ) -> Result<T, Trouble> {
        let (mut ticks, mut number, mut seconds) = (tokio::time::interval(SIGN_OF_LIFE), 0_u32, 0);
        ticks.tick().await;
        loop {
            let line = tokio::select! {
                done = &mut working => {
                    return match done {
                        Ok(done) => done.map_err(Trouble::Failure),
                        Err(error) => Err(Failure::local("the call came to no end", &error).into()),
                    };
                }
                Some(line) = said.recv() => line,
                _ = ticks.tick() => {
                    seconds += SIGN_OF_LIFE.as_secs();
                    format!("{what}, for {seconds} s")
                }
            };
            number += 1;
            self.notify(number, line).await;
        }
    }

    async fn notify(&self, number: u32, line: String) {
        let Some(token) = &self.progress else { return };
        let progress = ProgressNotificationParam::new(token.clone(), f64::from(number)).with_message(line);
        // Whoever does not hear this does not hear the answer either.
        let _gone = self.peer.notify_progress(progress).await;
    }
}
