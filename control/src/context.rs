//! What every part of control works with.

use std::sync::Arc;
use std::time::Duration;

use ardent_api::control::ErrorInfo;
use ardent_api::token::TokenIssuer;
use ardent_types::BranchId;

use crate::branches::not_found;
use crate::compute::PoolConfig;
use crate::deps::{ConnectorRuntime, LogicalRuntime, PageService, WalService};
use crate::metrics::Metrics;
use crate::pgurl::PublicAddress;
use crate::scram;
use crate::secrets::{Keyring, SecretError, random_text};
use crate::store::{BranchRow, CredentialRow, Store, now_us};
use crate::wal_debts::TimelineLocks;

/// How long a compute's lease holds without renewal: longer than a restart of control takes, shorter than a day that a lost
/// compute would pin.
pub(crate) const LEASE_TTL: Duration = Duration::from_secs(2 * 3600);
/// Characters of a branch's password: 190 bits.
const PASSWORD_LEN: usize = 32;

/// The shared parts.
pub(crate) struct Context {
    pub store: Store,
    pub keyring: Keyring,
    pub tokens: TokenIssuer,
    pub page_service: Arc<dyn PageService>,
    pub wal_service: Arc<dyn WalService>,
    pub connectors: Arc<dyn ConnectorRuntime>,
    pub logical: Arc<dyn LogicalRuntime>,
    pub pool: PoolConfig,
    pub public: PublicAddress,
    pub metrics: Metrics,
    pub timeline_locks: TimelineLocks,
}

impl Context {
    /// A new random password for `role` on `branch`.
    pub fn new_credential(&self, branch: &BranchRow, role: &str) -> Result<CredentialRow, SecretError> {
        let password = random_text(PASSWORD_LEN)?;
        Ok(CredentialRow {
            role: role.to_owned(),
            sealed_for: Some(role.to_owned()),
            expires_us: None,
            password_sealed: Some(self.keyring.seal(&password_context(branch.id, role), password.as_bytes())?),
            verifier: scram::verifier(&password)?,
        })
    }

    /// The connection string of a branch with the role's password; a role that has none, or whose has expired, gets one.
    /// `None`: it was set by SQL, and only its verifier is known. A branch that was deleted since it was looked up is not found.
    pub fn url_with_password(&self, branch: &BranchRow, role: &str) -> Result<Option<String>, ErrorInfo> {
        let stored = self.store.credential(branch.id, role)?;
        let credential = match stored.filter(|credential| credential.expires_us.is_none_or(|at| at > now_us())) {
            Some(credential) => credential,
            None => {
                let made = self.new_credential(branch, role)?;
                if !self.store.put_credential(branch.id, &made)? {
                    return Err(not_found(&branch.name));
                }
                made
            }
        };
        let Some(sealed) = &credential.password_sealed else { return Ok(None) };
        let sealed_for = credential.sealed_for.as_deref().unwrap_or(role);
        let password = self.keyring.open(&password_context(branch.id, sealed_for), sealed)?;
        Ok(Some(self.public.branch_url(&branch.name, role, Some(&password), &branch.database)))
    }

    /// The connection string of a branch without a password.
    pub fn url(&self, branch: &BranchRow) -> String {
        self.public.branch_url(&branch.name, &branch.role, None, &branch.database)
    }
}

pub(crate) fn password_context(branch: BranchId, role: &str) -> String {
    format!("password of {role} on branch {branch}")
}

impl From<SecretError> for ErrorInfo {
    fn from(error: SecretError) -> ErrorInfo {
        let message = match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        ErrorInfo::new(ardent_api::control::ApiErrorCode::Internal, message)
    }
}
