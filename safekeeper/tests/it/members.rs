//! Safekeepers change while a writer writes, on real files and sockets: what was acknowledged is on the new ones, the writer goes on in its term, and
//! whoever counts on the old ones is refused.

use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use ardent_api::addr::ServiceAddr;
use ardent_api::frame::Frame;
use ardent_api::token::{Claims, Rights, Service, TokenIssuer};
use ardent_api::wal_service::{
    CopySource, ErrorCode, Hello, Member, MemberStanding, Membership, PROTOCOL_VERSION, PromisedTerm, ProposerId,
    Request, Response, Vote,
};
use ardent_object_store::fault::{FailPoints, FaultAction};
use ardent_quorum::{CatchUp, CatchUpVerdict, Configuration, LogPosition, Promise, Standing};
use ardent_safekeeper::Safekeeper;
use ardent_types::{DiskId, Lsn, MemberGeneration};
use ardent_wal_client::{ClientError, Proposer, ProposerConfig, ProposerError, SafekeeperClient};

use crate::support::{WalSource, World, eventually, reached, read_up_to};

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
        let (generation, members) = (MemberGeneration::new(generation), self.members(members));
        self.world.issuer.seal(&Membership { generation, members, next, ..Membership::default() })
    }

    /// What is answered to these requests of a branch's writer, until the safekeeper closes the connection or all have an answer.
    async fn said_to_writer(&self, node: usize, requests: &[Request]) -> Vec<Response> {
        let ServiceAddr::Unix(path) = &self.nodes[node].member.address else { panic!("a socket") };
        let mut stream = tokio::net::UnixStream::connect(path).await.expect("connects");
        let mut wire = BytesMut::new();
        let hello = Hello {
            version: PROTOCOL_VERSION,
            capabilities: 0,
            tenant: self.world.spec.tenant,
            timeline: self.world.spec.timeline,
            token: self.branch_token(Rights::Write),
        };
        Request::Hello(hello).encode(&mut wire);
        for request in requests {
            request.encode(&mut wire);
        }
        stream.write_all(&wire).await.expect("sent");
        let (mut answers, mut said) = (BytesMut::new(), Vec::new());
        while said.len() < 1 + requests.len() {
            let read = tokio::time::timeout(Duration::from_secs(20), stream.read_buf(&mut answers)).await;
            if read.expect("in time").expect("read") == 0 {
                break;
            }
            while let Some(frame) = Frame::take(&mut answers).expect("frames") {
                said.push(Response::decode(frame).expect("a message"));
            }
        }
        said
    }

    /// Good for the one timeline, as a compute's is.
    fn branch_token(&self, rights: Rights) -> String {
        self.world.issuer.issue(&Claims {
            service: Service::Safekeeper,
            tenant: Some(self.world.spec.tenant),
            timeline: Some(self.world.spec.timeline),
            rights,
            expires_at_s: None,
        })
    }

    /// Who the members are, as one of them knows.
    async fn known(&self, node: usize) -> MemberStanding {
        self.tell(&self.nodes[node].member, &Membership::default(), None).await.expect("generation 0 only asks")
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
    // One that its quorum did not need may not even have voted: with the writer gone it would get no more.
    for node in [0, 1, 2] {
        eventually("all has come", async || house.known(node).await.flush_lsn >= end).await;
    }
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
    let house = House::start(1, 1).await;
    house.tell_all(&house.membership(1, &[0], None)).await;
    let said = house.said_to_writer(0, &[Request::Vote(vote(9))]).await;
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

fn vote(term: u64) -> Vote {
    Vote { attempt: 1, term: ardent_types::Term::new(term), proposer: ProposerId::new(1) }
}

/// Who may write a branch cannot say who keeps it: a list of its own making would be taken for newer than control's.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_cannot_make_up_who_the_members_are() {
    let house = House::start(2, 1).await;
    let sealed = house.membership(1, &[0], None);
    let stranger = TokenIssuer::from_key(&TokenIssuer::generate_key().expect("a key")).expect("the key is valid");
    let other_list = Membership { members: house.members(&[1]), ..sealed.clone() };
    for forged in [sealed.unsealed(), stranger.seal(&sealed), other_list] {
        let said = house.said_to_writer(0, &[Request::VoteIn(vote(9), forged.clone())]).await;
        let [Response::HelloOk { .. }, Response::Error { code: ErrorCode::Refused, message, .. }] = &said[..] else {
            panic!("{said:?}")
        };
        assert!(message.contains("generation 1") && message.contains("ardent reconfigure safekeepers"), "{message}");
        let known = house.known(0).await;
        assert_eq!((known.membership, known.promise.term.get()), (Membership::default(), 0), "nothing is taken of it");
        // Not even who may manage can: it is control's to say.
        let error = house.tell(&house.nodes[0].member, &forged, None).await.expect_err("refused");
        assert_eq!(error.code(), Some(ErrorCode::Refused), "{error}");
    }
    // What control has sealed may come with anybody.
    let said = house.said_to_writer(0, &[Request::VoteIn(vote(9), sealed.clone())]).await;
    assert!(matches!(&said[..], [Response::HelloOk { .. }, Response::VoteIn(reply, _)] if reply.granted), "{said:?}");
    assert_eq!(house.known(0).await.membership, sealed);
    house.close().await;
}

/// Copying and telling who the members are is for whoever manages.
#[tokio::test(flavor = "multi_thread")]
async fn a_branchs_token_manages_no_members() {
    let house = House::start(2, 1).await;
    let (tenant, timeline) = (house.world.spec.tenant, house.world.spec.timeline);
    let address = house.nodes[0].member.address.clone();
    let joint = house.membership(1, &[0], None);
    for rights in [Rights::Read, Rights::Write] {
        let token = house.branch_token(rights);
        let mut client =
            SafekeeperClient::connect_to_timeline(&address, tenant, timeline, &token).await.expect("connects");
        let refused = |error: ClientError| assert_eq!(error.code(), Some(ErrorCode::Refused), "{error}");
        refused(client.configure(timeline, joint.clone(), None).await.expect_err("refused"));
        let source = CopySource { tenant, timeline, address: address.clone(), token: token.clone() };
        refused(client.copy_timeline(source).await.expect_err("refused"));
        refused(client.is_empty().await.expect_err("refused"));
        refused(client.outline(ardent_types::TimelineId::generate()).await.expect_err("refused"));
        refused(client.delete_timeline(timeline).await.expect_err("refused"));
        client.identify().await.expect("no secret");
    }
    assert_eq!(house.known(0).await.membership, Membership::default());
    house.close().await;
}

/// A stranger who asks in vain does not make it look as if nobody wrote.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_a_term_is_nobodys_writer() {
    let house = House::start(1, 1).await;
    let (proposer, elected) = house.elect(&[0], &Membership::default()).await;
    assert!(house.known(0).await.has_writer);
    for term in [0, elected.term.get()] {
        let said = house.said_to_writer(0, &[Request::Vote(vote(term))]).await;
        assert!(matches!(&said[..], [Response::HelloOk { .. }, Response::Vote(reply)] if !reply.granted), "{said:?}");
    }
    assert!(house.known(0).await.has_writer, "the one that was elected is still there");
    proposer.shutdown().await;
    eventually("it has left", async || !house.known(0).await.has_writer).await;
    house.close().await;
}

/// One that joins may get the timeline only after the writer has heard of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_waits_for_one_that_joins_and_lacks_the_timeline() {
    let house = House::start(2, 1).await;
    let (proposer, elected) = house.elect(&[0], &Membership::default()).await;
    let mut wal = house.world.wal(elected.end_lsn, elected.prev_lsn);
    write(&proposer, &mut wal, 100_000).await;
    let joint = house.membership(2, &[0], Some(&[1]));
    house.tell(&house.nodes[0].member, &joint, None).await.expect("told");
    let (start, data) = wal.take(1000);
    proposer.append(start, data).await.expect("queued");
    let waited = tokio::time::timeout(Duration::from_secs(2), proposer.closed()).await;
    assert!(waited.is_err(), "it has given up: {waited:?}");
    // Nor does one that is elected just then.
    let config = ProposerConfig {
        membership: joint.clone(),
        election_timeout: Duration::from_secs(1),
        ..house.world.proposer_config(&[])
    };
    let error = Proposer::elect(config, CancellationToken::new()).await.expect_err("a majority of the next is needed");
    assert!(error.is_retryable(), "{error:?}");

    house.copy(0, 1).await.expect("copied");
    let (proposer, elected) = house.elect(&[], &joint).await;
    let mut wal = house.world.wal(elected.end_lsn, elected.prev_lsn);
    house.catch_up(&joint, &[], true).await;
    house.tell_all(&house.membership(3, &[1], None)).await;
    write(&proposer, &mut wal, 1000).await;
    proposer.shutdown().await;
    house.close().await;
}

/// The first copy fails when all but the folders' fsync is done: the second one makes up for that, although the timeline is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_tried_again_is_durable_when_it_is_answered() {
    let mut house = House::start(1, 1).await;
    let (proposer, elected) = house.elect(&[0], &Membership::default()).await;
    let mut wal = house.world.wal(elected.end_lsn, elected.prev_lsn);
    write(&proposer, &mut wal, 100_000).await;
    let dir = house.root.path().join("1");
    std::fs::create_dir(&dir).expect("a folder");
    let faults = std::sync::Arc::new(FailPoints::new());
    let mut config = house.world.config(&dir);
    config.faults = std::sync::Arc::clone(&faults);
    let running = Safekeeper::start(config, CancellationToken::new()).await.expect("starts");
    let member = Member { disk: running.disk(), address: running.addresses()[0].clone() };
    house.nodes.push(Node { dir, running: Some(running), member });
    // The copy's own folder is the first.
    faults.arm("join.folder_fsync", 2, FaultAction::Fail);
    let error = house.copy(0, 1).await.expect_err("the tenant's folder is not durable");
    assert_eq!(error.code(), Some(ErrorCode::Unavailable), "{error}");
    let before = faults.passed()["join.folder_fsync"];
    house.copy(0, 1).await.expect("it is there, and durable");
    assert_eq!(faults.passed()["join.folder_fsync"], before + 2, "the tenant's folder and the one that it is in");
    // The same of one that is made.
    let spec = ardent_wal_client::TimelineSpec { timeline: ardent_types::TimelineId::generate(), ..house.world.spec };
    faults.arm("timeline.folder_fsync", 2, FaultAction::Fail);
    let mut client = house.world.client(&house.nodes[1].member.address).await;
    client.create_timeline(spec).await.expect_err("the tenant's folder is not durable");
    let before = faults.passed()["timeline.folder_fsync"];
    client.create_timeline(spec).await.expect("it is there, and durable");
    assert_eq!(faults.passed()["timeline.folder_fsync"], before + 2);
    proposer.shutdown().await;
    house.close().await;
}

/// What is deleted while it is copied does not come back with the end of the copy.
#[tokio::test(flavor = "multi_thread")]
async fn deleting_ends_a_copy_that_is_under_way() {
    let house = House::start(1, 0).await;
    // A safekeeper that has hung: it takes the connection and says nothing.
    let path = house.root.path().join("hung.sock");
    let hung = tokio::net::UnixListener::bind(&path).expect("bound");
    let (tenant, timeline) = (house.world.spec.tenant, house.world.spec.timeline);
    let source =
        CopySource { tenant, timeline, address: ServiceAddr::Unix(path), token: house.world.token(Rights::Read) };
    let mut copier = house.world.client(&house.nodes[0].member.address).await;
    let copying = tokio::spawn(async move { copier.copy_timeline(source).await });
    let (_silent, _) =
        tokio::time::timeout(Duration::from_secs(20), hung.accept()).await.expect("in time").expect("asked");
    let mut client = house.world.client(&house.nodes[0].member.address).await;
    // Well before the hung one is given up.
    let deleted = tokio::time::timeout(Duration::from_secs(10), client.delete_timeline(timeline)).await;
    deleted.expect("in time").expect("there is nothing to delete");
    let error = copying.await.expect("joined").expect_err("it is not wanted any more");
    assert!(error.to_string().contains("cannot be copied"), "{error}");
    assert_eq!(client.list().await.expect("a list"), []);
    house.close().await;
}

/// A safekeeper of an older version is of no use to a writer that knows members; when it is upgraded, the writer that waits finds it.
#[tokio::test(flavor = "multi_thread")]
async fn a_safekeeper_that_is_upgraded_is_found_by_a_writer_that_waits() {
    let mut house = House::start(2, 2).await;
    let membership = house.membership(1, &[0, 1], None);
    house.stop(1).await;
    let ServiceAddr::Unix(path) = house.nodes[1].member.address.clone() else { panic!("a socket") };
    let old = tokio::net::UnixListener::bind(&path).expect("bound");
    let elect = {
        let config = ProposerConfig { membership, ..house.world.proposer_config(&[]) };
        // The election itself gives up on two of which one is too old: a third, which is away, lets it wait.
        let mut config = config;
        let away = Member { disk: DiskId::generate(), address: "unix:/nowhere".parse().expect("an address") };
        config.membership.members.push(away);
        config.membership.members.sort_by_key(|member| member.disk);
        config.membership = house.world.issuer.seal(&config.membership);
        config.election_timeout = Duration::from_secs(20);
        tokio::spawn(async move { Proposer::elect(config, CancellationToken::new()).await })
    };
    let (mut stream, _) =
        tokio::time::timeout(Duration::from_secs(20), old.accept()).await.expect("in time").expect("asked");
    let mut wire = BytesMut::new();
    Response::HelloOk { version: PROTOCOL_VERSION, capabilities: 0 }.encode(&mut wire);
    stream.write_all(&wire).await.expect("sent");
    // The writer hangs up: it does not hold a connection of which it makes no use.
    let mut rest = BytesMut::new();
    let closed = async { while stream.read_buf(&mut rest).await.is_ok_and(|read| read > 0) {} };
    tokio::time::timeout(Duration::from_secs(10), closed).await.expect("in time");
    drop(old);
    std::fs::remove_file(&path).expect("removed");
    house.restart(1).await;
    let (proposer, _) = elect.await.expect("joined").expect("both vote now");
    proposer.shutdown().await;
    house.close().await;
}
