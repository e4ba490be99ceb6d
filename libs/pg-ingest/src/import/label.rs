//! `backup_label`: where the backup began (checklist 65).

use ardent_api::page_service::ImportSpec;

use super::{ImportError, file_error};

/// What is wrong with a label.
#[derive(Debug)]
pub(super) enum LabelError {
    Mismatch { what: &'static str, found: String, expected: String },
    FromStandby,
    Malformed(String),
}

impl LabelError {
    pub fn at(self, path: &str) -> ImportError {
        match self {
            LabelError::Mismatch { what, found, expected } => ImportError::Mismatch { what, found, expected },
            LabelError::FromStandby => ImportError::FromStandby,
            LabelError::Malformed(problem) => file_error(path, problem),
        }
    }
}

/// Checks that the label is of the backup that was announced.
pub(super) fn check(content: &[u8], spec: &ImportSpec) -> Result<(), LabelError> {
    let text = String::from_utf8_lossy(content);
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let start = field("START WAL LOCATION").and_then(|rest| rest.split(' ').next());
    let start = start.ok_or_else(|| LabelError::Malformed("it has no START WAL LOCATION".to_owned()))?;
    if start.parse() != Ok(spec.start_lsn) {
        let (found, expected) = (start.to_owned(), spec.start_lsn.to_string());
        return Err(LabelError::Mismatch { what: "start", found, expected });
    }
    if field("BACKUP FROM") == Some("standby") {
        return Err(LabelError::FromStandby);
    }
    match field("START TIMELINE") {
        Some(tli) if tli.parse() != Ok(spec.pg_tli.get()) => {
            let (found, expected) = (tli.to_owned(), spec.pg_tli.to_string());
            Err(LabelError::Mismatch { what: "Postgres timeline", found, expected })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use ardent_types::{Lsn, PgTli, SystemId, WalSegmentSize};

    use super::*;

    const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-11-22 18:00:00 UTC\nLABEL: x\nSTART TIMELINE: 1\n";

    fn spec() -> ImportSpec {
        ImportSpec {
            pg_major: 15,
            system_id: SystemId::new(1),
            pg_tli: PgTli::new(1),
            wal_segment_size: WalSegmentSize::DEFAULT,
            data_checksums: false,
            start_lsn: Lsn::new(0x200_0028),
        }
    }

    #[test]
    fn checklist_65_the_label_must_be_of_the_announced_backup_and_of_a_primary() {
        assert!(check(LABEL.as_bytes(), &spec()).is_ok());
        let standby = LABEL.replace("primary", "standby");
        assert!(matches!(check(standby.as_bytes(), &spec()), Err(LabelError::FromStandby)));
        let other = ImportSpec { start_lsn: Lsn::new(9), ..spec() };
        assert!(matches!(check(LABEL.as_bytes(), &other), Err(LabelError::Mismatch { what: "start", .. })));
        let other = ImportSpec { pg_tli: PgTli::new(2), ..spec() };
        assert!(matches!(check(LABEL.as_bytes(), &other), Err(LabelError::Mismatch { .. })));
        assert!(matches!(check(b"\xFF", &spec()), Err(LabelError::Malformed(_))));
    }
}
