//! Our own small changes: what Postgres's redo does to pages that the record does not reference (VM bits), or that have
//! no page format of their own (SLRU pages). One value per key and LSN: a record that changes a page in two places makes
//! one delta with both (checklist 32). Byte table: `docs/formats/values.md`.

use ardent_types::{BLCKSZ, Key, SlruKind};
use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use crate::vm::{self, VmChange};
use crate::{fsm, value::ValueDecodeError};

/// Transaction statuses per `pg_xact` page.
pub const XACTS_PER_PAGE: u32 = BLCKSZ as u32 * 4;
/// Entries per `pg_multixact/offsets` page.
pub const MULTIXACT_OFFSETS_PER_PAGE: u32 = BLCKSZ as u32 / 4;
/// Members per `pg_multixact/members` page: 409 groups of four, the last 12 bytes stay unused.
pub const MULTIXACT_MEMBERS_PER_PAGE: u32 = (BLCKSZ as u32 / MEMBER_GROUP_LEN) * MEMBERS_PER_GROUP;
/// Entries per `pg_commit_ts` page.
pub const COMMIT_TS_PER_PAGE: u32 = BLCKSZ as u32 / COMMIT_TS_LEN;

const MEMBERS_PER_GROUP: u32 = 4;
/// Four status bytes, then four transaction ids.
const MEMBER_GROUP_LEN: u32 = 20;
/// An i64 timestamp and a u16 origin, unaligned.
const COMMIT_TS_LEN: u32 = 10;

/// Final status of a transaction in `pg_xact`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum XactStatus {
    /// `TRANSACTION_STATUS_COMMITTED`
    Committed = 1,
    /// `TRANSACTION_STATUS_ABORTED`
    Aborted = 2,
    /// `TRANSACTION_STATUS_SUB_COMMITTED`
    SubCommitted = 3,
}

/// A member of a multixact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiXactMember {
    /// Its offset in the members space.
    pub offset: u32,
    /// Transaction.
    pub xid: u32,
    /// `MultiXactStatus`.
    pub status: u8,
}

/// A small change of one page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// The page becomes all zero, whatever it was.
    ZeroPage,
    /// Bits of a visibility-map page change. The page's LSN stays.
    Vm(SmallVec<[VmChange; 2]>),
    /// The bits of heap block `heap_blocks` and of all after it on this visibility-map page are cleared (checklist 25).
    VmTruncate {
        /// The heap's new length in blocks; within the part of the heap that the page maps.
        heap_blocks: u32,
    },
    /// The leaf slots from `slots` on are cleared on this free-space-map leaf page and its inner nodes recomputed
    /// (checklist 24).
    FsmTruncate {
        /// The first slot to go.
        slots: u16,
    },
    /// Final statuses of transactions of one `pg_xact` page.
    Xact {
        /// The status.
        status: XactStatus,
        /// The transactions, all of one page.
        xids: SmallVec<[u32; 4]>,
    },
    /// Entries of one `pg_multixact/offsets` page: multixact id, its first member's offset.
    MultiXactOffsets(SmallVec<[(u32, u32); 2]>),
    /// Entries of one `pg_multixact/members` page.
    MultiXactMembers(SmallVec<[MultiXactMember; 4]>),
    /// Commit timestamps of transactions of one `pg_commit_ts` page.
    CommitTs {
        /// Microseconds since 2000-01-01.
        timestamp: i64,
        /// Replication origin.
        origin: u16,
        /// The transactions, all of one page.
        xids: SmallVec<[u32; 4]>,
    },
}

/// A delta met a key that it can't belong to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {delta} delta does not belong to {key}")]
pub struct DeltaError {
    /// Kind of delta.
    pub delta: &'static str,
    /// The key.
    pub key: Key,
}

const ZERO_PAGE: u8 = 0;
const VM: u8 = 1;
const VM_TRUNCATE: u8 = 2;
const FSM_TRUNCATE: u8 = 3;
const XACT: u8 = 4;
const OFFSETS: u8 = 5;
const MEMBERS: u8 = 6;
const COMMIT_TS: u8 = 7;

impl Delta {
    /// Its encoding.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode_into(&mut out);
        out.freeze()
    }

    /// Appends its encoding.
    pub fn encode_into(&self, out: &mut BytesMut) {
        match self {
            Delta::ZeroPage => out.put_u8(ZERO_PAGE),
            Delta::Vm(changes) => {
                out.put_u8(VM);
                for change in changes {
                    out.put_u32_le(change.heap_block);
                    out.put_u8(change.clear | change.set << 4);
                }
            }
            Delta::VmTruncate { heap_blocks } => {
                out.put_u8(VM_TRUNCATE);
                out.put_u32_le(*heap_blocks);
            }
            Delta::FsmTruncate { slots } => {
                out.put_u8(FSM_TRUNCATE);
                out.put_u16_le(*slots);
            }
            Delta::Xact { status, xids } => {
                out.put_u8(XACT);
                out.put_u8(*status as u8);
                xids.iter().for_each(|xid| out.put_u32_le(*xid));
            }
            Delta::MultiXactOffsets(entries) => {
                out.put_u8(OFFSETS);
                for (multi, offset) in entries {
                    out.put_u32_le(*multi);
                    out.put_u32_le(*offset);
                }
            }
            Delta::MultiXactMembers(members) => {
                out.put_u8(MEMBERS);
                for member in members {
                    out.put_u32_le(member.offset);
                    out.put_u32_le(member.xid);
                    out.put_u8(member.status);
                }
            }
            Delta::CommitTs { timestamp, origin, xids } => {
                out.put_u8(COMMIT_TS);
                out.put_i64_le(*timestamp);
                out.put_u16_le(*origin);
                xids.iter().for_each(|xid| out.put_u32_le(*xid));
            }
        }
    }

    /// The delta with this encoding.
    pub fn decode(bytes: &[u8]) -> Result<Delta, ValueDecodeError> {
        let (tag, body) = bytes.split_first().ok_or(ValueDecodeError("an empty delta"))?;
        match *tag {
            ZERO_PAGE if body.is_empty() => Ok(Delta::ZeroPage),
            VM => Ok(Delta::Vm(
                entries::<5, _>(body, |entry| VmChange {
                    heap_block: le_u32(&entry[..4]),
                    clear: entry[4] & 0x03,
                    set: entry[4] >> 4 & 0x03,
                })?
                .collect(),
            )),
            VM_TRUNCATE if body.len() == 4 => Ok(Delta::VmTruncate { heap_blocks: le_u32(body) }),
            FSM_TRUNCATE if body.len() == 2 => Ok(Delta::FsmTruncate { slots: u16::from_le_bytes([body[0], body[1]]) }),
            XACT => {
                let (status, xids) =
                    body.split_first().ok_or(ValueDecodeError("a transaction delta without status"))?;
                let status = match status {
                    1 => XactStatus::Committed,
                    2 => XactStatus::Aborted,
                    3 => XactStatus::SubCommitted,
                    _ => return Err(ValueDecodeError("an unknown transaction status")),
                };
                Ok(Delta::Xact { status, xids: entries::<4, _>(xids, le_u32)?.collect() })
            }
            OFFSETS => Ok(Delta::MultiXactOffsets(
                entries::<8, _>(body, |entry| (le_u32(&entry[..4]), le_u32(&entry[4..])))?.collect(),
            )),
            MEMBERS => Ok(Delta::MultiXactMembers(
                entries::<9, _>(body, |entry| MultiXactMember {
                    offset: le_u32(&entry[..4]),
                    xid: le_u32(&entry[4..8]),
                    status: entry[8],
                })?
                .collect(),
            )),
            COMMIT_TS => {
                let (head, xids) =
                    body.split_at_checked(10).ok_or(ValueDecodeError("a commit timestamp delta cut short"))?;
                Ok(Delta::CommitTs {
                    timestamp: i64::from_le_bytes(head[..8].try_into().expect("8 bytes")),
                    origin: u16::from_le_bytes([head[8], head[9]]),
                    xids: entries::<4, _>(xids, le_u32)?.collect(),
                })
            }
            _ => Err(ValueDecodeError("an unknown delta")),
        }
    }

    /// Whether an encoded delta makes earlier versions unneeded.
    pub(crate) fn encoded_is_base(bytes: &[u8]) -> bool {
        bytes.first() == Some(&ZERO_PAGE)
    }

    fn name(&self) -> &'static str {
        match self {
            Delta::ZeroPage => "zero-page",
            Delta::Vm(_) => "visibility-map",
            Delta::VmTruncate { .. } => "visibility-map truncation",
            Delta::FsmTruncate { .. } => "free-space-map truncation",
            Delta::Xact { .. } => "transaction-status",
            Delta::MultiXactOffsets(_) => "multixact-offsets",
            Delta::MultiXactMembers(_) => "multixact-members",
            Delta::CommitTs { .. } => "commit-timestamp",
        }
    }

    /// Makes the change on the page of `key`. The page's LSN, where it has one, stays: Postgres's redo leaves it too.
    /// Errors, with the page untouched, if the delta is not for that page.
    pub fn apply(&self, key: &Key, page: &mut [u8; BLCKSZ]) -> Result<(), DeltaError> {
        let error = || DeltaError { delta: self.name(), key: *key };
        let on_page = |page_number: u64, item: u32, per_page: u32| u64::from(item / per_page) == page_number;
        match (self, key) {
            (Delta::ZeroPage, Key::SlruPage(..) | Key::RelBlock(..)) => page.fill(0),
            (Delta::Vm(changes), Key::RelBlock(_, block)) => {
                if changes.iter().any(|change| vm::map_block(change.heap_block) != *block) {
                    return Err(error());
                }
                changes.iter().for_each(|change| change.apply(page));
            }
            (Delta::VmTruncate { heap_blocks }, Key::RelBlock(_, block)) if vm::map_block(*heap_blocks) == *block => {
                vm::truncate(page, *heap_blocks);
            }
            (Delta::FsmTruncate { slots }, Key::RelBlock(..)) if usize::from(*slots) < fsm::SLOTS_PER_PAGE => {
                fsm::truncate(page, usize::from(*slots));
            }
            (Delta::Xact { status, xids }, Key::SlruPage(SlruKind::Xact, number)) => {
                if !xids.iter().all(|xid| on_page(*number, *xid, XACTS_PER_PAGE)) {
                    return Err(error());
                }
                xids.iter().for_each(|xid| set_xact_status(page, *xid, *status));
            }
            (Delta::MultiXactOffsets(entries), Key::SlruPage(SlruKind::MultiXactOffsets, number)) => {
                if !entries.iter().all(|(multi, _)| on_page(*number, *multi, MULTIXACT_OFFSETS_PER_PAGE)) {
                    return Err(error());
                }
                for (multi, offset) in entries {
                    let at = (multi % MULTIXACT_OFFSETS_PER_PAGE) as usize * 4;
                    page[at..at + 4].copy_from_slice(&offset.to_le_bytes());
                }
            }
            (Delta::MultiXactMembers(members), Key::SlruPage(SlruKind::MultiXactMembers, number)) => {
                if !members.iter().all(|member| on_page(*number, member.offset, MULTIXACT_MEMBERS_PER_PAGE)) {
                    return Err(error());
                }
                members.iter().for_each(|member| set_member(page, member));
            }
            (Delta::CommitTs { timestamp, origin, xids }, Key::SlruPage(SlruKind::CommitTs, number)) => {
                if !xids.iter().all(|xid| on_page(*number, *xid, COMMIT_TS_PER_PAGE)) {
                    return Err(error());
                }
                for xid in xids {
                    let at = ((xid % COMMIT_TS_PER_PAGE) * COMMIT_TS_LEN) as usize;
                    page[at..at + 8].copy_from_slice(&timestamp.to_le_bytes());
                    page[at + 8..at + 10].copy_from_slice(&origin.to_le_bytes());
                }
            }
            _ => return Err(error()),
        }
        Ok(())
    }
}

fn set_xact_status(page: &mut [u8; BLCKSZ], xid: u32, status: XactStatus) {
    let byte = &mut page[(xid % XACTS_PER_PAGE / 4) as usize];
    let shift = (xid % 4) * 2;
    let committed = *byte >> shift & 0x03 == XactStatus::Committed as u8;
    // A large commit marks its subtransactions sub-committed before it marks all committed; replay that begins between the
    // two must not take a commit back (TransactionIdSetStatusBit).
    if !(committed && status == XactStatus::SubCommitted) {
        *byte = *byte & !(0x03 << shift) | (status as u8) << shift;
    }
}

fn set_member(page: &mut [u8; BLCKSZ], member: &MultiXactMember) {
    let index = member.offset % MULTIXACT_MEMBERS_PER_PAGE;
    let group = (index / MEMBERS_PER_GROUP * MEMBER_GROUP_LEN) as usize;
    let within = (index % MEMBERS_PER_GROUP) as usize;
    page[group + within] = member.status;
    let at = group + 4 + within * 4;
    page[at..at + 4].copy_from_slice(&member.xid.to_le_bytes());
}

fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("callers pass 4 bytes"))
}

fn entries<'a, const N: usize, T>(
    body: &'a [u8],
    decode: impl Fn(&[u8]) -> T + 'a,
) -> Result<impl Iterator<Item = T> + 'a, ValueDecodeError> {
    if !body.len().is_multiple_of(N) {
        return Err(ValueDecodeError("a delta's list is cut short"));
    }
    Ok(body.chunks_exact(N).map(decode))
}

#[cfg(test)]
mod tests {
    use ardent_types::{ForkNumber, RelTag};
    use smallvec::smallvec;

    use super::*;

    fn vm_key(block: u32) -> Key {
        Key::RelBlock(RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Vm }, block)
    }

    fn samples() -> Vec<(Delta, Key)> {
        let member = |offset, xid, status| MultiXactMember { offset, xid, status };
        vec![
            (Delta::ZeroPage, Key::SlruPage(SlruKind::Xact, 3)),
            (Delta::Vm(smallvec![VmChange { heap_block: 7, clear: 3, set: 0 }]), vm_key(0)),
            (Delta::VmTruncate { heap_blocks: 40_000 }, vm_key(1)),
            (Delta::FsmTruncate { slots: 9 }, vm_key(0)),
            (
                Delta::Xact { status: XactStatus::Aborted, xids: smallvec![32_768, 32_769, 40_000] },
                Key::SlruPage(SlruKind::Xact, 1),
            ),
            (Delta::MultiXactOffsets(smallvec![(2048, 77), (2049, 80)]), Key::SlruPage(SlruKind::MultiXactOffsets, 1)),
            (
                Delta::MultiXactMembers(smallvec![member(1635, 9, 1), member(0, 8, 5)]),
                Key::SlruPage(SlruKind::MultiXactMembers, 0),
            ),
            (
                Delta::CommitTs { timestamp: -5, origin: 2, xids: smallvec![819, 820] },
                Key::SlruPage(SlruKind::CommitTs, 1),
            ),
        ]
    }

    #[test]
    fn deltas_round_trip_and_apply_to_their_page_only() {
        for (delta, key) in samples() {
            let encoded = delta.encode();
            assert_eq!(Delta::decode(&encoded).as_ref(), Ok(&delta));
            let mut page = [0xA5; BLCKSZ];
            assert_eq!(delta.apply(&key, &mut page), Ok(()));
            assert!(delta.apply(&Key::Checkpoint, &mut page).is_err());
            assert_eq!(Delta::encoded_is_base(&encoded), delta == Delta::ZeroPage);
            for cut in 0..encoded.len() {
                // Cut lists may decode to shorter lists, never panic.
                let _ = Delta::decode(&encoded[..cut]);
            }
        }
        let other_page = Key::SlruPage(SlruKind::Xact, 0);
        let delta = Delta::Xact { status: XactStatus::Committed, xids: smallvec![5, 32_768] };
        let mut page = [0; BLCKSZ];
        assert!(delta.apply(&other_page, &mut page).is_err());
        assert_eq!(page, [0; BLCKSZ]);
    }

    #[test]
    fn golden_bytes() {
        let hex = |delta: &Delta| delta.encode().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let golden = [
            "00",
            "010700000003",
            "02409c0000",
            "030900",
            "04020080000001800000409c0000",
            "05000800004d0000000108000050000000",
            "06630600000900000001000000000800000005",
            "07fbffffffffffffff02003303000034030000",
        ];
        assert_eq!(samples().iter().map(|(delta, _)| hex(delta)).collect::<Vec<_>>(), golden);
        let set = Delta::Vm(smallvec![VmChange { heap_block: 9, clear: 1, set: 2 }]);
        assert_eq!(hex(&set), "010900000021");
    }

    #[test]
    fn checklist_42_clog_bits() {
        let key = Key::SlruPage(SlruKind::Xact, 0);
        let mut page = [0; BLCKSZ];
        let set = |page: &mut [u8; BLCKSZ], status, xids: &[u32]| {
            Delta::Xact { status, xids: xids.into() }.apply(&key, page).unwrap();
        };
        set(&mut page, XactStatus::SubCommitted, &[4, 5]);
        set(&mut page, XactStatus::Committed, &[5, 7]);
        set(&mut page, XactStatus::SubCommitted, &[5]);
        assert_eq!(page[1], 0b01_00_01_11);
    }

    #[test]
    fn checklist_49_members_layout() {
        let key = Key::SlruPage(SlruKind::MultiXactMembers, 2);
        let mut page = [0; BLCKSZ];
        let offset = 2 * 1636 + 5;
        Delta::MultiXactMembers(smallvec![MultiXactMember { offset, xid: 0x0102_0304, status: 4 }])
            .apply(&key, &mut page)
            .unwrap();
        // Second group, second member.
        assert_eq!(page[21], 4);
        assert_eq!(page[28..32], [4, 3, 2, 1]);
        assert_eq!(page.iter().filter(|byte| **byte != 0).count(), 5);
    }

    #[test]
    fn checklist_24_25_truncation_clears_the_tail() {
        let mut page = [0xFF; BLCKSZ];
        Delta::VmTruncate { heap_blocks: 6 }.apply(&vm_key(0), &mut page).unwrap();
        assert_eq!(page[24..27], [0xFF, 0x0F, 0]);
        assert!(page[26..].iter().all(|byte| *byte == 0));
        assert!(page[..24].iter().all(|byte| *byte == 0xFF));

        let mut page = [0; BLCKSZ];
        page[28..].fill(9);
        Delta::FsmTruncate { slots: 1 }.apply(&vm_key(0), &mut page).unwrap();
        let nodes = &page[28..];
        assert_eq!((nodes[0], nodes[4095], nodes[4096]), (9, 9, 0));
        Delta::FsmTruncate { slots: 0 }.apply(&vm_key(0), &mut page).unwrap();
        assert!(page[28..].iter().all(|byte| *byte == 0));
    }
}
