//! End to end tests of Ardent: real processes, real Postgres, free ports.
