//! Who keeps a timeline's WAL, and where: what writers, safekeepers and control tell each other of the members.

use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Serialize};

use ardent_types::{DiskId, Lsn, MemberGeneration, TenantId, Term, TimelineId};

use super::election::{ProposerId, RecordEnd, TermStart};
use super::manage::TimelineSpec;
use crate::addr::ServiceAddr;
use crate::frame::{DecodeError, Fields, put_blob};

/// Most members in one list.
pub const MEMBERS_MAX: usize = 16;

/// A safekeeper's disk, and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The disk: it counts, whatever answers at the address.
    pub disk: DiskId,
    /// Where its safekeeper listens.
    pub address: ServiceAddr,
}

/// What control signed a list of members with. Writers pass lists on, and must not be able to make one: a safekeeper takes a newer list only with
/// this. Made by `TokenIssuer::seal`, checked by `TokenVerifier::has_sealed`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MembershipSeal(pub(crate) [u8; SEAL_LEN]);

/// Length of a seal, an Ed25519 signature, in bytes.
pub(crate) const SEAL_LEN: usize = 64;

impl MembershipSeal {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; SEAL_LEN] {
        &self.0
    }
}

/// None: no signature of anything.
impl Default for MembershipSeal {
    fn default() -> Self {
        MembershipSeal([0; SEAL_LEN])
    }
}

impl std::fmt::Debug for MembershipSeal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MembershipSeal")
    }
}

impl Serialize for MembershipSeal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&digits)
    }
}

impl<'de> Deserialize<'de> for MembershipSeal {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bad = || serde::de::Error::custom("a seal is 128 hexadecimal digits");
        if text.len() != 2 * SEAL_LEN || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut seal = [0; SEAL_LEN];
        for (at, byte) in seal.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| bad())?;
        }
        Ok(MembershipSeal(seal))
    }
}

/// The members of one generation, and while they change the next ones. Lists ascend by disk.
///
/// The default one, of generation 0, names nobody: no change has ever been made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Its number.
    pub generation: MemberGeneration,
    /// Those whose majority decides.
    pub members: Vec<Member>,
    /// While a change is on its way: those whose majority decides as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Vec<Member>>,
    /// That control said so.
    #[serde(default)]
    pub seal: MembershipSeal,
}

impl Membership {
    /// The same without its seal.
    #[must_use]
    pub fn unsealed(&self) -> Self {
        Membership { seal: MembershipSeal::default(), ..self.clone() }
    }

    /// All that take part, each disk once, ascending.
    pub fn everyone(&self) -> Vec<&Member> {
        let mut all: Vec<&Member> = self.members.iter().chain(self.next.iter().flatten()).collect();
        all.sort_by_key(|member| member.disk);
        all.dedup_by_key(|member| member.disk);
        all
    }

    /// Where all of them are, in the order of [`Membership::everyone`].
    pub fn addresses(&self) -> Vec<ServiceAddr> {
        self.everyone().into_iter().map(|member| member.address.clone()).collect()
    }

    /// Where this disk's safekeeper is, if it is one of them.
    pub fn address_of(&self, disk: DiskId) -> Option<&ServiceAddr> {
        self.member(disk).map(|member| &member.address)
    }

    /// The one with this disk, if it is one of them.
    pub fn member(&self, disk: DiskId) -> Option<&Member> {
        self.everyone().into_iter().find(|member| member.disk == disk)
    }

    /// Whether a change is on its way.
    pub fn is_changing(&self) -> bool {
        self.next.is_some()
    }

    /// Appends its byte form: in messages and in a safekeeper's state file.
    pub fn encode(&self, out: &mut BytesMut) {
        self.encode_list(out);
        if self.generation > MemberGeneration::default() {
            out.put_slice(&self.seal.0);
        }
    }

    /// What is sealed of it.
    pub(crate) fn encode_list(&self, out: &mut BytesMut) {
        out.put_u64_le(self.generation.get());
        put_members(out, &self.members);
        match &self.next {
            None => out.put_u8(0),
            Some(next) => {
                out.put_u8(1);
                put_members(out, next);
            }
        }
    }

    /// Reads what [`Membership::encode`] wrote. Lists are in order, and generation 0 names nobody.
    pub fn decode(fields: &mut Fields) -> Result<Self, DecodeError> {
        let generation = MemberGeneration::new(fields.u64()?);
        let members = take_members(fields)?;
        let next = match fields.u8()? {
            0 => None,
            1 => Some(take_members(fields)?),
            _ => return Err(fields.bad("whether members change")),
        };
        let is_first = generation == MemberGeneration::default();
        if is_first != members.is_empty() || next.as_ref().is_some_and(|next| is_first || next.is_empty()) {
            return Err(fields.bad("number of members"));
        }
        let seal = if is_first { MembershipSeal::default() } else { MembershipSeal(fields.array()?) };
        Ok(Membership { generation, members, next, seal })
    }
}

fn put_members(out: &mut BytesMut, members: &[Member]) {
    out.put_u8(u8::try_from(members.len()).expect("few members"));
    for member in members {
        out.put_u128_le(member.disk.get());
        put_blob(out, member.address.to_string().as_bytes());
    }
}

fn take_members(fields: &mut Fields) -> Result<Vec<Member>, DecodeError> {
    let count = usize::from(fields.u8()?);
    if count > MEMBERS_MAX {
        return Err(fields.bad("number of members"));
    }
    let mut members = Vec::with_capacity(count);
    for _ in 0..count {
        let disk = DiskId::new(u128::from_le_bytes(fields.array()?));
        let address = fields.string("address of a member")?;
        let address = address.parse().map_err(|_| fields.bad("address of a member"))?;
        members.push(Member { disk, address });
    }
    if !members.is_sorted_by(|a, b| a.disk < b.disk) {
        return Err(fields.bad("order of members"));
    }
    Ok(members)
}

/// Who answered a vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteSource {
    /// The disk that it answered from.
    pub disk: DiskId,
    /// Who the members are, as far as it knows.
    pub membership: Membership,
}

impl VoteSource {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u128_le(self.disk.get());
        self.membership.encode(out);
    }

    pub(super) fn decode(fields: &mut Fields) -> Result<Self, DecodeError> {
        let disk = DiskId::new(u128::from_le_bytes(fields.array()?));
        Ok(VoteSource { disk, membership: Membership::decode(fields)? })
    }
}

/// A term, and to whom it is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromisedTerm {
    /// Term.
    pub term: Term,
    /// To whom; [`ProposerId::NONE`]: to nobody who could claim it.
    pub proposer: ProposerId,
}

/// Where a safekeeper stands with a timeline, said after the members that came with the question are durable there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStanding {
    /// The disk that answers.
    pub disk: DiskId,
    /// Who the members are, as far as it knows.
    pub membership: Membership,
    /// What it has promised.
    pub promise: PromisedTerm,
    /// The last term in its log.
    pub last_term: Term,
    /// End of its durable log.
    pub flush_lsn: Lsn,
    /// Whether the writer that it promised its term has begun.
    pub has_begun: bool,
    /// Whether a writer is connected.
    pub has_writer: bool,
    /// The oldest byte that is still kept here.
    pub oldest_lsn: Lsn,
}

/// A timeline as one that joins has to begin with it: its log reaches up to `commit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineOutline {
    /// Its properties.
    pub spec: TimelineSpec,
    /// What is promised.
    pub promise: PromisedTerm,
    /// The terms of the log up to `commit`.
    pub history: Vec<TermStart>,
    /// The end of the committed log.
    pub commit: RecordEnd,
    /// Where the timeline begins.
    pub start: RecordEnd,
    /// The oldest byte that is kept here.
    pub oldest_lsn: Lsn,
    /// Who the members are, as far as is known here.
    pub membership: Membership,
}

/// Where a timeline is to be copied from.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopySource {
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline.
    pub timeline: TimelineId,
    /// A safekeeper that has it.
    pub address: ServiceAddr,
    /// A token that lets it be read there.
    pub token: String,
}

impl std::fmt::Debug for CopySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CopySource")
            .field("tenant", &self.tenant)
            .field("timeline", &self.timeline)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
