//! The file `state` of a timeline: what an acceptor promised, and the timeline's properties. Byte table:
//! `docs/formats/safekeeper-state.md`. Written whole beside itself, fsynced and renamed over.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use ardent_object_store::fault::FailPoints;

use ardent_api::frame::{Fields, Frame};
use ardent_api::wal_service::{Ancestor, Membership, ProposerId, RecordEnd, TermStart, TimelineSpec};
use ardent_quorum::{AcceptorState, Configuration, MemberGeneration, TermHistory};
use ardent_types::{Lsn, PgTli, SystemId, TenantId, Term, TimelineId, WalSegmentSize};

/// Name of the file in a timeline's folder.
pub(crate) const FILE_NAME: &str = "state";
const MAGIC: [u8; 4] = *b"ARSK";
/// Of a timeline whose members never changed: versions of this program that know of none read it.
const VERSION_WITHOUT_MEMBERS: u16 = 1;
const VERSION: u16 = 2;
const FIXED_LEN: usize = 158;
const CRC_LEN: usize = 4;

/// A timeline's control file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ControlFileError {
    /// The operating system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The content is not what was written.
    #[error(
        "{path} is damaged at byte {offset}: {what}; restore it from another safekeeper or delete the timeline, others are not affected"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// Written by another version of this program.
    #[error("{path} has format version {found}, this build reads versions 1 and {VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u16,
    },
}

/// Makes `state` durable in folder `dir`.
pub(crate) fn store(
    dir: &Path,
    spec: &TimelineSpec,
    state: &AcceptorState,
    membership: &Membership,
    faults: &FailPoints,
) -> Result<(), ControlFileError> {
    let (path, fresh) = (dir.join(FILE_NAME), dir.join("state.new"));
    let at = |action, path: &Path| {
        let path = path.to_owned();
        move |source| ControlFileError::Io { action, path, source }
    };
    let pass = |point: &str| faults.pass(point);
    let mut file = pass("state.create").and_then(|()| File::create(&fresh)).map_err(at("create", &fresh))?;
    let body = encode(spec, state, membership);
    pass("state.write").and_then(|()| file.write_all(&body)).map_err(at("write", &fresh))?;
    pass("state.fsync").and_then(|()| file.sync_all()).map_err(at("fsync", &fresh))?;
    pass("state.rename").and_then(|()| fs::rename(&fresh, &path)).map_err(at("rename", &fresh))?;
    pass("state.folder_fsync").and_then(|()| sync_dir(dir)).map_err(at("fsync", dir))
}

/// Writes `state` into the new folder `dir`, and gives the file, for the caller to fsync.
pub(crate) fn create(
    dir: &Path,
    spec: &TimelineSpec,
    state: &AcceptorState,
    membership: &Membership,
    faults: &FailPoints,
) -> Result<File, ControlFileError> {
    let path = dir.join(FILE_NAME);
    let created = faults.pass("state.create").and_then(|()| File::create_new(&path));
    let written = created
        .and_then(|file| faults.pass("state.write").map(|()| file))
        .and_then(|mut file| file.write_all(&encode(spec, state, membership)).map(|()| file));
    written.map_err(|source| ControlFileError::Io { action: "write", path, source })
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Reads the control file in folder `dir`.
pub(crate) fn load(dir: &Path) -> Result<Content, ControlFileError> {
    let path = dir.join(FILE_NAME);
    let bytes =
        fs::read(&path).map_err(|source| ControlFileError::Io { action: "read", path: path.clone(), source })?;
    decode(&bytes).map_err(|problem| match problem {
        Problem::Corrupt(offset, what) => ControlFileError::Corrupt { path, offset, what },
        Problem::Version(found) => ControlFileError::Version { path, found },
    })
}

/// What the file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) spec: TimelineSpec,
    pub(crate) state: AcceptorState,
    /// The state's configuration, with addresses.
    pub(crate) membership: Membership,
}

fn encode(spec: &TimelineSpec, state: &AcceptorState, membership: &Membership) -> Vec<u8> {
    assert_eq!(Configuration::of(membership).as_ref(), Some(&state.configuration), "addresses are of other members");
    let has_members = membership.generation > MemberGeneration::default();
    let mut out = BytesMut::with_capacity(FIXED_LEN + 16 * state.history.entries().len() + CRC_LEN);
    out.put_slice(&MAGIC);
    out.put_u16_le(if has_members { VERSION } else { VERSION_WITHOUT_MEMBERS });
    out.put_slice(spec.tenant.as_bytes());
    out.put_slice(spec.timeline.as_bytes());
    out.put_u32_le(spec.pg_major);
    out.put_u64_le(spec.system_id.get());
    out.put_u32_le(spec.pg_tli.get());
    out.put_u32_le(spec.wal_segment_size.into());
    out.put_u64_le(spec.start_lsn.get());
    out.put_u64_le(spec.prev_lsn.get());
    let none = Ancestor { timeline: TimelineId::NONE, lsn: Lsn::INVALID };
    let ancestor = spec.ancestor.unwrap_or(none);
    out.put_slice(ancestor.timeline.as_bytes());
    out.put_u64_le(ancestor.lsn.get());
    out.put_u64_le(state.term.get());
    out.put_u128_le(state.voted_for.get());
    put_record_end(&mut out, state.commit);
    put_record_end(&mut out, state.start);
    out.put_u32_le(u32::try_from(state.history.entries().len()).expect("a history fits a frame"));
    assert_eq!(out.len(), FIXED_LEN, "the byte table is wrong");
    for entry in state.history.entries() {
        out.put_u64_le(entry.term.get());
        out.put_u64_le(entry.lsn.get());
    }
    if has_members {
        membership.encode(&mut out);
    }
    let crc = crc32c::crc32c(&out);
    out.put_u32_le(crc);
    out.to_vec()
}

fn put_record_end(out: &mut BytesMut, at: RecordEnd) {
    out.put_u64_le(at.end.get());
    out.put_u64_le(at.start.get());
}

enum Problem {
    Corrupt(usize, &'static str),
    Version(u16),
}

fn decode(bytes: &[u8]) -> Result<Content, Problem> {
    if bytes.len() < FIXED_LEN + CRC_LEN {
        return Err(Problem::Corrupt(bytes.len(), "it is too short"));
    }
    if bytes[..4] != MAGIC {
        return Err(Problem::Corrupt(0, "it does not begin with ARSK"));
    }
    let version = u16::from_le_bytes([bytes[4], bytes[5]]);
    if version != VERSION_WITHOUT_MEMBERS && version != VERSION {
        return Err(Problem::Version(version));
    }
    let (body, crc) = bytes.split_at(bytes.len() - CRC_LEN);
    if crc != crc32c::crc32c(body).to_le_bytes() {
        return Err(Problem::Corrupt(body.len(), "its checksum does not match"));
    }
    let mut rest = Bytes::copy_from_slice(&body[6..]);
    let (spec, start_field_at) = take_spec(&mut rest)?;
    let term = Term::new(rest.get_u64_le());
    let voted_for = ProposerId::new(rest.get_u128_le());
    let (commit, start) = (take_record_end(&mut rest), take_record_end(&mut rest));
    let entries = rest.get_u32_le() as usize;
    let has_members = version == VERSION;
    if rest.len() < entries * 16 || (!has_members && rest.len() > entries * 16) {
        return Err(Problem::Corrupt(FIXED_LEN, "the history has another length"));
    }
    let entries = (0..entries)
        .map(|_| TermStart { term: Term::new(rest.get_u64_le()), lsn: Lsn::new(rest.get_u64_le()) })
        .collect();
    let history =
        TermHistory::from_entries(entries).ok_or(Problem::Corrupt(FIXED_LEN, "the history is out of order"))?;
    if commit.end < start.end || start.end != spec.start_lsn {
        return Err(Problem::Corrupt(start_field_at, "the commit position is before the start"));
    }
    let membership = if has_members { take_membership(rest, body.len())? } else { Membership::default() };
    let bad = Problem::Corrupt(body.len(), "the members are out of order");
    let configuration = Configuration::of(&membership).ok_or(bad)?;
    Ok(Content { spec, state: AcceptorState { term, voted_for, history, commit, start, configuration }, membership })
}

/// The rest of the file.
fn take_membership(rest: Bytes, end: usize) -> Result<Membership, Problem> {
    let at = end - rest.len();
    // Framed as in messages, where all that is wrong with them has a name; here it has a place.
    let mut fields = Fields::of(Frame { kind: 0, payload: rest });
    let membership = Membership::decode(&mut fields);
    let whole = membership.ok().filter(|_| fields.finish().is_ok());
    // Version 1 says that there are none.
    let told = whole.filter(|membership| membership.generation > MemberGeneration::default());
    told.ok_or(Problem::Corrupt(at, "the members cannot be read"))
}

fn take_record_end(rest: &mut Bytes) -> RecordEnd {
    RecordEnd { end: Lsn::new(rest.get_u64_le()), start: Lsn::new(rest.get_u64_le()) }
}

fn take_id(rest: &mut Bytes) -> [u8; 16] {
    let mut id = [0; 16];
    rest.copy_to_slice(&mut id);
    id
}

fn take_spec(rest: &mut Bytes) -> Result<(TimelineSpec, usize), Problem> {
    let tenant = TenantId::from_bytes(take_id(rest));
    let timeline = TimelineId::from_bytes(take_id(rest));
    let pg_major = rest.get_u32_le();
    let system_id = SystemId::new(rest.get_u64_le());
    let pg_tli = PgTli::new(rest.get_u32_le());
    let wal_segment_size =
        WalSegmentSize::new(rest.get_u32_le()).map_err(|_| Problem::Corrupt(54, "not a segment size"))?;
    let (start_lsn, prev_lsn) = (Lsn::new(rest.get_u64_le()), Lsn::new(rest.get_u64_le()));
    let ancestor = Ancestor { timeline: TimelineId::from_bytes(take_id(rest)), lsn: Lsn::new(rest.get_u64_le()) };
    let ancestor = (ancestor.timeline != TimelineId::NONE).then_some(ancestor);
    let spec =
        TimelineSpec { tenant, timeline, pg_major, system_id, pg_tli, wal_segment_size, start_lsn, prev_lsn, ancestor };
    Ok((spec, 58))
}

#[cfg(test)]
mod tests {
    use super::*;

    use ardent_api::wal_service::{Member, MembershipSeal};
    use ardent_types::DiskId;

    fn sample() -> (TimelineSpec, AcceptorState) {
        let start = RecordEnd { end: Lsn::new(0x0200_0028), start: Lsn::new(0x01FF_FF00) };
        let spec = TimelineSpec {
            tenant: TenantId::from_bytes([1; 16]),
            timeline: TimelineId::from_bytes([2; 16]),
            pg_major: 15,
            system_id: SystemId::new(77),
            pg_tli: PgTli::new(3),
            wal_segment_size: WalSegmentSize::DEFAULT,
            start_lsn: start.end,
            prev_lsn: start.start,
            ancestor: Some(Ancestor { timeline: TimelineId::from_bytes([4; 16]), lsn: start.end }),
        };
        let mut state = AcceptorState::new(start);
        (state.term, state.voted_for) = (Term::new(9), ProposerId::new(1 << 100));
        state.history.push(Term::new(2), start.end);
        state.history.push(Term::new(9), Lsn::new(0x0200_1000));
        state.commit = RecordEnd { end: Lsn::new(0x0200_2000), start: Lsn::new(0x0200_1FA0) };
        (spec, state)
    }

    /// The same timeline, told of members.
    fn with_members() -> Content {
        let (spec, mut state) = sample();
        let member =
            |disk, address: &str| Member { disk: DiskId::new(disk), address: address.parse().expect("address") };
        let members = vec![member(1, "unix:/run/a.sock"), member(2 << 64, "tcp:127.0.0.1:7431")];
        let next = Some(vec![member(3, "unix:/run/c.sock")]);
        let generation = MemberGeneration::new(4);
        let membership = Membership { generation, members, next, seal: MembershipSeal::default() };
        state.configuration = Configuration::of(&membership).expect("in order");
        Content { spec, state, membership }
    }

    fn samples() -> [Content; 2] {
        let (spec, state) = sample();
        [Content { spec, state, membership: Membership::default() }, with_members()]
    }

    #[test]
    fn a_state_is_read_back_as_written() {
        for content in samples() {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let Content { spec, state, membership } = &content;
            store(dir.path(), spec, state, membership, &FailPoints::new()).expect("stored");
            assert_eq!(load(dir.path()).expect("loaded"), content);
        }
    }

    #[test]
    fn every_changed_byte_and_every_length_is_noticed() {
        for Content { spec, state, membership } in samples() {
            let good = encode(&spec, &state, &membership);
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0x40;
                assert!(decode(&bad).is_err(), "byte {at} changed");
                assert!(decode(&good[..at]).is_err(), "cut to {at} bytes");
            }
            assert!(decode(&good).is_ok());
        }
    }

    /// With a checksum that matches, as if it had been written so.
    fn sealed(mut body: Vec<u8>) -> Vec<u8> {
        let crc = crc32c::crc32c(&body);
        body.extend_from_slice(&crc.to_le_bytes());
        body
    }

    #[test]
    fn members_that_are_none_are_refused_whatever_the_checksum() {
        let Content { spec, state, membership } = with_members();
        let good = encode(&spec, &state, &membership);
        let body = &good[..good.len() - CRC_LEN];
        for cut in FIXED_LEN..body.len() {
            assert!(decode(&sealed(body[..cut].to_vec())).is_err(), "cut to {cut} bytes");
        }
        assert!(decode(&sealed([body, &[0]].concat())).is_err(), "a byte more");
        let mut as_version_1 = body.to_vec();
        as_version_1[4] = 1;
        assert!(decode(&sealed(as_version_1)).is_err(), "members in a version that has none");
        let mut none = body[..FIXED_LEN + 2 * 16].to_vec();
        none.extend_from_slice(&[0; 10]);
        assert!(decode(&sealed(none)).is_err(), "a version with members that names none");
        assert!(decode(&sealed(body.to_vec())).is_ok());
    }

    #[test]
    fn golden_bytes() {
        let golden = [include_str!("../tests/golden/state-v1.hex"), include_str!("../tests/golden/state-v2.hex")];
        for (Content { spec, state, membership }, golden) in samples().into_iter().zip(golden) {
            let bytes = encode(&spec, &state, &membership);
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, golden.trim());
        }
    }
}
