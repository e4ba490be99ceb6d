//! Labels of enums. Rows hold a label's OID, which stays when the label is renamed; a diff reads, and a change set writes, its name.

use ardent_types::sql::literal;
use serde_json::Value;

use crate::catalog::Object;
use crate::plan::{Identity, Statement, Touched};

/// The labels of an enum that both sides have, each side's in order. A label of both sides has one id on both.
pub(crate) struct Labels {
    pub old: Vec<String>,
    pub new: Vec<String>,
    pub old_ids: Vec<Value>,
    pub new_ids: Vec<Value>,
}

impl Labels {
    pub fn of(old: &Object, new: &Object, identity: Identity) -> Labels {
        let mut labels = Labels {
            old: old.list("labels"),
            new: new.list("labels"),
            old_ids: ids(old, &old.list("labels")),
            new_ids: ids(new, &new.list("labels")),
        };
        if identity == Identity::Name {
            labels.match_names();
        }
        labels
    }

    /// Both sides may have gone on from one state: then an OID that both have is one label's, or that of two which came later, and which no
    /// row has that neither side wrote. A name is one label's, too, if neither OID is on the other side.
    fn match_names(&mut self) {
        let there = self.new_ids.clone();
        for (name, id) in self.new.iter().zip(&mut self.new_ids) {
            let Some(place) = self.old.iter().position(|old| old == name) else { continue };
            let old_id = &self.old_ids[place];
            if !self.old_ids.contains(id) && !there.contains(old_id) {
                id.clone_from(old_id);
            }
        }
    }

    /// Labels that have another name on the new side: before, and now.
    pub fn renamed(&self) -> impl Iterator<Item = (&str, &str)> {
        let was =
            move |id: &Value| self.old_ids.iter().position(|old_id| old_id == id).map(|place| self.old[place].as_str());
        let both = self.new.iter().zip(&self.new_ids).filter_map(move |(label, id)| Some((was(id)?, label.as_str())));
        both.filter(|(was, label)| was != label)
    }

    /// A name that is one label's on the old side and another's on the new one: it does not say which of them a row has.
    pub fn reused(&self) -> Option<&str> {
        let is_anothers = |label: &str, id: &Value| {
            let mut old = self.old.iter().zip(&self.old_ids);
            old.any(|(was, old_id)| was == label && old_id != id)
        };
        self.new.iter().zip(&self.new_ids).find(|(label, id)| is_anothers(label, id)).map(|(label, _)| label.as_str())
    }
}

/// What labels are known by: their OIDs.
fn ids(object: &Object, labels: &[String]) -> Vec<Value> {
    match object.s.get("labels").and_then(Value::as_array) {
        Some(oids) if oids.len() == labels.len() => oids.clone(),
        _ => labels.iter().cloned().map(Value::String).collect(),
    }
}

/// The statement that renames a label of the type of that name, which is quoted.
pub(crate) fn rename_value(name: &str, was: &str, label: &str) -> String {
    format!("ALTER TYPE {name}{RENAME}{}{TO}{}", literal(was), literal(label))
}

const RENAME: &str = " RENAME VALUE ";
const TO: &str = " TO ";

/// Enums of which these statements give a label a name that is another label's on the other side, each with that name: what the two sides'
/// rows have of them cannot be compared by name.
pub fn reused_labels<'t>(statements: &[Statement], touched: &'t [Touched]) -> Vec<(&'t Touched, String)> {
    let reused = |touched: &'t Touched| {
        let (old, new) = (labels_of(touched.old.as_deref()?)?, labels_of(touched.new.as_deref()?)?);
        let is_of = |statement: &&Statement| {
            let object = format!("{} {}", statement.kind, statement.object);
            statement.part == touched.path || object == touched.path || object == touched.new_path
        };
        let renames: Vec<&str> = statements.iter().filter(is_of).map(|statement| statement.sql.as_str()).collect();
        let moves = |label: &String| {
            let (from, to) = (format!("{RENAME}{}{TO}", literal(label)), format!("{TO}{}", literal(label)));
            renames.iter().any(|sql| sql.contains(RENAME) && (sql.contains(&from) || sql.ends_with(&to)))
        };
        let label = old.into_iter().filter(|label| new.contains(label)).find(moves)?;
        Some((touched, label))
    };
    touched.iter().filter_map(reused).collect()
}

/// The labels in an enum's definition; none for another thing's.
fn labels_of(definition: &str) -> Option<Vec<String>> {
    let definition: Value = serde_json::from_str(definition).ok()?;
    let labels = definition.get("definition")?.get("labels")?.as_array()?;
    Some(labels.iter().filter_map(|label| label.as_str().map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Action, Section};

    /// Labels with their OIDs.
    fn labels(old: &[(&str, u32)], new: &[(&str, u32)], identity: Identity) -> Labels {
        let names = |side: &[(&str, u32)]| side.iter().map(|(name, _)| (*name).to_owned()).collect();
        let oids = |side: &[(&str, u32)]| side.iter().map(|(_, oid)| Value::from(*oid)).collect();
        let mut labels = Labels { old: names(old), new: names(new), old_ids: oids(old), new_ids: oids(new) };
        if identity == Identity::Name {
            labels.match_names();
        }
        labels
    }

    #[test]
    fn a_label_is_known_by_its_oid_and_a_name_can_be_reused() {
        use Identity::{Name, Oid};
        let base = [("a", 1), ("b", 2)];
        let check = |new: &[(&str, u32)], identity, renamed: &[(&str, &str)], reused: Option<&str>| {
            let labels = labels(&base, new, identity);
            assert_eq!(labels.renamed().collect::<Vec<_>>(), renamed, "{new:?}");
            assert_eq!(labels.reused(), reused, "{new:?}");
        };
        for identity in [Oid, Name] {
            check(&base, identity, &[], None);
            check(&[("a", 1), ("c", 2), ("d", 3)], identity, &[("b", "c")], None);
            check(&[("b", 1), ("a", 2)], identity, &[("a", "b"), ("b", "a")], Some("b"));
            check(&[("c", 1), ("b", 2), ("a", 3)], identity, &[("a", "c")], Some("a"));
        }
        // Made by each side for itself.
        check(&[("a", 1), ("b", 7)], Name, &[], None);
        check(&[("a", 11), ("b", 12)], Name, &[], None);
        // One OID, two labels that came later: every row that has one was written, and is compared.
        check(&[("a", 1), ("x", 2)], Name, &[("b", "x")], None);
        // The same name, in an order that says otherwise.
        let crossed = labels(&[("x", 2), ("a", 1)], &[("x", 1), ("a", 2)], Name);
        assert_eq!(crossed.reused(), Some("x"));
    }

    #[test]
    fn a_reused_name_is_seen_in_a_change_set() {
        let check = |old: &[&str], new: &[&str], renames: &[(&str, &str)], expect: Option<&str>| {
            let definition = |labels: &[&str]| {
                Some(serde_json::json!({ "name": "e", "definition": { "labels": labels } }).to_string())
            };
            let path = "type s.e".to_owned();
            let (new_path, with, needs) = (path.clone(), None, Vec::new());
            let touched = Touched { path, new_path, old: definition(old), new: definition(new), with, needs };
            let statement = |(was, label): &(&str, &str)| Statement {
                section: Section::BeforeRows,
                action: Action::Alter,
                kind: "type".to_owned(),
                object: "s.e".to_owned(),
                part: String::new(),
                sql: rename_value("s.e", was, label),
            };
            let statements: Vec<Statement> = renames.iter().map(statement).collect();
            let touched = [touched];
            let found = reused_labels(&statements, &touched);
            assert_eq!(found.first().map(|(_, label)| label.as_str()), expect, "{old:?} {new:?}");
        };
        check(&["a", "b"], &["a", "c"], &[("b", "c")], None);
        check(&["a", "b"], &["b", "a"], &[("a", "b"), ("b", "a")], Some("a"));
        check(&["a", "b"], &["c", "b", "a"], &[("a", "c")], Some("a"));
        check(&["a TO 'b'", "b"], &["c", "b"], &[("a TO 'b'", "c")], None);
        check(&["a"], &["a", "b"], &[], None);
    }
}
