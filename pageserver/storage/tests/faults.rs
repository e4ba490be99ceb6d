//! Death and errors at every named write, fsync, rename, link, unlink and commit: nothing that was promised is lost, no wrong
//! content is served, and running the same script again finishes it. Death is tried twice: as errors from then on, and as the end of
//! a process of its own.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ardent_object_store::fault::{FailPoints, FaultAction};
use ardent_storage::{Engine, EngineConfig, Timeline};
use ardent_types::Lsn;
use bytes::Bytes;
use support::*;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// What the script was told is durable.
#[derive(Default)]
struct Promised {
    durable: Lsn,
    branch: Option<Lsn>,
    deleted: bool,
    /// Print each promise when it is made, for the process that started this one.
    is_told: bool,
}

impl Promised {
    fn tell(&self) {
        if self.is_told {
            let branch = self.branch.map_or(0, Lsn::get);
            println!("{PROMISED} {} {branch} {}", self.durable.get(), self.deleted);
        }
    }

    /// What a process had told when it ended.
    fn heard(output: &str) -> Promised {
        let Some(last) = output.lines().filter_map(|line| line.split_once(PROMISED)).next_back() else {
            return Promised::default();
        };
        let words: Vec<&str> = last.1.split_whitespace().collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        let branch = Some(lsn(number(1))).filter(|lsn| lsn.is_valid());
        Promised { durable: lsn(number(0)), branch, deleted: words[2] == "true", is_told: false }
    }
}

/// Begins a line that tells of promises.
const PROMISED: &str = "promised:";
/// Tells a process of this test that it is to die, where, and in which folder.
const CHILD: &str = "ARDENT_FAULTS_CHILD";

fn small(folder: &Path, faults: &Arc<FailPoints>) -> EngineConfig {
    EngineConfig {
        open_layer_bytes_max: 3000,
        layer_file_bytes: 600,
        compact_at_l0_files: 3,
        images_at_delta_files: 1,
        ..config(folder, faults)
    }
}

const LAST: u64 = 0x100 + 60 * 8;
const BRANCH_AT: u64 = 0x100 + 30 * 8;

/// Everything that writes, in an order in which all of it happens; can be run any number of times.
fn script(engine: &Engine, promised: &mut Promised) -> Outcome {
    let root = engine.create_root(TENANT, timeline_id(1), facts(0x100))?;
    if root.is_importing() {
        for number in 0..40 {
            root.import_images(&[(block(number * 7 % 40), Bytes::from(format!("i{}", number * 7 % 40)))])?;
        }
        root.finish_import()?;
        promised.durable = promised.durable.max(lsn(0x100));
        promised.tell();
    }
    root.set_metadata("step", "imported".into())?;
    for n in 1..=60 {
        let end = 0x100 + n * 8;
        root.put(vec![(block(n as u32 % 10), lsn(end), delta(format!("+{n}")))], at(end))?;
        if n % 6 == 0 {
            root.flush()?;
            promised.durable = promised.durable.max(lsn(end.max(root.disk_consistent_lsn().get())));
            promised.tell();
        }
        if n % 20 == 0 {
            root.compact()?;
        }
        if n == 30 && promised.branch.is_none() {
            promised.branch = Some(engine.create_branch(TENANT, timeline_id(2), timeline_id(1), Some(lsn(end)))?.lsn);
            promised.tell();
        }
    }
    let branch = engine.timeline(TENANT, timeline_id(2))?;
    branch.put(vec![(block(3), lsn(BRANCH_AT + 8), delta("b"))], at(BRANCH_AT + 8))?;
    branch.flush()?;
    root.lease("l", lsn(BRANCH_AT + 16), std::time::Duration::from_secs(600))?;
    root.collect_garbage(lsn(LAST))?;
    if !promised.deleted {
        engine.create_branch(TENANT, timeline_id(3), timeline_id(1), None)?;
        engine.delete_timeline(TENANT, timeline_id(3))?;
        promised.deleted = true;
        promised.tell();
    }
    Ok(())
}

fn expected(number: u32, upto: u64) -> Option<String> {
    let deltas = (1..=60).filter(|n| *n as u32 % 10 == number && 0x100 + n * 8 <= upto).map(|n| format!("+{n}"));
    (number < 40).then(|| format!("i{number}{}", deltas.collect::<String>()))
}

fn check(engine: &Engine) {
    let root = engine.timeline(TENANT, timeline_id(1)).unwrap();
    let branch = engine.timeline(TENANT, timeline_id(2)).unwrap();
    let compare = |timeline: &Timeline, number: u32, upto: u64, tail: &str| {
        let expect = expected(number, upto.min(if tail.is_empty() { LAST } else { BRANCH_AT }));
        assert_eq!(
            text(timeline, block(number), upto),
            expect.map(|text| format!("{text}{tail}")),
            "block {number} at {upto:#x}"
        );
    };
    for number in 0..45 {
        compare(&root, number, LAST, "");
        compare(&root, number, BRANCH_AT + 16, "");
        compare(&branch, number, BRANCH_AT, "");
        if number == 3 {
            compare(&branch, number, BRANCH_AT + 8, "b");
        }
    }
    assert_eq!(root.get_metadata("step"), Some("imported".into()));
    let mut ids = engine.list(TENANT).unwrap();
    ids.sort();
    assert_eq!(ids, [timeline_id(1), timeline_id(2)]);
}

/// After a death: what was promised is there, before anything is done again.
fn check_promises(engine: &Engine, promised: &Promised) {
    if promised.durable.is_valid() {
        let root = engine.timeline(TENANT, timeline_id(1)).unwrap();
        assert!(root.disk_consistent_lsn() >= promised.durable);
        assert!(!root.is_importing());
        let upto = root.last_record().end.get();
        for number in 0..45 {
            if root.retained_from().get() <= upto {
                assert_eq!(text(&root, block(number), upto), expected(number, upto));
            }
        }
    }
    if let Some(at) = promised.branch {
        let branch = engine.timeline(TENANT, timeline_id(2)).unwrap();
        assert_eq!(branch.ancestor().unwrap().point.lsn, at);
    }
    if promised.deleted {
        assert!(engine.timeline(TENANT, timeline_id(3)).is_err());
    }
}

/// All points that the script passes, and when to strike at each: the first times, the last, and one between.
fn points() -> Vec<(String, u64)> {
    let folder = tempfile::tempdir().unwrap();
    let faults = Arc::new(FailPoints::new());
    faults.record();
    let engine = Engine::open(small(folder.path(), &faults)).unwrap();
    script(&engine, &mut Promised::default()).unwrap();
    check(&engine);
    let passed = faults.passed();
    let expected = [
        "layer.create",
        "layer.finish",
        "layer.write",
        "local.create",
        "local.file_fsync",
        "local.folder_fsync",
        "local.fsync",
        "local.link",
        "local.rename",
        "local.unlink",
        "local.write",
        "manifest.after",
        "manifest.before",
    ];
    assert_eq!(passed.keys().collect::<Vec<_>>(), expected, "the script passes every fail point");
    let mut points = Vec::new();
    for (name, times) in passed {
        let mut strikes = vec![1, 2, 3, 5, 9, times / 2, times * 3 / 4, times.saturating_sub(1), times];
        strikes.retain(|strike| (1..=times).contains(strike));
        strikes.sort_unstable();
        strikes.dedup();
        points.extend(strikes.into_iter().map(|strike| (name.clone(), strike)));
    }
    points
}

/// Runs `case` for every point, several at a time: they mostly wait for the disk.
fn at_every_point(case: impl Fn(&str, u64) + Sync) {
    let points = points();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some((name, strike)) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                    case(name, *strike);
                }
            });
        }
    });
}

#[test]
fn death_at_any_point_loses_nothing_that_was_promised() {
    at_every_point(|name, strike| {
        let folder = tempfile::tempdir().unwrap();
        let faults = Arc::new(FailPoints::new());
        let mut promised = Promised::default();
        {
            let engine = Engine::open(small(folder.path(), &faults)).unwrap();
            faults.arm(name, strike, FaultAction::Die);
            let outcome = script(&engine, &mut promised);
            // Where a failure to tidy up is only logged, the script can end before it notices that it is dead.
            assert!(faults.is_dead(), "{name} {strike}: {outcome:?}");
        }
        let engine = Engine::open(small(folder.path(), &Arc::new(FailPoints::new()))).unwrap();
        check_promises(&engine, &promised);
        script(&engine, &mut promised).unwrap_or_else(|error| panic!("after death at {name} {strike}: {error:?}"));
        check(&engine);
    });
}

#[test]
fn a_process_that_ends_at_any_point_has_kept_what_it_promised() {
    let program = std::env::current_exe().unwrap();
    at_every_point(|name, strike| {
        let folder = tempfile::tempdir().unwrap();
        let child = std::process::Command::new(&program)
            .args(["--exact", "the_process_that_ends", "--nocapture", "--test-threads=1"])
            .env(CHILD, format!("{name} {strike} {}", folder.path().display()))
            .stderr(std::process::Stdio::null())
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(child.status.code().is_none(), "it did not die at {name} {strike}: {told}");
        let mut promised = Promised::heard(&told);
        let engine = Engine::open(small(folder.path(), &Arc::new(FailPoints::new()))).unwrap();
        check_promises(&engine, &promised);
        script(&engine, &mut promised).unwrap_or_else(|error| panic!("after death at {name} {strike}: {error:?}"));
        check(&engine);
    });
}

/// Not a test by itself: what the one above starts.
#[test]
fn the_process_that_ends() {
    let Ok(spec) = std::env::var(CHILD) else { return };
    let mut words = spec.splitn(3, ' ');
    let mut word = || words.next().unwrap();
    let (name, strike, folder) = (word(), word().parse().unwrap(), word());
    let faults = Arc::new(FailPoints::new());
    let engine = Engine::open(small(Path::new(folder), &faults)).unwrap();
    faults.arm(name, strike, FaultAction::Abort);
    let mut promised = Promised { is_told: true, ..Promised::default() };
    script(&engine, &mut promised).unwrap();
}

#[test]
fn an_error_or_a_full_disk_at_any_point_is_over_when_it_is_over() {
    at_every_point(|name, strike| {
        // Odd strikes fail, even ones find the disk full.
        let action = if strike % 2 == 1 { FaultAction::Fail } else { FaultAction::DiskFull };
        let folder = tempfile::tempdir().unwrap();
        let faults = Arc::new(FailPoints::new());
        let mut promised = Promised::default();
        let engine = Engine::open(small(folder.path(), &faults)).unwrap();
        faults.arm(name, strike, action);
        let first = script(&engine, &mut promised);
        let second = script(&engine, &mut promised);
        second.unwrap_or_else(|error| panic!("after {action:?} at {name} {strike}, which gave {first:?}: {error:?}"));
        check(&engine);
        drop(engine);
        let engine = Engine::open(small(folder.path(), &Arc::new(FailPoints::new()))).unwrap();
        check_promises(&engine, &promised);
    });
}

#[test]
fn checklist_57_layers_newer_than_the_manifest_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let faults = Arc::new(FailPoints::new());
    {
        let engine = Engine::open(small(folder.path(), &faults)).unwrap();
        let root = empty_root(&engine, 1);
        root.put(vec![(block(0), lsn(0x110), image("a"))], at(0x110)).unwrap();
        faults.arm("manifest.before", 1, FaultAction::Die);
        root.flush().unwrap_err();
    }
    let layers =
        folder.path().join("store/timelines").join(TENANT.to_string()).join(timeline_id(1).to_string()).join("layers");
    assert_eq!(std::fs::read_dir(&layers).unwrap().count(), 2, "the root's image layer and the orphan");
    let engine = Engine::open(small(folder.path(), &Arc::new(FailPoints::new()))).unwrap();
    let root = engine.timeline(TENANT, timeline_id(1)).unwrap();
    assert_eq!(root.last_record().end, lsn(0x100));
    assert_eq!(std::fs::read_dir(&layers).unwrap().count(), 1);
    root.put(vec![(block(0), lsn(0x110), image("b"))], at(0x110)).unwrap();
    assert_eq!(text(&root, block(0), 0x110).as_deref(), Some("b"));
}

#[test]
fn of_two_page_servers_with_one_timeline_exactly_one_can_commit() {
    let folder = tempfile::tempdir().unwrap();
    let first = Engine::open(small(folder.path(), &Arc::new(FailPoints::new()))).unwrap();
    let mut other = small(folder.path(), &Arc::new(FailPoints::new()));
    other.local_dir = folder.path().join("other");
    let second = Engine::open(other).unwrap();
    empty_root(&first, 1).flush().unwrap();
    let (one, two) =
        (first.timeline(TENANT, timeline_id(1)).unwrap(), second.timeline(TENANT, timeline_id(1)).unwrap());
    for timeline in [&one, &two] {
        timeline.put(vec![(block(0), lsn(0x110), image("a"))], at(0x110)).unwrap();
    }
    two.flush().unwrap();
    let fenced = one.flush().unwrap_err();
    assert_eq!(fenced.kind(), ardent_storage::ErrorKind::Fenced, "{fenced}");
    let refused = one.put(vec![(block(0), lsn(0x118), image("b"))], at(0x118)).unwrap_err();
    assert_eq!(refused.kind(), ardent_storage::ErrorKind::Fenced);
    // Also long after, when the generations in between are gone and the name of its next manifest is free again.
    for n in 0..10 {
        two.put(Vec::new(), at(0x118 + n * 8)).unwrap();
        two.flush().unwrap();
    }
    let late = first.create_branch(TENANT, timeline_id(2), timeline_id(1), None).unwrap_err();
    assert_eq!(late.kind(), ardent_storage::ErrorKind::Fenced, "{late}");
    assert_eq!(text(&two, block(0), 0x118).as_deref(), Some("a"));
}
