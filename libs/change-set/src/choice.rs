//! What of a change set is wanted, in words.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A row, by its table and its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowChoice {
    /// Its table, as `name` or `schema.name`.
    pub table: String,
    /// Values of the key's columns, in their order.
    pub key: Vec<String>,
}

/// It is not written as a row is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not TABLE:KEY, such as public.users:42, or public.lines:7,b for a key of two columns")]
pub struct NotARow {
    text: String,
}

impl FromStr for RowChoice {
    type Err = NotARow;

    /// `TABLE:VALUE[,VALUE]...`. A table's name that has a colon, or a value that has a comma, goes in double quotes, which are
    /// doubled inside.
    fn from_str(text: &str) -> Result<Self, NotARow> {
        let malformed = || NotARow { text: text.to_owned() };
        let (table, rest) = split_off(text, ':').ok_or_else(malformed)?;
        let (mut key, mut rest) = (Vec::new(), rest.ok_or_else(malformed)?);
        loop {
            let (value, more) = split_off(rest, ',').ok_or_else(malformed)?;
            key.push(value);
            match more {
                Some(more) => rest = more,
                None => break,
            }
        }
        if table.is_empty() { Err(malformed()) } else { Ok(RowChoice { table, key }) }
    }
}

/// What comes before `end`, without quotes, and what comes after it, if it is there. `None`: a quote is not closed.
fn split_off(text: &str, end: char) -> Option<(String, Option<&str>)> {
    let (mut out, mut quoted) = (String::new(), false);
    let mut letters = text.char_indices().peekable();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' if quoted && letters.peek().is_some_and(|next| next.1 == '"') => {
                letters.next();
                out.push('"');
            }
            '"' => quoted = !quoted,
            _ if letter == end && !quoted => return Some((out, Some(&text[at + letter.len_utf8()..]))),
            _ => out.push(letter),
        }
    }
    (!quoted).then_some((out, None))
}

impl fmt::Display for RowChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = |text: &str| {
            let plain = !text.contains(['"', ',', ':']);
            if plain { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
        };
        let key: Vec<String> = self.key.iter().map(|value| quote(value)).collect();
        write!(f, "{}:{}", quote(&self.table), key.join(","))
    }
}

/// Whether `wanted` (`name` or `schema.name`) is this table.
pub(crate) fn names_table(wanted: &str, schema: &str, name: &str) -> bool {
    wanted == name || wanted.strip_prefix(schema).and_then(|rest| rest.strip_prefix('.')) == Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_written_and_read() {
        let check = |text: &str, table: &str, key: &[&str]| {
            let row: RowChoice = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(
                (row.table.as_str(), row.key.iter().map(String::as_str).collect::<Vec<_>>()),
                (table, key.to_vec())
            );
            assert_eq!(row.to_string().parse::<RowChoice>().as_ref(), Ok(&row));
        };
        check("public.users:42", "public.users", &["42"]);
        check("lines:7,b", "lines", &["7", "b"]);
        check("log:2026-01-31 12:00:00+00", "log", &["2026-01-31 12:00:00+00"]);
        check("t:\"a,\"\"b\"\"\",", "t", &["a,\"b\"", ""]);
        check("\"odd:name\":ü", "odd:name", &["ü"]);
        for text in ["users", ":1", "", "t:\"open"] {
            assert!(text.parse::<RowChoice>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_table_is_named_with_or_without_its_schema() {
        assert!(names_table("users", "public", "users") && names_table("public.users", "public", "users"));
        assert!(!names_table("public.users", "app", "users") && !names_table("publicusers", "public", "users"));
    }
}
