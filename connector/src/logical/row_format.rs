//! How rows of a table go from production to the root: in binary where that means the same on both servers, else as text.
//!
//! Binary spares both servers the writing and reading of numbers and the search for delimiters. It is right only where a value's bytes
//! hold nothing that a server made itself: an enum's, a composite's or `regclass`'s value holds or rests on OIDs of its own.

use ardent_pg_wire::Connection;
use ardent_types::sql::quoted;

use crate::logical::error::{LogicalError, reading};
use crate::logical::relation::{FIRST_OWN_OID, RootColumn};

/// Types whose binary form says the same on every server, by `pg_type.dat`. What is not here, goes as text.
const PORTABLE: [u32; 35] = [
    16, 17, 18, 19, 20, 21, 23, 25, 26, // bool, bytea, "char", name, int8, int2, int4, text, oid
    114, 3802, // json, jsonb
    600, 601, 602, 603, 604, 628, 718, // point, lseg, path, box, polygon, line, circle
    700, 701, 790, 1700, // float4, float8, money, numeric
    650, 869, 829, 774, // cidr, inet, macaddr, macaddr8
    1042, 1043, // bpchar, varchar
    1082, 1083, 1114, 1184, 1186, 1266, // date, time, timestamp, timestamptz, interval, timetz
    2950, // uuid
];

/// Followed by the table's OID and [`COLUMNS_ORDER`].
const COLUMNS: &str = "
    select a.attname, a.atttypid, a.atttypmod, case when t.typcategory = 'A' then t.typelem else 0::oid end
    from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid
    where a.attnum > 0 and not a.attisdropped and a.attgenerated = '' and a.attrelid =";
const COLUMNS_ORDER: &str = "order by a.attnum";

/// A column of production's, as rows are copied.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SourceColumn {
    name: String,
    type_oid: u32,
    type_modifier: i32,
    /// Of an array, the type of its elements; else 0.
    element_oid: u32,
}

impl SourceColumn {
    fn is_portable(&self) -> bool {
        PORTABLE.contains(&self.type_oid) || (self.type_oid < FIRST_OWN_OID && PORTABLE.contains(&self.element_oid))
    }
}

/// The columns of a table that rows are copied with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceColumns(Vec<SourceColumn>);

impl SourceColumns {
    /// Those of the table with this OID, without generated ones, as the session's transaction sees them.
    pub async fn read(production: &mut Connection, oid: u32) -> Result<SourceColumns, LogicalError> {
        let found = production.query(&format!("{COLUMNS} {oid} {COLUMNS_ORDER}")).await;
        let found = found.map_err(reading("listing a table's columns"))?;
        let unusable = || LogicalError::State(format!("production's list of the columns of relation {oid} is not one"));
        let column = |row: &Vec<Option<String>>| {
            let [Some(name), Some(type_oid), Some(type_modifier), Some(element_oid)] = row.as_slice() else {
                return Err(unusable());
            };
            Ok(SourceColumn {
                name: name.clone(),
                type_oid: type_oid.parse().map_err(|_| unusable())?,
                type_modifier: type_modifier.parse().map_err(|_| unusable())?,
                element_oid: element_oid.parse().map_err(|_| unusable())?,
            })
        };
        Ok(SourceColumns(found.rows.iter().map(column).collect::<Result<_, _>>()?))
    }

    /// ` ("a", "b")`; nothing where there are no columns.
    pub fn list(&self) -> String {
        let names: Vec<String> = self.0.iter().map(|column| quoted(&column.name)).collect();
        if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) }
    }

    /// Whether rows can go in binary to a table with these columns. A column that has another type there is left to text, which says
    /// in words what does not fit.
    pub fn are_binary(&self, root: &[RootColumn]) -> bool {
        self.0.iter().all(|column| {
            let here = root.iter().find(|here| here.name == column.name);
            column.is_portable()
                && here
                    .is_some_and(|here| (here.type_oid, here.type_modifier) == (column.type_oid, column.type_modifier))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(name: &str, type_oid: u32, element_oid: u32) -> SourceColumn {
        SourceColumn { name: name.into(), type_oid, type_modifier: -1, element_oid }
    }

    fn here(name: &str, type_oid: u32) -> RootColumn {
        RootColumn {
            table_oid: 1,
            attnum: 1,
            name: name.into(),
            type_oid,
            type_modifier: -1,
            type_name: String::new(),
            is_fixed: false,
            is_generated: false,
            equals: None,
            is_primary: false,
        }
    }

    #[test]
    fn only_what_means_the_same_on_both_servers_goes_in_binary() {
        let check = |columns: &[SourceColumn], root: &[RootColumn], expect: bool| {
            assert_eq!(SourceColumns(columns.to_vec()).are_binary(root), expect, "{columns:?}");
        };
        check(&[there("id", 23, 0), there("a", 1007, 23)], &[here("a", 1007), here("id", 23)], true);
        check(&[there("id", 23, 0)], &[here("id", 20)], false);
        check(&[there("id", 23, 0)], &[], false);
        // regclass, an array of it, an enum, an array of an own domain over int.
        check(&[there("c", 2205, 0)], &[here("c", 2205)], false);
        check(&[there("c", 2210, 2205)], &[here("c", 2210)], false);
        check(&[there("c", 16400, 0)], &[here("c", 16400)], false);
        check(&[there("c", 16401, 16400)], &[here("c", 16401)], false);
        let limited = SourceColumn { type_modifier: 24, ..there("v", 1043, 0) };
        check(&[limited], &[here("v", 1043)], false);
        assert_eq!(SourceColumns(vec![there("a\"b", 23, 0), there("c", 23, 0)]).list(), " (\"a\"\"b\", \"c\")");
        assert_eq!(SourceColumns(Vec::new()).list(), "");
    }
}
