//! Safekeepers that are reached over TLS, as from other hosts.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use ardent_api::addr::{ListenAddr, ServiceAddr};
use ardent_api::token::Rights;
use ardent_api::wal_service::ErrorCode;
use ardent_safekeeper::{Safekeeper, SafekeeperConfig, StartError};
use ardent_wal_client::{ClientError, Proposer, ProposerError, SafekeeperClient};

use crate::support::{World, reached, read_up_to};

fn config(world: &World, dir: &Path, listen: &str) -> SafekeeperConfig {
    let mut config = world.config(dir);
    config.listen = vec![listen.parse().expect("an address")];
    config
}

async fn start(world: &World, dir: &Path, listen: &str) -> Safekeeper {
    Safekeeper::start(config(world, dir, listen), CancellationToken::new()).await.expect("starts")
}

/// An address with the key of another one.
fn with_key_of(address: &ServiceAddr, other: &ServiceAddr) -> ServiceAddr {
    let (ServiceAddr::Tls(at, _), ServiceAddr::Tls(_, pin)) = (address, other) else { panic!("TLS is asked for") };
    ServiceAddr::Tls(at.clone(), *pin)
}

fn host_port(address: &ServiceAddr) -> &str {
    match address {
        ServiceAddr::Tcp(at) | ServiceAddr::Tls(at, _) => at,
        ServiceAddr::Unix(_) => panic!("it is on TCP"),
    }
}

async fn refusal(world: &World, address: &ServiceAddr) -> ClientError {
    let connected = SafekeeperClient::connect(address, world.spec.tenant, &world.token(Rights::Manage)).await;
    connected.err().expect("refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quorum_over_tls_keeps_what_is_written_and_its_addresses_over_a_restart() {
    let world = World::new();
    let dirs = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
    let unix = start(&world, dirs[0].path(), &format!("unix:{}/sk.sock", dirs[0].path().display())).await;
    let second = start(&world, dirs[1].path(), "tls:127.0.0.1:0").await;
    let third = start(&world, dirs[2].path(), "tls:localhost:0").await;
    let addresses = [&unix, &second, &third].map(|safekeeper| safekeeper.addresses()[0].clone());
    assert!(addresses[2].to_string().starts_with("tls:localhost:"), "{}", addresses[2]);
    world.create(&addresses).await;
    let (proposer, elected) = world.elect(&addresses).await;
    unix.shutdown().await;

    // More than buffers hold, and then a piece that must not wait for another.
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    for length in [6 << 20, 1] {
        let (start, data) = wal.take(length);
        proposer.append(start, data).await.expect("appended");
        reached(proposer.committed(), wal.end()).await;
    }
    for address in &addresses[1..] {
        let mut reader = world.reader(std::slice::from_ref(address), elected.end_lsn).await;
        assert!(read_up_to(&mut reader, wal.end()).await == wal.bytes(), "{address} gave other bytes");
    }

    let listen = ListenAddr::from(addresses[1].clone()).to_string();
    second.shutdown().await;
    let second = start(&world, dirs[1].path(), &listen).await;
    assert_eq!(second.addresses(), &addresses[1..2], "its key is kept");
    let (start, data) = wal.take(100_000);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    proposer.shutdown().await;
    second.shutdown().await;
    third.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_hold_the_key_is_no_safekeeper() {
    let world = World::new();
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let one = start(&world, dirs[0].path(), "tls:127.0.0.1:0").await;
    let other = start(&world, dirs[1].path(), "tls:127.0.0.1:0").await;
    let (address, shown) = (&one.addresses()[0], &other.addresses()[0]);
    world.create(std::slice::from_ref(address)).await;

    let wrong = with_key_of(shown, address);
    let error = refusal(&world, &wrong).await;
    let ServiceAddr::Tls(_, key) = shown else { panic!("TLS is asked for") };
    assert!(matches!(&error, ClientError::WrongKey { shown, .. } if shown == key), "{error:?}");
    assert!(!error.is_retryable());
    assert!(error.to_string().contains(&key.to_string()), "{error}");

    // A writer that only finds such gives up at once, and says why.
    let electing = Proposer::elect(world.proposer_config(&[wrong]), CancellationToken::new());
    let error = tokio::time::timeout(Duration::from_secs(5), electing).await.expect("at once").expect_err("no quorum");
    assert!(matches!(&error, ProposerError::NoQuorum { source: Some(ClientError::WrongKey { .. }), .. }), "{error:?}");
    one.shutdown().await;
    other.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_side_encrypts_and_the_other_does_not() {
    let world = World::new();
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let plain = start(&world, dirs[0].path(), "tcp:127.0.0.1:0").await;
    let encrypted = start(&world, dirs[1].path(), "tls:127.0.0.1:0").await;
    let (plain_address, tls_address) = (&plain.addresses()[0], &encrypted.addresses()[0]);

    let error = refusal(&world, &ServiceAddr::Tcp(host_port(tls_address).to_owned())).await;
    assert_eq!(error.code(), Some(ErrorCode::Refused));
    assert!(error.to_string().contains("tls:HOST:PORT/KEY"), "{error}");

    let ServiceAddr::Tls(_, pin) = tls_address else { panic!("TLS is asked for") };
    let error = refusal(&world, &ServiceAddr::Tls(host_port(plain_address).to_owned(), *pin)).await;
    assert!(matches!(error, ClientError::NotTls { .. }), "{error:?}");

    // One that was served stays so.
    world.create(std::slice::from_ref(plain_address)).await;
    world.create(std::slice::from_ref(tls_address)).await;
    plain.shutdown().await;
    encrypted.shutdown().await;
}

/// A stranger's first message is short or it is not read.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_cannot_have_memory_set_aside() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    let safekeeper = start(&world, dir.path(), "tcp:127.0.0.1:0").await;
    let mut stream = TcpStream::connect(host_port(&safekeeper.addresses()[0])).await.expect("connected");
    stream.write_all(&(60_u32 << 20).to_le_bytes()).await.expect("written");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.expect("at once");
    assert!(read.is_err() || answer.is_empty(), "{answer:?}");
    safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_hosts_reach_nothing_that_is_not_encrypted() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    let mut open = config(&world, dir.path(), "tcp:127.0.0.1:0");
    let mut refused = config(&world, dir.path(), "tcp:0.0.0.0:7431");
    let check = async |config: SafekeeperConfig| {
        let error = Safekeeper::start(config, CancellationToken::new()).await.expect_err("refused");
        assert!(matches!(error, StartError::OffHost { .. }), "{error:?}");
        assert!(error.to_string().contains("tls:0.0.0.0:7431"), "{error}");
    };
    check(refused.clone()).await;
    refused.listen = open.listen.clone();
    refused.listen_replication = vec!["tcp:0.0.0.0:7431".parse().expect("an address")];
    check(refused).await;

    open.listen = vec!["tls:0.0.0.0:0".parse().expect("an address")];
    let safekeeper = Safekeeper::start(open, CancellationToken::new()).await.expect("starts");
    let ServiceAddr::Tls(at, pin) = &safekeeper.addresses()[0] else { panic!("TLS is asked for") };
    let (_, port) = at.rsplit_once(':').expect("a port");
    world.create(&[ServiceAddr::Tls(format!("127.0.0.1:{port}"), *pin)]).await;
    safekeeper.shutdown().await;
}
