//! What an imported database takes in the store, and what it costs that a page lies in a group with others, beside `zstd -1` over as large groups:
//! `cargo test -p ardent-pageserver --bench stored_size`. Prints a table.
//!
//! Two databases: what pgbench makes, and a table of hexadecimal text, which can be made half as large and no smaller (`BENCH_TABLE_MB`,
//! default 64).

#[path = "../tests/it/workload.rs"]
mod workload;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ardent_object_store::LocalFolder;
use ardent_storage::{Engine, EngineConfig, TimelineFacts};
use ardent_test_pg::side_by_side::{number_from, print_header};
use ardent_test_pg::{PgbenchRun, PgbenchRunOptions};
use ardent_types::{BLCKSZ, ForkNumber, Key, RelTag, TenantId, TimelineId};
use bytes::Bytes;
use workload::{START, STREAM, Workload};

const GROUP_BYTES: usize = 64 << 10;
const READS: usize = 5000;

/// The pages of the files that hold relations of a database, in the order of their names.
fn pages_of(base: &Path) -> Vec<(Key, Bytes)> {
    let mut pages = Vec::new();
    let databases = fs::read_dir(base.join("base")).expect("the base can be read");
    let mut folders: Vec<PathBuf> = databases.map(|entry| entry.expect("an entry").path()).collect();
    folders.sort();
    for folder in folders {
        let number = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
        let Some(dbnode) = number(&folder) else { continue };
        let files = fs::read_dir(&folder).expect("the database can be read");
        // Main forks of one segment: there are no others worth counting.
        let mut files: Vec<_> = files
            .filter_map(|entry| entry.ok().map(|entry| entry.path()).and_then(|path| Some((number(&path)?, path))))
            .collect();
        files.sort();
        for (relnode, path) in files {
            let rel = RelTag { spcnode: 1663, dbnode, relnode, fork: ForkNumber::Main };
            let content = Bytes::from(fs::read(path).expect("a file can be read"));
            pages.extend(
                (0..content.len() / BLCKSZ).map(|block| {
                    (Key::RelBlock(rel, block as u32), content.slice(block * BLCKSZ..(block + 1) * BLCKSZ))
                }),
            );
        }
    }
    pages
}

/// `zstd -1` over groups of the pages.
fn groups_of(pages: &[(Key, Bytes)]) -> Vec<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(1).expect("zstd works");
    let groups = pages.chunks(GROUP_BYTES / BLCKSZ);
    let pack = |group: &[(Key, Bytes)]| {
        let raw: Vec<u8> = group.iter().flat_map(|(_, page)| page.iter().copied()).collect();
        compressor.compress(&raw).expect("zstd works")
    };
    groups.map(pack).collect()
}

fn compare(name: &str, pages: &[(Key, Bytes)]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = LocalFolder::open(&folder.path().join("store")).expect("the store opens");
    let config = EngineConfig {
        background: false,
        page_cache_bytes: 0,
        block_cache_bytes: 0,
        ..EngineConfig::new(folder.path().join("local"), Arc::new(store))
    };
    let engine = Engine::open(config).expect("the engine opens");
    let facts = TimelineFacts {
        pg_major: STREAM.major,
        system_id: STREAM.system_id,
        pg_tli: STREAM.tli,
        wal_segment_size: STREAM.segment_size,
        start_lsn: START,
    };
    let root = engine.create_root(TenantId::generate(), TimelineId::generate(), facts).expect("a root is made");
    pages.chunks(1024).for_each(|part| root.import_images(part).expect("images are taken"));
    root.finish_import().expect("the import is finished");

    let groups = groups_of(pages);
    let (ours, peer) = (root.sizes().stored_bytes, groups.iter().map(Vec::len).sum::<usize>() as u64);
    let raw = pages.len() * BLCKSZ;
    let times = |bytes: u64| format!("{:.2} MB ({:.1} times smaller)", bytes as f64 / 1e6, raw as f64 / bytes as f64);
    println!(
        "| stored, {:.0} MB {name} | {} | {} (zstd -1, groups of 64 KiB) | {:.3} | - | <= 1.15 |",
        raw as f64 / 1e6,
        times(ours),
        times(peer),
        ours as f64 / peer as f64
    );

    let mut state = 1u64;
    let mut any = |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % limit
    };
    let mut decompressor = zstd::bulk::Decompressor::new().expect("zstd works");
    let (mut took, mut peer_took) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..READS {
        let at = any(pages.len());
        let began = Instant::now();
        let page = root.get(&pages[at].0, START).expect("readable").expect("the page is there");
        took += began.elapsed();
        let began = Instant::now();
        let group = decompressor.decompress(&groups[at / (GROUP_BYTES / BLCKSZ)], GROUP_BYTES).expect("whole");
        peer_took += began.elapsed();
        let from = at % (GROUP_BYTES / BLCKSZ) * BLCKSZ;
        assert_eq!((&page[..], &group[from..from + BLCKSZ]), (&pages[at].1[..], &pages[at].1[..]));
    }
    let each = |took: Duration| took.as_secs_f64() * 1e6 / READS as f64;
    println!(
        "| ... a page of it without any cache, from a file in memory | {:.1} us | {:.1} us (unpacking its group alone) | {:.2} | - | - |",
        each(took),
        each(peer_took),
        each(took) / each(peer_took)
    );
}

fn main() {
    print_header();
    let run = PgbenchRun::make(PgbenchRunOptions { full_page_writes: false, transactions: 1000 });
    compare("of pgbench's", &pages_of(run.base()));
    let mut workload = Workload::new(u64::from(number_from("BENCH_TABLE_MB", 64)) << 20);
    let mut pages = Vec::new();
    workload.give_pages(|part| pages.extend_from_slice(part));
    compare("of random text", &pages);
}
