//! Standard input and output as the protocol's connection: one message a line.
//!
//! The SDK's own connection says nothing to a line that is no JSON, and whoever sent it waits. JSON-RPC has an answer for it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::SinkExt as _;
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use rmcp::{ErrorData, RoleServer};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Stdin, Stdout};
use tokio::sync::Mutex;
use tokio_util::codec::{FramedWrite, LinesCodec};

/// Longest line, in bytes, as with the SDK's own connection. Longer ones are passed over.
const LINE_LEN_MAX: usize = 16 << 20;
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

type Lines = Arc<Mutex<FramedWrite<Stdout, LinesCodec>>>;

/// The connection. A wait for a message may be given up at any moment: what has begun stays here, and is gone on with.
pub struct Stdio {
    input: BufReader<Stdin>,
    /// What has arrived of the next line.
    line: Vec<u8>,
    /// What arrives is the rest of a line that is too long.
    passing_over: bool,
    output: Lines,
    /// A line's answer that is being written.
    answering: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send>>>,
}

impl Stdio {
    /// This process's own.
    pub fn open() -> Self {
        Stdio {
            input: BufReader::new(tokio::io::stdin()),
            line: Vec::new(),
            passing_over: false,
            output: Arc::new(Mutex::new(FramedWrite::new(tokio::io::stdout(), LinesCodec::new()))),
            answering: None,
        }
    }

    /// A whole line, or the first [`LINE_LEN_MAX`] bytes of one; none when there is no more.
    async fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let room = LINE_LEN_MAX - self.line.len();
        (&mut self.input).take(room as u64).read_until(b'\n', &mut self.line).await?;
        let is_over = !self.line.ends_with(b"\n") && self.line.len() < LINE_LEN_MAX;
        Ok((!is_over).then(|| std::mem::take(&mut self.line)))
    }
}

impl Transport<RoleServer> for Stdio {
    type Error = io::Error;

    fn send(&mut self, message: TxJsonRpcMessage<RoleServer>) -> impl Future<Output = io::Result<()>> + Send + 'static {
        write(self.output.clone(), serde_json::to_string(&message))
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        loop {
            if let Some(answering) = &mut self.answering {
                answering.await.ok()?;
                self.answering = None;
            }
            // An error is the end, too: nobody is there any more.
            let line = self.next_line().await.ok()??;
            let is_whole = line.ends_with(b"\n");
            if std::mem::replace(&mut self.passing_over, !is_whole) {
                continue;
            }
            let message = if is_whole { parse(&line) } else { Err(too_long()) };
            match message {
                Ok(Some(message)) => return Some(message),
                Ok(None) => {}
                Err(answer) => self.answering = Some(Box::pin(write(self.output.clone(), Ok(answer.to_string())))),
            }
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        // What is being written comes to its end.
        let _written = self.output.lock().await;
        Ok(())
    }
}

async fn write(output: Lines, line: serde_json::Result<String>) -> io::Result<()> {
    let line = line?;
    output.lock().await.send(line).await.map_err(io::Error::other)
}

/// The message in a line; none: there is nothing to say to it. The error is the answer.
fn parse(line: &[u8]) -> Result<Option<RxJsonRpcMessage<RoleServer>>, Value> {
    let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line).trim_ascii();
    if line.is_empty() {
        return Ok(None);
    }
    let error = match serde_json::from_slice(line) {
        Ok(message) => return Ok(Some(message)),
        Err(error) => error,
    };
    match serde_json::from_slice::<Value>(line) {
        Err(error) => Err(answer(&Value::Null, &ErrorData::parse_error(format!("the line is no JSON: {error}"), None))),
        // Nobody waits for an answer to a notification.
        Ok(value) if value.get("method").is_some() && value.get("id").is_none() => Ok(None),
        Ok(value) => {
            // The number of an answer is ours: the same number may be that of a request of theirs.
            let is_request = value.get("method").is_some();
            let id = value.get("id").filter(|id| is_request && (id.is_string() || id.is_number()));
            let what = format!("the line is no message of the protocol: {error}");
            Err(answer(id.unwrap_or(&Value::Null), &ErrorData::invalid_request(what, None)))
        }
    }
}

fn too_long() -> Value {
    let what = format!("a line has more than {} MiB", LINE_LEN_MAX >> 20);
    answer(&Value::Null, &ErrorData::invalid_request(what, None))
}

fn answer(id: &Value, error: &ErrorData) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": error })
}
