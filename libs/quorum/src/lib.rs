//! Consensus on WAL: proposer and acceptor as sans-IO state machines.
