//! One SeaweedFS server: master, volumes, filer and S3 in one process.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longest wait for the server to start.
const DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
/// How often other ports are tried when somebody took one between choosing and listening.
const STARTS_MAX: u32 = 3;
/// The one user's keys.
const ACCESS_KEY: &str = "ardent-test";
const SECRET_KEY: &str = "ardent-test-secret";

/// A running server. Its data is gone with it.
#[derive(Debug)]
pub struct Seaweed {
    // Declared first: the server must be gone before its folder is.
    child: Child,
    root: TempDir,
    ports: Ports,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    s3: u16,
    https: u16,
    filer: u16,
    /// By role.
    grpc: [(&'static str, u16); 4],
}

static SHARED: Mutex<Option<Arc<Seaweed>>> = Mutex::new(None);

impl Seaweed {
    /// The server that all tests of this process use; it ends with the process.
    pub fn shared() -> Arc<Seaweed> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || {
            // SAFETY: the function needs nothing that is gone by then: no thread-local value, and no other thread.
            let registered = unsafe { libc::atexit(end_shared) };
            assert_eq!(registered, 0, "the C library takes at least 32 functions");
            Arc::new(Seaweed::start())
        };
        shared.get_or_insert_with(start).clone()
    }

    /// Starts a server of one's own. Panics with its log if that fails.
    pub fn start() -> Seaweed {
        let root = tempfile::Builder::new().prefix("ardent-seaweed-").tempdir().expect("a temp folder can be made");
        write_files(&root);
        let mut log = String::new();
        for _ in 0..STARTS_MAX {
            let (mut child, ports) = spawn(&root);
            if wait_until_ready(&mut child, ports) {
                return Seaweed { child, root, ports };
            }
            end(&mut child, ports);
            log = fs::read_to_string(root.path().join("weed.log")).unwrap_or_default();
        }
        panic!("the S3 server for tests did not start: {log}");
    }

    /// Where it speaks S3.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports.s3))
    }

    /// The endpoint.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.s3)
    }

    /// The endpoint with TLS; its certificate is for `localhost`, by [`Seaweed::ca_file`].
    pub fn https_endpoint(&self) -> String {
        format!("https://localhost:{}", self.ports.https)
    }

    /// The CA of the TLS endpoint.
    pub fn ca_file(&self) -> PathBuf {
        self.root.path().join("ca.pem")
    }

    /// Access key and secret key of a user who may do everything.
    pub fn keys(&self) -> (&'static str, &'static str) {
        (ACCESS_KEY, SECRET_KEY)
    }

    /// A file of the AWS kind with these keys as profile `default`, and as profile `stranger` keys that the server does not know.
    pub fn credentials_file(&self) -> PathBuf {
        self.root.path().join("credentials")
    }

    /// Makes a bucket, if it is not there.
    pub fn make_bucket(&self, name: &str) {
        let answer = self.ask_filer(&format!("POST /buckets/{name}/"));
        let is_there = ["HTTP/1.1 201", "HTTP/1.1 409"].iter().any(|status| answer.starts_with(status));
        assert!(is_there, "bucket {name}: {answer}");
    }

    /// Removes a bucket with all that is in it.
    pub fn remove_bucket(&self, name: &str) {
        let answer = self.ask_filer(&format!("DELETE /buckets/{name}?recursive=true"));
        assert!(answer.starts_with("HTTP/1.1 204"), "bucket {name}: {answer}");
    }

    fn ask_filer(&self, what: &str) -> String {
        let request = format!("{what} HTTP/1.1\r\nHost: filer\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        exchange(self.ports.filer, &request).expect("the filer answers")
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        end(&mut self.child, self.ports);
    }
}

/// Statics are not dropped at a process's end.
extern "C" fn end_shared() {
    drop(SHARED.lock().unwrap_or_else(PoisonError::into_inner).take());
}

fn end(child: &mut Child, ports: Ports) {
    // Errors mean that it has ended.
    let _ = child.kill();
    let _ = child.wait();
    // It makes these outside of its folder, whatever it is told; one that began to start has not all of them.
    for (role, port) in ports.grpc {
        let socket = format!("/tmp/seaweedfs-{role}-grpc-{port}.sock");
        if let Err(error) = fs::remove_file(&socket) {
            assert!(error.kind() == ErrorKind::NotFound || std::thread::panicking(), "{socket}: {error}");
        }
    }
}

fn program() -> PathBuf {
    let installed = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/seaweedfs/weed"));
    let path = std::env::var_os("ARDENT_WEED").map_or_else(installed, PathBuf::from);
    assert!(path.exists(), "{} is missing: run scripts/setup-s3.sh (make test does)", path.display());
    path
}

fn write_files(root: &TempDir) {
    let identities = format!(
        r#"{{"identities":[{{"name":"test","credentials":[{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET_KEY}"}}],"actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
    );
    let credentials = format!(
        "[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n[stranger]\naws_access_key_id = stranger\naws_secret_access_key = unknown\n"
    );
    let ca_key = rcgen::KeyPair::generate().expect("a key can be made");
    let mut ca = rcgen::CertificateParams::new(Vec::new()).expect("no names are fine");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).expect("a CA can be made").pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let server_key = rcgen::KeyPair::generate().expect("a key can be made");
    let server = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a host name is fine");
    let server_pem = server.signed_by(&server_key, &issuer).expect("a certificate can be made").pem();
    let files = [
        ("s3.json", identities),
        ("credentials", credentials),
        ("ca.pem", ca_pem),
        ("server.pem", server_pem),
        ("server.key", server_key.serialize_pem()),
    ];
    for (name, content) in files {
        fs::write(root.path().join(name), content).expect("the temp folder is writable");
    }
    fs::create_dir(root.path().join("data")).expect("the temp folder is writable");
}

fn spawn(root: &TempDir) -> (Child, Ports) {
    // Held until all are chosen, so that none is chosen twice.
    let held: Vec<TcpListener> =
        (0..9).map(|_| TcpListener::bind(("127.0.0.1", 0)).expect("a local port can be bound")).collect();
    let port = |index: usize| held[index].local_addr().expect("a bound socket has an address").port();
    let [s3_grpc, filer_grpc, master_grpc, volume_grpc] = [3, 4, 6, 8].map(port);
    let grpc = [("s3", s3_grpc), ("filer", filer_grpc), ("master", master_grpc), ("volume", volume_grpc)];
    let ports = Ports { s3: port(0), https: port(1), filer: port(2), grpc };
    let at = |name: &str| root.path().join(name).display().to_string();
    let arguments = [
        "-logtostderr=true".to_owned(),
        "server".to_owned(),
        "-s3".to_owned(),
        format!("-dir={}", at("data")),
        "-ip=127.0.0.1".to_owned(),
        "-ip.bind=127.0.0.1".to_owned(),
        "-master.telemetry=false".to_owned(),
        "-master.volumeSizeLimitMB=1024".to_owned(),
        "-volume.max=400".to_owned(),
        format!("-s3.port={}", ports.s3),
        format!("-s3.port.https={}", ports.https),
        format!("-s3.config={}", at("s3.json")),
        format!("-s3.cert.file={}", at("server.pem")),
        format!("-s3.key.file={}", at("server.key")),
        "-s3.autoCreateBucket=false".to_owned(),
        "-s3.port.iceberg=0".to_owned(),
        "-s3.port.lance=0".to_owned(),
        format!("-s3.port.grpc={s3_grpc}"),
        format!("-filer.port={}", ports.filer),
        format!("-filer.port.grpc={filer_grpc}"),
        format!("-filer.localSocket={}", at("filer.sock")),
        format!("-s3.localSocket={}", at("s3.sock")),
        format!("-master.port={}", port(5)),
        format!("-master.port.grpc={master_grpc}"),
        format!("-volume.port={}", port(7)),
        format!("-volume.port.grpc={volume_grpc}"),
    ];
    let log = File::create(root.path().join("weed.log")).expect("the temp folder is writable");
    drop(held);
    let mut command = Command::new(program());
    command.args(arguments).current_dir(root.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    // Of its own user's environment it must take nothing: it would find other keys there.
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"AWS_") || name.as_encoded_bytes().starts_with(b"WEED_") {
            command.env_remove(name);
        }
    }
    (command.spawn().expect("weed can be run"), ports)
}

/// True once S3 and the filer answer; false if the server ended.
fn wait_until_ready(child: &mut Child, ports: Ports) -> bool {
    let deadline = Instant::now() + DEADLINE;
    let asks = |port: u16| {
        let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        exchange(port, request).is_ok_and(|answer| answer.starts_with("HTTP/1.1 "))
    };
    while Instant::now() < deadline {
        if !matches!(child.try_wait(), Ok(None)) {
            return false;
        }
        if asks(ports.s3) && asks(ports.filer) && TcpStream::connect(("127.0.0.1", ports.https)).is_ok() {
            return true;
        }
        std::thread::sleep(POLL);
    }
    false
}

fn exchange(port: u16, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
