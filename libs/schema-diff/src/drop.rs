//! Statements that drop an object.

use crate::catalog::{Catalog, Kind, Object};
use crate::name::{identifier, qualified};
use crate::phrase::{phrase, whole_name};
use crate::privileges;

/// The statement. `current` is the name that it was given meanwhile, to make room for a new one.
pub(crate) fn statement(catalog: &Catalog, object: &Object, current: Option<&str>) -> Option<String> {
    let renamed = current.map(|name| Object { name: name.to_owned(), ..object.clone() });
    let object = renamed.as_ref().unwrap_or(object);
    let name = identifier(&object.name);
    let whole = whole_name(catalog, object);
    Some(match object.kind {
        Kind::ViewColumn => return None,
        Kind::Column => format!("ALTER TABLE {whole} DROP COLUMN {name}"),
        Kind::Default => {
            let table = catalog.parent(object).map(|column| whole_name(catalog, column)).unwrap_or_default();
            format!("ALTER TABLE ONLY {table} ALTER COLUMN {name} DROP DEFAULT")
        }
        Kind::Constraint => format!("ALTER TABLE {whole} DROP CONSTRAINT {name}"),
        Kind::DomainConstraint => format!("ALTER DOMAIN {whole} DROP CONSTRAINT {name}"),
        Kind::OwnedBy => {
            let schema = object.schema.as_deref().unwrap_or_default();
            format!("ALTER SEQUENCE {} OWNED BY NONE", qualified(schema, &object.name))
        }
        Kind::Partition => {
            let schema = object.schema.as_deref().unwrap_or_default();
            let parent = object.list_of_lists("parents").into_iter().next()?;
            format!("ALTER TABLE {parent} DETACH PARTITION {}", qualified(schema, &object.name))
        }
        // Taking everything back is all that there is.
        Kind::DefaultPrivileges => privileges::change_defaults(Some(object), None).join("; "),
        _ => format!("DROP {}", phrase(catalog, object)),
    })
}
