//! What stands in the storage manager's table instead of the `md*` functions.
//!
//! Only blocks that the presence map calls absent are treated specially; everything else goes on to Postgres's function at
//! once. Sizes and existence need no help: all files are there, with holes.

use std::ffi::{CStr, c_void};
use std::mem::transmute;
use std::ops::Range;
use std::path::Path;

use ardent_presence_map::{Counters, Entry, PresenceMap};
use ardent_types::{ForkNumber, Lsn, RelTag};

use crate::chunk_locks;
use crate::claims::Claims;
use crate::executable::server_symbol;
use crate::filler::Place;
use crate::pg::{self, BlockNumber, SMgrRelation};
use crate::policy;
use crate::relation::{self, Locator};
use crate::report::refuse_start;
use crate::settings;
use crate::storage_abi::{self, slots};
use crate::storage_table::Table;
use crate::transfers;
use crate::wal_brake;

/// Postgres's own functions.
pub struct Originals {
    pub unlink: storage_abi::Unlink,
    pub extend: storage_abi::Extend,
    #[cfg(pg_from = "16")]
    pub zero_extend: storage_abi::ZeroExtend,
    pub prefetch: storage_abi::Prefetch,
    pub read: storage_abi::Read,
    #[cfg(pg_from = "18")]
    pub start_read: storage_abi::StartRead,
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
        let mut table_slots = table.read();
        let original = Originals {
            unlink: transmute::<*mut _, storage_abi::Unlink>(table_slots[slots::UNLINK]),
            extend: transmute::<*mut _, storage_abi::Extend>(table_slots[slots::EXTEND]),
            #[cfg(pg_from = "16")]
            zero_extend: transmute::<*mut _, storage_abi::ZeroExtend>(table_slots[slots::ZERO_EXTEND]),
            prefetch: transmute::<*mut _, storage_abi::Prefetch>(table_slots[slots::PREFETCH]),
            read: transmute::<*mut _, storage_abi::Read>(table_slots[slots::READ]),
            #[cfg(pg_from = "18")]
            start_read: transmute::<*mut _, storage_abi::StartRead>(table_slots[slots::START_READ]),
            write: transmute::<*mut _, storage_abi::Write>(table_slots[slots::WRITE]),
            nblocks: transmute::<*mut _, storage_abi::NBlocks>(table_slots[slots::NBLOCKS]),
            truncate: transmute::<*mut _, storage_abi::Truncate>(table_slots[slots::TRUNCATE]),
            truncate_knows_old_size: storage_abi::TRUNCATE_KNOWS_OLD_SIZE
                .is_none_or(|name| server_symbol(name).is_some()),
        };
        let Some(claims) = Claims::make(map) else {
            refuse_start(format_args!("not enough memory for a bit per block of the presence map"));
        };
        STORAGE = Some(Storage { original, map, base_lsn: map.base_lsn(), claims });
        table_slots[slots::UNLINK] = unlink as storage_abi::Unlink as *mut _;
        table_slots[slots::EXTEND] = extend as storage_abi::Extend as *mut _;
        #[cfg(pg_from = "16")]
        {
            table_slots[slots::ZERO_EXTEND] = zero_extend as storage_abi::ZeroExtend as *mut _;
        }
        table_slots[slots::PREFETCH] = transfers::prefetch as storage_abi::Prefetch as *mut _;
        table_slots[slots::READ] = transfers::read as storage_abi::Read as *mut _;
        #[cfg(pg_from = "18")]
        {
            table_slots[slots::START_READ] = transfers::start_read as storage_abi::StartRead as *mut _;
        }
        table_slots[slots::WRITE] = transfers::write as storage_abi::Write as *mut _;
        table_slots[slots::TRUNCATE] = truncate as storage_abi::Truncate as *mut _;
        if let Err(error) = table.write(&table_slots) {
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

/// The map's entry of a relation fork. None: temporary, or nothing of it was ever absent.
pub fn find(storage: &'static Storage, locator: &Locator, fork: pg::ForkNumber) -> Option<(RelTag, Entry<'static>)> {
    let rel = relation::tag(locator, fork)?;
    Some((rel, storage.map.find(&rel)?))
}

/// The set-up in a hook: hooks exist only after it was made.
pub fn installed() -> &'static Storage {
    storage().expect("the table is changed after the set-up is stored")
}

/// Lets Postgres write `blocks` through `original`, and remembers that they are here. Written without having been read, or
/// extended over, they were zeroed or restored whole.
///
/// # Safety
/// Only in a process that Postgres runs; an error raised by `original` releases the locks.
pub unsafe fn write_absent(
    storage: &Storage,
    entry: &Entry<'_>,
    blocks: Range<BlockNumber>,
    original: impl FnOnce() + Copy,
) {
    // SAFETY: nothing here has a destructor.
    unsafe {
        let locks = chunk_locks::acquire_range(entry, blocks.clone());
        original();
        let mut written = 0;
        for block in blocks {
            if entry.is_absent(block) {
                entry.set_present(block);
                written += 1;
            }
        }
        chunk_locks::release_range(locks);
        Counters::add(&storage.map.counters().writes_absent, written);
    }
}

unsafe extern "C-unwind" fn extend(
    handle: SMgrRelation,
    fork: pg::ForkNumber,
    block: BlockNumber,
    page: *const c_void,
    skip_fsync: bool,
) {
    let storage = installed();
    // SAFETY: Postgres passes a valid handle and page.
    unsafe {
        grow(storage, handle, fork, block..block.saturating_add(1), || {
            (storage.original.extend)(handle, fork, block, page, skip_fsync);
        });
    }
}

#[cfg(pg_from = "16")]
unsafe extern "C-unwind" fn zero_extend(
    handle: SMgrRelation,
    fork: pg::ForkNumber,
    block: BlockNumber,
    count: std::ffi::c_int,
    skip_fsync: bool,
) {
    let storage = installed();
    // SAFETY: Postgres passes a valid handle.
    unsafe {
        grow(storage, handle, fork, block..block.saturating_add(count.unsigned_abs()), || {
            (storage.original.zero_extend)(handle, fork, block, count, skip_fsync);
        });
    }
}

unsafe fn grow(
    storage: &'static Storage,
    handle: SMgrRelation,
    fork: pg::ForkNumber,
    blocks: Range<BlockNumber>,
    original: impl FnOnce() + Copy,
) {
    // SAFETY: as in `extend`.
    unsafe {
        let locator = relation::of(handle);
        if relation::is_shared(&locator) {
            policy::before_growth();
            wal_brake::hold_until_acknowledged(Place::StorageManager);
        }
        match find(storage, &locator, fork) {
            Some((_, entry)) if blocks.clone().any(|block| entry.is_absent(block)) => {
                write_absent(storage, &entry, blocks, original);
            }
            _ => original(),
        }
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
        let found = find(storage, &relation::of(handle), fork);
        let Some((_, entry)) = found.filter(|(_, entry)| nblocks < entry.base_nblocks()) else {
            return (storage.original.truncate)(handle, fork, first_size, second_size);
        };
        let locks = chunk_locks::acquire_range(&entry, nblocks..entry.base_nblocks());
        (storage.original.truncate)(handle, fork, first_size, second_size);
        entry.truncate(nblocks);
        chunk_locks::release_range(locks);
    }
}

unsafe extern "C-unwind" fn unlink(locator: Locator, fork: pg::ForkNumber, is_redo: bool) {
    let storage = installed();
    for known in ForkNumber::ALL {
        let concerned = fork == pg::InvalidForkNumber || fork == known as pg::ForkNumber;
        if let Some((_, entry)) = find(storage, &locator, known as pg::ForkNumber).filter(|_| concerned) {
            // SAFETY: raises nothing.
            unsafe { forget(&entry) };
        }
    }
    // SAFETY: Postgres's arguments, unchanged.
    unsafe { (storage.original.unlink)(locator, fork, is_redo) };
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
