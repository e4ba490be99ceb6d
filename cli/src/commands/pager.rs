//! Long text on a terminal goes through the user's pager.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::failure::Failure;
use crate::output::Output;

/// Shows text through `$PAGER` (none if it is empty), or `less`, which ends by itself if the text fits the screen.
pub fn show(output: &Output, text: &str) -> Result<(), Failure> {
    let pager = std::env::var("PAGER").unwrap_or_else(|_| "less".to_owned());
    if pager.trim().is_empty() || pager == "cat" {
        return output.line(text.trim_end_matches('\n'));
    }
    let mut command = Command::new("sh");
    // Quit if one screen is enough, colours as they are, the screen left as it was.
    command
        .args(["-c", &pager])
        .stdin(Stdio::piped())
        .env("LESS", std::env::var("LESS").unwrap_or_else(|_| "FRX".to_owned()));
    let Ok(mut child) = command.spawn() else { return output.line(text.trim_end_matches('\n')) };
    if let Some(mut stdin) = child.stdin.take() {
        // Whoever ends the pager has seen enough.
        let _ = stdin.write_all(text.as_bytes());
    }
    let status = child.wait().map_err(|error| Failure::local("the pager cannot be waited for", &error))?;
    // 127: there is no such program.
    if status.code() == Some(127) { output.line(text.trim_end_matches('\n')) } else { Ok(()) }
}
