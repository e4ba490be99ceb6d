//! The rules file: JSON, so that scripts write it too. See `docs/masking.md`.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::action::Action;
use crate::name::{TableName, TableNameError};

/// The version of the format that this program reads.
const VERSION: u32 = 1;
/// The name that stands for all columns of a table that have no rule of their own.
pub(crate) const REST: &str = "*";

/// What becomes of large objects, which belong to no column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LargeObjects {
    /// They stay, with nothing in them.
    #[default]
    Empty,
    /// They stay as they are.
    Keep,
}

/// Rules for all of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    pub(crate) columns: BTreeMap<TableName, BTreeMap<String, Action>>,
    pub(crate) types: BTreeMap<String, Action>,
    /// What becomes of large objects.
    pub large_objects: LargeObjects,
}

/// A text that is no rules.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// It is no JSON, or not of this form.
    #[error("the rules are not understood: {0}")]
    Json(#[from] serde_json::Error),
    /// Of another version.
    #[error("the rules are of version {0}, and this program knows version {VERSION}")]
    Version(u32),
    /// A table's name.
    #[error(transparent)]
    Table(#[from] TableNameError),
    /// A rule that no value can follow.
    #[error("the rule for {of}: {why}")]
    Rule {
        /// Column or type.
        of: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two names for one type.
    #[error("there are two rules for the type {0}")]
    SameType(String),
    /// A type's name with a length, a precision or the like.
    #[error("the rule for type {given} has a length or precision, and rules are for all of a type: name it {take}")]
    Modifier {
        /// The name.
        given: String,
        /// The same without.
        take: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    #[serde(default, deserialize_with = "without_repetition")]
    columns: BTreeMap<String, Columns>,
    #[serde(default, deserialize_with = "without_repetition")]
    types: BTreeMap<String, Action>,
    #[serde(default)]
    large_objects: LargeObjects,
}

#[derive(Deserialize)]
struct Columns(#[serde(deserialize_with = "without_repetition")] BTreeMap<String, Action>);

/// A member that comes twice is an error: the one that JSON would let win may be the one that keeps.
fn without_repetition<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, T>, D::Error> {
    struct Members<T>(std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Members<T> {
        type Value = BTreeMap<String, T>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
            let mut found = BTreeMap::new();
            while let Some((name, value)) = members.next_entry::<String, T>()? {
                if found.contains_key(&name) {
                    return Err(A::Error::custom(format_args!("{name:?} comes twice")));
                }
                found.insert(name, value);
            }
            Ok(found)
        }
    }
    deserializer.deserialize_map(Members(std::marker::PhantomData))
}

impl Rules {
    /// Reads a rules file.
    pub fn parse(text: &str) -> Result<Rules, RulesError> {
        let file: File = serde_json::from_str(text)?;
        if file.version != VERSION {
            return Err(RulesError::Version(file.version));
        }
        let mut columns = BTreeMap::new();
        for (table, Columns(actions)) in file.columns {
            for (column, action) in &actions {
                check(action, || format!("{table}, column {column}"))?;
            }
            let name: TableName = table.parse()?;
            if columns.insert(name, actions).is_some() {
                return Err(RulesError::Rule { of: table, why: "the table is named twice" });
            }
        }
        let mut types = BTreeMap::new();
        for (name, action) in file.types {
            check(&action, || format!("type {name}"))?;
            if let Some(bare) = without_modifier(&name) {
                return Err(RulesError::Modifier { given: name, take: type_name(&bare).to_owned() });
            }
            if types.insert(type_name(&name).to_owned(), action).is_some() {
                return Err(RulesError::SameType(type_name(&name).to_owned()));
            }
        }
        Ok(Rules { columns, types, large_objects: file.large_objects })
    }
}

fn check(action: &Action, of: impl Fn() -> String) -> Result<(), RulesError> {
    let why = match action {
        Action::Number(from, to) | Action::PermuteIn(from, to) if from > to => {
            "its first number is larger than its second"
        }
        Action::Number(from, to) | Action::PermuteIn(from, to)
            if to.checked_sub(*from).is_none_or(|width| width == i64::MAX) =>
        {
            "there are too many numbers between its two"
        }
        Action::ShiftDays(days) if !(1..=36_500).contains(days) => "from 1 to 36500 days can be shifted by",
        Action::Fixed(value) if value.contains('\0') => "no value has a zero byte",
        _ => return Ok(()),
    };
    Err(RulesError::Rule { of: of(), why })
}

/// A type's name without its length, precision or fields, as in `character(5)`; `None`: it has none.
fn without_modifier(name: &str) -> Option<String> {
    if name.starts_with("interval ") {
        let array = if name.ends_with("[]") { "[]" } else { "" };
        return Some(format!("interval{array}"));
    }
    let (mut bare, mut is_quoted, mut is_modifier) = (String::new(), false, false);
    for c in name.chars() {
        match c {
            '(' if !is_quoted => is_modifier = true,
            ')' if is_modifier => is_modifier = false,
            _ if is_modifier => {}
            c => {
                is_quoted ^= c == '"';
                bare.push(c);
            }
        }
    }
    (bare != name).then(|| bare.trim_end().to_owned())
}

/// Postgres's own name of a type, for the short ones that people write.
fn type_name(name: &str) -> &str {
    match name {
        "int" | "int4" => "integer",
        "int2" => "smallint",
        "int8" => "bigint",
        "bool" => "boolean",
        "float4" => "real",
        "float8" => "double precision",
        "decimal" => "numeric",
        "varchar" => "character varying",
        "char" | "bpchar" => "character",
        "timestamp" => "timestamp without time zone",
        "timestamptz" => "timestamp with time zone",
        "time" => "time without time zone",
        "timetz" => "time with time zone",
        "varbit" => "bit varying",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str, words: &[&str]) {
        let error = Rules::parse(text).expect_err(text).to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }

    #[test]
    fn rules_are_read() {
        let rules = Rules::parse(
            r#"{ "version": 1, "large_objects": "keep", "types": { "int": "keep", "timestamptz": { "shift_days": 30 } },
                 "columns": { "shop.public.users": { "email": "email", "age": { "number": [18, 90] }, "*": "keep",
                     "note": { "fixed": "none" } } } }"#,
        )
        .expect("good rules");
        assert_eq!(rules.large_objects, LargeObjects::Keep);
        assert_eq!(rules.types["integer"], Action::Keep);
        assert_eq!(rules.types["timestamp with time zone"], Action::ShiftDays(30));
        let users = &rules.columns[&"shop.public.users".parse().expect("a name")];
        assert_eq!(users["age"], Action::Number(18, 90));
        assert_eq!(users["note"], Action::Fixed("none".to_owned()));
        assert_eq!((&users["email"], &users[REST]), (&Action::Email, &Action::Keep));
    }

    #[test]
    fn what_is_no_rules_is_refused_by_name() {
        refused("", &["not understood"]);
        refused("{}", &["version"]);
        refused(r#"{ "version": 2 }"#, &["version 2"]);
        refused(r#"{ "version": 1, "tables": {} }"#, &["tables"]);
        refused(
            r#"{ "version": 1, "columns": { "users": { "a": "keep" } } }"#,
            &["\"users\"", "DATABASE.SCHEMA.TABLE"],
        );
        refused(r#"{ "version": 1, "types": { "text": "scramble" } }"#, &["scramble"]);
        refused(r#"{ "version": 1, "types": { "int": "keep", "integer": "hash" } }"#, &["integer"]);
        refused(r#"{ "version": 1, "types": { "text": "hash", "text": "keep" } }"#, &["text", "twice"]);
        refused(r#"{ "version": 1, "columns": { "a.b.c": { "d": "hash", "d": "keep" } } }"#, &["\"d\"", "twice"]);
        refused(r#"{ "version": 1, "columns": { "a.b.c": {}, "a.b.\"c\"": {} } }"#, &["twice"]);
        refused(r#"{ "version": 1, "types": { "integer": { "number": [5, 1] } } }"#, &["type integer", "larger"]);
        refused(r#"{ "version": 1, "types": { "date": { "shift_days": 0 } } }"#, &["type date", "36500"]);
    }

    #[test]
    fn types_are_named_without_length_and_precision() {
        for (given, take) in [
            ("character(5)", "character"),
            ("varchar(20)", "character varying"),
            ("numeric (10,2)", "numeric"),
            ("character varying(9)[]", "character varying[]"),
            ("timestamp(3) with time zone", "timestamp with time zone"),
            ("interval day to second(3)", "interval"),
            (r#"public."a(b"(7)"#, r#"public."a(b""#),
        ] {
            let text = serde_json::json!({ "version": 1, "types": { given: "keep" } }).to_string();
            refused(&text, &[&format!("type {given} "), &format!("name it {take}")]);
        }
        for plain in ["character", "interval", "timestamp with time zone", "integer[]", r#"public."a(b)""#] {
            assert_eq!(without_modifier(plain), None, "{plain}");
        }
    }
}
