//! Pages in memory, as a server's shared buffers: a page that a record touches first is read from its file then.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasherDefault, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ardent_pg_format::PgMajor;
use ardent_types::{BLCKSZ, BlockNumber, RelTag};
use memmap2::{Advice, MmapMut};

/// Pages allocated at a time.
const CHUNK_PAGES: usize = 8192;
const UNREAD: u32 = u32::MAX;

type Page = [u8; BLCKSZ];

/// Pages by relation fork and block.
pub struct Pages {
    base: PathBuf,
    forks: HashMap<RelTag, usize, BuildHasherDefault<TagHasher>>,
    files: Vec<Fork>,
    chunks: Vec<MmapMut>,
    touched: Vec<(RelTag, BlockNumber)>,
}

struct Fork {
    file: Option<File>,
    /// Where each block's page is, [`UNREAD`] if nobody asked for it.
    blocks: Vec<u32>,
}

impl Pages {
    /// Pages that start from the files of the data directory `base`.
    pub fn new(base: &Path) -> Pages {
        Pages {
            base: base.to_owned(),
            forks: HashMap::default(),
            files: Vec::new(),
            chunks: Vec::new(),
            touched: Vec::new(),
        }
    }

    /// The page; zeros where neither its file nor a record has given it content.
    #[inline]
    pub fn get(&mut self, rel: RelTag, block: BlockNumber) -> &mut Page {
        let fork = match self.forks.get(&rel) {
            Some(fork) => *fork,
            None => self.open(rel),
        };
        let number = match self.files[fork].blocks.get(block as usize) {
            Some(number) if *number != UNREAD => *number as usize,
            _ => self.read(rel, fork, block),
        };
        page(&mut self.chunks, number)
    }

    /// Blocks from `blocks` on are gone: those that were asked for are zeros from now on.
    pub fn truncate(&mut self, rel: RelTag, blocks: BlockNumber) {
        let fork = match self.forks.get(&rel) {
            Some(fork) => *fork,
            None => self.open(rel),
        };
        let known = self.files[fork].blocks.len();
        for block in (blocks as usize)..known {
            let number = self.files[fork].blocks[block];
            if number != UNREAD {
                page(&mut self.chunks, number as usize).fill(0);
            }
        }
    }

    /// The same pages as these, each as its file has it.
    pub fn again(&self) -> Pages {
        let mut pages = Pages::new(&self.base);
        for (rel, block) in &self.touched {
            pages.get(*rel, *block);
        }
        pages
    }

    #[cold]
    fn open(&mut self, rel: RelTag) -> usize {
        let file = File::open(self.base.join(rel.path(PgMajor::V15.tablespace_directory()))).ok();
        self.files.push(Fork { file, blocks: Vec::new() });
        self.forks.insert(rel, self.files.len() - 1);
        self.files.len() - 1
    }

    #[cold]
    fn read(&mut self, rel: RelTag, fork: usize, block: BlockNumber) -> usize {
        let number = self.touched.len();
        if number.is_multiple_of(CHUNK_PAGES) {
            // Zeros, in large pages of the processor where the kernel has them.
            let chunk = MmapMut::map_anon(CHUNK_PAGES * BLCKSZ).expect("there is memory");
            let _ = chunk.advise(Advice::HugePage);
            self.chunks.push(chunk);
        }
        let page = page(&mut self.chunks, number);
        self.touched.push((rel, block));
        let Fork { file, blocks } = &mut self.files[fork];
        if let Some(file) = file {
            let read = file.read_at(page, u64::from(block) * BLCKSZ as u64).expect("the base can be read");
            assert!(read == 0 || read == BLCKSZ, "files hold whole pages");
        }
        if blocks.len() <= block as usize {
            blocks.resize((block as usize + 1).next_power_of_two(), UNREAD);
        }
        blocks[block as usize] = number as u32;
        number
    }
}

#[inline]
fn page(chunks: &mut [MmapMut], number: usize) -> &mut Page {
    let at = number % CHUNK_PAGES * BLCKSZ;
    (&mut chunks[number / CHUNK_PAGES][at..at + BLCKSZ]).try_into().expect("cut to this length")
}

/// Multiply and rotate.
#[derive(Default)]
struct TagHasher(u64);

impl Hasher for TagHasher {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    #[inline]
    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0.rotate_left(5) ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    #[inline]
    fn write_isize(&mut self, number: isize) {
        self.write_u32(number as u32);
    }
}
