//! What Postgres says about itself in `postmaster.pid`.

use std::path::Path;

/// Index of the line with the state.
const STATUS_LINE: usize = 7;

/// The postmaster's process id, as it sees itself, once it accepts connections.
pub(crate) fn ready_pid(data: &Path) -> Option<u32> {
    parse(&std::fs::read_to_string(data.join("postmaster.pid")).ok()?)
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
    }
}
