//! `ardent connector ...`.

use std::io::{BufRead as _, IsTerminal as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use ardent_api::control::{
    AddTablesReply, AddTablesRequest, ApiErrorCode, CheckOutcome, ConnectorEvent, ConnectorInfo, ConnectorList,
    CreateConnectorRequest, DeleteReply, ErrorInfo, MoveConnectorRequest, NewTables, PreflightReply, PreflightRequest,
    ResumeConnectorRequest, SlotInfo, UpdateConnectorRequest, VerifyReply,
};

use super::path_name;
use crate::api::Api;
use crate::args::{
    ConnectorAddTablesArgs, ConnectorCommand, ConnectorCreateArgs, ConnectorDeleteArgs, ConnectorMoveArgs,
    ConnectorResumeArgs, ConnectorSetArgs, ConnectorStatusArgs, NameArgs, OptionalNameArgs, SourceArgs,
};
use crate::config::{ProjectFile, default_connector};
use crate::duration::bytes_text;
use crate::failure::Failure;
use crate::output::{Output, pairs, say, table};

/// Without a terminal, progress is one line this often.
const PLAIN_PROGRESS_PERIOD: Duration = Duration::from_secs(10);

/// Runs one of the commands.
pub fn run(output: &Output, api: &Api, command: &ConnectorCommand) -> Result<(), Failure> {
    match command {
        ConnectorCommand::Preflight(args) => preflight(output, api, args),
        ConnectorCommand::Create(args) => create(output, api, args),
        ConnectorCommand::List => list(output, api),
        ConnectorCommand::Switch(args) => switch(output, api, args),
        ConnectorCommand::Status(args) => status(output, api, args),
        ConnectorCommand::AddTables(args) => add_tables(output, api, args),
        ConnectorCommand::Resume(args) => resume(output, api, args),
        ConnectorCommand::Move(args) => move_to(output, api, args),
        ConnectorCommand::Verify(args) => verify(output, api, args),
        ConnectorCommand::Set(args) => set(output, api, args),
        ConnectorCommand::Delete(args) => delete(output, api, args),
    }
}

/// The URL, from standard input if the argument says so.
fn source_url(source: &str) -> Result<String, Failure> {
    if source != "-" {
        return Ok(source.to_owned());
    }
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| Failure::local("standard input cannot be read", &error))?;
    Ok(line.trim().to_owned())
}

fn preflight(output: &Output, api: &Api, args: &SourceArgs) -> Result<(), Failure> {
    let request = PreflightRequest { url: source_url(&args.source)?, logical: args.logical.options() };
    let report: PreflightReply = api.post("/v1/connectors/preflight", &request)?;
    output.data(&report, report_text)?;
    if report.passed {
        return Ok(());
    }
    Err(ErrorInfo::new(ApiErrorCode::PreflightFailed, "the source does not meet what a connector needs")
        .with_hint("mend what failed, and run this again")
        .into())
}

fn report_text(report: &PreflightReply) -> String {
    let mut out = String::new();
    for check in &report.checks {
        let mark = match check.outcome {
            CheckOutcome::Ok => "ok     ",
            CheckOutcome::Warning => "warning",
            CheckOutcome::Failed => "FAILED ",
        };
        out.push_str(&format!("{mark}  {}: {}\n", check.name, check.message));
        if let Some(fix) = &check.fix {
            out.push_str(&format!("           {fix}\n"));
        }
    }
    out
}

fn create(output: &Output, api: &Api, args: &ConnectorCreateArgs) -> Result<(), Failure> {
    let request = CreateConnectorRequest {
        name: args.name.clone(),
        url: source_url(&args.source.source)?,
        fast: args.fast,
        max_rate_bytes: args.max_rate,
        logical: args.source.logical.options(),
    };
    let mut progress = Progress::new(output);
    let mut made = None;
    let outcome = api.post_lines("/v1/connectors", &request, |event: ConnectorEvent| {
        match event {
            ConnectorEvent::Preflight { report } => {
                for check in report.checks.iter().filter(|check| check.outcome == CheckOutcome::Warning) {
                    output.warning(&format!("{}: {}", check.name, check.message));
                }
            }
            ConnectorEvent::Progress { phase, bytes_done, bytes_total, elapsed_ms, waits_for } => {
                progress.show(&phase, bytes_done, bytes_total, elapsed_ms);
                progress.show_waits(waits_for);
            }
            ConnectorEvent::Done { connector } => made = Some(connector),
            ConnectorEvent::Error { error } => return Err(error.into()),
        }
        Ok(())
    });
    progress.finish();
    outcome?;
    let connector: ConnectorInfo = made.ok_or_else(|| {
        Failure::from(
            ErrorInfo::new(ApiErrorCode::StorageUnavailable, "the server went away before the connector was made")
                .with_hint("start the server and run this again: what was half made is undone"),
        )
    })?;
    if let Some(logical) = &connector.logical {
        for missing in &logical.left_out {
            output.warning(&format!("not on the root branch: {missing}"));
        }
    }
    output.note(&format!("connected; make a branch with: ardent branch create NAME --from {}", connector.name));
    output.data(&connector, connector_text)
}

/// A bar on a terminal, lines elsewhere, nothing with `--json`.
struct Progress {
    bar: Option<ProgressBar>,
    plain: bool,
    /// When a line was printed last, of which phase, and whether anything was counted in it.
    last: Option<(Instant, String, bool)>,
    /// What it was said to wait for last.
    waits_for: Vec<String>,
}

impl Progress {
    fn new(output: &Output) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = (!output.json && terminal).then(|| ProgressBar::new(0));
        Progress { bar, plain: !output.json && !terminal, last: None, waits_for: Vec::new() }
    }

    /// Each once, unless it was another one meanwhile.
    fn show_waits(&mut self, waits_for: Vec<String>) {
        for what in waits_for.iter().filter(|what| !self.waits_for.contains(what)) {
            let line = format!("production gives a snapshot when this has ended: {what}");
            match &self.bar {
                Some(bar) => bar.println(line),
                None if self.plain => say(&line),
                None => {}
            }
        }
        self.waits_for = waits_for;
    }

    fn show(&mut self, phase: &str, done: u64, total: u64, elapsed_ms: u64) {
        if let Some(bar) = &self.bar {
            let prefix = phase.replace('_', " ");
            // The templates are fixed; were one wrong, the default look does.
            if bar.prefix() != prefix
                && let Ok(style) = ProgressStyle::with_template(bar_template(phase))
            {
                bar.set_style(style);
            }
            bar.set_prefix(prefix);
            bar.set_length(total.max(done));
            bar.set_position(done);
            return;
        }
        let is_counted = total > 0 || done > 0;
        let due = match &self.last {
            None => true,
            Some((at, last_phase, was_counted)) => {
                at.elapsed() >= PLAIN_PROGRESS_PERIOD || last_phase != phase || (is_counted && !was_counted)
            }
        };
        if self.plain && due {
            let name = phase.replace('_', " ");
            match (done, total) {
                // Nothing that is counted, or nothing known yet.
                (0, 0) => say(&name),
                _ => say(&format!("{name}: {}", counted_text(phase, done, total, elapsed_ms))),
            }
            self.last = Some((Instant::now(), phase.to_owned(), is_counted));
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The phase that counts statements, which make indexes, keys and triggers; all others count bytes, if anything.
const INDEX_PHASE: &str = "index";

fn bar_template(phase: &str) -> &'static str {
    if phase == INDEX_PHASE {
        "{prefix:12} [{bar:30}] {pos}/{len} statements"
    } else {
        "{prefix:12} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left"
    }
}

fn counted_text(phase: &str, done: u64, total: u64, elapsed_ms: u64) -> String {
    if phase == INDEX_PHASE {
        return format!("{done} of {total} statements");
    }
    let rate = done.saturating_mul(1000).checked_div(elapsed_ms).unwrap_or(0);
    format!("{} of {} ({}/s)", bytes_text(done), bytes_text(total), bytes_text(rate))
}

fn connector_text(connector: &ConnectorInfo) -> String {
    pairs(&connector_lines(connector))
}

/// The same where production was not asked: then a lag that is not known says nothing of it.
fn unasked_text(connector: &ConnectorInfo) -> String {
    let mut lines = connector_lines(connector);
    lines.retain(|(name, _)| *name != "lag" || connector.lag_bytes.is_some());
    pairs(&lines)
}

fn connector_lines(connector: &ConnectorInfo) -> Vec<(&'static str, String)> {
    let unknown = || match connector.production_lsn {
        Some(lsn) => format!("not known (production is at {lsn}, and what is here is not known yet)"),
        None => "not known (production cannot be asked)".to_owned(),
    };
    let lag = match (connector.lag_bytes, connector.lag_seconds) {
        (Some(0), _) => "none".to_owned(),
        (Some(bytes), Some(seconds)) => format!("{}, newest commit {seconds} s old", bytes_text(bytes)),
        (Some(bytes), None) => bytes_text(bytes),
        (None, _) => unknown(),
    };
    let following = match &connector.problem {
        Some(problem) => format!("no: {problem}"),
        None if connector.following => "yes".to_owned(),
        None => "no".to_owned(),
    };
    let mut lines = vec![
        ("name", connector.name.clone()),
        ("source", connector.source.clone()),
        ("postgres", connector.pg_major.map_or_else(|| "not known yet".to_owned(), |major| major.to_string())),
        ("following", following),
        ("lag", lag),
        ("size", connector.logical_size_bytes.map_or_else(|| "not known".to_owned(), bytes_text)),
        ("branches", connector.branches.to_string()),
    ];
    if connector.masked_only {
        let text = unmasked_text(connector);
        lines.push(("masked-only", text.map_or_else(|| "on".to_owned(), |text| format!("on; {text}"))));
    }
    if let Some(slot) = &connector.slot {
        lines.push(("slot", slot_text(slot)));
    }
    if let Some(logical) = &connector.logical {
        let schemas = &logical.options.schemas;
        lines.push(("mode", "logical".to_owned()));
        let phase = if logical.phase.is_empty() { "not known yet" } else { logical.phase.as_str() };
        lines.push(("phase", phase.to_owned()));
        lines.push(("schemas", if schemas.is_empty() { "all".to_owned() } else { schemas.join(", ") }));
        lines.push(("tables", logical.tables.to_string()));
        let applied = logical.applied_lsn.map_or_else(|| "not known yet".to_owned(), |lsn| lsn.to_string());
        lines.push(("applied", applied));
        let new_tables = match logical.options.new_tables {
            NewTables::Report => "reported",
            NewTables::Add => "added",
        };
        lines.push(("new tables", new_tables.to_owned()));
        lines.extend(logical.left_out.iter().map(|missing| ("left out", missing.clone())));
        lines.extend(logical.new_tables.iter().map(|table| ("new", table.clone())));
        let not_followed = logical.not_followed.iter().map(|skipped| format!("{}: {}", skipped.table, skipped.why));
        lines.extend(not_followed.map(|text| ("not followed", text)));
        lines.extend(logical.schema_changes.iter().map(|change| ("changed", change.clone())));
        let seen = |age_s| ("schema seen", format!("{age_s} s ago"));
        lines.extend(logical.look_age_s.map(seen));
    }
    lines
}

/// `12 branches are not masked, as they were made before: a, b, c and 9 more`; `None` if all are, or need not be.
fn unmasked_text(connector: &ConnectorInfo) -> Option<String> {
    let count = connector.unmasked_branches.filter(|count| *count > 0)?;
    let first = &connector.unmasked_first;
    let more = count.saturating_sub(first.len() as u64);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    let (branches, they) = if count == 1 { ("branch is", "it was") } else { ("branches are", "they were") };
    Some(format!("{count} {branches} not masked, as {they} made before: {}{rest}", first.join(", ")))
}

/// `ardent_0123: 1.5 MB kept, given up after 10.0 GB more`.
fn slot_text(slot: &SlotInfo) -> String {
    let kept = slot.kept_bytes.map_or_else(|| "nothing".to_owned(), bytes_text);
    let limit = match (slot.wal_status.as_deref(), slot.safe_bytes) {
        (Some("lost"), _) => "given up".to_owned(),
        (_, Some(bytes)) => format!("given up after {} more", bytes_text(bytes)),
        (_, None) => "without limit".to_owned(),
    };
    let when = if slot.current { "" } else { ", when production could be asked last" };
    format!("{}: {kept} kept, {limit}{when}", slot.name)
}

/// What `ardent connector list` tells.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    list: ConnectorList,
    /// The one that is meant where none is named, if one is chosen.
    default_connector: Option<String>,
}

fn list(output: &Output, api: &Api) -> Result<(), Failure> {
    let list: ConnectorList = api.get("/v1/connectors")?;
    for connector in &list.connectors {
        for warning in &connector.warnings {
            output.warning(&format!("{}: {warning}", connector.name));
        }
    }
    let default_connector = default_connector()?;
    if let Some(name) = &default_connector
        && list.connectors.iter().all(|connector| connector.name != *name)
    {
        output.warning(&format!(
            "the default connector {name} is not there; choose another with: ardent connector switch NAME"
        ));
    }
    output.data(&Listed { list, default_connector }, |Listed { list, default_connector }| {
        if list.connectors.is_empty() {
            return "no connectors; make one with: ardent connector create postgresql URL".to_owned();
        }
        let rows: Vec<Vec<String>> = list
            .connectors
            .iter()
            .map(|connector| {
                let following = if connector.following { "yes" } else { "no" };
                let is_default = default_connector.as_ref() == Some(&connector.name);
                vec![
                    connector.name.clone(),
                    connector.source.clone(),
                    following.to_owned(),
                    connector.branches.to_string(),
                    connector.logical_size_bytes.map_or_else(|| "-".to_owned(), bytes_text),
                    if is_default { "default".to_owned() } else { String::new() },
                ]
            })
            .collect();
        table(&["NAME", "SOURCE", "FOLLOWING", "BRANCHES", "SIZE", ""], &rows)
    })
}

fn switch(output: &Output, api: &Api, args: &NameArgs) -> Result<(), Failure> {
    let connector: ConnectorInfo = api.get(&format!("/v1/connectors/{}", path_name(&args.name)?))?;
    let path = ProjectFile::switch_connector(&connector.name)?;
    output.data(&connector, |connector| format!("{} is the default connector now ({})", connector.name, path.display()))
}

/// The connector that is named, else the default one, else the only one.
fn named(api: &Api, args: &OptionalNameArgs) -> Result<String, Failure> {
    if let Some(name) = &args.name {
        return Ok(name.clone());
    }
    match default_connector()? {
        Some(name) => Ok(name),
        None => only_connector(api),
    }
}

fn verify(output: &Output, api: &Api, args: &OptionalNameArgs) -> Result<(), Failure> {
    let name = named(api, args)?;
    // Every row is read: it takes as long as it takes.
    let reply: VerifyReply = api.post_long(&format!("/v1/connectors/{}/verify", path_name(&name)?), &())?;
    output.data(&reply, |reply| {
        let rows: Vec<Vec<String>> = reply
            .tables
            .iter()
            .map(|table| {
                let equal = if table.equal { "yes" } else { "NO" };
                let (theirs, ours) = (table.production_rows.to_string(), table.root_rows.to_string());
                vec![table.table.clone(), theirs, ours, equal.to_owned()]
            })
            .collect();
        let mut text = table(&["TABLE", "PRODUCTION", "ROOT", "EQUAL"], &rows);
        for table in &reply.tables {
            if let Some(how) = &table.columns_differ {
                text.push_str(&format!("\ncolumns of {} differ: {how}", table.table));
            }
        }
        for name in &reply.sequences_behind {
            text.push_str(&format!("\nsequence {name} is behind production's"));
        }
        for name in &reply.not_followed {
            text.push_str(&format!("\nnot followed: {name}"));
        }
        for statement in &reply.schema_differences {
            text.push_str(&format!("\nproduction's schema differs: {statement}"));
        }
        let verdict = if reply.equal { "equal" } else { "NOT EQUAL" };
        format!("{text}\n{verdict} at production's {}", reply.at_lsn)
    })?;
    if reply.equal { Ok(()) } else { Err(Failure::differences()) }
}

fn status(output: &Output, api: &Api, args: &ConnectorStatusArgs) -> Result<(), Failure> {
    let name = named(api, &args.name)?;
    let connector: ConnectorInfo = api.get(&format!("/v1/connectors/{}", path_name(&name)?))?;
    for warning in &connector.warnings {
        output.warning(warning);
    }
    output.data(&connector, connector_text)?;
    let is_fine = connector.following && connector.warnings.is_empty();
    if args.exit_code && !is_fine { Err(Failure::differences()) } else { Ok(()) }
}

fn resume(output: &Output, api: &Api, args: &ConnectorResumeArgs) -> Result<(), Failure> {
    let sql = match args.sql.as_deref() {
        Some("-") => Some(
            std::io::read_to_string(std::io::stdin())
                .map_err(|error| Failure::local("standard input cannot be read", &error))?,
        ),
        sql => sql.map(str::to_owned),
    };
    let path = format!("/v1/connectors/{}/resume", path_name(&args.name)?);
    let connector: ConnectorInfo = api.post_long(&path, &ResumeConnectorRequest { sql })?;
    output.data(&connector, connector_text)?;
    match &connector.problem {
        None => Ok(()),
        Some(problem) => {
            let message = format!("connector {} does not go on: {problem}", connector.name);
            Err(ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, message).into())
        }
    }
}

fn add_tables(output: &Output, api: &Api, args: &ConnectorAddTablesArgs) -> Result<(), Failure> {
    let name = named(api, &args.name)?;
    let request = AddTablesRequest { tables: args.tables.clone() };
    // Rows are copied: it takes as long as it takes.
    let reply: AddTablesReply = api.post_long(&format!("/v1/connectors/{}/tables", path_name(&name)?), &request)?;
    for text in &reply.left_out {
        output.warning(&format!("left out: {text}"));
    }
    output.data(&reply, |reply| {
        let mut lines: Vec<String> = reply.added.iter().map(|table| format!("added {table}")).collect();
        lines.extend(reply.skipped.iter().map(|skipped| format!("not followed: {}: {}", skipped.table, skipped.why)));
        match reply.at_lsn {
            Some(lsn) => lines.push(format!("followed from production's {lsn} on")),
            None => lines.push("there is no new table that can be followed".to_owned()),
        }
        lines.join("\n")
    })?;
    match reply.skipped.iter().find(|skipped| args.tables.contains(&skipped.table)) {
        None => Ok(()),
        Some(skipped) => {
            let message = format!("{} is not followed: {}", skipped.table, skipped.why);
            Err(ErrorInfo::new(ApiErrorCode::ConnectorUnavailable, message).into())
        }
    }
}

fn set(output: &Output, api: &Api, args: &ConnectorSetArgs) -> Result<(), Failure> {
    let request = UpdateConnectorRequest { masked_only: args.masked_only };
    if request == UpdateConnectorRequest::default() {
        return Err(Failure::usage("nothing to set").hint("give --masked-only on or off"));
    }
    let connector: ConnectorInfo = api.patch(&format!("/v1/connectors/{}", path_name(&args.name)?), &request)?;
    if let Some(text) = unmasked_text(&connector) {
        output.warning(&format!("{text}; they stay, and so do their URLs, until: ardent branch delete NAME"));
    }
    output.data(&connector, unasked_text)
}

fn move_to(output: &Output, api: &Api, args: &ConnectorMoveArgs) -> Result<(), Failure> {
    let request = MoveConnectorRequest { url: source_url(&args.source)? };
    // What both servers have is compared first.
    let connector: ConnectorInfo =
        api.post_long(&format!("/v1/connectors/{}/move", path_name(&args.name)?), &request)?;
    output.note(&format!("connector {} follows {} from now on", connector.name, connector.source));
    output.data(&connector, connector_text)
}

fn only_connector(api: &Api) -> Result<String, Failure> {
    let list: ConnectorList = api.get("/v1/connectors")?;
    let names: Vec<&str> = list.connectors.iter().map(|connector| connector.name.as_str()).collect();
    match names.as_slice() {
        [only] => Ok((*only).to_owned()),
        [] => Err(ErrorInfo::new(ApiErrorCode::NotFound, "there is no connector")
            .with_hint("make one with: ardent connector create postgresql URL")
            .into()),
        several => {
            let names = several.join(", ");
            Err(Failure::usage("there is more than one connector")
                .hint(format!("name one: {names}; ardent connector switch NAME makes one the default")))
        }
    }
}

fn delete(output: &Output, api: &Api, args: &ConnectorDeleteArgs) -> Result<(), Failure> {
    let path = format!("/v1/connectors/{}", path_name(&args.name)?);
    let connector: ConnectorInfo = api.get(&path)?;
    if !args.yes {
        let question = format!("Delete connector {} ({}) and its copy here?", connector.name, connector.source);
        if !output.confirm(&question, "--yes")? {
            output.note("not deleted");
            return Ok(());
        }
    }
    let reply: DeleteReply = api.delete(&path)?;
    if let Some(warning) = &reply.warning {
        output.warning(warning);
    }
    output.data(&reply, |reply| format!("deleted connector {} ({})", reply.name, connector.source))
}

#[cfg(test)]
mod tests {
    use ardent_types::{Lsn, TenantId, TimelineId};
    use serde_json::json;

    use super::*;

    #[test]
    fn phases_say_what_they_count() {
        assert_eq!(counted_text("index", 11, 27, 5000), "11 of 27 statements");
        let copied = counted_text("copy", 11, 27, 1000);
        assert!(copied.contains("11 B of 27 B") && copied.ends_with("/s)"), "{copied}");
        for phase in ["index", "copy"] {
            assert!(ProgressStyle::with_template(bar_template(phase)).is_ok(), "{phase}");
        }
    }

    #[test]
    fn a_lag_that_nobody_asked_for_is_left_out() {
        let connector = |lag_bytes: Option<u64>| -> ConnectorInfo {
            let info = json!({
                "schema_version": 1, "name": "shop", "state": "ready", "source": "h:5432/shop", "created_at": "A",
                "tenant_id": TenantId::NONE, "timeline_id": TimelineId::NONE, "following": true, "branches": 2,
                "lag_bytes": lag_bytes,
            });
            serde_json::from_value(info).expect("a connector")
        };
        assert!(connector_text(&connector(None)).contains("production cannot be asked"));
        let text = unasked_text(&connector(None));
        assert!(!text.contains("lag") && text.contains("branches"), "{text}");
        assert!(unasked_text(&connector(Some(0))).contains("lag"));
        let asked = ConnectorInfo { production_lsn: Some(Lsn::new(0x10)), ..connector(None) };
        let text = connector_text(&asked);
        assert!(text.contains("production is at 0/") && !text.contains("cannot be asked"), "{text}");
    }
}
