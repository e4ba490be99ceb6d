//! Storage on a folder, filled by the test itself, and a page server on it afterwards.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ardent_api::addr::ServiceAddr;
use ardent_api::token::{Claims, Rights, Service, TokenIssuer};
use ardent_object_store::LocalFolder;
use ardent_page_client::{Binding, PageClient};
use ardent_pageserver::{Pageserver, PageserverConfig};
use ardent_storage::{Engine, EngineConfig, Timeline, TimelineFacts};
use ardent_types::{Key, TenantId, TimelineId};
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::workload::{START, STREAM};

pub const TENANT: TenantId = TenantId::from_bytes([7; 16]);
pub const ROOT: TimelineId = TimelineId::from_bytes([1; 16]);
pub const BRANCH: TimelineId = TimelineId::from_bytes([2; 16]);

/// Without threads of its own: what is flushed and compacted, and when, is said by the test.
fn engine_config(folder: &Path) -> EngineConfig {
    let store = LocalFolder::open(&folder.join("store")).expect("the store can be made");
    EngineConfig { background: false, ..EngineConfig::new(folder.join("local"), Arc::new(store)) }
}

/// Storage alone; it must be gone before a page server can have the folder.
pub fn open(folder: &Path) -> Arc<Engine> {
    Engine::open(engine_config(folder)).expect("the engine opens")
}

/// A root that begins with these values.
pub fn import(engine: &Engine, values: &[(Key, Bytes)]) -> Arc<Timeline> {
    let facts = TimelineFacts {
        pg_major: STREAM.major,
        system_id: STREAM.system_id,
        pg_tli: STREAM.tli,
        wal_segment_size: STREAM.segment_size,
        start_lsn: START,
    };
    let root = engine.create_root(TENANT, ROOT, facts).expect("the root is made");
    root.import_images(values).expect("values are taken");
    root.finish_import().expect("the import is finished");
    root
}

/// A page server in this process.
pub struct House {
    address: ServiceAddr,
    issuer: TokenIssuer,
    cancel: CancellationToken,
    server: JoinHandle<()>,
}

impl House {
    pub async fn start(folder: &Path) -> House {
        let issuer = TokenIssuer::from_key(&TokenIssuer::generate_key().expect("key")).expect("issuer");
        let address = ServiceAddr::Unix(folder.join("page.sock"));
        let config = PageserverConfig {
            engine: engine_config(folder),
            retention: Duration::from_secs(7 * 24 * 3600),
            listen: vec![address.clone()],
            verifier: issuer.verifier(),
            safekeepers: Vec::new(),
            safekeeper_token: String::new(),
        };
        let cancel = CancellationToken::new();
        let server = Pageserver::start(config, cancel.clone()).await.expect("the page server starts");
        House { address, issuer, cancel, server: tokio::spawn(server.run()) }
    }

    /// A client that may do everything, bound to `timeline`; to none with [`TimelineId::NONE`].
    pub async fn client(&self, timeline: TimelineId) -> PageClient {
        let claims = Claims {
            service: Service::Pageserver,
            tenant: Some(TENANT),
            timeline: None,
            rights: Rights::Manage,
            expires_at_s: None,
        };
        let binding = Binding { tenant: TENANT, timeline, token: self.issuer.issue(&claims) };
        PageClient::connect(&self.address, &binding).await.expect("connects")
    }

    pub async fn stop(self) {
        self.cancel.cancel();
        self.server.await.expect("the page server ends");
    }
}
