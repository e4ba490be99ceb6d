//! A psql that is still busy.

use std::io::Read;
use std::process::{Child, Stdio};
use std::thread::{self, JoinHandle};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::psql::pg_program;

/// One psql, one connection, running statements in the background. Ended when it is dropped.
#[derive(Debug)]
pub struct Session {
    child: Child,
    output: Option<JoinHandle<String>>,
    errors: Option<JoinHandle<String>>,
}

/// What a session printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Whether every statement succeeded.
    pub ok: bool,
    /// Rows and command tags: printed once the server's `CommandComplete` has come, not earlier.
    pub output: String,
    /// Messages.
    pub errors: String,
}

impl Session {
    /// Connects and runs these statements one by one, each as a query of its own, until one fails.
    pub fn start(url: &str, application: &str, statements: &[&str]) -> Session {
        let mut command = pg_program("psql");
        command.args(["-XAt", "-v", "ON_ERROR_STOP=1", "-d", url]);
        for statement in statements {
            command.args(["-c", statement]);
        }
        let mut child = command
            .env("PGAPPNAME", application)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("psql can be run");
        let output = child.stdout.take().map(read_to_end);
        let errors = child.stderr.take().map(read_to_end);
        Session { child, output, errors }
    }

    /// What Ctrl-C does: psql sends a cancel request, over a connection of its own.
    pub fn cancel(&self) {
        // An error means that it has ended.
        let _ = kill(self.pid(), Signal::SIGINT);
    }

    /// Ends the client as a crash would: the server is told nothing.
    pub fn kill(&mut self) {
        // An error means that it has ended.
        let _ = self.child.kill();
    }

    /// Whether psql still waits for the server.
    pub fn is_busy(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Said {
        let status = self.child.wait().expect("a child can be waited for");
        let text = |reader: &mut Option<JoinHandle<String>>| {
            reader.take().map(|thread| thread.join().expect("a reader does not panic")).unwrap_or_default()
        };
        let (output, errors) = (text(&mut self.output), text(&mut self.errors));
        Said { ok: status.success(), output: output.trim_end().to_owned(), errors }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("process ids fit"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Errors mean that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_to_end(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error counts.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
