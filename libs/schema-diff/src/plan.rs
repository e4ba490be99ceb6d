//! The plan: which objects are dropped, renamed, changed and made, and in which order.

use std::collections::{BTreeMap, BTreeSet};

use ardent_types::sql::literal;
use serde::{Deserialize, Serialize};

use crate::alter::{Alteration, Change, retype};
use crate::catalog::{Catalog, Kind, Object, ObjectId, Uncovered};
use crate::create::{Making, is_inherited};
use crate::labels::{Labels, rename_value};
use crate::leaving::NamesThen;
use crate::name::qualified;
use crate::order::{self, Edges};
use crate::phrase::whole_name;
use crate::rename::Renames;

/// How an object is recognised on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// By its OID: one side is a copy of the other that went on from there. Renames are seen as such.
    Oid,
    /// By its name: the sides have nothing to do with each other. A rename is a drop and a creation.
    Name,
}

/// Whether a statement goes before or after the rows are brought over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Section {
    /// Before.
    BeforeRows,
    /// After: rows need not obey it until all are there.
    AfterRows,
}

/// What a statement does to its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Makes it.
    Create,
    /// Changes it.
    Alter,
    /// Gives it another name or schema.
    Rename,
    /// Drops it.
    Drop,
}

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// When it is to run.
    pub section: Section,
    /// What it does.
    pub action: Action,
    /// To which kind of thing.
    pub kind: String,
    /// To which one.
    pub object: String,
    /// The [`Touched::path`] of the part of the plan that it belongs to: parts can be run without the rest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub part: String,
    /// Without the semicolon.
    pub sql: String,
}

/// An object that the plan changes, as both sides have it: what somebody who changed it too must be told about. One that is made
/// again because of others is the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// Its name on the old side (of a new one: on the new side), such as `column note of table public.users`.
    pub path: String,
    /// Its name on the new side (of a dropped one: on the old side).
    pub new_path: String,
    /// Its definition on the old side; absent: it is not there.
    pub old: Option<String>,
    /// Its definition on the new side; absent: it is not there.
    pub new: Option<String>,
    /// The path of the object whose statements bring this about; absent: they are its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<String>,
    /// The paths of others without whose statements its own cannot be run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
}

/// How to get from one catalog to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// In the order to run them in.
    pub statements: Vec<Statement>,
    /// Differences that no statement removes, each named.
    pub not_covered: Vec<String>,
    /// What is changed.
    pub touched: Vec<Touched>,
}

impl Plan {
    /// Whether the schemas are the same, as far as it was looked.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty() && self.not_covered.is_empty()
    }
}

/// Plans the way from `old` to `new`.
pub fn plan(old: &Catalog, new: &Catalog, identity: Identity) -> Plan {
    let new = match identity {
        Identity::Oid => new.with_identities_of(old),
        Identity::Name => new.matched_by_name(old),
    };
    let planner = Planner::new(old, &new, identity);
    planner.plan()
}

pub(crate) struct Planner<'a> {
    pub old: &'a Catalog,
    pub new: &'a Catalog,
    identity: Identity,
    /// In both, and not made again.
    pub altered: BTreeMap<ObjectId, Vec<String>>,
    /// To be dropped, by the old side's identity.
    pub drops: BTreeSet<ObjectId>,
    /// To be made.
    pub creates: BTreeSet<ObjectId>,
    not_covered: Vec<String>,
}

impl<'a> Planner<'a> {
    fn new(old: &'a Catalog, new: &'a Catalog, identity: Identity) -> Self {
        let mut planner = Planner {
            old,
            new,
            identity,
            altered: BTreeMap::new(),
            drops: old.objects.keys().filter(|id| !new.objects.contains_key(id)).cloned().collect(),
            creates: new.objects.keys().filter(|id| !old.objects.contains_key(id)).cloned().collect(),
            not_covered: Vec::new(),
        };
        planner.compare_kept();
        planner.name_uncovered();
        planner.name_columns_that_stay_local();
        planner
    }

    fn kept(&self) -> impl Iterator<Item = (&'a Object, &'a Object)> + use<'a> {
        let (old, new) = (self.old, self.new);
        old.objects.values().filter_map(move |object| Some((object, new.objects.get(&object.id)?)))
    }

    /// Finds what changes in place and what must be made again, with all that hangs on it.
    fn compare_kept(&mut self) {
        let mut replaced = BTreeSet::new();
        let mut retyped = BTreeSet::new();
        for (old, new) in self.kept() {
            let change = Change { identity: self.identity, new_catalog: self.new, old, new };
            if old.kind == Kind::Column && (change.differs("type") || change.differs("collation")) {
                retyped.insert(old.id.clone());
            }
            if old.kind == Kind::Enum {
                let labels = Labels::of(old, new, self.identity);
                self.not_covered.extend(labels.reused().map(|label| {
                    format!(
                        "{}: label {} has a name that another one had: which of them rows have is not told by it",
                        self.new.path(new),
                        literal(label)
                    )
                }));
            }
            match change.alteration() {
                Alteration::InPlace(statements) if statements.is_empty() => {}
                Alteration::InPlace(statements) => {
                    self.altered.insert(old.id.clone(), statements);
                }
                Alteration::Replace => {
                    replaced.insert(old.id.clone());
                }
                Alteration::Impossible(why) => self.not_covered.push(format!("{}: {why}", self.new.path(new))),
            }
        }
        if self.identity == Identity::Name {
            // What gives way to another thing, of another name, goes before that comes: the two may share names of parts.
            let leaning = self.old.needs.iter().filter(|(_, needs)| needs.iter().any(|need| self.drops.contains(need)));
            let kinds = [
                Kind::View,
                Kind::MaterializedView,
                Kind::Function,
                Kind::Policy,
                Kind::Rule,
                Kind::Trigger,
                Kind::Default,
            ];
            let kept = leaning.map(|(id, _)| id).filter(|id| self.new.objects.contains_key(id));
            replaced.extend(kept.filter(|id| kinds.contains(&self.old.objects[*id].kind)).cloned());
        }
        replaced.extend(self.leaning_on_columns_that_go());
        let in_the_way = self.referencing_partitions_that_change(&replaced);
        replaced.extend(in_the_way);
        let forced = self.spread(&mut replaced, &retyped);
        for id in forced {
            let Some(column) = self.new.objects.get(&id) else { continue };
            // What an inherited column becomes, the one above it becomes.
            if column.number("inherited") > 0 && !column.flag("local") {
                continue;
            }
            let (table, was) = (whole_name(self.new, column), self.old.objects.get(&id));
            let statements = self.altered.entry(id.clone()).or_default();
            if !retyped.contains(&id) {
                statements.insert(0, retype(&table, was, column));
            }
        }
        for (old, new) in self.kept().filter(|(old, _)| !replaced.contains(&old.id)) {
            let change = Change { identity: self.identity, new_catalog: self.new, old, new };
            let is_made = |id: &ObjectId| !self.old.objects.contains_key(id) || replaced.contains(id);
            let again = change.column_privileges(is_made);
            if !again.is_empty() {
                self.altered.entry(old.id.clone()).or_default().extend(again);
            }
        }
        for id in replaced {
            self.altered.remove(&id);
            self.drops.insert(id.clone());
            self.creates.insert(id);
        }
    }

    /// What is on both sides and needs a column that goes: its name and its text may be the same, and be of another column that has the
    /// name now. Postgres drops some of these with the column, and drops no column because of the others.
    fn leaning_on_columns_that_go(&self) -> BTreeSet<ObjectId> {
        let goes = |id: &ObjectId| {
            self.drops.contains(id) && self.old.objects.get(id).is_some_and(|object| object.kind == Kind::Column)
        };
        let leaning = self.old.needs.iter().filter(|(_, needs)| needs.iter().any(goes)).map(|(id, _)| id);
        let is_made_again = |id: &&ObjectId| {
            let Some(object) = self.old.objects.get(*id).filter(|_| self.new.objects.contains_key(*id)) else {
                return false;
            };
            match object.kind {
                Kind::Index | Kind::Constraint | Kind::Statistics | Kind::Trigger => true,
                // Whose text changes lets go of the column by that.
                Kind::View | Kind::MaterializedView | Kind::Function | Kind::Policy | Kind::Rule => {
                    !self.altered.contains_key(*id)
                }
                _ => false,
            }
        };
        leaning.filter(is_made_again).cloned().collect()
    }

    /// What depends on something that is made again is made again too. Gives the columns that must be moved from an old type to
    /// the new one of the same name.
    fn spread(&self, replaced: &mut BTreeSet<ObjectId>, retyped: &BTreeSet<ObjectId>) -> BTreeSet<ObjectId> {
        let (mut old_users, new_users) = (self.old.needed_by(), self.new.needed_by());
        // Making a foreign key for all partitions makes each one's again, under the name of the whole.
        for key in self.old.objects.values().filter(|object| object.references().is_some()) {
            if let Some(whole) = self.old.copied(key) {
                old_users.entry(&whole.id).or_default().push(&key.id);
            }
        }
        let mut forced = BTreeSet::new();
        let mut queue: Vec<(ObjectId, bool)> = replaced.iter().map(|id| (id.clone(), false)).collect();
        queue.extend(retyped.iter().map(|id| (id.clone(), true)));
        while let Some((id, is_retyped)) = queue.pop() {
            // A function with a parsed body that takes a row of a table holds on to the types of all of its columns.
            let table = (is_retyped && id.sub != 0).then(|| ObjectId { sub: 0, ..id.clone() });
            let of_rows = table
                .iter()
                .flat_map(|table| old_users.get(table))
                .flatten()
                .filter(|user| self.old.objects.get(**user).is_some_and(Object::has_parsed_body));
            let users = old_users.get(&id).into_iter().chain(new_users.get(&id)).flatten().chain(of_rows);
            for user in users {
                let (Some(object), true) = (self.old.objects.get(*user), self.new.objects.contains_key(*user)) else {
                    continue;
                };
                let type_replaced = self
                    .old
                    .objects
                    .get(&id)
                    .is_some_and(|o| matches!(o.kind, Kind::Enum | Kind::Domain | Kind::Composite | Kind::Range));
                match object.kind {
                    Kind::Column if type_replaced => {
                        if forced.insert((*user).clone()) {
                            queue.push(((*user).clone(), true));
                        }
                        continue;
                    }
                    Kind::Column
                    | Kind::Table
                    | Kind::ForeignTable
                    | Kind::Sequence
                    | Kind::Schema
                    | Kind::Extension => continue,
                    // Postgres carries these over to the column's new type itself.
                    Kind::Index | Kind::Constraint | Kind::Statistics | Kind::OwnedBy | Kind::Partition
                        if is_retyped =>
                    {
                        continue;
                    }
                    Kind::Default if is_retyped && !forced.contains(&id) => continue,
                    _ => {}
                }
                if replaced.insert((*user).clone()) {
                    queue.push(((*user).clone(), false));
                }
            }
        }
        forced
    }

    fn name_uncovered(&mut self) {
        let (old, new) = (&self.old.uncovered, &self.new.uncovered);
        let key = |thing: &Uncovered| (thing.kind.clone(), thing.name.clone());
        let before: BTreeMap<_, _> = old.difference(new).map(|thing| (key(thing), thing)).collect();
        let after: BTreeMap<_, _> = new.difference(old).map(|thing| (key(thing), thing)).collect();
        let all: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        for (kind, name) in all {
            let id = (kind.clone(), name.clone());
            let what = match (before.contains_key(&id), after.contains_key(&id)) {
                (true, true) => "was changed",
                (true, false) => "was dropped",
                _ => "is new",
            };
            self.not_covered.push(format!("{kind} {name} {what}"));
        }
    }

    fn plan(mut self) -> Plan {
        let leaving = self.leaving();
        let renames = Renames::find(&self, &leaving);
        // While the type is there.
        let mut statements = self.renamed_labels();
        statements.extend(leaving.before_all(&self));
        let schemas: Vec<ObjectId> =
            self.creates.iter().filter(|id| self.new.objects[*id].kind == Kind::Schema).cloned().collect();
        let making = self.making();
        for id in &schemas {
            let object = &self.new.objects[id];
            let sql = making.statements(object);
            statements.extend(
                sql.into_iter().map(|sql| self.statement(Section::BeforeRows, Action::Create, self.new, object, sql)),
            );
        }
        let (renaming, temporary) = renames.statements(&self, &leaving.that_stay_for_a_while());
        statements.extend(renaming);
        let names = NamesThen { planner: &self, renames: &renames, temporary };
        statements.extend(leaving.after_rows(&names));
        let (making_statements, cycles) = self.ordered_makings(&schemas);
        statements.extend(making_statements);
        statements.extend(leaving.after_all(&names));
        self.not_covered.extend(cycles);
        let (before, after): (Vec<_>, Vec<_>) =
            statements.into_iter().partition(|statement| statement.section == Section::BeforeRows);
        let touched = self.touched(&renames);
        Plan { statements: before.into_iter().chain(after).collect(), not_covered: self.not_covered, touched }
    }

    /// Labels of enums that are made again: columns go over to the new type by their text.
    fn renamed_labels(&self) -> Vec<Statement> {
        let mut statements = Vec::new();
        for id in self.drops.intersection(&self.creates) {
            let (old, new) = (&self.old.objects[id], &self.new.objects[id]);
            if old.kind != Kind::Enum {
                continue;
            }
            let name = whole_type(old);
            for (was, label) in Labels::of(old, new, self.identity).renamed() {
                let sql = rename_value(&name, was, label);
                statements.push(self.statement(Section::BeforeRows, Action::Alter, self.old, old, sql));
            }
        }
        statements
    }

    fn making(&self) -> Making<'_> {
        let catalogs = [self.old, self.new];
        let defaults =
            catalogs.iter().flat_map(|catalog| catalog.objects.values()).filter(|o| o.kind == Kind::DefaultPrivileges);
        let mut grantees: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for object in defaults {
            let names = object.rows("privileges").iter().filter_map(|row| row.get(0)?.as_str().map(str::to_owned));
            grantees.entry(object.text("objects").unwrap_or_default().to_owned()).or_default().extend(names);
        }
        let places = self.creates.iter().filter(|id| id.class == "partition");
        let apart = places.map(|place| ObjectId { class: "pg_class".to_owned(), ..place.clone() }).collect();
        Making { catalog: self.new, default_grantees: grantees, apart }
    }

    /// Columns that a table begins to inherit and keeps as its own all the same: `INHERIT` does not take back what `NO INHERIT`, or a
    /// definition, made of them (`attislocal`), nor does another statement that leaves their values.
    fn name_columns_that_stay_local(&mut self) {
        let mut found: BTreeMap<&ObjectId, Vec<&str>> = BTreeMap::new();
        for (_, new) in self.kept().filter(|(old, _)| old.kind == Kind::Column && old.flag("local")) {
            let table = self.new.parent(new).filter(|table| table.text("partition_bound").is_none());
            if let (Some(table), true) = (table, is_inherited(new)) {
                found.entry(&table.id).or_default().push(&new.name);
            }
        }
        let told = found.into_iter().filter_map(|(table, columns)| {
            let table = self.new.objects.get(table)?;
            let columns = columns.join(", ");
            Some(format!(
                "{}: its inherited columns stay its own besides, and stay when they are dropped above it: {columns}",
                self.new.path(table)
            ))
        });
        let told: Vec<String> = told.collect();
        self.not_covered.extend(told);
    }

    pub(crate) fn statement(
        &self,
        section: Section,
        action: Action,
        catalog: &Catalog,
        object: &Object,
        sql: String,
    ) -> Statement {
        let path = catalog.path(object);
        let name = path.strip_prefix(object.kind.word()).unwrap_or(&path).trim_start().to_owned();
        let part = self.part(&self.brought_by(&object.id));
        Statement { section, action, kind: object.kind.word().to_owned(), object: name, part, sql }
    }

    /// What needs no statement because making something else brings it.
    pub(crate) fn comes_with(&self, object: &Object) -> Option<ObjectId> {
        if let Some(from_above) = self.foreign_key_from_above(object) {
            return Some(from_above);
        }
        let parent = object.parent_id();
        let parent_made = parent.as_ref().is_some_and(|parent| self.creates.contains(parent));
        let inherited = object.number("inherited") > 0 && !object.flag("local");
        let attached_now = parent.as_ref().map(ObjectId::place).is_some_and(|id| self.creates.contains(&id));
        match object.kind {
            Kind::Column if parent_made || (inherited && !attached_now) => parent,
            Kind::Constraint if inherited && object.text("type") == Some("c") => {
                if attached_now {
                    None
                } else {
                    parent
                }
            }
            _ => None,
        }
    }

    /// Whether an object is a column that its table gets from another, by statements for that one; it may have settings of its own then.
    fn comes_by_itself(&self, id: &ObjectId) -> bool {
        let object = &self.new.objects[id];
        let table = self.new.parent(object);
        let is_written =
            table.is_some_and(|table| self.creates.contains(&table.id) && table.text("partition_bound").is_some());
        let is_apart = table.is_some_and(|table| self.creates.contains(&table.id.place()));
        object.kind == Kind::Column && is_inherited(object) && !is_written && !is_apart
    }

    /// Names of the sequences of columns that stay and are identity columns no longer, with these.
    fn names_of_identities_that_go(&self) -> BTreeMap<String, &ObjectId> {
        let name_of = |id: &ObjectId| {
            let (old, new) = (self.old.objects.get(id)?, self.new.objects.get(id)?);
            old.text("identity_name").filter(|_| new.text("identity").is_none()).map(str::to_owned)
        };
        self.altered.keys().filter_map(|id| Some((name_of(id)?, id))).collect()
    }

    /// Statements that change and make things, in order, and what could not be put in order.
    fn ordered_makings(&self, done: &[ObjectId]) -> (Vec<Statement>, Vec<String>) {
        let mut nodes: BTreeSet<ObjectId> = BTreeSet::new();
        let mut stands_for: BTreeMap<ObjectId, ObjectId> = BTreeMap::new();
        for id in self.creates.iter().chain(self.altered.keys()) {
            if done.contains(id) {
                continue;
            }
            let whole = self.creates.contains(id).then(|| self.comes_with(&self.new.objects[id])).flatten();
            match whole.filter(|_| !self.comes_by_itself(id)) {
                Some(whole) => {
                    stands_for.insert(id.clone(), whole);
                }
                None => {
                    nodes.insert(id.clone());
                    stands_for.insert(id.clone(), id.clone());
                }
            }
        }
        let mut edges = Edges::new();
        for (from, needs) in self.new.needs.iter().chain(&self.new.made_after) {
            let Some(from) = stands_for.get(from) else { continue };
            // A place waits for its table's own constraints, not for those that come with another thing.
            let is_place = from.class == "partition";
            let needed = needs.iter().filter_map(|to| stands_for.get(to).filter(|stands| !is_place || *stands == to));
            for to in needed.filter(|to| *to != from) {
                // A table that is made does not wait for its own columns, whatever its other columns need of them.
                if from.sub == 0 && (&from.class, from.oid) == (&to.class, to.oid) {
                    continue;
                }
                edges.entry(from.clone()).or_default().insert(to.clone());
            }
        }
        // A partition's foreign key is checked against what that of all partitions is.
        for id in &nodes {
            let Some(whole) = self.new.objects.get(id).and_then(|key| self.new.whole_foreign_key(key)) else {
                continue;
            };
            let places = self.new.needs_of(&whole.id).filter(|need| need.class == "partition");
            let before: Vec<ObjectId> = places.filter_map(|place| stands_for.get(place).cloned()).collect();
            if !before.is_empty() {
                edges.entry(id.clone()).or_default().extend(before);
            }
        }
        for id in nodes.iter().filter(|id| self.creates.contains(id) && self.comes_by_itself(id)) {
            let column = &self.new.objects[id];
            let above = self.new.columns_above(column).map(|above| above.id.clone()).chain(column.parent_id());
            let before = above.filter_map(|id| stands_for.get(&id).cloned());
            edges.entry(id.clone()).or_default().extend(before);
        }
        // What has the name of an identity column's sequence is made when the column is none any more.
        let freed = self.names_of_identities_that_go();
        for id in nodes.iter().filter(|id| self.creates.contains(id)) {
            let object = &self.new.objects[id];
            let column = is_relation(object.kind).then(|| freed.get(&whole_type(object))).flatten();
            if let Some(column) = column.and_then(|column| stands_for.get(*column)) {
                edges.entry(id.clone()).or_default().insert(column.clone());
            }
        }
        // Columns in their order, all else by name.
        let rank = |id: &ObjectId| {
            self.new
                .objects
                .get(id)
                .map(|o| (o.kind, self.new.parent(o).map(|whole| self.new.path(whole)), id.sub, self.new.path(o)))
        };
        let (ordered, cyclic) = order::sort(&nodes, &edges, rank);
        let (making, held) = (self.making(), self.held_tables());
        let mut sections: BTreeMap<ObjectId, Section> = BTreeMap::new();
        let mut statements = Vec::new();
        for id in &ordered {
            let object = &self.new.objects[id];
            let creates = self.creates.contains(id);
            let needed = edges.get(id).into_iter().flatten().filter_map(|need| sections.get(need)).max();
            let mut section = needed.copied().unwrap_or(Section::BeforeRows);
            let (action, sql) = match creates {
                true => (Action::Create, making.statements(object)),
                false => (Action::Alter, self.altered.get(id).cloned().unwrap_or_default()),
            };
            let is_in_place_first = creates && self.is_in_place_first(object, &held);
            for sql in sql {
                if !is_in_place_first {
                    section = section.max(section_of(object, creates, &sql));
                }
                statements.push(self.statement(section, action, self.new, object, sql));
            }
            sections.insert(id.clone(), section);
        }
        let cycles = cyclic.iter().map(|id| {
            format!(
                "{} and others need each other: its place in the order is a guess",
                self.new.path(&self.new.objects[id])
            )
        });
        (statements, cycles.collect())
    }
}

/// Whether it has a name that no sequence beside it may have.
fn is_relation(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Sequence
            | Kind::Table
            | Kind::ForeignTable
            | Kind::View
            | Kind::MaterializedView
            | Kind::Index
            | Kind::Composite
    )
}

fn whole_type(object: &Object) -> String {
    qualified(object.schema.as_deref().unwrap_or_default(), &object.name)
}

/// Rows must not be held to what is only true once all of them are there.
fn section_of(object: &Object, creates: bool, sql: &str) -> Section {
    let late_kind = matches!(
        object.kind,
        Kind::Constraint
            | Kind::Index
            | Kind::Trigger
            | Kind::Rule
            | Kind::Policy
            | Kind::MaterializedView
            | Kind::Partition
            | Kind::EventTrigger
            | Kind::Publication
            | Kind::Statistics
    );
    let late_word = [" SET NOT NULL", " ROW LEVEL SECURITY"].iter().any(|end| sql.ends_with(end))
        || sql.contains(" ADD GENERATED ")
        || (object.kind == Kind::Column && sql.contains(" ADD CONSTRAINT "))
        || sql.contains(" VALIDATE CONSTRAINT ");
    if (creates && late_kind) || late_word || (!creates && matches!(object.kind, Kind::Trigger | Kind::Rule)) {
        Section::AfterRows
    } else {
        Section::BeforeRows
    }
}
