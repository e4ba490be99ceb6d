//! A superuser of a branch brings machine code in and loads it: what that can reach, and that branch and host go on.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;

use ardent_test_pg::{TestPgOptions, test_major};
use nix::unistd::geteuid;

use crate::rig::{Client, DEADLINE, World};

/// Where the code is inside, and where it leaves its report.
const INSIDE: &str = "/ardent/data/escape.so";
/// Bytes of the token that are searched for.
const NEEDLE_LEN: usize = 20;
const MEMORY_MB: u64 = 400;
const FILL_MB: u64 = 3000;

/// What the code is built for.
struct Build<'a> {
    mode: &'a str,
    port: u16,
    abstract_name: &'a str,
}

impl Build<'_> {
    fn destructive(mode: &str) -> Build<'_> {
        Build { mode, port: 1, abstract_name: "none" }
    }
}

/// Builds the library outside, and brings it in through a large object, as anybody with a connection could.
async fn bring_in(world: &World, client: &Client, build: &Build<'_>) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/escape.c");
    let library = world.folder.path().join("escape.so");
    let needle: Vec<String> =
        world.token.bytes().take(NEEDLE_LEN).map(|byte| format!("0x{:02x}", byte ^ 0x55)).collect();
    let folder = world.folder.path().display();
    let text = |name: &str, value: &dyn std::fmt::Display| format!("-D{name}=\"{value}\"");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-o"])
        .arg(&library)
        .args([text("MODE", &build.mode), text("ABSTRACT", &build.abstract_name), text("FOLDER", &folder)])
        .args([text("POLICY", &"/ardent/policy"), text("LIBRARY", &"/ardent/lib/ardent_compute.so")])
        .args([format!("-DPORT={}", build.port), format!("-DOUTSIDE_PID={}", std::process::id())])
        .args([format!("-DFILL_MB={FILL_MB}"), format!("-DNEEDLE={}", needle.join(","))])
        .arg(source)
        .output()
        .expect("a C compiler is there: build-essential");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let bytes = std::fs::read(&library).expect("built");
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let object = client.sql(&format!("select lo_from_bytea(0, '\\x{hex}')")).await.expect("a large object is made");
    let exported = client.sql(&format!("select lo_export({object}, '{INSIDE}')")).await;
    assert_eq!(exported.expect("a superuser writes files of its own"), "1");
}

/// Whether the root is no mount point, as in a chroot.
fn is_chroot() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("the kernel tells mounts");
    !mounts.lines().any(|line| line.split(' ').nth(4) == Some("/"))
}

/// `LOAD`s it. The code runs before Postgres sees that it is no library for it.
async fn load(client: &Client) -> Result<String, tokio_postgres::Error> {
    client.sql(&format!("load '{INSIDE}'")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_code_reaches_nothing_outside() {
    let world = World::new(TestPgOptions::default(), "create table t (id int)").await;
    let outside = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    outside.set_nonblocking(true).expect("set");
    let port = outside.local_addr().expect("bound").port();
    let abstract_name = format!("ardent-escape-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&abstract_name).expect("a name");
    let abstract_socket = UnixListener::bind_addr(&address).expect("binds");
    abstract_socket.set_nonblocking(true).expect("set");
    let mut agent = world.start().await;
    let client = agent.connect().await;
    client.sql("insert into t values (1)").await.expect("works");

    bring_in(&world, &client, &Build { mode: "try", port, abstract_name: &abstract_name }).await;
    // The C compiler's word for what the library is, and the loader's: it ran.
    let loaded = load(&client).await.expect_err("it is no module of Postgres");
    assert!(format!("{loaded:?}").contains("magic block"), "{loaded:?}");
    let report = client.sql("select pg_read_file('escape.report')").await.expect("it ran and reported");
    let lines: Vec<(&str, &str)> = report.lines().filter_map(|line| line.rsplit_once(' ')).collect();
    assert_eq!(lines.last(), Some(&("finished", "none")), "it did not come to its end:\n{report}");
    println!("{report}");

    // Allowed inside of a namespace of its own: what it then has there is its own view of the same things.
    let mut own = vec!["namespace", "namespace_chroot", "namespace_raw_socket"];
    // Without root outside, the first process inside is of the same user: it is bubblewrap, and knows nothing.
    if !geteuid().is_root() {
        let first =
            ["kill_first", "ptrace_first", "environment_of_first", "write:/proc/1/mem", "namespace_write:/proc/1/mem"];
        own.extend(first);
        own.extend([
            "namespace_environment_of_first",
            "namespace_join_first_net",
            "join_first_net",
            "join_first_mount",
        ]);
    }
    let done: Vec<&str> = lines.iter().filter(|(_, result)| *result == "done").map(|(name, _)| *name).collect();
    let reached: Vec<&&str> = done.iter().filter(|name| !own.contains(*name)).collect();
    assert!(reached.is_empty(), "it reached {reached:?}:\n{report}");
    // That each was tried is said; a few in words, so that the test cannot pass by trying nothing.
    let result = |name: &str| {
        lines.iter().find(|line| line.0 == name).unwrap_or_else(|| panic!("{name} was not tried:\n{report}")).1
    };
    for (name, refusals) in [
        ("tcp", &["ECONNREFUSED"][..]),
        ("tcp_far", &["ENETUNREACH"]),
        ("abstract", &["ECONNREFUSED"]),
        ("folder", &["ENOENT"]),
        ("safekeeper", &["ENOENT"]),
        ("write:/usr/x", &["EROFS"]),
        ("write:/ardent/lib/x", &["EROFS"]),
        ("write:/proc/sysrq-trigger", &["EACCES", "EROFS", "ENOENT"]),
        ("vsock", &["EAFNOSUPPORT"]),
        ("packet_socket", &["EAFNOSUPPORT"]),
        ("ring", &["EPERM"]),
        ("chroot", &["EPERM"]),
        ("mount", &["EPERM"]),
        ("mknod", &["EPERM"]),
        ("open_by_handle", &["EPERM"]),
        ("setuid", &["EPERM", "EINVAL"]),
        ("unshare_mount", &["EPERM"]),
        ("kill", &["ESRCH"]),
        ("ptrace", &["ESRCH"]),
        ("load_module", &["EPERM", "ENOSYS"]),
        ("secret_in_memory", &["none"]),
        ("secret_of_processes", &["none"]),
    ] {
        assert!(refusals.contains(&result(name)), "{name}: {}:\n{report}", result(name));
    }
    // In a chroot the kernel makes none.
    if is_chroot() {
        assert_eq!(result("namespace"), "EPERM", "{report}");
    } else {
        let inside = [
            ("namespace", &["done"][..]),
            ("namespace_folder", &["ENOENT"]),
            ("namespace_remount_usr", &["EPERM"]),
            ("namespace_umount_usr", &["EINVAL", "EPERM"]),
        ];
        for (name, results) in inside {
            assert!(results.contains(&result(name)), "{name}: {}:\n{report}", result(name));
        }
    }
    // What is open in it is its own.
    let folder = world.compute_dir().display().to_string();
    for (name, _) in lines.iter().filter_map(|(name, result)| Some((name.strip_prefix("open_file:")?, result))) {
        // What was opened before it was confined is named from the machine's root: in a chroot the test's own is below that.
        let name = match name.find(&*folder).or_else(|| name.strip_suffix("/dev/null").map(str::len)) {
            Some(at) if is_chroot() => &name[at..],
            _ => name,
        };
        let known = ["/ardent/", "/dev/", "/usr/", "/memfd:", "/SYSV", "/anon_hugepage"];
        // Its own log is what it may write to.
        let is_log = name.starts_with(&*folder) && name.ends_with("/postgres.log");
        assert!(is_log || known.iter().any(|start| name.starts_with(start)), "{name} is open in it");
    }
    assert!(outside.accept().is_err() && abstract_socket.accept().is_err(), "nobody came");

    // Branch and host go on.
    client.sql("insert into t values (2)").await.expect("the branch goes on");
    drop(client);
    assert!(agent.stop(DEADLINE).await.0);
    assert_eq!(world.recover().sql("select count(*) from t"), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_code_that_kills_all_it_can_ends_its_own_compute_alone() {
    let world = World::new(TestPgOptions::default(), "create table t (id int)").await;
    let other = World::new(TestPgOptions::default(), "create table t (id int)").await;
    let (mut agent, mut neighbour) = (world.start().await, other.start().await);
    let (client, next_door) = (agent.connect().await, neighbour.connect().await);
    client.sql("insert into t values (1)").await.expect("works");
    bring_in(&world, &client, &Build::destructive("kill")).await;
    load(&client).await.expect_err("the session is killed");
    let (code, _) = agent.until_failed().await;
    assert_eq!(code, "crashed");
    next_door.sql("insert into t values (1)").await.expect("the neighbour goes on");
    drop(next_door);
    assert!(neighbour.stop(DEADLINE).await.0);
    // What was committed is there.
    assert_eq!(world.recover().sql("select count(*) from t"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_code_that_forks_without_end_is_held() {
    let world = World::new(TestPgOptions::default(), "create table t (id int)").await;
    let mut agent = world.start().await;
    let (client, watcher) = (agent.connect().await, agent.connect().await);
    bring_in(&world, &client, &Build::destructive("fork")).await;
    load(&client).await.expect_err("it is no module of Postgres");
    // All that it could make were made, and they are fewer than it wanted.
    let count = "select count(*) from pg_ls_dir('/proc') d where d ~ '^[0-9]+$'";
    let processes: u64 = watcher.sql(count).await.expect("works").parse().expect("a number");
    assert!((100..2000).contains(&processes), "{processes} processes");
    watcher.sql("insert into t values (1)").await.expect("the branch goes on");
    drop((client, watcher));
    agent.stop(DEADLINE).await;
    assert_eq!(world.recover().sql("select count(*) from t"), "1");
}

/// The memory control group of a process of this host.
fn memory_group(pid: u32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("the process runs");
    let of = |wanted: &str| text.lines().find(|line| line.split(':').nth(1) == Some(wanted)).map(str::to_owned);
    let v1 =
        text.lines().find(|line| line.split(':').nth(1).is_some_and(|list| list.split(',').any(|c| c == "memory")));
    v1.map(str::to_owned).or_else(|| of("")).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_code_that_fills_memory_is_ended_where_there_are_control_groups() {
    let world = World::new(TestPgOptions::default(), "create table t (id int)").await;
    let mut spec = world.spec();
    spec.limits.memory_bytes = Some(MEMORY_MB << 20);
    let mut agent = world.start_with(spec).await;
    if memory_group(agent.ready().postmaster_pid) == memory_group(std::process::id()) {
        println!("this host lets us make no control group: nothing limits memory, as docs/isolation.md says");
        agent.stop(DEADLINE).await;
        return;
    }
    let client = agent.connect().await;
    client.sql("insert into t values (1)").await.expect("works");
    bring_in(&world, &client, &Build::destructive("fill")).await;
    load(&client).await.expect_err("the kernel ended it");
    // Postgres starts its processes again, or the whole compute must: what was committed is there either way.
    drop(client);
    agent.stop(DEADLINE).await;
    assert_eq!(world.recover().sql("select count(*) from t"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untrusted_language_reaches_nothing_outside() {
    if test_major() != 15 || !std::path::Path::new("/usr/lib/postgresql/15/lib/plpython3.so").exists() {
        println!("no untrusted language is installed (scripts/setup.sh does so for 15)");
        return;
    }
    let world = World::new(TestPgOptions::default(), "create table t (id int)").await;
    let outside = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    outside.set_nonblocking(true).expect("set");
    let port = outside.local_addr().expect("bound").port();
    let mut agent = world.start().await;
    let client = agent.connect().await;
    let folder = world.folder.path().display().to_string();
    client
        .sql(
            "create extension plpython3u;
             create function try(code text) returns text language plpython3u as $$
               import os, socket, subprocess, ctypes, glob
               try:
                 return 'done: ' + str(eval(code, {'os': os, 'socket': socket, 'subprocess': subprocess, 'ctypes': ctypes, 'glob': glob}))
               except Exception as error:
                 return type(error).__name__
             $$",
        )
        .await
        .expect("a superuser may");
    let quoted = |code: &str| code.replace('\'', "''");
    for (code, refusal) in [
        (format!("socket.create_connection(('127.0.0.1', {port}))"), "ConnectionRefusedError"),
        (format!("os.listdir('{folder}')"), "FileNotFoundError"),
        ("os.listdir('/root')".to_owned(), "FileNotFoundError"),
        ("open('/usr/x', 'w')".to_owned(), "OSError"),
        ("os.setuid(0)".to_owned(), "PermissionError"),
        ("os.chroot('/tmp')".to_owned(), "PermissionError"),
        (format!("os.kill({}, 9)", std::process::id()), "ProcessLookupError"),
    ] {
        let tried = client.sql(&format!("select try('{}')", quoted(&code))).await.expect("it answers");
        // As a user who is nobody outside, the kernel says so of ids that it does not map.
        let same = tried == refusal || (!geteuid().is_root() && tried == "OSError");
        assert!(same, "{code}: {tried}");
    }
    let libc = "ctypes.CDLL(None, use_errno=True).mount(b'none', b'/tmp', b'tmpfs', 0, None)";
    assert_eq!(client.sql(&format!("select try('{}')", quoted(libc))).await.expect("it answers"), "done: -1");
    assert_eq!(client.sql("select try('1 + 1')").await.expect("it answers"), "done: 2", "it is Python all the same");
    assert!(outside.accept().is_err(), "nobody came");
    client.sql("insert into t values (1)").await.expect("the branch goes on");
    drop(client);
    assert!(agent.stop(DEADLINE).await.0);
}
