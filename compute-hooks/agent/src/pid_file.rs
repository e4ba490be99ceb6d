//! What Postgres says about itself in `postmaster.pid`.

use std::path::Path;

/// Index of the line with the time of the start, in seconds since the Unix epoch.
const START_LINE: usize = 2;
/// Index of the line with the state.
const STATUS_LINE: usize = 7;

/// The postmaster's process id, as it sees itself, once it accepts connections.
pub(crate) fn ready_pid(data: &Path) -> Option<u32> {
    parse(&std::fs::read_to_string(data.join("postmaster.pid")).ok()?)
}

/// When the postmaster was started, in microseconds since the Unix epoch, as a whole number of seconds.
pub(crate) fn started_us(data: &Path) -> Option<i64> {
    start_line(&std::fs::read_to_string(data.join("postmaster.pid")).ok()?)
}

fn start_line(text: &str) -> Option<i64> {
    text.lines().nth(START_LINE)?.trim().parse::<i64>().ok()?.checked_mul(1_000_000)
}

fn parse(text: &str) -> Option<u32> {
    let mut lines = text.lines();
    let pid = lines.next()?.trim().parse().ok()?;
    (lines.nth(STATUS_LINE - 1)?.trim() == "ready").then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_ready_server_has_a_pid() {
        let file = |status: &str| format!("2\n/ardent/data\n1700000000\n5432\n/ardent/run\n\n  1 2\n{status}\n");
        assert_eq!(parse(&file("ready   ")), Some(2));
        assert_eq!(parse(&file("starting")), None);
        assert_eq!(parse("2\n/ardent/data\n"), None);
        assert_eq!(parse(""), None);
        assert_eq!(start_line(&file("ready")), Some(1_700_000_000_000_000));
        assert_eq!((start_line("2\n/ardent/data\nsoon\n"), start_line("")), (None, None));
    }
}
