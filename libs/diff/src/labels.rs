//! Labels of enums at the branch point, by their OIDs. Rows are told by text, which says which label is meant only as long as nobody gives
//! its name to another one.

use serde::{Deserialize, Serialize};

use crate::catalog::field;
use crate::error::DiffError;
use crate::session::Session;

/// A label of an enum.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EnumLabel {
    /// Schema of the type.
    pub schema: String,
    /// Name of the type.
    pub name: String,
    /// Its OID, which a database has in common with what was copied from it.
    pub oid: u32,
    /// What it is called.
    pub label: String,
}

/// Labels of the enums that are there, by type and OID. SQL with three columns of text and the OID between them, for whoever asks another server
/// the same.
pub const ENUM_LABELS: &str = "select n.nspname::text, t.typname::text, e.oid, e.enumlabel::text \
     from pg_catalog.pg_enum e join pg_catalog.pg_type t on t.oid = e.enumtypid join pg_catalog.pg_namespace n on n.oid = t.typnamespace \
    where n.nspname <> 'pg_catalog' and n.nspname <> 'information_schema' order by 1, 2, 3";

/// All of a database.
pub(crate) async fn labels(session: &Session) -> Result<Vec<EnumLabel>, DiffError> {
    let mut labels = Vec::new();
    for row in session.query(ENUM_LABELS, &[]).await? {
        labels.push(EnumLabel {
            schema: field(session, &row, 0)?,
            name: field(session, &row, 1)?,
            oid: field(session, &row, 2)?,
            label: field(session, &row, 3)?,
        });
    }
    Ok(labels)
}
