//! `ardent branch diff`.

use std::io::{self, IsTerminal as _, Write};

use ardent_api::control::DiffRequest;
use ardent_change_set::{ChangeSetFile, script, write_file};
use ardent_diff::{ChangeSet, DiffReport, SchemaChange, Style, render_people, render_stat};
use serde_json::json;

use super::{pager, path_name};
use crate::api::Api;
use crate::args::BranchDiffArgs;
use crate::config::branch_or_default;
use crate::failure::Failure;
use crate::output::Output;

/// Shows what changed on a branch: since it was made, since an LSN, or against another branch.
pub fn run(output: &Output, api: &Api, args: &BranchDiffArgs) -> Result<(), Failure> {
    let name = path_name(&branch_or_default(args.name.as_deref())?)?;
    let mut report = fetch(output, api, &name, &args.table, args.against.as_deref())?;
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
        Some(path) => keep(output, path, report)?,
        None => show(output, args, &mut report)?,
    }
    if args.exit_code && differs { Err(Failure::differences()) } else { Ok(()) }
}

/// Asks the server for a diff.
pub fn fetch(
    output: &Output,
    api: &Api,
    name: &str,
    tables: &[String],
    against: Option<&str>,
) -> Result<DiffReport, Failure> {
    let request = DiffRequest { tables: tables.to_vec(), against: against.map(str::to_owned) };
    let report: DiffReport = api.post_long(&format!("/v1/branches/{name}/diff"), &request)?;
    for database in &report.databases_not_compared {
        output.warning(&format!(
            "database {database} is not there on the other side under this name: it was not compared"
        ));
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

fn keep(output: &Output, path: &std::path::Path, report: DiffReport) -> Result<(), Failure> {
    write_file(path, &file_content(report))
        .map_err(|error| Failure::local(format!("{} cannot be written", path.display()), &error))?;
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
    let sets = &report.databases;
    if args.ndjson {
        return output.stream(|out| sets.iter().try_for_each(|set| lines(out, set)));
    }
    if args.sql {
        return output.stream(|out| sets.iter().try_for_each(|set| script(out, set)));
    }
    if output.json {
        return output.stream(|out| {
            serde_json::to_writer(&mut *out, &report)?;
            writeln!(out)
        });
    }
    let terminal = io::stdout().is_terminal();
    let style = Style { color: terminal && output.colors_allowed, full: args.full };
    let write = |out: &mut dyn Write| {
        if args.stat { render_stat(out, sets) } else { render_people(out, sets, style) }
    };
    if terminal { pager::show(output, write) } else { output.stream(write) }
}

/// One object for each change, a line each.
fn lines(out: &mut dyn Write, set: &ChangeSet) -> io::Result<()> {
    let database = &set.database;
    let mut line = |value: serde_json::Value| -> io::Result<()> {
        serde_json::to_writer(&mut *out, &value)?;
        writeln!(out)
    };
    for statement in &set.schema.statements {
        line(
            json!({ "type": "statement", "database": database, "action": statement.action, "kind": statement.kind, "object": statement.object, "sql": statement.sql }),
        )?;
    }
    for what in &set.schema.not_covered {
        line(json!({ "type": "not_covered", "database": database, "what": what }))?;
    }
    for table in &set.tables {
        let name = json!({ "schema": table.schema, "table": table.name });
        line(
            json!({ "type": "table", "database": database, "schema": table.schema, "table": table.name, "state": table.state, "renamed_from": table.renamed_from,
            "columns": table.columns, "key": table.key, "columns_added": table.columns_added, "columns_dropped": table.columns_dropped }),
        )?;
        for row in table.rows.iter() {
            line(json!({ "type": "row", "database": database, "of": name, "row": row.map_err(io::Error::other)? }))?;
        }
    }
    for sequence in &set.sequences {
        line(json!({ "type": "sequence", "database": database, "sequence": sequence }))?;
    }
    for object in &set.large_objects {
        line(json!({ "type": "large_object", "database": database, "large_object": object }))?;
    }
    Ok(())
}
