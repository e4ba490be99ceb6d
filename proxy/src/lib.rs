//! The Postgres front door: TLS, SNI, SCRAM, wake, relay, cancel.
