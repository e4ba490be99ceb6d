//! The SQL that brings a change to its table on the root.

use ardent_pgoutput::{Tuple, Value};
use ardent_types::sql::{qualified, quoted};
use bytes::{BufMut as _, Bytes, BytesMut};
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

/// A value as its type's output function writes it, for its input function to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TextParam(pub Option<Bytes>);

impl ToSql for TextParam {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match &self.0 {
            None => Ok(IsNull::Yes),
            Some(bytes) => {
                out.put_slice(bytes);
                Ok(IsNull::No)
            }
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// How rows of a table are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// By these columns.
    Columns(Vec<usize>),
    /// By all of them. The columns of an index, if there is one, find it faster.
    Whole {
        /// Columns of the primary key.
        indexed: Vec<usize>,
    },
    /// Not at all.
    None,
}

/// A table on the root, as changes are applied to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub schema: String,
    pub name: String,
    pub columns: Vec<ShapeColumn>,
    pub key: Key,
}

/// A column that changes carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShapeColumn {
    pub name: String,
    /// The operator that its index compares by, as SQL has it.
    pub equals: String,
    /// GENERATED ALWAYS AS IDENTITY: an update gives it the next number or nothing, so a row that has another one is made anew.
    pub is_fixed: bool,
}

/// Whether an update changes columns that no update can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fixed {
    Same,
    Other,
    /// Only the root's row can say.
    Unknown,
}

/// A statement, and the values to run it with. Statements that differ in their values alone have the same text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prepared {
    pub sql: String,
    pub values: Vec<TextParam>,
}

/// Why there is no statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoStatement {
    /// The change does not say which row it is of.
    NoKey,
    /// The change has not the columns that the table was said to have.
    Columns,
}

impl Shape {
    fn table(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    /// Schema and name, for messages.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    fn check(&self, row: &Tuple) -> Result<(), NoStatement> {
        if row.0.len() == self.columns.len() { Ok(()) } else { Err(NoStatement::Columns) }
    }

    pub fn insert(&self, row: &Tuple) -> Result<Prepared, NoStatement> {
        self.check(row)?;
        if self.columns.is_empty() {
            return Ok(Prepared { sql: format!("insert into {} default values", self.table()), values: Vec::new() });
        }
        let names: Vec<String> = self.columns.iter().map(|column| quoted(&column.name)).collect();
        let places: Vec<String> = (1..=names.len()).map(|number| format!("${number}")).collect();
        let values = row.0.iter().map(|value| match value {
            Value::Text(text) => Ok(TextParam(Some(text.clone()))),
            Value::Null => Ok(TextParam(None)),
            Value::Unchanged => Err(NoStatement::Columns),
        });
        let sql = format!(
            "insert into {} ({}) overriding system value values ({})",
            self.table(),
            names.join(", "),
            places.join(", ")
        );
        Ok(Prepared { sql, values: values.collect::<Result<_, _>>()? })
    }

    /// `None`: nothing of the row changes. The statement's count of rows is that of the rows that it found.
    pub fn update(&self, old: Option<&Tuple>, new: &Tuple) -> Result<Option<Prepared>, NoStatement> {
        self.check(new)?;
        let fixed = self.fixed(old, new)?;
        let mut values = Vec::new();
        let mut sets = Vec::new();
        // What is true of a row whose fixed columns are as they were.
        let mut same = Vec::new();
        // The row as an insert has it; `o` is the old one.
        let mut row = Vec::new();
        for (column, value) in self.columns.iter().zip(&new.0) {
            let name = quoted(&column.name);
            let value = match value {
                Value::Text(text) => Some(text.clone()),
                Value::Null => None,
                Value::Unchanged => {
                    row.push(format!("o.{name}"));
                    continue;
                }
            };
            if column.is_fixed && fixed == Fixed::Same {
                continue;
            }
            values.push(TextParam(value));
            let place = format!("${}", values.len());
            if column.is_fixed {
                same.push(format!("{name} is not distinct from {place}"));
            } else {
                sets.push(format!("{name} = {place}"));
            }
            row.push(place);
        }
        if fixed == Fixed::Same && sets.is_empty() {
            return Ok(None);
        }
        let which = self.condition(old.unwrap_or(new), &mut values)?;
        let (table, sets, same) = (self.table(), sets.join(", "), same.join(" and "));
        let insert = || {
            let names: Vec<String> = self.columns.iter().map(|column| quoted(&column.name)).collect();
            let (names, row) = (names.join(", "), row.join(", "));
            format!("insert into {table} ({names}) overriding system value select {row} from o")
        };
        let sql = match fixed {
            Fixed::Same => format!("update only {table} set {sets} where {which}"),
            Fixed::Other => format!("with o as (delete from only {table} where {which} returning *) {}", insert()),
            // One statement, so that those that follow need not wait for what it finds.
            Fixed::Unknown => {
                let kept = if sets.is_empty() {
                    format!("select 1 from only {table} where {which} and {same}")
                } else {
                    format!("update only {table} set {sets} where {which} and {same} returning 1")
                };
                format!(
                    "with u as ({kept}), o as (delete from only {table} where {which} and not ({same}) returning *), \
                     i as ({} returning 1) select 1 from u union all select 1 from i",
                    insert()
                )
            }
        };
        Ok(Some(Prepared { sql, values }))
    }

    fn fixed(&self, old: Option<&Tuple>, new: &Tuple) -> Result<Fixed, NoStatement> {
        if let Some(old) = old {
            self.check(old)?;
        }
        let mut fixed = Fixed::Same;
        for index in (0..self.columns.len()).filter(|&index| self.columns[index].is_fixed) {
            let is_told = match &self.key {
                Key::Columns(columns) => columns.contains(&index),
                Key::Whole { .. } => true,
                Key::None => false,
            };
            // What is of the key, and is not told, is as it was.
            match old {
                Some(old) if is_told && old.0[index] != new.0[index] => return Ok(Fixed::Other),
                _ if is_told || new.0[index] == Value::Unchanged => {}
                _ => fixed = Fixed::Unknown,
            }
        }
        Ok(fixed)
    }

    pub fn delete(&self, old: &Tuple) -> Result<Prepared, NoStatement> {
        let mut values = Vec::new();
        let which = self.condition(old, &mut values)?;
        Ok(Prepared { sql: format!("delete from only {} where {which}", self.table()), values })
    }

    /// What is true of exactly the row that `row` names.
    fn condition(&self, row: &Tuple, values: &mut Vec<TextParam>) -> Result<String, NoStatement> {
        self.check(row)?;
        let mut terms = Vec::new();
        match &self.key {
            Key::None => Err(NoStatement::NoKey),
            Key::Columns(columns) => {
                for &index in columns {
                    terms.push(self.natively(index, &row.0[index], values)?);
                }
                if terms.is_empty() {
                    return Err(NoStatement::NoKey);
                }
                Ok(terms.join(" and "))
            }
            Key::Whole { indexed } => {
                for &index in indexed {
                    terms.push(self.natively(index, &row.0[index], values)?);
                }
                // As it is written: types need not have an operator, and what is equal need not be the same.
                for (column, value) in self.columns.iter().zip(&row.0) {
                    let name = quoted(&column.name);
                    match value {
                        Value::Null => terms.push(format!("{name} is null")),
                        Value::Unchanged => return Err(NoStatement::Columns),
                        Value::Text(text) => {
                            values.push(TextParam(Some(text.clone())));
                            terms.push(format!("pg_catalog.format('%s', {name}) = ${}", values.len()));
                        }
                    }
                }
                let all = if terms.is_empty() { "true".to_owned() } else { terms.join(" and ") };
                let table = self.table();
                // Of rows that are the same one changes.
                Ok(format!("ctid = (select ctid from only {table} where {all} limit 1)"))
            }
        }
    }

    fn natively(&self, index: usize, value: &Value, values: &mut Vec<TextParam>) -> Result<String, NoStatement> {
        let column = &self.columns[index];
        let name = quoted(&column.name);
        match value {
            Value::Text(text) => {
                values.push(TextParam(Some(text.clone())));
                Ok(format!("{name} {} ${}", column.equals, values.len()))
            }
            // An index that tells rows apart has no nulls.
            Value::Null | Value::Unchanged => Err(NoStatement::NoKey),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(key: Key) -> Shape {
        let column = |name: &str, is_fixed| ShapeColumn { name: name.into(), equals: "=".into(), is_fixed };
        Shape { schema: "s".into(), name: "t\"x".into(), columns: vec![column("id", true), column("v", false)], key }
    }

    fn row(values: &[Option<&'static str>]) -> Tuple {
        Tuple(values.iter().map(|value| value.map_or(Value::Null, text)).collect())
    }

    fn text(value: &'static str) -> Value {
        Value::Text(Bytes::from_static(value.as_bytes()))
    }

    #[track_caller]
    fn check(made: Result<Prepared, NoStatement>, sql: &str, values: &[Option<&'static str>]) {
        let made = made.expect("a statement");
        assert_eq!(made.sql, sql);
        let given: Vec<Option<&[u8]>> = made.values.iter().map(|value| value.0.as_deref()).collect();
        assert_eq!(given, values.iter().map(|value| value.map(str::as_bytes)).collect::<Vec<_>>());
    }

    #[test]
    fn statements_name_rows_by_their_key() {
        let table = shape(Key::Columns(vec![0]));
        check(
            table.insert(&row(&[Some("1"), None])),
            "insert into \"s\".\"t\"\"x\" (\"id\", \"v\") overriding system value values ($1, $2)",
            &[Some("1"), None],
        );
        let updated = table.update(None, &row(&[Some("1"), Some("a")])).map(|made| made.expect("a change"));
        check(updated, "update only \"s\".\"t\"\"x\" set \"v\" = $1 where \"id\" = $2", &[Some("a"), Some("1")]);
        let unchanged = Tuple(vec![text("1"), Value::Unchanged]);
        assert_eq!(table.update(None, &unchanged), Ok(None), "nothing that can change has changed");
        check(
            table.delete(&row(&[Some("1"), None])),
            "delete from only \"s\".\"t\"\"x\" where \"id\" = $1",
            &[Some("1")],
        );
    }

    #[test]
    fn a_row_whose_identity_column_changes_is_made_anew() {
        let update =
            |key, old: Option<&Tuple>, new: &Tuple| shape(key).update(old, new).map(|made| made.expect("a change"));
        let insert = |from: usize, toasted: bool| {
            let second = if toasted { "o.\"v\"".to_owned() } else { format!("${}", from + 1) };
            format!(
                "insert into \"s\".\"t\"\"x\" (\"id\", \"v\") overriding system value select ${from}, {second} from o"
            )
        };
        let old = row(&[Some("1"), None]);
        let of_key = "with o as (delete from only \"s\".\"t\"\"x\" where \"id\" = ";
        check(
            update(Key::Columns(vec![0]), Some(&old), &row(&[Some("7"), Some("a")])),
            &format!("{of_key}$3 returning *) {}", insert(1, false)),
            &[Some("7"), Some("a"), Some("1")],
        );
        check(
            update(Key::Columns(vec![0]), Some(&old), &Tuple(vec![text("7"), Value::Unchanged])),
            &format!("{of_key}$2 returning *) {}", insert(1, true)),
            &[Some("7"), Some("1")],
        );
        // Beside the key its old value is not told: the row says.
        check(
            update(Key::Columns(vec![1]), None, &row(&[Some("7"), Some("k")])),
            &format!(
                "with u as (update only \"s\".\"t\"\"x\" set \"v\" = $2 where \"v\" = $3 and \"id\" is not distinct from $1 \
                 returning 1), o as (delete from only \"s\".\"t\"\"x\" where \"v\" = $3 and not (\"id\" is not distinct from $1) \
                 returning *), i as ({} returning 1) select 1 from u union all select 1 from i",
                insert(1, false)
            ),
            &[Some("7"), Some("k"), Some("k")],
        );
        // Of a whole row it is.
        let whole = |new: &Tuple| update(Key::Whole { indexed: vec![] }, Some(&old), new).expect("a statement").sql;
        assert!(whole(&row(&[Some("7"), None])).starts_with("with o as (delete from only"));
        assert!(whole(&row(&[Some("1"), Some("a")])).starts_with("update only"));
    }

    #[test]
    fn without_a_key_the_whole_row_names_one_of_those_that_are_the_same() {
        let table = shape(Key::Whole { indexed: vec![] });
        check(
            table.delete(&row(&[Some("1"), None])),
            "delete from only \"s\".\"t\"\"x\" where ctid = (select ctid from only \"s\".\"t\"\"x\" where \
             pg_catalog.format('%s', \"id\") = $1 and \"v\" is null limit 1)",
            &[Some("1")],
        );
    }

    #[test]
    fn what_names_no_row_is_refused() {
        assert_eq!(shape(Key::None).delete(&row(&[Some("1"), None])), Err(NoStatement::NoKey));
        assert_eq!(shape(Key::Columns(vec![0])).delete(&row(&[None, None])), Err(NoStatement::NoKey));
        assert_eq!(shape(Key::Columns(vec![0])).delete(&row(&[None])), Err(NoStatement::Columns));
        assert_eq!(
            shape(Key::Columns(vec![0])).insert(&Tuple(vec![text("1"), Value::Unchanged])),
            Err(NoStatement::Columns)
        );
    }
}
