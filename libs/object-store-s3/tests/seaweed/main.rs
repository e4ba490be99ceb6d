//! The S3 backend against a real server, directly and through a proxy that injects faults.

mod backend;
mod faults;
mod house;
mod uploads;
