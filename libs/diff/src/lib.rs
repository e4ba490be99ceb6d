//! Two row streams and two catalogs in, a change set out.
