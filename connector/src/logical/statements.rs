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
    /// GENERATED ALWAYS AS IDENTITY: nobody can update it.
    pub is_fixed: bool,
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

    /// `None`: nothing of the row changes.
    pub fn update(&self, old: Option<&Tuple>, new: &Tuple) -> Result<Option<Prepared>, NoStatement> {
        self.check(new)?;
        let mut values = Vec::new();
        let mut sets = Vec::new();
        for (column, value) in self.columns.iter().zip(&new.0) {
            let value = match value {
                Value::Text(text) => Some(text.clone()),
                Value::Null => None,
                Value::Unchanged => continue,
            };
            if !column.is_fixed {
                values.push(TextParam(value));
                sets.push(format!("{} = ${}", quoted(&column.name), values.len()));
            }
        }
        if sets.is_empty() {
            return Ok(None);
        }
        let which = self.condition(old.unwrap_or(new), &mut values)?;
        Ok(Some(Prepared {
            sql: format!("update only {} set {} where {which}", self.table(), sets.join(", ")),
            values,
        }))
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
