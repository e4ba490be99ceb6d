//! `ardent inspect ...`.

use serde::Serialize;

use ardent_api::control::SCHEMA_VERSION;
use ardent_pg_redo::HintBits;
use ardent_redo_oracle::{EndStateArgs, Report, VerifyRedoArgs};

use crate::args::{InspectCommand, VerifyRedoArgs as VerifyRedoFlags};
use crate::failure::Failure;
use crate::output::Output;

/// Runs one of the commands.
pub fn run(output: &Output, command: &InspectCommand) -> Result<(), Failure> {
    match command {
        InspectCommand::VerifyRedo(flags) => verify_redo(output, flags),
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
