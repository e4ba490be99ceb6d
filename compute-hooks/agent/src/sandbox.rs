//! The command that runs Postgres confined, as its own user.
//!
//! Inside a sandbox there is a system folder tree to read, the compute's own data directory, its socket folder, the door
//! to the page server, and nothing else: no network but an empty loopback, no other process, no other compute's files, no
//! token. As root the mounts are made by root and Postgres runs as the unprivileged user given; otherwise a user
//! namespace does it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ardent_api::compute::{RunAs, Sandbox};

use crate::error::ComputeError;
use crate::launch::CommandLine;
use crate::layout::{Layout, View};
use crate::mount_root;
use crate::programs::ServerPrograms;

/// The descriptor on which bubblewrap says who its child is.
pub(crate) const INFO_FD: i32 = 3;
/// The descriptor that it reads the filter of system calls from.
pub(crate) const FILTER_FD: i32 = 4;
/// Single files of `/etc` that programs need to run, read names and know the time zone.
const ETC_FILES: [&str; 6] = [
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/locale.alias",
    "/etc/nsswitch.conf",
    "/etc/alternatives",
];
/// System folders that are links into `/usr` on today's distributions and real folders on others.
const ROOT_FOLDERS: [&str; 5] = ["bin", "sbin", "lib", "lib32", "lib64"];
/// Folders in memory and their sizes; Postgres's dynamic shared memory lies in the first.
const TEMPORARY: [(&str, u64); 2] = [("/dev/shm", 1 << 30), ("/tmp", 256 << 20)];
/// All that Postgres finds in its environment.
const ENVIRONMENT: [(&str, &str); 3] = [("PATH", "/usr/bin:/bin"), ("LANG", "C.UTF-8"), ("HOME", "/tmp")];

/// Builds the command line for `postgres ARGS`.
pub(crate) fn command(
    sandbox: Sandbox,
    layout: &Layout,
    view: &View,
    programs: &ServerPrograms,
    run_as: Option<RunAs>,
    processes_max: u64,
    postgres_args: &[String],
) -> Result<CommandLine, ComputeError> {
    let mut command = match sandbox {
        Sandbox::None => {
            let mut command = CommandLine::new(&programs.postgres(), &layout.data);
            if let Some(run_as) = run_as {
                command.user(run_as);
            }
            command
        }
        Sandbox::Bubblewrap => bubblewrap(layout, view, programs, run_as, processes_max)?,
    };
    command.args(postgres_args).environment(&ENVIRONMENT);
    Ok(command)
}

/// Makes a sandbox like a compute's and runs nothing in it; says why where that cannot be.
pub fn probe_sandbox() -> Result<(), String> {
    let bwrap = find_program("bwrap").ok_or("the program bwrap is not installed")?;
    if mount_root::is_out_of_reach().map_err(|error| format!("its root cannot be looked at: {error}"))? {
        return Err("this is a chroot, in which the kernel lets nobody but root confine programs".to_owned());
    }
    let mut command = Command::new(bwrap);
    let folder = std::env::temp_dir().join(format!("ardent-probe-{}", std::process::id()));
    mount_root::ensure(&mut command, &folder).map_err(|error| format!("its root cannot be mounted: {error}"))?;
    command.args(namespaces(nix::unistd::geteuid().is_root()));
    command.args(["--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"]);
    let tried = command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).output();
    // It is there only in a chroot.
    let _ = std::fs::remove_dir(&folder);
    match tried {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(if text.is_empty() { format!("it ended with {}", output.status) } else { text })
        }
        Err(error) => Err(format!("bwrap cannot be started: {error}")),
    }
}

/// The namespaces that are a compute's own. As root a user namespace would map Postgres's user to root outside.
fn namespaces(as_root: bool) -> &'static [&'static str] {
    if as_root {
        &["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    } else {
        &["--unshare-all"]
    }
}

fn bubblewrap(
    layout: &Layout,
    view: &View,
    programs: &ServerPrograms,
    run_as: Option<RunAs>,
    processes_max: u64,
) -> Result<CommandLine, ComputeError> {
    let bwrap = find_program("bwrap")
        .ok_or_else(|| ComputeError::NoSandbox { reason: "the program bwrap is not installed".to_owned() })?;
    let mut command = CommandLine::new(&bwrap, Path::new("/"));
    command.root(&layout.compute_dir.join("root"));
    command.args(namespaces(run_as.is_some()));
    command.args(["--die-with-parent", "--new-session", "--clearenv"]);
    for (name, value) in ENVIRONMENT {
        command.args(["--setenv", name, value]);
    }
    command.args(["--hostname", "ardent", "--info-fd", &INFO_FD.to_string(), "--seccomp", &FILTER_FD.to_string()]);
    system_folders(&mut command);
    accounts(&mut command, layout, run_as)?;
    command.args(["--proc", "/proc", "--dev", "/dev"]);
    for (folder, bytes) in TEMPORARY {
        command.args(["--perms", "1777", "--size", &bytes.to_string(), "--tmpfs", folder]);
    }
    // After the temporary folders, in which they may lie.
    private_folders(&mut command, programs);
    command.args(["--perms", "0755", "--dir", "/ardent", "--perms", "0755", "--dir", "/ardent/lib"]);
    for (outside, inside) in [(&layout.data, &view.data), (&layout.run, &view.run), (&layout.door, &view.door)] {
        command.arg("--bind").arg(outside).arg(inside);
    }
    command.arg("--ro-bind").arg(&layout.policy).arg(&view.policy);
    if layout.rings.exists() {
        command.arg("--bind").arg(&layout.rings).arg(&view.rings);
    }
    command.arg("--ro-bind").arg(&layout.library).arg(&view.library);
    command.arg("--chdir").arg(&view.data);
    // From here on the tree is read-only but for what is bound writable above.
    command.args(["--remount-ro", "/", "--"]);
    // Inside, because without root the namespace counts for itself.
    let prlimit = find_program("prlimit").ok_or_else(|| ComputeError::NoSandbox {
        reason: "the program prlimit (util-linux) is not installed".to_owned(),
    })?;
    command.arg(prlimit).args([&format!("--nproc={processes_max}"), "--core=0", "--"]);
    if let Some(RunAs { uid, gid }) = run_as {
        let setpriv = find_program("setpriv").ok_or_else(|| ComputeError::NoSandbox {
            reason: "the program setpriv (util-linux) is not installed".to_owned(),
        })?;
        command.arg(setpriv).args([
            &format!("--reuid={uid}"),
            &format!("--regid={gid}"),
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
            "--no-new-privs",
            "--",
        ]);
    }
    command.arg(programs.postgres());
    Ok(command)
}

fn system_folders(command: &mut CommandLine) {
    command.args(["--ro-bind", "/usr", "/usr"]);
    for name in ROOT_FOLDERS {
        let path = Path::new("/").join(name);
        match std::fs::read_link(&path) {
            Ok(target) => {
                command.arg("--symlink").arg(target).arg(&path);
            }
            Err(_) => {
                command.arg("--ro-bind-try").arg(&path).arg(&path);
            }
        }
    }
    command.args(["--perms", "0755", "--dir", "/etc"]);
    for file in ETC_FILES {
        command.args(["--ro-bind-try", file, file]);
    }
}

/// Server programs outside of the system's folders. Bubblewrap would make the folders above them for their owner alone.
fn private_folders(command: &mut CommandLine, programs: &ServerPrograms) {
    let folders = programs.private_folders();
    let mut above: Vec<&Path> = folders.iter().flat_map(|folder| folder.ancestors().skip(1)).collect();
    above.retain(|folder| folder.parent().is_some());
    above.sort();
    above.dedup();
    for folder in above {
        command.args(["--perms", "0755", "--dir"]).arg(folder);
    }
    for folder in &folders {
        command.arg("--ro-bind").arg(folder).arg(folder);
    }
}

/// `/etc/passwd` and `/etc/group` with root and Postgres's user alone: Postgres looks up its own name and, for peer
/// authentication, the agent's.
fn accounts(command: &mut CommandLine, layout: &Layout, run_as: Option<RunAs>) -> Result<(), ComputeError> {
    let (uid, gid) = match run_as {
        Some(RunAs { uid, gid }) => (uid, gid),
        None => (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw()),
    };
    let files = [
        ("passwd", format!("root:x:0:0::/:/bin/false\npostgres:x:{uid}:{gid}::/tmp:/bin/sh\n")),
        ("group", format!("root:x:0:\npostgres:x:{gid}:\n")),
    ];
    for (name, content) in files {
        let path = layout.compute_dir.join(name);
        std::fs::write(&path, content).map_err(ComputeError::io("cannot write", &path))?;
        command.arg("--ro-bind").arg(&path).arg(Path::new("/etc").join(name));
    }
    Ok(())
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin:/usr/sbin:/sbin".into());
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}
