//! What manifests, layer files and pages hold, for people who look into a store. Reads the store alone, beside page servers that use
//! it; what is only in a page server's memory is not seen.

use std::sync::Arc;

use ardent_object_store::{ErrorKind, ObjectName, ObjectStore, PieceStore, StoreError, list_all};
use ardent_types::{Key, Lsn, TenantId, TimelineId};
use serde::Serialize;

use crate::clock_cache::ClockCache;
use crate::config::{PostgresRedo, Redo};
use crate::error::CorruptFile;
use crate::layer::{Layer, LayerDesc, LayerError, LayerKind, describe};
use crate::layer_map::LayerMap;
use crate::manifest::Manifest;
use crate::manifest_log::newest_generation;
use crate::object_names::{TimelineNames, tenant_prefix};
use crate::stored_key::StoredKey;
use crate::version::{Gathered, Version, VersionKind};

/// Size of the block cache of one look.
const CACHE_BYTES: usize = 16 << 20;

/// A look into the store failed.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// There is no such thing.
    #[error("there is no {what} in this store")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// A file is damaged.
    #[error(transparent)]
    Corrupt(#[from] CorruptFile),
    /// The store failed.
    #[error("the object store failed")]
    Store(#[from] StoreError),
}

impl From<LayerError> for InspectError {
    fn from(error: LayerError) -> Self {
        match error {
            LayerError::Corrupt(error) => InspectError::Corrupt(error.into()),
            LayerError::Store(error) => InspectError::Store(error),
        }
    }
}

/// A version of a key in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VersionInfo {
    /// The timeline whose file it is.
    pub timeline: Option<TimelineId>,
    /// The file.
    pub file: String,
    /// The key.
    pub key: String,
    /// Its LSN.
    pub lsn: Lsn,
    /// `image`, `record_init`, `record`, `delta`, `unreadable` or `hole`.
    pub kind: &'static str,
    /// Length of its value.
    pub bytes: u64,
}

/// A layer file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerInfo {
    /// The object.
    pub object: String,
    /// `delta` or `image`.
    pub kind: &'static str,
    /// First key that it speaks for.
    pub first_key: String,
    /// Last key that it speaks for.
    pub last_key: String,
    /// Its versions are newer than this.
    pub after: Lsn,
    /// And at or below this; of an image layer: the LSN of the images.
    pub upto: Lsn,
    /// File size.
    pub bytes: u64,
    /// Versions, all of which were read and checked.
    pub versions_checked: u64,
    /// Length of all values before compression.
    pub value_bytes: u64,
    /// Record positions that it holds.
    pub record_positions: usize,
    /// The first versions, as many as were asked for.
    pub versions: Vec<VersionInfo>,
}

/// A manifest.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ManifestInfo {
    /// The object.
    pub object: String,
    /// Its size.
    pub bytes: u64,
    /// What it says; see `docs/formats/manifest.md`.
    pub manifest: serde_json::Value,
}

/// A key at an LSN.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PageInfo {
    /// The key.
    pub key: String,
    /// The LSN.
    pub lsn: Lsn,
    /// Layer files that a read visits.
    pub files_visited: usize,
    /// What files have of the key at or below the LSN, newest first, down to what a read needs and beyond.
    pub versions: Vec<VersionInfo>,
    /// Length of the content; absent: the key is absent there.
    pub content_bytes: Option<u64>,
    /// CRC-32 of the content.
    pub content_crc32: Option<String>,
    /// Why there is no content, if it can't be made.
    pub problem: Option<String>,
}

/// The tenant that has a timeline.
pub fn find_timeline(store: &dyn ObjectStore, timeline: TimelineId) -> Result<TenantId, InspectError> {
    for folder in list_all(store, "timelines/", true)?.folders {
        let tenant: Option<TenantId> =
            folder.strip_prefix("timelines/").and_then(|name| name.strip_suffix('/')?.parse().ok());
        let Some(tenant) = tenant else { continue };
        let folders = list_all(store, &tenant_prefix(tenant), true)?.folders;
        if folders.iter().any(|folder| *folder == TimelineNames { tenant, timeline }.prefix()) {
            return Ok(tenant);
        }
    }
    Err(InspectError::NotFound { what: format!("timeline {timeline}") })
}

/// A layer file, and what the manifest that names it says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedLayer {
    /// The object.
    pub object: ObjectName,
    desc: LayerDesc,
}

/// A timeline's newest manifest.
pub fn inspect_manifest(
    store: &dyn ObjectStore,
    tenant: TenantId,
    timeline: TimelineId,
) -> Result<ManifestInfo, InspectError> {
    let (object, bytes, manifest) = newest(store, TimelineNames { tenant, timeline })?;
    let manifest = serde_json::to_value(&manifest).expect("a manifest is plain data");
    Ok(ManifestInfo { object: object.to_string(), bytes, manifest })
}

/// One manifest.
pub fn inspect_manifest_object(store: &dyn ObjectStore, object: &ObjectName) -> Result<ManifestInfo, InspectError> {
    let bytes = store.get(object).map_err(|error| match error.kind() {
        ErrorKind::NotFound => InspectError::NotFound { what: object.to_string() },
        _ => InspectError::Store(error),
    })?;
    let manifest = decoded(object, &bytes)?;
    let manifest = serde_json::to_value(&manifest).expect("a manifest is plain data");
    Ok(ManifestInfo { object: object.to_string(), bytes: bytes.len() as u64, manifest })
}

/// The layer files that a timeline's newest manifest names.
pub fn layers_of(
    store: &dyn ObjectStore,
    tenant: TenantId,
    timeline: TimelineId,
) -> Result<Vec<NamedLayer>, InspectError> {
    let names = TimelineNames { tenant, timeline };
    let (_, _, manifest) = newest(store, names)?;
    let layers = manifest.layers.into_iter().map(|desc| match names.layer(&desc.file) {
        Some(object) => Ok(NamedLayer { object, desc }),
        None => Err(InspectError::NotFound { what: desc.file }),
    });
    layers.collect()
}

fn decoded(object: &ObjectName, bytes: &[u8]) -> Result<Manifest, CorruptFile> {
    Manifest::decode(bytes).map_err(|expected| CorruptFile {
        file: object.to_string(),
        offset: 0,
        expected,
        keys: "the whole timeline".to_owned(),
    })
}

fn newest(store: &dyn ObjectStore, names: TimelineNames) -> Result<(ObjectName, u64, Manifest), InspectError> {
    // Replaced between the list and the read if a page server is busy.
    for _ in 0..8 {
        let Some(generation) = newest_generation(store, &names)? else { break };
        let object = names.manifest(generation);
        match store.get(&object) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
            Ok(bytes) => {
                let manifest = decoded(&object, &bytes)?;
                return Ok((object, bytes.len() as u64, manifest));
            }
        }
    }
    Err(InspectError::NotFound { what: format!("timeline {}", names.timeline) })
}

/// A layer file, read and checked as a whole, with its first `versions_max` versions.
pub fn inspect_layer(
    store: &Arc<dyn ObjectStore>,
    object: &ObjectName,
    versions_max: usize,
) -> Result<LayerInfo, InspectError> {
    let desc = described(object, describe(&**store, object))?;
    let layer = whole_layer(store, object, desc);
    let versions_checked = layer.verify()?;
    let (mut versions, mut value_bytes) = (Vec::new(), 0);
    let mut cursor = layer.cursor(StoredKey::MIN)?;
    while let Some((key, version)) = cursor.next()? {
        value_bytes += version.bytes.len() as u64;
        if versions.len() < versions_max {
            versions.push(version_info(None, object.file_name(), &key, &version));
        }
    }
    Ok(LayerInfo {
        object: object.to_string(),
        kind: match layer.desc.kind {
            LayerKind::Delta => "delta",
            LayerKind::Image => "image",
        },
        first_key: key_text(&layer.desc.keys.first),
        last_key: key_text(&layer.desc.keys.last),
        after: layer.desc.after,
        upto: layer.desc.upto,
        bytes: layer.desc.bytes,
        versions_checked,
        value_bytes,
        record_positions: layer.boundaries()?.len(),
        versions,
    })
}

/// Reads and checks all that a layer file holds, once, and that it is the file which the manifest describes: how many versions that is.
pub fn verify_layer(store: &Arc<dyn ObjectStore>, layer: &NamedLayer) -> Result<u64, InspectError> {
    let NamedLayer { object, desc } = layer;
    let bytes = described(object, store.head(object).map_err(LayerError::from))?.size_bytes;
    if bytes != desc.bytes {
        let expected = format!("{} bytes of file, as the manifest says, found {bytes}", desc.bytes);
        let (file, keys) = (object.to_string(), desc.keys.to_string());
        return Err(CorruptFile { file, offset: bytes.min(desc.bytes), expected, keys }.into());
    }
    Ok(whole_layer(store, object, desc.clone()).verify()?)
}

/// What was found of a file that may not be there.
fn described<T>(object: &ObjectName, found: Result<T, LayerError>) -> Result<T, InspectError> {
    found.map_err(|error| match error {
        LayerError::Store(error) if error.kind() == ErrorKind::NotFound => {
            InspectError::NotFound { what: object.to_string() }
        }
        error => error.into(),
    })
}

/// A layer file that is read from begin to end: in pieces, as a request for each of its blocks takes long where the store is far away.
fn whole_layer(store: &Arc<dyn ObjectStore>, object: &ObjectName, desc: LayerDesc) -> Arc<Layer> {
    let store = Arc::new(PieceStore::new(store.clone()));
    Layer::new(desc, object.clone(), store, Arc::new(ClockCache::new(CACHE_BYTES)))
}

/// What files have of `key`, and what a read of it at `lsn` makes of that; without, at the last record that is stored.
pub fn inspect_page(
    store: &Arc<dyn ObjectStore>,
    tenant: TenantId,
    timeline: TimelineId,
    key: &Key,
    lsn: Option<Lsn>,
) -> Result<PageInfo, InspectError> {
    let lsn = match lsn {
        Some(lsn) => lsn,
        None => newest(&**store, TimelineNames { tenant, timeline })?.2.last_record.end,
    };
    let stored = StoredKey::from(key);
    let mut info = PageInfo {
        key: key.to_string(),
        lsn,
        files_visited: 0,
        versions: Vec::new(),
        content_bytes: None,
        content_crc32: None,
        problem: None,
    };
    // What each timeline of the chain adds, the asked one first.
    let mut parts: Vec<Gathered> = Vec::new();
    let (mut names, mut upto) = (TimelineNames { tenant, timeline }, lsn);
    let major = loop {
        let (_, _, manifest) = newest(&**store, names)?;
        let map = layer_map(store, &names, &manifest)?;
        for layer in map.layers().iter().filter(|layer| layer.desc.keys.contains(&stored) && layer.desc.after < upto) {
            let mut found = Gathered::default();
            layer.gather(&stored, Lsn::INVALID, upto, &mut found)?;
            let file = layer.desc.file.clone();
            info.versions
                .extend(found.versions().map(|version| version_info(Some(names.timeline), &file, &stored, version)));
        }
        let mut needed = Gathered::default();
        info.files_visited += map.gather(&stored, Lsn::INVALID, upto, &mut needed)?.files;
        let is_complete = needed.complete_from().is_some();
        parts.push(needed);
        match manifest.ancestor.filter(|_| !is_complete) {
            Some(ancestor) => (names.timeline, upto) = (ancestor.timeline, upto.min(ancestor.point.lsn)),
            None => break manifest.facts.pg_major,
        }
    };
    let mut values = parts.into_iter().rev().flat_map(Gathered::into_values).peekable();
    if values.peek().is_some() {
        match PostgresRedo.rebuild(major, key, None, &mut values) {
            Ok(content) if content.is_empty() => {}
            Ok(content) => {
                info.content_bytes = Some(content.len() as u64);
                info.content_crc32 = Some(format!("{:08x}", crc32fast::hash(&content)));
            }
            Err(error) => info.problem = Some(error.to_string()),
        }
    }
    Ok(info)
}

fn layer_map(
    store: &Arc<dyn ObjectStore>,
    names: &TimelineNames,
    manifest: &Manifest,
) -> Result<LayerMap, InspectError> {
    let cache = Arc::new(ClockCache::new(CACHE_BYTES));
    let layers = manifest.layers.iter().map(|desc| {
        let name = names.layer(&desc.file).ok_or_else(|| InspectError::NotFound { what: desc.file.clone() })?;
        Ok(Layer::new(desc.clone(), name, store.clone(), cache.clone()))
    });
    Ok(LayerMap::new(layers.collect::<Result<_, InspectError>>()?))
}

fn version_info(timeline: Option<TimelineId>, file: &str, key: &StoredKey, version: &Version) -> VersionInfo {
    let kind = match version.kind {
        VersionKind::Image => "image",
        VersionKind::RecordInit => "record_init",
        VersionKind::Record => "record",
        VersionKind::Delta => "delta",
        VersionKind::Unreadable => "unreadable",
        VersionKind::Hole => "hole",
    };
    let (file, key) = (file.to_owned(), key_text(key));
    VersionInfo { timeline, file, key, lsn: version.lsn, kind, bytes: version.bytes.len() as u64 }
}

fn key_text(key: &StoredKey) -> String {
    match key.decode() {
        Some(key) => key.to_string(),
        None if *key == StoredKey::MIN => "the first".to_owned(),
        None if *key == StoredKey::MAX => "the last".to_owned(),
        None => hex::encode(key.as_bytes()),
    }
}
