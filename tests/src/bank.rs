//! A bank whose money must stay what it is.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::NamedTempFile;

use crate::psql::{pg_program, sql, try_sql};

/// pgbench's clients move money between accounts, and write down each transfer; somebody counts all the money meanwhile.
pub struct Bank {
    stop: Arc<AtomicBool>,
    clients: JoinHandle<()>,
    auditor: JoinHandle<()>,
    audits: Arc<AtomicUsize>,
    wrong: Arc<Mutex<Vec<String>>>,
}

const MONEY: &str = "100000";
const TRANSFER: &str = "\\set a random(1, 150)
\\set b :a + random(1, 50)
\\set x random(-100, 100)
begin;
update bank set balance = balance - :x where id = :a;
update bank set balance = balance + :x where id = :b;
insert into transfers values (:a, :b, :x);
commit;
";

impl Bank {
    /// What makes its tables: 200 accounts with 500 each.
    pub const TABLES: &str = "create table bank (id int primary key, balance int not null);
        create table transfers (a int, b int, x int);
        insert into bank select n, 500 from generate_series(1, 200) n";

    /// Opens at `url`.
    pub fn start(url: &str) -> Bank {
        let stop = Arc::new(AtomicBool::new(false));
        let (audits, wrong) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let clients = {
            let (url, stopped) = (url.to_owned(), Arc::clone(&stop));
            thread::spawn(move || {
                let mut script = NamedTempFile::new().expect("a temp file can be made");
                script.write_all(TRANSFER.as_bytes()).expect("it can be written");
                // Clients may run as another user.
                fs::set_permissions(script.path(), Permissions::from_mode(0o644)).expect("own files can be opened");
                let script = script.path().to_string_lossy().into_owned();
                while !stopped.load(Ordering::Relaxed) {
                    // Failing is its lot; what it leaves is what counts.
                    let _ = pg_program("pgbench").args(["-n", "-c", "2", "-T", "3", "-f", &script, &url]).output();
                }
            })
        };
        let auditor = {
            let (url, stopped) = (url.to_owned(), Arc::clone(&stop));
            let (audits, wrong) = (Arc::clone(&audits), Arc::clone(&wrong));
            thread::spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    // An error is no answer. What is answered must be right.
                    if let Ok(money) = try_sql(&url, "select sum(balance) from bank") {
                        audits.fetch_add(1, Ordering::Relaxed);
                        if money != MONEY {
                            wrong.lock().expect("no auditor panics").push(money);
                        }
                    }
                    thread::sleep(Duration::from_millis(300));
                }
            })
        };
        Bank { stop, clients, auditor, audits, wrong }
    }

    /// Closes. How often the money was counted meanwhile; panics if it was wrong once.
    pub fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.join().expect("it does not panic");
        self.auditor.join().expect("it does not panic");
        let wrong = self.wrong.lock().expect("no auditor panics");
        assert!(wrong.is_empty(), "the money was {MONEY}, then {wrong:?}");
        self.audits.load(Ordering::Relaxed)
    }

    /// Sees to it that no money was made or lost and that every account is what its transfers make it. How many there were.
    pub fn check(url: &str) -> usize {
        let books = sql(
            url,
            "select count(*), sum(balance), count(*) filter (where balance <> 500
                 + coalesce((select sum(x) from transfers where b = id), 0) - coalesce((select sum(x) from transfers where a = id), 0))
             from bank",
        );
        assert_eq!(books, format!("200|{MONEY}|0"), "accounts, money, accounts that differ from their transfers");
        sql(url, "select count(*) from transfers").parse().expect("a number")
    }
}
