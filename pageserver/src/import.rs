//! The first content of a root timeline, from the files of a base backup.

use std::sync::Arc;

use ardent_api::page_service::{ErrorCode, ImportSpec, ManageReply};
use ardent_api::token::Rights;
use ardent_pg_format::PgMajor;
use ardent_pg_ingest::{Batch, ImportError};
use ardent_storage::{PutError, Timeline, TimelineFacts};
use ardent_types::{Lsn, TimelineId, with_causes};
use bytes::Bytes;

use crate::connection::{Bound, Connection, Failure};
use crate::limits;
use crate::pages::{code_of, commit_failure, timeline_failure};

/// Metadata of a timeline: the end LSN of the base backup that it began with.
pub(crate) const CONSISTENT_FROM: &str = "consistent_from";
/// Metadata of a timeline: why its import is unusable, found once WAL had reached the backup's end.
pub(crate) const IMPORT_ERROR: &str = "import_error";

/// An import on a connection.
pub(crate) enum Import {
    /// Files are coming.
    Running(Box<Running>),
    /// It has failed, its client was told; the files that are still on their way are let pass.
    Failed(Failure),
}

/// An import that goes well so far.
pub(crate) struct Running {
    timeline: Arc<Timeline>,
    files: ardent_pg_ingest::Import,
    batch: Batch,
}

impl Connection<'_> {
    pub(crate) fn import_begin(&mut self, bound: &Bound, spec: ImportSpec) -> Result<ManageReply, Failure> {
        if bound.timeline == TimelineId::NONE {
            return Err(Failure::new(ErrorCode::Invalid, "an import needs a connection that is bound to its timeline"));
        }
        bound.allow(bound.timeline, Rights::Manage)?;
        let pg_major = PgMajor::from_number(spec.pg_major).ok_or_else(|| {
            Failure::new(ErrorCode::Invalid, format!("Postgres {} is not known to this version", spec.pg_major))
        })?;
        let facts = TimelineFacts {
            pg_major,
            system_id: spec.system_id,
            pg_tli: spec.pg_tli,
            wal_segment_size: spec.wal_segment_size,
            start_lsn: spec.start_lsn,
        };
        let files = ardent_pg_ingest::Import::new(spec).map_err(|error| import_failure(&error))?;
        let timeline = self.shared.engine.create_root(bound.tenant, bound.timeline, facts);
        let timeline = timeline.map_err(|error| timeline_failure(&error))?;
        if !timeline.is_importing() {
            return Err(Failure::new(ErrorCode::Conflict, "this timeline has been imported already"));
        }
        self.import = Some(Import::Running(Box::new(Running { timeline, files, batch: Batch::default() })));
        Ok(ManageReply::Done)
    }

    pub(crate) fn import_file(&mut self, path: String, length: u64) -> Result<(), Failure> {
        self.feed(|running| running.files.begin_file(&path, length, &mut running.batch))
    }

    pub(crate) fn import_data(&mut self, data: Bytes) -> Result<(), Failure> {
        self.feed(|running| running.files.data(data, &mut running.batch))
    }

    fn feed(&mut self, step: impl FnOnce(&mut Running) -> Result<(), ImportError>) -> Result<(), Failure> {
        let running = match &mut self.import {
            Some(Import::Running(running)) => running,
            Some(Import::Failed(_)) => return Ok(()),
            None => return Err(Failure::new(ErrorCode::Invalid, "no import was begun on this connection")),
        };
        let stored = step(running).map_err(|error| import_failure(&error)).and_then(|()| running.store_if_large());
        stored.inspect_err(|failure| self.import = Some(Import::Failed(failure.clone())))
    }

    pub(crate) fn import_finish(&mut self, end_lsn: Lsn) -> Result<ManageReply, Failure> {
        match self.import.take() {
            Some(Import::Running(running)) => running.finish(end_lsn),
            Some(Import::Failed(failure)) => Err(failure),
            None => Err(Failure::new(ErrorCode::Invalid, "no import was begun on this connection")),
        }
    }
}

impl Running {
    fn store_if_large(&mut self) -> Result<(), Failure> {
        if self.batch.size_bytes() < limits::IMPORT_BATCH_BYTES { Ok(()) } else { self.store() }
    }

    fn store(&mut self) -> Result<(), Failure> {
        let values: Vec<_> = self.batch.values.drain(..).map(|(key, _, value)| (key, value)).collect();
        self.batch.clear();
        self.timeline.import_values(&values).map_err(|error| put_failure(&error))
    }

    fn finish(mut self, end_lsn: Lsn) -> Result<ManageReply, Failure> {
        let imported = self.files.finish(&mut self.batch).map_err(|error| import_failure(&error))?;
        let values: Vec<_> = self.batch.values.drain(..).map(|(key, _, value)| (key, value)).collect();
        self.timeline.import_values(&values).map_err(|error| put_failure(&error))?;
        // Before the import counts as finished: a timeline without it could be read too early.
        let consistent_from = serde_json::Value::String(end_lsn.to_string());
        self.timeline.set_metadata(CONSISTENT_FROM, consistent_from).map_err(|error| commit_failure(&error))?;
        self.timeline.finish_import().map_err(|error| put_failure(&error))?;
        tracing::info!(
            timeline = %self.timeline.id(),
            relations = imported.relations,
            blocks = imported.blocks,
            damaged_pages = imported.damaged_pages,
            "a base backup was imported"
        );
        Ok(ManageReply::Done)
    }
}

/// From where on an imported timeline can be read; [`Lsn::INVALID`] for a branch, which begins consistent.
pub(crate) fn consistent_from(timeline: &Timeline) -> Lsn {
    consistent_from_of(timeline.get_metadata(CONSISTENT_FROM).as_ref())
}

/// The same from the value of [`CONSISTENT_FROM`].
pub(crate) fn consistent_from_of(value: Option<&serde_json::Value>) -> Lsn {
    value.and_then(|value| value.as_str()).and_then(|text| text.parse().ok()).unwrap_or(Lsn::INVALID)
}

/// Refuses what concerns a state below the end of the timeline's base backup, or a timeline whose backup was incomplete.
pub(crate) fn check_consistent(timeline: &Timeline, lsn: Lsn) -> Result<(), Failure> {
    // Only a root is imported. Metadata is behind the manifest's lock, which a commit holds while it writes: no read of a
    // branch may wait for that.
    if timeline.ancestor().is_some() {
        return Ok(());
    }
    if let Some(error) = timeline.get_metadata(IMPORT_ERROR) {
        let reason = error.as_str().unwrap_or("unknown").to_owned();
        return Err(Failure::new(ErrorCode::Unreadable, format!("the import is unusable: {reason}")));
    }
    let from = consistent_from(timeline);
    if lsn < from {
        let message = format!("{lsn} lies within the base backup, which is consistent from {from} on");
        return Err(Failure::new(ErrorCode::LsnOutOfRange, message));
    }
    Ok(())
}

fn import_failure(error: &ImportError) -> Failure {
    Failure::new(ErrorCode::Invalid, with_causes(error))
}

fn put_failure(error: &PutError) -> Failure {
    Failure::new(code_of(error.kind(), ErrorCode::Unreadable), with_causes(error))
}
