//! A transcript: commands with what they printed.

use std::fmt::Write as _;
use std::path::PathBuf;

use ardent_tests::House;
use serde_json::Value;

use crate::plain::Plain;

/// What each command begins with.
const PROMPT: &str = "$ ardent ";

/// Runs commands, and writes down what they print.
pub struct Recorder<'a> {
    house: &'a House,
    plain: Plain,
    text: String,
}

impl<'a> Recorder<'a> {
    /// With nothing written down.
    pub fn new(house: &'a House) -> Recorder<'a> {
        Recorder { house, plain: Plain::default(), text: String::new() }
    }

    /// Runs a command: its output, its messages behind `!`, and its exit code.
    pub fn run(&mut self, command: &str) {
        let arguments: Vec<&str> = words(command);
        let finished = self.house.ardent(&arguments);
        let printed = match () {
            () if arguments.contains(&"--ndjson") => self.plain.lines(&finished.stdout),
            () if arguments.contains(&"--json") && !finished.stdout.is_empty() => self.plain.document(&finished.stdout),
            () => self.plain.text(&finished.stdout),
        };
        let messages = self.plain.text(&finished.stderr);
        let messages: String = messages.lines().map(|line| format!("! {line}\n")).collect();
        write!(self.text, "{PROMPT}{command}\n{printed}{messages}= {}\n\n", finished.code)
            .expect("memory can be written");
    }

    /// All that was written down.
    pub fn finish(self) -> String {
        self.text
    }
}

/// As a shell parts them; there are single quotes and no others.
fn words(command: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for (number, part) in command.split('\'').enumerate() {
        if number % 2 == 1 { words.push(part) } else { words.extend(part.split_whitespace()) }
    }
    words
}

/// Where the one that is compared with lies.
pub fn golden_path() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/transcript/golden.txt"))
}

/// A transcript that is read.
pub struct Transcript {
    text: String,
}

/// What one command printed.
#[derive(Clone, Copy, Debug)]
pub struct Printed<'a> {
    /// On standard output.
    pub output: &'a str,
    /// On standard error, each line behind `! `.
    pub messages: &'a str,
    /// How it ended.
    pub code: i32,
}

impl Transcript {
    /// The one that is committed.
    pub fn golden() -> Transcript {
        let path = golden_path();
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Transcript { text }
    }

    /// What this command printed.
    pub fn of(&self, command: &str) -> Printed<'_> {
        let begin = format!("{PROMPT}{command}\n");
        let from = self.text.find(&begin).unwrap_or_else(|| panic!("there is no {begin}")) + begin.len();
        let rest = &self.text[from..];
        let section = &rest[..rest.find(&format!("\n{PROMPT}")).unwrap_or(rest.len())];
        let (printed, code) = section.trim_end().rsplit_once("= ").expect("the exit code is last");
        let messages = printed.find("! ").filter(|at| *at == 0).or(printed.find("\n! ").map(|at| at + 1));
        let (output, messages) = printed.split_at(messages.unwrap_or(printed.len()));
        Printed { output, messages, code: code.parse().expect("a number") }
    }

    /// The document that this command printed.
    pub fn document(&self, command: &str) -> Value {
        serde_json::from_str(self.of(command).output).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// The documents that this command printed, one a line.
    pub fn lines(&self, command: &str) -> Vec<Value> {
        let document = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{command}: {error}: {line}"));
        self.of(command).output.lines().map(document).collect()
    }
}
