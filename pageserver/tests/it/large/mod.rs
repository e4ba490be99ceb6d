//! Databases of sizes that tests with a real Postgres do not reach: many tables, a long one. What a server would have written is made up.

mod cluster;
mod house;
mod long_table;
mod many_tables;
