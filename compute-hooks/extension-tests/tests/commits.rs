//! No client sees a commit succeed while its wait for the synchronous standby was cut short. Where no standby is there, no
//! commit may succeed at all.

use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use ardent_extension_tests::HollowPg;
use ardent_test_pg::{program, server_command, temp_dir};

const DEADLINE: Duration = Duration::from_secs(30);
const WAITING: &str = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
const PID: &str = "select pid from pg_stat_activity where wait_event = 'SyncRep'";

fn cluster_without_standby() -> HollowPg {
    let prepare = |server: &ardent_test_pg::TestPg| {
        server.sql("create table t (id int)");
    };
    HollowPg::start(prepare, &[("synchronous_standby_names", "ardent")])
}

/// A statement that waits for the standby.
struct Waiting<'a> {
    hollow: &'a HollowPg,
    psql: Child,
    pid: String,
}

impl<'a> Waiting<'a> {
    fn start(hollow: &'a HollowPg, statements: &[&str]) -> Self {
        let mut command = hollow.psql("postgres");
        for statement in statements {
            command.args(["-c", statement]);
        }
        let psql = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("psql runs");
        until("the commit waits", || hollow.server.sql(WAITING) == "1");
        let pid = hollow.server.sql(PID);
        Waiting { hollow, psql, pid }
    }

    fn still_waits(&mut self) -> bool {
        self.psql.try_wait().expect("can be waited for").is_none() && self.hollow.server.sql(PID) == self.pid
    }

    /// Ends the session and gives what the client got to see.
    fn terminate(mut self) -> (String, String) {
        self.hollow.server.sql(&format!("select pg_terminate_backend({})", self.pid));
        let (mut out, mut err) = (String::new(), String::new());
        self.psql.stdout.take().expect("piped").read_to_string(&mut out).expect("text");
        self.psql.stderr.take().expect("piped").read_to_string(&mut err).expect("text");
        assert!(!self.psql.wait().expect("can be waited for").success(), "psql succeeded: {out} {err}");
        (out, err)
    }
}

/// A synchronous standby that acknowledges everything, ended on drop.
struct Standby {
    receiver: Child,
    _wal: tempfile::TempDir,
}

impl Standby {
    fn start(hollow: &HollowPg) -> Self {
        let wal = temp_dir();
        let (host, port) = (hollow.server.socket_dir().display(), hollow.server.port());
        let mut command = server_command(program("pg_receivewal"));
        command.arg("-D").arg(wal.path()).args(["--synchronous", "--no-loop", "-d"]);
        command.arg(format!("host={host} port={port} user=postgres application_name=ardent"));
        let receiver = command.stderr(Stdio::null()).spawn().expect("pg_receivewal runs");
        Standby { receiver, _wal: wal }
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        // An error means that it ended with its server.
        let _ = self.receiver.kill();
        let _ = self.receiver.wait();
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

/// A signal that was sent is taken by its process before the process answers a later look at its state, but nothing says
/// when the wait would have ended: look long enough for stock Postgres to have given up (it takes a millisecond).
fn assert_keeps_waiting(waiting: &mut Waiting<'_>) {
    for _ in 0..20 {
        assert!(waiting.still_waits(), "the wait was cut short");
    }
}

#[test]
fn a_cancelled_wait_does_not_become_a_success() {
    let hollow = cluster_without_standby();
    // Statements that end by waiting, and the tag that would tell of their success.
    let cases: [(&[&str], &str); 5] = [
        (&["insert into t values (1)"], "INSERT"),
        (&["begin", "insert into t values (2)", "commit"], "COMMIT"),
        (&["do $$ begin insert into t values (3); commit; end $$"], "DO"),
        (&["begin", "insert into t values (4)", "prepare transaction 'p'"], "PREPARE TRANSACTION"),
        (&["create table u ()"], "CREATE TABLE"),
    ];
    for (statements, tag) in cases {
        let mut waiting = Waiting::start(&hollow, statements);
        for _ in 0..3 {
            hollow.server.sql(&format!("select pg_cancel_backend({})", waiting.pid));
            assert_keeps_waiting(&mut waiting);
        }
        let (out, err) = waiting.terminate();
        assert!(!out.contains(tag), "{statements:?}: success was reported: {out} {err}");
    }
}

#[test]
fn second_phases_wait_as_well() {
    let mut hollow = cluster_without_standby();
    // Prepared while nobody has to be waited for.
    hollow.server.sql("set synchronous_commit = off; begin; insert into t values (1); prepare transaction 'a'");
    hollow.server.sql("set synchronous_commit = off; begin; insert into t values (2); prepare transaction 'b'");
    for (statement, tag) in [("commit prepared 'a'", "COMMIT PREPARED"), ("rollback prepared 'b'", "ROLLBACK PREPARED")]
    {
        let mut waiting = Waiting::start(&hollow, &[statement]);
        hollow.server.sql(&format!("select pg_cancel_backend({})", waiting.pid));
        assert_keeps_waiting(&mut waiting);
        let (out, err) = waiting.terminate();
        assert!(!out.contains(tag), "{statement}: success was reported: {out} {err}");
    }
    // The server itself is not stuck.
    hollow.server.stop(ardent_test_pg::StopMode::Immediate);
}

#[test]
fn timeouts_do_not_cut_the_wait_short() {
    let hollow = cluster_without_standby();
    // A statement timeout runs on over a commit inside a procedure, nowhere else.
    let statements = ["set statement_timeout = '300ms'", "do $$ begin insert into t values (1); commit; end $$"];
    let started = Instant::now();
    let mut waiting = Waiting::start(&hollow, &statements);
    until("the timeout has passed", || {
        assert!(waiting.still_waits(), "the wait was cut short");
        started.elapsed() > Duration::from_millis(700)
    });
    let (out, err) = waiting.terminate();
    assert!(!out.contains("DO"), "success was reported: {out} {err}");
}

#[test]
fn a_cancellation_that_came_during_a_commit_is_served_afterwards() {
    let hollow = cluster_without_standby();
    let statements = ["do $$ begin insert into t values (1); commit; perform pg_sleep(100); end $$"];
    let waiting = Waiting::start(&hollow, &statements);
    hollow.server.sql(&format!("select pg_cancel_backend({})", waiting.pid));
    let _standby = Standby::start(&hollow);
    let output = waiting.psql.wait_with_output().expect("psql ends");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.contains("canceling statement due to user request"), "{err}");
    assert_eq!(hollow.server.sql("select count(*) from t"), "1");
}

#[test]
fn a_large_transaction_waits_for_the_quorum_before_it_fills_the_disk() {
    let prepare = |server: &ardent_test_pg::TestPg| {
        server.sql("create table t (id int)");
    };
    let settings = [("synchronous_standby_names", "ardent"), ("ardent.unacknowledged_wal_max", "1MB")];
    let hollow = HollowPg::start(prepare, &settings);
    let insert = "insert into t select generate_series(1, 1000)";
    let failed = hollow.server.try_sql_in("postgres", &format!("set statement_timeout = '200ms'; {insert}"));
    assert!(failed.expect_err("it waits").contains("statement timeout"));
    let psql = hollow.psql("postgres").args(["-c", insert]).stdout(Stdio::piped()).spawn().expect("psql runs");
    let braked = "select count(*) from pg_stat_activity where wait_event_type = 'Extension' and query like 'insert%'";
    until("the insert waits", || hollow.server.sql(braked) == "1");
    let _standby = Standby::start(&hollow);
    let output = psql.wait_with_output().expect("psql ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "INSERT 0 1000");
}

#[test]
fn a_second_phase_that_fails_does_not_leave_the_session_deaf() {
    let hollow = cluster_without_standby();
    for refused in
        ["commit prepared 'none'", "do $$ begin commit prepared 'none'; exception when others then perform 1; end $$"]
    {
        let statements = format!(
            "set statement_timeout = '200ms'; begin; do $d$ begin execute $q$ {refused} $q$; exception when others then perform pg_sleep(60); end $d$"
        );
        let failed = hollow.server.try_sql_in("postgres", &statements).expect_err("it times out");
        assert!(failed.contains("statement timeout"), "{failed}");
    }
}
