//! On which of its timelines a server's WAL is: `TIMELINE_HISTORY`, see Postgres's "Streaming Replication Protocol".

use ardent_types::{Lsn, PgTli, WalSegmentSize};

use crate::connection::Connection;
use crate::error::WireError;

/// The timelines that a server came over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineHistory {
    /// Each earlier timeline and the first byte that is not on it any more, oldest first.
    switches: Vec<(PgTli, Lsn)>,
    current: PgTli,
}

impl TimelineHistory {
    /// The newest timeline with a file that holds `lsn`: the file in which a timeline begins has a copy of what came before.
    pub fn tli_of_segment(&self, lsn: Lsn, segment_size: WalSegmentSize) -> PgTli {
        let segment = lsn.segment_number(segment_size);
        let holder = self.switches.iter().find(|(_, end)| segment < end.segment_number(segment_size));
        holder.map_or(self.current, |(tli, _)| *tli)
    }

    /// A history file; what follows a line's second field is for people.
    fn parse(text: &str, current: PgTli) -> Option<TimelineHistory> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let switch = |line: &str| {
            let mut fields = line.split_ascii_whitespace();
            Some((PgTli::new(fields.next()?.parse().ok()?), fields.next()?.parse().ok()?))
        };
        Some(TimelineHistory { switches: lines.map(switch).collect::<Option<_>>()?, current })
    }
}

impl Connection {
    /// The history of the timeline that the server is on. Needs a replication connection.
    pub async fn timeline_history(&mut self, current: PgTli) -> Result<TimelineHistory, WireError> {
        let none = TimelineHistory { switches: Vec::new(), current };
        // The first one has no file.
        if current == PgTli::new(1) {
            return Ok(none);
        }
        let result = match self.query(&format!("TIMELINE_HISTORY {current}")).await {
            // Undefined file: a server whose timeline was set by pg_resetwal.
            Err(error) if error.code() == Some("58P01") => return Ok(none),
            result => result?,
        };
        let text = result.value("content").unwrap_or_default();
        TimelineHistory::parse(text, current)
            .ok_or_else(|| WireError::protocol(format!("a history of timeline {current} that cannot be read")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_on_the_newest_timeline_that_has_a_file_of_it() {
        let text =
            "1\t0/3000148\tno recovery target specified\n\n# a comment\n3\t0/5000000\tat restore point \"x y\"\n";
        let history = TimelineHistory::parse(text, PgTli::new(4)).expect("well-formed");
        let size = WalSegmentSize::new(16 << 20).expect("16 MB");
        for (lsn, tli) in [(0x200_0000, 1), (0x300_0000, 3), (0x300_0148, 3), (0x4FF_FFFF, 3), (0x500_0000, 4)] {
            assert_eq!(history.tli_of_segment(Lsn::new(lsn), size), PgTli::new(tli), "{lsn:X}");
        }
        assert_eq!(TimelineHistory::parse("1 nonsense", PgTli::new(2)), None);
        assert_eq!(TimelineHistory::parse("", PgTli::new(2)).map(|history| history.switches), Some(Vec::new()));
    }
}
