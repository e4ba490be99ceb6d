//! Finding the server programs of one major version.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::ComputeError;

/// Where distributions install server programs; `{}` is the major.
const USUAL_FOLDERS: [&str; 5] = [
    "/usr/lib/postgresql/{}/bin",
    "/usr/pgsql-{}/bin",
    "/usr/lib/postgresql{}/bin",
    "/opt/homebrew/opt/postgresql@{}/bin",
    "/usr/local/pgsql/bin",
];

/// The server programs of one major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerPrograms {
    /// Folder with `postgres`.
    pub bin_dir: PathBuf,
}

impl ServerPrograms {
    /// Looks, in this order, at `given`, `ARDENT_PG_BIN_<MAJOR>`, the distributions' usual folders, `pg_config --bindir`.
    /// A folder that was named explicitly is not fallen back from.
    pub fn find(major: u32, given: Option<&Path>) -> Result<Self, ComputeError> {
        let variable = format!("ARDENT_PG_BIN_{major}");
        let named = given.map(Path::to_owned).or_else(|| std::env::var_os(&variable).map(PathBuf::from));
        let candidates = match named {
            Some(folder) => vec![folder],
            None => {
                let usual = USUAL_FOLDERS.iter().map(|folder| PathBuf::from(folder.replace("{}", &major.to_string())));
                usual.chain(pg_config_bindir(major)).collect()
            }
        };
        match candidates.iter().find(|folder| folder.join("postgres").is_file()) {
            Some(folder) => Ok(ServerPrograms { bin_dir: folder.clone() }),
            None => Err(ComputeError::NoPostgres {
                major,
                looked_in: candidates.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The server.
    pub fn postgres(&self) -> PathBuf {
        self.bin_dir.join("postgres")
    }

    /// Whether the loadable library `name` of `shared_preload_libraries` is installed here.
    pub fn has_library(&self, name: &str) -> bool {
        let file = name.strip_prefix("$libdir/").unwrap_or(name);
        let file = if file.ends_with(".so") { file.to_owned() } else { format!("{file}.so") };
        if Path::new(&file).is_absolute() {
            return Path::new(&file).is_file();
        }
        let Some(prefix) = self.bin_dir.parent() else { return false };
        ["lib", "lib/postgresql"].iter().any(|folder| prefix.join(folder).join(&file).is_file())
    }

    /// Whether the server has a setting of this name, as it says itself. One that cannot be asked is taken to have none.
    pub(crate) fn knows_setting(&self, name: &str) -> bool {
        let output = Command::new(self.postgres()).arg("--describe-config").output();
        let described = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        described.lines().any(|line| line.split('\t').next() == Some(name))
    }

    /// The folders outside `/usr` that a sandbox must show for the server to run.
    pub fn private_folders(&self) -> Vec<PathBuf> {
        if self.bin_dir.starts_with("/usr") {
            return Vec::new();
        }
        let prefix = self.bin_dir.parent().unwrap_or(&self.bin_dir);
        ["bin", "lib", "share"].iter().map(|folder| prefix.join(folder)).filter(|folder| folder.is_dir()).collect()
    }
}

/// What `pg_config` says, if it belongs to this major.
fn pg_config_bindir(major: u32) -> Option<PathBuf> {
    let ask = |option: &str| {
        let output = Command::new("pg_config").arg(option).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let version = ask("--version")?;
    let number = version.split_whitespace().nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?;
    (number == major.to_string()).then(|| ask("--bindir").map(PathBuf::from))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_folder_is_found_and_a_named_one_is_not_fallen_back_from() {
        let found = ServerPrograms::find(15, None).expect("postgresql-15 is installed");
        assert!(found.postgres().is_file());
        assert!(found.has_library("pg_stat_statements") && !found.has_library("no_such_library"));
        assert!(found.knows_setting("work_mem") && !found.knows_setting("no_such_setting"));
        let missing = ServerPrograms::find(15, Some(Path::new("/nonexistent"))).expect_err("nothing there");
        assert_eq!(missing.code(), "no_postgres");
    }
}
