//! New names and schemas for objects that stay.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::{Kind, Object, ObjectId};
use crate::leaving::Leaving;
use crate::name::identifier;
use crate::phrase::{phrase, whole_name};
use crate::plan::{Action, Planner, Section, Statement};

/// An object that gets another name, another schema, or both.
struct Rename {
    id: ObjectId,
    renamed: bool,
    moved: bool,
    /// Its table takes it along to another schema.
    carried: bool,
}

pub(crate) struct Renames {
    all: Vec<Rename>,
    /// Schemas by their old names, with the names that they get.
    schemas: BTreeMap<String, String>,
}

impl Renames {
    pub fn find(planner: &Planner<'_>, leaving: &Leaving) -> Renames {
        let mut schemas = BTreeMap::new();
        for (id, old) in planner.old.objects.iter().filter(|(_, object)| object.kind == Kind::Schema) {
            if let Some(new) = planner.new.objects.get(id) {
                schemas.insert(old.name.clone(), new.name.clone());
            }
        }
        let mut all = Vec::new();
        for (id, old) in &planner.old.objects {
            let Some(new) = planner.new.objects.get(id).filter(|_| !planner.creates.contains(id)) else { continue };
            let inherited = old.number("inherited") > 0 && !old.flag("local");
            let nameless = matches!(
                old.kind,
                Kind::Default
                    | Kind::ViewColumn
                    | Kind::Partition
                    | Kind::OwnedBy
                    | Kind::Cast
                    | Kind::DefaultPrivileges
                    | Kind::Extension
            );
            // By the statement for the table above, while it is above.
            let is_alone = old.parent_id().is_some_and(|table| leaving.leaves_first(planner, &table.place()));
            let comes = inherited && !is_alone && (matches!(old.kind, Kind::Column) || old.text("type") == Some("c"));
            if nameless || comes {
                continue;
            }
            let schema = old.schema.as_ref().map(|schema| schemas.get(schema).unwrap_or(schema));
            let moves_alone = !matches!(old.kind, Kind::Index) && !moves_with_table(planner, id);
            let elsewhere = schema != new.schema.as_ref();
            let rename = Rename {
                id: id.clone(),
                renamed: old.name != new.name,
                moved: elsewhere && moves_alone,
                carried: elsewhere && !moves_alone,
            };
            if rename.renamed || rename.moved {
                all.push(rename);
            }
        }
        Renames { all, schemas }
    }

    pub fn ids(&self) -> impl Iterator<Item = &ObjectId> {
        self.all.iter().map(|rename| &rename.id)
    }

    /// The statements, and the names that `late` ones got to make room.
    pub fn statements(&self, planner: &Planner<'_>, late: &[ObjectId]) -> (Vec<Statement>, BTreeMap<ObjectId, String>) {
        let mut statements = Vec::new();
        let mut temporary: BTreeMap<ObjectId, String> = BTreeMap::new();
        let taken = self.names_to_come(planner);
        for group in 0..4 {
            let of_group = |object: &Object| group_of(object.kind) == group;
            let mut current: BTreeMap<ObjectId, String> = BTreeMap::new();
            for id in late {
                let object = &planner.old.objects[id];
                if !of_group(object) {
                    continue;
                }
                let name = if taken.contains(&self.place(planner, object, false)) {
                    format!("ardent_old_{}_{}", id.oid, id.sub)
                } else {
                    object.name.clone()
                };
                if name != object.name {
                    statements.extend(self.step(planner, object, &object.name, &name));
                }
                temporary.insert(id.clone(), name);
            }
            let renames: Vec<&Rename> =
                self.all.iter().filter(|rename| of_group(&planner.old.objects[&rename.id])).collect();
            let occupied: BTreeSet<(String, String)> =
                planner.old.objects.values().map(|object| self.place(planner, object, false)).collect();
            for rename in &renames {
                let (old, new) = (&planner.old.objects[&rename.id], &planner.new.objects[&rename.id]);
                let in_the_way = occupied.contains(&self.place(planner, new, true));
                if rename.renamed && (in_the_way || rename.moved || rename.carried) {
                    let name = format!("ardent_new_{}_{}", rename.id.oid, rename.id.sub);
                    statements.extend(self.step(planner, old, &old.name, &name));
                    current.insert(rename.id.clone(), name);
                }
            }
            // What is carried along is there once its table is.
            let (carried, others): (Vec<_>, Vec<_>) = renames.into_iter().partition(|rename| rename.carried);
            for rename in others.into_iter().chain(carried) {
                let (old, new) = (&planner.old.objects[&rename.id], &planner.new.objects[&rename.id]);
                let name = current.get(&rename.id).unwrap_or(&old.name).clone();
                let mut moved = Object { name: name.clone(), ..old.clone() };
                if let (true, Some(schema)) = (rename.moved, &new.schema) {
                    let schema = self.current_schema(schema);
                    let sql = format!("ALTER {} SET SCHEMA {}", phrase(planner.old, &moved), identifier(&schema));
                    statements.push(planner.statement(Section::BeforeRows, Action::Rename, planner.old, old, sql));
                    moved.schema = Some(schema);
                }
                if rename.carried {
                    moved.schema = new.schema.as_deref().map(|schema| self.current_schema(schema));
                }
                if rename.renamed {
                    statements.extend(self.step(planner, &moved, &name, &new.name));
                }
            }
        }
        (statements, temporary)
    }

    /// What a schema of the old side is called once all have their new names.
    pub fn schema_after<'n>(&'n self, old: &'n str) -> &'n str {
        self.schemas.get(old).map_or(old, String::as_str)
    }

    /// What a schema of the new side is called while renames are under way: schemas are renamed last.
    fn current_schema(&self, new: &str) -> String {
        self.schemas.iter().find(|(_, after)| *after == new).map_or(new, |(before, _)| before).to_owned()
    }

    /// Where a name is taken: what it must be unique in, and the name. Schemas by their old names.
    fn place(&self, planner: &Planner<'_>, object: &Object, is_new: bool) -> (String, String) {
        let space = match &object.schema {
            Some(schema) => {
                let schema = if is_new { self.current_schema(schema) } else { schema.clone() };
                let arguments =
                    if object.kind == Kind::Function { object.text("types").unwrap_or_default() } else { "" };
                let class = if matches!(object.kind, Kind::Enum | Kind::Domain | Kind::Composite | Kind::Range) {
                    "pg_class"
                } else {
                    &object.id.class
                };
                format!("{class} {schema} {arguments}")
            }
            None => {
                let parent = object.parent_id().map(|id| format!("{} {}", id.oid, id.sub)).unwrap_or_default();
                format!("{} {parent}", object.id.class)
            }
        };
        let _ = planner;
        (space, object.name.clone())
    }

    fn names_to_come(&self, planner: &Planner<'_>) -> BTreeSet<(String, String)> {
        let ids = planner.creates.iter().chain(self.ids());
        ids.map(|id| self.place(planner, &planner.new.objects[id], true)).collect()
    }

    fn step(&self, planner: &Planner<'_>, object: &Object, from: &str, to: &str) -> Option<Statement> {
        let object = Object { name: from.to_owned(), ..object.clone() };
        let (from, to) = (identifier(from), identifier(to));
        let whole = whole_name(planner.old, &object);
        let sql = match object.kind {
            Kind::Column => format!("ALTER TABLE {whole} RENAME COLUMN {from} TO {to}"),
            Kind::Constraint => format!("ALTER TABLE {whole} RENAME CONSTRAINT {from} TO {to}"),
            Kind::DomainConstraint => format!("ALTER DOMAIN {whole} RENAME CONSTRAINT {from} TO {to}"),
            Kind::Default | Kind::Partition | Kind::OwnedBy => return None,
            _ => format!("ALTER {} RENAME TO {to}", phrase(planner.old, &object)),
        };
        Some(planner.statement(Section::BeforeRows, Action::Rename, planner.old, &object, sql))
    }
}

/// Parts go first, under their whole's old name; schemas last.
fn group_of(kind: Kind) -> u8 {
    match kind {
        Kind::Column
        | Kind::Constraint
        | Kind::DomainConstraint
        | Kind::Trigger
        | Kind::Rule
        | Kind::Policy
        | Kind::Default
        | Kind::Partition
        | Kind::OwnedBy => 0,
        Kind::Function | Kind::Operator => 1,
        Kind::Schema => 3,
        _ => 2,
    }
}

/// A sequence that a column owns goes where the table goes.
fn moves_with_table(planner: &Planner<'_>, id: &ObjectId) -> bool {
    let owned = ObjectId { class: "owned".to_owned(), ..id.clone() };
    planner.old.objects.contains_key(&owned) && planner.new.objects.contains_key(&owned)
}
