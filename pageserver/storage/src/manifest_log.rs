//! Reads and writes a timeline's manifests: the commit point, and the fence between two page servers.
//!
//! A commit writes the next generation with put-if-absent. Whoever finds it taken by another, or finds a still newer one (old
//! generations are removed, so a name may be free although others went past it), has lost the timeline. Where neither can be found
//! out, the commit has failed: what it wrote is durable but promised to nobody, and the next one goes past it.

use std::sync::Arc;

use ardent_object_store::{ErrorKind, ObjectStore, StoreError, list_all};
use ardent_types::Generation;

use crate::error::{CommitError, CorruptFile, TimelineError};
use crate::limits::OLD_MANIFESTS_KEPT;
use crate::manifest::Manifest;
use crate::object_names::{TimelineNames, parse_manifest};
use crate::shared::Shared;
use crate::stats::count;

/// The number of a timeline's first manifest.
pub(crate) const FIRST_GENERATION: Generation = Generation::new(1);

/// The newest manifest of a timeline, and the right to write the next.
pub(crate) struct ManifestLog {
    shared: Arc<Shared>,
    names: TimelineNames,
    current: Arc<Manifest>,
    fenced_by: Option<Generation>,
}

impl ManifestLog {
    /// The newest manifest in the store; `None` if there is none.
    pub(crate) fn load(shared: &Arc<Shared>, names: TimelineNames) -> Result<Option<ManifestLog>, TimelineError> {
        // A manifest found in the list may be removed before it is read, when another page server goes on committing.
        for _ in 0..8 {
            let Some(newest) = newest_generation(&*shared.config.store, &names)? else { return Ok(None) };
            let name = names.manifest(newest);
            let bytes = match shared.config.store.get(&name) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                bytes => bytes?,
            };
            let corrupt = |expected: String| CorruptFile {
                file: name.to_string(),
                offset: 0,
                expected,
                keys: "the whole timeline".to_owned(),
            };
            let manifest = Manifest::decode(&bytes).map_err(corrupt)?;
            if (manifest.generation, manifest.tenant, manifest.timeline) != (newest, names.tenant, names.timeline) {
                return Err(corrupt("the manifest that its name says".to_owned()).into());
            }
            return Ok(Some(Self::with(shared, names, manifest)));
        }
        Ok(None)
    }

    /// Writes a new timeline's first manifest. False if it has one.
    pub(crate) fn create(
        shared: &Arc<Shared>,
        names: TimelineNames,
        manifest: Manifest,
    ) -> Result<Option<ManifestLog>, CommitError> {
        let mut log = Self::with(shared, names, manifest);
        let first = (*log.current).clone();
        match log.write(first) {
            Ok(()) => Ok(Some(log)),
            Err(CommitError::Fenced { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn with(shared: &Arc<Shared>, names: TimelineNames, manifest: Manifest) -> ManifestLog {
        ManifestLog { shared: shared.clone(), names, current: Arc::new(manifest), fenced_by: None }
    }

    pub(crate) fn current(&self) -> &Arc<Manifest> {
        &self.current
    }

    /// An error if another page server has the timeline.
    pub(crate) fn check(&self) -> Result<(), CommitError> {
        let timeline = self.names.timeline;
        match self.fenced_by {
            Some(generation) => Err(CommitError::Fenced { timeline, generation }),
            None if self.current.deleted => Err(CommitError::Deleted { timeline }),
            None => Ok(()),
        }
    }

    /// An error if another page server has written a newer manifest, or deleted the timeline.
    pub(crate) fn look(&mut self) -> Result<(), CommitError> {
        self.check()?;
        match Self::load(&self.shared, self.names) {
            Ok(Some(found)) => {
                let newest = &found.current;
                let is_others = newest.generation > self.current.generation && newest.writer != self.shared.writer;
                if is_others { Err(self.fenced(newest.generation)) } else { Ok(()) }
            }
            // Deleted to the end: by somebody who wrote at least one.
            Ok(None) => Err(self.fenced(self.current.generation.next())),
            Err(TimelineError::Store(error)) => Err(error.into()),
            Err(_) => Ok(()),
        }
    }

    /// Makes a changed manifest durable. After an error nothing has changed.
    pub(crate) fn commit(&mut self, change: impl FnOnce(&mut Manifest)) -> Result<(), CommitError> {
        self.check()?;
        let mut next = (*self.current).clone();
        change(&mut next);
        next.generation = self.current.generation.next();
        next.writer.clone_from(&self.shared.writer);
        self.write(next)
    }

    fn write(&mut self, mut next: Manifest) -> Result<(), CommitError> {
        let faults = &self.shared.config.faults;
        let local = |source| CommitError::Local { path: self.names.manifests(), source };
        faults.pass("manifest.before").map_err(local)?;
        let store = &*self.shared.config.store;
        let name = loop {
            let name = self.names.manifest(next.generation);
            let body = next.encode();
            let Err(error) = store.put_if_absent(&name, &body) else { break name };
            // Taken, or an error with an unknown outcome: what is there now decides.
            let found = match (store.get(&name), error.kind()) {
                (Ok(found), _) => found,
                // Taken, and already left behind: others are far past it.
                (Err(unread), ErrorKind::Precondition) if unread.kind() == ErrorKind::NotFound => {
                    return Err(self.fenced(next.generation));
                }
                (Err(unread), ErrorKind::Precondition) => return Err(unread.into()),
                (Err(_), _) => return Err(error.into()),
            };
            if found == body {
                break name;
            }
            let is_ours = Manifest::decode(&found).is_ok_and(|found| found.writer == self.shared.writer);
            if !is_ours || next.generation == FIRST_GENERATION {
                return Err(self.fenced(next.generation));
            }
            // An earlier commit of ours failed after it had written. Nothing was promised: the next one goes past it.
            next.generation = next.generation.next();
        };
        count(&self.shared.stats.manifests_written, 1);
        faults.pass("manifest.after").map_err(local)?;
        // Without an answer nothing may be promised: layers would be removed that another page server's manifest names.
        if let Some(newest) = newest_generation(store, &self.names)?.filter(|newest| *newest > next.generation) {
            // Ours filled a name that others had left behind; it must not stay.
            if let Err(error) = store.delete(&name) {
                tracing::warn!(%error, "a manifest of a fenced page server stays; it is never read");
            }
            return Err(self.fenced(newest));
        }
        self.remove_old(next.generation);
        self.current = Arc::new(next);
        Ok(())
    }

    fn fenced(&mut self, generation: Generation) -> CommitError {
        self.fenced_by = Some(generation);
        CommitError::Fenced { timeline: self.names.timeline, generation }
    }

    fn remove_old(&self, newest: Generation) {
        let Some(old) = newest.get().checked_sub(OLD_MANIFESTS_KEPT + 1).filter(|old| *old > 0) else { return };
        if let Err(error) = self.shared.config.store.delete(&self.names.manifest(Generation::new(old))) {
            tracing::warn!(%error, "an old manifest stays");
        }
    }
}

/// The highest generation in the store.
pub(crate) fn newest_generation(
    store: &dyn ObjectStore,
    names: &TimelineNames,
) -> Result<Option<Generation>, StoreError> {
    let page = list_all(store, &names.manifests(), false)?;
    Ok(page.objects.iter().filter_map(|object| parse_manifest(&object.name)).max())
}
