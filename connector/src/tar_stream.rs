//! The tar archives of a base backup, as their bytes come. Postgres writes plain ustar headers without extensions.

use bytes::{Buf, Bytes};

const BLOCK_LEN: usize = 512;

/// What is in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TarEvent {
    /// A file begins.
    File { path: String, length: u64 },
    /// Its next bytes.
    Data(Bytes),
    /// A folder or a link.
    Other,
}

/// An archive is damaged.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the tar archive of the base backup is damaged at byte {offset}: {problem}")]
pub struct TarError {
    /// Offset in the archive.
    pub offset: u64,
    /// What is wrong.
    pub problem: &'static str,
}

/// Reads one archive.
#[derive(Debug, Default)]
pub(crate) struct TarStream {
    received: Bytes,
    /// Bytes of the current file that are still to come.
    data_left: u64,
    /// Zeros behind it.
    padding_left: u64,
    /// Bytes taken so far.
    offset: u64,
    ended: bool,
}

impl TarStream {
    /// Nearly always all that came before is taken by then, so nothing is copied.
    pub(crate) fn feed(&mut self, bytes: Bytes) {
        self.received = if self.received.is_empty() { bytes } else { [&self.received[..], &bytes].concat().into() };
    }

    /// The next event; `None` until more bytes are fed.
    pub(crate) fn next(&mut self) -> Result<Option<TarEvent>, TarError> {
        if self.data_left > 0 {
            let length = self.received.len().min(usize::try_from(self.data_left).unwrap_or(usize::MAX));
            if length == 0 {
                return Ok(None);
            }
            self.data_left -= length as u64;
            self.offset += length as u64;
            return Ok(Some(TarEvent::Data(self.received.split_to(length))));
        }
        let padding = self.received.len().min(self.padding_left as usize);
        self.received.advance(padding);
        self.padding_left -= padding as u64;
        self.offset += padding as u64;
        if self.ended {
            // Zeros up to the end.
            self.received.clear();
            return Ok(None);
        }
        if self.padding_left > 0 || self.received.len() < BLOCK_LEN {
            return Ok(None);
        }
        let header = self.received.split_to(BLOCK_LEN);
        self.header(&header)
    }

    /// Whether the archive may end here: between files, or behind its end mark.
    pub(crate) fn is_complete(&self) -> bool {
        self.data_left == 0 && self.padding_left == 0 && self.received.is_empty()
    }

    fn header(&mut self, header: &[u8]) -> Result<Option<TarEvent>, TarError> {
        if header.iter().all(|&byte| byte == 0) {
            // Zeros up to the end.
            self.ended = true;
            self.received.clear();
            return Ok(None);
        }
        let offset = self.offset;
        let error = |problem| TarError { offset, problem };
        let sum: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
        let stored: u64 = header[148..156].iter().map(|&byte| u64::from(byte)).sum();
        // The checksum counts its own field as spaces.
        if number(&header[148..156]) != Some(sum - stored + 8 * u64::from(b' ')) {
            return Err(error("a header's checksum is wrong"));
        }
        let length = number(&header[124..136]).ok_or_else(|| error("a file's length is no number"))?;
        let name = text(&header[..100]).ok_or_else(|| error("a file's name is not UTF-8"))?;
        let prefix = text(&header[345..500]).ok_or_else(|| error("a file's name is not UTF-8"))?;
        self.offset += BLOCK_LEN as u64;
        match header[156] {
            b'0' | 0 => {
                self.data_left = length;
                self.padding_left = length.next_multiple_of(BLOCK_LEN as u64) - length;
                let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
                Ok(Some(TarEvent::File { path, length }))
            }
            b'1' | b'2' | b'5' => Ok(Some(TarEvent::Other)),
            _ => Err(error("an entry is neither file, folder nor link")),
        }
    }
}

/// Octal digits, or for large values big-endian bytes behind a set top bit.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (head, tail) = field.split_at(field.len() - 8);
        let plain = head[0] == 0x80 && head[1..].iter().all(|&byte| byte == 0);
        // A length this large can't be, and would overflow when it is rounded up.
        let value = u64::from_be_bytes(tail.try_into().ok()?);
        return Some(value).filter(|value| plain && *value < 1 << 60);
    }
    let digits = field.split(|&byte| byte == 0 || byte == b' ').find(|part| !part.is_empty())?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

fn text(field: &[u8]) -> Option<String> {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    String::from_utf8(field[..end].to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(path: &str, length: &str, kind: u8) -> Vec<u8> {
        let mut block = vec![0; BLOCK_LEN];
        block[..path.len()].copy_from_slice(path.as_bytes());
        block[124..124 + length.len()].copy_from_slice(length.as_bytes());
        block[156] = kind;
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }

    fn read(archive: &[u8], piece: usize) -> Result<(Vec<(String, Vec<u8>)>, bool), TarError> {
        let (mut stream, mut files) = (TarStream::default(), Vec::<(String, Vec<u8>)>::new());
        for piece in archive.chunks(piece) {
            stream.feed(Bytes::copy_from_slice(piece));
            while let Some(event) = stream.next()? {
                match event {
                    TarEvent::File { path, .. } => files.push((path, Vec::new())),
                    TarEvent::Data(data) => files.last_mut().unwrap().1.extend_from_slice(&data),
                    TarEvent::Other => {}
                }
            }
        }
        Ok((files, stream.is_complete()))
    }

    fn archive() -> Vec<u8> {
        let mut bytes = header("base/1", "00000000000", b'5');
        bytes.extend(header("base/1/2", "00000001003", b'0'));
        bytes.extend([7; 515]);
        bytes.extend([0; 1024 - 515]);
        bytes.extend(header("empty", "00000000000", b'0'));
        bytes.extend([0; 1024]);
        bytes
    }

    #[test]
    fn files_come_out_however_the_bytes_are_cut() {
        for piece in [1, 100, 512, 5000] {
            let (files, complete) = read(&archive(), piece).unwrap();
            assert_eq!(files, [("base/1/2".to_owned(), vec![7; 515]), ("empty".to_owned(), vec![])]);
            assert!(complete);
        }
    }

    #[test]
    fn damage_and_truncation_are_noticed() {
        let mut damaged = archive();
        damaged[512] ^= 1;
        assert_eq!(read(&damaged, 512).unwrap_err().offset, 512);
        assert!(!read(&archive()[..1100], 512).unwrap().1);
        assert_eq!(number(&[0xFF; 12]), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]), Some(2 << 32));
    }
}
