//! The file through which sessions hand records to the agent: a ring of bytes for each session, written without a system call.
//!
//! ```text
//!  session ── Slot::push ──► its ring in the mapped file ◄── pread, pwrite of what was taken ── agent (RingReader)
//!                  └── doorbell: only if the agent sleeps, or when half of the ring is full ──► agent
//! ```
//!
//! The agent never maps the file: whoever runs code inside Postgres may cut it short. It trusts nothing in it. Byte table:
//! `docs/formats/statement-log.md`.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// `ARDRING` and the version of the layout.
pub(crate) const MAGIC: u64 = 0x4152_4452_494E_4701;
/// Where the slots' controls begin.
pub(crate) const CONTROLS_AT: usize = 4096;
/// Bytes of a slot's control.
pub(crate) const CONTROL_LEN: usize = 64;
/// Bytes of a slot's ring.
pub const SLOT_LEN: usize = 128 << 10;
/// Most slots of a file.
pub const SLOTS_MAX: u32 = 8192;
/// Bytes before a record in the ring: its length and its checksum.
pub(crate) const FRAME_HEADER_LEN: usize = 8;

/// Where the agent says that it sleeps.
pub(crate) const SLEEPING_AT: u64 = 16;
/// Within a control: how much was ever taken, and the same with its bits inverted.
pub(crate) const TAKEN_IN_CONTROL: usize = 24;
/// Whose the record before that was: when the session began, and its process.
pub(crate) const SESSION_IN_CONTROL: usize = 40;

/// The first page.
#[repr(C)]
struct Header {
    magic: AtomicU64,
    slots: AtomicU32,
    slot_len: AtomicU32,
    sleeping: AtomicU32,
}

/// A slot's control. The inverted copies tell a number from half of it: the agent reads and writes by system calls.
#[repr(C)]
struct Control {
    owner: AtomicU32,
    _reserved: AtomicU32,
    written: AtomicU64,
    written_inverted: AtomicU64,
    taken: AtomicU64,
    taken_inverted: AtomicU64,
    /// The agent's alone.
    session_started_us: AtomicU64,
    session_pid: AtomicU32,
    _rest: [u32; 3],
}

const _: () = assert!(size_of::<Control>() == CONTROL_LEN);
const _: () = assert!(std::mem::offset_of!(Control, taken) == TAKEN_IN_CONTROL);
const _: () = assert!(std::mem::offset_of!(Control, session_started_us) == SESSION_IN_CONTROL);
const _: () = assert!(std::mem::offset_of!(Control, session_pid) == SESSION_IN_CONTROL + 8);
const _: () = assert!(std::mem::offset_of!(Header, sleeping) as u64 == SLEEPING_AT);

/// Where the ring of slot `slot` of `slots` begins.
pub(crate) fn data_at(slots: u32, slot: u32) -> u64 {
    let controls = (slots as usize * CONTROL_LEN).next_multiple_of(4096);
    (CONTROLS_AT + controls) as u64 + u64::from(slot) * SLOT_LEN as u64
}

/// Length of a file with so many slots.
pub fn file_len(slots: u32) -> u64 {
    data_at(slots, slots)
}

/// The mapped file.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    base: *mut u8,
    slots: u32,
}

/// A ring that belongs to this process.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    ring: Ring,
    index: u32,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is in the ring.
    Done {
        /// The agent has to be woken.
        wake: bool,
    },
    /// There is no room until the agent has taken some.
    Full,
}

impl Ring {
    /// The file that is mapped at `base` with `len` bytes; `None` if it is none of this version.
    ///
    /// # Safety
    /// The mapping is shared, readable and writable, aligned to a page, and stays.
    pub unsafe fn attach(base: *mut u8, len: usize) -> Option<Ring> {
        if len < CONTROLS_AT {
            return None;
        }
        // SAFETY: long enough, aligned, and made of atomics.
        let header = unsafe { &*base.cast::<Header>() };
        let slots = header.slots.load(Ordering::Relaxed);
        let is_ours = header.magic.load(Ordering::Relaxed) == MAGIC
            && header.slot_len.load(Ordering::Relaxed) == SLOT_LEN as u32
            && (1..=SLOTS_MAX).contains(&slots)
            && file_len(slots) <= len as u64;
        is_ours.then_some(Ring { base, slots })
    }

    fn header(&self) -> &Header {
        // SAFETY: checked in `attach`.
        unsafe { &*self.base.cast::<Header>() }
    }

    fn control(&self, slot: u32) -> &Control {
        assert!(slot < self.slots, "a slot of this file");
        // SAFETY: within the mapping, as `attach` has checked, and aligned.
        unsafe { &*self.base.add(CONTROLS_AT + slot as usize * CONTROL_LEN).cast::<Control>() }
    }

    /// Takes a free slot for the process `pid`; `None`: there is none.
    pub fn claim(&self, pid: u32) -> Option<Slot> {
        // Not all at the same one.
        let first = pid % self.slots;
        for at in 0..self.slots {
            let index = (first + at) % self.slots;
            let owner = &self.control(index).owner;
            if owner.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Some(Slot { ring: *self, index });
            }
        }
        None
    }
}

impl Slot {
    /// The part of the file that this slot writes to, as offset and length: there must be room for it on the disk.
    pub fn extent(&self) -> (u64, u64) {
        (data_at(self.ring.slots, self.index), SLOT_LEN as u64)
    }

    /// Lets the next process have it. What is in the ring stays.
    pub fn release(&self) {
        self.ring.control(self.index).owner.store(0, Ordering::Release);
    }

    /// Puts a record into the ring.
    pub fn push(&self, record: &[u8]) -> Pushed {
        let control = self.ring.control(self.index);
        let written = control.written.load(Ordering::Relaxed);
        let taken = control.taken.load(Ordering::Acquire);
        let len = FRAME_HEADER_LEN + record.len();
        let used = written.wrapping_sub(taken);
        // Half of a new number, and half of an old one: the next look is better.
        let is_whole = control.taken_inverted.load(Ordering::Acquire) == !taken || taken == 0;
        if !is_whole || used > SLOT_LEN as u64 || len as u64 > SLOT_LEN as u64 - used {
            return Pushed::Full;
        }
        let checksum = crc32fast::hash(record);
        self.copy(written, &(record.len() as u32).to_le_bytes());
        self.copy(written + 4, &checksum.to_le_bytes());
        self.copy(written + FRAME_HEADER_LEN as u64, record);
        let written = written + len as u64;
        fence(Ordering::Release);
        control.written_inverted.store(!written, Ordering::Release);
        control.written.store(written, Ordering::SeqCst);
        // Either we see that the agent sleeps, or it sees what was written when it looks once more before it does.
        fence(Ordering::SeqCst);
        let header = self.ring.header();
        let sleeps = header.sleeping.load(Ordering::SeqCst) != 0 && header.sleeping.swap(0, Ordering::SeqCst) != 0;
        let half = SLOT_LEN as u64 / 2;
        let crosses_half = used < half && used + len as u64 >= half;
        Pushed::Done { wake: sleeps || crosses_half }
    }

    /// Copies into the ring from the position `at`, around its end if need be.
    fn copy(&self, at: u64, bytes: &[u8]) {
        let start = (at % SLOT_LEN as u64) as usize;
        let first = bytes.len().min(SLOT_LEN - start);
        let data = data_at(self.ring.slots, self.index) as usize;
        // SAFETY: within this slot's ring, which is within the mapping; the agent reads what is not announced yet from nowhere.
        unsafe {
            let ring = self.ring.base.add(data);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), ring.add(start), first);
            std::ptr::copy_nonoverlapping(bytes.as_ptr().add(first), ring, bytes.len() - first);
        }
    }
}
