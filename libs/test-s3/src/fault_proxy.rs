//! An HTTP proxy that does to each request what a test says.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a test sees of a request.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, `PUT`, ...
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Counts requests from 0.
    pub number: u64,
    /// Header lines, in small letters up to the colon.
    pub headers: Vec<String>,
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The connection is reset, the server never sees the request.
    Reset,
    /// The request is passed on after this long.
    Delay(Duration),
    /// This answer, and the server never sees the request.
    Answer {
        /// Status, such as 503.
        status: u16,
        /// Code in the body, such as `SlowDown`.
        code: &'static str,
    },
    /// An answer of status 200 with this XML, and the server never sees the request.
    Say(String),
    /// The server does what is asked; its answer is lost and the connection reset.
    LoseAnswer,
    /// The server does what is asked; the answer is this one.
    DoAndAnswer {
        /// Status.
        status: u16,
        /// Code in the body.
        code: &'static str,
    },
    /// The answer is cut off in the middle of its body.
    Truncate,
    /// A condition that does not hold is answered as if the server did not know conditions.
    IgnoreCondition,
}

type Plan = Box<dyn FnMut(&Request) -> Fault + Send>;

struct Shared {
    upstream: SocketAddr,
    plan: Mutex<Plan>,
    requests: AtomicU64,
    body_bytes: AtomicU64,
    stopping: AtomicBool,
}

/// A running proxy, ended on drop.
pub struct FaultProxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

impl FaultProxy {
    /// A proxy to `upstream` on a free port. Everything passes until a plan is set.
    pub fn start(upstream: SocketAddr) -> FaultProxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a local port can be bound");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            upstream,
            plan: Mutex::new(Box::new(|_| Fault::None)),
            requests: AtomicU64::new(0),
            body_bytes: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        });
        let of_thread = shared.clone();
        let accepting = std::thread::spawn(move || accept(&listener, &of_thread));
        FaultProxy { shared, address, accepting: Some(accepting) }
    }

    /// The endpoint.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What shall happen from now on.
    pub fn plan(&self, plan: impl FnMut(&Request) -> Fault + Send + 'static) {
        *self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(plan);
    }

    /// How many requests came so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Bytes of answers' bodies that were passed on so far.
    pub fn body_bytes(&self) -> u64 {
        self.shared.body_bytes.load(Ordering::SeqCst)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts; threads of connections end with their clients.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        let shared = shared.clone();
        std::thread::spawn(move || {
            // An error is a client or a server that went away.
            let _ = serve(&client, &shared);
        });
    }
}

/// A head and what it says of its body.
struct Head {
    lines: Vec<String>,
    content_length: Option<u64>,
    is_chunked: bool,
}

impl Head {
    fn read(from: &mut impl BufRead) -> io::Result<Option<Head>> {
        let mut head = Head { lines: Vec::new(), content_length: None, is_chunked: false };
        loop {
            let mut line = String::new();
            if from.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            let line = line.trim_end_matches(['\r', '\n']).to_owned();
            if line.is_empty() {
                return Ok(Some(head));
            }
            if let Some((name, value)) = line.split_once(':') {
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => head.content_length = value.trim().parse().ok(),
                    "transfer-encoding" => head.is_chunked = value.contains("chunked"),
                    _ => {}
                }
            }
            head.lines.push(line);
        }
    }

    fn without(&self, names: &[&str]) -> Vec<u8> {
        let is_kept = |line: &&String| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            !names.contains(&name.as_str())
        };
        let lines: Vec<&str> = self.lines.iter().filter(is_kept).map(String::as_str).collect();
        lines.join("\r\n").into_bytes()
    }

    fn says(&self, name: &str) -> bool {
        self.lines.iter().any(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")))
    }
}

fn serve(client: &TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client);
    while let Some(head) = Head::read(&mut reader)? {
        if head.says("expect") {
            (&mut &*client).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let length = usize::try_from(head.content_length.unwrap_or(0)).map_err(io::Error::other)?;
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let fault = next_fault(shared, &head);
        if !answer(client, shared, &head, &body, &fault)? {
            return reset(client);
        }
    }
    Ok(())
}

fn next_fault(shared: &Shared, head: &Head) -> Fault {
    let mut words = head.lines.first().map_or("", String::as_str).split(' ').map(str::to_owned);
    let lower =
        |line: &String| line.split_once(':').map(|(name, value)| format!("{}:{value}", name.to_ascii_lowercase()));
    let request = Request {
        method: words.next().unwrap_or_default(),
        target: words.next().unwrap_or_default(),
        number: shared.requests.fetch_add(1, Ordering::SeqCst),
        headers: head.lines.iter().skip(1).filter_map(lower).collect(),
    };
    (shared.plan.lock().unwrap_or_else(PoisonError::into_inner))(&request)
}

/// True if the connection stays.
fn answer(client: &TcpStream, shared: &Shared, head: &Head, body: &[u8], fault: &Fault) -> io::Result<bool> {
    match fault {
        Fault::Reset => return Ok(false),
        Fault::Answer { status, code } => return error_answer(client, *status, code),
        Fault::Say(body) => return xml_answer(client, "200 OK", body),
        Fault::Delay(pause) => std::thread::sleep(*pause),
        _ => {}
    }
    let mut upstream = TcpStream::connect(shared.upstream)?;
    upstream.write_all(&head.without(&["connection", "expect"]))?;
    upstream.write_all(b"\r\nConnection: close\r\n\r\n")?;
    upstream.write_all(body)?;
    let mut from_server = BufReader::new(upstream);
    let Some(answer) = Head::read(&mut from_server)? else { return Ok(false) };
    let mut body = Vec::new();
    from_server.read_to_end(&mut body)?;
    match fault {
        Fault::LoseAnswer => return Ok(false),
        Fault::DoAndAnswer { status, code } => return error_answer(client, *status, code),
        Fault::IgnoreCondition if answer.lines.first().is_some_and(|line| line.contains(" 412 ")) => {
            let mut to_client = client;
            to_client.write_all(b"HTTP/1.1 200 OK\r\nETag: \"planned\"\r\nContent-Length: 0\r\n\r\n")?;
            return Ok(true);
        }
        _ => {}
    }
    let mut to_client = client;
    to_client.write_all(&answer.without(&["connection"]))?;
    to_client.write_all(b"\r\n\r\n")?;
    if *fault == Fault::Truncate {
        to_client.write_all(&body[..body.len() / 2])?;
        return Ok(false);
    }
    to_client.write_all(&body)?;
    shared.body_bytes.fetch_add(body.len() as u64, Ordering::SeqCst);
    // Without a length the end of the connection is the end of the body.
    Ok(answer.content_length.is_some() || answer.is_chunked || body.is_empty())
}

fn error_answer(client: &TcpStream, status: u16, code: &str) -> io::Result<bool> {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as planned</Message></Error>");
    xml_answer(client, &format!("{status} Planned"), &body)
}

fn xml_answer(mut client: &TcpStream, status: &str, body: &str) -> io::Result<bool> {
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    client.write_all(head.as_bytes())?;
    Ok(true)
}

fn reset(client: &TcpStream) -> io::Result<()> {
    // Data that was not read makes the kernel send a reset; a client that waits sees the end in any case.
    client.shutdown(Shutdown::Both)
}
