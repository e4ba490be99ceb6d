//! What stands in the storage manager's table instead of the `md*` functions.
//!
//! Only blocks that the presence map calls absent are treated specially; everything else goes on to Postgres's function at
//! once. Sizes and existence need no help: all files are there, with holes.

use std::ffi::{CStr, c_char};
use std::mem::transmute;
use std::path::Path;

use ardent_presence_map::{Counters, Entry, PresenceMap};
use ardent_types::{ForkNumber, Lsn, RelTag};

use crate::chunk_locks;
use crate::claims::Claims;
use crate::fetcher::Target;
use crate::filler;
use crate::pg::{self, BlockNumber, RelFileNodeBackend, SMgrRelation};
use crate::policy;
use crate::report::refuse_start;
use crate::settings;
use crate::storage_abi::{self, slot};
use crate::storage_table::{Table, server_symbol};
use crate::wal_brake;

/// Postgres's own functions.
pub struct Originals {
    pub unlink: storage_abi::Unlink,
    pub extend: storage_abi::Extend,
    pub prefetch: storage_abi::Prefetch,
    pub read: storage_abi::Read,
    pub write: storage_abi::Write,
    pub nblocks: storage_abi::NBlocks,
    pub truncate: storage_abi::Truncate,
    /// Whether `truncate` is told the old size before the new one.
    truncate_knows_old_size: bool,
}

/// Everything the hooks need, set up once in the postmaster.
pub struct Storage {
    /// Postgres's own functions.
    pub original: Originals,
    /// Which blocks are absent.
    pub map: &'static PresenceMap,
    /// What they were read at first.
    base_lsn: Lsn,
    /// Which of them somebody has asked for.
    pub claims: Claims,
}

impl Storage {
    /// What absent blocks are read at. It moves up while the server runs: what is absent still is the same there.
    pub fn read_lsn(&self) -> Lsn {
        self.base_lsn.max(policy::read_lsn())
    }
}

static mut STORAGE: Option<Storage> = None;

/// The set-up; None: this data directory is complete and nothing is hooked.
pub fn storage() -> Option<&'static Storage> {
    let place = &raw const STORAGE;
    // SAFETY: written once, in the postmaster before there are children.
    unsafe { (*place).as_ref() }
}

/// The map, if there is one.
pub fn presence_map() -> Option<&'static PresenceMap> {
    storage().map(|storage| storage.map)
}

/// Opens the map and changes the table.
///
/// # Safety
/// Only from `_PG_init` in the postmaster, with nothing alive that has a destructor.
pub unsafe fn install() {
    let path = settings::presence_map();
    if path.is_empty() {
        return;
    }
    let map = open_map(path);
    // SAFETY: the functions put in have the types of their slots; nobody else runs yet.
    unsafe {
        let table = match Table::find() {
            Ok(table) => table,
            Err(error) => refuse_start(format_args!("cannot run on this build of Postgres: {error}")),
        };
        let mut slots = table.read();
        let original = Originals {
            unlink: transmute::<*mut _, storage_abi::Unlink>(slots[slot::UNLINK]),
            extend: transmute::<*mut _, storage_abi::Extend>(slots[slot::EXTEND]),
            prefetch: transmute::<*mut _, storage_abi::Prefetch>(slots[slot::PREFETCH]),
            read: transmute::<*mut _, storage_abi::Read>(slots[slot::READ]),
            write: transmute::<*mut _, storage_abi::Write>(slots[slot::WRITE]),
            nblocks: transmute::<*mut _, storage_abi::NBlocks>(slots[slot::NBLOCKS]),
            truncate: transmute::<*mut _, storage_abi::Truncate>(slots[slot::TRUNCATE]),
            truncate_knows_old_size: server_symbol(storage_abi::TRUNCATE_KNOWS_OLD_SIZE).is_some(),
        };
        let Some(claims) = Claims::make(map) else {
            refuse_start(format_args!("not enough memory for a bit per block of the presence map"));
        };
        STORAGE = Some(Storage { original, map, base_lsn: map.base_lsn(), claims });
        slots[slot::UNLINK] = unlink as storage_abi::Unlink as *mut _;
        slots[slot::EXTEND] = extend as storage_abi::Extend as *mut _;
        slots[slot::PREFETCH] = prefetch as storage_abi::Prefetch as *mut _;
        slots[slot::READ] = read as storage_abi::Read as *mut _;
        slots[slot::WRITE] = write as storage_abi::Write as *mut _;
        slots[slot::TRUNCATE] = truncate as storage_abi::Truncate as *mut _;
        if let Err(error) = table.write(&slots) {
            refuse_start(format_args!("cannot run on this system: {error}"));
        }
    }
}

fn open_map(path: &CStr) -> &'static PresenceMap {
    let text = path.to_str().unwrap_or("?");
    let opened = PresenceMap::open(Path::new(text));
    let map = match opened {
        // Every process of this server uses it to its end.
        Ok(map) => &*Box::leak(Box::new(map)),
        // SAFETY: the error is leaked with the process.
        Err(error) => unsafe { refuse_start(format_args!("{error}; make the data directory anew")) },
    };
    let stated = settings::base_lsn().to_str().ok().and_then(|text| text.parse::<Lsn>().ok());
    if stated != Some(map.base_lsn()) {
        // SAFETY: nothing alive has a destructor.
        unsafe {
            refuse_start(format_args!(
                "ardent.base_lsn is \"{}\", but the presence map {text} is for {}",
                settings::base_lsn().to_str().unwrap_or("?"),
                map.base_lsn()
            ))
        }
    }
    map
}

/// Postgres's handle of a relation that is not temporary.
///
/// # Safety
/// Only in a process that Postgres runs.
pub unsafe fn open(rel: &RelTag) -> SMgrRelation {
    let node = pg::RelFileNode { spcNode: rel.spcnode, dbNode: rel.dbnode, relNode: rel.relnode };
    // SAFETY: makes or finds the handle; opens no file.
    unsafe { pg::smgropen(node, pg::INVALID_BACKEND) }
}

fn tag(node: &RelFileNodeBackend, fork: pg::ForkNumber) -> Option<RelTag> {
    if node.backend != pg::INVALID_BACKEND {
        return None;
    }
    let pg::RelFileNode { spcNode: spcnode, dbNode: dbnode, relNode: relnode } = node.node;
    let fork = ForkNumber::from_raw(u8::try_from(fork).ok()?)?;
    Some(RelTag { spcnode, dbnode, relnode, fork })
}

/// The map's entry of a relation fork. None: temporary, or nothing of it was ever absent.
fn find(
    storage: &'static Storage,
    node: &RelFileNodeBackend,
    fork: pg::ForkNumber,
) -> Option<(RelTag, Entry<'static>)> {
    let rel = tag(node, fork)?;
    Some((rel, storage.map.find(&rel)?))
}

/// The set-up in a hook: hooks exist only after it was made.
fn installed() -> &'static Storage {
    storage().expect("the table is changed after the set-up is stored")
}

unsafe extern "C-unwind" fn read(handle: SMgrRelation, fork: pg::ForkNumber, block: BlockNumber, out: *mut c_char) {
    let storage = installed();
    // SAFETY: Postgres passes a valid handle and room for a page.
    unsafe {
        let found = find(storage, &(*handle).smgr_rnode, fork);
        if let Some((rel, entry)) = found.filter(|(_, entry)| entry.is_absent(block)) {
            let nblocks = (storage.original.nblocks)(handle, fork);
            // A block past the file's end is Postgres's error to report; filling it would lengthen the file.
            let target = Target { handle, entry, rel, block };
            if block < nblocks && filler::obtain(storage, &target, nblocks, out) {
                return;
            }
        }
        (storage.original.read)(handle, fork, block, out);
    }
}

unsafe extern "C-unwind" fn prefetch(handle: SMgrRelation, fork: pg::ForkNumber, block: BlockNumber) -> bool {
    let storage = installed();
    // SAFETY: Postgres passes a valid handle.
    unsafe {
        let found = find(storage, &(*handle).smgr_rnode, fork);
        match found.filter(|(_, entry)| entry.is_absent(block)) {
            Some(_) if pg::in_critical_section() => false,
            Some((rel, entry)) => {
                let inside = block < (storage.original.nblocks)(handle, fork);
                inside && filler::prefetch(storage, &Target { handle, entry, rel, block })
            }
            None => (storage.original.prefetch)(handle, fork, block),
        }
    }
}

unsafe extern "C-unwind" fn write(
    handle: SMgrRelation,
    fork: pg::ForkNumber,
    block: BlockNumber,
    page: *mut c_char,
    skip_fsync: bool,
) {
    let storage = installed();
    // SAFETY: Postgres passes a valid handle and page; an error raised by the write releases the lock.
    unsafe {
        let found = find(storage, &(*handle).smgr_rnode, fork);
        let Some((_, entry)) = found.filter(|(_, entry)| entry.is_absent(block)) else {
            return (storage.original.write)(handle, fork, block, page, skip_fsync);
        };
        let lock = chunk_locks::acquire(&entry, block);
        (storage.original.write)(handle, fork, block, page, skip_fsync);
        entry.set_present(block);
        chunk_locks::release(lock);
        Counters::add(&storage.map.counters().writes_absent, 1);
    }
}

unsafe extern "C-unwind" fn extend(
    handle: SMgrRelation,
    fork: pg::ForkNumber,
    block: BlockNumber,
    page: *mut c_char,
    skip_fsync: bool,
) {
    let storage = installed();
    // SAFETY: as in `write`.
    unsafe {
        if (*handle).smgr_rnode.backend == pg::INVALID_BACKEND {
            policy::before_growth();
            wal_brake::hold_until_acknowledged();
        }
        let found = find(storage, &(*handle).smgr_rnode, fork);
        let Some((_, entry)) = found.filter(|(_, entry)| entry.is_absent(block)) else {
            return (storage.original.extend)(handle, fork, block, page, skip_fsync);
        };
        let lock = chunk_locks::acquire(&entry, block);
        (storage.original.extend)(handle, fork, block, page, skip_fsync);
        entry.set_present(block);
        chunk_locks::release(lock);
        Counters::add(&storage.map.counters().writes_absent, 1);
    }
}

/// Often called in a critical section: nothing here raises but Postgres's own function. The locks are held over it, so that
/// nobody writes an old page past the new end, and the map changes only when the file has.
unsafe extern "C-unwind" fn truncate(
    handle: SMgrRelation,
    fork: pg::ForkNumber,
    first_size: BlockNumber,
    second_size: BlockNumber,
) {
    let storage = installed();
    let nblocks = if storage.original.truncate_knows_old_size { second_size } else { first_size };
    // SAFETY: Postgres passes a valid handle; an error raised by the truncation releases the locks.
    unsafe {
        let found = find(storage, &(*handle).smgr_rnode, fork);
        let Some((_, entry)) = found.filter(|(_, entry)| nblocks < entry.base_nblocks()) else {
            return (storage.original.truncate)(handle, fork, first_size, second_size);
        };
        let locks = chunk_locks::acquire_range(&entry, nblocks..entry.base_nblocks());
        (storage.original.truncate)(handle, fork, first_size, second_size);
        entry.truncate(nblocks);
        chunk_locks::release_range(locks);
    }
}

unsafe extern "C-unwind" fn unlink(node: RelFileNodeBackend, fork: pg::ForkNumber, is_redo: bool) {
    let storage = installed();
    for known in ForkNumber::ALL {
        let concerned = fork == pg::InvalidForkNumber || fork == known as pg::ForkNumber;
        if let Some((_, entry)) = find(storage, &node, known as pg::ForkNumber).filter(|_| concerned) {
            // SAFETY: raises nothing.
            unsafe { forget(&entry) };
        }
    }
    // SAFETY: Postgres's arguments, unchanged.
    unsafe { (storage.original.unlink)(node, fork, is_redo) };
}

/// Nothing of this relation fork will be fetched any more.
unsafe fn forget(entry: &Entry<'_>) {
    let base_nblocks = entry.base_nblocks();
    if base_nblocks > 0 {
        // SAFETY: no other of these locks is held; nothing between raises.
        unsafe {
            let locks = chunk_locks::acquire_range(entry, 0..base_nblocks);
            entry.truncate(0);
            chunk_locks::release_range(locks);
        }
    }
}

/// A database's folder is gone, without a call for each of its relations.
///
/// # Safety
/// Only in a process that Postgres runs.
pub unsafe fn forget_database(storage: &Storage, database: pg::Oid) {
    for entry in storage.map.entries().filter(|entry| entry.rel().dbnode == database) {
        // SAFETY: the caller's promise.
        unsafe { forget(&entry) };
    }
}
