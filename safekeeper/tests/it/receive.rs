//! A walsender's connection that was handed over: what it sends is durable before it is told so, in the writer's term and by nobody else.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use ardent_api::addr::ServiceAddr;
use ardent_object_store::fault::FaultAction;
use ardent_safekeeper::Safekeeper;
use ardent_types::Lsn;
use ardent_wal_client::{Elected, Handover, HandoverError, Proposer, ProposerError, Received, StreamEnd};

use crate::support::{WalSource, World, reached, read_up_to};

const PATIENCE: Duration = Duration::from_secs(20);

type Outcome = JoinHandle<Result<Received, HandoverError>>;

/// Postgres's end of a connection.
struct WalSender {
    stream: UnixStream,
    received: BytesMut,
}

impl WalSender {
    async fn send(&mut self, kind: u8, body: &[u8]) {
        let mut message = BytesMut::new();
        message.put_u8(kind);
        message.put_u32(4 + body.len() as u32);
        message.put_slice(body);
        // Cut anywhere.
        for piece in message.chunks(40_000) {
            self.stream.write_all(piece).await.expect("sent");
        }
    }

    async fn wal(&mut self, start: Lsn, bytes: &[u8]) {
        let mut body = BytesMut::new();
        body.put_u8(b'w');
        body.put_u64(start.get());
        body.put_slice(&[0; 16]);
        body.put_slice(bytes);
        self.send(b'd', &body).await;
    }

    async fn keepalive(&mut self, reply_wanted: bool) {
        let mut body = BytesMut::new();
        body.put_u8(b'k');
        body.put_slice(&[0; 16]);
        body.put_u8(u8::from(reply_wanted));
        self.send(b'd', &body).await;
    }

    /// The next position that is reported, `None` at the end.
    async fn report(&mut self) -> Option<Lsn> {
        while self.received.len() < 39 {
            let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.received)).await;
            match read.expect("in time") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
        let mut report = self.received.split_to(39);
        assert_eq!((report.get_u8(), report.get_u32(), report.get_u8()), (b'd', 38, b'r'));
        let (written, flushed, applied) = (report.get_u64(), report.get_u64(), report.get_u64());
        assert_eq!((written, applied), (flushed, flushed));
        Some(Lsn::new(flushed))
    }

    /// Waits until `lsn` is reported. Positions never go back.
    async fn reported(&mut self, lsn: Lsn) {
        let mut before = Lsn::INVALID;
        while before < lsn {
            let now = self.report().await.expect("the connection lives");
            assert!(now >= before, "{now} after {before}");
            before = now;
        }
        assert_eq!(before, lsn);
    }

    async fn is_closed(&mut self) {
        while self.report().await.is_some() {}
    }
}

struct House {
    world: World,
    dir: tempfile::TempDir,
    safekeeper: Safekeeper,
    addresses: Vec<ServiceAddr>,
    faults: std::sync::Arc<ardent_object_store::fault::FailPoints>,
}

impl House {
    async fn start() -> House {
        let (world, dir) = (World::new(), tempfile::tempdir().expect("a folder"));
        let config = world.config(dir.path());
        let faults = std::sync::Arc::clone(&config.faults);
        let safekeeper = Safekeeper::start(config, CancellationToken::new()).await.expect("starts");
        let addresses = safekeeper.addresses().to_vec();
        world.create(&addresses).await;
        House { world, dir, safekeeper, addresses, faults }
    }

    async fn elect(&self) -> (Proposer, Elected) {
        self.world.elect(&self.addresses).await
    }

    /// A log whose writer was elected and has handed it over at once, WAL that continues it, and both ends of the handover.
    async fn handed_over(&self) -> (Elected, WalSource, WalSender, Outcome) {
        let (proposer, elected) = self.elect().await;
        let wal = self.world.wal(elected.end_lsn, elected.prev_lsn);
        let (sender, ended) = hand_over(proposer.hand_over().await.expect("at rest"), Bytes::new());
        (elected, wal, sender, ended)
    }
}

/// Hands a connection over, of which `read` was read already.
fn hand_over(handover: Handover, read: Bytes) -> (WalSender, Outcome) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    ours.set_nonblocking(true).expect("non-blocking");
    let stream = UnixStream::from_std(ours).expect("watched");
    let outcome = tokio::spawn(async move { handover.receive(theirs.into(), read).await });
    (WalSender { stream, received: BytesMut::new() }, outcome)
}

async fn outcome(outcome: Outcome) -> Result<Received, HandoverError> {
    tokio::time::timeout(PATIENCE, outcome).await.expect("in time").expect("no panic")
}

fn cut(wal: &mut WalSource, mut bytes: Bytes) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        pieces.push(bytes.split_to(bytes.len().min(1 + wal.random(130_000) as usize)));
    }
    pieces
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_is_reported_committed_and_read_and_the_goodbye_comes_last() {
    let house = House::start().await;
    let (proposer, elected) = house.elect().await;
    let mut reader = house.world.reader(&house.addresses, elected.end_lsn).await;
    let mut wal = house.world.wal(elected.end_lsn, elected.prev_lsn);
    let handover = proposer.hand_over().await.expect("one safekeeper, on this host, at rest");
    proposer.shutdown().await;

    // A message of which a part was read before.
    let (start, first) = wal.take(5_000);
    let mut message = BytesMut::new();
    message.put_u8(b'd');
    message.put_u32(4 + 25 + first.len() as u32);
    message.put_u8(b'w');
    message.put_u64(start.get());
    message.put_slice(&[0; 16]);
    message.put_slice(&first);
    let rest = message.split_off(1_000);
    let (mut sender, ended) = hand_over(handover, message.freeze());
    assert_eq!(sender.report().await, Some(elected.end_lsn), "what is there is reported at once");
    let mut manager = house.world.client(&house.addresses[0]).await;
    let standing = manager.configure(house.world.spec.timeline, Default::default(), None).await.expect("it answers");
    assert!(standing.has_writer, "before it has sent anything");
    sender.stream.write_all(&rest).await.expect("sent");
    sender.reported(wal.end()).await;

    for _ in 0..20 {
        let length = 1 + wal.random(400_000) as usize;
        let (mut at, bytes) = wal.take(length);
        for piece in cut(&mut wal, bytes) {
            sender.wal(at, &piece).await;
            at = at.advance(piece.len() as u64);
        }
    }
    sender.reported(wal.end()).await;
    sender.keepalive(false).await;
    sender.keepalive(true).await;
    assert_eq!(sender.report().await, Some(wal.end()));
    let (start, bytes) = wal.take(3_000);
    sender.wal(start, &bytes).await;
    sender.send(b'c', &[]).await;
    let end = Received { end_lsn: wal.end(), end: StreamEnd::Complete, message: String::new() };
    assert_eq!(outcome(ended).await.expect("written"), end);
    assert!(read_up_to(&mut reader, wal.end()).await == wal.bytes(), "the reader got other bytes");
    drop(reader);

    // It is as if the writer had written it: the next one finds it so.
    let (_next, again) = house.elect().await;
    assert_eq!((again.end_lsn, again.previous_term), (wal.end(), elected.term));
    house.safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_whose_connection_was_lost_goes_on_at_the_last_whole_record() {
    let house = House::start().await;
    let (mut proposer, mut elected) = house.elect().await;
    let mut wal = house.world.wal(elected.end_lsn, elected.prev_lsn);
    for round in 0..4 {
        let handover = proposer.hand_over().await.expect("at rest");
        let (mut sender, ended) = hand_over(handover, Bytes::new());
        let (start, whole) = wal.take(20_000);
        let whole_end = wal.end();
        assert_eq!(start, elected.end_lsn);
        let (_, next) = wal.take(1_000);
        sender.wal(start, &whole).await;
        // In the middle of a record, of which so much is durable and told: less than its header.
        let half = &next[..16];
        if round % 2 == 0 {
            sender.wal(whole_end, half).await;
            sender.reported(whole_end.advance(half.len() as u64)).await;
        } else {
            sender.reported(whole_end).await;
        }
        drop(sender);
        assert_eq!(outcome(ended).await.expect("an end").end, StreamEnd::Lost);
        let before = elected.term;
        (proposer, elected) = house.elect().await;
        assert_eq!((elected.end_lsn, elected.previous_term), (whole_end, before));
        // Postgres sends the rest of its WAL again.
        proposer.append(whole_end, next).await.expect("appended");
        reached(proposer.committed(), wal.end()).await;
        elected.end_lsn = wal.end();
    }
    let mut reader = house.world.reader(&house.addresses, house.world.spec.start_lsn).await;
    assert!(read_up_to(&mut reader, wal.end()).await == wal.bytes(), "the reader got other bytes");
    house.safekeeper.shutdown().await;
}

/// Postgres removes what it was told of as flushed, and an election cuts a record that is not whole.
#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_the_segment_that_a_record_begins_in_until_it_is_whole() {
    let house = House::start().await;
    let (_, mut wal, mut sender, ended) = house.handed_over().await;
    let (start, bytes) = wal.take(10_000);
    sender.wal(start, &bytes).await;
    sender.reported(wal.end()).await;
    let size = house.world.spec.wal_segment_size;
    let (start, record) = wal.take_large(5 << 20);
    let kept = start.segment_start(size);
    let most = record.len() - 1;
    let mut at = 0;
    while at < most {
        let to = most.min(at + 100_000);
        sender.wal(start.advance(at as u64), &record[at..to]).await;
        at = to;
    }
    let last = Lsn::new(kept.advance(size.bytes()).get() - 1);
    sender.reported(last).await;
    sender.keepalive(true).await;
    assert_eq!(sender.report().await, Some(last));
    sender.wal(start.advance(most as u64), &record[most..]).await;
    let mut told = last;
    while told < wal.end() {
        told = sender.report().await.expect("it lives");
        assert!(told.segment_start(size) == kept || told == wal.end(), "{told} before the record is whole");
    }
    drop(sender);
    assert_eq!(outcome(ended).await.expect("an end").end_lsn, wal.end());
    house.safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_fenced_is_told_nothing_more() {
    let house = House::start().await;
    let (_, mut wal, mut sender, ended) = house.handed_over().await;
    let (start, bytes) = wal.take(10_000);
    sender.wal(start, &bytes).await;
    let told = wal.end();
    sender.reported(told).await;

    let (_other, again) = house.elect().await;
    assert_eq!(again.end_lsn, told);
    let (start, bytes) = wal.take(10_000);
    sender.wal(start, &bytes).await;
    assert!(matches!(outcome(ended).await, Err(HandoverError::Fenced(_))));
    while let Some(report) = sender.report().await {
        assert_eq!(report, told, "WAL of a writer that was fenced is on no quorum");
    }
    house.safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_with_its_agent_and_a_stale_handover_is_of_no_use() {
    let house = House::start().await;
    let (proposer, elected) = house.elect().await;
    let handover = proposer.hand_over().await.expect("at rest");
    let mut wal = house.world.wal(elected.end_lsn, elected.prev_lsn);
    let (mut sender, ended) = hand_over(handover.clone(), Bytes::new());
    let (start, bytes) = wal.take(10_000);
    sender.wal(start, &bytes).await;
    sender.reported(wal.end()).await;
    ended.abort();
    sender.is_closed().await;

    // Another writer has begun: what was handed over before it is nobody's any more.
    let (_other, _) = house.elect().await;
    let (mut sender, ended) = hand_over(handover, Bytes::new());
    sender.wal(start, &bytes).await;
    assert!(matches!(outcome(ended).await, Err(HandoverError::Fenced(_))));
    house.safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_walsenders_ends_it_and_harms_nobody_else() {
    let house = House::start().await;
    // A log beside it, which goes on all the time.
    let other = house.world.of(ardent_types::TimelineId::generate());
    other.create(&house.addresses).await;
    let (beside, found) = other.elect(&house.addresses).await;
    let mut others_wal = other.wal(found.end_lsn, found.prev_lsn);
    let mut end = house.world.spec.start_lsn;
    for case in 0..8 {
        let (proposer, elected) = house.elect().await;
        assert_eq!(elected.end_lsn, end, "before case {case}");
        let mut wal = house.world.wal(elected.end_lsn, elected.prev_lsn);
        let (mut sender, ended) = hand_over(proposer.hand_over().await.expect("at rest"), Bytes::new());
        let (start, bytes) = wal.take(5_000);
        sender.wal(start, &bytes).await;
        sender.reported(wal.end()).await;
        end = wal.end();
        match case {
            // A gap, and what was there already.
            0 => sender.wal(end.advance(8), &bytes).await,
            1 => sender.wal(start, &bytes).await,
            // No WAL.
            2 => sender.wal(end, &[0x5A; 100_000]).await,
            // Messages that have no place here, or are none.
            3 => sender.send(b'd', b"x").await,
            4 => sender.send(b'R', &[0; 4]).await,
            5 => sender.stream.write_all(&[b'd', 0xFF, 0xFF, 0xFF, 0xFF]).await.expect("sent"),
            6 => sender.send(b'd', b"").await,
            // The WAL that is to come is gone.
            _ => sender.send(b'E', b"SERROR\0C58P01\0Mit has been removed\0\0").await,
        }
        let received = outcome(ended).await.expect("an end");
        assert_eq!((received.end, received.end_lsn), (StreamEnd::Malformed, end), "case {case}: {}", received.message);
        sender.is_closed().await;
        let (start, bytes) = others_wal.take(1_000);
        beside.append(start, bytes).await.expect("appended");
        reached(beside.committed(), others_wal.end()).await;
    }
    house.safekeeper.shutdown().await;
}

/// Somebody stands between writer and safekeeper who passes on bytes alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_descriptor_that_is_lost_on_the_way_is_no_reason_to_try_again() {
    let house = House::start().await;
    let ServiceAddr::Unix(behind) = house.addresses[0].clone() else { panic!("a Unix socket") };
    let before = house.dir.path().join("between.sock");
    let listener = tokio::net::UnixListener::bind(&before).expect("bound");
    let between = tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.expect("accepted");
            let mut far = UnixStream::connect(&behind).await.expect("connected");
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    let (proposer, elected) = house.world.elect(&[ServiceAddr::Unix(before)]).await;
    let (mut sender, ended) = hand_over(proposer.hand_over().await.expect("at rest"), Bytes::new());
    let Err(HandoverError::Safekeeper(error)) = outcome(ended).await else { panic!("nothing came") };
    assert!(!error.is_retryable() && error.to_string().contains("no descriptor"), "{error}");
    sender.is_closed().await;
    between.abort();
    let (_next, again) = house.elect().await;
    assert_eq!((again.end_lsn, again.previous_term), (elected.end_lsn, elected.term));
    house.safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_ends_it_and_the_log_is_taken_back() {
    let house = House::start().await;
    let (elected, mut wal, mut sender, ended) = house.handed_over().await;
    let (start, bytes) = wal.take(10_000);
    sender.wal(start, &bytes).await;
    let told = wal.end();
    sender.reported(told).await;
    house.faults.arm("wal.fsync", 1, FaultAction::Fail);
    let (start, bytes) = wal.take(10_000);
    sender.wal(start, &bytes).await;
    let Err(HandoverError::Safekeeper(error)) = outcome(ended).await else { panic!("the disk failed") };
    assert!(error.is_retryable(), "{error}");
    while let Some(report) = sender.report().await {
        assert_eq!(report, told, "what was not fsynced was reported");
    }
    let (proposer, again) = house.elect().await;
    assert_eq!((again.end_lsn, again.previous_term), (told, elected.term));
    proposer.append(start, bytes).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    house.safekeeper.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_log_at_rest_on_one_safekeeper_of_this_host_is_handed_over() {
    let house = House::start().await;
    let (proposer, elected) = house.elect().await;
    let mut wal = house.world.wal(elected.end_lsn, elected.prev_lsn);
    // Half a record: it is not committed.
    let (start, bytes) = wal.take(2_000);
    proposer.append(start, bytes.slice(..1_000)).await.expect("appended");
    reached(proposer.flushed(), start.advance(1_000)).await;
    assert!(proposer.hand_over().await.is_none());
    // It goes on as it was.
    proposer.append(start.advance(1_000), bytes.slice(1_000..)).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    assert!(proposer.hand_over().await.is_some());
    assert!(matches!(proposer.closed().await, ProposerError::Stopped), "it has ended");

    // Of three, and of one that is not reached through a Unix socket.
    let (world, root) = (World::new(), tempfile::tempdir().expect("a folder"));
    let (mut nodes, mut addresses) = (Vec::new(), Vec::new());
    for node in ["1", "2", "3"] {
        let dir = root.path().join(node);
        std::fs::create_dir(&dir).expect("a folder");
        let mut config = world.config(&dir);
        config.listen.push("tcp:127.0.0.1:0".parse().expect("an address"));
        let node = Safekeeper::start(config, CancellationToken::new()).await.expect("starts");
        addresses.push(node.addresses().to_vec());
        nodes.push(node);
    }
    let here: Vec<ServiceAddr> = addresses.iter().map(|of_one| of_one[0].clone()).collect();
    world.create(&here).await;
    let (proposer, _) = world.elect(&here).await;
    assert!(proposer.hand_over().await.is_none(), "three keep it");
    let (proposer, _) = world.elect(&addresses[0][1..]).await;
    assert!(proposer.hand_over().await.is_none(), "a descriptor cannot pass");
    for node in nodes {
        node.shutdown().await;
    }
    house.safekeeper.shutdown().await;
}
