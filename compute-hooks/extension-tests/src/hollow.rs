//! A stopped server's data directory with its pages taken out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ardent_pg_format::{ClusterState, ControlFile};
use ardent_presence_map::{PresenceMap, PresenceMapBuilder};
use ardent_test_pg::{StopMode, TestPg, TestPgOptions, program, server_command, temp_dir};
use ardent_types::{BLCKSZ, ForkNumber, Lsn, RelTag, oid};
use nix::unistd::{Gid, Uid, chown};
use tempfile::TempDir;

use crate::library::compute_library;
use crate::page_server::FilePageServer;

/// A Postgres in which every block was absent when it started.
pub struct HollowPg {
    /// The server.
    pub server: TestPg,
    /// Where its pages come from.
    pub page_server: FilePageServer,
    /// What it lacks.
    pub map: PresenceMap,
    // Library, pages and map; removed last.
    dir: TempDir,
}

/// A relation fork's file found in a data directory.
struct RelationFile {
    rel: RelTag,
    path: PathBuf,
    bytes: u64,
}

impl HollowPg {
    /// A server on which `prepare` has run, stopped, hollowed out and started again with the library and `settings`.
    pub fn start(prepare: impl FnOnce(&TestPg), settings: &[(&str, &str)]) -> Self {
        let mut hollow = Self::prepare(prepare, settings);
        hollow.server.start_server();
        hollow
    }

    /// As [`HollowPg::start`], without the last step.
    pub fn prepare(prepare: impl FnOnce(&TestPg), settings: &[(&str, &str)]) -> Self {
        let mut server = TestPg::start(TestPgOptions::default());
        prepare(&server);
        server.sql("checkpoint");
        server.stop(StopMode::Fast);
        Self::hollow_out(server, settings)
    }

    /// Takes the pages out of a stopped server.
    pub fn hollow_out(server: TestPg, settings: &[(&str, &str)]) -> Self {
        let dir = temp_dir();
        let base_lsn = checkpoint_lsn(server.data_dir());
        let files = relation_files(server.data_dir());
        let mut builder = PresenceMapBuilder::new(base_lsn);
        let mut sizes: BTreeMap<RelTag, u64> = BTreeMap::new();
        let mut pages = BTreeMap::new();
        for file in &files {
            let kept = dir.path().join("pages").join(file.path.strip_prefix(server.data_dir()).expect("below it"));
            fs::create_dir_all(kept.parent().expect("has a folder")).expect("a folder can be made");
            fs::rename(&file.path, &kept).expect("a file can be moved");
            let hole = File::create(&file.path).expect("a file can be made");
            hole.set_len(file.bytes).expect("a file can be lengthened");
            give_to_owner_of(dir.path(), &file.path);
            *sizes.entry(file.rel).or_default() += file.bytes;
            if file.path.extension().is_none() {
                pages.insert(file.rel, kept);
            }
        }
        for (rel, bytes) in sizes {
            builder.add(rel, u32::try_from(bytes / BLCKSZ as u64).expect("a relation's blocks fit"));
        }
        let map_path = dir.path().join("presence.map");
        let map = builder.build(&map_path).expect("the map can be made");
        let library = dir.path().join("libardent_compute.so");
        fs::copy(compute_library(), &library).expect("the library can be copied");
        give_to_owner_of(dir.path(), &map_path);
        let socket = dir.path().join("agent.sock");
        let page_server = FilePageServer::start(&socket, pages, base_lsn);
        let path = |path: &Path| path.to_str().expect("temp folders have plain names").to_owned();
        let mut lines = vec![
            ("shared_preload_libraries", path(&library)),
            ("ardent.presence_map", path(&map_path)),
            ("ardent.agent_socket", path(&socket)),
            ("ardent.base_lsn", base_lsn.to_string()),
            ("restart_after_crash", "off".to_owned()),
            ("max_prepared_transactions", "5".to_owned()),
        ];
        lines.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let text: String = lines.iter().map(|(name, value)| format!("{name} = '{value}'\n")).collect();
        let conf = server.data_dir().join("postgresql.conf");
        let before = fs::read_to_string(&conf).expect("the configuration can be read");
        fs::write(conf, before + &text).expect("the configuration can be written");
        HollowPg { server, page_server, map, dir }
    }

    /// A counter of the library by its name.
    pub fn counter(&self, name: &str) -> u64 {
        let values = self.map.counters().values();
        values.named().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no counter {name}")).1
    }

    /// The folder with library, pages and map.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The relation fork of a table or index in database `postgres`.
    pub fn rel(&self, name: &str, fork: ForkNumber) -> RelTag {
        let row = self.server.sql(&format!(
            "select case reltablespace when 0 then {} else reltablespace end, d.oid, pg_relation_filenode(c.oid)
             from pg_class c, pg_database d where c.oid = '{name}'::regclass and datname = current_database()",
            oid::DEFAULT_TABLESPACE
        ));
        let numbers: Vec<u32> = row.split('|').map(|number| number.parse().expect("a number")).collect();
        RelTag { spcnode: numbers[0], dbnode: numbers[1], relnode: numbers[2], fork }
    }

    /// `psql` as a process of its own, printing command tags.
    pub fn psql(&self, database: &str) -> Command {
        psql(&self.server, database)
    }
}

/// `psql` on `server`, printing command tags.
pub fn psql(server: &TestPg, database: &str) -> Command {
    let mut command = server_command(program("psql"));
    command.args(["-X", "-A", "-t", "-U", server.superuser(), "-d", database, "-h"]);
    command.arg(server.socket_dir()).args(["-p", &server.port().to_string()]);
    command
}

/// Files that a test made as root must belong to the server's user.
fn give_to_owner_of(folder: &Path, path: &Path) {
    let owner = fs::metadata(folder).expect("it exists");
    chown(path, Some(Uid::from_raw(owner.uid())), Some(Gid::from_raw(owner.gid()))).expect("owners can be set");
}

/// Where the shutdown checkpoint is: no page is newer.
fn checkpoint_lsn(data_dir: &Path) -> Lsn {
    let path = data_dir.join("global/pg_control");
    let control = ControlFile::decode(&fs::read(&path).expect("pg_control can be read")).expect("it is one");
    assert_eq!(control.state, ClusterState::ShutDown);
    control.checkpoint_lsn
}

fn relation_files(data_dir: &Path) -> Vec<RelationFile> {
    let mut folders = vec![(oid::GLOBAL_TABLESPACE, 0, data_dir.join("global"))];
    folders.extend(database_folders(oid::DEFAULT_TABLESPACE, &data_dir.join("base")));
    for (space, path) in numbered(&data_dir.join("pg_tblspc")) {
        for version in fs::read_dir(&path).expect("a tablespace can be read") {
            folders.extend(database_folders(space, &version.expect("can be read").path()));
        }
    }
    let mut files = Vec::new();
    for (spcnode, dbnode, folder) in folders {
        let found: Vec<_> = fs::read_dir(&folder)
            .expect("a database's folder can be read")
            .filter_map(|item| relation_file(&item.expect("can be read").path(), spcnode, dbnode))
            .collect();
        // Unlogged relations are never fetched: the agent makes them from their init forks.
        let unlogged: BTreeSet<u32> =
            found.iter().filter(|file| file.rel.fork == ForkNumber::Init).map(|file| file.rel.relnode).collect();
        files.extend(found.into_iter().filter(|file| file.bytes > 0 && !unlogged.contains(&file.rel.relnode)));
    }
    files
}

fn database_folders(space: u32, folder: &Path) -> Vec<(u32, u32, PathBuf)> {
    numbered(folder).into_iter().map(|(database, path)| (space, database, path)).collect()
}

fn numbered(folder: &Path) -> Vec<(u32, PathBuf)> {
    let items = fs::read_dir(folder).expect("a folder can be read").map(|item| item.expect("can be read").path());
    items.filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, path))).collect()
}

/// `1259`, `1259_fsm`, `1259.1`, `1259_vm.2`; everything else is not a relation.
fn relation_file(path: &Path, spcnode: u32, dbnode: u32) -> Option<RelationFile> {
    let name = path.file_name()?.to_str()?;
    let stem = name.split_once('.').map_or(name, |(stem, _segment)| stem);
    let (relnode, fork) = match stem.split_once('_') {
        None => (stem, ForkNumber::Main),
        Some((relnode, suffix)) => {
            let fork = ForkNumber::ALL.into_iter().find(|fork| fork.file_suffix().strip_prefix('_') == Some(suffix))?;
            (relnode, fork)
        }
    };
    let rel = RelTag { spcnode, dbnode, relnode: relnode.parse().ok()?, fork };
    Some(RelationFile { rel, path: path.to_owned(), bytes: fs::metadata(path).ok()?.len() })
}
