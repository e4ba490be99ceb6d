//! `ardent branch diff`.

use ardent_api::control::DiffRequest;
use ardent_diff::{DiffReport, render_people, render_stat};

use super::path_name;
use crate::api::Api;
use crate::args::BranchDiffArgs;
use crate::config::branch_or_default;
use crate::failure::Failure;
use crate::output::Output;

/// Shows what changed on a branch since it was made.
pub fn run(output: &Output, api: &Api, args: &BranchDiffArgs) -> Result<(), Failure> {
    let name = path_name(&branch_or_default(args.name.as_deref())?)?;
    let request = DiffRequest { tables: args.table.clone() };
    let report: DiffReport = api.post(&format!("/v1/branches/{name}/diff"), &request)?;
    for database in &report.databases_not_compared {
        output.warning(&format!("database {database} is not at the branch point under this name: it was not compared"));
    }
    output.data(
        &report,
        |report| {
            if args.stat { render_stat(&report.databases) } else { render_people(&report.databases) }
        },
    )?;
    let differs = !report.databases.is_empty() || !report.databases_not_compared.is_empty();
    if args.exit_code && differs { Err(Failure::differences()) } else { Ok(()) }
}
