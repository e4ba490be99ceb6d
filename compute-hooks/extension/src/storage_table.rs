//! Finds the storage manager's function table in the server and puts other functions in.
//!
//! `smgr.c` calls the `md*` functions through one constant table that is not exported. The functions are: so the table is
//! the one place in the executable where exactly this sequence of pointers stands. Where that is depends on how the server was
//! linked: position-independent, it is among what the loader relocates and then protects; otherwise among the constants, which
//! some linkers put beside the code.

use std::ffi::{CStr, c_int, c_void};
use std::fmt;

use crate::storage_abi::{SLOT_COUNT, SLOTS};

/// Why the table was not found or not changed.
#[derive(Debug)]
pub enum TableError {
    /// The server exports no such function.
    NoSymbol(&'static CStr),
    /// The sequence of functions stands in no place or in several.
    Found(usize),
    /// The memory's protection could not be changed.
    Protect(c_int),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TableError::NoSymbol(name) => write!(f, "it exports no function {}", name.to_string_lossy()),
            TableError::Found(count) => write!(
                f,
                "its table of storage manager functions ({SLOT_COUNT} entries) was found {count} times, not once"
            ),
            TableError::Protect(errno) => {
                write!(f, "the table of storage manager functions could not be made writable (error {errno})")
            }
        }
    }
}

/// The table's slots.
pub type Slots = [*mut c_void; SLOT_COUNT];

/// The table's place, and how its memory is to be protected.
#[derive(Clone, Copy)]
pub struct Table {
    address: *mut Slots,
    protection: c_int,
}

/// A part of the executable in memory.
#[derive(Clone, Copy)]
struct Segment {
    start: usize,
    end: usize,
    protection: c_int,
}

/// Load segments of the main executable.
struct Segments {
    found: [Option<Segment>; Self::MAX],
    count: usize,
    /// Read-only after relocation, within one of the others.
    relro: Option<Segment>,
}

impl Segments {
    /// A linked program has about five.
    const MAX: usize = 16;
}

/// The address of a function that the server exports.
pub fn server_symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the main program's handle is always valid and is not closed.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!address.is_null()).then_some(address)
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
        let segments = segments();
        let (data, code): (Vec<Segment>, Vec<Segment>) =
            segments.found.iter().flatten().partition(|segment| segment.protection & libc::PROT_EXEC == 0);
        let (count, found) = match segments.search(&data, &wanted) {
            (0, _) => segments.search(&code, &wanted),
            found => found,
        };
        match (count, found) {
            (1, Some(table)) => Ok(table),
            (count, _) => Err(TableError::Found(count)),
        }
    }

    /// The functions that stand in it.
    pub fn read(self) -> Slots {
        // SAFETY: `find` saw the table there, and the executable is never unmapped.
        unsafe { *self.address }
    }

    /// Puts `slots` in and protects the memory as it was.
    ///
    /// # Safety
    /// Every function must have the signature of the slot it is put into.
    pub unsafe fn write(self, slots: &Slots) -> Result<(), TableError> {
        // SAFETY: no arguments that could be wrong.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let start = self.address as usize / page * page;
        let length = (self.address as usize + size_of::<Slots>()).next_multiple_of(page) - start;
        let protect = |protection| {
            // SAFETY: whole pages of the executable, which stay readable all the time; while they are writable, nothing in
            // them runs.
            let done = unsafe { libc::mprotect(start as *mut c_void, length, protection) };
            if done == 0 {
                Ok(())
            } else {
                Err(TableError::Protect(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)))
            }
        };
        protect(libc::PROT_READ | libc::PROT_WRITE)?;
        // SAFETY: writable as of now; the compiler of the server may have assumed that the table is constant, so each slot
        // is written with one volatile store, and nobody else runs yet.
        unsafe { self.address.write_volatile(*slots) };
        protect(self.protection)
    }
}

impl Segments {
    /// In how many places of these segments the table stands, and the last of them.
    fn search(&self, places: &[Segment], wanted: &Slots) -> (usize, Option<Table>) {
        let mut found = None;
        let mut count = 0;
        for segment in places {
            let align = align_of::<*mut c_void>();
            let mut at = segment.start.next_multiple_of(align);
            while at + size_of::<Slots>() <= segment.end {
                // SAFETY: within a segment that the loader mapped readable, aligned for pointers.
                if unsafe { *(at as *const Slots) } == *wanted {
                    count += 1;
                    found = Some(Table { address: at as *mut Slots, protection: self.protection_at(at, *segment) });
                }
                at += align;
            }
        }
        (count, found)
    }

    fn protection_at(&self, address: usize, segment: Segment) -> c_int {
        match self.relro {
            Some(relro) if (relro.start..relro.end).contains(&address) => libc::PROT_READ,
            _ => segment.protection,
        }
    }
}

fn segments() -> Segments {
    let mut segments = Segments { found: [None; Segments::MAX], count: 0, relro: None };
    // SAFETY: the callback gets `segments` back and nothing keeps it.
    unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut segments).cast()) };
    segments
}

/// Called for the main executable first; returns 1, so for nothing else.
unsafe extern "C" fn collect(info: *mut libc::dl_phdr_info, _size: libc::size_t, data: *mut c_void) -> c_int {
    // SAFETY: the loader passes a valid description; `data` is the caller's.
    let (info, segments) = unsafe { (&*info, &mut *data.cast::<Segments>()) };
    // SAFETY: as the loader says.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    for header in headers {
        let start = (info.dlpi_addr + header.p_vaddr) as usize;
        let is = |flag: u32| header.p_flags & flag != 0;
        let writable = if is(libc::PF_W) { libc::PROT_WRITE } else { 0 };
        let executable = if is(libc::PF_X) { libc::PROT_EXEC } else { 0 };
        let protection = libc::PROT_READ | writable | executable;
        let segment = |length: u64| Segment { start, end: start + length as usize, protection };
        match header.p_type {
            libc::PT_LOAD if is(libc::PF_R) && segments.count < Segments::MAX => {
                segments.found[segments.count] = Some(segment(header.p_filesz));
                segments.count += 1;
            }
            libc::PT_GNU_RELRO => segments.relro = Some(segment(header.p_memsz)),
            _ => {}
        }
    }
    1
}
