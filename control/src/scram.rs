//! SCRAM-SHA-256 verifiers (RFC 5803, RFC 7677) in the text form that Postgres keeps in `pg_authid.rolpassword`.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use ring::hmac::{HMAC_SHA256, Key, sign};
use ring::pbkdf2::{PBKDF2_HMAC_SHA256, derive};

use crate::secrets::{SecretError, random_bytes};

/// Rounds of PBKDF2, Postgres's own default. The passwords are random, so more rounds would only slow logins down.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("not zero");
/// Length of the salt in bytes, Postgres's own.
const SALT_LEN: usize = 16;

/// A verifier for `password` with a new random salt. The password is taken as it is: ours are ASCII, for which SASLprep
/// changes nothing.
pub fn verifier(password: &str) -> Result<String, SecretError> {
    Ok(verifier_with_salt(password, &random_bytes::<SALT_LEN>()?))
}

fn verifier_with_salt(password: &str, salt: &[u8; SALT_LEN]) -> String {
    let mut salted = [0; 32];
    derive(PBKDF2_HMAC_SHA256, ITERATIONS, salt, password.as_bytes(), &mut salted);
    let key = Key::new(HMAC_SHA256, &salted);
    let client_key = sign(&key, b"Client Key");
    let stored_key = digest(&SHA256, client_key.as_ref());
    let server_key = sign(&key, b"Server Key");
    format!(
        "SCRAM-SHA-256${ITERATIONS}:{}${}:{}",
        STANDARD.encode(salt),
        STANDARD.encode(stored_key),
        STANDARD.encode(server_key)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7677's example gives the salt and the proofs for the password `pencil`; the keys follow from them.
    #[test]
    fn the_keys_prove_rfc_7677s_example() {
        let mut salt = [0; SALT_LEN];
        salt.copy_from_slice(&STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64"));
        let text = verifier_with_salt("pencil", &salt);
        let (head, keys) = text.rsplit_once('$').expect("three parts");
        assert_eq!(head, "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==");
        let (stored, server) = keys.split_once(':').expect("two keys");
        let auth = "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                    s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let server_key = STANDARD.decode(server).expect("base64");
        let server_signature = sign(&Key::new(HMAC_SHA256, &server_key), auth.as_bytes());
        assert_eq!(STANDARD.encode(server_signature), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        let stored_key = STANDARD.decode(stored).expect("base64");
        let client_signature = sign(&Key::new(HMAC_SHA256, &stored_key), auth.as_bytes());
        let proof = STANDARD.decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=").expect("base64");
        let client_key: Vec<u8> = proof.iter().zip(client_signature.as_ref()).map(|(a, b)| a ^ b).collect();
        assert_eq!(digest(&SHA256, &client_key).as_ref(), stored_key);
    }
}
