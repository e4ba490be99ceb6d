//! The commands of Postgres's streaming replication protocol that a reader of WAL sends.

use ardent_types::{Lsn, PgTli};

/// A replication command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    IdentifySystem,
    /// `SHOW name`.
    Show(String),
    TimelineHistory(PgTli),
    ReadReplicationSlot(String),
    StartReplication {
        slot: Option<String>,
        start: Lsn,
        tli: Option<PgTli>,
    },
}

/// Parses a command; the error is the message for the client.
pub(crate) fn parse(text: &str) -> Result<Command, String> {
    let mut words = Words { rest: text.trim().trim_end_matches(';') };
    let command = match words.keyword().as_str() {
        "IDENTIFY_SYSTEM" => Command::IdentifySystem,
        "SHOW" => Command::Show(words.name()?),
        "TIMELINE_HISTORY" => Command::TimelineHistory(words.tli()?),
        "READ_REPLICATION_SLOT" => Command::ReadReplicationSlot(words.name()?),
        "START_REPLICATION" => words.start_replication()?,
        other => return Err(format!("a safekeeper does not know the command {other:?}")),
    };
    match words.rest.trim() {
        "" => Ok(command),
        more => Err(format!("unexpected {more:?} at the end of the command")),
    }
}

struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    fn word(&mut self) -> &'a str {
        let rest = self.rest.trim_start();
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let (word, rest) = rest.split_at(end);
        self.rest = rest;
        word
    }

    fn keyword(&mut self) -> String {
        self.word().to_ascii_uppercase()
    }

    /// The next word if it is this keyword.
    fn take(&mut self, keyword: &str) -> bool {
        let before = self.rest;
        let taken = self.word().eq_ignore_ascii_case(keyword);
        if !taken {
            self.rest = before;
        }
        taken
    }

    /// A name, perhaps in double quotes.
    fn name(&mut self) -> Result<String, String> {
        let word = self.word();
        let name = word.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')).unwrap_or(word);
        if name.is_empty() { Err("a name is missing".to_owned()) } else { Ok(name.to_owned()) }
    }

    fn tli(&mut self) -> Result<PgTli, String> {
        let word = self.word();
        word.parse().map(PgTli::new).map_err(|_| format!("not a timeline: {word:?}"))
    }

    fn start_replication(&mut self) -> Result<Command, String> {
        let slot = if self.take("SLOT") { Some(self.name()?) } else { None };
        // The word is optional, and physical is what it means without it.
        self.take("PHYSICAL");
        if self.take("LOGICAL") {
            return Err("a safekeeper streams WAL as it is; it does not decode it".to_owned());
        }
        let start = self.word().parse().map_err(|error: ardent_types::ParseLsnError| error.to_string())?;
        let tli = if self.take("TIMELINE") { Some(self.tli()?) } else { None };
        Ok(Command::StartReplication { slot, start, tli })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_as_pg_receivewal_sends_them() {
        let check = |text: &str, expect: Command| assert_eq!(parse(text), Ok(expect));
        check("IDENTIFY_SYSTEM", Command::IdentifySystem);
        check("SHOW wal_segment_size", Command::Show("wal_segment_size".to_owned()));
        check("TIMELINE_HISTORY 2", Command::TimelineHistory(PgTli::new(2)));
        check("READ_REPLICATION_SLOT oldest", Command::ReadReplicationSlot("oldest".to_owned()));
        let start = |slot: Option<&str>, tli| Command::StartReplication {
            slot: slot.map(str::to_owned),
            start: Lsn::new(0x1_0200_0000),
            tli,
        };
        check("START_REPLICATION SLOT \"oldest\" 1/2000000 TIMELINE 1", start(Some("oldest"), Some(PgTli::new(1))));
        check("start_replication physical 1/2000000;", start(None, None));
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in ["", "SELECT 1", "SHOW", "TIMELINE_HISTORY x", "START_REPLICATION LOGICAL 0/0", "IDENTIFY_SYSTEM 1"]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
