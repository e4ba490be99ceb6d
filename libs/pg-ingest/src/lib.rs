//! Turns a decoded WAL record into changes of storage keys.
