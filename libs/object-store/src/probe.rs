//! Is a store fit for its task? Writes, reads, and above all: does it honour conditional puts, by which page servers fence each other.

use std::fmt;

use crate::error::{ErrorKind, StoreError};
use crate::name::ObjectName;
use crate::store::{ObjectStore, list_all};

/// How many puts race for one name.
const RACERS: u8 = 4;

/// What a store was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeStep {
    /// Write an object.
    Write,
    /// Read it back, whole and in part.
    Read,
    /// Show it in a list.
    List,
    /// Take the first of two conditional puts and refuse the second.
    ConditionalPut,
    /// Let exactly one win of several at once.
    Race,
    /// Remove what was written.
    Delete,
}

impl fmt::Display for ProbeStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProbeStep::Write => "writing an object",
            ProbeStep::Read => "reading it back",
            ProbeStep::List => "listing it",
            ProbeStep::ConditionalPut => "writing an object only if there is none",
            ProbeStep::Race => "several writing one object, only if there is none",
            ProbeStep::Delete => "deleting",
        })
    }
}

/// A store is not fit.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A call failed.
    #[error("{step} failed")]
    Call {
        /// At which step.
        step: ProbeStep,
        /// Why.
        source: StoreError,
    },
    /// A call was answered wrongly.
    #[error("{step}: {found}")]
    Wrong {
        /// At which step.
        step: ProbeStep,
        /// What came instead of what must.
        found: String,
    },
}

impl ProbeError {
    /// Whether the store was not there, or too busy: a moment later it may be fit.
    pub fn is_away(&self) -> bool {
        matches!(self, ProbeError::Call { source, .. } if source.kind() == ErrorKind::Retry)
    }
}

/// Asks `store` to do all that is needed, below `probe/NONCE/`, and removes what that wrote, unless the store went away: waiting for it
/// a second time tells nothing new. `nonce` is new with every call.
pub fn probe(store: &dyn ObjectStore, nonce: &str) -> Result<(), ProbeError> {
    let result = check(store, nonce);
    if result.as_ref().is_err_and(ProbeError::is_away) {
        return result;
    }
    let removed = names(nonce).and_then(|names| {
        store.delete_many(&names).map_err(|source| ProbeError::Call { step: ProbeStep::Delete, source })
    });
    result.and(removed)
}

fn names(nonce: &str) -> Result<Vec<ObjectName>, ProbeError> {
    let name = |last| ObjectName::new(format!("probe/{nonce}/{last}"));
    let names: Result<Vec<_>, _> = ["plain", "once", "race"].into_iter().map(name).collect();
    names.map_err(|error| ProbeError::Wrong { step: ProbeStep::Write, found: error.to_string() })
}

fn check(store: &dyn ObjectStore, nonce: &str) -> Result<(), ProbeError> {
    let names = names(nonce)?;
    let (plain, once, race) = (&names[0], &names[1], &names[2]);
    let body = nonce.as_bytes();
    let called = |step| move |source| ProbeError::Call { step, source };
    let wrong = |step, found: &str| Err(ProbeError::Wrong { step, found: found.to_owned() });

    store.put(plain, body).map_err(called(ProbeStep::Write))?;
    if store.get(plain).map_err(called(ProbeStep::Read))? != body {
        return wrong(ProbeStep::Read, "it is not what was written");
    }
    let half = body.len() / 2;
    let part = store.get_range(plain, half as u64..body.len() as u64).map_err(called(ProbeStep::Read))?;
    if part != body[half..] {
        return wrong(ProbeStep::Read, "a part of it is not that part");
    }
    let listed = list_all(store, &format!("probe/{nonce}/"), false).map_err(called(ProbeStep::List))?;
    if !listed.objects.iter().any(|object| object.name == *plain) {
        return wrong(ProbeStep::List, "it is not in the list");
    }

    let step = ProbeStep::ConditionalPut;
    store.put_if_absent(once, body).map_err(called(step))?;
    match store.put_if_absent(once, b"second") {
        Err(error) if error.kind() == ErrorKind::Precondition => {}
        Err(source) => return Err(ProbeError::Call { step, source }),
        Ok(()) => {
            return wrong(
                step,
                "the store ignores If-None-Match and overwrote an object: two page servers could overwrite each other's work on it; use a store that honours conditional puts",
            );
        }
    }
    if store.get(once).map_err(called(step))? != body {
        return wrong(step, "the object has changed although the second put was refused");
    }
    if winners(store, race)? != 1 {
        return wrong(ProbeStep::Race, "not exactly one of them won; use a store that honours conditional puts");
    }
    Ok(())
}

fn winners(store: &dyn ObjectStore, name: &ObjectName) -> Result<usize, ProbeError> {
    let outcomes: Vec<Result<(), StoreError>> = std::thread::scope(|scope| {
        let racers: Vec<_> =
            (0..RACERS).map(|racer| scope.spawn(move || store.put_if_absent(name, &[racer]))).collect();
        racers.into_iter().filter_map(|racer| racer.join().ok()).collect()
    });
    let mut winners = 0;
    for outcome in outcomes {
        match outcome {
            Ok(()) => winners += 1,
            Err(error) if error.kind() == ErrorKind::Precondition => {}
            Err(source) => return Err(ProbeError::Call { step: ProbeStep::Race, source }),
        }
    }
    Ok(winners)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fault::{FailPoints, FaultAction};
    use crate::{CountedStore, FaultyStore, MemoryStore, Operation};

    #[test]
    fn a_store_that_is_away_is_waited_for_once() {
        let faults = Arc::new(FailPoints::new());
        faults.arm("upload.thing", 1, FaultAction::Fail);
        let faulty = FaultyStore::new(Arc::new(MemoryStore::new()), faults, |_| "thing");
        let counted = CountedStore::new(Arc::new(faulty));
        let error = probe(&counted, "nonce").unwrap_err();
        assert!(error.is_away(), "{error}");
        let calls: u64 = Operation::ALL.into_iter().map(|operation| counted.stats(operation).calls).sum();
        assert_eq!(calls, 1, "the first put");
    }

    #[test]
    fn a_good_store_passes_and_is_left_as_it_was() {
        let store = MemoryStore::new();
        probe(&store, "nonce").unwrap();
        assert_eq!(list_all(&store, "", false).unwrap().objects, []);
    }
}
