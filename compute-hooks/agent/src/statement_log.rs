//! Takes what sessions say they run out of their rings and appends it to the branch's log (`ardent-statement-log`).
//!
//! ```text
//!  sessions ──► rings (a file) ──► Keeper, on a thread of its own ──► segments in the branch's folder
//!      └── bell ──────────────────────┘ ▲
//!                    Running ── write, finish
//! ```
//!
//! Invariant: records leave the rings when they are in the log, so a disk that takes nothing holds sessions up (for as long as the
//! library waits) before it costs records. What an agent that was killed has left in the rings is taken by the next.
//!
//! The thread never waits for Postgres, nor for the task that ships WAL: none of them can keep the others from going on.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ardent_api::compute::{RunAs, StatementLogSpec};
use ardent_statement_log::{Batch, LogWriter, RingReader, SegmentHeader, SessionKey};
use tokio::sync::oneshot;

use crate::error::ComputeError;

/// While there is something to take, it is taken this often.
const EVERY: Duration = Duration::from_millis(50);
/// How often an idle compute's rings are looked at without being told to.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often what was appended is made durable.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// Bytes that are taken at once.
const BATCH_LEN: usize = 1 << 20;
/// Most portions that are taken in a row.
const PORTIONS_MAX: usize = 64;
/// How long a log that cannot be written is waited for at the end.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// How long until it is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How often the same trouble is told.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The log of a running compute. Dropping it takes the rest, and does not wait for that.
#[derive(Debug)]
pub(crate) struct StatementLog {
    orders: mpsc::Sender<Order>,
    bell: PathBuf,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Order {
    /// Append what is in the rings now, and say so.
    Write(oneshot::Sender<()>),
    /// The same, and end.
    Finish,
}

/// What a log begins with.
#[derive(Debug)]
pub(crate) struct LogStart<'a> {
    pub(crate) spec: &'a StatementLogSpec,
    pub(crate) rings: &'a Path,
    pub(crate) bell: PathBuf,
    pub(crate) header: SegmentHeader,
    /// Processes that may want a ring.
    pub(crate) sessions_max: u64,
    pub(crate) run_as: Option<RunAs>,
}

impl LogStart<'_> {
    fn writer(&self) -> Result<LogWriter, ComputeError> {
        let writer = LogWriter::open(&self.spec.dir, self.header, self.spec.bytes_max);
        writer.map_err(ComputeError::io("cannot open the log of statements in", &self.spec.dir))
    }
}

impl StatementLog {
    /// Opens the log, takes what an earlier run left, and makes new rings.
    pub(crate) fn open(start: &LogStart<'_>) -> Result<Self, ComputeError> {
        let LogStart { spec, rings: path, sessions_max, run_as, .. } = *start;
        let mut writer = start.writer()?;
        let rings_failed = || ComputeError::io("cannot use the rings for statements", path);
        if let Some(mut left) = RingReader::open_left(path).map_err(rings_failed())? {
            // Their first words are in the log already.
            let sessions = left.sessions_left();
            resume(&mut writer, spec, &sessions, oldest(&sessions).max(made_at(&left)))?;
            let taken = take_rest(&mut left, &mut writer);
            writer.forget_sessions();
            match taken {
                Ok(()) => {}
                Err(Trouble::Rings(error)) => {
                    tracing::warn!(%error, "what sessions said before the last crash cannot be read")
                }
                Err(Trouble::Log(error)) => {
                    return Err(ComputeError::io("cannot write the log of statements in", &spec.dir)(error));
                }
            }
        }
        let slots = u32::try_from(sessions_max).unwrap_or(u32::MAX);
        let rings = RingReader::create(path, slots).map_err(rings_failed())?;
        if let Some(RunAs { uid, gid }) = run_as {
            std::os::unix::fs::fchown(rings.file(), Some(uid), Some(gid)).map_err(rings_failed())?;
        }
        Self::run(start, writer, rings)
    }

    /// Opens the log, and goes on with the rings of sessions that run, of a Postgres that was started at `since_us`.
    pub(crate) fn take_over(start: &LogStart<'_>, since_us: i64) -> Result<Self, ComputeError> {
        let rings = RingReader::open_left(start.rings)
            .map_err(ComputeError::io("cannot use the rings for statements", start.rings))?;
        let missing = || ComputeError::Invalid(format!("{} holds no rings for statements", start.rings.display()));
        let rings = rings.ok_or_else(missing)?;
        let mut writer = start.writer()?;
        resume(&mut writer, start.spec, &rings.sessions(), since_us)?;
        Self::run(start, writer, rings)
    }

    fn run(start: &LogStart<'_>, writer: LogWriter, rings: RingReader) -> Result<Self, ComputeError> {
        let LogStart { spec, bell: bell_path, .. } = start;
        let bell = listen(bell_path).map_err(ComputeError::io("cannot listen at", bell_path))?;
        let (orders, orders_out) = mpsc::channel();
        let now = Instant::now();
        let keeper = Keeper {
            rings,
            writer,
            bell,
            orders: orders_out,
            dirty_since: None,
            warned: None,
            is_loss_told: false,
            opened: now,
        };
        let thread = std::thread::Builder::new().name("statement-log".to_owned()).spawn(move || keeper.run());
        let thread = thread.map_err(ComputeError::io("cannot start a thread for", &spec.dir))?;
        Ok(StatementLog { orders, bell: bell_path.to_owned(), thread: Some(thread) })
    }

    /// Waits until what sessions have said up to now can be read.
    pub(crate) async fn write(&self) {
        let (done, written) = oneshot::channel();
        if self.order(Order::Write(done)) {
            // It ends without a word only when the thread does.
            let _ = written.await;
        }
    }

    /// Takes the rest, when nobody writes to the rings any more, and makes it durable.
    pub(crate) async fn finish(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.order(Order::Finish);
        if !matches!(tokio::task::spawn_blocking(move || thread.join()).await, Ok(Ok(()))) {
            tracing::error!("the log of statements was not finished");
        }
    }

    fn order(&self, order: Order) -> bool {
        let sent = self.orders.send(order).is_ok();
        // It wakes by itself a little later if this fails.
        if let Ok(socket) = UnixDatagram::unbound() {
            let _ = socket.set_nonblocking(true).and_then(|()| socket.send_to(b"!", &self.bell));
        }
        sent
    }
}

impl Drop for StatementLog {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.order(Order::Finish);
        }
    }
}

/// What went wrong.
#[derive(Debug)]
enum Trouble {
    /// The rings cannot be read: somebody has cut the file short.
    Rings(io::Error),
    /// The log cannot be written.
    Log(io::Error),
}

/// The thread.
#[derive(Debug)]
struct Keeper {
    rings: RingReader,
    writer: LogWriter,
    bell: UnixDatagram,
    orders: mpsc::Receiver<Order>,
    dirty_since: Option<Instant>,
    warned: Option<Instant>,
    /// The log tells that the rings cannot be read.
    is_loss_told: bool,
    opened: Instant,
}

impl Keeper {
    fn run(mut self) {
        loop {
            let took = self.take();
            match self.serve_orders() {
                Served::Finish => return self.end(),
                Served::Some => continue,
                Served::None => {}
            }
            let wait = match took {
                Ok(true) => EVERY,
                Ok(false) => match self.fall_asleep() {
                    // Written just before that.
                    true => continue,
                    false => LOOK_EVERY,
                },
                Err(()) => RETRY_PAUSE,
            };
            let wait = if self.dirty_since.is_some() { wait.min(SYNC_EVERY) } else { wait };
            self.sync_if_due();
            self.wait(wait);
        }
    }

    fn wait(&self, longest: Duration) {
        let mut rung = [0; 8];
        let waited = self.bell.set_read_timeout(Some(longest)).and_then(|()| self.bell.recv(&mut rung));
        if let Err(error) = waited
            && !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
        {
            // Without the bell, it is looked often.
            std::thread::sleep(EVERY);
        }
    }

    /// Takes all there is; whether there was anything. A failure has been told.
    fn take(&mut self) -> Result<bool, ()> {
        match take(&mut self.rings, &mut self.writer) {
            Ok(taken) => {
                if taken {
                    self.dirty_since.get_or_insert_with(Instant::now);
                }
                Ok(taken)
            }
            Err(trouble) => {
                if let Trouble::Rings(_) = trouble
                    && !self.is_loss_told
                {
                    self.is_loss_told = self.writer.append(std::iter::empty(), 1, now_us()).is_ok();
                }
                if self.warned.is_none_or(|at| at.elapsed() > WARN_EVERY) {
                    self.warned = Some(Instant::now());
                    match &trouble {
                        Trouble::Rings(error) => tracing::warn!(%error, "what sessions say cannot be read"),
                        Trouble::Log(error) => {
                            tracing::error!(%error, "the log of statements cannot be written: sessions wait, then records are lost");
                        }
                    }
                }
                Err(())
            }
        }
    }

    /// Says that the bell is needed; whether something came before that was heard.
    fn fall_asleep(&mut self) -> bool {
        self.sync_if_due();
        match self.rings.fall_asleep() {
            Ok(()) => self.take().unwrap_or(false),
            Err(_) => false,
        }
    }

    fn sync_if_due(&mut self) {
        if self.dirty_since.is_some_and(|since| since.elapsed() >= SYNC_EVERY) {
            self.sync();
        }
    }

    fn sync(&mut self) {
        self.dirty_since = None;
        if let Err(error) = self.writer.sync() {
            tracing::warn!(%error, "the log of statements is not durable");
        }
    }

    fn serve_orders(&mut self) -> Served {
        let mut served = Served::None;
        loop {
            match self.orders.try_recv() {
                Ok(Order::Write(done)) => {
                    // What was in the rings when it was asked for. A failure has been told, and is not the asker's.
                    let _ = self.take();
                    // Whoever asked may be gone.
                    let _ = done.send(());
                    served = Served::Some;
                }
                Ok(Order::Finish) | Err(mpsc::TryRecvError::Disconnected) => return Served::Finish,
                Err(mpsc::TryRecvError::Empty) => return served,
            }
        }
    }

    fn end(mut self) {
        let until = Instant::now() + END_PATIENCE;
        loop {
            match self.take() {
                Ok(false) => break,
                _ if Instant::now() >= until => break,
                Ok(true) => {}
                Err(()) => std::thread::sleep(RETRY_PAUSE),
            }
        }
        self.sync();
        tracing::debug!(ran_s = self.opened.elapsed().as_secs(), "the log of statements is finished");
    }
}

/// What orders asked for.
enum Served {
    None,
    Some,
    Finish,
}

/// Takes what is in the rings, in portions, and not all of it if that is very much; whether that was anything.
fn take(rings: &mut RingReader, writer: &mut LogWriter) -> Result<bool, Trouble> {
    let mut taken = false;
    // Orders are served between, however much sessions say.
    for _ in 0..PORTIONS_MAX {
        let batch: Batch = rings.take(BATCH_LEN).map_err(Trouble::Rings)?;
        if batch.is_empty() {
            return Ok(taken);
        }
        writer.append(batch.records(), batch.damaged, now_us()).map_err(Trouble::Log)?;
        taken = true;
        rings.confirm(&batch, |slot| writer.session_of(slot)).map_err(Trouble::Rings)?;
        if let Err(error) = writer.tidy() {
            tracing::warn!(%error, "a segment of the log of statements cannot be closed yet");
        }
    }
    Ok(taken)
}

/// Takes all that is in the rings of sessions that have ended.
fn take_rest(rings: &mut RingReader, writer: &mut LogWriter) -> Result<(), Trouble> {
    while take(rings, writer)? {}
    Ok(())
}

fn resume(
    writer: &mut LogWriter,
    spec: &StatementLogSpec,
    sessions: &[SessionKey],
    since_us: i64,
) -> Result<(), ComputeError> {
    let resumed = writer.resume(sessions, since_us, now_us());
    resumed.map_err(ComputeError::io("cannot read the log of statements in", &spec.dir))
}

/// When the first of the sessions began that are known, in microseconds since 1970.
fn oldest(sessions: &[SessionKey]) -> i64 {
    let known = sessions.iter().filter(|session| session.pid != 0);
    known.map(|session| session.started_us).min().unwrap_or(i64::MAX)
}

/// When the rings were made, just before their Postgres was started, as far as the file system knows: how far back the log is searched for who
/// its sessions are does not rest on what loaded code may have written there.
fn made_at(rings: &RingReader) -> i64 {
    let made = rings.file().metadata().and_then(|file| file.created()).ok();
    let since = made.and_then(|made| made.duration_since(UNIX_EPOCH).ok());
    since.map_or(i64::MIN, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// A datagram socket at `path`, in place of an old one, that everybody who can enter its folder may send to.
fn listen(path: &Path) -> io::Result<UnixDatagram> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixDatagram::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::ControlFlow;

    use ardent_statement_log::{
        Amount, End, LOG_LEN_MIN, LogEntry, LogFilter, Outcome, RECORD_MAX, Record, Ring, Session, Slot, Statement,
        TransactionEnd, read_log,
    };
    use ardent_types::{Lsn, TimelineId};

    /// A branch's folder, and where its agents look.
    struct Place {
        folder: tempfile::TempDir,
        spec: StatementLogSpec,
        rings: PathBuf,
    }

    impl Place {
        fn new() -> Place {
            let folder = tempfile::tempdir().expect("a folder");
            let spec = StatementLogSpec { dir: folder.path().join("log"), bytes_max: LOG_LEN_MIN };
            Place { rings: folder.path().join("rings"), spec, folder }
        }

        fn start(&self) -> LogStart<'_> {
            let header = SegmentHeader { timeline: TimelineId::NONE, first_xid: 3 };
            let (spec, rings, bell) = (&self.spec, &self.rings, self.folder.path().join("bell"));
            LogStart { spec, rings, bell, header, sessions_max: 4, run_as: None }
        }

        fn entries(&self) -> Vec<LogEntry> {
            let mut entries = Vec::new();
            let read = read_log(&self.spec.dir, &LogFilter::default(), Amount::All, |entry| {
                entries.push(entry);
                ControlFlow::Continue(())
            });
            read.expect("read");
            entries
        }
    }

    /// A slot of the rings as a session has it. The mapping outlives the test.
    fn claim(rings: &RingReader, pid: u32) -> Slot {
        let mapped = memmap2::MmapOptions::new().map_raw(rings.file()).expect("mapped");
        let (base, len) = (mapped.as_mut_ptr(), mapped.len());
        std::mem::forget(mapped);
        // SAFETY: a shared mapping of the whole file, never unmapped.
        let ring = unsafe { Ring::attach(base, len) }.expect("it is ours");
        ring.claim(pid).expect("there are some")
    }

    fn say(slot: &Slot, record: Record<'_>) {
        let mut bytes = [0; RECORD_MAX];
        let len = record.encode(&mut bytes).expect("there is room");
        slot.push(&bytes[..len]);
    }

    /// What a session says of itself, of its only statement, and of how that ended.
    fn words(pid: u32, xid: u64) -> [Record<'static>; 3] {
        let (started_us, lsn) = (now_us(), Lsn::new(0x1000));
        let session = Session {
            pid,
            started_us,
            is_own: false,
            database: b"shop",
            session_role: b"app",
            role: b"app",
            application: b"psql",
            client: b"",
        };
        let text = b"update t set v = 1";
        let statement = Statement {
            number: 1,
            started_us,
            duration_us: 5,
            rows: Some(1),
            xid,
            wal: (lsn, Lsn::new(0x1100)),
            failed: None,
            text_len: text.len() as u64,
            text,
            parameters_count: 0,
            parameters: b"",
        };
        let end = TransactionEnd {
            end: End::Committed,
            at_us: started_us + 10,
            xid,
            lsn: Lsn::new(0x1200),
            first: 1,
            last: 1,
            children_count: 0,
            children: b"",
        };
        [Record::Session(session), Record::Statement(statement), Record::Transaction(end)]
    }

    /// The agent had taken none, one or two of a session's three records, and is killed with its Postgres.
    #[tokio::test]
    async fn what_sessions_said_just_before_agent_and_postgres_ended_is_their_own() {
        let place = Place::new();
        for (taken, pid) in [(0, 11), (1, 12), (2, 13)] {
            let mut writer = place.start().writer().expect("opened");
            let mut rings = RingReader::create(&place.rings, 4).expect("made");
            let slot = claim(&rings, pid);
            let words = words(pid, 100 + u64::from(pid));
            for word in &words[..taken] {
                say(&slot, *word);
                take(&mut rings, &mut writer).expect("taken");
            }
            words[taken..].iter().for_each(|word| say(&slot, *word));
            drop((rings, writer));
            let mut log = StatementLog::open(&place.start()).expect("opened");
            log.finish().await;
        }
        let entries = place.entries();
        let found: Vec<_> = entries.iter().map(|entry| (entry.pid, &entry.role[..], entry.outcome)).collect();
        assert_eq!(found, [11, 12, 13].map(|pid| (pid, "app", Outcome::Committed)), "{entries:?}");
    }

    #[test]
    fn the_rest_of_very_many_sessions_is_taken_whole() {
        let place = Place::new();
        let mut writer = place.start().writer().expect("opened");
        // Each about 120 kB: more than is taken between two orders.
        let count = (PORTIONS_MAX * BATCH_LEN / 110_000) as u32;
        let mut rings = RingReader::create(&place.rings, count).expect("made");
        let text = [b'x'; 10_000];
        for pid in 1..=count {
            let slot = claim(&rings, pid);
            let [session, Record::Statement(statement), _] = words(pid, 0) else { unreachable!() };
            say(&slot, session);
            let statement = Statement { text: &text, text_len: text.len() as u64, ..statement };
            (0..12).for_each(|_| say(&slot, Record::Statement(statement)));
        }
        assert!(take(&mut rings, &mut writer).expect("taken"));
        assert!(!rings.take(BATCH_LEN).expect("readable").is_empty(), "there is a rest");
        take_rest(&mut rings, &mut writer).expect("taken");
        assert!(rings.take(BATCH_LEN).expect("readable").is_empty(), "nothing is left");
    }

    #[tokio::test]
    async fn an_idle_log_is_written_when_asked_and_finished_twice() {
        let place = Place::new();
        let mut log = StatementLog::open(&place.start()).expect("opened");
        log.write().await;
        log.finish().await;
        log.finish().await;
        log.write().await;
        let mut log = StatementLog::open(&place.start()).expect("opened again");
        log.write().await;
        log.finish().await;
        assert!(place.entries().is_empty());
    }
}
