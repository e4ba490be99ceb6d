//! WAL of a real server through a safekeeper to the real `pg_receivewal`, read by the real `pg_waldump`.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use ardent_api::addr::ServiceAddr;
use ardent_api::token::Rights;
use ardent_object_store::{MemoryStore, ObjectStore, list_all};
use ardent_pg_format::PgMajor;
use ardent_pg_format::segment::wal_file_name;
use ardent_pg_format::wal::RecordBoundaryTracker;
use ardent_safekeeper::Safekeeper;
use ardent_test_pg::{StopMode, TestPg, TestPgOptions, program};
use ardent_types::{Lsn, PgTli, SystemId, WalSegmentSize};

use crate::support::{World, eventually, reached};

/// WAL of a server that has done some work, from a checkpoint in the middle of a segment to the last record.
struct RealWal {
    server: TestPg,
    bytes: Vec<u8>,
    system_id: SystemId,
    start: Lsn,
    end: Lsn,
}

const SEGMENT_BYTES: u32 = 1 << 20;

fn real_wal() -> RealWal {
    let mut server = TestPg::start(TestPgOptions::default().initdb_arg("--wal-segsize=1").set("wal_keep_size", "1GB"));
    let start: Lsn = server.sql("select redo_lsn from pg_control_checkpoint()").trim().parse().expect("an LSN");
    server.sql("create table t as select i, repeat('x', 200) as filler from generate_series(1, 20000) i");
    server.sql("update t set i = i + 1 where i % 3 = 0");
    server.sql("checkpoint");
    server.sql("insert into t select i, 'y' from generate_series(1, 5000) i");
    let system_id = server.sql("select system_identifier from pg_control_system()").trim().parse().expect("a number");
    server.stop(StopMode::Fast);
    let dir = server.data_dir().join("pg_wal");
    let mut names: Vec<String> = std::fs::read_dir(&dir)
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.len() == 24)
        .collect();
    names.sort_unstable();
    let size = WalSegmentSize::new(SEGMENT_BYTES).expect("allowed");
    let first = wal_file_name(PgTli::new(1), start.segment_number(size), size);
    names.retain(|name| *name >= first);
    let mut bytes: Vec<u8> = names.iter().flat_map(|name| std::fs::read(dir.join(name)).expect("a segment")).collect();
    bytes.drain(..start.segment_offset(size) as usize);
    let mut tracker = RecordBoundaryTracker::new(start, PgMajor::V15, size);
    // The error is the end: what follows in the last segment is zeros or of a recycled file.
    tracker.feed(Bytes::copy_from_slice(&bytes)).expect_err("WAL ends somewhere");
    let end = tracker.end_of_last_record();
    bytes.truncate(end.checked_sub(start).expect("after the start") as usize);
    RealWal { server, bytes, system_id: SystemId::new(system_id), start, end }
}

fn run(command: &mut Command) -> Output {
    command.env_remove("PGPASSWORD").env("LC_ALL", "C").output().expect("the program runs")
}

fn waldump(dir: &Path, start: Lsn, end: Lsn) -> String {
    let mut command = Command::new(program("pg_waldump"));
    let output = run(command.arg("--path").arg(dir).args(["--start", &start.to_string(), "--end", &end.to_string()]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn receivewal(address: &ServiceAddr, world: &World, password: &str, dir: &Path, end: Lsn) -> Output {
    receivewal_with("", address, world, password, dir, end)
}

/// `security`: of the connection, as libpq writes it.
fn receivewal_with(
    security: &str,
    address: &ServiceAddr,
    world: &World,
    password: &str,
    dir: &Path,
    end: Lsn,
) -> Output {
    let (ServiceAddr::Tcp(host_port) | ServiceAddr::Tls(host_port, _)) = address else { panic!("it is on TCP") };
    let (host, port) = host_port.rsplit_once(':').expect("host:port");
    let spec = &world.spec;
    let connection = format!(
        "host={host} port={port} user=reader password={password} {security} \
         options='-c ardent.tenant={} -c ardent.timeline={}'",
        spec.tenant, spec.timeline
    );
    let mut command = Command::new(program("pg_receivewal"));
    run(command.arg("--directory").arg(dir).args([
        "--slot=oldest",
        "--no-loop",
        "--dbname",
        &connection,
        "--endpos",
        &end.to_string(),
    ]))
}

/// All WAL from the oldest that there is, as `pg_receivewal` stores it.
fn received(safekeeper: &Safekeeper, world: &World, end: Lsn) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let address = &safekeeper.replication_addresses()[0];
    // It ends when it has received bytes past the end position.
    let output = receivewal(address, world, &world.token(Rights::Read), dir.path(), Lsn::new(end.get() - 8));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The last segment is not complete.
    for entry in std::fs::read_dir(dir.path()).expect("the folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "partial") {
            std::fs::rename(&path, path.with_extension("")).expect("renamed");
        }
    }
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn pg_receivewal_gets_what_pg_waldump_reads() {
    let real = tokio::task::spawn_blocking(real_wal).await.expect("a server");
    let mut world = World::new();
    (world.spec.system_id, world.spec.start_lsn, world.spec.prev_lsn) = (real.system_id, real.start, Lsn::INVALID);
    let dir = tempfile::tempdir().expect("a folder");
    let safekeeper = world.start(dir.path()).await;
    let addresses = safekeeper.addresses().to_vec();
    world.create(&addresses).await;
    let (proposer, elected) = world.elect(&addresses).await;
    assert_eq!((elected.end_lsn, elected.prev_lsn), (real.start, Lsn::INVALID));
    proposer.append(real.start, Bytes::copy_from_slice(&real.bytes)).await.expect("appended");
    reached(proposer.committed(), real.end).await;
    let timeline = world.spec.timeline;
    eventually("the safekeeper knows the commit position", async || {
        let mut client = world.client(&addresses[0]).await;
        client.status(timeline).await.expect("status").commit_lsn == real.end
    })
    .await;

    let expected = waldump(&real.server.data_dir().join("pg_wal"), real.start, real.end);
    assert!(expected.lines().count() > 10_000, "{} records", expected.lines().count());
    let own = dir.path().join("data").join(world.spec.tenant.to_string()).join(timeline.to_string()).join("wal");
    assert!(waldump(&own, real.start, real.end) == expected, "the safekeeper's own files read differently");

    let received = received(&safekeeper, &world, real.end);
    assert!(waldump(received.path(), real.start, real.end) == expected, "what was received reads differently");
    proposer.shutdown().await;
    safekeeper.shutdown().await;
}

/// Only the last segments are here; the rest comes from the store, where it can be had as plain files too.
#[tokio::test(flavor = "multi_thread")]
async fn pg_receivewal_gets_what_is_archived_from_its_beginning() {
    let real = tokio::task::spawn_blocking(real_wal).await.expect("a server");
    let mut world = World::new();
    (world.spec.system_id, world.spec.start_lsn, world.spec.prev_lsn) = (real.system_id, real.start, Lsn::INVALID);
    let (dir, store) = (tempfile::tempdir().expect("a folder"), Arc::new(MemoryStore::new()));
    let mut config = world.config(dir.path());
    config.wal_keep_bytes = 0;
    config.archive = Some(Arc::clone(&store) as Arc<dyn ObjectStore>);
    let safekeeper = Safekeeper::start(config, CancellationToken::new()).await.expect("starts");
    let addresses = safekeeper.addresses().to_vec();
    world.create(&addresses).await;
    let (proposer, _) = world.elect(&addresses).await;
    proposer.append(real.start, Bytes::copy_from_slice(&real.bytes)).await.expect("appended");
    reached(proposer.committed(), real.end).await;
    let (timeline, size) = (world.spec.timeline, world.spec.wal_segment_size);
    eventually("all but the last segment is trimmed", async || {
        let mut client = world.client(&addresses[0]).await;
        client.status(timeline).await.expect("status").oldest_lsn == real.end.segment_start(size)
    })
    .await;

    let expected = waldump(&real.server.data_dir().join("pg_wal"), real.start, real.end);
    let received = received(&safekeeper, &world, real.end);
    assert!(waldump(received.path(), real.start, real.end) == expected, "what was received reads differently");

    // As docs/formats/wal-archive.md says.
    let plain = tempfile::tempdir().expect("a folder");
    let objects = list_all(&*store, "timelines/", false).expect("listed").objects;
    assert!(objects.len() >= 5, "{} segments", objects.len());
    for object in objects {
        let bytes = store.get(&object.name).expect("it is there");
        let blocks = u32::from_le_bytes(bytes[40..44].try_into().expect("four bytes")) as usize;
        let segment = zstd::stream::decode_all(&bytes[44 + 8 * blocks + 4..]).expect("frames");
        assert_eq!(segment.len() as u32, SEGMENT_BYTES);
        std::fs::write(plain.path().join(object.name.file_name()), segment).expect("written");
    }
    let last = wal_file_name(PgTli::new(1), real.end.segment_number(size), size);
    std::fs::copy(received.path().join(&last), plain.path().join(&last)).expect("copied");
    assert!(waldump(plain.path(), real.start, real.end) == expected, "the archived files read differently");
    proposer.shutdown().await;
    safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_without_the_right_token_gets_nothing() {
    let (world, dir, stranger) = (World::new(), tempfile::tempdir().expect("a folder"), World::new());
    let safekeeper = world.start(dir.path()).await;
    world.create(safekeeper.addresses()).await;
    let received = tempfile::tempdir().expect("a folder");
    let address = safekeeper.replication_addresses()[0].clone();
    for password in ["nonsense".to_owned(), stranger.token(Rights::Manage)] {
        let output = receivewal(&address, &world, &password, received.path(), Lsn::MAX);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains("token"), "{message}");
    }
    assert_eq!(std::fs::read_dir(received.path()).expect("the folder").count(), 0);
    safekeeper.shutdown().await;
}

/// As from another host: libpq knows no keys, and verifies by the safekeeper's authority and names.
#[tokio::test(flavor = "multi_thread")]
async fn pg_receivewal_verifies_who_it_receives_from() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    let mut config = world.config(dir.path());
    config.listen_replication = vec!["tls:127.0.0.1:0".parse().expect("an address")];
    config.tls_names = vec!["wal.example.com".to_owned()];
    let safekeeper = Safekeeper::start(config, CancellationToken::new()).await.expect("starts");
    let addresses = safekeeper.addresses().to_vec();
    world.create(&addresses).await;
    let (proposer, elected) = world.elect(&addresses).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(3 << 20);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;

    let (address, token) = (safekeeper.replication_addresses()[0].clone(), world.token(Rights::Read));
    let end = Lsn::new(wal.end().get() - 8);
    let ca = dir.path().join("data/tls-ca.pem");
    let verified = format!("sslmode=verify-full sslrootcert={}", ca.display());
    // The client connects to 127.0.0.1 and holds the name against the certificate: libpq takes the two apart.
    let named = |name: &str| match &address {
        ServiceAddr::Tls(at, pin) => {
            let (_, port) = at.rsplit_once(':').expect("a port");
            ServiceAddr::Tls(format!("{name}:{port}"), *pin)
        }
        other => panic!("TLS is asked for, not {other}"),
    };
    let at_host = |security: &str| format!("{security} hostaddr=127.0.0.1");
    for (security, address) in [(verified.clone(), address.clone()), (at_host(&verified), named("wal.example.com"))] {
        let received = tempfile::tempdir().expect("a folder");
        let output = receivewal_with(&security, &address, &world, &token, received.path(), end);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let size = world.spec.wal_segment_size;
        let second = wal_file_name(PgTli::new(1), start.segment_number(size) + 1, size);
        let file = std::fs::read(received.path().join(second)).expect("a whole segment");
        let from = size.bytes() as usize - start.segment_offset(size) as usize;
        assert!(file == wal.bytes()[from..from + file.len()], "other bytes came");
    }

    // Neither another name, nor another authority, nor a client that does not encrypt.
    let other = tempfile::tempdir().expect("a folder");
    let mut strangers = world.config(other.path());
    strangers.listen_replication = vec!["tls:127.0.0.1:0".parse().expect("an address")];
    let stranger = Safekeeper::start(strangers, CancellationToken::new()).await.expect("starts");
    let foreign = format!("sslmode=verify-full sslrootcert={}", other.path().join("data/tls-ca.pem").display());
    let check = |security: &str, address: &ServiceAddr, expect: &str| {
        let received = tempfile::tempdir().expect("a folder");
        let output = receivewal_with(security, address, &world, &token, received.path(), end);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains(expect), "{security}: {message}");
        assert_eq!(std::fs::read_dir(received.path()).expect("the folder").count(), 0);
    };
    check(&at_host(&verified), &named("other.example.com"), "does not match host name");
    check(&foreign, &address, "certificate verify failed");
    check("sslmode=disable", &address, "only TLS is spoken");
    stranger.shutdown().await;
    proposer.shutdown().await;
    safekeeper.shutdown().await;
}
