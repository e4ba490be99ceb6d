//! Postgres's on-disk formats, decoded and encoded without I/O: WAL, pages, the control file, SLRUs, relation maps, two-phase files.
//! Everything that depends on the major version hangs on [`PgMajor`].
//!
//! ```text
//!  WAL bytes ──► wal::WalDecoder ──► record::DecodedRecord ──► image::restore_image ──► page
//!                     ▲                    │ rmgr::identify: what kind of record
//!  encode ────────────┘ (records, segments)└─ CheckPoint, relation map updates, two-phase states, ...
//!  pg_control ◄──► control         pg_filenode.map ◄──► relmap         pg_xact, ... ──► slru
//! ```
//!
//! Invariants: decoding never panics, whatever the bytes; what is decoded has passed its CRC; encoding what was decoded gives the same
//! bytes. Only 64-bit little-endian layouts with 8 KiB pages are known: others are refused when a server is connected.
//!
//! Knows nothing of storage keys, timelines of Ardent, or services. Start reading at [`wal`] and [`record`].

mod bytes_at;
pub mod checkpoint;
pub mod control;
mod crc;
pub mod data_directory;
pub mod encode;
pub mod image;
pub mod major;
pub mod page;
pub mod pglz;
pub mod record;
pub mod rmgr;
pub mod segment;
pub mod wal;

pub use checkpoint::{CHECKPOINT_LEN, CheckPoint};
pub use control::{CONTROL_FILE_LEN, ClusterState, ControlFile, ControlFileError};
pub use image::{ImageError, ImageProblem, restore_image, restore_image_into};
pub use major::PgMajor;
pub use record::{BkpImage, DecodedBlock, DecodedRecord, OwnedRecord, RecordDecodeError, RecordHeader};
pub use wal::{RecordBoundaryTracker, RecordSpan, WalDecoder, WalError, WalProblem};
