//! Writes a log: appends blocks, closes segments, and drops the oldest.
//!
//! Invariant: whatever is killed in between, what was appended is read again, up to the last whole block.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::record::{RECORD_MAX, Record};
use crate::redact::redact;
use crate::segment::{
    HEADER_LEN, SEGMENT_LEN, Segment, SegmentFile, SegmentHeader, SessionKey, pack, read_header, segment_path, segments,
};

/// Less than this is not kept of a log: the newest segments have to fit.
pub const LOG_LEN_MIN: u64 = 8 << 20;

/// Appends to the log in one folder. One process at a time has one.
#[derive(Debug)]
pub struct LogWriter {
    folder: PathBuf,
    header: SegmentHeader,
    number: u64,
    file: File,
    /// Length of the file up to the end of the last block that was written whole.
    len: u64,
    len_max: u64,
    /// Who the session of each slot is.
    contexts: HashMap<u32, Arc<Context>>,
    /// What of that stands in this segment.
    written: HashMap<u32, Arc<Context>>,
}

#[derive(Debug)]
struct Context {
    key: SessionKey,
    /// What it said; empty: that is not known.
    record: Vec<u8>,
}

/// A record on its way into a block.
struct Item {
    at_us: i64,
    slot: u32,
    context: Option<Arc<Context>>,
    record: Vec<u8>,
}

impl LogWriter {
    /// Opens the log in `folder`, which is made if it is not there, to go on with it on `header.timeline`. What was written there
    /// before keeps its `first_xid`. At most `len_max` bytes are kept of the whole log, and at least [`LOG_LEN_MIN`].
    pub fn open(folder: &Path, header: SegmentHeader, len_max: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        remove_leftovers(folder)?;
        let files = segments(folder)?;
        let header = first_header_of(&files, header)?;
        let last = files.last();
        if let Some(last) = last.filter(|last| !last.is_closed) {
            match Segment::read(last) {
                Ok(segment) if segment.header == header && segment.is_current => {
                    let file = OpenOptions::new().read(true).write(true).open(&last.path)?;
                    file.set_len(segment.whole_len)?;
                    return Ok(Self::of(folder, header, last.number, file, segment.whole_len, len_max));
                }
                Ok(segment) => close_segment(folder, last.number, &segment.header, segment.whole_len)?,
                // Torn before its header was whole: there is nothing in it.
                Err(_) if fs::metadata(&last.path)?.len() < HEADER_LEN as u64 => fs::remove_file(&last.path)?,
                // It stays for whoever wants to look at it, and is reported when the log is read.
                Err(_) => {}
            }
        }
        let number = last.map_or(1, |last| last.number + 1);
        let file = new_segment(folder, number, &header)?;
        let mut writer = Self::of(folder, header, number, file, HEADER_LEN as u64, len_max);
        writer.drop_oldest()?;
        Ok(writer)
    }

    fn of(folder: &Path, header: SegmentHeader, number: u64, file: File, len: u64, len_max: u64) -> Self {
        LogWriter {
            folder: folder.to_owned(),
            header,
            number,
            file,
            len,
            len_max: len_max.max(LOG_LEN_MIN),
            contexts: HashMap::new(),
            written: HashMap::new(),
        }
    }

    /// Goes on with the sessions of a Postgres that was started at `since_us`, whose records somebody else has appended up to `now_us`. `sessions`: whose
    /// the last record of each slot was ([`crate::RingReader::sessions`]). Who they are stands in the log, as each says it once; of one that is not
    /// known no more is known than that it is none of the others, nor of those that were not known another time: it has no process, and begins now, or
    /// when it was first not known.
    pub fn resume(&mut self, sessions: &[SessionKey], since_us: i64, now_us: i64) -> io::Result<()> {
        let mut found: HashMap<SessionKey, Arc<Context>> = HashMap::new();
        let is_known = |key: &SessionKey| key.pid != 0 && key.started_us >= since_us;
        let mut missing: HashSet<SessionKey> = sessions.iter().copied().filter(is_known).collect();
        for file in segments(&self.folder)?.iter().rev() {
            if missing.is_empty() {
                break;
            }
            // One that is damaged says nothing of them, and is reported when the log is read.
            let Ok(segment) = Segment::read(file) else { continue };
            let mut is_older = true;
            for (key, record) in segment.entries() {
                is_older &= key.started_us < since_us;
                if missing.contains(&key) && matches!(Record::decode(record), Ok(Record::Session(_))) {
                    missing.remove(&key);
                    found.insert(key, Arc::new(Context { key, record: record.to_vec() }));
                }
            }
            // It is all of sessions from before, and what is before it is older still.
            if is_older && segment.entries().next().is_some() {
                break;
            }
        }
        for (slot, session) in (0_u32..).zip(sessions) {
            let was_unknown = session.pid == 0 && session.started_us != 0;
            let unknown = SessionKey { pid: 0, started_us: now_us.saturating_add(i64::from(slot)) };
            let key = if is_known(session) || was_unknown { *session } else { unknown };
            let context = found.get(session).cloned();
            let context = context.unwrap_or_else(|| Arc::new(Context { key, record: Vec::new() }));
            self.contexts.insert(slot, context);
        }
        Ok(())
    }

    /// What comes from here on is of other sessions, whatever slots they have.
    pub fn forget_sessions(&mut self) {
        self.contexts.clear();
    }

    /// Whose the last record was that was appended from this slot.
    pub fn session_of(&self, slot: u32) -> SessionKey {
        self.contexts.get(&slot).map(|context| context.key).unwrap_or_default()
    }

    /// Appends the records of a batch in the order of their times, without the passwords in them, each with the slot that it came
    /// from; and that something was lost. After an error nothing of them is in the log, and they can be appended again.
    pub fn append<'a>(
        &mut self,
        records: impl Iterator<Item = (u32, &'a [u8])>,
        damaged: u64,
        now_us: i64,
    ) -> io::Result<()> {
        let (mut items, begun) = self.sort_out(records);
        if damaged > 0 {
            items.push(Item {
                at_us: now_us,
                slot: u32::MAX,
                context: None,
                record: encoded(&Record::Lost { count: damaged, at_us: now_us }),
            });
        }
        items.sort_by_key(|item| item.at_us);
        if items.is_empty() && begun.is_empty() {
            return Ok(());
        }
        let mut block = Vec::new();
        let mut written = self.written.clone();
        for item in items {
            put(&mut block, &mut written, item);
        }
        // Who a session is leaves its ring as well, and may not be lost with this process.
        for slot in begun {
            put_context(&mut block, &mut written, slot, &self.contexts[&slot]);
        }
        self.append_block(&block)?;
        self.written = written;
        Ok(())
    }

    /// Closes the segment if it is full, and drops the oldest ones if there are too many. If that fails, what was appended is there
    /// all the same; it is tried again at the next call.
    pub fn tidy(&mut self) -> io::Result<()> {
        if self.len >= (HEADER_LEN + SEGMENT_LEN) as u64 { self.close() } else { Ok(()) }
    }

    /// Gives every record its time and its session, and takes the passwords out. Also the slots in which sessions have begun.
    fn sort_out<'a>(&mut self, records: impl Iterator<Item = (u32, &'a [u8])>) -> (Vec<Item>, BTreeSet<u32>) {
        let (mut items, mut begun) = (Vec::new(), BTreeSet::new());
        // A session's clock may be set back; its records stay in their order.
        let mut latest: HashMap<u32, i64> = HashMap::new();
        for (slot, bytes) in records {
            let at_us = match Record::decode(bytes) {
                Ok(Record::Session(session)) => {
                    let key = SessionKey { pid: session.pid, started_us: session.started_us };
                    self.contexts.insert(slot, Arc::new(Context { key, record: bytes.to_vec() }));
                    begun.insert(slot);
                    continue;
                }
                Ok(Record::Statement(statement)) => statement.started_us.saturating_add_unsigned(statement.duration_us),
                Ok(Record::Transaction(ended)) => ended.at_us,
                Ok(Record::Undone { at_us, .. } | Record::More { at_us, .. } | Record::Lost { at_us, .. }) => at_us,
                // What loaded code wrote into the ring says nothing.
                Err(_) => continue,
            };
            let at_us = at_us.max(latest.get(&slot).copied().unwrap_or(i64::MIN));
            latest.insert(slot, at_us);
            items.push(Item {
                at_us,
                slot,
                context: self.contexts.get(&slot).cloned(),
                record: without_secrets(bytes),
            });
        }
        (items, begun)
    }

    fn append_block(&mut self, block: &[u8]) -> io::Result<()> {
        let len = u32::try_from(block.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let bytes = [&len.to_le_bytes()[..], &crc32fast::hash(block).to_le_bytes(), block].concat();
        // What an attempt that failed has left is written over.
        self.file.write_all_at(&bytes, self.len)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Waits until all of it is on the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn close(&mut self) -> io::Result<()> {
        // The next one first: from then on this one is not written to, whatever fails.
        let file = new_segment(&self.folder, self.number + 1, &self.header)?;
        let (closed, len) = (self.number, self.len);
        self.file = file;
        self.number += 1;
        self.len = HEADER_LEN as u64;
        self.written.clear();
        close_segment(&self.folder, closed, &self.header, len)?;
        self.drop_oldest()
    }

    fn drop_oldest(&mut self) -> io::Result<()> {
        let mut files = Vec::new();
        for file in segments(&self.folder)? {
            files.push((fs::metadata(&file.path)?.len(), file));
        }
        let mut total: u64 = files.iter().map(|(len, _)| len).sum();
        for (len, file) in files.iter().filter(|(_, file)| file.number != self.number) {
            if total <= self.len_max {
                break;
            }
            fs::remove_file(&file.path)?;
            total -= len;
        }
        Ok(())
    }
}

/// Puts a record into a block, after who its session is if the segment does not say that yet.
fn put(block: &mut Vec<u8>, written: &mut HashMap<u32, Arc<Context>>, item: Item) {
    let key = item.context.as_ref().map(|context| context.key).unwrap_or_default();
    if let Some(context) = &item.context {
        put_context(block, written, item.slot, context);
    }
    put_entry(block, key, &item.record);
}

/// Puts who the session of a slot is into a block, if the segment does not say that yet.
fn put_context(block: &mut Vec<u8>, written: &mut HashMap<u32, Arc<Context>>, slot: u32, context: &Arc<Context>) {
    if !written.get(&slot).is_some_and(|known| Arc::ptr_eq(known, context)) {
        if !context.record.is_empty() {
            put_entry(block, context.key, &context.record);
        }
        written.insert(slot, context.clone());
    }
}

fn put_entry(block: &mut Vec<u8>, key: SessionKey, record: &[u8]) {
    block.extend_from_slice(&key.pid.to_le_bytes());
    block.extend_from_slice(&key.started_us.to_le_bytes());
    block.extend_from_slice(&(record.len() as u32).to_le_bytes());
    block.extend_from_slice(record);
}

fn encoded(record: &Record<'_>) -> Vec<u8> {
    let mut bytes = vec![0; RECORD_MAX];
    let len = record.encode(&mut bytes).expect("the longest record fits");
    bytes.truncate(len);
    bytes
}

fn without_secrets(bytes: &[u8]) -> Vec<u8> {
    let Ok(Record::Statement(mut statement)) = Record::decode(bytes) else { return bytes.to_vec() };
    let redacted = redact(statement.text);
    let std::borrow::Cow::Owned(text) = &redacted.text else { return bytes.to_vec() };
    let message = statement.failed.map(|failed| redacted.also(failed.message));
    let parameters = redacted.also(statement.parameters);
    statement.text = text;
    statement.parameters = &parameters;
    if let (Some(failed), Some(message)) = (&mut statement.failed, &message) {
        failed.message = message;
    }
    encoded(&Record::Statement(statement))
}

/// What the log says of the timeline already.
fn first_header_of(files: &[SegmentFile], header: SegmentHeader) -> io::Result<SegmentHeader> {
    for file in files.iter().rev() {
        if let Some(earlier) = read_header(file)?.filter(|earlier| earlier.timeline == header.timeline) {
            return Ok(earlier);
        }
    }
    Ok(header)
}

fn new_segment(folder: &Path, number: u64, header: &SegmentHeader) -> io::Result<File> {
    let path = segment_path(folder, number, false);
    // One of this number holds nothing: making it has failed before.
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&header.encode())?;
    Ok(file)
}

/// Replaces an open segment by a compressed one with its first `len` bytes.
fn close_segment(folder: &Path, number: u64, header: &SegmentHeader, len: u64) -> io::Result<()> {
    let open = segment_path(folder, number, false);
    let mut blocks = fs::read(&open)?;
    blocks.truncate(usize::try_from(len).unwrap_or(usize::MAX));
    let packed = pack(blocks.get(HEADER_LEN..).unwrap_or_default())?;
    let temporary = folder.join(format!("{number:08}.tmp"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&header.encode())?;
    file.write_all(&packed)?;
    file.sync_all()?;
    fs::rename(&temporary, segment_path(folder, number, true))?;
    File::open(folder)?.sync_all()?;
    fs::remove_file(&open)
}

/// What a crash left of a segment that was being closed.
fn remove_leftovers(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_temporary = path.extension().is_some_and(|extension| extension == "tmp");
        let is_replaced =
            path.extension().is_some_and(|extension| extension == "log") && path.with_extension("zst").exists();
        if is_temporary || is_replaced {
            fs::remove_file(&path)?;
        }
    }
    // One that was not closed, because that failed or was interrupted, while the next one was begun.
    let files = segments(folder)?;
    for file in files.iter().rev().skip(1).filter(|file| !file.is_closed) {
        if let Ok(segment) = Segment::read(file) {
            close_segment(folder, file.number, &segment.header, segment.whole_len)?;
        }
    }
    Ok(())
}
