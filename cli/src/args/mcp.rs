//! Flags of `ardent mcp`.

use std::net::SocketAddr;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

/// `ardent mcp`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  ardent mcp
  ardent mcp --read-only
  ardent mcp --listen 127.0.0.1:7481
  ardent mcp install claude-code

On standard input and output a program starts it; ardent mcp install sets the usual ones up. Over HTTP clients send a token \
of the server (Authorization: Bearer), and act with its rights.")]
pub struct McpArgs {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<McpCommand>,
    /// Offer no tool that changes anything
    #[arg(long)]
    pub read_only: bool,
    /// Serve over HTTP on this address, under /mcp; loopback only
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
}

/// `ardent mcp ...`.
#[derive(Debug, Subcommand)]
pub enum McpCommand {
    /// Write this command into the configuration of a program that uses it
    #[command(after_help = "Examples:
  ardent mcp install claude-code
  ardent mcp install codex --read-only
  ardent mcp install vscode --print
  ardent mcp install cursor --http http://127.0.0.1:7481/mcp

claude-code and vscode are set up for the current folder, the others for the user. Other entries and comments stay; what a \
file was is kept beside it, as FILE.before-ardent.

With --http the program connects to a running ardent mcp --listen. The token is not in the file: it \
comes from ARDENT_TOKEN in the program's environment, and vscode asks for it. Only zed has it in its \
file, as it knows no other way.")]
    Install(McpInstallArgs),
}

/// `ardent mcp install`.
#[derive(Debug, Args)]
pub struct McpInstallArgs {
    /// The program
    #[arg(value_enum)]
    pub client: McpClient,
    /// Offer it no tool that changes anything
    #[arg(long)]
    pub read_only: bool,
    /// Connect over HTTP to ardent mcp --listen at this URL, instead of starting this command
    #[arg(long, value_name = "URL", conflicts_with = "read_only")]
    pub http: Option<String>,
    /// Print what would be written, and write nothing
    #[arg(long)]
    pub print: bool,
}

/// Programs whose configuration is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum McpClient {
    /// .mcp.json in this folder
    ClaudeCode,
    /// ~/.config/Claude/claude_desktop_config.json
    ClaudeDesktop,
    /// ~/.cursor/mcp.json
    Cursor,
    /// .vscode/mcp.json in this folder
    Vscode,
    /// ~/.codex/config.toml
    Codex,
    /// ~/.gemini/settings.json
    GeminiCli,
    /// ~/.codeium/windsurf/mcp_config.json
    Windsurf,
    /// ~/.config/zed/settings.json
    Zed,
}
