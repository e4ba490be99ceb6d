//! Statements that make an object.

use std::collections::{BTreeMap, BTreeSet};

use ardent_types::sql::literal;

use crate::catalog::{Catalog, Kind, Object, ObjectId};
use crate::composite;
use crate::name::identifier;
use crate::phrase::{full_name, grant_target, phrase, whole_name};
use crate::privileges;

/// What making an object depends on besides its own definition.
pub(crate) struct Making<'a> {
    pub catalog: &'a Catalog,
    /// Everybody whom default privileges may give something, by what they are about (`TABLES`, ...).
    pub default_grantees: BTreeMap<String, BTreeSet<String>>,
    /// Tables that have yet to get to their places as partitions: what is added above does not come to them.
    pub apart: BTreeSet<ObjectId>,
}

impl Making<'_> {
    /// The statements, in order.
    pub fn statements(&self, object: &Object) -> Vec<String> {
        let mut statements = self.definition(object);
        statements.extend(self.properties(object));
        if matches!(object.kind, Kind::Table | Kind::ForeignTable) {
            // Those that are inherited may have yet to come.
            let partition = object.text("partition_bound").is_some();
            for column in self.catalog.columns(&object.id).filter(|column| partition || !is_inherited(column)) {
                statements.extend(self.properties(column));
            }
        }
        statements
    }

    fn definition(&self, object: &Object) -> Vec<String> {
        let name = full_name(object);
        let whole = || whole_name(self.catalog, object);
        let definition = || object.text("definition").unwrap_or_default().trim_end().trim_end_matches(';').to_owned();
        match object.kind {
            Kind::Schema => vec![format!("CREATE SCHEMA {name}")],
            Kind::Extension => {
                let schema = identifier(object.text("schema").unwrap_or_default());
                vec![format!(
                    "CREATE EXTENSION {name} WITH SCHEMA {schema} VERSION {}",
                    literal(object.text("version").unwrap_or_default())
                )]
            }
            Kind::Collation => {
                vec![format!("CREATE COLLATION {name} ({})", object.text("options").unwrap_or_default())]
            }
            Kind::Enum => {
                let labels: Vec<_> = object.list("labels").iter().map(|label| literal(label)).collect();
                vec![format!("CREATE TYPE {name} AS ENUM ({})", labels.join(", "))]
            }
            Kind::Domain => vec![domain(object)],
            Kind::Composite => composite::statements(object),
            Kind::Range => {
                vec![format!("CREATE TYPE {name} AS RANGE ({})", object.text("options").unwrap_or_default())]
            }
            Kind::Server => {
                let word = |word: &str, field: &str| {
                    object.text(field).map(|text| format!(" {word} {}", literal(text))).unwrap_or_default()
                };
                let wrapper = object.text("wrapper").unwrap_or_default();
                vec![format!(
                    "CREATE SERVER {name}{}{} FOREIGN DATA WRAPPER {wrapper}{}",
                    word("TYPE", "type"),
                    word("VERSION", "version"),
                    foreign_options(object)
                )]
            }
            Kind::Sequence => {
                let unlogged = if object.text("persistence") == Some("u") { "UNLOGGED " } else { "" };
                vec![format!("CREATE {unlogged}SEQUENCE {name} {}", sequence_options(object))]
            }
            Kind::OwnedBy => {
                vec![format!("ALTER SEQUENCE {name} OWNED BY {}", object.text("owned_by").unwrap_or("NONE"))]
            }
            Kind::Table | Kind::ForeignTable => self.table(object),
            Kind::Partition => {
                let parents = object.list_of_lists("parents");
                let bound = object.text("partition_bound").unwrap_or_default();
                parents
                    .iter()
                    .map(|parent| format!("ALTER TABLE ONLY {parent} ATTACH PARTITION {name} {bound}"))
                    .collect()
            }
            Kind::Column if is_inherited(object) && !self.is_apart(object) => self.inherited_column(object),
            Kind::Column => self.added_column(object),
            Kind::ViewColumn => Vec::new(),
            Kind::Default => {
                let expression = object.text("expression").unwrap_or_default();
                vec![format!(
                    "ALTER TABLE ONLY {} ALTER COLUMN {name} SET DEFAULT {expression}",
                    self.grandparent(object)
                )]
            }
            Kind::Function => vec![definition()],
            Kind::Cast => vec![format!("CREATE CAST ({}) {}", object.name, object.text("how").unwrap_or_default())],
            Kind::Operator => {
                let schema = object.schema.as_deref().map(identifier).unwrap_or_default();
                vec![format!(
                    "CREATE OPERATOR {schema}.{} ({})",
                    object.name,
                    object.text("options").unwrap_or_default()
                )]
            }
            Kind::DomainConstraint => vec![format!("ALTER DOMAIN {} ADD CONSTRAINT {name} {}", whole(), definition())],
            Kind::Constraint => self.constraint(object),
            Kind::View => {
                vec![format!("CREATE VIEW {name}{}{} AS\n{}", view_columns(object), with_options(object), definition())]
            }
            Kind::MaterializedView => {
                let data = if object.flag("populated") { "" } else { "\nWITH NO DATA" };
                let space = object.text("tablespace").map(|space| format!(" TABLESPACE {space}")).unwrap_or_default();
                let columns = view_columns(object);
                vec![format!(
                    "CREATE MATERIALIZED VIEW {name}{columns}{}{space} AS\n{}{data}",
                    with_options(object),
                    definition()
                )]
            }
            Kind::Index => self.index(object, definition()),
            Kind::Statistics => {
                let mut statements = vec![definition()];
                let target = object.number("target");
                if target >= 0 {
                    statements.push(format!("ALTER STATISTICS {name} SET STATISTICS {target}"));
                }
                statements
            }
            Kind::Rule => {
                let mut statements = vec![definition()];
                statements.extend(enabling(
                    &format!("ALTER TABLE {}", whole()),
                    "RULE",
                    &name,
                    object.text("enabled"),
                    true,
                ));
                statements
            }
            Kind::Trigger => {
                let mut statements = vec![definition()];
                statements.extend(enabling(
                    &format!("ALTER TABLE {}", whole()),
                    "TRIGGER",
                    &name,
                    object.text("enabled"),
                    true,
                ));
                statements
            }
            Kind::Policy => vec![policy(object, &whole())],
            Kind::EventTrigger => {
                let mut statements = vec![format!("CREATE EVENT TRIGGER {name} {}", definition())];
                statements.extend(enabling(
                    &format!("ALTER EVENT TRIGGER {name}"),
                    "",
                    "",
                    object.text("enabled"),
                    true,
                ));
                statements
            }
            Kind::Publication => vec![format!("CREATE PUBLICATION {name}{}", definition())],
            Kind::DefaultPrivileges => privileges::change_defaults(None, Some(object)),
        }
    }

    fn is_apart(&self, column: &Object) -> bool {
        column.parent_id().is_some_and(|table| self.apart.contains(&table))
    }

    /// Owner, privileges and comment.
    fn properties(&self, object: &Object) -> Vec<String> {
        let mut statements = Vec::new();
        let what = phrase(self.catalog, object);
        if let (Some(owner), false) = (&object.owner, matches!(object.kind, Kind::Extension | Kind::Column)) {
            statements.push(format!("ALTER {what} OWNER TO {owner}"));
        }
        if let Some(acl) = &object.acl {
            let target = grant_target(self.catalog, object);
            if matches!(object.kind, Kind::Column | Kind::ViewColumn) {
                let name = identifier(&object.name);
                let owner = self.catalog.parent(object).and_then(|table| table.owner.as_deref());
                statements.extend(privileges::change(&[], acl, owner, &target, Some(&name)));
            } else if !privileges::is_default(object) || self.default_grantees.contains_key(default_word(object.kind)) {
                let mut before: Vec<_> = Vec::new();
                let grantees = self
                    .default_grantees
                    .get(default_word(object.kind))
                    .into_iter()
                    .flatten()
                    .map(|name| Some(name.clone()));
                for grantee in grantees.chain([None, object.owner.clone()]) {
                    before.push((grantee, String::new(), String::new(), false));
                }
                statements.extend(privileges::change(&before, acl, object.owner.as_deref(), &target, None));
            }
        }
        if object.comment.is_some() {
            statements.push(privileges::comment(&what, object.comment.as_deref()));
        }
        statements
    }

    /// The table whose column an object is a part of.
    pub fn grandparent(&self, object: &Object) -> String {
        self.catalog.parent(object).map(|column| whole_name(self.catalog, column)).unwrap_or_default()
    }

    fn table(&self, object: &Object) -> Vec<String> {
        let name = full_name(object);
        let partition = object.text("partition_bound").is_some();
        let columns: Vec<&Object> =
            self.catalog.columns(&object.id).filter(|column| partition || column.flag("local")).collect();
        let lines: Vec<String> = columns.iter().map(|column| format!("    {}", column_definition(column))).collect();
        let body = if lines.is_empty() { "()".to_owned() } else { format!("(\n{}\n)", lines.join(",\n")) };
        let mut sql = match (object.kind, object.text("persistence")) {
            (Kind::ForeignTable, _) => format!("CREATE FOREIGN TABLE {name} {body}"),
            (_, Some("u")) => format!("CREATE UNLOGGED TABLE {name} {body}"),
            _ => format!("CREATE TABLE {name} {body}"),
        };
        let parents = object.list_of_lists("parents");
        if !partition && !parents.is_empty() {
            sql.push_str(&format!("\nINHERITS ({})", parents.join(", ")));
        }
        if let Some(key) = object.text("partition_key") {
            sql.push_str(&format!("\nPARTITION BY {key}"));
        }
        if let Some(server) = object.text("server") {
            sql.push_str(&format!("\nSERVER {server}{}", foreign_options(object)));
        }
        if let Some(method) = object.text("access_method").filter(|method| *method != "heap") {
            sql.push_str(&format!("\nUSING {method}"));
        }
        let mut options: Vec<String> = object.list("options").iter().map(|option| set_option(option)).collect();
        options.extend(object.list("toast_options").iter().map(|option| format!("toast.{}", set_option(option))));
        if !options.is_empty() {
            sql.push_str(&format!("\nWITH ({})", options.join(", ")));
        }
        if let Some(space) = object.text("tablespace") {
            sql.push_str(&format!("\nTABLESPACE {space}"));
        }
        let mut statements = vec![sql];
        for column in &columns {
            statements.extend(identity_of_other_type(column));
            statements.extend(column_settings(&name, column));
        }
        statements.extend(table_flags(object, None));
        statements
    }

    /// A column that is added to a table which is there.
    fn added_column(&self, object: &Object) -> Vec<String> {
        let table = whole_name(self.catalog, object);
        let name = identifier(&object.name);
        let foreign = self.catalog.parent(object).is_some_and(|table| table.kind == Kind::ForeignTable);
        let word = if foreign { "FOREIGN TABLE" } else { "TABLE" };
        let mut definition = format!("{name} {}", column_type(object));
        let missing = object.text("missing");
        if let Some(missing) = missing {
            definition.push_str(&format!(" DEFAULT {}", literal(missing)));
        }
        let has_children = self.has_children(object);
        let identity = object.text("identity");
        // Before 17 Postgres adds no identity column to a table that has partitions, but makes one of a column that is there.
        let identity_later = identity.filter(|_| has_children);
        match identity_later {
            Some(_) => {}
            None => definition.push_str(&column_origin(object)),
        }
        // Where rows have no value yet, it must wait until they have.
        let at_once = missing.is_some() || (identity.is_some() && identity_later.is_none());
        if object.flag("not_null") && at_once {
            definition.push_str(&not_null(object));
        }
        let mut statements = vec![format!("ALTER {word} {table} ADD COLUMN {definition}")];
        let has_default = self
            .catalog
            .objects
            .values()
            .any(|o| o.kind == Kind::Default && o.parent_id().as_ref() == Some(&object.id));
        // Of its partitions too, each of which says its own.
        let is_partitioned = self.catalog.parent(object).is_some_and(|table| table.text("partition_key").is_some());
        if missing.is_some() && (!has_default || is_partitioned) {
            statements.push(format!("ALTER TABLE {table} ALTER COLUMN {name} DROP DEFAULT"));
        }
        if identity_later.is_none() {
            statements.extend(identity_of_other_type(object));
        }
        statements.extend(column_settings(&table, object));
        if object.flag("not_null") && !at_once {
            statements.push(set_not_null(&table, object));
        }
        if let Some(kind) = identity_later {
            let (kind, options) = (kind.to_uppercase(), identity_options(object));
            statements
                .push(format!("ALTER TABLE {table} ALTER COLUMN {name} ADD GENERATED {kind} AS IDENTITY ({options})"));
            statements.extend(identity_of_other_type(object));
        }
        statements
    }

    /// What a column that comes from another table has besides: that table's own statements make it, without the settings that it
    /// has here alone.
    fn inherited_column(&self, object: &Object) -> Vec<String> {
        let table = whole_name(self.catalog, object);
        let mut statements = column_settings(&table, object);
        let above: Vec<&Object> = self.catalog.columns_above(object).filter(|column| column.flag("not_null")).collect();
        match object.flag("not_null") {
            true if above.is_empty() => statements.push(set_not_null(&table, object)),
            // Since 18 it is a constraint, which a table has with what it inherits.
            false if above.iter().any(|column| column.text("not_null_name").is_none()) => {
                statements.push(format!("ALTER TABLE {table} ALTER COLUMN {} DROP NOT NULL", identifier(&object.name)));
            }
            _ => {}
        }
        statements
    }

    /// Whether a column's table has partitions, or tables that inherit from it.
    fn has_children(&self, column: &Object) -> bool {
        let Some(table) = column.parent_id().map(|id| u64::from(id.oid)) else { return false };
        let parents = |object: &Object| object.s.get("parents").and_then(serde_json::Value::as_array).cloned();
        let mut all = self.catalog.objects.values().filter(|object| object.kind == Kind::Table).filter_map(parents);
        all.any(|parents| parents.iter().any(|parent| parent.as_u64() == Some(table)))
    }

    fn constraint(&self, object: &Object) -> Vec<String> {
        let table = whole_name(self.catalog, object);
        let name = identifier(&object.name);
        let definition = object.text("definition").unwrap_or_default();
        let mut sql = format!("ALTER TABLE {table} ADD CONSTRAINT {name} {definition}");
        if let Some(space) = object.text("tablespace") {
            sql.push_str(&format!(" USING INDEX TABLESPACE {space}"));
        }
        let mut statements = vec![sql];
        statements.extend(index_flags(&table, &name, object));
        statements
    }

    /// The partitions' indexes that belong to a partitioned table's index, if Postgres could take others in: where a partition has two of one
    /// definition.
    fn parts_to_name(&self, object: &Object) -> Vec<&Object> {
        let indexes = || self.catalog.objects.values().filter(|other| other.kind == Kind::Index);
        let parts = self.catalog.made_after.get(&object.id).into_iter().flatten();
        let parts = parts.filter_map(|id| self.catalog.objects.get(id));
        let parts: Vec<&Object> = parts.filter(|part| part.kind == Kind::Index).collect();
        let has_double = |part: &&Object| {
            indexes().any(|other| {
                other.id != part.id && other.parent == part.parent && index_method(other) == index_method(part)
            })
        };
        if parts.iter().any(has_double) { parts } else { Vec::new() }
    }

    fn index(&self, object: &Object, definition: String) -> Vec<String> {
        let table = whole_name(self.catalog, object);
        let name = full_name(object);
        let parts = self.parts_to_name(object);
        let mut statements = if parts.is_empty() {
            // The definition of a partitioned table's index says ONLY; without it the partitions' own are taken in.
            vec![definition.replacen(" ON ONLY ", " ON ", 1)]
        } else {
            let attach = |part: &&Object| format!("ALTER INDEX {name} ATTACH PARTITION {}", full_name(part));
            std::iter::once(definition).chain(parts.iter().map(attach)).collect()
        };
        if let Some(space) = object.text("tablespace") {
            statements.push(format!("ALTER INDEX {name} SET TABLESPACE {space}"));
        }
        for row in object.rows("statistics") {
            if let Some([column, target]) = row.as_array().map(Vec::as_slice) {
                statements.push(format!("ALTER INDEX {name} ALTER COLUMN {column} SET STATISTICS {target}"));
            }
        }
        statements.extend(index_flags(&table, &identifier(&object.name), object));
        statements
    }
}

/// How an index is defined, but for its name and table.
fn index_method(object: &Object) -> Option<(bool, &str)> {
    let (_, method) = object.text("definition")?.split_once(" USING ")?;
    Some((object.flag("unique"), method))
}

/// What default privileges call such objects.
fn default_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Table | Kind::ForeignTable | Kind::View | Kind::MaterializedView => "TABLES",
        Kind::Sequence => "SEQUENCES",
        Kind::Function => "FUNCTIONS",
        Kind::Enum | Kind::Domain | Kind::Composite | Kind::Range => "TYPES",
        Kind::Schema => "SCHEMAS",
        _ => "",
    }
}

/// What a table clusters on and is identified by.
pub(crate) fn index_flags(table: &str, index: &str, object: &Object) -> Vec<String> {
    let mut statements = Vec::new();
    if object.flag("clustered") {
        statements.push(format!("ALTER TABLE {table} CLUSTER ON {index}"));
    }
    if object.flag("replica_identity") {
        statements.push(format!("ALTER TABLE {table} REPLICA IDENTITY USING INDEX {index}"));
    }
    statements
}

/// Row security and replica identity of a table, where they differ from `old` (absent: a new table).
pub(crate) fn table_flags(object: &Object, old: Option<&Object>) -> Vec<String> {
    let name = full_name(object);
    let mut statements = Vec::new();
    let was = |field: &str| old.is_some_and(|old| old.flag(field));
    if object.flag("row_security") != was("row_security") {
        let word = if object.flag("row_security") { "ENABLE" } else { "DISABLE" };
        statements.push(format!("ALTER TABLE {name} {word} ROW LEVEL SECURITY"));
    }
    if object.flag("force_row_security") != was("force_row_security") {
        let word = if object.flag("force_row_security") { "FORCE" } else { "NO FORCE" };
        statements.push(format!("ALTER TABLE {name} {word} ROW LEVEL SECURITY"));
    }
    let identity = object.text("replica_identity").unwrap_or("d");
    if object.kind == Kind::Table && identity != old.and_then(|old| old.text("replica_identity")).unwrap_or("d") {
        match identity {
            "n" => statements.push(format!("ALTER TABLE {name} REPLICA IDENTITY NOTHING")),
            "f" => statements.push(format!("ALTER TABLE {name} REPLICA IDENTITY FULL")),
            "d" => statements.push(format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT")),
            // Said by the index.
            _ => {}
        }
    }
    statements
}

/// How a trigger or rule is enabled. `new`: it is as it was made, enabled.
pub(crate) fn enabling(alter: &str, word: &str, name: &str, state: Option<&str>, new: bool) -> Option<String> {
    let state = match state? {
        "O" if new => return None,
        "O" => "ENABLE",
        "D" => "DISABLE",
        "R" => "ENABLE REPLICA",
        _ => "ENABLE ALWAYS",
    };
    Some(format!("{alter} {state} {word} {name}").trim_end().to_owned())
}

pub(crate) fn column_type(column: &Object) -> String {
    let collation = column.text("collation").map(|name| format!(" COLLATE {name}")).unwrap_or_default();
    format!("{}{collation}", column.text("type").unwrap_or_default())
}

/// `GENERATED ...` of a column, with a space before it.
fn column_origin(column: &Object) -> String {
    let mut text = String::new();
    if let Some(expression) = column.text("generated") {
        let kept = if column.flag("virtual") { "VIRTUAL" } else { "STORED" };
        text.push_str(&format!(" GENERATED ALWAYS AS ({expression}) {kept}"));
    }
    if let Some(identity) = column.text("identity") {
        text.push_str(&format!(" GENERATED {} AS IDENTITY ({})", identity.to_uppercase(), identity_options(column)));
    }
    text
}

/// Name and options of the sequence of an identity column. Those of one that has another type than its column may not fit the
/// column's: they are given with [`identity_of_other_type`].
pub(crate) fn identity_options(column: &Object) -> String {
    let name = column.text("identity_name").unwrap_or_default();
    match column.text("identity_type") {
        Some(_) => format!("SEQUENCE NAME {name}"),
        None => format!("SEQUENCE NAME {name} {}", column.text("identity_options").unwrap_or_default().to_uppercase()),
    }
}

/// Gives a new identity column's sequence the type that it has besides its column's: no clause of a column does.
pub(crate) fn identity_of_other_type(column: &Object) -> Option<String> {
    column.text("identity_type").map(|_| format!("{} RESTART", identity_sequence(column)))
}

/// Gives an identity column's sequence its type and options.
pub(crate) fn identity_sequence(column: &Object) -> String {
    let field = |name: &str| column.text(name).unwrap_or_default();
    let data_type = column.text("identity_type").unwrap_or(field("type"));
    let options = field("identity_options").to_uppercase();
    format!("ALTER SEQUENCE {} AS {data_type} {options}", field("identity_name"))
}

fn column_definition(column: &Object) -> String {
    let mut text = format!("{} {}{}", identifier(&column.name), column_type(column), column_origin(column));
    let options = foreign_options(column);
    text.push_str(&options);
    if column.flag("not_null") {
        text.push_str(&not_null(column));
    }
    text
}

/// With the constraint's name where Postgres would give it another.
fn not_null(column: &Object) -> String {
    let name = column.text("not_null_name").filter(|_| !column.flag("not_null_usual"));
    name.map_or(" NOT NULL".to_owned(), |name| format!(" CONSTRAINT {name} NOT NULL"))
}

/// Whether a column is its table's only because another table has it.
pub(crate) fn is_inherited(column: &Object) -> bool {
    column.number("inherited") > 0 && !column.flag("local")
}

/// Holds a column that is there to it.
fn set_not_null(table: &str, column: &Object) -> String {
    let name = identifier(&column.name);
    match column.text("not_null_name").filter(|_| !column.flag("not_null_usual")) {
        Some(constraint) => format!("ALTER TABLE {table} ADD CONSTRAINT {constraint} NOT NULL {name}"),
        None => format!("ALTER TABLE {table} ALTER COLUMN {name} SET NOT NULL"),
    }
}

/// Storage, compression, statistics and options of a new column.
fn column_settings(table: &str, column: &Object) -> Vec<String> {
    let alter = format!("ALTER TABLE ONLY {table} ALTER COLUMN {}", identifier(&column.name));
    let mut statements = Vec::new();
    if let Some(storage) = column.text("storage") {
        statements.push(format!("{alter} SET STORAGE {storage}"));
    }
    if let Some(compression) = column.text("compression") {
        statements.push(format!("{alter} SET COMPRESSION {compression}"));
    }
    if column.number("statistics") >= 0 {
        statements.push(format!("{alter} SET STATISTICS {}", column.number("statistics")));
    }
    let options: Vec<_> = column.list("options").iter().map(|option| set_option(option)).collect();
    if !options.is_empty() {
        statements.push(format!("{alter} SET ({})", options.join(", ")));
    }
    statements
}

/// `name=value` as it is stored, as it is written.
pub(crate) fn set_option(option: &str) -> String {
    let (name, value) = option.split_once('=').unwrap_or((option, ""));
    format!("{} = {}", identifier(name), literal(value))
}

/// `OPTIONS (...)` of foreign things, with a space before it.
fn foreign_options(object: &Object) -> String {
    let options: Vec<String> = object
        .list("foreign_options")
        .iter()
        .map(|option| {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            format!("{} {}", identifier(name), literal(value))
        })
        .collect();
    if options.is_empty() { String::new() } else { format!(" OPTIONS ({})", options.join(", ")) }
}

fn with_options(object: &Object) -> String {
    let options: Vec<_> = object.list("options").iter().map(|option| set_option(option)).collect();
    if options.is_empty() { String::new() } else { format!(" WITH ({})", options.join(", ")) }
}

fn view_columns(object: &Object) -> String {
    let names: Vec<_> = object.rows("columns").iter().filter_map(|row| row.get(0)?.as_str()).collect();
    // A view may have none.
    if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) }
}

fn domain(object: &Object) -> String {
    let mut sql = format!("CREATE DOMAIN {} AS {}", full_name(object), column_type(object));
    if let Some(default) = object.text("default") {
        sql.push_str(&format!(" DEFAULT {default}"));
    }
    if object.flag("not_null") {
        sql.push_str(" NOT NULL");
    }
    sql
}

pub(crate) fn sequence_options(object: &Object) -> String {
    format!(
        "AS {} INCREMENT BY {} MINVALUE {} MAXVALUE {} START WITH {} CACHE {}{}",
        object.text("type").unwrap_or("bigint"),
        object.number("increment"),
        object.number("min"),
        object.number("max"),
        object.number("start"),
        object.number("cache"),
        if object.flag("cycle") { " CYCLE" } else { " NO CYCLE" },
    )
}

fn policy(object: &Object, table: &str) -> String {
    let command = match object.text("command") {
        Some("r") => "SELECT",
        Some("a") => "INSERT",
        Some("w") => "UPDATE",
        Some("d") => "DELETE",
        _ => "ALL",
    };
    let permissive = if object.flag("permissive") { "" } else { " AS RESTRICTIVE" };
    let roles = object.text("roles").unwrap_or("PUBLIC");
    let part = |word: &str, field: &str| object.text(field).map(|text| format!(" {word} ({text})")).unwrap_or_default();
    let name = identifier(&object.name);
    format!(
        "CREATE POLICY {name} ON {table}{permissive} FOR {command} TO {roles}{}{}",
        part("USING", "using"),
        part("WITH CHECK", "check")
    )
}
