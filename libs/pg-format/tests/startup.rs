//! A real server starts from a control file and a shutdown checkpoint record that we made, and recovers nothing.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ardent_pg_format::encode::{EncodedWal, WalStream, segment_files, shutdown_checkpoint};
use ardent_pg_format::{ClusterState, ControlFile, RecordBoundaryTracker};
use ardent_test_pg::{StopMode, TestPg, TestPgOptions, other_majors, program, server_command};
use ardent_types::{Lsn, PgTli, WalSegmentSize};

fn read_control(server: &TestPg) -> (ControlFile, Vec<u8>) {
    let bytes = fs::read(server.data_dir().join("global/pg_control")).unwrap();
    (ControlFile::decode(&bytes).unwrap(), bytes)
}

/// Start and end of the last record of a server that was shut down.
fn end_of_log(server: &TestPg, control: &ControlFile) -> (Lsn, Lsn) {
    let size = control.wal_segment_size;
    let start = control.checkpoint_lsn;
    let name = ardent_pg_format::segment::wal_file_name(control.checkpoint.tli, start.segment_number(size), size);
    let segment = fs::read(server.data_dir().join("pg_wal").join(name)).unwrap();
    let mut tracker = RecordBoundaryTracker::new(start, control.major, size);
    // What follows the checkpoint record is zeros or recycled: the end of the log.
    let error = tracker.feed(segment[start.segment_offset(size) as usize..].to_vec()).unwrap_err();
    assert!(error.may_be_end_of_wal(), "{error}");
    (tracker.start_of_last_record().unwrap(), tracker.end_of_last_record())
}

fn replace_wal(server: &TestPg, stream: WalStream, wal: &EncodedWal) {
    let folder = server.data_dir().join("pg_wal");
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::remove_file(path).unwrap();
        }
    }
    for file in segment_files(stream, wal) {
        let path = folder.join(&file.name);
        write_sparse(&path, file.len, &file.parts);
    }
    let owner = fs::metadata(&folder).unwrap();
    for entry in fs::read_dir(&folder).unwrap() {
        use std::os::unix::fs::MetadataExt;
        std::os::unix::fs::chown(entry.unwrap().path(), Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}

fn write_sparse(path: &Path, len: u64, parts: &[(u64, Vec<u8>)]) {
    let file = fs::File::create(path).unwrap();
    file.set_len(len).unwrap();
    for (at, bytes) in parts {
        file.write_all_at(bytes, *at).unwrap();
    }
}

/// Starts a server from a checkpoint record at `distance` bytes past the end of its log, as if there were WAL up to there.
fn check_start(size_mb: u32, place: impl Fn(Lsn, WalSegmentSize) -> Lsn) {
    check_start_of(15, size_mb, place);
}

fn check_start_of(major: u32, size_mb: u32, place: impl Fn(Lsn, WalSegmentSize) -> Lsn) {
    let options = TestPgOptions::default().major(major).initdb_arg(&format!("--wal-segsize={size_mb}"));
    let mut server = TestPg::start(options);
    server.sql("create table t (a int); insert into t select generate_series(1, 100)");
    server.stop(StopMode::Fast);
    let (mut control, bytes) = read_control(&server);
    assert_eq!(control.encode(), bytes, "decoding and encoding changes nothing");
    assert_eq!((control.state, control.major.number()), (ClusterState::ShutDown, major));
    let (previous, end) = end_of_log(&server, &control);
    assert_eq!(previous, control.checkpoint_lsn);

    let size = control.wal_segment_size;
    let at = place(end, size);
    let stream =
        WalStream { major: control.major, segment_size: size, tli: PgTli::new(1), system_id: control.system_id };
    let (wal, checkpoint) = shutdown_checkpoint(stream, at, previous, &control.checkpoint);
    assert_eq!(wal.start, at);
    assert_eq!(wal.record.start, at.record_start(size));
    replace_wal(&server, stream, &wal);
    control.set_shut_down(wal.record.start, checkpoint);
    fs::write(server.data_dir().join("global/pg_control"), control.encode()).unwrap();

    server.start_server();
    assert!(!server.log().contains("recovery"), "{}", server.log());
    assert_eq!(server.sql("select sum(a) from t"), "5050");
    server.sql("insert into t values (1)");
    if major == 15 {
        check_waldump(&server, wal.record.start);
    }
    server.kill();
    server.start_server();
    assert_eq!(server.sql("select sum(a) from t"), "5051", "what came after survives a crash");
}

/// `pg_waldump` reads our record too. There is none for other majors here.
fn check_waldump(server: &TestPg, start: Lsn) {
    let flushed: Lsn = server.sql("select pg_current_wal_flush_lsn()").parse().unwrap();
    // Told which files: by itself it looks at the first one that the folder lists, which may not be written yet.
    let [first, last] = [start, flushed].map(|at| server.sql(&format!("select pg_walfile_name('{at}')")));
    let dump = server_command(program("pg_waldump"))
        .arg("-p")
        .arg(server.data_dir().join("pg_wal"))
        .args(["-s", &start.to_string(), "-e", &flushed.to_string(), &first, &last])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&dump.stdout);
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    assert!(text.lines().next().unwrap().contains("CHECKPOINT_SHUTDOWN"), "{text}");
}

#[test]
fn other_majors_start_from_a_checkpoint_across_a_page_boundary() {
    for major in other_majors() {
        check_start_of(major, 16, |end, _| Lsn::new((end.get() | 8191) + 1 - 64));
    }
}

#[test]
fn starts_from_a_checkpoint_right_behind_the_log() {
    check_start(16, |end, _| end);
}

#[test]
fn checklist_02_05_starts_from_a_checkpoint_across_a_page_boundary() {
    check_start(16, |end, _| Lsn::new((end.get() | 8191) + 1 - 64));
}

#[test]
fn checklist_05_starts_from_a_checkpoint_at_a_page_boundary() {
    check_start(1, |end, _| Lsn::new((end.get() | 8191) + 1));
}

#[test]
fn checklist_02_11_starts_from_a_checkpoint_across_a_segment_boundary() {
    check_start(1, |end, size| end.segment_start(size).advance(size.bytes() - 32));
}

#[test]
fn checklist_05_11_starts_from_a_checkpoint_at_a_segment_boundary() {
    check_start(1, |end, size| end.segment_start(size).advance(size.bytes()));
}
