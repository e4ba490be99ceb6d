//! The compute's folder, as the agent sees it and as Postgres sees it.
//!
//! ```text
//!  <compute_dir>/data          data directory                 /ardent/data in a sandbox
//!               /run           Postgres's Unix socket         /ardent/run
//!               /door          the agent's sockets            /ardent/door
//!               /policy        the branch's limits            /ardent/policy, read-only
//!               /statements    what sessions say they run     /ardent/statements
//!               /postgres.log  what Postgres wrote            (an open file)
//!               /auto.conf     what ALTER SYSTEM wrote
//!               /warm.json     says that data can be started again
//!               /serving.json  for an agent that takes over its Postgres
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
    pub(crate) policy: PathBuf,
    /// Rings of the sessions' records.
    pub(crate) rings: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) warm_marker: PathBuf,
    /// The control groups that were made, for whoever discards the folder when no agent has removed them.
    pub(crate) groups: PathBuf,
    /// What `ALTER SYSTEM` wrote in the last data directory.
    pub(crate) kept_settings: PathBuf,
    pub(crate) memory: PathBuf,
    /// What is known of the Postgres that serves.
    pub(crate) serving: PathBuf,
    pub(crate) library: PathBuf,
}

/// The same things as Postgres sees them.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) data: PathBuf,
    pub(crate) run: PathBuf,
    pub(crate) door: PathBuf,
    pub(crate) policy: PathBuf,
    pub(crate) rings: PathBuf,
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
            policy: compute_dir.join("policy"),
            rings: compute_dir.join("statements"),
            log: compute_dir.join("postgres.log"),
            warm_marker: compute_dir.join("warm.json"),
            groups: compute_dir.join("groups"),
            kept_settings: compute_dir.join("auto.conf"),
            memory: compute_dir.join("agent.json"),
            serving: compute_dir.join("serving.json"),
            library: spec.lib_dir.join(format!("libardent_compute_{}.so", spec.pg_major)),
            compute_dir,
        };
        for socket in [layout.postgres_socket(), layout.door_socket(), layout.roles_socket(), layout.bell_socket()] {
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
            policy: at(&self.policy, "/ardent/policy"),
            rings: at(&self.rings, "/ardent/statements"),
            library: at(&self.library, "/ardent/lib/ardent_compute.so"),
        }
    }

    pub(crate) fn postgres_socket(&self) -> PathBuf {
        self.run.join(format!(".s.PGSQL.{PORT}"))
    }

    pub(crate) fn door_socket(&self) -> PathBuf {
        self.door.join(PAGE_SOCKET)
    }

    /// Sets aside what `ALTER SYSTEM` wrote, before the data directory goes. Only plain files of a sensible size: the folder is
    /// Postgres's, and whoever runs there may have put anything in its place.
    pub(crate) fn keep_settings(&self) {
        use std::io::Read as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.data.join(AUTO_CONF);
        let opened =
            std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path);
        let Ok(file) = opened else { return };
        let plain = file.metadata().is_ok_and(|metadata| metadata.is_file());
        let mut text = String::new();
        if plain
            && file.take(AUTO_CONF_LEN_MAX).read_to_string(&mut text).is_ok()
            && let Err(error) = std::fs::write(&self.kept_settings, text)
        {
            tracing::warn!(%error, "what ALTER SYSTEM wrote is not kept");
        }
    }

    /// Puts what the page server kept where [`Layout::keep_settings`] puts it.
    pub(crate) fn remember_settings(&self, text: Option<&str>) -> Result<(), ComputeError> {
        match text {
            Some(text) => {
                std::fs::write(&self.kept_settings, text).map_err(ComputeError::io("cannot write", &self.kept_settings))
            }
            None => Ok(()),
        }
    }

    pub(crate) fn roles_socket(&self) -> PathBuf {
        self.door.join(ROLES_SOCKET)
    }

    pub(crate) fn bell_socket(&self) -> PathBuf {
        self.door.join(BELL_SOCKET)
    }
}

/// Name of the page socket within the door's folder.
pub(crate) const PAGE_SOCKET: &str = "page.sock";
/// What `ALTER SYSTEM` writes, in the data directory.
pub(crate) const AUTO_CONF: &str = "postgresql.auto.conf";
/// Longest such file that is kept.
const AUTO_CONF_LEN_MAX: u64 = 1 << 20;
/// Name of the socket for news of roles within the door's folder.
pub(crate) const ROLES_SOCKET: &str = "roles.sock";
/// Name of the socket that is told when there is something new in the rings, within the door's folder.
pub(crate) const BELL_SOCKET: &str = "bell.sock";
/// Name of the presence map within the data directory.
pub(crate) const PRESENCE_MAP: &str = "ardent.presence";
