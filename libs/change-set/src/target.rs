//! The database that a change set is applied to.

use ardent_diff::SpoolError;
use ardent_schema_diff::{Catalog, CatalogQueries};
use futures_util::{StreamExt as _, pin_mut};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::outcome::ApplyError;

/// As a diff's own settings, for one transaction, so that equal values have equal texts.
pub(crate) const SETTINGS: &str = "set local search_path = pg_catalog; set local datestyle = 'ISO, YMD'; set local intervalstyle = 'postgres'; \
     set local timezone = 'UTC'; set local bytea_output = 'hex'; set local extra_float_digits = 1; set local xmlbinary = 'base64'; \
     set local lc_monetary = 'C'; set local row_security = off; set local check_function_bodies = off; \
     set local idle_in_transaction_session_timeout = 0; set local standard_conforming_strings = on";
/// A target that ends long transactions does not end this one, where it knows the setting (since 17).
const PATIENCE: &str =
    "select pg_catalog.set_config(name, '0', true) from pg_catalog.pg_settings where name = 'transaction_timeout'";
/// What is read of a target's catalogs is compared with what other servers say; a script reads none.
const READING: &str = "set local quote_all_identifiers = off";

/// Longest part of a statement in an error, in characters.
const SHOWN_LEN_MAX: usize = 200;

/// A row as text.
pub(crate) type TextRow = ardent_diff::RowValues;

pub(crate) struct Target<'a> {
    client: &'a Client,
}

impl<'a> Target<'a> {
    /// Begins the transaction. Timeouts in milliseconds.
    pub async fn begin(
        client: &'a Client,
        lock_timeout_ms: u64,
        statement_timeout_ms: u64,
    ) -> Result<Target<'a>, ApplyError> {
        let target = Target { client };
        target.run("BEGIN").await?;
        target.run(&format!("{SETTINGS}; {READING}; {PATIENCE}")).await?;
        target
            .run(&format!(
                "set local lock_timeout = {lock_timeout_ms}; set local statement_timeout = {statement_timeout_ms}"
            ))
            .await?;
        Ok(target)
    }

    /// Whether its connection has ended already.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    pub async fn run(&self, sql: &str) -> Result<(), ApplyError> {
        self.client.batch_execute(sql).await.map_err(|source| failed(sql, source))
    }

    /// Runs statements and gives how many rows each changed.
    pub async fn counts(&self, sql: &str) -> Result<Vec<u64>, ApplyError> {
        let messages = self.client.simple_query(sql).await.map_err(|source| failed(sql, source))?;
        let complete = |message| match message {
            SimpleQueryMessage::CommandComplete(rows) => Some(rows),
            _ => None,
        };
        Ok(messages.into_iter().filter_map(complete).collect())
    }

    /// Gives each row of an answer to `take`, as it comes.
    pub async fn each(
        &self,
        sql: &str,
        mut take: impl FnMut(TextRow) -> Result<(), SpoolError>,
    ) -> Result<(), ApplyError> {
        let stream = self.client.simple_query_raw(sql).await.map_err(|source| failed(sql, source))?;
        pin_mut!(stream);
        while let Some(message) = stream.next().await {
            if let SimpleQueryMessage::Row(row) = message.map_err(|source| failed(sql, source))? {
                take((0..row.len()).map(|place| row.get(place).map(str::to_owned)).collect())?;
            }
        }
        Ok(())
    }

    pub async fn rows(&self, sql: &str) -> Result<Vec<TextRow>, ApplyError> {
        let mut rows = Vec::new();
        self.each(sql, |row| {
            rows.push(row);
            Ok(())
        })
        .await?;
        Ok(rows)
    }

    pub async fn catalog(&self) -> Result<Catalog, ApplyError> {
        let mut answers = Vec::new();
        for statement in CatalogQueries::new().statements {
            let rows = self.rows(&format!("select q.v::text from ({statement}) q(v)")).await?;
            answers.push(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect());
        }
        Ok(Catalog::from_answers(&answers)?)
    }
}

fn failed(sql: &str, source: tokio_postgres::Error) -> ApplyError {
    ApplyError::Statement { statement: shown(sql), source }
}

/// A statement's beginning, in one line.
fn shown(sql: &str) -> String {
    // Enough of it: those that bring rows are long.
    let beginning: String = sql.chars().take(4 * SHOWN_LEN_MAX).collect();
    let line = beginning.split_whitespace().collect::<Vec<_>>().join(" ");
    let is_cut = line.chars().nth(SHOWN_LEN_MAX).is_some() || beginning.len() < sql.len();
    if !is_cut {
        return line;
    }
    let kept: String = line.chars().take(SHOWN_LEN_MAX - 1).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_shown_in_one_line_and_cut() {
        assert_eq!(shown("update t\n   set v = 1;\n\tselect 2"), "update t set v = 1; select 2");
        let fits = "x".repeat(SHOWN_LEN_MAX);
        assert_eq!(shown(&fits), fits);
        for long in ["é".repeat(SHOWN_LEN_MAX + 1), "UPDATE t SET v = '1'; ".repeat(200)] {
            let line = shown(&long);
            assert!(line.ends_with('…') && line.chars().count() == SHOWN_LEN_MAX, "{line}");
        }
    }
}
