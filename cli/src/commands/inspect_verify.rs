//! `ardent inspect store --verify`: reads all layer files of a store, several at once.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use ardent_object_store::ObjectStore;
use ardent_storage::{CorruptFile, InspectError, NamedLayer, TimelineSurvey, layers_of, verify_layer};

use crate::output::Output;

/// Layers that are read at once: each has up to 6 MiB of its file in memory, besides the values that it is at.
const LAYERS_AT_ONCE: usize = 4;
/// How often the time that it has taken is shown anew.
const TICK: Duration = Duration::from_secs(1);

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Verified {
    /// Layer files that are whole.
    pub(super) layers: usize,
    /// Damaged ones, by name.
    pub(super) damaged: Vec<CorruptFile>,
}

/// Reads and checks all layers of these timelines. A terminal is shown how far it is.
pub(super) fn verify_layers(
    output: &Output,
    store: &Arc<dyn ObjectStore>,
    timelines: &[TimelineSurvey],
) -> Result<Verified, InspectError> {
    let bar = bar(output);
    bar.set_length(timelines.iter().map(|timeline| timeline.layers as u64).sum());
    let verified = named_layers(&**store, timelines).and_then(|layers| {
        bar.set_length(layers.len() as u64);
        verify_all(&layers, &bar, |layer| verify_layer(store, layer))
    });
    bar.finish_and_clear();
    verified
}

fn named_layers(store: &dyn ObjectStore, timelines: &[TimelineSurvey]) -> Result<Vec<NamedLayer>, InspectError> {
    let mut layers = Vec::new();
    for timeline in timelines {
        layers.extend(layers_of(store, timeline.tenant, timeline.timeline)?);
    }
    Ok(layers)
}

fn bar(output: &Output) -> ProgressBar {
    if output.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    // The template is fixed; were it wrong, the default look does.
    if let Ok(style) = ProgressStyle::with_template("verifying    [{bar:30}] {pos}/{len} layers {elapsed} {eta} left") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(TICK);
    bar
}

fn verify_all<L: Sync>(
    layers: &[L],
    bar: &ProgressBar,
    verify: impl Fn(&L) -> Result<u64, InspectError> + Sync,
) -> Result<Verified, InspectError> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Ok(Verified::default()));
    std::thread::scope(|scope| {
        for _ in 0..LAYERS_AT_ONCE.min(layers.len()) {
            scope.spawn(|| {
                while let Some(layer) = layers.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = verify(layer);
                    bar.inc(1);
                    if !note(&mut found.lock(), outcome) {
                        break;
                    }
                }
            });
        }
    });
    let mut verified = found.into_inner()?;
    verified.damaged.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(verified)
}

/// Adds how a layer is. Whether there is any use in going on: not once the store has failed.
fn note(found: &mut Result<Verified, InspectError>, outcome: Result<u64, InspectError>) -> bool {
    let Ok(verified) = found else { return false };
    match outcome {
        Ok(_) => verified.layers += 1,
        Err(InspectError::Corrupt(corrupt)) => verified.damaged.push(corrupt),
        // It is in the list of what is missing, or was compacted away meanwhile.
        Err(InspectError::NotFound { .. }) => {}
        Err(error) => *found = Err(error),
    }
    found.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    use ardent_object_store::{ErrorKind, MemoryStore, ObjectName, StoreError};
    use ardent_storage::inspect_layer;

    fn name(number: usize) -> ObjectName {
        ObjectName::new(format!("layers/{number:02}")).expect("a name")
    }

    #[test]
    fn all_are_looked_at_and_what_is_damaged_is_named_in_order() {
        let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new());
        let layers: Vec<ObjectName> = (0..20).map(name).collect();
        for layer in layers.iter().step_by(2) {
            store.put(layer, &[0; 1000]).expect("put");
        }
        let bar = ProgressBar::hidden();
        let verify = |layer: &ObjectName| inspect_layer(&store, layer, 0).map(|info| info.versions_checked);
        let verified = verify_all(&layers, &bar, verify).expect("the store answers");
        let damaged: Vec<&str> = verified.damaged.iter().map(|corrupt| corrupt.file.as_str()).collect();
        let expect: Vec<&str> = layers.iter().step_by(2).map(ObjectName::as_str).collect();
        assert_eq!((verified.layers, damaged, bar.position()), (0, expect, 20));
    }

    #[test]
    fn a_store_that_fails_ends_it() {
        let mut found = Ok(Verified::default());
        assert!(note(&mut found, Ok(7)));
        assert_eq!(found.as_ref().map(|verified| verified.layers).ok(), Some(1));
        let away = StoreError::new(ErrorKind::Retry, "get", "layers/1", "nobody listens");
        assert!(!note(&mut found, Err(away.into())));
        assert!(!note(&mut found, Ok(7)), "what the others still find changes nothing");
        assert!(matches!(found, Err(InspectError::Store(_))));
    }
}
