//! The page checksum of `checksum_impl.h`: 32 interleaved FNV-1a-like sums, folded to 16 bits, mixed with the block number.

use ardent_types::{BLCKSZ, BlockNumber};

use super::{PageBytes, checksum};

const LANES: usize = 32;
const PRIME: u32 = 16_777_619;

/// Start values of the lanes, fixed by Postgres.
const OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// The checksum that Postgres stores in `pd_checksum` of this page (`pg_checksum_page`); the stored one doesn't count.
pub fn checksum_page(page: &PageBytes, block: BlockNumber) -> u16 {
    let mut sums = OFFSETS;
    for (row, bytes) in page.chunks_exact(LANES * 4).enumerate() {
        for (lane, word) in bytes.chunks_exact(4).enumerate() {
            let mut value = u32::from_le_bytes(word.try_into().expect("4 bytes"));
            if row == 0 && lane == 2 {
                // Bytes 8 and 9 are the checksum itself, taken as zero.
                value &= 0xFFFF_0000;
            }
            mix(&mut sums[lane], value);
        }
    }
    for _ in 0..2 {
        for sum in &mut sums {
            mix(sum, 0);
        }
    }
    let folded = sums.iter().fold(0, |all, sum| all ^ sum);
    ((folded ^ block) % 65_535 + 1) as u16
}

#[inline(always)]
fn mix(sum: &mut u32, value: u32) {
    let mixed = *sum ^ value;
    *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
}

/// Whether the stored checksum is right.
pub fn page_checksum_matches(page: &PageBytes, block: BlockNumber) -> bool {
    checksum(page) == checksum_page(page, block)
}

const _: () = assert!(BLCKSZ.is_multiple_of(LANES * 4));
