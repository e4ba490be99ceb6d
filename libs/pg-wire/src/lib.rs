//! The Postgres wire protocol as a client: replication connections, COPY streams, SCRAM.
