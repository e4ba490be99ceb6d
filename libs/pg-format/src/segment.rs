//! WAL segment files: names, and what a new data directory needs in them.

use ardent_types::{Lsn, PgTli, WalSegmentSize};

/// Length of a WAL file name.
pub const WAL_FILE_NAME_LEN: usize = 24;

/// Segments per 4 GiB, the unit of the name's middle part.
fn segments_per_id(size: WalSegmentSize) -> u64 {
    0x1_0000_0000 / size.bytes()
}

/// The file of segment `number` on a Postgres timeline: `000000010000000A00000003`.
pub fn wal_file_name(tli: PgTli, number: u64, size: WalSegmentSize) -> String {
    let per_id = segments_per_id(size);
    format!("{:08X}{:08X}{:08X}", tli.get(), number / per_id, number % per_id)
}

/// The Postgres timeline and number of a segment file; `None` if it isn't a segment's name. Extensions (`.partial`) aren't accepted.
pub fn parse_wal_file_name(name: &str, size: WalSegmentSize) -> Option<(PgTli, u64)> {
    let hex = name.len() == WAL_FILE_NAME_LEN && name.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    let part = |range: std::ops::Range<usize>| u32::from_str_radix(&name[range], 16).ok().filter(|_| hex);
    if !hex {
        return None;
    }
    let (tli, id, segment) = (part(0..8)?, part(8..16)?, part(16..24)?);
    let per_id = segments_per_id(size);
    (u64::from(segment) < per_id).then(|| (PgTli::new(tli), u64::from(id) * per_id + u64::from(segment)))
}

/// The first LSN of segment `number`.
pub fn segment_start(number: u64, size: WalSegmentSize) -> Option<Lsn> {
    number.checked_mul(size.bytes()).map(Lsn::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checklist_11_names_round_trip_for_all_sizes() {
        for shift in 20..=30 {
            let size = WalSegmentSize::new(1 << shift).unwrap();
            for number in [0, 1, 255, 4095, 4096, 1 << 33 >> (shift - 20)] {
                let name = wal_file_name(PgTli::new(3), number, size);
                assert_eq!(parse_wal_file_name(&name, size), Some((PgTli::new(3), number)), "{name}");
            }
        }
        let size = WalSegmentSize::DEFAULT;
        assert_eq!(wal_file_name(PgTli::new(1), 0x1FF, size), "0000000100000001000000FF");
        for bad in
            ["", "000000010000000100000100", "00000001000000010000000g", "0000000100000001000000ff", "00000002.history"]
        {
            assert_eq!(parse_wal_file_name(bad, size), None, "{bad}");
        }
    }
}
