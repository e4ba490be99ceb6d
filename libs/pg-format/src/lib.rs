//! Postgres's on-disk formats, decoded and encoded without I/O: WAL, pages, the control file, SLRUs, relation maps,
//! two-phase files. Everything that depends on the major version hangs on [`PgMajor`].

pub mod major;
pub mod record;

pub use major::PgMajor;
pub use record::{BkpImage, DecodedBlock, DecodedRecord, RecordHeader};
