//! One `ardent up` with everything of its own.

use std::fs::{self, File, Permissions};
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::processes::{Process, descendants, wait_until};

/// Longest wait for an orderly end.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// A command of ours that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit code.
    pub code: i32,
    /// Standard output, without the last newline.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

struct Server {
    child: Child,
    // Held open: a server that has something to say must not meet a closed pipe.
    _stdout: BufReader<ChildStdout>,
}

/// A data directory, a user's configuration and ports, and the `ardent up` that runs on them.
pub struct House {
    root: TempDir,
    ports: (u16, u16),
    server: Option<Server>,
}

impl House {
    /// Starts `ardent up` on a new folder and waits until it is ready.
    pub fn start() -> House {
        let root = tempfile::Builder::new().prefix("ardent-house-").tempdir().expect("a temp folder can be made");
        // Computes run as other users and must be able to go through.
        fs::set_permissions(root.path(), Permissions::from_mode(0o711)).expect("own folders can be opened");
        let mut house = House { root, ports: (free_port(), free_port()), server: None };
        house.up();
        house
    }

    /// Starts `ardent up` again on the same folder and ports.
    pub fn up(&mut self) {
        assert!(self.server.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("the log can be opened");
        let (listen, api) = self.ports;
        let mut child = self
            .command(&self.up_arguments(listen, api))
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the program can be run");
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        while !line.starts_with("ready") {
            line.clear();
            let read = stdout.read_line(&mut line).expect("a pipe can be read");
            if read == 0 {
                let status = child.wait();
                panic!("ardent up ended ({status:?}): {}", self.log());
            }
        }
        self.server = Some(Server { child, _stdout: stdout });
    }

    /// The arguments that start this house's server, with other ports.
    pub fn up_arguments(&self, listen: u16, api: u16) -> Vec<String> {
        ["up", "--data-dir", &self.data_dir().to_string_lossy()]
            .into_iter()
            .map(str::to_owned)
            .chain(["--listen".to_owned(), format!("127.0.0.1:{listen}")])
            .chain(["--api-listen".to_owned(), format!("127.0.0.1:{api}")])
            .collect()
    }

    /// Where branches and the API are reached.
    pub fn ports(&self) -> (u16, u16) {
        self.ports
    }

    /// Everything that the server keeps.
    pub fn data_dir(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// Runs a command to its end.
    pub fn ardent(&self, arguments: &[&str]) -> Finished {
        let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
        let output = self.command(&arguments).output().expect("the program can be run");
        Finished {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command that must succeed; its standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let finished = self.ardent(arguments);
        assert_eq!(finished.code, 0, "ardent {arguments:?}: {}\nserver's log: {}", finished.stderr, self.log());
        finished.stdout
    }

    /// Runs a command that must succeed, with `--json`.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[&["--json"], arguments].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("ardent {arguments:?}: {error}: {text}"))
    }

    /// Copies a production server and follows it; its root branch is `name`.
    pub fn connect(&self, name: &str, url: &str) {
        self.ok(&["connector", "create", "postgresql", url, "--name", name, "--fast"]);
    }

    /// Makes a branch; its connection string.
    pub fn branch(&self, name: &str, from: &str) -> String {
        self.ok(&["branch", "create", name, "--from", from, "--print-url"])
    }

    /// Removes the folders of computes, all of which are at rest: what wakes next starts cold.
    pub fn throw_computes_away(&self) {
        assert_eq!(self.compute_processes(), [], "computes run");
        for entry in fs::read_dir(self.data_dir().join("computes")).expect("the folder can be listed") {
            let path = entry.expect("the folder can be listed").path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.expect("a compute at rest can be thrown away");
        }
    }

    /// The processes of computes.
    pub fn compute_processes(&self) -> Vec<Process> {
        descendants(self.pid())
    }

    /// Kills the server alone, as a crash would, and waits until everything below it has noticed.
    pub fn kill_server(&mut self) {
        let below = self.compute_processes();
        let mut server = self.server.take().expect("it runs");
        server.child.kill().expect("a child can be killed");
        server.child.wait().expect("a child can be waited for");
        wait_until("the computes of a killed server end", 60, || {
            below.iter().all(|process| !process.runs()).then_some(())
        });
    }

    /// Stops the server in order.
    pub fn stop(&mut self) {
        let mut server = self.server.take().expect("it runs");
        // An error means that it has ended, which the wait notices.
        let _ = kill(pid_of(&server.child), Signal::SIGTERM);
        let deadline = Instant::now() + STOP_DEADLINE;
        let status = wait_until("ardent up stops", STOP_DEADLINE.as_secs(), || {
            assert!(Instant::now() < deadline, "{}", self.log());
            server.child.try_wait().expect("a child can be waited for")
        });
        assert!(status.success(), "ardent up ended with {status}: {}", self.log());
    }

    /// What the server logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.root.path().join("up.log")
    }

    fn pid(&self) -> i32 {
        pid_of(&self.server.as_ref().expect("it runs").child).as_raw()
    }

    fn command(&self, arguments: &[String]) -> Command {
        let mut command = clean_command(self.root.path());
        command.args(arguments);
        command
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        let below = descendants(pid_of(&server.child).as_raw());
        // Errors mean that it has ended.
        let _ = kill(pid_of(&server.child), Signal::SIGTERM);
        let deadline = Instant::now() + STOP_DEADLINE;
        while matches!(server.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = server.child.kill();
        let _ = server.child.wait();
        for process in below {
            process.kill();
        }
    }
}

/// The program, run in `root` with its configuration there, and with nothing of this process's own configuration.
pub(crate) fn clean_command(root: &Path) -> Command {
    let mut command = Command::new(program());
    for (name, _) in std::env::vars_os() {
        let bytes = name.as_encoded_bytes();
        if bytes.starts_with(b"PG") || bytes.starts_with(b"ARDENT_") {
            command.env_remove(name);
        }
    }
    command
        // No .ardent file of another folder is found from here.
        .current_dir(root)
        .env("HOME", root)
        .env("XDG_CONFIG_HOME", root.join("config"))
        .stdin(Stdio::null());
    command
}

/// The program: `$ARDENT_BIN`, or what cargo built beside this test.
fn program() -> PathBuf {
    let path = std::env::var_os("ARDENT_BIN").map_or_else(beside_this_test, PathBuf::from);
    assert!(path.exists(), "{} is missing: run cargo build --bin ardent (or make test)", path.display());
    path
}

fn beside_this_test() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a file");
    // target/PROFILE/deps/TEST
    let profile = test.parent().and_then(Path::parent).expect("cargo puts tests two folders deep");
    profile.join("ardent")
}

pub(crate) fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("process ids fit"))
}

/// A port that nobody listens on at this moment.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a local port can be bound");
    listener.local_addr().expect("a bound socket has an address").port()
}
