//! The branch's policy, as far as it can be held inside Postgres: clear errors at the first statement that breaks it.
//!
//! ```text
//!  statement ──► XactReadOnly forced, timeout no longer than allowed      (errors say which policy)
//!  growing relation ──► refused past a budget
//!  commit ──► waits until the agent has counted this transaction's WAL ──► refused past a budget
//! ```
//!
//! A superuser who loads code of their own gets around all of this, but not around the agent: it looks at the WAL itself and
//! passes nothing on to the quorum that the policy forbids. The limits come from a page of memory that only the agent can
//! write ([`PolicyPage`]).

use std::ffi::{CStr, c_int, c_void};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use ardent_api::policy::{PolicyPage, Refusal};
use ardent_types::Lsn;

use crate::agent_login;
use crate::filler::{self, Place};
use crate::pg;
use crate::reading_session;
use crate::report::{Level, Report, SqlState, Text, refuse_start};
use crate::settings;
use crate::wal_brake;

/// How often the agent's count is looked at by a commit that waits for it.
const POLL: Duration = Duration::from_micros(200);

static mut PAGE: *const PolicyPage = std::ptr::null();
static mut NEXT_START: pg::ExecutorStart_hook_type = None;
static mut NEXT_RUN: pg::ExecutorRun_hook_type = None;

/// Maps the page and puts the hooks in.
///
/// # Safety
/// Only from `_PG_init`.
pub unsafe fn install() {
    let path = settings::policy();
    // SAFETY: nobody else runs yet.
    unsafe {
        if !path.is_empty() {
            PAGE = map(path);
        }
        NEXT_START = pg::ExecutorStart_hook;
        pg::ExecutorStart_hook = Some(executor_start);
        NEXT_RUN = pg::ExecutorRun_hook;
        pg::ExecutorRun_hook = Some(executor_run);
    }
}

unsafe fn map(path: &CStr) -> *const PolicyPage {
    let text = path.to_str().unwrap_or("?");
    let page = std::fs::File::open(text).ok().map(|file| {
        // SAFETY: a new mapping of an open file, never unmapped.
        unsafe {
            libc::mmap(std::ptr::null_mut(), PolicyPage::LEN, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
        }
    });
    let page = page.filter(|page| *page != libc::MAP_FAILED).map(<*mut c_void>::cast_const).map(<*const c_void>::cast);
    match page {
        // SAFETY: the agent makes the file as long as a page before it starts us.
        Some(page) if unsafe { &*page as &PolicyPage }.is_valid() => page,
        // SAFETY: nothing alive has a destructor.
        _ => unsafe { refuse_start(format_args!("the branch's policy cannot be read from {text}")) },
    }
}

/// What absent pages are read at, as far as the agent says.
pub fn read_lsn() -> Lsn {
    // SAFETY: written once, before there are children.
    let page = unsafe { (&raw const PAGE).read().as_ref() };
    page.map_or(Lsn::INVALID, PolicyPage::read_lsn)
}

/// The policy that holds for this session. The agent's and control's own are exempt.
fn page() -> Option<&'static PolicyPage> {
    // SAFETY: written once, before there are children.
    let page = unsafe { (&raw const PAGE).read().as_ref() };
    page.filter(|_| !agent_login::is_agent_session())
}

unsafe fn refusal(page: &PolicyPage) -> Option<Refusal> {
    // SAFETY: shared memory exists in every process that runs statements.
    page.refusal(Lsn::new(unsafe { pg::GetXLogInsertRecPtr() }))
}

unsafe extern "C-unwind" fn executor_start(query: *mut pg::QueryDesc, flags: c_int) {
    // SAFETY: Postgres's arguments, unchanged; nothing here has a destructor.
    unsafe {
        before_statement();
        if (*query).operation != pg::CMD_SELECT {
            wal_brake::hold_until_acknowledged(Place::Statement);
        }
        let next = (&raw const NEXT_START).read().unwrap_or(pg::standard_ExecutorStart);
        explained(|| next(query, flags));
    }
}

#[cfg(not(pg_from = "18"))]
unsafe extern "C-unwind" fn executor_run(
    query: *mut pg::QueryDesc,
    direction: pg::ScanDirection,
    count: pg::uint64,
    execute_once: bool,
) {
    // SAFETY: Postgres's arguments, unchanged; nothing here has a destructor.
    unsafe {
        let next = (&raw const NEXT_RUN).read().unwrap_or(pg::standard_ExecutorRun);
        explained(|| next(query, direction, count, execute_once));
    }
}

#[cfg(pg_from = "18")]
unsafe extern "C-unwind" fn executor_run(query: *mut pg::QueryDesc, direction: pg::ScanDirection, count: pg::uint64) {
    // SAFETY: Postgres's arguments, unchanged; nothing here has a destructor.
    unsafe {
        let next = (&raw const NEXT_RUN).read().unwrap_or(pg::standard_ExecutorRun);
        explained(|| next(query, direction, count));
    }
}

/// Runs what may raise an error because of the policy.
unsafe fn explained(run: impl FnOnce() + Copy) {
    let mut note = Note::new();
    // SAFETY: nothing here has a destructor.
    unsafe {
        note.enter();
        run();
        note.leave();
    }
}

/// Before anything that a client asked for runs.
unsafe fn before_statement() {
    if reading_session::is_one() {
        // SAFETY: this process's own variable.
        unsafe { pg::XactReadOnly = true };
    }
    let Some(page) = page() else { return };
    // SAFETY: these are this process's own variables.
    unsafe {
        if pg::MyBackendType == pg::B_BACKEND {
            limit_time(page);
        }
        if refusal(page).is_some() {
            // Set again with every statement: a transaction may have been declared READ WRITE meanwhile.
            pg::XactReadOnly = true;
        }
    }
}

/// Sees to it that the running statement ends in time, whatever `statement_timeout` was set to.
unsafe fn limit_time(page: &PolicyPage) {
    let Some(limit) = page.statement_timeout_ms() else { return };
    let limit = c_int::try_from(limit).unwrap_or(c_int::MAX);
    // SAFETY: a client's backend, in a statement.
    unsafe {
        if pg::StatementTimeout == 0 || pg::StatementTimeout > limit {
            pg::StatementTimeout = limit;
        }
        let latest = pg::GetCurrentStatementStartTimestamp() + i64::from(limit) * 1000;
        if !pg::get_timeout_active(pg::STATEMENT_TIMEOUT) || pg::get_timeout_finish_time(pg::STATEMENT_TIMEOUT) > latest
        {
            let left_ms = (latest - pg::GetCurrentTimestamp()) / 1000;
            pg::enable_timeout_after(pg::STATEMENT_TIMEOUT, c_int::try_from(left_ms).unwrap_or(limit).max(1));
        }
    }
}

/// Before a utility command. Postgres itself refuses those that change something in a read-only transaction, but for these.
///
/// # Safety
/// With a valid node, where an error may be raised.
pub unsafe fn before_command(node: *const pg::Node) {
    // SAFETY: the caller's promise.
    unsafe {
        before_statement();
        reading_session::before_command(node);
        let Some(page) = page() else { return };
        let writes = match (*node).type_ {
            pg::T_VacuumStmt | pg::T_ReindexStmt | pg::T_ClusterStmt => true,
            pg::T_TransactionStmt => matches!(
                (*node.cast::<pg::TransactionStmt>()).kind,
                pg::TRANS_STMT_COMMIT_PREPARED | pg::TRANS_STMT_ROLLBACK_PREPARED
            ),
            _ => false,
        };
        if let Some(refusal) = refusal(page).filter(|_| writes) {
            report(page, refusal).raise(Level::Error);
        }
    }
}

/// Before a relation grows: a statement that is past its budget need not be waited for.
///
/// # Safety
/// Where an error may be raised, or in a critical section.
pub unsafe fn before_growth() {
    let Some(page) = page() else { return };
    // SAFETY: this process's own variables.
    unsafe {
        if pg::MyBackendType != pg::B_BACKEND || pg::in_critical_section() || !pg::IsTransactionState() {
            return;
        }
        if let Some(refusal) = refusal(page) {
            report(page, refusal).raise(Level::Error);
        }
    }
}

/// Before a transaction commits or is prepared. One that has written waits until the agent has counted its rows.
///
/// # Safety
/// Where an error may be raised.
pub unsafe fn before_commit() {
    // SAFETY: the caller's promise.
    unsafe { reading_session::before_commit() };
    let Some(page) = page() else { return };
    // SAFETY: this process's own variables; flushing is allowed in any transaction.
    unsafe {
        if pg::GetTopTransactionIdIfAny() == 0 || pg::MyBackendType == pg::B_AUTOVAC_WORKER {
            return;
        }
        if page.rows_max().is_some() {
            let end = pg::XactLastRecEnd;
            pg::XLogFlush(end);
            while page.examined().get() < end {
                filler::wait(POLL, Place::Statement);
            }
        }
        if let Some(refusal) = refusal(page) {
            report(page, refusal).raise(Level::Error);
        }
    }
}

/// Adds the policy's name to errors that Postgres raises because of it.
pub struct Note {
    callback: pg::ErrorContextCallback,
    active: bool,
}

impl Note {
    /// A note, to stay where it is made.
    pub fn new() -> Self {
        let callback = pg::ErrorContextCallback {
            previous: std::ptr::null_mut(),
            callback: Some(explain),
            arg: std::ptr::null_mut(),
        };
        Note { callback, active: page().is_some() }
    }

    /// From here on errors are explained.
    ///
    /// # Safety
    /// [`Self::leave`] follows, unless an error leaves this frame: then Postgres restores the stack of callbacks.
    pub unsafe fn enter(&mut self) {
        if self.active {
            // SAFETY: single-threaded; `self` outlives its place on the stack of callbacks.
            unsafe {
                self.callback.previous = pg::error_context_stack;
                pg::error_context_stack = &raw mut self.callback;
            }
        }
    }

    /// Up to here.
    ///
    /// # Safety
    /// After [`Self::enter`].
    pub unsafe fn leave(&mut self) {
        if self.active {
            // SAFETY: as above.
            unsafe { pg::error_context_stack = self.callback.previous };
        }
    }
}

unsafe extern "C-unwind" fn explain(_: *mut c_void) {
    let Some(page) = page() else { return };
    // SAFETY: called while an error is being put together.
    unsafe {
        let code = pg::geterrcode();
        if code == SqlState::READ_ONLY_TRANSACTION.code() {
            if let Some(refusal) = refusal(page) {
                report(page, refusal).explain();
            }
        } else if code == SqlState::QUERY_CANCELED.code()
            && let Some(limit) = page.statement_timeout_ms()
        {
            let ran_us = pg::GetCurrentTimestamp() - pg::GetCurrentStatementStartTimestamp();
            if u64::try_from(ran_us / 1000).is_ok_and(|ran_ms| ran_ms + 1 >= limit) {
                let branch = settings::branch();
                let detail =
                    Text::format(format_args!("The policy of branch \"{branch}\" is statement-timeout {limit} ms."));
                let hint = Text::format(format_args!("ardent branch policy {branch} --statement-timeout changes it."));
                Report { state: SqlState::QUERY_CANCELED, message: Text::new(), detail, hint }.explain();
            }
        }
    }
}

/// What the client is told.
fn report(page: &PolicyPage, refusal: Refusal) -> Report {
    let branch = settings::branch();
    let policy = refusal.name();
    match refusal {
        Refusal::ReadOnly => Report {
            state: SqlState::READ_ONLY_TRANSACTION,
            message: Text::format(format_args!("branch \"{branch}\" is read-only")),
            detail: Text::format(format_args!("Its policy is {policy}.")),
            hint: Text::format(format_args!(
                "Write on a branch of it: ardent branch create OTHER --from {branch}. Or lift the policy: ardent branch policy {branch} --read-only off"
            )),
        },
        Refusal::RowsChanged => Report {
            state: SqlState::LIMIT_EXCEEDED,
            message: Text::format(format_args!("more rows of branch \"{branch}\" were changed than its policy allows")),
            detail: Text::format(format_args!(
                "Its policy is {policy} {}; {} rows were changed, those of this transaction and of failed ones included. The branch takes no more changes.",
                page.rows_max().unwrap_or_default(),
                page.rows_changed()
            )),
            hint: Text::format(format_args!(
                "ardent branch diff {branch} shows what was changed; ardent branch policy {branch} --max-rows-changed allows more."
            )),
        },
        Refusal::BytesWritten => Report {
            state: SqlState::LIMIT_EXCEEDED,
            message: Text::format(format_args!("more was written on branch \"{branch}\" than its policy allows")),
            detail: Text::format(format_args!(
                "Its policy is {policy} {} (bytes of WAL since the branch was made). The branch takes no more changes.",
                page.bytes_max().unwrap_or_default()
            )),
            hint: Text::format(format_args!(
                "ardent branch diff {branch} shows what was changed; ardent branch policy {branch} --max-bytes-written allows more."
            )),
        },
    }
}
