//! Reading a stored object in order, in pieces as layers have them, through an empty cache; beside it the server's own rate for ranged gets
//! with as many connections as the cache may use.
//!
//! `cargo bench --profile dev -p ardent-object-store-s3 --bench cold_read`; prints MB/s of both and their ratio, round by round, and the medians.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ardent_object_store::{CacheOptions, CachedStore, ObjectName, ObjectStore};
use ardent_object_store_s3::{S3Keys, S3Location, S3Options, S3Store};
use ardent_test_s3::Seaweed;

const OBJECT_BYTES: u64 = 256 << 20;
/// What a reader asks for at once: about a group of a layer file.
const PIECE_BYTES: u64 = 40 << 10;
/// What the peer asks for at once: as much as the cache reads ahead.
const PEER_BYTES: u64 = 2 << 20;
const ROUNDS: usize = 5;

fn main() {
    let server = Seaweed::start();
    server.make_bucket("bench");
    let location = S3Location::parse(&format!("s3://bench?endpoint={}", server.endpoint())).expect("a good location");
    let (access, secret) = server.keys();
    let keys = Some(S3Keys { access: access.to_owned(), secret: secret.to_owned() });
    let store = Arc::new(S3Store::open(&location, &S3Options { keys, ..S3Options::default() }).expect("a store"));
    let scratch = tempfile::tempdir().expect("a temp folder");
    let file = scratch.path().join("object");
    let body: Vec<u8> = (0..OBJECT_BYTES as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&file, body).expect("the temp folder is writable");
    let name = ObjectName::new("object").expect("a good name");
    let begun = Instant::now();
    store.put_file(&name, &file).expect("the object can be stored");
    println!("put in parts: {:.0} MB/s", rate(OBJECT_BYTES, begun));

    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let mut peers = Vec::new();
        for connections in [1, 5] {
            let begun = Instant::now();
            ranged_gets(&*store, &name, connections);
            peers.push(rate(OBJECT_BYTES, begun));
        }
        let folder = scratch.path().join(format!("cache-{round}"));
        let options = CacheOptions { folder: folder.clone(), bytes_max: 2 * OBJECT_BYTES };
        let cached = CachedStore::open(store.clone(), options).expect("a cache");
        let cold = read_in_order(&cached, &name);
        let warm = read_in_order(&cached, &name);
        drop(cached);
        std::fs::remove_dir_all(folder).expect("the cache can be removed");
        println!(
            "round {round}: cold {cold:.0} MB/s, again {warm:.0} MB/s; ranged gets {:.0} MB/s with 1 connection, {:.0} MB/s with 5; ratio {:.2} and {:.2}",
            peers[0],
            peers[1],
            cold / peers[0],
            cold / peers[1]
        );
        rounds.push((cold / peers[0], cold / peers[1]));
    }
    let median = |of: fn(&(f64, f64)) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(of).collect();
        all.sort_unstable_by(f64::total_cmp);
        all[ROUNDS / 2]
    };
    println!("median ratio: {:.2} of 1 connection, {:.2} of 5", median(|round| round.0), median(|round| round.1));
}

fn rate(bytes: u64, since: Instant) -> f64 {
    bytes as f64 / 1e6 / since.elapsed().as_secs_f64()
}

fn read_in_order(store: &dyn ObjectStore, name: &ObjectName) -> f64 {
    let begun = Instant::now();
    for at in (0..OBJECT_BYTES).step_by(PIECE_BYTES as usize) {
        let piece = store.get_range(name, at..(at + PIECE_BYTES).min(OBJECT_BYTES)).expect("the object can be read");
        assert!(!piece.is_empty());
    }
    rate(OBJECT_BYTES, begun)
}

fn ranged_gets(store: &dyn ObjectStore, name: &ObjectName, connections: usize) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(PEER_BYTES, Ordering::Relaxed);
                    if at >= OBJECT_BYTES {
                        return;
                    }
                    store.get_range(name, at..(at + PEER_BYTES).min(OBJECT_BYTES)).expect("the object can be read");
                }
            });
        }
    });
}
