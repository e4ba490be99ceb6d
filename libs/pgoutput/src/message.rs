//! Messages.

use ardent_types::Lsn;
use bytes::Bytes;

use crate::error::DecodeError;
use crate::fields::Fields;
use crate::tuple::Tuple;

/// One message. Those between [`Message::Begin`] and [`Message::Commit`] belong to that transaction; transactions come whole, in the
/// order of their commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A transaction begins.
    Begin(Begin),
    /// It ends.
    Commit(Commit),
    /// It came from elsewhere to the server that sends it.
    Origin {
        /// Where it was committed there.
        lsn: Lsn,
        /// The origin's name.
        name: String,
    },
    /// How a relation looks. Sent before the first change of it, and again before the first change after it was altered.
    Relation(Relation),
    /// The name of a type that is not built in.
    Type(TypeName),
    /// A row was inserted.
    Insert(Change),
    /// A row was updated.
    Update(Update),
    /// A row was deleted; the row holds the replica identity's columns, or all if that is full.
    Delete(Change),
    /// Relations were emptied.
    Truncate(Truncate),
    /// What `pg_logical_emit_message` wrote; sent only where it was asked for.
    Logical {
        /// Part of the transaction.
        transactional: bool,
        /// Where it was written.
        lsn: Lsn,
        /// Its kind.
        prefix: String,
        /// Its content.
        content: Bytes,
    },
}

/// The start of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Where its commit record starts.
    pub final_lsn: Lsn,
    /// When it was committed, in microseconds since 2000-01-01.
    pub committed_us: i64,
    /// Its number on the source.
    pub xid: u32,
}

/// The end of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Where its commit record starts.
    pub commit_lsn: Lsn,
    /// The first byte behind the commit record: decoding goes on here.
    pub end_lsn: Lsn,
    /// When it was committed, in microseconds since 2000-01-01.
    pub committed_us: i64,
}

/// Which columns tell a table's rows apart in updates and deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key's, if there is one.
    Default,
    /// A unique index's.
    Index,
    /// All.
    Full,
    /// None.
    Nothing,
}

/// How a relation looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Its OID on the source.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// What tells its rows apart.
    pub identity: ReplicaIdentity,
    /// The columns that are sent, in order.
    pub columns: Vec<Column>,
}

/// A column of a relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Part of the replica identity.
    pub is_key: bool,
    /// Its name.
    pub name: String,
    /// The OID of its type.
    pub type_oid: u32,
    /// The type's modifier; -1: none.
    pub type_modifier: i32,
}

/// A type that is not built in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeName {
    /// Its OID on the source.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
}

/// A row of a relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The relation's OID.
    pub relation: u32,
    /// The row.
    pub row: Tuple,
    /// The row is whole; else only the columns of the key hold values.
    pub is_whole: bool,
}

/// An update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The relation's OID.
    pub relation: u32,
    /// The row as it was, where the key changed or the identity is full.
    pub old: Option<Tuple>,
    /// The old row is whole; else only the columns of the key hold values.
    pub old_is_whole: bool,
    /// The row as it is.
    pub new: Tuple,
}

/// Relations that are emptied together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncate {
    /// `CASCADE` was given; those that it reached are named as well.
    pub cascade: bool,
    /// `RESTART IDENTITY` was given.
    pub restart_identity: bool,
    /// Their OIDs.
    pub relations: Vec<u32>,
}

impl Message {
    /// Decodes the payload of one replication message.
    pub fn decode(payload: Bytes) -> Result<Message, DecodeError> {
        let mut fields = Fields::new(payload);
        let message = match fields.u8("a message's kind")? {
            b'B' => Message::Begin(begin(&mut fields)?),
            b'C' => Message::Commit(commit(&mut fields)?),
            b'O' => Message::Origin { lsn: fields.lsn("an origin's LSN")?, name: fields.text("an origin's name")? },
            b'R' => Message::Relation(relation(&mut fields)?),
            b'Y' => Message::Type(TypeName {
                oid: fields.u32("a type's OID")?,
                schema: schema(&mut fields)?,
                name: fields.text("a type's name")?,
            }),
            b'I' => Message::Insert(insert(&mut fields)?),
            b'U' => Message::Update(update(&mut fields)?),
            b'D' => Message::Delete(delete(&mut fields)?),
            b'T' => Message::Truncate(truncate(&mut fields)?),
            b'M' => logical(&mut fields)?,
            _ => return Err(DecodeError { offset: 0, expected: "a kind of message of protocol version 1" }),
        };
        fields.end()?;
        Ok(message)
    }
}

fn begin(fields: &mut Fields) -> Result<Begin, DecodeError> {
    Ok(Begin {
        final_lsn: fields.lsn("a transaction's LSN")?,
        committed_us: fields.i64("a transaction's time")?,
        xid: fields.u32("a transaction's number")?,
    })
}

fn commit(fields: &mut Fields) -> Result<Commit, DecodeError> {
    // Flags: none are in use.
    if fields.u8("a commit's flags")? != 0 {
        return Err(fields.wrong("no flags of a commit"));
    }
    Ok(Commit {
        commit_lsn: fields.lsn("a commit's LSN")?,
        end_lsn: fields.lsn("a commit's end")?,
        committed_us: fields.i64("a commit's time")?,
    })
}

fn relation(fields: &mut Fields) -> Result<Relation, DecodeError> {
    let oid = fields.u32("a relation's OID")?;
    let (schema, name) = (schema(fields)?, fields.text("a relation's name")?);
    let identity = match fields.u8("a replica identity")? {
        b'd' => ReplicaIdentity::Default,
        b'i' => ReplicaIdentity::Index,
        b'f' => ReplicaIdentity::Full,
        b'n' => ReplicaIdentity::Nothing,
        _ => return Err(fields.wrong("a replica identity")),
    };
    let count = usize::from(fields.u16("a relation's number of columns")?);
    let mut columns = Vec::with_capacity(fields.at_most(count, 10));
    for _ in 0..count {
        columns.push(Column {
            is_key: fields.u8("a column's flags")? & 1 != 0,
            name: fields.text("a column's name")?,
            type_oid: fields.u32("a column's type")?,
            type_modifier: fields.i32("a column's type modifier")?,
        });
    }
    Ok(Relation { oid, schema, name, identity, columns })
}

/// The catalog's schema is sent as nothing.
fn schema(fields: &mut Fields) -> Result<String, DecodeError> {
    let name = fields.text("a schema's name")?;
    Ok(if name.is_empty() { "pg_catalog".to_owned() } else { name })
}

fn insert(fields: &mut Fields) -> Result<Change, DecodeError> {
    let relation = fields.u32("a relation's OID")?;
    match fields.u8("a new row")? {
        b'N' => Ok(Change { relation, row: Tuple::read(fields)?, is_whole: true }),
        _ => Err(fields.wrong("a new row")),
    }
}

fn update(fields: &mut Fields) -> Result<Update, DecodeError> {
    let relation = fields.u32("a relation's OID")?;
    let (mut old, mut old_is_whole) = (None, false);
    let mut kind = fields.u8("a row's kind")?;
    if matches!(kind, b'K' | b'O') {
        old_is_whole = kind == b'O';
        old = Some(Tuple::read(fields)?);
        kind = fields.u8("a new row")?;
    }
    if kind != b'N' {
        return Err(fields.wrong("a new row"));
    }
    Ok(Update { relation, old, old_is_whole, new: Tuple::read(fields)? })
}

fn delete(fields: &mut Fields) -> Result<Change, DecodeError> {
    let relation = fields.u32("a relation's OID")?;
    let kind = fields.u8("an old row")?;
    if !matches!(kind, b'K' | b'O') {
        return Err(fields.wrong("an old row"));
    }
    Ok(Change { relation, row: Tuple::read(fields)?, is_whole: kind == b'O' })
}

fn truncate(fields: &mut Fields) -> Result<Truncate, DecodeError> {
    let count = fields.u32("a number of relations")? as usize;
    let flags = fields.u8("the flags of a truncation")?;
    let mut relations = Vec::with_capacity(fields.at_most(count, 4));
    for _ in 0..count {
        relations.push(fields.u32("a relation's OID")?);
    }
    Ok(Truncate { cascade: flags & 1 != 0, restart_identity: flags & 2 != 0, relations })
}

fn logical(fields: &mut Fields) -> Result<Message, DecodeError> {
    let flags = fields.u8("the flags of a logical message")?;
    let lsn = fields.lsn("a logical message's LSN")?;
    let prefix = fields.text("a logical message's prefix")?;
    let length = fields.u32("a logical message's length")? as usize;
    let content = fields.bytes(length, "a logical message's content")?;
    Ok(Message::Logical { transactional: flags & 1 != 0, lsn, prefix, content })
}
