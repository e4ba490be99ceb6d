//! What a logical connector connects, and what it needs of the branch that it writes.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use ardent_api::control::{ErrorInfo, LogicalOptions};

use crate::config::ConnectorConfig;

/// One logical connector.
#[derive(Clone, Debug)]
pub struct LogicalConfig {
    /// Where production and storage are.
    pub connector: ConnectorConfig,
    /// What is copied.
    pub options: LogicalOptions,
    /// Folders of the server programs that are here, by major.
    pub programs: Arc<BTreeMap<u32, PathBuf>>,
}

/// The programs of a major and of those after it, whose `pg_dump` works as well; in this order.
pub(crate) fn program_folders(programs: &BTreeMap<u32, PathBuf>, major: u32) -> Vec<PathBuf> {
    programs.range(major..).map(|(_, folder)| folder.clone()).collect()
}

/// Where the root branch's Postgres listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootAt {
    /// Folder of its socket.
    pub socket_dir: PathBuf,
    /// The number in the socket's name.
    pub port: u16,
}

/// A future that an implementation of [`RootBranch`] gives.
pub type RootFuture<'a> = Pin<Box<dyn Future<Output = Result<RootAt, ErrorInfo>> + Send + 'a>>;

/// The root branch, as a logical connector uses it: its Postgres, and what is to be remembered over restarts.
pub trait RootBranch: Send + Sync {
    /// Its Postgres, started if need be.
    fn wake(&self) -> RootFuture<'_>;
    /// What [`RootBranch::save`] was given last.
    fn saved(&self) -> Result<Option<String>, ErrorInfo>;
    /// Remembers how far the import is. Durable when it returns.
    fn save(&self, state: &str) -> Result<(), ErrorInfo>;
    /// What [`RootBranch::save_script`] was given last.
    fn script(&self) -> Result<String, ErrorInfo>;
    /// Remembers what is to be run when the rows are there. Durable when it returns.
    fn save_script(&self, script: &str) -> Result<(), ErrorInfo>;
}
