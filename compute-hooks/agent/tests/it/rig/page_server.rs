//! A page server that serves one stopped cluster's files, at whatever LSN it is asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ardent_api::addr::ServiceAddr;
use ardent_api::frame::Frame;
use ardent_api::page_service::{
    BackupItem, BaseBackupHeader, ErrorCode, ManageReply, ManageRequest, PROTOCOL_VERSION, Request, Response,
};
use ardent_pg_format::ControlFile;
use ardent_types::{BLCKSZ, BlockNumber, ForkNumber, Lsn, RelTag};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

/// What was asked of the server.
#[derive(Debug, Default)]
pub struct Seen {
    pub base_backups: AtomicU64,
    pub pages: AtomicU64,
    /// Connections with the agent's token and with the backends'.
    pub agent_connections: AtomicU64,
    pub backend_connections: AtomicU64,
    /// The latest LSN that pages were asked for at.
    pub pages_at: AtomicU64,
    /// Lease name to base LSN, while held.
    pub leases: Mutex<BTreeMap<String, Lsn>>,
    /// Answer lease requests with an error from now on.
    pub refuse_leases: AtomicBool,
    /// The store is away: leases cannot be renewed.
    pub store_away: AtomicBool,
    /// Answer nothing any more, on whichever connection.
    pub silent: AtomicBool,
}

#[derive(Debug)]
struct Cluster {
    data_dir: PathBuf,
    control_file: Vec<u8>,
    control: ControlFile,
    token: String,
    page_token: String,
}

/// A running server; ends with its runtime.
#[derive(Debug)]
pub struct FakePageServer {
    pub addr: ServiceAddr,
    pub seen: Arc<Seen>,
}

impl FakePageServer {
    /// Serves the cluster in `data_dir`, which must have been shut down, at a socket in `folder`.
    pub fn start(folder: &Path, data_dir: &Path, token: &str, page_token: &str) -> Self {
        let control_file = std::fs::read(data_dir.join("global/pg_control")).expect("pg_control");
        let control = ControlFile::decode(&control_file).expect("pg_control is valid");
        let cluster = Arc::new(Cluster {
            data_dir: data_dir.to_owned(),
            control_file,
            control,
            token: token.to_owned(),
            page_token: page_token.to_owned(),
        });
        let path = folder.join("pageserver.sock");
        let listener = UnixListener::bind(&path).expect("bind");
        let seen = Arc::new(Seen::default());
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&cluster), Arc::clone(&shared)));
            }
        });
        FakePageServer { addr: ServiceAddr::Unix(path), seen }
    }
}

async fn serve(mut stream: UnixStream, cluster: Arc<Cluster>, seen: Arc<Seen>) {
    let mut received = BytesMut::new();
    let mut may_write = false;
    loop {
        match Frame::take(&mut received).expect("frame") {
            Some(frame) => {
                if seen.silent.load(Ordering::Relaxed) {
                    return std::future::pending().await;
                }
                let mut out = BytesMut::new();
                let request = Request::decode(frame).expect("request");
                match &request {
                    Request::Hello(hello) if hello.token == cluster.token => {
                        may_write = true;
                        seen.agent_connections.fetch_add(1, Ordering::Relaxed);
                    }
                    Request::Hello(_) => drop(seen.backend_connections.fetch_add(1, Ordering::Relaxed)),
                    request => assert!(may_write || matches!(request, Request::GetPages { .. }), "{request:?}"),
                }
                for response in cluster.answer(request, &seen) {
                    response.encode(&mut out);
                }
                if stream.write_all(&out).await.is_err() {
                    return;
                }
            }
            None => match stream.read_buf(&mut received).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            },
        }
    }
}

impl Cluster {
    fn answer(&self, request: Request, seen: &Seen) -> Vec<Response> {
        match request {
            Request::Hello(hello) if [&self.token, &self.page_token].contains(&&hello.token) => {
                vec![Response::HelloOk { version: PROTOCOL_VERSION, capabilities: 0 }]
            }
            Request::Hello(_) => vec![error(0, ErrorCode::Refused)],
            Request::WaitLsn { id, lsn, .. } => vec![Response::LsnReached { id, last_record_lsn: lsn }],
            Request::GetBaseBackup { id, lsn } => {
                seen.base_backups.fetch_add(1, Ordering::Relaxed);
                self.base_backup(lsn).into_iter().map(|item| Response::BackupItem { id, item }).collect()
            }
            Request::GetPages { id, lsn, rel, ranges } => {
                seen.pages_at.fetch_max(lsn.get(), Ordering::Relaxed);
                let mut pages = BytesMut::new();
                for block in ranges.iter().flat_map(|range| range.start..range.start + range.count) {
                    seen.pages.fetch_add(1, Ordering::Relaxed);
                    pages.extend_from_slice(&self.page(&rel, block));
                }
                vec![Response::Pages { id, pages: pages.freeze() }]
            }
            Request::Manage { id, request: ManageRequest::Lease { name, lsn, ttl_s, .. } } => {
                if seen.refuse_leases.load(Ordering::Relaxed) {
                    return vec![error(id, ErrorCode::BaseLsnExpired)];
                }
                if seen.store_away.load(Ordering::Relaxed) {
                    return vec![error(id, ErrorCode::Unavailable)];
                }
                let mut leases = seen.leases.lock().expect("leases");
                if ttl_s == 0 {
                    leases.remove(&name)
                } else {
                    leases.insert(name, lsn)
                };
                vec![Response::Manage { id, reply: ManageReply::Done }]
            }
            // What a compute leaves is sent and not asked for again: this server's pages are those of the stopped cluster.
            Request::KeepPart { id, .. }
            | Request::Manage {
                id,
                request: ManageRequest::KeepState { .. } | ManageRequest::OutdateKeptState { .. },
            } => vec![Response::Manage { id, reply: ManageReply::Done }],
            Request::Manage { id, request: ManageRequest::KeptState { .. } } => {
                vec![Response::Manage { id, reply: ManageReply::KeptState { state: None } }]
            }
            other => panic!("not expected from an agent: {other:?}"),
        }
    }

    fn page(&self, rel: &RelTag, block: BlockNumber) -> Bytes {
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::File::open(self.data_dir.join(rel.path(""))).expect("relation");
        let mut page = vec![0; BLCKSZ];
        file.read_exact_at(&mut page, u64::from(block) * BLCKSZ as u64).expect("page");
        page.into()
    }

    fn base_backup(&self, lsn: Lsn) -> Vec<BackupItem> {
        let control = &self.control;
        let header = BaseBackupHeader {
            lsn,
            prev_lsn: control.checkpoint_lsn,
            system_id: control.system_id,
            pg_tli: control.checkpoint.tli,
            wal_segment_size: control.wal_segment_size,
            pg_major: control.major.number(),
            checkpoint_hex: hex::encode(control.checkpoint.encode(control.major)),
        };
        let mut items =
            vec![BackupItem::Header(header), BackupItem::ControlFile(Bytes::from(self.control_file.clone()))];
        let mut relations = Vec::new();
        for folder in ["global", "base"] {
            self.list(Path::new(folder), &mut items, &mut relations);
        }
        for folder in ["pg_xact", "pg_multixact", "pg_twophase", "pg_commit_ts"] {
            self.list(Path::new(folder), &mut items, &mut Vec::new());
        }
        items.push(BackupItem::Relations(relations));
        items.push(BackupItem::End);
        items
    }

    fn list(&self, folder: &Path, items: &mut Vec<BackupItem>, relations: &mut Vec<(RelTag, BlockNumber)>) {
        for entry in std::fs::read_dir(self.data_dir.join(folder)).expect("folder") {
            let entry = entry.expect("entry");
            let path = folder.join(entry.file_name());
            let text = path.to_str().expect("plain names").to_owned();
            if entry.path().is_dir() {
                items.push(BackupItem::Directory(text));
                self.list(&path, items, relations);
            } else if let Some(rel) = relation(&path) {
                let length = entry.metadata().expect("metadata").len();
                relations.push((rel, u32::try_from(length / BLCKSZ as u64).expect("small")));
            } else if !text.ends_with("pg_control") && !text.ends_with("pg_internal.init") {
                let content = std::fs::read(entry.path()).expect("file");
                let zstd = zstd::bulk::compress(&content, 1).expect("compress").into();
                items.push(BackupItem::File { path: text, zstd });
            }
        }
    }
}

/// The relation fork in a file of `global` or `base/N`.
fn relation(path: &Path) -> Option<RelTag> {
    let name = path.file_name()?.to_str()?;
    let (number, suffix) = name.split_once('_').map_or((name, ""), |(number, suffix)| (number, suffix));
    let fork = match suffix {
        "" => ForkNumber::Main,
        "fsm" => ForkNumber::Fsm,
        "vm" => ForkNumber::Vm,
        _ => return None,
    };
    let relnode = number.parse().ok()?;
    let mut parents = path.parent()?.components().rev();
    match parents.next()?.as_os_str().to_str()? {
        "global" => Some(RelTag { spcnode: 1664, dbnode: 0, relnode, fork }),
        database if path.starts_with("base") => {
            Some(RelTag { spcnode: 1663, dbnode: database.parse().ok()?, relnode, fork })
        }
        _ => None,
    }
}

fn error(id: u64, code: ErrorCode) -> Response {
    Response::Error { id, code, message: "refused by the test".into() }
}
