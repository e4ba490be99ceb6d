//! A cluster's catalogs and small files, made up as far as somebody looks into them: `pg_class` and `pg_database` have rows with the
//! columns that lead from a row to a file.

use ardent_types::{BLCKSZ, ForkNumber, Key, RelTag, SlruKind, oid};
use bytes::Bytes;

use crate::workload::{add_item, control_file, empty_page};

/// The one database.
pub const DATABASE: u32 = 5;
const PG_CLASS: u32 = 1259;
const PG_DATABASE: u32 = 1262;

const ROW_HEADER_LEN: usize = 24;
const ROW_LEN: usize = ROW_HEADER_LEN + 96;
const ROWS_PER_PAGE: usize = 65;
/// Where `pg_class` has `relfilenode`, and `pg_database` its `oid`.
const RELFILENODE_AT: usize = 88;
const OID_AT: usize = 0;

/// Everything of a cluster but its tables; its `pg_class` names these files.
pub fn cluster(files: impl Iterator<Item = u32>) -> Vec<(Key, Bytes)> {
    let control = control_file();
    let place = (oid::DEFAULT_TABLESPACE, DATABASE);
    let mut values = vec![
        (Key::ControlFile, control.encode().into()),
        (Key::Checkpoint, Bytes::copy_from_slice(&control.checkpoint.encode(control.major))),
        (Key::SlruPage(SlruKind::Xact, 0), vec![0; BLCKSZ].into()),
        (Key::Database { spcnode: place.0, dbnode: place.1 }, Bytes::from_static(&[1])),
        (Key::RelMap { spcnode: place.0, dbnode: place.1 }, relation_map(PG_CLASS)),
        (Key::RelMap { spcnode: oid::GLOBAL_TABLESPACE, dbnode: 0 }, relation_map(PG_DATABASE)),
    ];
    values.extend(catalog((oid::GLOBAL_TABLESPACE, 0), PG_DATABASE, [row(OID_AT, DATABASE)].into_iter()));
    values.extend(catalog(place, PG_CLASS, files.map(|file| row(RELFILENODE_AT, file))));
    values
}

/// The value of a relation fork's size; `None`: it is dropped.
pub fn size(blocks: Option<u32>) -> Bytes {
    blocks.map_or_else(Bytes::new, |blocks| Bytes::copy_from_slice(&blocks.to_le_bytes()))
}

/// A catalog with these rows.
fn catalog(place: (u32, u32), relnode: u32, rows: impl Iterator<Item = Vec<u8>>) -> Vec<(Key, Bytes)> {
    let rel = RelTag { spcnode: place.0, dbnode: place.1, relnode, fork: ForkNumber::Main };
    let rows: Vec<_> = rows.collect();
    let pages = rows.chunks(ROWS_PER_PAGE).map(|rows| {
        let mut page = empty_page(0);
        rows.iter().for_each(|row| add_item(&mut page, row));
        Bytes::from(page)
    });
    let mut values: Vec<_> = (0..).zip(pages).map(|(block, page)| (Key::RelBlock(rel, block), page)).collect();
    let blocks = u32::try_from(values.len()).expect("a catalog is small");
    values.push((Key::RelSize(rel), size(Some(blocks))));
    values
}

/// A row that is there for everybody, with one column.
fn row(at: usize, column: u32) -> Vec<u8> {
    const COMMITTED_AND_NOT_DELETED: u16 = 0x0900;
    let mut row = vec![0; ROW_LEN];
    row[0..4].copy_from_slice(&3u32.to_le_bytes());
    row[20..22].copy_from_slice(&COMMITTED_AND_NOT_DELETED.to_le_bytes());
    row[22] = ROW_HEADER_LEN as u8;
    row[ROW_HEADER_LEN + at..][..4].copy_from_slice(&column.to_le_bytes());
    row
}

/// `pg_filenode.map` that has one catalog, whose file has its own number.
fn relation_map(catalog: u32) -> Bytes {
    const CRC_AT: usize = 504;
    let mut file = vec![0; CRC_AT + 8];
    for (at, word) in [(0, 0x0059_2717), (4, 1), (8, catalog), (12, catalog)] {
        file[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    let crc = crc32c::crc32c(&file[..CRC_AT]);
    file[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    file.into()
}
