//! Looks at production's schema from time to time: what is not sent is said, or taken over, before somebody misses it.
//!
//! Whether production still sends all is looked at as well: where it does not, following ends. Nothing of the root's tables is changed by what is seen here: a catalog says how things are by now, the stream how they were at each
//! change. New tables, where they are wanted, come as [`add_tables`] brings them, as of one moment.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;

use ardent_api::control::NewTables;

use crate::logical::config::{LogicalConfig, RootBranch};
use crate::logical::copy::encode;
use crate::logical::drift::changes;
use crate::logical::error::{LogicalError, root, source};
use crate::logical::new_tables::{NewOnProduction, add_tables};
use crate::logical::publication;
use crate::logical::rewrites::{self, Files};
use crate::logical::run::{LogicalHandle, LogicalStatus};
use crate::logical::session::{connect_root, connect_source};
use crate::logical::state::LogicalState;
use crate::logical::tables::tables;

/// How often production is asked whether anything has changed.
const INTERVAL: Duration = Duration::from_secs(15);
/// How long the root may take to have what was committed before the look.
const REACH_PATIENCE: Duration = Duration::from_secs(30);
/// So many looks in a row that fail are no interruption any more: it is said.
const FAILURES_MAX: u32 = 4;
/// How long after one attempt to take tables over failed the next one begins.
const RETRY: Duration = Duration::from_secs(60);

/// One text for what is in the catalogs: another one when a definition has changed. What only moves a table's rows to another file
/// (`TRUNCATE`, a refreshed view), and temporary tables, leave it as it is.
const FINGERPRINT: &str = "
    with schemas as (
        select oid, nspname, xmin::text::bigint as v from pg_catalog.pg_namespace
        where nspname !~ '^pg_' and nspname <> 'information_schema'),
    own as (
        select c.oid, pg_catalog.hashtextextended(pg_catalog.concat_ws(',', c.oid, c.relname, c.relnamespace, c.relkind, c.relpersistence,
            c.relreplident, c.relispartition, c.relowner, c.relacl, c.reloptions, c.relrowsecurity, c.relforcerowsecurity,
            pg_catalog.pg_get_expr(c.relpartbound, c.oid)), 0) as v
        from pg_catalog.pg_class c join schemas s on s.oid = c.relnamespace),
    parts as (
        select 1 as part, v from schemas
        union all select 2, v from own
        union all select 3, xmin::text::bigint from pg_catalog.pg_attribute where attrelid in (select oid from own)
        union all select 4, xmin::text::bigint from pg_catalog.pg_attrdef where adrelid in (select oid from own)
        union all select 5, xmin::text::bigint from pg_catalog.pg_constraint where connamespace in (select oid from schemas)
        union all select 6, xmin::text::bigint from pg_catalog.pg_index where indrelid in (select oid from own)
        union all select 7, xmin::text::bigint from pg_catalog.pg_trigger where tgrelid in (select oid from own)
        union all select 8, xmin::text::bigint from pg_catalog.pg_type where typnamespace in (select oid from schemas)
        union all select 9, xmin::text::bigint from pg_catalog.pg_enum
        union all select 10, xmin::text::bigint from pg_catalog.pg_proc where pronamespace in (select oid from schemas)
        union all select 11, xmin::text::bigint from pg_catalog.pg_policy
        union all select 12, xmin::text::bigint from pg_catalog.pg_inherits where inhrelid in (select oid from own)
        union all select 13, xmin::text::bigint from pg_catalog.pg_description
        union all select 14, xmin::text::bigint from pg_catalog.pg_extension)
    select pg_catalog.string_agg(t.text, ' ' order by t.part) from (
        select part, pg_catalog.concat_ws('/', part, pg_catalog.count(*), pg_catalog.sum(v)) as text from parts group by part) t";

/// The catalogs as they were looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Looked {
    fingerprint: String,
    /// The root's tables, which change as well.
    alterations: u64,
}

/// What a look has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compared {
    Both,
    /// The root has yet to have what production had.
    Nothing,
}

/// Looks for as long as production is followed.
pub(crate) struct Lookout<'a> {
    config: &'a LogicalConfig,
    branch: &'a Arc<dyn RootBranch>,
    handle: LogicalHandle,
    status: &'a watch::Sender<LogicalStatus>,
    production: Option<Client>,
    looked: Option<Looked>,
    /// What the last comparison found; there was none yet: what is told already holds until then.
    changes: Option<Vec<String>>,
    /// The files of the followed tables, as they were found last.
    files: Files,
    /// Looks that have failed since one did not.
    failures: u32,
    /// Tables that can be taken over, as of the last look and of the one before it.
    ripe: Vec<String>,
    ripening: Vec<String>,
    /// Taking tables over has failed, and is not tried again before.
    again_at: Option<Instant>,
}

impl<'a> Lookout<'a> {
    pub fn new(
        config: &'a LogicalConfig,
        branch: &'a Arc<dyn RootBranch>,
        handle: LogicalHandle,
        status: &'a watch::Sender<LogicalStatus>,
    ) -> Self {
        let (ripe, ripening) = (Vec::new(), Vec::new());
        let (production, looked, failures, again_at) = (None, None, 0, None);
        let (changes, files) = (None, Files::new());
        Lookout {
            config,
            branch,
            handle,
            status,
            production,
            looked,
            changes,
            files,
            failures,
            ripe,
            ripening,
            again_at,
        }
    }

    /// Looks until dropped, or until it sees what ends following: that is given. A look that fails is made again; where all fail, that
    /// is said.
    pub async fn run(mut self) -> LogicalError {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.look().await {
                Ok(()) => {
                    self.tell_failure(None);
                    self.add().await;
                }
                Err(error) if error.is_tampering() => return error,
                Err(error) => {
                    let why = error.chain();
                    tracing::debug!(error = %why, "production's schema cannot be looked at");
                    self.looked = None;
                    self.tell_failure(Some(why));
                }
            }
        }
    }

    fn tell_failure(&mut self, why: Option<String>) {
        self.failures = if why.is_some() { self.failures.saturating_add(1) } else { 0 };
        let told = why.filter(|_| self.failures >= FAILURES_MAX);
        self.status.send_if_modified(|status| {
            let is_news = status.look_error != told;
            status.look_error = told;
            is_news
        });
    }

    async fn look(&mut self) -> Result<(), LogicalError> {
        let production = match self.production.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => connect_source(&self.config.connector.url).await?,
        };
        publication::check(&production, &self.config.connector.slot_name(), self.branch.as_ref()).await?;
        self.ripe = self.ripening.clone();
        let before = self.fingerprint(&production).await?;
        if self.looked.as_ref() != Some(&before) {
            let compared = self.compare(&production).await?;
            // What changed meanwhile is looked at next time.
            let after = self.fingerprint(&production).await?;
            self.looked = Some(after).filter(|after| compared == Compared::Both && *after == before);
        }
        self.look_at_files(&production).await?;
        if let Some(told) = self.told(&LogicalState::read(self.branch.as_ref())?) {
            self.status.send_if_modified(|status| {
                let is_news = status.schema_changes != told;
                status.schema_changes = told;
                is_news
            });
        }
        self.production = Some(production);
        Ok(())
    }

    /// All that is to be said of changes, once they were compared.
    fn told(&self, state: &LogicalState) -> Option<Vec<String>> {
        let changes = self.changes.iter().flatten().cloned();
        self.changes.as_ref().map(|_| changes.chain(rewrites::tell(state)).collect())
    }

    async fn fingerprint(&self, production: &Client) -> Result<Looked, LogicalError> {
        let row = production.query_one(FINGERPRINT, &[]).await.map_err(source("looking at its catalogs"))?;
        let alterations = self.status.borrow().alterations;
        Ok(Looked { fingerprint: row.get::<_, Option<String>>(0).unwrap_or_default(), alterations })
    }

    /// Holds production's catalogs against the root's, which has all that was committed before.
    async fn compare(&mut self, production: &Client) -> Result<Compared, LogicalError> {
        const SNAPSHOT: &str = "begin isolation level repeatable read read only";
        production.batch_execute(SNAPSHOT).await.map_err(source("beginning a snapshot"))?;
        let compared = self.compare_in_snapshot(production).await;
        production.batch_execute("rollback").await.map_err(source("ending a snapshot"))?;
        compared
    }

    async fn compare_in_snapshot(&mut self, production: &Client) -> Result<Compared, LogicalError> {
        let found = tables(production, &self.config.options).await?;
        if !self.reach(production).await? {
            return Ok(Compared::Nothing);
        }
        let state = LogicalState::read(self.branch.as_ref())?;
        let new = NewOnProduction::of(&found, &state);
        let at = self.branch.wake().await.map_err(LogicalError::Branch)?;
        let database = self.config.connector.connect_config()?.database().to_owned();
        let client = connect_root(&at, &database).await?;
        let begin = "begin isolation level repeatable read read only";
        client.batch_execute(begin).await.map_err(root("beginning a snapshot"))?;
        let changes = changes(production, &client, &self.config.options, &found, &state).await?;
        self.changes = Some(changes);
        let told = self.told(&state).unwrap_or_default();
        self.ripening = new.can_be_added.iter().map(|table| table.full_name()).collect();
        self.status.send_modify(|status| {
            status.new_tables = self.ripening.clone();
            status.not_followed = new.skipped;
            status.schema_changes = told;
            // Somebody else has taken over what could not be, or it is gone.
            if status.new_tables.is_empty() {
                status.adding_error = None;
            }
        });
        Ok(Compared::Both)
    }

    /// Waits until all that production has committed by now is on the root. Whether it is: how far it is behind is said elsewhere.
    async fn reach(&self, production: &Client) -> Result<bool, LogicalError> {
        let lsn = production.query_one("select pg_catalog.pg_current_wal_insert_lsn()::text", &[]).await;
        let lsn: String = lsn.map_err(source("asking where its log is"))?.get(0);
        let lsn = lsn.parse().map_err(|_| LogicalError::State(format!("production's log is at {lsn:?}")))?;
        match tokio::time::timeout(REACH_PATIENCE, self.handle.reach(lsn)).await {
            Ok(reached) => reached.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// Takes note of tables that production has written anew.
    async fn look_at_files(&mut self, production: &Client) -> Result<(), LogicalError> {
        let state = LogicalState::read(self.branch.as_ref())?;
        let oids: Vec<u32> = state.tables.keys().copied().collect();
        let mut emptied = BTreeSet::new();
        self.status.send_if_modified(|status| {
            emptied.append(&mut status.emptied);
            false
        });
        let found = rewrites::files(production, &oids).await?;
        // Most looks find nothing new.
        if found.iter().all(|(oid, file)| state.files.get(oid) == Some(file)) {
            self.files = found;
            return Ok(());
        }
        if self.reach(production).await? {
            emptied.extend(&self.status.borrow().emptied);
            let mut state = LogicalState::read(self.branch.as_ref())?;
            let before = state.clone();
            rewrites::compare(&mut state, &self.files, &found, &emptied);
            if state != before {
                self.branch.save(&encode(&state)).map_err(LogicalError::Branch)?;
            }
            self.files = found;
        } else {
            self.files.clear();
        }
        Ok(())
    }

    /// Takes over what was there at two looks, so that a migration under way has time to end; where that was asked for.
    async fn add(&mut self) {
        let names: Vec<String> = self.ripe.iter().filter(|name| self.ripening.contains(name)).cloned().collect();
        let is_wanted = self.config.options.new_tables == NewTables::Add && !names.is_empty();
        if !is_wanted || self.again_at.is_some_and(|again_at| Instant::now() < again_at) {
            return;
        }
        match add_tables(self.config, &self.handle, self.branch.as_ref(), &names).await {
            Ok(reply) => {
                tracing::info!(tables = reply.added.join(", "), "new tables of production's are taken over");
                self.again_at = None;
                self.ripening.retain(|name| !reply.added.contains(name));
                self.status.send_modify(|status| {
                    status.new_tables.retain(|name| !reply.added.contains(name));
                    status.adding_error = None;
                });
            }
            Err(error) => {
                let why = error.chain();
                tracing::warn!(error = %why, "new tables of production's cannot be taken over");
                self.status.send_modify(|status| status.adding_error = Some(why));
                self.again_at = Some(Instant::now() + RETRY);
            }
        }
    }
}
