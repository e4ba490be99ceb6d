//! What control and the agent say to each other: a specification file, commands on the agent's standard input and events
//! on its standard output, one JSON object a line. The agent ends its Postgres when its standard input is closed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use ardent_types::{Lsn, TenantId, TimelineId};

use crate::addr::ServiceAddr;
use crate::policy::BranchPolicy;
use crate::wal_service::Membership;

/// The role that the agent and control connect to a compute as. No such role exists: the compute library takes it for the
/// bootstrap superuser (role OID 10), whatever that is called on the branch and even if it may not log in. It is as long
/// as a name can be, so that the real name fits in its place; only the user that runs the agent is let in under it.
pub const AGENT_ROLE: &str = "ardent-agent---------------------------------------------------";

/// The databases that a cluster has unless its users have dropped or renamed them, in the order in which they are to be tried by whoever
/// needs a session in any. A lasting session in the first would block CREATE DATABASE; a short one is waited for.
pub const USUAL_DATABASES: [&str; 2] = ["template1", "postgres"];

/// Whether an SQLSTATE with which Postgres refuses a session says that there is no such database (`invalid_catalog_name`), or that it
/// takes no connections (`object_not_in_prerequisite_state`): another one may.
pub fn is_closed_database(sqlstate: &str) -> bool {
    matches!(sqlstate, "3D000" | "55000")
}

/// The setting in which the proxy tells a compute's library, when a session begins, where its client is: address and port as
/// `SocketAddr` writes them. The library believes it only of connections that come from outside of the sandbox.
pub const CLIENT_ADDRESS_SETTING: &str = "ardent.client_address";

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
    /// Who they are, once they were changed.
    #[serde(default)]
    pub members: Membership,
    /// Service token, bound to this timeline, with write rights. For the agent alone.
    pub token: String,
    /// Page service token, bound to this timeline, with read rights: what the connections that backends are given are
    /// authenticated with.
    pub page_token: String,
    /// Run Postgres as this user id and group id; absent: as the agent's own (which must not be root).
    pub run_as: Option<RunAs>,
    /// How Postgres is confined.
    pub sandbox: Sandbox,
    /// Control has been told which roles the branch has, and waits for news only.
    #[serde(default)]
    pub roles_known: bool,
    /// The branch's limits.
    #[serde(default)]
    pub policy: BranchPolicy,
    /// Where the bytes that the policy limits are counted from: the branch point.
    #[serde(default)]
    pub branch_lsn: Lsn,
    /// What control was told last about rows changed.
    #[serde(default)]
    pub usage: Usage,
    /// What it may use of the host.
    #[serde(default)]
    pub limits: ComputeLimits,
    /// Where what the branch runs is recorded; absent: it is not.
    #[serde(default)]
    pub statement_log: Option<StatementLogSpec>,
    /// Extra settings, name to value; they win over ours only where ours don't guard a promise.
    pub settings: BTreeMap<String, String>,
    /// Suspend after this long without activity, in seconds; 0: never.
    pub idle_timeout_s: u64,
    /// How often the lease on what absent pages are read at is renewed, and moved up, in milliseconds; absent: as the agent likes.
    #[serde(default)]
    pub lease_renewal_ms: Option<u64>,
    /// How long that lease holds without being renewed, in milliseconds: the compute ends before then. Absent: as the agent likes.
    #[serde(default)]
    pub lease_ttl_ms: Option<u64>,
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

/// Rows changed, as far as the log was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Rows inserted, updated and deleted below `counted_to`.
    pub rows_changed: u64,
    /// How far it was counted; invalid: nothing was.
    pub counted_to: Lsn,
}

/// A role of a branch, for the proxy to check log-ins with while the branch is asleep.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleReport {
    /// OID: stays when the role is renamed.
    pub oid: u32,
    /// Name.
    pub name: String,
    /// It may log in.
    pub can_login: bool,
    /// Its password is good until then, in microseconds since the Unix epoch; absent: for ever.
    pub valid_until_us: Option<i64>,
    /// `pg_authid.rolpassword`, whatever its form.
    pub password: Option<String>,
}

impl std::fmt::Debug for RoleReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RoleReport").field("oid", &self.oid).field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a compute may use of its host. Absent: no limit but the agent's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeLimits {
    /// Memory of all its processes, in bytes; 0: as much as there is.
    pub memory_bytes: Option<u64>,
    /// Local disk, in bytes; 0: as much as there is.
    pub disk_bytes: Option<u64>,
    /// Processors of all its processes together, in thousandths; 0: as many as there are.
    #[serde(default)]
    pub cpus_milli: Option<u64>,
}

/// Where the log of a branch's statements is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementLogSpec {
    /// The branch's own folder; made if it is not there.
    pub dir: PathBuf,
    /// Bytes that are kept: the oldest go first.
    pub bytes_max: u64,
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
    /// Append to the log of statements what sessions have said up to now. Only to a compute that is ready.
    WriteLog {
        /// Counts these commands.
        number: u64,
    },
    /// Control has taken in the roles with this number.
    RolesTaken {
        /// As in [`ComputeEvent::Roles`].
        number: u64,
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
    /// All roles of the branch: before [`ComputeEvent::Ready`] if control does not know any, and whenever they have changed.
    /// Answered by [`ComputeCommand::RolesTaken`].
    Roles {
        /// Counts these events.
        number: u64,
        /// The roles.
        roles: Vec<RoleReport>,
    },
    /// Answer to [`ComputeCommand::WriteLog`].
    LogWritten {
        /// The command's.
        number: u64,
    },
    /// How many rows were changed, now and then where a policy limits them.
    Usage {
        /// The count.
        usage: Usage,
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
        /// Libraries that the source preloads and this host lacks: it runs without them.
        #[serde(default)]
        missing_libraries: Vec<String>,
    },
    /// The agent was lost, and another has taken its Postgres over: sessions went on. What the one before was asked may not have been heard.
    TakenOver {
        /// Process id of the postmaster as seen from outside the sandbox.
        postmaster_pid: u32,
    },
    /// Absent pages are read at a later LSN from now on: what was pinned before need not be.
    BaseMoved {
        /// The LSN that absent pages are read at.
        base_lsn: Lsn,
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
        /// `no_postgres`, `base_lsn_expired`, `lease_ran_out`, `policy`, `limit`, `invalid`.
        code: String,
        /// What failed, why, what to do.
        message: String,
    },
}
