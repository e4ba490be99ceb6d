//! The engine: which timelines there are, and loading them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ardent_object_store::{StoreError, list_all};
use ardent_types::{Generation, Lsn, TenantId, TimelineId, with_causes};
use nix::fcntl::{Flock, FlockArg};
use parking_lot::Mutex;

use crate::background::Background;
use crate::config::EngineConfig;
use crate::debt::Debt;
use crate::error::{CommitError, OpenError, TimelineError};
use crate::manifest::{Ancestor, Manifest, TimelineFacts};
use crate::manifest_log::{FIRST_GENERATION, ManifestLog, newest_generation};
use crate::object_names::{TimelineNames, parse_child, parse_manifest, tenant_prefix};
use crate::position::{BranchPoint, RecordPosition};
use crate::shared::Shared;
use crate::stats::EngineStats;
use crate::timeline::Timeline;

/// A place for one timeline in the table: its lock is held while the timeline is loaded, made, unloaded or deleted.
pub(crate) type Slot = Arc<Mutex<Option<Arc<Timeline>>>>;

/// What became of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was unloaded; its newest manifest then.
    Unloaded(Generation),
    /// A branch that hung on it was deleted.
    LostBranch,
}

/// A page server's storage: all timelines of a store. See the crate's documentation.
pub struct Engine {
    shared: Arc<Shared>,
    slots: Mutex<HashMap<TimelineNames, Slot>>,
    /// The last thing that became of each timeline since somebody asked.
    changes: Mutex<HashMap<TimelineNames, Change>>,
    background: Mutex<Option<Background>>,
    _lock: Flock<fs::File>,
}

impl Engine {
    /// Opens the engine. Reads no timeline: however many there are, each is loaded when it is first used.
    pub fn open(config: EngineConfig) -> Result<Arc<Engine>, OpenError> {
        let folder = config.local_dir.clone();
        let failed = |source| OpenError::Folder { path: folder.display().to_string(), source };
        let faults = Arc::clone(&config.faults);
        faults.pass("open.mkdir").and_then(|()| fs::create_dir_all(&folder)).map_err(failed)?;
        let lock = take_lock(&folder)?;
        let background = config.background;
        let shared = Arc::new(Shared::new(config));
        for leftovers in [shared.temp_folder(), folder.join("importing")] {
            match faults.pass("open.clear").and_then(|()| fs::remove_dir_all(&leftovers)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        faults.pass("open.mkdir").and_then(|()| fs::create_dir_all(shared.temp_folder())).map_err(failed)?;
        let engine = Arc::new(Engine {
            shared: shared.clone(),
            slots: Mutex::default(),
            changes: Mutex::default(),
            background: Mutex::new(None),
            _lock: lock,
        });
        let only_once = shared.engine.set(Arc::downgrade(&engine));
        assert!(only_once.is_ok(), "an engine is made once");
        if background {
            *engine.background.lock() = Some(Background::start(&engine).map_err(failed)?);
        }
        Ok(engine)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// How it is set up.
    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    /// Makes a root timeline, ready for [`Timeline::import_images`]. The same call again gives the same timeline; one whose import was
    /// not finished starts again from nothing.
    pub fn create_root(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        facts: TimelineFacts,
    ) -> Result<Arc<Timeline>, TimelineError> {
        let names = TimelineNames { tenant, timeline };
        let slot = self.slot(names);
        let mut place = slot.lock();
        if let Some(existing) = self.load_into(&mut place, names)? {
            if existing.ancestor.is_some() || existing.facts != facts {
                return Err(TimelineError::Conflict { timeline, what: "origin" });
            }
            existing.restart_import()?;
            return Ok(existing);
        }
        let last_record = RecordPosition { end: facts.start_lsn, start: Lsn::INVALID };
        self.create(&mut place, Manifest { importing: true, ..self.first_manifest(names, facts, None, last_record) })
    }

    /// Makes a branch of `ancestor` at the last record that ends at or below `at`; `None`: the last one ingested. Copies nothing.
    /// Idempotent: the same call again gives the same point, whatever came in since, also after a crash in the middle. `at` before the
    /// ancestor's own beginning makes a branch of the ancestor's ancestor.
    pub fn create_branch(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        ancestor: TimelineId,
        at: Option<Lsn>,
    ) -> Result<BranchPoint, TimelineError> {
        self.create_branch_with(tenant, timeline, ancestor, at, BTreeMap::new())
    }

    /// The same with metadata from the first manifest on; what is there already keeps its own.
    pub fn create_branch_with(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        ancestor: TimelineId,
        at: Option<Lsn>,
        metadata: BTreeMap<String, serde_json::Value>,
    ) -> Result<BranchPoint, TimelineError> {
        let names = TimelineNames { tenant, timeline };
        if timeline == ancestor {
            return Err(TimelineError::Conflict { timeline, what: "ancestor" });
        }
        let slot = self.slot(names);
        let mut place = slot.lock();
        if let Some(existing) = self.load_into(&mut place, names)? {
            let Some(hangs) = existing.ancestor else {
                return Err(TimelineError::Conflict { timeline, what: "origin" });
            };
            let is_same = hangs.timeline == ancestor || at.is_some_and(|at| hangs.point.lsn <= at);
            return if is_same { Ok(hangs.point) } else { Err(TimelineError::Conflict { timeline, what: "ancestor" }) };
        }
        let parent = self.timeline(tenant, ancestor)?;
        let (owner, point) = parent.branch_point(at)?;
        let parent = if owner == ancestor { parent } else { self.timeline(tenant, owner)? };
        let _pinning = parent.pinning.read();
        let point = self.pin_child(&parent, timeline, point)?;
        let facts = TimelineFacts { start_lsn: point.lsn, ..parent.facts };
        let hangs = Ancestor { timeline: owner, point };
        let last_record = RecordPosition { end: point.lsn, start: point.prev_lsn };
        let manifest = self.first_manifest(names, facts, Some(hangs), last_record);
        self.create(&mut place, Manifest { metadata, ..manifest })?;
        // Another page server that took the parent before the manifest was there may not have seen the branch; one that takes it from
        // now on does.
        if let Err(error) = self.limit_now(&parent) {
            if let Some(made) = place.take() {
                made.begin_deletion()?;
                self.finish_deletion(names, made.ancestor)?;
            }
            return Err(error);
        }
        Ok(point)
    }

    /// Writes the marker that keeps garbage collection from passing the branch point, before the branch exists (checklist 58). An
    /// earlier attempt's marker decides where the branch is.
    fn pin_child(
        &self,
        parent: &Timeline,
        child: TimelineId,
        point: BranchPoint,
    ) -> Result<BranchPoint, TimelineError> {
        let store = &*self.shared.config.store;
        let markers = list_all(store, &parent.names.child_prefix(child), false)?;
        if let Some((_, point)) = markers.objects.iter().find_map(|object| parse_child(&object.name)) {
            // As new as the attempt that uses it, so that nobody takes it for a leftover.
            store.put(&parent.names.child(child, point), b"")?;
            return Ok(point);
        }
        let marker = parent.names.child(child, point);
        store.put(&marker, b"")?;
        // Whoever collects garbage writes the new limit first and lists the markers then: one of both sees the other.
        let leased = parent.leases.read().values().any(|lease| lease.lsn == point.lsn);
        let limit = match self.limit_now(parent) {
            Ok(limit) => limit,
            Err(error) => {
                store.delete(&marker)?;
                return Err(error);
            }
        };
        // Another branch that hangs there held the point before our marker did, and still does now that it is written.
        if point.lsn < limit && !leased && parent.held_point(point.lsn, Some(child))?.is_none() {
            store.delete(&marker)?;
            return Err(TimelineError::Retired { lsn: point.lsn, retained_from: limit });
        }
        Ok(point)
    }

    /// From where on the store says that `parent` is retained; an error if another page server has taken it.
    fn limit_now(&self, parent: &Timeline) -> Result<Lsn, TimelineError> {
        let known = parent.manifest_now().generation;
        let limit = parent.retained_from();
        if newest_generation(&*self.shared.config.store, &parent.names)?.is_none_or(|newest| newest <= known) {
            return Ok(limit);
        }
        let Some(log) = ManifestLog::load(&self.shared, parent.names)? else {
            return Err(CommitError::Deleted { timeline: parent.id() }.into());
        };
        let newest = log.current();
        if newest.writer != self.shared.writer {
            // The timeline itself is to know: it stops being served.
            parent.look_for_owner()?;
            return Err(CommitError::Fenced { timeline: parent.id(), generation: newest.generation }.into());
        }
        // A commit of our own that failed after it had written. Garbage collection did not go on after it, but a restart may.
        Ok(limit.max(newest.retained_from))
    }

    pub(crate) fn first_manifest(
        &self,
        names: TimelineNames,
        facts: TimelineFacts,
        ancestor: Option<Ancestor>,
        last_record: RecordPosition,
    ) -> Manifest {
        Manifest {
            generation: FIRST_GENERATION,
            writer: self.shared.writer.clone(),
            tenant: names.tenant,
            timeline: names.timeline,
            facts,
            ancestor,
            importing: false,
            deleted: false,
            last_record,
            retained_from: facts.start_lsn,
            retained_record: None,
            layers: Vec::new(),
            leases: BTreeMap::new(),
            metadata: BTreeMap::new(),
        }
    }

    pub(crate) fn create(
        &self,
        place: &mut Option<Arc<Timeline>>,
        manifest: Manifest,
    ) -> Result<Arc<Timeline>, TimelineError> {
        let names = TimelineNames { tenant: manifest.tenant, timeline: manifest.timeline };
        let Some(log) = ManifestLog::create(&self.shared, names, manifest)? else {
            return Err(TimelineError::Conflict { timeline: names.timeline, what: "page server making it" });
        };
        let timeline = Timeline::from_manifest(&self.shared, log)?;
        Ok(place.insert(timeline).clone())
    }

    /// A timeline, loaded if it isn't.
    pub fn timeline(&self, tenant: TenantId, timeline: TimelineId) -> Result<Arc<Timeline>, TimelineError> {
        let names = TimelineNames { tenant, timeline };
        let slot = self.slot(names);
        let mut place = slot.lock();
        let loaded = self.load_into(&mut place, names)?;
        if loaded.is_none() {
            drop(place);
            self.forget_empty(names, &slot);
        }
        loaded.ok_or(TimelineError::NotFound { tenant, timeline })
    }

    /// The ids of a tenant's timelines, in no order. One that is being deleted may be among them.
    pub fn list(&self, tenant: TenantId) -> Result<Vec<TimelineId>, TimelineError> {
        let prefix = tenant_prefix(tenant);
        let page = list_all(&*self.shared.config.store, &prefix, true)?;
        let id = |folder: &String| folder.strip_prefix(&prefix)?.strip_suffix('/')?.parse().ok();
        Ok(page.folders.iter().filter_map(id).collect())
    }

    /// The ids of all tenants that have timelines, in no order.
    pub fn tenants(&self) -> Result<Vec<TenantId>, TimelineError> {
        let page = list_all(&*self.shared.config.store, "timelines/", true)?;
        let id = |folder: &String| folder.strip_prefix("timelines/")?.strip_suffix('/')?.parse().ok();
        Ok(page.folders.iter().filter_map(id).collect())
    }

    /// Removes a timeline and everything stored for it. Refused while branches hang on it. Once begun, it is finished by whoever
    /// meets the timeline next, also after a crash.
    pub fn delete_timeline(&self, tenant: TenantId, timeline: TimelineId) -> Result<(), TimelineError> {
        let names = TimelineNames { tenant, timeline };
        let slot = self.slot(names);
        let mut place = slot.lock();
        let Some(doomed) = self.load_into(&mut place, names)? else {
            return Err(TimelineError::NotFound { tenant, timeline });
        };
        let _pinning = doomed.pinning.write();
        let children = self.living_children(&doomed)?;
        if children > 0 {
            return Err(TimelineError::HasChildren { timeline, children });
        }
        doomed.begin_deletion()?;
        *place = None;
        self.finish_deletion(names, doomed.ancestor)?;
        drop(place);
        self.forget_empty(names, &slot);
        Ok(())
    }

    /// How many branches hang on `timeline`. Markers of branches that never came to be are removed.
    fn living_children(&self, timeline: &Timeline) -> Result<usize, TimelineError> {
        let store = &*self.shared.config.store;
        let mut living = 0;
        for (child, point) in timeline.children()? {
            let names = TimelineNames { tenant: timeline.names.tenant, timeline: child };
            if newest_generation(store, &names)?.is_some() {
                living += 1;
            } else {
                store.delete(&timeline.names.child(child, point))?;
            }
        }
        Ok(living)
    }

    /// Everything of a timeline whose manifest says that it is deleted; the manifests last, the newest at the very end.
    fn finish_deletion(&self, names: TimelineNames, ancestor: Option<Ancestor>) -> Result<(), StoreError> {
        let store = &*self.shared.config.store;
        let (mut manifests, others): (Vec<_>, Vec<_>) = list_all(store, &names.prefix(), false)?
            .objects
            .into_iter()
            .map(|object| object.name)
            .partition(|name| name.as_str().starts_with(&names.manifests()));
        store.delete_many(&others)?;
        if let Some(ancestor) = ancestor {
            let parent = TimelineNames { tenant: names.tenant, timeline: ancestor.timeline };
            store.delete(&parent.child(names.timeline, ancestor.point))?;
            self.changes.lock().insert(parent, Change::LostBranch);
        }
        manifests.sort_by_key(|name| parse_manifest(name).map_or(Generation::new(0), |generation| generation));
        for name in manifests {
            store.delete(&name)?;
        }
        Ok(())
    }

    pub(crate) fn slot(&self, names: TimelineNames) -> Slot {
        self.slots.lock().entry(names).or_default().clone()
    }

    /// Takes an empty slot out of the table unless somebody else is about to use it.
    fn forget_empty(&self, names: TimelineNames, slot: &Slot) {
        let mut slots = self.slots.lock();
        // Two: the table's and ours. Nobody can get another while we hold the table.
        if Arc::strong_count(slot) <= 2 && slot.lock().is_none() {
            slots.remove(&names);
        }
    }

    pub(crate) fn load_into(
        &self,
        place: &mut Option<Arc<Timeline>>,
        names: TimelineNames,
    ) -> Result<Option<Arc<Timeline>>, TimelineError> {
        if let Some(timeline) = place {
            timeline.touch();
            return Ok(Some(timeline.clone()));
        }
        let Some(mut log) = ManifestLog::load(&self.shared, names)? else { return Ok(None) };
        let manifest = log.current().clone();
        if manifest.deleted {
            self.finish_deletion(names, manifest.ancestor)?;
            return Ok(None);
        }
        match self.take_over(&mut log, names) {
            Ok(()) => {}
            Err(error @ (CommitError::Fenced { .. } | CommitError::Deleted { .. })) => return Err(error.into()),
            // A full disk must not keep anybody from reading. The first commit that works claims it.
            Err(error) => tracing::warn!(timeline = %names.timeline, %error, "a timeline is read without owning it"),
        }
        let timeline = Timeline::from_manifest(&self.shared, log)?;
        *place = Some(timeline.clone());
        Ok(Some(timeline))
    }

    /// Takes the timeline from whichever process had it, and removes layer files that the manifest does not name: a crash left them
    /// (checklist 57). They are listed before a manifest of our own is written and removed after it: whoever made them can't name them
    /// any more, and what comes from somebody who takes the timeline from us is not among them.
    fn take_over(&self, log: &mut ManifestLog, names: TimelineNames) -> Result<(), CommitError> {
        let store = &*self.shared.config.store;
        let mut orphans = list_all(store, &names.layers(), false)?.objects;
        let manifest = log.current().clone();
        orphans.retain(|object| !manifest.layers.iter().any(|layer| layer.file == object.name.file_name()));
        if orphans.is_empty() && manifest.writer == self.shared.writer {
            return Ok(());
        }
        log.commit(|_| {})?;
        for orphan in orphans {
            tracing::info!(file = %orphan.name, "removing a layer file that no manifest names");
            store.delete(&orphan.name)?;
        }
        Ok(())
    }

    /// All loaded timelines.
    pub(crate) fn loaded(&self) -> Vec<Arc<Timeline>> {
        let slots: Vec<Slot> = self.slots.lock().values().cloned().collect();
        slots.iter().filter_map(|slot| slot.try_lock().and_then(|place| place.clone())).collect()
    }

    /// Timelines that were unloaded or lost a branch since this was called last, with what happened to each last. What changes else
    /// happens to loaded ones.
    pub fn take_changes(&self) -> Vec<(TenantId, TimelineId, Change)> {
        let changes = std::mem::take(&mut *self.changes.lock());
        changes.into_iter().map(|(names, change)| (names.tenant, names.timeline, change)).collect()
    }

    /// Makes everything ingested durable and unloads a timeline that nobody else holds. False if somebody does.
    pub fn unload(&self, timeline: Arc<Timeline>) -> Result<bool, Arc<CommitError>> {
        timeline.flush()?;
        let names = timeline.names;
        let slot = self.slot(names);
        let Some(mut place) = slot.try_lock() else { return Ok(false) };
        // The slot's and ours: nobody else can get one while we hold the slot.
        let unused = Arc::strong_count(&timeline) == 2 && timeline.layer_set().open.is_empty();
        if unused {
            let generation = timeline.manifest_now().generation;
            let mut changes = self.changes.lock();
            // Who hears of a branch that was lost before looks anyway.
            if changes.get(&names) != Some(&Change::LostBranch) {
                changes.insert(names, Change::Unloaded(generation));
            }
            drop(changes);
            *place = None;
        }
        drop(place);
        self.forget_empty(names, &slot);
        Ok(unused)
    }

    /// Counters.
    pub fn stats(&self) -> EngineStats {
        let loaded = self.loaded();
        let debts: Vec<Debt> = loaded.iter().map(|timeline| *timeline.layer_set().files.debt()).collect();
        let most = |of: fn(&Debt) -> u64| debts.iter().map(of).max().unwrap_or(0);
        EngineStats {
            timelines_loaded: loaded.len() as u64,
            uncompacted_files_max: most(|debt| debt.level_0_files as u64),
            uncompacted_bytes: debts.iter().map(|debt| debt.level_0_bytes).sum(),
            files_per_read_max: most(|debt| debt.files_per_read() as u64),
            deltas_per_key_max: most(|debt| debt.deltas_per_key),
            compactions_failing: loaded.iter().filter(|timeline| timeline.compaction_failed.lock().is_some()).count()
                as u64,
            memory_layer_bytes: self.shared.memory.load(Ordering::Relaxed) as u64,
            spilled_bytes: loaded.iter().map(|timeline| timeline.spilled_bytes()).sum(),
            page_cache_bytes: self.shared.pages.bytes() as u64,
            page_cache_bytes_max: self.shared.config.page_cache_bytes as u64,
            block_cache_bytes: self.shared.blocks.bytes() as u64,
            block_cache_bytes_max: self.shared.config.block_cache_bytes as u64,
            ..self.shared.stats.read()
        }
    }

    /// What of the engine's own work fails, by timeline. It is tried again, and what is said here goes when it works.
    pub fn problems(&self) -> Vec<(TimelineId, String)> {
        let problems = |timeline: &Arc<Timeline>| {
            let (id, is_ours) = (timeline.id(), timeline.owned.load(Ordering::Acquire));
            let flush = timeline.flush_state.lock().last_error.clone().filter(|_| is_ours).map(|error| {
                let consequence =
                    "its layers cannot be written, so its ingest stops when there is no more room for them";
                format!("{consequence}: {}", with_causes(&*error))
            });
            let compaction = timeline.compaction_failed.lock().as_ref().map(|failed| failed.error.clone());
            let compaction = compaction.map(|error| {
                format!(
                    "its compaction fails, so reading it gets slower and its ingest is slowed: {}",
                    with_causes(&*error)
                )
            });
            flush.into_iter().chain(compaction).map(move |text| (id, text))
        };
        self.loaded().iter().flat_map(problems).collect()
    }

    /// Says what time it is, since the Unix epoch, by which leases end: until it is told, none does. The caller answers for it: what is
    /// given up since a clock went wrong does not come back.
    pub fn tell_time(&self, now: Duration) {
        self.shared.tell_time(now.as_secs());
    }

    /// A timeline, unless it would have to be loaded for it.
    pub fn if_loaded(&self, tenant: TenantId, timeline: TimelineId) -> Option<Arc<Timeline>> {
        let slot = self.slots.lock().get(&TimelineNames { tenant, timeline }).cloned()?;
        slot.try_lock().and_then(|place| place.clone())
    }

    /// How many timelines are loaded.
    pub fn loaded_timelines(&self) -> usize {
        self.loaded().len()
    }

    /// Ends the background threads and makes everything ingested durable. The first error is returned, after all timelines were tried;
    /// nothing is lost by one, as WAL comes again.
    pub fn shutdown(&self) -> Result<(), Arc<CommitError>> {
        if let Some(background) = self.background.lock().take() {
            background.stop();
        }
        let (mut result, mut left) = (Ok(()), 0);
        for timeline in self.loaded() {
            // A store that is away lets every call wait. Nothing is lost: what is not in it comes again as WAL.
            if self.shared.is_store_away() {
                left += u64::from(timeline.has_unflushed());
                continue;
            }
            result = result.and(timeline.flush());
        }
        if left > 0 {
            tracing::warn!(
                timelines = left,
                "the store is away: what it does not have of these is read again from the safekeepers at the next start"
            );
        }
        result
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(background) = self.background.get_mut().take() {
            background.stop();
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("local_dir", &self.shared.config.local_dir).finish_non_exhaustive()
    }
}

fn take_lock(folder: &Path) -> Result<Flock<fs::File>, OpenError> {
    let path = folder.join("lock");
    let text = path.display().to_string();
    let file = fs::File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| OpenError::Folder { path: text.clone(), source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => OpenError::Locked { path: text },
        other => OpenError::Folder { path: text, source: other.into() },
    })
}

/// A weak handle, for threads that must not keep the engine alive.
pub(crate) type WeakEngine = Weak<Engine>;
