//! Secrets at rest: sealed under a key file, so that a copy of the database alone gives nothing away.
//!
//! A sealed value is `version(1) nonce(12) ciphertext tag(16)`, AES-256-GCM; the context (what it is and whose) is
//! authenticated with it, so that a value moved to another row does not open.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};

/// Length of the key file in bytes.
const KEY_LEN: usize = 32;
/// First byte of every sealed value.
const SEALED_VERSION: u8 = 1;
/// Characters of generated passwords and tokens: letters and digits only, so that they need no escaping in a URL.
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// Why a secret could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The key file cannot be read or made.
    #[error("the key file {path} cannot be read or made")]
    KeyFile {
        /// Its path.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The key file has the wrong length.
    #[error("the key file {path} holds {found} bytes instead of 32: restore it from a backup")]
    KeyLength {
        /// Its path.
        path: PathBuf,
        /// Its length.
        found: usize,
    },
    /// A sealed value does not open under this key.
    #[error(
        "a stored secret ({context}) does not open with this key file: it belongs to another database, or is damaged"
    )]
    Sealed {
        /// What it is.
        context: String,
    },
    /// The system gave no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

/// Seals and opens secrets.
pub struct Keyring {
    key: LessSafeKey,
    random: SystemRandom,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keyring")
    }
}

impl Keyring {
    /// The keyring of the key file at `path`, which is made (0600) when there is none.
    pub fn open_or_create(path: &Path) -> Result<Self, SecretError> {
        let bytes = read_or_create(path, || Ok(random_bytes::<KEY_LEN>()?.to_vec()))?;
        let found = bytes.len();
        let wrong_length = || SecretError::KeyLength { path: path.to_owned(), found };
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| wrong_length())?;
        Ok(Keyring { key: LessSafeKey::new(key), random: SystemRandom::new() })
    }

    /// Seals `secret` for `context`.
    pub fn seal(&self, context: &str, secret: &[u8]) -> Result<Vec<u8>, SecretError> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| SecretError::Random)?;
        let mut body = secret.to_vec();
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context.as_bytes()), &mut body)
            .map_err(|_| SecretError::Sealed { context: context.to_owned() })?;
        let mut sealed = vec![SEALED_VERSION];
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&body);
        Ok(sealed)
    }

    /// Opens what was sealed for the same `context`, as text.
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<String, SecretError> {
        let failed = || SecretError::Sealed { context: context.to_owned() };
        let rest = sealed.strip_prefix(&[SEALED_VERSION]).ok_or_else(failed)?;
        let (nonce, body) = rest.split_at_checked(NONCE_LEN).ok_or_else(failed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| failed())?;
        let mut body = body.to_vec();
        let opened = self.key.open_in_place(nonce, Aad::from(context.as_bytes()), &mut body).map_err(|_| failed())?;
        String::from_utf8(opened.to_vec()).map_err(|_| failed())
    }
}

/// Reads the file, or makes it with mode 0600 and what `make` gives. Two callers at once agree on one content.
pub fn read_or_create(
    path: &Path,
    make: impl FnOnce() -> Result<Vec<u8>, SecretError>,
) -> Result<Vec<u8>, SecretError> {
    let failed = |source| SecretError::KeyFile { path: path.to_owned(), source };
    match fs::read(path) {
        Ok(bytes) => return Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    // Written whole under another name and linked into place: a crash never leaves half a key under the real name.
    let temporary = path.with_extension(format!("new-{}", random_text(8)?));
    let bytes = make()?;
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => fs::read(path),
            linked => linked.map(|()| bytes.clone()),
        }
    })();
    let removed = fs::remove_file(&temporary);
    let bytes = written.map_err(failed)?;
    removed.map_err(failed)?;
    Ok(bytes)
}

/// Cryptographically random bytes.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], SecretError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| SecretError::Random)?;
    Ok(bytes)
}

/// Random letters and digits, each equally likely.
pub fn random_text(length: usize) -> Result<String, SecretError> {
    let mut text = String::with_capacity(length);
    while text.len() < length {
        for byte in random_bytes::<32>()? {
            // 248 is the largest multiple of 62 in a byte: what lies above would favour the first letters.
            if byte < 248 && text.len() < length {
                text.push(char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
            }
        }
    }
    Ok(text)
}

/// How user tokens are stored: they are long and random, so one round of SHA-256 is enough.
pub fn token_hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_secret_opens_only_in_its_context_and_unchanged() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("secrets.key");
        let keyring = Keyring::open_or_create(&path).expect("key");
        let sealed = keyring.seal("password of a", b"s3cret").expect("sealed");
        let again = Keyring::open_or_create(&path).expect("the same key");
        assert_eq!(again.open("password of a", &sealed).expect("opens"), "s3cret");
        assert!(again.open("password of b", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(again.open("password of a", &changed).is_err(), "byte {at}");
            assert!(again.open("password of a", &sealed[..at]).is_err(), "cut at {at}");
        }
        assert_eq!(fs::metadata(&path).expect("file").permissions().mode() & 0o777, 0o600);
        let names: Vec<_> = fs::read_dir(folder.path()).expect("folder").collect();
        assert_eq!(names.len(), 1, "temporary files are left: {names:?}");
    }

    #[test]
    fn a_key_file_of_another_length_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("secrets.key");
        fs::write(&path, b"short").expect("written");
        assert!(matches!(Keyring::open_or_create(&path), Err(SecretError::KeyLength { found: 5, .. })));
    }
}
