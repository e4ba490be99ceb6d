//! Reads rows: of chosen blocks, or of a whole table.

use ardent_api::page_service::BlockRange;
use futures_util::{StreamExt as _, pin_mut};
use tokio_postgres::SimpleQueryMessage;

use crate::error::DiffError;
use crate::pairing::RowValues;
use crate::session::Session;

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

/// Reads the rows of `table` (quoted) with these expressions as columns.
pub(crate) async fn rows(
    session: &Session,
    table: &str,
    expressions: &[String],
    extent: &Extent,
    mut take: impl FnMut(RowValues),
) -> Result<(), DiffError> {
    let list = if expressions.is_empty() { "null".to_owned() } else { expressions.join(", ") };
    let width = expressions.len();
    let statements = match extent {
        Extent::Whole => vec![format!("select {list} from only {table}")],
        // A union of range scans: conditions joined by OR would be a filter over the whole table.
        Extent::Blocks(ranges) => ranges
            .chunks(RANGES_PER_STATEMENT)
            .map(|chunk| {
                let scans: Vec<_> = chunk.iter().map(|range| one_range(&list, table, range)).collect();
                scans.join(" union all ")
            })
            .collect(),
    };
    for statement in statements {
        // The simple protocol gives text as the types' own output functions write it; a cast to text may be a user's.
        let stream = session.text_stream(&statement).await?;
        pin_mut!(stream);
        while let Some(row) = stream.next().await {
            let SimpleQueryMessage::Row(row) = row.map_err(|source| session.failed(source))? else { continue };
            let mut values = Vec::with_capacity(width);
            for index in 0..width {
                values.push(row.try_get(index).map_err(|source| session.failed(source))?.map(str::to_owned));
            }
            take(values);
        }
    }
    Ok(())
}

fn one_range(list: &str, table: &str, range: &BlockRange) -> String {
    let BlockRange { start, count } = range;
    // The last block that there can be has no successor to compare with.
    let end = match start.checked_add(*count) {
        Some(end) if end < u32::MAX => format!(" and ctid < '({end},0)'::tid"),
        _ => String::new(),
    };
    format!("select {list} from only {table} where ctid >= '({start},0)'::tid{end}")
}
