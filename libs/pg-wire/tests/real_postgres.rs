//! Against a real server.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use ardent_pg_wire::{
    BackupEvent, BaseBackupOptions, CheckpointMode, ConnectConfig, ConnectMode, Connection, ReplicationMessage,
    StandbyStatus, WireError,
};
use ardent_test_pg::{StopMode, TestPg, TestPgOptions};
use ardent_types::Lsn;

async fn replication(server: &TestPg) -> Connection {
    let config = ConnectConfig::unix(server.socket_dir(), server.port(), server.superuser());
    Connection::connect(&config, ConnectMode::Replication).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_wal_and_a_synchronous_commit_waits_for_the_status() {
    let mut server = TestPg::start(TestPgOptions::default().set("synchronous_standby_names", "ardent"));
    let mut connection = replication(&server).await;
    connection.create_physical_slot("s1").await.unwrap();
    let system = connection.identify_system().await.unwrap();
    assert!(connection.read_slot("s1").await.unwrap().unwrap().restart_lsn.is_some());
    assert_eq!(connection.read_slot("other").await.unwrap(), None);

    let mut stream = connection.start_replication(Some("s1"), system.flush_lsn, Some(system.tli)).await.unwrap();
    let url = server.socket_url("postgres");
    let commit = tokio::spawn(async move {
        let config = ConnectConfig::parse(&url).unwrap();
        let mut sql = Connection::connect(&config, ConnectMode::Sql).await.unwrap();
        sql.query("create table t (a int)").await.unwrap();
        sql.query("select pg_current_wal_flush_lsn() as lsn")
            .await
            .unwrap()
            .value("lsn")
            .unwrap()
            .parse::<Lsn>()
            .unwrap()
    });
    let mut next = system.flush_lsn;
    while !commit.is_finished() {
        if let ReplicationMessage::Wal { start, data, .. } = stream.recv().await.unwrap() {
            assert_eq!(start, next);
            next = start.advance(data.len() as u64);
        }
        stream.send_status(StandbyStatus { write_lsn: next, flush_lsn: next, ..Default::default() }).await.unwrap();
        // Keepalives come at once when asked for, so that the loop sees the commit's end.
        stream
            .send_status(StandbyStatus {
                write_lsn: next,
                flush_lsn: next,
                reply_requested: true,
                ..Default::default()
            })
            .await
            .unwrap();
    }
    assert!(commit.await.unwrap() <= next);
    assert_eq!(server.sql("select application_name from pg_stat_replication"), "ardent");
    let stopping = tokio::task::spawn_blocking(move || {
        server.stop(StopMode::Fast);
        server
    });
    let ended = loop {
        match stream.recv().await {
            Ok(ReplicationMessage::End { next_timeline }) => break next_timeline,
            Ok(ReplicationMessage::Wal { start, data, .. }) => {
                next = start.advance(data.len() as u64);
            }
            Ok(ReplicationMessage::Keepalive { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        // A server that has said goodbye takes no status any more: what it said is still to be read.
        let _ = stream.send_status(StandbyStatus { write_lsn: next, flush_lsn: next, ..Default::default() }).await;
    };
    assert_eq!(ended, None);
    stopping.await.unwrap();
}

#[tokio::test]
async fn base_backup_has_the_files_and_ends_past_its_start() {
    let server = TestPg::start(TestPgOptions::default());
    server.sql("create table t as select generate_series(1, 10000) a");
    let options = BaseBackupOptions { label: "it's".to_owned(), checkpoint: CheckpointMode::Fast, max_rate_kib: None };
    let mut backup = replication(&server).await.base_backup(&options).await.unwrap();
    assert_eq!(backup.tablespaces().len(), 1);
    let (mut names, mut bytes, mut progress) = (Vec::new(), Vec::new(), 0);
    let end = loop {
        match backup.next().await.unwrap() {
            BackupEvent::Archive { name } => names.push(name),
            BackupEvent::Data(data) => bytes.extend_from_slice(&data),
            BackupEvent::Progress(done) => progress = done,
            BackupEvent::End { end_lsn, .. } => break end_lsn,
        }
    };
    assert_eq!(names, ["base.tar"]);
    assert!(end > backup.start_lsn() && progress > 0 && progress <= backup.total_bytes() + (1 << 20));
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("LABEL: it's") && text.contains("global/pg_control"));
}

#[tokio::test]
async fn passwords_scram_md5_and_errors() {
    let hba = "local all all trust\nhost all s all scram-sha-256\nhost all m all md5\nhost all c all password\n";
    let mut options = TestPgOptions::default().with_tcp();
    options.hba = Some(hba.to_owned());
    let server = TestPg::start(options);
    server.sql("create role s login password 'pw'; create role c login password 'pw'");
    server.sql("set password_encryption = md5; create role m login password 'pw'");
    for user in ["s", "m", "c"] {
        let config = ConnectConfig::parse(&server.tcp_url(&format!("{user}:pw"), "postgres")).unwrap();
        let mut connection = Connection::connect(&config, ConnectMode::Sql).await.unwrap();
        let result = connection.query("select current_user as me, null as nothing").await.unwrap();
        assert_eq!(result.rows, [[Some(user.to_owned()), None]]);
        // An error leaves the connection usable.
        assert_eq!(connection.query("select 1/0").await.unwrap_err().code(), Some("22012"));
        assert_eq!(connection.query("select 1 as one").await.unwrap().value("one"), Some("1"));
        let wrong = ConnectConfig::parse(&server.tcp_url(&format!("{user}:no"), "postgres")).unwrap();
        let error = Connection::connect(&wrong, ConnectMode::Sql).await.unwrap_err();
        assert_eq!(error.code(), Some("28P01"));
        let none = ConnectConfig::parse(&server.tcp_url(user, "postgres")).unwrap();
        let error = Connection::connect(&none, ConnectMode::Sql).await.unwrap_err();
        assert!(matches!(error, WireError::PasswordMissing));
    }
    let tls = ConnectConfig::parse(&(server.tcp_url("s:pw", "postgres") + "?sslmode=require")).unwrap();
    assert!(matches!(Connection::connect(&tls, ConnectMode::Sql).await.unwrap_err(), WireError::NoTls(_)));
}

/// A server with a certificate for another name than its address, and the certificate's file.
fn server_with_tls() -> (TestPg, PathBuf) {
    let certificate = rcgen::generate_simple_self_signed(["db.test".to_owned()]).unwrap();
    let mut server = TestPg::init(TestPgOptions::default().with_tcp().set("ssl", "on"));
    let (crt, key) = (server.data_dir().join("server.crt"), server.data_dir().join("server.key"));
    fs::write(&crt, certificate.cert.pem()).unwrap();
    fs::write(&key, certificate.signing_key.serialize_pem()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let owner = fs::metadata(server.data_dir()).unwrap();
    std::os::unix::fs::chown(&key, Some(owner.uid()), Some(owner.gid())).unwrap();
    server.start_server();
    (server, crt)
}

#[tokio::test]
async fn tls_modes_check_what_they_say() {
    let (server, crt) = server_with_tls();
    let url = server.tcp_url("postgres", "postgres");
    let connect = async |parameters: String| {
        let config = ConnectConfig::parse(&format!("{url}?{parameters}")).unwrap();
        let mut connection = Connection::connect(&config, ConnectMode::Sql).await?;
        let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
        Ok::<_, WireError>(connection.query(sql).await?.value("ssl").unwrap().to_owned())
    };
    let roots = format!("&sslrootcert={}", crt.display());
    assert_eq!(connect("sslmode=disable".to_owned()).await.unwrap(), "f");
    assert_eq!(connect("sslmode=prefer".to_owned()).await.unwrap(), "t");
    assert_eq!(connect("sslmode=require".to_owned()).await.unwrap(), "t");
    assert_eq!(connect(format!("sslmode=verify-ca{roots}")).await.unwrap(), "t");
    // The certificate is for another name than 127.0.0.1.
    assert!(matches!(connect(format!("sslmode=verify-full{roots}")).await, Err(WireError::Tls { .. })));
    // The same for a driver that speaks SQL.
    let by_driver = |parameters: String| {
        let url = format!("{url}?{parameters}");
        async move {
            let (config, tls) = ardent_pg_wire::driver(&url).unwrap();
            let (client, connection) = config.connect(tls).await?;
            tokio::spawn(connection);
            let row = client.query_one("select ssl from pg_stat_ssl where pid = pg_backend_pid()", &[]).await?;
            Ok::<bool, tokio_postgres::Error>(row.get(0))
        }
    };
    assert!(!by_driver("sslmode=disable".to_owned()).await.unwrap());
    assert!(by_driver("sslmode=prefer".to_owned()).await.unwrap());
    assert!(by_driver("sslmode=require".to_owned()).await.unwrap());
    assert!(by_driver(format!("sslmode=verify-ca{roots}")).await.unwrap());
    assert!(by_driver(format!("sslmode=verify-full{roots}")).await.is_err());
    let missing = connect("sslmode=verify-full&sslrootcert=/nowhere.pem".to_owned()).await;
    assert!(matches!(missing, Err(WireError::Config(_))));
}

#[tokio::test]
async fn rows_of_a_copy_come_whole_in_pieces_of_any_size() {
    let server = TestPg::start(TestPgOptions::default());
    let config = ConnectConfig::unix(server.socket_dir(), server.port(), server.superuser()).with_database("postgres");
    let mut sql = Connection::connect(&config, ConnectMode::Sql).await.unwrap();
    sql.query(
        "create function noted(n int) returns int language plpgsql as $$ begin raise notice 'n %', n; return n; end $$",
    )
    .await
    .unwrap();
    // Short rows, empty ones, one that is longer than what is received at once, and notices in between.
    let query = "select case when n = 500 then repeat('long ', 200000) when n % 7 = 0 then '' else 'row ' || noted(n) end \
                 from generate_series(1, 3000) n";
    let expected = sql.query(query).await.unwrap();
    let lines = expected.rows.iter().flatten().flatten();
    let expected: String = lines.flat_map(|line| [line.as_str(), "\n"]).collect();
    for enough in [7, 1000, 128 << 10, 64 << 20] {
        let mut rows = sql.copy_out(&format!("copy ({query}) to stdout")).await.unwrap();
        let (mut whole, mut piece) = (Vec::new(), BytesMut::new());
        loop {
            let more_may_come = rows.fill(&mut piece, enough).await.unwrap();
            assert!(piece.len() == enough || !more_may_come, "{} of {enough}", piece.len());
            whole.extend_from_slice(&piece.split());
            if !more_may_come {
                break;
            }
        }
        assert!(whole == expected.as_bytes(), "{} bytes of {}", whole.len(), expected.len());
        assert!(!rows.fill(&mut piece, enough).await.unwrap() && piece.is_empty(), "nothing comes after the end");
        // The connection serves on.
        assert_eq!(sql.query("select 'x' as x").await.unwrap().value("x"), Some("x"));
    }
}

#[tokio::test]
async fn rows_that_come_one_by_one_after_many_are_not_waited_for_together() {
    let (server, _) = server_with_tls();
    for mode in ["disable", "require"] {
        let url = format!("{}?sslmode={mode}", server.tcp_url("postgres", "postgres"));
        let config = ConnectConfig::parse(&url).unwrap();
        let mut gate = Connection::connect(&config, ConnectMode::Sql).await.unwrap();
        let mut sql = Connection::connect(&config, ConnectMode::Sql).await.unwrap();
        gate.query("select pg_advisory_lock(n) from generate_series(1, 5) n").await.unwrap();
        // The server waits for each of the last five rows until the one before has been seen here. It keeps what does not fill 8 KiB.
        let copy = "copy (select repeat('-', 1000) from generate_series(1, 4000) \
             union all select pg_advisory_lock(n)::text || repeat(n::text, 20000) from generate_series(1, 5) n) to stdout";
        let mut rows = sql.copy_out(copy).await.unwrap();
        let (mut whole, mut piece, mut seen) = (Vec::new(), BytesMut::new(), 0);
        loop {
            let filled = tokio::time::timeout(Duration::from_secs(30), rows.fill(&mut piece, 4 << 10)).await;
            let more_may_come = filled.expect("what has come is not waited with").unwrap();
            whole.extend_from_slice(&piece.split());
            // The end of the many stays with the server until the first of the five fills its buffer.
            let last_seen = whole.iter().rev().find(|byte| byte.is_ascii_digit()).map_or(0, |digit| digit - b'0');
            if whole.len() >= 3990 * 1001 && seen <= last_seen && seen < 5 {
                seen += 1;
                gate.query(&format!("select pg_advisory_unlock({seen})")).await.unwrap();
            }
            if !more_may_come {
                break;
            }
        }
        assert_eq!(whole.len(), 4000 * 1001 + 5 * 20001, "{mode}");
        // And small messages as ever.
        assert_eq!(sql.query("select 'x' as x").await.unwrap().value("x"), Some("x"));
        // A server that ends the session says why, and that is what is told of it.
        let mut rows = sql.copy_out("copy (select pg_terminate_backend(pg_backend_pid())) to stdout").await.unwrap();
        let ended = loop {
            match rows.fill(&mut piece, 1 << 20).await {
                Ok(more_may_come) => assert!(more_may_come, "it cannot end well"),
                Err(error) => break error,
            }
        };
        assert_eq!(ended.code(), Some("57P01"), "{mode}: {ended}");
    }
}

#[tokio::test]
async fn only_a_logical_stream_may_send_long_messages() {
    let server = TestPg::start(TestPgOptions::default());
    let config = ConnectConfig::unix(server.socket_dir(), server.port(), server.superuser()).with_database("postgres");
    let long = "select repeat('long ', 20000000) as x";
    let mut logical = Connection::connect(&config, ConnectMode::Logical).await.unwrap();
    assert_eq!(logical.query(long).await.unwrap().value("x").map(str::len), Some(100_000_000));
    assert_eq!(logical.query("select 'x' as x").await.unwrap().value("x"), Some("x"));
    let mut sql = Connection::connect(&config, ConnectMode::Sql).await.unwrap();
    let refused = sql.query(long).await.unwrap_err();
    assert!(matches!(refused, WireError::Protocol(_)), "{refused}");
    assert!(refused.to_string().contains("where 67108864 are the most"), "{refused}");
}

#[tokio::test]
async fn a_copy_that_the_server_refuses_or_breaks_off_says_why_and_the_connection_serves_on() {
    let server = TestPg::start(TestPgOptions::default());
    let config = ConnectConfig::unix(server.socket_dir(), server.port(), server.superuser()).with_database("postgres");
    let mut sql = Connection::connect(&config, ConnectMode::Sql).await.unwrap();
    let refused = sql.copy_out("copy nothing to stdout").await.unwrap_err();
    assert_eq!(refused.code(), Some("42P01"), "{refused}");
    let mut rows =
        sql.copy_out("copy (select 1 / (n - 50000) from generate_series(1, 60000) n) to stdout").await.unwrap();
    let mut piece = BytesMut::new();
    let broken = loop {
        piece.clear();
        match rows.fill(&mut piece, 1000).await {
            Ok(more_may_come) => assert!(more_may_come, "it cannot end well"),
            Err(error) => break error,
        }
    };
    assert_eq!(broken.code(), Some("22012"), "{broken}");
    assert_eq!(sql.query("select 'x' as x").await.unwrap().value("x"), Some("x"));
}

#[tokio::test]
async fn rows_that_are_copied_in_arrive_as_they_were_sent_however_they_are_cut() {
    let server = TestPg::start(TestPgOptions::default());
    let config = ConnectConfig::unix(server.socket_dir(), server.port(), server.superuser()).with_database("postgres");
    let mut sql = Connection::connect(&config, ConnectMode::Sql).await.unwrap();
    // A trigger that says something for each row: notices come while rows go.
    sql.query(
        "create table t (n int, text text); create function told() returns trigger language plpgsql as \
         $$ begin raise notice 'row %', new.n; return new; end $$; \
         create trigger told before insert on t for each row execute function told()",
    )
    .await
    .unwrap();
    let lines: String =
        (0..3000).map(|n| format!("{n}\t{}\n", "long ".repeat(if n == 500 { 200_000 } else { n % 7 }))).collect();
    for size in [7, 1000, 128 << 10, 64 << 20] {
        let mut rows = sql.copy_in("copy t from stdin").await.unwrap();
        for piece in lines.as_bytes().chunks(size) {
            rows.send(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        rows.finish().await.unwrap();
        let found = "select count(*) as rows, md5(string_agg(n || text, ',' order by n)) as sum from t";
        let found = sql.query(found).await.unwrap();
        assert_eq!(found.value("rows"), Some("3000"), "pieces of {size} bytes");
        let wanted = "select md5(string_agg(n || repeat('long ', case n when 500 then 200000 else n % 7 end), ',' order by n)) as sum \
                      from generate_series(0, 2999) n";
        assert_eq!(found.value("sum"), sql.query(wanted).await.unwrap().value("sum"), "pieces of {size} bytes");
        sql.query("truncate t").await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_refuses_rows_is_heard_before_all_are_sent_and_the_connection_serves_on() {
    let server = TestPg::start(TestPgOptions::default());
    let config = ConnectConfig::unix(server.socket_dir(), server.port(), server.superuser()).with_database("postgres");
    let mut sql = Connection::connect(&config, ConnectMode::Sql).await.unwrap();
    assert_eq!(sql.copy_in("copy nothing from stdin").await.unwrap_err().code(), Some("42P01"));
    sql.query("create table t (n int)").await.unwrap();

    // Refused at once, and then while more and more comes.
    let mut rows = sql.copy_in("copy t from stdin").await.unwrap();
    rows.send(Bytes::from_static(b"no number\n")).await.unwrap();
    let piece = Bytes::from("1\n".repeat(64 << 10));
    let mut sent = 0;
    let refused = loop {
        match rows.send(piece.clone()).await {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 10_000, "a refusal is not heard");
    };
    assert_eq!(refused.code(), Some("22P02"), "{refused}");
    assert_eq!(sql.query("select count(*) as n from t").await.unwrap().value("n"), Some("0"));

    // Refused by the last words alone.
    let mut rows = sql.copy_in("copy t from stdin").await.unwrap();
    rows.send(Bytes::from_static(b"1\n2 and more")).await.unwrap();
    let refused = rows.finish().await.unwrap_err();
    assert_eq!(refused.code(), Some("22P02"), "{refused}");
    assert_eq!(sql.query("select count(*) as n from t").await.unwrap().value("n"), Some("0"));

    // Gone in the middle.
    let mut rows = sql.copy_in("copy t from stdin").await.unwrap();
    let gone = "select pg_terminate_backend(pid) from pg_stat_activity where query like 'copy t from%'";
    assert_eq!(server.sql(gone), "t");
    let refused = loop {
        if let Err(error) = rows.send(piece.clone()).await {
            break error;
        }
    };
    assert!(matches!(&refused, WireError::Server(_) | WireError::Closed | WireError::Io(_)), "{refused:?}");
}
