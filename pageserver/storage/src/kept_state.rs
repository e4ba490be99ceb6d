//! What a timeline's last compute left beside its WAL, as opaque parts. See `docs/formats/kept-state.md`.
//!
//! The parts come first, then the head that names them: there is one state or none, never half of one. A state is fenced by the term of
//! the writer that left it: an older one never replaces a newer one.

use ardent_object_store::{ErrorKind as StoreErrorKind, ObjectName, StoreError, list_all};
use ardent_types::{Lsn, Term};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{CorruptFile, KeptStateError};
use crate::json_file::JsonFile;
use crate::timeline::Timeline;

/// The head.
const FILE: JsonFile = JsonFile { magic: b"ARKS", version: 1, name: "kept state" };
/// Most parts of a state.
const PARTS_MAX: usize = 1024;

/// Which state: that of the writer of `term`, which left the log ending at `lsn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptStateId {
    /// End of the log.
    pub lsn: Lsn,
    /// Term.
    pub term: Term,
}

impl KeptStateId {
    /// A newer writer's state comes after an older one's.
    fn rank(self) -> (Term, Lsn) {
        (self.term, self.lsn)
    }
}

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptStateHead {
    /// Which state.
    #[serde(flatten)]
    pub id: KeptStateId,
    /// A compute has gone on from there since.
    pub outdated: bool,
    /// Its parts, in order.
    parts: Vec<Part>,
}

impl KeptStateHead {
    /// How many parts there are.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    fn encode(&self) -> Vec<u8> {
        FILE.encode(self)
    }

    /// The head in `bytes`; what was expected where it is damaged.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        FILE.decode(bytes)
    }
}

/// A part as the head names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    bytes: u64,
    crc32: u32,
}

impl Part {
    fn of(data: &[u8]) -> Part {
        Part { bytes: data.len() as u64, crc32: crc32fast::hash(data) }
    }
}

/// A state that is being sent.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    id: KeptStateId,
    parts: Vec<Part>,
}

impl Timeline {
    /// Takes a part, durably. Part 0 begins a state; whatever was being sent before is given up.
    pub fn keep_part(&self, id: KeptStateId, number: u32, data: &[u8]) -> Result<(), KeptStateError> {
        self.touch();
        self.check_owned()?;
        let mut incoming = self.incoming_state.lock();
        if number == 0 {
            self.check_newer(id)?;
            *incoming = Some(Incoming { id, parts: Vec::new() });
        }
        let state = incoming.as_mut().filter(|state| state.id == id && state.parts.len() == number as usize);
        let Some(state) = state.filter(|state| state.parts.len() < PARTS_MAX) else {
            return Err(KeptStateError::OutOfOrder { timeline: self.id(), part: number });
        };
        self.store_object(|store| store.put(&self.names.kept_part(id, number), data))?;
        state.parts.push(Part::of(data));
        Ok(())
    }

    /// All parts have come: what they are is kept from now on, and what was kept before is not.
    pub fn keep_state(&self, id: KeptStateId, parts: u32) -> Result<(), KeptStateError> {
        // Another page server may have the timeline by now, and a newer state.
        self.look_for_owner()?;
        let mut incoming = self.incoming_state.lock();
        let Some(state) = incoming.take().filter(|state| state.id == id && state.parts.len() == parts as usize) else {
            return Err(KeptStateError::OutOfOrder { timeline: self.id(), part: parts });
        };
        self.check_newer(id)?;
        let head = KeptStateHead { id, outdated: false, parts: state.parts };
        self.store_object(|store| store.put(&self.names.kept_head(), &head.encode()))?;
        if let Err(error) = self.remove_other_parts(&head) {
            tracing::warn!(timeline = %self.id(), %error, "parts of older states stay until the next one is kept");
        }
        Ok(())
    }

    fn check_newer(&self, id: KeptStateId) -> Result<(), KeptStateError> {
        match self.kept_state() {
            Ok(Some(head)) if head.id.rank() > id.rank() => {
                Err(KeptStateError::Fenced { timeline: self.id(), term: head.id.term })
            }
            // One that is damaged is of no use to anybody.
            Ok(_) | Err(KeptStateError::Corrupt(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn remove_other_parts(&self, head: &KeptStateHead) -> Result<(), StoreError> {
        let store = &*self.shared.config.store;
        let keep = self.names.kept_parts(head.id);
        let others = list_all(store, &self.names.kept(), false)?.objects.into_iter().map(|object| object.name);
        let others: Vec<ObjectName> =
            others.filter(|name| *name != self.names.kept_head() && !name.as_str().starts_with(&keep)).collect();
        store.delete_many(&others)
    }

    /// What is kept; `None` if nothing is.
    pub fn kept_state(&self) -> Result<Option<KeptStateHead>, KeptStateError> {
        let name = self.names.kept_head();
        match self.shared.config.store.get(&name) {
            Ok(bytes) => KeptStateHead::decode(&bytes).map(Some).map_err(|expected| self.damaged(&name, expected)),
            Err(error) if error.kind() == StoreErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// A part of what is kept.
    pub fn kept_part(&self, id: KeptStateId, number: u32) -> Result<Bytes, KeptStateError> {
        let head = self.kept_state()?.filter(|head| head.id == id);
        let part = head.and_then(|head| head.parts.get(number as usize).copied());
        let Some(part) = part else { return Err(KeptStateError::NotFound { timeline: self.id() }) };
        let name = self.names.kept_part(id, number);
        let data = match self.shared.config.store.get(&name) {
            Err(error) if error.kind() == StoreErrorKind::NotFound => {
                return Err(self.damaged(&name, "the file".to_owned()));
            }
            data => data?,
        };
        if Part::of(&data) != part {
            return Err(self.damaged(&name, format!("{} bytes with the checksum that the head names", part.bytes)));
        }
        Ok(data)
    }

    /// A compute has gone on from there: what is kept is the state of no data directory any more.
    pub fn outdate_kept_state(&self, id: KeptStateId) -> Result<(), KeptStateError> {
        self.touch();
        self.check_owned()?;
        match self.kept_state() {
            Ok(Some(head)) if head.id == id && !head.outdated => {
                let head = KeptStateHead { outdated: true, ..head };
                Ok(self.store_object(|store| store.put(&self.names.kept_head(), &head.encode()))?)
            }
            Ok(_) | Err(KeptStateError::Corrupt(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn damaged(&self, name: &ObjectName, expected: String) -> KeptStateError {
        let keys = "no page; the next cold start is as after a crash".to_owned();
        CorruptFile { file: name.to_string(), offset: 0, expected, keys }.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> KeptStateHead {
        let id = KeptStateId { lsn: Lsn::new(0x0100_0028), term: Term::new(7) };
        KeptStateHead { id, outdated: false, parts: vec![Part::of(b"one"), Part::of(b"")] }
    }

    #[test]
    fn heads_round_trip_and_reject_every_flipped_byte() {
        let bytes = head().encode();
        assert_eq!(KeptStateHead::decode(&bytes), Ok(head()));
        for at in (0..bytes.len()).filter(|at| ![6, 7].contains(at)) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(KeptStateHead::decode(&flipped).is_err(), "byte {at}");
            assert!(KeptStateHead::decode(&bytes[..at]).is_err());
        }
    }

    #[test]
    fn a_head_of_version_1_is_read_as_when_it_was_new() {
        assert_eq!(KeptStateHead::decode(include_bytes!("../golden/v1.kept")), Ok(head()));
    }
}
