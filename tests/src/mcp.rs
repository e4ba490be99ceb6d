//! A client of `ardent mcp`, as plain lines of JSON.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longest wait for its end once its input is closed.
const END_DEADLINE: Duration = Duration::from_secs(60);

/// A conversation with `ardent mcp`.
pub struct Mcp {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// Numbers of requests so far.
    count: u64,
    /// What is said to whatever it asks its user; absent: it says that it cannot ask.
    answer: Option<Value>,
    /// What it was asked.
    asked: Vec<String>,
    /// Lines of progress.
    progress: Vec<String>,
}

impl Mcp {
    /// Starts it and says hello.
    pub(crate) fn start(mut command: Command, answer: Option<Value>) -> Mcp {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("it can be run");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let asks = if answer.is_some() { json!({ "elicitation": {} }) } else { json!({}) };
        let mut mcp = Mcp { child, input, output, count: 0, answer, asked: Vec::new(), progress: Vec::new() };
        let hello = json!({ "protocolVersion": "2025-06-18", "capabilities": asks, "clientInfo": { "name": "test", "version": "1" } });
        let welcome = mcp.request("initialize", hello);
        assert_eq!(welcome["serverInfo"]["name"], "ardent", "{welcome}");
        mcp.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }));
        mcp
    }

    fn send(&mut self, message: &Value) {
        let input = self.input.as_mut().expect("it is not closed");
        writeln!(input, "{message}").and_then(|()| input.flush()).expect("it reads");
    }

    /// The next message that it sends. `after`: what that is to answer.
    fn next(&mut self, after: &str) -> Value {
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).expect("it can be read") > 0, "it ended without an answer to {after}");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// Sends a line as it is; the answer.
    pub fn line(&mut self, line: &[u8]) -> Value {
        let input = self.input.as_mut().expect("it is not closed");
        input.write_all(&[line, b"\n"].concat()).and_then(|()| input.flush()).expect("it reads");
        self.next(&String::from_utf8_lossy(line))
    }

    /// A request's result. What is asked meanwhile is answered.
    pub fn request(&mut self, method: &str, params: Value) -> Value {
        self.count += 1;
        let id = self.count;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }));
        loop {
            let message = self.next(method);
            if message["method"] == "elicitation/create" {
                self.asked.push(message["params"]["message"].as_str().unwrap_or_default().to_owned());
                let answer = self.answer.clone().expect("it asks though it was told that it cannot");
                self.send(&json!({ "jsonrpc": "2.0", "id": message["id"], "result": answer }));
            } else if message["method"] == "notifications/progress" {
                self.progress.push(message["params"]["message"].as_str().unwrap_or_default().to_owned());
            } else if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
        }
    }

    /// What a tool answers, and whether that is an error.
    pub fn call(&mut self, tool: &str, arguments: Value) -> (Value, bool) {
        let token = self.count + 1;
        let params = json!({ "name": tool, "arguments": arguments, "_meta": { "progressToken": token } });
        let result = self.request("tools/call", params);
        (result["structuredContent"].clone(), result["isError"] == true)
    }

    /// The answer of a tool that must do what it is asked to.
    #[track_caller]
    pub fn ok(&mut self, tool: &str, arguments: Value) -> Value {
        let (answer, is_error) = self.call(tool, arguments);
        assert!(!is_error, "{tool}: {answer}");
        answer
    }

    /// The error of a tool that must not.
    #[track_caller]
    pub fn refused(&mut self, tool: &str, arguments: Value) -> Value {
        let (answer, is_error) = self.call(tool, arguments);
        assert!(is_error, "{tool}: {answer}");
        answer["error"].clone()
    }

    /// What it has asked its user so far.
    pub fn asked(&self) -> &[String] {
        &self.asked
    }

    /// What it has told of its progress so far.
    pub fn progress(&self) -> &[String] {
        &self.progress
    }

    /// Sends a call, and leaves without its answer. Waits for the end of the process.
    pub fn leave_during(mut self, tool: &str, arguments: Value) {
        self.send(&json!({ "jsonrpc": "2.0", "id": 0, "method": "tools/call", "params": { "name": tool, "arguments": arguments } }));
        self.end();
    }

    fn end(&mut self) {
        drop(self.input.take());
        let deadline = Instant::now() + END_DEADLINE;
        while self.child.try_wait().expect("a child can be waited for").is_none() {
            assert!(Instant::now() < deadline, "it does not end when its client is gone");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Mcp {
    fn drop(&mut self) {
        // Errors mean that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
