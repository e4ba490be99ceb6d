//! Computes: one child process per running branch, woken on demand, ended with us.
//!
//! ```text
//!  wake ──► ComputePool ── slot per branch ──► drive task ──► child `ardent agent --spec FILE`
//!  wake ──►      │  (waiters share one start)      │  stdin: commands, stdout: events
//!  suspend ─►    └── watch: starting/running/...◄──┘
//! ```
//!
//! What a compute leaves in its folder goes with its branch (`folder`), or when it is of no use any more, or too much (`warm`).

mod drive;
mod folder;
mod pool;
mod process;
mod warm;

pub use folder::discard_all;
pub(crate) use folder::sweep_discarded;
pub use pool::{ComputePool, PoolConfig, RunningCompute};
pub use process::ProcessIdentity;

pub(crate) use process::end_process;
