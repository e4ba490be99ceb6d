//! `ardent inspect ...`.

use serde::Serialize;

use ardent_api::control::{SCHEMA_VERSION, UnnamedFilesReply};
use ardent_pg_redo::HintBits;
use ardent_redo_oracle::{EndStateArgs, Report, VerifyRedoArgs};

use super::path_name;
use crate::api::Api;
use crate::args::{InspectCommand, UnnamedFilesArgs, VerifyRedoArgs as VerifyRedoFlags};
use crate::duration::bytes_text;
use crate::failure::Failure;
use crate::output::{Output, table};

/// Runs one of the commands.
pub fn run(output: &Output, url: Option<&str>, command: &InspectCommand) -> Result<(), Failure> {
    match command {
        InspectCommand::VerifyRedo(flags) => verify_redo(output, flags),
        InspectCommand::UnnamedFiles(args) => unnamed_files(output, &Api::new(url)?, args),
    }
}

#[derive(Serialize)]
struct Verdict<'a> {
    schema_version: u32,
    passed: bool,
    #[serde(flatten)]
    report: &'a Report,
}

fn verify_redo(output: &Output, flags: &VerifyRedoFlags) -> Result<(), Failure> {
    let end_state = flags.base.clone().zip(flags.data.clone()).map(|(base, data)| EndStateArgs { base, data });
    let args = VerifyRedoArgs {
        wal: flags.wal.clone(),
        start: flags.start,
        end: flags.end,
        expect: flags.expect.clone(),
        hint_bits: if flags.hint_bits { HintBits::Logged } else { HintBits::NotLogged },
        end_state,
    };
    let report = ardent_redo_oracle::run(&args).map_err(|error| Failure::of(&error))?;
    let verdict = Verdict { schema_version: SCHEMA_VERSION, passed: report.passed(), report: &report };
    output.data(&verdict, |verdict| verdict.report.to_string())?;
    if report.passed() {
        return Ok(());
    }
    let message = "redo does not produce what Postgres logged or has on disk, or something expected was not checked";
    Err(Failure::from(ardent_api::control::ErrorInfo::new(ardent_api::control::ApiErrorCode::Internal, message))
        .hint("the report names the record types and blocks"))
}

fn unnamed_files(output: &Output, api: &Api, args: &UnnamedFilesArgs) -> Result<(), Failure> {
    let reply: UnnamedFilesReply = api.get(&format!("/v1/branches/{}/unnamed-files", path_name(&args.branch)?))?;
    output.data(&reply, |reply| {
        let files = &reply.files;
        if files.found == 0 {
            return format!("at {} a catalog names every file of branch {}", files.lsn, reply.name);
        }
        let rows: Vec<Vec<String>> = files
            .relations
            .iter()
            .map(|relation| {
                let why = if relation.database_exists { "no relation" } else { "no such database" };
                vec![
                    relation.tablespace.to_string(),
                    relation.database.to_string(),
                    relation.file.to_string(),
                    bytes_text(relation.bytes),
                    why.to_owned(),
                ]
            })
            .collect();
        let listed = table(&["TABLESPACE", "DATABASE", "FILE", "SIZE", "WHY"], &rows);
        let more = files.found - files.relations.len() as u64;
        let more = if more > 0 { format!("and {more} more; ") } else { String::new() };
        format!("{listed}{more}{} relations, {} at {}", files.found, bytes_text(files.bytes), files.lsn)
    })
}
