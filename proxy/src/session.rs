//! One client's life: startup, TLS, route, SCRAM, wake, relay. Read top down.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use ardent_unix_stream::QuietStream;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::cancel::{CancelTarget, Registration};
use crate::control_plane::{ControlError, ControlPlane};
use crate::limits;
use crate::message::{self, ClientError};
use crate::route::{self, Route};
use crate::scram::{self, Exchange, ScramError, Verifier};
use crate::server::Shared;
use crate::startup::{FirstPacket, StartupParameters};

/// First byte of a TLS handshake record: a client that starts with TLS at once (`sslnegotiation=direct`).
const TLS_HANDSHAKE: u8 = 0x16;
/// SQLSTATE of a server that is just stopping or starting.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// How a session ended when it did not end well. For the log: the client has been told what it may know.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection broke.
    #[error("connection lost")]
    Io(#[from] io::Error),
    /// The client was told this.
    #[error("refused: {}", .0.message)]
    Refused(ClientError),
    /// The client broke the protocol before it was authenticated, or was too slow; it was told nothing.
    #[error("gave up on the client: {0}")]
    Dropped(&'static str),
}

impl From<message::ReadError> for SessionError {
    fn from(error: message::ReadError) -> Self {
        match error {
            message::ReadError::Io(error) => SessionError::Io(error),
            message::ReadError::Length { .. } => SessionError::Dropped("a message of an impossible length"),
        }
    }
}

/// Serves one TCP connection until it ends.
pub async fn serve<C: ControlPlane>(shared: &Shared<C>, tcp: TcpStream, peer: SocketAddr) -> Result<(), SessionError> {
    tcp.set_nodelay(true)?;
    let handshake = timeout(limits::HANDSHAKE_TIMEOUT, authenticate(shared, tcp));
    let Some(client) = handshake.await.map_err(|_| SessionError::Dropped("no password within the time allowed"))??
    else {
        return Ok(());
    };
    let Client { mut stream, mut route } = client;
    route.parameters.set_client_address(peer);
    let began = Instant::now();
    match connect_compute(shared, &route).await {
        Ok(compute) => {
            shared.metrics.connected(began);
            relay(stream, compute).await
        }
        Err(error) => refuse(&mut stream, error).await,
    }
}

/// A client that has proved its password.
struct Client {
    stream: TlsStream<TcpStream>,
    route: Route,
}

/// Everything up to the proved password. `None`: the connection was for a cancel request, or ended before it began.
async fn authenticate<C: ControlPlane>(shared: &Shared<C>, mut tcp: TcpStream) -> Result<Option<Client>, SessionError> {
    if !wants_tls(shared, &mut tcp).await? {
        return Ok(None);
    }
    let hello = LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
    let certificate = match shared.certificates.for_server_name(hello.client_hello().server_name()) {
        Ok(certificate) => certificate,
        Err(error) => {
            tracing::error!(%error, "cannot issue a certificate");
            return Err(SessionError::Dropped("no certificate to show"));
        }
    };
    let mut stream = hello.into_stream(Arc::clone(&certificate.server_config)).await?;
    let parameters = match read_first_packet(&mut stream).await? {
        FirstPacket::Startup(parameters) => parameters,
        FirstPacket::Cancel(key) => {
            shared.cancels.cancel(key).await?;
            return Ok(None);
        }
        FirstPacket::SslRequest | FirstPacket::GssEncRequest => {
            return Err(SessionError::Dropped("a second request for encryption"));
        }
    };
    if parameters.minor_version > 0 || parameters.protocol_extensions().next().is_some() {
        stream.write_all(&message::negotiate_protocol_version(parameters.protocol_extensions())).await?;
    }
    let outcome = match choose_route(shared, &stream, parameters) {
        Ok(route) => check_password(shared, &mut stream, &route, &certificate.end_point).await?.map(|()| route),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(route) => Ok(Some(Client { stream, route })),
        Err(error) => refuse(&mut stream, error).await.map(|()| None),
    }
}

/// Answers what comes before TLS; then says whether TLS comes next, or nothing more.
async fn wants_tls<C: ControlPlane>(shared: &Shared<C>, tcp: &mut TcpStream) -> Result<bool, SessionError> {
    let mut first = [0];
    if tcp.peek(&mut first).await? == 0 {
        return Ok(false);
    }
    if first[0] == TLS_HANDSHAKE {
        return Ok(true);
    }
    // A client asks at most once for each kind of encryption.
    for _ in 0..3 {
        match read_first_packet(tcp).await? {
            FirstPacket::SslRequest => {
                tcp.write_all(b"S").await?;
                return Ok(true);
            }
            FirstPacket::GssEncRequest => tcp.write_all(b"N").await?,
            FirstPacket::Cancel(key) => {
                shared.cancels.cancel(key).await?;
                return Ok(false);
            }
            FirstPacket::Startup(_) => {
                let error = ClientError {
                    sqlstate: "28000",
                    message: "this server takes connections with TLS only".to_owned(),
                    hint: Some("Add sslmode=require to the connection string.".to_owned()),
                };
                tcp.write_all(&error.encode()).await?;
                return Err(SessionError::Refused(error));
            }
        }
    }
    Err(SessionError::Dropped("too many requests for encryption"))
}

async fn read_first_packet(
    stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
) -> Result<FirstPacket, SessionError> {
    let length = stream.read_u32().await? as usize;
    let body = length.checked_sub(4).filter(|body| *body <= limits::STARTUP_PACKET_LEN_MAX);
    let mut bytes = vec![0; body.ok_or(SessionError::Dropped("a first packet of an impossible length"))?];
    stream.read_exact(&mut bytes).await?;
    match FirstPacket::parse(&bytes) {
        Ok(packet) => Ok(packet),
        Err(error) => {
            let error = ClientError { sqlstate: "08P01", message: error.to_string(), hint: None };
            stream.write_all(&error.encode()).await?;
            Err(SessionError::Refused(error))
        }
    }
}

fn choose_route<C: ControlPlane>(
    shared: &Shared<C>,
    stream: &TlsStream<TcpStream>,
    parameters: StartupParameters,
) -> Result<Route, ClientError> {
    let server_name = stream.get_ref().1.server_name();
    route::route(&shared.hosts, server_name, parameters).map_err(|error| ClientError {
        sqlstate: "08004",
        message: error.to_string(),
        hint: None,
    })
}

/// Runs SCRAM. The inner result is what the client is told.
async fn check_password<C: ControlPlane>(
    shared: &Shared<C>,
    stream: &mut TlsStream<TcpStream>,
    route: &Route,
    end_point: &[u8],
) -> Result<Result<(), ClientError>, SessionError> {
    let verifier = match shared.control.verifier(&route.branch, &route.role).await {
        Ok(Some(text)) => Verifier::parse(&text),
        Ok(None) => Ok(Verifier::mock(&shared.mock_secret, &route.branch, &route.role)),
        Err(error) => return Ok(Err(control_error(error))),
    };
    let verifier = match verifier {
        Ok(verifier) => verifier,
        Err(error) => {
            tracing::error!(branch = route.branch, role = route.role, %error, "control holds an unusable verifier");
            Verifier::mock(&shared.mock_secret, &route.branch, &route.role)
        }
    };
    stream.write_all(&message::sasl(&[scram::MECHANISM_PLUS, scram::MECHANISM])).await?;
    let Some((mechanism, first)) = message::parse_sasl_initial(read_password_message(stream).await?) else {
        return Err(SessionError::Dropped("a malformed SASL response"));
    };
    let started = Exchange::start(verifier, &mechanism, &first, &server_nonce()?, Some(end_point));
    let exchange = match started {
        Ok(exchange) => exchange,
        Err(error) => return Ok(Err(denied(route, error))),
    };
    stream.write_all(&message::sasl_continue(exchange.server_first())).await?;
    let last = read_password_message(stream).await?;
    match exchange.finish(&last) {
        Ok(server_final) => {
            stream.write_all(&message::sasl_final(&server_final)).await?;
            Ok(Ok(()))
        }
        Err(error) => Ok(Err(denied(route, error))),
    }
}

async fn read_password_message(stream: &mut TlsStream<TcpStream>) -> Result<Bytes, SessionError> {
    match message::read(stream, limits::AUTH_MESSAGE_LEN_MAX).await? {
        (message::PASSWORD_MESSAGE, body) => Ok(body),
        _ => Err(SessionError::Dropped("something else than a SASL response")),
    }
}

fn server_nonce() -> Result<String, SessionError> {
    let mut bytes = [0; 18];
    SystemRandom::new().fill(&mut bytes).map_err(|_| SessionError::Dropped("no randomness to be had"))?;
    Ok(STANDARD_NO_PAD.encode(bytes))
}

/// The same words whether the branch, the role or the password is wrong (PX-2). The names are those that the client sent.
fn denied(route: &Route, error: ScramError) -> ClientError {
    let Route { branch, role, .. } = route;
    let message = match error {
        ScramError::Denied => format!("password authentication failed for user \"{role}\""),
        other => format!("authentication failed for user \"{role}\": {other}"),
    };
    let hint = format!(
        "A branch has a password of its own: take the connection string that \"ardent branch info {branch} --print-url\" shows."
    );
    ClientError { sqlstate: "28P01", message, hint: Some(hint) }
}

fn control_error(error: ControlError) -> ClientError {
    let (message, hint) = match error {
        ControlError::Unreachable(_) => (
            "the control service does not answer".to_owned(),
            Some("Try again; if it goes on, look at \"ardent status\" and the log of \"ardent up\".".to_owned()),
        ),
        ControlError::Refused { message, hint, .. } => (message, hint),
    };
    ClientError { sqlstate: CANNOT_CONNECT_NOW, message, hint }
}

/// A session opened on a compute: its stream, and what the client has yet to be sent of it.
struct Compute {
    stream: QuietStream,
    greeting: BytesMut,
    /// Kept for as long as the session lives.
    _registration: Option<Registration>,
}

/// Wakes the branch and opens a session there as the role. Starts again when the compute was just going to sleep.
async fn connect_compute<C: ControlPlane>(shared: &Shared<C>, route: &Route) -> Result<Compute, ClientError> {
    let deadline = Instant::now() + limits::WAKE_TIMEOUT;
    let timed_out = || ClientError {
        sqlstate: CANNOT_CONNECT_NOW,
        message: format!("branch \"{}\" did not wake within {} s", route.branch, limits::WAKE_TIMEOUT.as_secs()),
        hint: Some(format!("See \"ardent branch info {}\" and the log of \"ardent up\".", route.branch)),
    };
    loop {
        let woken = timeout_at(deadline, shared.control.wake(&route.branch)).await.map_err(|_| timed_out())?;
        let awake = woken.map_err(|error| {
            tracing::warn!(branch = route.branch, %error, "wake failed");
            control_error(error)
        })?;
        let socket = awake.socket_dir.join(format!(".s.PGSQL.{}", awake.port));
        let opened = timeout_at(deadline, open_session(shared, route, socket)).await.map_err(|_| timed_out())?;
        match opened {
            Ok(compute) => return Ok(compute),
            Err(OpenError::Asleep) => {
                timeout_at(deadline, sleep(limits::REWAKE_PAUSE)).await.map_err(|_| timed_out())?
            }
            Err(OpenError::Unusable(reason)) => {
                tracing::error!(branch = route.branch, reason, "a compute does not take sessions");
                let message = format!("the compute of branch \"{}\" does not take sessions: {reason}", route.branch);
                return Err(ClientError { sqlstate: "08006", message, hint: None });
            }
        }
    }
}

enum OpenError {
    /// It has stopped or is stopping: wake it again.
    Asleep,
    /// It is there and will not have us.
    Unusable(&'static str),
}

async fn open_session<C: ControlPlane>(
    shared: &Shared<C>,
    route: &Route,
    socket: PathBuf,
) -> Result<Compute, OpenError> {
    let gone = |_: io::Error| OpenError::Asleep;
    let mut stream = QuietStream::connect(&socket).await.map_err(gone)?;
    stream.write_all(&route.parameters.to_packet()).await.map_err(gone)?;
    let mut stream = BufReader::new(stream);
    let mut greeting = BytesMut::new();
    let mut registration = None;
    loop {
        let read = message::read(&mut stream, limits::BACKEND_STARTUP_MESSAGE_LEN_MAX).await;
        let (kind, body) = match read {
            Ok(message) => message,
            Err(message::ReadError::Io(error)) => return Err(gone(error)),
            Err(message::ReadError::Length { .. }) => {
                return Err(OpenError::Unusable("a message of an impossible length"));
            }
        };
        match kind {
            message::AUTHENTICATION if body[..] != [0, 0, 0, 0] => {
                return Err(OpenError::Unusable("it asks for a password"));
            }
            message::BACKEND_KEY_DATA => {
                let key = message::parse_backend_key_data(body).ok_or(OpenError::Unusable("a malformed cancel key"))?;
                let ours = shared.cancels.register(CancelTarget { socket: socket.clone(), key });
                greeting.extend_from_slice(&message::backend_key_data(ours.key()));
                registration = Some(ours);
            }
            message::ERROR_RESPONSE if message::parse_sqlstate(&body) == Some(CANNOT_CONNECT_NOW) => {
                return Err(OpenError::Asleep);
            }
            _ => greeting.extend_from_slice(&message::raw(kind, &body)),
        }
        // An error is the client's to see: a database that does not exist, too many connections.
        if matches!(kind, message::READY_FOR_QUERY | message::ERROR_RESPONSE) {
            greeting.extend_from_slice(stream.buffer());
            return Ok(Compute { stream: stream.into_inner(), greeting, _registration: registration });
        }
    }
}

async fn relay(mut client: TlsStream<TcpStream>, mut compute: Compute) -> Result<(), SessionError> {
    client.write_all(&compute.greeting).await?;
    client.flush().await?;
    compute.greeting = BytesMut::new();
    let buffer = limits::RELAY_BUFFER_LEN;
    match tokio::io::copy_bidirectional_with_sizes(&mut client, &mut compute.stream, buffer, buffer).await {
        Ok(_) => Ok(()),
        // Clients that exit without a goodbye are everyday business.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

async fn refuse(stream: &mut TlsStream<TcpStream>, error: ClientError) -> Result<(), SessionError> {
    stream.write_all(&error.encode()).await?;
    stream.shutdown().await?;
    Err(SessionError::Refused(error))
}
