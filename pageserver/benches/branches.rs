//! Many branches on one page server: making them, starting with them, and what an idle one costs:
//! `cargo test -p ardent-pageserver --bench branches`. Prints a table.
//!
//! `BENCH_BRANCHES` (default 10000) is their number, `BENCH_CLIENTS` (default 8) how many connections make them. Everything goes over the
//! page server's Unix socket. Each phase is a process of its own, so that none has memory of the one before.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ardent_api::addr::ServiceAddr;
use ardent_api::page_service::{ManageReply, ManageRequest};
use ardent_api::token::{Claims, Rights, Service, TokenIssuer};
use ardent_object_store::LocalFolder;
use ardent_page_client::{Binding, PageClient};
use ardent_pageserver::{Pageserver, PageserverConfig};
use ardent_pg_format::PgMajor;
use ardent_storage::{Engine, EngineConfig, TimelineFacts};
use ardent_test_pg::side_by_side::{number_from, print_header};
use ardent_types::{ForkNumber, Key, Lsn, PgTli, RelTag, SystemId, TenantId, TimelineId, WalSegmentSize};
use bytes::Bytes;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const TENANT: TenantId = TenantId::from_bytes([7; 16]);
const ROOT: TimelineId = TimelineId::from_bytes([1; 16]);
/// Says which phase a process is to run, and where.
const PHASE: &str = "BENCH_BRANCHES_PHASE";
const FOLDER: &str = "BENCH_BRANCHES_FOLDER";

fn branch(number: u32) -> TimelineId {
    TimelineId::from_bytes(
        (u128::from(number) + 1000).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).to_be_bytes(),
    )
}

fn engine_config(folder: &Path) -> EngineConfig {
    let store = LocalFolder::open(&folder.join("store")).expect("the store opens");
    EngineConfig::new(folder.join("local"), Arc::new(store))
}

fn make_root(folder: &Path) {
    let engine = Engine::open(engine_config(folder)).expect("the engine opens");
    let facts = TimelineFacts {
        pg_major: PgMajor::V15,
        system_id: SystemId::new(1),
        pg_tli: PgTli::new(1),
        wal_segment_size: WalSegmentSize::DEFAULT,
        start_lsn: Lsn::new(0x100),
    };
    let root = engine.create_root(TENANT, ROOT, facts).expect("a root is made");
    let rel = RelTag { spcnode: 1663, dbnode: 5, relnode: 16_384, fork: ForkNumber::Main };
    let mut values = vec![(Key::RelSize(rel), Bytes::copy_from_slice(&16u32.to_le_bytes()))];
    values.extend((0..16).map(|block| (Key::RelBlock(rel, block), Bytes::from(vec![block as u8; 8192]))));
    root.import_images(&values).expect("images are taken");
    root.finish_import().expect("the import is finished");
    engine.shutdown().expect("all is durable");
}

/// A page server in this process.
struct House {
    address: ServiceAddr,
    issuer: TokenIssuer,
    registry: Registry,
    cancel: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

impl House {
    async fn start(folder: &Path, idle_unload_after: Duration) -> House {
        let issuer = TokenIssuer::from_key(&TokenIssuer::generate_key().expect("key")).expect("issuer");
        let address = ServiceAddr::Unix(folder.join("page.sock"));
        let config = PageserverConfig {
            engine: EngineConfig { idle_unload_after, ..engine_config(folder) },
            retention: Duration::from_secs(7 * 24 * 3600),
            listen: vec![address.clone()],
            verifier: issuer.verifier(),
            safekeepers: Vec::new(),
            safekeeper_token: String::new(),
        };
        let cancel = CancellationToken::new();
        let server = Pageserver::start(config, cancel.clone()).await.expect("the page server starts");
        let mut registry = Registry::default();
        server.register_metrics(&mut registry);
        House { address, issuer, registry, cancel, server: tokio::spawn(server.run()) }
    }

    /// How many timelines are loaded.
    fn loaded(&self) -> u64 {
        let mut told = String::new();
        encode(&mut told, &self.registry).expect("metrics can be told");
        let line = told.lines().find_map(|line| line.strip_prefix("ardent_pageserver_timelines_loaded "));
        line.and_then(|number| number.parse().ok()).expect("it is told")
    }

    /// A client that may do everything.
    async fn client(&self) -> PageClient {
        let claims = Claims {
            service: Service::Pageserver,
            tenant: Some(TENANT),
            timeline: None,
            rights: Rights::Manage,
            expires_at_s: None,
        };
        let binding = Binding { tenant: TENANT, timeline: TimelineId::NONE, token: self.issuer.issue(&claims) };
        PageClient::connect(&self.address, &binding).await.expect("connects")
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.server.await.expect("the page server ends");
    }

    /// Has each of the branches done something to, by as many connections at once.
    async fn each(&self, branches: u32, clients: u32, request: fn(TimelineId) -> ManageRequest) -> Duration {
        let mut tasks = JoinSet::new();
        let began = Instant::now();
        for first in 0..clients {
            let mut client = self.client().await;
            tasks.spawn(async move {
                for number in (first..branches).step_by(clients as usize) {
                    let reply = client.manage(request(branch(number))).await.expect("the request is answered");
                    assert!(!matches!(reply, ManageReply::Done));
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("the client was fine");
        }
        began.elapsed()
    }
}

fn create(timeline: TimelineId) -> ManageRequest {
    ManageRequest::CreateBranch { timeline, ancestor: ROOT, at: None, description: None }
}

fn status(timeline: TimelineId) -> ManageRequest {
    ManageRequest::TimelineStatus { timeline }
}

/// Memory of this process that is its own, in bytes.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("the kernel keeps this");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("it is there");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// So many small files made durable, in a folder each, as each branch needs two: file, rename, fsync of file and folder.
fn durable_files(folder: &Path, files: u32, threads: u32) -> Duration {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for first in 0..threads {
            scope.spawn(move || {
                for number in (first..files).step_by(threads as usize) {
                    let home = folder.join(number.to_string());
                    fs::create_dir_all(&home).expect("a folder can be made");
                    let mut file = fs::File::create(home.join("new")).expect("a file can be made");
                    file.write_all(&[7; 600]).expect("it can be written");
                    file.sync_all().expect("it can be made durable");
                    fs::rename(home.join("new"), home.join("file")).expect("it can be renamed");
                    fs::File::open(&home).and_then(|home| home.sync_all()).expect("so can its folder");
                }
            });
        }
    });
    began.elapsed()
}

fn stored_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).expect("the store can be read").map(|entry| entry.expect("an entry").path());
    entries.map(|path| if path.is_dir() { stored_bytes(&path) } else { path.metadata().expect("a file").size() }).sum()
}

fn row(case: &str, ours: &str, peer: &str, ratio: &str, target: &str) {
    println!("| {case} | {ours} | {peer} | {ratio} | - | {target} |");
}

async fn make(folder: &Path, branches: u32, clients: u32) {
    make_root(folder);
    let before = stored_bytes(&folder.join("store"));
    let house = House::start(folder, Duration::from_secs(3600)).await;
    for (clients, target) in [(1, "-"), (clients, ">= 500/s")] {
        let count = if clients == 1 { branches / 10 } else { branches };
        let took = house.each(count, clients, create).await;
        let made = if clients == 1 { count } else { branches - branches / 10 };
        let peer = durable_files(&folder.join(format!("peer-{clients}")), 2 * made, clients);
        let rate = |took: Duration| f64::from(made) / took.as_secs_f64();
        row(
            &format!("branches made over {clients} connections"),
            &format!("{:.0}/s", rate(took)),
            &format!("{:.0}/s (two small durable files each)", rate(peer)),
            &format!("{:.2}", rate(took) / rate(peer)),
            target,
        );
    }
    house.stop().await;
    let each = (stored_bytes(&folder.join("store")) - before) / u64::from(branches);
    row("stored for a branch without writes", &format!("{each} bytes"), "-", "-", "< 4096");
}

async fn use_them(folder: &Path, branches: u32, clients: u32) {
    const IDLE: Duration = Duration::from_secs(2);
    let began = Instant::now();
    let house = House::start(folder, IDLE).await;
    let mut client = house.client().await;
    client.manage(status(branch(branches / 2))).await.expect("a branch answers");
    let took = began.elapsed();
    row(
        &format!("start with {branches} branches, until one of them has answered"),
        &format!("{:.1} ms", took.as_secs_f64() * 1e3),
        "-",
        "-",
        "< 2 s",
    );
    let before = memory();
    let took = house.each(branches, clients, status).await;
    let loaded = memory();
    let each = |bytes: u64| bytes as f64 / f64::from(branches);
    let rate = format!("{:.0}/s", f64::from(branches) / took.as_secs_f64());
    row(&format!("branches loaded on first use, over {clients} connections"), &rate, "-", "-", "-");
    row("memory of a loaded branch", &format!("{:.0} bytes", each(loaded - before)), "-", "-", "< 16384");
    let began = Instant::now();
    while house.loaded() > 0 {
        assert!(began.elapsed() < Duration::from_secs(120), "{} are still loaded", house.loaded());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    row(
        &format!("all unloaded, of branches that are idle for {} s, after", IDLE.as_secs()),
        &format!("{:.1} s", began.elapsed().as_secs_f64()),
        "-",
        "-",
        "-",
    );
    let again = house.each(branches, clients, status).await;
    let rate = format!("{:.0}/s", f64::from(branches) / again.as_secs_f64());
    row("branches loaded again", &rate, "-", "-", "-");
    let both = memory().saturating_sub(before);
    row("memory of a branch that was loaded twice", &format!("{:.0} bytes", each(both)), "-", "-", "< 16384");
    house.stop().await;
}

fn main() {
    let branches = number_from("BENCH_BRANCHES", 10_000).max(10);
    let clients = number_from("BENCH_CLIENTS", 8).max(1);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    if let Ok(phase) = std::env::var(PHASE) {
        let folder = PathBuf::from(std::env::var_os(FOLDER).expect("the folder is said"));
        match phase.as_str() {
            "make" => runtime.block_on(make(&folder, branches, clients)),
            _ => runtime.block_on(use_them(&folder, branches, clients)),
        }
        return;
    }
    print_header();
    let folder = tempfile::tempdir().expect("a temporary folder");
    for phase in ["make", "use"] {
        let program = std::env::current_exe().expect("this program has a path");
        let status = std::process::Command::new(program).env(PHASE, phase).env(FOLDER, folder.path()).status();
        assert!(status.expect("the phase runs").success(), "phase {phase} failed");
    }
}
