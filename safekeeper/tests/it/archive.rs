//! WAL that goes to the object store: all of it can be read for good, and the safekeeper's own disk holds what is near.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use ardent_api::addr::ServiceAddr;
use ardent_api::frame::Frame;
use ardent_api::token::Rights;
use ardent_api::wal_service::{ErrorCode, Hello, PROTOCOL_VERSION, Request, Response, TimelineStatus};
use ardent_object_store::{
    ErrorKind, ListPage, ListRequest, MemoryStore, ObjectMeta, ObjectName, ObjectPart, ObjectStore, StoreError,
    UnfinishedUpload, list_all,
};
use ardent_safekeeper::{Safekeeper, StartError};
use ardent_types::{Lsn, Term};
use ardent_wal_client::{ClientError, Elected, Proposer, WalReader};

use crate::support::{WalSource, World, eventually, reached, read_up_to};

/// What is kept behind the commit position, in bytes: two segments.
const KEEP_BYTES: u64 = 2 << 20;
/// What is kept for one that is away: four segments.
const KEEP_FOR_OTHERS_BYTES: u64 = 4 << 20;
const SEGMENT_BYTES: u64 = 1 << 20;

/// A store that can go away.
#[derive(Debug, Default)]
struct Flaky {
    inner: MemoryStore,
    calls_that_fail: AtomicU64,
    gate: Gate,
}

/// Longer than any test waits for something.
const GATE_DEADLINE: Duration = Duration::from_secs(60);

/// Where calls wait while it is closed.
#[derive(Debug, Default)]
struct Gate {
    /// Whether it is closed, and how many calls wait.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().expect("no panic");
        state.1 += 1;
        self.changed.notify_all();
        // A test that has failed opens it no more.
        let (mut state, _) = self.changed.wait_timeout_while(state, GATE_DEADLINE, |state| state.0).expect("no panic");
        state.1 -= 1;
    }

    fn set_closed(&self, is_closed: bool) {
        self.state.lock().expect("no panic").0 = is_closed;
        self.changed.notify_all();
    }

    fn waiting(&self) -> usize {
        self.state.lock().expect("no panic").1
    }
}

impl Flaky {
    fn call(&self, name: &str) -> Result<(), StoreError> {
        self.gate.pass();
        let left = self.calls_that_fail.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        match left {
            Ok(_) => Err(StoreError::new(ErrorKind::Retry, "call", name, "the store is away")),
            Err(_) => Ok(()),
        }
    }
}

impl ObjectStore for Flaky {
    fn put(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        self.call(name.as_str()).and_then(|()| self.inner.put(name, body))
    }
    fn put_if_absent(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        self.call(name.as_str()).and_then(|()| self.inner.put_if_absent(name, body))
    }
    fn put_file(&self, name: &ObjectName, path: &Path) -> Result<(), StoreError> {
        self.call(name.as_str()).and_then(|()| self.inner.put_file(name, path))
    }
    fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.call(name.as_str()).and_then(|()| self.inner.get(name))
    }
    fn get_part(&self, name: &ObjectName, range: std::ops::Range<u64>) -> Result<ObjectPart, StoreError> {
        self.call(name.as_str()).and_then(|()| self.inner.get_part(name, range))
    }
    fn head(&self, name: &ObjectName) -> Result<ObjectMeta, StoreError> {
        self.call(name.as_str()).and_then(|()| self.inner.head(name))
    }
    fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.call(&request.prefix).and_then(|()| self.inner.list(request))
    }
    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.call(name.as_str()).and_then(|()| self.inner.delete(name))
    }
    fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.inner.unfinished_uploads()
    }
    fn give_up_upload(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.inner.give_up_upload(upload)
    }
}

async fn start(world: &World, dir: &Path, store: &Arc<Flaky>) -> Safekeeper {
    let mut config = world.config(dir);
    config.wal_keep_bytes = KEEP_BYTES;
    config.keep_for_others_bytes = KEEP_FOR_OTHERS_BYTES;
    config.archive = Some(Arc::clone(store) as Arc<dyn ObjectStore>);
    Safekeeper::start(config, CancellationToken::new()).await.expect("the safekeeper starts")
}

async fn write(proposer: &Proposer, wal: &mut WalSource, length: usize) {
    let (start, data) = wal.take(length);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
}

async fn status(world: &World, address: &ServiceAddr) -> TimelineStatus {
    world.client(address).await.status(world.spec.timeline).await.expect("status")
}

fn objects(world: &World, store: &Flaky) -> Vec<ObjectName> {
    let folder = format!("timelines/{}/{}/wal/", world.spec.tenant, world.spec.timeline);
    let listed = list_all(&store.inner, &folder, false).expect("listed").objects;
    listed.into_iter().map(|object| object.name).collect()
}

/// A safekeeper with an archive, and a writer that has written.
struct House {
    world: World,
    dir: tempfile::TempDir,
    store: Arc<Flaky>,
    safekeeper: Safekeeper,
    addresses: Vec<ServiceAddr>,
    proposer: Proposer,
    wal: WalSource,
}

impl House {
    /// So many segments' WAL, all that can be of it archived and trimmed.
    async fn with_wal_of(segments: u64) -> House {
        let house = House::writing(Arc::new(Flaky::default()), segments).await;
        trimmed(&house.world, &house.addresses[0], house.wal.end()).await;
        house
    }

    async fn writing(store: Arc<Flaky>, segments: u64) -> House {
        let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
        let safekeeper = start(&world, dir.path(), &store).await;
        let addresses = safekeeper.addresses().to_vec();
        world.create(&addresses).await;
        let (proposer, elected) = world.elect(&addresses).await;
        let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
        write(&proposer, &mut wal, (segments * SEGMENT_BYTES) as usize).await;
        House { world, dir, store, safekeeper, addresses, proposer, wal }
    }

    async fn reader(&self, from: Lsn) -> WalReader {
        self.world.reader(&self.addresses, from).await
    }

    /// Whether a reader from there gets what was written.
    async fn reads_from(&self, from: Lsn) -> bool {
        let offset = from.checked_sub(self.world.spec.start_lsn).expect("after the start") as usize;
        let mut reader = self.reader(from).await;
        read_up_to(&mut reader, self.wal.end()).await == self.wal.bytes()[offset..]
    }

    async fn status(&self) -> TimelineStatus {
        status(&self.world, &self.addresses[0]).await
    }

    async fn close(self) {
        self.proposer.shutdown().await;
        self.safekeeper.shutdown().await;
    }
}

/// Waits until only what is near is on the safekeeper's disk, and all before it in the store.
async fn trimmed(world: &World, address: &ServiceAddr, end: Lsn) {
    trimmed_to(world, address, end, KEEP_BYTES).await;
}

async fn trimmed_to(world: &World, address: &ServiceAddr, end: Lsn, keep_bytes: u64) {
    let near = Lsn::new(end.get() - keep_bytes).segment_start(world.spec.wal_segment_size);
    eventually("what is archived is trimmed", async || status(world, address).await.oldest_lsn == near).await;
}

fn local_segments(world: &World, dir: &Path) -> usize {
    let spec = &world.spec;
    let folder = dir.join("data").join(spec.tenant.to_string()).join(spec.timeline.to_string()).join("wal");
    std::fs::read_dir(folder).expect("the folder").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_that_nobody_has_followed_leaves_the_disk_and_can_be_read_from_its_beginning() {
    let (world, dir, store) = (World::new(), tempfile::tempdir().expect("a folder"), Arc::new(Flaky::default()));
    let safekeeper = start(&world, dir.path(), &store).await;
    let addresses = safekeeper.addresses().to_vec();
    world.create(&addresses).await;
    let (proposer, elected) = world.elect(&addresses).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    // One that reads slowly finds its place trimmed.
    let mut slow = world.reader(&addresses, world.spec.start_lsn).await;
    for _ in 0..8 {
        write(&proposer, &mut wal, SEGMENT_BYTES as usize).await;
    }
    trimmed(&world, &addresses[0], wal.end()).await;
    assert!(local_segments(&world, dir.path()) <= 4, "{}", local_segments(&world, dir.path()));
    let whole = wal.end().segment_number(world.spec.wal_segment_size)
        - world.spec.start_lsn.segment_number(world.spec.wal_segment_size);
    assert_eq!(objects(&world, &store).len() as u64, whole, "each whole segment, and no other");
    assert!(read_up_to(&mut slow, wal.end()).await == wal.bytes(), "the slow reader got other bytes");
    let mut late = world.reader(&addresses, world.spec.start_lsn).await;
    assert!(read_up_to(&mut late, wal.end()).await == wal.bytes(), "the late reader got other bytes");
    drop((slow, late));
    proposer.shutdown().await;
    safekeeper.shutdown().await;

    // After a restart as well, and the writer goes on.
    let safekeeper = start(&world, dir.path(), &store).await;
    let (proposer, again) = world.elect(&addresses).await;
    assert_eq!(again.end_lsn, wal.end());
    write(&proposer, &mut wal, 3 * SEGMENT_BYTES as usize).await;
    trimmed(&world, &addresses[0], wal.end()).await;
    let middle = Lsn::new(world.spec.start_lsn.get() + 5_000_000);
    let mut reader = world.reader(&addresses, middle).await;
    let offset = middle.checked_sub(world.spec.start_lsn).expect("after the start") as usize;
    assert!(read_up_to(&mut reader, wal.end()).await == wal.bytes()[offset..], "the reader got other bytes");
    drop(reader);
    proposer.shutdown().await;
    safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_away_writers_go_on_and_nothing_is_trimmed() {
    let store = Arc::new(Flaky::default());
    store.calls_that_fail.store(u64::MAX, Ordering::Release);
    let house = House::writing(Arc::clone(&store), 6).await;
    let (start, end) = (house.world.spec.start_lsn, house.wal.end());
    // A page server that has it all is no reason to trim what is not archived.
    let mut reader = house.reader(start).await;
    // It has read it first: who is being sent WAL and takes none is not listened to.
    assert!(read_up_to(&mut reader, end).await == house.wal.bytes());
    reader.send_position(end).await.expect("sent");
    eventually("the position has arrived", async || house.status().await.durable_lsn == end).await;
    let failed = u64::MAX - store.calls_that_fail.load(Ordering::Acquire);
    eventually("it is tried again", async || u64::MAX - store.calls_that_fail.load(Ordering::Acquire) > failed).await;
    assert_eq!(house.status().await.oldest_lsn, start);
    assert!(house.reads_from(start).await);
    drop(reader);
    let problems = house.safekeeper.problems();
    assert!(matches!(&problems()[..], [problem] if problem.contains("the store is away")), "{:?}", problems());
    let told = house.world.safekeeper_status(&house.addresses[0]).await;
    assert!(matches!(&told.archive_stalls[..], [stall] if stall.message.contains("the store is away")), "{told:?}");

    store.calls_that_fail.store(0, Ordering::Release);
    trimmed(&house.world, &house.addresses[0], end).await;
    assert_eq!(problems(), Vec::<String>::new());
    // Away again: what is only there cannot be read, what is here can, and both are when it is back.
    store.calls_that_fail.store(u64::MAX, Ordering::Release);
    let failure = read_error(&house.world, &house.addresses, start).await;
    assert!(matches!(&failure, ClientError::Answer { code: ErrorCode::Unavailable, .. }), "{failure:?}");
    assert!(failure.to_string().contains("the store is away"), "{failure}");
    assert!(house.reads_from(house.status().await.oldest_lsn).await);
    store.calls_that_fail.store(0, Ordering::Release);
    assert!(house.reads_from(start).await);
    house.close().await;
}

/// What was trimmed may be needed yet, and is nowhere else.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_archived_does_not_start_without() {
    let House { world, dir, store, safekeeper, addresses, proposer, wal } = House::with_wal_of(4).await;
    proposer.shutdown().await;
    safekeeper.shutdown().await;
    let refused = Safekeeper::start(world.config(dir.path()), CancellationToken::new()).await;
    let refused = refused.expect_err("it has no archive");
    assert!(matches!(refused, StartError::ArchiveMissing { .. }), "{refused}");
    let safekeeper = start(&world, dir.path(), &store).await;
    let mut reader = world.reader(&addresses, world.spec.start_lsn).await;
    assert!(read_up_to(&mut reader, wal.end()).await == wal.bytes());
    drop(reader);
    safekeeper.shutdown().await;
}

/// The error that a reader from `from` meets.
async fn read_error(world: &World, addresses: &[ServiceAddr], from: Lsn) -> ClientError {
    let spec = &world.spec;
    let token = world.token(Rights::Read);
    let reading = async {
        let mut reader = WalReader::connect(addresses, spec.tenant, spec.timeline, &token, from).await?;
        loop {
            reader.next().await?;
        }
    };
    let failure: Result<(), ClientError> =
        tokio::time::timeout(Duration::from_secs(20), reading).await.expect("in time");
    failure.expect_err("an error was expected")
}

/// Each message of a follower interrupts the wait for the next bytes: the call that fetches them goes on, and no other is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_never_stops_talking_gets_on_with_a_slow_store() {
    let house = House::with_wal_of(6).await;
    let mut reader = house.reader(house.world.spec.start_lsn).await;
    house.store.gate.set_closed(true);
    eventually("the store is asked for the first bytes", async || house.store.gate.waiting() == 1).await;
    for _ in 0..20 {
        reader.send_await(house.wal.end()).await.expect("sent");
    }
    // It is seen once all before it were taken.
    reader.send_position(house.wal.end()).await.expect("sent");
    eventually("all messages were taken", async || house.status().await.durable_lsn == house.wal.end()).await;
    assert_eq!(house.store.gate.waiting(), 1);
    house.store.gate.set_closed(false);
    assert!(read_up_to(&mut reader, house.wal.end()).await == house.wal.bytes(), "the reader got other bytes");
    drop(reader);
    house.close().await;
}

/// The store does not answer any more: the end of a safekeeper does not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_safekeeper_stops_though_a_segment_is_on_its_way() {
    let mut house = House::with_wal_of(3).await;
    house.store.gate.set_closed(true);
    write(&house.proposer, &mut house.wal, 2 * SEGMENT_BYTES as usize).await;
    eventually("a segment is being archived", async || house.store.gate.waiting() == 1).await;
    let House { world, dir, store, safekeeper, addresses, proposer, wal } = house;
    proposer.shutdown().await;
    tokio::time::timeout(Duration::from_secs(20), safekeeper.shutdown()).await.expect("it ends by itself");
    store.gate.set_closed(false);
    let safekeeper = start(&world, dir.path(), &store).await;
    let mut reader = world.reader(&addresses, world.spec.start_lsn).await;
    assert!(read_up_to(&mut reader, wal.end()).await == wal.bytes(), "the reader got other bytes");
    let size = world.spec.wal_segment_size;
    let whole = wal.end().segment_number(size) - world.spec.start_lsn.segment_number(size);
    eventually("the rest is archived", async || objects(&world, &store).len() as u64 == whole).await;
    drop(reader);
    safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_is_named_and_only_its_readers_are_concerned() {
    let house = House::with_wal_of(6).await;
    let (store, start) = (&house.store.inner, house.world.spec.start_lsn);
    let second = objects(&house.world, &house.store)[1].clone();
    let good = store.get(&second).expect("it is there");
    let third = start.segment_start(house.world.spec.wal_segment_size).advance(2 * SEGMENT_BYTES);
    let mut damaged: Vec<Vec<u8>> = [5, 20, 45, good.len() / 2, good.len() - 1]
        .into_iter()
        .map(|at| {
            let mut bad = good.to_vec();
            bad[at] ^= 0x20;
            bad
        })
        .collect();
    damaged.push(good[..good.len() / 2].to_vec());
    damaged.push(Vec::new());
    for bad in damaged {
        store.put(&second, &bad).expect("put");
        let failure = read_error(&house.world, &house.addresses, start).await;
        assert!(matches!(&failure, ClientError::Answer { code: ErrorCode::Corrupt, .. }), "{failure:?}");
        assert!(failure.to_string().contains(second.file_name()), "{failure}");
        assert!(house.reads_from(third).await);
    }
    store.delete(&second).expect("deleted");
    let failure = read_error(&house.world, &house.addresses, start).await;
    assert!(failure.to_string().contains(second.file_name()), "{failure}");
    store.put(&second, &good).expect("put");
    assert!(house.reads_from(start).await);
    house.close().await;
}

/// Three safekeepers with one archive.
struct Trio {
    world: World,
    store: Arc<Flaky>,
    dirs: Vec<tempfile::TempDir>,
    safekeepers: Vec<Option<Safekeeper>>,
    addresses: Vec<ServiceAddr>,
}

impl Trio {
    async fn start() -> Trio {
        let (world, store) = (World::new(), Arc::new(Flaky::default()));
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().expect("a folder")).collect();
        let (mut safekeepers, mut addresses) = (Vec::new(), Vec::new());
        for dir in &dirs {
            let safekeeper = start(&world, dir.path(), &store).await;
            addresses.push(safekeeper.addresses()[0].clone());
            safekeepers.push(Some(safekeeper));
        }
        world.create(&addresses).await;
        Trio { world, store, dirs, safekeepers, addresses }
    }

    async fn stop(&mut self, number: usize) {
        self.safekeepers[number].take().expect("it runs").shutdown().await;
    }

    async fn restart(&mut self, number: usize) {
        self.safekeepers[number] = Some(start(&self.world, self.dirs[number].path(), &self.store).await);
    }

    /// A writer that asks again soon.
    async fn elect(&self) -> (Proposer, Elected) {
        let mut config = self.world.proposer_config(&self.addresses);
        config.limits.resend_after_us = 200_000;
        // What a safekeeper that was away lacks is not to be had from the writer.
        config.limits.laggard_bytes_max = SEGMENT_BYTES;
        Proposer::elect(config, CancellationToken::new()).await.expect("elected")
    }

    async fn flush_lsn(&self, number: usize) -> Lsn {
        status(&self.world, &self.addresses[number]).await.flush_lsn
    }

    /// Whether one of them has, alone, what was written.
    async fn has_all(&self, number: usize, wal: &WalSource) -> bool {
        let mut reader = self.world.reader(&self.addresses[number..=number], self.world.spec.start_lsn).await;
        read_up_to(&mut reader, wal.end()).await == wal.bytes()
    }

    async fn kept_for_others(&self, number: usize) -> u64 {
        self.world.safekeeper_status(&self.addresses[number]).await.kept_for_others_bytes
    }

    async fn close(mut self) {
        for safekeeper in self.safekeepers.iter_mut().filter_map(Option::take) {
            safekeeper.shutdown().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stays_away_fills_no_disk_and_catches_up_from_the_archive() {
    let mut trio = Trio::start().await;
    let (proposer, elected) = trio.elect().await;
    let mut wal = trio.world.wal(elected.end_lsn, elected.prev_lsn);
    write(&proposer, &mut wal, SEGMENT_BYTES as usize).await;
    eventually("it has the beginning", async || trio.flush_lsn(2).await == wal.end()).await;
    let before = wal.end();
    trio.stop(2).await;
    // Within the bound the others keep what it lacks.
    write(&proposer, &mut wal, 4 * SEGMENT_BYTES as usize).await;
    for number in 0..2 {
        trimmed_to(&trio.world, &trio.addresses[number], wal.end(), 4 * SEGMENT_BYTES).await;
        assert_eq!(trio.kept_for_others(number).await, 2 * SEGMENT_BYTES);
        assert!(status(&trio.world, &trio.addresses[number]).await.oldest_lsn <= before);
    }
    for _ in 0..12 {
        write(&proposer, &mut wal, SEGMENT_BYTES as usize).await;
    }
    for number in 0..2 {
        trimmed_to(&trio.world, &trio.addresses[number], wal.end(), KEEP_FOR_OTHERS_BYTES).await;
        assert_eq!(trio.kept_for_others(number).await, KEEP_FOR_OTHERS_BYTES - KEEP_BYTES);
        assert!(status(&trio.world, &trio.addresses[number]).await.oldest_lsn > before);
    }

    // The store is away when it is back: it waits, writers go on.
    trio.store.calls_that_fail.store(u64::MAX, Ordering::Release);
    trio.restart(2).await;
    write(&proposer, &mut wal, 1000).await;
    let term = status(&trio.world, &trio.addresses[0]).await.term;
    eventually("it takes part", async || status(&trio.world, &trio.addresses[2]).await.term == term).await;
    let failed = || u64::MAX - trio.store.calls_that_fail.load(Ordering::Acquire);
    let failed_before = failed();
    eventually("it is tried again", async || failed() > failed_before + 1).await;
    assert_eq!(trio.flush_lsn(2).await, before);
    trio.store.calls_that_fail.store(0, Ordering::Release);
    eventually("it has everything", async || trio.flush_lsn(2).await == wal.end()).await;
    write(&proposer, &mut wal, 1000).await;
    assert!(trio.has_all(2, &wal).await);
    for number in 0..3 {
        trimmed(&trio.world, &trio.addresses[number], wal.end()).await;
        eventually("nothing is kept", async || trio.kept_for_others(number).await == 0).await;
    }
    proposer.shutdown().await;
    trio.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_election_completes_one_that_was_away_from_the_archive() {
    let mut trio = Trio::start().await;
    let (proposer, elected) = trio.elect().await;
    let mut wal = trio.world.wal(elected.end_lsn, elected.prev_lsn);
    trio.stop(2).await;
    for _ in 0..10 {
        write(&proposer, &mut wal, SEGMENT_BYTES as usize).await;
    }
    trimmed_to(&trio.world, &trio.addresses[0], wal.end(), KEEP_FOR_OTHERS_BYTES).await;
    proposer.shutdown().await;
    // Of the quorum that is left one has nothing: it decides only once it has all.
    trio.stop(1).await;
    trio.restart(2).await;
    let (proposer, elected) = trio.elect().await;
    assert_eq!((elected.end_lsn, trio.flush_lsn(2).await), (wal.end(), wal.end()));
    write(&proposer, &mut wal, 1000).await;
    assert!(trio.has_all(2, &wal).await);
    proposer.shutdown().await;
    trio.close().await;
}

/// A writer's connection, message by message.
struct RawWriter {
    stream: UnixStream,
    buffer: BytesMut,
}

impl RawWriter {
    async fn connect(world: &World, address: &ServiceAddr) -> RawWriter {
        let ServiceAddr::Unix(path) = address else { panic!("{address} is no Unix socket") };
        let stream = UnixStream::connect(path).await.expect("connects");
        let mut writer = RawWriter { stream, buffer: BytesMut::new() };
        let (tenant, timeline, token) = (world.spec.tenant, world.spec.timeline, world.token(Rights::Write));
        let hello = Hello { version: PROTOCOL_VERSION, capabilities: 0, tenant, timeline, token };
        let answer = writer.ask(&Request::Hello(hello)).await;
        assert!(matches!(answer, Response::HelloOk { .. }), "{answer:?}");
        writer
    }

    async fn ask(&mut self, request: &Request) -> Response {
        let mut out = BytesMut::new();
        request.encode(&mut out);
        self.stream.write_all(&out).await.expect("sent");
        loop {
            if let Some(frame) = Frame::take(&mut self.buffer).expect("a frame") {
                return Response::decode(frame).expect("a response");
            }
            let read = tokio::time::timeout(Duration::from_secs(20), self.stream.read_buf(&mut self.buffer)).await;
            assert_ne!(read.expect("in time").expect("read"), 0, "the safekeeper has closed the connection");
        }
    }

    async fn read(&mut self, term: Term, from: Lsn, to: Lsn) -> Result<Bytes, ErrorCode> {
        match self.ask(&Request::ReadWal { id: 7, term, from, to }).await {
            Response::Wal { id: 7, start, bytes } if start == from => Ok(bytes),
            Response::Error { id: 7, code, .. } => Err(code),
            other => panic!("{other:?}"),
        }
    }
}

/// A writer that was replaced gets no archived WAL either, nor does one get what was never there.
#[tokio::test(flavor = "multi_thread")]
async fn archived_wal_is_read_for_the_writer_of_the_promised_term_only() {
    let house = House::with_wal_of(6).await;
    let (world, start) = (&house.world, house.world.spec.start_lsn);
    let term = house.status().await.term;
    let read = async |term: Term, from: Lsn, to: Lsn| {
        let mut writer = RawWriter::connect(world, &house.addresses[0]).await;
        writer.read(term, from, to).await
    };
    let to = start.advance(3000);
    assert_eq!(read(term, start, to).await.as_deref(), Ok(&house.wal.bytes()[..3000]));
    assert_eq!(read(Term::new(term.get() - 1), start, to).await, Err(ErrorCode::OutOfOrder));
    let before = Lsn::new(start.get() - 8);
    assert_eq!(read(term, before, to).await, Err(ErrorCode::LsnOutOfRange));
    // In pieces, each from where the one before ends, over blocks, segments and into what is here.
    let mut writer = RawWriter::connect(world, &house.addresses[0]).await;
    let (mut at, mut bytes) = (start, Vec::new());
    while at < house.wal.end() {
        let piece = writer.read(term, at, at.advance(300_000)).await.expect("it is archived or here");
        assert!(!piece.is_empty() && piece.len() <= 300_000);
        at = at.advance(piece.len() as u64);
        bytes.extend_from_slice(&piece);
    }
    assert!(bytes == house.wal.bytes());
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_share_an_archive_and_who_disagrees_with_it_trims_nothing() {
    let (world, store) = (World::new(), Arc::new(Flaky::default()));
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().expect("a folder")).collect();
    let mut safekeepers = Vec::new();
    for dir in &dirs {
        safekeepers.push(start(&world, dir.path(), &store).await);
    }
    let addresses: Vec<_> = safekeepers.iter().map(|safekeeper| safekeeper.addresses()[0].clone()).collect();
    world.create(&addresses).await;
    let (proposer, elected) = world.elect(&addresses).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    write(&proposer, &mut wal, 4 * SEGMENT_BYTES as usize).await;
    for address in &addresses {
        trimmed(&world, address, wal.end()).await;
    }
    // Another installation, say, has put its own there: a segment of the future with other content.
    let names = objects(&world, &store);
    let size = world.spec.wal_segment_size;
    let last = wal.end().segment_number(size);
    let held = *proposer.committed().borrow();
    proposer.shutdown().await;
    for safekeeper in safekeepers {
        safekeeper.shutdown().await;
    }
    let foreign = {
        // The same timeline as it was written elsewhere.
        let (dir, other) = (tempfile::tempdir().expect("a folder"), Arc::new(Flaky::default()));
        let safekeeper = start(&world, dir.path(), &other).await;
        let addresses = safekeeper.addresses().to_vec();
        world.create(&addresses).await;
        let (proposer, elected) = world.elect(&addresses).await;
        let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
        wal.random(2);
        write(&proposer, &mut wal, 6 * SEGMENT_BYTES as usize).await;
        trimmed(&world, &addresses[0], wal.end()).await;
        proposer.shutdown().await;
        safekeeper.shutdown().await;
        let folder = names[0].as_str().rsplit_once('/').expect("a folder").0.to_owned();
        let file = ardent_pg_format::segment::wal_file_name(world.spec.pg_tli, last, size);
        let name = ObjectName::new(format!("{folder}/{file}")).expect("a name");
        (name.clone(), other.inner.get(&name).expect("it is there"))
    };
    store.inner.put(&foreign.0, &foreign.1).expect("put");

    let mut safekeepers = Vec::new();
    for dir in &dirs {
        safekeepers.push(start(&world, dir.path(), &store).await);
    }
    let (proposer, again) = world.elect(&addresses).await;
    assert_eq!(again.end_lsn, held);
    write(&proposer, &mut wal, 5 * SEGMENT_BYTES as usize).await;
    // All but that segment and what follows it is trimmed; nothing was put over it.
    let boundary = Lsn::new(last * SEGMENT_BYTES);
    for address in &addresses {
        eventually("what agrees is trimmed", async || status(&world, address).await.oldest_lsn == boundary).await;
    }
    assert!(store.inner.get(&foreign.0).expect("it is there") == foreign.1);
    for address in &addresses {
        let told = world.safekeeper_status(address).await;
        let [stall] = &told.archive_stalls[..] else { panic!("one timeline's WAL cannot be archived: {told:?}") };
        assert_eq!((stall.timeline, stall.tenant, stall.lsn), (world.spec.timeline, world.spec.tenant, boundary));
        assert!(
            stall.message.contains(foreign.0.as_str()) && stall.message.contains("other installation"),
            "{stall:?}"
        );
        assert_eq!((told.archives, told.archive_stalls_total), (true, 1));
        assert!(told.disk_free_bytes <= told.disk_size_bytes && told.disk_size_bytes > 0, "{told:?}");
    }
    assert_eq!(objects(&world, &store).last(), Some(&foreign.0), "nothing after it is archived");
    // Once it is taken away, all goes on.
    store.inner.delete(&foreign.0).expect("deleted");
    for address in &addresses {
        trimmed(&world, address, wal.end()).await;
        let told = world.safekeeper_status(address).await;
        assert_eq!((told.archive_stalls, told.archive_stalls_total), (Vec::new(), 0));
    }
    let mut reader = world.reader(&addresses, world.spec.start_lsn).await;
    assert!(read_up_to(&mut reader, wal.end()).await == wal.bytes());
    drop(reader);
    proposer.shutdown().await;
    for safekeeper in safekeepers {
        safekeeper.shutdown().await;
    }
}
