//! How far the writing of rows is.

/// After so many rows it is said.
const ROWS_PER_REPORT: u64 = 50_000;

/// Says how far long work is.
pub(super) struct Report<'a> {
    verb: &'a str,
    table: &'a str,
    all: u64,
    done: u64,
    said: u64,
}

impl<'a> Report<'a> {
    pub fn new(verb: &'a str, table: &'a str, all: u64) -> Report<'a> {
        Report { verb, table, all, done: 0, said: 0 }
    }

    pub fn add(&mut self, count: u64, progress: &mut impl FnMut(&str)) {
        self.done += count;
        if self.done >= self.said + ROWS_PER_REPORT {
            self.said = self.done;
            progress(&format!("{} {} of {} rows of {}", self.verb, self.done, self.all, self.table));
        }
    }
}
