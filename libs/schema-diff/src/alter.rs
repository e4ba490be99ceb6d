//! Statements that change an object where it is.

use ardent_types::sql::literal;
use serde_json::Value;

use crate::catalog::{Catalog, Kind, Object, ObjectId};
use crate::create::{
    column_type, enabling, identity_of_other_type, identity_options, identity_sequence, index_flags, sequence_options,
    set_option, table_flags,
};
use crate::labels::{Labels, rename_value};
use crate::name::identifier;
use crate::phrase::{full_name, grant_target, phrase, whole_name};
use crate::plan::Identity;
use crate::privileges;

/// How an object gets from one form to the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Alteration {
    /// By these statements (none: it is the same).
    InPlace(Vec<String>),
    /// Only by dropping it and making it again.
    Replace,
    /// Not at all, for this reason.
    Impossible(String),
}

/// Both forms of an object, the new one under its new name already.
pub(crate) struct Change<'a> {
    pub identity: Identity,
    pub new_catalog: &'a Catalog,
    pub old: &'a Object,
    pub new: &'a Object,
}

impl Change<'_> {
    /// Whether a part of the definition differs.
    pub fn differs(&self, field: &str) -> bool {
        let (old, new) = match self.identity {
            Identity::Oid if self.old.s.contains_key(field) || self.new.s.contains_key(field) => {
                (&self.old.s, &self.new.s)
            }
            _ => (&self.old.d, &self.new.d),
        };
        let present = |value: Option<&Value>| value.filter(|value| !value.is_null()).cloned();
        present(old.get(field)) != present(new.get(field))
    }

    fn any(&self, fields: &[&str]) -> bool {
        fields.iter().any(|field| self.differs(field))
    }

    /// The alteration, with owner, privileges and comment.
    pub fn alteration(&self) -> Alteration {
        match self.definition() {
            Alteration::InPlace(mut statements) => {
                statements.extend(self.properties());
                Alteration::InPlace(statements)
            }
            other => other,
        }
    }

    fn properties(&self) -> Vec<String> {
        let mut statements = Vec::new();
        let what = phrase(self.new_catalog, self.new);
        let owner_changes = self.old.owner != self.new.owner && self.new.kind != Kind::Extension;
        // A sequence that belongs to a column has the owner of the table, and takes no other.
        let is_owned = self.new.kind == Kind::Sequence && self.old.text("owned_by").is_some();
        let stays_owned = is_owned && self.new.text("owned_by").is_some();
        let follows_table = stays_owned && !self.differs("owned_by");
        if let (Some(owner), true, false) = (&self.new.owner, owner_changes, follows_table) {
            if stays_owned {
                statements.push(format!("ALTER {what} OWNED BY NONE"));
            }
            statements.push(format!("ALTER {what} OWNER TO {owner}"));
        }
        if self.old.acl != self.new.acl && self.new.kind != Kind::DefaultPrivileges {
            let target = grant_target(self.new_catalog, self.new);
            let is_column = matches!(self.new.kind, Kind::Column | Kind::ViewColumn);
            let column = is_column.then(|| identifier(&self.new.name));
            let owner = match is_column {
                true => self.new_catalog.parent(self.new).and_then(|table| table.owner.as_deref()),
                false => self.new.owner.as_deref(),
            };
            let mut before = self.old.acl.clone().unwrap_or_default();
            if owner_changes {
                before.extend(owner.map(|owner| (Some(owner.to_owned()), String::new(), String::new(), false)));
                before.retain(|privilege| privilege.0 != self.old.owner);
            }
            let after = self.new.acl.clone().unwrap_or_default();
            if is_column {
                // Its table's change may have given them already: then they would stay in front of those that come anew.
                let given = after.iter().filter(|new| !before.iter().any(|old| old.0 == new.0));
                let given: Vec<_> = given.map(|new| (new.0.clone(), String::new(), String::new(), false)).collect();
                before.extend(given);
            }
            statements.extend(privileges::change(&before, &after, owner, &target, column.as_deref()));
        }
        if self.old.comment != self.new.comment {
            statements.push(privileges::comment(&what, self.new.comment.as_deref()));
        }
        statements
    }

    /// What is taken back of a table is taken back of its columns too: gives it back to those that are there already.
    pub fn column_privileges(&self, is_made: impl Fn(&ObjectId) -> bool) -> Vec<String> {
        let is_column = matches!(self.new.kind, Kind::Column | Kind::ViewColumn);
        if is_column || self.old.acl == self.new.acl {
            return Vec::new();
        }
        let (target, owner) = (grant_target(self.new_catalog, self.new), self.new.owner.as_deref());
        let mut statements = Vec::new();
        for column in self.new_catalog.columns(&self.new.id).filter(|column| !is_made(&column.id)) {
            let acl = column.acl.as_deref().unwrap_or_default();
            statements.extend(privileges::change(&[], acl, owner, &target, Some(&identifier(&column.name))));
        }
        statements
    }

    fn definition(&self) -> Alteration {
        let name = full_name(self.new);
        let in_place = |statement: Option<String>| Alteration::InPlace(statement.into_iter().collect());
        let replace_if = |differs: bool| if differs { Alteration::Replace } else { Alteration::InPlace(Vec::new()) };
        match self.new.kind {
            Kind::Schema => in_place(None),
            Kind::Extension => {
                let mut statements = Vec::new();
                if self.differs("version") {
                    let version = literal(self.new.text("version").unwrap_or_default());
                    statements.push(format!("ALTER EXTENSION {name} UPDATE TO {version}"));
                }
                if self.differs("schema") {
                    let schema = identifier(self.new.text("schema").unwrap_or_default());
                    statements.push(format!("ALTER EXTENSION {name} SET SCHEMA {schema}"));
                }
                Alteration::InPlace(statements)
            }
            Kind::Collation | Kind::Range => replace_if(self.differs("options")),
            Kind::Enum => self.labels(),
            Kind::Domain => self.domain(),
            Kind::Composite => self.attributes(),
            Kind::Server => self.server(),
            Kind::Sequence => {
                let fields = ["type", "start", "increment", "min", "max", "cache", "cycle"];
                let mut statements = Vec::new();
                if self.any(&fields) {
                    statements.push(format!("ALTER SEQUENCE {name} {}", sequence_options(self.new)));
                }
                statements.extend(self.persistence("SEQUENCE"));
                Alteration::InPlace(statements)
            }
            Kind::OwnedBy => {
                let owner = self.new.text("owned_by").unwrap_or("NONE");
                in_place(self.differs("owned_by").then(|| format!("ALTER SEQUENCE {name} OWNED BY {owner}")))
            }
            Kind::Table | Kind::ForeignTable => self.table(),
            Kind::Partition => replace_if(self.any(&["partition_bound", "parents"])),
            Kind::Column => self.column(),
            Kind::ViewColumn => in_place(None),
            Kind::Default => {
                let table = self.new_catalog.parent(self.new).map(|column| whole_name(self.new_catalog, column));
                let expression = self.new.text("expression").unwrap_or_default();
                let column = identifier(&self.new.name);
                let table = table.unwrap_or_default();
                let sql = format!("ALTER TABLE ONLY {table} ALTER COLUMN {column} SET DEFAULT {expression}");
                in_place(self.differs("expression").then_some(sql))
            }
            Kind::Function => self.function(),
            Kind::Cast => replace_if(self.differs("how")),
            Kind::Operator => replace_if(self.differs("options")),
            Kind::DomainConstraint => {
                let only_valid = self.validated();
                let sql = format!("ALTER DOMAIN {} VALIDATE CONSTRAINT {name}", whole_name(self.new_catalog, self.new));
                match only_valid {
                    true => in_place(Some(sql)),
                    false => replace_if(self.any(&["definition", "valid"])),
                }
            }
            Kind::Constraint => self.constraint(),
            Kind::View => self.view(),
            Kind::MaterializedView => {
                if self.any(&["definition", "columns"]) {
                    return Alteration::Replace;
                }
                let mut statements = self.options("MATERIALIZED VIEW");
                if self.differs("populated") {
                    let data = if self.new.flag("populated") { "WITH DATA" } else { "WITH NO DATA" };
                    statements.push(format!("REFRESH MATERIALIZED VIEW {name} {data}"));
                }
                Alteration::InPlace(statements)
            }
            Kind::Index => self.index(),
            Kind::Statistics => {
                let target = self.new.number("target");
                match self.differs("definition") {
                    true => Alteration::Replace,
                    false => in_place(
                        self.differs("target").then(|| format!("ALTER STATISTICS {name} SET STATISTICS {target}")),
                    ),
                }
            }
            Kind::Rule | Kind::Trigger => {
                if self.differs("definition") {
                    return Alteration::Replace;
                }
                let word = if self.new.kind == Kind::Rule { "RULE" } else { "TRIGGER" };
                let alter = format!("ALTER TABLE {}", whole_name(self.new_catalog, self.new));
                let state = self.new.text("enabled");
                in_place(if self.differs("enabled") { enabling(&alter, word, &name, state, false) } else { None })
            }
            Kind::Policy => replace_if(self.any(&["permissive", "command", "roles", "using", "check"])),
            Kind::EventTrigger => {
                if self.differs("definition") {
                    return Alteration::Replace;
                }
                let alter = format!("ALTER EVENT TRIGGER {name}");
                let state = self.new.text("enabled");
                in_place(if self.differs("enabled") { enabling(&alter, "", "", state, false) } else { None })
            }
            Kind::Publication => replace_if(self.differs("definition")),
            Kind::DefaultPrivileges => match self.differs("privileges") {
                true => Alteration::InPlace(privileges::change_defaults(Some(self.old), Some(self.new))),
                false => in_place(None),
            },
        }
    }

    fn server(&self) -> Alteration {
        let alter = format!("ALTER SERVER {}", full_name(self.new));
        let version = self.new.text("version");
        if self.any(&["type", "wrapper"]) {
            return Alteration::Replace;
        }
        if self.differs("version") && version.is_none() {
            return Alteration::Impossible("it has a version, which Postgres cannot take away".to_owned());
        }
        let mut statements = Vec::new();
        if let Some(version) = version.filter(|_| self.differs("version")) {
            statements.push(format!("{alter} VERSION {}", literal(version)));
        }
        statements.extend(self.foreign_options(&alter));
        Alteration::InPlace(statements)
    }

    /// The statement that begins so and changes the options of a foreign thing, if they differ.
    fn foreign_options(&self, alter: &str) -> Option<String> {
        let options = |object: &Object| -> Vec<(String, String)> {
            let split =
                |option: &String| option.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
            object.list("foreign_options").iter().filter_map(split).collect()
        };
        let (old, new) = (options(self.old), options(self.new));
        let value_of = |list: &[(String, String)], name: &str| {
            list.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
        };
        let gone = old.iter().filter(|(name, _)| value_of(&new, name).is_none());
        let mut changes: Vec<String> = gone.map(|(name, _)| format!("DROP {}", identifier(name))).collect();
        for (name, value) in &new {
            let word = match value_of(&old, name) {
                None => "ADD",
                Some(was) if was != *value => "SET",
                Some(_) => continue,
            };
            changes.push(format!("{word} {} {}", identifier(name), literal(value)));
        }
        (!changes.is_empty()).then(|| format!("{alter} OPTIONS ({})", changes.join(", ")))
    }

    fn labels(&self) -> Alteration {
        let labels = Labels::of(self.old, self.new, self.identity);
        let Labels { old, new, old_ids, new_ids } = &labels;
        if old == new && old_ids == new_ids {
            return Alteration::InPlace(Vec::new());
        }
        let name = full_name(self.new);
        let kept: Vec<&Value> = new_ids.iter().filter(|id| old_ids.contains(id)).collect();
        // Labels cannot be taken away or put into another order.
        if kept != old_ids.iter().collect::<Vec<_>>() {
            return Alteration::Replace;
        }
        let mut statements: Vec<String> =
            labels.renamed().map(|(was, label)| rename_value(&name, was, label)).collect();
        for (place, label) in new.iter().enumerate() {
            if old_ids.contains(&new_ids[place]) {
                continue;
            }
            let next_kept = (place + 1..new.len()).find(|next| old_ids.contains(&new_ids[*next]));
            let place = match (place, next_kept) {
                (0, Some(next)) => format!(" BEFORE {}", literal(&new[next])),
                (0, None) => String::new(),
                (place, _) => format!(" AFTER {}", literal(&new[place - 1])),
            };
            statements.push(format!("ALTER TYPE {name} ADD VALUE {}{place}", literal(label)));
        }
        Alteration::InPlace(statements)
    }

    fn domain(&self) -> Alteration {
        if self.differs("type") {
            return Alteration::Replace;
        }
        let name = full_name(self.new);
        let mut statements = Vec::new();
        if self.differs("default") {
            statements.push(match self.new.text("default") {
                Some(default) => format!("ALTER DOMAIN {name} SET DEFAULT {default}"),
                None => format!("ALTER DOMAIN {name} DROP DEFAULT"),
            });
        }
        if self.differs("not_null") {
            let word = if self.new.flag("not_null") { "SET" } else { "DROP" };
            statements.push(format!("ALTER DOMAIN {name} {word} NOT NULL"));
        }
        Alteration::InPlace(statements)
    }

    fn persistence(&self, word: &str) -> Option<String> {
        let logged = if self.new.text("persistence") == Some("u") { "UNLOGGED" } else { "LOGGED" };
        self.differs("persistence").then(|| format!("ALTER {word} {} SET {logged}", full_name(self.new)))
    }

    /// `SET` and `RESET` of storage options.
    fn options(&self, word: &str) -> Vec<String> {
        let name = full_name(self.new);
        let mut statements =
            option_changes(&self.old.list("options"), &self.new.list("options"), "", &format!("ALTER {word} {name}"));
        if self.new.kind == Kind::Table {
            let (old, new) = (self.old.list("toast_options"), self.new.list("toast_options"));
            statements.extend(option_changes(&old, &new, "toast.", &format!("ALTER {word} {name}")));
        }
        statements
    }

    fn table(&self) -> Alteration {
        let name = full_name(self.new);
        if self.any(&["partition_key", "of_type", "server"]) {
            return Alteration::Impossible("its partition key, row type or server changed".to_owned());
        }
        let mut statements = Vec::new();
        if self.new.text("partition_bound").is_none() && self.old.text("partition_bound").is_none() {
            let (old, new) = (self.parents(self.old), self.parents(self.new));
            for (id, parent) in &old {
                if !new.iter().any(|(other, _)| other == id) {
                    statements.push(format!("ALTER TABLE {name} NO INHERIT {parent}"));
                }
            }
            for (id, parent) in &new {
                if !old.iter().any(|(other, _)| other == id) {
                    statements.push(format!("ALTER TABLE {name} INHERIT {parent}"));
                }
            }
        }
        statements.extend(self.persistence("TABLE"));
        if self.differs("access_method") {
            statements.push(format!(
                "ALTER TABLE {name} SET ACCESS METHOD {}",
                self.new.text("access_method").unwrap_or("heap")
            ));
        }
        if self.differs("tablespace") {
            statements.push(format!(
                "ALTER TABLE {name} SET TABLESPACE {}",
                self.new.text("tablespace").unwrap_or("pg_default")
            ));
        }
        statements.extend(self.options("TABLE"));
        statements.extend(self.foreign_options(&format!("ALTER FOREIGN TABLE {name}")));
        statements.extend(table_flags(self.new, Some(self.old)));
        Alteration::InPlace(statements)
    }

    /// What a table inherits from: identity and name.
    fn parents(&self, object: &Object) -> Vec<(String, String)> {
        let names = object.list_of_lists("parents");
        let ids: Vec<String> = match self.identity {
            Identity::Oid => {
                object.s.get("parents").and_then(Value::as_array).into_iter().flatten().map(Value::to_string).collect()
            }
            Identity::Name => names.clone(),
        };
        ids.into_iter().zip(names).collect()
    }

    fn column(&self) -> Alteration {
        let table = whole_name(self.new_catalog, self.new);
        let name = identifier(&self.new.name);
        let alter = format!("ALTER TABLE {table} ALTER COLUMN {name}");
        let mut statements = Vec::new();
        // What is inherited follows the table that it comes from.
        let inherited = self.new.number("inherited") > 0 && self.old.number("inherited") > 0;
        let retyped = self.any(&["type", "collation"]) && !inherited;
        if retyped {
            statements.push(retype(&table, Some(self.old), self.new));
        }
        if self.any(&["generated", "virtual"]) {
            let expressions = (self.old.text("generated"), self.new.text("generated"));
            match expressions {
                (_, None) if inherited => {}
                (_, None) if !self.old.flag("virtual") => statements.push(format!("{alter} DROP EXPRESSION")),
                // Its values would be lost with it.
                (_, None) => return Alteration::Impossible("how it is generated changed".to_owned()),
                // The same column has another expression only where there is a statement for that: since 17.
                (Some(_), Some(expression)) if self.identity == Identity::Oid && !self.differs("virtual") => {
                    statements.push(format!("{alter} SET EXPRESSION AS ({expression})"));
                }
                // Its values follow from the other columns.
                (_, Some(_)) => return Alteration::Replace,
            }
        }
        let foreign = format!("ALTER FOREIGN TABLE {table} ALTER COLUMN {name}");
        statements.extend(self.foreign_options(&foreign));
        let identity = (self.old.text("identity"), self.new.text("identity"));
        match identity {
            (Some(_), None) => statements.push(format!("{alter} DROP IDENTITY")),
            (None, Some(kind)) => {
                let options = identity_options(self.new);
                // A column must not be null before it can be one.
                if !self.old.flag("not_null") {
                    statements.push(format!("{alter} SET NOT NULL"));
                }
                statements.push(format!("{alter} ADD GENERATED {} AS IDENTITY ({options})", kind.to_uppercase()));
                statements.extend(identity_of_other_type(self.new));
            }
            (Some(old), Some(new)) => {
                if old != new {
                    statements.push(format!("{alter} SET GENERATED {}", new.to_uppercase()));
                }
                statements.extend(self.identity_renamed());
                let other_type = [self.old, self.new].iter().any(|column| column.text("identity_type").is_some());
                let differs = self.any(&["identity_options", "identity_type"]);
                // With the column's type Postgres gives the sequence that type, and its bounds if they were the old type's.
                if other_type && (differs || retyped) {
                    statements.push(identity_sequence(self.new));
                } else if differs || retyped {
                    let options = self.new.text("identity_options").unwrap_or_default().to_uppercase();
                    let words = ["START WITH", "INCREMENT BY", "MINVALUE", "MAXVALUE", "CACHE", "NO CYCLE", "CYCLE"];
                    statements.push(format!("{alter} {}", set_each(&options, &words)));
                }
            }
            (None, None) => {}
        }
        if self.differs("not_null") && !(matches!(identity, (None, Some(_))) && self.new.flag("not_null")) {
            let word = if self.new.flag("not_null") { "SET" } else { "DROP" };
            statements.push(format!("{alter} {word} NOT NULL"));
        }
        let constraints = (self.old.text("not_null_name"), self.new.text("not_null_name"));
        if let ((Some(old), Some(new)), false) = (constraints, inherited)
            && old != new
            && self.identity == Identity::Oid
        {
            statements.push(format!("ALTER TABLE {table} RENAME CONSTRAINT {old} TO {new}"));
        }
        let only = format!("ALTER TABLE ONLY {table} ALTER COLUMN {name}");
        if self.differs("storage") || (self.any(&["type"]) && self.new.text("storage").is_some()) {
            let storage = self.new.text("storage").or(self.new.text("default_storage")).unwrap_or("plain");
            statements.push(format!("{only} SET STORAGE {storage}"));
        }
        if self.differs("compression") {
            statements.push(format!("{only} SET COMPRESSION {}", self.new.text("compression").unwrap_or("default")));
        }
        if self.differs("statistics") {
            statements.push(format!("{only} SET STATISTICS {}", self.new.number("statistics")));
        }
        statements.extend(option_changes(&self.old.list("options"), &self.new.list("options"), "", &only));
        Alteration::InPlace(statements)
    }

    /// The new name of an identity column's sequence, which is where its table is.
    fn identity_renamed(&self) -> Option<String> {
        let (old, new) = (self.old.text("identity_name")?, self.new.text("identity_name")?);
        let (was, is) = (last_part(old), last_part(new));
        let schema = new.strip_suffix(is)?;
        (was != is).then(|| format!("ALTER SEQUENCE {schema}{was} RENAME TO {is}"))
    }

    fn function(&self) -> Alteration {
        if !self.differs("definition") && !self.differs("aggregate") {
            return Alteration::InPlace(Vec::new());
        }
        let names =
            |object: &Object| object.d.get("argument_names").and_then(Value::as_array).cloned().unwrap_or_default();
        let (old_names, new_names) = (names(self.old), names(self.new));
        let keeps_names = old_names
            .iter()
            .enumerate()
            .all(|(place, name)| name.as_str().is_none_or(str::is_empty) || new_names.get(place) == Some(name));
        let replaceable = self.old.text("prokind") == self.new.text("prokind")
            && self.new.text("prokind") != Some("a")
            && !self.differs("result")
            && self.old.text("result") == self.new.text("result")
            && keeps_names
            && self.old.number("defaults") <= self.new.number("defaults");
        let definition = self.new.text("definition").unwrap_or_default().trim_end().to_owned();
        if replaceable { Alteration::InPlace(vec![definition]) } else { Alteration::Replace }
    }

    /// Whether the only difference is that it has been validated.
    fn validated(&self) -> bool {
        let plain = |object: &Object| object.text("definition").unwrap_or_default().replace(" NOT VALID", "");
        let same = match self.identity {
            Identity::Oid => !self.differs("definition"),
            Identity::Name => plain(self.old) == plain(self.new),
        };
        same && self.new.flag("valid") && !self.old.flag("valid")
    }

    fn constraint(&self) -> Alteration {
        let table = whole_name(self.new_catalog, self.new);
        let name = identifier(&self.new.name);
        let mut statements = Vec::new();
        let validated = self.validated();
        if validated {
            statements.push(format!("ALTER TABLE {table} VALIDATE CONSTRAINT {name}"));
        } else if self.differs("valid") {
            return Alteration::Replace;
        }
        let timing = self.any(&["deferrable", "deferred"]);
        // The text says when it is checked too, and what it names under its name of now.
        let redefined = match self.identity {
            Identity::Oid => self.differs("definition"),
            Identity::Name => self.differs("definition") && !validated,
        };
        if redefined
            && !(timing
                && self.identity == Identity::Name
                && self.new.text("type") == Some("f")
                && same_but_timing(self.old, self.new))
        {
            return Alteration::Replace;
        }
        if timing {
            if self.new.text("type") != Some("f") {
                return Alteration::Replace;
            }
            let when = match (self.new.flag("deferrable"), self.new.flag("deferred")) {
                (false, _) => "NOT DEFERRABLE",
                (true, false) => "DEFERRABLE INITIALLY IMMEDIATE",
                (true, true) => "DEFERRABLE INITIALLY DEFERRED",
            };
            statements.push(format!("ALTER TABLE {table} ALTER CONSTRAINT {name} {when}"));
        }
        statements.extend(self.index_flag_changes(&table, &name));
        statements.extend(option_changes(
            &self.old.list("options"),
            &self.new.list("options"),
            "",
            &self.index_alter(),
        ));
        Alteration::InPlace(statements)
    }

    fn index_alter(&self) -> String {
        let schema = match self.new.kind {
            Kind::Index => self.new.schema.clone(),
            _ => self.new_catalog.parent(self.new).and_then(|table| table.schema.clone()),
        };
        let schema = schema.map(|schema| format!("{}.", identifier(&schema))).unwrap_or_default();
        format!("ALTER INDEX {schema}{}", identifier(&self.new.name))
    }

    fn index_flag_changes(&self, table: &str, name: &str) -> Vec<String> {
        let mut statements = Vec::new();
        if self.any(&["clustered", "replica_identity"]) {
            if self.old.flag("clustered") && !self.new.flag("clustered") {
                // Another index's statement would do it too; this one says what it means.
                statements.push(format!("ALTER TABLE {table} SET WITHOUT CLUSTER"));
            }
            statements.extend(index_flags(table, name, self.new));
        }
        statements
    }

    fn view(&self) -> Alteration {
        let name = full_name(self.new);
        let (old, new) = (self.old.rows("columns"), self.new.rows("columns"));
        let mut statements = Vec::new();
        if self.any(&["definition", "columns"]) {
            let stored =
                |object: &Object| object.s.get("columns").and_then(Value::as_array).cloned().unwrap_or_default();
            let types = |rows: &[Value]| -> Vec<Vec<Value>> {
                rows.iter().map(|row| row.as_array().map(|row| row[1..].to_vec()).unwrap_or_default()).collect()
            };
            let (old_types, new_types) = match self.identity {
                Identity::Oid => (types(&stored(self.old)), types(&stored(self.new))),
                Identity::Name => (types(old), types(new)),
            };
            if !new_types.starts_with(&old_types) {
                return Alteration::Replace;
            }
            for (was, is) in old.iter().zip(new) {
                let word = |row: &Value| row.get(0).and_then(Value::as_str).unwrap_or_default().to_owned();
                if word(was) != word(is) {
                    if self.identity == Identity::Name {
                        return Alteration::Replace;
                    }
                    statements.push(format!("ALTER VIEW {name} RENAME COLUMN {} TO {}", word(was), word(is)));
                }
            }
            let columns: Vec<_> = new.iter().filter_map(|row| row.get(0)?.as_str()).collect();
            let options: Vec<_> = self.new.list("options").iter().map(|option| set_option(option)).collect();
            let options = if options.is_empty() { String::new() } else { format!(" WITH ({})", options.join(", ")) };
            let definition = self.new.text("definition").unwrap_or_default().trim_end().trim_end_matches(';');
            if self.differs("definition") {
                statements
                    .push(format!("CREATE OR REPLACE VIEW {name} ({}){options} AS\n{definition}", columns.join(", ")));
                return Alteration::InPlace(statements);
            }
        }
        statements.extend(self.options("VIEW"));
        Alteration::InPlace(statements)
    }

    fn index(&self) -> Alteration {
        let table = whole_name(self.new_catalog, self.new);
        if self.differs("definition") {
            return Alteration::Replace;
        }
        let alter = self.index_alter();
        let mut statements = option_changes(&self.old.list("options"), &self.new.list("options"), "", &alter);
        if self.differs("tablespace") {
            statements.push(format!("{alter} SET TABLESPACE {}", self.new.text("tablespace").unwrap_or("pg_default")));
        }
        if self.differs("statistics") {
            let column = |row: &Value| row.get(0).and_then(Value::as_i64);
            for row in self.old.rows("statistics") {
                if !self.new.rows("statistics").iter().any(|other| column(other) == column(row)) {
                    statements.push(format!("{alter} ALTER COLUMN {} SET STATISTICS -1", column(row).unwrap_or(0)));
                }
            }
            for row in self.new.rows("statistics") {
                let target = row.get(1).and_then(Value::as_i64).unwrap_or(-1);
                statements.push(format!("{alter} ALTER COLUMN {} SET STATISTICS {target}", column(row).unwrap_or(0)));
            }
        }
        statements.extend(self.index_flag_changes(&table, &identifier(&self.new.name)));
        Alteration::InPlace(statements)
    }
}

/// The last part of a name with a schema, quoted as it is there.
fn last_part(name: &str) -> &str {
    let mut quoted = false;
    let dot = name.char_indices().filter(|(_, letter)| {
        quoted ^= *letter == '"';
        *letter == '.' && !quoted
    });
    dot.last().map_or(name, |(place, _)| &name[place + 1..])
}

/// Gives a column its new type, by the cast between the two; by way of text where there may be none.
pub(crate) fn retype(table: &str, old: Option<&Object>, column: &Object) -> String {
    let name = identifier(&column.name);
    let (full, plain) = (column_type(column), column.text("type").unwrap_or_default());
    let before = old.and_then(|column| column.text("type")).unwrap_or_default();
    let (from, to) = (family(before), family(plain));
    let direct = from == Family::Text || to == Family::Text || (from == to && from != Family::Other);
    let through = if direct { "" } else { "::text" };
    format!("ALTER TABLE {table} ALTER COLUMN {name} TYPE {full} USING {name}{through}::{plain}")
}

/// Types that have casts to each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Number,
    Text,
    Time,
    Other,
}

fn family(name: &str) -> Family {
    let starts = |words: &[&str]| words.iter().any(|word| name.starts_with(word)) && !name.ends_with("[]");
    if starts(&["smallint", "integer", "bigint", "numeric", "real", "double precision"]) {
        Family::Number
    } else if starts(&["text", "character"]) {
        Family::Text
    } else if starts(&["date", "timestamp"]) {
        Family::Time
    } else {
        Family::Other
    }
}

fn same_but_timing(old: &Object, new: &Object) -> bool {
    let plain = |object: &Object| -> String {
        let text = object.text("definition").unwrap_or_default();
        text.replace(" DEFERRABLE", "").replace(" INITIALLY DEFERRED", "").replace(" NOT VALID", "")
    };
    plain(old) == plain(new)
}

fn option_changes(old: &[String], new: &[String], prefix: &str, alter: &str) -> Vec<String> {
    let name = |option: &str| option.split_once('=').map_or(option, |(name, _)| name).to_owned();
    let set: Vec<String> = new
        .iter()
        .filter(|option| !old.contains(option))
        .map(|option| format!("{prefix}{}", set_option(option)))
        .collect();
    let reset: Vec<String> = old
        .iter()
        .map(|option| name(option))
        .filter(|was| !new.iter().any(|option| name(option) == *was))
        .map(|was| format!("{prefix}{}", identifier(&was)))
        .collect();
    let mut statements = Vec::new();
    if !reset.is_empty() {
        statements.push(format!("{alter} RESET ({})", reset.join(", ")));
    }
    if !set.is_empty() {
        statements.push(format!("{alter} SET ({})", set.join(", ")));
    }
    statements
}

/// `SET` before each option of a sequence.
fn set_each(options: &str, words: &[&str]) -> String {
    let mut text = options.to_owned();
    for word in words {
        // NO CYCLE holds CYCLE.
        if *word == "CYCLE" && text.contains("NO CYCLE") {
            continue;
        }
        text = text.replacen(word, &format!("SET {word}"), 1);
    }
    text
}
