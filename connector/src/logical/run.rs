//! A logical connector's life: from nothing, or from where it was interrupted, to following production.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::try_join;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use ardent_pg_wire::SlotLifetime;
use ardent_sql_script::{PsqlCommands, Script};
use ardent_types::Lsn;
use ardent_types::sql::{qualified, quoted};

use crate::logical::apply::ONE_BY_ONE;
use crate::logical::config::{LogicalConfig, RootBranch};
use crate::logical::copy::{CopyProgress, Moment, copy_tables, encode};
use crate::logical::dump_statement::{Weight, for_root, makes_index, summary, weight};
use crate::logical::enums::bring_labels;
use crate::logical::error::{LogicalError, root, source};
use crate::logical::lookout::Lookout;
use crate::logical::new_tables::left_out_rows;
use crate::logical::outside::left_out_everywhere;
use crate::logical::publication::published;
use crate::logical::relation::is_on_root;
use crate::logical::rewrites::files;
use crate::logical::root_sessions::RootSessions;
use crate::logical::same_columns::{SameColumns, SourceNumbers};
use crate::logical::schema::RootDatabase;
use crate::logical::session::{connect_root, connect_source};
use crate::logical::state::{LogicalPhase, LogicalState, TableState};
pub use crate::logical::status::LogicalStatus;
use crate::logical::stream::Stream;
use crate::logical::tables::{SourceTable, is_followed, tables};
use crate::logical::waits::telling_waits;
use crate::logical::{schema, sequences, slot};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// How often a copy's progress is told.
const PROGRESS: Duration = Duration::from_millis(200);
/// What says of a statement that it was run before: duplicate table or index, duplicate object, a second primary key, attached already.
const ALREADY: [&str; 4] = ["42P07", "42710", "42P16", "55000"];

/// What a running connector can be asked.
#[derive(Debug)]
pub(crate) enum Request {
    /// To say when all below this is on the root.
    Reach(Lsn, oneshot::Sender<()>),
    /// To stop applying at a point that is still to come.
    Hold(Hold),
    /// To take note of production's columns, and of the files that its tables are in, by their OIDs.
    Seen(HashMap<u32, SourceNumbers>),
}

/// Stops applying at once, goes on to a point that is said then, and stops there.
#[derive(Debug)]
pub(crate) struct Hold {
    /// Told when nothing is applied any more.
    pub paused: oneshot::Sender<()>,
    /// Where to stop. Dropped: nowhere.
    pub until: oneshot::Receiver<Lsn>,
    /// Told when all before that point is on the root, and nothing behind it. It goes on when this is dropped.
    pub held: oneshot::Sender<oneshot::Sender<()>>,
}

/// A connector that applies nothing until it is told where to stop.
#[derive(Debug)]
pub(crate) struct Paused {
    until: oneshot::Sender<Lsn>,
    held: oneshot::Receiver<oneshot::Sender<()>>,
}

impl Paused {
    /// Goes on to `lsn` and stops there. What it gives is to be dropped for it to go on.
    pub async fn hold_at(self, lsn: Lsn) -> Result<oneshot::Sender<()>, LogicalError> {
        self.until.send(lsn).map_err(|_| not_running())?;
        self.held.await.map_err(|_| not_running())
    }
}

/// The way to a running connector.
#[derive(Clone, Debug)]
pub struct LogicalHandle {
    requests: mpsc::Sender<Request>,
    looks: mpsc::Sender<oneshot::Sender<()>>,
    status: watch::Receiver<LogicalStatus>,
}

/// A connector that has yet to be run.
#[derive(Debug)]
pub struct LogicalRun {
    handle: LogicalHandle,
    requests: mpsc::Receiver<Request>,
    looks: mpsc::Receiver<oneshot::Sender<()>>,
    status: watch::Sender<LogicalStatus>,
}

/// A connector and the way to it. `last`: how it was when it ran last, which holds until more is known.
pub fn logical_connector(last: Option<LogicalStatus>) -> (LogicalHandle, LogicalRun) {
    let (requests_in, requests) = mpsc::channel(16);
    let (looks_in, looks) = mpsc::channel(16);
    let last = last.unwrap_or_default();
    let last = LogicalStatus { is_streaming: false, last_error: None, waits_for: Vec::new(), ..last };
    let (status, status_out) = watch::channel(last);
    let handle = LogicalHandle { requests: requests_in, looks: looks_in, status: status_out };
    (handle.clone(), LogicalRun { handle, requests, looks, status })
}

impl LogicalHandle {
    /// How it is.
    pub fn status(&self) -> LogicalStatus {
        self.status.borrow().clone()
    }

    /// To be told of changes.
    pub fn watch(&self) -> watch::Receiver<LogicalStatus> {
        self.status.clone()
    }

    /// Has production's schema looked at, so that the status says what is there now; a look that has begun within the last second will do.
    /// Cancelled: one that has not begun is not made for this.
    pub async fn look(&self) -> Result<(), LogicalError> {
        let (reply, answer) = oneshot::channel();
        let asked = self.looks.send(reply).await;
        if asked.is_ok() && answer.await.is_ok() { Ok(()) } else { Err(not_looked()) }
    }

    pub(crate) async fn reach(&self, lsn: Lsn) -> Result<(), LogicalError> {
        let (reply, answer) = oneshot::channel();
        let asked = self.requests.send(Request::Reach(lsn, reply)).await;
        if asked.is_ok() && answer.await.is_ok() { Ok(()) } else { Err(not_running()) }
    }

    /// Tells what production's tables were found to be.
    pub(crate) async fn tell_seen(&self, seen: HashMap<u32, SourceNumbers>) -> Result<(), LogicalError> {
        self.requests.send(Request::Seen(seen)).await.map_err(|_| not_running())
    }

    /// Stops applying. It goes on when what this gives is dropped.
    pub(crate) async fn pause(&self) -> Result<Paused, LogicalError> {
        let (paused, is_paused) = oneshot::channel();
        let (until_in, until) = oneshot::channel();
        let (held_in, held) = oneshot::channel();
        let hold = Hold { paused, until, held: held_in };
        self.requests.send(Request::Hold(hold)).await.map_err(|_| not_running())?;
        is_paused.await.map_err(|_| not_running())?;
        Ok(Paused { until: until_in, held })
    }
}

fn not_running() -> LogicalError {
    LogicalError::Refused(
        "the connector is not following production at this moment: see ardent connector status".into(),
    )
}

fn not_looked() -> LogicalError {
    LogicalError::Refused(
        "production's schema was not looked at: the connector is not following production at this moment, or that has failed: ardent \
         connector status says why, once it lasts"
            .into(),
    )
}

impl LogicalRun {
    /// Imports what is not imported yet, then applies changes, until cancelled. Reconnects by itself, with growing pauses; an error
    /// is one that waiting doesn't mend.
    pub async fn run(
        mut self,
        config: &LogicalConfig,
        branch: Arc<dyn RootBranch>,
        cancel: CancellationToken,
    ) -> Result<(), LogicalError> {
        let mut backoff = BACKOFF_MIN;
        let mut is_one_by_one = false;
        loop {
            let (began, applied) = (Instant::now(), self.status.borrow().applied_lsn);
            let error = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                ended = self.attempt(config, &branch, is_one_by_one) => ended.err().unwrap_or(LogicalError::Replication(
                    crate::error::ConnectorError::StreamEnded,
                )),
            };
            let text = error.chain();
            self.status.send_modify(|status| status.is_streaming = false);
            let mut labels = Ok(0);
            if error.is_unknown_label() {
                labels = bring_labels(config, branch.as_ref()).await;
                // What was added is what was missing, or the next attempt says the same.
                if labels.as_ref().is_ok_and(|added| *added > 0) {
                    continue;
                }
            }
            let has_gone_on = began.elapsed() > ONE_BY_ONE && self.status.borrow().applied_lsn > applied;
            if error.is_of_a_change() && (!is_one_by_one || has_gone_on) {
                // What was applied together with it is gone again, and may be of the table's form before. Nobody is told, and can mend the
                // table, before all of that is done.
                tracing::info!(error = %text, "a change was refused: what came before it is applied by itself");
                is_one_by_one = true;
                continue;
            }
            self.status.send_modify(|status| status.last_error = Some(text.clone()));
            match labels {
                Err(other) if other.is_retryable() => {
                    tracing::warn!(error = %other.chain(), "labels of enums cannot be compared");
                }
                _ if !error.is_retryable() => return Err(error),
                _ => {}
            }
            tracing::warn!(error = %text, "following production was interrupted");
            if began.elapsed() > BACKOFF_MAX {
                backoff = BACKOFF_MIN;
            }
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(BACKOFF_MAX),
            }
        }
    }

    async fn attempt(
        &mut self,
        config: &LogicalConfig,
        branch: &Arc<dyn RootBranch>,
        is_one_by_one: bool,
    ) -> Result<(), LogicalError> {
        let state = LogicalState::read(branch.as_ref())?;
        let mut import = Import {
            config,
            branch,
            status: &self.status,
            database: config.connector.connect_config()?.database().to_owned(),
            state,
        };
        import.tell();
        let is_resumed = import.state.phase == LogicalPhase::Index;
        if import.state.phase == LogicalPhase::Schema {
            let moment = import.begin().await?;
            import.copy(Some(moment)).await?;
        }
        if import.state.phase == LogicalPhase::Copy {
            import.copy(None).await?;
        }
        if import.state.phase == LogicalPhase::Index {
            import.index(is_resumed).await?;
        }
        if import.state.phase == LogicalPhase::Follow {
            import.learn_from_root().await?;
        }
        let mut stream = Stream::start(config, branch, &import.database, &mut import.state, &self.status).await?;
        if is_one_by_one {
            stream.apply_one_by_one();
        }
        if import.state.phase == LogicalPhase::CatchUp {
            stream.follow(&mut self.requests, Some(import.state.consistent_from())).await?;
            // Names that tables were given meanwhile are kept there.
            import.state = LogicalState::read(branch.as_ref())?;
            import.finish_phase(LogicalPhase::Constraints)?;
        }
        if import.state.phase == LogicalPhase::Constraints {
            // Changes wait: production keeps them, and is told that we live.
            let finishing = import.constrain();
            stream.alive(finishing).await??;
        }
        let looking = Lookout::new(config, branch, self.handle.clone(), &self.status, &mut self.looks).run();
        tokio::select! {
            ended = stream.follow(&mut self.requests, None) => ended,
            stopped = looking => Err(stopped),
        }
    }
}

fn says_already(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| ALREADY.contains(&code.code()))
}

/// The steps of an import.
struct Import<'a> {
    config: &'a LogicalConfig,
    branch: &'a Arc<dyn RootBranch>,
    status: &'a watch::Sender<LogicalStatus>,
    database: String,
    state: LogicalState,
}

impl Import<'_> {
    fn tell(&self) {
        self.status.send_modify(|status| {
            status.phase = self.state.phase;
            status.tables = self.state.tables.len();
            status.left_out = self.state.left_out.clone();
            status.progress = (0, 0);
        });
    }

    fn save(&self) -> Result<(), LogicalError> {
        self.branch.save(&encode(&self.state)).map_err(LogicalError::Branch)
    }

    fn finish_phase(&mut self, next: LogicalPhase) -> Result<(), LogicalError> {
        self.state.phase = next;
        self.save()?;
        self.tell();
        Ok(())
    }

    /// Takes note of what somebody has done on the root by hand: of a table that production has dropped nothing is followed any more,
    /// what is still to come of it is passed over; one that production has renamed goes by that name.
    async fn learn_from_root(&mut self) -> Result<(), LogicalError> {
        const NAMES: &str = "select c.oid, n.nspname::text, c.relname::text from pg_catalog.pg_class c \
             join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = any ($1)";
        let production = connect_source(&self.config.connector.url).await?;
        let all: Vec<u32> = self.state.tables.keys().copied().collect();
        let names = production.query(NAMES, &[&all]).await.map_err(source("looking for its tables"))?;
        let names: BTreeMap<u32, (String, String)> =
            names.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
        let has_moved = |&(oid, table): &(&u32, &TableState)| {
            names.get(oid).is_none_or(|(schema, name)| (schema, name) != (&table.schema, &table.name))
        };
        let mut moved: Vec<u32> = self.state.tables.iter().filter(has_moved).map(|(oid, _)| *oid).collect();
        if moved.is_empty() {
            return Ok(());
        }
        let client = self.root().await?;
        // A name that is found to be another table's is that of none of the others.
        loop {
            let before = moved.len();
            for oid in std::mem::take(&mut moved) {
                if !self.learn_of(&client, oid, names.get(&oid)).await? {
                    moved.push(oid);
                }
            }
            if moved.len() == before {
                break;
            }
        }
        self.save()?;
        self.tell();
        Ok(())
    }

    /// Whether the root has no table by the name that is known, and what is to be followed instead was found.
    async fn learn_of(
        &mut self,
        client: &Client,
        oid: u32,
        now: Option<&(String, String)>,
    ) -> Result<bool, LogicalError> {
        let TableState { schema, name, .. } = self.state.tables[&oid].clone();
        if !self.state.is_anothers(oid, &schema, &name) && is_on_root(client, &schema, &name).await? {
            return Ok(false);
        }
        let Some((schema, name)) = now else {
            tracing::info!(schema, name, "a table that was dropped is followed no more");
            self.state.tables.remove(&oid);
            self.state.passed_over.insert(oid);
            return Ok(true);
        };
        if !is_on_root(client, schema, name).await? {
            return Ok(false);
        }
        tracing::info!(schema, name, "a table goes by its new name");
        if let Some(table) = self.state.tables.get_mut(&oid) {
            table.schema.clone_from(schema);
            table.name.clone_from(name);
        }
        Ok(true)
    }

    async fn root(&self) -> Result<Arc<Client>, LogicalError> {
        let at = self.branch.wake().await.map_err(LogicalError::Branch)?;
        connect_root(&at, &self.database).await
    }

    /// Publication, slot, and the schema as it was when the slot was made. Whatever an interrupted attempt left is replaced.
    async fn begin(&mut self) -> Result<Moment, LogicalError> {
        // Remembered before anything is done there.
        let here = match self.branch.saved().map_err(LogicalError::Branch)? {
            None => RootDatabase::Fresh,
            Some(_) => RootDatabase::Used,
        };
        self.save()?;
        let waking = self.branch.wake();
        let waking = async { waking.await.map_err(LogicalError::Branch) };
        // The root's Postgres starts while production is asked.
        let (at, (moment, seen, dump)) = try_join(waking, self.begin_on_production()).await?;
        schema::make_database(&seen, &at, &self.database, here, &mut self.state.left_out).await?;
        let client = connect_root(&at, &self.database).await?;
        schema::load_before_rows(&client, &dump.before_rows, &mut self.state.left_out).await?;
        self.branch.save_script(&dump.after_rows).map_err(LogicalError::Branch)?;
        self.finish_phase(LogicalPhase::Copy)?;
        Ok(moment)
    }

    /// The moment that rows are copied as of, a session that sees it, and the schema as it was.
    async fn begin_on_production(&mut self) -> Result<(Moment, Client, schema::Dump), LogicalError> {
        let connector = &self.config.connector;
        let production = connect_source(&connector.url).await?;
        let name = connector.slot_name();
        slot::drop_both(&production, &name).await?;
        let found = tables(&production, &self.config.options).await?;
        self.state = LogicalState::default();
        for table in &found {
            let full_name = format!("{}.{}", table.schema, table.name);
            if !table.is_logged {
                self.state
                    .left_out
                    .push(format!("{}it is unlogged, so its changes are not sent", left_out_rows(&full_name)));
            } else if !table.has_identity {
                self.state.left_out.push(format!("{}it has no replica identity", left_out_rows(&full_name)));
            }
        }
        let followed: Vec<_> = found.into_iter().filter(is_followed).collect();
        let names: Vec<String> = followed.iter().map(|table| format!("only {}", table.quoted())).collect();
        let list = if names.is_empty() { String::new() } else { format!(" for table {}", names.join(", ")) };
        // Before the slot: decoding looks it up as of then.
        let publish = format!("create publication {}{list}", quoted(&name));
        production.batch_execute(&publish).await.map_err(source("making the publication"))?;
        self.state.left_out.extend(left_out_everywhere(&production, &self.config.options).await?);
        let moment = self.moment(&name, SlotLifetime::Permanent).await?;
        for table in followed {
            let SourceTable { schema, name, bytes, .. } = table;
            let kept = TableState { schema, name, bytes, copied_at: None, columns: SameColumns::default() };
            self.state.tables.insert(table.oid, kept);
        }
        let seen = moment.session(&connector.url).await?;
        self.state.confirmed_lsn = Some(moment.slot.consistent_lsn);
        let names = self.state.names();
        self.state.publication = Some(published(&production, &name, &names).await?);
        self.state.files = files(&seen, &names.into_keys().collect::<Vec<u32>>()).await?;
        let major = schema::major(&seen).await?;
        let dump = schema::dump(self.config, major, &moment.slot.snapshot).await?;
        Ok((moment, seen, dump))
    }

    async fn moment(&self, slot: &str, lifetime: SlotLifetime) -> Result<Moment, LogicalError> {
        let tell = |waits_for: Vec<String>| {
            self.status.send_if_modified(|status| {
                let is_news = status.waits_for != waits_for;
                status.waits_for = waits_for;
                is_news
            });
        };
        telling_waits(&self.config.connector.url, Moment::take(self.config, slot, lifetime), tell).await
    }

    /// The tables' rows. Those that are left after an interruption are copied as of another moment.
    async fn copy(&mut self, moment: Option<Moment>) -> Result<(), LogicalError> {
        if self.state.tables.values().any(|table| table.copied_at.is_none()) {
            let moment = match moment {
                Some(moment) => moment,
                None => {
                    let name = format!("{}_copy", self.config.connector.slot_name());
                    self.moment(&name, SlotLifetime::Temporary).await?
                }
            };
            let progress = Arc::new(CopyProgress::default());
            let (before, all) = self.state.bytes();
            let state = Arc::new(Mutex::new(self.state.clone()));
            let copying = copy_tables(self.config, self.branch, moment, &state, &progress);
            tokio::pin!(copying);
            let mut tick = tokio::time::interval(PROGRESS);
            loop {
                tokio::select! {
                    done = &mut copying => break done?,
                    _ = tick.tick() => {
                        let done = before + progress.bytes.load(Ordering::Relaxed);
                        self.status.send_modify(|status| status.progress = (done.min(all), all));
                    }
                }
            }
            self.state = state.lock().clone();
        }
        self.finish_phase(LogicalPhase::Index)
    }

    /// Indexes, keys, triggers: all of the script but foreign keys. Indexes and keys that follow one another are made side by side.
    /// `is_resumed`: an interruption may have come before what was done was remembered.
    async fn index(&mut self, is_resumed: bool) -> Result<(), LogicalError> {
        let script = self.branch.script().map_err(LogicalError::Branch)?;
        let all = Script::parse(script.as_bytes(), PsqlCommands::Skipped)?;
        let mut sessions = RootSessions::new(self.branch, &self.database).await?;
        let total = all.len() as u64;
        let done = self.state.script_done;
        let mut steps = all.statements().enumerate().peekable();
        let mut may_be_there = is_resumed;
        while let Some((index, statement)) = steps.next() {
            let kind = weight(statement);
            if kind == Weight::Setting {
                sessions.set(statement).await?;
            }
            if index < done || matches!(kind, Weight::Setting | Weight::ForeignKey) {
                continue;
            }
            let mut last = index;
            let mut together: Vec<String> = for_root(statement).into_iter().collect();
            if makes_index(statement) {
                while let Some((index, statement)) = steps.next_if(|(_, statement)| makes_index(statement)) {
                    together.extend(for_root(statement));
                    last = index;
                }
            }
            self.status.send_modify(|status| status.progress = (index as u64, total));
            let tell = || self.status.send_modify(|status| status.progress.0 += 1);
            for outcome in sessions.run(&together, &tell).await? {
                match outcome {
                    Err(LogicalError::Schema { source, .. }) if may_be_there && says_already(&source) => {}
                    outcome => {
                        let left_out = outcome?.into_iter();
                        self.state
                            .left_out
                            .extend(left_out.filter(|text| !may_be_there || !text.ends_with("already exists")));
                    }
                }
            }
            may_be_there = false;
            self.state.script_done = last + 1;
            self.save()?;
        }
        self.finish_phase(LogicalPhase::CatchUp)
    }

    /// What can only be when all tables are of one moment: foreign keys, and the content of materialized views.
    async fn constrain(&mut self) -> Result<(), LogicalError> {
        let script = self.branch.script().map_err(LogicalError::Branch)?;
        let client = self.root().await?;
        let before = self.state.left_out.len();
        for statement in Script::parse(script.as_bytes(), PsqlCommands::Skipped)?.statements() {
            match weight(statement) {
                Weight::ForeignKey => schema::run(&client, statement, &mut self.state.left_out).await?,
                Weight::Setting => schema::run(&client, statement, &mut self.state.left_out).await?,
                Weight::Needed | Weight::Wished => {}
            }
        }
        // One that an interrupted attempt made is there.
        let mut index = 0;
        self.state.left_out.retain(|text| {
            index += 1;
            index <= before || !text.ends_with("already exists")
        });
        self.fill_views(&client).await?;
        let production = connect_source(&self.config.connector.url).await?;
        sequences::bring_up(&production, &client, &self.config.options).await?;
        self.analyze(&client).await?;
        self.finish_phase(LogicalPhase::Follow)
    }

    /// Counts rows and values of all tables that came, several at a time.
    async fn analyze(&mut self, client: &Client) -> Result<(), LogicalError> {
        const TABLES: &str = "select n.nspname::text, c.relname::text from pg_catalog.pg_class c \
             join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.relkind in ('r', 'm', 'p') \
             and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' order by c.relpages desc, c.oid";
        let tables = client.query(TABLES, &[]).await.map_err(root("listing tables"))?;
        let statements: Vec<String> =
            tables.iter().map(|row| format!("analyze {}", qualified(row.get(0), row.get(1)))).collect();
        let mut sessions = RootSessions::new(self.branch, &self.database).await?;
        for outcome in sessions.run(&statements, &|| ()).await? {
            self.state.left_out.extend(outcome?);
        }
        Ok(())
    }

    /// Fills materialized views that production has filled, each after those that it reads.
    async fn fill_views(&mut self, client: &Client) -> Result<(), LogicalError> {
        const FILLED: &str = "select n.nspname::text, c.relname::text from pg_catalog.pg_class c \
             join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.relkind = 'm' and c.relispopulated = $1";
        let production = connect_source(&self.config.connector.url).await?;
        let filled = production.query(FILLED, &[&true]).await.map_err(source("listing materialized views"))?;
        let empty = client.query(FILLED, &[&false]).await.map_err(root("listing materialized views"))?;
        let name = |row: &tokio_postgres::Row| (row.get::<_, String>(0), row.get::<_, String>(1));
        let filled: Vec<_> = filled.iter().map(name).collect();
        let mut waiting: Vec<_> = empty.iter().map(name).filter(|name| filled.contains(name)).collect();
        loop {
            let mut refused = Vec::new();
            for (schema, name) in &waiting {
                let refresh = format!("refresh materialized view {}", qualified(schema, name));
                if let Err(error) = client.batch_execute(&refresh).await {
                    let why = LogicalError::Schema { statement: summary(&refresh), source: error };
                    if why.is_retryable() {
                        return Err(why);
                    }
                    refused.push(((schema.clone(), name.clone()), why.chain()));
                }
            }
            if refused.is_empty() {
                return Ok(());
            }
            if refused.len() == waiting.len() {
                self.state.left_out.extend(refused.into_iter().map(|(_, why)| why));
                return Ok(());
            }
            waiting = refused.into_iter().map(|(name, _)| name).collect();
        }
    }
}
