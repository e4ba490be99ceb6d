//! From a base and the values after it to the content of a key.

use ardent_pg_format::PgMajor;
use ardent_types::{BLCKSZ, ForkNumber, Key, Lsn};
use bytes::Bytes;

use crate::delta::{Delta, DeltaError};
use crate::fault::RedoError;
use crate::redo_block;
use crate::stored::StoredRecord;
use crate::value::{Value, ValueDecodeError};

/// Why a key's content could not be rebuilt. No content is served then.
#[derive(Debug, thiserror::Error)]
pub enum ReconstructError {
    /// There is no value, or the oldest one needs an earlier one that isn't there.
    #[error("{key} has no base at or below {lsn}: an earlier version is missing")]
    NoBase {
        /// The key.
        key: Key,
        /// LSN of the first value that needed a base; zero if there was no value at all.
        lsn: Lsn,
    },
    /// A value can't belong to this kind of key, or a page image has another length than a page.
    #[error("{key} has a value of the wrong kind at {lsn}")]
    WrongKind {
        /// The key.
        key: Key,
        /// Where.
        lsn: Lsn,
    },
    /// A record without redo changed the block, and nothing after it makes the block whole again.
    #[error("{key} is unreadable since {lsn}: {reason}")]
    Unreadable {
        /// The key.
        key: Key,
        /// Since when.
        lsn: Lsn,
        /// Names the resource manager and record.
        reason: String,
    },
    /// Stored bytes are damaged.
    #[error("{key} at {lsn}")]
    Decode {
        /// The key.
        key: Key,
        /// Where.
        lsn: Lsn,
        /// What is wrong.
        source: ValueDecodeError,
    },
    /// Redo failed.
    #[error("redo of {key} failed")]
    Redo {
        /// The key.
        key: Key,
        /// Why.
        #[source]
        source: RedoError,
    },
    /// A delta is for another page.
    #[error("{key} at {lsn}")]
    Delta {
        /// The key.
        key: Key,
        /// Where.
        lsn: Lsn,
        /// What is wrong.
        source: DeltaError,
    },
}

/// Where the rebuilding of a page stands.
enum State {
    /// Nothing yet.
    Nothing,
    /// An image, untouched so far; most reads end here and copy nothing.
    Image(Bytes),
    /// A page being changed; the buffer lives for the whole call.
    Page,
    /// Not to be read since this LSN.
    Unreadable(Lsn, Bytes),
}

/// The content of `key` after `values`, which come oldest to newest on top of `base` (the content at some earlier point,
/// for example from a page cache; zero page where the relation has the block but WAL never wrote it). An empty result
/// means: absent. Blocks of FSM and VM forks and SLRU pages start from a zero page when there is no base (checklist 36).
/// One page buffer is allocated, and only if a value changes the page.
pub fn reconstruct<I>(major: PgMajor, key: &Key, base: Option<Bytes>, values: I) -> Result<Bytes, ReconstructError>
where
    I: IntoIterator<Item = (Lsn, Value)>,
{
    let key = *key;
    let mut state = base.map_or(State::Nothing, State::Image);
    let mut buffer: Option<Box<[u8; BLCKSZ]>> = None;
    for (lsn, value) in values {
        if value.is_base() {
            state = State::Nothing;
        } else if matches!(state, State::Unreadable(..)) {
            continue;
        }
        match value {
            Value::Image(bytes) => state = State::Image(bytes),
            Value::Unreadable(reason) => state = State::Unreadable(lsn, reason),
            Value::Record { will_init, record } => {
                let Key::RelBlock(rel, blkno) = key else { return Err(ReconstructError::WrongKind { key, lsn }) };
                let page = page_to_change(&key, lsn, &mut state, &mut buffer, will_init)?;
                let stored = StoredRecord::decode(&record, lsn, rel, blkno)
                    .map_err(|source| ReconstructError::Decode { key, lsn, source })?;
                redo_block(major, &stored.view, stored.block_id, page)
                    .map_err(|source| ReconstructError::Redo { key, source })?;
            }
            Value::Delta(bytes) => {
                let delta = Delta::decode(&bytes).map_err(|source| ReconstructError::Decode { key, lsn, source })?;
                let from_nothing = delta == Delta::ZeroPage;
                let page = page_to_change(&key, lsn, &mut state, &mut buffer, from_nothing)?;
                delta.apply(&key, page).map_err(|source| ReconstructError::Delta { key, lsn, source })?;
            }
        }
    }
    match state {
        State::Image(bytes) => Ok(bytes),
        State::Page => Ok(Bytes::from_owner(PageOwner(buffer.expect("a page state has a buffer")))),
        State::Nothing => Err(ReconstructError::NoBase { key, lsn: Lsn::new(0) }),
        State::Unreadable(lsn, reason) => {
            Err(ReconstructError::Unreadable { key, lsn, reason: String::from_utf8_lossy(&reason).into_owned() })
        }
    }
}

/// Hands the page buffer over without a copy.
struct PageOwner(Box<[u8; BLCKSZ]>);

impl AsRef<[u8]> for PageOwner {
    fn as_ref(&self) -> &[u8] {
        &self.0[..]
    }
}

/// The buffer with the page's content so far in it.
fn page_to_change<'b>(
    key: &Key,
    lsn: Lsn,
    state: &mut State,
    buffer: &'b mut Option<Box<[u8; BLCKSZ]>>,
    from_nothing: bool,
) -> Result<&'b mut [u8; BLCKSZ], ReconstructError> {
    let page = buffer.get_or_insert_with(|| Box::new([0; BLCKSZ]));
    match std::mem::replace(state, State::Page) {
        State::Page => {}
        _ if from_nothing => page.fill(0),
        // An empty image is a page that was truncated away: what follows starts from zeros where a missing base does.
        State::Image(bytes) if !bytes.is_empty() => {
            let image: &[u8; BLCKSZ] =
                bytes[..].try_into().map_err(|_| ReconstructError::WrongKind { key: *key, lsn })?;
            page.copy_from_slice(image);
        }
        _ if starts_from_zeros(key) => page.fill(0),
        _ => return Err(ReconstructError::NoBase { key: *key, lsn }),
    }
    Ok(page)
}

fn starts_from_zeros(key: &Key) -> bool {
    match key {
        Key::SlruPage(..) => true,
        Key::RelBlock(rel, _) => matches!(rel.fork, ForkNumber::Fsm | ForkNumber::Vm),
        _ => false,
    }
}
