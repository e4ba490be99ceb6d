//! Compares a timeline's files with its catalogs (checklist 68).

use std::sync::Arc;

use ardent_api::page_service::{ErrorCode, UnnamedFiles, UnnamedRelation};
use ardent_pg_ingest::{Unnamed, UnnamedError, UnnamedFile, unnamed_files};
use ardent_storage::Timeline;
use ardent_types::{BLCKSZ, Lsn, with_causes};

use crate::connection::{Connection, Failure};
use crate::import::check_consistent;
use crate::limits;
use crate::pages::ReadFailure;
use crate::state::TimelineAt;

impl Connection<'_> {
    pub(crate) fn find_unnamed_files(&self, timeline: &Arc<Timeline>) -> Result<UnnamedFiles, Failure> {
        let lsn = timeline.last_record().end;
        let found = self.unnamed_files_at(timeline, lsn)?;
        let bytes =
            |file: &UnnamedFile| file.forks.iter().map(|(_, blocks)| u64::from(*blocks) * BLCKSZ as u64).sum::<u64>();
        let relation = |file: &UnnamedFile| UnnamedRelation {
            tablespace: file.rel.spcnode,
            database: file.rel.dbnode,
            file: file.rel.relnode,
            bytes: bytes(file),
            database_exists: file.reason == Unnamed::NoRelation,
        };
        Ok(UnnamedFiles {
            lsn,
            found: found.len() as u64,
            bytes: found.iter().map(bytes).sum(),
            relations: found.iter().take(limits::UNNAMED_RELATIONS_MAX).map(relation).collect(),
        })
    }

    /// All of them.
    pub(crate) fn unnamed_files_at(&self, timeline: &Arc<Timeline>, lsn: Lsn) -> Result<Vec<UnnamedFile>, Failure> {
        check_consistent(timeline, lsn)?;
        self.read(timeline, |timeline| {
            unnamed_files(&TimelineAt { timeline, lsn }).map_err(|error| match error {
                UnnamedError::State(error) => ReadFailure::from(error),
                damaged => Failure::new(ErrorCode::Unreadable, with_causes(&damaged)).into(),
            })
        })
    }
}
