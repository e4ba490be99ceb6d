//! The proxy in front of a real Postgres, driven by libpq (psql) and by a Rust driver.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ardent_api::control::WakeReply;
use ardent_proxy::control_plane::ControlError;
use ardent_proxy::{Certificates, ControlPlane, HostNames, Proxy, ProxyConfig};
use ardent_test_pg::{TestPg, TestPgOptions, program};
use ardent_types::{BranchId, ComputeId};
use postgres_protocol::password::scram_sha_256;
use tokio_util::sync::CancellationToken;

/// Knows one branch, `fix`, with one role, `app`; counts what it is asked.
struct OneBranch {
    socket_dir: PathBuf,
    port: u16,
    verifier: String,
    wakes: Arc<AtomicUsize>,
    /// How many wakes answer with a socket that is already gone.
    stale_wakes: usize,
}

impl ControlPlane for OneBranch {
    async fn verifier(&self, branch: &str, role: &str) -> Result<Option<String>, ControlError> {
        Ok((branch == "fix" && role == "app").then(|| self.verifier.clone()))
    }

    async fn wake(&self, _branch: &str) -> Result<WakeReply, ControlError> {
        let count = self.wakes.fetch_add(1, Ordering::SeqCst);
        let socket_dir = if count < self.stale_wakes { PathBuf::from("/nonexistent") } else { self.socket_dir.clone() };
        Ok(WakeReply {
            schema_version: 1,
            branch_id: BranchId::generate(),
            compute_id: ComputeId::generate(),
            incarnation: 1,
            socket_dir,
            port: self.port,
            warm: true,
            waited_ms: 0,
            was_running: true,
            missing_libraries: Vec::new(),
        })
    }
}

struct House {
    _pg: TestPg,
    folder: tempfile::TempDir,
    address: SocketAddr,
    wakes: Arc<AtomicUsize>,
    cancel: CancellationToken,
    runtime: tokio::runtime::Runtime,
    serving: Option<tokio::task::JoinHandle<()>>,
}

impl House {
    fn start(stale_wakes: usize) -> House {
        let pg = TestPg::start(TestPgOptions::default());
        pg.sql("create role app login");
        pg.sql("create database app owner app");
        let folder = ardent_test_pg::temp_dir();
        let hosts = HostNames::new([]);
        let certificates = Certificates::load_or_make(&folder.path().join("tls"), &hosts).expect("certificates");
        let wakes = Arc::new(AtomicUsize::new(0));
        let control = OneBranch {
            socket_dir: pg.socket_dir().to_owned(),
            port: pg.port(),
            verifier: scram_sha_256(b"hush"),
            wakes: Arc::clone(&wakes),
            stale_wakes,
        };
        let config = ProxyConfig {
            listen: "127.0.0.1:0".parse().expect("address"),
            hosts,
            certificates,
            mock_secret: b"mock".to_vec(),
            control,
        };
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let proxy = runtime.block_on(Proxy::bind(config)).expect("bound");
        let address = proxy.local_addr().expect("address");
        let cancel = CancellationToken::new();
        let serving = runtime.spawn(proxy.serve(cancel.clone()));
        House { _pg: pg, folder, address, wakes, cancel, runtime, serving: Some(serving) }
    }

    fn psql(&self, settings: &str, sql: &str) -> Output {
        let port = self.address.port();
        Command::new(program("psql"))
            .arg(format!("hostaddr=127.0.0.1 port={port} password=hush connect_timeout=20 {settings}"))
            .args(["-X", "-A", "-t", "-c", sql])
            .env_clear()
            .output()
            .expect("psql runs")
    }

    fn ca(&self) -> String {
        self.folder.path().join("tls/ca.pem").display().to_string()
    }

    fn check(&self, settings: &str, sql: &str, expect: Result<&str, &str>) {
        let output = self.psql(settings, sql);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        match expect {
            Ok(expect) => assert_eq!((out.trim(), err.as_ref()), (expect, ""), "{settings}"),
            Err(expect) => assert!(!output.status.success() && err.contains(expect), "{settings}: {out}{err}"),
        }
    }

    fn wakes(&self) -> usize {
        self.wakes.load(Ordering::SeqCst)
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(serving) = self.serving.take() {
            self.runtime.block_on(serving).expect("the proxy ends without a panic");
        }
    }
}

#[test]
fn libpq_reaches_a_branch_by_every_route_and_verifies_the_certificate() {
    let house = House::start(0);
    let who = "select current_user || '@' || current_database()";
    let verify = format!("sslmode=verify-full sslrootcert={} channel_binding=require", house.ca());
    house.check(&format!("host=fix.localhost user=app {verify}"), who, Ok("app@app"));
    house.check("host=127.0.0.1 user=app options=branch=fix sslmode=require", who, Ok("app@app"));
    house.check("host=127.0.0.1 user=app.fix sslmode=require", who, Ok("app@app"));
    house.check("host=fix.localhost user=app.fix dbname=postgres sslmode=require", who, Ok("app@postgres"));
    let port = "select current_setting('ardent.client_address') like '127.0.0.1:_%'";
    let forged = "options='-c ardent.client_address=203.0.113.9:1 branch=fix'";
    house.check(&format!("host=127.0.0.1 user=app sslmode=require {forged}"), port, Ok("t"));
    let options = "options='-c work_mem=77MB branch=fix'";
    house.check(&format!("host=127.0.0.1 user=app sslmode=require {options}"), "show work_mem", Ok("77MB"));
}

#[test]
fn a_stranger_wakes_nothing_and_learns_nothing() {
    let house = House::start(0);
    let refused = "password authentication failed for user \"app\"";
    house.check("host=fix.localhost user=app password=wrong sslmode=require", "select 1", Err(refused));
    house.check("host=nosuch.localhost user=app sslmode=require", "select 1", Err(refused));
    let other = "password authentication failed for user \"other\"";
    house.check("host=fix.localhost user=other sslmode=require", "select 1", Err(other));
    let answers = ["fix", "nosuch"].map(|branch| {
        let output =
            house.psql(&format!("host={branch}.localhost user=app password=wrong sslmode=require"), "select 1");
        String::from_utf8_lossy(&output.stderr).replace(branch, "BRANCH")
    });
    assert_eq!(answers[0], answers[1]);
    assert_eq!(house.wakes(), 0);
}

#[test]
fn connections_without_tls_without_branch_or_for_replication_are_told_what_to_do() {
    let house = House::start(0);
    house.check("host=127.0.0.1 user=app.fix sslmode=disable", "select 1", Err("sslmode=require"));
    house.check("host=127.0.0.1 user=app sslmode=require", "select 1", Err("no branch is named"));
    let both = "host=fix.localhost user=app options=branch=other sslmode=require";
    house.check(both, "select 1", Err("name one"));
    let replication = "host=fix.localhost user=app replication=true sslmode=require";
    house.check(replication, "IDENTIFY_SYSTEM", Err("branches take no replication connections"));
    assert_eq!(house.wakes(), 0);
}

#[test]
fn errors_of_the_compute_reach_the_client() {
    let house = House::start(0);
    let missing = "host=fix.localhost user=app dbname=nosuch sslmode=require";
    house.check(missing, "select 1", Err("database \"nosuch\" does not exist"));
}

#[test]
fn a_compute_that_fell_asleep_in_between_is_woken_again() {
    let house = House::start(2);
    house.check("host=fix.localhost user=app sslmode=require", "select 1", Ok("1"));
    assert_eq!(house.wakes(), 3);
}

#[test]
fn a_cancel_request_ends_the_query_of_its_own_session_only() {
    let house = House::start(0);
    house.runtime.block_on(async {
        let connect = || async {
            let config: tokio_postgres::Config = format!(
                "host=fix.localhost hostaddr=127.0.0.1 port={} user=app password=hush sslmode=require",
                house.address.port()
            )
            .parse()
            .expect("config");
            let tls = tls_client(&house.ca());
            let (client, connection) = config.connect(tls.clone()).await.expect("connected");
            (client, tokio::spawn(connection), tls)
        };
        let (victim, victim_task, tls) = connect().await;
        let (bystander, bystander_task, _) = connect().await;
        let token = victim.cancel_token();
        let sleeping = victim.query_one("select pg_sleep(60)", &[]);
        let cancelling = async {
            // Only a query that runs can be cancelled: while it is prepared, it shows as active too.
            let running =
                "select count(*) from pg_stat_activity where query like 'select pg_sleep(60)%' and wait_event = 'PgSleep'";
            while bystander.query_one(running, &[]).await.expect("asked").get::<_, i64>(0) == 0 {}
            token.cancel_query(tls).await.expect("sent");
        };
        let (slept, ()) = tokio::join!(sleeping, cancelling);
        let error = slept.expect_err("cancelled");
        assert_eq!(error.code(), Some(&tokio_postgres::error::SqlState::QUERY_CANCELED));
        bystander.query_one("select 1", &[]).await.expect("still there");
        drop((victim, bystander));
        victim_task.await.expect("ended").expect("cleanly");
        bystander_task.await.expect("ended").expect("cleanly");
    });
}

fn tls_client(ca: &str) -> tokio_postgres_rustls::MakeRustlsConnect {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).expect("CA")).expect("valid CA");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tokio_postgres_rustls::MakeRustlsConnect::new(config)
}
