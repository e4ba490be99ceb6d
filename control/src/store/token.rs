//! User tokens: random, kept as their hashes.

use rusqlite::{OptionalExtension as _, params};

use super::{Store, StoreError};

/// A user token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// What it is called.
    pub name: String,
    /// When it was made, microseconds since the Unix epoch.
    pub created_us: i64,
}

impl Store {
    /// Keeps a token's hash.
    pub fn insert_token(&self, hash: &[u8; 32], name: &str, created_us: i64) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .execute(
                    "INSERT INTO user_tokens (hash, name, created_us) VALUES (?1, ?2, ?3)
                     ON CONFLICT (hash) DO NOTHING",
                    params![hash, name, created_us],
                )
                .map(|_| ())
        })
    }

    /// The token with this hash.
    pub fn token(&self, hash: &[u8; 32]) -> Result<Option<TokenRow>, StoreError> {
        self.read(|connection| {
            connection
                .query_row("SELECT name, created_us FROM user_tokens WHERE hash = ?1", params![hash], |row| {
                    Ok(TokenRow { name: row.get(0)?, created_us: row.get(1)? })
                })
                .optional()
        })
    }

    /// Revokes a token; whether it was there.
    pub fn delete_token(&self, hash: &[u8; 32]) -> Result<bool, StoreError> {
        self.write(|transaction| {
            transaction.execute("DELETE FROM user_tokens WHERE hash = ?1", params![hash]).map(|count| count > 0)
        })
    }
}
