//! The client against a server that follows a script.

use std::time::Duration;

use ardent_api::addr::ServiceAddr;
use ardent_api::frame::Frame;
use ardent_api::page_service::{
    BackupItem, BlockRange, ChangedRelation, ErrorCode, ImportSpec, KeptAt, ManageReply, ManageRequest,
    PROTOCOL_VERSION, Request, Response,
};
use ardent_page_client::{Binding, PageClient, PageError, PageStream};
use ardent_types::{BLCKSZ, ForkNumber, Lsn, PgTli, RelTag, SystemId, TenantId, Term, TimelineId, WalSegmentSize};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Main };

/// Serves one connection: answers each request with what `answer` says; ends when it says `None`.
struct Server {
    addr: ServiceAddr,
    binding: Binding,
    _folder: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    fn start(mut answer: impl FnMut(Request) -> Option<Vec<Response>> + Send + 'static) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("page.sock");
        let listener = UnixListener::bind(&path).expect("bind");
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut received = BytesMut::new();
            while let Some(request) = next_request(&mut stream, &mut received).await {
                let responses = match request {
                    Request::Hello(hello) if hello.token != "good" => Some(vec![refusal()]),
                    Request::Hello(_) => Some(vec![Response::HelloOk { version: PROTOCOL_VERSION, capabilities: 0 }]),
                    request => answer(request),
                };
                let Some(responses) = responses else { return };
                let mut out = BytesMut::new();
                responses.iter().for_each(|response| response.encode(&mut out));
                if stream.write_all(&out).await.is_err() {
                    return;
                }
            }
        });
        let binding = Binding {
            tenant: TenantId::from_bytes([1; 16]),
            timeline: TimelineId::from_bytes([2; 16]),
            token: "good".into(),
        };
        Server { addr: ServiceAddr::Unix(path), binding, _folder: folder, task }
    }

    async fn client(&self) -> PageClient {
        PageClient::connect(&self.addr, &self.binding).await.expect("connects")
    }
}

async fn next_request(stream: &mut UnixStream, received: &mut BytesMut) -> Option<Request> {
    loop {
        if let Some(frame) = Frame::take(received).expect("frame") {
            return Some(Request::decode(frame).expect("request"));
        }
        if stream.read_buf(received).await.ok()? == 0 {
            return None;
        }
    }
}

fn refusal() -> Response {
    Response::Error { id: 0, code: ErrorCode::Refused, message: "the token has expired".into() }
}

fn error(id: u64) -> Response {
    Response::Error { id, code: ErrorCode::Unreadable, message: "block 7 is corrupt".into() }
}

fn changed() -> ChangedRelation {
    ChangedRelation {
        rel: REL,
        nblocks_from: None,
        nblocks_to: Some(9),
        ranges: vec![BlockRange { start: 1, count: 2 }],
    }
}

/// A server that does what it is asked, except for block 7.
fn willing(request: Request) -> Option<Vec<Response>> {
    Some(match request {
        Request::WaitLsn { id, lsn, .. } => vec![Response::LsnReached { id, last_record_lsn: lsn.advance(8) }],
        Request::GetPages { id, ranges, .. } if ranges[0].start == 7 => vec![error(id)],
        Request::GetPages { id, ranges, .. } => {
            let count: u32 = ranges.iter().map(|range| range.count).sum();
            vec![Response::Pages { id, pages: Bytes::from(vec![5; count as usize * BLCKSZ]) }]
        }
        Request::GetRelSize { id, .. } => vec![Response::RelSize { id, nblocks: Some(12) }],
        Request::GetChanged { id, .. } => vec![
            Response::Changed { id, last: false, relations: vec![changed()] },
            Response::Changed { id, last: true, relations: vec![changed()] },
        ],
        Request::GetBaseBackup { id, .. } => [BackupItem::Directory("base/5".into()), BackupItem::End]
            .map(|item| Response::BackupItem { id, item })
            .to_vec(),
        Request::Manage { id, .. } | Request::KeepPart { id, .. } => {
            vec![Response::Manage { id, reply: ManageReply::Done }]
        }
        Request::GetKeptPart { id, part, .. } => {
            vec![Response::KeptPart { id, data: Bytes::from(part.to_le_bytes().to_vec()) }]
        }
        Request::Hello(_) | Request::ImportFile { .. } | Request::ImportData { .. } => vec![],
    })
}

#[tokio::test]
async fn every_request_gets_its_answer() {
    let server = Server::start(willing);
    let mut client = server.client().await;
    let lsn = Lsn::new(0x100);
    assert_eq!(client.wait_lsn(lsn, Duration::from_secs(1)).await.expect("wait"), lsn.advance(8));
    let ranges = [BlockRange { start: 1, count: 2 }, BlockRange { start: 8, count: 1 }];
    assert_eq!(client.get_pages(lsn, REL, &ranges).await.expect("pages").len(), 3 * BLCKSZ);
    assert_eq!(client.get_rel_size(lsn, REL).await.expect("size"), Some(12));
    assert_eq!(client.get_changed(lsn, lsn).await.expect("changed"), vec![changed(), changed()]);
    let mut backup = client.base_backup(lsn).await.expect("backup");
    assert_eq!(backup.next().await.expect("item"), Some(BackupItem::Directory("base/5".into())));
    assert_eq!(backup.next().await.expect("end"), None);
    assert_eq!(backup.next().await.expect("still the end"), None);
    assert_eq!(client.manage(ManageRequest::ListTimelines).await.expect("reply"), ManageReply::Done);
    let at = KeptAt { lsn, term: Term::new(3) };
    client.keep_part(at, 0, Bytes::from_static(b"kept")).await.expect("kept");
    assert_eq!(client.get_kept_part(at, 7).await.expect("part")[..], 7_u32.to_le_bytes());
    assert!(matches!(client.into_stream(), Ok(PageStream::Unix(_))));
    server.task.await.expect("server");
}

#[tokio::test]
async fn a_failed_request_leaves_the_connection_usable() {
    let server = Server::start(willing);
    let mut client = server.client().await;
    let failed = client.get_pages(Lsn::new(1), REL, &[BlockRange { start: 7, count: 1 }]).await;
    let failed = failed.expect_err("block 7 is corrupt");
    assert_eq!((failed.code(), failed.is_retryable()), (Some(ErrorCode::Unreadable), false));
    assert_eq!(client.get_rel_size(Lsn::new(1), REL).await.expect("size"), Some(12));
}

#[tokio::test]
async fn a_refused_token_and_an_absent_server_are_told_apart() {
    let server = Server::start(willing);
    let binding = Binding { token: "bad".into(), ..server.binding.clone() };
    let refused = PageClient::connect(&server.addr, &binding).await.expect_err("refused");
    assert_eq!(refused.code(), Some(ErrorCode::Refused));
    let nowhere = ServiceAddr::Unix("/nonexistent/page.sock".into());
    let absent = PageClient::connect(&nowhere, &binding).await.expect_err("absent");
    assert!(matches!(absent, PageError::Connect { .. }) && absent.is_retryable());
    let far = ServiceAddr::Tcp("192.0.2.1:5".into());
    let far = PageClient::connect(&far, &binding).await.expect_err("off host");
    assert!(matches!(far, PageError::OffHost { .. }));
}

#[tokio::test]
async fn an_abandoned_request_makes_the_connection_unusable() {
    let server = Server::start(willing);
    let mut client = server.client().await;
    let _ = client.base_backup(Lsn::new(1)).await.expect("backup");
    let after = client.get_rel_size(Lsn::new(1), REL).await.expect_err("out of step");
    assert!(matches!(after, PageError::Broken { .. }), "{after}");
    assert!(client.into_stream().is_err());
}

#[tokio::test]
async fn an_answer_to_something_else_or_none_is_an_error() {
    let server = Server::start(|_| Some(vec![Response::RelSize { id: 999, nblocks: None }]));
    let wrong = server.client().await.get_rel_size(Lsn::new(1), REL).await.expect_err("wrong id");
    assert!(matches!(wrong, PageError::Unexpected { .. }), "{wrong}");
    let server = Server::start(|_| None);
    let lost = server.client().await.get_rel_size(Lsn::new(1), REL).await.expect_err("closed");
    assert!(matches!(lost, PageError::Lost { .. }) && lost.is_retryable(), "{lost}");
}

fn import_spec() -> ImportSpec {
    ImportSpec {
        pg_major: 15,
        system_id: SystemId::new(1),
        pg_tli: PgTli::new(1),
        wal_segment_size: WalSegmentSize::DEFAULT,
        data_checksums: true,
        start_lsn: Lsn::new(0x28),
    }
}

#[tokio::test]
async fn an_import_reaches_its_end() {
    let server = Server::start(willing);
    let mut client = server.client().await;
    let mut import = client.import(import_spec()).await.expect("begins");
    import.file("base/5/1259", 3 << 20).await.expect("file");
    import.data(Bytes::from(vec![1; 3 << 20])).await.expect("data");
    import.finish(Lsn::new(0x99)).await.expect("durable");
}

#[tokio::test]
async fn a_refused_import_stops_the_sender() {
    // The server refuses the first file and reads nothing more.
    let server = Server::start(|request| match request {
        Request::ImportFile { .. } => {
            Some(vec![Response::Error { id: 0, code: ErrorCode::Invalid, message: "no such path".into() }])
        }
        Request::ImportData { .. } => None,
        request => willing(request),
    });
    let mut client = server.client().await;
    let mut import = client.import(import_spec()).await.expect("begins");
    let refused = loop {
        if let Err(refused) = import.file("../x", 1 << 40).await {
            break refused;
        }
        if let Err(refused) = import.data(Bytes::from(vec![1; 1 << 20])).await {
            break refused;
        }
    };
    assert_eq!(refused.code(), Some(ErrorCode::Invalid), "{refused}");
}
