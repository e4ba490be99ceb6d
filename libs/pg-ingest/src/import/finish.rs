//! The end of an import: what can only be said once every file was seen.

use std::collections::{BTreeMap, BTreeSet};

use ardent_pg_format::ControlFile;
use ardent_types::oid;

use super::{
    Batch, Bytes, ForkNumber, Import, ImportError, Imported, Key, RelTag, SEGMENT_BLOCKS, Value, WITH_VERSION_FILE,
    WITHOUT_VERSION_FILE, encode_size, zero_page,
};

impl Import {
    /// All files came. Adds sizes, folders, `pg_control` and the checkpoint.
    pub fn finish(mut self, out: &mut Batch) -> Result<Imported, ImportError> {
        self.end_file(out)?;
        let control_file = self.control_file.take().ok_or(ImportError::NoControlFile)?;
        let control = ControlFile::decode(&control_file)
            .map_err(|error| super::file_error("global/pg_control", error.to_string()))?;
        self.check_control(&control)?;
        let (relations, blocks) = self.sizes(out);
        self.folders(out);
        let lsn = self.spec.start_lsn;
        out.push(Key::ControlFile, lsn, Value::Image(control_file));
        // pg_control was copied last, so its counters are those of the backup's checkpoint or of a later one. Both are right to begin
        // with: WAL only advances them, and nothing is read before the backup's end.
        let checkpoint = Bytes::copy_from_slice(&control.checkpoint.encode(self.major));
        out.push(Key::Checkpoint, lsn, Value::Image(checkpoint));
        Ok(Imported { relations, blocks, damaged_pages: self.damaged_pages })
    }

    fn check_control(&self, control: &ControlFile) -> Result<(), ImportError> {
        let spec = &self.spec;
        let check = |what, found: String, expected: String| {
            if found == expected { Ok(()) } else { Err(ImportError::Mismatch { what, found, expected }) }
        };
        check("major version", control.major.to_string(), self.major.to_string())?;
        check("system identifier", control.system_id.to_string(), spec.system_id.to_string())?;
        check("Postgres timeline", control.checkpoint.tli.to_string(), spec.pg_tli.to_string())?;
        let segment_size = |size: super::WalSegmentSize| size.bytes().to_string();
        check("WAL segment size", segment_size(control.wal_segment_size), segment_size(spec.wal_segment_size))?;
        let segment_blocks = control.relation_segment_blocks;
        check("blocks per segment file", segment_blocks.to_string(), SEGMENT_BLOCKS.to_string())?;
        let checksums = (control.data_checksum_version != 0).to_string();
        check("use of data checksums", checksums, spec.data_checksums.to_string())?;
        if control.checkpoint.redo < spec.start_lsn {
            let (found, expected) = (control.checkpoint.redo, spec.start_lsn);
            return Err(ImportError::Mismatch {
                what: "last checkpoint",
                found: found.to_string(),
                expected: format!("{expected} or later"),
            });
        }
        Ok(())
    }

    /// Sizes of all forks but those of unlogged relations' other forks: a relation with an init fork begins empty (checklist 28).
    /// Segments come in any order, and while a relation grows one may be shorter than the next ones need (checklist 29, 62).
    fn sizes(&mut self, out: &mut Batch) -> (u64, u64) {
        let lsn = self.spec.start_lsn;
        let mut forks: BTreeMap<RelTag, Vec<(u32, u32)>> = BTreeMap::new();
        for (rel, segment, blocks) in self.segments.drain(..) {
            forks.entry(rel).or_default().push((segment, blocks));
        }
        let unlogged: BTreeSet<RelTag> = forks
            .keys()
            .filter(|rel| rel.fork == ForkNumber::Init)
            .map(|rel| rel.with_fork(ForkNumber::Main))
            .collect();
        let (mut relations, mut total) = (0, 0);
        for (rel, mut segments) in forks {
            if rel.fork != ForkNumber::Init && unlogged.contains(&rel.with_fork(ForkNumber::Main)) {
                continue;
            }
            segments.sort_unstable();
            let mut end = 0;
            for (segment, blocks) in segments {
                let first = segment * SEGMENT_BLOCKS;
                if blocks == 0 {
                    continue;
                }
                for gap in end..first {
                    out.push(Key::RelBlock(rel, gap), lsn, zero_page());
                }
                end = first + blocks;
            }
            out.push(Key::RelSize(rel), lsn, Value::Image(encode_size(Some(end))));
            relations += 1;
            total += u64::from(end);
        }
        (relations, total)
    }

    fn folders(&mut self, out: &mut Batch) {
        let mut folders: BTreeMap<(u32, u32), bool> = BTreeMap::new();
        for (spcnode, dbnode, with_version) in self.folders.drain(..) {
            if spcnode == oid::GLOBAL_TABLESPACE {
                continue;
            }
            *folders.entry((spcnode, dbnode)).or_default() |= with_version;
            if spcnode != oid::DEFAULT_TABLESPACE {
                folders.entry((spcnode, 0)).or_default();
            }
        }
        for ((spcnode, dbnode), with_version) in folders {
            let content = if with_version { WITH_VERSION_FILE } else { WITHOUT_VERSION_FILE };
            let key = Key::Database { spcnode, dbnode };
            out.push(key, self.spec.start_lsn, Value::Image(Bytes::from_static(content)));
        }
    }
}
