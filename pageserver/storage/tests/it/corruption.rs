//! Damaged files: an error that names file and keys for the reads concerned, never wrong content, and everything else works.

use std::fs;
use std::path::PathBuf;

use ardent_storage::{Engine, ErrorKind, ReadError};

use crate::support::*;

/// A timeline with an image layer for blocks 0 to 19 and a delta layer for blocks 0 to 9.
fn prepare(folder: &std::path::Path) -> (PathBuf, PathBuf) {
    let engine = open(folder);
    let root = engine.create_root(TENANT, timeline_id(1), facts(0x100)).unwrap();
    let images: Vec<_> = (0..20).map(|n| (block(n), format!("image {n} {}", "x".repeat(50)).into())).collect();
    root.import_images(&images).unwrap();
    root.finish_import().unwrap();
    let batch = (0..10).map(|n| (block(n), lsn(0x110), delta(format!("delta {n}")))).collect();
    root.put(batch, at(0x110)).unwrap();
    root.flush().unwrap();
    let timeline = folder.join("store/timelines").join(TENANT.to_string()).join(timeline_id(1).to_string());
    let mut files: Vec<_> = fs::read_dir(timeline.join("layers")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let [delta, image] = files.try_into().unwrap();
    (delta, image)
}

fn expected(n: u32, upto: u64) -> String {
    let tail = if n < 10 && upto >= 0x110 { format!("delta {n}") } else { String::new() };
    format!("image {n} {}{tail}", "x".repeat(50))
}

/// Reads everything; how many reads failed. Content that is there must be right, errors must name the file.
fn read_all(engine: &Engine, damaged: &str) -> usize {
    let root = engine.timeline(TENANT, timeline_id(1)).unwrap();
    let mut failed = 0;
    for n in 0..20 {
        for upto in [0x100, 0x110] {
            match root.get(&block(n), lsn(upto)) {
                Ok(content) => assert_eq!(content.unwrap(), expected(n, upto)),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Corrupt);
                    let ReadError::Corrupt(corrupt) = &error else { panic!("{error:?}") };
                    assert!(corrupt.file.ends_with(damaged), "{error}");
                    failed += 1;
                }
            }
        }
    }
    failed
}

#[test]
fn a_flipped_bit_anywhere_in_a_layer_never_gives_wrong_content() {
    let folder = tempfile::tempdir().unwrap();
    let (delta, image) = prepare(folder.path());
    for path in [delta, image] {
        let name = path.file_name().unwrap().to_str().unwrap();
        let whole = fs::read(&path).unwrap();
        let mut harmless = 0;
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&path, &damaged).unwrap();
            if read_all(&open(folder.path()), name) == 0 {
                harmless += 1;
            }
        }
        // The header, which readers don't need, the boundaries, and padding.
        assert!(harmless < 64, "{harmless} of {} bytes can change unnoticed", whole.len());
        fs::write(&path, &whole).unwrap();
        assert_eq!(read_all(&open(folder.path()), name), 0);
    }
}

#[test]
fn a_truncated_or_missing_delta_layer_fails_the_reads_that_need_it_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let (delta, _) = prepare(folder.path());
    let name = delta.file_name().unwrap().to_str().unwrap();
    let whole = fs::read(&delta).unwrap();
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(&delta, &whole[..length]).unwrap();
        let engine = open(folder.path());
        assert_eq!(read_all(&engine, name), 10, "{length} bytes left");
        let (versions, damaged) = engine.timeline(TENANT, timeline_id(1)).unwrap().verify().unwrap();
        assert_eq!((versions, damaged.len()), (20, 1));
    }
    fs::remove_file(&delta).unwrap();
    let engine = open(folder.path());
    assert_eq!(read_all(&engine, name), 10);
    // The timeline goes on.
    let root = engine.timeline(TENANT, timeline_id(1)).unwrap();
    root.put(vec![(block(3), lsn(0x118), image("new"))], at(0x118)).unwrap();
    root.flush().unwrap();
    assert_eq!(text(&root, block(3), 0x118).as_deref(), Some("new"));
}

#[test]
fn a_damaged_manifest_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let manifests = folder
        .path()
        .join("store/timelines")
        .join(TENANT.to_string())
        .join(timeline_id(1).to_string())
        .join("manifest");
    let newest = fs::read_dir(&manifests).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    let mut damaged = fs::read(&newest).unwrap();
    damaged[40] ^= 1;
    fs::write(&newest, damaged).unwrap();
    let engine = open(folder.path());
    let error = engine.timeline(TENANT, timeline_id(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(newest.file_name().unwrap().to_str().unwrap()), "{error}");
    empty_root(&engine, 2);
}
