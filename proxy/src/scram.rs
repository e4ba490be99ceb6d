//! The server's side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, without I/O.
//!
//! Source: RFC 5802, RFC 7677, RFC 5929 (`tls-server-end-point`); PostgreSQL documentation, "SASL Authentication".

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac};
use subtle::ConstantTimeEq as _;

/// Without channel binding.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// With channel binding.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// Iterations of mock verifiers: Postgres's default, so that they look like real ones.
const MOCK_ITERATIONS: u32 = 4096;
/// Length in bytes of a salt that Postgres makes.
const SALT_LEN: usize = 16;

/// What a server keeps of a password: enough to check it, not enough to log in with.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    salt: Vec<u8>,
    iterations: u32,
    stored_key: [u8; 32],
    server_key: [u8; 32],
    /// Never accepts: stands in for a role that does not exist.
    is_mock: bool,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

/// Why an exchange failed. Clients are told no more than that it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// The text of a verifier is not one.
    #[error("the stored SCRAM verifier is malformed")]
    BadVerifier,
    /// The client's message breaks the protocol.
    #[error("malformed SCRAM message")]
    Malformed,
    /// The client saw no channel binding on offer although it was: somebody is between.
    #[error("SCRAM channel binding negotiation was tampered with")]
    Downgrade,
    /// The client is bound to another TLS channel.
    #[error("SCRAM channel binding check failed")]
    ChannelBinding,
    /// Wrong password, or no such role.
    #[error("password authentication failed")]
    Denied,
}

impl Verifier {
    /// Parses Postgres's text form, `SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY`.
    pub fn parse(text: &str) -> Result<Verifier, ScramError> {
        let parse = || {
            let (parameters, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
            let (iterations, salt) = parameters.split_once(':')?;
            let (stored_key, server_key) = keys.split_once(':')?;
            let key = |text: &str| STANDARD.decode(text).ok()?.try_into().ok();
            Some(Verifier {
                salt: STANDARD.decode(salt).ok()?,
                iterations: iterations.parse().ok().filter(|count| *count > 0)?,
                stored_key: key(stored_key)?,
                server_key: key(server_key)?,
                is_mock: false,
            })
        };
        parse().ok_or(ScramError::BadVerifier)
    }

    /// What is shown for a role that does not exist: the same salt each time, so that asking twice tells nothing.
    pub fn mock(secret: &[u8], branch: &str, role: &str) -> Verifier {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let mut context = hmac::Context::with_key(&key);
        context.update(branch.as_bytes());
        context.update(&[0]);
        context.update(role.as_bytes());
        let salt = context.sign().as_ref()[..SALT_LEN].to_vec();
        Verifier { salt, iterations: MOCK_ITERATIONS, stored_key: [0; 32], server_key: [0; 32], is_mock: true }
    }
}

/// An exchange after the client's first message.
#[derive(Debug)]
pub struct Exchange {
    verifier: Verifier,
    /// What the client must repeat in base64: its GS2 header and the channel's data.
    binding: Vec<u8>,
    nonce: String,
    client_first_bare: String,
    server_first: String,
}

impl Exchange {
    /// Takes the client's first message. `server_nonce` is fresh randomness in printable ASCII without commas; `end_point` the hash of
    /// the certificate that this connection showed, if it has TLS.
    pub fn start(
        verifier: Verifier,
        mechanism: &str,
        client_first: &[u8],
        server_nonce: &str,
        end_point: Option<&[u8]>,
    ) -> Result<Exchange, ScramError> {
        let text = std::str::from_utf8(client_first).map_err(|_| ScramError::Malformed)?;
        let mut parts = text.splitn(3, ',');
        let (Some(flag), Some(authzid), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(ScramError::Malformed);
        };
        let mut binding = format!("{flag},{authzid},").into_bytes();
        match (mechanism, flag, end_point) {
            (MECHANISM_PLUS, "p=tls-server-end-point", Some(hash)) => binding.extend_from_slice(hash),
            (MECHANISM, "n", _) | (MECHANISM, "y", None) => {}
            (MECHANISM, "y", Some(_)) => return Err(ScramError::Downgrade),
            _ => return Err(ScramError::Malformed),
        }
        if !authzid.is_empty() {
            return Err(ScramError::Malformed);
        }
        // "m=" would be a mandatory extension; the name is ignored, as Postgres does: the startup packet's counts.
        let mut attributes = bare.split(',');
        let (Some(name), Some(nonce)) = (attributes.next(), attributes.next()) else {
            return Err(ScramError::Malformed);
        };
        let client_nonce = nonce.strip_prefix("r=").filter(|nonce| !nonce.is_empty()).ok_or(ScramError::Malformed)?;
        if !name.starts_with("n=") || !client_nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ScramError::Malformed);
        }
        let nonce = format!("{client_nonce}{server_nonce}");
        let server_first = format!("r={nonce},s={},i={}", STANDARD.encode(&verifier.salt), verifier.iterations);
        Ok(Exchange { verifier, binding, nonce, client_first_bare: bare.to_owned(), server_first })
    }

    /// The server's first message.
    pub fn server_first(&self) -> &str {
        &self.server_first
    }

    /// Takes the client's last message; gives the server's last one if the password is right.
    pub fn finish(self, client_final: &[u8]) -> Result<String, ScramError> {
        let text = std::str::from_utf8(client_final).map_err(|_| ScramError::Malformed)?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(ScramError::Malformed)?;
        let proof: [u8; 32] =
            STANDARD.decode(proof).ok().and_then(|proof| proof.try_into().ok()).ok_or(ScramError::Malformed)?;
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|text| text.strip_prefix("c=")).ok_or(ScramError::Malformed)?;
        let nonce = attributes.next().and_then(|text| text.strip_prefix("r=")).ok_or(ScramError::Malformed)?;
        if nonce != self.nonce {
            return Err(ScramError::Malformed);
        }
        if STANDARD.decode(binding).ok().as_deref() != Some(&self.binding[..]) {
            return Err(ScramError::ChannelBinding);
        }
        let message = format!("{},{},{without_proof}", self.client_first_bare, self.server_first);
        let sign = |key: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message.as_bytes());
        let signature = sign(&self.verifier.stored_key);
        let mut client_key = proof;
        for (byte, mask) in client_key.iter_mut().zip(signature.as_ref()) {
            *byte ^= mask;
        }
        let stored_key = digest::digest(&digest::SHA256, &client_key);
        let is_right = bool::from(stored_key.as_ref().ct_eq(&self.verifier.stored_key));
        if !is_right || self.verifier.is_mock {
            return Err(ScramError::Denied);
        }
        Ok(format!("v={}", STANDARD.encode(sign(&self.verifier.server_key))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    use postgres_protocol::password::scram_sha_256;
    use proptest::prelude::*;

    const END_POINT: &[u8] = b"0123456789abcdef0123456789abcdef";

    /// The client is postgres-protocol's: another implementation, as drivers use it.
    fn run(verifier: Verifier, password: &str, binding: ChannelBinding, mechanism: &str) -> Result<(), ScramError> {
        let mut client = ScramSha256::new(password.as_bytes(), binding);
        let exchange = Exchange::start(verifier, mechanism, client.message(), "serverNonce", Some(END_POINT))?;
        client.update(exchange.server_first().as_bytes()).expect("server's first message is valid");
        let last = exchange.finish(client.message())?;
        client.finish(last.as_bytes()).expect("the server proved itself");
        Ok(())
    }

    fn verifier(password: &str) -> Verifier {
        Verifier::parse(&scram_sha_256(password.as_bytes())).expect("valid")
    }

    #[test]
    fn the_right_password_is_accepted_with_and_without_channel_binding() {
        assert_eq!(run(verifier("hush"), "hush", ChannelBinding::unsupported(), MECHANISM), Ok(()));
        let binding = ChannelBinding::tls_server_end_point(END_POINT.to_vec());
        assert_eq!(run(verifier("hush"), "hush", binding, MECHANISM_PLUS), Ok(()));
    }

    #[test]
    fn a_wrong_password_a_mock_and_a_wrong_channel_are_denied() {
        assert_eq!(run(verifier("hush"), "loud", ChannelBinding::unsupported(), MECHANISM), Err(ScramError::Denied));
        let mock = Verifier::mock(b"secret", "fix", "app");
        assert_eq!(run(mock, "hush", ChannelBinding::unsupported(), MECHANISM), Err(ScramError::Denied));
        let foreign = ChannelBinding::tls_server_end_point(b"another certificate's hash".to_vec());
        assert_eq!(run(verifier("hush"), "hush", foreign, MECHANISM_PLUS), Err(ScramError::ChannelBinding));
    }

    #[test]
    fn a_stripped_channel_binding_offer_is_noticed() {
        let stripped = ChannelBinding::unrequested();
        assert_eq!(run(verifier("hush"), "hush", stripped, MECHANISM), Err(ScramError::Downgrade));
    }

    #[test]
    fn a_mock_looks_the_same_each_time_and_differs_between_roles() {
        let salt = |role| Verifier::mock(b"secret", "fix", role).salt;
        assert_eq!(salt("app"), salt("app"));
        assert_ne!(salt("app"), salt("other"));
        assert_eq!(salt("app").len(), verifier("x").salt.len());
    }

    proptest! {
        #[test]
        fn messages_never_panic(first in ".{0,80}", last in ".{0,80}") {
            let _ = Exchange::start(verifier_for_fuzz(), MECHANISM, first.as_bytes(), "n", None);
            let exchange = Exchange::start(verifier_for_fuzz(), MECHANISM, b"n,,n=,r=abc", "n", None).expect("valid");
            prop_assert!(exchange.finish(last.as_bytes()).is_err());
        }
    }

    fn verifier_for_fuzz() -> Verifier {
        Verifier { salt: vec![1; 16], iterations: 1, stored_key: [1; 32], server_key: [1; 32], is_mock: false }
    }
}
