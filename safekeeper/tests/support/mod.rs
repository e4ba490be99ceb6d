//! What the tests of the safekeeper share: WAL made from a seed, safekeepers on temporary folders.

#![allow(dead_code, reason = "each program uses a part of it")]

pub mod usage;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use ardent_api::addr::{ListenAddr, ServiceAddr};
use ardent_api::token::{Claims, Rights, Service, TokenIssuer};
use ardent_api::wal_service::SafekeeperStatus;
use ardent_pg_format::PgMajor;
use ardent_pg_format::encode::{RecordBuilder, WalStream, WalWriter};
use ardent_safekeeper::{Safekeeper, SafekeeperConfig};
use ardent_types::{Lsn, PgTli, SystemId, TenantId, TimelineId, WalSegmentSize};
use ardent_wal_client::{Elected, Proposer, ProposerConfig, SafekeeperClient, TimelineSpec, WalReader};

/// One tenant with one timeline, and the keys to it.
pub struct World {
    pub issuer: Arc<TokenIssuer>,
    pub spec: TimelineSpec,
}

impl World {
    pub fn new() -> World {
        let key = TokenIssuer::generate_key().expect("a key");
        World {
            issuer: Arc::new(TokenIssuer::from_key(&key).expect("the key is valid")),
            spec: TimelineSpec {
                tenant: TenantId::generate(),
                timeline: TimelineId::generate(),
                pg_major: 15,
                system_id: SystemId::new(0x6500_0000_0000_0001),
                pg_tli: PgTli::new(1),
                wal_segment_size: WalSegmentSize::new(1 << 20).expect("1 MiB is allowed"),
                start_lsn: Lsn::new(0x0200_1F00),
                prev_lsn: Lsn::new(0x0200_1E00),
                ancestor: None,
            },
        }
    }

    /// The same with another timeline of the tenant.
    pub fn of(&self, timeline: TimelineId) -> World {
        World { issuer: Arc::clone(&self.issuer), spec: TimelineSpec { timeline, ..self.spec } }
    }

    pub fn token(&self, rights: Rights) -> String {
        self.issuer.issue(&Claims {
            service: Service::Safekeeper,
            tenant: Some(self.spec.tenant),
            timeline: None,
            rights,
            expires_at_s: None,
        })
    }

    pub fn config(&self, dir: &Path) -> SafekeeperConfig {
        let address = ServiceAddr::Unix(dir.join("sk.sock"));
        let mut config = SafekeeperConfig::new(dir.join("data"), vec![address], self.issuer.verifier());
        config.listen_replication = vec![ListenAddr::Tcp("127.0.0.1:0".to_owned())];
        config
    }

    pub async fn start(&self, dir: &Path) -> Safekeeper {
        Safekeeper::start(self.config(dir), CancellationToken::new()).await.expect("the safekeeper starts")
    }

    pub async fn client(&self, address: &ServiceAddr) -> SafekeeperClient {
        SafekeeperClient::connect(address, self.spec.tenant, &self.token(Rights::Manage)).await.expect("connects")
    }

    /// How a safekeeper is, as one asks who may ask about all tenants.
    pub async fn safekeeper_status(&self, address: &ServiceAddr) -> SafekeeperStatus {
        let (service, rights) = (Service::Safekeeper, Rights::Read);
        let token = self.issuer.issue(&Claims { service, tenant: None, timeline: None, rights, expires_at_s: None });
        let client = SafekeeperClient::connect(address, TenantId::NONE, &token).await;
        client.expect("connects").safekeeper_status().await.expect("a status")
    }

    /// Makes the timeline on all these safekeepers.
    pub async fn create(&self, addresses: &[ServiceAddr]) {
        for address in addresses {
            self.client(address).await.create_timeline(self.spec).await.expect("the timeline is made");
        }
    }

    pub fn proposer_config(&self, addresses: &[ServiceAddr]) -> ProposerConfig {
        let spec = &self.spec;
        ProposerConfig::new(spec.tenant, spec.timeline, addresses.to_vec(), self.token(Rights::Write))
    }

    pub async fn elect(&self, addresses: &[ServiceAddr]) -> (Proposer, Elected) {
        Proposer::elect(self.proposer_config(addresses), CancellationToken::new()).await.expect("elected")
    }

    pub async fn reader(&self, addresses: &[ServiceAddr], from: Lsn) -> WalReader {
        let (spec, token) = (&self.spec, self.token(Rights::Write));
        WalReader::connect(addresses, spec.tenant, spec.timeline, &token, from).await.expect("a reader")
    }

    pub fn wal(&self, at: Lsn, prev: Lsn) -> WalSource {
        let spec = &self.spec;
        let major = PgMajor::from_number(spec.pg_major).expect("a known major");
        let stream =
            WalStream { major, segment_size: spec.wal_segment_size, tli: spec.pg_tli, system_id: spec.system_id };
        WalSource { writer: WalWriter::new(stream, at, prev), start: at, taken: 0, seed: at.get() | 1 }
    }
}

/// Makes valid WAL, record by record.
pub struct WalSource {
    writer: WalWriter,
    start: Lsn,
    taken: usize,
    seed: u64,
}

impl WalSource {
    /// A number below `below`.
    pub fn random(&mut self, below: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % below
    }

    /// Adds records until at least `length` bytes more are there; gives all new bytes and where they start. They end at a record
    /// end.
    pub fn take(&mut self, length: usize) -> (Lsn, Bytes) {
        let from = self.taken;
        while self.writer.bytes().len() < from + length {
            let payload = vec![0xA5; 1 + self.random(3000) as usize];
            // XLOG_NOOP: nobody looks at what is in it.
            self.writer.append(&RecordBuilder::new(0, 0x20).main_data(payload));
        }
        self.taken = self.writer.bytes().len();
        (self.start.advance(from as u64), Bytes::copy_from_slice(&self.writer.bytes()[from..]))
    }

    /// One record with so much in it; gives it, and where it starts.
    pub fn take_large(&mut self, length: usize) -> (Lsn, Bytes) {
        let from = self.taken;
        self.writer.append(&RecordBuilder::new(0, 0x20).main_data(vec![0xA5; length]));
        self.taken = self.writer.bytes().len();
        (self.start.advance(from as u64), Bytes::copy_from_slice(&self.writer.bytes()[from..]))
    }

    pub fn bytes(&self) -> &[u8] {
        self.writer.bytes()
    }

    pub fn end(&self) -> Lsn {
        self.writer.position()
    }
}

/// Waits until a watched position has reached `lsn`.
pub async fn reached(mut position: tokio::sync::watch::Receiver<Lsn>, lsn: Lsn) {
    let wait = position.wait_for(|at| *at >= lsn);
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("in time").expect("the proposer lives");
}

/// Reads committed WAL up to `end`.
pub async fn read_up_to(reader: &mut WalReader, end: Lsn) -> Vec<u8> {
    let mut bytes = Vec::new();
    while reader.next_lsn() < end {
        let chunk = tokio::time::timeout(Duration::from_secs(20), reader.next()).await.expect("in time");
        bytes.extend_from_slice(&chunk.expect("a chunk").bytes);
    }
    bytes
}

/// Asks again until `holds`, with a deadline.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
