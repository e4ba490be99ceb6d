//! Changes of a table on production that the root can follow by itself: columns added, columns dropped, types that became wider.

use ardent_pgoutput::Relation;
use ardent_types::sql::{literal, quoted};
use tokio_postgres::Client;

use crate::logical::altered::{Altered, Followed};
use crate::logical::error::{LogicalError, root, source};
use crate::logical::relation::Difference;
use crate::logical::same_columns::ColumnType;

/// A column as production has it now.
#[derive(Clone, Debug)]
struct SourceColumn {
    type_name: String,
    kind: ColumnType,
    attnum: i16,
    not_null: bool,
    default: Option<String>,
    /// What rows have in it that were there before the column.
    missing: Option<String>,
    identity: String,
    collation: Option<String>,
    /// The file of its table's rows.
    filenode: u32,
    /// Its table's name, quoted.
    table: String,
}

/// What rows hold in a column that came after them, but for what changes bring.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    /// There are none.
    NoRows,
    Nothing,
    Value(String),
    /// Its table was written anew since it was seen last, by a default that is gone again, as well as by `TRUNCATE` or `VACUUM FULL`, and
    /// no catalog remembers.
    Unknown,
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

impl SourceColumn {
    /// The column of this name, where it is there.
    async fn read(production: &Client, oid: u32, name: &str) -> Result<Option<SourceColumn>, LogicalError> {
        let row = production.query_opt(COLUMN, &[&oid, &name]).await;
        let Some(row) = row.map_err(source("looking at a column that was changed"))? else { return Ok(None) };
        Ok(Some(SourceColumn {
            type_name: row.get(0),
            kind: ColumnType(row.get(6), row.get(7)),
            attnum: row.get(8),
            not_null: row.get(1),
            default: row.get(2),
            missing: row.get(3),
            identity: row.get(4),
            collation: row.get(5),
            filenode: row.get(9),
            table: row.get(10),
        }))
    }
}

/// The statements that make the root's table what the relation says, or why there are none. `client`: in the root's transaction, which
/// has all changes that came before.
pub(crate) async fn derive(
    production: &Client,
    client: &Client,
    relation: &Relation,
    difference: &Difference,
    altered: &Altered,
) -> Result<Result<Vec<String>, String>, LogicalError> {
    let table = altered.quoted();
    let mut statements = Vec::new();
    for name in &difference.retyped {
        match widened(production, client, relation, name, altered).await? {
            Ok(statement) => statements.push(statement),
            Err(why) => return Ok(Err(why)),
        }
    }
    if let Err(why) = dropped(relation, difference, altered) {
        return Ok(Err(why));
    }
    for name in &difference.dropped {
        statements.push(format!("alter table {table} drop column {}", quoted(name)));
    }
    for &index in &difference.added {
        match added(production, client, relation, index, altered).await? {
            Ok(more) => statements.extend(more),
            Err(why) => return Ok(Err(why)),
        }
    }
    Ok(Ok(statements))
}

/// Whether the columns that the relation has no more are gone on production; else why that is not sure.
fn dropped(
    relation: &Relation,
    Difference { added, dropped, .. }: &Difference,
    altered: &Altered,
) -> Result<(), String> {
    let has_still = |name: &&String| altered.followed.iter().any(|table| table.source.of_name(name).is_some());
    if altered.is_partitioned
        && let Some(name) = dropped.iter().find(has_still)
    {
        return Err(format!(
            "column {name} is not there any more, and production has one of that name by now, in this partition or in others"
        ));
    }
    let Some(first) = altered.followed.first().filter(|_| !dropped.is_empty() && !added.is_empty()) else {
        return Ok(());
    };
    let Followed { same, source, columns, .. } = first;
    if same.are_others(relation, source, columns, (dropped.as_slice(), added.as_slice())) {
        return Ok(());
    }
    // Not even a change of the transaction that defined both tells: it may have renamed, dropped and made anew.
    let names: Vec<&str> = added.iter().map(|&index| relation.columns[index].name.as_str()).collect();
    Err(format!(
        "column {} is not there any more and column {} is new, which may be the same column under another name",
        dropped.join(", "),
        names.join(", ")
    ))
}

/// The statement that gives a column a type that all of its values are of, or why there is none.
async fn widened(
    production: &Client,
    client: &Client,
    relation: &Relation,
    name: &str,
    altered: &Altered,
) -> Result<Result<String, String>, LogicalError> {
    let other = || Ok(Err(format!("column {name} has another type")));
    let Some(column) = relation.columns.iter().find(|column| column.name == name) else { return other() };
    let kind = ColumnType(column.type_oid, column.type_modifier);
    for table in &altered.followed {
        let Some(here) = table.column(name).filter(|here| here.kind().widens_to(kind)) else { return other() };
        if !table.same.is_unwritten(here, &table.source) {
            return Ok(Err(format!(
                "column {name} has another type, which all of its values are of; whether they were changed with it (USING) cannot be told, as \
                 table {} is in another file than when it was seen last with the type before",
                table.full_name()
            )));
        }
    }
    let Some(found) = SourceColumn::read(production, altered.oid, name).await? else { return other() };
    let type_name = client.query_one("select pg_catalog.format_type($1, $2)", &[&kind.0, &kind.1]).await;
    let type_name: String = type_name.map_err(root("asking for a type's name"))?.get(0);
    let collate = found.collation.map(|collation| format!(" collate {collation}")).unwrap_or_default();
    Ok(Ok(format!("alter table {} alter column {} type {type_name}{collate}", altered.quoted(), quoted(name))))
}

/// The statements that add one of the relation's columns, or why there are none.
async fn added(
    production: &Client,
    client: &Client,
    relation: &Relation,
    index: usize,
    altered: &Altered,
) -> Result<Result<Vec<String>, String>, LogicalError> {
    let column = &relation.columns[index];
    let name = &column.name;
    let mut all = Vec::new();
    for table in &altered.followed {
        let Some(found) = SourceColumn::read(production, table.oid, name).await? else { return Ok(Err(is_gone(name))) };
        if found.kind != ColumnType(column.type_oid, column.type_modifier) {
            return Ok(Err(format!("column {name} was added, and its type was changed since")));
        }
        if table.source.of_name(name) != Some(found.attnum) || !table.same.is_new(found.attnum, &table.source) {
            return Ok(Err(format!(
                "column {name} was added, and may be another one than the changes are of: it had another name before, or columns came and \
                 went that may have had its name"
            )));
        }
        all.push(found);
    }
    add_to_all(production, client, name, altered, &all).await
}

/// The statements that add a column as production has it now, where no change came since it was made there; or why there are none.
pub(crate) async fn as_it_is(
    production: &Client,
    client: &Client,
    name: &str,
    altered: &Altered,
) -> Result<Result<Vec<String>, String>, LogicalError> {
    let mut all = Vec::new();
    for table in &altered.followed {
        match SourceColumn::read(production, table.oid, name).await? {
            Some(found) => all.push(found),
            None => return Ok(Err(is_gone(name))),
        }
    }
    add_to_all(production, client, name, altered, &all).await
}

fn is_gone(name: &str) -> String {
    format!("column {name} was added, and is not there any more")
}

/// The statements that add a column with what rows hold in it, or why there are none. `all`: it, as the followed tables have it on
/// production, in their order.
async fn add_to_all(
    production: &Client,
    client: &Client,
    name: &str,
    altered: &Altered,
    all: &[SourceColumn],
) -> Result<Result<Vec<String>, String>, LogicalError> {
    let mut all_hold = Held::NoRows;
    for (table, found) in altered.followed.iter().zip(all) {
        all_hold = match (all_hold, held(production, client, table, name, found).await?) {
            (Held::NoRows, held) | (held, Held::NoRows) => held,
            (one, other) if one == other => one,
            _ => {
                return Ok(Err(format!(
                    "column {name} was added, and partitions hold other values in it than others, as table {} does",
                    table.full_name()
                )));
            }
        };
    }
    // A partitioned table has a default of its own.
    let Some(found) = SourceColumn::read(production, altered.oid, name).await? else { return Ok(Err(is_gone(name))) };
    Ok(add(&altered.quoted(), name, &found, &all_hold))
}

/// What a followed table's rows hold in a column that was added.
async fn held(
    production: &Client,
    client: &Client,
    table: &Followed,
    name: &str,
    column: &SourceColumn,
) -> Result<Held, LogicalError> {
    // Production filled the rows with this when the column came.
    if let Some(value) = &column.missing {
        return Ok(Held::Value(value.clone()));
    }
    let has_rows = client.query_one(&format!("select exists (select 1 from only {})", table.quoted()), &[]).await;
    let has_rows = has_rows.map_err(root(format!("looking for rows of table {}", table.full_name())))?;
    if !has_rows.get::<_, bool>(0) {
        return Ok(Held::NoRows);
    }
    if table.same.is_in_its_file(column.attnum, column.filenode) {
        return Ok(Held::Nothing);
    }
    let has_values = format!("select exists (select 1 from only {} where {} is not null)", column.table, quoted(name));
    let has_values = production.query_one(&has_values, &[]).await;
    let has_values = has_values.map_err(source("looking for values in a column that was added"))?;
    Ok(if has_values.get(0) { Held::Unknown } else { Held::Nothing })
}

/// Adds a column whose rows so far hold what they hold on production.
fn add(table: &str, name: &str, column: &SourceColumn, held: &Held) -> Result<Vec<String>, String> {
    let quoted_name = quoted(name);
    if !column.identity.is_empty() {
        return Err(format!("column {name} was added with an identity, whose values in the rows so far were not sent"));
    }
    let mut type_name = column.type_name.clone();
    if let Some(collation) = &column.collation {
        type_name.push_str(&format!(" collate {collation}"));
    }
    let add = format!("alter table {table} add column {quoted_name} {type_name}");
    let alter = format!("alter table {table} alter column {quoted_name}");
    let mut statements = Vec::new();
    match held {
        Held::Unknown => {
            return Err(format!(
                "column {name} was added, and rows hold values in it; whether changes bring these, or a default gave them that is gone or \
                 differs from row to row, cannot be told, as the table is in another file than when it was seen last, or was not seen \
                 yet. Add it here with what rows held in it when it came (where that is nothing: {add})"
            ));
        }
        Held::Value(value) => {
            statements.push(format!("{add} default {}", literal(value)));
            statements.push(match &column.default {
                Some(default) => format!("{alter} set default {default}"),
                None => format!("{alter} drop default"),
            });
        }
        // A default that came later fills no rows.
        Held::Nothing | Held::NoRows => {
            statements.push(add);
            statements.extend(column.default.iter().map(|default| format!("{alter} set default {default}")));
        }
    }
    // Rows that hold nothing get their values by changes that are still to come.
    if column.not_null && *held != Held::Nothing {
        statements.push(format!("{alter} set not null"));
    }
    Ok(statements)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logical::relation::RootColumn;
    use crate::logical::same_columns::{SameColumns, SourceNumbers};
    use ardent_pgoutput::{Column, ReplicaIdentity};

    fn column() -> SourceColumn {
        SourceColumn {
            type_name: "integer".into(),
            kind: ColumnType(23, -1),
            attnum: 3,
            not_null: false,
            default: None,
            missing: None,
            identity: String::new(),
            collation: None,
            filenode: 7,
            table: "t".into(),
        }
    }

    #[track_caller]
    fn check(column: &SourceColumn, held: &Held, expect: &[&str]) {
        assert_eq!(add("t", "c", column, held), Ok(expect.iter().map(|&statement| statement.to_owned()).collect()));
    }

    #[test]
    fn a_column_is_added_with_what_rows_hold() {
        check(&column(), &Held::Nothing, &["alter table t add column \"c\" integer"]);
        let filled = SourceColumn { not_null: true, default: Some("now()".into()), ..column() };
        check(
            &filled,
            &Held::Value("it's".into()),
            &[
                "alter table t add column \"c\" integer default 'it''s'",
                "alter table t alter column \"c\" set default now()",
                "alter table t alter column \"c\" set not null",
            ],
        );
        check(
            &column(),
            &Held::Value("5".into()),
            &["alter table t add column \"c\" integer default '5'", "alter table t alter column \"c\" drop default"],
        );
    }

    #[test]
    fn a_default_that_came_later_fills_no_rows() {
        let later = SourceColumn { not_null: true, default: Some("5".into()), ..column() };
        let added = "alter table t add column \"c\" integer";
        let default = "alter table t alter column \"c\" set default 5";
        check(&later, &Held::Nothing, &[added, default]);
        check(&later, &Held::NoRows, &[added, default, "alter table t alter column \"c\" set not null"]);
    }

    #[test]
    fn the_last_column_and_another_one_in_its_place_may_be_one() {
        let root_column = |attnum: i16, name: &str| RootColumn {
            table_oid: 50,
            attnum,
            name: name.into(),
            type_oid: 23,
            type_modifier: -1,
            type_name: "integer".into(),
            is_fixed: false,
            is_generated: false,
            equals: None,
            is_primary: false,
        };
        // One was dropped, and the other made, whether or not the first one had that name in between.
        let row = |attnum: i16, name: Option<&str>| {
            let [filenode, attnum] = ["7".to_owned(), attnum.to_string()].map(Some);
            [filenode, attnum, name.map(str::to_owned), Some("23".to_owned()), Some("-1".to_owned())]
        };
        let numbers = |rows: &[[Option<String>; 5]]| {
            SourceNumbers::of(rows.iter().map(|row| row.as_slice())).expect("a list of columns")
        };
        let here = vec![root_column(1, "id"), root_column(2, "i"), root_column(3, "m")];
        let copied = numbers(&[row(1, Some("id")), row(2, Some("i")), row(3, Some("m"))]);
        let check = |names: &[&str], now: &[[Option<String>; 5]], gone: &str| {
            let followed = Followed {
                oid: 1,
                schema: "s".into(),
                name: "t".into(),
                same: SameColumns::of_copy(&copied, &here),
                source: numbers(now),
                columns: here.clone(),
            };
            let column = |name: &&str| Column { is_key: false, name: (*name).into(), type_oid: 23, type_modifier: -1 };
            let relation = Relation {
                oid: 1,
                schema: "s".into(),
                name: "t".into(),
                identity: ReplicaIdentity::Default,
                columns: names.iter().map(column).collect(),
            };
            let difference = Difference { added: vec![2], dropped: vec![gone.into()], retyped: Vec::new() };
            dropped(&relation, &difference, &Altered::alone(followed))
        };
        let last_gone = [row(1, Some("id")), row(2, Some("i")), row(3, None), row(4, Some("j"))];
        let why = check(&["id", "i", "j"], &last_gone, "m").unwrap_err();
        assert!(why.contains("the same column under another name"), "{why}");
        let before_last = [row(1, Some("id")), row(2, None), row(3, Some("m")), row(4, Some("j"))];
        assert_eq!(check(&["id", "m", "j"], &before_last, "i"), Ok(()), "m was behind it");
    }

    #[test]
    fn what_rows_hold_must_be_known() {
        let random = SourceColumn { default: Some("random()".into()), ..column() };
        let why = add("t", "c", &random, &Held::Unknown).unwrap_err();
        assert!(why.contains("alter table t add column \"c\" integer"), "{why}");
        let identity = SourceColumn { identity: "a".into(), ..column() };
        assert!(add("t", "c", &identity, &Held::Nothing).is_err());
    }
}
