//! What `ardent status` and `ardent doctor` say of the safekeepers.

use ardent_api::control::{ApiErrorCode, SafekeeperChange, SafekeeperInfo, SafekeepersReply};

use super::safekeeper_change;
use crate::api::Api;
use crate::duration::{bytes_text, seconds_text};
use crate::failure::Failure;

/// Less than this another safekeeper may lack at any moment.
const KEPT_SHOWN_BYTES: u64 = 128 << 20;

/// Something that will not mend itself, or shows that something is broken.
#[derive(Debug, PartialEq, Eq)]
pub struct Concern {
    pub message: String,
    /// What to do.
    pub fix: String,
}

/// What the server tells.
#[derive(Debug, Default)]
pub struct Told {
    /// Each of them.
    pub safekeepers: Vec<SafekeeperInfo>,
    /// Of the list of them; 0: they never changed.
    pub generation: u64,
    /// A change that is on its way.
    pub change: Option<SafekeeperChange>,
}

/// Asks the server. One of an older version tells of none.
pub fn ask(api: &Api) -> Result<Told, Failure> {
    match api.get::<SafekeepersReply>("/v1/safekeepers") {
        Ok(SafekeepersReply { safekeepers, generation, change, .. }) => Ok(Told { safekeepers, generation, change }),
        Err(failure) if failure.info.code == ApiErrorCode::NotFound => Ok(Told::default()),
        Err(failure) => Err(failure),
    }
}

/// How a change is that is on its way, and of which generation the list is; `None` as long as they never changed.
pub fn change_text(told: &Told) -> Option<String> {
    let generation = told.generation;
    match &told.change {
        Some(change) => Some(format!("{} (generation {generation})", safekeeper_change::progress(change))),
        None => (generation > 0).then(|| format!("none on its way (generation {generation})")),
    }
}

/// That a change waits, if it does.
pub fn change_concern(told: &Told) -> Option<Concern> {
    let change = told.change.as_ref()?;
    let problem = change.problem.as_ref()?;
    Some(Concern {
        message: format!("the change of the safekeepers ({}) waits: {problem}", change.phase.as_str()),
        fix: "it goes on by itself when that is mended; ardent reconfigure safekeepers --cancel gives it up".to_owned(),
    })
}

/// `3, all up`, `2 of 3 up`.
pub fn summary(safekeepers: &[SafekeeperInfo]) -> String {
    let (all, up) = (safekeepers.len(), safekeepers.iter().filter(|one| one.is_up).count());
    match (all, up) {
        (0, _) => "the server is of an older version and does not tell".to_owned(),
        (1, 1) => "1, up".to_owned(),
        (all, up) if all == up => format!("{all}, all up"),
        (all, up) => format!("{up} of {all} up"),
    }
}

/// What is wrong with them.
pub fn concerns(safekeepers: &[SafekeeperInfo]) -> Vec<Concern> {
    let all_up = safekeepers.iter().all(|one| one.is_up);
    safekeepers.iter().flat_map(|one| concerns_of(one, all_up)).collect()
}

fn concerns_of(one: &SafekeeperInfo, all_up: bool) -> Vec<Concern> {
    let number = one.number;
    let mut found = Vec::new();
    if let Some(error) = &one.error {
        let (state, fix) = if one.is_up {
            ("does not say how it is", "see its log; all roles must be of one version".to_owned())
        } else {
            (
                "is away",
                format!(
                    "mount its disk or start it; if its disk is lost: ardent reconfigure safekeepers --replace {number}"
                ),
            )
        };
        found.push(Concern { message: format!("safekeeper {number} {state}: {error}"), fix });
    }
    if let Some(kept) = one.kept_for_others_bytes.filter(|kept| *kept >= KEPT_SHOWN_BYTES) {
        let free = one.disk_free_bytes.map(|free| format!(", {} of its disk are free", bytes_text(free)));
        let fix = match (one.archives, all_up) {
            (Some(true), _) => "it goes when that one has caught up; of each branch 1 GB is kept at most",
            (_, true) => "it goes when that one has caught up; ardent up --wal-archive on sets a bound",
            (_, false) => {
                "bring back the one that is away before the disk is full; ardent up --wal-archive on sets a bound"
            }
        };
        found.push(Concern {
            message: format!(
                "safekeeper {number} keeps {} of WAL that another one lacks{}",
                bytes_text(kept),
                free.unwrap_or_default()
            ),
            fix: fix.to_owned(),
        });
    }
    for stall in &one.archive_stalls {
        let whose = match &stall.branch {
            Some(branch) => format!("branch {branch}"),
            None => format!("timeline {}", stall.timeline),
        };
        found.push(Concern {
            message: format!(
                "safekeeper {number} has not got the WAL of {whose} at {} into the store for {}: {}",
                stall.lsn,
                seconds_text(stall.for_s),
                stall.error
            ),
            fix: "until it is there, none of it leaves the safekeeper's disk; it is tried again by itself".to_owned(),
        });
    }
    let more = one.archive_stalls_total.saturating_sub(one.archive_stalls.len() as u64);
    if more > 0 {
        found.push(Concern {
            message: format!("safekeeper {number}: the same of {more} more"),
            fix: "ardent status --json has the first ones".to_owned(),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    use ardent_api::control::ArchiveStallInfo;
    use ardent_types::{Lsn, TimelineId};

    fn up(number: u32) -> SafekeeperInfo {
        SafekeeperInfo {
            number,
            address: format!("unix:/run/{number}"),
            disk: None,
            is_up: true,
            error: None,
            disk_free_bytes: Some(3 << 30),
            disk_size_bytes: Some(10 << 30),
            kept_for_others_bytes: Some(1 << 20),
            archives: Some(false),
            archive_stalls: Vec::new(),
            archive_stalls_total: 0,
        }
    }

    fn away(number: u32) -> SafekeeperInfo {
        SafekeeperInfo {
            is_up: false,
            error: Some("nobody listens".to_owned()),
            kept_for_others_bytes: None,
            ..up(number)
        }
    }

    fn check(safekeepers: Vec<SafekeeperInfo>, expect_summary: &str, expect: &[(&str, &str)]) {
        assert_eq!(summary(&safekeepers), expect_summary);
        let found = concerns(&safekeepers);
        assert_eq!(found.len(), expect.len(), "{found:?}");
        for (concern, (message, fix)) in found.iter().zip(expect) {
            assert!(concern.message.contains(message) && concern.fix.contains(fix), "{concern:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        check(Vec::new(), "the server is of an older version and does not tell", &[]);
        check(vec![up(1)], "1, up", &[]);
        check(vec![up(1), up(2), up(3)], "3, all up", &[]);
        check(
            vec![SafekeeperInfo { kept_for_others_bytes: Some(2 << 30), ..up(1) }, up(2), away(3)],
            "2 of 3 up",
            &[
                (
                    "safekeeper 1 keeps 2.0 GB of WAL that another one lacks, 3.0 GB of its disk are free",
                    "--wal-archive on",
                ),
                ("safekeeper 3 is away: nobody listens", "ardent reconfigure safekeepers --replace 3"),
            ],
        );
        check(
            vec![SafekeeperInfo { error: Some("invalid".to_owned()), ..up(1) }],
            "1, up",
            &[("safekeeper 1 does not say how it is: invalid", "one version")],
        );
        let stall = |branch: Option<&str>| ArchiveStallInfo {
            branch: branch.map(str::to_owned),
            timeline: TimelineId::from_bytes([7; 16]),
            lsn: Lsn::new(0x0100_0000),
            for_s: 90,
            error: "it holds other WAL".to_owned(),
        };
        check(
            vec![SafekeeperInfo {
                archives: Some(true),
                archive_stalls: vec![stall(Some("shop")), stall(None)],
                archive_stalls_total: 5,
                ..up(1)
            }],
            "1, up",
            &[
                ("the WAL of branch shop at 0/01000000 into the store for 90 s: it holds other WAL", "tried again"),
                ("the WAL of timeline 0707", "tried again"),
                ("the same of 3 more", "--json"),
            ],
        );
    }
}
