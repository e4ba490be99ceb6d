//! Production misbehaves: what is wrong is said, with what to do, and nothing of it harms what is there.

use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;

use ardent_test_pg::{StopMode, TestPg, temp_dir};
use ardent_tests::{House, pg_program, production_options, sql, wait_until};
use serde_json::Value;

fn url(production: &TestPg) -> String {
    production.tcp_url("postgres", "postgres")
}

fn create<'a>(url: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["connector", "create", "postgresql", url, "--name", "shop", "--fast"], more].concat()
}

/// Nothing of a connector is left here.
fn assert_nothing_is_left(house: &House) {
    wait_until("what was half made is undone", 60, || {
        (house.json(&["connector", "list"])["connectors"] == serde_json::json!([])).then_some(())
    });
    assert_eq!(house.timelines(), Vec::<String>::new());
    assert_eq!(house.json(&["branch", "list"])["branches"], serde_json::json!([]));
}

fn slots(production: &TestPg) -> String {
    production.sql("select count(*) from pg_replication_slots")
}

#[test]
fn a_source_without_a_free_slot_is_refused() {
    let production = TestPg::start(production_options().set("max_replication_slots", "1"));
    production.sql("select pg_create_physical_replication_slot('taken')");
    let house = House::start();
    let url = url(&production);
    house.ardent(&create(&url, &[])).refused(2, &["no replication slot is free", "max_replication_slots"]);
    assert_nothing_is_left(&house);
    assert_eq!(slots(&production), "1");
    production.sql("select pg_drop_replication_slot('taken')");
    house.ok(&create(&url, &[]));
    assert_eq!(slots(&production), "1");
}

#[test]
fn majors_that_ardent_does_not_run_are_refused() {
    let house = House::start();
    for (version_num, version) in [("140012", "14.12"), ("190000", "19devel")] {
        let port = serve_another_major(version_num, version);
        let url = format!("postgresql://postgres@127.0.0.1:{port}/postgres");
        house.ardent(&create(&url, &[])).refused(2, &[version, "branches run"]);
    }
    assert_nothing_is_left(&house);
}

/// Answers every query with one row that says which server this is, and is otherwise beyond reproach.
fn serve_another_major(version_num: &'static str, version: &'static str) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a local port can be bound");
    let port = listener.local_addr().expect("a bound socket has an address").port();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || drop(answer_as(client, version_num, version)));
        }
    });
    port
}

fn answer_as(mut client: TcpStream, version_num: &str, version: &str) -> std::io::Result<()> {
    let build = format!("PostgreSQL {version} on {}-pc-linux-gnu, 64-bit", std::env::consts::ARCH);
    let facts = [
        ("version_num", version_num),
        ("version", version),
        ("build", &build),
        ("block_size", "8192"),
        ("wal_block_size", "8192"),
        ("segment_size", "1GB"),
        ("standby", "f"),
        ("wal_level", "replica"),
        ("full_page_writes", "on"),
        ("senders", "10"),
        ("senders_used", "0"),
        ("slots", "10"),
        ("slots_used", "0"),
        ("keep_mb", "1000"),
        ("me", "postgres"),
        ("me_quoted", "postgres"),
        ("replication", "t"),
        ("superuser", "postgres"),
        ("data_checksums", "on"),
        ("shared_preload_libraries", ""),
    ];
    let mut columns = Vec::new();
    let mut values = Vec::new();
    for count in [&mut columns, &mut values] {
        count.extend(20u16.to_be_bytes());
    }
    for (name, value) in facts {
        columns.extend(name.as_bytes());
        // Text, of no table.
        columns.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]);
        values.extend((value.len() as u32).to_be_bytes());
        values.extend(value.as_bytes());
    }
    let message = |kind: u8, body: &[u8]| {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [&[kind], &length[..], body].concat()
    };
    let mut head = [0; 8];
    loop {
        client.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let mut rest = vec![0; length - 8];
        client.read_exact(&mut rest)?;
        if u16::from_be_bytes([head[4], head[5]]) != 1234 {
            break;
        }
        // No TLS, no GSSAPI.
        client.write_all(b"N")?;
    }
    let status = format!("server_version\0{version}\0");
    let ready = message(b'Z', b"I");
    client.write_all(&[message(b'R', &[0; 4]), message(b'S', status.as_bytes()), ready.clone()].concat())?;
    let mut head = [0; 5];
    loop {
        client.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        client.read_exact(&mut vec![0; length - 4])?;
        if head[0] == b'X' {
            return client.shutdown(Shutdown::Both);
        }
        let row = [message(b'T', &columns), message(b'D', &values), message(b'C', b"SELECT 1\0")];
        client.write_all(&[row.concat(), ready.clone()].concat())?;
    }
}

#[test]
fn a_source_that_goes_away_in_the_middle() {
    let mut production = TestPg::start(production_options());
    production.sql("create table t (n int primary key, filler text)");
    production.sql("insert into t select n, repeat(md5(n::text), 30) from generate_series(1, 30000) n");
    let house = House::start();
    let url = url(&production);

    // In the middle of the copy.
    let copying = house.background(&create(&url, &["--max-rate", "4M"]));
    wait_until("the copy is under way", 60, || {
        let streamed = production.sql("select max(backup_streamed) from pg_stat_progress_basebackup");
        streamed.parse::<u64>().ok().filter(|bytes| *bytes > 2_000_000)
    });
    production.kill();
    let failed = copying.finish();
    // What to do: see to production, look for the slot that could not be dropped, try again.
    failed.refused(1, &["production", "pg_drop_replication_slot", "connector create"]);
    assert_nothing_is_left(&house);
    house.ardent(&create(&url, &[])).refused(1, &["production", "127.0.0.1"]);

    // Once more, with what is written meanwhile; it goes away again while it is followed.
    production.start_server();
    house.ok(&create(&url, &[]));
    let branch = house.branch("before", "shop");
    assert_eq!(sql(&branch, "select count(*) from t"), "30000");
    production.sql("insert into t select n from generate_series(30001, 60000) n");
    production.kill();
    let refused = house.ardent(&["branch", "create", "now", "--from", "shop"]);
    refused.refused(1, &["production", "--at latest"]);
    wait_until("the status says that production is away", 60, || {
        let status = house.json(&["connector", "status", "shop"]);
        (status["following"] == false && status["problem"].is_string()).then_some(())
    });
    // So does the server's own status, once that lasts.
    wait_until("the server's status says so", 60, || {
        let said = house.ardent(&["status", "--exit-code"]);
        (said.code == 3 && said.stderr.contains("connector shop: production has not been followed for")).then_some(())
    });
    // What is here goes on: a consistent state, though not the newest.
    house.ok(&["branch", "create", "latest", "--from", "shop", "--at", "latest"]);
    let latest = house.ok(&["branch", "info", "latest", "--print-url"]);
    let count = sql(&latest, "select count(*) from t");
    assert!(count == "30000" || count == "60000", "{count}");
    assert_eq!(sql(&branch, "delete from t where n = 1; select count(*) from t"), "29999");

    production.start_server();
    wait_until("production is followed again", 90, || {
        (house.json(&["connector", "status", "shop"])["following"] == true).then_some(())
    });
    let said = house.ardent(&["status"]);
    assert!(said.code == 0 && !said.stderr.contains("has not been followed"), "{said:?}");
    production.sql("insert into t values (-1)");
    let now = house.branch("now", "shop");
    assert_eq!(sql(&now, "select count(*), min(n) from t"), "60001|-1");
    assert_eq!(sql(&now, "select count(*) from (select n from t order by n) as ordered"), "60001");
}

#[test]
fn a_slot_that_production_gave_up_means_import_again() {
    // Smallest segments, so that little WAL is too much.
    let options = production_options().initdb_arg("--wal-segsize=1").set("max_slot_wal_keep_size", "4MB");
    let production = TestPg::start(options.set("max_wal_size", "4MB").set("min_wal_size", "2MB"));
    production.sql("create table t as select generate_series(1, 1000) n");
    let mut house = House::start();
    house.connect("shop", &url(&production));
    let branch = house.branch("before", "shop");
    assert_eq!(sql(&branch, "select count(*) from t"), "1000");

    house.stop();
    for _ in 0..10 {
        production.sql("insert into t select generate_series(1, 20000)");
        production.sql("select pg_switch_wal()");
    }
    production.sql("checkpoint");
    assert_eq!(production.sql("select wal_status from pg_replication_slots"), "lost");
    house.up();

    let problem = wait_until("the status says what happened", 60, || {
        let status = house.json(&["connector", "status", "shop"]);
        status["problem"].as_str().map(str::to_owned)
    });
    for word in ["removed WAL", "its branches stay as they are", "--name OTHER"] {
        assert!(problem.contains(word), "no {word:?} in {problem}");
    }
    let status = house.ardent(&["connector", "status", "shop", "--exit-code", "--json"]);
    assert!(status.code == 3 && status.stdout.contains("has given up slot ardent_"), "{status:?}");
    // A branch with what production has now cannot be made, and that is said at once, with what can be had.
    let refused = house.ardent(&["branch", "create", "now", "--from", "shop"]);
    refused.refused(1, &["removed WAL", "--at latest"]);
    assert_eq!(sql(&branch, "select count(*) from t"), "1000");
    house.ok(&["branch", "create", "latest", "--from", "shop", "--at", "latest"]);
    let latest = house.ok(&["branch", "info", "latest", "--print-url"]);
    assert_eq!(sql(&latest, "select count(*) from t"), "1000");

    // A new import beside the old one, whose branches stay as long as they are needed.
    house.connect("again", &url(&production));
    let now = house.branch("now", "again");
    assert_eq!(
        (sql(&now, "select count(*) from t"), sql(&branch, "select count(*) from t")),
        ("201000".into(), "1000".into())
    );
    house.ok(&["branch", "delete", "before", "latest"]);
    house.ok(&["connector", "delete", "shop", "--yes"]);
    assert_eq!(slots(&production), "1");
}

/// Production's slot is given up, and its WAL removed; its archive has it.
#[test]
fn what_production_removed_comes_from_its_archive() {
    let archive = temp_dir();
    let (kept, away) = (archive.path().join("kept"), archive.path().join("away"));
    std::fs::create_dir(&kept).expect("a folder can be made");
    for folder in [archive.path(), &kept] {
        std::fs::set_permissions(folder, Permissions::from_mode(0o777)).expect("own folders can be opened");
    }
    let options = production_options().initdb_arg("--wal-segsize=1").set("max_slot_wal_keep_size", "4MB");
    let options = options.set("max_wal_size", "4MB").set("min_wal_size", "2MB").set("archive_mode", "on");
    let production = TestPg::start(options.set("archive_command", &format!("cp %p {}/%f", kept.display())));
    production.sql("create table t as select generate_series(1, 1000) n");
    let restore = format!("cp {}/%f %p", kept.display());
    let mut house = House::prepare().with_arguments(&["--restore-command", &restore]);
    house.up();
    house.connect("shop", &url(&production));
    let before = house.branch("before", "shop");
    house.stop();
    let lose_wal = |rows: u32| {
        for _ in 0..10 {
            production.sql(&format!("insert into t select generate_series(1, {rows})"));
            production.sql("select pg_switch_wal()");
        }
        wait_until("everything is archived", 60, || {
            let waiting = "select count(*) from pg_ls_archive_statusdir() where name like '%.ready'";
            (production.sql(waiting) == "0").then_some(())
        });
        production.sql("checkpoint");
        assert_eq!(production.sql("select wal_status from pg_replication_slots"), "lost");
    };
    lose_wal(20000);
    // It is not there at first.
    std::fs::rename(&kept, &away).expect("a folder can be moved");
    house.up();
    let problem = wait_until("the status says what is missing", 60, || {
        let status = house.json(&["connector", "status", "shop"]);
        status["problem"].as_str().map(str::to_owned)
    });
    for word in ["the archive does not have 0000", "No such file", "ardent connector resume", "--name OTHER"] {
        assert!(problem.contains(word), "no {word:?} in {problem}");
    }
    // Damaged, or another's.
    std::fs::create_dir(&kept).expect("a folder can be made");
    for entry in std::fs::read_dir(&away).expect("a folder can be listed") {
        let entry = entry.expect("a folder can be listed");
        std::fs::write(kept.join(entry.file_name()), vec![0; 1 << 20]).expect("a file can be written");
    }
    let resume = ["connector", "resume", "shop"];
    house.ardent(&resume).refused(1, &["no usable 0000", "header of a WAL file"]);
    // Of the same cluster, with another history.
    for entry in std::fs::read_dir(&away).expect("a folder can be listed") {
        let entry = entry.expect("a folder can be listed");
        let mut bytes = std::fs::read(entry.path()).expect("a file can be read");
        bytes.iter_mut().skip(40).for_each(|byte| *byte ^= 1);
        std::fs::write(kept.join(entry.file_name()), bytes).expect("a file can be written");
    }
    house.ardent(&resume).refused(1, &["is not what the root branch holds"]);
    assert_eq!(production.sql("select wal_status from pg_replication_slots"), "lost", "nothing was done to it");
    std::fs::remove_dir_all(&kept).and_then(|()| std::fs::rename(&away, &kept)).expect("a folder can be moved");
    // What is behind production's end is of no history of its. Its segment that is being written:
    let current = production.sql("select pg_walfile_name(pg_current_wal_insert_lsn())");
    let number = |from: usize| u64::from_str_radix(&current[from..from + 8], 16).expect("hexadecimal digits");
    let any = std::fs::read_dir(&kept).expect("a folder can be listed").next().expect("a file").expect("listed");
    let mut ahead = std::fs::read(any.path()).expect("a file can be read");
    ahead[8..16].copy_from_slice(&((number(8) << 32) + (number(16) << 20)).to_le_bytes());
    std::fs::write(kept.join(&current), ahead).expect("a file can be written");
    house.ok(&resume);
    let now = house.branch("now", "shop");
    let count = |url: &str| sql(url, "select count(*) from t");
    assert_eq!((count(&now), count(&before)), ("201000".into(), "1000".into()));
    // Production archives that one itself later.
    std::fs::remove_file(kept.join(&current)).expect("a file can be removed");
    assert_eq!(production.sql("select wal_status from pg_replication_slots"), "reserved");
    // From here on production sends it again; a slot that is gone is made anew.
    production.sql("insert into t values (1)");
    assert_eq!(count(&house.branch("later", "shop")), "201001");
    house.stop();
    lose_wal(1);
    production.sql("select pg_drop_replication_slot(slot_name) from pg_replication_slots");
    house.up();
    assert_eq!(count(&house.branch("last", "shop")), "201011");
}

/// An address that leads to whichever server is wanted, as a name that moves does. Gives its port.
fn serve_moving_address(target: Arc<AtomicU16>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a local port can be bound");
    let port = listener.local_addr().expect("a bound socket has an address").port();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A target that is not there ends the client's connection, as it would end itself.
            let Ok(server) = TcpStream::connect(("127.0.0.1", target.load(Ordering::Relaxed))) else { continue };
            let ends = [(client.try_clone(), server.try_clone()), (Ok(server), Ok(client))];
            for (from, to) in ends {
                let (mut from, mut to) = (from.expect("a socket can be shared"), to.expect("a socket can be shared"));
                thread::spawn(move || {
                    let copied = std::io::copy(&mut from, &mut to);
                    let ended = to.shutdown(Shutdown::Write);
                    drop((copied, ended));
                });
            }
        }
    });
    port
}

#[test]
fn another_cluster_at_productions_address_is_not_taken_for_it() {
    let mut production = TestPg::start(production_options());
    // Its position is ahead of the other one's: what that one says would make what is here look current.
    production.sql("create table t as select generate_series(1, 100000) n; select pg_switch_wal()");
    let other = TestPg::start(production_options());
    other.sql("create table newer as select 1");
    let target = Arc::new(AtomicU16::new(production.port()));
    let port = serve_moving_address(target.clone());
    let house = House::start();
    house.connect("shop", &format!("postgresql://postgres@127.0.0.1:{port}/postgres"));
    house.branch("before", "shop");
    target.store(other.port(), Ordering::Relaxed);
    production.stop(StopMode::Fast);
    // At once, and when the connector has seen it as well.
    house.ardent(&["branch", "create", "now", "--from", "shop"]).refused(1, &["another cluster", "--at latest"]);
    wait_until("the status says what happened", 60, || {
        let status = house.json(&["connector", "status", "shop"]);
        let said = status["problem"].as_str().is_some_and(|problem| problem.contains("another cluster"));
        assert!(status["lag_bytes"].is_null() || !said, "{status}");
        said.then_some(())
    });
    house.ardent(&["branch", "create", "now", "--from", "shop"]).refused(1, &["another cluster", "--at latest"]);
    house.ok(&["branch", "create", "latest", "--from", "shop", "--at", "latest"]);
}

/// A standby of `primary`, which follows it.
fn standby_of(primary: &TestPg) -> TestPg {
    let root = temp_dir();
    let data = root.path().join("data");
    let copied = pg_program("pg_basebackup")
        .args(["--no-sync", "--checkpoint=fast", "--write-recovery-conf", "-d", &primary.socket_url("postgres"), "-D"])
        .arg(&data)
        .output()
        .expect("pg_basebackup can be run");
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let mut standby = TestPg::adopt(root, data, "postgres");
    standby.start_server();
    standby
}

#[test]
fn a_standby_that_is_promoted_takes_the_place_of_production() {
    let mut production = TestPg::start(production_options());
    production.sql("create table t (n int primary key); insert into t select generate_series(1, 1000)");
    let mut house = House::start();
    house.connect("shop", &url(&production));
    let standby = standby_of(&production);
    production.sql("insert into t values (1001)");
    wait_until("the standby follows", 60, || (standby.sql("select max(n) from t") == "1001").then_some(()));
    let before = house.branch("before", "shop");
    let to_standby = ["connector", "move", "shop", &url(&standby)];
    house.ardent(&to_standby).refused(1, &["in recovery", "stays where it was"]);

    // A server that is told to stop sends everything to those that follow it: both have the same.
    production.stop(StopMode::Fast);
    standby.sql("select pg_promote()");
    standby.sql("insert into t values (2001)");
    let moved = house.json(&to_standby);
    assert_eq!((&moved["following"], &moved["problem"]), (&Value::Bool(true), &Value::Null), "{moved}");
    assert_eq!(slots(&standby), "1", "it was made there");
    let after = house.branch("after", "shop");
    assert_eq!(sql(&after, "select count(*), max(n) from t"), "1002|2001");
    // Its Postgres goes on on the new timeline, warm and cold.
    sql(&after, "insert into t values (3001)");
    for cold in [false, true] {
        house.ok(&["branch", "suspend", "after"]);
        if cold {
            house.ok(&["branch", "suspend", "before"]);
            house.throw_computes_away();
        }
        assert_eq!(sql(&after, "select count(*), max(n) from t"), "1003|3001", "cold: {cold}");
    }
    assert_eq!(sql(&before, "select max(n) from t"), "1001");

    // The server that was production comes back, and has what nobody else has.
    production.start_server();
    production.sql("insert into t select generate_series(10001, 40000)");
    let to_production = ["connector", "move", "shop", &url(&production)];
    house.ardent(&to_production).refused(1, &["is not what the root branch holds", "--name OTHER"]);
    // Nothing of it was taken; the new one is followed, after a restart as well.
    house.stop();
    house.up();
    standby.sql("insert into t values (2002)");
    let later = house.branch("later", "shop");
    assert_eq!(sql(&later, "select count(*), max(n) from t"), "1003|2002");
}
