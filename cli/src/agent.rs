//! `ardent agent --spec FILE`: one compute, started by control.

use std::io;
use std::process::ExitCode;

use ardent_api::compute::{ComputeEvent, ComputeSpec};

use crate::args::AgentArgs;
use crate::up::logging;

/// Runs the compute to its end.
pub fn run(args: &AgentArgs) -> ExitCode {
    logging::start(false);
    match prepare(args) {
        Ok((spec, runtime)) => {
            let code = runtime.block_on(ardent_agent::run(spec, tokio::io::stdin(), tokio::io::stdout()));
            // A thread may still wait for a line on standard input, which nobody will send.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            let message = format!("{} cannot be used: {error}", args.spec.display());
            let event = ComputeEvent::Failed { code: "invalid".to_owned(), message };
            if let Ok(line) = serde_json::to_string(&event) {
                println!("{line}");
            }
            ExitCode::FAILURE
        }
    }
}

/// One thread: what a commit costs here is mostly threads waking one another. What takes long has threads of its own.
fn prepare(args: &AgentArgs) -> io::Result<(ComputeSpec, tokio::runtime::Runtime)> {
    // Control's process has a limit of its own, which is nothing for Postgres.
    if let Some(soft) = args.open_files {
        ardent_open_files::limit_to(soft)?;
    }
    let spec: ComputeSpec = serde_json::from_slice(&std::fs::read(&args.spec)?)?;
    Ok((spec, tokio::runtime::Builder::new_current_thread().enable_all().build()?))
}
