//! `ardent branch diff --ndjson`: what the server finds, while it finds it.

use std::io::{self, BufWriter, Read, Write};

use ardent_api::control::{ApiErrorCode, DiffRequest, ErrorInfo, ErrorReply, SCHEMA_VERSION};
use ardent_diff::{END_LINE, ERROR_LINE, write_error};
use serde::Deserialize;

use crate::api::Api;
use crate::failure::Failure;

/// Bytes that are taken from the server at once.
const READ_LEN: usize = 64 << 10;
/// Most of a last line that is held.
const LAST_LEN_MAX: usize = 64 << 10;

/// What lines said.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    /// Whether something changed.
    pub is_change: bool,
    /// Databases that only one side has.
    pub databases_not_compared: Vec<String>,
}

/// What the last line says that is of use here.
#[derive(Default, Deserialize)]
struct Ended {
    #[serde(default)]
    databases_not_compared: Vec<String>,
}

/// Passes lines on as they come, however long they are.
pub fn run(api: &Api, name: &str, request: &DiffRequest) -> Result<Told, Failure> {
    let answer = api.post_stream(&format!("/v1/branches/{name}/diff/lines"), request)?;
    pass_on(answer, BufWriter::with_capacity(READ_LEN, io::stdout().lock()))
}

fn pass_on(mut from: impl Read, mut to: impl Write) -> Result<Told, Failure> {
    let mut lines = Lines::default();
    let mut buffer = vec![0; READ_LEN];
    let lost = loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => break None,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => break Some(error),
        };
        lines.see(&buffer[..count]);
        // At once: whoever reads this works on it meanwhile.
        match to.write_all(&buffer[..count]).and_then(|()| to.flush()) {
            // It has what it wanted.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(Told { is_change: lines.changes > 0, databases_not_compared: Vec::new() });
            }
            Err(error) => return Err(Failure::local("the output cannot be written", &error)),
            Ok(()) => {}
        }
    };
    let error = match lines.end() {
        End::Whole(line) if lost.is_none() => {
            let end: Ended = serde_json::from_slice(&line).unwrap_or_default();
            let databases_not_compared = end.databases_not_compared;
            return Ok(Told { is_change: lines.changes > 0, databases_not_compared });
        }
        End::Error(line) => match serde_json::from_slice::<ErrorReply>(&line) {
            Ok(reply) => return Err(reply.error.into()),
            Err(_) => ErrorInfo::new(ApiErrorCode::Internal, "the server failed, and did not say why"),
        },
        _ => {
            let why = lost.map(|error| format!(": {error}")).unwrap_or_default();
            ErrorInfo::new(ApiErrorCode::Internal, format!("the server's answer ends in the middle{why}"))
        }
    };
    let error = error.with_hint("its log says why; give the command again");
    // The last line says it too: who reads lines need not see exit codes.
    let cut = if lines.is_in_line() { "\n" } else { "" };
    let told = to.write_all(cut.as_bytes()).and_then(|()| write_error(&mut to, SCHEMA_VERSION, &error));
    match told.and_then(|()| to.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::local("the output cannot be written", &error))
        }
        _ => Err(error.into()),
    }
}

/// How the lines ended.
enum End {
    Whole(Vec<u8>),
    Error(Vec<u8>),
    Cut,
}

fn is_last(line: &[u8]) -> bool {
    line.starts_with(END_LINE.as_bytes()) || line.starts_with(ERROR_LINE.as_bytes())
}

/// Looks at how lines begin, and holds little of one; of a last line all of it.
#[derive(Default)]
struct Lines {
    /// The beginning of the line at hand.
    line: Vec<u8>,
    /// Bytes of that line.
    len: usize,
    /// The line before it.
    last: Vec<u8>,
    /// Lines that are neither an end nor an error.
    changes: u64,
}

impl Lines {
    fn see(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            let may_be_last = self.line.len() < ERROR_LINE.len() || is_last(&self.line);
            let most = if may_be_last { LAST_LEN_MAX } else { ERROR_LINE.len() };
            let room = most.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            self.len += part.len();
            let Some(end) = end else { return };
            if !is_last(&self.line) {
                self.changes += 1;
            }
            self.last = std::mem::take(&mut self.line);
            self.len = 0;
            bytes = &bytes[end + 1..];
        }
    }

    fn is_in_line(&self) -> bool {
        self.len > 0
    }

    fn end(&self) -> End {
        match &self.last {
            _ if self.is_in_line() => End::Cut,
            line if line.starts_with(END_LINE.as_bytes()) => End::Whole(line.clone()),
            line if line.starts_with(ERROR_LINE.as_bytes()) => End::Error(line.clone()),
            _ => End::Cut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives what was written, and how it ended.
    fn passed_on(text: &str) -> (String, Result<bool, String>) {
        let mut out = Vec::new();
        let end = pass_on(text.as_bytes(), &mut out).map(|told| told.is_change).map_err(|failure| failure.info.message);
        (String::from_utf8(out).expect("text"), end)
    }

    #[test]
    fn the_end_is_told_from_a_cut_and_from_an_error() {
        let row = "{\"type\":\"row\",\"row\":1}\n";
        let end = "{\"type\":\"end\",\"branch\":\"b\"}\n";
        assert_eq!(passed_on(&format!("{row}{end}")), (format!("{row}{end}"), Ok(true)));
        assert_eq!(passed_on(end), (end.to_owned(), Ok(false)));

        let error = "{\"type\":\"error\",\"schema_version\":1,\"error\":{\"code\":\"compute_failed\",\"message\":\"it is gone\"}}\n";
        assert_eq!(passed_on(&format!("{row}{error}")), (format!("{row}{error}"), Err("it is gone".to_owned())));

        for cut in [row.to_owned(), format!("{row}{{\"type\":\"ro"), String::new()] {
            let (text, outcome) = passed_on(&cut);
            let last = text.lines().last().unwrap_or_default();
            assert!(last.starts_with(ERROR_LINE) && text.starts_with(&cut), "{text}");
            assert!(outcome.is_err_and(|message| message.contains("ends in the middle")));
        }
    }

    #[test]
    fn a_long_line_is_not_held() {
        let mut lines = Lines::default();
        lines.see(b"{\"type\":\"row\",");
        for _ in 0..100 {
            lines.see(&[b'x'; 10_000]);
            assert!(lines.line.len() <= LAST_LEN_MAX);
        }
        lines.see(b"\n{\"type\":\"end\"}\n");
        assert!(lines.changes == 1 && matches!(lines.end(), End::Whole(_)));
    }
}
