//! Composite types: their attributes, and the comment of each.

use serde_json::Value;

use crate::alter::{Alteration, Change};
use crate::catalog::Object;
use crate::phrase::full_name;
use crate::plan::Identity;
use crate::privileges;

/// Statements that make one.
pub(crate) fn statements(object: &Object) -> Vec<String> {
    let rows = object.rows("attributes");
    let attributes: Vec<_> = rows.iter().map(attribute).collect();
    let mut statements = vec![format!("CREATE TYPE {} AS ({})", full_name(object), attributes.join(", "))];
    let comments = rows.iter().filter_map(|row| Some((row, comment_of(object, row)?)));
    statements.extend(comments.map(|(row, text)| comment_on(object, row, Some(text))));
    statements
}

impl Change<'_> {
    /// What its attributes become.
    pub fn attributes(&self) -> Alteration {
        let mut statements = if self.differs("attributes") { self.attribute_changes() } else { Vec::new() };
        statements.extend(self.attribute_comments());
        Alteration::InPlace(statements)
    }

    fn attribute_changes(&self) -> Vec<String> {
        let name = full_name(self.new);
        let (old, new) = (self.old.rows("attributes"), self.new.rows("attributes"));
        let key = |row: &Value| self.attribute_key(row);
        let stored = |object: &Object, key_wanted: Option<Value>| -> Option<Value> {
            let rows = object.s.get("attributes").and_then(Value::as_array)?;
            rows.iter()
                .find(|row| row.get(0).cloned() == key_wanted)
                .map(|row| Value::from(row.as_array().map(|row| row[2..].to_vec()).unwrap_or_default()))
        };
        let mut statements = Vec::new();
        for row in old {
            if !new.iter().any(|other| key(other) == key(row)) {
                statements.push(format!("ALTER TYPE {name} DROP ATTRIBUTE {}", word(row, 1)));
            }
        }
        for row in new {
            let Some(was) = old.iter().find(|other| key(other) == key(row)) else {
                statements.push(format!("ALTER TYPE {name} ADD ATTRIBUTE {}", attribute(row)));
                continue;
            };
            if word(was, 1) != word(row, 1) {
                statements.push(format!("ALTER TYPE {name} RENAME ATTRIBUTE {} TO {}", word(was, 1), word(row, 1)));
            }
            let retyped = match self.identity {
                Identity::Oid => stored(self.old, was.get(0).cloned()) != stored(self.new, row.get(0).cloned()),
                Identity::Name => was.get(2) != row.get(2) || was.get(3) != row.get(3),
            };
            if retyped {
                let collation = row.get(3).and_then(Value::as_str).map(|name| format!(" COLLATE {name}"));
                statements.push(format!(
                    "ALTER TYPE {name} ALTER ATTRIBUTE {} TYPE {}{}",
                    word(row, 1),
                    word(row, 2),
                    collation.unwrap_or_default()
                ));
            }
        }
        statements
    }

    /// Which of the old attributes a new one is, is told by its number, or by its name.
    fn attribute_key(&self, row: &Value) -> Option<Value> {
        let place = match self.identity {
            Identity::Oid => 0,
            Identity::Name => 1,
        };
        row.get(place).cloned()
    }

    /// Comments of attributes under the names that they have by then.
    fn attribute_comments(&self) -> Vec<String> {
        let mut statements = Vec::new();
        for row in self.new.rows("attributes") {
            let mut before = self.old.rows("attributes").iter();
            let was = before.find(|other| self.attribute_key(other) == self.attribute_key(row));
            let (old, new) = (was.and_then(|was| comment_of(self.old, was)), comment_of(self.new, row));
            if old != new {
                statements.push(comment_on(self.new, row, new));
            }
        }
        statements
    }
}

/// An attribute: `[number, name, type, collation]`, of which the names are quoted where they need it.
fn attribute(row: &Value) -> String {
    let collation = row.get(3).and_then(Value::as_str).map(|name| format!(" COLLATE {name}")).unwrap_or_default();
    format!("{} {}{collation}", word(row, 1), word(row, 2))
}

fn word(row: &Value, place: usize) -> &str {
    row.get(place).and_then(Value::as_str).unwrap_or_default()
}

/// The comment of an attribute of `object`.
fn comment_of<'a>(object: &'a Object, attribute: &Value) -> Option<&'a str> {
    let rows = object.rows("attribute_comments").iter();
    rows.filter(|row| word(row, 0) == word(attribute, 1)).find_map(|row| row.get(1)?.as_str())
}

fn comment_on(object: &Object, attribute: &Value, text: Option<&str>) -> String {
    privileges::comment(&format!("COLUMN {}.{}", full_name(object), word(attribute, 1)), text)
}
