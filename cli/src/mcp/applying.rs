//! Tools whose work cannot be taken back by the same tool: `apply`, `reset_branch`, `delete_branch`; `rewind` is in
//! `checkpoints`. Each is prepared, confirmed, done.

use ardent_api::control::{
    ApiErrorCode, BranchInfo, BranchName, CheckpointInfo, DeleteReply, DiffRequest, ErrorInfo, ResetRequest,
    SwitchReply,
};
use ardent_change_set::{ApplyOptions, Prefer, RemoteApplied, RowChoice, write_file};
use ardent_diff::Part;
use rmcp::schemars::{self, JsonSchema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::answer::{ANSWER_LEN_MAX, Trouble, fitting};
use super::branches::look;
use super::call::Call;
use super::checkpoints;
use super::confirmation::{Outcome, State};
use crate::commands::apply::{Finished, Source, Target, Told, Wish, apply_to, beside_rows};
use crate::commands::undo_file::{UndoFile, undo_file_name};
use crate::commands::{branch, diff, path_name};
use crate::config::state_folder;
use crate::failure::Failure;
use crate::output::counted;

/// Longest wait for a lock in a target.
const LOCK_TIMEOUT_MS: u64 = 5_000;
/// Longest run of one statement in a target.
const STATEMENT_TIMEOUT_MS: u64 = 300_000;

/// What to apply, to what.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyArgs {
    /// The branch whose changes are applied
    pub branch: String,
    /// Where they go: a connector's name, for its production server, or another branch
    pub to: String,
    /// The database; absent: the target's
    pub database: Option<String>,
    /// Only rows of these tables, as NAME or SCHEMA.NAME
    #[serde(default)]
    pub tables: Vec<String>,
    /// Only these rows, as TABLE:KEY
    #[serde(default)]
    pub rows: Vec<String>,
    /// Only these objects of the schema, such as "column age of table public.users"
    #[serde(default)]
    pub objects: Vec<String>,
    /// Take along what the objects need
    #[serde(default)]
    pub with_needed: bool,
    /// Only the schema, or only rows
    pub part: Option<PartArg>,
    /// Settle rows that both changed with this side's values
    pub prefer: Option<PreferArg>,
    /// The token that the same call gave before; absent: show what would be done
    pub confirmation: Option<String>,
}

/// A part of a change set.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PartArg {
    /// The schema
    Schema,
    /// Rows, sequences and large objects
    Rows,
}

/// A side.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PreferArg {
    /// The branch's
    Branch,
    /// The target's
    Target,
}

/// Which branch to reset.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetArgs {
    /// The branch's name
    pub branch: String,
    /// Where in its parent's history: an LSN, or a time; absent: its newest state
    pub at: Option<String>,
    /// The token that the same call gave before; absent: show what would be done
    pub confirmation: Option<String>,
}

/// Which branch to delete.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteArgs {
    /// The branch's name
    pub branch: String,
    /// The token that the same call gave before; absent: show what would be done
    pub confirmation: Option<String>,
}

/// What waits for a yes.
pub enum Prepared {
    /// A change set, and where it goes.
    Apply(Box<Application>),
    /// A branch that is to be its parent again.
    Reset { seen: Box<BranchInfo>, at: Option<String> },
    /// A branch that is to be what it was at a checkpoint.
    Rewind { seen: Box<BranchInfo>, to: Box<CheckpointInfo> },
    /// A branch that is to go.
    Delete { seen: Box<BranchInfo> },
}

/// A change set in a file, and where it goes.
pub struct Application {
    /// The branch that it was taken from.
    branch: String,
    /// As it was named.
    to: String,
    /// A folder with the change set, which goes with this.
    folder: TempDir,
    place: Place,
    database: Option<String>,
    options: ApplyOptions,
}

#[derive(Clone)]
enum Place {
    Connector(BranchName),
    /// With its password.
    Url(String),
}

/// A name in the folder.
const CHANGES: &str = "branch.changes";

/// What preparing gives: something to be asked about, or an end.
pub enum Preparation {
    /// To be done if the user wants it.
    Ask { question: String, details: Value, prepared: Prepared },
    /// There is nothing to ask.
    Over(Outcome),
}

/// Prepares `delete_branch`.
pub async fn prepare_delete(call: &Call, args: &DeleteArgs) -> Result<Preparation, Trouble> {
    let seen = Box::new(no_root(look(call, &args.branch).await?)?);
    if !seen.children.is_empty() {
        let message = format!("branch {} has branches of its own: {}", seen.name, seen.children.join(", "));
        return Err(Failure::from(ErrorInfo::new(ApiErrorCode::Conflict, message)).hint("delete those first").into());
    }
    let parent = seen.parent.as_deref().unwrap_or_default();
    let question = format!(
        "Delete branch {} (made from {parent}, {})? It can be had back for as long as the server keeps deleted branches.",
        seen.name, seen.created_at
    );
    Ok(Preparation::Ask { question, details: json!({ "branch": seen.name }), prepared: Prepared::Delete { seen } })
}

/// Prepares `reset_branch`.
pub async fn prepare_reset(call: &Call, args: &ResetArgs) -> Result<Preparation, Trouble> {
    let seen = Box::new(no_root(look(call, &args.branch).await?)?);
    let parent = seen.parent.as_deref().unwrap_or_default();
    let at = args.at.as_ref().map_or_else(|| "now".to_owned(), |at| format!("at {at}"));
    let question = format!(
        "Make branch {} what {parent} is {at}? Its changes go, and its sessions end. It can be undone for as long as history is kept.",
        seen.name
    );
    let details = json!({ "branch": seen.name });
    Ok(Preparation::Ask { question, details, prepared: Prepared::Reset { seen, at: args.at.clone() } })
}

/// A branch that can be changed.
pub fn no_root(seen: BranchInfo) -> Result<BranchInfo, Failure> {
    if seen.is_root {
        let message = format!("{} follows a production server: it is no branch to change", seen.name);
        return Err(ErrorInfo::new(ApiErrorCode::RootBranch, message).with_hint("name a branch of it").into());
    }
    Ok(seen)
}

/// Prepares `apply`: takes the change set, and tries it on the target.
pub async fn prepare_apply(call: &Call, args: &ApplyArgs) -> Result<Preparation, Trouble> {
    let branch = no_root(look(call, &args.branch).await?)?.name;
    let target = look(call, &args.to).await?;
    if target.name == branch {
        return Err(Failure::usage("a branch is not applied to itself")
            .hint("name a connector or another branch")
            .into());
    }
    let options = options(args)?;
    let (to, database) = (args.to.clone(), args.database.clone());
    call.blocking("comparing, and trying it on the target", move |api, progress| {
        let place = match target.is_root {
            true => Place::Connector(target.connector.parse().map_err(ErrorInfo::from)?),
            false => Place::Url(branch::url(api, &target.name, None)?.url),
        };
        let report = diff::ask(api, &branch, &DiffRequest::default())?;
        if report.databases.is_empty() {
            let outcome = Outcome::new(State::NothingToDo, format!("nothing changed on {branch}"), json!({}));
            return Ok(Preparation::Over(outcome));
        }
        let folder = TempDir::new().map_err(|error| Failure::local("there is no place for the change set", &error))?;
        write_file(&folder.path().join(CHANGES), &diff::file_content(report))
            .map_err(|error| Failure::local("the change set cannot be kept", &error))?;
        let application = Application { branch, to, folder, place, database, options };
        let tried = application.run(api, None, &|line| progress.say(line))?.done;
        let (message, details) = application.told(&tried, true);
        if !tried.applied.conflicts.is_empty() {
            return Ok(Preparation::Over(Outcome::new(State::Conflict, message, details)));
        }
        let prepared = Prepared::Apply(Box::new(application));
        Ok(Preparation::Ask { question: format!("{message}. Do it?"), details, prepared })
    })
    .await
}

fn options(args: &ApplyArgs) -> Result<ApplyOptions, Failure> {
    let rows: Result<Vec<RowChoice>, _> = args.rows.iter().map(|row| row.parse()).collect();
    Ok(ApplyOptions {
        tables: args.tables.clone(),
        rows: rows.map_err(|error| Failure::usage(format!("{error}")).hint("write rows as TABLE:KEY"))?,
        objects: args.objects.clone(),
        with_needed: args.with_needed,
        part: match args.part {
            Some(PartArg::Schema) => Part::Schema,
            Some(PartArg::Rows) => Part::Rows,
            None => Part::Whole,
        },
        dry_run: true,
        prefer: args.prefer.map(|side| match side {
            PreferArg::Branch => Prefer::Branch,
            PreferArg::Target => Prefer::Target,
        }),
        lock_timeout_ms: LOCK_TIMEOUT_MS,
        statement_timeout_ms: STATEMENT_TIMEOUT_MS,
    })
}

impl Application {
    /// A dry run without a file for what undoes it.
    fn run(&self, api: &crate::api::Api, undo: Option<UndoFile>, say: &dyn Fn(&str)) -> Result<Finished, Failure> {
        let file = self.folder.path().join(CHANGES);
        let wish = Wish {
            source: Source::File(&file),
            target: match &self.place {
                Place::Connector(connector) => Target::Connector(connector),
                Place::Url(url) => Target::Url(url),
            },
            database: self.database.as_deref(),
            options: ApplyOptions { dry_run: undo.is_none(), ..self.options.clone() },
        };
        apply_to(api, &wish, undo, &Told { say, warn: say })
    }

    fn told(&self, done: &RemoteApplied, dry_run: bool) -> (String, Value) {
        let applied = &done.applied;
        let mut room = ANSWER_LEN_MAX;
        let (conflicts, left_out) = fitting(&applied.conflicts, &mut room);
        let (notes, _) = fitting(&applied.notes, &mut room);
        let (rows, target) = (&applied.rows, &self.to);
        let target = match &self.place {
            Place::Connector(_) => format!("the production server of {target}"),
            Place::Url(_) => format!("branch {target}"),
        };
        let large_objects = applied.large_objects();
        let message = if applied.conflicts.is_empty() && applied.is_unchanged() {
            format!(
                "Nothing is to be done: {target} has what changed on branch {} (up to {})",
                self.branch, done.to_lsn
            )
        } else if applied.conflicts.is_empty() {
            let verb = if dry_run { "Would apply" } else { "Applied" };
            let others = beside_rows(large_objects, applied.sequences);
            format!(
                "{verb} the changes of branch {} (up to {}) to {target}: {}, {} inserted, {} updated, {} deleted{others}",
                self.branch,
                done.to_lsn,
                counted(applied.statements, "schema statement"),
                counted(rows.inserted, "row"),
                rows.updated,
                rows.deleted
            )
        } else {
            let count = applied.conflicts.len() as u64 + applied.conflicts_left_out;
            format!(
                "{target} and branch {} changed {} in different ways: nothing was changed",
                self.branch,
                counted(count, "thing")
            )
        };
        let details = json!({
            "from_lsn": done.from_lsn, "to_lsn": done.to_lsn,
            "statements": applied.statements, "inserted": rows.inserted, "updated": rows.updated, "deleted": rows.deleted,
            "large_objects": large_objects, "sequences": applied.sequences,
            "already_there": applied.already_there, "settled": applied.settled, "taken_along": applied.taken_along,
            "conflicts": conflicts, "conflicts_left_out": left_out as u64 + applied.conflicts_left_out, "notes": notes,
            "databases_not_applied": done.other_databases,
        });
        (message, details)
    }
}

/// Does what was confirmed.
pub async fn carry_out(call: &Call, prepared: Prepared) -> Result<Outcome, Trouble> {
    match prepared {
        // It comes to its end, so that what undoes it is kept.
        Prepared::Apply(application) => {
            call.to_its_end("applying", move |api, progress| {
                let undo = UndoFile::at(state_folder()?.join(undo_file_name(&application.branch)))?;
                let Finished { done, undo } = application.run(api, Some(undo), &|line| progress.say(line))?;
                let (message, mut details) = application.told(&done, false);
                if !done.applied.conflicts.is_empty() {
                    return Ok(Outcome::new(State::Conflict, message, details));
                }
                if let Some(undo) = undo {
                    details["undo_file"] = json!(undo.display().to_string());
                    details["undo_command"] = json!(format!("ardent branch apply {} --to TARGET", undo.display()));
                }
                Ok(Outcome::new(State::Done, message, details))
            })
            .await
        }
        Prepared::Reset { seen, at } => {
            unchanged(call, &seen).await?;
            let path = format!("/v1/branches/{}/reset", path_name(&seen.name)?);
            let reply: SwitchReply =
                call.blocking("resetting the branch", move |api, _| api.post(&path, &ResetRequest { at })).await?;
            let parent = reply.branch.parent.as_deref().unwrap_or_default();
            let message = format!("branch {} is what {parent} was at {}", reply.branch.name, reply.at_lsn);
            let undo = format!("ardent branch restore {} --at {}", reply.branch.name, reply.undo_at);
            let details = json!({ "undo_command": undo, "undo_until": reply.undo_until });
            Ok(Outcome::new(State::Done, message, details))
        }
        Prepared::Rewind { seen, to } => checkpoints::rewind(call, &seen, &to).await,
        Prepared::Delete { seen } => {
            unchanged(call, &seen).await?;
            let path = format!("/v1/branches/{}", path_name(&seen.name)?);
            let reply: DeleteReply = call.blocking("deleting the branch", move |api, _| api.delete(&path)).await?;
            let undo = reply.kept_until.as_ref().map(|_| format!("ardent branch undelete {}", reply.name));
            let details = json!({ "undo_command": undo, "undo_until": reply.kept_until });
            Ok(Outcome::new(State::Done, format!("deleted branch {}", reply.name), details))
        }
    }
}

/// A name may stand for another branch by now, and a branch for another state.
pub async fn unchanged(call: &Call, seen: &BranchInfo) -> Result<(), Trouble> {
    let now = look(call, &seen.name).await?;
    if (now.id, now.timeline_id) != (seen.id, seen.timeline_id) {
        let message = format!("branch {} is another one than when this was confirmed", seen.name);
        let error = ErrorInfo::new(ApiErrorCode::Conflict, message);
        return Err(Failure::from(error).hint("look at it, and call again without confirmation").into());
    }
    Ok(())
}
