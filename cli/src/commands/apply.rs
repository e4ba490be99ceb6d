//! `ardent branch apply`.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ardent_api::control::{ApiErrorCode, ErrorInfo, SCHEMA_VERSION};
use ardent_change_set::{Applied, ApplyOptions, ChangeSetFile, Conflict, apply, read, write};
use ardent_diff::{ChangeSet, Part};
use serde::Serialize;
use tokio_postgres::{Config, NoTls};

use super::{diff, path_name};
use crate::api::Api;
use crate::args::BranchApplyArgs;
use crate::failure::Failure;
use crate::output::Output;

/// What is printed.
#[derive(Debug, Serialize)]
struct Reply {
    schema_version: u32,
    applied: bool,
    dry_run: bool,
    statements: u64,
    inserted: u64,
    updated: u64,
    deleted: u64,
    already_there: u64,
    conflicts: Vec<Conflict>,
    notes: Vec<String>,
    inverse_file: Option<String>,
}

/// Applies a branch's changes, or a file's, to a database.
pub fn run(output: &Output, api: &Api, args: &BranchApplyArgs) -> Result<(), Failure> {
    let path = Path::new(&args.source);
    let content = if path.is_file() {
        read_file(path)?
    } else {
        let name = path_name(&args.source).map_err(|failure| {
            failure.hint("give a branch's name, or the path of a file that ardent branch diff -o wrote")
        })?;
        diff::file_content(diff::fetch(output, api, &name, &[])?)
    };
    let config = target_config(&args.to)?;
    let database = args.database.as_deref().or(config.get_dbname()).unwrap_or("postgres");
    let set = content.databases.iter().find(|set| set.database == database).cloned();
    let set = set.unwrap_or_else(|| ChangeSet { database: database.to_owned(), ..ChangeSet::default() });
    for other in content.databases.iter().filter(|other| other.database != database) {
        output.warning(&format!(
            "database {} has changes too: they are applied with --database {}",
            other.database, other.database
        ));
    }
    let part = match (args.schema_only, args.data_only) {
        (true, _) => Part::Schema,
        (_, true) => Part::Rows,
        _ => Part::Whole,
    };
    let options = ApplyOptions {
        tables: args.table.clone(),
        part,
        dry_run: args.dry_run,
        lock_timeout_ms: args.lock_timeout.saturating_mul(1000),
        statement_timeout_ms: args.statement_timeout.saturating_mul(1000),
    };
    // Where it goes is known, and can be written, before anything is changed.
    let inverse_path = (!args.dry_run).then(|| args.inverse.clone().unwrap_or_else(|| inverse_name(&content.branch)));
    if let Some(path) = &inverse_path {
        fs::write(path, []).map_err(|error| {
            Failure::local(format!("{} cannot be written", path.display()), &error)
                .hint("choose another place with --inverse")
        })?;
    }
    let applied = run_apply(output, &config, &set, &options);
    let kept = match (&applied, &inverse_path) {
        (Ok(applied), Some(path)) if applied.conflicts.is_empty() => {
            let inverse = ChangeSetFile { databases: vec![applied.inverse.clone()], ..content.clone() };
            let bytes = write(&inverse).map_err(|error| Failure::of(&error))?;
            fs::write(path, bytes).map_err(|error| {
                Failure::local(format!("it was applied, but {} cannot be written", path.display()), &error)
            })?;
            Some(path)
        }
        (_, Some(path)) => {
            // Nothing was changed: there is nothing to undo, and an empty file is no change set.
            let _ = fs::remove_file(path);
            None
        }
        _ => None,
    };
    print(output, args, applied?, kept)
}

fn read_file(path: &Path) -> Result<ChangeSetFile, Failure> {
    let bytes = fs::read(path).map_err(|error| Failure::local(format!("{} cannot be read", path.display()), &error))?;
    read(&bytes).map_err(|error| {
        Failure::local(format!("{} cannot be applied", path.display()), &error)
            .hint("write it again: ardent branch diff NAME -o FILE")
    })
}

fn target_config(url: &str) -> Result<Config, Failure> {
    let mut text = url.to_owned();
    if url == "-" {
        text.clear();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| Failure::local("standard input cannot be read", &error))?;
    }
    let mut config: Config = text.trim().parse().map_err(|error| {
        let _: tokio_postgres::Error = error;
        Failure::usage("--to is no connection string").hint("give postgresql://ROLE:PASSWORD@HOST:PORT/DATABASE")
    })?;
    config.application_name("ardent branch apply");
    Ok(config)
}

fn run_apply(output: &Output, config: &Config, set: &ChangeSet, options: &ApplyOptions) -> Result<Applied, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::local("no threads can be started", &error))?;
    runtime.block_on(async {
        let (client, connection) = config.connect(NoTls).await.map_err(|error| {
            let info = Failure::local("the target cannot be reached", &error).info;
            Failure::from(ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, info.message))
                .hint("see whether the URL is right with psql; a target that insists on TLS is not supported yet")
        })?;
        let connection = tokio::spawn(connection);
        let applied = apply(&client, set, options, |line| output.note(line)).await;
        drop(client);
        // Its errors reached the statements.
        let _ = connection.await;
        applied.map_err(|error| {
            Failure::of(&error)
                .hint("nothing was changed; --dry-run shows what would be, --lock-timeout waits longer for locks")
        })
    })
}

fn inverse_name(branch: &str) -> PathBuf {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    PathBuf::from(format!("{branch}-undo-{seconds}.changes"))
}

fn print(output: &Output, args: &BranchApplyArgs, applied: Applied, inverse: Option<&PathBuf>) -> Result<(), Failure> {
    let conflicts = applied.conflicts.len();
    let reply = Reply {
        schema_version: SCHEMA_VERSION,
        applied: conflicts == 0 && !args.dry_run,
        dry_run: args.dry_run,
        statements: applied.statements,
        inserted: applied.rows.inserted,
        updated: applied.rows.updated,
        deleted: applied.rows.deleted,
        already_there: applied.already_there,
        conflicts: applied.conflicts,
        notes: applied.notes,
        inverse_file: inverse.map(|path| path.display().to_string()),
    };
    output.data(&reply, text)?;
    if conflicts == 0 {
        return Ok(());
    }
    let plural = if conflicts == 1 { "" } else { "s" };
    Err(ErrorInfo::new(ApiErrorCode::Conflict, format!("{conflicts} conflict{plural}: nothing was applied"))
        .with_hint("make branch and target agree, or leave tables out with --table")
        .into())
}

fn text(reply: &Reply) -> String {
    let mut out = String::new();
    for conflict in &reply.conflicts {
        out.push_str(&conflict_text(conflict));
    }
    for note in &reply.notes {
        out.push_str(&format!("note: {note}\n"));
    }
    if reply.conflicts.is_empty() {
        let verb = if reply.dry_run { "would apply" } else { "applied" };
        out.push_str(&format!(
            "{verb} {} statements; {} rows inserted, {} updated, {} deleted; {} changes were there already\n",
            reply.statements, reply.inserted, reply.updated, reply.deleted, reply.already_there
        ));
    }
    if let Some(path) = &reply.inverse_file {
        out.push_str(&format!("undo it with: ardent branch apply {path} --to URL\n"));
    }
    out
}

fn conflict_text(conflict: &Conflict) -> String {
    let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "NULL".to_owned());
    match conflict {
        Conflict::Row { table, key, why, columns } => {
            let key: Vec<String> = key.iter().map(|(name, v)| format!("{name}={}", value(v))).collect();
            let mut out = format!("conflict: {table} {}: {why}\n", key.join(" "));
            for column in columns {
                let (base, branch, target) = (value(&column.base), value(&column.branch), value(&column.target));
                out.push_str(&format!("  {}: was {base}, branch {branch}, target {target}\n", column.column));
            }
            out
        }
        Conflict::Schema { object, why, base, branch, target } => {
            let mut out = format!("conflict: {object}: {why}\n");
            for (side, definition) in [("was", base), ("branch", branch), ("target", target)] {
                if let Some(definition) = definition {
                    out.push_str(&format!("  {side}: {definition}\n"));
                }
            }
            out
        }
        Conflict::LargeObject { oid, why } => format!("conflict: large object {oid}: {why}\n"),
        Conflict::Constraint { message, detail } => {
            let detail = detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
            format!("conflict: {message}{detail}\n")
        }
    }
}
