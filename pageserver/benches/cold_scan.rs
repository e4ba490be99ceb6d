//! A sequential scan of pages that are in S3 alone: `cargo test -p ardent-pageserver --bench cold_scan`. Prints a table.
//!
//! A page server starts with an empty cache on a store that a server for tests holds, and one client asks it for all pages of a table in order, 64 in a
//! request, as a backend's read-ahead does. The peer reads the bytes that the table takes in the store and keeps nothing: ranged gets of as much as the
//! cache's read-ahead takes at once at most, over as many connections. Both servers' data is in the kernel's page cache.
//!
//! `BENCH_TABLE_MB` (default 256) and `BENCH_ROUNDS` (default 3) set the size. The S3 server is the one that `scripts/setup-s3.sh` installs.

#[path = "../tests/it/workload.rs"]
mod workload;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ardent_api::addr::ServiceAddr;
use ardent_api::page_service::BlockRange;
use ardent_api::token::{Claims, Rights, Service, TokenIssuer};
use ardent_object_store::{CacheOptions, CachedStore, ObjectMeta, ObjectStore, list_all};
use ardent_object_store_s3::{S3Keys, S3Location, S3Options, S3Store};
use ardent_page_client::{Binding, PageClient};
use ardent_pageserver::{Pageserver, PageserverConfig};
use ardent_storage::{Engine, EngineConfig};
use ardent_test_pg::side_by_side::{number_from, print_header};
use ardent_test_s3::Seaweed;
use ardent_types::{BLCKSZ, Key, RelTag, TenantId, TimelineId};
use tokio_util::sync::CancellationToken;
use workload::{START, Workload, import_into};

const TENANT: TenantId = TenantId::from_bytes([7; 16]);
const ROOT: TimelineId = TimelineId::from_bytes([1; 16]);
/// Pages in one request.
const RUN: u32 = 64;
/// Connections over which the cache reads ahead (`READ_AHEAD_THREADS` in `object-store/src/cache/store.rs`), and its largest range.
const CONNECTIONS: usize = 4;
const RANGE_BYTES: u64 = 2 << 20;
/// The cache has room for all of it.
const CACHE_BYTES: u64 = 4 << 30;

fn s3(server: &Seaweed) -> S3Store {
    let (access, secret) = server.keys();
    let keys = S3Keys { access: access.to_owned(), secret: secret.to_owned() };
    let location = S3Location::parse(&format!("s3://bench/pages?endpoint={}", server.endpoint())).expect("a location");
    S3Store::open(&location, &S3Options { keys: Some(keys), ..S3Options::default() }).expect("the store opens")
}

fn make_root(folder: &Path, store: S3Store, workload: &mut Workload) {
    let engine = Engine::open(EngineConfig::new(folder.join("made"), Arc::new(store))).expect("the engine opens");
    import_into(&engine, TENANT, ROOT, workload);
    engine.shutdown().expect("all is durable");
}

/// How long all pages take, in order, from a page server that has just started. Gives the first and the last page, too.
async fn scan(folder: &Path, store: S3Store, rel: RelTag, blocks: u32) -> (Duration, [Vec<u8>; 2]) {
    let options = CacheOptions { folder: folder.join("cache"), bytes_max: CACHE_BYTES };
    let cached = CachedStore::open(Arc::new(store), options).expect("the cache opens");
    let issuer = TokenIssuer::from_key(&TokenIssuer::generate_key().expect("key")).expect("issuer");
    let address = ServiceAddr::Unix(folder.join("page.sock"));
    let config = PageserverConfig {
        engine: EngineConfig::new(folder.join("local"), Arc::new(cached)),
        retention: Duration::from_secs(7 * 24 * 3600),
        listen: vec![address.clone()],
        verifier: issuer.verifier(),
        safekeepers: Vec::new(),
        safekeeper_token: String::new(),
    };
    let cancel = CancellationToken::new();
    let server = Pageserver::start(config, cancel.clone()).await.expect("the page server starts");
    let running = tokio::spawn(server.run());
    let claims = Claims {
        service: Service::Pageserver,
        tenant: Some(TENANT),
        timeline: Some(ROOT),
        rights: Rights::Read,
        expires_at_s: None,
    };
    let binding = Binding { tenant: TENANT, timeline: ROOT, token: issuer.issue(&claims) };
    let mut client = PageClient::connect(&address, &binding).await.expect("connects");
    let began = Instant::now();
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for start in (0..blocks).step_by(RUN as usize) {
        let run = BlockRange { start, count: RUN.min(blocks - start) };
        let pages = client.get_pages(START, rel, &[run]).await.expect("pages come");
        assert_eq!(pages.len(), run.count as usize * BLCKSZ);
        if start == 0 {
            first = pages[..BLCKSZ].to_vec();
        }
        last = pages[pages.len() - BLCKSZ..].to_vec();
    }
    let took = began.elapsed();
    cancel.cancel();
    running.await.expect("the page server ends");
    (took, [first, last])
}

/// How long ranged gets of all these objects take, and how many bytes they are.
fn read_all(store: &S3Store, objects: &[ObjectMeta]) -> (Duration, u64) {
    let ranges: Vec<_> = objects
        .iter()
        .flat_map(|object| {
            let size = object.size_bytes;
            (0..size).step_by(RANGE_BYTES as usize).map(move |at| (&object.name, at..(at + RANGE_BYTES).min(size)))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                while let Some((name, range)) = ranges.get(next.fetch_add(1, Ordering::Relaxed)) {
                    store.get_range(name, range.clone()).expect("the range is there");
                }
            });
        }
    });
    (began.elapsed(), objects.iter().map(|object| object.size_bytes).sum())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let table_bytes = u64::from(number_from("BENCH_TABLE_MB", 256)) << 20;
    let rounds = number_from("BENCH_ROUNDS", 3).max(1);
    let server = Seaweed::start();
    server.make_bucket("bench");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut workload = Workload::new(table_bytes);
    make_root(folder.path(), s3(&server), &mut workload);
    let blocks = workload.blocks();
    let Key::RelBlock(rel, _) = workload.key(0) else { unreachable!("it is a block's key") };
    let store = s3(&server);
    let objects = list_all(&store, "", false).expect("the store lists").objects;
    let layers: Vec<ObjectMeta> =
        objects.into_iter().filter(|object| object.name.as_str().contains("/layers/")).collect();

    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (mut ours, mut peer, mut bytes) = (Vec::new(), Vec::new(), 0);
    for round in 0..rounds {
        let own = folder.path().join(round.to_string());
        std::fs::create_dir(&own).expect("a folder can be made");
        let (took, ends) = runtime.block_on(scan(&own, s3(&server), rel, blocks));
        workload.check(0, &ends[0]);
        workload.check(blocks - 1, &ends[1]);
        ours.push(took.as_secs_f64() * 1e6 / f64::from(blocks));
        let (took, read) = read_all(&store, &layers);
        peer.push(took.as_secs_f64() * 1e6 / f64::from(blocks));
        bytes = read;
    }
    print_header();
    let (ours, peer) = (median(ours), median(peer));
    let rate = |us: f64| bytes as f64 / f64::from(blocks) / us;
    println!(
        "| cold scan of {} MB from S3 ({} MB stored), a page | {ours:.1} us, {:.0} MB/s of what is stored | {peer:.1} us, {:.0} MB/s (ranged gets, {CONNECTIONS} connections) | {:.2} | - | <= {:.1} us |",
        table_bytes >> 20,
        bytes >> 20,
        rate(ours),
        rate(peer),
        ours / peer,
        (2.0 * peer).max(10.0)
    );
}
