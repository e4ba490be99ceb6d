//! Records: what a session says about itself, its statements and its transactions. Byte table: `docs/formats/statement-log.md`.
//!
//! Encoding allocates nothing and cannot fail but for room: it runs inside Postgres.

use ardent_types::Lsn;

/// Bytes of a statement's text that are kept.
pub const TEXT_MAX: usize = 16 << 10;
/// Bytes of a statement's parameters that are kept.
pub const PARAMETERS_MAX: usize = 1 << 10;
/// Bytes of an error's message that are kept.
pub const MESSAGE_MAX: usize = 1 << 10;
/// Ids of subtransactions that are kept of one transaction.
pub const CHILDREN_MAX: usize = 2048;
/// Longest encoded record.
pub const RECORD_MAX: usize = 20 << 10;
/// Longest name (`NAMEDATALEN` and what does not keep to it).
const NAME_MAX: usize = 255;

/// Bytes that are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// They end too early.
    #[error("a record ends after {0} bytes, in the middle of a field")]
    Short(usize),
    /// There is no such kind.
    #[error("{0} is no kind of record")]
    Kind(u8),
    /// A field has a value that it cannot have.
    #[error("a field has the impossible value {0}")]
    Value(u64),
    /// They go on after its end.
    #[error("{0} bytes follow a record's end")]
    Long(usize),
}

/// Who a session is: before its first statement, and whenever it has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session<'a> {
    /// Process id, as Postgres shows it.
    pub pid: u32,
    /// When it began, in microseconds since the Unix epoch.
    pub started_us: i64,
    /// The server's own: of the agent or of control.
    pub is_own: bool,
    /// Database.
    pub database: &'a [u8],
    /// The role that logged in, or that `SET SESSION AUTHORIZATION` made it.
    pub session_role: &'a [u8],
    /// The role that it acts as.
    pub role: &'a [u8],
    /// `application_name`.
    pub application: &'a [u8],
    /// Address and port of the client that came through the proxy, as `SocketAddr` writes them; empty: it did not.
    pub client: &'a [u8],
}

/// What Postgres said when a statement failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed<'a> {
    /// SQLSTATE.
    pub sqlstate: [u8; 5],
    /// The primary message, as far as it is kept; empty where Postgres does not log errors.
    pub message: &'a [u8],
}

/// A statement that a client sent, when it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement<'a> {
    /// Counts the session's statements, from 1.
    pub number: u64,
    /// When it came, in microseconds since the Unix epoch.
    pub started_us: i64,
    /// Until it ended, without its transaction's end.
    pub duration_us: u64,
    /// Rows that it gave, changed or copied; absent where that means nothing.
    pub rows: Option<u64>,
    /// The transaction, with its epoch; 0 if it has no id.
    pub xid: u64,
    /// All WAL that the session wrote for it is in here, half-open; both invalid: it wrote none. Others wrote there too.
    pub wal: (Lsn, Lsn),
    /// How it failed.
    pub failed: Option<Failed<'a>>,
    /// Length of the whole text in bytes.
    pub text_len: u64,
    /// The text, as far as it is kept.
    pub text: &'a [u8],
    /// Number of parameters.
    pub parameters_count: u32,
    /// The first of them as `$1 = 'value', ...`, as far as they are kept.
    pub parameters: &'a [u8],
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is committed, and a quorum has it.
    Committed = 1,
    /// It is rolled back.
    RolledBack = 2,
    /// It is prepared: another command decides.
    Prepared = 3,
}

/// The end of a transaction that has an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionEnd<'a> {
    /// How.
    pub end: End,
    /// When the session was told, in microseconds since the Unix epoch.
    pub at_us: i64,
    /// Its id, with its epoch.
    pub xid: u64,
    /// End of its record in the WAL; of one that was rolled back, its last record's start.
    pub lsn: Lsn,
    /// The session's statements from `first` to `last` are its own; none if `first` is greater.
    pub first: u64,
    /// As above.
    pub last: u64,
    /// How many committed subtransactions it has.
    pub children_count: u32,
    /// Ids of the first [`CHILDREN_MAX`] of them, 4 bytes each, little-endian.
    pub children: &'a [u8],
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// Who the session is from here on.
    Session(Session<'a>),
    /// A statement has ended.
    Statement(Statement<'a>),
    /// A transaction has ended.
    Transaction(TransactionEnd<'a>),
    /// What the statements from `first` to `last` did was taken back: a savepoint was rolled back to.
    Undone {
        /// When, in microseconds since the Unix epoch.
        at_us: i64,
        /// First statement.
        first: u64,
        /// Last statement.
        last: u64,
    },
    /// A statement that is fetched from in parts gave more rows.
    More {
        /// The statement.
        number: u64,
        /// How many.
        rows: u64,
        /// When, in microseconds since the Unix epoch.
        at_us: i64,
    },
    /// Records are missing here: nobody took them for too long, or they were damaged.
    Lost {
        /// How many, as far as is known.
        count: u64,
        /// When it was found, in microseconds since the Unix epoch.
        at_us: i64,
    },
}

/// Kinds of records.
mod kind {
    /// As version 1 had it: without the client's address.
    pub(super) const SESSION_1: u8 = 1;
    pub(super) const STATEMENT: u8 = 2;
    pub(super) const TRANSACTION: u8 = 3;
    pub(super) const UNDONE: u8 = 4;
    pub(super) const MORE: u8 = 5;
    pub(super) const LOST: u8 = 6;
    pub(super) const SESSION: u8 = 7;
}

/// Stands for "no rows".
const NO_ROWS: u64 = u64::MAX;

impl<'a> Record<'a> {
    /// Writes the record, cutting texts that are longer than what is kept. Gives its length; `None`: there is no room, for which
    /// [`RECORD_MAX`] bytes are enough.
    pub fn encode(&self, out: &mut [u8]) -> Option<usize> {
        let mut out = Out { bytes: out, at: 0 };
        match self {
            Record::Session(session) => {
                out.byte(kind::SESSION)?;
                out.put(&session.pid.to_le_bytes())?;
                out.put(&session.started_us.to_le_bytes())?;
                out.byte(session.is_own.into())?;
                let Session { database, session_role, role, application, client, .. } = *session;
                for name in [database, session_role, role, application, client] {
                    out.text(name, NAME_MAX)?;
                }
            }
            Record::Statement(statement) => {
                out.byte(kind::STATEMENT)?;
                out.put(&statement.number.to_le_bytes())?;
                out.put(&statement.started_us.to_le_bytes())?;
                out.put(&statement.duration_us.to_le_bytes())?;
                out.put(&statement.rows.unwrap_or(NO_ROWS).to_le_bytes())?;
                out.put(&statement.xid.to_le_bytes())?;
                out.put(&statement.wal.0.get().to_le_bytes())?;
                out.put(&statement.wal.1.get().to_le_bytes())?;
                let (sqlstate, message) =
                    statement.failed.map_or(([0; 5], &b""[..]), |failed| (failed.sqlstate, failed.message));
                out.put(&sqlstate)?;
                out.text(message, MESSAGE_MAX)?;
                out.put(&statement.text_len.to_le_bytes())?;
                out.text(statement.text, TEXT_MAX)?;
                out.put(&statement.parameters_count.to_le_bytes())?;
                out.text(statement.parameters, PARAMETERS_MAX)?;
            }
            Record::Transaction(ended) => {
                out.byte(kind::TRANSACTION)?;
                out.byte(ended.end as u8)?;
                out.put(&ended.at_us.to_le_bytes())?;
                out.put(&ended.xid.to_le_bytes())?;
                out.put(&ended.lsn.get().to_le_bytes())?;
                out.put(&ended.first.to_le_bytes())?;
                out.put(&ended.last.to_le_bytes())?;
                out.put(&ended.children_count.to_le_bytes())?;
                out.text(ended.children, CHILDREN_MAX * 4)?;
            }
            Record::Undone { at_us, first, last } => {
                out.byte(kind::UNDONE)?;
                out.put(&at_us.to_le_bytes())?;
                out.put(&first.to_le_bytes())?;
                out.put(&last.to_le_bytes())?;
            }
            Record::More { number, rows, at_us } => {
                out.byte(kind::MORE)?;
                out.put(&number.to_le_bytes())?;
                out.put(&rows.to_le_bytes())?;
                out.put(&at_us.to_le_bytes())?;
            }
            Record::Lost { count, at_us } => {
                out.byte(kind::LOST)?;
                out.put(&count.to_le_bytes())?;
                out.put(&at_us.to_le_bytes())?;
            }
        }
        Some(out.at)
    }

    /// Reads a record that takes up all of `bytes`.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let mut rest = In { bytes, at: 0 };
        let record = match rest.byte()? {
            kind @ (kind::SESSION | kind::SESSION_1) => Record::Session(Session {
                pid: rest.u32()?,
                started_us: rest.i64()?,
                is_own: rest.byte()? != 0,
                database: rest.text()?,
                session_role: rest.text()?,
                role: rest.text()?,
                application: rest.text()?,
                client: if kind == kind::SESSION { rest.text()? } else { b"" },
            }),
            kind::STATEMENT => {
                let number = rest.u64()?;
                let started_us = rest.i64()?;
                let duration_us = rest.u64()?;
                let rows = Some(rest.u64()?).filter(|rows| *rows != NO_ROWS);
                let xid = rest.u64()?;
                let wal = (Lsn::new(rest.u64()?), Lsn::new(rest.u64()?));
                let sqlstate = rest.array::<5>()?;
                let message = rest.text()?;
                let failed = (sqlstate != [0; 5]).then_some(Failed { sqlstate, message });
                let text_len = rest.u64()?;
                let text = rest.text()?;
                let parameters_count = rest.u32()?;
                let parameters = rest.text()?;
                Record::Statement(Statement {
                    number,
                    started_us,
                    duration_us,
                    rows,
                    xid,
                    wal,
                    failed,
                    text_len,
                    text,
                    parameters_count,
                    parameters,
                })
            }
            kind::TRANSACTION => {
                let end = match rest.byte()? {
                    1 => End::Committed,
                    2 => End::RolledBack,
                    3 => End::Prepared,
                    other => return Err(RecordError::Value(other.into())),
                };
                Record::Transaction(TransactionEnd {
                    end,
                    at_us: rest.i64()?,
                    xid: rest.u64()?,
                    lsn: Lsn::new(rest.u64()?),
                    first: rest.u64()?,
                    last: rest.u64()?,
                    children_count: rest.u32()?,
                    children: rest.text()?,
                })
            }
            kind::UNDONE => Record::Undone { at_us: rest.i64()?, first: rest.u64()?, last: rest.u64()? },
            kind::MORE => Record::More { number: rest.u64()?, rows: rest.u64()?, at_us: rest.i64()? },
            kind::LOST => Record::Lost { count: rest.u64()?, at_us: rest.i64()? },
            other => return Err(RecordError::Kind(other)),
        };
        match bytes.len() - rest.at {
            0 => Ok(record),
            more => Err(RecordError::Long(more)),
        }
    }
}

/// The longest beginning of `text` that has at most `most` bytes and does not end within a character.
pub fn cut(text: &[u8], most: usize) -> &[u8] {
    if text.len() <= most {
        return text;
    }
    let mut end = most;
    // A byte of UTF-8 that continues a character: no text has more than three in a row.
    while end > most.saturating_sub(3) && text[end] & 0xC0 == 0x80 {
        end -= 1;
    }
    &text[..end]
}

struct Out<'b> {
    bytes: &'b mut [u8],
    at: usize,
}

impl Out<'_> {
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.at.checked_add(bytes.len())?;
        self.bytes.get_mut(self.at..end)?.copy_from_slice(bytes);
        self.at = end;
        Some(())
    }

    fn byte(&mut self, byte: u8) -> Option<()> {
        self.put(&[byte])
    }

    fn text(&mut self, text: &[u8], most: usize) -> Option<()> {
        let kept = cut(text, most);
        self.put(&u16::try_from(kept.len()).ok()?.to_le_bytes())?;
        self.put(kept)
    }
}

struct In<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> In<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], RecordError> {
        let end = self.at.checked_add(len).ok_or(RecordError::Short(self.bytes.len()))?;
        let taken = self.bytes.get(self.at..end).ok_or(RecordError::Short(self.bytes.len()))?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8, RecordError> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, RecordError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn i64(&mut self) -> Result<i64, RecordError> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<&'a [u8], RecordError> {
        let len = u16::from_le_bytes(self.array()?);
        self.take(len.into())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A statement as most are.
    pub(crate) fn statement(number: u64, text: &[u8]) -> Statement<'_> {
        Statement {
            number,
            started_us: 1_000_000,
            duration_us: 250,
            rows: Some(3),
            xid: 0,
            wal: (Lsn::INVALID, Lsn::INVALID),
            failed: None,
            text_len: text.len() as u64,
            text,
            parameters_count: 0,
            parameters: b"",
        }
    }

    fn check(record: Record<'_>) {
        let mut out = [0; RECORD_MAX];
        let len = record.encode(&mut out).expect("there is room");
        assert_eq!(Record::decode(&out[..len]), Ok(record));
        for short in 0..len {
            assert!(Record::decode(&out[..short]).is_err(), "{short} of {len} bytes");
            let mut other = out;
            assert_eq!(record.encode(&mut other[..short]), None);
        }
        assert_eq!(Record::decode(&out[..len + 1]), Err(RecordError::Long(1)));
    }

    #[test]
    fn records_round_trip_and_short_ones_are_refused() {
        let session = Session {
            pid: 7,
            started_us: 5,
            is_own: true,
            database: b"shop",
            session_role: b"app",
            role: b"boss",
            application: b"psql",
            client: b"192.0.2.1:5",
        };
        check(Record::Session(session));
        check(Record::Statement(statement(1, b"select 1")));
        let failed = Failed { sqlstate: *b"42P01", message: b"no table" };
        check(Record::Statement(Statement {
            failed: Some(failed),
            rows: None,
            wal: (Lsn::new(3), Lsn::new(9)),
            ..statement(2, b"x")
        }));
        let children = [1, 0, 0, 0, 2, 0, 0, 0];
        check(Record::Transaction(TransactionEnd {
            end: End::RolledBack,
            at_us: 9,
            xid: 1 << 40,
            lsn: Lsn::new(77),
            first: 1,
            last: 2,
            children_count: 2,
            children: &children,
        }));
        check(Record::Undone { at_us: 1, first: 2, last: 3 });
        check(Record::More { number: 1, rows: 2, at_us: 3 });
        check(Record::Lost { count: 1, at_us: -3 });
    }

    #[test]
    fn the_bytes_of_a_statement_are_these() {
        let mut out = [0; RECORD_MAX];
        let record =
            Record::Statement(Statement { xid: 0x0102, wal: (Lsn::new(16), Lsn::new(32)), ..statement(5, b"ab") });
        let len = record.encode(&mut out).expect("there is room");
        let expect = [
            &[2][..],
            &[5, 0, 0, 0, 0, 0, 0, 0],
            &[0x40, 0x42, 0x0F, 0, 0, 0, 0, 0],
            &[250, 0, 0, 0, 0, 0, 0, 0],
            &[3, 0, 0, 0, 0, 0, 0, 0],
            &[2, 1, 0, 0, 0, 0, 0, 0],
            &[16, 0, 0, 0, 0, 0, 0, 0],
            &[32, 0, 0, 0, 0, 0, 0, 0],
            &[0; 5],
            &[0, 0],
            &[2, 0, 0, 0, 0, 0, 0, 0],
            &[2, 0, b'a', b'b'],
            &[0; 4],
            &[0, 0],
        ]
        .concat();
        assert_eq!(out[..len], expect);
    }

    #[test]
    fn a_session_of_version_1_has_no_address() {
        let text = |text: &[u8]| [&[text.len() as u8, 0], text].concat();
        let names = [text(b"shop"), text(b"app"), text(b"boss"), text(b"psql")].concat();
        let rest = [&[7, 0, 0, 0][..], &[5, 0, 0, 0, 0, 0, 0, 0], &[1], &names].concat();
        let session = Session {
            pid: 7,
            started_us: 5,
            is_own: true,
            database: b"shop",
            session_role: b"app",
            role: b"boss",
            application: b"psql",
            client: b"",
        };
        assert_eq!(Record::decode(&[&[1], &rest[..]].concat()), Ok(Record::Session(session)));
        let session = Session { client: b"[::1]:5", ..session };
        let expect = [&[7], &rest[..], &text(b"[::1]:5")].concat();
        let mut out = [0; RECORD_MAX];
        let len = Record::Session(session).encode(&mut out).expect("there is room");
        assert_eq!(out[..len], expect);
    }

    #[test]
    fn texts_are_cut_between_characters_and_the_longest_record_fits() {
        assert_eq!(cut("aä".as_bytes(), 2), b"a");
        assert_eq!(cut("aä".as_bytes(), 3), "aä".as_bytes());
        assert_eq!(cut(&[0x80; 9], 5).len(), 2, "what is no UTF-8 is cut a little earlier");
        let long = vec![b'x'; 1 << 20];
        let mut out = [0; RECORD_MAX];
        let failed = Some(Failed { sqlstate: *b"XX000", message: &long });
        let text_len = long.len() as u64;
        let record =
            Record::Statement(Statement { failed, text: &long, parameters: &long, text_len, ..statement(1, b"") });
        let len = record.encode(&mut out).expect("there is room");
        let Ok(Record::Statement(read)) = Record::decode(&out[..len]) else { panic!("it is a statement") };
        assert_eq!((read.text.len(), read.text_len), (TEXT_MAX, 1 << 20));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..9_u8) {
            let _ = Record::decode(&bytes);
            let _ = Record::decode(&[&[kind], &bytes[..]].concat());
        }
    }
}
