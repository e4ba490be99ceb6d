//! Internal routes, for the proxy.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use ardent_types::{BranchId, ComputeId};

/// Query of `GET /internal/v1/auth`. Unknown branch or role: 404 with [`ErrorReply`], which the proxy must not let the
/// client tell from a wrong password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthQuery {
    /// The branch's name, as routed.
    pub branch: String,
    /// The role.
    pub role: String,
}

/// What the proxy checks a password with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthInfo {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The branch.
    pub branch_id: BranchId,
    /// `SCRAM-SHA-256$4096:salt$stored:server`, as Postgres writes it.
    pub verifier: String,
}

impl fmt::Debug for AuthInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthInfo").field("branch_id", &self.branch_id).finish_non_exhaustive()
    }
}

/// Body of `POST /internal/v1/wake`: answered when the branch's Postgres accepts connections. Any number of calls for one
/// branch share one start. To be called only for clients that have authenticated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeRequest {
    /// The branch's name.
    pub branch: String,
}

/// Where a branch's Postgres is now. Answer to [`WakeRequest`] and to `POST /v1/branches/NAME/wake`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeReply {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The branch.
    pub branch_id: BranchId,
    /// The compute.
    pub compute_id: ComputeId,
    /// Counts this compute's starts: changes when Postgres was started again, so that a kept connection's owner can tell.
    pub incarnation: u64,
    /// Folder with Postgres's Unix socket.
    pub socket_dir: PathBuf,
    /// Port number in the socket's name.
    pub port: u16,
    /// A kept data directory was started again, or Postgres was running already.
    pub warm: bool,
    /// Whether this call found Postgres running.
    pub was_running: bool,
    /// Libraries that production preloads and this host lacks.
    #[serde(default)]
    pub missing_libraries: Vec<String>,
    /// How long this call waited, in milliseconds.
    pub waited_ms: u64,
}
