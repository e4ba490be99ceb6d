//! The client's side: a connection to who holds a key, or none.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ring::digest::{SHA256, digest};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use ardent_api::addr::KeyPin;

use crate::{ClientStream, prepare};

/// How long connecting, with the handshake, may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// No connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It is not reached, or the handshake fails.
    #[error("it is not reached")]
    Io(#[from] io::Error),
    /// Somebody answers with another key.
    #[error(transparent)]
    WrongKey(WrongKey),
    /// Somebody answers, not with TLS.
    #[error("it does not speak TLS")]
    NotTls,
}

/// Another key than the expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its key is {shown}")]
pub struct WrongKey {
    /// The key that was shown.
    pub shown: KeyPin,
}

/// Connects to `host:port`, where who holds the key `pin` must answer. Cancelled, it leaves nothing.
pub async fn connect(host_port: &str, pin: KeyPin) -> Result<ClientStream, ConnectError> {
    let connecting = async {
        let stream = TcpStream::connect(host_port).await?;
        prepare(&stream)?;
        // The name says nothing: the key does.
        let name = ServerName::try_from("ardent").expect("it is a name");
        TlsConnector::from(client_config(pin)).connect(name, stream).await.map_err(failure)
    };
    let timed_out = |_| io::Error::new(io::ErrorKind::TimedOut, "it does not answer");
    tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(timed_out)?
}

fn client_config(pin: KeyPin) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(PinVerifier { pin, provider: Arc::clone(&provider) });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider knows TLS 1.3");
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

fn failure(error: io::Error) -> ConnectError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(CertificateError::Other(OtherError(other)))) => {
            match other.downcast_ref::<WrongKey>() {
                Some(wrong) => ConnectError::WrongKey(*wrong),
                None => ConnectError::Io(error),
            }
        }
        Some(Error::InvalidMessage(_)) => ConnectError::NotTls,
        _ => ConnectError::Io(error),
    }
}

/// The pin of the key in a certificate.
pub(crate) fn pin_of(certificate: &CertificateDer<'_>) -> Result<KeyPin, Error> {
    Ok(pin_of_key(&ParsedCertificate::try_from(certificate)?.subject_public_key_info()))
}

/// The pin of a key: a `SubjectPublicKeyInfo`, DER.
pub(crate) fn pin_of_key(key: &[u8]) -> KeyPin {
    let hash = digest(&SHA256, key);
    KeyPin::new(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

/// Takes one key. That the server holds it, its signature over the handshake says.
#[derive(Debug)]
struct PinVerifier {
    pin: KeyPin,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown = pin_of(end_entity)?;
        if shown != self.pin {
            return Err(CertificateError::Other(OtherError(Arc::new(WrongKey { shown }))).into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
