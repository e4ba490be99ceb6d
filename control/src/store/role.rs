//! Roles as a branch's compute reported them last, and what a report changes about passwords.

use std::collections::{HashMap, HashSet};

use rusqlite::{OptionalExtension as _, Transaction, params};

use ardent_api::compute::RoleReport;
use ardent_types::BranchId;

use super::branch::put_credential;
use super::{CredentialRow, Store, StoreError};
use crate::secrets::token_hash;

/// How a password begins that the proxy can check.
const SCRAM: &str = "SCRAM-SHA-256$";

/// Whether a role may log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleRow {
    /// `LOGIN`.
    pub can_login: bool,
    /// `VALID UNTIL`, microseconds since the Unix epoch.
    pub valid_until_us: Option<i64>,
}

/// A role as it was reported before.
struct Known {
    name: String,
    password_hash: Option<[u8; 32]>,
}

impl Store {
    /// Takes in all roles of a branch. A password that was set since the first report, which came before anybody could
    /// change one, is good from now on, in place of the one that we made; one that production had never is. The first report
    /// after a restore is such a first one: roles that the earlier state has under other names, or has not, are followed there.
    pub fn take_roles(&self, branch: BranchId, roles: &[RoleReport]) -> Result<(), StoreError> {
        self.write(|transaction| {
            let id = branch.to_string();
            let first = transaction
                .query_row("SELECT roles_known FROM branches WHERE id = ?1", params![id], |row| row.get::<_, bool>(0));
            let Some(had_report) = first.optional()? else { return Ok(()) };
            let known = known(transaction, &id)?;
            follow_names(transaction, &id, &known, roles)?;
            if had_report {
                follow_passwords(transaction, branch, &known, roles)?;
            }
            transaction.execute("DELETE FROM roles WHERE branch_id = ?1", params![id])?;
            for role in roles {
                transaction.execute(
                    "INSERT INTO roles (branch_id, oid, name, can_login, valid_until_us, password_hash)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![id, role.oid, role.name, role.can_login, role.valid_until_us, hash(role)],
                )?;
            }
            transaction.execute("UPDATE branches SET roles_known = 1 WHERE id = ?1", params![id]).map(|_| ())
        })
    }

    /// A role as it was reported last.
    pub fn role(&self, branch: BranchId, name: &str) -> Result<Option<RoleRow>, StoreError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT can_login, valid_until_us FROM roles WHERE branch_id = ?1 AND name = ?2")?
                .query_row(params![branch.to_string(), name], |row| {
                    Ok(RoleRow { can_login: row.get(0)?, valid_until_us: row.get(1)? })
                })
                .optional()
        })
    }
}

fn hash(role: &RoleReport) -> Option<[u8; 32]> {
    role.password.as_deref().map(token_hash)
}

fn known(transaction: &Transaction<'_>, branch: &str) -> rusqlite::Result<HashMap<u32, Known>> {
    let mut statement =
        transaction.prepare_cached("SELECT oid, name, password_hash FROM roles WHERE branch_id = ?1")?;
    let rows = statement
        .query_map(params![branch], |row| Ok((row.get(0)?, Known { name: row.get(1)?, password_hash: row.get(2)? })))?;
    rows.collect()
}

/// A renamed role keeps its password, and the branch's URL names it by its new name. Dropped ones lose theirs.
fn follow_names(
    transaction: &Transaction<'_>,
    branch: &str,
    known: &HashMap<u32, Known>,
    roles: &[RoleReport],
) -> rusqlite::Result<()> {
    let there: HashSet<u32> = roles.iter().map(|role| role.oid).collect();
    for (_, gone) in known.iter().filter(|(oid, _)| !there.contains(oid)) {
        transaction
            .execute("DELETE FROM credentials WHERE branch_id = ?1 AND role = ?2", params![branch, gone.name])?;
    }
    let renamed: Vec<(&Known, &RoleReport)> = roles
        .iter()
        .filter_map(|role| known.get(&role.oid).filter(|before| before.name != role.name).map(|before| (before, role)))
        .collect();
    let rename = |from: &str, to: &str| {
        for sql in [
            "UPDATE OR REPLACE credentials SET role = ?3 WHERE branch_id = ?1 AND role = ?2",
            "UPDATE branches SET role = ?3 WHERE id = ?1 AND role = ?2",
        ] {
            transaction.execute(sql, params![branch, from, to])?;
        }
        Ok::<(), rusqlite::Error>(())
    };
    // By way of names that nobody has, since two roles may have swapped theirs.
    let between = |role: &RoleReport| format!("\u{1}{}", role.oid);
    for (before, role) in &renamed {
        rename(&before.name, &between(role))?;
    }
    for (_, role) in &renamed {
        rename(&between(role), &role.name)?;
    }
    Ok(())
}

fn follow_passwords(
    transaction: &Transaction<'_>,
    branch: BranchId,
    known: &HashMap<u32, Known>,
    roles: &[RoleReport],
) -> rusqlite::Result<()> {
    for role in roles {
        let before = known.get(&role.oid);
        if hash(role) == before.and_then(|before| before.password_hash) {
            continue;
        }
        match role.password.as_deref().filter(|password| password.starts_with(SCRAM)) {
            Some(verifier) => {
                let credential = CredentialRow {
                    role: role.name.clone(),
                    password_sealed: None,
                    sealed_for: None,
                    verifier: verifier.to_owned(),
                    expires_us: None,
                };
                put_credential(transaction, branch, &credential)?;
            }
            // Taken away, or in a form that only a server that is awake could check.
            None => {
                let gone = params![branch.to_string(), role.name];
                transaction.execute("DELETE FROM credentials WHERE branch_id = ?1 AND role = ?2", gone)?;
            }
        }
    }
    Ok(())
}
