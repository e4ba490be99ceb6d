//! Finds the storage manager's function table in the server and puts other functions in.
//!
//! `smgr.c` calls the `md*` functions through one constant table that is not exported. The functions are: so the table is
//! the one place in the executable where exactly this sequence of pointers stands. Where that is depends on how the server was
//! linked: position-independent, it is among what the loader relocates and then protects; otherwise among the constants, which
//! some linkers put beside the code.

use std::ffi::{CStr, c_void};
use std::fmt;
use std::io;

use crate::executable::{Executable, Segment, server_symbol};
use crate::storage_abi::{SLOT_COUNT, SLOTS};

/// Why the table was not found or not changed.
#[derive(Debug)]
pub enum TableError {
    /// The server exports no such function.
    NoSymbol(&'static CStr),
    /// The sequence of functions stands in no place or in several.
    Found(usize),
    /// The memory's protection could not be changed.
    Protect(io::Error),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TableError::NoSymbol(name) => write!(f, "it exports no function {}", name.to_string_lossy()),
            TableError::Found(count) => write!(
                f,
                "its table of storage manager functions ({SLOT_COUNT} entries) was found {count} times, not once"
            ),
            TableError::Protect(error) => {
                write!(f, "the table of storage manager functions could not be made writable: {error}")
            }
        }
    }
}

/// The table's slots.
pub type Slots = [*mut c_void; SLOT_COUNT];

/// The table's place.
pub struct Table {
    address: *mut Slots,
    executable: Executable,
}

impl Table {
    /// Finds the table.
    pub fn find() -> Result<Table, TableError> {
        let mut wanted: Slots = [std::ptr::null_mut(); SLOT_COUNT];
        for (slot, name) in wanted.iter_mut().zip(SLOTS) {
            if let Some(name) = name {
                *slot = server_symbol(name).ok_or(TableError::NoSymbol(name))?;
            }
        }
        let executable = Executable::new();
        let found = match search(executable.segments().filter(|segment| !segment.is_code()), &wanted) {
            (0, _) => search(executable.segments().filter(Segment::is_code), &wanted),
            found => found,
        };
        match found {
            (1, Some(address)) => Ok(Table { address, executable }),
            (count, _) => Err(TableError::Found(count)),
        }
    }

    /// The functions that stand in it.
    pub fn read(&self) -> Slots {
        // SAFETY: `find` saw the table there, and the executable is never unmapped.
        unsafe { *self.address }
    }

    /// Puts `slots` in.
    ///
    /// # Safety
    /// Every function must have the signature of the slot it is put into.
    pub unsafe fn write(&self, slots: &Slots) -> Result<(), TableError> {
        // SAFETY: the caller's promise.
        unsafe { self.executable.replace(self.address, *slots) }.map_err(TableError::Protect)
    }
}

/// In how many places of these segments the table stands, and the last of them.
fn search(places: impl Iterator<Item = Segment>, wanted: &Slots) -> (usize, Option<*mut Slots>) {
    let mut found = None;
    let mut count = 0;
    for segment in places {
        let align = align_of::<*mut c_void>();
        let mut at = segment.start.next_multiple_of(align);
        while at + size_of::<Slots>() <= segment.end {
            // SAFETY: within a segment that the loader mapped readable, aligned for pointers.
            if unsafe { *(at as *const Slots) } == *wanted {
                count += 1;
                found = Some(at as *mut Slots);
            }
            at += align;
        }
    }
    (count, found)
}
