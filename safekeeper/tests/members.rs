//! Safekeepers change while a writer writes, on real files and sockets: what was acknowledged is on the new ones, the writer goes on in its term, and
//! whoever counts on the old ones is refused.

mod support;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use ardent_api::addr::ServiceAddr;
use ardent_api::token::Rights;
use ardent_api::wal_service::{CopySource, ErrorCode, Member, MemberStanding, Membership, PromisedTerm};
use ardent_quorum::{CatchUp, CatchUpVerdict, Configuration, LogPosition, Promise, Standing};
use ardent_safekeeper::Safekeeper;
use ardent_types::{DiskId, Lsn, MemberGeneration};
use ardent_wal_client::{ClientError, Proposer, ProposerConfig, ProposerError};

use support::{WalSource, World, eventually, reached, read_up_to};

struct Node {
    dir: PathBuf,
    running: Option<Safekeeper>,
    member: Member,
}

struct House {
    world: World,
    root: tempfile::TempDir,
    nodes: Vec<Node>,
}

impl House {
    /// So many safekeepers, of which the first `members` have the timeline.
    async fn start(count: usize, members: usize) -> House {
        let mut house = House { world: World::new(), root: tempfile::tempdir().expect("a folder"), nodes: Vec::new() };
        for _ in 0..count {
            house.add().await;
        }
        house.world.create(&house.addresses(0..members)).await;
        house
    }

    async fn add(&mut self) {
        let dir = self.root.path().join(self.nodes.len().to_string());
        std::fs::create_dir(&dir).expect("a folder");
        let running = self.world.start(&dir).await;
        let member = Member { disk: running.disk(), address: running.addresses()[0].clone() };
        self.nodes.push(Node { dir, running: Some(running), member });
    }

    fn addresses(&self, nodes: std::ops::Range<usize>) -> Vec<ServiceAddr> {
        self.nodes[nodes].iter().map(|node| node.member.address.clone()).collect()
    }

    async fn stop(&mut self, node: usize) {
        self.nodes[node].running.take().expect("it runs").shutdown().await;
    }

    async fn restart(&mut self, node: usize) {
        self.nodes[node].running = Some(self.world.start(&self.nodes[node].dir).await);
    }

    /// The node's disk is lost, and it comes back with an empty one.
    async fn lose_disk(&mut self, node: usize) {
        self.stop(node).await;
        std::fs::rename(self.nodes[node].dir.join("data"), self.nodes[node].dir.join("lost")).expect("moved");
        self.restart(node).await;
        self.nodes[node].member.disk = self.nodes[node].running.as_ref().expect("it runs").disk();
    }

    fn members(&self, nodes: &[usize]) -> Vec<Member> {
        let mut members: Vec<Member> = nodes.iter().map(|node| self.nodes[*node].member.clone()).collect();
        members.sort_by_key(|member| member.disk);
        members
    }

    fn membership(&self, generation: u64, members: &[usize], next: Option<&[usize]>) -> Membership {
        let next = next.map(|next| self.members(next));
        Membership { generation: MemberGeneration::new(generation), members: self.members(members), next }
    }

    async fn elect(&self, members: &[usize], membership: &Membership) -> (Proposer, ardent_wal_client::Elected) {
        let addresses: Vec<_> = members.iter().map(|node| self.nodes[*node].member.address.clone()).collect();
        let config = ProposerConfig { membership: membership.clone(), ..self.world.proposer_config(&addresses) };
        Proposer::elect(config, CancellationToken::new()).await.expect("elected")
    }

    async fn copy(&self, from: usize, to: usize) -> Result<(), ClientError> {
        let (tenant, timeline) = (self.world.spec.tenant, self.world.spec.timeline);
        let (address, token) = (self.nodes[from].member.address.clone(), self.world.token(Rights::Read));
        let mut client = self.world.client(&self.nodes[to].member.address).await;
        client.copy_timeline(CopySource { tenant, timeline, address, token }).await
    }

    async fn tell(
        &self,
        member: &Member,
        membership: &Membership,
        promise: Option<Promise>,
    ) -> Result<MemberStanding, ClientError> {
        let promise = promise.map(|promise| PromisedTerm { term: promise.term, proposer: promise.proposer });
        let mut client = self.world.client(&member.address).await;
        client.configure(self.world.spec.timeline, membership.clone(), promise).await
    }

    async fn tell_all(&self, membership: &Membership) {
        for member in &membership.members {
            self.tell(member, membership, None).await.expect("told");
        }
    }

    /// Until all that joins has what the others have, and the writer knows them, if there is one. Those in `away` are not asked.
    async fn catch_up(&self, joint: &Membership, away: &[DiskId], has_writer: bool) {
        let configuration = Configuration::of(joint).expect("in order");
        let mut core = CatchUp::new(configuration);
        for _ in 0..400 {
            let mut is_written = !has_writer;
            for (disk, promise) in core.questions() {
                if away.contains(&disk) {
                    continue;
                }
                let member = Member { disk, address: joint.address_of(disk).expect("a member").clone() };
                let said = self.tell(&member, joint, promise).await.expect("told");
                is_written |= said.has_writer && joint.next.iter().flatten().any(|next| next.disk == said.disk);
                let standing = Standing {
                    configuration: Configuration::of(&said.membership).expect("in order"),
                    promise: Promise { term: said.promise.term, proposer: said.promise.proposer },
                    position: LogPosition { term: said.last_term, flush_lsn: said.flush_lsn },
                    has_begun: said.has_begun,
                };
                core.heard(said.disk, standing);
            }
            match core.verdict() {
                CatchUpVerdict::CaughtUp if is_written => return,
                CatchUpVerdict::CaughtUp | CatchUpVerdict::Pending => {
                    tokio::time::sleep(Duration::from_millis(25)).await
                }
                CatchUpVerdict::Superseded(later) => panic!("somebody goes by {later:?}"),
            }
        }
        panic!("not caught up in time: {:?}", core.lagging().collect::<Vec<_>>());
    }

    /// Sees to it that one gives all that was written.
    async fn has_all(&self, node: usize, wal: &WalSource, end: Lsn) {
        let address = self.nodes[node].member.address.clone();
        eventually("the commit position", async || {
            let status = self.world.client(&address).await.status(self.world.spec.timeline).await;
            status.expect("a status").commit_lsn >= end
        })
        .await;
        let start = self.world.spec.start_lsn;
        let mut reader = self.world.reader(&[address], start).await;
        let read = read_up_to(&mut reader, end).await;
        assert!(read == wal.bytes()[..end.saturating_sub(start) as usize], "node {node} has other bytes");
    }

    async fn close(mut self) {
        for node in &mut self.nodes {
            if let Some(running) = node.running.take() {
                running.shutdown().await;
            }
        }
    }
}

async fn write(proposer: &Proposer, wal: &mut WalSource, length: usize) -> Lsn {
    let (start, data) = wal.take(length);
    proposer.append(start, data).await.expect("appended");
    reached(proposer.committed(), wal.end()).await;
    wal.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_is_replaced_under_a_writer_that_goes_on_in_its_term() {
    let mut house = House::start(4, 3).await;
    let first = house.membership(1, &[0, 1, 2], None);
    let (proposer, elected) = house.elect(&[0, 1, 2], &Membership::default()).await;
    let mut wal = house.world.wal(elected.end_lsn, elected.prev_lsn);
    write(&proposer, &mut wal, 2_500_000).await;
    let lost = house.nodes[2].member.disk;
    house.stop(2).await;
    write(&proposer, &mut wal, 300_000).await;

    house.copy(0, 3).await.expect("copied");
    house.copy(0, 3).await.expect("it is there already");
    write(&proposer, &mut wal, 100_000).await;
    let joint = house.membership(2, &[0, 1, 2], Some(&[0, 1, 3]));
    house.catch_up(&joint, &[lost], true).await;
    let settled = house.membership(3, &[0, 1, 3], None);
    house.tell_all(&settled).await;
    // With one of the old ones away the new one is needed, and the writer is the same.
    house.stop(1).await;
    let end = write(&proposer, &mut wal, 400_000).await;
    house.has_all(3, &wal, end).await;

    // The lost one comes back, with all that it had promised: who counts on it finds nobody else.
    house.restart(2).await;
    let config = ProposerConfig {
        membership: first,
        election_timeout: Duration::from_secs(2),
        ..house.world.proposer_config(&[])
    };
    let (late, late_elected) = Proposer::elect(config, CancellationToken::new()).await.expect("it learns who they are");
    assert!(late_elected.term > elected.term && late_elected.end_lsn == end, "{late_elected:?}");
    let ended = tokio::time::timeout(Duration::from_secs(20), async {
        let (start, data) = wal.take(1000);
        let _ended_or_queued = proposer.append(start, data).await;
        proposer.closed().await
    });
    assert!(matches!(ended.await.expect("in time"), ProposerError::Fenced { .. }));
    late.shutdown().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_one_to_three_and_back_under_a_writer() {
    let house = House::start(3, 1).await;
    let (proposer, elected) = house.elect(&[0], &Membership::default()).await;
    let mut wal = house.world.wal(elected.end_lsn, elected.prev_lsn);
    write(&proposer, &mut wal, 1_200_000).await;
    for node in [1, 2] {
        house.copy(0, node).await.expect("copied");
    }
    write(&proposer, &mut wal, 50_000).await;
    let joint = house.membership(2, &[0], Some(&[0, 1, 2]));
    house.catch_up(&joint, &[], true).await;
    write(&proposer, &mut wal, 50_000).await;
    house.tell_all(&house.membership(3, &[0, 1, 2], None)).await;
    let end = write(&proposer, &mut wal, 50_000).await;
    for node in [0, 1, 2] {
        house.has_all(node, &wal, end).await;
    }
    let joint = house.membership(4, &[0, 1, 2], Some(&[2]));
    house.catch_up(&joint, &[], true).await;
    let settled = house.membership(5, &[2], None);
    house.tell_all(&settled).await;
    for node in [0, 1] {
        house.tell(&house.nodes[node].member, &settled, None).await.expect("told");
        let mut client = house.world.client(&house.nodes[node].member.address).await;
        client.delete_timeline(house.world.spec.timeline).await.expect("forgotten");
    }
    let end = write(&proposer, &mut wal, 700_000).await;
    house.has_all(2, &wal, end).await;
    proposer.shutdown().await;
    let (proposer, elected) = house.elect(&[], &settled).await;
    assert_eq!(elected.end_lsn, end);
    proposer.shutdown().await;
    house.close().await;
}

/// A timeline at rest is caught up by its copy alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_at_rest_needs_no_writer() {
    let house = House::start(4, 3).await;
    let (proposer, elected) = house.elect(&[0, 1, 2], &Membership::default()).await;
    let mut wal = house.world.wal(elected.end_lsn, elected.prev_lsn);
    let end = write(&proposer, &mut wal, 100_000).await;
    proposer.shutdown().await;
    for node in [0, 1, 2] {
        house.has_all(node, &wal, end).await;
    }
    house.copy(0, 3).await.expect("copied");
    let joint = house.membership(2, &[0, 1, 2], Some(&[1, 2, 3]));
    house.catch_up(&joint, &[], false).await;
    let settled = house.membership(3, &[1, 2, 3], None);
    house.tell_all(&settled).await;
    let (proposer, elected) = house.elect(&[], &settled).await;
    assert_eq!(elected.end_lsn, end);
    write(&proposer, &mut wal, 1000).await;
    proposer.shutdown().await;
    house.close().await;
}

/// A disk that is lost does not count by its address, and a new one in its place is no member.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_disk_at_a_members_address_does_not_count() {
    let mut house = House::start(3, 3).await;
    let first = house.membership(1, &[0, 1, 2], None);
    let (proposer, elected) = house.elect(&[], &first).await;
    let mut wal = house.world.wal(elected.end_lsn, elected.prev_lsn);
    write(&proposer, &mut wal, 10_000).await;
    proposer.shutdown().await;
    house.lose_disk(2).await;
    house.world.create(&house.addresses(2..3)).await;
    house.stop(1).await;
    let config = ProposerConfig {
        membership: first,
        election_timeout: Duration::from_secs(1),
        ..house.world.proposer_config(&[])
    };
    let error = Proposer::elect(config, CancellationToken::new()).await.expect_err("it is no quorum");
    let ProposerError::NoQuorum { source: Some(source), .. } = &error else { panic!("{error:?}") };
    let texts = [error.to_string(), source.to_string()].concat();
    assert!(texts.contains("fewer than 2 of 3"), "{texts}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_copied_is_said_and_leaves_nothing() {
    let mut house = House::start(2, 1).await;
    let (proposer, elected) = house.elect(&[0], &Membership::default()).await;
    let mut wal = house.world.wal(elected.end_lsn, elected.prev_lsn);
    write(&proposer, &mut wal, 100_000).await;
    let (tenant, timeline) = (house.world.spec.tenant, house.world.spec.timeline);
    let address = house.nodes[0].member.address.clone();
    let source = |token: String| CopySource { tenant, timeline, address: address.clone(), token };
    let mut client = house.world.client(&house.nodes[1].member.address).await;
    let error = client.copy_timeline(source("no token".to_owned())).await.expect_err("refused");
    assert_eq!(error.code(), Some(ErrorCode::Refused), "{error}");
    let token = house.world.token(Rights::Read);
    let other = CopySource { timeline: ardent_types::TimelineId::generate(), ..source(token.clone()) };
    let error = client.copy_timeline(other).await.expect_err("it is not there");
    assert_eq!(error.code(), Some(ErrorCode::TimelineNotFound), "{error}");
    assert_eq!(client.list().await.expect("a list"), []);
    proposer.shutdown().await;
    house.stop(0).await;
    let error = client.copy_timeline(source(token)).await.expect_err("it is away");
    assert_eq!(error.code(), Some(ErrorCode::Unavailable), "{error}");
    house.close().await;
}

/// Whoever was told of no members goes by generation 0: it is refused once they have changed, with what to do about it.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_of_an_older_version_is_refused_by_name() {
    use ardent_api::frame::Frame;
    use ardent_api::wal_service::{Hello, PROTOCOL_VERSION, ProposerId, Request, Response, Vote};
    use bytes::BytesMut;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let house = House::start(1, 1).await;
    house.tell_all(&house.membership(1, &[0], None)).await;
    let ServiceAddr::Unix(path) = &house.nodes[0].member.address else { panic!("a socket") };
    let mut stream = tokio::net::UnixStream::connect(path).await.expect("connects");
    let mut wire = BytesMut::new();
    let hello = Hello {
        version: PROTOCOL_VERSION,
        capabilities: 0,
        tenant: house.world.spec.tenant,
        timeline: house.world.spec.timeline,
        token: house.world.token(Rights::Write),
    };
    Request::Hello(hello).encode(&mut wire);
    Request::Vote(Vote { attempt: 1, term: ardent_types::Term::new(9), proposer: ProposerId::new(1) })
        .encode(&mut wire);
    stream.write_all(&wire).await.expect("sent");
    let mut answers = BytesMut::new();
    while stream.read_buf(&mut answers).await.expect("read") > 0 {}
    let mut said = Vec::new();
    while let Some(frame) = Frame::take(&mut answers).expect("frames") {
        said.push(Response::decode(frame).expect("a message"));
    }
    let [Response::HelloOk { .. }, Response::Error { code: ErrorCode::Refused, message, .. }] = &said[..] else {
        panic!("{said:?}")
    };
    assert!(message.contains("generation 1") && message.contains("one version"), "{message}");
    house.close().await;
}

/// Nothing of a fresh log is lost or doubled by a copy that begins in the middle of the kept WAL.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_beginning_is_trimmed_is_copied_from_what_is_kept() {
    let mut house = House::start(0, 0).await;
    let dir = house.root.path().join("0");
    std::fs::create_dir(&dir).expect("a folder");
    let mut config = house.world.config(&dir);
    config.wal_keep_bytes = 0;
    let running = Safekeeper::start(config, CancellationToken::new()).await.expect("starts");
    let member = Member { disk: running.disk(), address: running.addresses()[0].clone() };
    house.nodes.push(Node { dir, running: Some(running), member });
    house.add().await;
    house.world.create(&house.addresses(0..1)).await;
    let (proposer, elected) = house.elect(&[0], &Membership::default()).await;
    let mut wal = house.world.wal(elected.end_lsn, elected.prev_lsn);
    let end = write(&proposer, &mut wal, 3_500_000).await;
    let mut reader = house.world.reader(&house.addresses(0..1), end).await;
    reader.send_position(end).await.expect("sent");
    let address = house.nodes[0].member.address.clone();
    let oldest = async || {
        let status = house.world.client(&address).await.status(house.world.spec.timeline).await;
        status.expect("a status").oldest_lsn
    };
    eventually("trimmed", async || oldest().await > house.world.spec.start_lsn).await;
    house.copy(0, 1).await.expect("copied");
    let joint = house.membership(2, &[0], Some(&[1]));
    house.catch_up(&joint, &[], true).await;
    house.tell_all(&house.membership(3, &[1], None)).await;
    house.stop(0).await;
    let end = write(&proposer, &mut wal, 200_000).await;
    let from = {
        let status = house.world.client(&house.nodes[1].member.address).await.status(house.world.spec.timeline).await;
        status.expect("a status").oldest_lsn
    };
    let mut reader = house.world.reader(&house.addresses(1..2), from).await;
    let read = Bytes::from(read_up_to(&mut reader, end).await);
    let skipped = from.saturating_sub(house.world.spec.start_lsn) as usize;
    assert!(read == wal.bytes()[skipped..], "other bytes");
    proposer.shutdown().await;
    house.close().await;
}
