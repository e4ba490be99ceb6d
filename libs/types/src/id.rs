//! Identities of tenants, timelines and writers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The text is not 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an id: {0:?} (an id is 32 hexadecimal digits)")]
pub struct ParseIdError(String);

macro_rules! id_16 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// All zero: "none" where a wire format has no room for an option.
            pub const NONE: $name = $name([0; 16]);

            /// A new random id.
            pub fn generate() -> Self {
                $name(rand::random())
            }

            /// The id with these bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                $name(bytes)
            }

            /// Its bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; 16];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| ParseIdError(text.to_owned()))?;
                Ok($name(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id_16! {
    /// One Postgres cluster's history: everything that shares one system identifier by descent.
    TenantId
}
id_16! {
    /// A branch of a tenant's history. Not Postgres's timeline id ([`PgTli`]).
    TimelineId
}
id_16! {
    /// What users call a branch: it has a name, settings and passwords, and stands for one timeline at a time.
    BranchId
}
id_16! {
    /// The place where a branch's Postgres runs: a folder, an unprivileged user, at most one agent.
    ComputeId
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            /// Wraps a raw number.
            #[inline]
            pub const fn new(raw: $inner) -> Self {
                $name(raw)
            }

            /// The raw number.
            #[inline]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number! {
    /// A writer's term on a timeline's WAL, as a ballot number in Paxos. A higher one fences all lower ones.
    Term(u64)
}
number! {
    /// The number of a timeline's manifest. Each is written at most once.
    Generation(u64)
}
number! {
    /// Postgres's own timeline id (`ThisTimeLineID`), as in WAL file names.
    PgTli(u32)
}
number! {
    /// A Postgres cluster's system identifier, from `pg_control`.
    SystemId(u64)
}

impl Term {
    /// The next higher term.
    #[must_use]
    pub fn next(self) -> Term {
        Term(self.0.checked_add(1).expect("terms never reach 2^64"))
    }
}

impl Generation {
    /// The number that follows.
    #[must_use]
    pub fn next(self) -> Generation {
        Generation(self.0.checked_add(1).expect("generations never reach 2^64"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_reject() {
        let id = TenantId::generate();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("xyz".parse::<TenantId>().is_err());
        assert!("00".parse::<TimelineId>().is_err());
    }
}
