//! What the processes of one compute count, in the map's header where the agent can read it.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters shared by all processes that map the file. They only grow, and outlive a restart on the same file.
        #[repr(C)]
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        /// The values of [`Counters`] at one moment (each read on its own, not all at once).
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct CounterValues {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// The values now.
            pub fn values(&self) -> CounterValues {
                CounterValues { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }

        impl CounterValues {
            /// Names and values, in the file's order.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Requests sent to the page server.
    requests,
    /// Pages that were received and put in their place.
    pages_filled,
    /// Of those, pages that were asked for by read-ahead.
    pages_read_ahead,
    /// Of those, pages that were asked for by Postgres's prefetch.
    pages_prefetched,
    /// Pages that were received and had become present meanwhile.
    pages_raced,
    /// Blocks that became present because they were written without having been read.
    writes_absent,
    /// Requests that the page server answered with an error, and answers that were refused.
    errors,
    /// Connections made to the page server, the first ones included.
    connections,
    /// Microseconds that processes waited for pages, summed.
    wait_us,
}

impl Counters {
    /// Adds `n` to a counter.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}
