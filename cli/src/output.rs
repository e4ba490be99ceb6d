//! What is printed: data on standard output, everything else on standard error.

use std::io::{self, BufWriter, IsTerminal as _, Write};

use serde::Serialize;

use ardent_api::control::ErrorReply;

use crate::args::GlobalArgs;
use crate::failure::Failure;

/// Bytes of long output that are written at once.
const STREAM_LEN: usize = 64 << 10;

/// How to print.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// JSON instead of text.
    pub json: bool,
    /// Colours on standard error.
    pub color: bool,
    /// Whether colours are wanted where a terminal is.
    pub colors_allowed: bool,
    /// Whether questions may be asked.
    pub interactive: bool,
}

impl Output {
    /// As the flags, the environment and the terminal say.
    pub fn new(global: &GlobalArgs) -> Self {
        let plain = global.no_color || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Output {
            json: global.json,
            color: !plain && io::stderr().is_terminal(),
            colors_allowed: !plain,
            interactive: !global.no_input && io::stdin().is_terminal() && io::stderr().is_terminal(),
        }
    }

    /// Prints a reply: as JSON, or as `text` makes of it.
    pub fn data<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        if self.json {
            let line = serde_json::to_string(value).map_err(|error| Failure::of(&error))?;
            self.line(&line)
        } else {
            self.line(text(value).trim_end_matches('\n'))
        }
    }

    /// Prints data as `write` writes it, however long it is.
    pub fn stream(&self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
        let mut stdout = BufWriter::with_capacity(STREAM_LEN, io::stdout().lock());
        match write(&mut stdout).and_then(|()| stdout.flush()) {
            // Whoever read us has what it wanted.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(Failure::local("the output cannot be written", &error)),
            Ok(()) => Ok(()),
        }
    }

    /// Prints a line of data.
    pub fn line(&self, line: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        let written = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
        match written {
            // Whoever read us has what it wanted.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(Failure::local("standard output cannot be written", &error)),
            Ok(()) => Ok(()),
        }
    }

    /// Says something beside the data.
    pub fn note(&self, text: &str) {
        if !self.json {
            say(text);
        }
    }

    /// Says something that should not be missed. Even with `--json`, where it does not disturb the data.
    pub fn warning(&self, text: &str) {
        say(&format!("{} {text}", self.paint("33", "warning:")));
    }

    /// Says why a command failed.
    pub fn failure(&self, failure: &Failure) {
        if self.json {
            let reply: ErrorReply = failure.info.clone().into_reply();
            match serde_json::to_string(&reply) {
                Ok(line) => say(&line),
                Err(error) => say(&format!("error: {} ({error})", failure.info.message)),
            }
            return;
        }
        say(&format!("{} {}", self.paint("31", "error:"), failure.info.message));
        if let Some(hint) = &failure.info.hint {
            say(&format!("{} {hint}", self.paint("36", "hint:")));
        }
    }

    /// Asks a yes-or-no question. Without a terminal it fails and names the flag that answers it.
    pub fn confirm(&self, question: &str, flag: &str) -> Result<bool, Failure> {
        if !self.interactive {
            return Err(Failure::usage(format!("{question} needs an answer, and there is no terminal to ask"))
                .hint(format!("answer with {flag}")));
        }
        // Who is asked reads a terminal; one that is gone answers nothing.
        let _ = write!(io::stderr(), "{question} [y/N] ");
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map_err(|error| Failure::local("the answer cannot be read", &error))?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }

    fn paint(&self, color: &str, text: &str) -> String {
        if self.color { format!("\x1b[{color}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A line on standard error. Whoever has closed that wants no word, and the command goes on.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// So many of a thing.
pub fn counted(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{plural}")
}

/// Lines of `name  value`, aligned.
pub fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// A table with a heading, columns as wide as what is in them.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|name| name.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.chars().count())))
            .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut out = line(&mut heading.iter().copied());
    for row in rows {
        out.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_no_plural() {
        assert_eq!([0, 1, 2].map(|count| counted(count, "row")), ["0 rows", "1 row", "2 rows"]);
    }

    #[test]
    fn tables_are_aligned_and_have_no_trailing_spaces() {
        let rows = [vec!["a".to_owned(), "é".to_owned()], vec!["long".to_owned(), String::new()]];
        assert_eq!(table(&["N", "STATE"], &rows), "N     STATE\na     é\nlong\n");
        assert_eq!(pairs(&[("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2\n");
    }
}
