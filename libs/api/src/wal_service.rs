//! The WAL service: what writers, page servers and control ask of a safekeeper.
//!
//! Byte table: `docs/formats/wal-service.md`. A connection is bound by its [`Hello`] to one timeline, or to none
//! ([`TimelineId::NONE`]) for management of a whole safekeeper. A writer's messages ([`Vote`], [`Begin`], [`Append`]) are
//! answered when what they promise is durable; the replies to appends are cumulative, so one may answer many.
//! What the messages mean is in `docs/quorum.md`.

mod append;
mod codec;
mod election;
mod manage;
mod members;
mod receive;
mod request;
mod response;

use ardent_types::{TenantId, TimelineId};

pub use append::{Append, AppendReply, WalChunk};
pub use election::{Begin, BeginReply, ProposerId, RecordEnd, TermStart, Vote, VoteReply};
pub use manage::{
    ARCHIVE_STALLS_MAX, Ancestor, ArchiveStall, ManageReply, ManageRequest, SafekeeperStatus, TimelineSpec,
    TimelineStatus,
};
pub use members::{
    CopySource, MEMBERS_MAX, Member, MemberStanding, Membership, MembershipSeal, PromisedTerm, TimelineOutline,
    VoteSource,
};
pub use receive::{Receive, Received, StreamEnd};
pub use request::Request;
pub use response::Response;

/// First field of every hello: `ARWS`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"ARWS");

/// Version of the protocol that this build speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// Most WAL bytes in one [`Append`], [`Response::Wal`] or [`WalChunk`].
pub const WAL_LEN_MAX: usize = 1 << 20;

/// Most entries in a term history that a message carries.
pub const HISTORY_LEN_MAX: usize = 1 << 20;

/// A safekeeper's ability to send what a follower waits for at once ([`Request::Await`]).
pub const CAN_HURRY: u32 = 1;

/// A safekeeper's ability to say how it is as a whole ([`ManageRequest::SafekeeperStatus`]).
pub const CAN_TELL_STATUS: u32 = 2;

/// A safekeeper's ability to be told who the members are ([`Request::VoteIn`], [`ManageRequest::Configure`] and what goes with them).
pub const CAN_CHANGE_MEMBERS: u32 = 4;

/// A safekeeper's ability to take a walsender's connection over ([`Request::Receive`]).
pub const CAN_RECEIVE: u32 = 8;

/// The first message of a connection.
#[derive(Clone, PartialEq, Eq)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the client.
    pub version: u16,
    /// Bit set of optional abilities; none are defined yet, so 0.
    pub capabilities: u32,
    /// The tenant the connection is bound to.
    pub tenant: TenantId,
    /// The timeline the connection is bound to, or [`TimelineId::NONE`].
    pub timeline: TimelineId,
    /// Service token, see [`crate::token`].
    pub token: String,
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hello")
            .field("version", &self.version)
            .field("tenant", &self.tenant)
            .field("timeline", &self.timeline)
            .finish_non_exhaustive()
    }
}

/// What kind of failure a request met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum ErrorCode {
    /// The hello or the rights were refused. The connection is closed.
    Refused = 1,
    /// The timeline does not exist here.
    TimelineNotFound = 2,
    /// The position is below what is kept, or past the end.
    LsnOutOfRange = 3,
    /// A writer's message that does not follow from those before it: begin again with a vote.
    OutOfOrder = 4,
    /// The disk is full or failing; what was acknowledged is safe. Try again.
    Unavailable = 5,
    /// The timeline's files are damaged; other timelines work.
    Corrupt = 6,
    /// The request is malformed.
    Invalid = 7,
    /// The thing to be created exists with other properties.
    Conflict = 8,
    /// Our own bug.
    Internal = 9,
}

impl ErrorCode {
    const ALL: [ErrorCode; 9] = [
        ErrorCode::Refused,
        ErrorCode::TimelineNotFound,
        ErrorCode::LsnOutOfRange,
        ErrorCode::OutOfOrder,
        ErrorCode::Unavailable,
        ErrorCode::Corrupt,
        ErrorCode::Invalid,
        ErrorCode::Conflict,
        ErrorCode::Internal,
    ];

    /// The code with this number.
    pub fn from_raw(raw: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u16 == raw)
    }

    /// Whether the same request may succeed a little later.
    pub fn is_retryable(self) -> bool {
        matches!(self, ErrorCode::Unavailable | ErrorCode::OutOfOrder)
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};

    use ardent_types::{DiskId, Lsn, MemberGeneration, PgTli, SystemId, Term, WalSegmentSize};

    use super::codec::{BEGIN, VOTE_IN};
    use super::*;
    use crate::frame::{DecodeError, Frame};

    fn spec() -> TimelineSpec {
        TimelineSpec {
            tenant: TenantId::from_bytes([1; 16]),
            timeline: TimelineId::from_bytes([2; 16]),
            pg_major: 15,
            system_id: SystemId::new(7_000_000_000_000_000_001),
            pg_tli: PgTli::new(1),
            wal_segment_size: WalSegmentSize::DEFAULT,
            start_lsn: Lsn::new(0x0200_0028),
            prev_lsn: Lsn::INVALID,
            ancestor: Some(Ancestor { timeline: TimelineId::from_bytes([3; 16]), lsn: Lsn::new(0x0200_0028) }),
        }
    }

    fn history() -> Vec<TermStart> {
        let entry = |term, lsn| TermStart { term: Term::new(term), lsn: Lsn::new(lsn) };
        vec![entry(1, 0x0200_0028), entry(4, 0x0200_1000)]
    }

    fn at(end: u64, start: u64) -> RecordEnd {
        RecordEnd { end: Lsn::new(end), start: Lsn::new(start) }
    }

    fn requests() -> Vec<Request> {
        let term = Term::new(4);
        vec![
            Request::Hello(Hello {
                version: 1,
                capabilities: 0,
                tenant: spec().tenant,
                timeline: spec().timeline,
                token: "t".to_owned(),
            }),
            Request::Vote(Vote { attempt: 9, term, proposer: ProposerId::new(0xABCD) }),
            Request::VoteIn(Vote { attempt: 9, term, proposer: ProposerId::new(0xABCD) }, membership()),
            Request::Begin(Begin { attempt: 9, term, history: history(), common_lsn: Lsn::new(0x0200_0100) }),
            Request::Append(Append {
                term,
                start: Lsn::new(0x0200_1000),
                commit: at(0x0200_1000, 0x0200_0F00),
                peers_lsn: Lsn::new(1),
                data: Bytes::from_static(b"wal"),
            }),
            Request::Receive(Receive {
                term,
                generation: MemberGeneration::new(7),
                end: at(0x0200_1000, 0x0200_0F00),
                read: Bytes::from_static(b"d"),
            }),
            Request::ReadWal { id: 3, term, from: Lsn::new(5), to: Lsn::new(9) },
            Request::Follow { from: Lsn::new(5) },
            Request::Position { durable_lsn: Lsn::new(6) },
            Request::Await { lsn: Lsn::new(7) },
            Request::Manage { id: 1, request: ManageRequest::CreateTimeline { spec: spec() } },
            Request::Manage { id: 2, request: ManageRequest::ListTimelines },
            Request::Manage {
                id: 3,
                request: ManageRequest::Configure {
                    timeline: spec().timeline,
                    membership: membership(),
                    promise: Some(promise()),
                },
            },
            Request::Manage { id: 4, request: ManageRequest::CopyTimeline { source: source() } },
            Request::Manage { id: 5, request: ManageRequest::TimelineOutline { timeline: spec().timeline } },
        ]
    }

    fn member(disk: u128, address: &str) -> Member {
        Member { disk: DiskId::new(disk), address: address.parse().expect("an address") }
    }

    fn membership() -> Membership {
        let members = vec![member(1, "unix:/a"), member(2, "tcp:127.0.0.1:1")];
        let next = Some(vec![member(2, "tcp:127.0.0.1:1"), member(1 << 100, "unix:/b")]);
        Membership { generation: MemberGeneration::new(7), members, next, seal: members::MembershipSeal([0x5E; 64]) }
    }

    fn promise() -> PromisedTerm {
        PromisedTerm { term: Term::new(5), proposer: ProposerId::new(u128::MAX) }
    }

    fn source() -> CopySource {
        let TimelineSpec { tenant, timeline, .. } = spec();
        CopySource { tenant, timeline, address: member(1, "unix:/a").address, token: "secret".to_owned() }
    }

    fn vote_reply() -> VoteReply {
        VoteReply {
            attempt: 9,
            term: Term::new(4),
            granted: true,
            history: history(),
            flush_lsn: Lsn::new(0x0200_1003),
            commit: at(0x0200_1000, 0x0200_0F00),
            start: at(0x0200_0028, 0),
            oldest_lsn: Lsn::new(0x0200_0000),
            pg_major: 15,
            wal_segment_size: WalSegmentSize::DEFAULT,
        }
    }

    fn responses() -> Vec<Response> {
        let (term, flush_lsn) = (Term::new(4), Lsn::new(0x0200_1003));
        vec![
            Response::HelloOk { version: 1, capabilities: CAN_HURRY },
            Response::Vote(vote_reply()),
            Response::VoteIn(vote_reply(), VoteSource { disk: DiskId::new(2), membership: membership() }),
            Response::Begin(BeginReply { attempt: 9, term, flush_lsn }),
            Response::Append(AppendReply { term, flush_lsn }),
            Response::Receiving,
            Response::Received(Received { end_lsn: flush_lsn, end: StreamEnd::Lost, message: "m".to_owned() }),
            Response::Wal { id: 3, start: Lsn::new(5), bytes: Bytes::from_static(b"wal") },
            Response::Chunk(WalChunk {
                start: Lsn::new(5),
                commit_lsn: Lsn::new(8),
                bytes: Bytes::from_static(b"wal"),
            }),
            Response::Manage { id: 1, reply: ManageReply::Done },
            Response::Manage {
                id: 2,
                reply: ManageReply::Standing(Box::new(MemberStanding {
                    disk: DiskId::new(2),
                    membership: membership(),
                    promise: promise(),
                    last_term: term,
                    flush_lsn,
                    has_begun: true,
                    has_writer: false,
                    oldest_lsn: Lsn::new(0x0200_0000),
                })),
            },
            Response::Manage {
                id: 3,
                reply: ManageReply::Outline(Box::new(TimelineOutline {
                    spec: spec(),
                    promise: promise(),
                    history: history(),
                    commit: at(0x0200_1000, 0x0200_0F00),
                    start: at(0x0200_0028, 0),
                    oldest_lsn: Lsn::new(0x0200_0000),
                    membership: Membership::default(),
                })),
            },
            Response::Error { id: 0, code: ErrorCode::Corrupt, message: "m".to_owned() },
        ]
    }

    /// Round trip, and every shorter payload is an error or another message, never a panic.
    fn check<T: PartialEq + std::fmt::Debug>(
        message: &T,
        encode: impl Fn(&T, &mut BytesMut),
        decode: impl Fn(Frame) -> Result<T, DecodeError>,
    ) {
        let mut wire = BytesMut::new();
        encode(message, &mut wire);
        let frame = Frame::take(&mut wire).expect("a valid length").expect("a whole frame");
        assert!(wire.is_empty());
        assert_eq!(decode(frame.clone()).as_ref(), Ok(message));
        for length in 0..frame.payload.len() {
            let cut = Frame { kind: frame.kind, payload: frame.payload.slice(..length) };
            assert_ne!(decode(cut).as_ref(), Ok(message), "cut to {length} bytes");
        }
    }

    #[test]
    fn messages_round_trip_and_survive_truncation() {
        for request in requests() {
            check(&request, Request::encode, Request::decode);
        }
        for response in responses() {
            check(&response, Response::encode, Response::decode);
        }
    }

    #[test]
    fn golden_bytes() {
        let hex = |encode: &dyn Fn(&mut BytesMut)| {
            let mut wire = BytesMut::new();
            encode(&mut wire);
            wire.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        assert_eq!(
            hex(&|out| requests()[1].encode(out)),
            "1d000000020900000004000000000000\
             00cdab0000000000000000000000000000"
        );
        assert_eq!(
            hex(&|out| requests()[2].encode(out)),
            "e40000000a090000000400000000000000cdab0000000000000000000000000000\
             0700000000000000\
             0201000000000000000000000000000000\
             07000000756e69783a2f61\
             02000000000000000000000000000000\
             0f0000007463703a3132372e302e302e313a31\
             010202000000000000000000000000000000\
             0f0000007463703a3132372e302e302e313a31\
             00000000000000000000000010000000\
             07000000756e69783a2f62"
                .to_owned()
                + &"5e".repeat(64)
        );
        assert_eq!(
            hex(&|out| requests()[4].encode(out)),
            "2c00000004040000000000000000100002000000000010000200000000000f0002000000000100000000000000\
             77616c"
        );
        assert_eq!(hex(&|out| responses()[4].encode(out)), "110000008404000000000000000310000200000000");
    }

    #[test]
    fn members_are_checked_when_they_are_read() {
        let check = |change: &dyn Fn(&mut Membership), field| {
            let mut bad = membership();
            change(&mut bad);
            let mut wire = BytesMut::new();
            Request::VoteIn(Vote { attempt: 0, term: Term::new(1), proposer: ProposerId::new(1) }, bad)
                .encode(&mut wire);
            let frame = Frame::take(&mut wire).expect("a valid length").expect("a whole frame");
            assert_eq!(Request::decode(frame), Err(DecodeError::BadField { kind: VOTE_IN, field }));
        };
        check(&|bad| bad.members.reverse(), "order of members");
        check(&|bad| bad.members.clear(), "number of members");
        check(&|bad| bad.next = Some(Vec::new()), "number of members");
        check(&|bad| bad.generation = MemberGeneration::new(0), "number of members");
        let many = (0..=MEMBERS_MAX as u128).map(|disk| member(disk, "unix:/a")).collect::<Vec<_>>();
        check(&|bad| bad.members = many.clone(), "number of members");
    }

    #[test]
    fn a_token_is_not_printed() {
        assert!(!format!("{:?}", ManageRequest::CopyTimeline { source: source() }).contains("secret"));
    }

    #[test]
    fn histories_must_ascend() {
        let mut backwards = history();
        backwards.reverse();
        let mut wire = BytesMut::new();
        let begin = Begin { attempt: 0, term: Term::new(4), history: backwards, common_lsn: Lsn::new(0) };
        Request::Begin(begin).encode(&mut wire);
        let frame = Frame::take(&mut wire).expect("a valid length").expect("a whole frame");
        assert_eq!(Request::decode(frame), Err(DecodeError::BadField { kind: BEGIN, field: "order of history" }));
    }
}
