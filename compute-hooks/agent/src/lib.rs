//! Starts one Postgres on a lazily filled copy and ships its WAL.
