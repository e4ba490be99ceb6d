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
}

impl Membership {
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
        self.everyone().into_iter().find(|member| member.disk == disk).map(|member| &member.address)
    }

    /// Whether a change is on its way.
    pub fn is_changing(&self) -> bool {
        self.next.is_some()
    }

    /// Appends its byte form: in messages and in a safekeeper's state file.
    pub fn encode(&self, out: &mut BytesMut) {
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
        Ok(Membership { generation, members, next })
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
