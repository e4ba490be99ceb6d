//! Transaction-id arithmetic: 32-bit ids compare around a circle, the next one is kept with its epoch.

/// The first id that a transaction can get (`FirstNormalTransactionId`).
pub(crate) const FIRST_NORMAL_XID: u32 = 3;
/// The next id is kept rounded up to a multiple of this: one version of the checkpoint per so many transactions.
const ROUNDING: u32 = 1024;

/// `TransactionIdPrecedes`: whether `a` is older than `b`. The special ids are older than all others.
pub(crate) fn precedes(a: u32, b: u32) -> bool {
    if a < FIRST_NORMAL_XID || b < FIRST_NORMAL_XID { a < b } else { (a.wrapping_sub(b) as i32) < 0 }
}

/// The next full transaction id after `xid` was seen, or `None` if `next` is past it already. Rounded up, with the epoch
/// advanced where the 32 bits wrap (checklist 44).
pub(crate) fn next_after(next: u64, xid: u32) -> Option<u64> {
    let (epoch, low) = (next >> 32, next as u32);
    if xid < FIRST_NORMAL_XID || precedes(xid, low) {
        return None;
    }
    // `xid` is at or past `low` on the circle, less than half of it away.
    let epoch = if xid < low { epoch + 1 } else { epoch };
    let seen = epoch << 32 | u64::from(xid);
    let rounded = (seen + 1).next_multiple_of(u64::from(ROUNDING));
    // An epoch begins with the special ids.
    Some(if (rounded as u32) < FIRST_NORMAL_XID { rounded | u64::from(FIRST_NORMAL_XID) } else { rounded })
}

/// `MultiXactIdPrecedes` and `MultiXactOffsetPrecedes`: plain circle order.
pub(crate) fn circle_precedes(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checklist_44_next_xid_rounds_up_wraps_and_ignores_special_ids() {
        assert_eq!(next_after(700, 0), None);
        assert_eq!(next_after(700, 2), None);
        assert_eq!(next_after(700, 699), None);
        assert_eq!(next_after(700, 700), Some(1024));
        assert_eq!(next_after(1024, 1023), None);
        assert_eq!(next_after(1024, 1024), Some(2048));
        assert_eq!(next_after(1024, 2047), Some(2048));
        // The last ids of an epoch: the next one begins with the first normal id.
        assert_eq!(next_after(0xFFFF_FC00, 0xFFFF_FC00), Some(1 << 32 | 3));
        assert_eq!(next_after(0xFFFF_FC00, 5), Some(1 << 32 | 1024));
        assert_eq!(next_after(1 << 32 | 3, 0xFFFF_FFFF), None);
        assert_eq!(next_after(7 << 32 | 1024, 1024), Some(7 << 32 | 2048));
    }

    #[test]
    fn order_is_circular() {
        assert!(precedes(u32::MAX, 3) && !precedes(3, u32::MAX));
        assert!(precedes(0, 3) && precedes(2, u32::MAX) && !precedes(u32::MAX, 2));
        assert!(circle_precedes(u32::MAX, 1) && !circle_precedes(1, u32::MAX) && !circle_precedes(4, 4));
    }
}
