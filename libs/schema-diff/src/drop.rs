//! Statements that drop an object.

use crate::catalog::{Catalog, Kind, Object};
use crate::name::{identifier, qualified};
use crate::phrase::{full_name, phrase, whole_name};
use crate::privileges;

/// The statement, by the name that the object has here.
pub(crate) fn statement(catalog: &Catalog, object: &Object) -> Option<String> {
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
            let parent = object.list_of_lists("parents").into_iter().next()?;
            detach(&parent, &full_name(object))
        }
        // Taking everything back is all that there is.
        Kind::DefaultPrivileges => privileges::change_defaults(Some(object), None).join("; "),
        _ => format!("DROP {}", phrase(catalog, object)),
    })
}

/// Takes a partition from its table. Both names are quoted. Not `CONCURRENTLY`: plans are run in one transaction.
pub(crate) fn detach(parent: &str, partition: &str) -> String {
    format!("ALTER TABLE {parent} DETACH PARTITION {partition}")
}
