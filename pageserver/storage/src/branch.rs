//! Branch points: where a branch can begin, and what pins it.

use ardent_object_store::{ObjectStore, StoreError, list_all};
use ardent_types::{Lsn, TimelineId};

use crate::error::{ReadError, TimelineError};
use crate::layer::LayerError;
use crate::manifest_log::newest_generation;
use crate::object_names::{TimelineNames, parse_child};
use crate::position::{BranchPoint, RecordPosition};
use crate::retention::RETIRED;
use crate::timeline::Timeline;

impl Timeline {
    /// The branch point for `at`: the last record known to end at or below it, or the last record ingested. The timeline that it lies on
    /// is an ancestor if `at` lies before this timeline's own beginning. Errors if `at` is ahead of what was ingested, or before what is
    /// retained; but for where other branches hang, which is held for them.
    ///
    /// Exact to the record if ingest gave the positions of all records ([`Timeline::put_records`]), else to the batch: nothing
    /// between the answer and `at` was ever visible by itself.
    pub fn branch_point(&self, at: Option<Lsn>) -> Result<(TimelineId, BranchPoint), TimelineError> {
        if self.is_importing() {
            return Err(TimelineError::Importing { timeline: self.id() });
        }
        let last = self.progress.last();
        let at = at.unwrap_or(last.end);
        if at > last.end {
            return Err(TimelineError::NotYet { lsn: at, last: last.end });
        }
        if self.ancestor.is_some_and(|ancestor| at < ancestor.point.lsn)
            && let Some(parent) = self.parent()?
        {
            return parent.branch_point(Some(at));
        }
        let position = if at == last.end { last } else { self.last_boundary(at)? };
        let retained_from = self.retained_from();
        let is_leased = || self.leases.read().values().any(|lease| lease.lsn == position.end);
        if position.end < retained_from && !is_leased() {
            let held = self.held_point(at, None)?;
            return held.ok_or(TimelineError::Retired { lsn: at, retained_from });
        }
        Ok((self.id(), position.into()))
    }

    /// The branch point at exactly `lsn`, if another branch than `except` hangs there, or this timeline begins there: then it is
    /// held, however far retention has gone.
    pub(crate) fn held_point(
        &self,
        lsn: Lsn,
        except: Option<TimelineId>,
    ) -> Result<Option<(TimelineId, BranchPoint)>, TimelineError> {
        if let Some(ancestor) = self.ancestor.filter(|ancestor| ancestor.point.lsn == lsn) {
            return Ok(Some((ancestor.timeline, ancestor.point)));
        }
        for (child, point) in
            self.children()?.into_iter().filter(|(child, point)| point.lsn == lsn && Some(*child) != except)
        {
            // A marker alone may be of a branch that is about to be refused.
            let child = TimelineNames { tenant: self.tenant(), timeline: child };
            if newest_generation(&*self.shared.config.store, &child)?.is_some() {
                return Ok(Some((self.id(), point)));
            }
        }
        Ok(None)
    }

    /// The oldest record at whose end this timeline itself can be read and branched from without a pin. Of a retired timeline there is none:
    /// then it ends past all that there is.
    pub fn oldest_record(&self) -> Result<RecordPosition, ReadError> {
        self.oldest_boundary().map_err(|error| self.explained(error.into()))
    }

    pub(crate) fn oldest_boundary(&self) -> Result<RecordPosition, LayerError> {
        if let Some(record) = *self.retained_record.read() {
            return Ok(record);
        }
        let retained_from = self.retained_from();
        if retained_from == RETIRED {
            return Ok(RecordPosition { end: RETIRED, start: Lsn::INVALID });
        }
        // What the record before holds may be gone in part: the next one is the oldest that is whole.
        let mut oldest = self.durable_record();
        for layer in self.layer_set().files.layers() {
            let desc = &layer.desc;
            if desc.boundaries && retained_from <= desc.upto && desc.after < oldest.end {
                let found = layer.boundaries()?.into_iter().find(|position| position.end >= retained_from);
                oldest = found.filter(|found| found.end < oldest.end).unwrap_or(oldest);
            }
        }
        Ok(oldest)
    }

    /// The last record on this timeline that is known to end at or below `at`.
    pub(crate) fn last_boundary(&self, at: Lsn) -> Result<RecordPosition, TimelineError> {
        self.last_known_boundary(at).map_err(|error| self.why(error))
    }

    /// The same error, unless the file is gone because the timeline is another page server's now.
    pub(crate) fn why(&self, error: TimelineError) -> TimelineError {
        match error {
            TimelineError::Corrupt(file) => self.why_corrupt(file).into(),
            other => other,
        }
    }

    fn last_known_boundary(&self, at: Lsn) -> Result<RecordPosition, TimelineError> {
        let set = self.layer_set();
        if let Some(position) = set.open.boundary_at(at) {
            return Ok(position);
        }
        for frozen in set.frozen.iter().rev() {
            if let Some(position) = frozen.boundary_at(at)? {
                return Ok(position);
            }
        }
        // A frozen layer without versions leaves no file; the durable position stands for its records.
        let durable = self.durable_record();
        let mut best = Some(durable).filter(|durable| durable.end <= at);
        // The file that it is in may have been given up.
        best = best.max_by_end(self.retained_record.read().filter(|record| record.end <= at));
        for layer in set.files.layers().iter().filter(|layer| layer.desc.boundaries && layer.desc.after < at) {
            if best.is_some_and(|best| best.end >= layer.desc.upto.min(at)) {
                break;
            }
            let found = layer.boundaries()?.into_iter().rev().find(|position| position.end <= at);
            best = best.max_by_end(found);
        }
        match best {
            Some(position) => Ok(position),
            None if self.begins.end <= at => Ok(self.begins),
            None => Err(TimelineError::Retired { lsn: at, retained_from: self.retained_from() }),
        }
    }

    /// The branches that hang on this timeline, with where, as the store has them.
    pub fn children(&self) -> Result<Vec<(TimelineId, BranchPoint)>, TimelineError> {
        Ok(self.names.branches(&*self.shared.config.store)?)
    }
}

impl TimelineNames {
    /// The branches that hang on the timeline, as the store has them.
    pub(crate) fn branches(&self, store: &dyn ObjectStore) -> Result<Vec<(TimelineId, BranchPoint)>, StoreError> {
        let page = list_all(store, &self.children(), false)?;
        Ok(page.objects.iter().filter_map(|object| parse_child(&object.name)).collect())
    }
}

trait MaxByEnd {
    fn max_by_end(self, other: Self) -> Self;
}

impl MaxByEnd for Option<RecordPosition> {
    fn max_by_end(self, other: Self) -> Self {
        if self.map(|position| position.end) >= other.map(|position| position.end) { self } else { other }
    }
}
