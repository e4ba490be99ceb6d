//! What control and the agent say to each other: a specification file, commands on the agent's standard input and events
//! on its standard output, one JSON object a line. The agent ends its Postgres when its standard input is closed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use ardent_types::{Lsn, TenantId, TimelineId};

use crate::addr::ServiceAddr;

/// Everything an agent needs to run one compute. Kept in a file with mode 0600: it holds the token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeSpec {
    /// Tenant.
    pub tenant: TenantId,
    /// The timeline to write.
    pub timeline: TimelineId,
    /// The branch's name, for messages and `cluster_name`.
    pub branch: String,
    /// Major version of Postgres.
    pub pg_major: u32,
    /// Folder with the server programs (`postgres`); absent: searched as `docs/operations.md` says.
    pub pg_bin_dir: Option<PathBuf>,
    /// A folder of the agent's own: data directory, sockets, logs. Kept over a suspend for a warm wake.
    pub compute_dir: PathBuf,
    /// Where the extension library is unpacked; readable by the Postgres user.
    pub lib_dir: PathBuf,
    /// Page server.
    pub pageserver: ServiceAddr,
    /// Safekeepers, one or more.
    pub safekeepers: Vec<ServiceAddr>,
    /// Service token, bound to this timeline, with write rights.
    pub token: String,
    /// Run Postgres as this user id and group id; absent: as the agent's own (which must not be root).
    pub run_as: Option<RunAs>,
    /// Name of the bootstrap superuser (role OID 10), as preflight found it; absent: `postgres`. The agent connects as it.
    #[serde(default)]
    pub superuser: Option<String>,
    /// How Postgres is confined.
    pub sandbox: Sandbox,
    /// Read-only: `default_transaction_read_only` is forced and no WAL is accepted but what maintenance writes. Used for
    /// the short-lived compute at a branch point.
    pub read_only: bool,
    /// Extra settings, name to value; they win over ours only where ours don't guard a promise.
    pub settings: BTreeMap<String, String>,
    /// Suspend after this long without activity, in seconds; 0: never.
    pub idle_timeout_s: u64,
}

impl std::fmt::Debug for ComputeSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ComputeSpec")
            .field("tenant", &self.tenant)
            .field("timeline", &self.timeline)
            .field("branch", &self.branch)
            .field("compute_dir", &self.compute_dir)
            .finish_non_exhaustive()
    }
}

/// An unprivileged identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAs {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// How a compute's Postgres is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sandbox {
    /// bubblewrap: own mount, pid, ipc and network namespaces.
    Bubblewrap,
    /// None: the user said `--no-sandbox`.
    None,
}

/// A line on the agent's standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum ComputeCommand {
    /// Stop cleanly within the deadline, else at once and throw the data directory away.
    Stop {
        /// Deadline in milliseconds.
        deadline_ms: u64,
    },
}

/// A line on the agent's standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ComputeEvent {
    /// A step of the start, for logs and for people who wait.
    Progress {
        /// What is being done.
        step: String,
        /// Milliseconds since the agent started.
        elapsed_ms: u64,
    },
    /// Postgres accepts connections.
    Ready {
        /// Folder with the Unix socket, for `host=`.
        socket_dir: PathBuf,
        /// Port number in the socket's name.
        port: u16,
        /// The LSN that absent pages are read at.
        base_lsn: Lsn,
        /// Process id of the postmaster as seen from outside the sandbox.
        postmaster_pid: u32,
        /// Whether a kept data directory was started again.
        warm: bool,
    },
    /// The idle time has passed; the agent is stopping on its own.
    Idle,
    /// Postgres has stopped; the last line.
    Stopped {
        /// The data directory may be started again.
        clean: bool,
        /// End of the WAL that a quorum holds.
        end_lsn: Option<Lsn>,
    },
    /// The compute could not start or could not go on; the last line.
    Failed {
        /// A word for scripts: `fenced`, `pageserver_unavailable`, `safekeeper_unavailable`, `postgres_failed`, `crashed`, `no_sandbox`,
        /// `no_postgres`, `base_lsn_expired`, `invalid`.
        code: String,
        /// What failed, why, what to do.
        message: String,
    },
}
