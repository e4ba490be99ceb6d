//! Postgres's own LZ compression, the decompressing half.
//!
//! The input is groups of one control byte and up to eight items, lowest bit first: a clear bit is a literal byte, a set
//! bit a match of two or three bytes (length 3 to 273, distance 1 to 4,095 back in the output). See `pg_lzcompress.c`.

/// The input is not a pglz stream of the expected length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a pglz stream that fills {expected} bytes (damaged at input byte {input_offset})")]
pub struct PglzError {
    /// Length of the output that was expected.
    pub expected: usize,
    /// Where in the input it went wrong.
    pub input_offset: usize,
}

/// A match longer than this has a third byte.
const LONG_MATCH: usize = 18;

/// Fills `output` exactly from all of `input`.
pub fn decompress(input: &[u8], output: &mut [u8]) -> Result<(), PglzError> {
    let expected = output.len();
    let mut read = 0;
    let mut written = 0;
    while read < input.len() && written < expected {
        let mut control = input[read];
        read += 1;
        for _ in 0..8 {
            if read >= input.len() || written >= expected {
                break;
            }
            if control & 1 == 0 {
                output[written] = input[read];
                written += 1;
                read += 1;
            } else {
                let (length, distance, used) = match_at(&input[read..])
                    .filter(|&(_, distance, _)| distance != 0 && distance <= written)
                    .ok_or(PglzError { expected, input_offset: read })?;
                read += used;
                let length = length.min(expected - written);
                copy_match(output, written, distance, length);
                written += length;
            }
            control >>= 1;
        }
    }
    let whole = read == input.len() && written == expected;
    if whole { Ok(()) } else { Err(PglzError { expected, input_offset: read }) }
}

/// Length, distance and size of the match at the start of `input`.
fn match_at(input: &[u8]) -> Option<(usize, usize, usize)> {
    let (&first, &second) = (input.first()?, input.get(1)?);
    let length = usize::from(first & 0x0F) + 3;
    let distance = usize::from(first & 0xF0) << 4 | usize::from(second);
    if length < LONG_MATCH {
        return Some((length, distance, 2));
    }
    Some((length + usize::from(*input.get(2)?), distance, 3))
}

/// Repeats what stands `distance` bytes back; the two may overlap, which is how runs are coded.
fn copy_match(output: &mut [u8], at: usize, distance: usize, length: usize) {
    if distance >= length {
        output.copy_within(at - distance..at - distance + length, at);
    } else {
        for position in at..at + length {
            output[position] = output[position - distance];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &[u8], expect: &[u8]) {
        let mut output = vec![0; expect.len()];
        decompress(input, &mut output).unwrap();
        assert_eq!(output, expect);
    }

    #[test]
    fn literals_matches_and_runs() {
        check(&[0, b'a', b'b', b'c'], b"abc");
        // "ab" and a match of 6, 2 back.
        check(&[0b100, b'a', b'b', 0x03, 2], b"abababab");
        // One literal and a run of 18 + 10.
        check(&[0b10, b'x', 0x0F, 1, 10], &[b'x'; 29]);
    }

    #[test]
    fn damage_is_an_error() {
        let mut output = [0; 8];
        for bad in
            [&[][..], &[0, b'a'], &[1, 0x03, 1], &[0b10, b'a', 0x03, 0], &[0b10, b'a', 0x03], &[0b10, b'a', 0x0F, 1]]
        {
            assert!(decompress(bad, &mut output).is_err(), "{bad:?}");
        }
        assert!(decompress(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 9], &mut output).is_err(), "input left over");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(input: Vec<u8>, length in 0usize..9000) {
            let _ = decompress(&input, &mut vec![0; length]);
        }
    }
}
