//! Which object of one catalog is which of the other.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::catalog::{Catalog, Kind, Object, ObjectId};

/// Above all real OIDs of one catalog: what the other has no match for gets a number from here on.
const UNMATCHED: u32 = 0x8000_0000;
/// Above all attribute numbers (a table has at most 1600 columns).
const UNMATCHED_COLUMN: i32 = 2000;

impl Catalog {
    /// A name that an object has in every catalog of the same lineage or of another.
    pub(crate) fn path(&self, object: &Object) -> String {
        let own = match (&object.schema, object.kind) {
            (Some(schema), Kind::Function | Kind::Operator) => {
                let arguments = object.text("types").or(object.text("arguments")).unwrap_or_default();
                format!("{schema}.{}({arguments})", object.name)
            }
            (Some(schema), _) => format!("{schema}.{}", object.name),
            (None, _) => object.name.clone(),
        };
        let kind = object.kind.word();
        match self.parent(object) {
            Some(parent) => format!("{kind} {own} of {}", self.path(parent)),
            None => format!("{kind} {own}"),
        }
    }

    /// The same catalog with the OIDs of `other` for everything that has the same name there.
    pub(crate) fn matched_by_name(&self, other: &Catalog) -> Catalog {
        let theirs: BTreeMap<String, &ObjectId> =
            other.objects.values().map(|object| (other.path(object), &object.id)).collect();
        let mut map = BTreeMap::new();
        let belongs_to_a_table = |object: &&Object| matches!(object.kind, Kind::Partition | Kind::OwnedBy);
        let whole = self.objects.values().filter(|object| object.id.sub == 0);
        for object in whole.filter(|object| !belongs_to_a_table(object)) {
            let id = match theirs.get(&self.path(object)) {
                Some(id) => (*id).clone(),
                None => ObjectId { oid: object.id.oid | UNMATCHED, ..object.id.clone() },
            };
            map.insert(object.id.clone(), id);
        }
        for object in self.objects.values().filter(|object| object.id.sub != 0) {
            let whole = ObjectId { sub: 0, ..object.id.clone() };
            let table = map.get(&whole).cloned().unwrap_or(whole);
            let sub = match theirs.get(&self.path(object)) {
                Some(id) => id.sub,
                None if table.oid & UNMATCHED == 0 => object.id.sub + UNMATCHED_COLUMN,
                None => object.id.sub,
            };
            map.insert(object.id.clone(), ObjectId { sub, ..table });
        }
        // Places and owners have the number of what they belong to.
        for object in self.objects.values().filter(belongs_to_a_table) {
            let table = map.get(&ObjectId { class: "pg_class".to_owned(), ..object.id.clone() });
            let oid = table.map_or(object.id.oid, |table| table.oid);
            map.insert(object.id.clone(), ObjectId { oid, ..object.id.clone() });
        }
        self.renumbered(&map)
    }

    /// The same catalog where what was made again just as it was before (Postgres does so itself to indexes and constraints of a
    /// column that gets another type) has the identity that it had. Not so what needs something else now: a column or a function that was
    /// made again under its name is another one, and what stood on the old one went with it.
    pub(crate) fn with_identities_of(&self, old: &Catalog) -> Catalog {
        let key = |object: &Object| (object.kind, object.parent.clone(), object.schema.clone(), object.name.clone());
        let mut gone: BTreeMap<_, &Object> = old
            .objects
            .values()
            .filter(|object| !self.objects.contains_key(&object.id))
            .filter(|object| matches!(object.kind, Kind::Index | Kind::Constraint | Kind::Default | Kind::Statistics))
            .map(|object| (key(object), object))
            .collect();
        let mut map = BTreeMap::new();
        for object in self.objects.values().filter(|object| !old.objects.contains_key(&object.id)) {
            let Some(was) = gone.get(&key(object)) else { continue };
            let comparable = |object: &Object| {
                let mut d = object.d.clone();
                for field in ["parent_constraint", "parent_index"] {
                    d.remove(field);
                }
                d
            };
            if comparable(was) == comparable(object) {
                map.insert(object.id.clone(), was.id.clone());
                gone.remove(&key(object));
            }
        }
        loop {
            let matched: BTreeSet<&ObjectId> = map.values().collect();
            let is_new =
                |id: &ObjectId| self.objects.contains_key(id) && !old.objects.contains_key(id) && !map.contains_key(id);
            let is_gone =
                |id: &ObjectId| old.objects.contains_key(id) && !self.objects.contains_key(id) && !matched.contains(id);
            let is_another = |(id, was): &(&ObjectId, &ObjectId)| {
                let key = self.objects.get(*id).filter(|object| object.references().is_some());
                key.and_then(Object::copy_of).is_some_and(|whole| is_new(&whole))
                    || self.needs_of(id).any(is_new)
                    || old.needs_of(was).any(is_gone)
            };
            let others: Vec<ObjectId> = map.iter().filter(is_another).map(|(id, _)| id.clone()).collect();
            if others.is_empty() {
                break;
            }
            map.retain(|id, _| !others.contains(id));
        }
        let mut result = self.renumbered(&map);
        for id in map.values() {
            if let (Some(object), Some(was)) = (result.objects.get_mut(id), old.objects.get(id)) {
                object.s = was.s.clone();
            }
        }
        result
    }

    fn renumbered(&self, map: &BTreeMap<ObjectId, ObjectId>) -> Catalog {
        let new = |id: &ObjectId| map.get(id).unwrap_or(id).clone();
        let mut result = Catalog { uncovered: self.uncovered.clone(), ..Catalog::default() };
        for object in self.objects.values() {
            let mut object = object.clone();
            object.id = new(&object.id);
            if let Some(Value::Array(tables)) = object.s.get_mut("parents") {
                tables.iter_mut().for_each(|table| renumber(table, "pg_class", map));
            }
            for (field, class) in [("foreign_table", "pg_class"), ("parent_constraint", "pg_constraint")] {
                if let Some(number) = object.d.get_mut(field) {
                    renumber(number, class, map);
                }
            }
            object.parent = object.parent_id().map(|id| new(&id)).map(|id| (id.class, id.oid, id.sub));
            result.objects.insert(object.id.clone(), object);
        }
        for (from, needs) in &self.needs {
            let needs: BTreeSet<ObjectId> = needs.iter().map(&new).collect();
            result.needs.entry(new(from)).or_default().extend(needs);
        }
        for (from, before) in &self.made_after {
            let before: BTreeSet<ObjectId> = before.iter().map(&new).collect();
            result.made_after.entry(new(from)).or_default().extend(before);
        }
        result
    }
}

/// An object's OID, where it is another one by now.
fn renumber(number: &mut Value, class: &str, map: &BTreeMap<ObjectId, ObjectId>) {
    let oid = number.as_u64().and_then(|oid| u32::try_from(oid).ok());
    let is_now = oid.and_then(|oid| map.get(&ObjectId { class: class.to_owned(), oid, sub: 0 }));
    if let Some(id) = is_now {
        *number = id.oid.into();
    }
}
