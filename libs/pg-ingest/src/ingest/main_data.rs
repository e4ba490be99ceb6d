//! Bounds-checked reading of a record's main data.

/// The data ends before a field does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CutShort;

/// A cursor over main data.
#[derive(Clone, Debug)]
pub(crate) struct MainData<'a>(pub &'a [u8]);

impl<'a> MainData<'a> {
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], CutShort> {
        let (part, rest) = self.0.split_at_checked(len).ok_or(CutShort)?;
        self.0 = rest;
        Ok(part)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CutShort> {
        Ok(self.take(N)?.try_into().expect("take returned N bytes"))
    }

    pub fn u8(&mut self) -> Result<u8, CutShort> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16, CutShort> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, CutShort> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, CutShort> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub fn i64(&mut self) -> Result<i64, CutShort> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// A `bool` field: Postgres writes 0 or 1.
    pub fn flag(&mut self) -> Result<bool, CutShort> {
        Ok(self.u8()? != 0)
    }

    /// A count (`int`) that is not negative, and small enough that so many things of `item_len` bytes are there.
    pub fn count(&mut self, item_len: usize) -> Result<usize, CutShort> {
        let count = usize::try_from(self.u32()?).map_err(|_| CutShort)?;
        let fits = count.checked_mul(item_len).is_some_and(|len| len <= self.0.len());
        if fits { Ok(count) } else { Err(CutShort) }
    }

    /// `count` 32-bit numbers.
    pub fn u32s(&mut self, count: usize) -> Result<impl ExactSizeIterator<Item = u32> + Clone + use<'a>, CutShort> {
        let bytes = self.take(count.checked_mul(4).ok_or(CutShort)?)?;
        Ok(bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("4 bytes"))))
    }

    /// A zero-terminated string, without the zero.
    pub fn c_string(&mut self) -> Result<&'a [u8], CutShort> {
        let len = self.0.iter().position(|&byte| byte == 0).ok_or(CutShort)?;
        let text = self.take(len)?;
        self.take(1)?;
        Ok(text)
    }
}
