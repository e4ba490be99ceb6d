//! Finding the server's programs and running them as a user that Postgres accepts.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Uid, User, chown, geteuid};
use tempfile::TempDir;

/// Names the folder of the server programs to test with, if it isn't Debian's for Postgres 15.
const BIN_DIR_VARIABLE: &str = "ARDENT_TEST_PG_BIN";
const DEBIAN_BIN_DIR: &str = "/usr/lib/postgresql/15/bin";

/// The folder with `postgres`, `initdb` and so on: `$ARDENT_TEST_PG_BIN`, or where Debian's `postgresql-15` puts them.
pub fn bin_dir() -> PathBuf {
    let dir = std::env::var_os(BIN_DIR_VARIABLE).map_or_else(|| PathBuf::from(DEBIAN_BIN_DIR), PathBuf::from);
    assert!(
        dir.join("postgres").exists(),
        "no Postgres server in {}: install postgresql-15, or set {BIN_DIR_VARIABLE}",
        dir.display()
    );
    dir
}

/// The path of one server program.
pub fn program(name: &str) -> PathBuf {
    bin_dir().join(name)
}

/// A command that runs `program` as a user that Postgres accepts, from `/`, without the caller's `PG*` variables.
pub fn server_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/").env_remove("LC_ALL").env_remove("LANG");
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"PG") {
            command.env_remove(name);
        }
    }
    if let Some(user) = server_user() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

/// A new folder that belongs to the user that the server runs as.
pub fn temp_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("ardent-pg-").tempdir().expect("a temp folder can be made");
    give_to_server(dir.path());
    dir
}

/// Makes the server's user the owner of `path`, when tests run as root.
pub(crate) fn give_to_server(path: &Path) {
    if let Some(user) = server_user() {
        chown(path, Some(user.uid), Some(user.gid)).expect("root can change owners");
    }
}

/// The user that the server runs as, where that isn't the current one.
fn server_user() -> Option<User> {
    if geteuid() != Uid::from_raw(0) {
        return None;
    }
    let user = User::from_name("postgres").expect("the user database can be read");
    Some(user.expect("tests run as root need a user `postgres`: install postgresql-15"))
}
