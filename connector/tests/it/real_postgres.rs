//! A real production server, a real safekeeper, and a page server that only takes notes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use ardent_api::addr::ServiceAddr;
use ardent_api::control::{CheckOutcome, PreflightCheck};
use ardent_api::frame::Frame;
use ardent_api::page_service::{ManageReply, ManageRequest, Request, Response};
use ardent_api::token::{Claims, Rights, Service, TokenIssuer};
use ardent_connector::{
    ClusterCheck, ConnectorConfig, FollowStatus, HostFacts, MajorFacts, PositionProbe, delete, follow, import,
    preflight, slot_status,
};
use ardent_pg_format::ControlFile;
use ardent_safekeeper::{Safekeeper, SafekeeperConfig};
use ardent_test_pg::{StopMode, TestPg, TestPgOptions, other_majors};
use ardent_types::{Lsn, TenantId, TimelineId};

type Files = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// Takes one import and keeps its files in memory.
async fn note_import(listener: UnixListener, files: Files) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let (mut received, mut current) = (BytesMut::new(), String::new());
    loop {
        while let Some(frame) = Frame::take(&mut received).unwrap() {
            let mut out = BytesMut::new();
            match Request::decode(frame).unwrap() {
                Request::Hello(hello) => Response::HelloOk { version: hello.version, capabilities: 0 }.encode(&mut out),
                Request::Manage { id, request } => {
                    assert!(matches!(request, ManageRequest::ImportBegin { .. } | ManageRequest::ImportFinish { .. }));
                    Response::Manage { id, reply: ManageReply::Done }.encode(&mut out);
                }
                Request::ImportFile { path, .. } => {
                    files.lock().unwrap().insert(path.clone(), Vec::new());
                    current = path;
                }
                Request::ImportData { data } => {
                    files.lock().unwrap().get_mut(&current).unwrap().extend_from_slice(&data)
                }
                other => panic!("{other:?}"),
            }
            stream.write_all(&out).await.unwrap();
        }
        if stream.read_buf(&mut received).await.unwrap() == 0 {
            return;
        }
    }
}

async fn wait_for(status: &mut watch::Receiver<FollowStatus>, what: impl Fn(&FollowStatus) -> bool) {
    tokio::time::timeout(Duration::from_secs(30), status.wait_for(|status| what(status))).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_follows_reconnects_and_cleans_up() {
    for major in [15].into_iter().chain(other_majors()) {
        imports_follows_reconnects_and_cleans_up_with(major).await;
    }
}

async fn imports_follows_reconnects_and_cleans_up_with(major: u32) {
    let options = TestPgOptions::default().major(major).with_tcp().set("default_text_search_config", "simple");
    let options = options.set("shared_preload_libraries", "pg_stat_statements").set("lock_timeout", "90s");
    let mut server = TestPg::start(options);
    server.sql("create table t as select generate_series(1, 1000) a");
    let url = server.tcp_url("postgres", "postgres");
    let checks = preflight(&url, &HostFacts::default()).await.unwrap();
    let failed: Vec<_> = checks.iter().filter(|check| check.outcome == CheckOutcome::Failed).collect();
    assert_eq!(failed, [] as [&PreflightCheck; 0]);
    // A host that has the programs of another major only, or no library for this one.
    let known = |major, compute_library| HostFacts {
        majors: BTreeMap::from([(major, MajorFacts { bin_dir: None, compute_library, libraries: None })]),
        ..HostFacts::default()
    };
    for (host, name) in [(known(major + 1, true), "host_version"), (known(major, false), "host_library")] {
        let checks = preflight(&url, &host).await.unwrap();
        let failed = checks.iter().filter(|check| check.outcome == CheckOutcome::Failed);
        assert_eq!(failed.map(|check| check.name.as_str()).collect::<Vec<_>>(), [name]);
    }

    // A host without the libraries that production preloads and uses.
    let host = HostFacts {
        majors: BTreeMap::from([(
            major,
            MajorFacts { bin_dir: None, compute_library: true, libraries: Some(Vec::new()) },
        )]),
        ..HostFacts::default()
    };
    let checks = preflight(&url, &host).await.unwrap();
    let said = |name: &str| checks.iter().find(|check| check.name == name).unwrap();
    for (name, words) in [("preload_libraries", "pg_stat_statements"), ("libraries", "plpgsql")] {
        assert_eq!(said(name).outcome, CheckOutcome::Warning, "{:?}", said(name));
        assert!(said(name).message.contains(words), "{:?}", said(name));
    }

    let dir = tempfile::tempdir().unwrap();
    let issuer = TokenIssuer::from_key(&TokenIssuer::generate_key().unwrap()).unwrap();
    let (tenant, timeline) = (TenantId::generate(), TimelineId::generate());
    let claims = Claims {
        service: Service::Any,
        tenant: Some(tenant),
        timeline: None,
        rights: Rights::Manage,
        expires_at_s: None,
    };
    let address = ServiceAddr::Unix(dir.path().join("sk.sock"));
    let safekeeper_config = SafekeeperConfig::new(dir.path().join("sk"), vec![address.clone()], issuer.verifier());
    let safekeeper = Safekeeper::start(safekeeper_config, CancellationToken::new()).await.unwrap();
    let page_socket = dir.path().join("ps.sock");
    let files = Files::default();
    let pageserver = tokio::spawn(note_import(UnixListener::bind(&page_socket).unwrap(), files.clone()));
    let config = ConnectorConfig {
        tenant,
        timeline,
        url,
        fast: true,
        max_rate_bytes: None,
        archive: None,
        pageserver: ServiceAddr::Unix(page_socket),
        safekeepers: vec![address],
        members: ardent_api::wal_service::Membership::default(),
        token: issuer.issue(&claims),
    };

    // What the connector's role and database have set is not what the server has.
    server.sql("alter role postgres set default_text_search_config = 'pg_catalog.english'");
    server.sql("alter role postgres set lock_timeout = 0");
    server.sql("alter database postgres set xmlbinary = 'hex'");
    server.sql("alter role postgres in database postgres set array_nulls = off");
    let (progress, mut steps) = mpsc::channel(100);
    let imported = import(&config, progress).await.unwrap();
    pageserver.await.unwrap();
    assert!(steps.recv().await.is_some());
    assert_eq!((imported.superuser.as_str(), imported.spec.pg_major), ("postgres", major));
    let setting = |name: &str| imported.settings.get(name).map(String::as_str);
    assert_eq!((setting("default_text_search_config"), setting("lock_timeout")), (Some("simple"), Some("90s")));
    assert_eq!((setting("xmlbinary"), setting("array_nulls")), (Some("base64"), Some("on")));
    assert!(imported.end_lsn > imported.spec.start_lsn);
    let control = ControlFile::decode(&files.lock().unwrap()["global/pg_control"]).unwrap();
    assert_eq!(control.system_id, imported.spec.system_id);
    assert!(files.lock().unwrap().contains_key("backup_label"));

    let (sender, mut status) = watch::channel(FollowStatus::default());
    let cancel = CancellationToken::new();
    let task = {
        let (config, cancel) = (config.clone(), cancel.clone());
        tokio::spawn(async move { follow(&config, cancel, sender).await })
    };
    let probe = PositionProbe::default();
    server.sql("insert into t values (1)");
    let now = probe.flush_lsn(&config, ClusterCheck::IsRoots).await.unwrap();
    wait_for(&mut status, |status| status.committed_lsn >= now).await;

    // Production restarts; following goes on by itself, and asking by a new connection.
    server.stop(StopMode::Immediate);
    server.start_server();
    server.sql("insert into t values (2)");
    let now = probe.flush_lsn(&config, ClusterCheck::IsRoots).await.unwrap();
    wait_for(&mut status, |status| status.committed_lsn >= now).await;
    let slot = slot_status(&config).await.unwrap().unwrap();
    assert!(slot.active && slot.restart_lsn > Some(Lsn::INVALID));

    cancel.cancel();
    task.await.unwrap().unwrap();
    delete(&config).await.unwrap();
    delete(&config).await.unwrap();
    assert_eq!(slot_status(&config).await.unwrap(), None);
    safekeeper.shutdown().await;
}
