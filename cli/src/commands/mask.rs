//! `ardent mask ...`.

use std::io::Read as _;

use serde::Serialize;

use ardent_api::control::{ApiErrorCode, BranchName, DeleteReply, ErrorInfo, SCHEMA_VERSION};
use ardent_masking::{
    CheckMaskingRequest, ColumnReport, CreateMaskedRequest, MaskEvent, MaskedInfo, MaskedList, MaskingCheck,
    RULES_LEN_MAX, SecretsReport,
};

use super::path_name;
use crate::api::Api;
use crate::args::{MaskCheckArgs, MaskCommand, MaskCreateArgs, MaskDeleteArgs, NameArgs};
use crate::config::from_or_default;
use crate::failure::Failure;
use crate::output::{Output, pairs, table};

/// Runs one of the commands.
pub fn run(output: &Output, api: &Api, command: &MaskCommand) -> Result<(), Failure> {
    match command {
        MaskCommand::Create(args) => create(output, api, args),
        MaskCommand::Check(args) => check(output, api, args),
        MaskCommand::List => list(output, api),
        MaskCommand::Report(args) => report(output, api, args),
        MaskCommand::Delete(args) => delete(output, api, args),
    }
}

/// The content of a rules file. What is too long for the server is not read to its end.
fn read_rules(file: &str) -> Result<String, Failure> {
    let limit = RULES_LEN_MAX as u64 + 1;
    let mut rules = String::new();
    let read = match file {
        "-" => std::io::stdin().lock().take(limit).read_to_string(&mut rules),
        path => std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut rules)),
    };
    match read {
        Ok(_) => Ok(rules),
        Err(error) => Err(Failure::local(format!("the rules in {file} cannot be read"), &error)
            .code(ApiErrorCode::InvalidArguments)
            .hint("a rules file is JSON: docs/masking.md describes it")),
    }
}

fn create(output: &Output, api: &Api, args: &MaskCreateArgs) -> Result<(), Failure> {
    let name: BranchName = args.name.parse().map_err(ErrorInfo::from)?;
    let rules = read_rules(&args.rules)?;
    let from = from_or_default(args.from.as_deref())?;
    let request = CreateMaskedRequest { name: name.as_str().to_owned(), from, rules };
    let mut made = None;
    api.post_lines("/v1/masked", &request, |event: MaskEvent| {
        match event {
            MaskEvent::Progress(text) => output.note(&text),
            MaskEvent::Done(info) => made = Some(info),
            MaskEvent::Error(error) => return Err(error.into()),
        }
        Ok(())
    })?;
    let made = made.ok_or_else(|| {
        Failure::from(
            ErrorInfo::new(ApiErrorCode::StorageUnavailable, "the server went away before the template was made")
                .with_hint("start the server and run this again: what was half made is undone"),
        )
    })?;
    output.note(&format!("made; branch from it with: ardent branch create NAME --masked {name}"));
    output.data(&made, |info| report_text(info))
}

fn check(output: &Output, api: &Api, args: &MaskCheckArgs) -> Result<(), Failure> {
    let from = from_or_default(args.from.as_deref())?;
    let request = CheckMaskingRequest { from, rules: read_rules(&args.rules)? };
    let found: MaskingCheck = api.post_long("/v1/masked/check", &request)?;
    output.data(&found, |found| columns_text(&found.columns))
}

fn list(output: &Output, api: &Api) -> Result<(), Failure> {
    let list: MaskedList = api.get("/v1/masked")?;
    output.data(&list, |list| {
        if list.templates.is_empty() {
            return "no masked templates; make one: ardent mask create NAME --rules FILE".to_owned();
        }
        let row = |info: &MaskedInfo| {
            let state = if info.ready { "ready" } else { "being made or deleted" };
            vec![
                info.name.clone(),
                info.from.clone(),
                state.to_owned(),
                info.created_at.clone(),
                info.branches.len().to_string(),
            ]
        };
        let rows: Vec<Vec<String>> = list.templates.iter().map(row).collect();
        table(&["NAME", "FROM", "STATE", "CREATED", "BRANCHES"], &rows)
    })
}

fn report(output: &Output, api: &Api, args: &NameArgs) -> Result<(), Failure> {
    let info: MaskedInfo = api.get(&format!("/v1/masked/{}", path_name(&args.name)?))?;
    output.data(&info, report_text)
}

/// What a deletion prints with `--json`.
#[derive(Serialize)]
struct Deleted {
    schema_version: u32,
    deleted: String,
}

fn delete(output: &Output, api: &Api, args: &MaskDeleteArgs) -> Result<(), Failure> {
    let name = path_name(&args.name)?;
    if !args.yes && !output.confirm(&format!("delete the masked template {name} for good?"), "--yes")? {
        return Err(Failure::usage("nothing was deleted"));
    }
    let reply: DeleteReply = api.delete(&format!("/v1/masked/{name}"))?;
    output.data(&Deleted { schema_version: SCHEMA_VERSION, deleted: reply.name }, |reply| {
        format!("deleted masked template {}", reply.deleted)
    })
}

fn report_text(info: &MaskedInfo) -> String {
    let from = match info.source_lsn {
        Some(lsn) => format!("{} at {lsn}", info.from),
        None => info.from.clone(),
    };
    let mut lines = vec![("name", info.name.clone()), ("from", from), ("created", info.created_at.clone())];
    if !info.branches.is_empty() {
        lines.push(("branches", info.branches.join(", ")));
    }
    let Some(report) = &info.report else {
        let why = match info.ready {
            true => {
                "not known: the server's database was lost, and the template's manifest does not say. No branches of it can be made: ardent mask create makes another"
            }
            false => "the template is being made or deleted",
        };
        lines.push(("report", why.to_owned()));
        return pairs(&lines);
    };
    let masked = report.columns.iter().filter(|column| column.action != "keep").count();
    lines.push(("columns", format!("{masked} masked, {} kept by a rule, none without", report.columns.len() - masked)));
    lines.push(("rewritten", format!("{} relations, all that hold anything", report.relations_rewritten)));
    lines.extend(secret_lines(&report.secrets));
    format!("{}\n{}", pairs(&lines), columns_text(&report.columns))
}

fn secret_lines(secrets: &SecretsReport) -> Vec<(&'static str, String)> {
    let large_objects = match secrets.large_object_pages {
        Some(pages) => format!("emptied: {pages} pages"),
        None => "kept by the rules".to_owned(),
    };
    vec![
        ("passwords", format!("{} roles' removed", secrets.role_passwords)),
        ("settings", format!("removed from {} roles and databases", secrets.settings)),
        (
            "connections",
            format!("{} subscriptions', {} foreign options removed", secrets.subscriptions, secrets.foreign_options),
        ),
        ("large objects", large_objects),
        ("prepared", format!("{} transactions rolled back", secrets.prepared_transactions)),
    ]
}

fn columns_text(columns: &[ColumnReport]) -> String {
    let number = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
    let row = |column: &ColumnReport| {
        vec![
            format!("{}.{}.{}.{}", column.database, column.schema, column.table, column.column),
            column.data_type.clone(),
            column.action.clone(),
            column.rule.clone(),
            number(column.values),
            number(column.unchanged),
        ]
    };
    let rows: Vec<Vec<String>> = columns.iter().map(row).collect();
    table(&["COLUMN", "TYPE", "ACTION", "RULE", "VALUES", "UNCHANGED"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_was_covered() {
        let column = |name: &str, action: &str, values: Option<u64>| ColumnReport {
            database: "shop".to_owned(),
            schema: "public".to_owned(),
            table: "users".to_owned(),
            column: name.to_owned(),
            data_type: "text".to_owned(),
            action: action.to_owned(),
            rule: "column".to_owned(),
            rows: values,
            values,
            unchanged: values.map(|_| 0),
        };
        let report = ardent_masking::MaskReport {
            columns: vec![column("email", "email", Some(3)), column("country", "keep", None)],
            secrets: SecretsReport { role_passwords: 2, large_object_pages: Some(1), ..SecretsReport::default() },
            relations_rewritten: 70,
        };
        let info = MaskedInfo {
            schema_version: SCHEMA_VERSION,
            name: "nightly".to_owned(),
            connector: "shop".to_owned(),
            from: "shop".to_owned(),
            source_lsn: "0/16B3748".parse().ok(),
            lsn: "0/2000000".parse().ok(),
            created_at: "2026-01-31T12:00:00.000Z".to_owned(),
            ready: true,
            branches: vec!["a".to_owned(), "b".to_owned()],
            report: Some(report),
        };
        let expect = "name           nightly
from           shop at 0/016B3748
created        2026-01-31T12:00:00.000Z
branches       a, b
columns        1 masked, 1 kept by a rule, none without
rewritten      70 relations, all that hold anything
passwords      2 roles' removed
settings       removed from 0 roles and databases
connections    0 subscriptions', 0 foreign options removed
large objects  emptied: 1 pages
prepared       0 transactions rolled back

COLUMN                     TYPE  ACTION  RULE    VALUES  UNCHANGED
shop.public.users.email    text  email   column  3       0
shop.public.users.country  text  keep    column  -       -
";
        assert_eq!(report_text(&info), expect);
    }
}
