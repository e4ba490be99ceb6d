//! A timeline's manifest: the one place that says what is durable. See `docs/formats/manifest.md`.

use std::collections::BTreeMap;

use ardent_pg_format::PgMajor;
use ardent_types::{Generation, Lsn, PgTli, SystemId, TenantId, TimelineId, WalSegmentSize};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::json_file::JsonFile;
use crate::layer::LayerDesc;
use crate::position::{BranchPoint, RecordPosition};

/// Version of the manifest format.
pub(crate) const FORMAT_VERSION: u16 = 1;
const FILE: JsonFile = JsonFile { magic: b"ARMF", version: FORMAT_VERSION, name: "manifest" };

/// What never changes about a timeline's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineFacts {
    /// Major version.
    #[serde(serialize_with = "serialize_major", deserialize_with = "deserialize_major")]
    pub pg_major: PgMajor,
    /// System identifier.
    pub system_id: SystemId,
    /// Postgres's timeline id.
    pub pg_tli: PgTli,
    /// Size of its WAL segments.
    pub wal_segment_size: WalSegmentSize,
    /// For a root: where WAL that makes the imported pages consistent begins. For a branch: the branch LSN.
    pub start_lsn: Lsn,
}

fn serialize_major<S: Serializer>(major: &PgMajor, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32(major.number())
}

fn deserialize_major<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PgMajor, D::Error> {
    let number = u32::deserialize(deserializer)?;
    PgMajor::from_number(number)
        .ok_or_else(|| serde::de::Error::custom(format!("Postgres major {number} is not known to this version")))
}

/// Where a branch hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// The timeline that it is a branch of.
    pub timeline: TimelineId,
    /// Where.
    #[serde(flatten)]
    pub point: BranchPoint,
}

/// A named, durable hold on an LSN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// What is held.
    pub lsn: Lsn,
    /// Until when, in seconds since the Unix epoch.
    pub expires_at_s: u64,
}

/// What a state of the timeline consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) generation: Generation,
    /// Random per process: tells one's own manifest from another's after a write with an unknown outcome.
    pub(crate) writer: String,
    pub(crate) tenant: TenantId,
    pub(crate) timeline: TimelineId,
    pub(crate) facts: TimelineFacts,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ancestor: Option<Ancestor>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) importing: bool,
    /// Deletion has begun: whoever reads this finishes it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) deleted: bool,
    /// The last record whose effects are in the layers.
    pub(crate) last_record: RecordPosition,
    /// Reads and branches below this need a pin.
    pub(crate) retained_from: Lsn,
    /// The record that ends there, as the file that has it may be given up. Absent where the timeline begins there or is retired, and
    /// where an older version of the program gave up history at an LSN within a record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retained_record: Option<RecordPosition>,
    pub(crate) layers: Vec<LayerDesc>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) leases: BTreeMap<String, Lease>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) metadata: BTreeMap<String, serde_json::Value>,
}

impl Manifest {
    /// The record at whose end the timeline begins; nobody knows where that of a root starts.
    pub(crate) fn beginning(&self) -> RecordPosition {
        match self.ancestor {
            Some(ancestor) => RecordPosition { end: ancestor.point.lsn, start: ancestor.point.prev_lsn },
            None => RecordPosition { end: self.facts.start_lsn, start: Lsn::INVALID },
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        FILE.encode(self)
    }

    /// The manifest in `bytes`; what was expected where it is damaged.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Manifest, String> {
        FILE.decode(bytes)
    }
}

#[cfg(test)]
pub(crate) fn sample(layers: Vec<LayerDesc>) -> Manifest {
    let lsn = Lsn::new(0x0100_0028);
    Manifest {
        generation: Generation::new(1),
        writer: "0011223344556677".to_owned(),
        tenant: TenantId::from_bytes([1; 16]),
        timeline: TimelineId::from_bytes([2; 16]),
        facts: TimelineFacts {
            pg_major: PgMajor::V15,
            system_id: SystemId::new(7),
            pg_tli: PgTli::new(1),
            wal_segment_size: WalSegmentSize::DEFAULT,
            start_lsn: lsn,
        },
        ancestor: Some(Ancestor {
            timeline: TimelineId::from_bytes([3; 16]),
            point: BranchPoint { lsn, prev_lsn: Lsn::new(0x0100_0000) },
        }),
        importing: false,
        deleted: false,
        last_record: RecordPosition { end: lsn, start: Lsn::new(0x0100_0000) },
        retained_from: lsn,
        retained_record: None,
        layers,
        leases: BTreeMap::new(),
        metadata: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::LayerKind;
    use crate::stored_key::KeyRange;

    #[test]
    fn manifests_round_trip_and_reject_every_flipped_byte() {
        let mut manifest = sample(Vec::new());
        manifest.retained_record = Some(manifest.last_record);
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes), Ok(manifest));
        for at in (0..bytes.len()).filter(|at| ![6, 7].contains(at)) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(Manifest::decode(&flipped).is_err(), "byte {at}");
            assert!(Manifest::decode(&bytes[..at]).is_err());
        }
    }

    #[test]
    fn a_manifest_of_version_1_is_read_as_when_it_was_new() {
        let golden = Manifest::decode(include_bytes!("../golden/v1.manifest")).unwrap();
        assert_eq!(golden, full());
    }

    fn full() -> Manifest {
        let keys = KeyRange::ALL;
        let layer = LayerDesc {
            file: "d0-0000000001000028-0011223344556677-0".to_owned(),
            kind: LayerKind::Delta,
            level: 0,
            keys,
            after: Lsn::new(0x0100_0000),
            upto: Lsn::new(0x0100_0028),
            bytes: 4711,
            entries: 12,
            key_count: 3,
            boundaries: true,
            holes: 0,
        };
        let image = LayerDesc { kind: LayerKind::Image, level: 1, boundaries: false, holes: 2, ..layer.clone() };
        let mut manifest = sample(vec![layer, image]);
        manifest
            .leases
            .insert("endpoint".to_owned(), Lease { lsn: Lsn::new(0x0100_0028), expires_at_s: 1_800_000_000 });
        manifest.metadata.insert("consistent_from".to_owned(), serde_json::json!("0/1000100"));
        manifest
    }

    #[test]
    fn a_manifest_of_another_version_is_refused_by_name() {
        let mut bytes = sample(Vec::new()).encode();
        bytes[4] = 9;
        assert_eq!(Manifest::decode(&bytes), Err("manifest format version 1, found 9".to_owned()));
    }
}
