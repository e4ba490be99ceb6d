//! Several sessions on the root that run statements side by side.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use tokio_postgres::Client;

use crate::logical::config::{RootAt, RootBranch};
use crate::logical::error::LogicalError;
use crate::logical::schema;
use crate::logical::session::connect_root;

/// Most sessions that work at the same time: each may sort in memory of its own, of which a compute may not have much.
const SESSIONS_MAX: usize = 4;

/// What became of a statement: what was left out because of it, each with why.
pub(crate) type Outcome = Result<Vec<String>, LogicalError>;

/// Sessions with the same settings; made when there is something to do for them.
pub(crate) struct RootSessions {
    at: RootAt,
    database: String,
    settings: Vec<String>,
    clients: Vec<Arc<Client>>,
}

impl RootSessions {
    /// None yet, on the root's Postgres, which is woken.
    pub async fn new(branch: &Arc<dyn RootBranch>, database: &str) -> Result<RootSessions, LogicalError> {
        let at = branch.wake().await.map_err(LogicalError::Branch)?;
        Ok(RootSessions { at, database: database.to_owned(), settings: Vec::new(), clients: Vec::new() })
    }

    /// Makes a setting in all of them, and in those that are made later.
    pub async fn set(&mut self, setting: &str) -> Result<(), LogicalError> {
        for client in &self.clients {
            schema::run(client, setting, &mut Vec::new()).await?;
        }
        self.settings.push(setting.to_owned());
        Ok(())
    }

    /// Runs statements that do not depend on each other, and tells of each that has ended. What became of them, in their order, up to
    /// the first that failed and those that ran beside it: none is begun after that, and none is left running.
    pub async fn run(
        &mut self,
        statements: &[String],
        tell: &(impl Fn() + Sync),
    ) -> Result<Vec<Outcome>, LogicalError> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        while self.clients.len() < statements.len().min(processors).min(SESSIONS_MAX) {
            let client = connect_root(&self.at, &self.database).await?;
            for setting in &self.settings {
                schema::run(&client, setting, &mut Vec::new()).await?;
            }
            self.clients.push(client);
        }
        let (next, has_failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let workers = self.clients.iter().map(|client| work(client, statements, &next, &has_failed, tell));
        let mut ended: Vec<(usize, Outcome)> = join_all(workers).await.into_iter().flatten().collect();
        ended.sort_by_key(|(index, _)| *index);
        Ok(ended.into_iter().map(|(_, outcome)| outcome).collect())
    }
}

async fn work(
    client: &Client,
    statements: &[String],
    next: &AtomicUsize,
    has_failed: &AtomicBool,
    tell: &(impl Fn() + Sync),
) -> Vec<(usize, Outcome)> {
    let mut ended = Vec::new();
    while !has_failed.load(Ordering::Relaxed) {
        let index = next.fetch_add(1, Ordering::Relaxed);
        let Some(statement) = statements.get(index) else { break };
        let mut left_out = Vec::new();
        let ran = schema::run(client, statement, &mut left_out).await;
        if ran.is_err() {
            has_failed.store(true, Ordering::Relaxed);
        }
        tell();
        ended.push((index, ran.map(|()| left_out)));
    }
    ended
}
