//! Marks sessions that hold what they would lose by being ended: channels they listen to, cursors that outlive transactions.
//!
//! No other session can see either, so the mark is a lock that the agent finds in `pg_locks`: one of this process's own,
//! held for the session, in a way that `pg_advisory_unlock_all` does not release. It is given back by `UNLISTEN *`, `CLOSE ALL`
//! and `DISCARD ALL`; a session that only closes some of what it holds stays marked.

use crate::pg;

/// What a session may hold.
#[derive(Clone, Copy)]
enum Kind {
    Listening = 1,
    Cursors = 2,
}

/// Which marks this process has.
static mut MARKED: [bool; 3] = [false; 3];

/// After a utility command has run.
///
/// # Safety
/// With a valid node, where an error may be raised.
pub unsafe fn after_command(node: *const pg::Node) {
    // SAFETY: a node's tag says which struct it is.
    unsafe {
        match (*node).type_ {
            pg::T_ListenStmt => mark(Kind::Listening),
            pg::T_UnlistenStmt if (*node.cast::<pg::UnlistenStmt>()).conditionname.is_null() => clear(Kind::Listening),
            pg::T_DeclareCursorStmt => {
                let holds = pg::CURSOR_OPT_HOLD as i32;
                if (*node.cast::<pg::DeclareCursorStmt>()).options & holds != 0 {
                    mark(Kind::Cursors);
                }
            }
            pg::T_ClosePortalStmt if (*node.cast::<pg::ClosePortalStmt>()).portalname.is_null() => clear(Kind::Cursors),
            pg::T_DiscardStmt if (*node.cast::<pg::DiscardStmt>()).target == pg::DISCARD_ALL => {
                clear(Kind::Listening);
                clear(Kind::Cursors);
            }
            _ => {}
        }
    }
}

unsafe fn tag(kind: Kind) -> pg::LOCKTAG {
    pg::LOCKTAG {
        // SAFETY: set when the session was opened.
        locktag_field1: unsafe { (&raw const pg::MyDatabaseId).read() },
        locktag_field2: pg::process_id().unsigned_abs(),
        locktag_field3: kind as u32,
        locktag_field4: 0,
        locktag_type: pg::LOCKTAG_USERLOCK as u8,
        locktag_lockmethodid: pg::DEFAULT_LOCKMETHOD as u8,
    }
}

unsafe fn mark(kind: Kind) {
    // SAFETY: nobody else takes this lock, so there is no waiting; single-threaded.
    unsafe {
        if !MARKED[kind as usize] {
            let tag = tag(kind);
            pg::LockAcquire(&raw const tag, pg::ShareLock as i32, true, true);
            MARKED[kind as usize] = true;
        }
    }
}

unsafe fn clear(kind: Kind) {
    // SAFETY: as above.
    unsafe {
        if MARKED[kind as usize] {
            let tag = tag(kind);
            pg::LockRelease(&raw const tag, pg::ShareLock as i32, true);
            MARKED[kind as usize] = false;
        }
    }
}
