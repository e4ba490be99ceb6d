//! Finding the server's programs and running them as a user that Postgres accepts.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Uid, User, chown, geteuid};
use tempfile::TempDir;

/// Names the folder of the server programs to test with, if it isn't Debian's for Postgres 15.
const BIN_DIR_VARIABLE: &str = "ARDENT_TEST_PG_BIN";
/// With the number behind it: the same for another major.
const BIN_DIR_VARIABLE_OF_MAJOR: &str = "ARDENT_TEST_PG_";
/// Names the folder that has a folder for each major, as `scripts/setup-majors.sh` makes it.
const MAJORS_DIR_VARIABLE: &str = "ARDENT_TEST_PG_MAJORS";
/// Chooses the major of servers.
const TEST_MAJOR_VARIABLE: &str = "ARDENT_TEST_MAJOR";
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

/// The major that servers are of unless a test says otherwise: `$ARDENT_TEST_MAJOR`, or 15.
pub fn test_major() -> u32 {
    let given = std::env::var(TEST_MAJOR_VARIABLE).ok().filter(|text| !text.is_empty());
    given.map_or(15, |text| text.parse().unwrap_or_else(|_| panic!("{TEST_MAJOR_VARIABLE} is {text:?}, not a number")))
}

/// The path of a client program that works with servers of [`test_major`]. Most of Postgres 15 work with all later servers, and with
/// TLS, as Debian's are.
pub fn program(name: &str) -> PathBuf {
    /// Refuse servers that are newer than themselves.
    const REFUSING: [&str; 4] = ["pg_dump", "pg_dumpall", "pg_basebackup", "pg_receivewal"];
    /// Read files of their own major only.
    const READING: [&str; 2] = ["pg_waldump", "pg_controldata"];
    let major = test_major();
    if major == 15 || !(REFUSING.contains(&name) || READING.contains(&name)) {
        return bin_dir().join(name);
    }
    let clients_of = |major: u32| majors_dir().join(format!("clients/{major}/bin")).join(name);
    // What `pg_basebackup` writes for a standby, an older one's server may not understand.
    let mut paths = vec![bin_dir_of(major).join(name), clients_of(major)];
    if REFUSING.contains(&name) {
        paths.push(clients_of(18));
    }
    let path = paths.iter().find(|path| path.exists()).unwrap_or(&paths[1]).clone();
    assert!(
        path.exists(),
        "there is no {name} for Postgres {major} ({}): run scripts/setup-majors.sh clients",
        path.display()
    );
    path
}

/// The folder with `postgres`, `initdb` and `pg_ctl` of a major: for 15 see [`bin_dir`]; for others `$ARDENT_TEST_PG_<major>`, or
/// where `scripts/setup-majors.sh` puts them.
pub fn bin_dir_of(major: u32) -> PathBuf {
    if major == 15 {
        return bin_dir();
    }
    let variable = format!("{BIN_DIR_VARIABLE_OF_MAJOR}{major}");
    let dir = std::env::var_os(&variable)
        .map_or_else(|| majors_dir().join(major.to_string()).join("native/bin"), PathBuf::from);
    assert!(
        dir.join("postgres").exists(),
        "no server of Postgres {major} in {}: run scripts/setup-majors.sh {major}, or set {variable}",
        dir.display()
    );
    dir
}

/// The folder with a major's own client programs, of 16 and 18: where `scripts/setup-majors.sh clients` puts them.
pub fn clients_dir_of(major: u32) -> PathBuf {
    let dir = majors_dir().join(format!("clients/{major}/bin"));
    let what = format!("no clients of Postgres {major} in {}: run scripts/setup-majors.sh clients", dir.display());
    assert!(dir.join("pg_upgrade").exists(), "{what}");
    dir
}

/// The majors besides 15 to test with: `$ARDENT_TEST_MAJORS`, numbers separated by commas, or 17 alone. All of them are tested with
/// `make test-full AREA=majors`.
pub fn other_majors() -> Vec<u32> {
    let list = std::env::var("ARDENT_TEST_MAJORS").unwrap_or_else(|_| "17".to_owned());
    list.split(',').map(|number| number.trim().parse().expect("ARDENT_TEST_MAJORS holds numbers")).collect()
}

/// As in `scripts/setup-majors.sh`.
fn majors_dir() -> PathBuf {
    let default = || PathBuf::from(format!("/var/tmp/ardent-postgres-{}", geteuid()));
    std::env::var_os(MAJORS_DIR_VARIABLE).map_or_else(default, PathBuf::from)
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

/// A command that runs `initdb` or `postgres` of a major, as [`server_command`] does.
pub fn server_command_of(major: u32, name: &str) -> Command {
    server_command(bin_dir_of(major).join(name))
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
