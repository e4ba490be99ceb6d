//! How Postgres names a relation in storage: by three numbers, whose struct 16 gave other names.

use ardent_types::{ForkNumber, RelTag};

use crate::pg::{self, SMgrRelation};

#[cfg(not(pg_from = "16"))]
mod named {
    use crate::pg;

    pub use crate::pg::RelFileNodeBackend as Locator;

    pub fn locator(spcnode: u32, dbnode: u32, relnode: u32) -> pg::RelFileNode {
        pg::RelFileNode { spcNode: spcnode, dbNode: dbnode, relNode: relnode }
    }

    pub fn numbers(locator: &Locator) -> (u32, u32, u32) {
        (locator.node.spcNode, locator.node.dbNode, locator.node.relNode)
    }

    /// # Safety
    /// With a valid handle.
    pub unsafe fn of(handle: pg::SMgrRelation) -> Locator {
        // SAFETY: the caller's promise.
        unsafe { (*handle).smgr_rnode }
    }
}

#[cfg(pg_from = "16")]
mod named {
    use crate::pg;

    pub use crate::pg::RelFileLocatorBackend as Locator;

    pub fn locator(spcnode: u32, dbnode: u32, relnode: u32) -> pg::RelFileLocator {
        pg::RelFileLocator { spcOid: spcnode, dbOid: dbnode, relNumber: relnode }
    }

    pub fn numbers(locator: &Locator) -> (u32, u32, u32) {
        (locator.locator.spcOid, locator.locator.dbOid, locator.locator.relNumber)
    }

    /// # Safety
    /// With a valid handle.
    pub unsafe fn of(handle: pg::SMgrRelation) -> Locator {
        // SAFETY: the caller's promise.
        unsafe { (*handle).smgr_rlocator }
    }
}

/// A relation's name in storage and the backend that it is temporary for, if any.
pub use named::{Locator, of};

/// The backend of relations that are not temporary (`InvalidBackendId`, from 17 on `INVALID_PROC_NUMBER`).
pub const NOT_TEMPORARY: i32 = -1;

/// Postgres's handle of a relation that is not temporary.
///
/// # Safety
/// Only in a process that Postgres runs.
pub unsafe fn open(rel: &RelTag) -> SMgrRelation {
    // SAFETY: makes or finds the handle; opens no file.
    unsafe { pg::smgropen(named::locator(rel.spcnode, rel.dbnode, rel.relnode), NOT_TEMPORARY) }
}

/// Whether other sessions can see the relation.
pub fn is_shared(locator: &Locator) -> bool {
    locator.backend == NOT_TEMPORARY
}

/// The relation fork; None: temporary.
pub fn tag(locator: &Locator, fork: pg::ForkNumber) -> Option<RelTag> {
    if !is_shared(locator) {
        return None;
    }
    let (spcnode, dbnode, relnode) = named::numbers(locator);
    let fork = ForkNumber::from_raw(u8::try_from(fork).ok()?)?;
    Some(RelTag { spcnode, dbnode, relnode, fork })
}
