//! Names of tables, as rules write them.

use std::fmt;
use std::str::FromStr;

use ardent_types::sql::quoted;

/// A table of a server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// Database.
    pub database: String,
    /// Schema.
    pub schema: String,
    /// Table.
    pub table: String,
}

/// A text that names no table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not name a table as DATABASE.SCHEMA.TABLE, with double quotes around names that SQL would quote")]
pub struct TableNameError(String);

impl FromStr for TableName {
    type Err = TableNameError;

    /// Parts with double quotes are taken as they are, others too: unlike SQL, no letter is made small.
    fn from_str(text: &str) -> Result<Self, TableNameError> {
        let wrong = || TableNameError(text.to_owned());
        let mut parts = vec![String::new()];
        let (mut quoted, mut was_quoted) = (false, false);
        let mut letters = text.chars().peekable();
        while let Some(letter) = letters.next() {
            let part = parts.last_mut().expect("one is there from the start");
            match letter {
                '"' if quoted && letters.peek() == Some(&'"') => {
                    letters.next();
                    part.push('"');
                }
                '"' if quoted => (quoted, was_quoted) = (false, true),
                '"' if part.is_empty() && !was_quoted => quoted = true,
                '.' if !quoted => {
                    parts.push(String::new());
                    was_quoted = false;
                }
                '"' => return Err(wrong()),
                _ if was_quoted => return Err(wrong()),
                letter => part.push(letter),
            }
        }
        match <[String; 3]>::try_from(parts) {
            Ok([database, schema, table])
                if !quoted && ![&database, &schema, &table].iter().any(|part| part.is_empty()) =>
            {
                Ok(TableName { database, schema, table })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |name: &str| match name.contains(['.', '"']) {
            true => quoted(name),
            false => name.to_owned(),
        };
        write!(f, "{}.{}.{}", part(&self.database), part(&self.schema), part(&self.table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        let check = |text: &str, parts: Option<[&str; 3]>| {
            let read = text.parse::<TableName>();
            let found = read.as_ref().ok().map(|name| [&name.database[..], &name.schema[..], &name.table[..]]);
            assert_eq!(found, parts, "{text}");
            if let Ok(name) = read {
                assert_eq!(name.to_string().parse(), Ok(name));
            }
        };
        check("shop.public.users", Some(["shop", "public", "users"]));
        check("shop.Public.\"a.b\"", Some(["shop", "Public", "a.b"]));
        check("\"sh\"\"op\".public.users", Some(["sh\"op", "public", "users"]));
        check("shop.öffentlich.t u", Some(["shop", "öffentlich", "t u"]));
        for wrong in ["", "users", "public.users", "a.b.c.d", "a..c", "a.b.\"c", "a.b\"b.c", "\"a\"b.c.d", "a.b."] {
            check(wrong, None);
        }
    }
}
