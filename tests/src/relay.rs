//! A relay in front of a service's Unix socket, which can be told to let nothing through.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// What the relay holds back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    requests: bool,
    answers: bool,
}

#[derive(Debug, Default)]
struct Gate {
    held: Mutex<Held>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, held: Held) {
        *self.held.lock().expect("no relay thread panics") = held;
        self.changed.notify_all();
    }

    fn wait(&self, is_held: impl Fn(&Held) -> bool) {
        let held = self.held.lock().expect("no relay thread panics");
        drop(self.changed.wait_while(held, |held| is_held(held)).expect("no relay thread panics"));
    }
}

/// Takes a service's place: what connects from now on goes through it. Ends with the process, its connections with their ends.
#[derive(Debug)]
pub struct Relay {
    gate: Arc<Gate>,
}

impl Relay {
    /// Moves the socket at `path` aside and listens in its place, with the same owner's rights.
    pub fn in_front_of(path: &Path) -> Relay {
        let behind = path.with_extension("behind");
        fs::rename(path, &behind).expect("a service's socket can be moved");
        let listener = UnixListener::bind(path).expect("a socket can be bound");
        let gate = Arc::new(Gate::default());
        let relay = Relay { gate: Arc::clone(&gate) };
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Ok(service) = UnixStream::connect(&behind) else { continue };
                let pair = || Some((client.try_clone().ok()?, service.try_clone().ok()?));
                let (Some((from_client, to_service)), Some((to_client, from_service))) = (pair(), pair()) else {
                    continue;
                };
                let (requests, answers) = (Arc::clone(&gate), Arc::clone(&gate));
                thread::spawn(move || copy(from_client, to_service, || requests.wait(|held| held.requests)));
                thread::spawn(move || copy(from_service, to_client, || answers.wait(|held| held.answers)));
            }
        });
        relay
    }

    /// Gives the service its place back: only what is connected already goes through the relay still.
    pub fn step_aside(&self, path: &Path) {
        fs::rename(path.with_extension("behind"), path).expect("a service's socket can be moved");
    }

    /// Lets nothing reach the service, and nothing come back.
    pub fn hold_all(&self) {
        self.gate.set(Held { requests: true, answers: true });
    }

    /// Lets requests reach the service; its answers wait.
    pub fn hold_answers(&self) {
        self.gate.set(Held { requests: false, answers: true });
    }

    /// Lets everything through, what waited first.
    pub fn release(&self) {
        self.gate.set(Held::default());
    }
}

fn copy(mut from: UnixStream, mut to: UnixStream, may_pass: impl Fn()) {
    let mut chunk = vec![0; 64 << 10];
    loop {
        let length = from.read(&mut chunk).unwrap_or(0);
        may_pass();
        if length == 0 || to.write_all(&chunk[..length]).is_err() {
            break;
        }
    }
    // Errors mean that they are closed.
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
