//! One server with its own data directory.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::programs::{give_to_server, program, server_command, server_command_of, temp_dir, test_major};

/// Longest wait for a server to start or stop.
const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// How to make and run a server.
#[derive(Clone, Debug)]
pub struct TestPgOptions {
    /// Major version of the server.
    pub major: u32,
    /// Lines of `postgresql.conf`, as name and value; the value is quoted for you. Later ones win.
    pub settings: Vec<(String, String)>,
    /// More arguments for `initdb`, for example `--data-checksums` or `--wal-segsize=1`.
    pub initdb_args: Vec<String>,
    /// The content of `pg_hba.conf`; `initdb`'s (trust everybody local) when `None`.
    pub hba: Option<String>,
    /// Listen on 127.0.0.1 as well, at [`TestPg::port`].
    pub tcp: bool,
    /// Name of the bootstrap superuser.
    pub superuser: String,
}

impl Default for TestPgOptions {
    fn default() -> Self {
        TestPgOptions {
            major: test_major(),
            settings: Vec::new(),
            initdb_args: Vec::new(),
            hba: None,
            tcp: false,
            superuser: "postgres".to_owned(),
        }
    }
}

impl TestPgOptions {
    /// Chooses the server's major version.
    #[must_use]
    pub fn major(mut self, major: u32) -> Self {
        self.major = major;
        self
    }

    /// Adds a setting.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds an argument for `initdb`.
    #[must_use]
    pub fn initdb_arg(mut self, arg: &str) -> Self {
        self.initdb_args.push(arg.to_owned());
        self
    }

    /// Listens on 127.0.0.1 as well.
    #[must_use]
    pub fn with_tcp(mut self) -> Self {
        self.tcp = true;
        self
    }
}

/// How to stop a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Ends sessions, writes a shutdown checkpoint.
    Fast,
    /// Ends without a checkpoint: the next start recovers.
    Immediate,
}

/// A Postgres server with its own data directory, ended and removed on drop.
#[derive(Debug)]
pub struct TestPg {
    // Declared first: the server must be gone before its folder is removed. `Drop` sees to that too.
    child: Option<Child>,
    major: u32,
    data_dir: PathBuf,
    root: TempDir,
    port: u16,
    superuser: String,
}

impl TestPg {
    /// Makes a data directory and starts a server on it. Panics with the server's log if that fails.
    pub fn start(options: TestPgOptions) -> TestPg {
        let mut server = TestPg::init(options);
        server.start_server();
        server
    }

    /// Makes a data directory and starts nothing.
    pub fn init(options: TestPgOptions) -> TestPg {
        let root = temp_dir();
        let data_dir = root.path().join("data");
        let output = server_command_of(options.major, "initdb")
            .args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"])
            .arg(format!("--username={}", options.superuser))
            .args(&options.initdb_args)
            .arg("-D")
            .arg(&data_dir)
            .output()
            .expect("initdb can be run");
        assert!(output.status.success(), "initdb failed: {}", String::from_utf8_lossy(&output.stderr));
        let server = TestPg {
            child: None,
            major: options.major,
            data_dir,
            root,
            port: free_port(),
            superuser: options.superuser.clone(),
        };
        server.configure(&options);
        server
    }

    /// Runs a server on a data directory that is there already (and is left there). `root` is where its socket and log go. The
    /// directory says of which major it is.
    pub fn adopt(root: TempDir, data_dir: PathBuf, superuser: &str) -> TestPg {
        let version = fs::read_to_string(data_dir.join("PG_VERSION")).expect("PG_VERSION can be read");
        let major = version.trim().parse().expect("PG_VERSION is a number");
        TestPg { child: None, major, data_dir, root, port: free_port(), superuser: superuser.to_owned() }
    }

    fn configure(&self, options: &TestPgOptions) {
        let mut lines = vec![
            ("fsync", "off"),
            ("full_page_writes", "on"),
            ("autovacuum", "off"),
            ("max_connections", "30"),
            ("shared_buffers", "16MB"),
            ("log_min_messages", "warning"),
            ("logging_collector", "off"),
        ];
        lines.push(("listen_addresses", if options.tcp { "127.0.0.1" } else { "" }));
        let given = options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let text: String = lines
            .into_iter()
            .chain(given)
            .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")))
            .collect();
        self.append_file("postgresql.conf", &text);
        if let Some(hba) = &options.hba {
            fs::write(self.data_dir.join("pg_hba.conf"), hba).expect("pg_hba.conf can be written");
        }
    }

    fn append_file(&self, name: &str, text: &str) {
        let path = self.data_dir.join(name);
        let before = fs::read_to_string(&path).expect("a configuration file can be read");
        fs::write(&path, before + "\n" + text).expect("a configuration file can be written");
    }

    /// Starts the server and waits until it takes connections. Panics with its log if it doesn't.
    pub fn start_server(&mut self) {
        assert!(self.child.is_none(), "the server runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("the log can be opened");
        give_to_server(&self.log_path());
        let child = server_command_of(self.major, "postgres")
            .arg("-D")
            .arg(&self.data_dir)
            .arg("-k")
            .arg(self.socket_dir())
            .arg("-p")
            .arg(self.port.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle can be cloned"))
            .stderr(log)
            .spawn()
            .expect("postgres can be run");
        self.child = Some(child);
        let deadline = Instant::now() + DEADLINE;
        while !self.is_ready() {
            let child = self.child.as_mut().expect("set above");
            let ended = child.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "the server ended ({ended:?}): {}", self.log());
            assert!(Instant::now() < deadline, "the server isn't ready: {}", self.log());
            std::thread::sleep(POLL);
        }
    }

    /// The eighth line of `postmaster.pid` says when the server takes connections.
    fn is_ready(&self) -> bool {
        let pid_file = fs::read_to_string(self.data_dir.join("postmaster.pid")).unwrap_or_default();
        let mut lines = pid_file.lines();
        let pid = lines.next().and_then(|line| line.trim().parse().ok());
        let ours = self.child.as_ref().map(Child::id);
        pid.is_some() && pid == ours && lines.nth(6).is_some_and(|status| status.trim() == "ready")
    }

    /// Stops the server and waits for its end.
    pub fn stop(&mut self, mode: StopMode) {
        self.end(match mode {
            StopMode::Fast => Signal::SIGINT,
            StopMode::Immediate => Signal::SIGQUIT,
        });
    }

    /// Kills the postmaster and its children, as a crash would, and waits until they are gone: a new server refuses to start
    /// beside them.
    pub fn kill(&mut self) {
        let children = self.children();
        self.end(Signal::SIGKILL);
        for &child in &children {
            // An error means that it noticed the postmaster's death and ended by itself.
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        let deadline = Instant::now() + DEADLINE;
        while children.iter().any(|child| Path::new(&format!("/proc/{child}")).exists()) {
            assert!(Instant::now() < deadline, "the server's processes {children:?} did not end");
            std::thread::sleep(POLL);
        }
    }

    /// The postmaster's child processes.
    fn children(&self) -> Vec<i32> {
        let Some(pid) = self.pid() else { return Vec::new() };
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        list.split_whitespace().filter_map(|child| child.parse().ok()).collect()
    }

    fn end(&mut self, signal: Signal) {
        let Some(mut child) = self.child.take() else { return };
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("process ids fit"));
        // An error means that it ended by itself, which the wait below reaps.
        let _ = kill(pid, signal);
        let deadline = Instant::now() + DEADLINE;
        while child.try_wait().expect("a child can be waited for").is_none() {
            if Instant::now() >= deadline {
                let _ = child.kill();
                let _ = child.wait();
                assert!(std::thread::panicking(), "the server did not stop on {signal}: {}", self.log());
                return;
            }
            std::thread::sleep(POLL);
        }
    }

    /// Runs SQL in database `postgres` and gives the rows, unaligned, fields separated by `|`, without the last newline.
    /// Panics on an error.
    pub fn sql(&self, sql: &str) -> String {
        self.sql_in("postgres", sql)
    }

    /// [`TestPg::sql`] in another database.
    pub fn sql_in(&self, database: &str, sql: &str) -> String {
        self.try_sql_in(database, sql).unwrap_or_else(|error| panic!("{sql}\n{error}"))
    }

    /// Runs SQL; the error is what psql printed.
    pub fn try_sql_in(&self, database: &str, sql: &str) -> Result<String, String> {
        let output = server_command(program("psql"))
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", &self.superuser, "-d", database])
            .arg("-h")
            .arg(self.socket_dir())
            .args(["-p", &self.port.to_string(), "-c", sql])
            .output()
            .expect("psql can be run");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The folder of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.root.path()
    }

    /// The port: of the Unix socket's name, and of TCP if that was asked for.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The bootstrap superuser.
    pub fn superuser(&self) -> &str {
        &self.superuser
    }

    /// The postmaster's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A connection string over the Unix socket.
    pub fn socket_url(&self, database: &str) -> String {
        let host = self.socket_dir().to_str().expect("temp folders have plain names").replace('/', "%2F");
        format!("postgresql://{}@{host}:{}/{database}", self.superuser, self.port)
    }

    /// A connection string over TCP; only with [`TestPgOptions::tcp`].
    pub fn tcp_url(&self, user: &str, database: &str) -> String {
        format!("postgresql://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// What the server logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.root.path().join("log")
    }
}

impl Drop for TestPg {
    fn drop(&mut self) {
        self.end(Signal::SIGQUIT);
    }
}

/// A port that nobody listens on at this moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a local port can be bound");
    listener.local_addr().expect("a bound socket has an address").port()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_answers_stops_and_recovers() {
        let mut server = TestPg::start(TestPgOptions::default().set("work_mem", "5MB").with_tcp());
        assert_eq!(server.sql("show work_mem"), "5MB");
        server.sql("create table t (a int); insert into t values (1), (2)");
        server.stop(StopMode::Fast);
        server.start_server();
        server.sql("insert into t values (3)");
        server.kill();
        server.start_server();
        assert_eq!(server.sql("select string_agg(a::text, ',') from t"), "1,2,3");
        assert!(server.try_sql_in("postgres", "select nothing").unwrap_err().contains("nothing"));
        let pid = server.pid().unwrap();
        drop(server);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
