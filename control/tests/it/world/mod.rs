//! Control on fakes: storage and production in memory, a shell script as the agent, and a client of the API.

mod client;
mod fakes;
pub mod members;
mod page_service;
mod production;
mod wal_service;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use ardent_api::compute::Sandbox;
use ardent_api::control::ApiErrorCode;
use ardent_control::{Control, ControlConfig, Dependencies, PoolConfig, PublicAddress, RunningControl};

use client::{request, requests_in_turn};
pub use fakes::{FakeState, FakeTimeline, Fakes, Held};
pub use wal_service::stall;

pub const SOURCE: &str = "postgresql://app:s3cret@prod.example/shop";

/// A data directory, its fakes, and control while it runs.
pub struct World {
    pub folder: tempfile::TempDir,
    pub fakes: Arc<Fakes>,
    pub token: String,
    /// How long deleted branches and history are kept, from the next start on.
    pub keep_deleted: Duration,
    pub retention: Duration,
    /// What suspended computes may leave, from the next start on.
    pub warm_bytes_max: Option<u64>,
    /// How long a start is waited for, from the next start on.
    pub wake_timeout: Duration,
    running: Option<RunningControl>,
    /// Control's own, so that it can end as in a crash.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.crash();
    }
}

impl World {
    pub async fn new() -> World {
        let folder = tempfile::tempdir().expect("folder");
        let mut world = World {
            folder,
            fakes: Fakes::new(),
            token: String::new(),
            keep_deleted: Duration::ZERO,
            retention: Duration::from_secs(7 * 86_400),
            warm_bytes_max: None,
            wake_timeout: Duration::from_secs(20),
            running: None,
            runtime: None,
        };
        world.start().await;
        world.token = world.control().new_user_token("test").expect("token");
        world
    }

    /// Stops control, and starts it again with deleted branches kept for this long.
    pub async fn keep_deleted_for(&mut self, keep_deleted: Duration) {
        self.stop().await;
        self.keep_deleted = keep_deleted;
        self.start().await;
    }

    /// A world with one connector named `shop`.
    pub async fn connected() -> World {
        let world = World::new().await;
        let events = world.connect("shop").await;
        assert_eq!(events.last().expect("events")["event"], "done", "{events:?}");
        world
    }

    pub fn config(&self) -> ControlConfig {
        let root = self.folder.path();
        let agent = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/world/fake-agent.sh");
        ControlConfig {
            data_dir: root.to_owned(),
            listen: "127.0.0.1:0".parse().expect("address"),
            public: PublicAddress { host: "localhost".into(), port: 7432, wildcard: true },
            proxy_address: "127.0.0.1".into(),
            ca_file: root.join("keys/ca.pem"),
            pool: PoolConfig {
                computes_dir: root.join("computes"),
                agent_command: vec![OsString::from("sh"), agent.into()],
                lib_dir: root.join("lib"),
                pg_bin_dirs: BTreeMap::new(),
                sandbox: Sandbox::None,
                first_uid: None,
                limits: ardent_api::compute::ComputeLimits::default(),
                warm_bytes_max: self.warm_bytes_max,
                statement_log: ardent_control::StatementLogs { dir: root.join("logs"), bytes_max: 0 },
                wake_timeout: self.wake_timeout,
                stop_deadline: Duration::from_secs(5),
            },
            retention: self.retention,
            keep_deleted: self.keep_deleted,
            slot_bytes_warn: 100 << 20,
        }
    }

    pub async fn start(&mut self) {
        let dependencies = Dependencies {
            page_service: self.fakes.clone(),
            wal_service: self.fakes.clone(),
            safekeeper_host: Some(self.fakes.clone()),
            connectors: self.fakes.clone(),
            logical: self.fakes.clone(),
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        let starting = runtime.spawn(Control::start(self.config(), dependencies, CancellationToken::new()));
        self.running = Some(starting.await.expect("no panic").expect("control starts"));
        self.runtime = Some(runtime);
    }

    pub async fn stop(&mut self) {
        if let Some((running, runtime)) = self.running.take().zip(self.runtime.as_ref()) {
            runtime.spawn(running.shutdown()).await.expect("no panic");
        }
        self.crash();
    }

    /// Ends control where it stands: no task goes on, nothing is tidied up.
    pub fn crash(&mut self) {
        self.running = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub fn control(&self) -> &Arc<Control> {
        self.running.as_ref().expect("it runs").control()
    }

    fn address(&self) -> SocketAddr {
        self.running.as_ref().expect("it runs").address()
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("run/control.sock")
    }

    /// A request on TCP with the token; status and body.
    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let (status, text) = self.call_raw(method, path, body, Some(&self.token)).await;
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    pub async fn call_raw(&self, method: &str, path: &str, body: Option<Value>, token: Option<&str>) -> (u16, String) {
        let stream = tokio::net::TcpStream::connect(self.address()).await.expect("connects");
        request(stream, method, path, body, token).await
    }

    /// Requests with the same body on one TCP connection, each after the answer to the one before; the status of each.
    pub async fn call_in_turn(&self, requests: &[(String, String)], body: &[u8], token: Option<&str>) -> Vec<u16> {
        let stream = tokio::net::TcpStream::connect(self.address()).await.expect("connects");
        requests_in_turn(stream, requests, body, token).await
    }

    /// The same on the Unix socket.
    pub async fn internal_in_turn(&self, requests: &[(String, String)], body: &[u8]) -> Vec<u16> {
        let stream = tokio::net::UnixStream::connect(self.socket()).await.expect("connects");
        requests_in_turn(stream, requests, body, None).await
    }

    /// What comes on a TCP connection on which these bytes are sent, up to its end.
    pub async fn call_with_bytes(&self, bytes: &[u8]) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.address()).await.expect("connects");
        stream.write_all(bytes).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer, and the end of the connection");
        answer
    }

    /// A request on the Unix socket without a token.
    pub async fn internal(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let stream = tokio::net::UnixStream::connect(self.socket()).await.expect("connects");
        let (status, text) = request(stream, method, path, body, None).await;
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, value) = self.call("GET", path, None).await;
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    pub async fn create_branch(&self, body: Value) -> Value {
        let (status, value) = self.call("POST", "/v1/branches", Some(body)).await;
        assert_eq!(status, 200, "{value}");
        value
    }

    /// Creates a connector; the lines that came.
    pub async fn connect(&self, name: &str) -> Vec<Value> {
        let body = json!({ "name": name, "url": SOURCE });
        let (_, text) = self.call_raw("POST", "/v1/connectors", Some(body), Some(&self.token)).await;
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    }

    pub async fn fails(&self, method: &str, path: &str, body: Option<Value>, code: ApiErrorCode) -> Value {
        let (status, value) = self.call(method, path, body).await;
        assert_eq!(value["error"]["code"], code.as_str(), "{value}");
        assert_eq!(status, code.http_status());
        assert_eq!(value["schema_version"], 1);
        value["error"].clone()
    }

    /// The folder of the branch's compute, once it was started.
    pub fn compute_dir(&self, branch: &str) -> Option<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path().join("computes")).expect("folder");
        entries.filter_map(Result::ok).map(|entry| entry.path()).find(|path| {
            let spec = std::fs::read_to_string(path.with_extension("spec")).unwrap_or_default();
            path.is_dir() && spec.contains(&format!("\"branch\":\"{branch}\""))
        })
    }

    /// Process ids of the agents that were started for the branch, in order.
    pub fn starts(&self, branch: &str) -> Vec<i32> {
        let text = self.compute_dir(branch).map(|dir| std::fs::read_to_string(dir.join("starts")).unwrap_or_default());
        text.unwrap_or_default().lines().map(|line| line.parse().expect("a process id")).collect()
    }
}

/// Waits until `holds`, for at most 20 seconds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
