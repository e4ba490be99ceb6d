//! Reads rows of both sides: of chosen blocks, or of whole tables.

use std::collections::BTreeMap;

use ardent_api::page_service::BlockRange;
use ardent_types::sql::literal;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio_postgres::SimpleQueryMessage;

use crate::change_set::RowChange;
use crate::compare::PAIRING_BYTES_MAX;
use crate::error::DiffError;
use crate::pairing::{Pairing, RowValues, bytes_of};
use crate::session::Session;
use crate::spool::Spool;

/// Which rows to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All.
    Whole,
    /// Those in these blocks.
    Blocks(Vec<BlockRange>),
}

/// Most block ranges in one statement: the text stays small and the planner quick.
const RANGES_PER_STATEMENT: usize = 256;
/// Most blocks in one statement. Rows that are equal on both sides lie in the same blocks, and are held no longer than until both
/// sides' statements are through.
const BLOCKS_PER_STATEMENT: u32 = 2048;
/// Longest table, in blocks, that is read whole to count rows that no key tells apart.
const COUNTED_BLOCKS_MAX: u64 = 2048;

/// A table on one side.
#[derive(Debug)]
pub(crate) struct Side<'a> {
    pub session: &'a Session,
    /// Quoted.
    pub table: String,
    /// What is read of each row.
    pub expressions: Vec<String>,
    /// Which rows alone are read.
    pub condition: Option<&'static str>,
}

#[derive(Clone, Copy)]
enum From {
    Base,
    Head,
}

/// Gives the rows of both sides to `pairing`, as they come.
pub(crate) async fn pair(
    base: Option<&Side<'_>>,
    head: Option<&Side<'_>>,
    extent: &Extent,
    pairing: &mut Pairing,
) -> Result<(), DiffError> {
    let parts = match extent {
        Extent::Whole => vec![None],
        Extent::Blocks(ranges) => parts(ranges).into_iter().map(Some).collect(),
    };
    for part in &parts {
        let part = part.as_deref();
        let (old, new) = tokio::try_join!(open(base, From::Base, part), open(head, From::Head, part))?;
        let mut rows = stream::select(old, new);
        while let Some(row) = rows.next().await {
            match row? {
                (From::Base, row) => pairing.add_base(row)?,
                (From::Head, row) => pairing.add_head(row)?,
            }
        }
    }
    Ok(())
}

/// How many rows like each of `rows` there are on a side; none if its table is too long, or `rows` take more than [`PAIRING_BYTES_MAX`].
pub(crate) async fn copies(side: &Side<'_>, rows: &Spool<RowChange>) -> Result<Spool<i64>, DiffError> {
    let size = "pg_catalog.pg_relation_size";
    let block = "pg_catalog.current_setting('block_size')::bigint";
    let sql = format!("select ({size}({}::regclass) / {block})::text", literal(&side.table));
    let answers = side.session.texts(&[sql]).await?;
    let blocks: Option<u64> = answers.first().and_then(|answer| answer.first()?.parse().ok());
    let blocks = blocks.ok_or_else(|| side.session.unexpected("no length of a table"))?;
    let (mut counts, mut bytes) = (BTreeMap::<RowValues, i64>::new(), 0);
    if blocks > COUNTED_BLOCKS_MAX {
        return Ok(Spool::default());
    }
    for row in rows.iter() {
        let row = values(row?);
        bytes += bytes_of(&row);
        if bytes > PAIRING_BYTES_MAX {
            return Ok(Spool::default());
        }
        counts.insert(row, 0);
    }
    let mut there = open(Some(side), From::Base, None).await?;
    while let Some(row) = there.next().await {
        if let Some(count) = counts.get_mut(&row?.1) {
            *count += 1;
        }
    }
    let mut copies = Spool::default();
    for row in rows.iter() {
        copies.push(&counts.get(&values(row?)).copied().unwrap_or_default())?;
    }
    copies.seal()?;
    Ok(copies)
}

fn values(row: RowChange) -> RowValues {
    match row {
        RowChange::Insert { new } | RowChange::Update { new, .. } => new,
        RowChange::Delete { old } => old,
    }
}

type Rows<'a> = BoxStream<'a, Result<(From, RowValues), DiffError>>;

async fn open<'a>(side: Option<&'a Side<'a>>, from: From, part: Option<&[BlockRange]>) -> Result<Rows<'a>, DiffError> {
    let Some(side) = side else { return Ok(stream::empty().boxed()) };
    let session = side.session;
    let width = side.expressions.len();
    // The simple protocol gives text as the types' own output functions write it; a cast to text may be a user's.
    let messages = session.text_stream(&statement(side, part)).await?;
    let rows = messages.filter_map(move |message| {
        let row = match message {
            Ok(SimpleQueryMessage::Row(row)) => {
                let value = |index| row.try_get(index).map(|value| value.map(str::to_owned));
                let values: Result<RowValues, _> = (0..width).map(value).collect();
                Some(values.map(|values| (from, values)).map_err(|source| session.failed(source)))
            }
            Ok(_) => None,
            Err(source) => Some(Err(session.failed(source))),
        };
        std::future::ready(row)
    });
    Ok(rows.boxed())
}

fn statement(side: &Side<'_>, part: Option<&[BlockRange]>) -> String {
    let list = if side.expressions.is_empty() { "null".to_owned() } else { side.expressions.join(", ") };
    match part {
        None => {
            let condition = side.condition.map(|condition| format!(" where {condition}")).unwrap_or_default();
            format!("select {list} from only {}{condition}", side.table)
        }
        // A union of range scans: conditions joined by OR would be a filter over the whole table.
        Some(ranges) => {
            let scans: Vec<_> = ranges.iter().map(|range| one_range(&list, side, range)).collect();
            scans.join(" union all ")
        }
    }
}

/// Cuts ranges into what goes into one statement each.
fn parts(ranges: &[BlockRange]) -> Vec<Vec<BlockRange>> {
    let mut parts: Vec<Vec<BlockRange>> = Vec::new();
    let mut room = 0;
    for range in ranges {
        let BlockRange { mut start, mut count } = *range;
        while count > 0 {
            let full = parts.last().is_none_or(|part| part.len() >= RANGES_PER_STATEMENT);
            if room == 0 || full {
                parts.push(Vec::new());
                room = BLOCKS_PER_STATEMENT;
            }
            let taken = count.min(room);
            if let Some(part) = parts.last_mut() {
                part.push(BlockRange { start, count: taken });
            }
            (start, count, room) = (start.saturating_add(taken), count - taken, room - taken);
        }
    }
    parts
}

fn one_range(list: &str, side: &Side<'_>, range: &BlockRange) -> String {
    let BlockRange { start, count } = range;
    let condition = side.condition.map(|condition| format!(" and {condition}")).unwrap_or_default();
    // The last block that there can be has no successor to compare with.
    let end = match start.checked_add(*count) {
        Some(end) if end < u32::MAX => format!(" and ctid < '({end},0)'::tid"),
        _ => String::new(),
    };
    format!("select {list} from only {} where ctid >= '({start},0)'::tid{end}{condition}", side.table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_so_that_a_statement_reads_few_blocks() {
        let range = |start, count| BlockRange { start, count };
        assert_eq!(parts(&[range(0, 3), range(7, 1)]), [vec![range(0, 3), range(7, 1)]]);
        assert_eq!(parts(&[range(5, 0)]), Vec::<Vec<BlockRange>>::new());
        let long = parts(&[range(10, 1), range(100, 5000)]);
        assert_eq!(long, [vec![range(10, 1), range(100, 2047)], vec![range(2147, 2048)], vec![range(4195, 905)]]);
        let many: Vec<_> = (0..600).map(|number| range(number * 2, 1)).collect();
        let cut = parts(&many);
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [256, 256, 88]);
        assert_eq!(cut.concat(), many);
    }
}
