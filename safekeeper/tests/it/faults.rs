//! Death (SIGABRT, as sudden as SIGKILL) and errors at every named write, fsync, rename, removal and upload of a safekeeper: what was
//! acknowledged is there, the same bytes, here or archived, and everything goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ardent_api::addr::ServiceAddr;
use ardent_api::token::{Rights, TokenVerifier};
use ardent_api::wal_service::{CopySource, Member, Membership};
use ardent_object_store::fault::{FailPoints, FaultAction};
use ardent_object_store::{FaultyStore, LocalFolder, list_all};
use ardent_pg_format::segment::wal_file_name;
use ardent_safekeeper::{Safekeeper, SafekeeperConfig, rebuild_with_faults, reconfigure_with_faults};
use ardent_types::{Lsn, MemberGeneration, TimelineId};
use ardent_wal_client::{
    Ancestor, ClientError, Elected, Proposer, ProposerConfig, SafekeeperClient, TimelineSpec, WalReader,
};
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use crate::support::{WalSource, World, reached, read_up_to};

/// Tells a process of this program that it is to be the safekeeper, in which folder, and what is to happen to it.
const CHILD: &str = "ARDENT_FAULTS_SAFEKEEPER";
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many cases run at once: they mostly wait for the disk and for one another.
const AT_ONCE: usize = 12;
const SEGMENT_BYTES: u64 = 1 << 20;

/// Points that are passed while a safekeeper starts, serves and stops.
const SERVING: [&str; 43] = [
    "delete.folder_fsync",
    "delete.remove",
    "delete.rename",
    "join.folder_fsync",
    "join.fsync",
    "join.mkdir",
    "join.rename",
    "local.create",
    "local.folder_fsync",
    "local.fsync",
    "local.link",
    "local.mkdir",
    "local.write",
    "mark.create",
    "mark.folder_fsync",
    "mark.fsync",
    "member.create",
    "member.folder_fsync",
    "member.fsync",
    "member.rename",
    "member.write",
    "state.create",
    "state.folder_fsync",
    "state.fsync",
    "state.rename",
    "state.write",
    "timeline.folder_fsync",
    "timeline.mkdir",
    "timeline.rename",
    "upload.wal",
    "upload.wal.answer",
    "wal.cut",
    "wal.cut_fsync",
    "wal.extend",
    "wal.fill",
    "wal.folder_fsync",
    "wal.found_fsync",
    "wal.fsync",
    "wal.open",
    "wal.remove",
    "wal.trim",
    "wal.uncut",
    "wal.write",
];

/// What happens to a process.
#[derive(Clone, Debug)]
enum Fate {
    /// It counts the points that it passes, and writes the counts down when it ends.
    Counted(PathBuf),
    Struck {
        point: String,
        strike: u64,
        action: FaultAction,
    },
}

impl Fate {
    fn words(&self) -> String {
        match self {
            Fate::Counted(file) => format!("count 0 {}", file.display()),
            Fate::Struck { point, strike, action } => {
                let action = match action {
                    FaultAction::Abort => "abort",
                    FaultAction::DiskFull => "full",
                    _ => "fail",
                };
                format!("{action} {strike} {point}")
            }
        }
    }
}

/// Does nothing, unless this process was started to be the safekeeper: then it runs until its standard input is closed.
#[tokio::test(flavor = "multi_thread")]
async fn be_the_safekeeper() {
    let Ok(spec) = std::env::var(CHILD) else { return };
    let mut words = spec.splitn(4, ' ');
    let mut word = || words.next().unwrap_or_default();
    let (action, strike, what, dir) = (word(), word(), word(), PathBuf::from(word()));
    let faults = Arc::new(FailPoints::new());
    match action {
        "" => {}
        "count" => faults.record(),
        action => {
            let action = match action {
                "abort" => FaultAction::Abort,
                "full" => FaultAction::DiskFull,
                _ => FaultAction::Fail,
            };
            faults.arm(what, strike.parse().expect("a number"), action);
        }
    }
    let key = std::fs::read(dir.join("public-key")).expect("the key");
    let address = ServiceAddr::Unix(dir.join("sk.sock"));
    let folder = LocalFolder::open_with_faults(&dir.join("store"), faults.clone());
    let store = folder.map(|folder| FaultyStore::new(Arc::new(folder), faults.clone(), |_| "wal"));
    let safekeeper = async {
        let mut config = SafekeeperConfig::new(dir.join("data"), vec![address], TokenVerifier::from_public_key(key));
        config.wal_keep_bytes = 0;
        config.archive = Some(Arc::new(store.ok()?));
        config.faults = faults.clone();
        Safekeeper::start(config, CancellationToken::new()).await.ok()
    };
    // One that cannot start ends, and is started again.
    let Some(safekeeper) = safekeeper.await else { return };
    let mut input = Vec::new();
    tokio::io::stdin().read_to_end(&mut input).await.expect("the end of the input");
    safekeeper.shutdown().await;
    if action == "count" {
        let counts: Vec<String> = faults.passed().iter().map(|(point, times)| format!("{point} {times}")).collect();
        std::fs::write(what, counts.join("\n")).expect("written");
    }
}

/// A safekeeper in a process of its own that is started again whenever it is found dead, and a log that is written to it.
struct House {
    world: World,
    dir: tempfile::TempDir,
    address: ServiceAddr,
    process: Option<Child>,
    starts: usize,
    log: Vec<u8>,
}

impl House {
    fn new() -> House {
        let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
        std::fs::write(dir.path().join("public-key"), world.issuer.verifier().public_key()).expect("written");
        let address = ServiceAddr::Unix(dir.path().join("sk.sock"));
        House { world, dir, address, process: None, starts: 0, log: Vec::new() }
    }

    fn start(&mut self, fate: Option<&Fate>) {
        let words = fate.map_or("  ".to_owned(), Fate::words);
        let process = Command::new(std::env::current_exe().expect("a path"))
            .args(["--exact", "faults::be_the_safekeeper"])
            .env(CHILD, format!("{words} {}", self.dir.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.process = Some(process.expect("spawned"));
        self.starts += 1;
    }

    fn keep_up(&mut self) {
        let process = self.process.as_mut().expect("it was started");
        if process.try_wait().expect("a status").is_some() {
            self.start(None);
        }
    }

    /// Ends the process in an orderly way, if it lives.
    fn stop(&mut self) {
        let mut process = self.process.take().expect("it was started");
        drop(process.stdin.take());
        process.wait().expect("reaped");
    }

    fn kill(&mut self) {
        let mut process = self.process.take().expect("it was started");
        process.kill().expect("killed");
        process.wait().expect("reaped");
    }

    /// Tries again until it works, with a process that is up.
    async fn until<T, E: std::fmt::Debug>(
        &mut self,
        what: &str,
        mut attempt: impl AsyncFnMut(&House) -> Result<T, E>,
    ) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.keep_up();
            let error = match attempt(self).await {
                Ok(value) => return value,
                Err(error) => error,
            };
            assert!(Instant::now() < deadline, "not in time: {what}: {error:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn client(&self) -> Result<SafekeeperClient, ClientError> {
        SafekeeperClient::connect(&self.address, self.world.spec.tenant, &self.world.token(Rights::Manage)).await
    }

    async fn reader(&self, from: Lsn) -> Result<WalReader, ClientError> {
        let (spec, token) = (&self.world.spec, self.world.token(Rights::Write));
        WalReader::connect(std::slice::from_ref(&self.address), spec.tenant, spec.timeline, &token, from).await
    }

    async fn create(&mut self, spec: TimelineSpec) {
        self.until("a timeline is made", async |house: &House| house.client().await?.create_timeline(spec).await).await;
    }

    fn acknowledged(&self) -> Lsn {
        self.world.spec.start_lsn.advance(self.log.len() as u64)
    }

    /// A new writer, which must find all that was acknowledged.
    async fn elect(&mut self) -> (Proposer, Elected) {
        let addresses = vec![self.address.clone()];
        let attempt = async |house: &House| {
            let mut config = house.world.proposer_config(&addresses);
            config.election_timeout = Duration::from_secs(1);
            Proposer::elect(config, CancellationToken::new()).await
        };
        let (proposer, elected) = self.until("an election", attempt).await;
        assert_eq!(elected.end_lsn, self.acknowledged(), "all was acknowledged when the last writer left");
        (proposer, elected)
    }

    /// Writes until all of it is committed.
    async fn write(&mut self, proposer: &Proposer, wal: &mut WalSource, pieces: &[usize]) {
        for length in pieces {
            let (start, data) = wal.take(*length);
            proposer.append(start, data).await.expect("queued");
        }
        let (committed, end) = (proposer.committed(), wal.end());
        let is_there = async |_: &House| if *committed.borrow() >= end { Ok(()) } else { Err(*committed.borrow()) };
        self.until("what is written is committed", is_there).await;
    }

    /// Reads everything from the beginning, wherever it is by now.
    async fn read_all(&mut self) {
        let (start, end) = (self.world.spec.start_lsn, self.acknowledged());
        let attempt = async |house: &House| {
            let mut reader = house.reader(start).await?;
            let mut bytes = Vec::new();
            while reader.next_lsn() < end {
                bytes.extend_from_slice(&reader.next().await?.bytes);
            }
            Ok::<_, ClientError>(bytes)
        };
        let bytes = tokio::time::timeout(PATIENCE, self.until("all is read", attempt)).await.expect("in time");
        assert!(bytes == self.log, "other bytes");
    }

    /// Archived, and with it gone from here, is all but the last segment.
    async fn trimmed(&mut self) {
        let size = self.world.spec.wal_segment_size;
        let last = self.acknowledged().segment_start(size);
        let attempt = async |house: &House| {
            // Trimmed is at once when a follower tells its position, and once a second else.
            let mut reader = house.reader(last).await.map_err(|error| error.to_string())?;
            reader.send_position(last).await.map_err(|error| error.to_string())?;
            let mut client = house.client().await.map_err(|error| error.to_string())?;
            let status = client.status(house.world.spec.timeline).await.map_err(|error| error.to_string())?;
            if status.oldest_lsn == last { Ok(()) } else { Err(format!("{status:?}")) }
        };
        self.until("whole segments are archived and trimmed", attempt).await;
    }

    fn wal_file(&self, number: u64) -> PathBuf {
        let spec = &self.world.spec;
        let timeline = self.dir.path().join("data").join(spec.tenant.to_string()).join(spec.timeline.to_string());
        timeline.join("wal").join(wal_file_name(spec.pg_tli, number, spec.wal_segment_size))
    }

    /// What a safekeeper that was killed may leave behind the end of the log: bytes of no whole record, here and in a segment beyond.
    fn tear(&self) {
        use std::os::unix::fs::FileExt as _;
        let (end, size) = (self.acknowledged(), self.world.spec.wal_segment_size);
        let file = std::fs::File::options().write(true).open(self.wal_file(end.segment_number(size))).expect("opened");
        file.write_all_at(&[0xEE; 1000], end.segment_offset(size)).expect("written");
        std::fs::write(self.wal_file(end.segment_number(size) + 1), [0xEE; 1000]).expect("written");
    }
}

/// It joins those that keep a timeline: copies it from another safekeeper, is told who the members are, and forgets it in the end.
async fn join(house: &mut House) {
    let (other_dir, spec) = (house.dir.path().join("other"), house.world.spec);
    std::fs::create_dir(&other_dir).expect("a folder");
    let (tenant, timeline) = (spec.tenant, TimelineId::generate());
    let other = house.world.start(&other_dir).await;
    let address = other.addresses()[0].clone();
    let mut client = house.world.client(&address).await;
    client.create_timeline(TimelineSpec { timeline, ..spec }).await.expect("made");
    let token = house.world.token(Rights::Write);
    let config = ProposerConfig::new(tenant, timeline, vec![address.clone()], token.clone());
    let (proposer, elected) = Proposer::elect(config, CancellationToken::new()).await.expect("elected");
    let mut wal = house.world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(1_200_000);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    proposer.shutdown().await;

    let source = CopySource { tenant, timeline, address, token: token.clone() };
    let copy = async |house: &House| house.client().await?.copy_timeline(source.clone()).await;
    house.until("a timeline is copied", copy).await;
    let disk = house.until("its disk", async |house: &House| house.client().await?.identify().await).await;
    let members = vec![Member { disk, address: house.address.clone() }];
    let membership = Membership { generation: MemberGeneration::new(1), members, ..Membership::default() };
    let membership = house.world.issuer.seal(&membership);
    let tell = async |house: &House| house.client().await?.configure(timeline, membership.clone(), None).await;
    let standing = house.until("it is told of the members", tell).await;
    assert_eq!((standing.disk, standing.flush_lsn, &standing.membership), (disk, wal.end(), &membership));
    // What it holds is what was committed, also if it died with the state half written.
    let status = async |house: &House| house.client().await?.status(timeline).await;
    let status = house.until("a status", status).await;
    assert_eq!((status.flush_lsn, status.commit_lsn), (wal.end(), wal.end()));
    let addresses = [house.address.clone()];
    let read = async |_: &House| {
        let mut reader = WalReader::connect(&addresses, tenant, timeline, &token, spec.start_lsn).await?;
        let mut bytes = Vec::new();
        while reader.next_lsn() < wal.end() {
            bytes.extend_from_slice(&reader.next().await?.bytes);
        }
        Ok::<_, ClientError>(bytes)
    };
    let read = house.until("the copy is read", read).await;
    assert!(read == wal.bytes(), "the copy has other bytes");
    let delete = async |house: &House| house.client().await?.delete_timeline(timeline).await;
    house.until("it forgets the timeline", delete).await;
    other.shutdown().await;
}

/// Two lives of a safekeeper. `fates` are those of the processes that begin them.
async fn live(fates: [Option<&Fate>; 2]) -> House {
    let mut house = House::new();
    let spec = house.world.spec;
    house.start(fates[0]);
    house.create(spec).await;
    let (proposer, elected) = house.elect().await;
    let mut wal = house.world.wal(elected.end_lsn, elected.prev_lsn);
    house.write(&proposer, &mut wal, &[10_000, 300_000, 900_000, 200_000]).await;
    // Another one comes and goes.
    let ancestor = Ancestor { timeline: spec.timeline, lsn: elected.end_lsn };
    let branch = TimelineSpec { timeline: TimelineId::generate(), ancestor: Some(ancestor), ..spec };
    house.create(branch).await;
    let delete = async |house: &House| house.client().await?.delete_timeline(branch.timeline).await;
    house.until("a timeline is deleted", delete).await;
    join(&mut house).await;
    house.write(&proposer, &mut wal, &[5, 1_000_000]).await;
    house.log.extend_from_slice(wal.bytes());
    // A safekeeper that was killed knows from its writer what is committed.
    house.trimmed().await;
    let before = wal.bytes().len();
    house.write(&proposer, &mut wal, &[50_000]).await;
    house.log.extend_from_slice(&wal.bytes()[before..]);
    if matches!(fates[0], Some(Fate::Counted(_))) {
        proposer.shutdown().await;
        house.stop();
    } else {
        // With a commit position on disk that is behind the end of what was acknowledged.
        house.kill();
        proposer.shutdown().await;
    }

    house.tear();
    house.start(fates[1]);
    let (proposer, elected) = house.elect().await;
    let mut wal = house.world.wal(elected.end_lsn, elected.prev_lsn);
    house.write(&proposer, &mut wal, &[70_000, SEGMENT_BYTES as usize]).await;
    house.log.extend_from_slice(wal.bytes());
    // A safekeeper that was killed knows from its writer what is committed.
    house.trimmed().await;
    proposer.shutdown().await;
    house.stop();

    house.start(None);
    let (proposer, _) = house.elect().await;
    house.read_all().await;
    proposer.shutdown().await;
    let listed = house.until("a list", async |house: &House| house.client().await?.list().await).await;
    assert_eq!(listed, [spec.timeline]);
    house.stop();
    let tenant = house.dir.path().join("data").join(spec.tenant.to_string());
    assert_eq!(std::fs::read_dir(tenant).expect("listed").count(), 1, "nothing is left of the other one");
    let store = LocalFolder::attach(&house.dir.path().join("store")).expect("a store");
    let archived = list_all(&store, &format!("timelines/{}/{}/", spec.tenant, spec.timeline), false)
        .expect("listed")
        .objects
        .len() as u64;
    let size = spec.wal_segment_size;
    assert_eq!(archived, house.acknowledged().segment_number(size) - spec.start_lsn.segment_number(size));
    house
}

/// The first, a middle and the last time of so many.
fn strikes(times: u64) -> Vec<u64> {
    let mut strikes = vec![1, times.div_ceil(2), times];
    strikes.dedup();
    strikes
}

/// A case on a thread of its own.
fn run(case: impl Future) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(case);
}

fn counts_of(life: usize) -> BTreeMap<String, u64> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("counts");
    let fate = Fate::Counted(file.clone());
    run(async {
        let mut fates = [None, None];
        fates[life] = Some(&fate);
        let house = live(fates).await;
        assert_eq!(house.starts, 3, "nothing fails by itself");
    });
    let counts = std::fs::read_to_string(file).expect("counts");
    let parsed = counts.lines().map(|line| {
        let (point, times) = line.split_once(' ').expect("a point and a number");
        (point.to_owned(), times.parse().expect("a number"))
    });
    parsed.collect()
}

#[test]
fn what_was_acknowledged_outlives_death_and_errors_at_every_point() {
    let counts = [0, 1].map(counts_of);
    let visited: BTreeSet<&str> = counts.iter().flat_map(BTreeMap::keys).map(String::as_str).collect();
    assert_eq!(visited.into_iter().collect::<Vec<_>>(), SERVING, "every point is visited");
    let mut cases = Vec::new();
    for (life, counts) in counts.into_iter().enumerate() {
        for (point, times) in counts {
            for strike in strikes(times) {
                let error = if strike % 2 == 1 { FaultAction::Fail } else { FaultAction::DiskFull };
                for action in [FaultAction::Abort, error] {
                    cases.push((life, Fate::Struck { point: point.clone(), strike, action }));
                }
            }
        }
    }
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((life, fate)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut fates = [None, None];
                    fates[*life] = Some(fate);
                    // All cases are tried, so that one run tells all that fail.
                    if std::panic::catch_unwind(|| run(live(fates))).is_err() {
                        failed.lock().expect("no panic").push(format!("life {life}: {fate:?}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic");
    assert!(failed.is_empty(), "{} of {} failed: {failed:#?}", failed.len(), cases.len());
}

/// A log in a safekeeper's folder, and its bytes.
async fn written(world: &World, dir: &Path, bytes: usize) -> Vec<u8> {
    let safekeeper = world.start(dir).await;
    let addresses = safekeeper.addresses().to_vec();
    world.create(&addresses).await;
    let (proposer, elected) = world.elect(&addresses).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(bytes);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    proposer.shutdown().await;
    safekeeper.shutdown().await;
    wal.bytes().to_vec()
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("listed") {
        let (entry, from) = entry.map(|entry| (to.join(entry.file_name()), entry.path())).expect("an entry");
        if from.is_dir() {
            copy_folder(&from, &entry);
        } else {
            std::fs::copy(&from, &entry).expect("copied");
        }
    }
}

/// One safekeeper alone has all of the log.
async fn check_alone(world: &World, dir: &Path, log: &[u8], what: &str) {
    let safekeeper = world.start(dir).await;
    let addresses = safekeeper.addresses().to_vec();
    let (proposer, elected) = world.elect(&addresses).await;
    assert_eq!(elected.end_lsn, world.spec.start_lsn.advance(log.len() as u64), "{what}");
    let mut reader = world.reader(&addresses, world.spec.start_lsn).await;
    assert!(read_up_to(&mut reader, elected.end_lsn).await == log, "{what}: other bytes");
    drop(reader);
    proposer.shutdown().await;
    safekeeper.shutdown().await;
}

/// Does what is done while safekeepers stand still, dies at every point of it, and does it again. `change` works on three folders: the first has
/// the whole log, the second a part of it, the third none.
async fn at_every_point(
    points: &[&str],
    change: impl Fn(&Path, &Arc<FailPoints>) -> Result<(), String>,
    has_all: &[&str],
) {
    let (world, made) = (World::new(), tempfile::tempdir().expect("a folder"));
    let (one, two) = (made.path().join("1"), made.path().join("2"));
    std::fs::create_dir(&one).expect("made");
    let part = written(&world, &one, 300_000).await;
    copy_folder(&one, &two);
    let safekeeper = world.start(&one).await;
    let addresses = safekeeper.addresses().to_vec();
    let (proposer, elected) = world.elect(&addresses).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(2 * SEGMENT_BYTES as usize);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    proposer.shutdown().await;
    safekeeper.shutdown().await;
    let log = [&part[..], wal.bytes()].concat();

    let counting = Arc::new(FailPoints::new());
    counting.record();
    let folder = tempfile::tempdir().expect("a folder");
    copy_folder(made.path(), folder.path());
    change(folder.path(), &counting).expect("done");
    let counts = counting.passed();
    assert_eq!(counts.keys().collect::<Vec<_>>(), points, "every point is visited");
    for (point, times) in counts {
        for strike in strikes(times) {
            let what = format!("{point} {strike}");
            let folder = tempfile::tempdir().expect("a folder");
            copy_folder(made.path(), folder.path());
            let faults = Arc::new(FailPoints::new());
            faults.arm(&point, strike, FaultAction::Die);
            change(folder.path(), &faults).expect_err(&what);
            // What stopped in the middle has taken nothing from anybody: going on as before is right as well.
            let before = tempfile::tempdir().expect("a folder");
            copy_folder(folder.path(), before.path());
            check_alone(&world, &before.path().join("1"), &log, &what).await;
            change(folder.path(), &Arc::default()).unwrap_or_else(|error| panic!("{what}: {error}"));
            for name in has_all {
                check_alone(&world, &folder.path().join(name), &log, &what).await;
            }
        }
    }
}

/// Of the files of a state, a log that is loaded and a copy.
const COPYING: [&str; 12] = [
    "copy.folder_fsync",
    "copy.fsync",
    "copy.mkdir",
    "copy.rename",
    "copy.write",
    "state.create",
    "state.folder_fsync",
    "state.fsync",
    "state.rename",
    "state.write",
    "wal.cut",
    "wal.cut_fsync",
];

fn data(folder: &Path, name: &str) -> PathBuf {
    folder.join(name).join("data")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_dies_at_any_point_is_done_again() {
    let points = [&COPYING[..], &["wal.found_fsync", "wal.uncut"]].concat();
    let change = |folder: &Path, faults: &Arc<FailPoints>| {
        let others = [data(folder, "1"), data(folder, "2")];
        let rebuilt = rebuild_with_faults(&data(folder, "3"), &others, 3, |_| true, |_| {}, faults);
        rebuilt.map(|_| ()).map_err(|error| error.to_string())
    };
    at_every_point(&points, change, &["1", "3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_members_that_dies_at_any_point_is_done_again() {
    let mut points = [&COPYING[..], &["copy.exchange", "copy.remove", "wal.found_fsync", "wal.uncut"]].concat();
    points.sort_unstable();
    let change = |folder: &Path, faults: &Arc<FailPoints>| {
        let old = [data(folder, "1"), data(folder, "2")];
        let new = [data(folder, "2"), data(folder, "3")];
        let changed = reconfigure_with_faults(&old, 3, &new, |_| true, |_| {}, faults);
        changed.map(|_| ()).map_err(|error| error.to_string())
    };
    at_every_point(&points, change, &["2", "3"]).await;
}
