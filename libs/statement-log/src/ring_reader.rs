//! The agent's side of the rings.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::record::RECORD_MAX;
use crate::ring::{
    CONTROL_LEN, CONTROLS_AT, FRAME_HEADER_LEN, MAGIC, SESSION_IN_CONTROL, SLEEPING_AT, SLOT_LEN, SLOTS_MAX,
    TAKEN_IN_CONTROL, data_at, file_len,
};
use crate::segment::SessionKey;

/// Takes records out of the rings.
#[derive(Debug)]
pub struct RingReader {
    file: File,
    slots: u32,
    /// How much was taken of each slot.
    taken: Vec<u64>,
    /// A position whose record did not have its checksum at the last look: its bytes may have been on their way.
    doubted: Vec<Option<u64>>,
    controls: Vec<u8>,
    /// Where to begin: those at the front must not keep the others waiting.
    next: u32,
}

/// Records that were taken and not confirmed.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    records: Vec<(u32, Range<usize>)>,
    ends: Vec<(u32, u64)>,
    /// Stretches of rings that could not be read and are passed over.
    pub damaged: u64,
}

impl Batch {
    /// The slots and the records that were in them, those of one slot in their order.
    pub fn records(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.records.iter().map(|(slot, range)| (*slot, &self.bytes[range.clone()]))
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.damaged == 0
    }
}

impl RingReader {
    /// A new file with `slots` rings, in place of an old one. Only its owner may open it: the caller gives it away.
    pub fn create(path: &Path, slots: u32) -> io::Result<Self> {
        let slots = slots.clamp(1, SLOTS_MAX);
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        file.set_len(file_len(slots))?;
        file.write_all_at(&file_header(slots), 0)?;
        Ok(Self::of(file, slots))
    }

    /// The file that an agent left which was killed; `None`: there is none that could be read.
    pub fn open_left(path: &Path) -> io::Result<Option<Self>> {
        let flags = libc_flags();
        let mut file = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mut header = [0; 16];
        if file.read_exact(&mut header).is_err() {
            return Ok(None);
        }
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let magic = u64::from(word(0)) | u64::from(word(4)) << 32;
        let slots = word(8);
        if magic != MAGIC || word(12) != SLOT_LEN as u32 || !(1..=SLOTS_MAX).contains(&slots) {
            return Ok(None);
        }
        let mut reader = Self::of(file, slots);
        reader.read_controls()?;
        for slot in 0..slots {
            let (taken, inverted) = (reader.number(slot, TAKEN_IN_CONTROL), reader.number(slot, TAKEN_IN_CONTROL + 8));
            reader.taken[slot as usize] = if inverted == !taken { taken } else { 0 };
        }
        Ok(Some(reader))
    }

    fn of(file: File, slots: u32) -> Self {
        let count = slots as usize;
        RingReader {
            file,
            slots,
            taken: vec![0; count],
            doubted: vec![None; count],
            controls: vec![0; count * CONTROL_LEN],
            next: 0,
        }
    }

    /// Whose the last record was that was taken of each slot, as the file said when it was looked at last; process 0: nobody's that is known.
    pub fn sessions(&self) -> Vec<SessionKey> {
        let session = |control: &[u8]| SessionKey {
            started_us: i64::from_ne_bytes(control[..8].try_into().expect("8 bytes")),
            pid: u32::from_ne_bytes(control[8..12].try_into().expect("4 bytes")),
        };
        self.controls.chunks_exact(CONTROL_LEN).map(|control| session(&control[SESSION_IN_CONTROL..])).collect()
    }

    /// The same of those slots alone in which something is left that was not taken.
    pub fn sessions_left(&self) -> Vec<SessionKey> {
        let is_left = |slot: u32| self.number(slot, 8) != self.taken[slot as usize];
        let left = (0..self.slots).zip(self.sessions());
        left.map(|(slot, session)| if is_left(slot) { session } else { SessionKey::default() }).collect()
    }

    /// The file, to be given to its owner.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn read_controls(&mut self) -> io::Result<()> {
        self.file.read_exact_at(&mut self.controls, CONTROLS_AT as u64)
    }

    fn number(&self, slot: u32, field: usize) -> u64 {
        let at = slot as usize * CONTROL_LEN + field;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.controls[at..at + 8]);
        u64::from_ne_bytes(bytes)
    }

    /// What is in the rings, `bytes_max` of it and at most one ring more. It stays there until it is confirmed. A file that was cut
    /// short is an error.
    pub fn take(&mut self, bytes_max: usize) -> io::Result<Batch> {
        self.read_controls()?;
        let mut batch = Batch::default();
        let first = self.next;
        for slot in (first..self.slots).chain(0..first) {
            self.next = (slot + 1) % self.slots;
            let (written, inverted) = (self.number(slot, 8), self.number(slot, 16));
            let taken = self.taken[slot as usize];
            if written == taken || inverted != !written {
                continue;
            }
            self.take_slot(slot, written, &mut batch)?;
            if batch.bytes.len() >= bytes_max {
                break;
            }
        }
        Ok(batch)
    }

    fn take_slot(&mut self, slot: u32, written: u64, batch: &mut Batch) -> io::Result<()> {
        let taken = self.taken[slot as usize];
        let waiting = written.wrapping_sub(taken);
        if waiting > SLOT_LEN as u64 {
            batch.damaged += 1;
            batch.ends.push((slot, written));
            return Ok(());
        }
        let start = batch.bytes.len();
        self.read_ring(slot, taken, waiting as usize, &mut batch.bytes)?;
        let mut at = start;
        let end = batch.bytes.len();
        while at < end {
            let frame = &batch.bytes[at..end];
            let position = taken + (at - start) as u64;
            match parse_frame(frame) {
                Frame::Whole(len) => {
                    let record = at + FRAME_HEADER_LEN..at + FRAME_HEADER_LEN + len;
                    at = record.end;
                    batch.records.push((slot, record));
                }
                Frame::Wrong if self.doubted[slot as usize] != Some(position) => {
                    self.doubted[slot as usize] = Some(position);
                    break;
                }
                Frame::Wrong | Frame::Impossible => {
                    batch.damaged += 1;
                    at = end;
                }
            }
        }
        batch.ends.push((slot, taken + (at - start) as u64));
        Ok(())
    }

    fn read_ring(&self, slot: u32, from: u64, len: usize, out: &mut Vec<u8>) -> io::Result<()> {
        let data = data_at(self.slots, slot);
        let start = (from % SLOT_LEN as u64) as usize;
        let first = len.min(SLOT_LEN - start);
        let at = out.len();
        out.resize(at + len, 0);
        self.file.read_exact_at(&mut out[at..at + first], data + start as u64)?;
        self.file.read_exact_at(&mut out[at + first..], data)
    }

    /// What was taken is kept: its room in the rings is free. `session_of`: whose the last of it was in a slot. What that session says next may
    /// be read by another agent, when it has left the slot or somebody else has it.
    pub fn confirm(&mut self, batch: &Batch, session_of: impl Fn(u32) -> SessionKey) -> io::Result<()> {
        for (slot, taken) in &batch.ends {
            let session = session_of(*slot);
            let mut bytes = [0; 28];
            bytes[..8].copy_from_slice(&taken.to_ne_bytes());
            bytes[8..16].copy_from_slice(&(!taken).to_ne_bytes());
            bytes[16..24].copy_from_slice(&session.started_us.to_ne_bytes());
            bytes[24..].copy_from_slice(&session.pid.to_ne_bytes());
            let at = CONTROLS_AT + *slot as usize * CONTROL_LEN + TAKEN_IN_CONTROL;
            self.file.write_all_at(&bytes, at as u64)?;
            self.taken[*slot as usize] = *taken;
        }
        Ok(())
    }

    /// From now on the next record rings the bell. What was written before that is found by another look.
    pub fn fall_asleep(&self) -> io::Result<()> {
        self.file.write_all_at(&1_u32.to_ne_bytes(), SLEEPING_AT)
    }
}

/// The first bytes of a new file.
fn file_header(slots: u32) -> [u8; 24] {
    let mut header = [0; 24];
    header[..8].copy_from_slice(&MAGIC.to_le_bytes());
    header[8..12].copy_from_slice(&slots.to_le_bytes());
    header[12..16].copy_from_slice(&(SLOT_LEN as u32).to_le_bytes());
    header
}

/// `O_NOFOLLOW | O_NONBLOCK`: the folder belongs to whom Postgres runs as.
fn libc_flags() -> i32 {
    const O_NONBLOCK: i32 = 0o4000;
    #[cfg(target_arch = "aarch64")]
    const O_NOFOLLOW: i32 = 0o100_000;
    #[cfg(not(target_arch = "aarch64"))]
    const O_NOFOLLOW: i32 = 0o400_000;
    O_NOFOLLOW | O_NONBLOCK
}

enum Frame {
    /// A record of this length.
    Whole(usize),
    /// Its checksum is another one.
    Wrong,
    /// It is longer than it can be.
    Impossible,
}

fn parse_frame(bytes: &[u8]) -> Frame {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let (Some(len), Some(checksum)) = (word(0), word(4)) else { return Frame::Impossible };
    let len = len as usize;
    if len > RECORD_MAX {
        return Frame::Impossible;
    }
    match bytes.get(FRAME_HEADER_LEN..FRAME_HEADER_LEN + len) {
        None => Frame::Impossible,
        Some(record) if crc32fast::hash(record) == checksum => Frame::Whole(len),
        Some(_) => Frame::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{Pushed, Ring, Slot};
    use proptest::prelude::*;

    /// A file, its reader, and a session's view of it. The mapping outlives the test.
    fn rings(slots: u32) -> (tempfile::TempDir, RingReader, Ring) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rings");
        let reader = RingReader::create(&path, slots).expect("made");
        let ring = map(reader.file(), slots);
        (folder, reader, ring)
    }

    fn map(file: &File, slots: u32) -> Ring {
        let mapped = memmap2::MmapOptions::new().map_raw(file).expect("mapped");
        let base = mapped.as_mut_ptr();
        std::mem::forget(mapped);
        // SAFETY: a shared mapping of the whole file, never unmapped.
        unsafe { Ring::attach(base, file_len(slots) as usize) }.expect("it is ours")
    }

    fn taken(reader: &mut RingReader) -> Vec<(u32, Vec<u8>)> {
        let batch = reader.take(1 << 20).expect("read");
        reader.confirm(&batch, |_| SessionKey::default()).expect("written");
        batch.records().map(|(slot, record)| (slot, record.to_vec())).collect()
    }

    #[test]
    fn records_come_out_as_they_went_in_around_the_end_of_the_ring() {
        let (_folder, mut reader, ring) = rings(3);
        let slot = ring.claim(7).expect("a slot");
        let mut sent = Vec::new();
        let mut got = Vec::new();
        for number in 0..2000_u32 {
            let record = vec![number as u8; 100 + number as usize % 700];
            while slot.push(&record) == Pushed::Full {
                got.extend(taken(&mut reader));
            }
            sent.push(record);
        }
        got.extend(taken(&mut reader));
        assert_eq!(got.into_iter().map(|(_, record)| record).collect::<Vec<_>>(), sent);
    }

    #[test]
    fn the_bytes_of_a_ring_are_these() {
        let (_folder, mut reader, ring) = rings(2);
        // 7 begins to look at the second slot.
        let slot = ring.claim(7).expect("a slot");
        assert_eq!(slot.push(b"ab"), Pushed::Done { wake: false });
        let hex = |reader: &RingReader, at: u64, len: usize| {
            let mut bytes = vec![0; len];
            reader.file.read_exact_at(&mut bytes, at).expect("it is as long");
            bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        assert_eq!(hex(&reader, 0, 20), "01474e4952445241020000000000020000000000");
        let control =
            |taken: &str| format!("07000000000000000a00000000000000f5ffffffffffffff{taken}{}", "00".repeat(24));
        assert_eq!(hex(&reader, 4096 + 64, 64), control(&"00".repeat(16)));
        assert_eq!(hex(&reader, 4096 + 4096 + 131_072, 10), "020000006d48839e6162");
        assert_eq!(taken(&mut reader), [(1, b"ab".to_vec())]);
        assert_eq!(hex(&reader, 4096 + 64, 64), control("0a00000000000000f5ffffffffffffff"));
        reader.fall_asleep().expect("written");
        assert_eq!(hex(&reader, 16, 4), "01000000");
    }

    #[test]
    fn the_bell_is_rung_when_the_reader_sleeps_and_when_half_is_full() {
        let (_folder, mut reader, ring) = rings(2);
        let slot = ring.claim(7).expect("a slot");
        assert_eq!(slot.push(b"x"), Pushed::Done { wake: false });
        reader.fall_asleep().expect("written");
        assert_eq!(slot.push(b"x"), Pushed::Done { wake: true });
        assert_eq!(slot.push(b"x"), Pushed::Done { wake: false }, "once");
        let long = vec![0; 16 << 10];
        let rung = (0..7).filter(|_| slot.push(&long) == Pushed::Done { wake: true }).count();
        assert_eq!(rung, 1);
        assert_eq!(taken(&mut reader).len(), 10);
    }

    #[test]
    fn slots_are_claimed_by_one_process_each_and_given_back() {
        let (_folder, _reader, ring) = rings(2);
        let first = ring.claim(1).expect("a slot");
        let second = ring.claim(2).expect("a slot");
        assert_ne!(first.extent(), second.extent());
        assert!(ring.claim(3).is_none());
        first.release();
        assert_eq!(ring.claim(3).expect("a slot").extent(), first.extent());
    }

    #[test]
    fn no_session_keeps_the_others_waiting() {
        let (_folder, mut reader, ring) = rings(2);
        let slots = [ring.claim(2).expect("a slot"), ring.claim(3).expect("a slot")];
        let mut seen = Vec::new();
        for _ in 0..4 {
            for slot in slots {
                slot.push(&[0; 100]);
            }
            let batch = reader.take(1).expect("read");
            reader.confirm(&batch, |_| SessionKey::default()).expect("written");
            seen.extend(batch.records().map(|(slot, _)| slot));
        }
        assert_eq!(seen, [0, 1, 1, 0, 0, 1, 1], "in turns");
    }

    #[test]
    fn what_a_killed_reader_left_is_there_for_the_next() {
        let (folder, mut reader, ring) = rings(2);
        let slot: Slot = ring.claim(1).expect("a slot");
        assert_eq!(slot.push(b"seen"), Pushed::Done { wake: false });
        let batch = reader.take(1 << 20).expect("read");
        let whose = SessionKey { pid: 1, started_us: 0x0102_0304_0506_0708 };
        reader.confirm(&batch, |_| whose).expect("written");
        assert_eq!(slot.push(b"left"), Pushed::Done { wake: false });
        // Whoever has the slot then.
        slot.release();
        drop(reader);
        let path = folder.path().join("rings");
        let mut next = RingReader::open_left(&path).expect("read").expect("it is there");
        let mut sessions = next.sessions();
        sessions.sort_unstable();
        assert_eq!(sessions, [SessionKey::default(), whose]);
        assert_eq!(taken(&mut next).into_iter().map(|(_, record)| record).collect::<Vec<_>>(), [b"left"]);
        std::fs::write(&path, b"something else").expect("written");
        assert!(RingReader::open_left(&path).expect("read").is_none());
        assert!(RingReader::open_left(&folder.path().join("none")).expect("read").is_none());
    }

    #[test]
    fn a_damaged_record_is_looked_at_twice_and_passed_over() {
        let (_folder, mut reader, ring) = rings(1);
        let slot = ring.claim(1).expect("a slot");
        slot.push(b"good");
        slot.push(b"torn");
        let (at, _) = slot.extent();
        reader.file.write_all_at(b"X", at + 12 + 8).expect("written");
        let batch = reader.take(1 << 20).expect("read");
        assert_eq!((batch.records().count(), batch.damaged), (1, 0), "it may be on its way");
        reader.confirm(&batch, |_| SessionKey::default()).expect("written");
        let batch = reader.take(1 << 20).expect("read");
        assert_eq!((batch.records().count(), batch.damaged), (0, 1));
        reader.confirm(&batch, |_| SessionKey::default()).expect("written");
        slot.push(b"more");
        assert_eq!(taken(&mut reader).len(), 1);
    }

    proptest! {
        #[test]
        fn nothing_in_the_file_makes_it_panic(
            controls in proptest::collection::vec(any::<u64>(), 16),
            data in proptest::collection::vec(any::<u8>(), 0..4096),
            honest in any::<bool>(),
        ) {
            let (_folder, mut reader, ring) = rings(2);
            let (at, _) = ring.claim(1).expect("a slot").extent();
            reader.file.write_all_at(&data, at).expect("written");
            let mut bytes: Vec<u8> = controls.iter().flat_map(|number| number.to_ne_bytes()).collect();
            if honest {
                // As a program would that wants to be read.
                let written = controls[0] % (2 * SLOT_LEN as u64);
                bytes[8..16].copy_from_slice(&written.to_ne_bytes());
                bytes[16..24].copy_from_slice(&(!written).to_ne_bytes());
            }
            reader.file.write_all_at(&bytes, CONTROLS_AT as u64).expect("written");
            for _ in 0..3 {
                let batch = reader.take(1 << 20).expect("read");
                reader.confirm(&batch, |_| SessionKey::default()).expect("written");
            }
            reader.file.set_len(4100).expect("cut");
            prop_assert!(reader.take(1 << 20).is_err());
        }
    }
}
