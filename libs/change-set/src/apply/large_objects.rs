//! Large objects: compared and written page by page.

use ardent_diff::{LargeObjectChange, TableState};

use super::Run;
use crate::inverse;
use crate::outcome::{ApplyError, Conflict};

/// Bytes of a page of a large object (`LOBLKSIZE`).
const LARGE_OBJECT_PAGE: i64 = 2048;

impl<'a> Run<'a> {
    pub(super) async fn check_large_objects(&mut self) -> Result<Vec<&'a LargeObjectChange>, ApplyError> {
        let mut wanted = Vec::new();
        for change in &self.set.large_objects {
            let oid = change.oid;
            let rows =
                self.target.rows(&format!("select count(*) from pg_largeobject_metadata where oid = {oid}")).await?;
            let exists = rows.first().and_then(|row| row.first()?.as_deref()) != Some("0");
            let mut conflict = |why: &str| self.applied.conflict(Conflict::LargeObject { oid, why: why.to_owned() });
            match (change.state, exists) {
                (TableState::Created, true) => conflict("both made one with this number"),
                (TableState::Kept, false) => conflict("the branch changed it; the target deleted it"),
                (TableState::Dropped, false) => self.applied.already_there += 1,
                (TableState::Created, false) => wanted.push(change),
                (TableState::Kept | TableState::Dropped, true) => {
                    let mut same = true;
                    for page in change.pages.iter() {
                        let page = page?;
                        let sql = format!(
                            "select encode(lo_get({oid}, {}, {LARGE_OBJECT_PAGE}), 'hex')",
                            i64::from(page.number) * LARGE_OBJECT_PAGE
                        );
                        let rows = self.target.rows(&sql).await?;
                        let there = rows.first().and_then(|row| row.first().cloned().flatten()).unwrap_or_default();
                        same &= trimmed(&there) == trimmed(page.old.as_deref().unwrap_or_default());
                    }
                    if same {
                        wanted.push(change)
                    } else {
                        conflict("both changed it, or the target changed what the branch deleted")
                    }
                }
            }
        }
        Ok(wanted)
    }

    /// Where the content before a page ends: there may be pages between that there are none of, and that read as zeros.
    async fn end_before(&self, oid: u32, page: i32) -> Result<i64, ApplyError> {
        let at = i64::from(page) * LARGE_OBJECT_PAGE;
        let sql = "select has_table_privilege('pg_largeobject', 'select')";
        if self.target.rows(sql).await?.first().and_then(|row| row.first()?.as_deref()) != Some("t") {
            // Who may not see pages gets the zeros.
            return Ok(at);
        }
        let sql = format!(
            "select coalesce(max(pageno::bigint * {LARGE_OBJECT_PAGE} + length(data)), 0) from pg_largeobject where loid = {oid} and pageno < {page}"
        );
        let rows = self.target.rows(&sql).await?;
        Ok(rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok()).unwrap_or(at))
    }

    pub(super) async fn large_object(&mut self, change: &LargeObjectChange) -> Result<(), ApplyError> {
        let oid = change.oid;
        match change.state {
            TableState::Dropped => self.target.rows(&format!("select lo_unlink({oid})")).await?,
            TableState::Created => self.target.rows(&format!("select lo_create({oid})")).await?,
            TableState::Kept => Vec::new(),
        };
        if change.state != TableState::Dropped {
            let mut end = None;
            for page in change.pages.iter() {
                let page = page?;
                let at = i64::from(page.number) * LARGE_OBJECT_PAGE;
                match &page.new {
                    Some(content) => {
                        self.target.rows(&format!("select lo_put({oid}, {at}, decode('{content}', 'hex'))")).await?;
                        let (length, before) =
                            (content.len() as i64 / 2, page.old.as_ref().map_or(0, |old| old.len() as i64 / 2));
                        if length < before {
                            end = Some(at + length);
                        }
                    }
                    None if end.is_none() => end = Some(self.end_before(oid, page.number).await?),
                    None => {}
                }
            }
            if let Some(end) = end {
                // 131072 | 262144: open for writing and reading.
                self.target.rows(&format!("select lo_truncate64(lo_open({oid}, 393216), {end})")).await?;
            }
        }
        self.applied.inverse.large_objects.push(inverse::large_object(change)?);
        Ok(())
    }
}

/// A page's end that is all zero is the same as one that is not there.
fn trimmed(hex: &str) -> &str {
    hex.trim_end_matches('0')
}
