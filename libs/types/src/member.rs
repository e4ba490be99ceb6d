//! Who keeps a timeline's WAL: disks, and the number of the list that names them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One disk of one safekeeper, by a random number that is made with its folder: a safekeeper that lost its disk comes back as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(u128);

/// The text is not 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a disk's id: {0:?} (it is 32 hexadecimal digits)")]
pub struct ParseDiskIdError(String);

impl DiskId {
    /// A new random one, which no other disk has.
    pub fn generate() -> Self {
        DiskId(rand::random())
    }

    /// The id with this number.
    pub const fn new(raw: u128) -> Self {
        DiskId(raw)
    }

    /// Its number.
    pub const fn get(self) -> u128 {
        self.0
    }
}

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for DiskId {
    type Err = ParseDiskIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseDiskIdError(text.to_owned());
        // A sign would be taken for a part of the number.
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        u128::from_str_radix(text, 16).map(DiskId).map_err(|_| bad())
    }
}

impl Serialize for DiskId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DiskId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The number of a configuration: a higher one replaces all lower ones. 0: no change has ever been made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberGeneration(u64);

impl MemberGeneration {
    /// The generation with this number.
    pub const fn new(raw: u64) -> Self {
        MemberGeneration(raw)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The one after it.
    #[must_use]
    pub fn next(self) -> Self {
        MemberGeneration(self.0.checked_add(1).expect("generations never reach 2^64"))
    }
}

impl fmt::Display for MemberGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_ids_round_trip_and_nothing_else_is_one() {
        let disk = DiskId::new(0xAB << 64);
        assert_eq!(disk.to_string().parse(), Ok(disk));
        let digits = disk.to_string();
        for bad in
            ["", &digits[1..], &format!("{digits}0"), &format!("+{}", &digits[1..]), &format!("{}g", &digits[1..])]
        {
            assert!(bad.parse::<DiskId>().is_err(), "{bad:?} parsed");
        }
    }
}
