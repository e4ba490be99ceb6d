//! What can go wrong, one enum per kind of operation. Every error says what a caller may do by [`ErrorKind`].

use ardent_object_store::StoreError;
use ardent_pg_redo::ReconstructError;
use ardent_types::{Generation, Key, Lsn, RelTag, TenantId, Term, TimelineId};

use crate::import::{PACKED_IN_MEMORY, RUN};
use crate::layer::{LayerCorrupt, LayerError};
use crate::spill::SPILLED;

/// What a caller does about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The same call may succeed later.
    Retry,
    /// The thing asked for isn't there.
    NotFound,
    /// The call makes no sense in this state; the same call fails again.
    Invalid,
    /// Another page server owns the timeline now.
    Fenced,
    /// Stored bytes are damaged, or a page can't be rebuilt.
    Corrupt,
    /// Our own bug.
    Internal,
}

fn store_kind(error: &StoreError) -> ErrorKind {
    use ardent_object_store::ErrorKind as Store;
    match error.kind() {
        Store::Corrupt => ErrorKind::Corrupt,
        // A person or a later attempt may help; in both cases nothing is lost meanwhile.
        Store::Retry | Store::Denied => ErrorKind::Retry,
        Store::NotFound | Store::Precondition | Store::OutOfRange | Store::Internal => ErrorKind::Internal,
    }
}

/// A file in the store is not what was written.
#[derive(Debug, thiserror::Error)]
#[error("{file} is corrupt at offset {offset}: expected {expected}; reads of {keys} are concerned; {}", remedy(file))]
pub struct CorruptFile {
    /// The object's name.
    pub file: String,
    /// Where in the file.
    pub offset: u64,
    /// What should be there.
    pub expected: String,
    /// The keys that the file speaks for.
    pub keys: String,
}

fn remedy(file: &str) -> &'static str {
    if file.starts_with(SPILLED) {
        "it is not in the store yet: restart the server, which reads that WAL again"
    } else if file.starts_with(RUN) || file == PACKED_IN_MEMORY {
        "nothing of the import is used: import again"
    } else {
        "restore the file from a copy of the store"
    }
}

impl From<LayerCorrupt> for CorruptFile {
    fn from(error: LayerCorrupt) -> Self {
        CorruptFile { file: error.file, offset: error.offset, expected: error.expected, keys: error.keys.to_string() }
    }
}

/// The engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the folder.
    #[error("{path} is locked by another process; stop it, or give this page server a folder of its own")]
    Locked {
        /// The lock file.
        path: String,
    },
    /// The local folder can't be used.
    #[error("the page server's folder {path} can't be used; make it writable for this user")]
    Folder {
        /// The folder or file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// A timeline could not be made, found, or removed.
#[derive(Debug, thiserror::Error)]
pub enum TimelineError {
    /// There is none.
    #[error("there is no timeline {timeline} of tenant {tenant}")]
    NotFound {
        /// Tenant.
        tenant: TenantId,
        /// Timeline.
        timeline: TimelineId,
    },
    /// One exists with other properties.
    #[error("timeline {timeline} exists already with another {what}")]
    Conflict {
        /// Timeline.
        timeline: TimelineId,
        /// The property that differs.
        what: &'static str,
    },
    /// It has children.
    #[error("timeline {timeline} has {children} branches; delete them first")]
    HasChildren {
        /// Timeline.
        timeline: TimelineId,
        /// How many.
        children: usize,
    },
    /// The branch point is ahead of what was ingested.
    #[error("{lsn} is ahead of the last record ingested, which ends at {last}; wait for it")]
    NotYet {
        /// Asked for.
        lsn: Lsn,
        /// End of the last record.
        last: Lsn,
    },
    /// The branch point is older than what is retained.
    #[error("{lsn} is not retained any more; branches can be made from {retained_from} on")]
    Retired {
        /// Asked for.
        lsn: Lsn,
        /// The oldest LSN that can be.
        retained_from: Lsn,
    },
    /// The ancestor's import isn't complete.
    #[error("timeline {timeline} is still being imported")]
    Importing {
        /// Timeline.
        timeline: TimelineId,
    },
    /// Writes were refused.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A file is damaged.
    #[error(transparent)]
    Corrupt(#[from] CorruptFile),
    /// The store failed.
    #[error("the object store failed")]
    Store(#[from] StoreError),
}

impl TimelineError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            TimelineError::NotFound { .. } => ErrorKind::NotFound,
            TimelineError::Conflict { .. } | TimelineError::HasChildren { .. } => ErrorKind::Invalid,
            TimelineError::Retired { .. } => ErrorKind::Invalid,
            TimelineError::NotYet { .. } | TimelineError::Importing { .. } => ErrorKind::Retry,
            TimelineError::Commit(error) => error.kind(),
            TimelineError::Corrupt(_) => ErrorKind::Corrupt,
            TimelineError::Store(error) => store_kind(error),
        }
    }
}

impl From<LayerError> for TimelineError {
    fn from(error: LayerError) -> Self {
        match error {
            LayerError::Corrupt(error) => TimelineError::Corrupt(error.into()),
            LayerError::Store(error) => TimelineError::Store(error),
        }
    }
}

/// A change of a timeline could not be made durable. What was durable before still is.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Another page server has written a newer manifest.
    #[error(
        "timeline {timeline} was taken over by another page server, which wrote manifest {generation}; this one stops serving it"
    )]
    Fenced {
        /// Timeline.
        timeline: TimelineId,
        /// The other's manifest.
        generation: Generation,
    },
    /// The timeline is being deleted.
    #[error("timeline {timeline} was deleted")]
    Deleted {
        /// Timeline.
        timeline: TimelineId,
    },
    /// A local file could not be written.
    #[error("the local file {path} could not be written; is the disk full?")]
    Local {
        /// Path.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A layer that goes into another could not be read.
    #[error(transparent)]
    Corrupt(#[from] CorruptFile),
    /// Content that goes into a new layer could not be read.
    #[error("content for a new layer could not be read")]
    Read {
        /// Whether it may be readable later.
        is_worth_a_retry: bool,
        /// Why.
        #[source]
        source: Box<ReadError>,
    },
    /// The store failed.
    #[error("the object store failed")]
    Store(#[from] StoreError),
}

impl CommitError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            CommitError::Fenced { .. } => ErrorKind::Fenced,
            CommitError::Deleted { .. } => ErrorKind::NotFound,
            CommitError::Local { .. } => ErrorKind::Retry,
            CommitError::Corrupt(_) => ErrorKind::Corrupt,
            CommitError::Read { is_worth_a_retry: true, .. } => ErrorKind::Retry,
            CommitError::Read { .. } => ErrorKind::Internal,
            CommitError::Store(error) => store_kind(error),
        }
    }
}

impl From<LayerError> for CommitError {
    fn from(error: LayerError) -> Self {
        match error {
            LayerError::Corrupt(error) => CommitError::Corrupt(error.into()),
            LayerError::Store(error) => CommitError::Store(error),
        }
    }
}

/// A batch was not taken. Nothing of it is visible.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The batch breaks a rule: ingest has a bug. The timeline takes no more writes until it is opened again.
    #[error("a batch for timeline {timeline} was refused: {rule}")]
    Disorder {
        /// Timeline.
        timeline: TimelineId,
        /// The rule, and what broke it.
        rule: String,
    },
    /// An earlier batch broke a rule.
    #[error("timeline {timeline} takes no writes after an earlier refused batch; restart the page server")]
    Poisoned {
        /// Timeline.
        timeline: TimelineId,
    },
    /// The import must be finished first, or is finished already.
    #[error("timeline {timeline} is {state}")]
    WrongState {
        /// Timeline.
        timeline: TimelineId,
        /// What it is doing.
        state: &'static str,
    },
    /// Memory, or what may wait on the disk, is full because layers can't be stored. Comes back to life by itself.
    #[error("timeline {timeline} can't write its layers, and there is no more room for WAL")]
    Stalled {
        /// Timeline.
        timeline: TimelineId,
        /// Why the last attempt failed.
        #[source]
        source: std::sync::Arc<CommitError>,
    },
    /// A change could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl PutError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            PutError::Disorder { .. } | PutError::Poisoned { .. } => ErrorKind::Internal,
            PutError::WrongState { .. } => ErrorKind::Invalid,
            PutError::Stalled { source, .. } => source.kind(),
            PutError::Commit(error) => error.kind(),
        }
    }
}

/// A timeline could not be cut from its history.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// The new root, or its source.
    #[error(transparent)]
    Timeline(#[from] TimelineError),
    /// Something that exists there cannot be read.
    #[error("what the new root is to be made of cannot be read")]
    Read(#[from] ReadError),
    /// A size is not what is stored as one.
    #[error("the size of {rel} at {lsn} is stored in {length} bytes instead of 4")]
    Size {
        /// Whose.
        rel: RelTag,
        /// Where.
        lsn: Lsn,
        /// Bytes of it.
        length: usize,
    },
    /// The copy could not be stored.
    #[error(transparent)]
    Put(#[from] PutError),
}

impl CutError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            CutError::Timeline(error) => error.kind(),
            CutError::Read(error) => error.kind(),
            CutError::Size { .. } => ErrorKind::Corrupt,
            CutError::Put(error) => error.kind(),
        }
    }
}

impl From<CommitError> for CutError {
    fn from(error: CommitError) -> Self {
        CutError::Put(error.into())
    }
}

/// What a compute left could not be kept, or given back.
#[derive(Debug, thiserror::Error)]
pub enum KeptStateError {
    /// A newer writer's is kept already.
    #[error("the compute in term {term} left a newer state of timeline {timeline}")]
    Fenced {
        /// Timeline.
        timeline: TimelineId,
        /// Whose is kept.
        term: Term,
    },
    /// Parts come one after the other, or there are too many.
    #[error("part {part} of what is to be kept of timeline {timeline} does not follow what was sent")]
    OutOfOrder {
        /// Timeline.
        timeline: TimelineId,
        /// Its number.
        part: u32,
    },
    /// That state is not kept, or has no such part.
    #[error("this is not kept of timeline {timeline}")]
    NotFound {
        /// Timeline.
        timeline: TimelineId,
    },
    /// Damaged.
    #[error(transparent)]
    Corrupt(#[from] CorruptFile),
    /// The timeline is not ours any more.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl KeptStateError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            KeptStateError::Fenced { .. } => ErrorKind::Fenced,
            KeptStateError::OutOfOrder { .. } => ErrorKind::Invalid,
            KeptStateError::NotFound { .. } => ErrorKind::NotFound,
            KeptStateError::Corrupt(_) => ErrorKind::Corrupt,
            KeptStateError::Commit(error) => error.kind(),
            KeptStateError::Store(error) => store_kind(error),
        }
    }
}

/// A read failed. Other reads are not concerned.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The LSN is ahead of what was ingested.
    #[error("{lsn} is ahead of the last record that timeline {timeline} ingested, which ends at {last}")]
    NotYet {
        /// The timeline that lacks it: the one asked, or an ancestor that is catching up after a restart.
        timeline: TimelineId,
        /// Asked for.
        lsn: Lsn,
        /// End of the last record.
        last: Lsn,
    },
    /// The LSN is older than what is retained.
    #[error("{lsn} is not retained any more; the oldest LSN that can be read is {retained_from}")]
    Retired {
        /// Asked for.
        lsn: Lsn,
        /// Oldest LSN that can be read.
        retained_from: Lsn,
    },
    /// The import isn't complete.
    #[error("timeline {timeline} is still being imported")]
    Importing {
        /// Timeline.
        timeline: TimelineId,
    },
    /// The timeline was deleted.
    #[error("timeline {timeline} was deleted")]
    Deleted {
        /// Timeline.
        timeline: TimelineId,
    },
    /// Another page server has the timeline now, and has removed what the read needed.
    #[error(
        "timeline {timeline} was taken over by another page server, which wrote manifest {generation}; this one stops serving it"
    )]
    Fenced {
        /// Timeline.
        timeline: TimelineId,
        /// The other's manifest.
        generation: Generation,
    },
    /// A layer file is damaged or missing.
    #[error(transparent)]
    Corrupt(#[from] CorruptFile),
    /// Redo can't make the content.
    #[error("{key} can't be rebuilt at {lsn}")]
    Rebuild {
        /// Key.
        key: Key,
        /// Asked for.
        lsn: Lsn,
        /// Why.
        #[source]
        source: Box<ReconstructError>,
    },
    /// An ancestor could not be loaded.
    #[error("an ancestor of the timeline can't be read")]
    Ancestor(#[source] Box<TimelineError>),
    /// The store failed.
    #[error("the object store failed")]
    Store(#[from] StoreError),
}

impl ReadError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ReadError::NotYet { .. } | ReadError::Importing { .. } => ErrorKind::Retry,
            ReadError::Retired { .. } => ErrorKind::Invalid,
            ReadError::Deleted { .. } => ErrorKind::NotFound,
            ReadError::Fenced { .. } => ErrorKind::Fenced,
            ReadError::Corrupt(_) | ReadError::Rebuild { .. } => ErrorKind::Corrupt,
            ReadError::Ancestor(error) => error.kind(),
            ReadError::Store(error) => store_kind(error),
        }
    }
}

impl From<LayerError> for ReadError {
    fn from(error: LayerError) -> Self {
        match error {
            LayerError::Corrupt(error) => ReadError::Corrupt(error.into()),
            LayerError::Store(error) => ReadError::Store(error),
        }
    }
}

/// An LSN was not reached in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("WAL up to {lsn} did not arrive in time; timeline {timeline} has ingested up to {last}")]
pub struct WaitError {
    /// The timeline that lacks it.
    pub timeline: TimelineId,
    /// Waited for.
    pub lsn: Lsn,
    /// End of the last record.
    pub last: Lsn,
}
