//! What must hold before anything is started, with words for what to do where it does not.

use std::fs::{self, File};
use std::net::{IpAddr, ToSocketAddrs as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use ardent_control::PublicAddress;
use nix::fcntl::{Flock, FlockArg};

use super::args::UpArgs;

/// Takes the data directory for this process. Kept for as long as the lock is.
pub(crate) fn lock(data_dir: &Path) -> anyhow::Result<Flock<File>> {
    let path = data_dir.join("ardent.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!(
            "another \"ardent up\" uses {}: stop it first, or give this one a --data-dir of its own",
            data_dir.display()
        ),
        Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// As root, computes run as users of their own, who must be able to reach their folders.
pub(crate) fn data_dir_is_reachable(data_dir: &Path) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    for folder in data_dir.ancestors().skip(1) {
        let mode = fs::metadata(folder).with_context(|| format!("cannot look at {}", folder.display()))?.permissions().mode();
        if mode & 0o001 == 0 {
            bail!(
                "{} cannot be entered by other users, and computes run as users of their own: choose a --data-dir elsewhere, for example /var/lib/ardent",
                folder.display()
            );
        }
    }
    Ok(())
}

/// Whether this host lets bubblewrap make the namespaces that a compute runs in.
pub(crate) fn sandbox_works() -> anyhow::Result<()> {
    let hint = "install bubblewrap and allow unprivileged user namespaces, or accept computes without a sandbox with --no-sandbox";
    let output = Command::new("bwrap")
        .args(["--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--", "/bin/true"])
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("computes cannot be confined: bwrap says \"{}\"; {hint}", words.trim())
        }
        Err(error) => bail!("computes cannot be confined: bwrap cannot be run ({error}); {hint}"),
    }
}

/// How clients reach branches: by name where names resolve to this host, else by address and option.
pub(crate) fn public_address(args: &UpArgs) -> PublicAddress {
    let port = args.listen.port();
    let domain = args.host.clone().unwrap_or_else(|| "localhost".to_owned());
    let domain = domain.trim_start_matches("*.").to_ascii_lowercase();
    let resolved = format!("any-branch.{domain}:{port}").to_socket_addrs();
    let reaches_us = |address: IpAddr| address == args.listen.ip() || args.listen.ip().is_unspecified() || address.is_loopback();
    // A domain that was given is taken at its word: it may resolve only where the clients are.
    let resolves = args.host.is_some() || resolved.is_ok_and(|mut found| found.any(|address| reaches_us(address.ip())));
    if resolves {
        return PublicAddress { host: domain, port, wildcard: true };
    }
    let ip = if args.listen.ip().is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { args.listen.ip() };
    PublicAddress { host: ip.to_string(), port, wildcard: false }
}
