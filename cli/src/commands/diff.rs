//! `ardent branch diff`.

use std::io::{self, IsTerminal as _, Write};
use std::path::Path;
use std::time::Duration;

use ardent_api::control::{DiffPart, DiffRequest, SCHEMA_VERSION};
use ardent_change_set::{ChangeSetFile, script, write_file};
use ardent_diff::{DiffReport, DiffStat, Style, render_people, render_stat};
use ardent_types::Lsn;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{diff_lines, pager, path_name};
use crate::api::Api;
use crate::args::BranchDiffArgs;
use crate::config::branch_or_default;
use crate::failure::Failure;
use crate::output::Output;

/// Shows what changed on a branch: since it was made, since a checkpoint or an LSN, or against another branch.
pub fn run(output: &Output, api: &Api, args: &BranchDiffArgs) -> Result<(), Failure> {
    let name = path_name(&branch_or_default(args.name.as_deref())?)?;
    let part = match (args.schema_only, args.data_only) {
        (true, _) => Some(DiffPart::Schema),
        (_, true) => Some(DiffPart::Rows),
        _ => None,
    };
    let request =
        DiffRequest { tables: args.table.clone(), against: args.against.clone(), since: args.since.clone(), part };
    if args.ndjson {
        let told = diff_lines::run(api, &name, &request)?;
        warn_of(output, &told.databases_not_compared);
        let differs = told.is_change || !told.databases_not_compared.is_empty();
        return if args.exit_code && differs { Err(Failure::differences()) } else { Ok(()) };
    }
    let mut report = fetch(output, api, &name, &request)?;
    let differs = !report.databases.is_empty() || !report.databases_not_compared.is_empty();
    match &args.output {
        Some(path) => keep(output, path, report)?,
        None => show(output, args, &mut report)?,
    }
    if args.exit_code && differs { Err(Failure::differences()) } else { Ok(()) }
}

/// What `--json` prints of a diff that went to a file.
#[derive(Serialize)]
struct Kept<'a> {
    schema_version: u32,
    branch: &'a str,
    from_lsn: Lsn,
    to_lsn: Lsn,
    file: &'a Path,
}

/// Asks the server for a diff.
pub fn ask(api: &Api, name: &str, request: &DiffRequest) -> Result<DiffReport, Failure> {
    api.post_long(&format!("/v1/branches/{}/diff", path_name(name)?), request)
}

/// How often a terminal is told for how long a comparison runs.
const TELL_PERIOD: Duration = Duration::from_secs(1);

/// The same; says on a terminal that it runs, and what was not compared.
fn fetch(output: &Output, api: &Api, name: &str, request: &DiffRequest) -> Result<DiffReport, Failure> {
    let running = (!output.json && io::stderr().is_terminal()).then(|| {
        let line = ProgressBar::new_spinner().with_message(format!("comparing {name}"));
        // The template is fixed; were it wrong, the default look does.
        if let Ok(style) = ProgressStyle::with_template("{msg}, for {elapsed}") {
            line.set_style(style);
        }
        line.enable_steady_tick(TELL_PERIOD);
        line
    });
    let report = ask(api, name, request);
    if let Some(line) = running {
        line.finish_and_clear();
    }
    let report = report?;
    warn_of(output, &report.databases_not_compared);
    Ok(report)
}

pub fn warn_of(output: &Output, databases: &[String]) {
    for database in databases {
        output.warning(&not_compared(database));
    }
}

/// What is said of a database that only one side has.
pub fn not_compared(database: &str) -> String {
    format!("database {database} is not there on the other side under this name: it was not compared")
}

/// What a diff says, as a file's content.
pub fn file_content(report: DiffReport) -> ChangeSetFile {
    ChangeSetFile {
        branch: report.branch,
        from_lsn: report.from_lsn,
        to_lsn: report.to_lsn,
        databases: report.databases,
    }
}

fn keep(output: &Output, path: &Path, report: DiffReport) -> Result<(), Failure> {
    let content = file_content(report);
    write_file(path, &content)
        .map_err(|error| Failure::local(format!("{} cannot be written", path.display()), &error))?;
    if output.json {
        let kept = Kept {
            schema_version: SCHEMA_VERSION,
            branch: &content.branch,
            from_lsn: content.from_lsn,
            to_lsn: content.to_lsn,
            file: path,
        };
        return output.data(&kept, |_| String::new());
    }
    output.note(&format!("wrote {}; apply it with: ardent branch apply {} --to URL", path.display(), path.display()));
    Ok(())
}

/// Takes out what undoes it, which is for files.
fn without_undo(report: &mut DiffReport) {
    for set in &mut report.databases {
        set.schema.undo.clear();
        set.schema.undo_not_covered.clear();
        set.schema.touched.clear();
        set.schema.undo_touched.clear();
        set.labels.clear();
        for table in &mut set.tables {
            table.base_columns.clear();
            table.copies = Default::default();
        }
    }
}

/// What `--json` prints of a diff.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Shown<'a> {
    /// All of it, but for what undoes it.
    Whole(&'a DiffReport),
    /// With `--stat`: counts.
    Stat(DiffStat<'a>),
}

impl<'a> Shown<'a> {
    /// Everything, or counts alone.
    pub fn of(report: &'a mut DiffReport, stat: bool) -> Result<Shown<'a>, Failure> {
        if stat {
            return DiffStat::of(report).map(Shown::Stat).map_err(|error| Failure::of(&error));
        }
        without_undo(report);
        Ok(Shown::Whole(report))
    }
}

fn show(output: &Output, args: &BranchDiffArgs, report: &mut DiffReport) -> Result<(), Failure> {
    if output.json {
        let shown = Shown::of(report, args.stat)?;
        return output.stream(|out| {
            serde_json::to_writer(&mut *out, &shown)?;
            writeln!(out)
        });
    }
    let sets = &report.databases;
    if args.sql {
        return output.stream(|out| sets.iter().try_for_each(|set| script(out, set)));
    }
    let terminal = io::stdout().is_terminal();
    let style = Style { color: terminal && output.colors_allowed, full: args.full };
    let write = |out: &mut dyn Write| {
        if args.stat { render_stat(out, sets) } else { render_people(out, sets, style) }
    };
    if terminal { pager::show(output, write) } else { output.stream(write) }
}

#[cfg(test)]
mod tests {
    use ardent_diff::{ChangeSet, EnumLabel};
    use ardent_types::Lsn;

    use super::*;

    #[test]
    fn json_has_nothing_that_is_for_files_alone() {
        let label = EnumLabel { schema: "s".to_owned(), name: "mood".to_owned(), oid: 16_384, label: "sad".to_owned() };
        let set = ChangeSet { database: "shop".to_owned(), labels: vec![label], ..ChangeSet::default() };
        let mut report = DiffReport {
            schema_version: SCHEMA_VERSION,
            branch: "work".to_owned(),
            against: None,
            from_lsn: Lsn::INVALID,
            to_lsn: Lsn::INVALID,
            changed_blocks: 1,
            pages_read_branch_point: 1,
            pages_read_head: 1,
            databases: vec![set],
            databases_not_compared: Vec::new(),
        };
        assert!(serde_json::to_string(&report).expect("plain data").contains("mood"), "a file has it");
        let shown = Shown::of(&mut report, false).expect("all of it");
        assert!(!serde_json::to_string(&shown).expect("plain data").contains("mood"));
    }
}
