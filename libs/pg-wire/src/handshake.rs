//! From a host to a connection that is ready: sockets, TLS, authentication.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::config::{ConnectConfig, ConnectMode, Target, TlsMode};
use crate::error::WireError;
use crate::message::{Fields, MessageStream};
use crate::stream::WireStream;
use crate::tls::client_config;

const AUTH_OK: i32 = 0;
const AUTH_CLEARTEXT: i32 = 3;
const AUTH_MD5: i32 = 5;
const AUTH_SASL: i32 = 10;
const AUTH_SASL_CONTINUE: i32 = 11;
const AUTH_SASL_FINAL: i32 = 12;

/// Connects to the first host that answers and authenticates there.
pub(crate) async fn connect(config: &ConnectConfig, mode: ConnectMode) -> Result<MessageStream, WireError> {
    let mut last = None;
    for target in &config.targets {
        let attempt = timeout(config.connect_timeout, async {
            let stream = open(config, target).await?;
            start(config, mode, MessageStream::new(stream)).await
        });
        let error = match attempt.await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => WireError::Connect { addr: target.to_string(), source: io::Error::from(io::ErrorKind::TimedOut) },
        };
        // Another host is only tried where this one can't be reached.
        if !matches!(error, WireError::Connect { .. }) {
            return Err(error);
        }
        last = Some(error);
    }
    Err(last.expect("a connection string has at least one host"))
}

async fn open(config: &ConnectConfig, target: &Target) -> Result<WireStream, WireError> {
    let addr = target.to_string();
    let failed = |source| WireError::Connect { addr: addr.clone(), source };
    match target {
        Target::Unix(path) => Ok(WireStream::Unix(UnixStream::connect(path).await.map_err(failed)?)),
        Target::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            upgrade(config, stream, host, &addr).await
        }
    }
}

/// Asks for TLS, unless `sslmode` says not to.
async fn upgrade(
    config: &ConnectConfig,
    mut stream: TcpStream,
    host: &str,
    addr: &str,
) -> Result<WireStream, WireError> {
    if config.tls == TlsMode::Disable {
        return Ok(WireStream::Tcp(stream));
    }
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await?;
    // One byte only: whatever a man in the middle sends behind it in clear must not be taken for TLS.
    match stream.read_u8().await? {
        b'S' => {}
        b'N' if config.tls == TlsMode::Prefer => return Ok(WireStream::Tcp(stream)),
        b'N' => return Err(WireError::NoTls(addr.to_owned())),
        other => return Err(WireError::protocol(format!("{other:#04x} as the answer to a TLS request"))),
    }
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| WireError::Tls { addr: addr.to_owned(), source: io::Error::other(error) })?;
    let connector = TlsConnector::from(Arc::new(client_config(config.tls, config.root_certificates.as_deref())?));
    let tls = connector.connect(name, stream).await;
    let tls = tls.map_err(|source| WireError::Tls { addr: addr.to_owned(), source })?;
    Ok(WireStream::Tls(Box::new(tls)))
}

/// Sends the startup message, authenticates, and waits until the server is ready.
async fn start(
    config: &ConnectConfig,
    mode: ConnectMode,
    mut stream: MessageStream,
) -> Result<MessageStream, WireError> {
    let mut parameters = vec![("user", config.user.as_str()), ("client_encoding", "UTF8")];
    match mode {
        ConnectMode::Sql => parameters.push(("database", config.database())),
        ConnectMode::Replication => parameters.push(("replication", "true")),
        ConnectMode::Logical => {
            parameters.push(("database", config.database()));
            parameters.push(("replication", "database"));
        }
    }
    parameters.push(("application_name", config.application_name.as_deref().unwrap_or("ardent")));
    if let Some(options) = &config.options {
        parameters.push(("options", options));
    }
    let mut startup = BytesMut::new();
    frontend::startup_message(parameters, &mut startup)?;
    stream.write(&startup).await?;
    authenticate(config, &mut stream).await?;
    loop {
        match stream.expect().await?.tag {
            b'K' => {}
            b'Z' => return Ok(stream),
            tag => return Err(unexpected(tag, "the end of the startup")),
        }
    }
}

async fn authenticate(config: &ConnectConfig, stream: &mut MessageStream) -> Result<(), WireError> {
    let password = || config.password.as_deref().ok_or(WireError::PasswordMissing);
    loop {
        let (kind, fields) = authentication_request(stream).await?;
        let mut reply = BytesMut::new();
        match kind {
            AUTH_OK => return Ok(()),
            AUTH_CLEARTEXT => frontend::password_message(password()?, &mut reply)?,
            AUTH_MD5 => {
                let salt = fields.rest().get(..4).and_then(|salt| salt.try_into().ok());
                let salt = salt.ok_or_else(|| WireError::protocol("an MD5 request without salt"))?;
                let hash = md5_hash(config.user.as_bytes(), password()?, salt);
                frontend::password_message(hash.as_bytes(), &mut reply)?;
            }
            AUTH_SASL => {
                scram(password()?, fields, stream).await?;
                continue;
            }
            2 | 7 | 8 | 9 => return Err(WireError::Authentication("Kerberos, GSSAPI or SSPI")),
            _ => return Err(WireError::Authentication("an unknown kind of")),
        }
        stream.write(&reply).await?;
    }
}

async fn authentication_request(stream: &mut MessageStream) -> Result<(i32, Fields), WireError> {
    let message = stream.expect().await?;
    if message.tag != b'R' {
        return Err(unexpected(message.tag, "authentication"));
    }
    let mut fields = Fields::new(message.body);
    Ok((fields.i32()?, fields))
}

/// The SCRAM-SHA-256 exchange. It proves to us, too, that the server knows the password's verifier.
async fn scram(password: &[u8], mut offered: Fields, stream: &mut MessageStream) -> Result<(), WireError> {
    let mut known = false;
    loop {
        let mechanism = offered.text()?;
        if mechanism.is_empty() {
            break;
        }
        known |= mechanism == SCRAM_SHA_256;
    }
    if !known {
        return Err(WireError::Authentication("an unknown SASL"));
    }
    let mut exchange = ScramSha256::new(password, ChannelBinding::unsupported());
    let mut reply = BytesMut::new();
    frontend::sasl_initial_response(SCRAM_SHA_256, exchange.message(), &mut reply)?;
    stream.write(&reply).await?;
    let challenge = sasl_data(stream, AUTH_SASL_CONTINUE).await?;
    exchange.update(&challenge).map_err(WireError::Scram)?;
    reply.clear();
    frontend::sasl_response(exchange.message(), &mut reply)?;
    stream.write(&reply).await?;
    let proof = sasl_data(stream, AUTH_SASL_FINAL).await?;
    exchange.finish(&proof).map_err(WireError::Scram)
}

async fn sasl_data(stream: &mut MessageStream, expected: i32) -> Result<bytes::Bytes, WireError> {
    let (kind, fields) = authentication_request(stream).await?;
    if kind != expected {
        return Err(WireError::protocol(format!("authentication step {kind} where {expected} was due")));
    }
    Ok(fields.rest())
}

pub(crate) fn unexpected(tag: u8, during: &str) -> WireError {
    WireError::protocol(format!("message {:?} during {during}", char::from(tag)))
}
