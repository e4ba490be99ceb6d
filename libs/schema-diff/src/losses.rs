//! What a change of the schema takes from rows that nobody wrote: tables and columns that go, values that become others with their type.
//! No block of a table says so: it is found in the catalog of whatever the change is made in.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::catalog::{Catalog, Kind, Object, ObjectId};
use crate::create::is_inherited;
use crate::phrase::full_name;
use crate::plan::Touched;

/// What is lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Tables with rows of their own.
    pub tables: Vec<LosingTable>,
    /// Sequences that may go, with those that go with a column or a table; quoted, with their schemas.
    pub sequences: BTreeSet<String>,
}

/// A table that goes, or of which rows lose something; as it is before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LosingTable {
    /// Its OID.
    pub oid: u32,
    /// Its schema, not quoted.
    pub schema: String,
    /// Its name, not quoted.
    pub name: String,
    /// Whether it goes.
    pub goes: bool,
    /// Whether the change knows that it goes. It does not know partitions that came later, and that go with their table.
    pub is_known: bool,
    /// All of its columns, in order.
    pub columns: Vec<LosingColumn>,
}

/// A column of such a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LosingColumn {
    /// Its number (`attnum`).
    pub number: i32,
    /// Its name, not quoted.
    pub name: String,
    /// Whether Postgres computes it from others: then nothing is lost with it.
    pub is_computed: bool,
    /// What becomes of what rows have in it.
    pub fate: Fate,
}

/// What becomes of what rows have in a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Kept,
    /// The column goes.
    Gone,
    /// It becomes something from which there may be no way back.
    Converted,
}

impl LosingTable {
    /// The names of columns with this fate whose values are stored.
    pub fn stored(&self, fate: Fate) -> impl Iterator<Item = &String> {
        self.columns.iter().filter(move |column| column.fate == fate && !column.is_computed).map(|column| &column.name)
    }
}

impl Catalog {
    /// What is lost in this database when `touched` is done to it.
    pub fn losses(&self, touched: &[Touched]) -> Losses {
        if touched.iter().all(|touched| touched.old.is_none()) {
            return Losses::default();
        }
        let mut search = Search::new(self, touched);
        search.of_lossy_types = search.columns_of_lossy_types();
        let tables = self.objects.values().filter(|object| object.kind == Kind::Table);
        let with_rows = tables.filter(|table| table.text("partition_key").is_none());
        Losses { tables: with_rows.filter_map(|table| search.table(table)).collect(), sequences: search.sequences() }
    }
}

struct Search<'a> {
    catalog: &'a Catalog,
    /// Paths of what goes.
    gone: BTreeSet<&'a str>,
    /// What becomes another, by its path.
    changed: BTreeMap<&'a str, &'a Touched>,
    /// Columns of types that keep less of a value than before.
    of_lossy_types: BTreeSet<ObjectId>,
}

impl<'a> Search<'a> {
    fn new(catalog: &'a Catalog, touched: &'a [Touched]) -> Search<'a> {
        let before = || touched.iter().filter(|touched| touched.old.is_some() && touched.old != touched.new);
        let gone = before().filter(|touched| touched.new.is_none()).map(|touched| touched.path.as_str()).collect();
        let changed = before().filter(|touched| touched.new.is_some()).map(|touched| (touched.path.as_str(), touched));
        Search { catalog, gone, changed: changed.collect(), of_lossy_types: BTreeSet::new() }
    }

    fn is_gone(&self, object: &Object) -> bool {
        !self.gone.is_empty() && self.gone.contains(self.catalog.path(object).as_str())
    }

    fn change_of(&self, object: &Object) -> Option<&'a Touched> {
        if self.changed.is_empty() {
            return None;
        }
        self.changed.get(self.catalog.path(object).as_str()).copied()
    }

    fn table(&self, table: &Object) -> Option<LosingTable> {
        let is_known = self.table_goes(table);
        let column = |column: &Object| LosingColumn {
            number: column.id.sub,
            name: column.name.clone(),
            is_computed: column.text("generated").is_some(),
            fate: self.fate(column),
        };
        let found = LosingTable {
            oid: table.id.oid,
            schema: table.schema.clone().unwrap_or_default(),
            name: table.name.clone(),
            goes: is_known.is_some(),
            is_known: is_known.unwrap_or(true),
            columns: self.catalog.columns(&table.id).map(column).collect(),
        };
        let loses =
            found.goes || found.stored(Fate::Gone).next().is_some() || found.stored(Fate::Converted).next().is_some();
        loses.then_some(found)
    }

    /// Whether the change knows of it, if the table goes.
    fn table_goes(&self, table: &Object) -> Option<bool> {
        if self.is_gone(table) {
            return Some(true);
        }
        let place = self.catalog.objects.get(&table.id.place())?;
        if self.is_gone(place) || self.change_of(place).is_some() {
            // It is detached before.
            return None;
        }
        let parents = table.s.get("parents").and_then(Value::as_array).into_iter().flatten();
        let mut parents = parents.filter_map(|oid| {
            let oid = u32::try_from(oid.as_u64()?).ok()?;
            self.catalog.objects.get(&ObjectId { class: "pg_class".to_owned(), oid, sub: 0 })
        });
        parents.any(|parent| self.table_goes(parent).is_some()).then_some(false)
    }

    /// Whether a column goes, if need be with those that it is inherited from: the change does not know of tables that came later.
    fn column_goes(&self, column: &Object) -> bool {
        let is_gone = self.is_gone(column);
        if is_gone || !is_inherited(column) {
            return is_gone;
        }
        let mut above = self.catalog.columns_above(column).peekable();
        above.peek().is_some() && above.all(|above| self.column_goes(above))
    }

    fn fate(&self, column: &Object) -> Fate {
        if self.column_goes(column) {
            Fate::Gone
        } else if self.is_converted(column) || self.of_lossy_types.contains(&column.id) {
            Fate::Converted
        } else {
            Fate::Kept
        }
    }

    fn is_converted(&self, column: &Object) -> bool {
        self.change_of(column).is_some_and(loses_on_the_way)
            || (is_inherited(column) && self.catalog.columns_above(column).any(|above| self.is_converted(above)))
    }

    /// Columns whose values have parts that go: attributes of a composite type, columns of a table whose row type it is.
    fn columns_of_lossy_types(&self) -> BTreeSet<ObjectId> {
        let objects = self.catalog.objects.values();
        let mut queue: Vec<ObjectId> =
            objects.filter(|object| self.loses_parts(object)).map(|object| object.id.clone()).collect();
        let mut seen: BTreeSet<ObjectId> = queue.iter().cloned().collect();
        let mut found = BTreeSet::new();
        if queue.is_empty() {
            return found;
        }
        let users = self.catalog.needed_by();
        while let Some(id) = queue.pop() {
            for user in users.get(&id).into_iter().flatten() {
                let Some(object) = self.catalog.objects.get(*user) else { continue };
                let parent = object.parent_id();
                let next = match object.kind {
                    Kind::Composite | Kind::Domain | Kind::Range => (*user).clone(),
                    Kind::Column => match parent.filter(|parent| *parent != id) {
                        Some(table) => {
                            found.insert((*user).clone());
                            table
                        }
                        None => continue,
                    },
                    _ => continue,
                };
                if seen.insert(next.clone()) {
                    queue.push(next);
                }
            }
        }
        found
    }

    /// Whether values of a type, or rows of a table, lose a part.
    fn loses_parts(&self, object: &Object) -> bool {
        match object.kind {
            Kind::Composite => self.change_of(object).is_some_and(loses_attributes),
            Kind::Domain => self.change_of(object).is_some_and(loses_on_the_way),
            Kind::Table => self.catalog.columns(&object.id).any(|column| self.column_goes(column)),
            _ => false,
        }
    }

    fn sequences(&self) -> BTreeSet<String> {
        let owner_goes = |owner: &Object| match owner.kind {
            Kind::Column => self.column_goes(owner),
            Kind::Table => self.table_goes(owner).is_some(),
            _ => false,
        };
        let mut found = BTreeSet::new();
        for object in self.catalog.objects.values() {
            match object.kind {
                Kind::Sequence => {
                    let owned = ObjectId { class: "owned".to_owned(), ..object.id.clone() };
                    let mut owners = self.catalog.needs_of(&owned).filter_map(|id| self.catalog.objects.get(id));
                    if self.is_gone(object) || owners.any(owner_goes) {
                        found.insert(full_name(object));
                    }
                }
                Kind::Column => {
                    let Some(name) = object.text("identity_name") else { continue };
                    let may_stop = self.change_of(object).is_some();
                    if may_stop || owner_goes(object) || self.catalog.parent(object).is_some_and(owner_goes) {
                        found.insert(name.to_owned());
                    }
                }
                _ => {}
            }
        }
        found
    }
}

fn definition(text: Option<&str>) -> Option<Value> {
    let mut object: Value = serde_json::from_str(text?).ok()?;
    Some(object.get_mut("definition")?.take())
}

/// Whether the way to another type may change values.
fn loses_on_the_way(touched: &Touched) -> bool {
    let type_of = |text: &Option<String>| Some(definition(text.as_deref())?.get("type")?.as_str()?.to_owned());
    match (type_of(&touched.old), type_of(&touched.new)) {
        (Some(from), Some(to)) => !is_exact(&from, &to),
        _ => false,
    }
}

fn loses_attributes(touched: &Touched) -> bool {
    let numbers = |text: &Option<String>| -> BTreeSet<i64> {
        let definition = definition(text.as_deref()).unwrap_or_default();
        let attributes = definition.get("attributes").and_then(Value::as_array).into_iter().flatten();
        attributes.filter_map(|row| row.get(0)?.as_i64()).collect()
    };
    numbers(&touched.old).difference(&numbers(&touched.new)).next().is_some()
}

/// Whether every value of one type becomes one of the other that leads back to it, or is refused.
fn is_exact(from: &str, to: &str) -> bool {
    let is_integer = |name: &str| ["smallint", "integer", "bigint"].contains(&name);
    let is_timestamp = |name: &str| ["timestamp without time zone", "timestamp with time zone"].contains(&name);
    let length = |name: &str| name.strip_prefix("character varying(")?.strip_suffix(')')?.parse::<u32>().ok();
    match (from, to) {
        _ if from == to => true,
        // A value's own text is read back.
        (_, "text" | "character varying") | ("real", "double precision") => true,
        (_, "numeric") => is_integer(from) || from.starts_with("numeric("),
        _ if is_integer(from) && is_integer(to) => true,
        // The time zone is UTC when types are changed.
        _ if is_timestamp(to) && (from == "date" || is_timestamp(from)) => true,
        _ => matches!((length(from), length(to)), (Some(from), Some(to)) if from <= to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_that_keep_every_value_are_known() {
        for (from, to) in [
            ("integer", "bigint"),
            ("bigint", "smallint"),
            ("integer", "numeric"),
            ("numeric(10,2)", "numeric"),
            ("real", "double precision"),
            ("character varying(5)", "character varying(10)"),
            ("jsonb", "text"),
            ("date", "timestamp with time zone"),
            ("timestamp with time zone", "timestamp without time zone"),
        ] {
            assert!(is_exact(from, to), "{from} to {to}");
        }
        for (from, to) in [
            ("numeric", "integer"),
            ("numeric", "numeric(10,2)"),
            ("double precision", "real"),
            ("bigint", "double precision"),
            ("character varying(10)", "character varying(5)"),
            ("text", "character varying(5)"),
            ("timestamp without time zone", "date"),
            ("timestamp with time zone", "timestamp(0) with time zone"),
            ("integer[]", "bigint[]"),
        ] {
            assert!(!is_exact(from, to), "{from} to {to}");
        }
    }

    fn touched(old: &str, new: &str) -> Touched {
        let text = |definition: &str| Some(format!("{{\"name\": \"x\", \"definition\": {definition}}}"));
        let (path, new_path) = ("type app.x".to_owned(), "type app.x".to_owned());
        Touched { path, new_path, old: text(old), new: text(new), with: None, needs: Vec::new() }
    }

    #[test]
    fn what_a_definition_loses_is_found() {
        let attributes = |numbers: &str| format!("{{\"attributes\": [{numbers}]}}");
        let first = "[1, \"a\", \"text\", null]";
        let (one, both) = (attributes(first), attributes(&format!("{first}, [2, \"b\", \"int\", null]")));
        assert!(loses_attributes(&touched(&both, &one)));
        assert!(!loses_attributes(&touched(&one, &both)));
        let of_type = |name: &str| format!("{{\"type\": \"{name}\"}}");
        assert!(loses_on_the_way(&touched(&of_type("numeric"), &of_type("integer"))));
        assert!(!loses_on_the_way(&touched(&of_type("integer"), &of_type("bigint"))));
        assert!(!loses_on_the_way(&touched(&one, &both)), "it has no type");
    }
}
