//! From one data directory to another.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ardent_pg_format::PgMajor;
use ardent_presence_map::{PresenceMap, PresenceMapBuilder};
use ardent_types::{BLCKSZ, ForkNumber, Lsn, RelTag};

use super::collect::{Collect, Found, Limits};
use super::format::Header;
use super::restore::{Restore, Restored};
use crate::layout::PRESENCE_MAP;

const END: Lsn = Lsn::new(0x0100_0028);

fn rel(relnode: u32, fork: ForkNumber) -> RelTag {
    RelTag { spcnode: 1663, dbnode: 5, relnode, fork }
}

fn page(mark: u8) -> Vec<u8> {
    let mut page = vec![mark; BLCKSZ];
    page[..8].fill(0);
    page
}

/// A sequence's page (`sequence.c`).
fn sequence(mark: u8) -> Vec<u8> {
    let mut page = page(mark);
    page[16..18].copy_from_slice(&(BLCKSZ as u16 - 8).to_le_bytes());
    page[BLCKSZ - 8..BLCKSZ - 4].copy_from_slice(&0x1717_u32.to_le_bytes());
    page
}

fn write(root: &Path, path: &str, content: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(path, content).expect("written");
}

fn read(root: &Path, path: &str) -> Vec<u8> {
    fs::read(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The forks that the page server knows, and how long they are there.
fn make_map(root: &Path) -> PresenceMap {
    let mut builder = PresenceMapBuilder::new(END);
    builder.add(rel(10, ForkNumber::Main), 1);
    builder.add(rel(10, ForkNumber::Fsm), 3);
    builder.add(rel(20, ForkNumber::Main), 1);
    builder.add(rel(21, ForkNumber::Main), 1);
    builder.build(&root.join(PRESENCE_MAP)).expect("built")
}

/// A directory as the agent makes it: sparse files, and INIT over MAIN.
fn fresh(root: &Path) -> PresenceMap {
    for folder in ["base/5", "global", "pg_stat", "pg_tblspc"] {
        fs::create_dir_all(root.join(folder)).expect("made");
    }
    write(root, "base/5/10", &vec![0; BLCKSZ]);
    write(root, "base/5/10_fsm", &vec![0; 3 * BLCKSZ]);
    write(root, "base/5/11", &vec![0; BLCKSZ]);
    write(root, "base/5/20", &vec![0; BLCKSZ]);
    write(root, "base/5/21", &vec![0; BLCKSZ]);
    write(root, "base/5/30", &page(3));
    write(root, "base/5/30_init", &page(3));
    make_map(root)
}

/// The same after a compute has run on it.
fn used(root: &Path) {
    let map = fresh(root);
    let mut fsm = [page(0x11), vec![0; BLCKSZ], page(0x13), page(0x14)].concat();
    fsm[2 * BLCKSZ..3 * BLCKSZ].fill(0x55);
    // Block 1 was never read; block 3 is past what the page server knows.
    write(root, "base/5/10_fsm", &fsm);
    let entry = map.find(&rel(10, ForkNumber::Fsm)).expect("an entry");
    entry.set_present(0);
    map.find(&rel(20, ForkNumber::Main)).expect("an entry").set_present(0);
    // Another fork of a relation whose map the page server does not know.
    write(root, "base/5/11_fsm", &page(0x21));
    write(root, "base/5/20", &sequence(0x31));
    write(root, "base/5/21", &sequence(0x32));
    // Made here: its sequence has no entry at all; and a table that only looks small.
    write(root, "base/5/22", &sequence(0x33));
    write(root, "base/5/23", &page(0x34));
    write(root, "base/5/30", &[page(0x41), page(0x42)].concat());
    write(root, "base/5/30_vm", &page(0x43));
    write(root, "pg_stat/pgstat.stat", b"statistics");
    write(root, "postgresql.auto.conf", b"work_mem = '7MB'\n");
}

fn collect(root: &Path, limits: Limits) -> (Vec<u8>, Found) {
    let header = Header { major: 15, lsn: END, unlogged_lsn: Lsn::new(1234) };
    Collect { data: root, major: PgMajor::V15, header, limits }.run(Vec::new()).expect("collected")
}

fn restore(root: &Path, lsn: Lsn, state: &[u8]) -> std::io::Result<Restored> {
    Restore { data: root, major: PgMajor::V15, lsn, run_as: None }.run(state)
}

fn folders() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().expect("a temp folder can be made");
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    fs::create_dir_all(&old).and_then(|()| fs::create_dir_all(&new)).expect("made");
    (folder, old, new)
}

#[test]
fn everything_that_is_kept_arrives_and_nothing_else() {
    let (_folder, old, new) = folders();
    used(&old);
    let map = fresh(&new);
    // The sequence that was made on the branch is known to the page server by now.
    write(&new, "base/5/22", &vec![0; BLCKSZ]);
    let (state, found) = collect(&old, Limits::default());
    assert_eq!(found, Found { pages: 5, unlogged_files: 2, unlogged_bytes_dropped: 0 });
    let restored = restore(&new, END, &state).expect("restored");
    let settings = Some("work_mem = '7MB'\n".to_owned());
    assert_eq!(restored, Restored { unlogged_lsn: Lsn::new(1234), settings, pages: 5, files: 3 });

    let fsm = read(&new, "base/5/10_fsm");
    assert_eq!(fsm.len(), 4 * BLCKSZ);
    assert!(fsm[..BLCKSZ] == page(0x11) && fsm[3 * BLCKSZ..] == page(0x14));
    assert!(fsm[BLCKSZ..3 * BLCKSZ].iter().all(|byte| *byte == 0), "what it never had is as it was");
    let entry = map.find(&rel(10, ForkNumber::Fsm)).expect("an entry");
    assert_eq!([0, 1, 2, 3].map(|block| entry.is_absent(block)), [false, true, true, false]);
    assert_eq!(read(&new, "base/5/11_fsm"), page(0x21));
    assert_eq!((read(&new, "base/5/20"), read(&new, "base/5/22")), (sequence(0x31), sequence(0x33)));
    assert!(!map.find(&rel(20, ForkNumber::Main)).expect("an entry").is_absent(0));
    assert_eq!(read(&new, "base/5/21"), vec![0; BLCKSZ], "one that it never read comes from the page server");
    assert!(map.find(&rel(21, ForkNumber::Main)).expect("an entry").is_absent(0));
    assert_eq!(read(&new, "base/5/30"), [page(0x41), page(0x42)].concat());
    assert_eq!((read(&new, "base/5/30_vm"), read(&new, "base/5/30_init")), (page(0x43), page(3)));
    assert_eq!(read(&new, "pg_stat/pgstat.stat"), b"statistics");
    assert!(!new.join("base/5/23").exists());
}

#[test]
fn what_is_too_much_is_left_out() {
    let (_folder, old, new) = folders();
    used(&old);
    fresh(&new);
    let limits = Limits { unlogged_bytes: 3 * BLCKSZ as u64 - 1, pages_bytes: 2 * BLCKSZ as u64, stat_bytes: 4 };
    let (state, found) = collect(&old, limits);
    assert_eq!(found, Found { pages: 2, unlogged_files: 0, unlogged_bytes_dropped: 3 * BLCKSZ as u64 });
    restore(&new, END, &state).expect("restored");
    assert_eq!(read(&new, "base/5/30"), page(3), "empty, and not half of it");
    assert!(!new.join("base/5/30_vm").exists() && !new.join("pg_stat/pgstat.stat").exists());
    let at_most = Limits { unlogged_bytes: 3 * BLCKSZ as u64, ..limits };
    assert_eq!(collect(&old, at_most).1.unlogged_files, 2);
}

/// The directory was a superuser's to write to.
#[test]
fn no_link_is_followed_and_nothing_leads_out() {
    let (folder, old, new) = folders();
    used(&old);
    fresh(&new);
    let secret = folder.path().join("secret");
    write(&secret, "16384", b"secret");
    for (link, target) in [("pg_stat/x.stat", "16384"), ("base/5/30.1", "16384"), ("base/6", ""), ("pg_tblspc/99", "")]
    {
        symlink(secret.join(target), old.join(link)).expect("linked");
    }
    nix::unistd::mkfifo(&old.join("pg_stat/pipe"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    let (state, found) = collect(&old, Limits::default());
    assert_eq!(found.unlogged_files, 2);
    assert!(!state.windows(6).any(|window| window == b"secret"));

    for path in ["../x", "pg_stat/../x", "pg_stat/", "base/5/20", "base/5/30_init", "global/30", "base/05/30", "x"] {
        let header = Header { major: 15, lsn: END, unlogged_lsn: END };
        let mut writer = super::format::StateWriter::begin(Vec::new(), header).expect("memory");
        writer.file(path, 1, &b"x"[..]).expect("memory");
        let error = restore(&new, END, &writer.end().expect("memory")).expect_err(path);
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{path}: {error}");
    }
}

#[test]
fn a_state_of_another_position_or_of_pages_from_the_future_is_refused() {
    let (_folder, old, new) = folders();
    used(&old);
    fresh(&new);
    let (state, _) = collect(&old, Limits::default());
    let error = restore(&new, Lsn::new(END.get() + 8), &state).expect_err("another position");
    assert!(error.to_string().contains("0/01000028"), "{error}");
    for length in [0, 20, 40, state.len() / 2, state.len() - 1] {
        restore(&new, END, &state[..length]).expect_err("cut off");
    }
    let mut late = page(1);
    late[4..8].copy_from_slice(&0x0100_0030_u32.to_le_bytes());
    write(&old, "base/5/11_fsm", &late);
    let error = restore(&new, END, &collect(&old, Limits::default()).0).expect_err("from the future");
    assert!(error.to_string().contains("block 0"), "{error}");
}
