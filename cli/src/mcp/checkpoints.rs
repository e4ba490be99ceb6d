//! `checkpoint`: a mark in a branch's history. Going back to one is prepared and confirmed, as what throws changes away is.

use ardent_api::control::{ApiErrorCode, BranchInfo, CheckpointInfo, CheckpointPlace, ErrorInfo, SwitchReply};
use rmcp::schemars::{self, JsonSchema};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::answer::Trouble;
use super::applying::{Preparation, Prepared, no_root, unchanged};
use super::branches::look;
use super::call::Call;
use super::confirmation::{Outcome, State};
use crate::commands::checkpoint;
use crate::failure::Failure;

/// Most labels that an error lists.
const LABELS_SHOWN: usize = 20;

/// Which branch to mark.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointArgs {
    /// The branch's name
    pub branch: String,
    /// The checkpoint's label: letters, digits, ., _ and -; absent: step-N, with the next number
    pub label: Option<String>,
}

/// A checkpoint that was made.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Marked {
    branch: String,
    /// What rewind takes, and diff as "since"
    label: String,
    lsn: String,
    created_at: String,
    /// It can be gone to until then at least; null: nothing is kept
    kept_until: Option<String>,
}

/// Which branch to rewind, and to what.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewindArgs {
    /// The branch's name
    pub branch: String,
    /// The checkpoint's label; absent: the last one that the branch has passed
    pub checkpoint: Option<String>,
    /// The token that the same call gave before; absent: show what would be done
    pub confirmation: Option<String>,
}

/// `checkpoint`.
pub async fn mark(call: &Call, args: CheckpointArgs) -> Result<Marked, Trouble> {
    let made =
        call.blocking("marking the branch", move |api, _| checkpoint::mark(api, &args.branch, args.label)).await?;
    Ok(Marked {
        branch: made.branch,
        label: made.label,
        lsn: made.lsn.to_string(),
        created_at: made.created_at,
        kept_until: made.kept_until,
    })
}

/// Prepares `rewind`.
pub async fn prepare(call: &Call, args: &RewindArgs) -> Result<Preparation, Trouble> {
    let seen = Box::new(no_root(look(call, &args.branch).await?)?);
    let all = all(call, &seen.name).await?;
    let wanted = |made: &&CheckpointInfo| match &args.checkpoint {
        Some(label) => made.label == *label,
        None => made.place == CheckpointPlace::Current,
    };
    let to = all.iter().find(wanted).cloned().ok_or_else(|| none(&seen.name, &all))?;
    let question = format!(
        "Make branch {} what it was at checkpoint {} ({}, {})? What was written since goes, and its sessions end. It can be undone for \
         as long as history is kept.",
        seen.name, to.label, to.created_at, to.lsn
    );
    let details = json!({ "branch": seen.name, "checkpoint": to.label, "lsn": to.lsn });
    Ok(Preparation::Ask { question, details, prepared: Prepared::Rewind { seen, to: Box::new(to) } })
}

async fn all(call: &Call, branch: &str) -> Result<Vec<CheckpointInfo>, Trouble> {
    let branch = branch.to_owned();
    let list = call.blocking("asking for the checkpoints", move |api, _| checkpoint::all(api, &branch)).await?;
    Ok(list.checkpoints)
}

fn none(branch: &str, all: &[CheckpointInfo]) -> Failure {
    let newest: Vec<&str> = all.iter().rev().take(LABELS_SHOWN).map(|made| made.label.as_str()).collect();
    let hint = match newest.is_empty() {
        true => "make one before each step of your work, with the tool checkpoint".to_owned(),
        false => format!("name one that it has, such as {}", newest.join(", ")),
    };
    Failure::from(ErrorInfo::new(ApiErrorCode::NotFound, format!("branch {branch} has no such checkpoint"))).hint(hint)
}

/// Does it, if the checkpoint is the one that was confirmed.
pub async fn rewind(call: &Call, seen: &BranchInfo, to: &CheckpointInfo) -> Result<Outcome, Trouble> {
    unchanged(call, seen).await?;
    let is_same =
        |made: &CheckpointInfo| (&made.label, made.timeline_id, made.lsn) == (&to.label, to.timeline_id, to.lsn);
    if !all(call, &seen.name).await?.iter().any(is_same) {
        let message =
            format!("checkpoint {} of branch {} is another one than when this was confirmed", to.label, seen.name);
        let error = ErrorInfo::new(ApiErrorCode::Conflict, message);
        return Err(Failure::from(error).hint("call again without confirmation").into());
    }
    let (branch, label) = (seen.name.clone(), to.label.clone());
    let reply: SwitchReply =
        call.blocking("rewinding the branch", move |api, _| checkpoint::go_back(api, &branch, Some(label))).await?;
    let message = format!("branch {} is what it was at checkpoint {}, {}", reply.branch.name, to.label, reply.at_lsn);
    let undo = format!("ardent branch restore {} --at {}", reply.branch.name, reply.undo_at);
    let details = json!({ "undo_command": undo, "undo_until": reply.undo_until });
    Ok(Outcome::new(State::Done, message, details))
}
