//! The two files of a cached object: its bytes, with holes, and the sums of those that are there. See `docs/formats/cache.md`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};

use super::CHUNK_BYTES;
use crate::fault::FailPoints;
use crate::name::{NAME_LEN_MAX, ObjectName};

const MAGIC: &[u8; 8] = b"ARDCACHE";
const VERSION: u32 = 1;
/// Magic, version, chunk size, object size, length of the name, name, CRC.
const HEADER_LEN: usize = 8 + 4 + 4 + 8 + 4 + NAME_LEN_MAX + 4;
/// CRC-32 and whether the chunk is there.
const SLOT_LEN: usize = 8;
const IS_THERE: u32 = 1;

fn slot(crc: u32, is_there: u32) -> [u8; SLOT_LEN] {
    let mut slot = [0; SLOT_LEN];
    slot[..4].copy_from_slice(&crc.to_le_bytes());
    slot[4..].copy_from_slice(&is_there.to_le_bytes());
    slot
}

/// How many chunks an object has.
pub(crate) fn chunk_count(size_bytes: u64) -> u32 {
    u32::try_from(size_bytes.div_ceil(CHUNK_BYTES)).unwrap_or(u32::MAX)
}

/// How long a chunk of an object is.
pub(crate) fn chunk_len(size_bytes: u64, chunk: u32) -> u64 {
    size_bytes.saturating_sub(u64::from(chunk) * CHUNK_BYTES).min(CHUNK_BYTES)
}

/// Where an object's two files are.
#[derive(Clone, Debug)]
pub(crate) struct ChunkFile {
    data: PathBuf,
    sums: PathBuf,
    faults: Arc<FailPoints>,
}

/// What is known of a cached object after a restart.
pub(crate) struct Found {
    pub(crate) number: u64,
    pub(crate) name: ObjectName,
    pub(crate) size_bytes: u64,
    /// Chunks that are there if their sums are right.
    pub(crate) chunks: Vec<u32>,
}

impl ChunkFile {
    pub(crate) fn new(folder: &Path, number: u64, faults: &Arc<FailPoints>) -> Self {
        let file = |extension| folder.join(format!("{number:016x}.{extension}"));
        ChunkFile { data: file("data"), sums: file("sums"), faults: Arc::clone(faults) }
    }

    /// Where the bytes are.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Whether both files were made.
    pub(crate) fn exists(&self) -> bool {
        self.sums.exists()
    }

    /// Makes both files, without chunks. A data file that is there already is kept.
    pub(crate) fn create(&self, name: &ObjectName, size_bytes: u64) -> io::Result<()> {
        self.faults.pass("cache.create")?;
        let data = File::options().create(true).truncate(false).write(true).open(&self.data)?;
        self.faults.pass("cache.extend")?;
        data.set_len(size_bytes)?;
        let mut header = Vec::with_capacity(HEADER_LEN);
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((CHUNK_BYTES as u32).to_le_bytes());
        header.extend(size_bytes.to_le_bytes());
        header.extend((name.as_str().len() as u32).to_le_bytes());
        header.extend(name.as_str().as_bytes());
        header.resize(HEADER_LEN - 4, 0);
        header.extend(crc32fast::hash(&header).to_le_bytes());
        if let Err(error) = self.faults.pass("cache.header") {
            // What a write that was cut off leaves behind.
            fs::write(&self.sums, &header[..HEADER_LEN / 2])?;
            return Err(error);
        }
        fs::write(&self.sums, header)
    }

    /// Keeps the chunks from `first` on that `body` has; only the object's last one may be cut off.
    pub(crate) fn write(&self, first: u32, body: &[u8]) -> io::Result<()> {
        let (data, at) = (File::options().write(true).open(&self.data)?, u64::from(first) * CHUNK_BYTES);
        if let Err(error) = self.faults.pass("cache.write") {
            data.write_all_at(&body[..body.len() / 2], at)?;
            return Err(error);
        }
        data.write_all_at(body, at)?;
        let slots: Vec<u8> =
            body.chunks(CHUNK_BYTES as usize).flat_map(|chunk| slot(crc32fast::hash(chunk), IS_THERE)).collect();
        self.write_slots(first, &slots)
    }

    /// Sums of all chunks of a data file that is complete.
    pub(crate) fn sum_all(&self, size_bytes: u64) -> io::Result<()> {
        let data = File::open(&self.data)?;
        let mut slots = Vec::new();
        let mut body = vec![0; CHUNK_BYTES as usize];
        for chunk in 0..chunk_count(size_bytes) {
            let body = &mut body[..chunk_len(size_bytes, chunk) as usize];
            data.read_exact_at(body, u64::from(chunk) * CHUNK_BYTES)?;
            slots.extend(slot(crc32fast::hash(body), IS_THERE));
        }
        self.faults.pass("cache.sums")?;
        File::options().write(true).open(&self.sums)?.write_all_at(&slots, HEADER_LEN as u64)
    }

    fn write_slots(&self, first: u32, slots: &[u8]) -> io::Result<()> {
        let at = HEADER_LEN as u64 + u64::from(first) * SLOT_LEN as u64;
        self.faults.pass("cache.slot")?;
        File::options().write(true).open(&self.sums)?.write_all_at(slots, at)
    }

    /// Bytes of the object that are surely there.
    pub(crate) fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        File::open(&self.data)?.read_exact_at(into, at)
    }

    /// A chunk, if its sum is right.
    pub(crate) fn read_checked(&self, chunk: u32, length: u64) -> io::Result<Vec<u8>> {
        let mut slot = [0; SLOT_LEN];
        let at = HEADER_LEN as u64 + u64::from(chunk) * SLOT_LEN as u64;
        File::open(&self.sums)?.read_exact_at(&mut slot, at)?;
        let mut body = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.read(u64::from(chunk) * CHUNK_BYTES, &mut body)?;
        let expected = u32::from_le_bytes([slot[0], slot[1], slot[2], slot[3]]);
        if crc32fast::hash(&body) != expected {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a chunk's sum is wrong"));
        }
        Ok(body)
    }

    /// Gives a chunk's space back.
    pub(crate) fn drop_chunk(&self, chunk: u32, length: u64) -> io::Result<()> {
        self.write_slots(chunk, &slot(0, 0))?;
        let data = File::options().write(true).open(&self.data)?;
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let at = i64::try_from(u64::from(chunk) * CHUNK_BYTES).map_err(io::Error::other)?;
        self.faults.pass("cache.hole")?;
        Ok(fallocate(&data, hole, at, i64::try_from(length).map_err(io::Error::other)?)?)
    }

    /// Removes both files.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for path in [&self.sums, &self.data] {
            match self.faults.pass("cache.remove").and_then(|()| fs::remove_file(path)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// What an earlier process left in `folder`. Files that can't be understood are removed.
pub(crate) fn find_all(folder: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut others = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| u64::from_str_radix(stem.to_str()?, 16).ok());
        match (number, path.extension().and_then(|extension| extension.to_str())) {
            (Some(number), Some("sums")) => match read_sums(&path, number) {
                Ok(Some(object)) if path.with_extension("data").exists() => found.push(object),
                _ => others.push(path),
            },
            (Some(_), Some("data")) => others.push(path),
            // Not ours.
            _ => {}
        }
    }
    let is_used = |path: &Path| {
        let number = path.file_stem().and_then(|stem| u64::from_str_radix(stem.to_str()?, 16).ok());
        path.extension().is_some_and(|extension| extension == "data")
            && found.iter().any(|object: &Found| Some(object.number) == number)
    };
    for path in others.iter().filter(|path| !is_used(path)) {
        fs::remove_file(path)?;
    }
    Ok(found)
}

fn read_sums(path: &Path, number: u64) -> io::Result<Option<Found>> {
    let all = fs::read(path)?;
    let Some((header, slots)) = all.split_at_checked(HEADER_LEN) else { return Ok(None) };
    let (content, crc) = header.split_at(HEADER_LEN - 4);
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let is_ours = content.starts_with(MAGIC)
        && crc == crc32fast::hash(content).to_le_bytes()
        && (word(8), u64::from(word(12))) == (VERSION, CHUNK_BYTES);
    let name = content.get(28..28 + word(24) as usize).and_then(|name| std::str::from_utf8(name).ok());
    let (true, Some(Ok(name))) = (is_ours, name.map(ObjectName::new)) else { return Ok(None) };
    let size_bytes = u64::from(word(16)) | u64::from(word(20)) << 32;
    let is_there = |slot: &[u8]| slot[4..] == IS_THERE.to_le_bytes();
    let slots = slots.chunks_exact(SLOT_LEN).take(chunk_count(size_bytes) as usize);
    let chunks = slots.zip(0u32..).filter(|(slot, _)| is_there(slot)).map(|(_, chunk)| chunk).collect();
    Ok(Some(Found { number, name, size_bytes, chunks }))
}
