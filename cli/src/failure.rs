//! How a command fails: what is printed, and the exit code.

use std::error::Error;
use std::process::ExitCode;

use ardent_api::control::{ApiErrorCode, ErrorInfo};
use ardent_types::with_causes;

/// Exit code of `--exit-code` where there are differences.
const EXIT_DIFFERENCES: u8 = 3;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// What is said.
    pub info: ErrorInfo,
    /// The exit code, where it is not the code's own.
    exit: Option<u8>,
}

impl Failure {
    /// Wrong usage.
    pub fn usage(message: impl Into<String>) -> Self {
        ErrorInfo::new(ApiErrorCode::InvalidArguments, message).into()
    }

    /// A fault of this machine or of the program, with its causes.
    pub fn local(message: impl Into<String>, cause: &(dyn Error + 'static)) -> Self {
        let message: String = message.into();
        ErrorInfo::new(ApiErrorCode::Internal, format!("{message}: {}", with_causes(cause))).into()
    }

    /// An error of a library, with its causes.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        ErrorInfo::new(ApiErrorCode::Internal, with_causes(error)).into()
    }

    /// With what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.info.hint = Some(hint.into());
        self
    }

    /// With another word for scripts.
    #[must_use]
    pub fn code(mut self, code: ApiErrorCode) -> Self {
        self.info.code = code;
        self
    }

    /// No failure to be spoken of: a command that compares found differences.
    pub fn differences() -> Self {
        let info = ErrorInfo::new(ApiErrorCode::Conflict, "there are differences");
        Failure { info, exit: Some(EXIT_DIFFERENCES) }
    }

    /// Whether it is only an exit code.
    pub fn is_silent(&self) -> bool {
        self.exit == Some(EXIT_DIFFERENCES)
    }

    /// The exit code.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit.unwrap_or_else(|| self.info.code.exit_code()))
    }
}

impl From<ErrorInfo> for Failure {
    fn from(info: ErrorInfo) -> Self {
        Failure { info, exit: None }
    }
}
