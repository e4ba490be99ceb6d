//! Follows a production server into a root timeline.
