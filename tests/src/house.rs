//! One `ardent up` with everything of its own.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use ardent_test_pg::{bin_dir_of, test_major};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown, geteuid};
use serde_json::Value;
use tempfile::TempDir;

use crate::mcp::Mcp;
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

impl Finished {
    pub(crate) fn of(output: Output) -> Finished {
        Finished {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Checks the exit code, and that the message has these words.
    #[track_caller]
    pub fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {}", self.stderr);
        }
    }
}

/// A command of ours that runs.
#[derive(Debug)]
pub struct Background {
    child: Child,
}

impl Background {
    /// Whether it runs still.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Its standard output, to be read while it runs; what is read here is not in [`Finished`].
    pub fn output(&mut self) -> BufReader<ChildStdout> {
        BufReader::new(self.child.stdout.take().expect("it is piped, and nobody has it"))
    }

    /// Its standard error, in the same way.
    pub fn errors(&mut self) -> BufReader<ChildStderr> {
        BufReader::new(self.child.stderr.take().expect("it is piped, and nobody has it"))
    }

    /// The most memory that it has held so far, in bytes.
    pub fn memory_peak_bytes(&self) -> u64 {
        memory_peak_bytes(self.child.id())
    }

    /// Presses Ctrl-C.
    pub fn interrupt(&self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("process ids fit"));
        kill(pid, Signal::SIGINT).expect("a child can be signalled");
    }

    /// Kills it, as a crash would.
    pub fn kill(&self) {
        kill(pid_of(&self.child), Signal::SIGKILL).expect("a child can be signalled");
    }

    /// Waits for its end.
    pub fn finish(self) -> Finished {
        Finished::of(self.child.wait_with_output().expect("a child can be waited for"))
    }
}

/// The most memory that a process has held so far.
fn memory_peak_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    number.expect("Linux says so in kB") << 10
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
    /// More arguments of `ardent up`.
    arguments: Vec<String>,
    /// More of the environment of every command.
    environment: Vec<(String, String)>,
    server: Option<Server>,
    program: PathBuf,
    /// Who runs it, if not the one who tests.
    user: Option<User>,
    /// Size of the file system that the object store is on, if it has one of its own.
    store_bytes: Option<u64>,
}

impl House {
    /// Starts `ardent up` on a new folder and waits until it is ready.
    pub fn start() -> House {
        let mut house = House::prepare();
        house.up();
        house
    }

    /// The same with an object store that has room for so many bytes, and is gone when the server stops.
    pub fn start_with_store_of(bytes: u64) -> House {
        let mut house = House::prepare();
        house.store_bytes = Some(bytes);
        house.up();
        house
    }

    /// One for a user who may not do everything: permissions of files count. In a chroot without a sandbox.
    pub fn prepare_unprivileged() -> House {
        let mut house = House::prepare();
        if geteuid().is_root() {
            let user = User::from_name("postgres").expect("the user database can be read");
            let user = user.expect("tests run as root need a user `postgres`: install postgresql-15");
            chown(house.root.path(), Some(user.uid), Some(user.gid)).expect("root can change owners");
            // Where the program lies that user may not be allowed to go.
            let copy = house.root.path().join("ardent");
            fs::copy(&house.program, &copy).expect("the program can be copied");
            (house.program, house.user) = (copy, Some(user));
            // There the kernel makes no user namespaces.
            if is_chroot() {
                house = house.with_arguments(&["--no-sandbox"]);
            }
        }
        house
    }

    /// A new folder, on which nothing runs yet. It knows the servers of the major that is tested.
    pub fn prepare() -> House {
        let house = House {
            root: own_folder(),
            ports: free_ports(),
            arguments: Vec::new(),
            environment: Vec::new(),
            server: None,
            program: program(),
            user: None,
            store_bytes: None,
        };
        match test_major() {
            15 => house,
            major => house.with_server_of(major).with_clients(),
        }
    }

    /// With a `pg_dump` that the servers of the tested major do not refuse, before all others.
    fn with_clients(self) -> House {
        let dump = ardent_test_pg::program("pg_dump");
        let folder = dump.parent().expect("a program is in a folder").to_owned();
        let others = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(std::iter::once(folder).chain(std::env::split_paths(&others)));
        let path = path.expect("folders of programs can be listed").into_string().expect("they have plain names");
        self.with_environment("PATH", &path)
    }

    /// With the servers of another major beside Debian's.
    #[must_use]
    pub fn with_server_of(self, major: u32) -> House {
        let folder = bin_dir_of(major);
        self.with_arguments(&["--pg-bin", &format!("{major}={}", folder.display())])
    }

    /// With more arguments of `ardent up`.
    #[must_use]
    pub fn with_arguments(mut self, arguments: &[&str]) -> House {
        self.arguments.extend(arguments.iter().map(|&word| word.to_owned()));
        self
    }

    /// With more in the environment of every command.
    #[must_use]
    pub fn with_environment(mut self, name: &str, value: &str) -> House {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts `ardent up` again on the same folder and ports.
    pub fn up(&mut self) {
        assert!(self.server.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("the log can be opened");
        let (listen, api) = self.ports;
        let mut child = self
            .server_command(&self.up_arguments(listen, api))
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

    /// The arguments that start this house's server, with other ports. What is deleted is gone at once, unless the test says
    /// otherwise: so that it can look at what is left.
    pub fn up_arguments(&self, listen: u16, api: u16) -> Vec<String> {
        let is_said = self.arguments.iter().any(|argument| argument == "--keep-deleted");
        let for_good = (!is_said).then_some(["--keep-deleted", "never"]);
        ["up", "--data-dir", &self.data_dir().to_string_lossy()]
            .into_iter()
            .map(str::to_owned)
            .chain(["--listen".to_owned(), format!("127.0.0.1:{listen}")])
            .chain(["--api-listen".to_owned(), format!("127.0.0.1:{api}")])
            .chain(for_good.into_iter().flatten().map(str::to_owned))
            .chain(self.arguments.iter().cloned())
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
        Finished::of(self.command(&arguments).output().expect("the program can be run"))
    }

    /// What the shell of whoever uses it would complete a line to, by the script that the command prints.
    pub fn completed(&self, words: &[&str]) -> Vec<String> {
        const PRESS: &str = r#"source <(ardent completions bash) && COMP_WORDS=("$@") && COMP_CWORD=$(($# - 1)) && COMP_TYPE=9 &&
            _clap_complete_ardent ardent "${@: -1}" "${@: -2:1}" && printf '%s\n' "${COMPREPLY[@]}""#;
        let mut command = clean_command(Path::new("bash"), self.root.path());
        let folder = self.program.parent().expect("a program is in a folder").display().to_string();
        command.env("PATH", format!("{folder}:/usr/bin:/bin")).args(["-c", PRESS, "bash"]).args(words);
        let finished = Finished::of(command.output().expect("bash can be run"));
        assert_eq!((finished.code, finished.stderr.as_str()), (0, ""), "{words:?}: {finished:?}");
        finished.stdout.lines().filter(|line| !line.is_empty()).map(|line| line.trim_end().to_owned()).collect()
    }

    /// Starts a command and does not wait for it.
    pub fn background(&self, arguments: &[&str]) -> Background {
        let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
        let mut command = self.command(&arguments);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program can be run");
        Background { child }
    }

    /// The program that commands run.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The token of the user who is logged in.
    pub fn token(&self) -> String {
        let path = self.root.path().join("config/ardent/config.json");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let config: Value = serde_json::from_str(&text).expect("it is JSON");
        config["token"].as_str().expect("somebody is logged in").to_owned()
    }

    /// Runs another program to its end, with this house's configuration for every command of ours that it starts.
    pub fn other(&self, program: &str, arguments: &[&str]) -> Finished {
        let mut command = clean_command(Path::new(program), self.root.path());
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        Finished::of(command.output().expect("the program can be run"))
    }

    /// Starts `ardent mcp` with more arguments. `answer` is what its user says to every question; without one it has no user.
    pub fn mcp(&self, arguments: &[&str], answer: Option<Value>) -> Mcp {
        let arguments: Vec<String> = ["mcp"].iter().chain(arguments).map(|&word| word.to_owned()).collect();
        Mcp::start(self.command(&arguments), answer)
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
            let remove = || if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            // No process is left, but the server may be putting something down of it at this moment.
            let removed = wait_until("a compute's folder stays empty", 10, || match remove() {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => None,
                removed => Some(removed),
            });
            removed.expect("a compute at rest can be thrown away");
        }
    }

    /// The timelines that the page server and the safekeeper have files of, as `ROLE/TENANT/TIMELINE`, sorted.
    pub fn timelines(&self) -> Vec<String> {
        let mut found = Vec::new();
        for role in ["pageserver/store/timelines", "safekeeper"] {
            for tenant in folders(&self.data_dir().join(role)) {
                let timelines = folders(&tenant).into_iter().filter(|path| holds_a_file(path));
                found.extend(timelines.filter_map(|path| {
                    let below = path.strip_prefix(self.data_dir()).ok()?;
                    Some(below.to_string_lossy().into_owned())
                }));
            }
        }
        found.sort();
        found
    }

    /// Bytes on disk of everything that the server keeps but control's database: SQLite's journal is as long as it once had to be.
    pub fn disk_bytes(&self) -> u64 {
        let on_disk = |file: &Metadata| file.blocks() * 512;
        let database = ["control.db", "control.db-wal", "control.db-shm"];
        let of_database = database.iter().filter_map(|name| fs::metadata(self.data_dir().join(name)).ok());
        bytes_below(&self.data_dir(), on_disk).saturating_sub(of_database.map(|file| on_disk(&file)).sum())
    }

    /// Bytes of a branch's own objects in the page server's store.
    pub fn stored_bytes(&self, branch: &str) -> u64 {
        let timeline = self.json(&["branch", "info", branch])["timeline_id"].as_str().expect("a timeline").to_owned();
        let store = self.data_dir().join("pageserver/store/timelines");
        folders(&store).iter().map(|tenant| bytes_below(&tenant.join(&timeline), Metadata::len)).sum()
    }

    /// The processes of computes.
    pub fn compute_processes(&self) -> Vec<Process> {
        descendants(self.pid())
    }

    /// Kills the first process of computes that is `wanted`, and waits until it is gone.
    pub fn kill_one(&self, what: &str, wanted: impl Fn(&Process) -> bool) {
        let found = wait_until(what, 60, || self.compute_processes().into_iter().find(|process| wanted(process)));
        found.kill();
        wait_until("it is gone", 60, || (!found.runs()).then_some(()));
    }

    /// Kills the server alone, as a crash would, and waits until everything below it has noticed.
    pub fn kill_server(&mut self) {
        // It does nothing more from here on, whatever finding the others takes.
        kill(Pid::from_raw(self.pid()), Signal::SIGSTOP).expect("a child can be stopped");
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

    /// The most memory that the server's own process has held so far, in bytes.
    pub fn memory_peak_bytes(&self) -> u64 {
        memory_peak_bytes(self.pid().unsigned_abs())
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

    fn server_command(&self, arguments: &[String]) -> Command {
        let Some(bytes) = self.store_bytes else { return self.command(arguments) };
        let store = self.data_dir().join("pageserver/store");
        if is_chroot() {
            return self.in_chroot_with_store_of(bytes, &store, arguments);
        }
        // In a mount namespace of its own; bubblewrap becomes the program.
        let mut command = clean_command(Path::new("bwrap"), self.root.path());
        command.args(["--dev-bind", "/", "/", "--size", &bytes.to_string(), "--tmpfs"]).arg(store);
        command.arg("--").arg(&self.program).args(arguments);
        command
    }

    /// The same where bubblewrap can make no root: a chroot, in which tests are run by root.
    fn in_chroot_with_store_of(&self, bytes: u64, store: &Path, arguments: &[String]) -> Command {
        // The folder is made a mount of its own first: what is mounted in that is seen nowhere else.
        let script = "mkdir -p \"$1\" && mount --bind \"$1\" \"$1\" && mount --make-private \"$1\" && mount -t tmpfs -o \"size=$2\" tmpfs \"$1\" && shift 2 && exec \"$@\"";
        let mut command = clean_command(Path::new("unshare"), self.root.path());
        command.args(["--mount", "--propagation", "unchanged", "sh", "-c", script, "sh"]);
        command.arg(store).arg(bytes.to_string()).arg(&self.program).args(arguments);
        command
    }

    fn command(&self, arguments: &[String]) -> Command {
        let mut command = clean_command(&self.program, self.root.path());
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
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

/// A program, run in `root` with its configuration there, and with nothing of this process's own configuration.
pub(crate) fn clean_command(program: &Path, root: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let bytes = name.as_encoded_bytes();
        if bytes.starts_with(b"PG") || bytes.starts_with(b"ARDENT_") || bytes.starts_with(b"AWS_") {
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

/// Folders right below; none if there is no such folder.
fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn holds_a_file(path: &Path) -> bool {
    let mut entries = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    entries.any(|entry| if entry.path().is_dir() { holds_a_file(&entry.path()) } else { true })
}

/// As `du` counts: what is deleted meanwhile counts as nothing.
fn bytes_below(path: &Path, of_file: fn(&Metadata) -> u64) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path(), of_file),
            Ok(metadata) => of_file(&metadata),
            Err(_) => 0,
        })
        .sum()
}

/// The program: `$ARDENT_BIN`, or what cargo built beside this test.
pub(crate) fn program() -> PathBuf {
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

/// Whether tests run in a chroot: the root is no mount point then.
pub fn is_chroot() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the kernel tells mounts");
    !mounts.lines().any(|line| line.split(' ').nth(4) == Some("/"))
}

pub(crate) fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("process ids fit"))
}

fn own_folder() -> TempDir {
    let root = tempfile::Builder::new().prefix("ardent-house-").tempdir().expect("a temp folder can be made");
    // Computes run as other users and must be able to go through.
    fs::set_permissions(root.path(), Permissions::from_mode(0o711)).expect("own folders can be opened");
    root
}

fn free_ports() -> (u16, u16) {
    (free_port(), free_port())
}

/// A port that nobody listens on at this moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a local port can be bound");
    listener.local_addr().expect("a bound socket has an address").port()
}
