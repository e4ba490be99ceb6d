//! The storage manager's table in each major version: its slots in order and their functions' types.
//!
//! | from | what changed |
//! | --- | --- |
//! | 16 | `zeroextend` is new |
//! | 17 | reads and writes take several blocks; `registersync` is new |
//! | 18 | `maxcombine`, `startreadv` and `fd` are new; nearly all reads come through `startreadv` |

use std::ffi::{CStr, c_void};

use crate::pg::{BlockNumber, ForkNumber, SMgrRelation};
use crate::relation::Locator;

/// How many slots the table has.
pub const SLOT_COUNT: usize = SLOTS.len();

/// The functions that stand in the slots; None: a null pointer.
#[cfg(not(pg_from = "16"))]
pub const SLOTS: [Option<&CStr>; 15] = [
    Some(c"mdinit"),
    None,
    Some(c"mdopen"),
    Some(c"mdclose"),
    Some(c"mdcreate"),
    Some(c"mdexists"),
    Some(c"mdunlink"),
    Some(c"mdextend"),
    Some(c"mdprefetch"),
    Some(c"mdread"),
    Some(c"mdwrite"),
    Some(c"mdwriteback"),
    Some(c"mdnblocks"),
    Some(c"mdtruncate"),
    Some(c"mdimmedsync"),
];

/// The functions that stand in the slots; None: a null pointer.
#[cfg(all(pg_from = "16", not(pg_from = "17")))]
pub const SLOTS: [Option<&CStr>; 16] = [
    Some(c"mdinit"),
    None,
    Some(c"mdopen"),
    Some(c"mdclose"),
    Some(c"mdcreate"),
    Some(c"mdexists"),
    Some(c"mdunlink"),
    Some(c"mdextend"),
    Some(c"mdzeroextend"),
    Some(c"mdprefetch"),
    Some(c"mdread"),
    Some(c"mdwrite"),
    Some(c"mdwriteback"),
    Some(c"mdnblocks"),
    Some(c"mdtruncate"),
    Some(c"mdimmedsync"),
];

/// The functions that stand in the slots; None: a null pointer.
#[cfg(all(pg_from = "17", not(pg_from = "18")))]
pub const SLOTS: [Option<&CStr>; 17] = [
    Some(c"mdinit"),
    None,
    Some(c"mdopen"),
    Some(c"mdclose"),
    Some(c"mdcreate"),
    Some(c"mdexists"),
    Some(c"mdunlink"),
    Some(c"mdextend"),
    Some(c"mdzeroextend"),
    Some(c"mdprefetch"),
    Some(c"mdreadv"),
    Some(c"mdwritev"),
    Some(c"mdwriteback"),
    Some(c"mdnblocks"),
    Some(c"mdtruncate"),
    Some(c"mdimmedsync"),
    Some(c"mdregistersync"),
];

/// The functions that stand in the slots; None: a null pointer.
#[cfg(pg_from = "18")]
pub const SLOTS: [Option<&CStr>; 20] = [
    Some(c"mdinit"),
    None,
    Some(c"mdopen"),
    Some(c"mdclose"),
    Some(c"mdcreate"),
    Some(c"mdexists"),
    Some(c"mdunlink"),
    Some(c"mdextend"),
    Some(c"mdzeroextend"),
    Some(c"mdprefetch"),
    Some(c"mdmaxcombine"),
    Some(c"mdreadv"),
    Some(c"mdstartreadv"),
    Some(c"mdwritev"),
    Some(c"mdwriteback"),
    Some(c"mdnblocks"),
    Some(c"mdtruncate"),
    Some(c"mdimmedsync"),
    Some(c"mdregistersync"),
    Some(c"mdfd"),
];

/// Where the function stands in the table.
pub const fn slot(function: &CStr) -> usize {
    let mut at = 0;
    while at < SLOTS.len() {
        if let Some(name) = SLOTS[at]
            && is_same(name, function)
        {
            return at;
        }
        at += 1;
    }
    panic!("this major has no such function")
}

const fn is_same(one: &CStr, other: &CStr) -> bool {
    let (one, other) = (one.to_bytes(), other.to_bytes());
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// Numbers of the slots that are used.
pub mod slots {
    use super::slot;

    pub const UNLINK: usize = slot(c"mdunlink");
    pub const EXTEND: usize = slot(c"mdextend");
    #[cfg(pg_from = "16")]
    pub const ZERO_EXTEND: usize = slot(c"mdzeroextend");
    pub const PREFETCH: usize = slot(c"mdprefetch");
    pub const READ: usize = slot(if cfg!(pg_from = "17") { c"mdreadv" } else { c"mdread" });
    #[cfg(pg_from = "18")]
    pub const START_READ: usize = slot(c"mdstartreadv");
    pub const WRITE: usize = slot(if cfg!(pg_from = "17") { c"mdwritev" } else { c"mdwrite" });
    pub const NBLOCKS: usize = slot(c"mdnblocks");
    pub const TRUNCATE: usize = slot(c"mdtruncate");
}

pub type Unlink = unsafe extern "C-unwind" fn(Locator, ForkNumber, bool);
pub type Extend = unsafe extern "C-unwind" fn(SMgrRelation, ForkNumber, BlockNumber, *const c_void, bool);
#[cfg(pg_from = "16")]
pub type ZeroExtend = unsafe extern "C-unwind" fn(SMgrRelation, ForkNumber, BlockNumber, std::ffi::c_int, bool);
pub type NBlocks = unsafe extern "C-unwind" fn(SMgrRelation, ForkNumber) -> BlockNumber;
/// (relation, fork, old size, new size), or, before the minor releases of 15 to 17 that export `smgrtruncate2`: (relation, fork,
/// new size). In the calling conventions of x86-64 and arm64 both are called with four arguments in registers; only the
/// place of the new size differs.
pub type Truncate = unsafe extern "C-unwind" fn(SMgrRelation, ForkNumber, BlockNumber, BlockNumber);

#[cfg(not(pg_from = "17"))]
mod transfer {
    use super::*;

    pub type Prefetch = unsafe extern "C-unwind" fn(SMgrRelation, ForkNumber, BlockNumber) -> bool;
    pub type Read = unsafe extern "C-unwind" fn(SMgrRelation, ForkNumber, BlockNumber, *mut c_void);
    pub type Write = unsafe extern "C-unwind" fn(SMgrRelation, ForkNumber, BlockNumber, *const c_void, bool);
}

/// Of several blocks, each with a buffer of its own.
#[cfg(pg_from = "17")]
mod transfer {
    use super::*;

    pub type Prefetch = unsafe extern "C-unwind" fn(SMgrRelation, ForkNumber, BlockNumber, std::ffi::c_int) -> bool;
    pub type Read = unsafe extern "C-unwind" fn(SMgrRelation, ForkNumber, BlockNumber, *mut *mut c_void, BlockNumber);
    pub type Write =
        unsafe extern "C-unwind" fn(SMgrRelation, ForkNumber, BlockNumber, *mut *const c_void, BlockNumber, bool);
}

pub use transfer::{Prefetch, Read, Write};

/// As [`Read`], carried out by somebody else later: an I/O worker, or the kernel.
#[cfg(pg_from = "18")]
pub type StartRead = unsafe extern "C-unwind" fn(
    *mut crate::pg::PgAioHandle,
    SMgrRelation,
    ForkNumber,
    BlockNumber,
    *mut *mut c_void,
    BlockNumber,
);

/// Up to 17 exported exactly where `mdtruncate` is told the old size; from 18 on it always is.
pub const TRUNCATE_KNOWS_OLD_SIZE: Option<&CStr> = if cfg!(pg_from = "18") { None } else { Some(c"smgrtruncate2") };
