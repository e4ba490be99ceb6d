//! Restoring full-page images.

use ardent_types::{BLCKSZ, BlockNumber, Lsn, RelTag};

use crate::page::{self, PageBytes};
use crate::pglz;
use crate::record::{DecodedBlock, DecodedRecord, ImageCompression};

/// A full-page image can't be restored.
#[derive(Debug, thiserror::Error)]
#[error("the full-page image of {rel} block {blkno} in the WAL record that ends at {lsn} can't be restored: {problem}")]
pub struct ImageError {
    /// End of the record.
    pub lsn: Lsn,
    /// Relation fork.
    pub rel: RelTag,
    /// Block.
    pub blkno: BlockNumber,
    /// What is wrong.
    pub problem: ImageProblem,
}

/// What is wrong with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImageProblem {
    /// There is none.
    #[error("the record has no image of this block")]
    Absent,
    /// It doesn't decompress.
    #[error("its {compression:?} data is damaged")]
    Damaged {
        /// How it is compressed.
        compression: ImageCompression,
    },
    /// It decompresses to another length.
    #[error("it holds {found} bytes and not {expected}")]
    Length {
        /// What it holds.
        found: usize,
        /// The page without its hole.
        expected: usize,
    },
}

/// The page in `block`'s full-page image. An image that is to be applied is stamped with the end of the record, unless the page is new
/// (checklist 16); one for consistency checking stays as it is.
pub fn restore_image(record: &DecodedRecord<'_>, block: &DecodedBlock) -> Result<PageBytes, ImageError> {
    let mut page = [0; BLCKSZ];
    restore_image_into(record, block, &mut page)?;
    Ok(page)
}

/// [`restore_image`] without moving a page. On an error the page's content is undefined.
pub fn restore_image_into(
    record: &DecodedRecord<'_>,
    block: &DecodedBlock,
    page: &mut PageBytes,
) -> Result<(), ImageError> {
    fill(record, block, page).map_err(|problem| ImageError {
        lsn: record.end_lsn,
        rel: block.rel,
        blkno: block.blkno,
        problem,
    })?;
    if block.has_applied_image() && !page::is_new(page) {
        page::set_lsn(page, record.end_lsn);
    }
    Ok(())
}

fn fill(record: &DecodedRecord<'_>, block: &DecodedBlock, page: &mut PageBytes) -> Result<(), ImageProblem> {
    let image = block.image.as_ref().ok_or(ImageProblem::Absent)?;
    let stored = record.image_data(image);
    let (hole_start, hole_length) = (usize::from(image.hole_offset), usize::from(image.hole_length));
    let expected = BLCKSZ.checked_sub(hole_length).filter(|&length| hole_start <= length);
    let expected = expected.ok_or(ImageProblem::Length { found: hole_start + hole_length, expected: BLCKSZ })?;
    if image.compression == ImageCompression::None {
        if stored.len() != expected {
            return Err(ImageProblem::Length { found: stored.len(), expected });
        }
        page[..hole_start].copy_from_slice(&stored[..hole_start]);
        page[hole_start + hole_length..].copy_from_slice(&stored[hole_start..]);
    } else {
        // Decompressed to the page's front, then what lies behind the hole is moved to the end.
        decompress(image.compression, stored, &mut page[..expected])?;
        page.copy_within(hole_start..expected, hole_start + hole_length);
    }
    page[hole_start..hole_start + hole_length].fill(0);
    Ok(())
}

fn decompress(compression: ImageCompression, stored: &[u8], output: &mut [u8]) -> Result<(), ImageProblem> {
    let damaged = ImageProblem::Damaged { compression };
    let found = match compression {
        ImageCompression::Pglz => pglz::decompress(stored, output).map(|()| output.len()).map_err(|_| damaged)?,
        ImageCompression::Lz4 => lz4_flex::block::decompress_into(stored, output).map_err(|_| damaged)?,
        ImageCompression::Zstd => zstd::bulk::decompress_to_buffer(stored, output).map_err(|_| damaged)?,
        ImageCompression::None => stored.len(),
    };
    if found == output.len() { Ok(()) } else { Err(ImageProblem::Length { found, expected: output.len() }) }
}
