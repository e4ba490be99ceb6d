//! How an object is called in statements.

use crate::catalog::{Catalog, Kind, Object};
use crate::name::{identifier, qualified};

/// Its name, with its schema.
pub(crate) fn full_name(object: &Object) -> String {
    match &object.schema {
        Some(schema) => qualified(schema, &object.name),
        None => identifier(&object.name),
    }
}

/// The name of the table, view or domain that it is a part of.
pub(crate) fn whole_name(catalog: &Catalog, object: &Object) -> String {
    catalog.parent(object).map(full_name).unwrap_or_default()
}

/// What stands after `ALTER`, `DROP` and `COMMENT ON`.
pub(crate) fn phrase(catalog: &Catalog, object: &Object) -> String {
    let name = full_name(object);
    let on = |word: &str| format!("{word} {name} ON {}", whole_name(catalog, object));
    match object.kind {
        Kind::Schema => format!("SCHEMA {name}"),
        Kind::Extension => format!("EXTENSION {name}"),
        Kind::Collation => format!("COLLATION {name}"),
        Kind::Enum | Kind::Composite | Kind::Range => format!("TYPE {name}"),
        Kind::Domain => format!("DOMAIN {name}"),
        Kind::Server => format!("SERVER {name}"),
        Kind::Sequence | Kind::OwnedBy => format!("SEQUENCE {name}"),
        Kind::Table | Kind::Partition => format!("TABLE {name}"),
        Kind::ForeignTable => format!("FOREIGN TABLE {name}"),
        Kind::Column | Kind::ViewColumn | Kind::Default => format!("COLUMN {}.{name}", whole_name(catalog, object)),
        Kind::Function => {
            let arguments = object.text("arguments").unwrap_or_default();
            match object.text("prokind") {
                Some("p") => format!("PROCEDURE {name}({arguments})"),
                Some("a") if arguments.is_empty() => format!("AGGREGATE {name}(*)"),
                Some("a") => format!("AGGREGATE {name}({arguments})"),
                _ => format!("FUNCTION {name}({arguments})"),
            }
        }
        Kind::Cast => format!("CAST ({})", object.name),
        Kind::Operator => {
            let schema = object.schema.as_deref().map(identifier).unwrap_or_default();
            format!("OPERATOR {schema}.{} ({})", object.name, object.text("arguments").unwrap_or_default())
        }
        Kind::DomainConstraint => format!("CONSTRAINT {name} ON DOMAIN {}", whole_name(catalog, object)),
        Kind::Constraint => on("CONSTRAINT"),
        Kind::View => format!("VIEW {name}"),
        Kind::MaterializedView => format!("MATERIALIZED VIEW {name}"),
        Kind::Index => format!("INDEX {name}"),
        Kind::Statistics => format!("STATISTICS {name}"),
        Kind::Rule => on("RULE"),
        Kind::Policy => on("POLICY"),
        Kind::Trigger => on("TRIGGER"),
        Kind::EventTrigger => format!("EVENT TRIGGER {name}"),
        Kind::Publication => format!("PUBLICATION {name}"),
        Kind::DefaultPrivileges => format!("DEFAULT PRIVILEGES {}", object.name),
    }
}

/// What stands after `GRANT ... ON`.
pub(crate) fn grant_target(catalog: &Catalog, object: &Object) -> String {
    let name = full_name(object);
    match object.kind {
        Kind::Function => {
            let word = if object.text("prokind") == Some("p") { "PROCEDURE" } else { "FUNCTION" };
            format!("{word} {name}({})", object.text("types").unwrap_or_default())
        }
        Kind::View | Kind::MaterializedView | Kind::ForeignTable => format!("TABLE {name}"),
        Kind::Column | Kind::ViewColumn => format!("TABLE {}", whole_name(catalog, object)),
        Kind::Domain => format!("TYPE {name}"),
        Kind::Server => format!("FOREIGN SERVER {name}"),
        _ => phrase(catalog, object),
    }
}
