//! Bounds-checked reading of record data.

use crate::fault::Fault;

/// A cursor over record bytes. Running off the end is a malformed record.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

const SHORT: Fault = Fault::Record("data is cut short");

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let rest = &self.bytes[self.at..];
        let part = rest.get(..len).ok_or(SHORT)?;
        self.at += len;
        Ok(part)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        Ok(self.take(N)?.try_into().expect("take returned N bytes"))
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, Fault> {
        Ok(self.array::<1>()?[0])
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Result<u16, Fault> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    #[inline]
    pub(crate) fn skip(&mut self, len: usize) -> Result<(), Fault> {
        self.take(len).map(|_| ())
    }

    /// Skips to the next multiple of `to` bytes from the start of the data.
    #[inline]
    pub(crate) fn align(&mut self, to: usize) -> Result<(), Fault> {
        let at = self.at.next_multiple_of(to);
        self.skip(at - self.at)
    }

    #[inline]
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        self.at = self.bytes.len();
        rest
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// `count` little-endian u16, such as offset numbers.
    #[inline]
    pub(crate) fn u16s(&mut self, count: usize) -> Result<U16s<'a>, Fault> {
        Ok(U16s(self.take(count.checked_mul(2).ok_or(SHORT)?)?))
    }
}

/// An array of little-endian u16 inside record bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct U16s<'a>(&'a [u8]);

impl<'a> U16s<'a> {
    #[inline]
    pub(crate) fn len(self) -> usize {
        self.0.len() / 2
    }

    #[inline]
    pub(crate) fn get(self, index: usize) -> Option<u16> {
        let at = index.checked_mul(2)?;
        Some(u16::from_le_bytes(self.0.get(at..at + 2)?.try_into().expect("2 bytes")))
    }

    #[inline]
    pub(crate) fn iter(self) -> impl DoubleEndedIterator<Item = u16> + ExactSizeIterator + Clone + 'a {
        self.0.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
    }
}
