//! An installation whose roles are processes of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};

use ardent_test_pg::{bin_dir_of, test_major};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::disk::SmallDisk;
use crate::house::{Finished, clean_command, free_port, pid_of, program};
use crate::network::Network;
use crate::processes::{Process, descendants, wait_until};

struct Role {
    child: Child,
    // Held open: a role that has something to say must not meet a closed pipe.
    _stdout: BufReader<ChildStdout>,
}

/// Three safekeepers, two of which are reached over TLS, a page server, control and a proxy, each a process, on one folder.
pub struct Apart {
    // Unmounted before the folder is removed.
    disks: BTreeMap<&'static str, SmallDisk>,
    root: TempDir,
    ports: (u16, u16),
    /// The ports of the safekeepers that are reached over TLS.
    safekeeper_ports: [u16; 3],
    /// By what each safekeeper says that it is reached.
    safekeepers: BTreeMap<&'static str, String>,
    /// Whether the safekeepers are on other hosts, each at an address of its own.
    has_network: bool,
    /// Whether the safekeepers archive WAL in the page server's store.
    has_archive: bool,
    roles: BTreeMap<&'static str, Role>,
    /// The page server that control is told of.
    page_server: &'static str,
}

/// In the order in which they are started; stopped in the opposite one.
const ROLES: [&str; 8] =
    ["safekeeper-1", "safekeeper-2", "safekeeper-3", SPARE, "pageserver", SECOND_PAGE_SERVER, "control", "proxy"];
/// The first of them.
const SAFEKEEPERS: [&str; 3] = ["safekeeper-1", "safekeeper-2", "safekeeper-3"];
/// A safekeeper that is none of those that control and page servers are started with. Started only where a test asks for it.
const SPARE: &str = "safekeeper-4";
/// What a safekeeper's disk has in a network of its own.
const SMALL_DISK_MB: u32 = 512;
/// A page server on the first one's store, with a folder of its own. Started only where a test asks for it.
const SECOND_PAGE_SERVER: &str = "pageserver-2";

impl Apart {
    /// Makes the keys and starts all roles.
    pub fn start() -> Apart {
        Apart::make(false, false)
    }

    /// The same with WAL archived in the page server's store.
    pub fn start_with_archive() -> Apart {
        Apart::make(false, true)
    }

    /// The same in a network of its own, where each safekeeper has an address and a small disk.
    pub fn start_in(_network: &Network) -> Apart {
        Apart::make(true, false)
    }

    fn make(has_network: bool, has_archive: bool) -> Apart {
        let root = tempfile::Builder::new().prefix("ardent-apart-").tempdir().expect("a temp folder can be made");
        fs::set_permissions(root.path(), Permissions::from_mode(0o711)).expect("own folders can be opened");
        let mut apart = Apart {
            disks: BTreeMap::new(),
            root,
            ports: (free_port(), free_port()),
            safekeeper_ports: [(); 3].map(|()| free_port()),
            safekeepers: BTreeMap::new(),
            has_network,
            has_archive,
            roles: BTreeMap::new(),
            page_server: "pageserver",
        };
        if has_network {
            for safekeeper in SAFEKEEPERS {
                let folder = apart.root.path().join(safekeeper);
                fs::create_dir(&folder).expect("a folder can be made");
                apart.disks.insert(safekeeper, SmallDisk::mount(&folder, SMALL_DISK_MB));
            }
        }
        apart.ok(&["keys", "--data-dir", &apart.path("data")]);
        for role in ROLES.into_iter().filter(|role| ![SECOND_PAGE_SERVER, SPARE].contains(role)) {
            apart.up(role);
        }
        apart
    }

    /// Restarts control, which uses this page server from then on.
    pub fn use_page_server(&mut self, role: &'static str) {
        self.page_server = role;
        self.kill("control");
        self.up("control");
    }

    /// Starts a role and waits until it is ready.
    pub fn up(&mut self, role: &'static str) {
        let mut arguments = match role {
            "pageserver" | SECOND_PAGE_SERVER => vec![
                "pageserver".to_owned(),
                format!("--data-dir={}", self.path(role)),
                format!("--listen={}", self.socket(role)),
                format!("--token-file={}", self.path("data/keys/pageserver.token")),
            ],
            "control" => vec![
                "control".to_owned(),
                format!("--pageserver={}", self.socket(self.page_server)),
                format!("--api-listen=127.0.0.1:{}", self.ports.1),
            ],
            "proxy" => vec!["proxy".to_owned()],
            safekeeper => vec![
                "safekeeper".to_owned(),
                format!("--data-dir={}", self.path(safekeeper)),
                format!("--listen={}", self.safekeeper_listens(safekeeper)),
            ],
        };
        if matches!(role, "control" | "proxy") {
            arguments.push(format!("--data-dir={}", self.path("data")));
            arguments.push(format!("--listen=127.0.0.1:{}", self.ports.0));
        } else {
            arguments.push(format!("--key={}", self.path("data/keys/service.pub")));
        }
        // It starts the computes: those of Debian's major without being told where they are.
        let major = test_major();
        if role == "control" && major != 15 {
            arguments.push(format!("--pg-bin={major}={}", bin_dir_of(major).display()));
        }
        let store = format!("file:{}", self.path("pageserver/store"));
        if role == SECOND_PAGE_SERVER {
            arguments.push(format!("--store={store}"));
        }
        let is_safekeeper = role == SPARE || SAFEKEEPERS.contains(&role);
        if self.has_archive && is_safekeeper {
            arguments.push(format!("--archive={store}"));
        }
        if matches!(role, "control" | "pageserver" | SECOND_PAGE_SERVER) {
            let first = self.safekeepers.iter().filter(|(name, _)| **name != SPARE);
            arguments.extend(first.map(|(_, address)| format!("--safekeeper={address}")));
        }
        let log = File::options().create(true).append(true).open(self.log_path(role)).expect("a log can be opened");
        let mut child = clean_command(&program(), self.root.path())
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the program can be run");
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        while !line.starts_with("ready") {
            line.clear();
            if stdout.read_line(&mut line).expect("a pipe can be read") == 0 {
                let status = child.wait();
                panic!("{role} ended ({status:?}): {}", self.log(role));
            }
        }
        if is_safekeeper {
            line.clear();
            stdout.read_line(&mut line).expect("a pipe can be read");
            let address = line.strip_prefix("address").expect("it says where it is").trim().to_owned();
            let former = self.safekeepers.insert(role, address.clone());
            assert!(former.is_none_or(|former| former == address), "{role} is at {address} now");
        }
        let former = self.roles.insert(role, Role { child, _stdout: stdout });
        assert!(former.is_none(), "{role} ran already");
    }

    /// Kills a role as a crash would.
    pub fn kill(&mut self, role: &str) {
        let mut role = self.roles.remove(role).expect("it runs");
        role.child.kill().expect("a child can be killed");
        role.child.wait().expect("a child can be waited for");
    }

    /// Kills a safekeeper, and moves what it has away: started again it is another one, with another key where it has one. Gives where its folder is.
    pub fn lose_disk(&mut self, safekeeper: &str) -> PathBuf {
        self.kill(safekeeper);
        let (folder, lost) = (self.folder(safekeeper), self.folder(&format!("lost-{safekeeper}")));
        fs::rename(folder, &lost).expect("a folder can be moved");
        self.safekeepers.remove(safekeeper);
        lost
    }

    /// Puts it back, in place of what was begun there meanwhile.
    pub fn find_disk(&mut self, safekeeper: &str, lost: &Path) {
        self.kill(safekeeper);
        let folder = self.folder(safekeeper);
        fs::remove_dir_all(&folder).and_then(|()| fs::rename(lost, folder)).expect("a folder can be moved");
        self.safekeepers.remove(safekeeper);
    }

    /// Halts a role, or lets it go on: it keeps its sockets and answers nothing.
    pub fn signal(&self, role: &str, signal: Signal) {
        kill(pid_of(&self.roles[role].child), signal).expect("a child can be signalled");
    }

    /// A role's process.
    pub fn pid(&self, role: &str) -> Pid {
        pid_of(&self.roles[role].child)
    }

    /// Whether a role runs.
    pub fn runs(&self, role: &str) -> bool {
        self.roles.contains_key(role)
    }

    /// The processes below control that are like this: computes.
    pub fn below_control(&self, is_it: impl Fn(&Process) -> bool) -> Vec<Process> {
        descendants(self.pid("control").as_raw()).into_iter().filter(|process| is_it(process)).collect()
    }

    /// By what a safekeeper is reached, once it was started.
    pub fn address(&self, safekeeper: &str) -> String {
        self.safekeepers[safekeeper].clone()
    }

    /// A role's own folder.
    pub fn folder(&self, role: &str) -> PathBuf {
        self.root.path().join(role)
    }

    /// A safekeeper's disk, in a network of its own.
    pub fn disk(&self, safekeeper: &str) -> &SmallDisk {
        &self.disks[safekeeper]
    }

    /// A safekeeper's address in such a network.
    pub fn host(safekeeper: &str) -> Ipv4Addr {
        let number = SAFEKEEPERS.iter().position(|name| *name == safekeeper).expect("it is a safekeeper");
        Network::hosts()[number]
    }

    /// Runs a command to its end.
    pub fn ardent(&self, arguments: &[&str]) -> Finished {
        let mut command = clean_command(&program(), self.root.path());
        Finished::of(command.args(arguments).output().expect("the program can be run"))
    }

    /// Runs a command that must succeed; its standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let finished = self.ardent(arguments);
        let (stderr, log) = (&finished.stderr, self.log("control"));
        assert_eq!(finished.code, 0, "ardent {arguments:?}: {stderr}\ncontrol's log: {log}");
        finished.stdout
    }

    /// The timelines that a safekeeper has in its folder.
    pub fn timelines(&self, safekeeper: &str) -> BTreeSet<String> {
        let folders = |path: PathBuf| {
            let entries = fs::read_dir(path).expect("a folder can be listed").map(|entry| entry.expect("an entry"));
            entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.path()).collect::<Vec<_>>()
        };
        let timelines = folders(self.root.path().join(safekeeper)).into_iter().flat_map(folders);
        let names = timelines.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        names.filter(|name| !name.starts_with('.')).collect()
    }

    /// The WAL files that a safekeeper has of a timeline, or that are archived of it (`pageserver/store/timelines`).
    pub fn wal_files(&self, folder: &str, timeline: &str) -> usize {
        let top = self.root.path().join(folder);
        let tenants = fs::read_dir(top).into_iter().flatten().map(|entry| entry.expect("an entry").path());
        let files = tenants.flat_map(|tenant| fs::read_dir(tenant.join(timeline).join("wal")).into_iter().flatten());
        files.count()
    }

    /// What a role logged.
    pub fn log(&self, role: &str) -> String {
        fs::read_to_string(self.log_path(role)).unwrap_or_default()
    }

    fn log_path(&self, role: &str) -> PathBuf {
        self.root.path().join(format!("{role}.log"))
    }

    fn path(&self, name: &str) -> String {
        self.root.path().join(name).to_string_lossy().into_owned()
    }

    fn socket(&self, role: &str) -> String {
        format!("unix:{}.sock", self.path(role))
    }

    fn safekeeper_listens(&self, safekeeper: &str) -> String {
        if safekeeper == SPARE {
            return self.socket(safekeeper);
        }
        let number = SAFEKEEPERS.iter().position(|name| *name == safekeeper).expect("it is a safekeeper");
        match number {
            _ if self.has_network => format!("tls:{}:7431", Apart::host(safekeeper)),
            0 => self.socket(safekeeper),
            // Not where clients connect from: while it is down, one of theirs could take its port.
            _ => format!("tls:127.0.1.{number}:{}", self.safekeeper_ports[number]),
        }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        for name in ROLES.iter().rev() {
            let Some(mut role) = self.roles.remove(name) else { continue };
            let pid = pid_of(&role.child);
            let below = descendants(pid.as_raw());
            // Errors mean that it has ended. One that was halted must go on to end.
            let _ = kill(pid, Signal::SIGCONT);
            let _ = kill(pid, Signal::SIGTERM);
            if !std::thread::panicking() {
                wait_until("a role ends", 60, || role.child.try_wait().expect("a child can be waited for"));
            }
            let _ = role.child.kill();
            let _ = role.child.wait();
            for process in below {
                process.kill();
            }
        }
    }
}
