//! Redo in Rust: one pure function per WAL record type, and the oracle that proves it.
//!
//! ```text
//! DecodedRecord ──view──► RecordView ──redo_block(view, id, page)──► page as Postgres leaves it
//!       └──for_block──► Value::Record (what storage keeps per key) ──view──┘
//! ```

pub mod value;
pub mod view;

pub use value::{Value, ValueDecodeError};
pub use view::{BlockView, RecordView};
