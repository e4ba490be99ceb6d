//! Reads a log: joins statements with how their transactions ended, and filters.
//!
//! ```text
//!  segments, newest first ── count what is wanted ──► where to begin
//!  from there on, oldest first ── chapter ──► entries ──► sink
//!                        later chapters' ends ──┘ (a transaction may end segments after its statements)
//! ```
//!
//! Memory holds one segment, and the ends that later segments have for sessions that were in a transaction when they began.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ardent_types::{Lsn, TimelineId, with_causes};

use crate::entry::{EntryKind, LogEntry, LogFilter, Outcome};
use crate::record::{End, Record, Session, Statement, TransactionEnd};
use crate::segment::{Segment, SegmentError, SegmentFile, SegmentHeader, SessionKey, segments};

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its folder.
    #[error("{path} cannot be looked through")]
    Folder {
        /// Its path.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
}

/// How much of a log is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// All of it.
    All,
    /// The newest entries, so many of them.
    Newest(usize),
    /// Those after what was read before.
    After(Position),
}

/// How far a log was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The segment.
    segment: u64,
    /// How many entries of it.
    entries: usize,
}

/// What there is to say when a log was read.
#[derive(Debug, Default)]
pub struct ReadSummary {
    /// Entries that were given.
    pub shown: u64,
    /// Whether there are earlier ones that the filter wants.
    pub has_earlier: bool,
    /// The log's beginning, in microseconds since the Unix epoch: earlier entries were dropped, or never were.
    pub begins_us: Option<i64>,
    /// Whether earlier segments were dropped.
    pub is_cut: bool,
    /// Segments that cannot be read, and why.
    pub damaged: Vec<String>,
    /// How far it was read.
    pub position: Position,
}

/// The end of a transaction, as far as statements are concerned.
#[derive(Clone, Debug)]
struct Ended {
    outcome: Outcome,
    /// The transaction's id; 0: it had none, or it is a part of a transaction.
    xid: u64,
    at_us: i64,
    lsn: Option<Lsn>,
    first: u64,
    last: u64,
}

/// What ended in a session, each in order.
#[derive(Debug, Default)]
struct Ends {
    transactions: Vec<Ended>,
    savepoints: Vec<Ended>,
}

impl Ended {
    fn covers(&self, number: u64) -> bool {
        (self.first..=self.last).contains(&number)
    }
}

/// A transaction that the log knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownTransaction {
    /// The session.
    pub session: SessionKey,
    /// Its id, with its epoch.
    pub xid: u64,
    /// How it ended.
    pub end: End,
    /// First statement.
    pub first: u64,
    /// Last statement.
    pub last: u64,
}

/// One segment, taken apart.
struct Chapter {
    /// Statements with their sessions and the time they began, and what else there is to show, in order.
    entries: Vec<(SessionKey, i64, LogEntry)>,
    ends: HashMap<SessionKey, Ends>,
    more: HashMap<(SessionKey, u64), u64>,
    /// Number of the first statement of each session that is in here.
    first_numbers: HashMap<SessionKey, u64>,
}

/// Reads the log in `folder` and gives the entries that `filter` wants to `sink`, oldest first, until that breaks.
pub fn read_log(
    folder: &Path,
    filter: &LogFilter,
    amount: Amount,
    mut sink: impl FnMut(LogEntry) -> ControlFlow<()>,
) -> Result<ReadSummary, ReadError> {
    let files = list(folder)?;
    let mut summary =
        ReadSummary { is_cut: files.first().is_some_and(|file| file.number > 1), ..ReadSummary::default() };
    let (first, mut skip) = match amount {
        Amount::All => (0, 0),
        Amount::Newest(most) => begin(folder, &files, filter, most),
        Amount::After(position) => (files.partition_point(|file| file.number < position.segment), 0),
    };
    if let Amount::After(position) = amount {
        summary.position = position;
    }
    if let Amount::Newest(_) = amount {
        summary.has_earlier = skip > 0 || has_before(folder, &files[..first], filter);
    }
    let later = later_ends(folder, &files, first);
    if let Some(chapter) = files.first().and_then(|file| open(folder, file).ok()) {
        summary.begins_us = chapter.entries.first().map(|(_, at_us, _)| *at_us);
    }
    // What failed may have ended in the segment before.
    let before = first.checked_sub(1).and_then(|at| open(folder, &files[at]).ok());
    let mut earlier = before.map(|chapter| last_ends(chapter.ends)).unwrap_or_default();
    for (at, file) in files.iter().enumerate().skip(first) {
        let chapter = match open(folder, file) {
            Ok(chapter) => chapter,
            Err(error) => {
                summary.damaged.push(with_causes(&error));
                continue;
            }
        };
        let Chapter { entries, ends, more, .. } = chapter;
        let known = if file.number == summary.position.segment { summary.position.entries } else { 0 };
        summary.position = Position { segment: file.number, entries: entries.len().max(known) };
        for (key, at_us, mut entry) in entries.into_iter().skip(known) {
            if let Some(rows) = more.get(&(key, entry.number)) {
                entry.rows = Some(entry.rows.unwrap_or(0).saturating_add(*rows));
            }
            settle(&mut entry, key, &ends, &later[at + 1 - first..]);
            leave_failed(&mut entry, key, &ends, &earlier);
            if !filter.wants(at_us, &entry) {
                continue;
            }
            if skip > 0 {
                skip -= 1;
                continue;
            }
            summary.shown += 1;
            if sink(entry).is_break() {
                return Ok(summary);
            }
        }
        earlier = last_ends(ends);
    }
    Ok(summary)
}

/// Looks for a transaction by the id that Postgres gave it or one of its subtransactions, on `timeline`, among those that ended at
/// or below `until`; the newest. `Err`: what the log says of the timeline, if it knows the timeline at all.
pub fn find_transaction(
    folder: &Path,
    timeline: TimelineId,
    until: Lsn,
    xid: u32,
) -> Result<Result<KnownTransaction, Option<SegmentHeader>>, ReadError> {
    let files = list(folder)?;
    let mut known = None;
    for file in files.iter().rev() {
        let Ok(segment) = reopen(folder, file) else { continue };
        if segment.header.timeline != timeline {
            continue;
        }
        known = Some(segment.header);
        let mut found = None;
        for (session, bytes) in segment.entries() {
            let Ok(Record::Transaction(ended)) = Record::decode(bytes) else { continue };
            let is_child = || ended.children.chunks_exact(4).any(|child| child == xid.to_le_bytes());
            if (ended.xid as u32 == xid || is_child()) && ended.lsn <= until {
                found = Some(KnownTransaction {
                    session,
                    xid: ended.xid,
                    end: ended.end,
                    first: ended.first,
                    last: ended.last,
                });
            }
        }
        if let Some(found) = found {
            return Ok(Ok(found));
        }
    }
    Ok(Err(known))
}

/// The statements of a session from `first` to `last`, with what became of them.
pub fn statements_of(
    folder: &Path,
    session: SessionKey,
    numbers: std::ops::RangeInclusive<u64>,
) -> Result<Vec<LogEntry>, ReadError> {
    let mut found = Vec::new();
    let files = list(folder)?;
    let later = later_ends(folder, &files, 0);
    let mut earlier = HashMap::new();
    for (at, file) in files.iter().enumerate() {
        let Ok(chapter) = open(folder, file) else { continue };
        for (key, _, mut entry) in chapter.entries {
            if key == session && numbers.contains(&entry.number) && entry.kind == EntryKind::Statement {
                settle(&mut entry, key, &chapter.ends, &later[at + 1..]);
                leave_failed(&mut entry, key, &chapter.ends, &earlier);
                found.push(entry);
            }
        }
        earlier = last_ends(chapter.ends);
    }
    Ok(found)
}

fn list(folder: &Path) -> Result<Vec<SegmentFile>, ReadError> {
    segments(folder).map_err(|source| ReadError::Folder { path: folder.to_owned(), source })
}

/// Where to begin so that `most` wanted entries follow, and how many wanted ones come before them there.
fn begin(folder: &Path, files: &[SegmentFile], filter: &LogFilter, most: usize) -> (usize, usize) {
    let mut counted = 0;
    for (at, file) in files.iter().enumerate().rev() {
        if let Ok(chapter) = open(folder, file) {
            // Whether it is wanted does not depend on how the transaction ended.
            counted += chapter.entries.iter().filter(|(_, at_us, entry)| filter.wants(*at_us, entry)).count();
        }
        if counted >= most {
            return (at, counted - most);
        }
    }
    (0, 0)
}

/// Whether anything that is wanted comes before.
fn has_before(folder: &Path, files: &[SegmentFile], filter: &LogFilter) -> bool {
    files.iter().rev().any(|file| {
        open(folder, file)
            .is_ok_and(|chapter| chapter.entries.iter().any(|(_, at_us, entry)| filter.wants(*at_us, entry)))
    })
}

/// For every segment from `first` on: ends of transactions whose statements began in an earlier one.
fn later_ends(folder: &Path, files: &[SegmentFile], first: usize) -> Vec<HashMap<SessionKey, Ends>> {
    let of = |file: &SegmentFile| {
        let Ok(chapter) = open(folder, file) else { return HashMap::new() };
        let Chapter { mut ends, first_numbers, .. } = chapter;
        ends.retain(|key, ends| {
            let own = first_numbers.get(key).copied().unwrap_or(u64::MAX);
            ends.transactions.retain(|ended| ended.first < own);
            ends.savepoints.retain(|ended| ended.first < own);
            !ends.transactions.is_empty() || !ends.savepoints.is_empty()
        });
        ends
    };
    files[first..].iter().map(of).collect()
}

/// Says what became of a statement.
fn settle(entry: &mut LogEntry, key: SessionKey, own: &HashMap<SessionKey, Ends>, later: &[HashMap<SessionKey, Ends>]) {
    if entry.kind != EntryKind::Statement || entry.outcome == Outcome::Failed {
        return;
    }
    let mut found: Option<&Ended> = None;
    for ends in std::iter::once(own).chain(later) {
        let Some(ends) = ends.get(&key) else { continue };
        // Transactions follow one another; a command that commits on the way belongs to several, and the last one counts.
        let from = ends.transactions.partition_point(|ended| ended.last < entry.number);
        found = ends.transactions[from..].iter().take_while(|ended| ended.first <= entry.number).last();
        let transaction_last = found.map_or(u64::MAX, |ended| ended.last);
        let from = ends.savepoints.partition_point(|ended| ended.last < entry.number);
        let savepoints = ends.savepoints[from..].iter().take_while(|ended| ended.last <= transaction_last);
        found = savepoints.into_iter().find(|ended| ended.covers(entry.number)).or(found);
        if found.is_some() {
            break;
        }
    }
    match found {
        Some(ended) => {
            entry.outcome = ended.outcome;
            entry.ended_at = Some(iso8601(ended.at_us));
            entry.end_lsn = ended.lsn;
        }
        None => entry.outcome = if entry.xid.is_some() { Outcome::Open } else { Outcome::Done },
    }
}

/// Says of a command which leaves a transaction that has failed what became of that: it was rolled back when it failed, not with the
/// command, and has its id until then.
fn leave_failed(
    entry: &mut LogEntry,
    key: SessionKey,
    own: &HashMap<SessionKey, Ends>,
    earlier: &HashMap<SessionKey, Ended>,
) {
    if entry.outcome != Outcome::Open {
        return;
    }
    let own = own.get(&key).into_iter().flat_map(|ends| &ends.transactions);
    let same = |ended: &&Ended| Some(ended.xid) == entry.xid && ended.last < entry.number;
    if let Some(ended) = own.chain(earlier.get(&key)).find(same) {
        entry.outcome = ended.outcome;
        entry.ended_at = Some(iso8601(ended.at_us));
        entry.end_lsn = ended.lsn;
    }
}

/// The transaction of each session that ended last.
fn last_ends(ends: HashMap<SessionKey, Ends>) -> HashMap<SessionKey, Ended> {
    ends.into_iter().filter_map(|(key, mut ends)| Some((key, ends.transactions.pop()?))).collect()
}

/// A segment that is closed or dropped while we look has another name, or none.
fn reopen(folder: &Path, file: &SegmentFile) -> Result<Segment, SegmentError> {
    let first = Segment::read(file);
    let Err(SegmentError::Io { source, .. }) = &first else { return first };
    if source.kind() != std::io::ErrorKind::NotFound {
        return first;
    }
    let path = crate::segment::segment_path(folder, file.number, true);
    Segment::read(&SegmentFile { path, is_closed: true, ..file.clone() })
}

fn open(folder: &Path, file: &SegmentFile) -> Result<Chapter, SegmentError> {
    let segment = reopen(folder, file)?;
    let mut chapter =
        Chapter { entries: Vec::new(), ends: HashMap::new(), more: HashMap::new(), first_numbers: HashMap::new() };
    let mut sessions: HashMap<SessionKey, Session<'_>> = HashMap::new();
    let timeline = segment.header.timeline;
    for (key, bytes) in segment.entries() {
        // A record of a kind that only a newer version writes.
        let Ok(record) = Record::decode(bytes) else { continue };
        let session = sessions.get(&key).copied().unwrap_or_default();
        match record {
            Record::Session(session) => {
                sessions.insert(key, session);
            }
            Record::Statement(statement) => {
                chapter.first_numbers.entry(key).or_insert(statement.number);
                let entry = of_statement(key, &session, &statement, timeline);
                chapter.entries.push((key, statement.started_us, entry));
            }
            Record::Transaction(ended) => {
                if ended.first > ended.last {
                    chapter.entries.push((key, ended.at_us, of_unknown(key, &session, &ended, timeline)));
                }
                let outcome = match ended.end {
                    End::Committed => Outcome::Committed,
                    End::RolledBack => Outcome::RolledBack,
                    End::Prepared => Outcome::Prepared,
                };
                let lsn = Some(ended.lsn).filter(|lsn| lsn.is_valid());
                let ended =
                    Ended { outcome, xid: ended.xid, at_us: ended.at_us, lsn, first: ended.first, last: ended.last };
                chapter.ends.entry(key).or_default().transactions.push(ended);
            }
            Record::Undone { at_us, first, last } => {
                let ended = Ended { outcome: Outcome::RolledBack, xid: 0, at_us, lsn: None, first, last };
                chapter.ends.entry(key).or_default().savepoints.push(ended);
            }
            Record::More { number, rows, .. } => *chapter.more.entry((key, number)).or_default() += rows,
            Record::Lost { count, at_us } => {
                let entry =
                    LogEntry { kind: EntryKind::Lost, rows: Some(count), ..blank(key, &session, at_us, timeline) };
                chapter.entries.push((key, at_us, entry));
            }
        }
    }
    Ok(chapter)
}

fn of_statement(key: SessionKey, session: &Session<'_>, statement: &Statement<'_>, timeline: TimelineId) -> LogEntry {
    let wrote = statement.wal.1.is_valid();
    let failed = statement.failed;
    let message = failed.map(|failed| text(failed.message)).filter(|message| !message.is_empty());
    LogEntry {
        duration_us: Some(statement.duration_us),
        number: statement.number,
        statement: text(statement.text),
        statement_bytes: statement.text_len,
        parameters: (statement.parameters_count > 0).then(|| text(statement.parameters)),
        parameters_count: statement.parameters_count,
        rows: statement.rows,
        outcome: if failed.is_some() { Outcome::Failed } else { Outcome::Open },
        sqlstate: failed.map(|failed| text(&failed.sqlstate)),
        error: message,
        xid: Some(statement.xid).filter(|xid| *xid != 0),
        lsn_from: wrote.then_some(statement.wal.0),
        lsn_to: wrote.then_some(statement.wal.1),
        ..blank(key, session, statement.started_us, timeline)
    }
}

/// A transaction that no statement is known of.
fn of_unknown(key: SessionKey, session: &Session<'_>, ended: &TransactionEnd<'_>, timeline: TimelineId) -> LogEntry {
    let outcome = match ended.end {
        End::Committed => Outcome::Committed,
        End::RolledBack => Outcome::RolledBack,
        End::Prepared => Outcome::Prepared,
    };
    LogEntry {
        kind: EntryKind::NoStatement,
        outcome,
        xid: Some(ended.xid),
        ended_at: Some(iso8601(ended.at_us)),
        end_lsn: Some(ended.lsn).filter(|lsn| lsn.is_valid()),
        ..blank(key, session, ended.at_us, timeline)
    }
}

fn blank(key: SessionKey, session: &Session<'_>, at_us: i64, timeline_id: TimelineId) -> LogEntry {
    LogEntry {
        kind: EntryKind::Statement,
        at: iso8601(at_us),
        duration_us: None,
        pid: key.pid,
        session_started_at: iso8601(key.started_us),
        number: 0,
        database: text(session.database),
        session_role: text(session.session_role),
        role: text(session.role),
        application_name: text(session.application),
        client_address: Some(text(session.client)).filter(|address| !address.is_empty()),
        is_own: session.is_own,
        statement: String::new(),
        statement_bytes: 0,
        parameters: None,
        parameters_count: 0,
        rows: None,
        outcome: Outcome::Done,
        sqlstate: None,
        error: None,
        xid: None,
        lsn_from: None,
        lsn_to: None,
        ended_at: None,
        end_lsn: None,
        timeline_id,
    }
}

/// Databases may have another encoding: what is no UTF-8 is shown as such.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn iso8601(at_us: i64) -> String {
    match jiff::Timestamp::from_microsecond(at_us) {
        Ok(time) => format!("{time:.6}"),
        Err(_) => format!("{at_us} us"),
    }
}
