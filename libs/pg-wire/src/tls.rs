//! TLS towards a server, as strict as `sslmode` says.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::config::TlsMode;
use crate::error::ConfigError;

/// Where Debian and others keep the authorities that the system trusts; what `sslrootcert=system` means.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The client's TLS settings. `roots`: what `sslrootcert` says.
pub(crate) fn client_config(tls: TlsMode, roots: Option<&str>) -> Result<ClientConfig, ConfigError> {
    let provider = Arc::new(ring::default_provider());
    let check = match tls {
        TlsMode::VerifyFull => Check::ChainAndName(chain(roots, &provider)?),
        TlsMode::VerifyCa => Check::Chain(chain(roots, &provider)?),
        // As libpq does for `prefer` and `require`: that protects against listeners only.
        TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => Check::Nothing,
    };
    let verifier = Arc::new(Verifier { check, provider: provider.clone() });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows TLS 1.2 and 1.3");
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// What checks chains against `roots`.
fn chain(roots: Option<&str>, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, ConfigError> {
    let path = match roots {
        Some("system") => SYSTEM_ROOTS.to_owned(),
        Some(path) => path.to_owned(),
        // libpq's default.
        None => format!("{}/.postgresql/root.crt", std::env::var("HOME").unwrap_or_default()),
    };
    let error = |source| ConfigError::RootCertificates { path: path.clone(), source };
    let pem = std::fs::read(&path).map_err(|source| error(Some(source)))?;
    let mut roots = RootCertStore::empty();
    for certificate in rustls_pemfile::certs(&mut pem.as_slice()) {
        roots.add(certificate.map_err(|source| error(Some(source)))?).map_err(|_| error(None))?;
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().map_err(|_| error(None))
}

/// What a server's certificate has to be.
#[derive(Debug)]
enum Check {
    Nothing,
    Chain(Arc<WebPkiServerVerifier>),
    ChainAndName(Arc<WebPkiServerVerifier>),
}

/// Checks a certificate; that the server holds its key, its signature over the handshake says, whatever is checked.
#[derive(Debug)]
struct Verifier {
    check: Check,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let checked = |chain: &WebPkiServerVerifier| {
            chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        };
        match &self.check {
            Check::Nothing => Ok(ServerCertVerified::assertion()),
            Check::ChainAndName(chain) => checked(chain),
            Check::Chain(chain) => match checked(chain) {
                // The name is looked at last, when everything else is right.
                Err(Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) => Ok(ServerCertVerified::assertion()),
                other => other,
            },
        }
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
