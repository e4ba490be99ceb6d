//! Postgres's own recovery as the judge of ingest, import and base backup: a stopped server's directory is imported, the server works on,
//! its WAL is ingested, and stock Postgres replays the same WAL on a copy of the directory. Then every page, size and file that the
//! keys give at the end must be what Postgres's recovery left on disk, byte for byte.
//!
//! Left out: free space maps, which redo changes without a trace in WAL; `pd_checksum`, which redo does not compute; zero pages at a
//! relation's end, where one side may be shorter.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ardent_api::page_service::{BackupItem, ImportSpec};
use ardent_pg_format::encode::{WalStream, segment_files, shutdown_checkpoint};
use ardent_pg_format::{CheckPoint, ControlFile, PgMajor};
use ardent_pg_ingest::{BackupPoint, Ingest, ReadState, base_backup};
use ardent_test_pg::{
    StopMode, TestPg, TestPgOptions, other_majors, program, server_command, server_command_of, temp_dir,
};
use ardent_types::{BLCKSZ, ForkNumber, Key, Lsn, RelTag, SlruKind};
use support::directory::{control_file, files, import, import_spec, records};
use support::store::Store;

const BEFORE: &str = include_str!("support/before.sql");
const AFTER: &str = include_str!("support/after.sql");
const DURING: &str = include_str!("support/during.sql");

/// Everything up to the comparison, made once per test.
struct Replayed {
    major: PgMajor,
    /// Ingested up to `end`.
    store: Store,
    /// The last record.
    end: Lsn,
    prev: Lsn,
    /// The primary, stopped.
    primary: TestPg,
    /// Root of the directory that Postgres's recovery wrote.
    _recovered_root: tempfile::TempDir,
    recovered: PathBuf,
}

fn options(major: u32) -> TestPgOptions {
    TestPgOptions::default()
        .major(major)
        .set("wal_log_hints", "on")
        .set("max_prepared_transactions", "10")
        .set("track_commit_timestamp", "on")
        .set("allow_in_place_tablespaces", "on")
        .set("wal_keep_size", "10GB")
        .set("max_wal_size", "8GB")
        .set("checkpoint_timeout", "1h")
}

/// Runs a script statement by statement: lines that begin with `\c NAME` change the database.
fn run(server: &TestPg, script: &str) {
    let mut database = "postgres";
    for statement in script.split("\n;;\n") {
        let statement = statement.trim();
        match statement.strip_prefix("\\c ") {
            Some(name) => database = name,
            None if statement.is_empty() => {}
            None => {
                server.sql_in(database, statement);
            }
        }
    }
}

fn copy_directory(from: &Path, to: &Path) {
    let status = server_command("cp").arg("-a").arg(from).arg(to).status().expect("cp can be run");
    assert!(status.success());
}

/// A stopped server's directory, then the server's work, then its WAL.
fn replay(major: u32) -> Replayed {
    let mut primary = TestPg::start(options(major));
    run(&primary, BEFORE);
    primary.stop(StopMode::Fast);
    let recovered_root = temp_dir();
    let recovered = recovered_root.path().join("data");
    copy_directory(primary.data_dir(), &recovered);
    let mut store = Store::of_major(control_file(primary.data_dir()).major);
    let spec = import_spec(primary.data_dir());
    let imported = import(spec.clone(), primary.data_dir(), &mut store);
    assert!(imported.relations > 500 && imported.damaged_pages == 0, "{imported:?}");
    primary.start_server();
    run(&primary, AFTER);
    primary.stop(StopMode::Fast);
    follow(store, primary, recovered_root, spec.start_lsn, Lsn::INVALID)
}

/// A backup of a server at work, then its WAL.
fn replay_fuzzy() -> Replayed {
    let options =
        options(15).set("full_page_writes", "off").initdb_arg("--data-checksums").initdb_arg("--wal-segsize=1");
    let mut primary = TestPg::start(options);
    run(&primary, BEFORE);
    let root = temp_dir();
    let backup = root.path().join("data");
    let busy = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            while busy.load(Ordering::Relaxed) {
                run(&primary, DURING);
            }
        });
        let status = server_command(program("pg_basebackup"))
            .args(["-X", "none", "--checkpoint=fast", "--max-rate=24M", "--no-sync", "-D"])
            .arg(&backup)
            .arg("-h")
            .arg(primary.socket_dir())
            .args(["-p", &primary.port().to_string(), "-U", primary.superuser()])
            .status()
            .expect("pg_basebackup can be run");
        busy.store(false, Ordering::Relaxed);
        worker.join().expect("the work succeeds");
        assert!(status.success());
    });
    let consistent_from: Lsn = primary.sql("select pg_current_wal_insert_lsn()").parse().expect("an LSN");
    run(&primary, DURING);
    primary.stop(StopMode::Fast);
    let label = fs::read_to_string(backup.join("backup_label")).expect("the backup has a label");
    let start = label.split(' ').nth(3).and_then(|lsn| lsn.parse().ok()).expect("the label has a start");
    let spec = ImportSpec { start_lsn: start, ..import_spec(&backup) };
    let mut store = Store::default();
    import(spec, &backup, &mut store);
    follow(store, primary, root, start, consistent_from)
}

/// Ingests the stopped primary's WAL from `start` on, and lets Postgres replay it on the directory `data` in `root`.
fn follow(mut store: Store, primary: TestPg, root: tempfile::TempDir, start: Lsn, consistent_from: Lsn) -> Replayed {
    let major = control_file(primary.data_dir()).major;
    let mut ingest = Ingest::load(major, consistent_from, &store.newest()).expect("the import can be continued");
    let (mut prev, mut end) = (Lsn::INVALID, start);
    records(primary.data_dir(), start, |record| {
        store.ingest(&mut ingest, record);
        (prev, end) = (record.start_lsn, record.end_lsn);
        assert!(end < consistent_from || ingest.unresolved().is_empty(), "{:?} at {end}", ingest.unresolved());
    });
    assert_eq!(prev, control_file(primary.data_dir()).checkpoint_lsn, "all WAL was read");
    let recovered = root.path().join("data");
    recover(primary.major(), &recovered, primary.data_dir(), prev);
    Replayed { major, store, end, prev, primary, _recovered_root: root, recovered }
}

/// Lets stock Postgres replay `primary`'s WAL up to the record at `last` on the directory `copy`.
fn recover(major: u32, copy: &Path, primary: &Path, last: Lsn) {
    let _ = fs::remove_dir_all(copy.join("pg_wal"));
    copy_directory(&primary.join("pg_wal"), &copy.join("pg_wal"));
    let status = server_command("touch").arg(copy.join("recovery.signal")).status().expect("touch can be run");
    assert!(status.success());
    let log_path = copy.join("recovery.log");
    let log = fs::File::create(&log_path).expect("a log can be made");
    let mut child = server_command_of(major, "postgres")
        .arg("-D")
        .arg(copy)
        .arg("-k")
        .arg(copy)
        .args(["-c", "restore_command=false", "-c", "hot_standby=off"])
        .args(["-c", "recovery_target_action=shutdown", "-c", "recovery_target_timeline=current"])
        .arg("-c")
        .arg(format!("recovery_target_lsn={last}"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a file handle can be cloned"))
        .stderr(log)
        .spawn()
        .expect("postgres can be run");
    let deadline = Instant::now() + Duration::from_secs(120);
    while child.try_wait().expect("a child can be waited for").is_none() {
        assert!(Instant::now() < deadline, "recovery does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    let log = fs::read_to_string(&log_path).expect("the log can be read");
    let control = control_file(copy);
    assert_eq!(control.checkpoint_lsn, last, "recovery stopped early: {log}");
}

/// Pages of all segment files of a fork, `None` if there is no file.
fn fork_on_disk(data_dir: &Path, rel: RelTag) -> Option<Vec<u8>> {
    let path = rel.path(control_file(data_dir).major.tablespace_directory());
    let mut content = fs::read(data_dir.join(&path)).ok()?;
    for segment in 1.. {
        match fs::read(data_dir.join(format!("{path}.{segment}"))) {
            Ok(more) => content.extend(more),
            Err(_) => break,
        }
    }
    Some(content)
}

fn is_zero(page: &[u8]) -> bool {
    page.iter().all(|&byte| byte == 0)
}

/// Sizes of all forks at the end.
fn sizes(replayed: &Replayed) -> BTreeMap<RelTag, u32> {
    let all = *Key::rel_sizes(0, 0).start()..=*Key::rel_sizes(u32::MAX, u32::MAX).end();
    let sizes = replayed.store.at(replayed.end).scan(all).expect("sizes can be read");
    let sizes = sizes.into_iter().map(|(key, size)| match key {
        Key::RelSize(rel) => (rel, u32::from_le_bytes(size[..].try_into().expect("4 bytes"))),
        other => panic!("{other} among the sizes"),
    });
    sizes.collect()
}

/// The forks that a directory holds and that a branch is to have: no free space maps, no unlogged relations' data.
fn forks_in(data_dir: &Path) -> Vec<RelTag> {
    let all = files(data_dir);
    let forks: Vec<RelTag> = all.iter().filter_map(|path| parse_fork(path)).collect();
    let unlogged = |rel: &RelTag| forks.contains(&rel.with_fork(ForkNumber::Init));
    let kept = |rel: &&RelTag| rel.fork == ForkNumber::Init || rel.fork != ForkNumber::Fsm && !unlogged(rel);
    forks.iter().filter(kept).copied().collect()
}

fn parse_fork(path: &str) -> Option<RelTag> {
    let parts: Vec<&str> = path.split('/').collect();
    let (spcnode, dbnode, name) = match parts[..] {
        ["global", name] => (1664, 0, name),
        ["base", db, name] => (1663, db.parse().ok()?, name),
        ["pg_tblspc", spc, _, db, name] => (spc.parse().ok()?, db.parse().ok()?, name),
        _ => return None,
    };
    let (number, suffix) = name.split_once('_').map_or((name, ""), |(number, _)| (number, &name[number.len()..]));
    let fork = ForkNumber::ALL.into_iter().find(|fork| fork.file_suffix() == suffix)?;
    Some(RelTag { spcnode, dbnode, relnode: number.parse().ok()?, fork })
}

fn check_relations(replayed: &Replayed) {
    let sizes = sizes(replayed);
    let at = replayed.store.at(replayed.end);
    let mut problems = Vec::new();
    let mut pages = 0;
    let mut on_disk = forks_in(&replayed.recovered);
    on_disk.extend(sizes.keys().filter(|rel| rel.fork != ForkNumber::Fsm));
    on_disk.sort();
    on_disk.dedup();
    for rel in on_disk {
        let disk = fork_on_disk(&replayed.recovered, rel).unwrap_or_default();
        let disk_blocks = (disk.len() / BLCKSZ) as u32;
        let ours = sizes.get(&rel).copied();
        if ours.is_none() && !is_zero(&disk) {
            problems.push(format!("{rel} does not exist for us and has {disk_blocks} blocks on disk"));
            continue;
        }
        for block in 0..disk_blocks.max(ours.unwrap_or(0)) {
            let at_block = block as usize * BLCKSZ;
            let expect = disk.get(at_block..at_block + BLCKSZ).unwrap_or(&[0; BLCKSZ]);
            let page = if ours.is_some_and(|blocks| block < blocks) {
                match at.get(Key::RelBlock(rel, block)) {
                    Ok(page) => page.unwrap_or_default().to_vec(),
                    Err(error) => {
                        problems.push(format!(
                            "{rel} block {block}: {error}: {:?}",
                            std::error::Error::source(&error).map(ToString::to_string)
                        ));
                        continue;
                    }
                }
            } else {
                Vec::new()
            };
            pages += 1;
            if !same_page(&page, expect) {
                let versions = replayed.store.versions(Key::RelBlock(rel, block)).len();
                problems.push(format!(
                    "{rel} block {block} of {disk_blocks} differs, {versions} versions, {}",
                    difference(&page, expect)
                ));
            }
        }
    }
    assert!(
        problems.is_empty(),
        "{} problems in {pages} pages:\n{}",
        problems.len(),
        problems[..problems.len().min(40)].join("\n")
    );
    assert!(pages > 5000, "only {pages} pages compared");
}

fn same_page(ours: &[u8], expect: &[u8]) -> bool {
    if ours.is_empty() || is_zero(ours) {
        return is_zero(expect);
    }
    ours[..8] == expect[..8] && ours[10..] == expect[10..]
}

fn difference(ours: &[u8], expect: &[u8]) -> String {
    if ours.is_empty() {
        return "ours is missing".to_owned();
    }
    let differs = (0..BLCKSZ).filter(|&at| ours[at] != expect[at] && !(8..10).contains(&at)).collect::<Vec<_>>();
    let lsn = |page: &[u8]| {
        u64::from(u32::from_le_bytes(page[..4].try_into().unwrap())) << 32
            | u64::from(u32::from_le_bytes(page[4..8].try_into().unwrap()))
    };
    format!(
        "{} bytes from {:?} to {:?}, LSN {} and {}",
        differs.len(),
        differs.first(),
        differs.last(),
        Lsn::new(lsn(ours)),
        Lsn::new(lsn(expect))
    )
}

fn check_slrus(replayed: &Replayed) {
    let at = replayed.store.at(replayed.end);
    for kind in SlruKind::ALL {
        let folder = replayed.primary.data_dir().join(kind.directory());
        for name in files(&folder) {
            let segment = u64::from_str_radix(&name, 16).expect("segments have hexadecimal names");
            let content = fs::read(folder.join(&name)).expect("a segment can be read");
            for (index, expect) in content.chunks_exact(BLCKSZ).enumerate() {
                let key = Key::SlruPage(kind, segment * 32 + index as u64);
                let page = at.get(key).expect("a page can be read");
                let equal = page.as_deref().map_or_else(|| is_zero(expect), |page| page == expect);
                let first = page.as_deref().and_then(|page| (0..BLCKSZ).find(|&at| page[at] != expect[at]));
                assert!(equal, "{key} differs, first at {first:?} (missing: {})", page.is_none());
            }
        }
    }
}

fn check_small_files(replayed: &Replayed) {
    let at = replayed.store.at(replayed.end);
    let primary = replayed.primary.data_dir();
    let mut two_phase = 0;
    for path in files(primary) {
        let parts: Vec<&str> = path.split('/').collect();
        let key = match parts[..] {
            ["global", "pg_filenode.map"] => Key::RelMap { spcnode: 1664, dbnode: 0 },
            ["base", db, "pg_filenode.map"] => Key::RelMap { spcnode: 1663, dbnode: db.parse().expect("a number") },
            ["pg_tblspc", spc, _, db, "pg_filenode.map"] => {
                Key::RelMap { spcnode: spc.parse().expect("a number"), dbnode: db.parse().expect("a number") }
            }
            ["pg_twophase", xid] => {
                two_phase += 1;
                Key::TwoPhase { xid: u64::from_str_radix(xid, 16).expect("a hexadecimal number") }
            }
            ["pg_logical", "replorigin_checkpoint"] => Key::AuxFile(0),
            _ => continue,
        };
        let content = fs::read(primary.join(&path)).expect("a file can be read");
        let ours = at.get(key).expect("a key can be read").unwrap_or_default();
        // Padding in the origins' file is what was on the stack, and entries stand in the order of slots.
        if key == Key::AuxFile(0) {
            assert_eq!(ours.len(), content.len(), "{path}");
        } else {
            assert_eq!(ours, content, "{path}");
        }
    }
    assert_eq!(two_phase, 2);
    let prepared = at.scan(Key::TwoPhase { xid: 0 }..=Key::TwoPhase { xid: u64::MAX }).expect("keys can be read");
    assert_eq!(prepared.len(), two_phase);
}

fn check_control(replayed: &Replayed) {
    let at = replayed.store.at(replayed.end);
    let expect = control_file(replayed.primary.data_dir());
    let ours = at.get(Key::Checkpoint).expect("a key can be read").expect("there is a checkpoint");
    let ours = CheckPoint::decode(&ours, replayed.major).expect("it decodes");
    // For a shutdown checkpoint Postgres leaves this out; we keep the oldest prepared transaction.
    let prepared = ours.oldest_active_xid;
    assert!(prepared != 0 && u64::from(prepared) < ours.next_xid);
    assert_eq!(CheckPoint { oldest_active_xid: 0, ..ours }, expect.checkpoint);
    let file = at.get(Key::ControlFile).expect("a key can be read").expect("there is a control file");
    let file = ControlFile::decode(&file).expect("it decodes");
    let settings = |file: &ControlFile| {
        (
            (file.max_connections, file.max_worker_processes, file.max_wal_senders, file.max_prepared_xacts),
            (file.max_locks_per_xact, file.wal_level, file.wal_log_hints, file.track_commit_timestamp),
        )
    };
    assert_eq!(settings(&file), settings(&expect));
}

/// Writes a base backup with all its pages as a data directory, as a compute's agent and extension together would.
fn materialise(replayed: &Replayed, data_dir: &Path) {
    let at = replayed.store.at(replayed.end);
    let point = BackupPoint { lsn: replayed.end, prev_lsn: replayed.prev };
    let mut header = None;
    let mut control = None;
    let mut ended = false;
    let write = |path: &str, content: &[u8]| fs::write(data_dir.join(path), content).expect(path);
    base_backup(replayed.major, point, &at, |item| {
        match item {
            BackupItem::Header(found) => header = Some(found),
            BackupItem::ControlFile(found) => control = Some(ControlFile::decode(&found).expect("it decodes")),
            BackupItem::Directory(path) => fs::create_dir(data_dir.join(&path)).expect(&path),
            BackupItem::File { path, zstd } => {
                let content = zstd::stream::decode_all(&zstd[..]).expect("it decompresses");
                write(&path, &content);
            }
            BackupItem::Relations(relations) => {
                for (rel, blocks) in relations {
                    assert!(blocks < 131_072, "the test writes one segment");
                    let mut content = Vec::new();
                    for block in 0..blocks {
                        let page = at.get(Key::RelBlock(rel, block)).expect("a page can be read");
                        match page {
                            Some(page) => content.extend_from_slice(&page),
                            None => content.resize(content.len() + BLCKSZ, 0),
                        }
                    }
                    write(&rel.path(replayed.major.tablespace_directory()), &content);
                }
            }
            BackupItem::Page { rel, block, page } => {
                assert_eq!(at.get(Key::RelBlock(rel, block)).expect("a page can be read"), Some(page));
            }
            BackupItem::End => ended = true,
        }
        Ok::<(), std::io::Error>(())
    })
    .expect("a base backup can be made");
    assert!(ended);
    let (header, mut control) = (header.expect("a header came"), control.expect("a control file came"));
    let checkpoint = hex::decode(&header.checkpoint_hex).expect("hexadecimal");
    let checkpoint = CheckPoint::decode(&checkpoint, replayed.major).expect("it decodes");
    let stream = WalStream {
        major: replayed.major,
        segment_size: header.wal_segment_size,
        tli: header.pg_tli,
        system_id: header.system_id,
    };
    let (wal, written) = shutdown_checkpoint(stream, header.lsn, header.prev_lsn, &checkpoint);
    for segment in segment_files(stream, &wal) {
        let mut content = vec![0; segment.len as usize];
        for (at, bytes) in segment.parts {
            content[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
        }
        write(&format!("pg_wal/{}", segment.name), &content);
    }
    control.data_checksum_version = 0;
    control.set_shut_down(written.redo, written);
    write("global/pg_control", &control.encode());
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        write(name, &fs::read(replayed.primary.data_dir().join(name)).expect(name));
    }
}

/// What users see of a cluster.
fn dump(server: &TestPg) -> String {
    if server.major() == 15 { dump_all(server) } else { digests(server) }
}

/// A digest of each table's rows, in every database: there is no `pg_dumpall` for the other majors here.
fn digests(server: &TestPg) -> String {
    const TABLES: &str = "select string_agg(format('select %L, count(*), md5(string_agg(t::text, chr(10) order by t::text)) from %s t', \
         oid::regclass, oid::regclass), ' union all ' order by oid) from pg_class where relkind in ('r', 'm') \
         and (oid >= 16384 or relname in ('pg_attribute', 'pg_proc', 'pg_type', 'pg_index', 'pg_authid'))";
    let databases = server.sql("select datname from pg_database where datallowconn order by 1");
    let lines = databases.lines().map(|database| {
        let tables = server.sql_in(database, TABLES);
        let digests = server.sql_in(database, &tables);
        // Postgres may answer the parts of the union in any order.
        let mut digests: Vec<&str> = digests.lines().collect();
        digests.sort_unstable();
        format!("{database}\n{}", digests.join("\n"))
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn dump_all(server: &TestPg) -> String {
    let output = server_command(program("pg_dumpall"))
        .arg("-h")
        .arg(server.socket_dir())
        .args(["-p", &server.port().to_string(), "-U", server.superuser()])
        .output()
        .expect("pg_dumpall can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let dump = String::from_utf8(output.stdout).expect("dumps are UTF-8");
    // WAL has sequences' values up to 32 ahead; a primary that was stopped cleanly has them exactly. The others are random words.
    let differing = ["SELECT pg_catalog.setval", "\\restrict ", "\\unrestrict "];
    let is_exact = |line: &&str| !differing.iter().any(|start| line.starts_with(start));
    dump.lines().filter(is_exact).collect::<Vec<_>>().join("\n")
}

/// A stock server on a directory made from the base backup.
fn start_branch(replayed: &Replayed) -> TestPg {
    let root = temp_dir();
    let data_dir = root.path().join("data");
    fs::create_dir(&data_dir).expect("a folder can be made");
    materialise(replayed, &data_dir);
    fs::set_permissions(&data_dir, fs::Permissions::from_mode(0o700)).expect("a mode can be set");
    let owner = fs::metadata(root.path()).expect("the folder is there");
    for path in [data_dir.clone()].into_iter().chain(walk(&data_dir)) {
        let (uid, gid) = (std::os::unix::fs::MetadataExt::uid(&owner), std::os::unix::fs::MetadataExt::gid(&owner));
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).expect("the owner can be set");
    }
    let mut branch = TestPg::adopt(root, data_dir, replayed.primary.superuser());
    branch.start_server();
    branch
}

fn check_start(mut replayed: Replayed) {
    let mut branch = start_branch(&replayed);
    replayed.primary.start_server();
    // A branch has none of the data of unlogged relations.
    replayed.primary.sql("truncate unlogged_before, unlogged_after");
    let (ours, expect) = (dump(&branch), dump(&replayed.primary));
    let differences: Vec<_> = ours.lines().zip(expect.lines()).filter(|(ours, expect)| ours != expect).collect();
    assert_eq!((differences, ours.len()), (Vec::new(), expect.len()), "the dumps differ");
    assert_eq!(branch.sql("select count(*) from unlogged_after"), "0", "an unlogged relation begins empty");
    branch.sql("commit prepared 'after kept'");
    branch.sql("rollback prepared 'before kept'");
    branch
        .sql("insert into unlogged_after values (1); insert into unlogged_searched values (array[1, 2], point(1, 2))");
    assert_eq!(branch.sql("select count(*) from prepared where a = 'after kept'"), "1");
    let times = "select count(*) from pg_last_committed_xact()";
    assert_eq!(branch.sql(times), "1");
    branch.sql("create table made_on_branch as select * from generate_series(1, 1000)");
    branch.sql("vacuum (freeze)");
    branch.stop(StopMode::Fast);
}

fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder can be read") {
            let path = entry.expect("an entry can be read").path();
            if path.is_dir() {
                folders.push(path.clone());
            }
            found.push(path);
        }
    }
    found
}

fn keys_are_what_postgres_recovery_leaves_and_a_server_starts_from_them_with(major: u32) {
    let replayed = replay(major);
    check_small_files(&replayed);
    check_slrus(&replayed);
    check_control(&replayed);
    check_relations(&replayed);
    check_start(replayed);
}

#[test]
fn keys_are_what_postgres_recovery_leaves_and_a_server_starts_from_them() {
    keys_are_what_postgres_recovery_leaves_and_a_server_starts_from_them_with(15);
}

#[test]
fn keys_of_other_majors_are_what_their_recovery_leaves_and_a_server_starts_from_them() {
    other_majors().into_iter().for_each(keys_are_what_postgres_recovery_leaves_and_a_server_starts_from_them_with);
}

#[test]
fn checklist_62_63_a_backup_of_a_server_at_work_becomes_consistent() {
    let replayed = replay_fuzzy();
    check_slrus(&replayed);
    check_relations(&replayed);
}
