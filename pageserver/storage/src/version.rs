//! One version of a key, as layers hold it.

use ardent_pg_redo::Value;
use ardent_types::Lsn;
use bytes::Bytes;

/// What kind of bytes a version holds. The numbers are part of the layer format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum VersionKind {
    /// The whole content; empty: absent.
    Image = 0,
    /// A record part that needs nothing before it.
    RecordInit = 1,
    /// A record part.
    Record = 2,
    /// One of our own small changes.
    Delta = 3,
    /// Not to be read; the bytes say why.
    Unreadable = 4,
    /// In image layers only: the content could not be made, look further down.
    Hole = 5,
}

impl VersionKind {
    pub(crate) fn from_raw(raw: u8) -> Option<Self> {
        use VersionKind::{Delta, Hole, Image, Record, RecordInit, Unreadable};
        [Image, RecordInit, Record, Delta, Unreadable, Hole].get(usize::from(raw)).copied()
    }

    /// Whether a read needs nothing older.
    pub(crate) fn ends_search(self) -> bool {
        matches!(self, VersionKind::Image | VersionKind::RecordInit | VersionKind::Unreadable)
    }

    /// The kind and bytes of `value`.
    pub(crate) fn of(value: &Value) -> (VersionKind, &Bytes) {
        match value {
            Value::Image(bytes) => (VersionKind::Image, bytes),
            Value::Record { will_init: true, record } => (VersionKind::RecordInit, record),
            Value::Record { will_init: false, record } => (VersionKind::Record, record),
            Value::Delta(bytes) => (VersionKind::Delta, bytes),
            Value::Unreadable(why) => (VersionKind::Unreadable, why),
        }
    }
}

/// A version that a read collected.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) lsn: Lsn,
    pub(crate) kind: VersionKind,
    pub(crate) bytes: Bytes,
}

impl Version {
    /// What redo takes. A hole never leaves the layer that has it.
    pub(crate) fn into_value(self) -> Value {
        match self.kind {
            VersionKind::Image => Value::Image(self.bytes),
            VersionKind::RecordInit => Value::Record { will_init: true, record: self.bytes },
            VersionKind::Record => Value::Record { will_init: false, record: self.bytes },
            VersionKind::Delta => Value::Delta(self.bytes),
            VersionKind::Unreadable | VersionKind::Hole => Value::Unreadable(self.bytes),
        }
    }
}

/// The versions of one key that a read needs, newest first, gathered from layers in any order.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    versions: Vec<Version>,
}

impl Gathered {
    /// Adds a version. Of two with one LSN (an interrupted import that was repeated) the first found stays.
    pub(crate) fn push(&mut self, version: Version) {
        if self.complete_from().is_some_and(|lsn| version.lsn <= lsn) {
            return;
        }
        // Nearly always the oldest so far.
        let at = match self.versions.last() {
            Some(oldest) if oldest.lsn <= version.lsn => self.versions.partition_point(|other| other.lsn > version.lsn),
            _ => self.versions.len(),
        };
        if self.versions.get(at).is_some_and(|other| other.lsn == version.lsn) {
            return;
        }
        if version.kind.ends_search() {
            self.versions.truncate(at);
        }
        self.versions.insert(at, version);
    }

    /// The LSN at or below which nothing is needed any more.
    pub(crate) fn complete_from(&self) -> Option<Lsn> {
        self.versions.last().filter(|version| version.kind.ends_search()).map(|version| version.lsn)
    }

    /// LSN of the newest version.
    pub(crate) fn newest(&self) -> Option<Lsn> {
        self.versions.first().map(|version| version.lsn)
    }

    pub(crate) fn len(&self) -> usize {
        self.versions.len()
    }

    /// The only version, if there is one, it is an image.
    pub(crate) fn as_plain_image(&self) -> Option<&Version> {
        self.versions.first().filter(|version| version.kind == VersionKind::Image)
    }

    /// Newest first.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &Version> {
        self.versions.iter()
    }

    /// Oldest first, for redo.
    pub(crate) fn into_values(self) -> impl Iterator<Item = (Lsn, Value)> {
        self.versions.into_iter().rev().map(|version| (version.lsn, version.into_value()))
    }
}
