//! What a command says while it waits for the server.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use ardent_api::control::StatusReply;

use super::storage;
use crate::api::Api;
use crate::output::Output;

/// How long it waits without a word.
const SILENCE: Duration = Duration::from_secs(3);
/// How often it looks what fails, after that.
const LOOK_PERIOD: Duration = Duration::from_secs(5);
/// How long the server may take to tell.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);

/// Does `work`. If that takes long, says that `what` is waited for, and what of the page server's store fails meanwhile.
pub fn told<T>(output: &Output, api: &Api, what: &str, work: impl FnOnce() -> T) -> T {
    let (working, ended) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || tell(output, &api.with_patience(LOOK_PATIENCE), what, &ended));
        let done = work();
        drop(working);
        done
    })
}

/// Says it until `ended` is.
fn tell(output: &Output, api: &Api, what: &str, ended: &Receiver<()>) {
    let mut silence = SILENCE;
    let mut said = None;
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(silence) {
        silence = LOOK_PERIOD;
        // A server that does not tell this says why where it is asked for the work.
        let problems = api.get("/v1/status").map(|status: StatusReply| status.storage_problems).unwrap_or_default();
        let line = Line::of(what, &problems);
        if said.as_ref() != Some(&line) {
            match &line {
                Line::Note(text) => output.note(text),
                Line::Warning(text) => output.warning(text),
            }
            said = Some(line);
        }
    }
}

/// What is said.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Note(String),
    /// Something that people have to do.
    Warning(String),
}

impl Line {
    fn of(what: &str, problems: &[String]) -> Self {
        match storage::concern(problems) {
            None => Line::Note(format!("still waiting for {what}")),
            Some(concern) => Line::Warning(format!("still waiting for {what}; {}; {}", concern.message, concern.fix)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_named_with_what_to_do() {
        assert_eq!(Line::of("branch a", &[]), Line::Note("still waiting for branch a".to_owned()));
        let Line::Warning(text) = Line::of("branch a", &["branch main: read-only".to_owned()]) else {
            panic!("a problem is a warning");
        };
        assert!(text.starts_with("still waiting for branch a; the page server cannot keep up its store: branch main"));
        assert!(text.contains("read-only; see whether the store is there"), "{text}");
    }
}
