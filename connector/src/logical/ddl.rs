//! Changes of a table on production that the root can follow by itself: columns added, columns dropped.

use ardent_pgoutput::Relation;
use ardent_types::sql::{literal, qualified, quoted};
use tokio_postgres::Client;

use crate::logical::error::{LogicalError, source};
use crate::logical::relation::Difference;

/// A column as production has it now. `missing` is what rows have in it that were there before the column.
struct SourceColumn {
    type_name: String,
    not_null: bool,
    default: Option<String>,
    missing: Option<String>,
    identity: String,
    collation: Option<String>,
}

const COLUMN: &str = "
    select format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
        case when a.atthasmissing then (a.attmissingval::text::text[])[1] end, a.attidentity::text,
        case when a.attcollation <> t.typcollation then (select format('%I.%I', n.nspname, c.collname)
            from pg_collation c join pg_namespace n on n.oid = c.collnamespace where c.oid = a.attcollation) end,
        a.atttypid, a.atttypmod
    from pg_attribute a join pg_type t on t.oid = a.atttypid
        left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where a.attrelid = $1 and a.attname = $2 and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''";

/// The statements that make the root's table what the relation says, or why there are none.
pub(crate) async fn derive(
    production: &Client,
    relation: &Relation,
    difference: &Difference,
) -> Result<Result<Vec<String>, String>, LogicalError> {
    let table = qualified(&relation.schema, &relation.name);
    if !difference.retyped.is_empty() {
        return Ok(Err(format!("column {} has another type", difference.retyped.join(", "))));
    }
    if !difference.added.is_empty() && !difference.dropped.is_empty() {
        let added: Vec<&str> = difference.added.iter().map(|&index| relation.columns[index].name.as_str()).collect();
        return Ok(Err(format!(
            "column {} is not there any more and column {} is new, which may be the same column under another name",
            difference.dropped.join(", "),
            added.join(", ")
        )));
    }
    let mut statements = Vec::new();
    for name in &difference.dropped {
        statements.push(format!("alter table {table} drop column {}", quoted(name)));
    }
    for &index in &difference.added {
        let column = &relation.columns[index];
        let row = production
            .query_opt(COLUMN, &[&relation.oid, &column.name])
            .await
            .map_err(source("looking at a column that was added"))?;
        let Some(row) = row else {
            return Ok(Err(format!("column {} was added, and is not there any more", column.name)));
        };
        if (row.get::<_, u32>(6), row.get::<_, i32>(7)) != (column.type_oid, column.type_modifier) {
            return Ok(Err(format!("column {} was added, and its type was changed since", column.name)));
        }
        let found = SourceColumn {
            type_name: row.get(0),
            not_null: row.get(1),
            default: row.get(2),
            missing: row.get(3),
            identity: row.get(4),
            collation: row.get(5),
        };
        match add(&table, &column.name, &found) {
            Ok(more) => statements.extend(more),
            Err(why) => return Ok(Err(why)),
        }
    }
    Ok(Ok(statements))
}

/// Adds a column whose rows so far hold what they hold on production.
fn add(table: &str, name: &str, column: &SourceColumn) -> Result<Vec<String>, String> {
    let quoted_name = quoted(name);
    if !column.identity.is_empty() {
        return Err(format!("column {name} was added with an identity, whose values in the rows so far were not sent"));
    }
    let mut type_name = column.type_name.clone();
    if let Some(collation) = &column.collation {
        type_name.push_str(&format!(" collate {collation}"));
    }
    let mut statements = Vec::new();
    match (&column.missing, &column.default) {
        // Production filled the rows with this when the column came.
        (Some(missing), _) => {
            statements
                .push(format!("alter table {table} add column {quoted_name} {type_name} default {}", literal(missing)));
            let default = match &column.default {
                Some(default) => format!("set default {default}"),
                None => "drop default".to_owned(),
            };
            statements.push(format!("alter table {table} alter column {quoted_name} {default}"));
        }
        (None, None) if !column.not_null => {
            statements.push(format!("alter table {table} add column {quoted_name} {type_name}"));
        }
        (None, Some(_)) | (None, None) => {
            return Err(format!("column {name} was added, and what the rows so far hold in it was not sent"));
        }
    }
    if column.not_null {
        statements.push(format!("alter table {table} alter column {quoted_name} set not null"));
    }
    Ok(statements)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column() -> SourceColumn {
        SourceColumn {
            type_name: "integer".into(),
            not_null: false,
            default: None,
            missing: None,
            identity: String::new(),
            collation: None,
        }
    }

    #[test]
    fn a_column_is_added_with_what_rows_hold() {
        assert_eq!(add("t", "c", &column()), Ok(vec!["alter table t add column \"c\" integer".to_owned()]));
        let filled =
            SourceColumn { missing: Some("it's".into()), not_null: true, default: Some("now()".into()), ..column() };
        assert_eq!(
            add("t", "c", &filled),
            Ok(vec![
                "alter table t add column \"c\" integer default 'it''s'".to_owned(),
                "alter table t alter column \"c\" set default now()".to_owned(),
                "alter table t alter column \"c\" set not null".to_owned(),
            ])
        );
    }

    #[test]
    fn what_rows_hold_must_be_known() {
        for unknown in [
            SourceColumn { default: Some("random()".into()), ..column() },
            SourceColumn { not_null: true, ..column() },
            SourceColumn { identity: "a".into(), ..column() },
        ] {
            assert!(add("t", "c", &unknown).is_err());
        }
    }
}
