//! Runs Postgres's own programs as a user that is nobody in particular.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::unistd::{User, chown, geteuid};
use tokio::process::Command;

use crate::logical::error::LogicalError;

/// Server programs refuse to run as root; one of these is on every system.
const USERS: [&str; 2] = ["postgres", "nobody"];
/// How much of what a program printed goes into an error.
const MESSAGE_LEN_MAX: usize = 2000;

/// The user that programs run as where we are root.
fn user() -> Option<User> {
    if !geteuid().is_root() {
        return None;
    }
    USERS.iter().find_map(|name| User::from_name(name).ok().flatten())
}

/// A program of one of the folders, or of the search path.
pub(crate) fn find(name: &'static str, folders: &[PathBuf], major: u32) -> Result<PathBuf, LogicalError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut files = folders.iter().cloned().chain(std::env::split_paths(&path)).map(|folder| folder.join(name));
    files
        .find(|file| file.is_file() && version_of(file).is_some_and(|version| version >= major))
        .ok_or(LogicalError::Missing { name, major })
}

/// `pg_dump (PostgreSQL) 15.14 (Debian ...)`: 15.
fn version_of(file: &Path) -> Option<u32> {
    let mut command = std::process::Command::new(file);
    ardent_open_files::as_before(&mut command);
    let output = command.arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_once("(PostgreSQL) ")?.1;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// A command that runs as that user, from `/`, with nothing of our environment and not with our limit on open files. It ends with us.
pub(crate) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    ardent_open_files::as_before(command.as_std_mut());
    command.current_dir("/").env_clear().env("PATH", "/usr/bin:/bin").env("LANG", "C.UTF-8").env("HOME", "/");
    command.stdin(Stdio::null()).kill_on_drop(true);
    if let Some(user) = user() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

/// A folder that is that user's alone.
pub(crate) fn folder() -> std::io::Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("ardent-root-").tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700))?;
    if let Some(user) = user() {
        chown(folder.path(), Some(user.uid), Some(user.gid))?;
    }
    Ok(folder)
}

/// Runs a command to its end; what it wrote.
pub(crate) async fn output(mut command: Command, program: &Path) -> Result<Vec<u8>, LogicalError> {
    let failed = |source| LogicalError::Program { program: program.to_owned(), source };
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(LogicalError::Failed { program: name_of(program), message: tail(&output.stderr) })
}

pub(crate) fn name_of(program: &Path) -> String {
    program.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The end of what a program printed.
pub(crate) fn tail(printed: &[u8]) -> String {
    let text = String::from_utf8_lossy(printed);
    let text = text.trim();
    let start = text.len().saturating_sub(MESSAGE_LEN_MAX);
    let start = (start..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    use super::*;

    #[tokio::test]
    async fn programs_may_open_as_many_files_as_the_server_was_started_with() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
        let soft = hard.min(700);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("less is always allowed");
        ardent_open_files::raise();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit"), (hard, hard));
        let shell = Path::new("/bin/sh");
        let mut command = command(shell);
        command.args(["-c", "ulimit -S -n"]);
        let said = output(command, shell).await.expect("a shell can be run");
        assert_eq!(String::from_utf8_lossy(&said).trim(), soft.to_string());
    }
}
