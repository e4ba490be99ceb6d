//! The page service: what computes, control and connectors ask of a page server.
//!
//! Byte table: `docs/formats/page-service.md`. A connection is bound by its [`Hello`] to one timeline, or to none
//! ([`TimelineId::NONE`]) for management of a whole page server. Requests on one connection are answered in order.

mod backup;
mod codec;
mod manage;
mod request;
mod response;

use serde::{Deserialize, Serialize};

use ardent_types::{BlockNumber, TenantId, TimelineId};

pub use backup::{BackupItem, BaseBackupHeader};
pub use manage::{
    ImportSpec, KeptAt, KeptState, ManageReply, ManageRequest, TimelineStatus, UnnamedFiles, UnnamedRelation,
};
pub use request::Request;
pub use response::{ChangedRelation, Response};

/// First field of every hello: `ARPS`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"ARPS");

/// Version of the protocol that this build speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// Most pages in one [`Request::GetPages`] and so in one [`Response::Pages`].
pub const PAGES_PER_REQUEST_MAX: u32 = 1024;

/// Longest description of a timeline, as JSON: every manifest carries it.
pub const DESCRIPTION_LEN_MAX: usize = 256 << 10;

/// Longest part of a kept state.
pub const KEPT_PART_LEN_MAX: usize = 4 << 20;

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

/// `count` blocks from `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockRange {
    /// First block.
    pub start: BlockNumber,
    /// How many; at least 1.
    pub count: u32,
}

/// What kind of failure a request met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum ErrorCode {
    /// The hello was refused: version, token. The connection is closed.
    Refused = 1,
    /// The timeline does not exist here.
    TimelineNotFound = 2,
    /// The LSN is ahead of what was waited for, or below what is retained.
    LsnOutOfRange = 3,
    /// A block or relation does not exist at that LSN.
    NotFound = 4,
    /// The page exists and cannot be rebuilt: corrupt layer, unknown record.
    Unreadable = 5,
    /// Storage does not answer now.
    Unavailable = 6,
    /// The deadline passed.
    Timeout = 7,
    /// The request is malformed.
    Invalid = 8,
    /// The thing to be created exists with other properties, or is in use.
    Conflict = 9,
    /// Another page server has taken the timeline over.
    Fenced = 10,
    /// The lease on the LSN was lost: start again from a newer one.
    BaseLsnExpired = 11,
    /// Our own bug.
    Internal = 12,
}

impl ErrorCode {
    const ALL: [ErrorCode; 12] = [
        ErrorCode::Refused,
        ErrorCode::TimelineNotFound,
        ErrorCode::LsnOutOfRange,
        ErrorCode::NotFound,
        ErrorCode::Unreadable,
        ErrorCode::Unavailable,
        ErrorCode::Timeout,
        ErrorCode::Invalid,
        ErrorCode::Conflict,
        ErrorCode::Fenced,
        ErrorCode::BaseLsnExpired,
        ErrorCode::Internal,
    ];

    /// The code with this number.
    pub fn from_raw(raw: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u16 == raw)
    }

    /// Whether the same request may succeed a little later.
    pub fn is_retryable(self) -> bool {
        matches!(self, ErrorCode::Unavailable | ErrorCode::Timeout)
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};

    use ardent_types::{BLCKSZ, ForkNumber, Lsn, PgTli, RelTag, SystemId, Term, WalSegmentSize};

    use super::codec::GET_PAGES;
    use super::*;
    use crate::frame::{DecodeError, Frame};

    fn rel() -> RelTag {
        RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Vm }
    }

    fn kept_at() -> KeptAt {
        KeptAt { lsn: Lsn::new(99), term: Term::new(3) }
    }

    fn requests() -> Vec<Request> {
        vec![
            Request::Hello(Hello {
                version: 1,
                capabilities: 0,
                tenant: TenantId::from_bytes([3; 16]),
                timeline: TimelineId::NONE,
                token: "a.b".into(),
            }),
            Request::GetPages {
                id: 1,
                lsn: Lsn::new(99),
                rel: rel(),
                ranges: vec![BlockRange { start: 3, count: 2 }, BlockRange { start: 9, count: 1 }],
            },
            Request::GetRelSize { id: 2, lsn: Lsn::new(99), rel: rel() },
            Request::GetBaseBackup { id: 3, lsn: Lsn::new(99) },
            Request::GetChanged { id: 4, from: Lsn::new(1), to: Lsn::new(99) },
            Request::WaitLsn { id: 5, lsn: Lsn::new(99), timeout_ms: 10 },
            Request::Manage { id: 6, request: ManageRequest::ListTimelines },
            Request::ImportFile { path: "base/1/1259".into(), length: 8192 },
            Request::ImportData { data: Bytes::from_static(b"xyz") },
            Request::KeepPart { id: 7, at: kept_at(), part: 2, data: Bytes::from_static(b"abc") },
            Request::GetKeptPart { id: 8, at: kept_at(), part: 2 },
        ]
    }

    fn responses() -> Vec<Response> {
        let header = BaseBackupHeader {
            lsn: Lsn::new(99),
            prev_lsn: Lsn::new(50),
            system_id: SystemId::new(7),
            pg_tli: PgTli::new(1),
            wal_segment_size: WalSegmentSize::DEFAULT,
            pg_major: 15,
            checkpoint_hex: "00".into(),
        };
        let item = |item| Response::BackupItem { id: 3, item };
        vec![
            Response::HelloOk { version: 1, capabilities: 0 },
            Response::Pages { id: 1, pages: Bytes::from(vec![7; BLCKSZ]) },
            Response::RelSize { id: 2, nblocks: None },
            Response::RelSize { id: 2, nblocks: Some(0) },
            item(BackupItem::Header(header)),
            item(BackupItem::ControlFile(Bytes::from_static(b"c"))),
            item(BackupItem::Directory("base/9".into())),
            item(BackupItem::File { path: "PG_VERSION".into(), zstd: Bytes::from_static(b"z") }),
            item(BackupItem::Relations(vec![(rel(), 4)])),
            item(BackupItem::Page { rel: rel(), block: 1, page: Bytes::from(vec![1; BLCKSZ]) }),
            item(BackupItem::End),
            Response::Changed {
                id: 4,
                last: true,
                relations: vec![ChangedRelation {
                    rel: rel(),
                    nblocks_from: None,
                    nblocks_to: Some(3),
                    ranges: vec![BlockRange { start: 0, count: 3 }],
                }],
            },
            Response::LsnReached { id: 5, last_record_lsn: Lsn::new(100) },
            Response::Manage { id: 6, reply: ManageReply::Done },
            Response::KeptPart { id: 8, data: Bytes::from_static(b"abc") },
            Response::Error { id: 7, code: ErrorCode::Unreadable, message: "gone".into() },
        ]
    }

    fn encoded(encode: impl FnOnce(&mut BytesMut)) -> Frame {
        let mut out = BytesMut::new();
        encode(&mut out);
        let frame = Frame::take(&mut out).expect("valid").expect("whole");
        assert!(out.is_empty());
        frame
    }

    #[test]
    fn messages_round_trip() {
        for request in requests() {
            assert_eq!(Request::decode(encoded(|out| request.encode(out))), Ok(request));
        }
        for response in responses() {
            assert_eq!(Response::decode(encoded(|out| response.encode(out))), Ok(response));
        }
    }

    #[test]
    fn golden_bytes() {
        let hex = |encode: &dyn Fn(&mut BytesMut)| {
            let mut wire = BytesMut::new();
            encode(&mut wire);
            wire.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        let asked = [
            "320000000141525053010000000000030303030303030303030303030303030000000000000000000000000000000003\
             000000612e62",
            "3200000002010000000000000063000000000000007f0600000500000000400000020200000003000000020000000900\
             000001000000",
            "1e00000003020000000000000063000000000000007f060000050000000040000002",
            "110000000403000000000000006300000000000000",
            "1900000005040000000000000001000000000000006300000000000000",
            "1500000006050000000000000063000000000000000a000000",
            "24000000070600000000000000170000007b226f70223a226c6973745f74696d656c696e6573227d",
            "18000000080b000000626173652f312f313235390020000000000000",
            "040000000978797a",
            "200000000a07000000000000006300000000000000030000000000000002000000616263",
            "1d0000000b08000000000000006300000000000000030000000000000002000000",
        ];
        assert_eq!(requests().len(), asked.len());
        for (request, expect) in requests().iter().zip(asked) {
            assert_eq!(hex(&|out| request.encode(out)), expect, "{request:?}");
        }
        // With the byte that the page behind them is full of.
        let answered = [
            ("0700000081010000000000", ""),
            ("09200000820100000000000000", "07"),
            ("0d000000830200000000000000ffffffff", ""),
            ("0d00000083020000000000000000000000", ""),
            (
                "9300000084030000000000000000850000007b226c736e223a22302f3030303030303633222c22707265765f6c736e22\
                 3a22302f3030303030303332222c2273797374656d5f6964223a372c2270675f746c69223a312c2277616c5f7365676d\
                 656e745f73697a65223a31363737373231362c2270675f6d616a6f72223a31352c22636865636b706f696e745f686578\
                 223a223030227d",
                "",
            ),
            ("0f000000840300000000000000010100000063", ""),
            ("140000008403000000000000000206000000626173652f39", ""),
            ("1d000000840300000000000000030a00000050475f56455253494f4e010000007a", ""),
            ("1f00000084030000000000000004010000007f06000005000000004000000204000000", ""),
            ("1f200000840300000000000000057f0600000500000000400000020100000000200000", "01"),
            ("0a00000084030000000000000006", ""),
            (
                "2f00000085040000000000000001010000007f060000050000000040000002ffffffff03000000010000000000000003\
                 000000",
                "",
            ),
            ("110000008605000000000000006400000000000000", ""),
            ("1d000000870600000000000000100000007b227265706c79223a22646f6e65227d", ""),
            ("0c0000008b0800000000000000616263", ""),
            ("13000000ff0700000000000000050004000000676f6e65", ""),
        ];
        assert_eq!(responses().len(), answered.len());
        for (response, (expect, page)) in responses().iter().zip(answered) {
            let sent = hex(&|out| response.encode(out));
            assert_eq!(sent, expect.to_owned() + &page.repeat(BLCKSZ), "{} bytes", sent.len() / 2);
        }
    }

    #[test]
    fn every_truncation_is_an_error_or_a_shorter_message_never_a_panic() {
        for response in responses() {
            let frame = encoded(|out| response.encode(out));
            for length in 0..frame.payload.len().min(200) {
                let cut = Frame { kind: frame.kind, payload: frame.payload.slice(..length) };
                assert_ne!(Response::decode(cut), Ok(response.clone()));
            }
        }
        for request in requests() {
            let frame = encoded(|out| request.encode(out));
            for length in 0..frame.payload.len() {
                let cut = Frame { kind: frame.kind, payload: frame.payload.slice(..length) };
                assert_ne!(Request::decode(cut), Ok(request.clone()));
            }
        }
    }

    #[test]
    fn a_request_for_too_many_pages_is_refused() {
        let request = Request::GetPages {
            id: 1,
            lsn: Lsn::new(9),
            rel: rel(),
            ranges: vec![BlockRange { start: 0, count: PAGES_PER_REQUEST_MAX + 1 }],
        };
        let decoded = Request::decode(encoded(|out| request.encode(out)));
        assert_eq!(decoded, Err(DecodeError::BadField { kind: GET_PAGES, field: "number of pages" }));
    }
}
