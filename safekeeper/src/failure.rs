//! Why a request to a timeline failed, and how that is told to the client.

use ardent_api::wal_service::{ErrorCode, Response};
use ardent_quorum::OutOfOrder;
pub(crate) use ardent_types::with_causes;
use ardent_types::{Lsn, MemberGeneration, TimelineId};

use crate::archive::ArchiveError;
use crate::control_file::ControlFileError;
use crate::copy::CopyError;
use crate::wal_files::WalFileError;

/// A request to a timeline failed.
#[derive(Debug, thiserror::Error)]
pub enum TimelineError {
    /// Not here.
    #[error("timeline {0} does not exist on this safekeeper; create it first")]
    NotFound(TimelineId),
    /// Its control file.
    #[error("timeline {timeline}: its state cannot be used")]
    ControlFile {
        /// Which.
        timeline: TimelineId,
        /// Why.
        #[source]
        source: ControlFileError,
    },
    /// Its WAL.
    #[error("timeline {timeline}: its WAL cannot be used")]
    Wal {
        /// Which.
        timeline: TimelineId,
        /// Why.
        #[source]
        source: WalFileError,
    },
    /// Its archived WAL.
    #[error(
        "timeline {timeline}: its WAL at {lsn} is not on this safekeeper any more, and cannot be read from the archive"
    )]
    Archive {
        /// Which.
        timeline: TimelineId,
        /// What was to be read.
        lsn: Lsn,
        /// Why.
        #[source]
        source: ArchiveError,
    },
    /// Its major version.
    #[error("timeline {timeline} is of Postgres {pg_major}, which this build does not know")]
    UnknownMajor {
        /// Which.
        timeline: TimelineId,
        /// Its major version.
        pg_major: u32,
    },
    /// A writer's message out of order.
    #[error("timeline {timeline}: {source}")]
    OutOfOrder {
        /// Which.
        timeline: TimelineId,
        /// What.
        source: OutOfOrder,
    },
    /// A writer that cannot be told who the members are now.
    #[error(
        "timeline {timeline}: its safekeepers were changed (generation {in_force}), which this writer's version does not know of; \
         all roles must be of one version"
    )]
    UntoldWriter {
        /// Which.
        timeline: TimelineId,
        /// The generation that is in force.
        in_force: MemberGeneration,
    },
    /// A list of members that is none.
    #[error("timeline {timeline}: its members are to be a list that is empty or out of order")]
    BadMembers {
        /// Which.
        timeline: TimelineId,
    },
    /// A newer list of members that control did not make.
    #[error(
        "timeline {timeline}: the list of its safekeepers of generation {generation} does not come from this installation's control, which alone \
         changes them: ardent reconfigure safekeepers"
    )]
    ForgedMembers {
        /// Which.
        timeline: TimelineId,
        /// Of the list.
        generation: MemberGeneration,
    },
    /// It cannot be copied from another safekeeper.
    #[error("timeline {timeline} cannot be copied")]
    Copy {
        /// Which.
        timeline: TimelineId,
        /// Why.
        #[source]
        source: CopyError,
    },
    /// What its first segment begins with cannot be read.
    #[error(
        "timeline {timeline} is not made: its first segment begins with WAL of timeline {ancestor}, which is on this safekeeper and cannot be \
         read; try again once it can"
    )]
    Ancestor {
        /// Which.
        timeline: TimelineId,
        /// What it hangs on.
        ancestor: TimelineId,
        /// Why.
        #[source]
        source: Box<TimelineError>,
    },
    /// A position that cannot be read.
    #[error("timeline {timeline} has WAL from {oldest_lsn} to {end_lsn} here, {lsn} was asked for")]
    OutOfRange {
        /// Which.
        timeline: TimelineId,
        /// What was asked for.
        lsn: Lsn,
        /// The oldest position that is kept.
        oldest_lsn: Lsn,
        /// The end of what may be read.
        end_lsn: Lsn,
    },
    /// The specification is not one.
    #[error("timeline {timeline} cannot be made: {what}")]
    BadSpec {
        /// Which.
        timeline: TimelineId,
        /// What is wrong.
        what: &'static str,
    },
    /// It exists and is another.
    #[error("timeline {0} exists with other properties; delete it first or use another id")]
    Conflict(TimelineId),
    /// The safekeeper is stopping.
    #[error("the safekeeper is stopping")]
    Stopping,
}

impl TimelineError {
    /// The code on the wire.
    pub fn code(&self) -> ErrorCode {
        match self {
            TimelineError::NotFound(_) => ErrorCode::TimelineNotFound,
            TimelineError::ControlFile { source: ControlFileError::Io { .. }, .. }
            | TimelineError::Wal { source: WalFileError::Io { .. }, .. }
            | TimelineError::Stopping => ErrorCode::Unavailable,
            TimelineError::Archive { source, .. } if !source.is_corruption() => ErrorCode::Unavailable,
            TimelineError::ControlFile { .. }
            | TimelineError::Wal { .. }
            | TimelineError::Archive { .. }
            | TimelineError::UnknownMajor { .. } => ErrorCode::Corrupt,
            TimelineError::OutOfOrder { .. } => ErrorCode::OutOfOrder,
            TimelineError::UntoldWriter { .. } | TimelineError::ForgedMembers { .. } => ErrorCode::Refused,
            TimelineError::BadMembers { .. } => ErrorCode::Invalid,
            TimelineError::Copy { source, .. } => source.code(),
            // The timeline itself has nothing that could be damaged: it can be made when the ancestor can be read, or is not here any more.
            TimelineError::Ancestor { .. } => ErrorCode::Unavailable,
            TimelineError::OutOfRange { .. } => ErrorCode::LsnOutOfRange,
            TimelineError::BadSpec { .. } => ErrorCode::Invalid,
            TimelineError::Conflict(_) => ErrorCode::Conflict,
        }
    }

    /// The message for the client, with its causes: the other side has no other way to learn them.
    pub fn response(&self, id: u64) -> Response {
        let mut message = with_causes(self);
        if is_for_want_of_descriptors(self) {
            message.push_str(MORE_DESCRIPTORS);
        }
        Response::Error { id, code: self.code(), message }
    }
}

/// What to do when no more files can be opened. The timeline goes on by itself when others have come to rest.
const MORE_DESCRIPTORS: &str = "; it is tried again; raise the limit on open files of this safekeeper (systemd: LimitNOFILE=, a shell: ulimit -Hn)";

fn is_for_want_of_descriptors(error: &dyn std::error::Error) -> bool {
    let mut cause = error.source();
    while let Some(source) = cause {
        let code = source.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        if matches!(code, Some(nix::libc::EMFILE | nix::libc::ENFILE)) {
            return true;
        }
        cause = source.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_no_descriptor_is_told_so_and_tries_again() {
        let of = |code| {
            let source = std::io::Error::from_raw_os_error(code);
            let source = WalFileError::Io { action: "open", path: "000000010000000000000001".into(), source };
            TimelineError::Wal { timeline: TimelineId::NONE, source }.response(0)
        };
        for code in [nix::libc::EMFILE, nix::libc::ENFILE] {
            let Response::Error { code, message, .. } = of(code) else { panic!("an error") };
            assert_eq!(code, ErrorCode::Unavailable);
            for word in ["cannot open WAL file 000000010000000000000001", "oo many open files", "LimitNOFILE"] {
                assert!(message.contains(word), "no {word:?} in {message}");
            }
        }
        let Response::Error { message, .. } = of(nix::libc::EIO) else { panic!("an error") };
        assert!(!message.contains("LimitNOFILE"), "{message}");
    }
}
