//! The file: a header and compressed JSON (`docs/formats/change-set.md`). Written and read as a stream: what is in it need not fit
//! into memory.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use ardent_diff::ChangeSet;
use ardent_types::Lsn;
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"ARDNTCHG";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 36;
/// Longest content, in bytes, that is unpacked.
const CONTENT_LEN_MAX: u64 = 1 << 40;
const COMPRESSION_LEVEL: i32 = 3;
/// Bytes that are read and written at once.
const BUFFER_LEN: usize = 128 << 10;

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeSetFile {
    /// The branch it was taken from.
    pub branch: String,
    /// From here,
    pub from_lsn: Lsn,
    /// to here.
    pub to_lsn: Lsn,
    /// The changes, by database.
    pub databases: Vec<ChangeSet>,
}

/// A file cannot be used, or not be written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Another kind of file.
    #[error("it is no change set")]
    Magic,
    /// A later version's.
    #[error("it has version {0}, and this program knows version 1: use the program that wrote it, or a newer one")]
    Version(u32),
    /// Cut off or damaged.
    #[error("it is damaged: {what} at byte {offset}")]
    Damaged {
        /// Where.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// What it says makes no sense.
    #[error("its content cannot be understood")]
    Content(#[from] serde_json::Error),
    /// It cannot be read or written.
    #[error("it cannot be read or written")]
    Io(#[from] io::Error),
}

/// Writes a file that its owner alone can read: it has rows of a database in it. Whole, or not at all: what was there under this name
/// stays until then. Symbolic links are followed, and what is no regular file (a pipe, a device) is written into.
pub fn write_file(path: &Path, content: &ChangeSetFile) -> Result<(), FileError> {
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let mut whole = tempfile::tempfile()?;
        write(&mut whole, content)?;
        whole.seek(SeekFrom::Start(0))?;
        io::copy(&mut whole, &mut OpenOptions::new().write(true).open(path)?)?;
        return Ok(());
    }
    let followed = std::fs::canonicalize(path);
    let path = followed.as_deref().unwrap_or(path);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let created = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part);
    let written = created.map_err(FileError::Io).and_then(|file| {
        let mut out = BufWriter::with_capacity(BUFFER_LEN, file);
        write(&mut out, content)?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok(std::fs::rename(&part, path)?)
    });
    if written.is_err() {
        // What is left of it is no change set, and would be taken for one.
        let _ = std::fs::remove_file(&part);
    }
    written
}

/// Reads a file. Its checksum is looked at before its content.
pub fn read_file(path: &Path) -> Result<ChangeSetFile, FileError> {
    read(&mut File::open(path)?)
}

/// Writes the bytes of a file.
pub fn write(out: &mut (impl Write + Seek), content: &ChangeSetFile) -> Result<(), FileError> {
    let start = out.stream_position()?;
    // The real one comes when its numbers are known: a file that is cut off here has no valid header.
    out.write_all(&[0; HEADER_LEN])?;
    let (len, checksum, json_len) = pack(out, content)?;
    let mut header = Vec::with_capacity(HEADER_LEN);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&checksum.to_le_bytes());
    header.extend_from_slice(&len.to_le_bytes());
    header.extend_from_slice(&json_len.to_le_bytes());
    header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
    let end = out.stream_position()?;
    out.seek(SeekFrom::Start(start))?;
    out.write_all(&header)?;
    out.seek(SeekFrom::Start(end))?;
    Ok(out.flush()?)
}

/// Writes the packed content; its length, its checksum, and its length before it was packed.
fn pack(out: &mut impl Write, content: &ChangeSetFile) -> Result<(u64, u32, u64), FileError> {
    let packer = zstd::Encoder::new(Counted { inner: out, len: 0, checksum: 0 }, COMPRESSION_LEVEL)?;
    let mut json = Counted { inner: BufWriter::with_capacity(BUFFER_LEN, packer), len: 0, checksum: 0 };
    serde_json::to_writer(&mut json, content).map_err(|error| match error.is_io() {
        true => FileError::Io(error.into()),
        false => FileError::Content(error),
    })?;
    let packer = json.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    let packed = packer.finish()?;
    Ok((packed.len, packed.checksum, json.len))
}

/// Reads what [`write`] wrote.
pub fn read(file: &mut (impl Read + Seek)) -> Result<ChangeSetFile, FileError> {
    let damaged = |offset, what| FileError::Damaged { offset, what };
    let mut header = Vec::new();
    file.by_ref().take(HEADER_LEN as u64).read_to_end(&mut header)?;
    if !header.starts_with(MAGIC) {
        return Err(FileError::Magic);
    }
    if header.len() < HEADER_LEN {
        return Err(damaged(header.len() as u64, "the header is cut off"));
    }
    let u32_at = |at: usize| header[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let u64_at = |at: usize| header[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if u32_at(8) != VERSION {
        return Err(FileError::Version(u32_at(8)));
    }
    if u32_at(32) != crc32c::crc32c(&header[..32]) {
        return Err(damaged(0, "the header's checksum is wrong"));
    }
    let (packed_len, json_len) = (u64_at(16), u64_at(24));
    if json_len > CONTENT_LEN_MAX {
        return Err(damaged(24, "the content is too long"));
    }
    // All of it is looked at before anything is believed.
    let mut counted = Counted { inner: io::sink(), len: 0, checksum: 0 };
    io::copy(&mut BufReader::with_capacity(BUFFER_LEN, file.by_ref()), &mut counted)?;
    if counted.len != packed_len {
        return Err(damaged(HEADER_LEN as u64 + counted.len, "the length is another than the header's"));
    }
    if counted.checksum != u32_at(12) {
        return Err(damaged(HEADER_LEN as u64, "the content's checksum is wrong"));
    }
    file.seek(SeekFrom::Current(-i64::try_from(packed_len).map_err(|_| damaged(16, "the length is too long"))?))?;
    let packed = BufReader::with_capacity(BUFFER_LEN, file.take(packed_len));
    let mut json = BufReader::with_capacity(BUFFER_LEN, zstd::Decoder::with_buffer(packed)?.take(json_len));
    Ok(serde_json::from_reader(&mut json)?)
}

/// Counts what goes through.
struct Counted<W> {
    inner: W,
    len: u64,
    checksum: u32,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.len += written as u64;
        self.checksum = crc32c::crc32c_append(self.checksum, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use ardent_diff::{RowChange, Spool, TableChange, TableState};

    use super::*;

    fn file(databases: Vec<ChangeSet>) -> ChangeSetFile {
        ChangeSetFile { branch: "b".into(), from_lsn: Lsn::new(16), to_lsn: Lsn::new(32), databases }
    }

    fn sample() -> ChangeSetFile {
        file(vec![ChangeSet { database: "shop".into(), ..ChangeSet::default() }])
    }

    fn bytes_of(content: &ChangeSetFile) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        write(&mut out, content).expect("memory can be written");
        out.into_inner()
    }

    #[test]
    fn what_is_written_is_read_and_damage_is_found() {
        let bytes = bytes_of(&sample());
        assert_eq!(read(&mut Cursor::new(&bytes)).unwrap(), sample());
        for end in 0..bytes.len() {
            assert!(read(&mut Cursor::new(&bytes[..end])).is_err(), "cut at {end}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&mut Cursor::new(&damaged)).is_err(), "bit {bit}");
        }
        let longer = [bytes, vec![0]].concat();
        assert!(read(&mut Cursor::new(&longer)).is_err(), "something behind it");
    }

    #[test]
    fn what_the_path_names_is_kept_unless_it_is_a_file() {
        use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "old").expect("written");
        std::os::unix::fs::symlink(at("file"), at("link")).expect("linked");
        write_file(&at("link"), &sample()).expect("written");
        assert!(std::fs::symlink_metadata(at("link")).expect("there").is_symlink());
        assert_eq!(read_file(&at("file")).expect("read"), sample());
        let mode = std::fs::metadata(at("file")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "others may not read rows");

        let made = std::process::Command::new("mkfifo").arg(at("pipe")).status().expect("mkfifo runs");
        assert!(made.success());
        let pipe = at("pipe");
        let reader = std::thread::spawn(move || std::fs::read(pipe).expect("read"));
        write_file(&at("pipe"), &sample()).expect("written");
        assert_eq!(reader.join().expect("joined"), bytes_of(&sample()));
        assert!(std::fs::symlink_metadata(at("pipe")).expect("there").file_type().is_fifo());
    }

    #[test]
    fn large_objects_of_older_programs_are_read() {
        let older =
            r#"{"database":"shop","tables":[],"sequences":[],"large_objects":[{"oid":7,"state":"kept","pages":[]}]}"#;
        let set: ChangeSet = serde_json::from_str(older).expect("no owner, no comment");
        let large_objects = vec![ardent_diff::LargeObjectChange::kept(7)];
        assert_eq!(set, ChangeSet { database: "shop".into(), large_objects, ..ChangeSet::default() });
        assert_eq!(serde_json::to_string(&set).expect("plain data"), older);
    }

    /// The content is in a frame of zstd that is not compressed: what compressing makes of it is zstd's own.
    #[test]
    fn golden_bytes() {
        let golden = [
            &b"ARDNTCHG\x01\0\0\0"[..],
            b"\xd0\xdb\x7d\x35",
            b"\x54\x00\x00\x00\x00\x00\x00\x00",
            b"\x4b\x00\x00\x00\x00\x00\x00\x00",
            b"\xc1\xa0\xa2\x22",
            b"\x28\xb5\x2f\xfd\x20\x4b\x59\x02\x00",
            br#"{"branch":"b","from_lsn":"0/00000010","to_lsn":"0/00000020","databases":[]}"#,
        ]
        .concat();
        assert_eq!(read(&mut Cursor::new(&golden)).expect("it is whole"), file(vec![]));
        let written = bytes_of(&file(vec![]));
        let (header, packed) = written.split_at(36);
        let (checksum, len) = (crc32c::crc32c(packed).to_le_bytes(), (packed.len() as u64).to_le_bytes());
        let expect = [&golden[..12], &checksum, &len, &golden[24..32]].concat();
        assert_eq!(header[..32], expect);
        assert_eq!(header[32..], crc32c::crc32c(&expect).to_le_bytes());
    }

    /// Rows go from a list in a file to a file and back without being held: what is in memory stays what lists may keep there.
    #[test]
    fn a_long_change_set_goes_through_a_file_in_bounded_memory() {
        const ROWS: u32 = 100_000;
        let row = |number: u32| RowChange::Insert { new: vec![Some(number.to_string()), Some("value ".repeat(80))] };
        let table = TableChange {
            schema: "public".into(),
            name: "t".into(),
            renamed_from: None,
            state: TableState::Kept,
            columns: vec!["id".into(), "v".into()],
            columns_added: vec![],
            columns_dropped: vec![],
            base_columns: vec![],
            generated: vec![],
            columns_left: vec![],
            unguarded: vec![],
            materialized_view: false,
            key: vec!["id".into()],
            rows: Spool::of((0..ROWS).map(row)).expect("a temp file"),
            copies: Spool::default(),
        };
        let set = ChangeSet { database: "shop".into(), tables: vec![table], ..ChangeSet::default() };
        let folder = tempfile::tempdir().expect("a temp folder");
        let path = folder.path().join("long.changes");
        write_file(&path, &file(vec![set.clone()])).expect("written");
        let back = read_file(&path).expect("read");
        assert!(ardent_diff::memory_bytes() <= ardent_diff::MEMORY_BYTES_MAX, "{} bytes", ardent_diff::memory_bytes());
        assert_eq!(back.databases, [set]);
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1, "nothing else is left there");
    }
}
