//! Makes WAL durable and streams it out.
