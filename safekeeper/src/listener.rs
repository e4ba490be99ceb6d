//! Where a safekeeper is reached: Unix sockets, TCP on loopback, TLS anywhere.

use std::fs;
use std::io;
use std::net::ToSocketAddrs as _;
use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use ardent_api::addr::{KeyPin, ListenAddr, ServiceAddr};
use ardent_service_tls::{Identity, TlsAcceptor, prepare};

use crate::handshake::Handshake;
use crate::service::StartError;
use crate::socket::Socket;

/// Handshakes that may be under way at one address: of who is one of the others nothing is known yet.
const HANDSHAKES_MAX: usize = 256;

/// What is spoken at an address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Wal,
    Replication,
}

/// One address.
pub(crate) struct Listener {
    address: ServiceAddr,
    protocol: Protocol,
    listening: Listening,
}

enum Listening {
    Unix(UnixListener),
    Tcp(TcpListener),
    Tls { listener: TcpListener, acceptor: TlsAcceptor, handshakes: Arc<Semaphore> },
}

/// A client that has connected.
pub(crate) enum Accepted {
    Open(Socket),
    ToEncrypt(Handshake),
}

/// How a safekeeper encrypts, and by which key it is known.
#[derive(Clone)]
pub(crate) struct Encryption {
    acceptor: TlsAcceptor,
    pin: KeyPin,
}

impl Encryption {
    /// Its certificate is for the hosts of `listen` and for `names`.
    pub(crate) fn new(identity: &Identity, listen: &[ListenAddr], names: &[String]) -> Result<Self, StartError> {
        let mut all: Vec<String> = listen.iter().filter_map(named_host).collect();
        all.extend_from_slice(names);
        let acceptor = identity.server_config(&all).map_err(StartError::Identity)?.into();
        Ok(Encryption { acceptor, pin: identity.pin() })
    }
}

/// The host of a TLS address, where it is one by which it can be reached.
fn named_host(address: &ListenAddr) -> Option<String> {
    let ListenAddr::Tls(at) = address else { return None };
    let host = at.rsplit_once(':').map_or(at.as_str(), |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_any = host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    (!is_any).then(|| host.to_owned())
}

impl Listener {
    /// `encryption` is there if an address asks for it.
    pub(crate) async fn bind(
        address: &ListenAddr,
        protocol: Protocol,
        encryption: Option<&Encryption>,
    ) -> Result<Listener, StartError> {
        let failed = |source| StartError::Listen { address: address.clone(), source };
        let (address, listening) = match address {
            ListenAddr::Unix(path) => {
                // A socket that a killed process left behind; the folder's lock says that no other is alive.
                if let Err(error) = fs::remove_file(path)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    return Err(failed(error));
                }
                let socket = UnixListener::bind(path).map_err(failed)?;
                (ServiceAddr::Unix(path.clone()), Listening::Unix(socket))
            }
            ListenAddr::Tls(host_port) => {
                let encryption = encryption.expect("it is there where an address asks for it");
                let resolved: Vec<_> = host_port.to_socket_addrs().map_err(failed)?.collect();
                let listener = TcpListener::bind(&resolved[..]).await.map_err(failed)?;
                let at = listener.local_addr().map_err(failed)?;
                let host = host_port.rsplit_once(':').map_or(host_port.as_str(), |(host, _)| host);
                let address = ServiceAddr::Tls(format!("{host}:{}", at.port()), encryption.pin);
                let acceptor = encryption.acceptor.clone();
                (address, Listening::Tls { listener, acceptor, handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)) })
            }
            ListenAddr::Tcp(host_port) => {
                let resolved: Vec<_> = host_port.to_socket_addrs().map_err(failed)?.collect();
                if !resolved.iter().all(|at| at.ip().is_loopback()) {
                    return Err(StartError::OffHost { host_port: host_port.clone() });
                }
                let socket = TcpListener::bind(&resolved[..]).await.map_err(failed)?;
                let address = ServiceAddr::Tcp(socket.local_addr().map_err(failed)?.to_string());
                (address, Listening::Tcp(socket))
            }
        };
        Ok(Listener { address, protocol, listening })
    }

    /// By what it is reached, with the real port number.
    pub(crate) fn address(&self) -> &ServiceAddr {
        &self.address
    }

    /// What is spoken there.
    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The next client. Cancel-safe.
    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        match &self.listening {
            Listening::Unix(listener) => Ok(Accepted::Open(Socket::Unix(listener.accept().await?.0.try_into()?))),
            Listening::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Open(Socket::Tcp(stream)))
            }
            Listening::Tls { listener, acceptor, handshakes } => {
                let turn = Arc::clone(handshakes).acquire_owned().await.expect("the semaphore is never closed");
                let (stream, _) = listener.accept().await?;
                prepare(&stream)?;
                Ok(Accepted::ToEncrypt(Handshake {
                    stream,
                    acceptor: acceptor.clone(),
                    protocol: self.protocol,
                    _turn: turn,
                }))
            }
        }
    }
}
