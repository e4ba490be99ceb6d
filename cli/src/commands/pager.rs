//! Long text on a terminal goes through the user's pager.

use std::io::{self, BufWriter, Write};
use std::process::{Command, Stdio};

use crate::failure::Failure;
use crate::output::Output;

/// What a shell says of a program that there is not.
const NO_SUCH_PROGRAM: i32 = 127;

/// Shows what `write` writes through `$PAGER` (none if it is empty), or `less`, which ends by itself if the text fits the screen.
/// `write` may be called twice: without a pager the text is just printed.
pub fn show(output: &Output, write: impl Fn(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let pager = std::env::var("PAGER").unwrap_or_else(|_| "less".to_owned());
    if pager.trim().is_empty() || pager == "cat" {
        return output.stream(write);
    }
    let mut command = Command::new("sh");
    // Quit if one screen is enough, colours as they are, the screen left as it was.
    command
        .args(["-c", &pager])
        .stdin(Stdio::piped())
        .env("LESS", std::env::var("LESS").unwrap_or_else(|_| "FRX".to_owned()));
    let Ok(mut child) = command.spawn() else { return output.stream(write) };
    let written = child.stdin.take().map_or(Ok(()), |stdin| {
        let mut stdin = BufWriter::new(stdin);
        write(&mut stdin).and_then(|()| stdin.flush())
    });
    let status = child.wait().map_err(|error| Failure::local("the pager cannot be waited for", &error))?;
    if status.code() == Some(NO_SUCH_PROGRAM) {
        return output.stream(write);
    }
    match written {
        // Whoever ends the pager has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::local("the output cannot be written", &error))
        }
        _ => Ok(()),
    }
}
