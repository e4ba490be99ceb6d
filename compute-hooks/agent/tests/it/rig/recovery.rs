//! The oracle for what a quorum holds: stock Postgres, recovering from the source's files and the safekeeper's WAL.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use ardent_test_pg::{TestPg, program, server_command};
use ardent_types::Lsn;

use super::World;

impl World {
    /// All WAL of the timeline in one folder, as segment files: the source's up to where the timeline begins, the
    /// safekeeper's from there.
    fn collect_wal(&self, target: &Path) {
        let spec = &self.timeline;
        let own = self.safekeeper_dir().join(spec.tenant.to_string()).join(spec.timeline.to_string()).join("wal");
        let first = segment_name(spec.start_lsn, spec.wal_segment_size.bytes());
        for (name, path) in segments(&own) {
            let mut bytes = std::fs::read(&path).expect("segment");
            if name.ends_with(&first) {
                let before = spec.start_lsn.segment_offset(spec.wal_segment_size) as usize;
                let source = std::fs::File::open(self.source.data_dir().join("pg_wal").join(&name)).expect("segment");
                source.read_exact_at(&mut bytes[..before], 0).expect("whole segment");
            }
            let target = target.join(&name);
            std::fs::write(&target, bytes).expect("written");
            give_to_server(&target);
        }
    }

    /// A server recovered from everything that the safekeeper has.
    pub fn recover(&self) -> TestPg {
        let root = ardent_test_pg::temp_dir();
        let data_dir = root.path().join("data");
        let copied = server_command("cp").arg("-a").arg(self.source.data_dir()).arg(&data_dir).status();
        assert!(copied.expect("cp runs").success());
        self.collect_wal(&data_dir.join("pg_wal"));
        for (name, content) in [
            ("recovery.signal", ""),
            ("postgresql.auto.conf", "restore_command = 'false'\nhot_standby = off\nmax_connections = 100\n"),
        ] {
            std::fs::write(data_dir.join(name), content).expect("written");
            give_to_server(&data_dir.join(name));
        }
        let mut server = TestPg::adopt(root, data_dir, self.source.superuser());
        server.start_server();
        server
    }

    /// Reads the timeline's WAL from its start to `end` with `pg_waldump`, and checks that every record names the one
    /// before it. Gives the number of shutdown checkpoints.
    pub fn check_wal(&self, end: Lsn) -> usize {
        let folder = ardent_test_pg::temp_dir();
        self.collect_wal(folder.path());
        let output = server_command(program("pg_waldump"))
            .arg("-p")
            .arg(folder.path())
            .args(["-s", &self.timeline.start_lsn.to_string(), "-e", &end.to_string()])
            .output()
            .expect("pg_waldump runs");
        assert!(output.status.success(), "pg_waldump: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        let mut previous = self.timeline.prev_lsn.to_string();
        for line in text.lines() {
            let (lsn, prev) = (field(line, "lsn: "), field(line, "prev "));
            assert_eq!(prev, previous, "in {line}");
            previous = lsn;
        }
        assert!(previous.parse::<Lsn>().expect("an LSN") < end);
        text.matches("CHECKPOINT_SHUTDOWN").count()
    }
}

fn field(line: &str, name: &str) -> String {
    let rest = line.split(name).nth(1).unwrap_or_else(|| panic!("no {name} in {line}"));
    rest.split([',', ' ']).next().expect("a word").to_owned()
}

fn segments(folder: &Path) -> BTreeMap<String, PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the safekeeper has WAL");
    let files = entries.map(|entry| entry.expect("entry").path());
    files.map(|path| (path.file_name().expect("name").to_string_lossy().into_owned(), path)).collect()
}

/// The part of a segment's file name that the timeline id doesn't change.
fn segment_name(lsn: Lsn, size: u64) -> String {
    let (number, per_id) = (lsn.get() / size, 0x1_0000_0000 / size);
    format!("{:08X}{:08X}", number / per_id, number % per_id)
}

fn give_to_server(path: &Path) {
    if let Some(user) = super::unprivileged() {
        std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).expect("root can change owners");
    }
}
