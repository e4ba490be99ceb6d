//! `ardent mcp`: what the other commands do, as tools for programs that speak the Model Context Protocol.
//!
//! ```text
//!  a client ──stdio, or HTTP with a token──► server ──► branches, sql, changes, checkpoints, rehearsal, applying
//!                                              │              │ the same functions as the commands
//!                                              │              ▼
//!                                              │            api (HTTP) ──► a server's control;  a branch, by its URL
//!                                              └── confirmation: what waits for a yes
//! ```
//!
//! Invariants:
//! - MC-1: a tool is told its branch by its argument; there is no current branch.
//! - MC-2: `query` changes nothing: Postgres's own read-only transaction, one statement, in a session that the library inside
//!   the compute holds to reading (`ardent.read_only_session`).
//! - MC-3: what cannot be undone by the same tool is prepared first and done after a confirmation, exactly as it was prepared.
//! - MC-4: an answer is bounded, and says what was left out.
//!
//! Standard output belongs to the protocol. Nothing here needs a server at its start: each call says what to type if there is none.
//! Start reading at [`server::Tools`].

mod answer;
mod applying;
mod branches;
mod call;
mod changes;
mod checkpoints;
mod confirmation;
mod http;
mod install;
mod jsonc;
mod rehearsal;
mod remote;
mod server;
mod sql;
mod stdio;
mod tools;

use std::time::Duration;

use rmcp::ServiceExt as _;

use crate::args::{McpArgs, McpCommand};
use crate::commands::wait_for_signal;
use crate::config::Session;
use crate::failure::Failure;
use crate::output::Output;
use server::{Access, Offer, Tools};
use stdio::Stdio;

/// Longest wait for what must come to its end when the client is gone.
const END_WAITS: Duration = Duration::from_secs(60);

/// Serves one client on standard input and output until it goes, or several over HTTP; or sets a client up.
pub fn run(output: &Output, url: Option<&str>, args: &McpArgs) -> Result<(), Failure> {
    if let Some(McpCommand::Install(args)) = &args.command {
        return install::run(output, url, args);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::local("no threads can be started", &error))?;
    let offer = if args.read_only { Offer::Reading } else { Offer::All };
    let access = match args.listen {
        Some(_) => Access::Callers { url: Session::resolve(url)?.url },
        None => Access::Settings { url: url.map(str::to_owned) },
    };
    let tools = Tools::new(access.clone(), offer);
    let outcome = runtime.block_on(async {
        let outcome = match (args.listen, access) {
            (Some(listen), Access::Callers { url }) => http::serve(output, tools.clone(), url, listen).await,
            _ => serve(tools.clone()).await,
        };
        // A rehearsal ends when its client is gone, and deletes its branch; an application keeps what undoes it.
        let _late = tokio::time::timeout(END_WAITS, tools.finish()).await;
        outcome
    });
    // A thread that reads standard input ends with the process, not before.
    runtime.shutdown_background();
    outcome
}

async fn serve(tools: Tools) -> Result<(), Failure> {
    let service = tools.serve(Stdio::open()).await;
    let service = service.map_err(|error| {
        Failure::local("the client does not speak the Model Context Protocol", &error)
            .hint("programs start this command; to set one up: ardent mcp install CLIENT")
    })?;
    let cancel = service.cancellation_token();
    let waiting = service.waiting();
    let mut waiting = std::pin::pin!(waiting);
    let ended = tokio::select! {
        ended = &mut waiting => ended,
        _ = wait_for_signal() => {
            cancel.cancel();
            waiting.await
        }
    };
    ended.map(drop).map_err(|error| Failure::local("the connection to the client failed", &error))
}
