//! The stream that a kept state is; byte table in `docs/formats/kept-state.md`.

use std::io::{self, Read, Write};

use ardent_types::{BLCKSZ, BlockNumber, ForkNumber, Lsn, RelTag};

const MAGIC: [u8; 4] = *b"ARKT";
const VERSION: u16 = 1;
const TAG_END: u8 = 0;
const TAG_FILE: u8 = 1;
const TAG_PAGES: u8 = 2;
/// Longest path of a file in it.
const PATH_LEN_MAX: usize = 1024;
/// Bytes of a file moved at a time.
const CHUNK_LEN: usize = 64 << 10;

/// What the state belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Major version.
    pub(crate) major: u32,
    /// End of the log.
    pub(crate) lsn: Lsn,
    /// `pg_control`'s counter for unlogged relations: their pages have LSNs below it.
    pub(crate) unlogged_lsn: Lsn,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// A file; its content follows, by [`StateReader::content`].
    File { path: String, length: u64 },
    /// Blocks of a relation fork of `nblocks` blocks; as many pages follow, by [`StateReader::page`].
    Pages { rel: RelTag, nblocks: BlockNumber, count: u32 },
    /// Everything has come.
    End,
}

/// Writes a state.
pub(crate) struct StateWriter<W>(W);

impl<W: Write> StateWriter<W> {
    pub(crate) fn begin(mut out: W, header: Header) -> io::Result<Self> {
        out.write_all(&MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        out.write_all(&[0; 2])?;
        out.write_all(&header.major.to_le_bytes())?;
        out.write_all(&header.lsn.get().to_le_bytes())?;
        out.write_all(&header.unlogged_lsn.get().to_le_bytes())?;
        Ok(StateWriter(out))
    }

    /// A file of exactly `length` bytes. One that has become shorter is an error.
    pub(crate) fn file(&mut self, path: &str, length: u64, content: impl Read) -> io::Result<()> {
        self.0.write_all(&[TAG_FILE])?;
        self.0.write_all(&(path.len() as u32).to_le_bytes())?;
        self.0.write_all(path.as_bytes())?;
        self.0.write_all(&length.to_le_bytes())?;
        match io::copy(&mut content.take(length), &mut self.0)? {
            copied if copied == length => Ok(()),
            copied => Err(io::Error::other(format!("{path} has {copied} bytes and not {length}"))),
        }
    }

    /// Blocks of a relation fork.
    pub(crate) fn pages(
        &mut self,
        rel: RelTag,
        nblocks: BlockNumber,
        pages: &[(BlockNumber, Vec<u8>)],
    ) -> io::Result<()> {
        self.0.write_all(&[TAG_PAGES])?;
        for number in [rel.spcnode, rel.dbnode, rel.relnode] {
            self.0.write_all(&number.to_le_bytes())?;
        }
        self.0.write_all(&[rel.fork as u8])?;
        self.0.write_all(&nblocks.to_le_bytes())?;
        self.0.write_all(&(pages.len() as u32).to_le_bytes())?;
        for (block, page) in pages {
            assert_eq!(page.len(), BLCKSZ, "a page is a page");
            self.0.write_all(&block.to_le_bytes())?;
            self.0.write_all(page)?;
        }
        Ok(())
    }

    pub(crate) fn end(mut self) -> io::Result<W> {
        self.0.write_all(&[TAG_END])?;
        Ok(self.0)
    }
}

/// Reads a state. Anything that is none is an error of kind `InvalidData`; a part of one, `UnexpectedEof`.
pub(crate) struct StateReader<R> {
    input: R,
    header: Header,
}

impl<R: Read> StateReader<R> {
    pub(crate) fn begin(mut input: R) -> io::Result<Self> {
        let mut start = [0; 8];
        input.read_exact(&mut start)?;
        if start[..4] != MAGIC {
            return Err(invalid("it does not begin as a kept state does"));
        }
        let version = u16::from_le_bytes([start[4], start[5]]);
        if version != VERSION {
            return Err(invalid(format!("it is of version {version}, and this program reads version {VERSION}")));
        }
        let mut reader =
            StateReader { input, header: Header { major: 0, lsn: Lsn::INVALID, unlogged_lsn: Lsn::INVALID } };
        reader.header.major = reader.u32()?;
        reader.header.lsn = Lsn::new(reader.u64()?);
        reader.header.unlogged_lsn = Lsn::new(reader.u64()?);
        Ok(reader)
    }

    pub(crate) fn header(&self) -> Header {
        self.header
    }

    /// The next item. What follows the one before must have been read.
    pub(crate) fn item(&mut self) -> io::Result<Item> {
        match self.u8()? {
            TAG_END => Ok(Item::End),
            TAG_FILE => {
                let length = self.u32()? as usize;
                if length > PATH_LEN_MAX {
                    return Err(invalid(format!("a path of {length} bytes")));
                }
                let mut path = vec![0; length];
                self.input.read_exact(&mut path)?;
                let path = String::from_utf8(path).map_err(|_| invalid("a path that is not UTF-8"))?;
                Ok(Item::File { path, length: self.u64()? })
            }
            TAG_PAGES => {
                let (spcnode, dbnode, relnode) = (self.u32()?, self.u32()?, self.u32()?);
                let fork = ForkNumber::from_raw(self.u8()?).ok_or_else(|| invalid("a fork that does not exist"))?;
                let (nblocks, count) = (self.u32()?, self.u32()?);
                if count > nblocks {
                    return Err(invalid(format!("{count} pages of a fork of {nblocks}")));
                }
                Ok(Item::Pages { rel: RelTag { spcnode, dbnode, relnode, fork }, nblocks, count })
            }
            tag => Err(invalid(format!("an item of kind {tag}"))),
        }
    }

    /// A file's content, a chunk at a time.
    pub(crate) fn content(&mut self, length: u64, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_LEN];
        let mut left = length;
        while left > 0 {
            let part = &mut chunk[..usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_LEN)];
            self.input.read_exact(part)?;
            each(part)?;
            left -= part.len() as u64;
        }
        Ok(())
    }

    /// A page and its number.
    pub(crate) fn page(&mut self, page: &mut [u8; BLCKSZ]) -> io::Result<BlockNumber> {
        let block = self.u32()?;
        self.input.read_exact(page)?;
        Ok(block)
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u8(&mut self) -> io::Result<u8> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }
}

pub(crate) fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16_384, fork: ForkNumber::Fsm };

    fn header() -> Header {
        Header { major: 15, lsn: Lsn::new(0x0100_0028), unlogged_lsn: Lsn::new(1003) }
    }

    fn sample() -> Vec<u8> {
        let mut writer = StateWriter::begin(Vec::new(), header()).expect("memory");
        writer.file("pg_stat/pgstat.stat", 5, &b"stats"[..]).expect("memory");
        writer.pages(REL, 3, &[(0, vec![1; BLCKSZ]), (2, vec![2; BLCKSZ])]).expect("memory");
        writer.end().expect("memory")
    }

    /// All of it: items, contents, first bytes of pages.
    fn read(bytes: &[u8]) -> io::Result<(Header, Vec<(Item, Vec<u8>)>)> {
        let mut reader = StateReader::begin(bytes)?;
        let mut items = Vec::new();
        loop {
            let item = reader.item()?;
            let mut content = Vec::new();
            match item {
                Item::End => return Ok((reader.header(), items)),
                Item::File { length, .. } => reader.content(length, |chunk| {
                    content.extend_from_slice(chunk);
                    Ok(())
                })?,
                Item::Pages { count, .. } => {
                    for _ in 0..count {
                        let mut page = [0; BLCKSZ];
                        content.push(reader.page(&mut page)? as u8);
                        content.push(page[0]);
                    }
                }
            }
            items.push((item, content));
        }
    }

    #[test]
    fn states_round_trip_and_every_truncation_is_an_error() {
        let bytes = sample();
        let expect = vec![
            (Item::File { path: "pg_stat/pgstat.stat".into(), length: 5 }, b"stats".to_vec()),
            (Item::Pages { rel: REL, nblocks: 3, count: 2 }, vec![0, 1, 2, 2]),
        ];
        assert_eq!(read(&bytes).expect("whole"), (header(), expect));
        for length in (0..300).chain([bytes.len() - 1]) {
            let error = read(&bytes[..length]).expect_err("cut off");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{length}");
        }
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = sample();
            change(&mut bytes);
            read(&bytes).expect_err("no state").to_string()
        };
        assert!(refused(&|bytes| bytes[0] = b'X').contains("does not begin"));
        assert!(refused(&|bytes| bytes[4] = 2).contains("version 2"));
        assert!(refused(&|bytes| bytes[28] = 9).contains("kind 9"));
        assert!(refused(&|bytes| bytes[32] = 0xFF).contains("a path of"));
    }

    #[test]
    fn a_state_of_version_1_is_written_as_when_it_was_new() {
        let mut writer = StateWriter::begin(Vec::new(), header()).expect("memory");
        writer.file("pg_stat/a", 1, &b"x"[..]).expect("memory");
        writer.pages(REL, 3, &[]).expect("memory");
        let bytes = writer.end().expect("memory");
        let golden = "41524b5401000000\
                      0f000000\
                      2800000100000000\
                      eb03000000000000\
                      01090000007067\
                      5f737461742f61\
                      0100000000000000\
                      78\
                      027f06000005000000004000000103000000\
                      00000000\
                      00";
        assert_eq!(hex::encode(bytes), golden);
    }
}
