//! Which cancel key belongs to which running session.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::startup::CancelKey;

/// Where a cancel request for a session goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelTarget {
    /// The compute's Unix socket.
    pub socket: PathBuf,
    /// The key that the compute gave out.
    pub key: CancelKey,
}

/// All sessions' keys. Clients hold keys of ours, so that two computes' keys can't be mistaken for each other (PX-4).
#[derive(Clone, Debug, Default)]
pub struct CancelRegistry {
    targets: Arc<Mutex<HashMap<CancelKey, CancelTarget>>>,
}

/// A session's entry; dropped with the session.
#[derive(Debug)]
pub struct Registration {
    registry: CancelRegistry,
    key: CancelKey,
}

impl Registration {
    /// The key for the client.
    pub fn key(&self) -> CancelKey {
        self.key
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.targets.lock().remove(&self.key);
    }
}

impl CancelRegistry {
    /// Makes a key for a session.
    pub fn register(&self, target: CancelTarget) -> Registration {
        let mut targets = self.targets.lock();
        loop {
            // Some clients show process ids as signed numbers.
            let key = CancelKey { process_id: rand::random::<u32>() >> 1, secret: rand::random() };
            if let std::collections::hash_map::Entry::Vacant(entry) = targets.entry(key) {
                entry.insert(target);
                return Registration { registry: self.clone(), key };
            }
        }
    }

    /// Passes a cancel request on. An unknown key does nothing, as in Postgres.
    pub async fn cancel(&self, key: CancelKey) -> std::io::Result<()> {
        let Some(target) = self.targets.lock().get(&key).cloned() else { return Ok(()) };
        let mut stream = UnixStream::connect(&target.socket).await?;
        stream.write_all(&target.key.to_request()).await?;
        // The server closes once it has sent the signal; the client may rely on that order.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_dies_with_its_session() {
        let registry = CancelRegistry::default();
        let target = CancelTarget { socket: "/s".into(), key: CancelKey { process_id: 1, secret: 2 } };
        let registration = registry.register(target.clone());
        assert_eq!(registry.targets.lock().get(&registration.key()), Some(&target));
        drop(registration);
        assert!(registry.targets.lock().is_empty());
    }
}
