//! What a backup says of itself: `backup_label`, where it began (checklist 65), and `tablespace_map`.

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

/// The tablespaces in a `tablespace_map`: a line each, with its OID and path. A line's end inside of a path follows a backslash, as a
/// backslash itself does.
pub(super) fn tablespaces(content: &[u8]) -> Result<Vec<u32>, String> {
    let mut found = Vec::new();
    let mut continues = false;
    for line in content.split(|&byte| byte == b'\n') {
        let escapes = line.iter().rev().take_while(|&&byte| byte == b'\\').count();
        let continued = std::mem::replace(&mut continues, escapes % 2 == 1);
        if continued || line.is_empty() {
            continue;
        }
        let oid = line.split(|&byte| byte == b' ').next().and_then(|oid| std::str::from_utf8(oid).ok()?.parse().ok());
        found.push(oid.ok_or_else(|| format!("not a tablespace: {:?}", String::from_utf8_lossy(line)))?);
    }
    Ok(found)
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
    fn checklist_41_tablespaces_are_listed_in_their_map() {
        let map = b"16385 /srv/a b\n16386 /srv/with\\\nnewline\n16387 /srv/backslash\\\\\n16388 /srv/d\n";
        assert_eq!(tablespaces(map), Ok(vec![16385, 16386, 16387, 16388]));
        assert_eq!(tablespaces(b""), Ok(vec![]));
        assert!(tablespaces(b"x /srv\n").is_err());
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
