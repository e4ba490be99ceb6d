//! What each part of a plan needs of its other parts: so that some can be run without the rest.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::{Kind, Object, ObjectId};
use crate::create::is_inherited;
use crate::plan::{Planner, Touched};
use crate::rename::Renames;

/// Longest chain of things that come or go with one another: a default of a column of a table, and what hangs on that; a partition
/// of a partition.
pub(crate) const CHAIN_LEN_MAX: usize = 32;

/// What statements say that leaves an object as it is for those that lean on it.
const OUTER: [&str; 12] = [
    " OWNER TO ",
    " SET NOT NULL",
    " DROP NOT NULL",
    " SET STATISTICS ",
    " SET STORAGE ",
    " SET COMPRESSION ",
    " ROW LEVEL SECURITY",
    " REPLICA IDENTITY ",
    " CLUSTER ON ",
    " SET (",
    " RESET (",
    " VALIDATE CONSTRAINT ",
];
const OUTER_STARTS: [&str; 3] = ["COMMENT ON ", "GRANT ", "REVOKE "];

fn is_outer(sql: &str) -> bool {
    OUTER_STARTS.iter().any(|start| sql.starts_with(start)) || OUTER.iter().any(|part| sql.contains(part))
}

impl Planner<'_> {
    /// What an object is called whatever becomes of it: by its old name, if it has one.
    pub(crate) fn part(&self, id: &ObjectId) -> String {
        match (self.old.objects.get(id), self.new.objects.get(id)) {
            (Some(old), _) => self.old.path(old),
            (None, Some(new)) => self.new.path(new),
            (None, None) => String::new(),
        }
    }

    /// Whose statements bring what becomes of `id`: often its own.
    pub(crate) fn brought_by(&self, id: &ObjectId) -> ObjectId {
        let mut at = id.clone();
        for _ in 0..CHAIN_LEN_MAX {
            match self.brought_by_directly(&at) {
                Some(whole) if whole != at => at = whole,
                _ => break,
            }
        }
        at
    }

    fn brought_by_directly(&self, id: &ObjectId) -> Option<ObjectId> {
        let (old, new) = (self.old.objects.get(id), self.new.objects.get(id));
        let object = new.or(old)?;
        let parent = object.parent_id();
        let with_parent =
            |ids: &BTreeSet<ObjectId>| parent.as_ref().is_some_and(|parent| ids.contains(id) && ids.contains(parent));
        match object.kind {
            Kind::ViewColumn => return parent,
            // What an inherited column becomes, the one above it becomes.
            Kind::Column if !with_parent(&self.creates) && !with_parent(&self.drops) => {
                let above = self.column_above(object);
                if above.as_ref().is_some_and(|above| self.changes(above)) {
                    return above;
                }
            }
            _ => {}
        }
        let goes = self.drops.contains(id).then(|| self.goes_with(id)).flatten();
        let comes = || self.creates.contains(id).then(|| self.comes_with(&self.new.objects[id])).flatten();
        goes.or_else(comes)
    }

    /// Whether the plan does something to an object, or to what that is a copy of.
    fn changes(&self, id: &ObjectId) -> bool {
        let is_renamed = || match (self.old.objects.get(id), self.new.objects.get(id)) {
            (Some(old), Some(new)) => old.name != new.name,
            _ => false,
        };
        self.creates.contains(id) || self.drops.contains(id) || self.altered.contains_key(id) || is_renamed()
    }

    /// The column that an inherited one has its name and type from.
    fn column_above(&self, column: &Object) -> Option<ObjectId> {
        let catalog = if self.new.objects.contains_key(&column.id) { self.new } else { self.old };
        let mut above = catalog.columns_above(column).filter(|_| is_inherited(column));
        above.next().map(|above| above.id.clone())
    }

    /// All that the plan changes, with what each part needs.
    pub(crate) fn touched(&self, renames: &Renames) -> Vec<Touched> {
        let renamed: BTreeSet<&ObjectId> = renames.ids().collect();
        let mut ids: BTreeSet<&ObjectId> = self.drops.iter().chain(&self.creates).chain(self.altered.keys()).collect();
        ids.extend(&renamed);
        // An inherited column that has another name needs no statement, and is another one all the same.
        ids.extend(self.old.objects.iter().filter_map(|(id, old)| {
            let new = self.new.objects.get(id)?;
            (old.kind == Kind::Column && old.name != new.name).then_some(id)
        }));
        let mut members: BTreeMap<ObjectId, Vec<&ObjectId>> = BTreeMap::new();
        for id in &ids {
            members.entry(self.brought_by(id)).or_default().push(id);
        }
        let old_names: BTreeMap<String, &ObjectId> =
            self.old.objects.values().map(|object| (self.old.path(object), &object.id)).collect();
        let needs = Needs { planner: self, renamed, old_users: self.old.needed_by(), old_names };
        let mut all: Vec<Touched> = Vec::new();
        for (whole, parts) in &members {
            let needed = needs.of(whole, parts);
            for id in parts {
                let (old, new) = (self.old.objects.get(*id), self.new.objects.get(*id));
                let path = self.part(id);
                let new_path = new.map_or_else(|| path.clone(), |new| self.new.path(new));
                let (old, new) = (old.map(Object::definition), new.map(Object::definition));
                let is_whole = *id == whole;
                // What is made again as it was has statements too.
                if old == new && !is_whole {
                    continue;
                }
                let with = (!is_whole).then(|| self.part(whole));
                let needs = if is_whole { needed.clone() } else { Vec::new() };
                all.push(Touched { path, new_path, old, new, with, needs });
            }
        }
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all
    }
}

struct Needs<'p, 'a> {
    planner: &'p Planner<'a>,
    renamed: BTreeSet<&'p ObjectId>,
    /// From an object of the old side to those that need it.
    old_users: BTreeMap<&'a ObjectId, Vec<&'a ObjectId>>,
    old_names: BTreeMap<String, &'a ObjectId>,
}

impl Needs<'_, '_> {
    /// Names of the parts that `whole`, whose statements bring `members` along, needs.
    fn of(&self, whole: &ObjectId, members: &[&ObjectId]) -> Vec<String> {
        let planner = self.planner;
        let mut found: BTreeSet<ObjectId> = BTreeSet::new();
        for member in members.iter().copied().chain([whole]) {
            self.that_it_leans_on(member, &mut found);
            self.that_lean_on_it(member, &mut found);
            self.that_are_in_its_way(member, &mut found);
        }
        found.remove(whole);
        let names: BTreeSet<String> = found.iter().map(|id| planner.part(id)).collect();
        names.into_iter().collect()
    }

    /// Whether what becomes of an object matters to others.
    fn matters(&self, id: &ObjectId) -> bool {
        let planner = self.planner;
        planner.creates.contains(id)
            || planner.drops.contains(id)
            || self.renamed.contains(id)
            || planner.altered.get(id).is_some_and(|statements| !statements.iter().all(|sql| is_outer(sql)))
    }

    /// What it needs on the new side, also through things that stay as they are.
    fn that_it_leans_on(&self, id: &ObjectId, found: &mut BTreeSet<ObjectId>) {
        let (planner, mut seen, mut queue) = (self.planner, BTreeSet::new(), vec![id]);
        while let Some(at) = queue.pop() {
            let new = self.planner.new;
            for need in new.needs.get(at).into_iter().chain(new.made_after.get(at)).flatten() {
                if !seen.insert(need) {
                    continue;
                }
                if self.matters(need) {
                    found.insert(planner.brought_by(need));
                } else {
                    queue.push(need);
                }
            }
        }
    }

    /// What must let go of it before it goes or changes.
    fn that_lean_on_it(&self, id: &ObjectId, found: &mut BTreeSet<ObjectId>) {
        let planner = self.planner;
        let goes = planner.drops.contains(id);
        if !goes && !planner.altered.contains_key(id) {
            return;
        }
        for user in self.old_users.get(id).into_iter().flatten().copied() {
            let made_way = planner.drops.contains(user) || (goes && self.matters(user));
            if made_way {
                found.insert(planner.brought_by(user));
            }
        }
        // What goes late is called by its table's new name.
        let parent = planner.old.objects.get(id).and_then(Object::parent_id);
        found.extend(parent.filter(|parent| goes && self.renamed.contains(parent)));
    }

    /// What has had the name that it gets.
    fn that_are_in_its_way(&self, id: &ObjectId, found: &mut BTreeSet<ObjectId>) {
        let planner = self.planner;
        if !planner.creates.contains(id) && !self.renamed.contains(id) {
            return;
        }
        let name = planner.new.objects.get(id).map(|object| planner.new.path(object));
        let other = name.and_then(|name| self.old_names.get(&name).copied()).filter(|other| *other != id);
        found.extend(other.filter(|other| self.matters(other)).map(|other| planner.brought_by(other)));
    }
}
