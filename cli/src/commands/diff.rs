//! `ardent branch diff`.

use std::fs;
use std::io::{self, IsTerminal as _};

use ardent_api::control::DiffRequest;
use ardent_change_set::{ChangeSetFile, script, write};
use ardent_diff::{ChangeSet, DiffReport, SchemaChange, Style, render_people, render_stat};
use serde_json::json;

use super::{pager, path_name};
use crate::api::Api;
use crate::args::BranchDiffArgs;
use crate::config::branch_or_default;
use crate::failure::Failure;
use crate::output::Output;

/// Shows what changed on a branch since it was made.
pub fn run(output: &Output, api: &Api, args: &BranchDiffArgs) -> Result<(), Failure> {
    let name = path_name(&branch_or_default(args.name.as_deref())?)?;
    let mut report = fetch(output, api, &name, &args.table)?;
    for set in &mut report.databases {
        if args.data_only {
            set.schema = SchemaChange::default();
        }
        if args.schema_only {
            *set = ChangeSet {
                database: std::mem::take(&mut set.database),
                schema: std::mem::take(&mut set.schema),
                ..ChangeSet::default()
            };
        }
    }
    report.databases.retain(|set| !set.is_empty());
    let differs = !report.databases.is_empty() || !report.databases_not_compared.is_empty();
    match &args.output {
        Some(path) => write_file(output, path, report)?,
        None => show(output, args, &mut report)?,
    }
    if args.exit_code && differs { Err(Failure::differences()) } else { Ok(()) }
}

/// Asks the server for a diff.
pub fn fetch(output: &Output, api: &Api, name: &str, tables: &[String]) -> Result<DiffReport, Failure> {
    let request = DiffRequest { tables: tables.to_vec() };
    let report: DiffReport = api.post(&format!("/v1/branches/{name}/diff"), &request)?;
    for database in &report.databases_not_compared {
        output.warning(&format!("database {database} is not at the branch point under this name: it was not compared"));
    }
    Ok(report)
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

fn write_file(output: &Output, path: &std::path::Path, report: DiffReport) -> Result<(), Failure> {
    let bytes = write(&file_content(report)).map_err(|error| Failure::of(&error))?;
    fs::write(path, bytes).map_err(|error| Failure::local(format!("{} cannot be written", path.display()), &error))?;
    output.note(&format!("wrote {}; apply it with: ardent branch apply {} --to URL", path.display(), path.display()));
    Ok(())
}

fn show(output: &Output, args: &BranchDiffArgs, report: &mut DiffReport) -> Result<(), Failure> {
    // What undoes it is for files.
    for set in report.databases.iter_mut().filter(|_| output.json || args.ndjson) {
        set.schema.undo.clear();
        set.schema.undo_not_covered.clear();
        set.schema.touched.clear();
        for table in &mut set.tables {
            table.base_columns.clear();
        }
    }
    if args.ndjson {
        return report.databases.iter().flat_map(lines).try_for_each(|line| output.line(&line.to_string()));
    }
    if args.sql {
        return report.databases.iter().try_for_each(|set| output.line(script(set).trim_end_matches('\n')));
    }
    if output.json {
        return output.data(report, |_| String::new());
    }
    let terminal = io::stdout().is_terminal();
    let style = Style { color: terminal && output.colors_allowed, full: args.full };
    let text = if args.stat { render_stat(&report.databases) } else { render_people(&report.databases, style) };
    if terminal { pager::show(output, &text) } else { output.line(text.trim_end_matches('\n')) }
}

/// One object for each change.
fn lines(set: &ChangeSet) -> Vec<serde_json::Value> {
    let database = &set.database;
    let mut lines = Vec::new();
    for statement in &set.schema.statements {
        lines.push(json!({ "type": "statement", "database": database, "action": statement.action, "kind": statement.kind, "object": statement.object, "sql": statement.sql }));
    }
    for what in &set.schema.not_covered {
        lines.push(json!({ "type": "not_covered", "database": database, "what": what }));
    }
    for table in &set.tables {
        let name = json!({ "schema": table.schema, "table": table.name });
        lines.push(json!({ "type": "table", "database": database, "schema": table.schema, "table": table.name, "state": table.state, "renamed_from": table.renamed_from,
            "columns": table.columns, "key": table.key, "columns_added": table.columns_added, "columns_dropped": table.columns_dropped }));
        for row in &table.rows {
            lines.push(json!({ "type": "row", "database": database, "of": name, "row": row }));
        }
    }
    lines.extend(
        set.sequences.iter().map(|sequence| json!({ "type": "sequence", "database": database, "sequence": sequence })),
    );
    lines.extend(
        set.large_objects
            .iter()
            .map(|object| json!({ "type": "large_object", "database": database, "large_object": object })),
    );
    lines
}
