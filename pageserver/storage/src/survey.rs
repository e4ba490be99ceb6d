//! What lies in a store, beside what its manifests name: leftovers that can go, and what is missing.
//!
//! Works on the store alone, beside page servers that use it. What it takes for a leftover may be something that is just being
//! made: only what is older than a grace time is removed, and each object is looked at again before it goes.

use std::collections::{BTreeMap, BTreeSet};

use ardent_object_store::{ErrorKind, ObjectMeta, ObjectName, ObjectStore, StoreError, UnfinishedUpload, list_all};
use ardent_types::{Generation, Lsn, TenantId, TimelineId};
use serde::Serialize;

use crate::archived_wal::{is_given_up, is_segment_name};
use crate::error::CorruptFile;
use crate::kept_state::KeptStateHead;
use crate::limits::OLD_MANIFESTS_KEPT;
use crate::manifest::{Ancestor, Manifest};
use crate::object_names::{TimelineNames, WAL_ARCHIVE_MARK, parse_child, parse_manifest};

/// Why an object is a leftover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OrphanKind {
    /// A layer file that no manifest names: a flush or compaction was cut off.
    Layer,
    /// A manifest that newer ones have replaced.
    OldManifest,
    /// Belongs to a timeline whose deletion was cut off.
    DeletedTimeline,
    /// Belongs to no timeline at all.
    NoTimeline,
    /// Holds a branch point for a branch that never came to be.
    BranchMarker,
    /// Part of what a compute left, of a state that is not the one that is kept.
    KeptPart,
    /// Archived WAL from before what is retained.
    OldWal,
    /// Parts of an upload that was cut off.
    UnfinishedUpload,
}

impl OrphanKind {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            OrphanKind::Layer => "layer that no manifest names",
            OrphanKind::OldManifest => "manifest that was replaced",
            OrphanKind::DeletedTimeline => "of a deleted timeline",
            OrphanKind::NoTimeline => "of no timeline",
            OrphanKind::BranchMarker => "pin of a branch that is not there",
            OrphanKind::KeptPart => "part of a state that is not kept",
            OrphanKind::OldWal => "WAL from before what is retained",
            OrphanKind::UnfinishedUpload => "upload that was cut off",
        }
    }
}

/// A leftover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Orphan {
    /// The object's name; of an upload the one that it would have got.
    pub object: String,
    /// Its size; 0 for an upload, of whose parts a list does not tell.
    pub bytes: u64,
    /// Why nothing needs it.
    pub kind: OrphanKind,
    /// When it was written, or the upload begun, seconds since the Unix epoch.
    pub modified_s: u64,
    /// The store's name of the upload, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload: Option<String>,
    #[serde(skip)]
    names: TimelineNames,
}

/// A timeline as its newest manifest has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TimelineSurvey {
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline.
    pub timeline: TimelineId,
    /// Newest manifest.
    pub generation: Generation,
    /// The process that wrote it.
    pub writer: String,
    /// The timeline that it hangs on.
    pub ancestor: Option<TimelineId>,
    /// Where.
    pub ancestor_lsn: Option<Lsn>,
    /// Where the record begins that ends there.
    #[serde(skip)]
    pub ancestor_prev_lsn: Option<Lsn>,
    /// Its import is not complete.
    pub importing: bool,
    /// What the page server was given to keep with it.
    #[serde(skip)]
    pub metadata: BTreeMap<String, serde_json::Value>,
    /// Durable up to here.
    pub last_record_lsn: Lsn,
    /// Retained from here.
    pub retained_from: Lsn,
    /// Layer files.
    pub layers: usize,
    /// Their size.
    pub layer_bytes: u64,
    /// Everything of the timeline in the store: layers, manifests, pins, archived WAL.
    pub stored_bytes: u64,
    /// Branches that hang on it.
    pub children: usize,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Survey {
    /// Timelines that are there.
    pub timelines: Vec<TimelineSurvey>,
    /// Leftovers.
    pub orphans: Vec<Orphan>,
    /// What is damaged or missing, one sentence each.
    pub problems: Vec<String>,
    /// Objects whose names say nothing to this version. Never removed.
    pub unknown: Vec<String>,
    /// Why uploads that were cut off could not be looked for, if the store refused that.
    pub uploads_refused: Option<String>,
}

/// What [`remove_orphans`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RemovedOrphans {
    /// Objects removed.
    pub objects: usize,
    /// Their size.
    pub bytes: u64,
    /// Leftovers that are too young to be sure.
    pub too_young: usize,
}

/// The objects of one timeline.
#[derive(Default)]
struct Folder {
    manifests: BTreeMap<Generation, ObjectMeta>,
    layers: Vec<ObjectMeta>,
    markers: Vec<ObjectMeta>,
    kept: Vec<ObjectMeta>,
    wal: Vec<ObjectMeta>,
}

/// Looks through the whole store.
pub fn survey(store: &dyn ObjectStore) -> Result<Survey, StoreError> {
    let mut survey = Survey::default();
    let mut folders: BTreeMap<TimelineNames, Folder> = BTreeMap::new();
    for object in list_all(store, "", false)?.objects {
        match place_of(&object.name) {
            Some((names, Place::Manifest(generation))) => {
                folders.entry(names).or_default().manifests.insert(generation, object);
            }
            Some((names, Place::Layer)) => folders.entry(names).or_default().layers.push(object),
            Some((names, Place::Marker)) => folders.entry(names).or_default().markers.push(object),
            Some((names, Place::Kept)) => folders.entry(names).or_default().kept.push(object),
            Some((names, Place::Wal)) => folders.entry(names).or_default().wal.push(object),
            None if object.name.as_str() == WAL_ARCHIVE_MARK => {}
            None => survey.unknown.push(object.name.to_string()),
        }
    }
    survey.look_for_uploads(store)?;
    // Who is there, before anybody's pins are judged.
    let mut newest: BTreeMap<TimelineNames, Manifest> = BTreeMap::new();
    for (names, folder) in &folders {
        match newest_manifest(store, names, folder) {
            Ok(Some(manifest)) => {
                newest.insert(*names, manifest);
            }
            Ok(None) => {}
            Err(Unread::Corrupt(error)) => survey.problems.push(error.to_string()),
            Err(Unread::Store(error)) => return Err(error),
        }
    }
    for (names, folder) in &folders {
        match newest.get(names) {
            Some(manifest) => survey.judge(store, names, folder, manifest, &newest)?,
            None if folder.manifests.is_empty() => survey.add_all(names, folder, OrphanKind::NoTimeline),
            // Damaged: nothing of it is judged.
            None => {}
        }
    }
    Ok(survey)
}

impl Survey {
    /// Uploads need no judgement but their age: one that is under way is young, and if it is not, whoever is at it tries again.
    fn look_for_uploads(&mut self, store: &dyn ObjectStore) -> Result<(), StoreError> {
        let uploads = match store.unfinished_uploads() {
            Ok(uploads) => uploads,
            // A right that only this needs, and that credentials from before did not have to have.
            Err(error) if error.kind() == ErrorKind::Denied => {
                self.uploads_refused = Some(error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for upload in uploads {
            match place_of(&upload.name) {
                Some((names, _)) => self.orphans.push(Orphan {
                    object: upload.name.to_string(),
                    bytes: 0,
                    kind: OrphanKind::UnfinishedUpload,
                    modified_s: upload.begun_s,
                    upload: Some(upload.id),
                    names,
                }),
                None => self.unknown.push(upload.name.to_string()),
            }
        }
        Ok(())
    }

    fn judge(
        &mut self,
        store: &dyn ObjectStore,
        names: &TimelineNames,
        folder: &Folder,
        manifest: &Manifest,
        newest: &BTreeMap<TimelineNames, Manifest>,
    ) -> Result<(), StoreError> {
        if manifest.deleted {
            self.add_all(names, folder, OrphanKind::DeletedTimeline);
            return Ok(());
        }
        let sibling = |timeline| TimelineNames { tenant: names.tenant, timeline };
        let is_there = |timeline| newest.get(&sibling(timeline)).is_some_and(|other| !other.deleted);
        if let Some(ancestor) = manifest.ancestor.filter(|ancestor| !is_there(ancestor.timeline)) {
            self.problems
                .push(format!("timeline {} hangs on {}, which is not there", names.timeline, ancestor.timeline));
        }
        let mut children = 0;
        for marker in &folder.markers {
            let child = parse_child(&marker.name);
            match child {
                // A deleted branch takes its pin along.
                Some((child, _)) if newest.contains_key(&sibling(child)) => children += 1,
                _ => self.add(names, marker, OrphanKind::BranchMarker),
            }
        }
        // Whoever still reads by an older manifest may finish.
        let kept = manifest.generation.get().saturating_sub(OLD_MANIFESTS_KEPT);
        let mut named: BTreeSet<String> = manifest.layers.iter().map(|layer| layer.file.clone()).collect();
        for (generation, object) in folder.manifests.range(..manifest.generation) {
            if generation.get() < kept {
                self.add(names, object, OrphanKind::OldManifest);
            } else if let Ok(older) = store.get(&object.name).map(|bytes| Manifest::decode(&bytes)) {
                named.extend(older.into_iter().flat_map(|older| older.layers).map(|layer| layer.file));
            }
        }
        // An import names its files at the very end.
        let unnamed = folder.layers.iter().filter(|layer| !named.contains(layer.name.file_name()));
        for layer in unnamed.filter(|_| !manifest.importing) {
            self.add(names, layer, OrphanKind::Layer);
        }
        if !folder.kept.is_empty() {
            let kept = kept_prefix(store, names)?;
            for part in folder.kept.iter().filter(|part| !is_kept(names, kept.as_deref(), &part.name)) {
                self.add(names, part, OrphanKind::KeptPart);
            }
        }
        let size = manifest.facts.wal_segment_size;
        for segment in folder.wal.iter().filter(|segment| is_given_up(&segment.name, size, manifest.retained_from)) {
            self.add(names, segment, OrphanKind::OldWal);
        }
        self.look_for_missing(store, names, folder, manifest)?;
        let others = folder.layers.iter().chain(&folder.markers).chain(&folder.kept).chain(&folder.wal);
        let objects = folder.manifests.values().chain(others);
        self.timelines.push(TimelineSurvey {
            tenant: names.tenant,
            timeline: names.timeline,
            generation: manifest.generation,
            writer: manifest.writer.clone(),
            ancestor: manifest.ancestor.map(|ancestor| ancestor.timeline),
            ancestor_lsn: manifest.ancestor.map(|ancestor| ancestor.point.lsn),
            ancestor_prev_lsn: manifest.ancestor.map(|ancestor| ancestor.point.prev_lsn),
            importing: manifest.importing,
            metadata: manifest.metadata.clone(),
            last_record_lsn: manifest.last_record.end,
            retained_from: manifest.retained_from,
            layers: manifest.layers.len(),
            layer_bytes: manifest.layers.iter().map(|layer| layer.bytes).sum(),
            stored_bytes: objects.map(|object| object.size_bytes).sum(),
            children,
        });
        Ok(())
    }

    /// Layers that are named and not there, by a manifest that is still the newest.
    fn look_for_missing(
        &mut self,
        store: &dyn ObjectStore,
        names: &TimelineNames,
        folder: &Folder,
        manifest: &Manifest,
    ) -> Result<(), StoreError> {
        let listed: BTreeSet<&str> = folder.layers.iter().map(|layer| layer.name.file_name()).collect();
        for layer in manifest.layers.iter().filter(|layer| !listed.contains(layer.file.as_str())) {
            let Some(name) = names.layer(&layer.file) else { continue };
            match store.head(&name) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
                Ok(_) => continue,
            }
            let is_newest =
                newest_names(store, names)?.last_key_value().is_some_and(|(newest, _)| *newest == manifest.generation);
            if is_newest {
                self.problems.push(format!("{name} is missing; reads of {} are concerned", layer.keys));
            }
        }
        Ok(())
    }

    fn add(&mut self, names: &TimelineNames, object: &ObjectMeta, kind: OrphanKind) {
        self.orphans.push(Orphan {
            object: object.name.to_string(),
            bytes: object.size_bytes,
            kind,
            modified_s: object.modified_s,
            upload: None,
            names: *names,
        });
    }

    /// All objects of a folder, manifests last and the newest at the very end.
    fn add_all(&mut self, names: &TimelineNames, folder: &Folder, kind: OrphanKind) {
        let others = folder.layers.iter().chain(&folder.markers).chain(&folder.kept).chain(&folder.wal);
        for object in others.chain(folder.manifests.values()) {
            self.add(names, object, kind);
        }
    }
}

/// Removes the leftovers that were written before `before_s` (seconds since the Unix epoch) and are leftovers still.
pub fn remove_orphans(store: &dyn ObjectStore, survey: &Survey, before_s: u64) -> Result<RemovedOrphans, StoreError> {
    let mut removed = RemovedOrphans::default();
    let mut of_timeline: BTreeMap<TimelineNames, Vec<&Orphan>> = BTreeMap::new();
    for orphan in &survey.orphans {
        of_timeline.entry(orphan.names).or_default().push(orphan);
    }
    for (names, orphans) in of_timeline {
        let is_deletion = |orphan: &&Orphan| orphan.kind == OrphanKind::DeletedTimeline;
        if orphans.iter().any(is_deletion) && orphans.iter().any(|orphan| orphan.modified_s >= before_s) {
            // All of it or nothing: it goes in an order that can be taken up again.
            removed.too_young += orphans.len();
            continue;
        }
        for (at, orphan) in orphans.iter().enumerate() {
            if orphan.modified_s >= before_s {
                removed.too_young += 1;
                continue;
            }
            if !still_unneeded(store, &names, orphan)? {
                continue;
            }
            let is_first_manifest = is_deletion(orphan)
                && orphan.object.starts_with(&names.manifests())
                && !orphans[..at].iter().any(|earlier| earlier.object.starts_with(&names.manifests()));
            if is_first_manifest {
                remove_pin_at_parent(store, &names)?;
            }
            remove(store, &names, orphan)?;
            removed.objects += 1;
            removed.bytes += orphan.bytes;
        }
    }
    Ok(removed)
}

fn remove(store: &dyn ObjectStore, names: &TimelineNames, orphan: &Orphan) -> Result<(), StoreError> {
    let name = name_of(&orphan.object);
    if let Some(id) = &orphan.upload {
        return store.give_up_upload(&UnfinishedUpload { name, id: id.clone(), begun_s: orphan.modified_s });
    }
    store.delete(&name)?;
    // A branch that came to be at this very moment keeps its pin: its maker looks for it afterwards, and so do we.
    if let Some((child, _)) = parse_child(&name).filter(|_| orphan.kind == OrphanKind::BranchMarker) {
        let child = TimelineNames { tenant: names.tenant, timeline: child };
        if !newest_names(store, &child)?.is_empty() {
            store.put(&name, b"")?;
        }
    }
    Ok(())
}

/// Whether an object is a leftover at this moment as well.
fn still_unneeded(store: &dyn ObjectStore, names: &TimelineNames, orphan: &Orphan) -> Result<bool, StoreError> {
    let manifests = newest_names(store, names)?;
    let newest = manifests.last_key_value();
    match orphan.kind {
        OrphanKind::DeletedTimeline | OrphanKind::UnfinishedUpload => Ok(true),
        // What is given up does not come back.
        OrphanKind::OldWal => Ok(newest.is_some()),
        OrphanKind::NoTimeline => Ok(newest.is_none()),
        OrphanKind::OldManifest => Ok(newest.is_some_and(|(newest, _)| {
            parse_manifest(&name_of(&orphan.object)).is_some_and(|old| old.get() + OLD_MANIFESTS_KEPT < newest.get())
        })),
        OrphanKind::BranchMarker => {
            let Some((child, _)) = parse_child(&name_of(&orphan.object)) else { return Ok(false) };
            let child = TimelineNames { tenant: names.tenant, timeline: child };
            Ok(newest_names(store, &child)?.is_empty())
        }
        OrphanKind::KeptPart => {
            let kept = kept_prefix(store, names)?;
            Ok(!is_kept(names, kept.as_deref(), &name_of(&orphan.object)))
        }
        OrphanKind::Layer => {
            let file = orphan.object.rsplit('/').next().unwrap_or_default();
            for object in manifests.values() {
                match store.get(&object.name) {
                    Ok(bytes) => match Manifest::decode(&bytes) {
                        Ok(manifest) if !manifest.layers.iter().any(|layer| layer.file == file) => {}
                        _ => return Ok(false),
                    },
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(newest.is_some())
        }
    }
}

/// Where the parts of the state that is kept are; `None` if there is none, or nobody can tell.
fn kept_prefix(store: &dyn ObjectStore, names: &TimelineNames) -> Result<Option<String>, StoreError> {
    match store.get(&names.kept_head()) {
        Ok(bytes) => Ok(KeptStateHead::decode(&bytes).ok().map(|head| names.kept_parts(head.id))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_kept(names: &TimelineNames, kept: Option<&str>, name: &ObjectName) -> bool {
    *name == names.kept_head() || kept.is_some_and(|kept| name.as_str().starts_with(kept))
}

/// The pin that a deleted timeline still has at the timeline that it hung on.
fn remove_pin_at_parent(store: &dyn ObjectStore, names: &TimelineNames) -> Result<(), StoreError> {
    let folder = Folder { manifests: newest_names(store, names)?, ..Folder::default() };
    if let Ok(Some(Manifest { ancestor: Some(Ancestor { timeline, point }), .. })) =
        newest_manifest(store, names, &folder)
    {
        let parent = TimelineNames { tenant: names.tenant, timeline };
        store.delete(&parent.child(names.timeline, point))?;
    }
    Ok(())
}

fn newest_names(
    store: &dyn ObjectStore,
    names: &TimelineNames,
) -> Result<BTreeMap<Generation, ObjectMeta>, StoreError> {
    let listed = list_all(store, &names.manifests(), false)?.objects;
    Ok(listed.into_iter().filter_map(|object| Some((parse_manifest(&object.name)?, object))).collect())
}

enum Unread {
    Corrupt(CorruptFile),
    Store(StoreError),
}

/// The newest manifest of a folder. One that was replaced since it was listed gives way to what is the newest then.
fn newest_manifest(
    store: &dyn ObjectStore,
    names: &TimelineNames,
    folder: &Folder,
) -> Result<Option<Manifest>, Unread> {
    let mut listed = folder.manifests.last_key_value().map(|(_, object)| object.name.clone());
    while let Some(name) = listed {
        match store.get(&name) {
            Ok(bytes) => {
                let corrupt = |expected| CorruptFile {
                    file: name.to_string(),
                    offset: 0,
                    expected,
                    keys: "the whole timeline".to_owned(),
                };
                return Manifest::decode(&bytes).map(Some).map_err(|expected| Unread::Corrupt(corrupt(expected)));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Unread::Store(error)),
        }
        let now = newest_names(store, names).map_err(Unread::Store)?;
        listed = now.last_key_value().map(|(_, object)| object.name.clone()).filter(|next| *next != name);
    }
    Ok(None)
}

enum Place {
    Manifest(Generation),
    Layer,
    Marker,
    Kept,
    Wal,
}

/// What an object's name says that it is.
fn place_of(name: &ObjectName) -> Option<(TimelineNames, Place)> {
    let mut parts = name.as_str().strip_prefix("timelines/")?.splitn(4, '/');
    let names = TimelineNames { tenant: parts.next()?.parse().ok()?, timeline: parts.next()?.parse().ok()? };
    let place = match (parts.next()?, parts.next()?) {
        ("manifest", file) if !file.contains('/') => Place::Manifest(parse_manifest(name)?),
        ("layers", file) if !file.contains('/') => Place::Layer,
        ("kept", _) => Place::Kept,
        ("wal", file) if is_segment_name(file) => Place::Wal,
        ("children", _) => parse_child(name).map(|_| Place::Marker)?,
        _ => return None,
    };
    Some((names, place))
}

fn name_of(text: &str) -> ObjectName {
    ObjectName::new(text).expect("the store listed it")
}
