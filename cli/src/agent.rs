//! `ardent agent --spec FILE`: one compute, started by control. The process that control sees is the supervisor; the agent is its child.

use std::io::{self, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use ardent_agent::SUPERVISOR_FD;
use ardent_api::compute::{ComputeEvent, ComputeSpec};

use crate::args::AgentArgs;
use crate::up::logging;

/// Runs the compute to its end.
pub fn run(args: &AgentArgs) -> ExitCode {
    logging::start(false);
    let ended = if args.supervised { serve(args) } else { supervise(args) };
    ended.unwrap_or_else(|error| {
        let message = format!("{} cannot be used: {error}", args.spec.display());
        let event = ComputeEvent::Failed { code: "invalid".to_owned(), message };
        if let Ok(line) = serde_json::to_string(&event) {
            // Control reads it, unless it has gone.
            let _ = writeln!(io::stdout(), "{line}");
        }
        ExitCode::FAILURE
    })
}

fn supervise(args: &AgentArgs) -> io::Result<ExitCode> {
    // Control's process has a limit of its own, which is nothing for Postgres.
    if let Some(soft) = args.open_files {
        ardent_open_files::limit_to(soft)?;
    }
    let name = std::env::args_os().next().unwrap_or_else(|| "ardent".into());
    ardent_agent::supervise(|| {
        // This very program, also when its file was replaced by a newer one.
        let mut agent = Command::new("/proc/self/exe");
        agent.arg0(&name).args(["agent", "--supervised", "--spec"]).arg(&args.spec);
        agent
    })
}

/// One thread: what a commit costs here is mostly threads waking one another. What takes long has threads of its own.
fn serve(args: &AgentArgs) -> io::Result<ExitCode> {
    // SAFETY: the supervisor opened it for us, and nothing else here knows of it.
    let supervisor = unsafe { OwnedFd::from_raw_fd(SUPERVISOR_FD) };
    let spec: ComputeSpec = serde_json::from_slice(&std::fs::read(&args.spec)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code =
        runtime.block_on(ardent_agent::run_supervised(spec, supervisor, tokio::io::stdin(), tokio::io::stdout()))?;
    // A thread may still wait for a line on standard input, which nobody will send.
    runtime.shutdown_background();
    Ok(code)
}
