//! Looks at production's schema from time to time, and when somebody asks: what is not sent is said, or taken over, before somebody misses it.
//!
//! Whether production still sends all is looked at as well: where it does not, following ends. Nothing of the root's tables is changed by
//! what is seen here: a catalog says how things are by now, the stream how they were at each change. Which file a table is in is passed on:
//! that nothing was written anew since is as true for changes that are still to come. New tables, where they are wanted, come as [`add_tables`] brings them, as of one moment.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;

use ardent_api::control::NewTables;

use crate::logical::config::{LogicalConfig, RootBranch};
use crate::logical::copy::encode;
use crate::logical::drift::changes;
use crate::logical::error::{LogicalError, root, source};
use crate::logical::new_tables::{NewOnProduction, add_tables};
use crate::logical::publication;
use crate::logical::replaced::{Replaced, ToldReplaced};
use crate::logical::rewrites::{self, Files};
use crate::logical::run::{LogicalHandle, LogicalStatus};
use crate::logical::same_columns::SourceNumbers;
use crate::logical::session::{connect_root, connect_source};
use crate::logical::state::LogicalState;
use crate::logical::tables::tables;

/// How often production is asked whether anything has changed, where nobody wants to know. A table that has been there for so long can be
/// taken over.
const INTERVAL: Duration = Duration::from_secs(15);
/// Whoever asks before so much time has gone by since a look began is told what that one found. So much time is between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the root may take to have what was committed before the look.
const REACH_PATIENCE: Duration = Duration::from_secs(30);
/// Looks that have failed for so long are no interruption any more: it is said.
const FAILING_MAX: Duration = Duration::from_secs(45);
/// How long after one attempt to take tables over failed the next one begins.
const RETRY: Duration = Duration::from_secs(60);

/// Begins a transaction that sees all as it is with this, and not as it is when something is read first.
const SNAPSHOT: &str = "begin isolation level repeatable read read only; select 1";

/// One text for what is in the catalogs: another one when a definition has changed. What only moves a table's rows to another file
/// (`TRUNCATE`, a refreshed view), and temporary tables, leave it as it is.
///
/// Of each catalog it has the number of rows and the sum of a hash of 64 bits of each: of what tells the row from others, and of the
/// transaction that wrote it, which is another one for each change that is seen (and stays the same when the row is frozen or moved).
/// Sums need no order, and those of different rows agree by chance alone, once in 2^64. Of `pg_class`, whose rows are written for much
/// else, it is what definitions are of.
const FINGERPRINT: &str = "
    with schemas as (
        select oid from pg_catalog.pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema'),
    own as (
        select c.oid, pg_catalog.hashtextextended(pg_catalog.concat_ws(',', c.oid, c.relname, c.relnamespace, c.relkind, c.relpersistence,
            c.relreplident, c.relispartition, c.relowner, c.relacl, c.reloptions, t.reloptions, c.relrowsecurity, c.relforcerowsecurity,
            c.relam, c.reltablespace, c.reloftype, pg_catalog.pg_get_expr(c.relpartbound, c.oid)), 0) as hash
        from pg_catalog.pg_class c left join pg_catalog.pg_class t on t.oid = c.reltoastrelid
        where c.relnamespace in (select oid from schemas)),
    written (part, oid, place, version) as (
        select 1, oid, 0, xmin from pg_catalog.pg_namespace where oid in (select oid from schemas)
        union all select 2, attrelid, attnum, xmin from pg_catalog.pg_attribute where attrelid in (select oid from own)
        union all select 3, oid, 0, xmin from pg_catalog.pg_attrdef where adrelid in (select oid from own)
        union all select 4, oid, 0, xmin from pg_catalog.pg_constraint where connamespace in (select oid from schemas)
        union all select 5, indexrelid, 0, xmin from pg_catalog.pg_index where indrelid in (select oid from own)
        union all select 6, oid, 0, xmin from pg_catalog.pg_trigger where tgrelid in (select oid from own)
        union all select 7, oid, 0, xmin from pg_catalog.pg_rewrite where ev_class in (select oid from own)
        union all select 8, seqrelid, 0, xmin from pg_catalog.pg_sequence where seqrelid in (select oid from own)
        union all select 9, inhrelid, inhseqno, xmin from pg_catalog.pg_inherits where inhrelid in (select oid from own)
        union all select 10, ftrelid, 0, xmin from pg_catalog.pg_foreign_table where ftrelid in (select oid from own)
        union all select 11, oid, 0, xmin from pg_catalog.pg_type where typnamespace in (select oid from schemas)
        union all select 12, oid, 0, xmin from pg_catalog.pg_enum
        union all select 13, rngtypid, 0, xmin from pg_catalog.pg_range
        union all select 14, oid, 0, xmin from pg_catalog.pg_proc where pronamespace in (select oid from schemas)
        union all select 15, aggfnoid::oid, 0, xmin from pg_catalog.pg_aggregate
        union all select 16, oid, 0, xmin from pg_catalog.pg_cast
        union all select 17, oid, 0, xmin from pg_catalog.pg_operator where oprnamespace in (select oid from schemas)
        union all select 18, oid, 0, xmin from pg_catalog.pg_opclass where opcnamespace in (select oid from schemas)
        union all select 19, oid, 0, xmin from pg_catalog.pg_opfamily where opfnamespace in (select oid from schemas)
        union all select 20, oid, 0, xmin from pg_catalog.pg_collation where collnamespace in (select oid from schemas)
        union all select 21, oid, 0, xmin from pg_catalog.pg_statistic_ext where stxnamespace in (select oid from schemas)
        union all select 22, oid, 0, xmin from pg_catalog.pg_ts_config where cfgnamespace in (select oid from schemas)
        union all select 23, mapcfg, maptokentype * 256 + mapseqno, xmin from pg_catalog.pg_ts_config_map
        union all select 24, oid, 0, xmin from pg_catalog.pg_ts_dict where dictnamespace in (select oid from schemas)
        union all select 25, oid, 0, xmin from pg_catalog.pg_ts_parser where prsnamespace in (select oid from schemas)
        union all select 26, oid, 0, xmin from pg_catalog.pg_ts_template where tmplnamespace in (select oid from schemas)
        union all select 27, oid, 0, xmin from pg_catalog.pg_foreign_data_wrapper
        union all select 28, oid, 0, xmin from pg_catalog.pg_foreign_server
        union all select 29, oid, 0, xmin from pg_catalog.pg_policy
        union all select 30, oid, 0, xmin from pg_catalog.pg_event_trigger
        union all select 31, oid, 0, xmin from pg_catalog.pg_default_acl
        union all select 32, oid, 0, xmin from pg_catalog.pg_extension
        union all select 33, objoid, classoid::bigint * 4096 + objsubid, xmin from pg_catalog.pg_description),
    parts as (
        select 0 as part, hash from own
        union all select part, pg_catalog.hashoidextended(oid, pg_catalog.hashint8extended(place::bigint, version::text::bigint))
        from written)
    select pg_catalog.string_agg(t.text, ' ' order by t.part) from (
        select part, pg_catalog.concat_ws('/', part, pg_catalog.count(*), pg_catalog.sum(hash)) as text from parts group by part) t";

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
    /// The root has yet to have what production had: it is to be done again.
    Nothing,
}

/// Tables that can be taken over, each with when the look began that found it first.
#[derive(Debug, Default)]
struct Ripening(BTreeMap<String, Instant>);

impl Ripening {
    /// Takes note of all that the look that began then has found. One that is gone, and comes again, is new.
    fn found(&mut self, names: &[String], began: Instant) {
        self.0.retain(|name, _| names.contains(name));
        for name in names {
            self.0.entry(name.clone()).or_insert(began);
        }
    }

    /// Those that were there for long enough when the look began that has found nothing else.
    fn ripe(&self, began: Instant) -> Vec<String> {
        let ripe = self.0.iter().filter(|&(_, first)| began.duration_since(*first) >= INTERVAL);
        ripe.map(|(name, _)| name.clone()).collect()
    }

    /// These are followed.
    fn taken(&mut self, names: &[String]) {
        self.0.retain(|name, _| !names.contains(name));
    }
}

/// When the look began since which all have failed. Time counts, not their number: whoever asks often may see many fail in a moment.
#[derive(Debug, Default)]
struct Failing(Option<Instant>);

impl Failing {
    /// The look that began then has failed as well; gives whether that is to be said.
    fn goes_on(&mut self, began: Instant) -> bool {
        began.duration_since(*self.0.get_or_insert(began)) >= FAILING_MAX
    }

    fn has_ended(&mut self) {
        self.0 = None;
    }
}

/// Looks for as long as production is followed.
pub(crate) struct Lookout<'a> {
    config: &'a LogicalConfig,
    branch: &'a Arc<dyn RootBranch>,
    handle: LogicalHandle,
    status: &'a watch::Sender<LogicalStatus>,
    /// Those who want to know now, each told when that has been looked at; dropped: it could not be.
    asked: &'a mut mpsc::Receiver<oneshot::Sender<()>>,
    production: Option<Client>,
    looked: Option<Looked>,
    /// What the last comparison found; there was none yet: what is told already holds until then.
    changes: Option<Vec<String>>,
    /// The files of the followed tables, as they were found last.
    files: Files,
    /// When the look that is under way began, or the last one did: what it finds is no older.
    began: Instant,
    /// When the last one ended.
    ended: Option<Instant>,
    failing: Failing,
    ripening: Ripening,
    /// Taking tables over has failed, and is not tried again before.
    again_at: Option<Instant>,
}

impl<'a> Lookout<'a> {
    pub fn new(
        config: &'a LogicalConfig,
        branch: &'a Arc<dyn RootBranch>,
        handle: LogicalHandle,
        status: &'a watch::Sender<LogicalStatus>,
        asked: &'a mut mpsc::Receiver<oneshot::Sender<()>>,
    ) -> Self {
        let (production, looked, changes, files) = (None, None, None, Files::new());
        let (began, ended, again_at) = (Instant::now(), None, None);
        let (failing, ripening) = (Failing::default(), Ripening::default());
        Lookout {
            config,
            branch,
            handle,
            status,
            asked,
            production,
            looked,
            changes,
            files,
            began,
            ended,
            failing,
            ripening,
            again_at,
        }
    }

    /// Looks until dropped, or until it sees what ends following: that is given. A look that fails is made again; where all fail, that
    /// is said. However many ask, one look follows another after [`PAUSE`].
    pub async fn run(mut self) -> LogicalError {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut askers = Vec::new();
            tokio::select! {
                _ = ticks.tick() => {}
                Some(asker) = self.asked.recv() => {
                    if asker.is_closed() {
                        continue;
                    }
                    if let Some(ended) = self.ended {
                        if self.failing.0.is_none() && is_fresh(self.began.elapsed()) {
                            answer(asker);
                            continue;
                        }
                        tokio::time::sleep(PAUSE.saturating_sub(ended.elapsed())).await;
                    }
                    askers.push(asker);
                }
            }
            while let Ok(asker) = self.asked.try_recv() {
                askers.push(asker);
            }
            self.began = Instant::now();
            ticks.reset();
            let looked = self.look().await;
            self.ended = Some(Instant::now());
            match looked {
                Ok(()) => {
                    // Nobody waits to be told that nothing is new.
                    self.status.send_if_modified(|status| {
                        status.looked_at = Some(self.began);
                        false
                    });
                    self.tell_failure(None);
                    askers.into_iter().for_each(answer);
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
        if why.is_none() {
            self.failing.has_ended();
        }
        let told = why.filter(|_| self.failing.goes_on(self.began));
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
        if !self.reach(production).await? {
            return Ok(Compared::Nothing);
        }
        let at = self.branch.wake().await.map_err(LogicalError::Branch)?;
        let database = self.config.connector.connect_config()?.database().to_owned();
        let client = connect_root(&at, &database).await?;
        let state = self.begin_snapshots(production, &client).await?;
        let suspected = Replaced::find(production, &client, &state).await?;
        end_snapshots(production, &client).await?;
        // What was on its way then is here the second time.
        if !suspected.is_empty() && !self.reach(production).await? {
            return Ok(Compared::Nothing);
        }
        let state = self.begin_snapshots(production, &client).await?;
        let compared = self.compare_in_snapshots(production, &client, &state, &suspected).await?;
        end_snapshots(production, &client).await?;
        Ok(compared)
    }

    /// What is kept, the root, production, in this order: what comes meanwhile is told as what is still to come, and nothing that is there
    /// already as what production has no more.
    async fn begin_snapshots(&self, production: &Client, client: &Client) -> Result<LogicalState, LogicalError> {
        let state = LogicalState::read(self.branch.as_ref())?;
        client.batch_execute(SNAPSHOT).await.map_err(root("beginning a snapshot"))?;
        production.batch_execute(SNAPSHOT).await.map_err(source("beginning a snapshot"))?;
        Ok(state)
    }

    /// `suspected`: tables that had other columns at a moment that the root has reached.
    async fn compare_in_snapshots(
        &mut self,
        production: &Client,
        client: &Client,
        state: &LogicalState,
        suspected: &[Replaced],
    ) -> Result<Compared, LogicalError> {
        let found = tables(production, &self.config.options).await?;
        let new = NewOnProduction::of(&found, state);
        let replaced = Replaced::find(production, client, state).await?;
        let (replaced, unsure): (Vec<Replaced>, Vec<Replaced>) =
            replaced.into_iter().partition(|table| table.was_found(suspected));
        let replaced = ToldReplaced::of(&replaced, production, client, state).await?;
        let changes = changes(production, client, &self.config.options, &found, state, &replaced).await?;
        self.changes = Some(changes);
        let told = self.told(state).unwrap_or_default();
        let new_tables: Vec<String> = new.can_be_added.iter().map(|table| table.full_name()).collect();
        self.ripening.found(&new_tables, self.began);
        self.status.send_modify(|status| {
            status.new_tables = new_tables;
            status.not_followed = new.skipped;
            status.schema_changes = told;
            // Somebody else has taken over what could not be, or it is gone.
            if status.new_tables.is_empty() {
                status.adding_error = None;
            }
        });
        Ok(if unsure.is_empty() { Compared::Both } else { Compared::Nothing })
    }

    /// Waits until all that production has committed by now is on the root. Whether it is: how far it is behind is said elsewhere.
    async fn reach(&self, production: &Client) -> Result<bool, LogicalError> {
        // What is behind it is no commit that lasts, and is sent only once production writes it out.
        let lsn = production.query_one("select pg_catalog.pg_current_wal_flush_lsn()::text", &[]).await;
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
        self.tell_seen(production, &state, &found).await?;
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

    /// Tells who applies changes of tables that are in other files than before, or have not been seen yet: that is known then before a
    /// migration comes, and not only with the table's next change.
    async fn tell_seen(&self, production: &Client, state: &LogicalState, found: &Files) -> Result<(), LogicalError> {
        let is_known = |oid: &u32, filenode: u32| {
            let file = state.tables.get(oid).and_then(|table| table.columns.file.as_ref());
            file.is_some_and(|file| file.filenode == filenode)
        };
        let mut seen = HashMap::new();
        for (oid, _) in found.iter().filter(|&(oid, file)| !is_known(oid, file.filenode())) {
            seen.insert(*oid, SourceNumbers::read(production, *oid).await?);
        }
        if seen.is_empty() { Ok(()) } else { self.handle.tell_seen(seen).await }
    }

    /// Takes over what has been there for [`INTERVAL`], so that a migration under way has time to end; where that was asked for.
    async fn add(&mut self) {
        let names = self.ripening.ripe(self.began);
        let is_wanted = self.config.options.new_tables == NewTables::Add && !names.is_empty();
        if !is_wanted || self.again_at.is_some_and(|again_at| Instant::now() < again_at) {
            return;
        }
        match add_tables(self.config, &self.handle, self.branch.as_ref(), &names).await {
            Ok(reply) => {
                tracing::info!(tables = reply.added.join(", "), "new tables of production's are taken over");
                self.again_at = None;
                self.ripening.taken(&reply.added);
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

async fn end_snapshots(production: &Client, client: &Client) -> Result<(), LogicalError> {
    production.batch_execute("rollback").await.map_err(source("ending a snapshot"))?;
    client.batch_execute("rollback").await.map_err(root("ending a snapshot"))
}

/// Whether a look that began so long ago tells how things are.
fn is_fresh(age: Duration) -> bool {
    age < PAUSE
}

fn answer(asker: oneshot::Sender<()>) {
    // Nobody waits any more: fine.
    let _ = asker.send(());
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_table_is_ripe_once_it_was_there_for_a_while_however_often_it_was_seen() {
        let start = Instant::now();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
        let mut ripening = Ripening::default();
        let check = |ripening: &mut Ripening, at: Duration, found: &[&str], ripe: &[&str]| {
            ripening.found(&names(found), start + at);
            assert_eq!(ripening.ripe(start + at), names(ripe), "after {at:?}");
        };
        check(&mut ripening, Duration::ZERO, &["s.b", "s.a"], &[]);
        check(&mut ripening, SECOND, &["s.b", "s.a", "s.c"], &[]);
        check(&mut ripening, INTERVAL - SECOND, &["s.a", "s.c"], &[]);
        check(&mut ripening, INTERVAL, &["s.a", "s.c", "s.b"], &["s.a"]);
        check(&mut ripening, INTERVAL + SECOND, &["s.a", "s.c", "s.b"], &["s.a", "s.c"]);
        assert_eq!(ripening.ripe(start + 2 * INTERVAL), names(&["s.a", "s.b", "s.c"]), "nothing new was found since");
        ripening.taken(&names(&["s.a", "s.b"]));
        assert_eq!(ripening.ripe(start + 2 * INTERVAL), names(&["s.c"]));
    }

    #[test]
    fn a_look_is_as_old_as_its_beginning() {
        assert!(is_fresh(PAUSE / 2) && !is_fresh(PAUSE) && !is_fresh(REACH_PATIENCE), "however lately it ended");
    }

    #[test]
    fn looks_that_fail_are_said_once_that_lasts_however_many_they_are() {
        let start = Instant::now();
        let mut failing = Failing::default();
        for second in 0..45 {
            assert!(!failing.goes_on(start + second * SECOND));
        }
        assert!(failing.goes_on(start + FAILING_MAX) && failing.goes_on(start + 2 * FAILING_MAX));
        failing.has_ended();
        assert!(!failing.goes_on(start + 3 * FAILING_MAX));
    }
}
