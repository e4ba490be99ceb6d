//! The stream of changes: received, applied, confirmed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_postgres::Client;

use ardent_pg_wire::{ReplicationMessage, ReplicationStream, StandbyStatus, WireError};
use ardent_pgoutput::Message;
use ardent_types::Lsn;

use crate::error::ConnectorError;
use crate::logical::apply::Applier;
use crate::logical::config::{LogicalConfig, RootBranch};
use crate::logical::copy::encode;
use crate::logical::error::{LogicalError, root, source};
use crate::logical::run::{Hold, LogicalStatus, Request};
use crate::logical::sequences::{self, Sequences};
use crate::logical::session::{connect_source, replicate_source};
use crate::logical::state::LogicalState;
use crate::logical::{publication, rewrites, slot};

/// Production gives a silent receiver up after `wal_sender_timeout`, 60 s unless set.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is remembered up to where production may be told that all is here, where it has sent nothing that is applied.
const REMEMBER_INTERVAL: Duration = Duration::from_secs(10);
/// How often production is asked how far it is while somebody waits for that.
const ASK_INTERVAL: Duration = Duration::from_millis(20);
/// How often sequences are read while changes come.
const SEQUENCES_INTERVAL: Duration = Duration::from_secs(2);

/// A running stream.
pub(crate) struct Stream<'a> {
    config: &'a LogicalConfig,
    branch: &'a Arc<dyn RootBranch>,
    replication: ReplicationStream,
    applier: Applier,
    status: &'a watch::Sender<LogicalStatus>,
    production_lsn: Lsn,
    /// Production may be told that all below is here: the root's origin shows it, or it is remembered.
    flushed: Lsn,
    /// Of production, for what is no change.
    production: Option<Client>,
    sequences: Sequences,
    /// Up to where the log was applied when sequences were read last.
    sequences_at: Lsn,
    /// It has come, and is to be taken before anything else.
    next: Option<ReplicationMessage>,
    /// Asked for while it went on.
    pausing: VecDeque<Hold>,
    reaching: Vec<(Lsn, oneshot::Sender<()>)>,
    holding: Option<(Lsn, oneshot::Sender<oneshot::Sender<()>>)>,
}

impl<'a> Stream<'a> {
    /// Applies each of production's transactions by itself.
    pub fn apply_one_by_one(&mut self) {
        self.applier.apply_one_by_one();
    }

    /// Starts where production was told that all before is on the root; what comes twice is not applied twice. Slot and publication must
    /// be as they were left. `state`: what is kept, and is again what is kept.
    pub async fn start(
        config: &'a LogicalConfig,
        branch: &'a Arc<dyn RootBranch>,
        database: &str,
        state: &mut LogicalState,
        status: &'a watch::Sender<LogicalStatus>,
    ) -> Result<Stream<'a>, LogicalError> {
        let name = config.connector.slot_name();
        let connect = config.connector.connect_config()?;
        let connection = replicate_source(&connect).await?;
        let replication = connection.start_logical(&name, Lsn::INVALID, &name).await;
        let mut replication = replication.map_err(|error| LogicalError::of_start(error, &name))?;
        // From here on nobody else can move the slot.
        let production = connect_source(&config.connector.url).await?;
        let checking = async {
            slot::check_position(&production, config, branch.as_ref()).await?;
            publication::check(&production, &name, branch.as_ref()).await
        };
        while_alive(&mut replication, StandbyStatus::default(), checking).await??;
        *state = LogicalState::read(branch.as_ref())?;
        let applier = Applier::new(&config.connector.url, database, &name, branch.clone(), state);
        status.send_modify(|status| {
            status.is_streaming = true;
            status.last_error = None;
        });
        Ok(Stream {
            config,
            branch,
            replication,
            applier,
            status,
            production_lsn: Lsn::INVALID,
            flushed: Lsn::INVALID,
            production: Some(production),
            sequences: Sequences::default(),
            sequences_at: Lsn::INVALID,
            next: None,
            pausing: VecDeque::new(),
            reaching: Vec::new(),
            holding: None,
        })
    }

    /// Applies changes for ever, or until all below `until` is on the root.
    pub async fn follow(
        &mut self,
        requests: &mut mpsc::Receiver<Request>,
        until: Option<Lsn>,
    ) -> Result<(), LogicalError> {
        let mut confirm = tokio::time::interval(STATUS_INTERVAL);
        let mut remember = tokio::time::interval(REMEMBER_INTERVAL);
        remember.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ask = tokio::time::interval(ASK_INTERVAL);
        let mut look = tokio::time::interval(SEQUENCES_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.answer().await?;
            if until.is_some_and(|lsn| self.applier.position() >= lsn) && self.applier.is_between_transactions() {
                return self.commit().await;
            }
            let is_asked = until.is_some() || self.holding.is_some() || !self.reaching.is_empty();
            let message = match self.next.take() {
                Some(message) => message,
                None => tokio::select! {
                    message = self.replication.recv() => message.map_err(|error| self.stream_error(error))?,
                    Some(request) = requests.recv() => {
                        match request {
                            Request::Reach(lsn, reply) => self.reaching.push((lsn, reply)),
                            Request::Hold(hold) => self.pausing.push_back(hold),
                            Request::Seen(seen) => {
                                self.applier.see(&seen);
                                // What is not committed yet is not remembered before it is.
                                if self.applier.is_settled() {
                                    self.remember_names()?;
                                }
                            }
                        }
                        continue;
                    }
                    _ = confirm.tick() => {
                        self.confirm(false).await?;
                        continue;
                    }
                    _ = remember.tick() => {
                        self.remember_position()?;
                        continue;
                    }
                    _ = ask.tick(), if is_asked => {
                        self.confirm(true).await?;
                        continue;
                    }
                    _ = look.tick(), if until.is_none() && self.sequences_at < self.applier.position() => {
                        self.look_at_sequences().await?;
                        continue;
                    }
                },
            };
            self.take(message).await?;
            if self.applier.is_between_transactions() {
                // What is there already joins the transaction on the root; what has to be waited for does not.
                if !self.applier.is_full() {
                    let next = self.replication.recv().now_or_never().transpose();
                    self.next = next.map_err(|error| self.stream_error(error))?;
                }
                if self.next.is_none() {
                    self.commit().await?;
                }
            }
        }
    }

    async fn take(&mut self, message: ReplicationMessage) -> Result<(), LogicalError> {
        match message {
            ReplicationMessage::Wal { server_flush_lsn, data, .. } => {
                self.production_lsn = self.production_lsn.max(server_flush_lsn);
                let message = Message::decode(data)?;
                if let Message::Begin(begin) = &message
                    && self.holding.as_ref().is_some_and(|(lsn, _)| *lsn <= begin.final_lsn)
                {
                    self.commit().await?;
                    self.hold().await?;
                }
                if let Message::Truncate(truncate) = &message {
                    rewrites::forget(self.branch.as_ref(), &truncate.relations)?;
                    self.status.send_if_modified(|status| {
                        status.emptied.extend(&truncate.relations);
                        false
                    });
                }
                let status = self.standby_status(false);
                while_alive(&mut self.replication, status, self.applier.take(message)).await?
            }
            ReplicationMessage::Keepalive { server_sent_lsn, reply_requested } => {
                self.production_lsn = self.production_lsn.max(server_sent_lsn);
                if self.applier.is_between_transactions() {
                    self.commit().await?;
                    self.applier.sent(server_sent_lsn);
                    self.tell();
                }
                if !reply_requested {
                    return Ok(());
                }
                // A server that stops waits for this.
                self.remember_position()?;
                self.confirm(false).await
            }
            ReplicationMessage::End { .. } => Err(ConnectorError::StreamEnded.into()),
        }
    }

    async fn commit(&mut self) -> Result<(), LogicalError> {
        let before = self.applier.position();
        let status = self.standby_status(false);
        while_alive(&mut self.replication, status, self.applier.commit()).await??;
        if self.applier.position() > before {
            // It has moved by a commit, which carries it.
            self.flushed = self.applier.position();
            self.tell();
            self.remember_names()?;
            self.confirm(false).await?;
        }
        Ok(())
    }

    /// Remembers up to where production may be told that all is here, before it is told.
    fn remember_position(&mut self) -> Result<(), LogicalError> {
        let position = self.applier.position();
        if position > self.flushed {
            let mut state = LogicalState::read(self.branch.as_ref())?;
            state.confirmed_lsn = state.confirmed_lsn.max(Some(position));
            self.branch.save(&encode(&state)).map_err(LogicalError::Branch)?;
            self.flushed = position;
        }
        Ok(())
    }

    fn stream_error(&self, error: WireError) -> LogicalError {
        LogicalError::of_stream(error, &self.config.connector.slot_name())
    }

    /// Keeps the names that tables have on the root, where they have changed.
    fn remember_names(&mut self) -> Result<(), LogicalError> {
        if self.applier.is_altered() {
            let mut state = LogicalState::read(self.branch.as_ref())?;
            self.applier.tell_names(&mut state);
            self.branch.save(&encode(&state)).map_err(LogicalError::Branch)?;
            self.status.send_modify(|status| status.alterations += 1);
        }
        Ok(())
    }

    /// Answers those who have waited for what has come true.
    async fn answer(&mut self) -> Result<(), LogicalError> {
        if self.applier.is_between_transactions() {
            self.pause().await?;
        }
        let position = self.applier.position();
        if self.holding.as_ref().is_some_and(|(lsn, _)| *lsn <= position) && self.applier.is_between_transactions() {
            self.hold().await?;
        }
        if self.reaching.iter().any(|(lsn, _)| *lsn <= position) {
            // Values that rows up to there have were given before.
            self.look_at_sequences().await?;
            self.look_at_publication().await?;
            let (reached, waiting) = self.reaching.drain(..).partition(|(lsn, _)| *lsn <= position);
            self.reaching = waiting;
            for (_, reply) in reached {
                // Nobody waits any more: fine.
                let _ = reply.send(());
            }
        }
        Ok(())
    }

    /// Applies nothing until it is said where to stop.
    async fn pause(&mut self) -> Result<(), LogicalError> {
        // One after the other.
        if self.holding.is_some() {
            return Ok(());
        }
        let Some(Hold { paused, until, held }) = self.pausing.pop_front() else { return Ok(()) };
        self.commit().await?;
        if paused.send(()).is_ok() {
            let status = self.standby_status(false);
            // Dropped: who asked has given up.
            if let Ok(lsn) = while_alive(&mut self.replication, status, until).await? {
                self.holding = Some((lsn, held));
            }
            self.learn()?;
        }
        Ok(())
    }

    /// Who stopped it may have added tables.
    fn learn(&mut self) -> Result<(), LogicalError> {
        let state = LogicalState::read(self.branch.as_ref())?;
        let tables = self.applier.learn(&state);
        self.sequences.forget();
        self.status.send_modify(|status| {
            status.tables = tables;
            status.left_out = state.left_out;
            status.alterations += 1;
        });
        Ok(())
    }

    /// Applies nothing until who asked for it has let go.
    async fn hold(&mut self) -> Result<(), LogicalError> {
        let Some((_, reply)) = self.holding.take() else { return Ok(()) };
        let (release, released) = oneshot::channel();
        if reply.send(release).is_ok() {
            let status = self.standby_status(false);
            // It is let go by being dropped.
            let _ = while_alive(&mut self.replication, status, released).await?;
            self.learn()?;
        }
        Ok(())
    }

    async fn look_at_sequences(&mut self) -> Result<(), LogicalError> {
        self.sequences_at = self.applier.position();
        let status = self.standby_status(false);
        let Stream { config, production, sequences, applier, replication, .. } = self;
        let look = async {
            let client = match production.take().filter(|client| !client.is_closed()) {
                Some(client) => client,
                None => connect_source(&config.connector.url).await?,
            };
            let values = sequences::read(&client, &config.options).await.map_err(source("reading its sequences"))?;
            *production = Some(client);
            if sequences.must_ask() {
                let client = applier.quiet_session().await?;
                let here = sequences::read(&client, &config.options).await;
                sequences.learn(here.map_err(root("reading its sequences"))?);
            }
            let statements = sequences.statements(&values);
            if statements.is_empty() {
                return Ok(());
            }
            let set = applier.quiet_session().await?.batch_execute(&statements.join("; ")).await;
            if set.is_err() {
                sequences.forget();
            }
            set.map_err(root("setting sequences"))
        };
        while_alive(replication, status, look).await?
    }

    /// Nobody is told that all is here while changes may be missed.
    async fn look_at_publication(&mut self) -> Result<(), LogicalError> {
        let status = self.standby_status(false);
        let (branch, name) = (self.branch, self.config.connector.slot_name());
        let Stream { config, production, replication, .. } = self;
        let look = async {
            let client = match production.take().filter(|client| !client.is_closed()) {
                Some(client) => client,
                None => connect_source(&config.connector.url).await?,
            };
            let checked = publication::check(&client, &name, branch.as_ref()).await;
            *production = Some(client);
            checked
        };
        while_alive(replication, status, look).await?
    }

    /// Runs something long while production is told that we live.
    pub async fn alive<T>(&mut self, future: impl Future<Output = T>) -> Result<T, LogicalError> {
        let status = self.standby_status(false);
        while_alive(&mut self.replication, status, future).await
    }

    fn standby_status(&self, reply_requested: bool) -> StandbyStatus {
        let position = self.applier.position();
        StandbyStatus { write_lsn: position, flush_lsn: self.flushed, apply_lsn: position, reply_requested }
    }

    /// Tells production what is on the root.
    async fn confirm(&mut self, reply_requested: bool) -> Result<(), LogicalError> {
        Ok(self.replication.send_status(self.standby_status(reply_requested)).await?)
    }

    fn tell(&self) {
        let (applied_lsn, production_lsn) = (self.applier.position(), self.production_lsn);
        self.status.send_modify(|status| {
            status.applied_lsn = applied_lsn;
            status.production_lsn = production_lsn;
            if applied_lsn >= production_lsn {
                status.caught_up_at = Some(Instant::now());
            }
        });
    }
}

async fn while_alive<T>(
    replication: &mut ReplicationStream,
    status: StandbyStatus,
    future: impl Future<Output = T>,
) -> Result<T, LogicalError> {
    tokio::pin!(future);
    // Most are done at once.
    if let Some(done) = future.as_mut().now_or_never() {
        return Ok(done);
    }
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + STATUS_INTERVAL, STATUS_INTERVAL);
    loop {
        tokio::select! {
            done = &mut future => return Ok(done),
            _ = tick.tick() => replication.send_status(status).await?,
        }
    }
}
