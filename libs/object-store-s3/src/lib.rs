//! The S3 backend of the object store: S3, MinIO, SeaweedFS and what else speaks their calls.
//!
//! ```text
//!  caller's thread ──S3Store──► a task of the store's own runtime ──► [permit] ──attempt──► aws-sdk-s3 ──TLS──► server
//!        waits ◄──────────────── answer, or an error with a kind ◄── backoff ◄──failure──┘
//!                                 put_if_absent: If-None-Match: *, and whose object is it when the name is taken
//!                                 put_file:      one put, or parts side by side, given up as a whole
//! ```
//!
//! Invariants:
//!
//! - S3-1: a conditional put never says "exists" of its own object, nor "created" of another's: each carries a random mark, and the
//!   mark of what is there decides after an answer was lost (`store.rs`).
//! - S3-2: every call ends: attempts have timeouts, retries a deadline, and what is under way at once is bounded (`retry.rs`).
//! - S3-3: an upload in parts is completed whole or given up; a reader never sees part of it (`upload.rs`).
//! - S3-4: a body that is shorter than announced is a failed attempt, not content (`store.rs`).
//!
//! Knows nothing of layers, manifests or caches. Credentials come from the SDK's usual chain; `docs/s3.md` lists what is in it.
//!
//! Start reading at [`S3Location`], then [`S3Store`].

mod client;
mod failure;
mod location;
mod retry;
mod store;
mod upload;

pub use client::S3OpenError;
pub use location::{LocationError, S3Location};
pub use retry::RetryPolicy;
pub use store::{S3Keys, S3Options, S3Store};
