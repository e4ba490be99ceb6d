//! The compute's folder, as the agent sees it and as Postgres sees it.
//!
//! ```text
//!  <compute_dir>/data          data directory                 /ardent/data in a sandbox
//!               /run           Postgres's Unix socket         /ardent/run
//!               /door          the agent's page socket        /ardent/door
//!               /postgres.log  what Postgres wrote            (an open file)
//!               /warm.json     says that data can be started again
//!               /agent.json    what the agent remembers about this compute
//!               /trash.N       data directories being removed
//! ```

use std::path::{Path, PathBuf};

use ardent_api::compute::{ComputeSpec, Sandbox};

use crate::error::ComputeError;

/// The port in the name of Postgres's Unix socket.
pub(crate) const PORT: u16 = 5432;
/// Longest path of a Unix socket on Linux, without the closing zero byte.
const SOCKET_PATH_LEN_MAX: usize = 107;

/// Paths outside the sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) compute_dir: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) run: PathBuf,
    pub(crate) door: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) warm_marker: PathBuf,
    pub(crate) memory: PathBuf,
    pub(crate) library: PathBuf,
}

/// The same things as Postgres sees them.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) data: PathBuf,
    pub(crate) run: PathBuf,
    pub(crate) door: PathBuf,
    pub(crate) library: PathBuf,
}

impl Layout {
    pub(crate) fn new(spec: &ComputeSpec) -> Result<Self, ComputeError> {
        let compute_dir = std::path::absolute(&spec.compute_dir)
            .map_err(ComputeError::io("cannot resolve the compute's folder", &spec.compute_dir))?;
        let layout = Layout {
            data: compute_dir.join("data"),
            run: compute_dir.join("run"),
            door: compute_dir.join("door"),
            log: compute_dir.join("postgres.log"),
            warm_marker: compute_dir.join("warm.json"),
            memory: compute_dir.join("agent.json"),
            library: spec.lib_dir.join(format!("libardent_compute_{}.so", spec.pg_major)),
            compute_dir,
        };
        for socket in [layout.postgres_socket(), layout.door_socket()] {
            if socket.as_os_str().len() > SOCKET_PATH_LEN_MAX {
                return Err(ComputeError::Invalid(format!(
                    "{} is longer than a Unix socket's path may be ({SOCKET_PATH_LEN_MAX} bytes): choose a shorter data folder",
                    socket.display()
                )));
            }
        }
        if !layout.library.is_file() {
            return Err(ComputeError::Invalid(format!(
                "the compute library {} is missing: this installation has none for Postgres {}",
                layout.library.display(),
                spec.pg_major
            )));
        }
        Ok(layout)
    }

    /// Postgres's paths under `sandbox`.
    pub(crate) fn view(&self, sandbox: Sandbox) -> View {
        let at = |outside: &Path, inside: &str| match sandbox {
            Sandbox::Bubblewrap => PathBuf::from(inside),
            Sandbox::None => outside.to_owned(),
        };
        View {
            data: at(&self.data, "/ardent/data"),
            run: at(&self.run, "/ardent/run"),
            door: at(&self.door, "/ardent/door"),
            library: at(&self.library, "/ardent/lib/ardent_compute.so"),
        }
    }

    pub(crate) fn postgres_socket(&self) -> PathBuf {
        self.run.join(format!(".s.PGSQL.{PORT}"))
    }

    pub(crate) fn door_socket(&self) -> PathBuf {
        self.door.join(PAGE_SOCKET)
    }
}

/// Name of the page socket within the door's folder.
pub(crate) const PAGE_SOCKET: &str = "page.sock";
/// Name of the presence map within the data directory.
pub(crate) const PRESENCE_MAP: &str = "ardent.presence";
