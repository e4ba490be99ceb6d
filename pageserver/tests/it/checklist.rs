//! The ingest checklist, as far as it is the page service's: a page server in this process, asked as a compute asks it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ardent_api::addr::ServiceAddr;
use ardent_api::page_service::{BlockRange, ErrorCode};
use ardent_api::token::{Claims, Rights, Service, TokenIssuer};
use ardent_object_store::LocalFolder;
use ardent_page_client::{Binding, PageClient, PageError};
use ardent_pageserver::{Pageserver, PageserverConfig};
use ardent_pg_format::PgMajor;
use ardent_pg_redo::Value;
use ardent_storage::{Engine, EngineConfig, RecordPosition, TimelineFacts};
use ardent_trusted_clock::{KeptClock, Reading, boot_id};
use ardent_types::{BLCKSZ, ForkNumber, Key, Lsn, PgTli, RelTag, SystemId, TenantId, TimelineId, WalSegmentSize};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

const TENANT: TenantId = TenantId::from_bytes([7; 16]);
const ROOT: TimelineId = TimelineId::from_bytes([1; 16]);
const BRANCH: TimelineId = TimelineId::from_bytes([2; 16]);
const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Main };

const FULL: Lsn = Lsn::new(0x200);
const TRUNCATED: Lsn = Lsn::new(0x300);
const REGROWN: Lsn = Lsn::new(0x400);
const DROPPED: Lsn = Lsn::new(0x500);

fn engine_config(folder: &Path) -> EngineConfig {
    let store = LocalFolder::open(&folder.join("store")).expect("the store can be made");
    EngineConfig { background: false, ..EngineConfig::new(folder.join("local"), Arc::new(store)) }
}

/// The values of a relation of four blocks (the last without a version), cut to one, grown to two, dropped: as ingest makes them.
/// A branch hangs where it was cut.
fn prepare(folder: &Path) {
    let engine = Engine::open(engine_config(folder)).expect("the engine opens");
    let facts = TimelineFacts {
        pg_major: PgMajor::V15,
        system_id: SystemId::new(42),
        pg_tli: PgTli::new(1),
        wal_segment_size: WalSegmentSize::DEFAULT,
        start_lsn: Lsn::new(0x100),
    };
    let root = engine.create_root(TENANT, ROOT, facts).expect("the root is made");
    root.finish_import().expect("the import ends");
    let size = |blocks: Option<u32>| {
        Value::Image(blocks.map_or_else(Bytes::new, |blocks| Bytes::copy_from_slice(&blocks.to_le_bytes())))
    };
    let page = |fill: u8| Value::Image(Bytes::from(vec![fill; BLCKSZ]));
    let block = |number| Key::RelBlock(REL, number);
    let put = |at: Lsn, values: Vec<(Key, Value)>| {
        let position = RecordPosition { end: at, start: Lsn::new(at.get() - 8) };
        root.put(values.into_iter().map(|(key, value)| (key, at, value)).collect(), position).expect("put");
    };
    put(
        FULL,
        vec![(block(0), page(10)), (block(1), page(11)), (block(2), page(12)), (Key::RelSize(REL), size(Some(4)))],
    );
    put(TRUNCATED, vec![(Key::RelSize(REL), size(Some(1)))]);
    put(REGROWN, vec![(block(1), page(21)), (Key::RelSize(REL), size(Some(2)))]);
    put(DROPPED, vec![(Key::RelSize(REL), size(None))]);
    engine.create_branch(TENANT, BRANCH, ROOT, Some(TRUNCATED)).expect("the branch is made");
    engine.shutdown().expect("all is durable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checklist_22_reading_past_the_end_gives_no_stale_page() {
    let folder = tempfile::tempdir().expect("folder");
    prepare(folder.path());
    let issuer = TokenIssuer::from_key(&TokenIssuer::generate_key().expect("key")).expect("issuer");
    let address = ServiceAddr::Unix(folder.path().join("page.sock"));
    let config = PageserverConfig {
        engine: engine_config(folder.path()),
        retention: Duration::from_secs(3600),
        listen: vec![address.clone()],
        verifier: issuer.verifier(),
        safekeepers: Vec::new(),
        safekeeper_token: String::new(),
    };
    let cancel = CancellationToken::new();
    let server = Pageserver::start(config, cancel.clone()).await.expect("the page server starts");
    let server = tokio::spawn(server.run());

    let client = async |timeline| {
        let claims = Claims {
            service: Service::Pageserver,
            tenant: Some(TENANT),
            timeline: Some(timeline),
            rights: Rights::Read,
            expires_at_s: None,
        };
        let binding = Binding { tenant: TENANT, timeline, token: issuer.issue(&claims) };
        PageClient::connect(&address, &binding).await.expect("connects")
    };
    // One connection for all, back and forth: what it remembers of a size must not answer for another LSN.
    let mut root = client(ROOT).await;
    let mut branch = client(BRANCH).await;
    for _ in 0..2 {
        for (at, expected) in [
            (FULL, &[Some(10), Some(11), Some(12), Some(0), None][..]),
            (DROPPED, &[None, None, None, None, None]),
            (TRUNCATED, &[Some(10), None, None, None, None]),
            (REGROWN, &[Some(10), Some(21), None, None, None]),
        ] {
            for (block, expected) in (0u32..).zip(expected) {
                let got = root.get_pages(at, REL, &[BlockRange { start: block, count: 1 }]).await;
                check(got, *expected, &format!("block {block} at {at}"));
            }
        }
        let got = branch.get_pages(TRUNCATED, REL, &[BlockRange { start: 1, count: 1 }]).await;
        check(got, None, "block 1 on the branch");
        let got = branch.get_pages(TRUNCATED, REL, &[BlockRange { start: 0, count: 1 }]).await;
        check(got, Some(10), "block 0 on the branch");
    }
    // A range that begins before the end and leaves it.
    let ranges = [BlockRange { start: 0, count: 1 }, BlockRange { start: 0, count: 2 }];
    let error = root.get_pages(TRUNCATED, REL, &ranges).await.expect_err("a part of it is not there");
    assert_eq!(error.code(), Some(ErrorCode::NotFound), "{error}");
    // One that leaves the numbers of blocks is no request; the connection ends, and the client learns of it.
    let error = root.get_pages(TRUNCATED, REL, &[BlockRange { start: u32::MAX, count: 2 }]).await;
    let error = error.expect_err("there are no such blocks");
    assert!(matches!(error, PageError::Lost { .. }), "{error}");
    cancel.cancel();
    server.await.expect("the page server ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_has_jumped_is_told_as_a_problem() {
    let folder = tempfile::tempdir().expect("folder");
    let issuer = TokenIssuer::from_key(&TokenIssuer::generate_key().expect("key")).expect("issuer");
    let config = || PageserverConfig {
        engine: engine_config(folder.path()),
        retention: Duration::from_secs(3600),
        listen: Vec::new(),
        verifier: issuer.verifier(),
        safekeepers: Vec::new(),
        safekeeper_token: String::new(),
    };
    let cancel = CancellationToken::new();
    let server = Pageserver::start(config(), cancel.clone()).await.expect("the page server starts");
    assert_eq!(server.problems()(), Vec::<String>::new());
    cancel.cancel();
    server.run().await;

    // As if the clock had been a week behind, and right, while it was seen last.
    let path = engine_config(folder.path()).local_dir.join("clock");
    std::fs::remove_file(&path).expect("it is kept there");
    let behind = || {
        let now = Reading::of_host();
        Reading { wall: now.wall - Duration::from_secs(7 * 86_400 + 3600), ..now }
    };
    drop(KeptClock::open_with(path, &boot_id(), behind));
    let cancel = CancellationToken::new();
    let server = Pageserver::start(config(), cancel.clone()).await.expect("the page server starts");
    let problems = server.problems()();
    assert!(
        matches!(&problems[..], [one] if one.starts_with("page server: this host's clock is 7 days ahead")),
        "{problems:?}"
    );
    cancel.cancel();
    server.run().await;
}

/// `Some`: a page of this byte; `None`: the block is named as one that is not there.
fn check(got: Result<Bytes, PageError>, expected: Option<u8>, what: &str) {
    match (got, expected) {
        (Ok(page), Some(fill)) => assert!(page.len() == BLCKSZ && page.iter().all(|byte| *byte == fill), "{what}"),
        (Err(error), None) => assert_eq!(error.code(), Some(ErrorCode::NotFound), "{what}: {error}"),
        (got, expected) => panic!("{what}: {:?} instead of {expected:?}", got.map(|page| page[0])),
    }
}
