//! The server's executable in memory: where its parts are, and places in it that are given other values.
//!
//! What the loader relocates it protects afterwards; a place in there is made writable for the moment in which it changes.

use std::ffi::{CStr, c_int, c_void};
use std::io;

/// A part of the executable in memory.
#[derive(Clone, Copy)]
pub struct Segment {
    /// Its first byte.
    pub start: usize,
    /// Where what the file has of it ends.
    pub end: usize,
    /// Where it begins in the file, in bytes.
    pub file_offset: u64,
    protection: c_int,
}

impl Segment {
    /// Whether it holds code.
    pub fn is_code(&self) -> bool {
        self.protection & libc::PROT_EXEC != 0
    }
}

/// The main executable, as it was loaded.
pub struct Executable {
    found: [Option<Segment>; Self::SEGMENTS_MAX],
    count: usize,
    /// Read-only after relocation, within one of the others.
    relro: Option<Segment>,
    /// What is added to the addresses in its file.
    offset: usize,
    /// What the loader is told; ends with an entry of the tag 0.
    dynamic: *const Dynamic,
}

/// `Elf64_Dyn`.
#[repr(C)]
struct Dynamic {
    tag: i64,
    value: u64,
}

/// `Elf64_Rela`.
#[repr(C)]
struct Relocation {
    place: u64,
    info: u64,
    addend: i64,
}

/// Tags of [`Dynamic`] (System V ABI, "Dynamic Section").
mod tags {
    pub const PLT_RELOCATIONS_LEN: i64 = 2;
    pub const STRINGS: i64 = 5;
    pub const SYMBOLS: i64 = 6;
    pub const RELOCATIONS: i64 = 7;
    pub const RELOCATIONS_LEN: i64 = 8;
    pub const PLT_RELOCATIONS: i64 = 23;
}

/// Kinds of relocation that put a function's address into a place: `GLOB_DAT` and `JUMP_SLOT`.
#[cfg(target_arch = "x86_64")]
const ADDRESS_RELOCATIONS: [u32; 2] = [6, 7];
#[cfg(target_arch = "aarch64")]
const ADDRESS_RELOCATIONS: [u32; 2] = [1025, 1026];

/// The address of a function that the server exports.
pub fn server_symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the main program's handle is always valid and is not closed.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

impl Executable {
    /// A linked program has about five.
    const SEGMENTS_MAX: usize = 16;

    /// Looks at it.
    pub fn new() -> Executable {
        let mut executable = Executable {
            found: [None; Self::SEGMENTS_MAX],
            count: 0,
            relro: None,
            offset: 0,
            dynamic: std::ptr::null(),
        };
        // SAFETY: the callback gets `executable` back and nothing keeps it.
        unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut executable).cast()) };
        executable
    }

    /// What was loaded of it.
    pub fn segments(&self) -> impl Iterator<Item = Segment> {
        self.found.iter().flatten().copied()
    }

    /// The places from which it takes the address of a function of a library when it calls it; at most `N`.
    pub fn imports<const N: usize>(&self, name: &CStr) -> [Option<*mut *mut c_void>; N] {
        let mut places = [None; N];
        let (Some(symbols), Some(strings)) = (self.table(tags::SYMBOLS), self.table(tags::STRINGS)) else {
            return places;
        };
        let lists = [(tags::PLT_RELOCATIONS, tags::PLT_RELOCATIONS_LEN), (tags::RELOCATIONS, tags::RELOCATIONS_LEN)];
        let mut count = 0;
        for (list, len) in lists {
            let (Some(list), Some(len)) = (self.table(list), self.value(len)) else { continue };
            for at in 0..len as usize / size_of::<Relocation>() {
                // SAFETY: the loader went through the same lists with the same lengths.
                unsafe {
                    let relocation = &*(list as *const Relocation).add(at);
                    if !ADDRESS_RELOCATIONS.contains(&(relocation.info as u32)) {
                        continue;
                    }
                    let symbol = &*(symbols as *const libc::Elf64_Sym).add((relocation.info >> 32) as usize);
                    let symbol_name = (strings + symbol.st_name as usize) as *const std::ffi::c_char;
                    if CStr::from_ptr(symbol_name) == name && count < N {
                        places[count] = Some((self.offset + relocation.place as usize) as *mut *mut c_void);
                        count += 1;
                    }
                }
            }
        }
        places
    }

    /// Puts `value` in a place of the executable and protects the memory as it was.
    ///
    /// # Safety
    /// `place` is in one of the segments, and the server can do with the other value.
    pub unsafe fn replace<T>(&self, place: *mut T, value: T) -> io::Result<()> {
        // SAFETY: no arguments that could be wrong.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let start = place as usize / page * page;
        let len = (place as usize + size_of::<T>()).next_multiple_of(page) - start;
        let protect = |protection| {
            // SAFETY: whole pages of the executable, which stay readable all the time; while they are writable, nothing in
            // them runs.
            let done = unsafe { libc::mprotect(start as *mut c_void, len, protection) };
            if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        };
        protect(libc::PROT_READ | libc::PROT_WRITE)?;
        // SAFETY: writable as of now; the compiler of the server may have assumed that the place is constant, so it is
        // written with one volatile store, and nobody else runs yet.
        unsafe { place.write_volatile(value) };
        protect(self.protection_at(place as usize))
    }

    fn protection_at(&self, address: usize) -> c_int {
        match self.relro {
            Some(relro) if (relro.start..relro.end).contains(&address) => libc::PROT_READ,
            _ => {
                let segment = self.segments().find(|segment| (segment.start..segment.end).contains(&address));
                segment.map_or(libc::PROT_READ, |segment| segment.protection)
            }
        }
    }

    fn value(&self, tag: i64) -> Option<u64> {
        let mut at = self.dynamic;
        if at.is_null() {
            return None;
        }
        loop {
            // SAFETY: the list has an end.
            let entry = unsafe { &*at };
            match entry.tag {
                0 => return None,
                found if found == tag => return Some(entry.value),
                // SAFETY: it was not the last one.
                _ => at = unsafe { at.add(1) },
            }
        }
    }

    /// The address of what the entry names: some loaders put it in place of the one in the file.
    fn table(&self, tag: i64) -> Option<usize> {
        let value = self.value(tag)? as usize;
        Some(if value < self.offset { value + self.offset } else { value })
    }
}

/// Called for the main executable first; returns 1, so for nothing else.
unsafe extern "C" fn collect(info: *mut libc::dl_phdr_info, _size: libc::size_t, data: *mut c_void) -> c_int {
    // SAFETY: the loader passes a valid description; `data` is the caller's.
    let (info, executable) = unsafe { (&*info, &mut *data.cast::<Executable>()) };
    executable.offset = info.dlpi_addr as usize;
    // SAFETY: as the loader says.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    for header in headers {
        let start = (info.dlpi_addr + header.p_vaddr) as usize;
        let is = |flag: u32| header.p_flags & flag != 0;
        let writable = if is(libc::PF_W) { libc::PROT_WRITE } else { 0 };
        let executable_flag = if is(libc::PF_X) { libc::PROT_EXEC } else { 0 };
        let protection = libc::PROT_READ | writable | executable_flag;
        let file_offset = header.p_offset;
        let segment = |len: u64| Segment { start, end: start + len as usize, file_offset, protection };
        match header.p_type {
            libc::PT_LOAD if is(libc::PF_R) && executable.count < Executable::SEGMENTS_MAX => {
                executable.found[executable.count] = Some(segment(header.p_filesz));
                executable.count += 1;
            }
            libc::PT_GNU_RELRO => executable.relro = Some(segment(header.p_memsz)),
            libc::PT_DYNAMIC => executable.dynamic = start as *const Dynamic,
            _ => {}
        }
    }
    1
}
