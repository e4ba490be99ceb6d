//! Talks to safekeepers: the proposer's and the reader's shell around the quorum core.
