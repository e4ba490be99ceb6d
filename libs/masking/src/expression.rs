//! What SQL makes of a value. Nothing is made for it in the database: what is used is built in.

use ardent_types::sql::{literal, quoted};

use crate::action::Action;
use crate::catalog::Column;
use crate::permutation::{Range, permuted};

/// The alias of the row that is changed, and of the same row as it was.
pub(crate) const NEW: &str = "n";
pub(crate) const OLD: &str = "o";

/// The secret, `bytea`: the only parameter of the statements.
const KEY: &str = "$1";
/// Hexadecimal digits of a hash that a text gets: 128 bits.
const HASH_DIGITS: u32 = 32;
/// The same of an address's first part: 64 bits.
const EMAIL_DIGITS: u32 = 16;
/// Digits of a `numeric` that a `bigint` holds whatever they are.
const NUMERIC_DIGITS_MAX: u32 = 18;
const WHOLE_NUMBERS: &str = "integer types and numeric(1,0) to numeric(18,0)";
const FIRST_NAMES: [&str; 24] = [
    "Ada", "Alan", "Amara", "Anita", "Boris", "Carla", "Chen", "Dana", "Elif", "Emil", "Fatima", "Grace", "Hugo",
    "Ines", "Jonas", "Kofi", "Lena", "Mateo", "Nadia", "Omar", "Priya", "Sofia", "Tariq", "Yuki",
];
const LAST_NAMES: [&str; 24] = [
    "Abbott", "Almeida", "Baker", "Bauer", "Castro", "Dubois", "Evans", "Fischer", "Garcia", "Hansen", "Ito", "Jensen",
    "Khan", "Kowalski", "Larsen", "Meyer", "Novak", "Okafor", "Patel", "Rossi", "Silva", "Tanaka", "Weber", "Young",
];

/// Kinds of types that actions differ by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    /// Upper and lower case are equal.
    CaseFree,
    Bytes,
    Uuid,
    Integer {
        max: i64,
        min: i64,
    },
    Number,
    Date,
    Timestamp,
    Other,
}

fn kind(base_type: &str) -> Kind {
    match base_type {
        "text" | "character varying" | "character" => Kind::Text,
        "bytea" => Kind::Bytes,
        "uuid" => Kind::Uuid,
        "smallint" => Kind::Integer { min: i16::MIN.into(), max: i16::MAX.into() },
        "integer" => Kind::Integer { min: i32::MIN.into(), max: i32::MAX.into() },
        "bigint" => Kind::Integer { min: i64::MIN, max: i64::MAX },
        "numeric" | "real" | "double precision" => Kind::Number,
        "date" => Kind::Date,
        "timestamp without time zone" | "timestamp with time zone" => Kind::Timestamp,
        other if other.rsplit('.').next() == Some("citext") => Kind::CaseFree,
        _ => Kind::Other,
    }
}

/// The new value of `column`, or why `action` cannot make one. `Keep` has none.
pub(crate) fn new_value(action: &Action, column: &Column) -> Result<Option<String>, String> {
    let kind = kind(&column.base_type);
    let value = format!("{OLD}.{}", quoted(&column.name));
    let as_text = if kind == Kind::CaseFree { format!("lower({value}::text)") } else { format!("{value}::text") };
    let bytes = if kind == Kind::Bytes { value.clone() } else { format!("convert_to({as_text}, 'UTF8')") };
    let hash = format!("sha256({KEY} || sha256({KEY} || {bytes}))");
    let digits = |count: u32| format!("left(encode({hash}, 'hex'), {count})");
    // From 0 on, 60 bits.
    let number = format!("('x' || {})::bit(60)::bigint", digits(15));
    let is_text = matches!(kind, Kind::Text | Kind::CaseFree);
    let made = match action {
        Action::Keep => return Ok(None),
        Action::Null => "null".to_owned(),
        Action::Fixed(text) => format!("case when {value} is not null then {} end", literal(text)),
        Action::Hash if is_text => digits(HASH_DIGITS),
        Action::Hash if kind == Kind::Uuid => digits(HASH_DIGITS),
        Action::Hash if kind == Kind::Bytes => hash,
        Action::Hash => match kind {
            Kind::Integer { max, .. } => format!("({number} % {max})"),
            _ => return Err(unfit(action, column, "text, uuid, bytea and integer types")),
        },
        Action::Email if is_text => format!("('user-' || {} || '@example.invalid')", digits(EMAIL_DIGITS)),
        Action::Email => return Err(unfit(action, column, "text types")),
        Action::Name if is_text => {
            let (first, last) = (FIRST_NAMES.len(), LAST_NAMES.len());
            let list = |names: &[&str]| names.iter().map(|name| literal(name)).collect::<Vec<_>>().join(",");
            format!(
                "((array[{}])[1 + {number} % {first}] || ' ' || (array[{}])[1 + {number} / {first} % {last}])",
                list(&FIRST_NAMES),
                list(&LAST_NAMES),
            )
        }
        Action::Name => return Err(unfit(action, column, "text types")),
        Action::Number(from, to) => {
            let fits = match kind {
                Kind::Integer { min, max } => (min..=max).contains(from) && (min..=max).contains(to),
                Kind::Number => true,
                _ => return Err(unfit(action, column, "number types")),
            };
            if !fits {
                return Err(format!("{} has no room for {}", column.base_type, action.text()));
            }
            // As a text: the least number is none with a minus sign before it.
            format!("('{from}'::bigint + {number} % {})", to - from + 1)
        }
        Action::Permute => {
            let (min, max) = whole_numbers(column).ok_or_else(|| unfit(action, column, WHOLE_NUMBERS))?;
            permuted(&value, KEY, &Range::of_type(min, max))
        }
        Action::PermuteIn(from, to) => {
            let (min, max) = whole_numbers(column).ok_or_else(|| unfit(action, column, WHOLE_NUMBERS))?;
            if *from < min || *to > max {
                return Err(format!("{} has no room for {}", column.sql_type, action.text()));
            }
            permuted(&value, KEY, &[Range { low: *from, high: *to }])
        }
        Action::ShiftDays(days) => {
            let shift = format!("(1 + {number} % {days}) * (1 - 2 * ({number} / {days} % 2))");
            match kind {
                Kind::Date => format!("({value} + ({shift})::integer)"),
                Kind::Timestamp => format!("({value} + ({shift}) * interval '1 day')"),
                _ => return Err(unfit(action, column, "dates and timestamps")),
            }
        }
    };
    Ok(Some(format!("{made}::{}", column.sql_type)))
}

/// The least and the greatest number that `column` takes, if it takes nothing but whole numbers that a `bigint` holds.
fn whole_numbers(column: &Column) -> Option<(i64, i64)> {
    match kind(&column.base_type) {
        Kind::Integer { min, max } => Some((min, max)),
        Kind::Number => {
            let digits: u32 = column.sql_type.strip_prefix("numeric(")?.strip_suffix(",0)")?.parse().ok()?;
            let max = (digits <= NUMERIC_DIGITS_MAX).then(|| 10i64.pow(digits) - 1)?;
            Some((-max, max))
        }
        _ => None,
    }
}

/// Which rows `o` have a value of `column` that `action` makes nothing of; `None` if it takes each.
pub(crate) fn out_of_range(action: &Action, column: &Column) -> Option<String> {
    let Action::PermuteIn(from, to) = action else { return None };
    Some(format!("{OLD}.{} not between '{from}'::bigint and '{to}'::bigint", quoted(&column.name)))
}

fn unfit(action: &Action, column: &Column, of: &str) -> String {
    format!("{} is for {of}, and its type is {}", action.text(), column.sql_type)
}
