//! Service tokens: signed claims that page server and safekeeper check with a public key alone.
//!
//! Text form: `base64url(JSON claims) "." base64url(Ed25519 signature of the first part's ASCII)`, no padding.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, ED25519_PUBLIC_KEY_LEN, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use bytes::BytesMut;

use ardent_types::{MemberGeneration, TenantId, TimelineId};

use crate::wal_service::{Membership, MembershipSeal};

/// Before what is signed of a list of members: it cannot be a token's first part, which has no space.
const MEMBERS_CONTEXT: &[u8] = b"ardent members 1\n";

/// Longest token accepted, in bytes.
pub const TOKEN_LEN_MAX: usize = 4096;

/// Which service a token opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// The page service.
    Pageserver,
    /// The WAL service.
    Safekeeper,
    /// What a process tells of itself: metrics and health. Names no tenant.
    Metrics,
    /// All of them.
    Any,
}

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rights {
    /// Read pages and WAL.
    Read,
    /// Also write WAL, renew leases.
    Write,
    /// Also create and delete timelines, import.
    Manage,
}

/// The claims of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Service.
    pub service: Service,
    /// Only this tenant; absent: any.
    pub tenant: Option<TenantId>,
    /// Only this timeline; absent: any of the tenant.
    pub timeline: Option<TimelineId>,
    /// Rights; each includes those before it.
    pub rights: Rights,
    /// Seconds since the Unix epoch after which the token is refused; absent: never.
    pub expires_at_s: Option<u64>,
}

/// Why a token was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token at all.
    #[error("the token is malformed")]
    Malformed,
    /// Signed by another key, or changed.
    #[error("the token's signature does not match this installation's key")]
    BadSignature,
    /// Past its expiry.
    #[error("the token has expired")]
    Expired,
    /// Valid, but for something else.
    #[error("the token does not allow this")]
    NotAllowed,
}

/// A failure to make or read the signing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the token signing key is not a valid Ed25519 PKCS#8 key")]
pub struct KeyError;

/// Signs tokens. Only control holds one.
pub struct TokenIssuer {
    pair: Ed25519KeyPair,
}

impl std::fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenIssuer")
    }
}

impl TokenIssuer {
    /// A new private key as PKCS#8 bytes, to be kept in a file with mode 0600.
    pub fn generate_key() -> Result<Vec<u8>, KeyError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError)?;
        Ok(document.as_ref().to_vec())
    }

    /// The issuer with this PKCS#8 key.
    pub fn from_key(pkcs8: &[u8]) -> Result<Self, KeyError> {
        Ok(TokenIssuer { pair: Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| KeyError)? })
    }

    /// The verifier that accepts this issuer's tokens.
    pub fn verifier(&self) -> TokenVerifier {
        TokenVerifier { public_key: self.pair.public_key().as_ref().to_vec() }
    }

    /// Signs `claims`.
    pub fn issue(&self, claims: &Claims) -> String {
        let body = URL_SAFE_NO_PAD.encode(serde_json::to_vec(claims).expect("claims are plain data"));
        let signature = URL_SAFE_NO_PAD.encode(self.pair.sign(body.as_bytes()));
        format!("{body}.{signature}")
    }

    /// The list with the seal that safekeepers ask for before they take one. Generation 0 names nobody, and has none.
    pub fn seal(&self, membership: &Membership) -> Membership {
        if membership.generation == MemberGeneration::default() {
            return membership.unsealed();
        }
        let signature = self.pair.sign(&sealed_bytes(membership));
        let seal = MembershipSeal(signature.as_ref().try_into().expect("an Ed25519 signature has 64 bytes"));
        Membership { seal, ..membership.clone() }
    }
}

fn sealed_bytes(membership: &Membership) -> BytesMut {
    let mut bytes = BytesMut::from(MEMBERS_CONTEXT);
    membership.encode_list(&mut bytes);
    bytes
}

/// Checks tokens with the public key alone.
#[derive(Clone, Debug)]
pub struct TokenVerifier {
    public_key: Vec<u8>,
}

impl TokenVerifier {
    /// A verifier for this raw Ed25519 public key (32 bytes).
    pub fn from_public_key(public_key: Vec<u8>) -> Self {
        TokenVerifier { public_key }
    }

    /// The public key as text, for a file.
    pub fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(&self.public_key)
    }

    /// The verifier that [`TokenVerifier::to_text`] wrote; `None` if the text is no Ed25519 public key.
    pub fn from_text(text: &str) -> Option<Self> {
        let public_key = URL_SAFE_NO_PAD.decode(text).ok().filter(|key| key.len() == ED25519_PUBLIC_KEY_LEN)?;
        Some(TokenVerifier { public_key })
    }

    /// The raw public key.
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// Whether this list of members is as control made it.
    pub fn has_sealed(&self, membership: &Membership) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, &self.public_key);
        key.verify(&sealed_bytes(membership), membership.seal.as_bytes()).is_ok()
    }

    /// Checks signature and expiry at `now_s` (seconds since the Unix epoch).
    pub fn verify(&self, token: &str, now_s: u64) -> Result<Claims, TokenError> {
        if token.len() > TOKEN_LEN_MAX {
            return Err(TokenError::Malformed);
        }
        let (body, signature) = token.split_once('.').ok_or(TokenError::Malformed)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Malformed)?;
        UnparsedPublicKey::new(&ED25519, &self.public_key)
            .verify(body.as_bytes(), &signature)
            .map_err(|_| TokenError::BadSignature)?;
        let json = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Malformed)?;
        let claims: Claims = serde_json::from_slice(&json).map_err(|_| TokenError::Malformed)?;
        match claims.expires_at_s {
            Some(expiry) if now_s >= expiry => Err(TokenError::Expired),
            _ => Ok(claims),
        }
    }
}

impl Claims {
    /// Whether these claims open `service` on `(tenant, timeline)` with `rights`. [`TenantId::NONE`] and
    /// [`TimelineId::NONE`] stand for connections bound to nothing, which only unbound claims open.
    pub fn allow(
        &self,
        service: Service,
        tenant: TenantId,
        timeline: TimelineId,
        rights: Rights,
    ) -> Result<(), TokenError> {
        let allowed = (self.service == Service::Any || self.service == service)
            && self.tenant.is_none_or(|only| only == tenant)
            && self.timeline.is_none_or(|only| only == timeline)
            && self.rights >= rights;
        if allowed { Ok(()) } else { Err(TokenError::NotAllowed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer() -> TokenIssuer {
        TokenIssuer::from_key(&TokenIssuer::generate_key().expect("key")).expect("key is valid")
    }

    fn claims() -> Claims {
        Claims {
            service: Service::Pageserver,
            tenant: Some(TenantId::from_bytes([1; 16])),
            timeline: Some(TimelineId::from_bytes([2; 16])),
            rights: Rights::Read,
            expires_at_s: Some(100),
        }
    }

    #[test]
    fn a_token_verifies_until_it_expires() {
        let issuer = issuer();
        let token = issuer.issue(&claims());
        assert_eq!(issuer.verifier().verify(&token, 99), Ok(claims()));
        assert_eq!(issuer.verifier().verify(&token, 100), Err(TokenError::Expired));
    }

    #[test]
    fn a_changed_or_foreign_token_is_refused() {
        let (ours, theirs) = (issuer(), issuer());
        let token = ours.issue(&claims());
        assert_eq!(theirs.verifier().verify(&token, 0), Err(TokenError::BadSignature));
        let forged = format!("x{token}");
        assert_eq!(ours.verifier().verify(&forged, 0), Err(TokenError::BadSignature));
        assert_eq!(ours.verifier().verify("nonsense", 0), Err(TokenError::Malformed));
    }

    #[test]
    fn a_list_of_members_is_sealed_whole() {
        use crate::wal_service::Member;
        use ardent_types::DiskId;
        let member =
            |disk, address: &str| Member { disk: DiskId::new(disk), address: address.parse().expect("an address") };
        let (ours, theirs) = (issuer(), issuer());
        let generation = MemberGeneration::new(2);
        let list = Membership {
            generation,
            members: vec![member(1, "unix:/a")],
            next: Some(vec![member(2, "unix:/b")]),
            seal: MembershipSeal::default(),
        };
        let sealed = ours.seal(&list);
        let check = |membership: &Membership| ours.verifier().has_sealed(membership);
        assert!(check(&sealed));
        assert!(!check(&list), "no seal");
        assert!(!theirs.verifier().has_sealed(&sealed), "another key");
        assert!(!check(&Membership { generation: generation.next(), ..sealed.clone() }));
        assert!(!check(&Membership { next: None, ..sealed.clone() }));
        assert!(!check(&Membership { members: vec![member(1, "unix:/c")], ..sealed.clone() }));
        assert!(!check(&Membership { members: vec![member(3, "unix:/a")], ..sealed.clone() }));
        let json = serde_json::to_string(&sealed).expect("plain data");
        assert_eq!(serde_json::from_str::<Membership>(&json).expect("its own form"), sealed);
        assert!(serde_json::from_str::<Membership>(&json.replace("\"seal\":\"", "\"seal\":\"0")).is_err());
    }

    #[test]
    fn claims_bind_service_tenant_timeline_and_rights() {
        let (tenant, timeline) = (TenantId::from_bytes([1; 16]), TimelineId::from_bytes([2; 16]));
        let claims = claims();
        let check = |service, tenant, timeline, rights| claims.allow(service, tenant, timeline, rights).is_ok();
        assert!(check(Service::Pageserver, tenant, timeline, Rights::Read));
        assert!(!check(Service::Safekeeper, tenant, timeline, Rights::Read));
        assert!(!check(Service::Pageserver, TenantId::NONE, timeline, Rights::Read));
        assert!(!check(Service::Pageserver, tenant, TimelineId::NONE, Rights::Read));
        assert!(!check(Service::Pageserver, tenant, timeline, Rights::Write));
    }
}
