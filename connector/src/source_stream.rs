//! Production's WAL from where the root timeline's log ends, once it is known to be of the same history.
//!
//! A server that was promoted goes on on another of its timelines. One that was promoted without the newest WAL, or restored, has
//! another history, though its system identifier is the same, and its WAL may be as long. So what the log holds last is held against
//! what the server has there, byte for byte, before anything is taken from it.

use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt as _};

use ardent_api::addr::ServiceAddr;
use ardent_pg_wire::{Connection, ReplicationMessage, ReplicationStream, SystemIdentity, TimelineHistory, WireError};
use ardent_types::{Lsn, PgTli, WalSegmentSize};
use ardent_wal_client::{ClientError, SafekeeperClient, TimelineSpec, TimelineStatus, WalReader};

use crate::archive::Next;
use crate::config::ConnectorConfig;
use crate::error::ConnectorError;
use crate::import::Source;
use crate::position::drop_slot;

/// How much is compared before the last page of the log: another history differs in its first record already.
const COMPARED_BYTES: u64 = 2 * WAL_PAGE_BYTES;
const WAL_PAGE_BYTES: u64 = 8192;
/// How long a safekeeper may take to answer.
pub(crate) const SAFEKEEPER_PATIENCE: Duration = Duration::from_secs(5);
/// How long WAL that both have may take to come.
const COMPARE_PATIENCE: Duration = Duration::from_secs(30);
/// How long the server may take to see that our last connection is gone.
const SLOT_PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// Where the root timeline's log ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    /// The last record end that a quorum has.
    pub committed: Lsn,
    /// Where WAL is to go on; behind `committed` if a record was begun.
    pub next: Lsn,
}

/// WAL that comes.
#[derive(Debug)]
pub(crate) struct Opened {
    pub stream: ReplicationStream,
    /// What has come already.
    pub first: Option<ReplicationMessage>,
}

/// Streams production's WAL from the end of the log on, through the connector's slot, which is made if it is not there and nothing is
/// missing yet.
pub(crate) async fn open(
    config: &ConnectorConfig,
    mut connection: Connection,
    system: &SystemIdentity,
    spec: &TimelineSpec,
    end: End,
) -> Result<Opened, ConnectorError> {
    if system.system_id != spec.system_id {
        return Err(ConnectorError::OtherCluster { expected: spec.system_id, found: system.system_id });
    }
    if system.flush_lsn < end.next {
        return Err(ConnectorError::ProductionBehind { production: system.flush_lsn, root: end.next });
    }
    let history = connection.timeline_history(system.tli).await?;
    // One at a time: production may have no more WAL senders.
    drop(connection);
    compare(config, &history, spec, end.committed).await?;
    let tli = history.tli_of_segment(end.next, spec.wal_segment_size);
    let slot = config.slot_name();
    match config.replication().await?.start_replication(Some(&slot), end.next, Some(tli)).await {
        Ok(stream) => Ok(Opened { stream, first: None }),
        // Undefined object.
        Err(error) if error.code() == Some("42704") => {
            let found = open_with_new_slot(config, &slot, tli, end.next, end.next < system.flush_lsn).await;
            found.map_err(|error| match error {
                ConnectorError::SlotInvalidated { .. } => ConnectorError::SlotMissing { slot },
                error => error,
            })
        }
        Err(error) => Err(ConnectorError::from_replication(error, &slot)),
    }
}

/// The slot is not there: nobody has kept WAL for us. What is still there is enough if it goes on where the log ends.
async fn open_with_new_slot(
    config: &ConnectorConfig,
    slot: &str,
    tli: PgTli,
    next: Lsn,
    more_is_there: bool,
) -> Result<Opened, ConnectorError> {
    config.replication().await?.create_physical_slot(slot).await?;
    let opening = async {
        let failed = |error| ConnectorError::from_replication(error, slot);
        let mut stream =
            config.replication().await?.start_replication(Some(slot), next, Some(tli)).await.map_err(failed)?;
        // A segment that is gone shows only when the server comes to read it.
        let first = if more_is_there { Some(stream.recv().await.map_err(failed)?) } else { None };
        Ok(Opened { stream, first })
    };
    let opened = opening.await;
    match &opened {
        Ok(_) => {
            tracing::warn!(slot, "the replication slot was not on production, and no WAL is missing: it was made anew")
        }
        // It would keep WAL for nobody.
        Err(_) => drop_slot(&mut config.replication().await?, slot).await?,
    }
    opened
}

/// Whether the server at the connector's URL can be followed in place of the one that was followed: the same cluster, no standby, with a
/// history that goes on where the root timeline's log ends, or an archive that does. Its slot is there afterwards, unless the archive is
/// needed. Nobody may follow meanwhile.
pub async fn can_follow(config: &ConnectorConfig) -> Result<(), ConnectorError> {
    Source::read(&mut config.replication().await?).await?;
    let status = timeline_status(config).await?;
    let end = End { committed: status.commit_lsn, next: status.commit_lsn };
    let deadline = Instant::now() + SLOT_PATIENCE;
    loop {
        let mut connection = config.replication().await?;
        let system = connection.identify_system().await?;
        match open(config, connection, &system, &status.spec, end).await {
            // Object in use: our own last connection to the same server, whose end it has yet to see.
            Err(ConnectorError::Production(WireError::Server(error)))
                if error.code == "55006" && Instant::now() < deadline =>
            {
                tokio::time::sleep(POLL).await;
            }
            Err(error) if error.means_missing_wal() => {
                let Some(archive) = &config.archive else { return Err(error) };
                return match archive.next(config, &status.spec, end).await? {
                    Next::There { .. } => Ok(()),
                    Next::Missing { file, message } => Err(ConnectorError::NotArchived { file, message }),
                };
            }
            opened => return opened.map(drop),
        }
    }
}

/// Facts about the root timeline: of a quorum of safekeepers, those of the one that knows of the most.
pub(crate) async fn timeline_status(config: &ConnectorConfig) -> Result<TimelineStatus, ConnectorError> {
    let mut asked: FuturesUnordered<_> =
        config.safekeepers.iter().map(|safekeeper| status_of(config, safekeeper)).collect();
    let quorum = config.safekeepers.len() / 2 + 1;
    let (mut answers, mut last_error) = (Vec::with_capacity(quorum), None);
    while let Some(answer) = asked.next().await {
        match answer {
            Ok(status) => answers.push(status),
            Err(error) => last_error = Some(error),
        }
        if answers.len() == quorum {
            break;
        }
    }
    match (answers.into_iter().max_by_key(|status| status.commit_lsn), last_error) {
        (Some(newest), _) => Ok(newest),
        (None, error) => Err(error.expect("a timeline has at least one safekeeper").into()),
    }
}

async fn status_of(config: &ConnectorConfig, safekeeper: &ServiceAddr) -> Result<TimelineStatus, ClientError> {
    let asked = async {
        let mut client =
            SafekeeperClient::connect_to_timeline(safekeeper, config.tenant, config.timeline, &config.token).await?;
        client.status(config.timeline).await
    };
    let answer = tokio::time::timeout(SAFEKEEPER_PATIENCE, asked).await;
    answer.unwrap_or_else(|_| Err(ClientError::silent(safekeeper)))
}

/// Holds the end of the log against what production has there.
async fn compare(
    config: &ConnectorConfig,
    history: &TimelineHistory,
    spec: &TimelineSpec,
    committed: Lsn,
) -> Result<(), ConnectorError> {
    for from in compared_from(spec, committed) {
        let both = async {
            // One after the other: the safekeepers' answer says whether there is something to ask production for.
            let Some(ours) = held(config, from, committed).await? else { return Ok(None) };
            let theirs = sent(config, history, spec.wal_segment_size, from, committed).await?;
            Ok::<_, ConnectorError>(theirs.map(|theirs| (ours, theirs)))
        };
        match tokio::time::timeout(COMPARE_PATIENCE, both).await {
            Ok(compared) => match compared? {
                Some((ours, theirs)) if ours == theirs => return Ok(()),
                Some(_) => return Err(ConnectorError::OtherHistory { at: committed }),
                // One of them has forgotten what is before the last segment.
                None => {}
            },
            Err(_) => return Err(ConnectorError::StreamEnded),
        }
    }
    tracing::debug!(%committed, "there is no WAL of both to compare");
    Ok(())
}

/// From where it can be compared, the best first. Before the segment of the end neither needs to have anything.
pub(crate) fn compared_from(spec: &TimelineSpec, committed: Lsn) -> Vec<Lsn> {
    let page = committed.get() - committed.page_offset();
    let best = Lsn::new(page.saturating_sub(COMPARED_BYTES)).max(spec.start_lsn);
    let segment = committed.segment_start(spec.wal_segment_size).max(spec.start_lsn);
    let mut from = vec![best.min(committed), segment.max(best)];
    from.dedup();
    from.retain(|from| *from < committed);
    from
}

/// What the safekeepers hold; `None` if they do not have it any more.
pub(crate) async fn held(config: &ConnectorConfig, from: Lsn, to: Lsn) -> Result<Option<Vec<u8>>, ConnectorError> {
    let reader = WalReader::connect(&config.safekeepers, config.tenant, config.timeline, &config.token, from).await;
    let mut reader = match reader {
        Err(error) if error.code() == Some(ardent_api::wal_service::ErrorCode::LsnOutOfRange) => return Ok(None),
        reader => reader?,
    };
    let length = usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        bytes.extend_from_slice(&reader.next().await?.bytes);
    }
    bytes.truncate(length);
    Ok(Some(bytes))
}

/// What production has there, whichever of its timelines it is on; `None` if it has removed it. Its slot is left alone.
async fn sent(
    config: &ConnectorConfig,
    history: &TimelineHistory,
    segment_size: WalSegmentSize,
    from: Lsn,
    to: Lsn,
) -> Result<Option<Vec<u8>>, ConnectorError> {
    let (mut at, mut tli) = (from, history.tli_of_segment(from, segment_size));
    let length = usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
    let mut bytes = Vec::with_capacity(length);
    // Undefined file.
    let is_gone = |error: &WireError| error.code() == Some("58P01");
    while bytes.len() < length {
        let mut stream = match config.replication().await?.start_replication(None, at, Some(tli)).await {
            Err(error) if is_gone(&error) => return Ok(None),
            stream => stream?,
        };
        while bytes.len() < length {
            match stream.recv().await {
                Err(error) if is_gone(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
                Ok(ReplicationMessage::Wal { start, data, .. }) => {
                    if start != at {
                        return Err(ConnectorError::Gap { expected: at, given: start });
                    }
                    at = start.advance(data.len() as u64);
                    bytes.extend_from_slice(&data);
                }
                Ok(ReplicationMessage::Keepalive { .. }) => {}
                Ok(ReplicationMessage::End { next_timeline: Some((next, start)) }) if start == at => {
                    tli = next;
                    break;
                }
                Ok(ReplicationMessage::End { .. }) => return Err(ConnectorError::StreamEnded),
            }
        }
    }
    bytes.truncate(length);
    Ok(Some(bytes))
}
