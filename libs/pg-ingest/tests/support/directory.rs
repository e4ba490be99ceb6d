//! Data directories: as the files of an import, and their WAL as records.

use std::fs;
use std::path::{Path, PathBuf};

use ardent_api::page_service::ImportSpec;
use ardent_pg_format::{ControlFile, DecodedRecord, WalDecoder};
use ardent_pg_ingest::{Batch, Import, Imported};
use ardent_types::Lsn;
use bytes::Bytes;

use super::store::Store;

/// All files below `root`, as paths relative to it.
pub fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).expect("a folder can be read") {
            let entry = entry.expect("a folder's entry can be read");
            let path = folder.join(entry.file_name());
            if root.join(&path).is_dir() {
                folders.push(path);
            } else {
                found.push(path.to_str().expect("names are plain").to_owned());
            }
        }
    }
    found.sort();
    found
}

/// `pg_control` of a data directory.
pub fn control_file(data_dir: &Path) -> ControlFile {
    let bytes = fs::read(data_dir.join("global/pg_control")).expect("pg_control can be read");
    ControlFile::decode(&bytes).expect("pg_control is whole")
}

/// What an import of a stopped server's directory is announced as.
pub fn import_spec(data_dir: &Path) -> ImportSpec {
    let control = control_file(data_dir);
    ImportSpec {
        pg_major: control.major.number(),
        system_id: control.system_id,
        pg_tli: control.checkpoint.tli,
        wal_segment_size: control.wal_segment_size,
        data_checksums: control.data_checksum_version != 0,
        start_lsn: control.checkpoint.redo,
    }
}

/// Imports a directory. Files come in reverse order and odd chunks.
pub fn import(spec: ImportSpec, data_dir: &Path, store: &mut Store) -> Imported {
    let mut import = Import::new(spec).expect("the import begins");
    let mut batch = Batch::default();
    for path in files(data_dir).into_iter().rev() {
        let content = fs::read(data_dir.join(&path)).expect("a file can be read");
        import.begin_file(&path, content.len() as u64, &mut batch).expect("the file is taken");
        for chunk in content.chunks(70_001) {
            import.data(Bytes::copy_from_slice(chunk), &mut batch).expect("the bytes are taken");
        }
        store.apply(&mut batch);
    }
    let imported = import.finish(&mut batch).expect("the import is complete");
    store.apply(&mut batch);
    imported
}

/// Calls `each` with every record in `pg_wal` from `start` on.
pub fn records(data_dir: &Path, start: Lsn, mut each: impl FnMut(&DecodedRecord<'_>)) {
    let control = control_file(data_dir);
    let size = control.wal_segment_size;
    let mut decoder = WalDecoder::new(start, control.major, size).with_system_id(control.system_id);
    let mut offset = start.segment_offset(size) as usize;
    for number in start.segment_number(size).. {
        let per_id = 0x1_0000_0000 / size.bytes();
        let name = format!("{:08X}{:08X}{:08X}", control.checkpoint.tli.get(), number / per_id, number % per_id);
        let Ok(segment) = fs::read(data_dir.join("pg_wal").join(name)) else { break };
        decoder.feed_slice(&segment[offset..]);
        offset = 0;
        loop {
            match decoder.next() {
                Ok(Some(record)) => each(&record),
                Ok(None) => break,
                // Behind the last record the files hold zeros, or what was recycled.
                Err(_) => return,
            }
        }
    }
}
