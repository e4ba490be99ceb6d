//! Which of what a wall clock says is believed: without I/O.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How far the wall clock may be from where it should be and is believed all the same: corrections by NTP, pauses of a virtual machine.
const SLACK: Duration = Duration::from_secs(60);
/// The part of the time that has passed by which a clock may run too fast or too slow for good: twice what NTP corrects by.
const DRIFT: u32 = 1000;
/// How far a wall clock may move, drift apart, and is said to stay where it is.
const STEADY: Duration = Duration::from_secs(5);
/// A jump is believed when the wall clock has stayed there for as long as it jumped, and this long at most: whoever is told has that time to set
/// it right, and a virtual machine that sleeps every night, without knowing it, catches up every day.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);
/// For how long a host may have been off without anybody having to wait: so much of the history is worth no question.
const OFF_MAX: Duration = Duration::from_secs(3600);
/// How long the wall clock has to stay where it is after a start of a host that was off for longer. That is a usual thing, also for a month,
/// and clocks that are wrong at a start are set right by NTP within minutes.
const START_WAIT: Duration = Duration::from_secs(3600);

/// What a host's clocks say at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The wall clock, since the Unix epoch.
    pub wall: Duration,
    /// The time since the host's start, that in which it slept included. Nobody can set it.
    pub since_boot: Duration,
}

impl Reading {
    /// What the wall clock would have said when the host started, had it been then as it is now.
    fn origin(&self) -> Duration {
        self.wall.saturating_sub(self.since_boot)
    }
}

/// A wall clock that is not believed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    /// What it would have said when the host started.
    origin: Duration,
    /// Since when it stays there, in time since the host's start.
    since: Duration,
    /// For how long it has to.
    wait: Duration,
    /// It has not jumped while somebody watched: the host was off, or the clock was not set yet.
    is_start: bool,
}

/// The time by which things may be deleted for their age.
///
/// It is the wall clock's as long as that keeps to the time since the host's start, which nobody can set. When the wall clock jumps
///
/// - forward, the time goes on by what passes, until the wall clock has stayed where it is for as long as it jumped, a day at most;
/// - backward, it stands still, until the wall clock has caught up, or has stayed back for that long: then it was wrong before, and the
///   time goes back.
///
/// What was seen is kept over restarts of the program, which tell nothing about the clock: the time since the host's start goes on. After
/// a start of the host nobody knows how long it was off. An hour is believed; more than that when the clock has stayed for an hour where it
/// is, but for a clock that was in doubt before: starting a host again makes no wrong clock right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustedClock {
    /// Which start of the host times since its start are of.
    boot: String,
    /// The time at the last look.
    time: Duration,
    /// When that was, since the host's start.
    looked: Duration,
    /// What the wall clock said, or would have said, when the host started, as far as it is believed.
    origin: Duration,
    doubt: Option<Doubt>,
}

impl TrustedClock {
    /// For a first start: there is nothing yet that could be deleted too early.
    pub fn first(boot: &str, now: Reading) -> TrustedClock {
        TrustedClock {
            boot: boot.to_owned(),
            time: now.wall,
            looked: now.since_boot,
            origin: now.origin(),
            doubt: None,
        }
    }

    /// Where it is not known what was seen, though there was something: the wall clock has to stay where it is first.
    pub fn lost(boot: &str, now: Reading) -> TrustedClock {
        let nothing_seen = TrustedClock {
            boot: String::new(),
            time: Duration::ZERO,
            looked: Duration::ZERO,
            origin: Duration::ZERO,
            doubt: None,
        };
        nothing_seen.resume(boot, now)
    }

    /// Goes on from what was kept. An empty `boot`: which start of the host this is cannot be told.
    pub fn resume(mut self, boot: &str, now: Reading) -> TrustedClock {
        let is_same_run = !boot.is_empty() && boot == self.boot && now.since_boot >= self.looked;
        if is_same_run {
            self.look(now);
            return self;
        }
        let was_doubted = self.doubt.is_some_and(|doubt| !doubt.is_start);
        self.boot = boot.to_owned();
        self.looked = now.since_boot;
        let is_near = now.wall <= self.time.saturating_add(OFF_MAX) && self.time <= now.wall.saturating_add(SLACK);
        if is_near {
            (self.origin, self.doubt) = (now.origin(), None);
        } else {
            self.origin = self.time.saturating_sub(now.since_boot);
            let jump = now.wall.abs_diff(self.time);
            let wait = if was_doubted { jump.min(WAIT_MAX) } else { START_WAIT };
            self.doubt = Some(Doubt { origin: now.origin(), since: now.since_boot, wait, is_start: !was_doubted });
        }
        self.look(now);
        self
    }

    /// Takes note of what the clocks say now, and gives the time, since the Unix epoch.
    pub fn look(&mut self, now: Reading) -> Duration {
        let passed = now.since_boot.saturating_sub(self.looked);
        self.looked = self.looked.max(now.since_boot);
        let jump = now.origin().abs_diff(self.origin);
        if jump <= SLACK {
            self.doubt = None;
            // Not at once: many small jumps would make a large one.
            let step = jump.min(passed / DRIFT);
            let is_ahead = now.origin() > self.origin;
            self.origin = if is_ahead { self.origin.saturating_add(step) } else { self.origin.saturating_sub(step) };
        } else {
            self.weigh(now, jump);
        }
        let latest = self.origin.saturating_add(now.since_boot).saturating_add(SLACK);
        self.time = self.time.max(now.wall.min(latest));
        self.time
    }

    /// A wall clock that is somewhere else than it should be is believed, or not yet.
    fn weigh(&mut self, now: Reading, jump: Duration) {
        let stays = |doubt: &Doubt| {
            let moved = doubt.origin.abs_diff(now.origin());
            moved <= STEADY.saturating_add(now.since_boot.saturating_sub(doubt.since) / DRIFT)
        };
        match self.doubt {
            Some(doubt) if stays(&doubt) => {
                if now.since_boot.saturating_sub(doubt.since) >= doubt.wait {
                    (self.origin, self.time, self.doubt) = (now.origin(), now.wall, None);
                }
            }
            known => {
                // One that is wrong at a start is set right soon after it.
                let is_start = known.is_some_and(|doubt| doubt.is_start);
                let wait = if is_start { START_WAIT } else { jump.min(WAIT_MAX) };
                self.doubt = Some(Doubt { origin: now.origin(), since: now.since_boot, wait, is_start });
            }
        }
    }

    /// The time at the last look.
    pub fn time(&self) -> Duration {
        self.time
    }

    /// The doubt there is, if any.
    pub fn doubt(&self) -> Option<Doubt> {
        self.doubt
    }

    /// The doubt in words, with what to do.
    pub fn problem(&self) -> Option<String> {
        let doubt = self.doubt?;
        let jump = rough(doubt.origin.abs_diff(self.origin));
        let whence = if doubt.origin > self.origin { "ahead of" } else { "behind" };
        let what = match doubt.is_start {
            true => "the time when this server was seen last",
            false => "where it should be by the time that has passed",
        };
        let left = rough(doubt.wait.saturating_sub(self.looked.saturating_sub(doubt.since)));
        Some(format!(
            "this host's clock is {jump} {whence} {what}: nothing is deleted for its age by it until it has stayed there for {left} more; \
             if it is wrong, set it right before that, and if it is right, there is nothing to do"
        ))
    }
}

/// A length of time, in the unit that fits it.
fn rough(length: Duration) -> String {
    match length.as_secs() {
        seconds if seconds >= 2 * 86_400 => format!("{} days", seconds / 86_400),
        seconds if seconds >= 2 * 3600 => format!("{} hours", seconds / 3600),
        seconds if seconds >= 2 * 60 => format!("{} minutes", seconds / 60),
        seconds => format!("{seconds} seconds"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(86_400);
    /// The wall clock when the host starts.
    const START: Duration = Duration::from_secs(1_800_000_000);

    /// A host whose wall clock can be set, and a clock that looks at it once a minute.
    struct Host {
        now: Reading,
        boot: u32,
        clock: TrustedClock,
    }

    impl Host {
        fn new() -> Host {
            let now = Reading { wall: START, since_boot: Duration::ZERO };
            Host { now, boot: 1, clock: TrustedClock::first("boot 1", now) }
        }

        /// So much time passes. The clock never gets ahead of what has passed since the host's start, or of the wall clock but to stand still.
        fn pass(&mut self, time: Duration) -> &mut Host {
            let end = self.now.since_boot + time;
            while self.now.since_boot < end {
                let step = MINUTE.min(end - self.now.since_boot);
                self.now.since_boot += step;
                self.now.wall += step;
                let before = self.clock.clone();
                let time = self.clock.look(self.now);
                let is_believed_now = before.doubt().is_some() && self.clock.doubt().is_none();
                if !is_believed_now {
                    assert!(time >= before.time(), "{before:?}");
                    assert!(time == before.time() || time <= self.now.wall, "{before:?}");
                    let passed = before.origin + self.now.since_boot;
                    assert!(time <= passed + step / DRIFT + SLACK, "{before:?}");
                }
            }
            self
        }

        fn forward(&mut self, by: Duration) -> &mut Host {
            self.now.wall += by;
            self
        }

        fn back(&mut self, by: Duration) -> &mut Host {
            self.now.wall -= by;
            self
        }

        /// The program ends, and starts again from what it has kept.
        fn restart(&mut self) -> &mut Host {
            let kept = serde_json::to_string(&self.clock).expect("plain data");
            let kept: TrustedClock = serde_json::from_str(&kept).expect("what was written");
            self.clock = kept.resume(&format!("boot {}", self.boot), self.now);
            self
        }

        /// The host is off for so long.
        fn off(&mut self, time: Duration) -> &mut Host {
            self.boot += 1;
            self.now = Reading { wall: self.now.wall + time, since_boot: MINUTE };
            self.restart()
        }

        /// How far the clock is behind the wall clock, to the slack and the minutes between.
        fn check_behind(&self, by: Duration) {
            let behind = self.now.wall.saturating_sub(self.clock.time());
            assert!(behind.abs_diff(by) <= SLACK * 3, "{behind:?} behind, {by:?} expected: {:?}", self.clock);
        }

        fn check_is_believed(&self) {
            assert_eq!((self.clock.time(), self.clock.doubt()), (self.now.wall, None));
            assert_eq!(self.clock.problem(), None);
        }
    }

    #[test]
    fn a_clock_that_goes_right_is_believed() {
        let mut host = Host::new();
        host.pass(DAY * 30).check_is_believed();
        for _ in 0..100 {
            host.forward(MINUTE / 120).pass(HOUR).check_is_believed();
            host.restart().check_is_believed();
        }
    }

    #[test]
    fn a_jump_forward_is_believed_once_it_has_stood_and_not_before() {
        let mut host = Host::new();
        host.pass(DAY).forward(DAY * 7).pass(MINUTE).check_behind(DAY * 7);
        let problem = host.clock.problem().expect("it is told");
        assert!(problem.contains("7 days ahead of where it should be"), "{problem}");
        assert!(problem.contains("24 hours more") && problem.contains("set it right"), "{problem}");
        host.pass(HOUR * 23).check_behind(DAY * 7);
        host.pass(HOUR).check_is_believed();
    }

    #[test]
    fn a_clock_that_is_set_right_again_has_cost_nothing() {
        let mut host = Host::new();
        host.pass(DAY).forward(DAY * 7).pass(HOUR * 20).check_behind(DAY * 7);
        host.back(DAY * 7).pass(MINUTE).check_is_believed();
        // The time for which it was wrong does not count for the next time.
        host.forward(DAY * 7).pass(HOUR * 20).check_behind(DAY * 7);
    }

    #[test]
    fn many_small_jumps_are_a_large_one() {
        let mut host = Host::new();
        host.pass(HOUR);
        for _ in 0..120 {
            host.forward(MINUTE / 2).pass(MINUTE);
        }
        host.check_behind(HOUR);
    }

    #[test]
    fn a_machine_that_sleeps_every_night_without_knowing_it_catches_up_every_day() {
        let mut host = Host::new();
        for _ in 0..10 {
            host.pass(HOUR * 15).forward(HOUR * 9).pass(MINUTE).check_behind(HOUR * 9);
            host.pass(HOUR * 9).check_is_believed();
        }
    }

    #[test]
    fn a_clock_that_goes_back_stands_still_and_is_believed_when_it_has_stayed_back() {
        let mut host = Host::new();
        host.pass(DAY);
        let before = host.clock.time();
        host.back(HOUR * 2).pass(HOUR);
        assert_eq!(host.clock.time(), before);
        assert!(host.clock.problem().expect("it is told").contains("behind where it should be"));
        // It was right in the end: as if nothing had been.
        host.forward(HOUR * 2).pass(MINUTE).check_is_believed();
        // A year ahead for a day: what is deleted then is lost, but the years to come are not without any deletion.
        host.forward(DAY * 365).pass(HOUR * 25).check_is_believed();
        host.back(DAY * 365).pass(HOUR * 25).check_is_believed();
    }

    #[test]
    fn a_restart_of_the_program_changes_nothing() {
        let mut host = Host::new();
        host.pass(DAY).forward(DAY * 7).restart().check_behind(DAY * 7);
        for _ in 0..23 {
            host.pass(HOUR).restart().check_behind(DAY * 7);
        }
        host.pass(HOUR).restart().check_is_believed();
        // Nobody looks for a month, and the time goes on all the same.
        host.now.since_boot += DAY * 30;
        host.now.wall += DAY * 30;
        host.restart().check_is_believed();
    }

    #[test]
    fn a_host_that_was_off_for_long_goes_on_without_help() {
        let mut host = Host::new();
        host.pass(DAY).off(HOUR / 2).check_is_believed();
        host.pass(DAY).off(DAY * 30).check_behind(DAY * 30);
        let problem = host.clock.problem().expect("it is told");
        assert!(problem.contains("30 days ahead of the time when this server was seen last"), "{problem}");
        host.pass(HOUR - MINUTE * 2).restart().check_behind(DAY * 30);
        host.pass(MINUTE * 2).check_is_believed();
    }

    #[test]
    fn a_clock_that_is_wrong_at_a_start_is_set_right_in_time() {
        let mut host = Host::new();
        host.pass(DAY).forward(DAY * 7300).off(HOUR * 8).pass(MINUTE * 10);
        host.check_behind(DAY * 7300 + HOUR * 8);
        host.back(DAY * 7300).pass(MINUTE).check_behind(HOUR * 8);
        host.pass(HOUR).check_is_believed();
        // In 1970, for a while.
        let wall = host.now.wall;
        host.now.wall = MINUTE;
        host.off(HOUR * 8).pass(MINUTE);
        assert!(host.clock.time() <= wall);
        host.now.wall = wall + HOUR * 9;
        host.pass(MINUTE).check_behind(HOUR * 9);
        host.pass(HOUR).check_is_believed();
    }

    #[test]
    fn starting_the_host_again_makes_no_wrong_clock_right() {
        let mut host = Host::new();
        host.pass(DAY).forward(DAY * 7).pass(MINUTE).off(MINUTE).pass(HOUR * 20).check_behind(DAY * 7);
        host.pass(HOUR * 5).check_is_believed();
    }

    #[test]
    fn what_is_lost_is_not_taken_for_a_first_start() {
        let now = Reading { wall: START, since_boot: DAY };
        for boot in ["", "boot 1"] {
            let mut clock = TrustedClock::lost(boot, now);
            assert!(clock.time() < START - DAY, "{clock:?}");
            let later = Reading { wall: START + HOUR, since_boot: DAY + HOUR };
            assert_eq!(clock.look(later), later.wall);
        }
        // Which start of the host it was is not known: it may be any.
        let unknown = TrustedClock::first("", now).resume("", Reading { wall: START + DAY, since_boot: DAY * 2 });
        assert!(unknown.doubt().is_some());
    }

    #[test]
    fn a_kept_clock_of_nonsense_is_no_panic() {
        let text = format!(
            r#"{{"boot":"a","time":{{"secs":{max},"nanos":0}},"looked":{{"secs":{max},"nanos":0}},"origin":{{"secs":{max},"nanos":0}},
            "doubt":{{"origin":{{"secs":{max},"nanos":0}},"since":{{"secs":{max},"nanos":0}},"wait":{{"secs":{max},"nanos":0}},"is_start":false}}}}"#,
            max = u64::MAX
        );
        for boot in ["a", "b"] {
            let clock: TrustedClock = serde_json::from_str(&text).expect("well formed");
            let mut clock = clock.resume(boot, Reading { wall: START, since_boot: DAY });
            clock.look(Reading { wall: Duration::MAX, since_boot: Duration::MAX });
            assert!(clock.problem().is_none_or(|problem| !problem.is_empty()));
        }
    }
}
