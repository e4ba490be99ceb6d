//! The installation's own certificate authority and the proxy's certificate.
//!
//! Kept in one folder: `ca.pem` (public: clients verify with it), `ca.key`, `server.pem`, `server.key` (both 0600).

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use ring::digest;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::route::HostNames;

/// What the TLS side of the proxy needs.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// For the acceptor.
    pub server_config: Arc<ServerConfig>,
    /// `tls-server-end-point` (RFC 5929): SHA-256 of the server's certificate.
    pub end_point: Vec<u8>,
    /// The CA's certificate, for clients.
    pub ca_path: PathBuf,
}

/// Certificates could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file can't be read or written.
    #[error("cannot use {path}: check that the folder is writable by this user")]
    Io {
        /// File.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds no usable key or certificate.
    #[error("{path} is not usable: move the folder away to have new certificates made")]
    Malformed {
        /// File.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Certificates {
    /// Reads the CA in `folder`, or makes one, and makes a server certificate for the host names. The CA stays the same
    /// for as long as its files are kept, so clients need to be given it once.
    pub fn load_or_make(folder: &Path, hosts: &HostNames) -> Result<Certificates, CertificateError> {
        fs::create_dir_all(folder).map_err(|source| io_error(folder, source))?;
        let (ca_key_path, ca_path) = (folder.join("ca.key"), folder.join("ca.pem"));
        let is_new = !ca_key_path.exists();
        let ca_key = load_or_make_key(&ca_key_path)?;
        let bad_ca = |source: rcgen::Error| malformed(&ca_key_path, source);
        let ca_params = ca_params().map_err(bad_ca)?;
        if is_new || !ca_path.exists() {
            let certificate = ca_params.self_signed(&ca_key).map_err(bad_ca)?;
            write_file(&ca_path, certificate.pem().as_bytes(), 0o644)?;
        }
        let server_key_path = folder.join("server.key");
        let server_key = load_or_make_key(&server_key_path)?;
        let issuer = Issuer::new(ca_params, ca_key);
        let certificate = server_params(hosts)
            .and_then(|params| params.signed_by(&server_key, &issuer))
            .map_err(|source| malformed(&server_key_path, source))?;
        write_file(&folder.join("server.pem"), certificate.pem().as_bytes(), 0o644)?;

        let end_point = digest::digest(&digest::SHA256, certificate.der()).as_ref().to_vec();
        let ca_der = CertificateDer::from_pem_file(&ca_path).map_err(|source| malformed(&ca_path, source))?;
        let private_key = PrivateKeyDer::try_from(server_key.serialize_der())
            .map_err(|source| malformed(&server_key_path, io::Error::other(source)))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut server_config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder.with_no_client_auth().with_single_cert(vec![certificate.der().clone(), ca_der], private_key)
            })
            .map_err(|source| malformed(&server_key_path, source))?;
        server_config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(Certificates { server_config: Arc::new(server_config), end_point, ca_path })
    }
}

fn ca_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "Ardent installation CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn server_params(hosts: &HostNames) -> Result<CertificateParams, rcgen::Error> {
    let mut names = vec!["127.0.0.1".to_owned(), "::1".to_owned()];
    for suffix in hosts.suffixes() {
        names.push(suffix.clone());
        names.push(format!("*.{suffix}"));
    }
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "Ardent proxy");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn load_or_make_key(path: &Path) -> Result<KeyPair, CertificateError> {
    match fs::read_to_string(path) {
        Ok(pem) => KeyPair::from_pem(&pem).map_err(|source| malformed(path, source)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate().map_err(|source| malformed(path, source))?;
            write_file(path, key.serialize_pem().as_bytes(), 0o600)?;
            Ok(key)
        }
        Err(source) => Err(io_error(path, source)),
    }
}

/// Writes a whole file or none of it.
fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), CertificateError> {
    let temporary = path.with_extension("tmp");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| io_error(path, source))
}

fn io_error(path: &Path, source: io::Error) -> CertificateError {
    CertificateError::Io { path: path.to_owned(), source }
}

fn malformed(path: &Path, source: impl std::error::Error + Send + Sync + 'static) -> CertificateError {
    CertificateError::Malformed { path: path.to_owned(), source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_authority_outlives_a_restart_and_keys_are_private() {
        let folder = tempfile::tempdir().expect("folder");
        let hosts = HostNames::new(["db.example.com".to_owned()]);
        let first = Certificates::load_or_make(folder.path(), &hosts).expect("made");
        let ca = fs::read(&first.ca_path).expect("CA");
        Certificates::load_or_make(folder.path(), &hosts).expect("loaded");
        assert_eq!(fs::read(&first.ca_path).expect("CA"), ca);
        for key in ["ca.key", "server.key"] {
            let mode = fs::metadata(folder.path().join(key)).expect("key").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn a_broken_key_file_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("ca.key"), "nonsense").expect("written");
        let error = Certificates::load_or_make(folder.path(), &HostNames::new([])).expect_err("refused");
        assert!(error.to_string().contains("ca.key"), "{error}");
    }
}
