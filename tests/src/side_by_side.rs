//! Parts of a test that mostly wait.

use std::thread;

/// Runs parts of a test side by side, where each mostly waits and has servers of its own. All of them come to their end; panics with the
/// names of those that have failed, whose threads have said why.
#[track_caller]
pub fn side_by_side(parts: &[(&'static str, fn())]) {
    let failed: Vec<&'static str> = thread::scope(|scope| {
        let begin = |&(name, part): &(&'static str, fn())| {
            let thread = thread::Builder::new().name(name.to_owned());
            (name, thread.spawn_scoped(scope, part).expect("a thread can be started"))
        };
        let running: Vec<_> = parts.iter().map(begin).collect();
        running.into_iter().filter_map(|(name, part)| part.join().is_err().then_some(name)).collect()
    });
    assert!(failed.is_empty(), "failed: {}", failed.join(", "));
}
