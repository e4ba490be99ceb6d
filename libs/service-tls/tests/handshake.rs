//! Real handshakes on loopback, and the files that they rest on.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use libc::c_int;
use rcgen::KeyPair;
use rustls::ServerConfig;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use ardent_api::addr::KeyPin;
use ardent_service_tls::{ClientStream, ConnectError, Identity, TlsAcceptor, WrongKey, connect, prepare};

/// A new one, with its folder.
fn identity() -> (TempDir, Identity) {
    let folder = tempfile::tempdir().expect("a folder");
    let identity = Identity::load_or_make(folder.path()).expect("made");
    (folder, identity)
}

async fn listening() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    (listener, address)
}

/// What a client that wants `pin` meets at a server with this configuration; the server sends back what it gets.
async fn meet(config: Arc<ServerConfig>, pin: KeyPin) -> Result<ClientStream, ConnectError> {
    let (listener, address) = listening().await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepted");
        // A client that refuses ends it here.
        let Ok(mut stream) = TlsAcceptor::from(config).accept(stream).await else { return };
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).await.expect("read");
        stream.write_all(&bytes).await.expect("written");
        stream.shutdown().await.expect("ended");
    });
    connect(&address, pin).await
}

#[tokio::test]
async fn who_holds_the_key_is_talked_to_and_no_other() {
    let ((_one, one), (_other, other)) = (identity(), identity());
    let config = one.server_config(&["wal.example.com".to_owned()]).expect("a configuration");
    let mut stream = meet(Arc::clone(&config), one.pin()).await.expect("connected");
    stream.write_all(b"hello").await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    assert_eq!(answer, "hello");

    let error = meet(config, other.pin()).await.expect_err("another key");
    assert!(matches!(error, ConnectError::WrongKey(WrongKey { shown }) if shown == one.pin()), "{error:?}");
}

/// Shows a certificate without holding its key.
#[derive(Debug)]
struct Pretender(Arc<CertifiedKey>);

impl ResolvesServerCert for Pretender {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[tokio::test]
async fn a_certificate_alone_does_not_do() {
    let (_folder, one) = identity();
    let shown = CertificateDer::from_pem_file(one.ca_path()).expect("a certificate");
    let own = KeyPair::generate().expect("a key").serialize_der();
    let own = any_supported_type(&PrivateKeyDer::try_from(own).expect("a key")).expect("a key");
    let pretender = Arc::new(Pretender(Arc::new(CertifiedKey::new(vec![shown], own))));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(pretender);
    let error = meet(Arc::new(config), one.pin()).await.expect_err("it cannot sign");
    let ConnectError::Io(error) = error else { panic!("{error:?}") };
    assert!(format!("{error:?}").to_lowercase().contains("signature"), "{error:?}");
}

#[tokio::test]
async fn who_speaks_something_else_is_told_from_who_is_away() {
    let (_folder, identity) = identity();
    let (listener, address) = listening().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n").await.expect("written");
        // Until the client goes.
        _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let error = connect(&address, identity.pin()).await.expect_err("no TLS");
    assert!(matches!(error, ConnectError::NotTls), "{error:?}");

    let (listener, address) = listening().await;
    drop(listener);
    let error = connect(&address, identity.pin()).await.expect_err("nobody");
    let refused = matches!(&error, ConnectError::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused);
    assert!(refused, "{error:?}");
}

#[test]
fn a_key_is_made_once_and_is_private() {
    let (folder, first) = identity();
    let ca = fs::read(first.ca_path()).expect("the authority");
    let again = Identity::load_or_make(folder.path()).expect("read");
    assert_eq!((again.pin(), fs::read(again.ca_path()).expect("the authority")), (first.pin(), ca));
    let mode = fs::metadata(folder.path().join("tls.key")).expect("the key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // It stays with its key alone.
    fs::remove_file(first.ca_path()).expect("removed");
    assert_eq!(Identity::load_or_make(folder.path()).expect("read").pin(), first.pin());
    assert!(again.ca_path().exists());
}

#[test]
fn what_cannot_be_used_is_named() {
    let check = |file: &str, content: &str| {
        let (folder, _) = identity();
        fs::write(folder.path().join(file), content).expect("written");
        let error = Identity::load_or_make(folder.path()).expect_err("refused");
        assert!(error.to_string().contains(file), "{error}");
    };
    check("tls.key", "nonsense");
    check("tls-ca.pem", "nonsense");
    let (_folder, other) = identity();
    check("tls-ca.pem", &fs::read_to_string(other.ca_path()).expect("the other's authority"));

    let error = other.server_config(&["hö st".to_owned()]).expect_err("refused");
    assert!(error.to_string().contains("hö st"), "{error}");
}

fn option(stream: &TcpStream, level: c_int, option: c_int) -> c_int {
    let (mut value, mut length) = (0 as c_int, size_of::<c_int>() as libc::socklen_t);
    // SAFETY: the descriptor is open as long as the stream lives, and the kernel writes no more than the length.
    let done = unsafe { libc::getsockopt(stream.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut length) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    value
}

#[tokio::test]
async fn a_host_that_is_gone_is_noticed() {
    let (_listener, address) = listening().await;
    let stream = TcpStream::connect(address).await.expect("connected");
    prepare(&stream).expect("prepared");
    assert_eq!(option(&stream, libc::SOL_SOCKET, libc::SO_KEEPALIVE), 1);
    let [idle, interval, count] = [libc::TCP_KEEPIDLE, libc::TCP_KEEPINTVL, libc::TCP_KEEPCNT]
        .map(|name| option(&stream, libc::IPPROTO_TCP, name));
    assert_eq!(idle + interval * count, 25);
    assert_eq!(option(&stream, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT), 60_000);
    assert!(stream.nodelay().expect("asked"));
}
