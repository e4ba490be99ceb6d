//! Rows.

use bytes::Bytes;

use crate::error::DecodeError;
use crate::fields::Fields;

/// One column's value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// NULL.
    Null,
    /// Stored out of line and not changed by this update: it was not sent.
    Unchanged,
    /// What the type's output function makes of it, in the connection's encoding.
    Text(Bytes),
}

/// A row's values, one for each column of its relation message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuple(pub Vec<Value>);

impl Tuple {
    pub(crate) fn read(fields: &mut Fields) -> Result<Tuple, DecodeError> {
        let count = usize::from(fields.u16("a row's number of columns")?);
        let mut values = Vec::with_capacity(fields.at_most(count, 1));
        for _ in 0..count {
            values.push(match fields.u8("a value's kind")? {
                b'n' => Value::Null,
                b'u' => Value::Unchanged,
                b't' => {
                    let length = fields.u32("a value's length")? as usize;
                    Value::Text(fields.bytes(length, "a value")?)
                }
                _ => return Err(fields.wrong("a value's kind: null, unchanged or text")),
            });
        }
        Ok(Tuple(values))
    }
}
