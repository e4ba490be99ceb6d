//! Where settings come from: flag, environment, the project's `.ardent`, the user's configuration, default; in this order.

use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use ardent_api::control::{ApiErrorCode, DEFAULT_API_PORT};

use crate::failure::Failure;

/// The project file's name.
const PROJECT_FILE: &str = ".ardent";

/// The user's configuration. Holds a token: 0600 in a 0700 folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserConfig {
    /// The server's API.
    pub url: Option<String>,
    /// The token.
    pub token: Option<String>,
}

impl UserConfig {
    /// The file's path.
    pub fn path() -> Result<PathBuf, Failure> {
        let folder = match env::var_os("XDG_CONFIG_HOME").filter(|value| !value.is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None => home()?.join(".config"),
        };
        Ok(folder.join("ardent").join("config.json"))
    }

    /// Reads it; empty if there is none.
    pub fn load() -> Result<Self, Failure> {
        let path = Self::path()?;
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                Failure::local(format!("{} is not valid", path.display()), &error).hint("ardent login writes it anew")
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(UserConfig::default()),
            Err(error) => Err(Failure::local(format!("{} cannot be read", path.display()), &error)),
        }
    }

    /// Writes it, whole or not at all.
    pub fn save(&self) -> Result<(), Failure> {
        let path = Self::path()?;
        let write = || {
            let folder = path.parent().unwrap_or(Path::new("."));
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let temporary = path.with_extension(format!("json.{}", std::process::id()));
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|error: io::Error| Failure::local(format!("{} cannot be written", path.display()), &error))
    }
}

/// A folder of the user's for what is kept and not configured, made if it is not there.
pub fn state_folder() -> Result<PathBuf, Failure> {
    let folder = match env::var_os("XDG_STATE_HOME").filter(|value| !value.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => home()?.join(".local").join("state"),
    };
    let folder = folder.join("ardent");
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    made.map_err(|error| Failure::local(format!("{} cannot be made", folder.display()), &error))?;
    Ok(folder)
}

/// The user's home folder.
pub fn home() -> Result<PathBuf, Failure> {
    let home = env::var_os("HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    home.ok_or_else(|| Failure::usage("HOME is not set, so there is no place for your configuration").hint("set HOME"))
}

/// A project's settings: lines of `name = value`. Holds no secret, so that it can be committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProjectFile {
    /// Where it is.
    pub path: PathBuf,
    /// The default branch.
    pub branch: Option<String>,
    /// The default connector.
    pub connector: Option<String>,
    /// The server's API.
    pub url: Option<String>,
}

impl ProjectFile {
    /// The nearest one, from the current folder upward.
    pub fn find() -> Result<Option<Self>, Failure> {
        let Ok(current) = env::current_dir() else { return Ok(None) };
        for folder in current.ancestors() {
            let path = folder.join(PROJECT_FILE);
            // A folder of that name may be anything.
            if path.is_file() {
                let text = fs::read_to_string(&path)
                    .map_err(|error| Failure::local(format!("{} cannot be read", path.display()), &error))?;
                return Self::parse(&path, &text).map(Some);
            }
        }
        Ok(None)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Failure> {
        let mut project = ProjectFile { path: path.to_owned(), ..ProjectFile::default() };
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |what: &str| {
                Failure::usage(format!("{}:{}: {what}", path.display(), number + 1))
                    .hint("lines are: branch = NAME, connector = NAME, or url = http://HOST:PORT")
            };
            let (name, value) = line.split_once('=').ok_or_else(|| wrong("no = in this line"))?;
            let value = Some(value.trim().to_owned());
            match name.trim() {
                "branch" => project.branch = value,
                "connector" => project.connector = value,
                "url" => project.url = value,
                "token" => return Err(wrong("a token does not belong into a project's file: it would be committed")),
                other => return Err(wrong(&format!("{other} is not a setting"))),
            }
        }
        Ok(project)
    }

    /// Sets the default branch of the nearest project file, or of a new one in the current folder.
    pub fn switch_branch(name: &str) -> Result<PathBuf, Failure> {
        Self::change(|project| project.branch = Some(name.to_owned()))
    }

    /// The same of the default connector.
    pub fn switch_connector(name: &str) -> Result<PathBuf, Failure> {
        Self::change(|project| project.connector = Some(name.to_owned()))
    }

    fn change(change: impl FnOnce(&mut ProjectFile)) -> Result<PathBuf, Failure> {
        let mut project = match Self::find()? {
            Some(project) => project,
            None => ProjectFile { path: PathBuf::from(PROJECT_FILE), ..ProjectFile::default() },
        };
        change(&mut project);
        fs::write(&project.path, project.text())
            .map_err(|error| Failure::local(format!("{} cannot be written", project.path.display()), &error))?;
        Ok(project.path)
    }

    fn text(&self) -> String {
        let settings = [("branch", &self.branch), ("connector", &self.connector), ("url", &self.url)];
        let lines = settings.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        lines.map(|(name, value)| format!("{name} = {value}\n")).collect()
    }
}

/// The server to talk to, and the token.
#[derive(Clone)]
pub struct Session {
    /// The server's API, without a slash at the end.
    pub url: String,
    /// The token, if there is one.
    pub token: Option<String>,
}

impl Session {
    /// As flag, environment, project and user say.
    pub fn resolve(url_flag: Option<&str>) -> Result<Self, Failure> {
        let user = UserConfig::load()?;
        let url = match url_flag {
            Some(url) => url.to_owned(),
            None => match ProjectFile::find()?.and_then(|project| project.url) {
                Some(url) => url,
                None => user.url.clone().unwrap_or_else(|| format!("http://127.0.0.1:{DEFAULT_API_PORT}")),
            },
        };
        let url = url.trim_end_matches('/').to_owned();
        let token = match env::var("ARDENT_TOKEN").ok().filter(|token| !token.is_empty()) {
            Some(token) => Some(token),
            // A token is only sent to the server that it was made for.
            None => user.token.filter(|_| user.url.as_deref().is_none_or(|known| known == url)),
        };
        Ok(Session { url, token })
    }
}

/// The branch that a command is about: the argument, the environment's, or the project's.
pub fn branch_or_default(given: Option<&str>) -> Result<String, Failure> {
    if let Some(name) = given.filter(|name| !name.is_empty()) {
        return Ok(name.to_owned());
    }
    if let Some(name) = env::var("ARDENT_BRANCH").ok().filter(|name| !name.is_empty()) {
        return Ok(name);
    }
    if let Some(name) = ProjectFile::find()?.and_then(|project| project.branch) {
        return Ok(name);
    }
    Err(Failure::usage("no branch is named")
        .code(ApiErrorCode::InvalidArguments)
        .hint("name one, set ARDENT_BRANCH, or make one this folder's default: ardent branch switch NAME"))
}

/// The connector that is meant where none is named: the environment's, or the project's; absent: the only one that there is.
pub fn default_connector() -> Result<Option<String>, Failure> {
    match env::var("ARDENT_CONNECTOR").ok().filter(|name| !name.is_empty()) {
        Some(name) => Ok(Some(name)),
        None => Ok(ProjectFile::find()?.and_then(|project| project.connector)),
    }
}

/// The branch to start from: the argument, or the root of the default connector, which has its name; absent: the only root.
pub fn from_or_default(given: Option<&str>) -> Result<Option<String>, Failure> {
    match given {
        Some(name) => Ok(Some(name.to_owned())),
        None => default_connector(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn project_files_hold_settings_and_no_secrets() {
        let parse = |text: &str| ProjectFile::parse(Path::new(".ardent"), text);
        let project = parse("# ours\n\nbranch = feature-x\nurl=http://h:1\n").expect("valid");
        assert_eq!((project.branch.as_deref(), project.url.as_deref()), (Some("feature-x"), Some("http://h:1")));
        assert_eq!(project.connector, None);
        assert_eq!(project.text(), "branch = feature-x\nurl = http://h:1\n");
        let switched = ProjectFile { connector: Some("shop".to_owned()), ..project };
        assert_eq!(switched.text(), "branch = feature-x\nconnector = shop\nurl = http://h:1\n");
        assert_eq!(parse(&switched.text()).expect("its own"), switched);
        for bad in ["branch", "token = x", "colour = red"] {
            assert!(parse(bad).is_err(), "{bad:?} parsed");
        }
    }
}
