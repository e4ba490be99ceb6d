//! Death and errors at every named write, fsync, rename, link, unlink, upload, removal and commit: nothing that was promised is lost, no wrong
//! content is served, and running the same script again finishes it. Death is tried twice: as errors from then on, and as the end of
//! a process of its own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ardent_object_store::fault::{FailPoints, FaultAction};
use ardent_object_store::{FaultyStore, ObjectName};
use ardent_pg_format::segment::wal_file_name;
use ardent_storage::{
    CutRoot, Engine, EngineConfig, KeptStateHead, KeptStateId, Timeline, TimelineFacts, remove_orphans, survey,
};
use ardent_types::{Key, Lsn, Term, WalSegmentSize};
use bytes::Bytes;

use crate::support::*;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// What the script was told is durable.
#[derive(Default)]
struct Promised {
    durable: Lsn,
    branch: Option<Lsn>,
    deleted: bool,
    /// How many of the steps of what is kept for computes were done.
    kept: usize,
    cut: bool,
    /// Print each promise when it is made, for the process that started this one.
    is_told: bool,
}

impl Promised {
    fn tell(&self) {
        if self.is_told {
            let branch = self.branch.map_or(0, Lsn::get);
            println!("{PROMISED} {} {branch} {} {} {}", self.durable.get(), self.deleted, self.kept, self.cut);
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
        let (deleted, kept, cut) = (words[2] == "true", number(3) as usize, words[4] == "true");
        Promised { durable: lsn(number(0)), branch, deleted, kept, cut, is_told: false }
    }
}

/// Begins a line that tells of promises.
const PROMISED: &str = "promised:";
/// Tells a process of this test that it is to die, where, and in which folder.
const CHILD: &str = "ARDENT_FAULTS_CHILD";

/// Small layers, which wait on the disk for a store that may fail at each call.
fn small(folder: &Path, faults: &Arc<FailPoints>) -> EngineConfig {
    let config = config(folder, faults);
    let store = FaultyStore::new(config.store.clone(), faults.clone(), kind_of);
    EngineConfig {
        open_layer_bytes_max: 3000,
        layer_file_bytes: 600,
        compact_at_l0_files: 3,
        images_at_delta_files: 1,
        spill: true,
        store: Arc::new(store),
        ..config
    }
}

/// The folder of a timeline that an object is in.
fn kind_of(name: &ObjectName) -> &'static str {
    let known = ["manifest", "layers", "children", "kept", "wal"];
    let folder = name.as_str().split('/').nth(3).unwrap_or_default();
    known.into_iter().find(|known| *known == folder).unwrap_or("unknown")
}

const LAST: u64 = 0x100 + 60 * 8;
const BRANCH_AT: u64 = 0x100 + 30 * 8;
/// Where the record ends that becomes layers of its own, and its blocks.
const LARGE: u64 = LAST + 8;
const LARGE_BLOCKS: std::ops::Range<u32> = 50..70;
/// Segments that were archived before the timeline began.
const ARCHIVED: u64 = 3;

/// What two computes leave, in steps: the first's, the second's, and that somebody goes on from the second's.
const KEPT: [(u64, &[&str], bool); 3] =
    [(1, &["one", "two"], false), (2, &["three", "four"], false), (2, &["three", "four"], true)];

fn kept_id(term: u64) -> KeptStateId {
    KeptStateId { lsn: lsn(BRANCH_AT), term: Term::new(term) }
}

/// How many of these steps what is kept stands for.
fn kept_steps(head: Option<&KeptStateHead>) -> usize {
    let Some(head) = head else { return 0 };
    let step = KEPT.iter().position(|(term, _, outdated)| kept_id(*term) == head.id && *outdated == head.outdated);
    step.expect("nothing else is kept") + 1
}

fn keep(timeline: &Timeline, promised: &mut Promised) -> Outcome {
    let done = kept_steps(timeline.kept_state()?.as_ref());
    for (step, (term, parts, outdated)) in KEPT.iter().enumerate().skip(done) {
        let id = kept_id(*term);
        if *outdated {
            timeline.outdate_kept_state(id)?;
        } else {
            for (number, part) in (0..).zip(*parts) {
                timeline.keep_part(id, number, part.as_bytes())?;
            }
            timeline.keep_state(id, parts.len() as u32)?;
        }
        promised.kept = step + 1;
        promised.tell();
    }
    // A third gets no further than its first part, which is given up.
    timeline.keep_part(kept_id(3), 0, b"half")?;
    Ok(())
}

/// What is kept is whole, whatever it is.
fn check_kept(timeline: &Timeline) -> usize {
    let head = timeline.kept_state().unwrap();
    let steps = kept_steps(head.as_ref());
    if let Some(head) = head {
        let parts = KEPT[steps - 1].1;
        assert_eq!(head.parts(), parts.len());
        for (number, part) in (0..).zip(parts) {
            assert_eq!(timeline.kept_part(head.id, number).unwrap(), part.as_bytes());
        }
    }
    steps
}

fn large(number: u32) -> String {
    format!("large {number}")
}

/// A record that becomes layers of its own, in several pieces.
fn put_large(timeline: &Timeline, promised: &mut Promised) -> Outcome {
    if timeline.last_record().end < lsn(LARGE) {
        let mut record = timeline.begin_large_record(at(LARGE))?;
        for number in LARGE_BLOCKS {
            record.add(&[(block(number), lsn(LARGE), image(large(number)))])?;
        }
        record.finish()?;
    }
    promised.durable = lsn(LARGE);
    promised.tell();
    Ok(())
}

fn check_large(timeline: &Timeline) {
    for number in LARGE_BLOCKS {
        assert_eq!(text(timeline, block(number), LARGE), Some(large(number)), "block {number}");
    }
}

/// A root cut from what the first one holds.
fn cut(engine: &Engine, promised: &mut Promised) -> Outcome {
    let (timeline, source) = (timeline_id(4), timeline_id(1));
    let (without, metadata) = Default::default();
    engine.cut_root(CutRoot { tenant: TENANT, timeline, source, at: lsn(LAST), without, metadata })?;
    promised.cut = true;
    promised.tell();
    Ok(())
}

fn check_cut(engine: &Engine) {
    let cut = engine.timeline(TENANT, timeline_id(4)).unwrap();
    assert!(!cut.is_importing());
    for number in 0..45 {
        assert_eq!(text(&cut, block(number), LAST), expected(number, LAST), "block {number}");
    }
}

fn late_facts() -> TimelineFacts {
    facts(ARCHIVED * WalSegmentSize::DEFAULT.bytes() + 0x100)
}

fn archived(number: u64) -> ObjectName {
    let file = wal_file_name(late_facts().pg_tli, number, WalSegmentSize::DEFAULT);
    ObjectName::new(format!("timelines/{TENANT}/{}/wal/{file}", timeline_id(5))).unwrap()
}

/// A timeline whose safekeepers have archived WAL that is needed no more.
fn give_up_wal(engine: &Engine) -> Outcome {
    let late = engine.create_root(TENANT, timeline_id(5), late_facts())?;
    if late.is_importing() {
        late.finish_import()?;
    }
    for number in 0..=ARCHIVED {
        engine.config().store.put(&archived(number), b"wal")?;
    }
    // As after a restart: what was looked at before is looked at again.
    if let Err(held) = engine.unload(late) {
        return Err(held.into());
    }
    let late = engine.timeline(TENANT, timeline_id(5))?;
    late.collect_garbage(late_facts().start_lsn)?;
    Ok(())
}

/// What was given up on the way is removed.
fn scrub(engine: &Engine) -> Outcome {
    let store = &*engine.config().store;
    remove_orphans(store, &survey(store)?, u64::MAX)?;
    Ok(())
}

/// Everything that writes, in an order in which all of it happens; can be run any number of times.
fn script(engine: &Engine, promised: &mut Promised) -> Outcome {
    let root = engine.create_root(TENANT, timeline_id(1), facts(0x100))?;
    if root.is_importing() {
        root.import_images(&[(Key::RelSize(REL), Bytes::copy_from_slice(&40_u32.to_le_bytes()))])?;
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
    cut(engine, promised)?;
    put_large(&root, promised)?;
    keep(&branch, promised)?;
    root.lease("l", lsn(BRANCH_AT + 16), std::time::Duration::from_secs(600))?;
    root.collect_garbage(lsn(LAST))?;
    if !promised.deleted {
        engine.create_branch(TENANT, timeline_id(3), timeline_id(1), None)?;
        engine.delete_timeline(TENANT, timeline_id(3))?;
        promised.deleted = true;
        promised.tell();
    }
    give_up_wal(engine)?;
    scrub(engine)
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
    assert_eq!(ids, [1, 2, 4, 5].map(timeline_id));
    check_large(&root);
    check_cut(engine);
    assert_eq!(check_kept(&branch), KEPT.len());
    let store = &*engine.config().store;
    for number in 0..ARCHIVED {
        store.head(&archived(number)).unwrap_err();
    }
    store.head(&archived(ARCHIVED)).unwrap();
    let found = survey(store).unwrap();
    assert_eq!((found.orphans, found.problems, found.unknown), Default::default());
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
        if upto >= LARGE {
            check_large(&root);
        }
    }
    if let Some(at) = promised.branch {
        let branch = engine.timeline(TENANT, timeline_id(2)).unwrap();
        assert_eq!(branch.ancestor().unwrap().point.lsn, at);
        assert!(check_kept(&branch) >= promised.kept);
    }
    if promised.cut {
        check_cut(engine);
    }
    if promised.deleted {
        assert!(engine.timeline(TENANT, timeline_id(3)).is_err());
    }
}

/// All points that the script passes, and when to strike at each: the first times, the last, and one between.
fn points() -> Vec<(String, u64)> {
    let folder = tempfile::tempdir().unwrap();
    let faults = Arc::new(FailPoints::new());
    let config = small(folder.path(), &faults);
    faults.record();
    let engine = Engine::open(config).unwrap();
    script(&engine, &mut Promised::default()).unwrap();
    check(&engine);
    let passed = faults.passed();
    let mut expected: Vec<String> = [
        "import.clear",
        "import.create",
        "import.write",
        "layer.create",
        "layer.finish",
        "layer.write",
        "local.create",
        "local.file_fsync",
        "local.folder_fsync",
        "local.fsync",
        "local.link",
        "local.mkdir",
        "local.rename",
        "local.rmdir",
        "local.unlink",
        "local.write",
        "manifest.after",
        "manifest.before",
        "open.clear",
        "open.mkdir",
        "spill.link",
    ]
    .map(String::from)
    .into();
    for verb in ["remove", "upload"] {
        for kind in ["children", "kept", "layers", "manifest", "wal"] {
            expected.extend([format!("{verb}.{kind}"), format!("{verb}.{kind}.answer")]);
        }
    }
    expected.sort_unstable();
    assert_eq!(passed.keys().cloned().collect::<Vec<_>>(), expected, "the script passes every fail point");
    let mut points = Vec::new();
    for (name, times) in passed {
        let mut strikes = vec![1, 2, 3, 5, 9, times / 2, times * 3 / 4, times.saturating_sub(1), times];
        if name.starts_with("upload.") || name.starts_with("remove.") {
            // The file operations that they are made of are visited as well.
            strikes = vec![1, 2, times / 2, times];
        }
        strikes.retain(|strike| (1..=times).contains(strike));
        strikes.sort_unstable();
        strikes.dedup();
        points.extend(strikes.into_iter().map(|strike| (name.clone(), strike)));
    }
    points
}

/// Opens an engine and runs the script on it, with one point armed.
fn run(
    folder: &Path,
    faults: &Arc<FailPoints>,
    point: &str,
    strike: u64,
    action: FaultAction,
    promised: &mut Promised,
) -> Outcome {
    let config = small(folder, faults);
    faults.arm(point, strike, action);
    let engine = Engine::open(config)?;
    script(&engine, promised)
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
            let outcome = run(folder.path(), &faults, name, strike, FaultAction::Die, &mut promised);
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
            .args(["--exact", "faults::the_process_that_ends", "--nocapture", "--test-threads=1"])
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
    let mut promised = Promised { is_told: true, ..Promised::default() };
    run(Path::new(folder), &faults, name, strike, FaultAction::Abort, &mut promised).unwrap();
}

#[test]
fn an_error_or_a_full_disk_at_any_point_is_over_when_it_is_over() {
    at_every_point(|name, strike| {
        // Odd strikes fail, even ones find the disk full.
        let action = if strike % 2 == 1 { FaultAction::Fail } else { FaultAction::DiskFull };
        let folder = tempfile::tempdir().unwrap();
        let faults = Arc::new(FailPoints::new());
        let mut promised = Promised::default();
        let config = small(folder.path(), &faults);
        faults.arm(name, strike, action);
        let engine = Engine::open(config.clone()).or_else(|_| Engine::open(config)).unwrap();
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
