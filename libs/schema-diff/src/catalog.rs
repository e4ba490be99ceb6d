//! One side's catalog: objects, what depends on what, and what is not looked into.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::queries;

/// OIDs from here on belong to what users made (`FirstNormalObjectId` of Postgres).
pub(crate) const FIRST_USER_OID: u32 = 16_384;

/// What is read about a catalog is not as these queries give it.
#[derive(Debug, thiserror::Error)]
#[error("a catalog query answered in an unexpected form: {text}")]
pub struct CatalogError {
    text: String,
    #[source]
    source: Option<serde_json::Error>,
}

/// Names an object: catalog, OID, and the attribute number of a column (else 0).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId {
    pub(crate) class: String,
    pub(crate) oid: u32,
    pub(crate) sub: i32,
}

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is named by Postgres's own word")]
pub enum Kind {
    // In the order in which independent ones are best made.
    Schema,
    Extension,
    Collation,
    Enum,
    Domain,
    Composite,
    Range,
    Server,
    Sequence,
    Table,
    ForeignTable,
    Column,
    Function,
    Cast,
    Operator,
    DomainConstraint,
    Default,
    View,
    ViewColumn,
    MaterializedView,
    Index,
    Constraint,
    Statistics,
    /// A table's place below its partitioned table.
    Partition,
    /// The column that a sequence goes away with.
    OwnedBy,
    Rule,
    Policy,
    Trigger,
    EventTrigger,
    Publication,
    DefaultPrivileges,
}

impl ObjectId {
    /// A table's place below its partitioned table, if it is a partition.
    pub(crate) fn place(&self) -> ObjectId {
        ObjectId { class: "partition".to_owned(), ..self.clone() }
    }
}

impl Kind {
    /// Its word in messages.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Schema => "schema",
            Kind::Extension => "extension",
            Kind::Collation => "collation",
            Kind::Enum | Kind::Composite | Kind::Range => "type",
            Kind::Domain => "domain",
            Kind::Server => "server",
            Kind::Sequence => "sequence",
            Kind::Table => "table",
            Kind::ForeignTable => "foreign table",
            Kind::Column | Kind::ViewColumn => "column",
            Kind::Function => "function",
            Kind::Cast => "cast",
            Kind::Operator => "operator",
            Kind::DomainConstraint | Kind::Constraint => "constraint",
            Kind::Default => "default",
            Kind::View => "view",
            Kind::MaterializedView => "materialized view",
            Kind::Index => "index",
            Kind::Statistics => "statistics",
            Kind::Partition => "partition",
            Kind::OwnedBy => "owner of sequence",
            Kind::Rule => "rule",
            Kind::Policy => "policy",
            Kind::Trigger => "trigger",
            Kind::EventTrigger => "event trigger",
            Kind::Publication => "publication",
            Kind::DefaultPrivileges => "default privileges",
        }
    }
}

/// A privilege: who has it (absent: everybody), from whom, which, and whether it may be passed on.
pub type Privilege = (Option<String>, String, String, bool);

/// An object of a catalog.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Object {
    #[serde(flatten)]
    pub(crate) id: ObjectId,
    pub(crate) kind: Kind,
    /// Its schema, for what is in one itself; not quoted.
    pub(crate) schema: Option<String>,
    /// Not quoted.
    pub(crate) name: String,
    /// What it is a part of.
    #[serde(default)]
    pub(crate) parent: Option<(String, u32, i32)>,
    #[serde(default)]
    pub(crate) owner: Option<String>,
    #[serde(default)]
    pub(crate) acl: Option<Vec<Privilege>>,
    #[serde(default)]
    pub(crate) comment: Option<String>,
    /// What its definition is written from.
    #[serde(default)]
    pub(crate) d: Map<String, Value>,
    /// How it is stored.
    #[serde(default)]
    pub(crate) s: Map<String, Value>,
}

impl Object {
    /// Whether it is a function whose body was parsed when it was made (`BEGIN ATOMIC`, `RETURN`).
    pub(crate) fn has_parsed_body(&self) -> bool {
        let body = self.s.get("definition").and_then(|definition| definition.get("prosqlbody"));
        self.kind == Kind::Function && body.is_some_and(|body| !body.is_null())
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// All that two objects of one name are compared by, in any database.
    pub(crate) fn definition(&self) -> String {
        let mut d = self.d.clone();
        // Numbers of other objects, and what is no part of the definition.
        for field in ["foreign_table", "parent_constraint", "parent_index", "missing", "populated"] {
            d.remove(field);
        }
        // Only since 18 does what makes a column not null have a name.
        for field in ["not_null_name", "not_null_usual"] {
            d.remove(field);
        }
        d.retain(|_, value| !value.is_null());
        serde_json::json!({ "name": self.name, "schema": self.schema, "owner": self.owner, "acl": self.acl, "comment": self.comment, "definition": d })
            .to_string()
    }

    pub(crate) fn parent_id(&self) -> Option<ObjectId> {
        self.parent.as_ref().map(|(class, oid, sub)| ObjectId { class: class.clone(), oid: *oid, sub: *sub })
    }

    /// The table that a foreign key references.
    pub(crate) fn references(&self) -> Option<ObjectId> {
        let oid = u32::try_from(self.number("foreign_table")).ok().filter(|oid| *oid != 0)?;
        Some(ObjectId { class: "pg_class".to_owned(), oid, sub: 0 })
    }

    /// The partitioned table's constraint that a partition's is a copy of.
    pub(crate) fn copy_of(&self) -> Option<ObjectId> {
        let oid = u32::try_from(self.number("parent_constraint")).ok().filter(|oid| *oid != 0)?;
        Some(ObjectId { class: "pg_constraint".to_owned(), oid, sub: 0 })
    }

    pub(crate) fn text(&self, field: &str) -> Option<&str> {
        self.d.get(field).and_then(Value::as_str)
    }

    pub(crate) fn flag(&self, field: &str) -> bool {
        self.d.get(field).and_then(Value::as_bool).unwrap_or(false)
    }

    pub(crate) fn number(&self, field: &str) -> i64 {
        self.d.get(field).and_then(Value::as_i64).unwrap_or(0)
    }

    pub(crate) fn list(&self, field: &str) -> Vec<String> {
        let items = self.d.get(field).and_then(Value::as_array);
        items.into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    }

    /// The first item of each list in a list.
    pub(crate) fn list_of_lists(&self, field: &str) -> Vec<String> {
        self.rows(field).iter().filter_map(|row| row.get(0)?.as_str().map(str::to_owned)).collect()
    }

    pub(crate) fn rows(&self, field: &str) -> &[Value] {
        self.d.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.word())?;
        f.write_str(" ")?;
        if let Some(schema) = &self.schema {
            write!(f, "{schema}.")?;
        }
        f.write_str(&self.name)
    }
}

/// A thing that no statement is written for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Uncovered {
    pub kind: String,
    pub name: String,
    pub content: String,
}

/// One side's catalog.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalog {
    pub(crate) objects: BTreeMap<ObjectId, Object>,
    /// From an object to those that it needs.
    pub(crate) needs: BTreeMap<ObjectId, BTreeSet<ObjectId>>,
    /// From an object to those that are only to be made before it.
    pub(crate) made_after: BTreeMap<ObjectId, BTreeSet<ObjectId>>,
    pub(crate) uncovered: BTreeSet<Uncovered>,
}

/// Which queries to run, each giving rows of one text column that [`Catalog::from_answers`] takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogQueries {
    /// In order.
    pub statements: Vec<String>,
}

impl CatalogQueries {
    /// The queries. They are to be run in one snapshot, with `search_path = pg_catalog`.
    pub fn new() -> CatalogQueries {
        let mut statements = vec![queries::dependencies(), queries::aliases(), queries::uncovered()];
        statements.extend(queries::objects());
        CatalogQueries { statements }
    }
}

impl Default for CatalogQueries {
    fn default() -> Self {
        CatalogQueries::new()
    }
}

impl Catalog {
    /// A catalog from the rows that each of [`CatalogQueries::statements`] gave, in their order.
    pub fn from_answers(answers: &[Vec<String>]) -> Result<Catalog, CatalogError> {
        let [dependencies, aliases, uncovered, objects @ ..] = answers else {
            return Err(CatalogError { text: "fewer answers than queries".to_owned(), source: None });
        };
        let mut catalog = Catalog::default();
        for row in objects.iter().flatten() {
            let object: Object = parse(row)?;
            catalog.objects.insert(object.id.clone(), object);
        }
        for row in uncovered {
            let (kind, name, content): (String, Option<String>, Option<String>) = parse(row)?;
            let (name, content) = (name.unwrap_or_default(), content.unwrap_or_default());
            catalog.uncovered.insert(Uncovered { kind, name, content });
        }
        let mut same: BTreeMap<(String, u32), ObjectId> = BTreeMap::new();
        for row in aliases {
            let (class, oid, to_class, to_oid, sub): (String, u32, String, u32, i32) = parse(row)?;
            same.insert((class, oid), ObjectId { class: to_class, oid: to_oid, sub });
        }
        for row in dependencies {
            let row: (String, u32, i32, String, u32, i32, String) = parse(row)?;
            let from = catalog.resolve(&same, ObjectId { class: row.0, oid: row.1, sub: row.2 });
            let to = catalog.resolve(&same, ObjectId { class: row.3, oid: row.4, sub: row.5 });
            let (Some(from), Some(to)) = (from, to) else { continue };
            // A sequence is owned by a column that may well need the sequence.
            let owned = catalog.objects[&from].kind == Kind::Sequence && row.6 == "a";
            let inside = from.class == to.class && from.oid == to.oid;
            if from != to && !owned && !(inside && from.sub == 0) {
                catalog.needs.entry(from).or_default().insert(to);
            }
        }
        catalog.add_partitions();
        catalog.add_referenced_partitions();
        catalog.add_owned_sequences();
        catalog.order_partitioned_parts();
        let parts: Vec<_> =
            catalog.objects.values().filter_map(|object| Some((object.id.clone(), object.parent_id()?))).collect();
        for (part, whole) in parts {
            if catalog.objects.contains_key(&whole) {
                catalog.needs.entry(part).or_default().insert(whole);
            }
        }
        Ok(catalog)
    }

    /// Makes each partition's place an object of its own: it needs both tables, and comes after the partition's indexes and
    /// constraints, which attaching then recognises instead of making others.
    fn add_partitions(&mut self) {
        let tables: Vec<Object> =
            self.objects.values().filter(|o| o.text("partition_bound").is_some()).cloned().collect();
        for table in tables {
            let id = table.id.place();
            let parents = table.s.get("parents").and_then(Value::as_array).into_iter().flatten();
            let above: Vec<ObjectId> = parents
                .filter_map(|oid| {
                    Some(ObjectId { class: "pg_class".to_owned(), oid: u32::try_from(oid.as_u64()?).ok()?, sub: 0 })
                })
                .collect();
            let field =
                |map: &Map<String, Value>, name: &str| (name.to_owned(), map.get(name).cloned().unwrap_or(Value::Null));
            let object = Object {
                id: id.clone(),
                kind: Kind::Partition,
                schema: table.schema.clone(),
                name: table.name.clone(),
                parent: Some((table.id.class.clone(), table.id.oid, 0)),
                owner: None,
                acl: None,
                comment: None,
                d: [field(&table.d, "partition_bound"), field(&table.d, "parents")].into_iter().collect(),
                s: [field(&table.s, "parents")].into_iter().collect(),
            };
            self.objects.insert(id.clone(), object);
            let needs = self.needs.entry(table.id.clone()).or_default();
            needs.retain(|need| !above.iter().any(|parent| parent.oid == need.oid && need.class == "pg_class"));
            for column in self.columns(&table.id).map(|column| column.id.clone()).collect::<Vec<_>>() {
                if let Some(needs) = self.needs.get_mut(&column) {
                    needs.retain(|need| !above.iter().any(|parent| parent.oid == need.oid && need.class == "pg_class"));
                }
            }
            self.needs.entry(id).or_default().extend(above);
        }
    }

    /// A foreign key is checked against the rows of all partitions below the table that it references: it is made once these are in
    /// their places. Tables that reference each other in a circle would wait for each other: they do not.
    fn add_referenced_partitions(&mut self) {
        let mut below: BTreeMap<ObjectId, Vec<ObjectId>> = BTreeMap::new();
        for place in self.objects.values().filter(|object| object.kind == Kind::Partition) {
            for above in self.needs_of(&place.id).filter(|need| need.oid != place.id.oid) {
                below.entry(above.clone()).or_default().push(place.id.clone());
            }
        }
        if below.is_empty() {
            return;
        }
        let whole = |table: &ObjectId| self.tables_above(table).pop().unwrap_or_else(|| table.clone());
        let mut keys: Vec<(ObjectId, ObjectId, ObjectId)> = Vec::new();
        let mut referenced: BTreeMap<ObjectId, BTreeSet<ObjectId>> = BTreeMap::new();
        for key in self.objects.values() {
            let (Some(table), Some(references)) = (key.parent_id(), key.references()) else { continue };
            referenced.entry(whole(&table)).or_default().insert(whole(&references));
            // A partition's comes and goes with the partitioned table's.
            if key.copy_of().is_none() && below.contains_key(&references) {
                keys.push((key.id.clone(), whole(&table), references));
            }
        }
        let in_circle = |table: &ObjectId, references: &ObjectId| {
            let (mut queue, mut seen) = (vec![whole(references)], BTreeSet::new());
            while let Some(at) = queue.pop() {
                if at == *table {
                    return true;
                }
                queue.extend(referenced.get(&at).into_iter().flatten().cloned());
                queue.retain(|next| !seen.contains(next));
                seen.insert(at);
            }
            false
        };
        keys.retain(|(_, table, references)| !in_circle(table, references));
        for (key, _, references) in keys {
            let mut queue = vec![references];
            while let Some(above) = queue.pop() {
                for place in below.get(&above).into_iter().flatten() {
                    queue.push(ObjectId { class: above.class.clone(), ..place.clone() });
                    self.needs.entry(key.clone()).or_default().insert(place.clone());
                }
            }
        }
    }

    fn add_owned_sequences(&mut self) {
        let owned: Vec<Object> = self
            .objects
            .values()
            .filter(|o| o.kind == Kind::Sequence && o.text("owned_by").is_some())
            .cloned()
            .collect();
        for sequence in owned {
            let Some(column) = sequence.s.get("owned_by").and_then(Value::as_array) else { continue };
            let number = |place: usize| column.get(place).and_then(Value::as_i64).unwrap_or(0);
            let (Ok(oid), Ok(sub)) = (u32::try_from(number(0)), i32::try_from(number(1))) else { continue };
            let id = ObjectId { class: "owned".to_owned(), ..sequence.id.clone() };
            let take = |map: &Map<String, Value>| {
                map.get("owned_by").cloned().map(|value| ("owned_by".to_owned(), value)).into_iter().collect()
            };
            let object = Object {
                id: id.clone(),
                kind: Kind::OwnedBy,
                schema: sequence.schema.clone(),
                name: sequence.name.clone(),
                parent: Some((sequence.id.class.clone(), sequence.id.oid, 0)),
                owner: None,
                acl: None,
                comment: None,
                d: take(&sequence.d),
                s: take(&sequence.s),
            };
            self.objects.insert(id.clone(), object);
            let column = ObjectId { class: "pg_class".to_owned(), oid, sub };
            // Its table too: the two must have one owner by then.
            let table = ObjectId { sub: 0, ..column.clone() };
            self.needs.entry(id).or_default().extend([column, table]);
        }
    }

    /// A partitioned index or constraint comes after those of its partitions, which it then takes in under their own names.
    fn order_partitioned_parts(&mut self) {
        let parts: Vec<(ObjectId, ObjectId)> = self
            .objects
            .values()
            .filter_map(|object| {
                let (field, class) = match object.kind {
                    Kind::Index => ("parent_index", "pg_class"),
                    Kind::Constraint => ("parent_constraint", "pg_constraint"),
                    _ => return None,
                };
                let oid = u32::try_from(object.number(field)).ok().filter(|oid| *oid != 0)?;
                Some((object.id.clone(), ObjectId { class: class.to_owned(), oid, sub: 0 }))
            })
            .collect();
        for (part, whole) in parts {
            if let Some(needs) = self.needs.get_mut(&part) {
                needs.remove(&whole);
            }
            self.made_after.entry(whole).or_default().insert(part);
        }
        let partitions: Vec<ObjectId> =
            self.objects.values().filter(|o| o.kind == Kind::Partition).map(|o| o.id.clone()).collect();
        let parts: Vec<(ObjectId, u32)> = self
            .objects
            .values()
            .filter(|o| matches!(o.kind, Kind::Index | Kind::Constraint))
            .filter_map(|o| Some((o.id.clone(), o.parent.as_ref()?.1)))
            .collect();
        for partition in partitions {
            let above: Vec<u32> =
                self.needs_of(&partition).map(|need| need.oid).filter(|oid| *oid != partition.oid).collect();
            for (part, table) in &parts {
                if *table == partition.oid {
                    self.made_after.entry(partition.clone()).or_default().insert(part.clone());
                } else if above.contains(table) {
                    self.made_after.entry(part.clone()).or_default().insert(partition.clone());
                }
            }
        }
    }

    /// The object that `id` stands for, if it is one that is looked into.
    fn resolve(&self, same: &BTreeMap<(String, u32), ObjectId>, mut id: ObjectId) -> Option<ObjectId> {
        // Chains are short: an array's element's row's table.
        for _ in 0..4 {
            if self.objects.contains_key(&id) {
                return Some(id);
            }
            let whole = ObjectId { sub: 0, ..id.clone() };
            match same.get(&(id.class.clone(), id.oid)) {
                Some(other) => id = other.clone(),
                None if self.objects.contains_key(&whole) => return Some(whole),
                None => return None,
            }
        }
        None
    }

    pub(crate) fn needs_of(&self, id: &ObjectId) -> impl Iterator<Item = &ObjectId> {
        self.needs.get(id).into_iter().flatten()
    }

    /// The constraint of a partitioned table that a partition's is a copy of.
    pub(crate) fn copied(&self, constraint: &Object) -> Option<&Object> {
        self.objects.get(&constraint.copy_of()?)
    }

    /// The foreign key of all partitions that one partition's is a copy of.
    pub(crate) fn whole_foreign_key(&self, key: &Object) -> Option<&Object> {
        key.references()?;
        let mut whole = self.copied(key)?;
        while let Some(above) = self.copied(whole) {
            whole = above;
        }
        Some(whole)
    }

    /// The partitioned tables that a table is below, the nearest first.
    pub(crate) fn tables_above(&self, table: &ObjectId) -> Vec<ObjectId> {
        let mut found: Vec<ObjectId> = Vec::new();
        let mut at = table.clone();
        loop {
            let place = at.place();
            let above = self.needs_of(&place).find(|need| need.class == "pg_class" && need.oid != at.oid);
            match above.filter(|above| !found.contains(above)).cloned() {
                Some(above) => {
                    found.push(above.clone());
                    at = above;
                }
                None => return found,
            }
        }
    }

    /// What needs what, the other way round.
    pub(crate) fn needed_by(&self) -> BTreeMap<&ObjectId, Vec<&ObjectId>> {
        let mut reverse: BTreeMap<&ObjectId, Vec<&ObjectId>> = BTreeMap::new();
        for (from, all) in &self.needs {
            for to in all {
                reverse.entry(to).or_default().push(from);
            }
        }
        reverse
    }

    /// The columns of a table or view, in order.
    pub(crate) fn columns<'a>(&'a self, table: &ObjectId) -> impl Iterator<Item = &'a Object> {
        let first = ObjectId { sub: 1, ..table.clone() };
        let last = ObjectId { sub: i32::MAX, ..table.clone() };
        self.objects.range(first..=last).map(|(_, object)| object)
    }

    /// The columns of other tables that a column is inherited from, or would be.
    pub(crate) fn columns_above<'a>(&'a self, column: &'a Object) -> impl Iterator<Item = &'a Object> {
        let parents = self.parent(column).and_then(|table| table.s.get("parents")).and_then(Value::as_array);
        parents.into_iter().flatten().filter_map(|oid| {
            let oid = u32::try_from(oid.as_u64()?).ok()?;
            let table = ObjectId { class: "pg_class".to_owned(), oid, sub: 0 };
            self.columns(&table).find(|other| other.name == column.name)
        })
    }

    /// The whole that an object is a part of: itself if it is none.
    pub(crate) fn parent<'a>(&'a self, object: &Object) -> Option<&'a Object> {
        self.objects.get(&object.parent_id()?)
    }

    /// Every object's definition by its name, as [`Touched`](crate::Touched) has them.
    pub fn definitions(&self) -> BTreeMap<String, String> {
        self.objects.values().map(|object| (self.path(object), object.definition())).collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether users made nothing in it.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}

pub(crate) fn parse<'a, T: Deserialize<'a>>(row: &'a str) -> Result<T, CatalogError> {
    serde_json::from_str(row)
        .map_err(|source| CatalogError { text: row.chars().take(200).collect(), source: Some(source) })
}
