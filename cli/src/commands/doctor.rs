//! `ardent doctor`: what is missing on this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use ardent_agent::ServerPrograms;
use ardent_api::control::{
    ApiErrorCode, CheckOutcome, ConnectorInfo, ConnectorList, ErrorInfo, PreflightCheck, SCHEMA_VERSION, StatusReply,
};
use ardent_pg_format::PgMajor;

use super::disk_space;
use super::safekeepers::{self, Concern};
use super::storage;
use crate::api::Api;
use crate::args::{DoctorArgs, StoreArgs};
use crate::failure::Failure;
use crate::output::Output;
use crate::up::object_store::{self, StorePlace};
use crate::up::{library, names};

#[derive(Serialize)]
struct Report {
    schema_version: u32,
    passed: bool,
    checks: Vec<PreflightCheck>,
}

/// Runs the command.
pub fn run(output: &Output, url_flag: Option<&str>, args: &DoctorArgs) -> Result<(), Failure> {
    let given: BTreeMap<u32, PathBuf> = args.pg_bin.iter().cloned().collect();
    let mut checks = majors(&given);
    checks.push(sandbox());
    checks.push(psql());
    checks.push(host_names());
    if let Some(place) = &args.store.store {
        output.note("trying the store; one that does not answer is given up after half a minute");
        checks.push(store(place, &args.store));
    }
    checks.extend(server(url_flag));
    let passed = checks.iter().all(|check| check.outcome != CheckOutcome::Failed);
    let report = Report { schema_version: SCHEMA_VERSION, passed, checks };
    output.data(&report, |report| {
        let mut out = String::new();
        for check in &report.checks {
            let mark = match check.outcome {
                CheckOutcome::Ok => "ok     ",
                CheckOutcome::Warning => "warning",
                CheckOutcome::Failed => "FAILED ",
            };
            out.push_str(&format!("{mark}  {}: {}\n", check.name, check.message));
            if let Some(fix) = &check.fix {
                out.push_str(&format!("           {fix}\n"));
            }
        }
        out
    })?;
    if passed {
        return Ok(());
    }
    Err(ErrorInfo::new(ApiErrorCode::PreflightFailed, "this machine cannot run branches yet")
        .with_hint("mend what failed, and run ardent doctor again")
        .into())
}

fn check(name: &str, outcome: CheckOutcome, message: String, fix: Option<&str>) -> PreflightCheck {
    PreflightCheck { name: name.to_owned(), outcome, message, fix: fix.map(str::to_owned) }
}

/// What there is of each major. A folder that a user has named must hold one; some major must be whole; what the others lack matters
/// only to who has a production of it.
fn majors(named: &BTreeMap<u32, PathBuf>) -> Vec<PreflightCheck> {
    let mut checks = Vec::new();
    let mut absent = Vec::new();
    let mut whole = false;
    for major in PgMajor::ALL.map(PgMajor::number) {
        match ServerPrograms::find(major, named.get(&major).map(PathBuf::as_path)) {
            Ok(programs) => {
                let found = [server_programs(major, &programs), compute_library(major)];
                whole |= found.iter().all(|check| check.outcome == CheckOutcome::Ok);
                checks.extend(found);
            }
            Err(error) if named.contains_key(&major) => {
                checks.push(check(&format!("postgres_{major}"), CheckOutcome::Failed, error.to_string(), None));
            }
            Err(_) => absent.push(major.to_string()),
        }
    }
    let fix = "install postgresql-MAJOR and postgresql-contrib of production's major, or give --pg-bin MAJOR=DIR";
    if !whole {
        let message = "there is no major with both its server programs and the library that computes load".to_owned();
        checks.push(check("postgres", CheckOutcome::Failed, message, Some(fix)));
    } else if !absent.is_empty() {
        let message =
            format!("no server programs of Postgres {}: productions of these cannot be connected", absent.join(", "));
        checks.push(check("other_majors", CheckOutcome::Ok, message, None));
    }
    checks
}

fn server_programs(major: u32, programs: &ServerPrograms) -> PreflightCheck {
    let name = format!("postgres_{major}");
    let folder = programs.bin_dir.display();
    match first_line(&programs.postgres(), &["--version"]) {
        Some(version) => check(&name, CheckOutcome::Ok, format!("{version} in {folder}"), None),
        None => check(&name, CheckOutcome::Failed, format!("the server in {folder} does not run"), None),
    }
}

fn compute_library(major: u32) -> PreflightCheck {
    let name = format!("compute_library_{major}");
    match library::embedded(major) {
        Some(library) => check(&name, CheckOutcome::Ok, format!("built in ({})", library.hash), None),
        None => {
            let fix = format!(
                "install the server headers (Debian: postgresql-server-dev-{major}), and build again with: make build"
            );
            let message = format!(
                "this program was built without the library that computes of Postgres {major} load: productions of it cannot be connected"
            );
            check(&name, CheckOutcome::Warning, message, Some(&fix))
        }
    }
}

fn sandbox() -> PreflightCheck {
    match ardent_agent::probe_sandbox() {
        Ok(()) => check("sandbox", CheckOutcome::Ok, "bubblewrap works".to_owned(), None),
        Err(why) => check(
            "sandbox",
            CheckOutcome::Failed,
            format!("bubblewrap does not work here: {why}"),
            Some(
                "install it (Debian: apt-get install bubblewrap), in a chroot run as root, or run ardent up --no-sandbox if you trust every branch's users",
            ),
        ),
    }
}

fn psql() -> PreflightCheck {
    match first_line(Path::new("psql"), &["--version"]) {
        Some(version) => check("psql", CheckOutcome::Ok, version, None),
        None => check(
            "psql",
            CheckOutcome::Warning,
            "psql is not installed; other clients work as well".to_owned(),
            Some("apt-get install postgresql-client"),
        ),
    }
}

fn host_names() -> PreflightCheck {
    if names::localhost_names_resolve() {
        check("host_names", CheckOutcome::Ok, "NAME.localhost resolves; branches have hostnames".to_owned(), None)
    } else {
        let message =
            "NAME.localhost does not resolve here; connection strings use 127.0.0.1 with options=branch%3DNAME";
        check("host_names", CheckOutcome::Ok, message.to_owned(), None)
    }
}

fn store(place: &StorePlace, args: &StoreArgs) -> PreflightCheck {
    match object_store::examine(place, args) {
        Ok(found) => check("store", CheckOutcome::Ok, found, None),
        Err(failure) => check("store", CheckOutcome::Failed, failure.info.message, failure.info.hint.as_deref()),
    }
}

/// The server, and how its safekeepers are.
fn server(url_flag: Option<&str>) -> Vec<PreflightCheck> {
    let asked = Api::new(url_flag).and_then(|api| {
        let status = api.get::<StatusReply>("/v1/status")?;
        Ok((status, api.url().to_owned(), api.get::<ConnectorList>("/v1/connectors"), safekeepers::ask(&api)))
    });
    let failed = |name: &str, failure: Failure| {
        check(name, CheckOutcome::Warning, failure.info.message, failure.info.hint.as_deref())
    };
    let (status, url, connectors, safekeepers) = match asked {
        Ok(told) => told,
        Err(failure) => return vec![failed("server", failure)],
    };
    let mut checks = vec![check("server", CheckOutcome::Ok, format!("version {} at {url}", status.version), None)];
    checks.extend(status.open_files_max.map(|max| open_files(max, status.branches)));
    let told = safekeepers.as_ref().map(|told| told.safekeepers.as_slice()).unwrap_or_default();
    checks.extend(disks(&disk_space::disks(&status, told)));
    checks.extend(
        storage::concern(&status.storage_problems)
            .map(|concern| check("storage", CheckOutcome::Warning, concern.message, Some(&concern.fix))),
    );
    if let Some(problem) = status.clock_problem {
        checks.push(check("clock", CheckOutcome::Warning, problem, Some("date; timedatectl status")));
    }
    match connectors {
        Ok(list) => checks.extend(list.connectors.iter().flat_map(connector_warnings)),
        Err(failure) => checks.push(failed("connectors", failure)),
    }
    let safekeepers = match safekeepers {
        Ok(safekeepers) => safekeepers,
        Err(failure) => {
            checks.push(failed("safekeepers", failure));
            return checks;
        }
    };
    let mut concerns = safekeepers::concerns(&safekeepers.safekeepers);
    concerns.extend(safekeepers::change_concern(&safekeepers));
    if concerns.is_empty() {
        let change = safekeepers::change_text(&safekeepers).map(|change| format!("; change: {change}"));
        let summary = format!("{}{}", safekeepers::summary(&safekeepers.safekeepers), change.unwrap_or_default());
        checks.push(check("safekeepers", CheckOutcome::Ok, summary, None));
    }
    let warning =
        |concern: Concern| check("safekeepers", CheckOutcome::Warning, concern.message, Some(concern.fix.as_str()));
    checks.extend(concerns.into_iter().map(warning));
    checks
}

/// What is to be known of a production.
fn connector_warnings(connector: &ConnectorInfo) -> Vec<PreflightCheck> {
    let fix = format!("ardent connector status {}", connector.name);
    let warning = |warning: &String| {
        check("connectors", CheckOutcome::Warning, format!("connector {}: {warning}", connector.name), Some(&fix))
    };
    connector.warnings.iter().map(warning).collect()
}

/// Whether there is room on the server's disks.
fn disks(disks: &[disk_space::Disk]) -> Vec<PreflightCheck> {
    let concerns = disk_space::concerns(disks);
    if concerns.is_empty() {
        let text = disk_space::text(disks);
        return text.into_iter().map(|text| check("disks", CheckOutcome::Ok, text, None)).collect();
    }
    let warning = |concern: Concern| check("disks", CheckOutcome::Warning, concern.message, Some(&concern.fix));
    concerns.into_iter().map(warning).collect()
}

/// Whether the server may have as many files open as its branches may come to need.
fn open_files(max: u64, branches: u64) -> PreflightCheck {
    let needed = ardent_open_files::needed(branches);
    if needed <= max {
        let message = format!("the server may have {max}, and needs {needed} with {branches} branches in use at once");
        return check("open_files", CheckOutcome::Ok, message, None);
    }
    let message = format!(
        "the server may have {max}; with all of its {branches} branches in use at once it needs about {needed}, and some could not be written to"
    );
    let fix = "start the server with a higher hard limit (systemd: LimitNOFILE=, a shell: ulimit -Hn)";
    check("open_files", CheckOutcome::Warning, message, Some(fix))
}

fn first_line(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_on_open_files_is_measured_by_the_branches() {
        let few = open_files(1024, 3);
        assert_eq!((few.outcome, few.fix), (CheckOutcome::Ok, None));
        let many = open_files(1024, 1000);
        assert_eq!(many.outcome, CheckOutcome::Warning);
        for word in ["1024", "1000 branches", "32256"] {
            assert!(many.message.contains(word), "no {word:?} in {}", many.message);
        }
        assert!(many.fix.is_some_and(|fix| fix.contains("LimitNOFILE")));
    }
}
