//! The threads that sessions run on. A session stays on one thread from its first byte to its last.
//!
//! On a runtime that shares its tasks between threads, most of what a relayed query costs is threads waking one another.
//! Here a thread that wakes up finds all its sessions that have something to do, passes their bytes on, and sleeps.

use std::future::Future;
use std::io;
use std::net::TcpStream;
use std::num::NonZero;
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// All of them. Dropped, it ends every session.
#[derive(Debug)]
pub(crate) struct SessionThreads {
    threads: Vec<SessionThread>,
    cancel: CancellationToken,
    _end: DropGuard,
}

#[derive(Debug)]
struct SessionThread {
    runtime: Handle,
    sessions: TaskTracker,
    ended: oneshot::Receiver<()>,
    thread: JoinHandle<()>,
}

impl SessionThreads {
    /// One for every two cores: the other cores are the computes'.
    pub(crate) fn start() -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let cancel = CancellationToken::new();
        let end = cancel.clone().drop_guard();
        let threads = (0..cores.div_ceil(2)).map(|number| SessionThread::start(number, &cancel));
        let threads = threads.collect::<io::Result<_>>()?;
        Ok(SessionThreads { threads, cancel, _end: end })
    }

    /// Runs `session` with the connection on the thread that has the fewest.
    pub(crate) fn run<F>(
        &self,
        tcp: tokio::net::TcpStream,
        session: impl FnOnce(tokio::net::TcpStream) -> F + Send + 'static,
    ) -> io::Result<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let tcp: TcpStream = tcp.into_std()?;
        let Some(chosen) = self.threads.iter().min_by_key(|thread| thread.sessions.len()) else { return Ok(()) };
        let cancel = self.cancel.clone();
        let task = async move {
            // Registered with the thread that it will live on.
            match tokio::net::TcpStream::from_std(tcp) {
                Ok(tcp) => tokio::select! {
                    () = session(tcp) => {}
                    () = cancel.cancelled() => {}
                },
                Err(error) => tracing::warn!(%error, "cannot serve a connection"),
            }
        };
        chosen.sessions.spawn_on(task, &chosen.runtime);
        Ok(())
    }

    /// Ends all sessions and waits for them.
    pub(crate) async fn shut_down(self) {
        self.cancel.cancel();
        for SessionThread { ended, thread, .. } in self.threads {
            // An error means that the thread panicked; joining says so.
            let _ = ended.await;
            if thread.join().is_err() {
                tracing::error!("a thread of the proxy's panicked");
            }
        }
    }
}

impl SessionThread {
    fn start(number: usize, cancel: &CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let sessions = TaskTracker::new();
        let (end, ended) = oneshot::channel();
        let (cancel, tracker) = (cancel.clone(), sessions.clone());
        let body = move || {
            runtime.block_on(async {
                cancel.cancelled().await;
                tracker.close();
                tracker.wait().await;
            });
            // The receiver is gone if nobody waits for the end.
            let _ = end.send(());
        };
        let thread = thread::Builder::new().name(format!("proxy-{number}")).spawn(body)?;
        Ok(SessionThread { runtime: handle, sessions, ended, thread })
    }
}
