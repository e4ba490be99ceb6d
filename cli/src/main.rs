//! The `ardent` program: user commands, `ardent up`, and what `up` starts.
//!
//! ```text
//!  arguments ──► args ──► commands ──► api (HTTP) ──► a server's control
//!                   └───► up: page server, safekeeper, control, proxy, connectors in one process
//!                   ├───► mcp: the same as tools, for programs
//!                   └───► agent: one compute, a child of control
//! ```
//!
//! Invariants: data goes to standard output and nothing else does; every failure ends in one message with the next command
//! and an exit code of `docs/cli.md`; no command waits for an answer without a terminal; no password is printed but in the
//! connection string that was asked for.

mod agent;
mod api;
mod args;
mod commands;
mod completion;
mod config;
mod duration;
mod failure;
mod mcp;
mod output;
#[cfg(test)]
mod reference;
mod shell_word;
mod up;

use std::process::ExitCode;

use clap::Parser as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::api::Api;
use crate::args::{Cli, Command, GlobalArgs};
use crate::failure::Failure;
use crate::output::Output;

fn main() -> ExitCode {
    completion::answer_shell();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong_usage(&error),
    };
    if let Command::Agent(args) = &cli.command {
        return agent::run(args);
    }
    let output = Output::new(&cli.global);
    match run(&output, &cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_silent() {
                output.failure(&failure);
            }
            failure.exit_code()
        }
    }
}

fn run(output: &Output, cli: &Cli) -> Result<(), Failure> {
    let url = cli.global.url.as_deref();
    match &cli.command {
        Command::Up(args) => up::run(output, args),
        Command::Safekeeper(args) => up::alone::safekeeper(output, args),
        Command::Pageserver(args) => up::alone::page_server(output, args),
        Command::Control(args) => up::alone::control(output, args),
        Command::Proxy(args) => up::alone::proxy(output, args),
        Command::Keys(args) => up::keys::run(output, args),
        Command::Login(args) => commands::session::login(output, url, args),
        Command::Logout => commands::session::logout(output, url),
        Command::Status(args) => commands::session::status(output, url, args),
        Command::Whoami => commands::session::whoami(output, url),
        Command::Doctor(args) => commands::doctor::run(output, url, args),
        Command::Connector(command) => commands::connector::run(output, &Api::new(url)?, command),
        Command::Branch(command) => commands::branch::run(output, &Api::new(url)?, command),
        Command::Mask(command) => commands::mask::run(output, &Api::new(url)?, command),
        Command::Psql(args) => commands::psql::run(&Api::new(url)?, args),
        Command::Inspect(command) => commands::inspect::run(output, url, command),
        Command::Recover(command) => commands::recover::run(output, command),
        Command::Reconfigure(command) => commands::reconfigure::run(output, url, command),
        Command::Mcp(args) => mcp::run(output, url, args),
        Command::Man(args) => commands::man::run(output, args),
        Command::Completions(args) => completion::print_script(args.shell),
        // Handled before there is an output: its standard output speaks another language.
        Command::Agent(_) => Ok(()),
    }
}

/// What clap says about the arguments: help goes to standard output with 0, everything else is wrong usage.
fn wrong_usage(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().any(|argument| argument == "--json");
    if error.use_stderr() && json {
        let global = GlobalArgs { json, url: None, no_input: true, no_color: true };
        // The first line says it; usage and tips follow it for people. What is missing is listed in those that follow.
        let text = error.to_string();
        let mut message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        if let (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(missing))) =
            (error.kind(), error.get(ContextKind::InvalidArg))
        {
            message = format!("required arguments were not given: {}", missing.join(", "));
        }
        Output::new(&global).failure(&Failure::usage(message).hint("ardent --help"));
        return ExitCode::from(2);
    }
    // Nobody is left to tell if this cannot be printed.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
}
