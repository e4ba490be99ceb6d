//! Changes of a table on production that the root can follow by itself: columns added, columns dropped.

use ardent_pgoutput::Relation;
use ardent_types::sql::{literal, qualified, quoted};
use tokio_postgres::Client;

use crate::logical::error::{LogicalError, root, source};
use crate::logical::relation::Difference;
use crate::logical::same_columns::{SameColumns, SourceNumbers};

/// A column as production has it now. `missing` is what rows have in it that were there before the column.
struct SourceColumn {
    type_name: String,
    not_null: bool,
    default: Option<String>,
    missing: Option<String>,
    /// Rows that were there before the column, and were given nothing in it by changes, hold nothing in it.
    is_null: bool,
    identity: String,
    collation: Option<String>,
}

/// What is known of a table's columns besides what its relation message says.
#[derive(Clone, Copy)]
pub(crate) struct KnownColumns<'a> {
    pub same: &'a SameColumns,
    pub source: &'a SourceNumbers,
}

const COLUMN: &str = "
    select format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
        case when a.atthasmissing then (a.attmissingval::text::text[])[1] end, a.attidentity::text,
        case when a.attcollation <> t.typcollation then (select format('%I.%I', n.nspname, o.collname)
            from pg_collation o join pg_namespace n on n.oid = o.collnamespace where o.oid = a.attcollation) end,
        a.atttypid, a.atttypmod, a.attnum, c.relfilenode,
        (select format('%I.%I', s.nspname, c.relname) from pg_namespace s where s.oid = c.relnamespace)
    from pg_class c join pg_attribute a on a.attrelid = c.oid join pg_type t on t.oid = a.atttypid
        left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where c.oid = $1 and a.attname = $2 and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''";

/// The statements that make the root's table what the relation says, or why there are none. `client`: in the root's transaction, which
/// has all changes that came before.
pub(crate) async fn derive(
    production: &Client,
    client: &Client,
    relation: &Relation,
    difference: &Difference,
    known: KnownColumns<'_>,
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
        match added(production, client, relation, index, known).await? {
            Ok(more) => statements.extend(more),
            Err(why) => return Ok(Err(why)),
        }
    }
    Ok(Ok(statements))
}

/// The statements that add one of the relation's columns, or why there are none.
async fn added(
    production: &Client,
    client: &Client,
    relation: &Relation,
    index: usize,
    known: KnownColumns<'_>,
) -> Result<Result<Vec<String>, String>, LogicalError> {
    let table = qualified(&relation.schema, &relation.name);
    let column = &relation.columns[index];
    let name = &column.name;
    let row = production
        .query_opt(COLUMN, &[&relation.oid, name])
        .await
        .map_err(source("looking at a column that was added"))?;
    let Some(row) = row else {
        return Ok(Err(format!("column {name} was added, and is not there any more")));
    };
    if (row.get::<_, u32>(6), row.get::<_, i32>(7)) != (column.type_oid, column.type_modifier) {
        return Ok(Err(format!("column {name} was added, and its type was changed since")));
    }
    let attnum: i16 = row.get(8);
    if known.source.of_name(name) != Some(attnum) || !known.same.is_new(attnum, known.source) {
        return Ok(Err(format!(
            "column {name} was added, and may be another one than the changes are of: it had another name before, or columns came and \
             went that may have had its name"
        )));
    }
    let mut found = SourceColumn {
        type_name: row.get(0),
        not_null: row.get(1),
        default: row.get(2),
        missing: row.get(3),
        is_null: known.same.is_in_its_file(attnum, row.get(9)),
        identity: row.get(4),
        collation: row.get(5),
    };
    if !found.is_null && found.missing.is_none() && found.default.is_none() && !found.not_null {
        let full_name: String = row.get(10);
        found.is_null = is_null((production, &full_name), (client, &table), name).await?;
    }
    Ok(add(&table, name, &found))
}

/// Whether no row from before the column can hold anything in it, its table having been written anew since it was seen last: by a
/// default that is gone again, and that no catalog remembers, as well as by `TRUNCATE` or `VACUUM FULL`. Each session comes with the
/// table's name there, quoted.
async fn is_null(
    (production, theirs): (&Client, &str),
    (client, table): (&Client, &str),
    name: &str,
) -> Result<bool, LogicalError> {
    let has_rows = client.query_one(&format!("select exists (select 1 from only {table})"), &[]).await;
    if !has_rows.map_err(root(format!("looking for rows of table {table}")))?.get::<_, bool>(0) {
        return Ok(true);
    }
    let has_values = format!("select exists (select 1 from only {theirs} where {} is not null)", quoted(name));
    let has_values = production.query_one(&has_values, &[]).await;
    Ok(!has_values.map_err(source("looking for values in a column that was added"))?.get::<_, bool>(0))
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
        (None, None) if !column.not_null && !column.is_null => {
            return Err(format!(
                "column {name} was added, and rows hold values in it; whether changes bring these, or a default gave them that is gone, \
                 cannot be told, as the table is in another file than when it was seen last, or was not seen yet. Add it here with what rows held in it when it came (where that is \
                 nothing: alter table {table} add column {quoted_name} {type_name})"
            ));
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
            is_null: true,
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
            SourceColumn { is_null: false, ..column() },
            SourceColumn { identity: "a".into(), ..column() },
        ] {
            assert!(add("t", "c", &unknown).is_err());
        }
    }
}
