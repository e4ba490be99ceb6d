//! Small files of JSON behind a header with a magic number, a version, the JSON's length and its checksum.
//! The byte tables are in `docs/formats/manifest.md` and `docs/formats/kept-state.md`.

use serde::Serialize;
use serde::de::DeserializeOwned;

const HEADER_LEN: usize = 16;

/// A kind of file.
pub(crate) struct JsonFile {
    /// Its first bytes, ASCII.
    pub(crate) magic: &'static [u8; 4],
    pub(crate) version: u16,
    /// What errors call it: "manifest".
    pub(crate) name: &'static str,
}

impl JsonFile {
    /// Header and JSON.
    pub(crate) fn encode(&self, content: &impl Serialize) -> Vec<u8> {
        let json = serde_json::to_vec(content).expect("what is kept in such files is plain data");
        let mut out = Vec::with_capacity(HEADER_LEN + json.len());
        out.extend_from_slice(self.magic);
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&(json.len() as u32).to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&json).to_le_bytes());
        out.extend_from_slice(&json);
        out
    }

    /// What `bytes` hold; what was expected where they are damaged or of another version.
    pub(crate) fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, String> {
        let Some((header, json)) = bytes.split_at_checked(HEADER_LEN) else {
            return Err(format!("a header of {HEADER_LEN} bytes"));
        };
        let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        if header[..4] != *self.magic {
            return Err(format!("the magic number {}", String::from_utf8_lossy(self.magic)));
        }
        let version = u16::from_le_bytes([header[4], header[5]]);
        if version != self.version {
            return Err(format!("{} format version {}, found {version}", self.name, self.version));
        }
        if u32_at(8) as usize != json.len() {
            return Err(format!("{} bytes of JSON, found {}", u32_at(8), json.len()));
        }
        if crc32fast::hash(json) != u32_at(12) {
            return Err("the checksum of the JSON".to_owned());
        }
        serde_json::from_slice(json).map_err(|error| format!("a {}: {error}", self.name))
    }
}
