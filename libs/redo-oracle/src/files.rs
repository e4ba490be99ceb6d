//! A folder of WAL segments as one stream of records.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use ardent_pg_format::{DecodedRecord, PgMajor, WalDecoder, WalError};
use ardent_types::{Lsn, PgTli, WalSegmentSize};

/// WAL files can't be read.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// I/O.
    #[error("{path}", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no segment in the folder, or none that has the start LSN.
    #[error("{folder} has no WAL segment with {wanted}", folder = folder.display())]
    NoSegment {
        /// The folder.
        folder: PathBuf,
        /// What was looked for.
        wanted: String,
    },
    /// The first page is of no major that we know, or a segment has an impossible size.
    #[error("{path} is not a WAL segment of a known major: {what}", path = path.display())]
    NotWal {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The stream is damaged where it may not be.
    #[error("{path}", path = path.display())]
    Wal {
        /// The segment.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: WalError,
    },
}

/// How much of a segment is read at a time: what fits a processor's own cache beside the pages that redo works on.
const PIECE_BYTES: usize = 256 << 10;

struct Segment {
    number: u64,
    path: PathBuf,
}

/// WAL segments of one Postgres timeline, read from the oldest on.
pub struct WalFolder {
    segments: std::vec::IntoIter<Segment>,
    current: PathBuf,
    /// The current segment, as far as it is read.
    file: Option<(fs::File, u64)>,
    size: WalSegmentSize,
    major: PgMajor,
    decoder: WalDecoder,
    start: Option<Lsn>,
    end: Option<Lsn>,
    next_segment: u64,
    range: Option<(Lsn, Lsn)>,
    ended: bool,
}

impl WalFolder {
    /// Opens the folder. Without `start`, reading begins with the first whole record of the oldest segment that an unbroken
    /// series up to the newest one begins with.
    pub fn open(folder: &Path, start: Option<Lsn>, end: Option<Lsn>) -> Result<WalFolder, FilesError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| FilesError::Io { path, source }
        };
        let none = |wanted: &str| FilesError::NoSegment { folder: folder.to_owned(), wanted: wanted.to_owned() };
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).map_err(io(folder))? {
            let path = entry.map_err(io(folder))?.path();
            if let Some((tli, high, low)) = path.file_name().and_then(|name| parse_name(name.to_str()?)) {
                names.push((tli, high, low, path));
            }
        }
        // Segments of older Postgres timelines repeat what the newest one has, or were abandoned.
        let tli = names.iter().map(|(tli, ..)| *tli).max().ok_or_else(|| none("a name of 24 hexadecimal digits"))?;
        names.retain(|(other, ..)| *other == tli);
        let first = &names[0].3;
        let length = fs::metadata(first).map_err(io(first))?.len();
        let not_wal = |what: String| FilesError::NotWal { path: first.clone(), what };
        let size = u32::try_from(length).ok().and_then(|bytes| WalSegmentSize::new(bytes).ok());
        let size = size.ok_or_else(|| not_wal(format!("it has {length} bytes")))?;
        let per_high = (1u64 << 32) / size.bytes();
        let mut segments: Vec<Segment> = names
            .iter()
            .map(|(_, high, low, path)| Segment { number: high * per_high + low, path: path.clone() })
            .collect();
        segments.sort_by_key(|segment| segment.number);
        if let Some(start) = start {
            segments.retain(|segment| segment.number >= start.segment_number(size));
        }
        let first = segments.first().ok_or_else(|| none("the start LSN"))?;
        let mut magic = [0; 2];
        let mut file = fs::File::open(&first.path).map_err(io(&first.path))?;
        file.read_exact(&mut magic).map_err(io(&first.path))?;
        let magic = u16::from_le_bytes(magic);
        let major = PgMajor::ALL.into_iter().find(|major| major.wal_page_magic() == magic);
        let major = major.ok_or_else(|| FilesError::NotWal {
            path: first.path.clone(),
            what: format!("its magic number is {magic:#06x}"),
        })?;
        let segment_start = Lsn::new(first.number * size.bytes());
        let decoder = match start {
            Some(start) => WalDecoder::new(start, major, size),
            None => WalDecoder::at_page(segment_start, major, size),
        };
        let next_segment = first.number;
        Ok(WalFolder {
            current: first.path.clone(),
            file: None,
            segments: segments.into_iter(),
            size,
            major,
            decoder,
            start,
            end,
            next_segment,
            range: None,
            ended: false,
        })
    }

    /// The major that wrote the WAL.
    pub fn major(&self) -> PgMajor {
        self.major
    }

    /// From the first record's start to the last one's end, as far as read.
    pub fn range(&self) -> Option<(Lsn, Lsn)> {
        self.range
    }

    /// The next record; `None` where the WAL ends: at `end`, or in the last segment where no valid record follows.
    pub fn next_record(&mut self) -> Result<Option<DecodedRecord<'_>>, FilesError> {
        while !self.ended {
            match self.decoder.advance() {
                Ok(true) => {
                    let start = self.decoder.start_of_last_record().expect("a record was read");
                    if self.end.is_some_and(|end| start >= end) {
                        self.ended = true;
                        continue;
                    }
                    let from = self.range.map_or(start, |(from, _)| from);
                    self.range = Some((from, self.decoder.end_of_last_record()));
                    return Ok(self.decoder.record());
                }
                Ok(false) => self.feed()?,
                // Behind the end of a live server's WAL there is a recycled segment's old content.
                Err(error) if error.may_be_end_of_wal() && self.is_end() => self.ended = true,
                Err(source) => return Err(FilesError::Wal { path: self.current.clone(), source }),
            }
        }
        Ok(None)
    }

    /// Whether no later segment has been written: pre-allocated ones, whose pages still say where they were before, don't
    /// count (checklist 10).
    fn is_end(&self) -> bool {
        !self.segments.as_slice().iter().any(|segment| {
            let mut header = [0; 16];
            let read = fs::File::open(&segment.path).and_then(|mut file| file.read_exact(&mut header));
            let address = u64::from_le_bytes(header[8..16].try_into().expect("8 bytes"));
            read.is_ok() && address == segment.number * self.size.bytes()
        })
    }

    /// Feeds the next piece of the segment that is being read, or of the one behind it.
    fn feed(&mut self) -> Result<(), FilesError> {
        loop {
            if let Some((file, at)) = &mut self.file {
                // Pieces end where pages do, so that a record within a page is never put together from two of them.
                let length = PIECE_BYTES - (*at % PIECE_BYTES as u64) as usize;
                let mut piece = Vec::with_capacity(length);
                let read = file.by_ref().take(length as u64).read_to_end(&mut piece);
                let read = read.map_err(|source| FilesError::Io { path: self.current.clone(), source })?;
                *at += read as u64;
                if read > 0 {
                    self.decoder.feed(piece);
                    return Ok(());
                }
                self.file = None;
            }
            let segment = match self.segments.next() {
                Some(segment) if segment.number == self.next_segment => segment,
                _ => {
                    self.ended = true;
                    return Ok(());
                }
            };
            let offset = self.start.take().map_or(0, |start| start.segment_offset(self.size));
            let file = fs::File::open(&segment.path)
                .and_then(|mut file| file.seek(SeekFrom::Start(offset)).map(|_| file))
                .map_err(|source| FilesError::Io { path: segment.path.clone(), source })?;
            self.file = Some((file, offset));
            self.current = segment.path;
            self.next_segment += 1;
        }
    }
}

fn parse_name(name: &str) -> Option<(PgTli, u64, u64)> {
    if name.len() != 24 || !name.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte)) {
        return None;
    }
    let part = |at: usize| u32::from_str_radix(&name[at..at + 8], 16).ok();
    Some((PgTli::new(part(0)?), u64::from(part(8)?), u64::from(part(16)?)))
}
