//! A network of one's own, in which hosts can be cut off.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

/// What is lost between a host and the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Everything, both ways.
    All,
    /// What is sent to it: it is heard and hears nothing.
    ToIt,
    /// What it sends: it hears everything and is not heard.
    FromIt,
    /// A fourth of the packets, both ways.
    Some,
}

/// From where hosts are reached.
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 100);

/// The calling thread's network: a loopback device with its own rules and addresses. Gone with the last process in it.
#[derive(Debug)]
pub struct Network(());

impl Network {
    /// Gives the calling thread, and what it starts from now on, a network and a table of mounts of their own. Panics where that is
    /// not allowed: it needs root.
    pub fn own() -> Network {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .expect("root can make a network and mounts of its own");
        run("mount", &["--make-rprivate", "/"]);
        run("ip", &["link", "set", "lo", "up"]);
        // Whoever connects to a host does so from an address of its own: otherwise both directions would look the same.
        run("ip", &["address", "add", &format!("{CLIENT}/32"), "dev", "lo"]);
        for host in Network::hosts().map(|host| host.to_string()) {
            run("ip", &["address", "add", &format!("{host}/32"), "dev", "lo"]);
            let route = ["table", "local", "scope", "host", "src", &CLIENT.to_string()];
            run("ip", &[&["route", "replace", "local", &host, "dev", "lo"], &route[..]].concat());
        }
        let network = Network(());
        network.nft("add table ip faults");
        network.nft("add chain ip faults arriving { type filter hook input priority 0 ; }");
        network
    }

    /// The addresses of three hosts in it: what goes there must be encrypted, as they are not loopback's.
    pub fn hosts() -> [Ipv4Addr; 3] {
        [1, 2, 3].map(|number| Ipv4Addr::new(10, 77, 1, number))
    }

    /// Loses packets of `host` on their way, without a word to who sent them.
    pub fn cut(&self, host: Ipv4Addr, lost: Lost) {
        let (to, from) = (format!("ip daddr {host}"), format!("ip saddr {host}"));
        let rules = match lost {
            Lost::All => vec![to, from],
            Lost::ToIt => vec![to],
            Lost::FromIt => vec![from],
            Lost::Some => [to, from].map(|rule| format!("{rule} numgen random mod 4 0")).to_vec(),
        };
        for rule in rules {
            self.nft(&format!("add rule ip faults arriving {rule} drop"));
        }
    }

    /// Lets everything through.
    pub fn heal(&self) {
        self.nft("flush chain ip faults arriving");
    }

    fn nft(&self, command: &str) {
        run("nft", &command.split(' ').collect::<Vec<_>>());
    }
}

/// Runs a program of the system's, which must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program} (scripts/setup-chaos.sh installs it): {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}
