//! The databases that a round trip takes, on a server: the branch point, the branch, and the target.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Stdio;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ardent_api::page_service::{BlockRange, ChangedRelation};
use ardent_change_set::{Applied, ApplyError, ApplyOptions, apply, prepare};
use ardent_diff::{ChangeSet, CompareOptions, Identity, Session, compare};
use ardent_test_pg::{RandomTables, TestPg, TestPgOptions, differing_lines, program, rows, server_command, state};
use ardent_types::{ForkNumber, RelTag, oid};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// Beside what random tables need.
const SCHEMA: &str = "
    create table app.users (id int generated always as identity primary key, name text, mail text unique, mood app.mood default 'good',
        home app.place, age app.positive, tags text[], data jsonb, raw bytea, at timestamptz, span int4range, price numeric(10, 2),
        twice int generated always as (id * 2) stored, flag boolean, code char(6));
    insert into app.users (name, mail, mood, home, age, tags, data, raw, at, span, price, flag, code)
        select 'user ' || n, n || '@x', 'bad', row('a \"street', n)::app.place, n, array['a', 'b,c', null], jsonb_build_object('n', n), '\\xdeadbeef',
               '2026-01-01', int4range(n, n + 5), n / 7.0, n % 2 = 0, 'c' || n from generate_series(1, 60) n;
    create table app.orders (id bigserial primary key, user_id int references app.users on delete cascade, note text, total int default 0);
    insert into app.orders (user_id, note, total) select n % 60 + 1, 'order ' || n, n from generate_series(1, 150) n;
    create table app.tree (id int primary key, above int references app.tree, label text);
    insert into app.tree select n, nullif(n / 2, 0), 'node ' || n from generate_series(1, 40) n;
    create table app.keyless (a int, b text, c json);
    insert into app.keyless select n % 5, repeat('x', n % 3), '{\"a\": 1}' from generate_series(1, 30) n;
    create table app.unique_only (code text not null unique, v int);
    insert into app.unique_only select 'c' || n, n from generate_series(1, 20) n;
    create table app.events (id int, at date, note text, primary key (id, at)) partition by range (at);
    create table app.events_a partition of app.events for values from ('2026-01-01') to ('2026-07-01');
    create table app.events_b partition of app.events for values from ('2026-07-01') to ('2027-01-01');
    insert into app.events select n, date '2026-01-01' + n * 3, 'event ' || n from generate_series(1, 100) n;
    create table app.fat (id int primary key, body text);
    alter table app.fat alter body set storage external;
    insert into app.fat select n, repeat(md5(n::text), 300) from generate_series(1, 6) n;
    create table app.seats (id int primary key, seat text not null unique, place int not null, floor int not null, unique (floor, place));
    insert into app.seats select n, 's' || n, n % 10, n / 10 from generate_series(1, 40) n;
    create table app.kinds (id int primary key, f8 float8, f4 float4, n numeric, iv interval, u uuid, ip inet, b bit(4), vb varbit, ts timestamp, tz timetz,
        r numrange, mr int4multirange, p point, j json, jb jsonb, grid int[][], places app.place[], positives app.positive[], moods app.mood[], tsv tsvector,
        m money, mac macaddr, o oid, nm name, c \"char\", lsn pg_lsn, path text generated always as (u::text || '/' || coalesce(o::text, '')) stored);
    insert into app.kinds select k, 'NaN', 'Infinity', 'NaN', '1 year 2 mons -3 days 04:05:06.7', md5(k::text)::uuid, '10.0.0.1/8', '1010', '101', 'infinity', '12:00+02',
        numrange(k, null), int4multirange(int4range(1, 3), int4range(k + 5, k + 9)), point(k, -0.0), '{\"a\": [1, null]}', '{\"a\": {\"b\": \"ü\"}}', array[[1, 2], [3, null]],
        array[row('a,\"b', k)::app.place, null], array[k]::app.positive[], '{bad,good}', to_tsvector('simple', 'a word ' || k), k * 1.25, '08:00:2b:01:02:03', k, 'name ' || k, 'x', '0/16B3748'
        from generate_series(1, 20) k;
    create table app.log (id serial primary key, what text);
    create function app.log() returns trigger language plpgsql as $$ begin insert into app.log (what) values (tg_op); return null; end $$;
    create trigger log after insert or update or delete on app.orders for each row execute function app.log();
    create sequence app.numbers;
    create view app.rich as select id, name from app.users where price > 3;
    create materialized view app.totals as select user_id, sum(total) as total from app.orders group by user_id;
    select lo_from_bytea(7001, '\\x000102'), lo_from_bytea(7002, decode(repeat('ab', 5000), 'hex')), lo_from_bytea(7003, '\\x00');
";

/// A change set as people see it who must find out what is wrong with it.
pub fn script(set: &ChangeSet) -> String {
    let mut out = Vec::new();
    ardent_change_set::script(&mut out, set).expect("memory can be written");
    String::from_utf8_lossy(&out).into_owned()
}

/// The database that all pairs of a server are copies of.
const FIXED: &str = "fixed";
/// Held while it is made.
static MAKING: Mutex<()> = Mutex::new(());
/// The first word of the names of a pair's databases on the server.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// Longest wait for a session's end.
const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(1);

/// Databases are named by what they are for: `base` is the branch point, `head` the branch, others as a test likes.
pub struct Pair {
    server: Arc<TestPg>,
    prefix: String,
    runtime: Runtime,
    /// Of the test's own statements, by database.
    sessions: RefCell<BTreeMap<String, Client>>,
    /// What is in each database, once somebody asks. Copies have it together, until one is changed.
    states: RefCell<BTreeMap<String, Rc<OnceCell<String>>>>,
}

impl Pair {
    pub fn new() -> Pair {
        Pair::on(TestPg::shared())
    }

    /// On a server of its own: for what is not in a database, as roles are.
    pub fn alone() -> Pair {
        Pair::on(Arc::new(TestPg::start(TestPgOptions::default())))
    }

    fn on(server: Arc<TestPg>) -> Pair {
        {
            let _making = MAKING.lock().expect("the fixed database could be made");
            if server.sql(&format!("select count(*) from pg_database where datname = '{FIXED}'")) == "0" {
                server.sql(&format!("create database {FIXED}"));
                server.sql_in(FIXED, RandomTables::BEFORE);
                server.sql_in(FIXED, SCHEMA);
            }
        }
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let prefix = format!("p{}_", NEXT.fetch_add(1, Ordering::Relaxed));
        let pair = Pair { server, prefix, runtime, sessions: RefCell::default(), states: RefCell::default() };
        pair.copy(FIXED, "base");
        pair
    }

    /// What a database is called on the server.
    fn named(&self, database: &str) -> String {
        match database {
            FIXED | "postgres" => database.to_owned(),
            own => format!("{}{own}", self.prefix),
        }
    }

    fn url(&self, database: &str) -> String {
        self.server.socket_url(&self.named(database))
    }

    /// Begins anew: the branch point has what every test has, and what these statements make.
    pub fn new_base(&self, statements: &[String]) {
        self.copy(FIXED, "base");
        for statement in statements.iter().filter(|statement| !statement.is_empty()) {
            self.try_sql_in("base", statement).unwrap_or_else(|error| panic!("{error}\n{statement}"));
        }
    }

    pub fn copy(&self, from: &str, to: &str) {
        self.leave(from);
        self.leave(to);
        self.ask("postgres", &format!("drop database if exists {}", self.named(to)));
        self.ask("postgres", &format!("create database {} template {}", self.named(to), self.named(from)));
        let mut states = self.states.borrow_mut();
        let state = states.entry(from.to_owned()).or_default().clone();
        states.insert(to.to_owned(), state);
    }

    /// Waits until nobody is in a database: Postgres copies and drops no other, and looks again only after 100 ms.
    fn leave(&self, database: &str) {
        self.sessions.borrow_mut().remove(database);
        let sessions = format!("select count(*) from pg_stat_activity where datname = '{}'", self.named(database));
        let deadline = Instant::now() + DEADLINE;
        while self.ask("postgres", &sessions) != "0" {
            assert!(Instant::now() < deadline, "sessions in {database} do not end");
            std::thread::sleep(POLL);
        }
    }

    async fn connect(&self, database: &str) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url(database), NoTls).await.expect("connected");
        tokio::spawn(connection);
        client
    }

    /// Changes what is not in a database.
    pub fn sql(&self, sql: &str) {
        self.states.borrow_mut().clear();
        self.ask("postgres", sql);
    }

    /// Runs SQL, and gives the rows as lines, fields separated by `|`.
    pub fn sql_in(&self, database: &str, sql: &str) -> String {
        self.try_sql_in(database, sql).unwrap_or_else(|error| panic!("{sql}\n{error}"))
    }

    fn try_sql_in(&self, database: &str, sql: &str) -> Result<String, String> {
        self.forget(database);
        self.run(database, sql)
    }

    /// [`Pair::sql_in`] of what changes nothing that is in the database.
    fn ask(&self, database: &str, sql: &str) -> String {
        self.run(database, sql).unwrap_or_else(|error| panic!("{sql}\n{error}"))
    }

    fn run(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut sessions = self.sessions.borrow_mut();
        let client =
            sessions.entry(database.to_owned()).or_insert_with(|| self.runtime.block_on(self.connect(database)));
        let answer = self.runtime.block_on(async {
            let answer = client.simple_query(sql).await;
            // The next one finds a session as new as this one did.
            client.batch_execute("discard all").await.expect("no statement leaves a transaction open");
            answer
        });
        match answer {
            Ok(messages) => Ok(lines(&messages)),
            Err(error) => Err(error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string)),
        }
    }

    /// A database is being changed.
    fn forget(&self, database: &str) {
        self.states.borrow_mut().remove(database);
    }

    /// Everything counts as changed: which blocks did is the page server's word.
    pub fn diff(&self) -> ChangeSet {
        self.diff_of("head")
    }

    /// What another database has changed since the branch point.
    pub fn diff_of(&self, head: &'static str) -> ChangeSet {
        self.diff_where(head, "true")
    }

    /// Only catalogs count as changed: no block of the branch's tables is another one.
    pub fn diff_of_catalogs(&self) -> ChangeSet {
        self.diff_where("head", "oid < 16384")
    }

    fn diff_where(&self, head: &'static str, condition: &str) -> ChangeSet {
        self.diff_between("base", head, condition, &CompareOptions::default())
    }

    /// What leads from one branch to another, both of the branch point, if only blocks of such relations are others.
    pub fn diff_by_name(&self, base: &'static str, head: &'static str, condition: &str) -> ChangeSet {
        let options = CompareOptions { identity: Identity::Name, ..CompareOptions::default() };
        self.diff_between(base, head, condition, &options)
    }

    fn diff_between(
        &self,
        base: &'static str,
        head: &'static str,
        condition: &str,
        options: &CompareOptions,
    ) -> ChangeSet {
        let dbnode = self.ask(head, "select oid from pg_database where datname = current_database()");
        let dbnode: u32 = dbnode.parse().expect("an OID");
        let sql = format!(
            "select pg_relation_filenode(oid), pg_relation_size(oid) / 8192 from pg_class \
             where relkind in ('r', 'm', 'S') and pg_relation_filenode(oid) is not null and {condition}"
        );
        let mut changed = Vec::new();
        for side in [base, head] {
            for line in self.ask(side, &sql).lines() {
                let (relnode, count) = line.split_once('|').expect("two fields");
                let (relnode, count): (u32, u32) =
                    (relnode.parse().expect("a number"), count.parse().expect("a number"));
                let rel = RelTag { spcnode: oid::DEFAULT_TABLESPACE, dbnode, relnode, fork: ForkNumber::Main };
                let ranges = vec![BlockRange { start: 0, count: count.max(1) }];
                changed.push(ChangedRelation { rel, nblocks_from: Some(count), nblocks_to: Some(count), ranges });
            }
        }
        self.runtime.block_on(async {
            let (base, _) = Session::open(self.connect(base).await, "branch point", base).await.expect("a session");
            let (head, _) = Session::open(self.connect(head).await, head, head).await.expect("a session");
            compare(&base, &head, dbnode, &changed, options).await.expect("compared")
        })
    }

    pub fn try_apply(&self, database: &str, set: &ChangeSet, options: &ApplyOptions) -> Result<Applied, ApplyError> {
        self.forget(database);
        self.runtime.block_on(async { apply(&self.connect(database).await, set, options, |_| {}).await })
    }

    pub fn apply(&self, database: &str, set: &ChangeSet, options: &ApplyOptions) -> Applied {
        self.try_apply(database, set, options).unwrap_or_else(|error| {
            let cause = std::error::Error::source(&error).map(|source| format!("{source:?}")).unwrap_or_default();
            panic!("{error}: {cause}\n{}", script(set))
        })
    }

    /// While another session keeps everybody out of a table.
    pub fn while_locked<T>(&self, database: &str, table: &str, run: impl FnOnce() -> T) -> T {
        let client = self.runtime.block_on(self.connect(database));
        let lock = format!("begin; lock table {table} in access exclusive mode");
        self.runtime.block_on(client.batch_execute(&lock)).expect("locked");
        let result = run();
        self.runtime.block_on(client.batch_execute("rollback")).expect("answered");
        result
    }

    /// While another session runs a statement again and again, whose answers are given as well.
    pub fn while_repeated<T>(&self, database: &str, sql: &str, run: impl FnOnce() -> T) -> (T, Vec<String>) {
        self.forget(database);
        let (url, is_done) = (self.url(database), AtomicBool::new(false));
        let (begun, has_begun) = std::sync::mpsc::channel();
        let repeat = || {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("connected");
                tokio::spawn(connection);
                let mut answers = Vec::new();
                while !is_done.load(Ordering::Relaxed) {
                    answers.push(lines(&client.simple_query(sql).await.expect("answered")));
                    // Nobody waits for a second one.
                    let _ = begun.send(());
                }
                answers
            })
        };
        std::thread::scope(|scope| {
            let repeating = scope.spawn(repeat);
            has_begun.recv().expect("a first answer");
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            is_done.store(true, Ordering::Relaxed);
            let answers = repeating.join().expect("it ends");
            (result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), answers)
        })
    }

    /// Applies, and ends the session before that is committed.
    pub fn lost_before_commit(&self, database: &str, set: &ChangeSet) -> ApplyError {
        self.forget(database);
        self.runtime.block_on(async {
            let (client, other) = (self.connect(database).await, self.connect(database).await);
            let pid: i32 = client.query_one("select pg_backend_pid()", &[]).await.expect("answered").get(0);
            let prepared = prepare(&client, set, &ApplyOptions::default(), |_| {}).await.expect("no conflict");
            assert!(prepared.changes_target());
            other.batch_execute(&format!("select pg_terminate_backend({pid})")).await.expect("answered");
            while !client.is_closed() {
                tokio::task::yield_now().await;
            }
            prepared.end().await.expect_err("nobody is there who could commit")
        })
    }

    fn state(&self, database: &str) -> String {
        let known = self.states.borrow_mut().entry(database.to_owned()).or_default().clone();
        let ask = |sql: &str| self.ask(database, sql);
        let read = || state(&ask, server_command(program("pg_dump")).arg("-d").arg(self.url(database)));
        known.get_or_init(read).clone()
    }

    /// All rows of all tables, as text.
    pub fn rows(&self, database: &str) -> String {
        rows(&|sql: &str| self.ask(database, sql))
    }

    pub fn assert_equal(&self, got: &str, wanted: &str, what: &str, set: &ChangeSet) {
        let (got, wanted) = (self.state(got), self.state(wanted));
        if got != wanted {
            panic!("{what}: {}\n{}", differing_lines(&wanted, &got), script(set));
        }
    }

    /// A random change of a database's rows; none if nothing fits.
    pub fn random_rows(&self, random: &mut RandomTables, database: &str) -> Option<String> {
        random.of_rows(&|sql: &str| self.ask(database, sql))
    }

    /// A random change of a database's schema; none if nothing fits.
    pub fn random_schema(&self, random: &mut RandomTables, database: &str) -> Option<String> {
        random.of_schema(&|sql: &str| self.ask(database, sql))
    }

    /// Runs each statement of a script on the branch; gives up on none.
    pub fn change(&self, database: &str, statements: &[String]) {
        for statement in statements {
            // One that is refused changes nothing.
            let _ = self.try_sql_in(database, statement);
        }
    }

    /// The script makes the branch's state of the branch point's.
    pub fn assert_scripted(&self, set: &ChangeSet, what: &str) {
        self.copy("base", "scripted");
        self.forget("scripted");
        let connect = format!("\\connect {}", self.named("scripted"));
        let text = script(set).replacen("\\connect head", &connect, 1);
        let mut psql = server_command(program("psql"))
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(self.url("scripted"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("psql runs");
        psql.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
        let output = psql.wait_with_output().expect("psql ends");
        assert!(output.status.success(), "{what}: {}\n{text}", String::from_utf8_lossy(&output.stderr));
        self.assert_equal("scripted", "head", &format!("{what}: by the script"), set);
    }

    pub fn round_trip(&self, what: &str) -> ChangeSet {
        let set = self.diff();
        self.there_and_back(&set, what);
        set
    }

    /// Applied to what the branch point was, and undone.
    pub fn there_and_back(&self, set: &ChangeSet, what: &str) {
        self.copy("base", "target");
        let applied = self.apply("target", set, &ApplyOptions { dry_run: true, ..ApplyOptions::default() });
        assert_eq!(applied.conflicts, [], "{what}\n{}", script(set));
        let applied = self.apply("target", set, &ApplyOptions::default());
        assert_eq!((applied.conflicts, applied.already_there), (vec![], 0), "{what}\n{}", script(set));
        self.assert_equal("target", "head", &format!("{what}: applied"), set);
        let undone = self.apply("target", &applied.inverse, &ApplyOptions::default());
        assert_eq!(undone.conflicts, [], "{what}: undone\n{}", script(&applied.inverse));
        self.assert_equal("target", "base", &format!("{what}: undone"), &applied.inverse);
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let own = format!("select datname from pg_database where starts_with(datname, '{}')", self.prefix);
        for name in self.ask("postgres", &own).lines() {
            self.leave(&name[self.prefix.len()..]);
            self.ask("postgres", &format!("drop database {name}"));
        }
    }
}

/// As psql prints rows without their alignment.
fn lines(messages: &[SimpleQueryMessage]) -> String {
    let line = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|place| row.get(place).unwrap_or_default()).collect::<Vec<_>>().join("|"))
        }
        _ => None,
    };
    messages.iter().filter_map(line).collect::<Vec<_>>().join("\n").trim_end_matches('\n').to_owned()
}
