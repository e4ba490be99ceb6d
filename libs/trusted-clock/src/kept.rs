//! A trusted clock that looks at the host's clocks, and keeps what it saw in a file: `docs/formats/clock.md`.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::clock::{Doubt, Reading, TrustedClock};

/// `version` of the file.
const VERSION: u32 = 1;
/// How often it is written: what is lost in a crash of the host only makes the time for which it was off look longer.
const KEEP_EVERY: Duration = Duration::from_secs(60);

/// What the file holds.
#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    clock: TrustedClock,
}

/// See the module's documentation.
pub struct KeptClock {
    path: PathBuf,
    read: Box<dyn Fn() -> Reading + Send + Sync>,
    state: Mutex<State>,
}

struct State {
    clock: TrustedClock,
    /// When the file was last written, and the doubt that it names.
    kept: Option<(Duration, Option<Doubt>)>,
    cannot_keep: bool,
}

impl KeptClock {
    /// The host's clocks, with what the file at `path` says of them. A file that cannot be read stops nobody, but the wall clock has to
    /// stay where it is for a while before it is believed.
    pub fn open(path: PathBuf) -> KeptClock {
        KeptClock::open_with(path, &boot_id(), Reading::of_host)
    }

    /// The same with other clocks, for tests.
    pub fn open_with(path: PathBuf, boot: &str, read: impl Fn() -> Reading + Send + Sync + 'static) -> KeptClock {
        let now = read();
        let clock = match load(&path) {
            Ok(Some(kept)) => kept.resume(boot, now),
            Ok(None) => TrustedClock::first(boot, now),
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, %error, "what was last seen of the clock cannot be read: nothing is deleted for its age for an hour");
                TrustedClock::lost(boot, now)
            }
        };
        say(None, &clock);
        let state = State { clock, kept: None, cannot_keep: false };
        let opened = KeptClock { path, read: Box::new(read), state: Mutex::new(state) };
        opened.keep(&mut opened.state.lock());
        opened
    }

    /// Looks at the clocks, and gives the time by which things may be deleted, since the Unix epoch.
    pub fn look(&self) -> Duration {
        let mut state = self.state.lock();
        let now = (self.read)();
        let before = state.clock.doubt();
        let time = state.clock.look(now);
        say(before, &state.clock);
        let is_kept = |(at, doubt): (Duration, Option<Doubt>)| {
            doubt == state.clock.doubt() && now.since_boot.saturating_sub(at) < KEEP_EVERY
        };
        if !state.kept.is_some_and(is_kept) {
            self.keep(&mut state);
        }
        time
    }

    /// Why the wall clock is not believed now, with what to do; `None`: it is.
    pub fn problem(&self) -> Option<String> {
        self.state.lock().clock.problem()
    }

    /// A clock that cannot be kept goes right until the program ends.
    fn keep(&self, state: &mut State) {
        match store(&self.path, &state.clock) {
            Ok(()) => {
                state.cannot_keep = false;
                state.kept = Some(((self.read)().since_boot, state.clock.doubt()));
            }
            Err(error) => {
                if !state.cannot_keep {
                    let path = self.path.display();
                    tracing::warn!(%path, %error, "what is seen of the clock cannot be kept over a restart; trying again");
                }
                state.cannot_keep = true;
            }
        }
    }
}

impl fmt::Debug for KeptClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptClock").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Logs what has become of doubt.
fn say(before: Option<Doubt>, clock: &TrustedClock) {
    if before == clock.doubt() {
        return;
    }
    match clock.problem() {
        Some(problem) => tracing::warn!("{problem}"),
        None => tracing::info!("this host's clock is believed again"),
    }
}

fn load(path: &Path) -> io::Result<Option<TrustedClock>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    let content: Content = serde_json::from_slice(&bytes)?;
    if content.version != VERSION {
        return Err(io::Error::other(format!("version {VERSION} was expected, found {}", content.version)));
    }
    Ok(Some(content.clock))
}

/// Under another name first: a crash leaves the old content or the new.
fn store(path: &Path, clock: &TrustedClock) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(&serde_json::to_vec(&Content { version: VERSION, clock: clock.clone() })?)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Which start of the host this is; empty if it does not say.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| String::new(), |text| text.trim().to_owned())
}

impl Reading {
    /// What this host's clocks say.
    pub fn of_host() -> Reading {
        // A clock before 1970 is one that is behind.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `at` is a place for the answer for as long as the call takes.
        let answer = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut at) };
        assert_eq!(answer, 0, "Linux has had this clock since 2.6.39");
        let seconds = u64::try_from(at.tv_sec).unwrap_or_default();
        let nanoseconds = u32::try_from(at.tv_nsec).unwrap_or_default();
        Reading { wall, since_boot: Duration::new(seconds, nanoseconds) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const WEEK: Duration = Duration::from_secs(7 * 86_400);
    const MINUTE: Duration = Duration::from_secs(60);

    /// Clocks that a test sets.
    #[derive(Clone)]
    struct Clocks(Arc<Mutex<Reading>>);

    impl Clocks {
        fn new() -> Clocks {
            let now = Reading { wall: Duration::from_secs(1_800_000_000), since_boot: Duration::from_secs(1000) };
            Clocks(Arc::new(Mutex::new(now)))
        }

        fn open(&self, path: &Path, boot: &str) -> KeptClock {
            let clocks = self.clone();
            KeptClock::open_with(path.to_owned(), boot, move || *clocks.0.lock())
        }

        fn wall(&self) -> Duration {
            self.0.lock().wall
        }

        fn pass(&self, time: Duration) {
            let mut now = self.0.lock();
            now.wall += time;
            now.since_boot += time;
        }
    }

    #[test]
    fn what_was_seen_outlives_the_program() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("clock");
        let clocks = Clocks::new();
        let clock = clocks.open(&path, "a");
        assert_eq!((clock.look(), clock.problem()), (clocks.wall(), None), "a first start");
        clocks.0.lock().wall += WEEK;
        drop(clock);
        let clock = clocks.open(&path, "a");
        assert!(clock.look() <= clocks.wall() - WEEK + MINUTE);
        assert!(clock.problem().is_some());
        // The doubt is kept as well, and for how long it has been there.
        clocks.pass(MINUTE * 60 * 23);
        clock.look();
        drop(clock);
        clocks.pass(MINUTE * 61);
        let clock = clocks.open(&path, "a");
        assert_eq!((clock.look(), clock.problem()), (clocks.wall(), None));
    }

    #[test]
    fn a_damaged_file_is_no_first_start() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("clock");
        let clocks = Clocks::new();
        drop(clocks.open(&path, "a"));
        let whole = fs::read(&path).expect("it is there");
        let other_version = String::from_utf8(whole.clone()).expect("text").replace("\"version\":1", "\"version\":2");
        for bytes in [&whole[..whole.len() / 2], &b""[..], other_version.as_bytes()] {
            fs::write(&path, bytes).expect("written");
            let clock = clocks.open(&path, "a");
            assert!(clock.look() < clocks.wall() - WEEK);
            clocks.pass(MINUTE * 61);
            assert_eq!(clock.look(), clocks.wall());
        }
    }

    #[test]
    fn a_file_of_version_1_is_read() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("clock");
        let text = r#"{"version":1,"clock":{"boot":"a","time":{"secs":1799000000,"nanos":5},"looked":{"secs":1000,"nanos":0},"origin":{"secs":1798999000,"nanos":5},"doubt":{"origin":{"secs":1799999000,"nanos":0},"since":{"secs":900,"nanos":0},"wait":{"secs":86400,"nanos":0},"is_start":false}}}"#;
        fs::write(&path, text).expect("written");
        let clocks = Clocks::new();
        let clock = clocks.open(&path, "a");
        assert!(clock.look() < Duration::from_secs(1_799_000_061), "{:?}", clock.look());
        clocks.pass(Duration::from_secs(86_300));
        assert_eq!(clock.look(), clocks.wall(), "a day since the doubt began");
    }

    #[test]
    fn a_clock_that_cannot_be_kept_goes_on() {
        let folder = tempfile::tempdir().expect("folder");
        let clocks = Clocks::new();
        let clock = clocks.open(&folder.path().join("nowhere/clock"), "a");
        clocks.pass(MINUTE);
        assert_eq!(clock.look(), clocks.wall());
    }

    #[test]
    fn the_host_has_both_clocks() {
        let (first, second) = (Reading::of_host(), Reading::of_host());
        assert!(first.wall > Duration::from_secs(1_700_000_000) && first.since_boot > Duration::ZERO, "{first:?}");
        assert!(second.since_boot >= first.since_boot);
    }
}
