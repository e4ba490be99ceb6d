//! Frozen layers as local files while they wait for a store that is slower than the disk.
//!
//! ```text
//!  frozen layer in memory ──write──► local file, which reads see and memory is free of ──flush──► object, named by a manifest
//! ```
//!
//! A local file promises nothing: the durable position moves with the manifest (PS-1), and what a crash takes away comes again as WAL.
//! So uploads hold writers back only where there are as many files as debt may have (`debt.rs`).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ardent_object_store::ObjectName;
use ardent_object_store::fault::FailPoints;

use crate::error::CommitError;
use crate::flush::write_frozen;
use crate::layer::{FinishedLayer, Layer, LayerDesc, LayerError};
use crate::layer_map::{Frozen, Versions};
use crate::timeline::Timeline;

/// What a local file's name begins with.
pub(crate) const SPILLED: &str = "spilled-";
/// A file that has waited for longer than this is read before it is uploaded: memory does not have what it should hold any more.
const TRUSTED_FOR: Duration = Duration::from_secs(10);

/// A frozen layer's local file. It goes when the last reader is done with it.
pub(crate) struct Spilled {
    pub(crate) layer: Arc<Layer>,
    path: PathBuf,
    written: Instant,
    /// Whether storing it was tried before.
    was_tried: AtomicBool,
}

impl Spilled {
    /// The file under a second name, which whoever stores it may take away.
    pub(crate) fn to_store(&self, second: PathBuf, faults: &FailPoints) -> Result<FinishedLayer, CommitError> {
        if self.was_tried.swap(true, Ordering::Relaxed) || self.written.elapsed() > TRUSTED_FOR {
            match self.layer.verify() {
                Ok(_) => {}
                Err(LayerError::Store(error)) => return Err(error.into()),
                Err(LayerError::Corrupt(error)) => return Err(CommitError::Corrupt(error.into())),
            }
        }
        // There are file systems without a second name for a file.
        let link = || std::fs::hard_link(&self.path, &second).or_else(|_| std::fs::copy(&self.path, &second).map(drop));
        faults.pass("spill.link").and_then(|()| link()).map_err(|source| {
            let path = second.display().to_string();
            CommitError::Local { path, source }
        })?;
        Ok(FinishedLayer { path: second, desc: self.layer.desc.clone() })
    }
}

impl Timeline {
    /// Whether frozen layers become local files before they are stored.
    pub(crate) fn spills(&self) -> bool {
        self.shared.config.spill
    }

    /// Size of the local files that hold its frozen layers.
    pub(crate) fn spilled_bytes(&self) -> u64 {
        let bytes = |frozen: &Arc<Frozen>| match &frozen.versions {
            Versions::Memory(_) => 0,
            Versions::File(spilled) => spilled.layer.desc.bytes,
        };
        self.layer_set().frozen.iter().map(bytes).sum()
    }

    /// Writes frozen layers that are in memory to local files, oldest first.
    pub(crate) fn spill_frozen(&self) -> Result<(), CommitError> {
        loop {
            let set = self.layer_set();
            let Some(frozen) = set.frozen.iter().find(|frozen| frozen.takes_memory()) else { return Ok(()) };
            self.spill_layer(frozen)?;
        }
    }

    /// Writes a frozen layer to a local file, unless somebody has done so, or has flushed it.
    pub(crate) fn spill_layer(&self, frozen: &Frozen) -> Result<(), CommitError> {
        let _spilling = self.spilling.lock();
        let set = self.layer_set();
        let Some(frozen) = set.frozen.iter().find(|now| now.position == frozen.position) else { return Ok(()) };
        let Versions::Memory(memory) = &frozen.versions else { return Ok(()) };
        let name = format!("{SPILLED}{:x}", self.shared.next_number());
        let path = self.shared.temp_folder().join(&name);
        let FinishedLayer { path, desc } = write_frozen(self, frozen, memory, path)?;
        let name = ObjectName::new(&name).expect("a word and a number are a good name");
        let desc = LayerDesc { file: name.to_string(), level: 0, ..desc };
        let layer = Layer::new(desc, name, self.shared.spilled.clone(), self.shared.blocks.clone());
        layer.delete_when_unused();
        let spilled = Arc::new(Spilled { layer, path, written: Instant::now(), was_tried: AtomicBool::new(false) });
        let spilled = Arc::new(Frozen { versions: Versions::File(spilled), ..(**frozen).clone() });
        self.change_layers(|set| {
            // It may have been flushed meanwhile, from memory; then nobody needs the file.
            if let Some(at) = set.frozen.iter().position(|now| now.position == spilled.position) {
                set.frozen[at] = spilled.clone();
            }
        });
        drop(self.flush_state.lock());
        self.flushed.notify_all();
        Ok(())
    }
}
