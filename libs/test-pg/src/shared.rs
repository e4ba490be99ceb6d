//! One server for all tests of a program.

use std::sync::{Arc, Mutex, PoisonError};

use crate::server::{TestPg, TestPgOptions};

/// Each test has some of them, and they run side by side.
const CONNECTIONS_MAX: &str = "200";

static SHARED: Mutex<Option<Arc<TestPg>>> = Mutex::new(None);

impl TestPg {
    /// The server that all tests of this process use, each in databases of its own; it ends with the process. It is never to be
    /// stopped, and what is not in a database (roles, settings) wants a server of its own.
    pub fn shared() -> Arc<TestPg> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || {
            // SAFETY: the function needs nothing that is gone by then: no thread-local value, and no other thread.
            let registered = unsafe { libc::atexit(end_shared) };
            assert_eq!(registered, 0, "the C library takes at least 32 functions");
            let options =
                TestPgOptions::default().set("full_page_writes", "off").set("max_connections", CONNECTIONS_MAX);
            Arc::new(TestPg::start(options))
        };
        shared.get_or_insert_with(start).clone()
    }
}

/// Statics are not dropped at a process's end.
extern "C" fn end_shared() {
    drop(SHARED.lock().unwrap_or_else(PoisonError::into_inner).take());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_and_it_outlives_its_users() {
        let first = TestPg::shared().pid();
        assert!(first.is_some());
        assert_eq!(TestPg::shared().pid(), first);
    }
}
