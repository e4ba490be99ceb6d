//! Tells the agent what this session runs: a record for each statement that a client sent, and one for each transaction's end
//! (`docs/audit.md`).
//!
//! ```text
//!  ExecutorStart ──► ExecutorRun ──► ExecutorFinish          a query: recorded after the first run of a plain SELECT, else after Finish
//!  ProcessUtility                                            any other command
//!  emit_log_hook                                             whatever failed, also before it began
//!  transactions' and savepoints' ends                        what became of it
//! ```
//!
//! What a function, a trigger or a `DO` block runs belongs to the statement that called it: whatever runs outermost in a portal is a
//! client's. Outermost is what has no [`Frame`] of ours on Postgres's stack of error callbacks, which is right after errors too.

use std::ffi::{c_char, c_int, c_void};
use std::io::Write as _;

use ardent_statement_log::{CHILDREN_MAX, End, Failed, MESSAGE_MAX, Record, Session, Statement, TransactionEnd};
use ardent_types::Lsn;

use crate::agent_login;
use crate::pg;
use crate::settings;
use crate::statement_ring::{self, NOTHING, bytes, now, unix_us};

/// Parameters that are shown of a statement, and bytes of each.
const PARAMETERS_SHOWN: c_int = 32;
const PARAMETER_LEN_MAX: c_int = 64;
/// Longest value, with its header, that is made a text to be shown.
const PARAMETER_MADE_TEXT_MAX: usize = 16 << 10;
/// `typlen` of types of varying length, and the length of their values' header in memory.
const VARLENA: i16 = -1;
const VARLENA_HEADER_LEN: usize = 4;
/// Type `text`, by `pg_type.dat`.
const TEXT_OID: pg::Oid = 25;
/// Nested savepoints that are told apart.
const SAVEPOINTS_MAX: usize = 64;
/// Longest name, with its end.
const NAME_LEN: usize = 64;

static mut NEXT_START: pg::ExecutorStart_hook_type = None;
static mut NEXT_RUN: pg::ExecutorRun_hook_type = None;
static mut NEXT_FINISH: pg::ExecutorFinish_hook_type = None;
static mut NEXT_UTILITY: pg::ProcessUtility_hook_type = None;
static mut NEXT_LOG: pg::emit_log_hook_type = None;

/// A statement that runs.
#[derive(Clone, Copy)]
struct Running {
    /// The query; null for other commands.
    query: *const pg::QueryDesc,
    number: u64,
    started: pg::TimestampTz,
    text: Text,
    parameters: *const c_char,
    parameters_count: u32,
    rows: Option<u64>,
    /// No WAL of the statement is before this.
    from: pg::XLogRecPtr,
    /// The session's last record before.
    last_record: pg::XLogRecPtr,
}

/// A part of a string that a client sent.
#[derive(Clone, Copy)]
struct Text {
    all: *const c_char,
    location: c_int,
    len: c_int,
}

/// A name, cut at its greatest length.
#[derive(Clone, Copy)]
struct Name {
    bytes: [u8; NAME_LEN],
    len: usize,
}

/// What was told of the session, and what is to be.
struct Known {
    is_told: bool,
    session_role: pg::Oid,
    role: pg::Oid,
    session_role_name: Name,
    role_name: Name,
    database: Name,
    application: Name,
    /// Where the client is; `None`: it was not looked at yet.
    client: Option<Name>,
}

/// This session.
struct State {
    running: Option<Running>,
    /// The text of what is being started.
    starting: Option<Text>,
    number: u64,
    /// First statement of the transaction.
    first: u64,
    /// When the last statement ended.
    last_end: pg::TimestampTz,
    /// A `SELECT` that may be fetched from again, and its number.
    fetched: (*const pg::QueryDesc, u64),
    /// The last command was one of transactions' own.
    is_after_transaction_command: bool,
    /// Number of the last statement when each savepoint began.
    savepoints: [u64; SAVEPOINTS_MAX],
    /// A position that all WAL of the statements to come is after.
    wal_from: pg::XLogRecPtr,
    /// SQLSTATE of the last error, packed.
    last_error: c_int,
    known: Known,
}

static mut STATE: State = State {
    running: None,
    starting: None,
    number: 0,
    first: 1,
    last_end: 0,
    fetched: (std::ptr::null(), 0),
    is_after_transaction_command: false,
    savepoints: [0; SAVEPOINTS_MAX],
    wal_from: 0,
    last_error: 0,
    known: Known {
        is_told: false,
        session_role: 0,
        role: 0,
        session_role_name: Name::NONE,
        role_name: Name::NONE,
        database: Name::NONE,
        application: Name::NONE,
        client: None,
    },
};

/// Puts the hooks in, around those of the library's other parts: what these refuse has failed.
///
/// # Safety
/// Only from `_PG_init`.
pub unsafe fn install() {
    // SAFETY: nobody else runs yet; the callbacks are functions of this library, which is never unloaded.
    unsafe {
        statement_ring::install();
        if !statement_ring::is_open() {
            return;
        }
        NEXT_START = pg::ExecutorStart_hook;
        pg::ExecutorStart_hook = Some(executor_start);
        NEXT_RUN = pg::ExecutorRun_hook;
        pg::ExecutorRun_hook = Some(executor_run);
        NEXT_FINISH = pg::ExecutorFinish_hook;
        pg::ExecutorFinish_hook = Some(executor_finish);
        NEXT_UTILITY = pg::ProcessUtility_hook;
        pg::ProcessUtility_hook = Some(process_utility);
        NEXT_LOG = pg::emit_log_hook;
        pg::emit_log_hook = Some(on_log);
        pg::RegisterXactCallback(Some(on_transaction), NOTHING);
        pg::RegisterSubXactCallback(Some(on_subtransaction), NOTHING);
    }
}

/// This session's state.
///
/// # Safety
/// What is given must not be used across a call that comes back to this module.
unsafe fn state() -> &'static mut State {
    let state = &raw mut STATE;
    // SAFETY: single-threaded process; the caller's promise.
    unsafe { &mut *state }
}

/// Whether what this process runs is a client's: not that of vacuum, replication, or a part of another session's query.
fn is_recorded() -> bool {
    // SAFETY: set before a process runs anything.
    unsafe {
        let kind = (&raw const pg::MyBackendType).read();
        (kind == pg::B_BACKEND || kind == pg::B_BG_WORKER) && (&raw const pg::ParallelWorkerNumber).read() < 0
    }
}

/// Whether this is what a client sent, and not what runs on its behalf.
fn is_outermost() -> bool {
    // SAFETY: only this thread changes them.
    unsafe { is_recorded() && !(&raw const pg::ActivePortal).read().is_null() && !has_frame() }
}

/// Marks, on Postgres's own stack, that something of a client runs.
struct Frame {
    callback: pg::ErrorContextCallback,
}

impl Frame {
    fn new() -> Self {
        let callback = pg::ErrorContextCallback {
            previous: std::ptr::null_mut(),
            callback: Some(on_error),
            arg: std::ptr::null_mut(),
        };
        Frame { callback }
    }

    /// # Safety
    /// [`Self::leave`] follows, unless an error leaves this frame: then Postgres restores the stack of callbacks.
    unsafe fn enter(&mut self) {
        // SAFETY: single-threaded; `self` outlives its place on the stack of callbacks.
        unsafe {
            self.callback.previous = pg::error_context_stack;
            pg::error_context_stack = &raw mut self.callback;
        }
    }

    /// # Safety
    /// After [`Self::enter`].
    unsafe fn leave(&mut self) {
        // SAFETY: as above.
        unsafe { pg::error_context_stack = self.callback.previous };
    }
}

unsafe fn has_frame() -> bool {
    // SAFETY: every element is on the stack of a function that has not ended.
    unsafe {
        let mut next = (&raw const pg::error_context_stack).read();
        while let Some(callback) = next.as_ref() {
            if callback.callback.is_some_and(|function| function as *const () == on_error as *const ()) {
                return true;
            }
            next = callback.previous;
        }
        false
    }
}

/// Called while an error, or a message, is put together below one of our frames.
unsafe extern "C-unwind" fn on_error(_: *mut c_void) {
    // SAFETY: as Postgres calls it.
    unsafe { state().last_error = pg::geterrcode() };
}

unsafe extern "C-unwind" fn executor_start(query: *mut pg::QueryDesc, flags: c_int) {
    // SAFETY: Postgres's arguments, unchanged; nothing here has a destructor.
    unsafe {
        let outermost = is_outermost();
        if outermost {
            let state = state();
            state.starting = Some(Text::of_query(query));
            if state.fetched.0 == query {
                state.fetched.0 = std::ptr::null();
            }
        }
        let next = (&raw const NEXT_START).read().unwrap_or(pg::standard_ExecutorStart);
        next(query, flags);
        if outermost {
            state().starting = None;
        }
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
        run_query(query, || next(query, direction, count, execute_once));
    }
}

#[cfg(pg_from = "18")]
unsafe extern "C-unwind" fn executor_run(query: *mut pg::QueryDesc, direction: pg::ScanDirection, count: pg::uint64) {
    // SAFETY: Postgres's arguments, unchanged; nothing here has a destructor.
    unsafe {
        let next = (&raw const NEXT_RUN).read().unwrap_or(pg::standard_ExecutorRun);
        run_query(query, || next(query, direction, count));
    }
}

unsafe fn run_query(query: *mut pg::QueryDesc, run: impl FnOnce() + Copy) {
    // SAFETY: a query that has been started; nothing here has a destructor.
    unsafe {
        let outermost = is_outermost();
        let is_fetch = outermost && state().fetched.0 == query;
        if outermost && !is_fetch {
            let is_select = is_plain_select(query);
            begin(query, Text::of_query(query), (*query).params, !is_select);
        }
        let mut frame = Frame::new();
        frame.enter();
        run();
        frame.leave();
        if !outermost {
            return;
        }
        let rows = (*(*query).estate).es_processed;
        if is_fetch {
            if rows > 0 && !agent_login::is_agent_session() {
                let number = state().fetched.1;
                statement_ring::tell(&Record::More { number, rows, at_us: unix_us(now()) });
            }
            return;
        }
        if let Some(running) = &mut state().running {
            running.rows = Some(rows);
        }
        if is_plain_select(query) {
            let number = state().number;
            end(None);
            state().fetched = (query, number);
        }
    }
}

unsafe extern "C-unwind" fn executor_finish(query: *mut pg::QueryDesc) {
    // SAFETY: Postgres's argument, unchanged; nothing here has a destructor.
    unsafe {
        let outermost = is_outermost();
        let mut frame = Frame::new();
        frame.enter();
        let next = (&raw const NEXT_FINISH).read().unwrap_or(pg::standard_ExecutorFinish);
        next(query);
        frame.leave();
        let is_running = state().running.is_some_and(|running| running.query == query);
        if outermost && is_running {
            end(None);
        }
    }
}

/// Whether the query has done what it does when it has been run.
unsafe fn is_plain_select(query: *const pg::QueryDesc) -> bool {
    // SAFETY: a query that has been started.
    unsafe { (*query).operation == pg::CMD_SELECT && !(*(*query).plannedstmt).hasModifyingCTE }
}

#[allow(clippy::too_many_arguments, reason = "the signature is Postgres's")]
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg::PlannedStmt,
    text: *const c_char,
    read_only_tree: bool,
    context: pg::ProcessUtilityContext,
    parameters: pg::ParamListInfo,
    environment: *mut pg::QueryEnvironment,
    destination: *mut pg::DestReceiver,
    completion: *mut pg::QueryCompletion,
) {
    // SAFETY: Postgres passes valid nodes; nothing here has a destructor.
    unsafe {
        let outermost = is_outermost();
        // The command may change the node.
        let tag = (*(*statement).utilityStmt).type_;
        if outermost {
            let part = Text { all: text, location: (*statement).stmt_location, len: (*statement).stmt_len };
            begin(std::ptr::null(), part, parameters, true);
        }
        let mut frame = Frame::new();
        frame.enter();
        let next = (&raw const NEXT_UTILITY).read().unwrap_or(pg::standard_ProcessUtility);
        next(statement, text, read_only_tree, context, parameters, environment, destination, completion);
        frame.leave();
        if !outermost {
            return;
        }
        if let Some(running) = &mut state().running
            && gives_rows(tag)
            && let Some(completion) = completion.as_ref()
        {
            running.rows = Some(completion.nprocessed);
        }
        end(None);
        state().is_after_transaction_command = tag == pg::T_TransactionStmt;
    }
}

fn gives_rows(tag: pg::NodeTag) -> bool {
    matches!(
        tag,
        pg::T_CopyStmt | pg::T_FetchStmt | pg::T_CreateTableAsStmt | pg::T_RefreshMatViewStmt | pg::T_ExecuteStmt
    )
}

/// A statement begins.
unsafe fn begin(query: *const pg::QueryDesc, text: Text, parameters: pg::ParamListInfo, is_writer: bool) {
    // SAFETY: in a transaction, where the catalog can be read and an error be raised.
    unsafe {
        look_at_session();
        let parameters_count = parameters.as_ref().map_or(0, |parameters| parameters.numParams.unsigned_abs());
        let parameters = if parameters_count > 0 { show(parameters) } else { std::ptr::null() };
        let state = state();
        state.number += 1;
        state.is_after_transaction_command = false;
        // Positions are asked for where they will be needed: that takes a lock of all sessions.
        if is_writer || state.wal_from == 0 {
            state.wal_from = pg::GetXLogInsertRecPtr();
        }
        state.running = Some(Running {
            query,
            number: state.number,
            started: pg::GetCurrentStatementStartTimestamp().max(state.last_end),
            text,
            parameters,
            parameters_count,
            rows: None,
            from: state.wal_from,
            last_record: (&raw const pg::ProcLastRecPtr).read(),
        });
    }
}

/// The first parameters as text, in Postgres's memory of the statement.
unsafe fn show(parameters: pg::ParamListInfo) -> *const c_char {
    // SAFETY: a valid list; the copy has the size of its header and as many parameters as it says.
    unsafe {
        let shown = (*parameters).numParams.min(PARAMETERS_SHOWN);
        if (*parameters).paramFetch.is_some() {
            return std::ptr::null();
        }
        let len =
            std::mem::offset_of!(pg::ParamListInfoData, params) + shown as usize * size_of::<pg::ParamExternData>();
        let copy = pg::palloc(len).cast::<pg::ParamListInfoData>();
        std::ptr::copy_nonoverlapping(parameters.cast::<u8>(), copy.cast::<u8>(), len);
        (*copy).numParams = shown;
        for at in 0..shown as usize {
            cut_long((&raw mut (*copy).params).cast::<pg::ParamExternData>().add(at));
        }
        pg::BuildParamLogString(copy, std::ptr::null_mut(), PARAMETER_LEN_MAX)
    }
}

/// Puts its size in the place of a long value: as text it would be made whole before it is cut, which costs as much as the statement,
/// and fails where that is longer than Postgres's texts may be.
unsafe fn cut_long(parameter: *mut pg::ParamExternData) {
    // SAFETY: a parameter of a valid list, in a transaction.
    unsafe {
        if (*parameter).isnull || (*parameter).ptype == 0 || pg::get_typlen((*parameter).ptype) != VARLENA {
            return;
        }
        let len = pg::toast_raw_datum_size((*parameter).value);
        if len as usize <= PARAMETER_MADE_TEXT_MAX {
            return;
        }
        let mut text = [0u8; 40];
        // With room for the end of a C string.
        let room = text.len() - 1;
        // It is shorter than that.
        let _ = write!(&mut text[..room], "({} bytes)", len as usize - VARLENA_HEADER_LEN);
        (*parameter).value = pg::Datum::from(pg::cstring_to_text(text.as_ptr().cast()) as usize);
        (*parameter).ptype = TEXT_OID;
    }
}

/// The statement that runs has ended.
unsafe fn end(failed: Option<Failed<'_>>) {
    // SAFETY: the texts belong to Postgres's memory of the statement; nothing raises.
    unsafe {
        let state = state();
        let Some(running) = state.running.take() else { return };
        let ended = now();
        state.last_end = ended;
        let last_record = (&raw const pg::ProcLastRecPtr).read();
        let mut wal = (Lsn::INVALID, Lsn::INVALID);
        if last_record != running.last_record {
            // Committing on the way, as some commands do, forgets the end of the last record.
            let known = (&raw const pg::XactLastRecEnd).read();
            let to = if known > last_record { known } else { pg::GetXLogInsertRecPtr() };
            wal = (Lsn::new(running.from), Lsn::new(to));
            state.wal_from = to;
        }
        let xid = pg::GetTopFullTransactionIdIfAny().value;
        // The agent's and control's looks at the branch change nothing.
        if agent_login::is_agent_session() && (xid == 0 || !wal.1.is_valid()) {
            return;
        }
        let text = running.text.part();
        tell_session();
        statement_ring::tell(&Record::Statement(Statement {
            number: running.number,
            started_us: unix_us(running.started),
            duration_us: u64::try_from(ended - running.started).unwrap_or(0),
            rows: running.rows,
            xid,
            wal,
            failed,
            text_len: text.len() as u64,
            text,
            parameters_count: running.parameters_count,
            parameters: bytes(running.parameters),
        }));
    }
}

unsafe extern "C-unwind" fn on_log(error: *mut pg::ErrorData) {
    // SAFETY: Postgres passes a valid error; nothing here raises.
    unsafe {
        if (*error).elevel >= pg::ERROR as c_int && is_recorded() && !agent_login::is_agent_session() {
            let sqlstate = unpacked((*error).sqlerrcode);
            let message = bytes((*error).message);
            let message = &message[..message.len().min(MESSAGE_MAX + 3)];
            failed(Failed { sqlstate, message });
        }
        if let Some(next) = (&raw const NEXT_LOG).read() {
            next(error);
        }
    }
}

/// What runs, or was about to, has failed.
unsafe fn failed(failed: Failed<'_>) {
    // SAFETY: nothing below raises: the catalog is not looked at.
    unsafe {
        let state = state();
        let whole = (&raw const pg::debug_query_string).read();
        if state.running.is_none() {
            // Not idle: what ends a session then is no statement's failure.
            if whole.is_null() {
                return;
            }
            state.number += 1;
            state.is_after_transaction_command = false;
            let text = state.starting.unwrap_or(Text { all: whole, location: -1, len: 0 });
            state.running = Some(Running {
                query: std::ptr::null(),
                number: state.number,
                started: pg::GetCurrentStatementStartTimestamp().max(state.last_end),
                text,
                parameters: std::ptr::null(),
                parameters_count: 0,
                rows: None,
                from: state.wal_from,
                last_record: (&raw const pg::ProcLastRecPtr).read(),
            });
        } else if let Some(running) = &mut state.running {
            running.rows = None;
        }
        state.starting = None;
        end(Some(failed));
    }
}

/// The statement that runs was left by an error that Postgres does not log.
unsafe fn end_if_left() {
    // SAFETY: before Postgres gives the memory of the statement back.
    unsafe {
        let state = state();
        state.starting = None;
        if !has_frame()
            && let Some(running) = &mut state.running
        {
            running.rows = None;
            running.parameters = std::ptr::null();
            let sqlstate = unpacked(state.last_error);
            end(Some(Failed { sqlstate, message: b"" }));
        }
    }
}

unsafe extern "C-unwind" fn on_transaction(event: pg::XactEvent, _: *mut c_void) {
    // SAFETY: Postgres calls this at the stated point of a transaction; nothing below raises.
    unsafe {
        let (end, lsn) = match event {
            pg::XACT_EVENT_COMMIT => (End::Committed, (&raw const pg::XactLastCommitEnd).read()),
            pg::XACT_EVENT_PREPARE => (End::Prepared, (&raw const pg::ProcLastRecPtr).read()),
            pg::XACT_EVENT_ABORT => (End::RolledBack, (&raw const pg::ProcLastRecPtr).read()),
            _ => return,
        };
        if !is_recorded() {
            return;
        }
        if end == End::RolledBack {
            end_if_left();
        }
        let state = state();
        state.fetched.0 = std::ptr::null();
        let (first, last) = (state.first, state.number);
        // A command that commits on the way goes on in the next transaction.
        state.first = state.running.map_or(state.number + 1, |running| running.number);
        let xid = pg::GetTopFullTransactionIdIfAny().value;
        if xid == 0 {
            return;
        }
        let mut children: *mut pg::TransactionId = std::ptr::null_mut();
        let count = if end == End::RolledBack { 0 } else { pg::xactGetCommittedChildren(&raw mut children) };
        let count = usize::try_from(count).unwrap_or(0);
        let kept = count.min(CHILDREN_MAX) * size_of::<pg::TransactionId>();
        let children = if kept == 0 { &[] } else { std::slice::from_raw_parts(children.cast::<u8>(), kept) };
        tell_session();
        statement_ring::tell(&Record::Transaction(TransactionEnd {
            end,
            at_us: unix_us(now()),
            xid,
            lsn: Lsn::new(lsn),
            first,
            last,
            children_count: count as u32,
            children,
        }));
    }
}

unsafe extern "C-unwind" fn on_subtransaction(
    event: pg::SubXactEvent,
    _: pg::SubTransactionId,
    _: pg::SubTransactionId,
    _: *mut c_void,
) {
    // SAFETY: Postgres calls this at the stated point of a subtransaction; nothing below raises.
    unsafe {
        if !is_recorded() {
            return;
        }
        let level = usize::try_from(pg::GetCurrentTransactionNestLevel() - 2).unwrap_or(usize::MAX);
        match event {
            pg::SUBXACT_EVENT_START_SUB => {
                let state = state();
                if let Some(savepoint) = state.savepoints.get_mut(level) {
                    *savepoint = state.number;
                }
            }
            pg::SUBXACT_EVENT_ABORT_SUB => {
                end_if_left();
                let state = state();
                state.fetched.0 = std::ptr::null();
                let Some(before) = state.savepoints.get(level) else { return };
                // ROLLBACK TO itself is not undone.
                let last = state.number - u64::from(state.is_after_transaction_command);
                let first = before + 1;
                if first <= last && !has_frame() {
                    tell_session();
                    statement_ring::tell(&Record::Undone { at_us: unix_us(now()), first, last });
                }
            }
            _ => {}
        }
    }
}

/// Looks whether the session is another's than it was told to be.
unsafe fn look_at_session() {
    // SAFETY: the catalog is read only where that is allowed.
    unsafe {
        // ROLLBACK in a transaction that has failed: roles may be others again, and nobody may look.
        if !pg::IsTransactionState() {
            return;
        }
        let (session_role, role) = (pg::GetSessionUserId(), pg::GetUserId());
        if state().known.session_role != session_role || state().known.role != role {
            let session_role_name = Name::of(pg::GetUserNameFromId(session_role, true));
            let role_name = Name::of(pg::GetUserNameFromId(role, true));
            let known = &mut state().known;
            (known.session_role, known.role) = (session_role, role);
            (known.session_role_name, known.role_name) = (session_role_name, role_name);
            known.is_told = false;
        }
        if state().known.database.len == 0 {
            let database = Name::of(pg::get_database_name((&raw const pg::MyDatabaseId).read()));
            state().known.database = database;
        }
    }
}

/// Says who the session is if that is not known yet. Where nothing was looked up so far, as its log-in has it.
unsafe fn tell_session() {
    // SAFETY: settings and the port belong to Postgres and stay while this runs.
    unsafe {
        let known = &mut state().known;
        let application = bytes((&raw const pg::application_name).read());
        let application = &application[..application.len().min(NAME_LEN)];
        if known.application.get() != application {
            known.application = Name::copy(application);
            known.is_told = false;
        }
        if known.is_told {
            return;
        }
        let port = (&raw const pg::MyProcPort).read().as_ref();
        let (mut session_role, mut role, mut database) =
            (known.session_role_name.get(), known.role_name.get(), known.database.get());
        let is_whole = known.session_role != 0;
        if !is_whole && let Some(port) = port {
            session_role = bytes(port.user_name);
            role = session_role;
            database = bytes(port.database_name);
        }
        let client = *known.client.get_or_insert_with(|| client_of(port));
        statement_ring::tell(&Record::Session(Session {
            pid: pg::process_id().unsigned_abs(),
            started_us: unix_us((&raw const pg::MyStartTimestamp).read()),
            is_own: agent_login::is_agent_session(),
            database,
            session_role,
            role,
            application: known.application.get(),
            client: client.get(),
        }));
        known.is_told = true;
    }
}

/// Where the proxy says that the client is; nothing where it was not the proxy that connected.
fn client_of(port: Option<&pg::Port>) -> Name {
    if agent_login::is_agent_session() || !port.is_some_and(|port| is_from_outside(port.sock)) {
        return Name::NONE;
    }
    Name::copy(settings::client_address().to_bytes())
}

/// Whether a process outside of the sandbox has connected: one that this namespace has no number for, or another user's. The branch's
/// own processes can connect as well, and would say what they like.
fn is_from_outside(socket: c_int) -> bool {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` is as long as `len` says.
    let got =
        unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut len) };
    // SAFETY: takes nothing, and always succeeds.
    let own = unsafe { libc::geteuid() };
    got == 0 && (peer.pid == 0 || peer.uid != own)
}

impl Name {
    const NONE: Name = Name { bytes: [0; NAME_LEN], len: 0 };

    /// # Safety
    /// Null, or a C string.
    unsafe fn of(text: *const c_char) -> Self {
        // SAFETY: the caller's promise.
        Name::copy(unsafe { bytes(text) })
    }

    fn copy(text: &[u8]) -> Self {
        let len = text.len().min(NAME_LEN);
        let mut name = Name::NONE;
        name.bytes[..len].copy_from_slice(&text[..len]);
        name.len = len;
        name
    }

    fn get(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Text {
    /// # Safety
    /// With a query that Postgres has made.
    unsafe fn of_query(query: *const pg::QueryDesc) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let plan = (*query).plannedstmt;
            Text { all: (*query).sourceText, location: (*plan).stmt_location, len: (*plan).stmt_len }
        }
    }

    /// The statement's own part of the string, without space around it.
    ///
    /// # Safety
    /// While Postgres keeps the string.
    unsafe fn part<'a>(&self) -> &'a [u8] {
        // SAFETY: the caller's promise.
        let all = unsafe { bytes(self.all) };
        let from = usize::try_from(self.location).unwrap_or(0).min(all.len());
        let rest = &all[from..];
        let len = usize::try_from(self.len).ok().filter(|len| *len > 0 && self.location >= 0);
        rest[..len.unwrap_or(rest.len()).min(rest.len())].trim_ascii()
    }
}

/// The five characters of a SQLSTATE.
fn unpacked(code: c_int) -> [u8; 5] {
    let mut characters = [0; 5];
    for (at, character) in characters.iter_mut().enumerate() {
        *character = ((code >> (6 * at)) & 0x3F) as u8 + b'0';
    }
    characters
}
