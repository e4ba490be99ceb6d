//! WAL service (being written).
