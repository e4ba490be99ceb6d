//! The installation's own certificate authority and the proxy's certificate.
//!
//! Kept in one folder: `ca.pem` (public: clients verify with it), `ca.key`, `server.key` (both 0600).

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use ring::digest;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::route::HostNames;

/// Most certificates kept for names that clients asked for; all are dropped when there are more.
const ISSUED_MAX: usize = 1024;

/// Issues the proxy's certificates.
///
/// Each branch's host name gets a certificate of its own on first use: several TLS libraries refuse a wildcard right below a
/// top-level name, so `*.localhost` would not do.
pub struct Certificates {
    issuer: Issuer<'static, KeyPair>,
    ca_der: CertificateDer<'static>,
    ca_path: PathBuf,
    server_key: KeyPair,
    hosts: HostNames,
    issued: Mutex<HashMap<Option<String>, Arc<Issued>>>,
}

/// A certificate, ready to be shown.
#[derive(Debug)]
pub struct Issued {
    /// For the acceptor.
    pub server_config: Arc<ServerConfig>,
    /// `tls-server-end-point` (RFC 5929): SHA-256 of the certificate, whose signature uses SHA-256.
    pub end_point: Vec<u8>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").field("ca_path", &self.ca_path).finish_non_exhaustive()
    }
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
    /// Reads the CA in `folder`, or makes one. It stays the same for as long as its files are kept, so clients need to be
    /// given it once.
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
        let certificates = Certificates {
            issuer: Issuer::new(ca_params, ca_key),
            ca_der: CertificateDer::from_pem_file(&ca_path).map_err(|source| malformed(&ca_path, source))?,
            ca_path,
            server_key: load_or_make_key(&folder.join("server.key"))?,
            hosts: hosts.clone(),
            issued: Mutex::default(),
        };
        certificates.for_server_name(None)?;
        Ok(certificates)
    }

    /// The CA's certificate file, for clients.
    pub fn ca_path(&self) -> &Path {
        &self.ca_path
    }

    /// The certificate to show to a client that asked for `server_name`. For names that are not ours it is the one for
    /// plain addresses: the client finds out itself.
    pub fn for_server_name(&self, server_name: Option<&str>) -> Result<Arc<Issued>, CertificateError> {
        let name = server_name.filter(|name| self.hosts.is_ours(name)).map(str::to_ascii_lowercase);
        let mut issued = self.issued.lock();
        if let Some(known) = issued.get(&name) {
            return Ok(Arc::clone(known));
        }
        if issued.len() >= ISSUED_MAX {
            issued.clear();
        }
        let new = Arc::new(self.issue(name.as_deref())?);
        issued.insert(name, Arc::clone(&new));
        Ok(new)
    }

    fn issue(&self, name: Option<&str>) -> Result<Issued, CertificateError> {
        let certificate = server_params(&self.hosts, name)
            .and_then(|params| params.signed_by(&self.server_key, &self.issuer))
            .map_err(|source| malformed(&self.ca_path, source))?;
        let end_point = digest::digest(&digest::SHA256, certificate.der()).as_ref().to_vec();
        let private_key = PrivateKeyDer::try_from(self.server_key.serialize_der())
            .map_err(|source| malformed(&self.ca_path, io::Error::other(source)))?;
        let chain = vec![certificate.der().clone(), self.ca_der.clone()];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut server_config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private_key))
            .map_err(|source| malformed(&self.ca_path, source))?;
        server_config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(Issued { server_config: Arc::new(server_config), end_point })
    }
}

fn ca_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "Ardent installation CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn server_params(hosts: &HostNames, name: Option<&str>) -> Result<CertificateParams, rcgen::Error> {
    let mut names = vec!["127.0.0.1".to_owned(), "::1".to_owned()];
    names.extend(hosts.suffixes().iter().cloned());
    names.extend(name.map(str::to_owned));
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
        let ca = fs::read(first.ca_path()).expect("CA");
        Certificates::load_or_make(folder.path(), &hosts).expect("loaded");
        assert_eq!(fs::read(first.ca_path()).expect("CA"), ca);
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
