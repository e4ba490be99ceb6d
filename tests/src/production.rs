//! Production servers to make branches from.

use std::process::{Child, Stdio};

use ardent_test_pg::{TestPg, TestPgOptions};

use crate::processes::wait_until;
use crate::psql::pg_program;

/// A server that may be a source, listening on TCP.
pub fn production_options() -> TestPgOptions {
    TestPgOptions::default().with_tcp().set("wal_level", "replica").set("max_prepared_transactions", "5")
}

/// pgbench writing to a server until it is stopped.
pub struct Load {
    child: Child,
}

impl Load {
    /// Starts writing to `database`, which `pgbench -i` has made ready.
    pub fn start(production: &TestPg, database: &str) -> Load {
        let child = pg_program("pgbench")
            .args(["-n", "-c", "2", "-T", "600", "-R", "300", "-d"])
            .arg(production.socket_url(database))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("pgbench can be run");
        let load = Load { child };
        wait_until("the load has committed", 60, || {
            (production.sql_in(database, "select count(*) > 10 from pgbench_history") == "t").then_some(())
        });
        load
    }

    /// Stops, and waits until the server has ended its sessions: nothing commits afterwards.
    pub fn stop(mut self, production: &TestPg) {
        assert!(self.child.try_wait().expect("a child can be waited for").is_none(), "the load ended by itself");
        self.end();
        wait_until("the load's sessions end", 60, || {
            let count = production.sql("select count(*) from pg_stat_activity where application_name = 'pgbench'");
            (count == "0").then_some(())
        });
    }

    fn end(&mut self) {
        // Errors mean that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}
