//! The page server: WAL in, page versions at any LSN out.
