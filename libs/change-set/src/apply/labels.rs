//! Labels of enums that the target renamed: rows of a change set name theirs by text, and may mean another one there.

use std::collections::{BTreeMap, BTreeSet};

use ardent_diff::{ENUM_LABELS, EnumLabel};
use ardent_schema_diff::{Touched, qualified};

use super::Run;
use crate::outcome::{ApplyError, Conflict};
use crate::target::TextRow;

/// Leaves out the types that the branch did something to: that is looked at with the schema, whatever part of it is wanted.
pub(super) fn leave_out(labels: &mut Vec<EnumLabel>, touched: &[Touched]) {
    let paths: BTreeSet<&str> = touched.iter().flat_map(|one| [one.path.as_str(), one.new_path.as_str()]).collect();
    labels.retain(|label| !paths.contains(path(&qualified(&label.schema, &label.name)).as_str()));
}

/// What a type is called where the schema is compared.
fn path(name: &str) -> String {
    format!("type {name}")
}

/// Labels of a type by their OIDs.
type Labels<'a> = BTreeMap<u32, &'a str>;

impl Run<'_> {
    /// Types whose labels have other names in the target than at the branch point are conflicts, and rows cannot be compared then.
    pub(super) async fn are_labels_known(&mut self) -> Result<bool, ApplyError> {
        if self.set.labels.is_empty() || self.set.tables.is_empty() {
            return Ok(true);
        }
        let mut there = Vec::new();
        for row in self.target.rows(ENUM_LABELS).await? {
            there.push(label_of(&row).ok_or_else(|| ApplyError::Unexpected { what: format!("{row:?} for a label") })?);
        }
        let renamed = renamed(&self.set.labels, &there);
        let are_known = renamed.is_empty();
        for (name, was, now) in renamed {
            self.applied.conflict(Conflict::Schema {
                object: path(&name),
                why: "the target gave labels other names, by which the branch's rows are not to be known there"
                    .to_owned(),
                base: Some(was.clone()),
                branch: Some(was),
                target: Some(now),
            });
        }
        Ok(are_known)
    }
}

/// From schema and name of the type, OID and text.
fn label_of(row: &TextRow) -> Option<EnumLabel> {
    let [Some(schema), Some(name), Some(oid), Some(label)] = &row[..] else { return None };
    Some(EnumLabel { schema: schema.clone(), name: name.clone(), oid: oid.parse().ok()?, label: label.clone() })
}

/// Types of which a label is called otherwise there, with all their labels before and there. Nobody can drop a label: a type that lacks one is
/// no copy of what it was, and its OIDs say nothing.
fn renamed(before: &[EnumLabel], there: &[EnumLabel]) -> Vec<(String, String, String)> {
    let (before, there) = (by_type(before), by_type(there));
    let mut found = Vec::new();
    for (name, was) in before {
        let Some(now) = there.get(&name) else { continue };
        let is_copy = was.keys().all(|oid| now.contains_key(oid));
        if is_copy && was.iter().any(|(oid, label)| now.get(oid) != Some(label)) {
            found.push((name, listed(&was), listed(now)));
        }
    }
    found
}

fn by_type(labels: &[EnumLabel]) -> BTreeMap<String, Labels<'_>> {
    let mut types: BTreeMap<String, Labels<'_>> = BTreeMap::new();
    for EnumLabel { schema, name, oid, label } in labels {
        types.entry(qualified(schema, name)).or_default().insert(*oid, label);
    }
    types
}

fn listed(labels: &Labels<'_>) -> String {
    labels.values().copied().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(of: &[(u32, &str)]) -> Vec<EnumLabel> {
        let label = |(oid, label): &(u32, &str)| EnumLabel {
            schema: "app".to_owned(),
            name: "mood".to_owned(),
            oid: *oid,
            label: (*label).to_owned(),
        };
        of.iter().map(label).collect()
    }

    #[test]
    fn labels_with_other_names_are_found_in_copies_alone() {
        let base = labels(&[(10, "sad"), (12, "ok")]);
        let check = |there: &[(u32, &str)], expect: Option<&str>| {
            let found = renamed(&base, &labels(there));
            assert_eq!(found.first().map(|(_, _, now)| now.as_str()), expect, "{there:?}");
        };
        check(&[(10, "sad"), (12, "ok")], None);
        check(&[(10, "sad"), (12, "ok"), (14, "glad")], None);
        check(&[(10, "ok"), (12, "sad")], Some("ok, sad"));
        check(&[(10, "sad"), (12, "fine"), (14, "ok")], Some("sad, fine, ok"));
        // Another server's, whose OIDs begin elsewhere.
        check(&[(12, "sad"), (14, "ok")], None);
        assert!(renamed(&base, &[]).is_empty());
    }
}
