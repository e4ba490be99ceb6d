//! What tools answer, and how it stays short.

use rmcp::model::CallToolResult;
use serde::Serialize;
use serde_json::{Value, json};

use crate::failure::Failure;

/// Longest text that is shown of one value, in characters.
pub const VALUE_LEN_MAX: usize = 1000;
/// About the longest answer, in bytes: what an agent has room for.
pub const ANSWER_LEN_MAX: usize = 48 << 10;

/// Why a tool did not do what it was asked to.
#[derive(Debug)]
pub enum Trouble {
    /// As a command fails.
    Failure(Failure),
    /// Postgres refused a statement.
    Sql(Box<SqlTrouble>),
    /// The client took its call back.
    Cancelled,
}

/// What Postgres said of a statement.
#[derive(Debug, Default, Serialize)]
pub struct SqlTrouble {
    /// Its message.
    pub message: String,
    /// SQLSTATE; absent: the connection failed.
    pub sqlstate: Option<String>,
    /// More about it.
    pub detail: Option<String>,
    /// What may help.
    pub hint: Option<String>,
    /// Where in the statement, in characters, from 1.
    pub position: Option<u32>,
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Trouble::Failure(failure)
    }
}

impl Trouble {
    /// As a tool's error: what failed, why, and what to do next.
    pub fn into_result(self) -> CallToolResult {
        let error = match self {
            Trouble::Failure(failure) => json!({
                "code": failure.info.code, "message": failure.info.message, "next": failure.info.hint,
            }),
            Trouble::Sql(sql) => json!({
                "code": "sql", "message": sql.message, "sqlstate": sql.sqlstate, "detail": sql.detail,
                "next": sql.hint, "position": sql.position,
            }),
            Trouble::Cancelled => json!({ "code": "cancelled", "message": "the call was taken back", "next": null }),
        };
        CallToolResult::structured_error(json!({ "error": error }))
    }
}

/// An answer as a tool's result.
pub fn result(answer: &impl Serialize) -> CallToolResult {
    match serde_json::to_value(answer) {
        Ok(value) => CallToolResult::structured(value),
        Err(error) => Trouble::Failure(Failure::of(&error)).into_result(),
    }
}

/// A text, cut after so many characters; what was cut says how long it is.
pub fn cut(text: &str, len_max: usize) -> String {
    match text.char_indices().nth(len_max) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}… ({} characters)", &text[..end], text.chars().count()),
    }
}

/// The beginning of a list that fits: entries are taken while `room` bytes of JSON are left. Gives how many were left out.
pub fn fitting<T: Serialize>(entries: impl IntoIterator<Item = T>, room: &mut usize) -> (Vec<Value>, usize) {
    let (mut taken, mut left_out) = (Vec::new(), 0);
    for entry in entries {
        // What cannot be written as JSON does not occur: these are plain structs with text keys.
        let value = serde_json::to_value(&entry).unwrap_or(Value::Null);
        let len = value.to_string().len();
        if left_out > 0 || len > *room {
            left_out += 1;
        } else {
            *room -= len;
            taken.push(value);
        }
    }
    (taken, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_says_so() {
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("äöüx", 3), "äöü… (4 characters)");
        let mut room = 10;
        assert_eq!(fitting(["abc", "def", "g"], &mut room), (vec![json!("abc"), json!("def")], 1));
        assert_eq!(room, 0);
    }
}
