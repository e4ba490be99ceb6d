//! Partitions that come to their places, and foreign keys that reference a table above them.

use std::collections::BTreeSet;

use crate::catalog::{Catalog, Kind, Object, ObjectId};
use crate::plan::Planner;

impl Planner<'_> {
    /// Foreign keys that must give way while partitions below what they reference come: none of these can be in its place before its rows
    /// are there, and none of those that refer to its rows can wait for that. A table that is new can, in a place that nobody leaves.
    /// So must they where one that leaves its place changes besides.
    pub(crate) fn referencing_partitions_that_change(&self, replaced: &BTreeSet<ObjectId>) -> BTreeSet<ObjectId> {
        let is_place = |id: &&ObjectId| id.class == "partition";
        let coming: Vec<&ObjectId> = self.creates.iter().chain(replaced).filter(is_place).collect();
        let table_of = |place: &ObjectId| ObjectId { class: "pg_class".to_owned(), ..place.clone() };
        let above = |catalog: &Catalog, place: &ObjectId| catalog.tables_above(&table_of(place));
        let leaving: Vec<&ObjectId> = self.drops.iter().chain(replaced).filter(is_place).collect();
        if coming.is_empty() && leaving.is_empty() {
            return BTreeSet::new();
        }
        let left = leaving.iter().filter_map(|place| above(self.old, place).into_iter().next());
        // What the default partition has of its rows must have gone before.
        let stays = |place: &&Object| !self.creates.contains(&table_of(&place.id));
        let defaults = self.new.objects.values().filter(|object| object.kind == Kind::Partition);
        let defaults = defaults.filter(|place| place.text("partition_bound") == Some("DEFAULT")).filter(stays);
        let defaults = defaults.filter_map(|place| above(self.new, &place.id).into_iter().next());
        let changing: BTreeSet<ObjectId> = left.chain(defaults).collect();
        let mut tables: BTreeSet<ObjectId> = BTreeSet::new();
        for place in coming {
            let above = above(self.new, place);
            let is_alone = above.first().is_some_and(|parent| !changing.contains(parent));
            if !(is_alone && self.creates.contains(&table_of(place))) {
                tables.extend(above);
            }
        }
        // A table changes once it has left its place, and is to change before rows do.
        let changed = leaving.into_iter().filter(|place| self.has_parts_that_change(&table_of(place), replaced));
        tables.extend(changed.flat_map(|place| above(self.old, place)));
        let is_of = |key: &&Object| key.references().is_some_and(|table| tables.contains(&table));
        let keys = self.new.objects.values().filter(|key| key.copy_of().is_none()).filter(is_of);
        keys.map(|key| key.id.clone()).filter(|id| self.old.objects.contains_key(id)).collect()
    }

    /// Whether columns, indexes or constraints of a table that stays come, go or change.
    fn has_parts_that_change(&self, table: &ObjectId, replaced: &BTreeSet<ObjectId>) -> bool {
        let is_part = |part: &&Object| {
            let is_of_kind = matches!(part.kind, Kind::Column | Kind::Index | Kind::Constraint);
            is_of_kind && part.parent_id().as_ref() == Some(table)
        };
        let changes = |part: &Object| {
            let is_same = |new: &Object| new.name == part.name && !self.altered.contains_key(&part.id);
            replaced.contains(&part.id) || !self.new.objects.get(&part.id).is_some_and(is_same)
        };
        self.new.objects.contains_key(table)
            && (self.old.objects.values().filter(is_part).any(changes)
                || self.new.objects.values().filter(is_part).any(|part| self.creates.contains(&part.id)))
    }

    /// Brings a partition's copy of a foreign key that references a table above it: its rows refer to each other, and are not below that
    /// table until the partition is in its place. Making the key for all partitions brings it, or else that place.
    pub(crate) fn foreign_key_from_above(&self, object: &Object) -> Option<ObjectId> {
        if object.kind != Kind::Constraint || object.comment.is_some() {
            return None;
        }
        let (references, table) = (object.references()?, object.parent_id()?);
        object.copy_of()?;
        let above = self.new.tables_above(&table);
        if !above.contains(&references) {
            return None;
        }
        let mut whole = object;
        while let Some(next) = self.new.copied(whole) {
            // One of another name is made under that.
            if next.name != object.name {
                return None;
            }
            whole = next;
        }
        let made = |id: &ObjectId| self.creates.contains(id);
        let mut places = std::iter::once(&table).chain(&above).map(ObjectId::place);
        Some(whole.id.clone()).filter(made).or_else(|| places.find(made))
    }

    /// Whether an object is a new partition's place, or an index or constraint that it needs there, where a foreign key references a table
    /// above: rows that refer to the partition's need it in its place.
    pub(crate) fn is_in_place_first(&self, object: &Object, held: &BTreeSet<ObjectId>) -> bool {
        let is_needed = matches!(object.kind, Kind::Partition | Kind::Index | Kind::Constraint);
        let table = object.parent_id().filter(|table| is_needed && self.creates.contains(table));
        table.is_some_and(|table| self.new.tables_above(&table).iter().any(|above| held.contains(above)))
    }
}
