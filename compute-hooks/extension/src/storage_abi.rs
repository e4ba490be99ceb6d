//! The storage manager's table in this major version: its slots in order and their functions' types.
//!
//! A new major version is one more module here: 16 adds `zeroextend`; 17 has `readv`, `writev` and `registersync`; 18 adds
//! `maxcombine`, `startreadv` and `fd`, and reads only through `startreadv`.

use std::ffi::{CStr, c_char};

use crate::pg::{BlockNumber, ForkNumber, RelFileNodeBackend, SMgrRelation};

/// How many slots the table has.
pub const SLOT_COUNT: usize = 15;

/// The functions that stand in the slots; None: a null pointer.
pub const SLOTS: [Option<&CStr>; SLOT_COUNT] = [
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

/// Numbers of the slots that are used.
pub mod slot {
    pub const UNLINK: usize = 6;
    pub const EXTEND: usize = 7;
    pub const PREFETCH: usize = 8;
    pub const READ: usize = 9;
    pub const WRITE: usize = 10;
    pub const NBLOCKS: usize = 12;
    pub const TRUNCATE: usize = 13;
}

pub type Unlink = unsafe extern "C-unwind" fn(RelFileNodeBackend, ForkNumber, bool);
pub type Extend = unsafe extern "C-unwind" fn(SMgrRelation, ForkNumber, BlockNumber, *mut c_char, bool);
pub type Prefetch = unsafe extern "C-unwind" fn(SMgrRelation, ForkNumber, BlockNumber) -> bool;
pub type Read = unsafe extern "C-unwind" fn(SMgrRelation, ForkNumber, BlockNumber, *mut c_char);
pub type Write = unsafe extern "C-unwind" fn(SMgrRelation, ForkNumber, BlockNumber, *mut c_char, bool);
pub type NBlocks = unsafe extern "C-unwind" fn(SMgrRelation, ForkNumber) -> BlockNumber;
/// Since the minor releases that export `smgrtruncate2`: (relation, fork, old size, new size). Before: (relation, fork,
/// new size). In the calling conventions of x86-64 and arm64 both are called with four arguments in registers; only the
/// place of the new size differs.
pub type Truncate = unsafe extern "C-unwind" fn(SMgrRelation, ForkNumber, BlockNumber, BlockNumber);

/// Exported exactly where `mdtruncate` is told the old size.
pub const TRUNCATE_KNOWS_OLD_SIZE: &CStr = c"smgrtruncate2";
