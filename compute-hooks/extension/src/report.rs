//! Errors for Postgres.
//!
//! Raising leaves by `siglongjmp`, so texts are built in buffers without destructors.

use std::ffi::CStr;
use std::fmt::{self, Write};

use crate::pg;

/// How serious a report is.
#[derive(Clone, Copy, Debug)]
pub enum Level {
    /// Ends the statement.
    Error,
    /// Ends the process; in the postmaster, the start.
    Fatal,
}

/// A SQLSTATE.
#[derive(Clone, Copy, Debug)]
pub struct SqlState(i32);

impl SqlState {
    /// `io_error`.
    pub const IO_ERROR: SqlState = SqlState::new(b"58030");
    /// `data_corrupted`.
    pub const DATA_CORRUPTED: SqlState = SqlState::new(b"XX001");
    /// `config_file_error`.
    pub const CONFIG_FILE_ERROR: SqlState = SqlState::new(b"F0000");

    /// `read_only_sql_transaction`.
    pub const READ_ONLY_TRANSACTION: SqlState = SqlState::new(b"25006");
    /// `configuration_limit_exceeded`.
    pub const LIMIT_EXCEEDED: SqlState = SqlState::new(b"53400");
    /// `query_canceled`.
    pub const QUERY_CANCELED: SqlState = SqlState::new(b"57014");

    /// As Postgres keeps it.
    pub const fn code(self) -> i32 {
        self.0
    }

    /// Six bits per character, as `MAKE_SQLSTATE` packs them.
    const fn new(code: &[u8; 5]) -> Self {
        let mut packed = 0;
        let mut at = 0;
        while at < 5 {
            packed |= ((code[at].wrapping_sub(b'0') & 0x3F) as i32) << (6 * at);
            at += 1;
        }
        SqlState(packed)
    }
}

/// A text of bounded length, cut at its end if need be; always a C string.
pub struct Text {
    bytes: [u8; Text::LEN_MAX],
    len: usize,
}

impl Text {
    const LEN_MAX: usize = 1024;

    /// An empty text.
    pub const fn new() -> Self {
        Text { bytes: [0; Text::LEN_MAX], len: 0 }
    }

    /// The formatted text.
    pub fn format(arguments: fmt::Arguments<'_>) -> Self {
        let mut text = Text::new();
        // Cutting is all that can go wrong, and is meant.
        let _cut = text.write_fmt(arguments);
        text
    }

    /// For C.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Write for Text {
    fn write_str(&mut self, added: &str) -> fmt::Result {
        for character in added.chars() {
            let mut encoded = [0; 4];
            let encoded = character.encode_utf8(&mut encoded).as_bytes();
            // The last byte stays 0.
            if self.len + encoded.len() >= Self::LEN_MAX {
                return Err(fmt::Error);
            }
            // A NUL inside would end the C string early.
            if character != '\0' {
                self.bytes[self.len..self.len + encoded.len()].copy_from_slice(encoded);
                self.len += encoded.len();
            }
        }
        Ok(())
    }
}

/// One message: what, why, what to do next.
pub struct Report {
    /// SQLSTATE.
    pub state: SqlState,
    /// The primary message.
    pub message: Text,
    /// More about the cause; may be empty.
    pub detail: Text,
    /// What to do; may be empty.
    pub hint: Text,
}

impl Report {
    /// A report without detail and hint.
    pub fn plain(state: SqlState, message: fmt::Arguments<'_>) -> Self {
        Report { state, message: Text::format(message), detail: Text::new(), hint: Text::new() }
    }

    /// Adds detail and hint to the error that is being put together.
    ///
    /// # Safety
    /// Only from an error context callback.
    pub unsafe fn explain(&self) {
        // SAFETY: as in `raise`.
        unsafe {
            pg::errdetail_internal(c"%s".as_ptr(), self.detail.as_c_str().as_ptr());
            pg::errhint(c"%s".as_ptr(), self.hint.as_c_str().as_ptr());
        }
    }

    /// Raises the report.
    ///
    /// # Safety
    /// Nothing with a destructor may be alive in the callers' frames.
    pub unsafe fn raise(&self, level: Level) -> ! {
        let level = match level {
            Level::Error => pg::ERROR,
            Level::Fatal => pg::FATAL,
        };
        // SAFETY: the order of calls is that of `ereport`; all strings are NUL-terminated and outlive the calls, which
        // copy them.
        unsafe {
            pg::errstart(level, std::ptr::null());
            pg::errcode(self.state.0);
            pg::errmsg_internal(c"%s".as_ptr(), self.message.as_c_str().as_ptr());
            if !self.detail.is_empty() {
                pg::errdetail_internal(c"%s".as_ptr(), self.detail.as_c_str().as_ptr());
            }
            if !self.hint.is_empty() {
                pg::errhint(c"%s".as_ptr(), self.hint.as_c_str().as_ptr());
            }
            pg::errfinish(c"ardent_compute".as_ptr(), 0, c"ardent".as_ptr());
        }
        // `errfinish` does not return at these levels; should it, going on would mean using what is not there.
        std::process::abort()
    }
}

/// Refuses to start.
///
/// # Safety
/// As for [`Report::raise`].
pub unsafe fn refuse_start(message: fmt::Arguments<'_>) -> ! {
    // SAFETY: the caller's promise.
    unsafe { Report::plain(SqlState::CONFIG_FILE_ERROR, message).raise(Level::Fatal) }
}
