//! Which commits clients were told of.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::processes::wait_until;
use crate::psql::{pg_program, sql};

const WRITERS: usize = 3;

/// Sessions that insert numbers, one transaction each, and note those whose commit was acknowledged.
pub struct Ledger {
    acknowledged: Arc<Mutex<Vec<(usize, Instant)>>>,
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<()>>,
}

impl Ledger {
    /// What makes the table that it writes to.
    pub const TABLE: &str = "create table ledger (n int primary key)";

    /// Starts writing at `url`.
    pub fn start(url: &str) -> Ledger {
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let next = Arc::new(AtomicUsize::new(1));
        let writers = (0..WRITERS)
            .map(|_| {
                let (url, acknowledged, stop, next) =
                    (url.to_owned(), Arc::clone(&acknowledged), Arc::clone(&stop), Arc::clone(&next));
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        write_some(&url, &next, &acknowledged);
                    }
                })
            })
            .collect();
        Ledger { acknowledged, stop, writers }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().expect("no writer panics").len()
    }

    /// Waits until a hundred more commits were acknowledged.
    pub fn wait_for_more(&self) {
        let before = self.count();
        wait_until("commits are acknowledged", 90, || (self.count() >= before + 100).then_some(()));
    }

    /// When the last commit was acknowledged after `since`.
    pub fn last_after(&self, since: Instant) -> Option<Instant> {
        let acknowledged = self.acknowledged.lock().expect("no writer panics");
        acknowledged.iter().map(|(_, at)| *at).max().filter(|at| *at > since)
    }

    /// The longest time from `since` to now in which no commit was acknowledged.
    pub fn longest_pause(&self, since: Instant) -> Duration {
        let acknowledged = self.acknowledged.lock().expect("no writer panics");
        let mut at: Vec<Instant> = acknowledged.iter().map(|(_, at)| *at).filter(|at| *at >= since).collect();
        at.extend([since, Instant::now()]);
        at.sort_unstable();
        at.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// What is acknowledged by now.
    pub fn so_far(&self) -> Acknowledged {
        let acknowledged = self.acknowledged.lock().expect("no writer panics");
        Acknowledged(acknowledged.iter().map(|(number, _)| *number).collect())
    }

    /// Stops writing.
    pub fn finish(self) -> Acknowledged {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.join().expect("no writer panics");
        }
        let noted = Arc::into_inner(self.acknowledged).expect("the writers are gone");
        Acknowledged(noted.into_inner().expect("no writer panics").into_iter().map(|(number, _)| number).collect())
    }
}

/// The numbers whose commits clients have seen.
pub struct Acknowledged(BTreeSet<usize>);

impl Acknowledged {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sees to it that all of them are there, each once.
    pub fn check(&self, url: &str) {
        let rows = sql(url, "select n from ledger order by n");
        let there: BTreeSet<usize> = rows.lines().map(|line| line.parse().expect("a number")).collect();
        let lost: Vec<_> = self.0.difference(&there).collect();
        assert!(lost.is_empty(), "{} of {} acknowledged commits are lost: {lost:?}", lost.len(), self.len());
        assert_eq!(rows.lines().count(), there.len(), "no row is there twice");
    }
}

/// One session; ends early when the connection breaks. psql prints a row only when it has seen its `CommandComplete`.
fn write_some(url: &str, next: &AtomicUsize, acknowledged: &Mutex<Vec<(usize, Instant)>>) {
    let mut script = String::new();
    for _ in 0..40 {
        let number = next.fetch_add(1, Ordering::Relaxed);
        writeln!(script, "insert into ledger values ({number}) returning n;").expect("strings can be written to");
    }
    let mut arguments =
        vec!["-XAtq".to_owned(), "-v".to_owned(), "ON_ERROR_STOP=1".to_owned(), "-d".to_owned(), url.to_owned()];
    for statement in script.lines() {
        arguments.extend(["-c".to_owned(), statement.to_owned()]);
    }
    let mut psql = pg_program("psql")
        .args(&arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("psql can be run");
    let stdout = psql.stdout.take().expect("it is piped");
    for number in BufReader::new(stdout).lines().map_while(Result::ok).filter_map(|line| line.parse().ok()) {
        acknowledged.lock().expect("no writer panics").push((number, Instant::now()));
    }
    psql.wait().expect("a child can be waited for");
}
