//! What can be done to a column.

use serde::{Deserialize, Serialize};

/// What becomes of a column's values. NULL stays NULL, and equal values stay equal, in all of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// As they are.
    Keep,
    /// NULL.
    Null,
    /// What a keyed hash makes of them, in the column's type.
    Hash,
    /// An address at `example.invalid`, by a keyed hash.
    Email,
    /// A person's name out of a small list, by a keyed hash.
    Name,
    /// All the same one, as SQL would write it in quotes.
    Fixed(String),
    /// A number from the first to the second, both included, by a keyed hash.
    Number(i64, i64),
    /// A whole number exchanged with others of its class of size, by a keyed permutation; 0 stays.
    Permute,
    /// The same among all from the first to the second, both included; others there may not be.
    PermuteIn(i64, i64),
    /// Moved by 1 to so many days, to earlier or later, by a keyed hash.
    ShiftDays(u32),
}

impl Action {
    /// As rules write it.
    pub fn text(&self) -> String {
        match self {
            Action::Keep => "keep".to_owned(),
            Action::Null => "null".to_owned(),
            Action::Hash => "hash".to_owned(),
            Action::Email => "email".to_owned(),
            Action::Name => "name".to_owned(),
            Action::Fixed(value) => format!("fixed {value:?}"),
            Action::Number(from, to) => format!("number {from} to {to}"),
            Action::Permute => "permute".to_owned(),
            Action::PermuteIn(from, to) => format!("permute in {from} to {to}"),
            Action::ShiftDays(days) => format!("shift by up to {days} days"),
        }
    }

    /// Whether values that differ stay different, as far as the column's type has room.
    pub(crate) fn keeps_distinct(&self) -> bool {
        matches!(self, Action::Keep | Action::Null | Action::Hash | Action::Email) || self.permutes()
    }

    /// Whether new values are ones that others have had, so that a unique index would refuse them while rows are changed.
    pub(crate) fn permutes(&self) -> bool {
        matches!(self, Action::Permute | Action::PermuteIn(..))
    }
}
