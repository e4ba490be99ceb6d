//! How long a page takes from a warm page server over its Unix socket, while WAL comes in: `cargo test -p ardent-pageserver --bench get_page`.
//! Prints a table.
//!
//! The clients are paced: each asks for a page, waits for it, and then does nothing for a while, as a backend does. WAL of random updates of the
//! same table is ingested meanwhile, by a thread that takes half of a core. The peer, in turns with ours, is a thread that takes as long a request
//! from a Unix socket, `pread`s the page from a file that is in memory, and answers: what the way there and back costs.
//!
//! `BENCH_TABLE_MB` (default 512), `BENCH_REQUESTS` (default 4000; of each client and kind in a round), `BENCH_CLIENTS` (default 2), `BENCH_PAUSE_US`
//! (default 500), `BENCH_ROUNDS` (default 3) and `BENCH_PAGE_CACHE_MB` (default 192, as of `ardent up`) set the size.

#[path = "../tests/it/workload.rs"]
mod workload;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ardent_api::addr::ServiceAddr;
use ardent_api::frame::{FRAME_HEADER_LEN, Frame};
use ardent_api::page_service::{BlockRange, Hello, PROTOCOL_VERSION, Request, Response};
use ardent_api::token::{Claims, Rights, Service, TokenIssuer};
use ardent_api::wal_service::WalChunk;
use ardent_object_store::LocalFolder;
use ardent_pageserver::{Intake, Pageserver, PageserverConfig};
use ardent_storage::{Engine, EngineConfig, Timeline};
use ardent_test_pg::side_by_side::{number_from, print_header};
use ardent_types::{BLCKSZ, Key, Lsn, RelTag, TenantId, TimelineId};
use bytes::BytesMut;
use tokio_util::sync::CancellationToken;
use workload::{Workload, import_into};

const TENANT: TenantId = TenantId::from_bytes([7; 16]);
const ROOT: TimelineId = TimelineId::from_bytes([1; 16]);
/// Pages that are asked for again and again.
const HOT: u32 = 1000;
/// WAL that is made before each round, so that making it takes no processor from those who are measured; for this long.
const WAL_BYTES_PER_SECOND: usize = 160 << 20;
const CHUNK_BYTES: usize = 128 << 10;

/// Which pages are asked for.
#[derive(Clone, Copy)]
enum Kind {
    /// Some that the page cache has.
    Cached,
    /// One in so many is any page of the table, of which the caches hold a part.
    Mixed(u32),
}

/// The mixes that are measured, with the one that compares with earlier figures last.
const KINDS: [(&str, Kind); 4] = [
    ("cached", Kind::Cached),
    ("every tenth one of the whole table", Kind::Mixed(10)),
    ("every fourth one of the whole table", Kind::Mixed(4)),
    ("every other one of the whole table", Kind::Mixed(2)),
];

/// A connection that does one thing at a time, as a backend's.
trait Client {
    fn get(&mut self, block: u32);
}

struct Ours {
    stream: UnixStream,
    rel: RelTag,
    lsn: Lsn,
    out: BytesMut,
    /// An answer comes in one read here, as with the computes' client.
    room: Vec<u8>,
}

impl Ours {
    fn connect(house: &House, rel: RelTag, lsn: Lsn) -> Ours {
        let claims = Claims {
            service: Service::Pageserver,
            tenant: Some(TENANT),
            timeline: Some(ROOT),
            rights: Rights::Read,
            expires_at_s: None,
        };
        let token = house.issuer.issue(&claims);
        let ServiceAddr::Unix(path) = &house.address else { unreachable!("it listens on a Unix socket") };
        let stream = UnixStream::connect(path).expect("connects");
        let mut client = Ours { stream, rel, lsn, out: BytesMut::new(), room: vec![0; 2 * BLCKSZ] };
        let hello = Hello { version: PROTOCOL_VERSION, capabilities: 0, tenant: TENANT, timeline: ROOT, token };
        assert!(matches!(client.ask(&Request::Hello(hello)), Response::HelloOk { .. }));
        client
    }

    fn send(&mut self, request: &Request) -> Frame {
        self.out.clear();
        request.encode(&mut self.out);
        self.stream.write_all(&self.out).expect("the request goes out");
        let mut received = 0;
        loop {
            let more = self.stream.read(&mut self.room[received..]).expect("an answer comes");
            assert!(more > 0, "the connection stays");
            received += more;
            let Some((header, body)) = self.room[..received].split_first_chunk::<FRAME_HEADER_LEN>() else { continue };
            let (kind, length) = Frame::parse_header(*header).expect("a frame");
            if body.len() >= length {
                return Frame { kind, payload: bytes::Bytes::copy_from_slice(body) };
            }
        }
    }

    fn ask(&mut self, request: &Request) -> Response {
        Response::decode(self.send(request)).expect("an answer")
    }
}

impl Client for Ours {
    fn get(&mut self, block: u32) {
        let ranges = vec![BlockRange { start: block, count: 1 }];
        let request = Request::GetPages { id: 1, lsn: self.lsn, rel: self.rel, ranges };
        let frame = self.send(&request);
        match Response::decode(frame).expect("an answer") {
            Response::Pages { pages, .. } => assert_eq!(pages.len(), BLCKSZ),
            other => panic!("{other:?}"),
        }
    }
}

struct Peer {
    stream: UnixStream,
    page: Vec<u8>,
}

/// As long as a request for a page.
const PEER_REQUEST_LEN: usize = 50;

impl Client for Peer {
    fn get(&mut self, block: u32) {
        let mut request = [0; PEER_REQUEST_LEN];
        request[..4].copy_from_slice(&block.to_le_bytes());
        self.stream.write_all(&request).expect("the request goes out");
        self.stream.read_exact(&mut self.page).expect("the page comes");
    }
}

/// Serves pages of a file, each connection on a thread of its own.
fn serve_peer(listener: &UnixListener, pages: &File, connections: u32) {
    std::thread::scope(|scope| {
        for _ in 0..connections {
            let (mut stream, _) = listener.accept().expect("a client comes");
            scope.spawn(move || {
                let (mut request, mut page) = ([0; PEER_REQUEST_LEN], vec![0; BLCKSZ]);
                while stream.read_exact(&mut request).is_ok() {
                    let block = u32::from_le_bytes(request[..4].try_into().expect("4 bytes"));
                    pages.read_exact_at(&mut page, u64::from(block) * BLCKSZ as u64).expect("the page is in the file");
                    stream.write_all(&page).expect("the page goes out");
                }
            });
        }
    });
}

/// A page server in this process.
struct House {
    address: ServiceAddr,
    issuer: TokenIssuer,
    root: Arc<Timeline>,
    cancel: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

fn engine_config(folder: &Path) -> EngineConfig {
    let store = LocalFolder::open(&folder.join("store")).expect("the store opens");
    let cache_mb = number_from("BENCH_PAGE_CACHE_MB", 192) as usize;
    EngineConfig::new(folder.join("local"), Arc::new(store)).with_caches_of(cache_mb << 20)
}

fn make_root(folder: &Path, workload: &mut Workload) {
    let engine = Engine::open(engine_config(folder)).expect("the engine opens");
    import_into(&engine, TENANT, ROOT, workload);
    engine.shutdown().expect("all is durable");
}

impl House {
    async fn start(folder: &Path) -> House {
        let issuer = TokenIssuer::from_key(&TokenIssuer::generate_key().expect("key")).expect("issuer");
        let address = ServiceAddr::Unix(folder.join("page.sock"));
        let config = PageserverConfig {
            engine: engine_config(folder),
            retention: Duration::from_secs(7 * 24 * 3600),
            listen: vec![address.clone()],
            verifier: issuer.verifier(),
            safekeepers: Vec::new(),
            safekeeper_token: String::new(),
        };
        let cancel = CancellationToken::new();
        let server = Pageserver::start(config, cancel.clone()).await.expect("the page server starts");
        let root = server.engine().timeline(TENANT, ROOT).expect("the root is there");
        House { address, issuer, root, cancel, server: tokio::spawn(server.run()) }
    }
}

fn cpu_of_this_thread() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel keeps this");
    Duration::from_nanos(stat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number of ns"))
}

/// Takes in WAL on this thread, half of the time, until it is told to stop. How many bytes, and which part of a core that took.
fn ingest(root: &Arc<Timeline>, wal: Vec<(Lsn, Vec<u8>)>, stop: &AtomicBool) -> (u64, f64) {
    let mut intake = Intake::open(root).expect("the timeline takes WAL");
    let (began, cpu_before) = (Instant::now(), cpu_of_this_thread());
    let mut taken = 0;
    let mut left = wal.into_iter();
    while !stop.load(Ordering::Relaxed) {
        let Some((start, bytes)) = left.next() else { break };
        let commit_lsn = start.advance(bytes.len() as u64);
        taken += bytes.len() as u64;
        intake.take(WalChunk { start, bytes: bytes.into(), commit_lsn }).expect("the WAL is taken");
        let ahead = (2 * (cpu_of_this_thread() - cpu_before)).saturating_sub(began.elapsed());
        std::thread::sleep(ahead);
    }
    let share = (cpu_of_this_thread() - cpu_before).as_secs_f64() / began.elapsed().as_secs_f64();
    // The rest comes before the next round: WAL has no gaps.
    for (start, bytes) in left {
        let commit_lsn = start.advance(bytes.len() as u64);
        intake.take(WalChunk { start, bytes: bytes.into(), commit_lsn }).expect("the WAL is taken");
    }
    (taken, share)
}

/// What one client saw, in microseconds.
fn measure(client: &mut dyn Client, kind: Kind, blocks: u32, requests: u32, pause: Duration, seed: u64) -> Vec<f64> {
    let mut state = seed;
    let mut below = |limit: u32| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (((state >> 33) * u64::from(limit)) >> 31) as u32
    };
    (0..HOT.min(blocks)).for_each(|block| client.get(block));
    let mut took = Vec::with_capacity(requests as usize);
    for number in 0..requests {
        let block = match kind {
            Kind::Mixed(one_in) if number % one_in == one_in - 1 => below(blocks),
            _ => below(HOT.min(blocks)),
        };
        std::thread::sleep(pause);
        let began = Instant::now();
        client.get(block);
        took.push(began.elapsed().as_secs_f64() * 1e6);
    }
    took
}

/// Runs clients side by side and gives all that they saw, sorted.
fn measure_all(
    clients: u32,
    connect: impl Fn() -> Box<dyn Client + Send>,
    kind: Kind,
    blocks: u32,
    size: (u32, Duration),
) -> Vec<f64> {
    let mut all = Vec::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|number| {
                let mut client = connect();
                scope.spawn(move || measure(&mut *client, kind, blocks, size.0, size.1, u64::from(number) + 1))
            })
            .collect();
        all.extend(threads.into_iter().flat_map(|thread| thread.join().expect("the client was fine")));
    });
    all.sort_unstable_by(f64::total_cmp);
    all
}

fn percentile(sorted: &[f64], percent: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * percent / 100.0) as usize]
}

fn row(case: &str, ours: &[f64], peer: &[f64], percent: f64, target: &str) {
    let (ours, peer) = (percentile(ours, percent), percentile(peer, percent));
    println!("| {case} | {ours:.1} us | {peer:.1} us (pread, socket) | {:.2} | - | {target} |", ours / peer);
}

fn main() {
    let table_bytes = u64::from(number_from("BENCH_TABLE_MB", 512)) << 20;
    let (requests, clients) = (number_from("BENCH_REQUESTS", 4000), number_from("BENCH_CLIENTS", 2));
    let pause = Duration::from_micros(u64::from(number_from("BENCH_PAUSE_US", 500)));
    let rounds = number_from("BENCH_ROUNDS", 3).max(1);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut workload = Workload::new(table_bytes);
    make_root(folder.path(), &mut workload);
    let blocks = workload.blocks();
    let Key::RelBlock(rel, _) = workload.key(0) else { unreachable!("it is a block's key") };

    let path = folder.path().join("pages");
    let mut file = File::create(&path).expect("a file can be made");
    workload.give_pages(|pages| pages.iter().for_each(|(_, page)| file.write_all(page).expect("it can be written")));
    let file = File::open(&path).expect("it can be read");
    let peer_path = folder.path().join("peer.sock");
    let listener = UnixListener::bind(&peer_path).expect("listens");

    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let house = runtime.block_on(House::start(folder.path()));
    print_header();
    let mut shares = Vec::new();
    for (name, kind) in KINDS {
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            for is_ours in [true, false] {
                let seconds = f64::from(requests) * (pause.as_secs_f64() + 200e-6);
                let chunks = (seconds * WAL_BYTES_PER_SECOND as f64) as usize / CHUNK_BYTES + 1;
                let wal: Vec<_> = (0..chunks).map(|_| workload.wal(CHUNK_BYTES)).collect();
                let lsn = house.root.last_record().end;
                let stop = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    let ingesting = scope.spawn(|| ingest(&house.root, wal, &stop));
                    let size = (requests, pause);
                    if is_ours {
                        let connect = || Box::new(Ours::connect(&house, rel, lsn)) as Box<dyn Client + Send>;
                        ours.extend(measure_all(clients, connect, kind, blocks, size));
                    } else {
                        scope.spawn(|| serve_peer(&listener, &file, clients));
                        let connect = || {
                            let stream = UnixStream::connect(&peer_path).expect("connects");
                            Box::new(Peer { stream, page: vec![0; BLCKSZ] }) as Box<dyn Client + Send>
                        };
                        peer.extend(measure_all(clients, connect, kind, blocks, size));
                    }
                    stop.store(true, Ordering::Relaxed);
                    shares.push(ingesting.join().expect("ingest was fine"));
                });
            }
        }
        ours.sort_unstable_by(f64::total_cmp);
        peer.sort_unstable_by(f64::total_cmp);
        let (median, p99) = match kind {
            Kind::Cached => ("<= 15 us", "-"),
            Kind::Mixed(_) => ("<= 50 us", "<= 1 ms"),
        };
        row(&format!("a page, {name}, median"), &ours, &peer, 50.0, median);
        row(&format!("a page, {name}, p99"), &ours, &peer, 99.0, p99);
    }
    let (bytes, share): (Vec<u64>, Vec<f64>) = shares.into_iter().unzip();
    let share = share.iter().sum::<f64>() / share.len() as f64;
    let rate = bytes.iter().sum::<u64>() >> 20;
    println!("| ... of a core that ingest took meanwhile; it took in {rate} MB | {share:.2} | - | - | - | 0.5 |");
    house.cancel.cancel();
    runtime.block_on(house.server).expect("the page server ends");
}
