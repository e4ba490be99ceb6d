//! One safekeeper, its clients, real files.

use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use ardent_api::token::{Claims, Rights, Service};
use ardent_api::wal_service::{Ancestor, ErrorCode};
use ardent_safekeeper::Safekeeper;
use ardent_types::{Lsn, TimelineId};
use ardent_wal_client::{ClientError, Proposer, ProposerError, SafekeeperClient, WalReader};

use crate::support::{World, eventually, reached, read_up_to};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_appended_is_flushed_committed_and_read() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    let safekeeper = world.start(dir.path()).await;
    let addresses = safekeeper.addresses().to_vec();
    world.create(&addresses).await;
    let (proposer, elected) = world.elect(&addresses).await;
    assert_eq!((elected.end_lsn, elected.prev_lsn), (world.spec.start_lsn, world.spec.prev_lsn));

    let mut reader = world.reader(&addresses, elected.end_lsn).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(3 << 20);
    let mut at = start;
    let mut rest = data;
    // Cut anywhere, as a walsender does.
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(1 + wal.random(60_000) as usize));
        let length = piece.len() as u64;
        proposer.append(at, piece).await.expect("appended");
        at = at.advance(length);
    }
    reached(proposer.flushed(), wal.end()).await;
    reached(proposer.committed(), wal.end()).await;
    assert!(read_up_to(&mut reader, wal.end()).await == wal.bytes(), "the reader got other bytes");
    drop(reader);
    proposer.shutdown().await;
    safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_stops_at_the_last_whole_record() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    let safekeeper = world.start(dir.path()).await;
    let addresses = safekeeper.addresses().to_vec();
    world.create(&addresses).await;
    let (proposer, elected) = world.elect(&addresses).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, whole) = wal.take(10_000);
    let whole_end = wal.end();
    let (_, more) = wal.take(1);
    proposer.append(start, whole).await.expect("appended");
    let half = more.slice(..more.len() / 2);
    let half_end = whole_end.advance(half.len() as u64);
    proposer.append(whole_end, half).await.expect("appended");
    reached(proposer.flushed(), half_end).await;
    // Told right after the flushed position.
    reached(proposer.committed(), whole_end).await;
    assert_eq!(*proposer.committed().borrow(), whole_end);
    proposer.shutdown().await;

    // The next writer finds the log cut there, and may write something else.
    let (proposer, again) = world.elect(&addresses).await;
    assert_eq!(again.end_lsn, whole_end);
    assert!(again.term > elected.term);
    let mut other = world.wal(again.end_lsn, again.prev_lsn);
    let (start, data) = other.take(50_000);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), other.end()).await;
    let mut reader = world.reader(&addresses, again.end_lsn).await;
    assert!(read_up_to(&mut reader, other.end()).await == other.bytes());
    safekeeper.shutdown().await;
}

/// Small pieces are gathered here for longer than any test: only what is waited for comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_waits_gets_what_it_waits_for_at_once() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    let mut config = world.config(dir.path());
    config.follow_gather = Duration::from_secs(3600);
    let safekeeper = Safekeeper::start(config, CancellationToken::new()).await.expect("starts");
    let addresses = safekeeper.addresses().to_vec();
    world.create(&addresses).await;
    let (proposer, elected) = world.elect(&addresses).await;
    let mut reader = world.reader(&addresses, elected.end_lsn).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    let mut read = Vec::new();
    for round in 0..4 {
        let (start, data) = wal.take(100);
        proposer.append(start, data).await.expect("appended");
        // Before or after it is committed.
        if round % 2 == 0 {
            reached(proposer.committed(), wal.end()).await;
        }
        reader.send_await(wal.end()).await.expect("sent");
        read.extend(read_up_to(&mut reader, wal.end()).await);
    }
    assert!(read == wal.bytes(), "the reader got other bytes");
    drop(reader);
    proposer.shutdown().await;
    safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_writer_is_fenced() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    let safekeeper = world.start(dir.path()).await;
    let addresses = safekeeper.addresses().to_vec();
    world.create(&addresses).await;
    let (old, elected) = world.elect(&addresses).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(5_000);
    old.append(start, data).await.expect("appended");
    reached(old.flushed(), wal.end()).await;

    let (new, again) = world.elect(&addresses).await;
    assert_eq!(again.end_lsn, wal.end());
    let before = *old.flushed().borrow();
    let (start, data) = wal.take(5_000);
    // Queued or refused, never flushed.
    let _ = old.append(start, data).await;
    let reason = tokio::time::timeout(std::time::Duration::from_secs(20), old.closed()).await.expect("in time");
    assert!(matches!(reason, ProposerError::Fenced { .. }), "{reason:?}");
    assert_eq!(*old.flushed().borrow(), before);
    drop(new);
    safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_everything_flushed_and_the_writer_goes_on() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    let safekeeper = world.start(dir.path()).await;
    let addresses = safekeeper.addresses().to_vec();
    world.create(&addresses).await;
    let (proposer, elected) = world.elect(&addresses).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(100_000);
    let cut = data.len() - 7;
    proposer.append(start, data.slice(..cut)).await.expect("appended");
    reached(proposer.flushed(), start.advance(cut as u64)).await;
    safekeeper.shutdown().await;

    let safekeeper = world.start(dir.path()).await;
    // The rest of the record and more: the writer sends again what the restart cut off.
    proposer.append(start.advance(cut as u64), data.slice(cut..)).await.expect("appended");
    let (start, data) = wal.take(2 << 20);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    let mut reader = world.reader(&addresses, elected.end_lsn).await;
    assert!(read_up_to(&mut reader, wal.end()).await == wal.bytes());
    proposer.shutdown().await;
    safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_begins_with_its_ancestors_bytes() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    let safekeeper = world.start(dir.path()).await;
    let addresses = safekeeper.addresses().to_vec();
    world.create(&addresses).await;
    let (proposer, elected) = world.elect(&addresses).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(2_000_000);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    let mut client = world.client(&addresses[0]).await;
    let parent = world.spec;
    eventually("the commit position is known", || {
        let client = world.client(&addresses[0]);
        let end = wal.end();
        async move { client.await.status(parent.timeline).await.expect("status").commit_lsn == end }
    })
    .await;
    let branch = ardent_wal_client::TimelineSpec {
        timeline: TimelineId::generate(),
        start_lsn: wal.end(),
        ancestor: Some(Ancestor { timeline: parent.timeline, lsn: wal.end() }),
        ..parent
    };
    let size = parent.wal_segment_size;
    let name = ardent_pg_format::segment::wal_file_name(parent.pg_tli, branch.start_lsn.segment_number(size), size);
    let segment = |timeline: TimelineId| {
        let path = dir.path().join("data").join(parent.tenant.to_string()).join(timeline.to_string());
        path.join("wal").join(&name)
    };
    // What cannot be read (a folder can be opened, and no more) is not taken for what is not there.
    let aside = dir.path().join("aside");
    std::fs::rename(segment(parent.timeline), &aside).expect("moved");
    std::fs::create_dir(segment(parent.timeline)).expect("made");
    let error = client.create_timeline(branch).await.expect_err("the ancestor cannot be read");
    assert_eq!(error.code(), Some(ErrorCode::Unavailable), "{error}");
    assert!(error.to_string().contains(&parent.timeline.to_string()), "{error}");
    let error = client.status(branch.timeline).await.expect_err("nothing was made");
    assert_eq!(error.code(), Some(ErrorCode::TimelineNotFound), "{error}");
    std::fs::remove_dir(segment(parent.timeline)).expect("removed");
    std::fs::rename(&aside, segment(parent.timeline)).expect("moved");

    client.create_timeline(branch).await.expect("made");
    client.create_timeline(branch).await.expect("again is no error");
    let read = |timeline: TimelineId| std::fs::read(segment(timeline)).expect("the segment");
    assert!(read(parent.timeline) == read(branch.timeline));
    safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_that_everybody_has_is_trimmed() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    let mut config = world.config(dir.path());
    config.wal_keep_bytes = 1 << 20;
    let safekeeper =
        ardent_safekeeper::Safekeeper::start(config, CancellationToken::new()).await.expect("the safekeeper starts");
    let addresses = safekeeper.addresses().to_vec();
    world.create(&addresses).await;
    let (proposer, elected) = world.elect(&addresses).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(6 << 20);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    let mut reader = world.reader(&addresses, elected.end_lsn).await;
    read_up_to(&mut reader, wal.end()).await;
    reader.send_position(wal.end()).await.expect("sent");
    let timeline = world.spec.timeline;
    eventually("WAL is trimmed", || {
        let client = world.client(&addresses[0]);
        async move { client.await.status(timeline).await.expect("status").oldest_lsn > Lsn::new(0x0240_0000) }
    })
    .await;
    let (spec, token) = (world.spec, world.token(Rights::Read));
    let gone = WalReader::connect(&addresses, spec.tenant, timeline, &token, elected.end_lsn).await.err();
    assert_eq!(gone.and_then(|error| error.code()), Some(ErrorCode::LsnOutOfRange));
    safekeeper.shutdown().await;
    // A restart finds the trimmed log.
    let safekeeper = world.start(dir.path()).await;
    let (_proposer, again) = world.elect(&addresses).await;
    assert_eq!(again.end_lsn, wal.end());
    safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_token_nothing_is_served() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    let stranger = World::new();
    let safekeeper = world.start(dir.path()).await;
    let address = safekeeper.addresses()[0].clone();
    world.create(std::slice::from_ref(&address)).await;
    let spec = world.spec;
    let refused = |error: ClientError| assert_eq!(error.code(), Some(ErrorCode::Refused), "{error}");
    // Of all tenants' timelines those hear who may ask about all tenants.
    refused(world.client(&address).await.safekeeper_status().await.expect_err("one tenant's rights"));
    let told = world.safekeeper_status(&address).await;
    assert_eq!((told.archives, told.kept_for_others_bytes), (false, 0));

    let foreign = stranger.issuer.issue(&Claims {
        service: Service::Any,
        tenant: None,
        timeline: None,
        rights: Rights::Manage,
        expires_at_s: None,
    });
    refused(SafekeeperClient::connect(&address, spec.tenant, &foreign).await.err().expect("refused"));
    let reading = world.token(Rights::Read);
    let mut client = SafekeeperClient::connect(&address, spec.tenant, &reading).await.expect("may look");
    refused(client.delete_timeline(spec.timeline).await.expect_err("may not delete"));
    let mut config = world.proposer_config(std::slice::from_ref(&address));
    config.token = reading;
    let error = Proposer::elect(config, CancellationToken::new()).await.expect_err("may not write");
    assert!(
        matches!(&error, ProposerError::NoQuorum { source: Some(source), .. } if source.code() == Some(ErrorCode::Refused)),
        "{error:?}"
    );
    safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_timeline_does_not_hurt_others() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    let safekeeper = world.start(dir.path()).await;
    let address = safekeeper.addresses()[0].clone();
    let mut client = world.client(&address).await;
    client.create_timeline(world.spec).await.expect("made");
    let other = ardent_wal_client::TimelineSpec { timeline: TimelineId::generate(), ..world.spec };
    client.create_timeline(other).await.expect("made");
    safekeeper.shutdown().await;

    let folder = dir.path().join("data").join(world.spec.tenant.to_string());
    let path = folder.join(world.spec.timeline.to_string()).join("state");
    let mut bytes = std::fs::read(&path).expect("the state");
    bytes[100] ^= 1;
    std::fs::write(&path, bytes).expect("damaged");
    let safekeeper = world.start(dir.path()).await;
    let mut client = world.client(&address).await;
    let error = client.status(world.spec.timeline).await.expect_err("damaged");
    assert_eq!(error.code(), Some(ErrorCode::Corrupt), "{error}");
    assert_eq!(client.status(other.timeline).await.expect("fine").spec, other);
    let mut listed = client.list().await.expect("listed");
    listed.sort_unstable();
    let mut expected = [world.spec.timeline, other.timeline];
    expected.sort_unstable();
    assert_eq!(listed, expected);
    client.delete_timeline(world.spec.timeline).await.expect("deleted");
    let error = client.status(world.spec.timeline).await.expect_err("gone");
    assert_eq!(error.code(), Some(ErrorCode::TimelineNotFound));
    safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_wal_is_refused() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    let safekeeper = world.start(dir.path()).await;
    let addresses = safekeeper.addresses().to_vec();
    world.create(&addresses).await;
    let (proposer, elected) = world.elect(&addresses).await;
    let gap = proposer.append(elected.end_lsn.advance(8), Bytes::from_static(b"x")).await;
    assert!(matches!(gap, Err(ProposerError::Gap { .. })), "{gap:?}");
    proposer.append(elected.end_lsn, Bytes::from(vec![0xEE; 400])).await.expect("queued");
    assert!(matches!(proposer.closed().await, ProposerError::BadWal { .. }));
    safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_refuses_a_new_segment_stops_the_writer_and_loses_nothing() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    let safekeeper = world.start(dir.path()).await;
    let addresses = safekeeper.addresses().to_vec();
    world.create(&addresses).await;
    let (proposer, elected) = world.elect(&addresses).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(300_000);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    let safe = wal.end();

    // A folder where the next segment's file should be: the operating system refuses to make it, as on a full disk.
    let spec = world.spec;
    let size = spec.wal_segment_size;
    let folder = dir.path().join("data").join(spec.tenant.to_string()).join(spec.timeline.to_string());
    let next = ardent_pg_format::segment::wal_file_name(spec.pg_tli, safe.segment_number(size) + 1, size);
    let obstacle = folder.join("wal").join(next);
    std::fs::create_dir(&obstacle).expect("made");
    let (start, data) = wal.take(2 << 20);
    proposer.append(start, data).await.expect("queued");
    eventually("the safekeeper says so", async || {
        let (token, tenant) = (world.token(Rights::Write), spec.tenant);
        let client = SafekeeperClient::connect(&addresses[0], tenant, &token).await;
        let mut client = client.expect("connects");
        client.status(spec.timeline).await.is_err()
    })
    .await;
    assert!(*proposer.committed().borrow() < wal.end());
    std::fs::remove_dir(&obstacle).expect("removed");
    reached(proposer.committed(), wal.end()).await;
    let mut reader = world.reader(&addresses, elected.end_lsn).await;
    assert!(read_up_to(&mut reader, wal.end()).await == wal.bytes());
    proposer.shutdown().await;
    safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_at_rest_has_its_commit_position_on_disk() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
    let safekeeper = world.start(dir.path()).await;
    let addresses = safekeeper.addresses().to_vec();
    world.create(&addresses).await;
    let (proposer, elected) = world.elect(&addresses).await;
    let mut wal = world.wal(elected.end_lsn, elected.prev_lsn);
    let (start, data) = wal.take(300_000);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    let tenant = dir.path().join("data").join(world.spec.tenant.to_string());
    let state = tenant.join(world.spec.timeline.to_string()).join("state");
    // Its place is in docs/formats/safekeeper-state.md.
    eventually("the commit position is saved", async || {
        std::fs::read(&state).expect("the state")[122..130] == wal.end().get().to_le_bytes()
    })
    .await;
    proposer.shutdown().await;
    safekeeper.shutdown().await;
}
