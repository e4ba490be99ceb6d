//! A service's key, and the certificates that it shows.
//!
//! Kept in the service's folder: `tls.key` (0600), and `tls-ca.pem`, for clients that verify by certificates.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData as _,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use ardent_api::addr::KeyPin;

use crate::pinned::{pin_of, pin_of_key};

const KEY_FILE: &str = "tls.key";
const CA_FILE: &str = "tls-ca.pem";
/// Every service has these, for clients on its host.
const LOCAL_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Who a service is.
pub struct Identity {
    key: KeyPair,
    pin: KeyPin,
    ca: CertificateDer<'static>,
    ca_path: PathBuf,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("pin", &self.pin).field("ca_path", &self.ca_path).finish_non_exhaustive()
    }
}

/// A service's key or certificates cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file can't be read or written.
    #[error("cannot use {path}: check that this user may read it and write to its folder")]
    Io {
        /// File.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds no usable key or certificate.
    #[error(
        "{path} is damaged: put back a copy; or remove it to have a new one made, with which a safekeeper's address changes"
    )]
    Malformed {
        /// File.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A name that no certificate can have.
    #[error("{name:?} cannot be in a certificate: give a host name or an IP address")]
    BadName {
        /// The name.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
}

impl Identity {
    /// Reads the key in `folder`, or makes one: it stays the same for as long as its file is kept. Blocks.
    pub fn load_or_make(folder: &Path) -> Result<Identity, IdentityError> {
        let (key_path, ca_path) = (folder.join(KEY_FILE), folder.join(CA_FILE));
        let key = load_or_make_key(&key_path)?;
        if !ca_path.exists() {
            let made = authority().and_then(|params| params.self_signed(&key));
            let made = made.map_err(|source| malformed(&key_path, source))?;
            write_file(&ca_path, &made.pem(), 0o644)?;
        }
        let ca = CertificateDer::from_pem_file(&ca_path).map_err(|source| malformed(&ca_path, source))?;
        let pin = pin_of_key(&key.subject_public_key_info());
        let of_ca = pin_of(&ca).map_err(|source| malformed(&ca_path, source))?;
        if of_ca != pin {
            return Err(malformed(&ca_path, io::Error::other(format!("it is not of the key in {KEY_FILE}"))));
        }
        Ok(Identity { key, pin, ca, ca_path })
    }

    /// What clients know it by.
    pub fn pin(&self) -> KeyPin {
        self.pin
    }

    /// The authority's certificate, for clients that know no pins (`sslrootcert`).
    pub fn ca_path(&self) -> &Path {
        &self.ca_path
    }

    /// How it serves, with a certificate for `names` and for this host's own: host names or IP addresses.
    pub fn server_config(&self, names: &[String]) -> Result<Arc<ServerConfig>, IdentityError> {
        for name in names {
            let bad_name = |source| IdentityError::BadName { name: name.clone(), source };
            CertificateParams::new(vec![name.clone()]).map_err(bad_name)?;
        }
        let bad_key = |source: rcgen::Error| malformed(&self.ca_path, source);
        let issuer = Issuer::new(authority().map_err(bad_key)?, &self.key);
        let certificate = leaf(names).and_then(|params| params.signed_by(&self.key, &issuer)).map_err(bad_key)?;
        let chain = vec![certificate.der().clone(), self.ca.clone()];
        let private = PrivateKeyDer::try_from(self.key.serialize_der())
            .map_err(|source| malformed(&self.ca_path, io::Error::other(source)))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
            .map_err(|source| malformed(&self.ca_path, source))?;
        // Connections last: there is nothing to resume.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

/// The service as an authority for itself.
fn authority() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "Ardent service, authority of its own");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

fn leaf(names: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let all = LOCAL_NAMES.into_iter().map(str::to_owned).chain(names.iter().cloned());
    let mut params = CertificateParams::new(all.collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, "Ardent service");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // All services' authorities have one name: this tells them apart, where a client trusts several.
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn load_or_make_key(path: &Path) -> Result<KeyPair, IdentityError> {
    match fs::read_to_string(path) {
        Ok(pem) => KeyPair::from_pem(&pem).map_err(|source| malformed(path, source)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate().map_err(|source| malformed(path, source))?;
            write_file(path, &key.serialize_pem(), 0o600)?;
            Ok(key)
        }
        Err(source) => Err(IdentityError::Io { path: path.to_owned(), source }),
    }
}

/// Writes a whole file or none of it, durably: the address that rests on a key is given to others at once.
fn write_file(path: &Path, content: &str, mode: u32) -> Result<(), IdentityError> {
    let temporary = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|source| IdentityError::Io { path: path.to_owned(), source })
}

fn malformed(path: &Path, source: impl std::error::Error + Send + Sync + 'static) -> IdentityError {
    IdentityError::Malformed { path: path.to_owned(), source: Box::new(source) }
}
