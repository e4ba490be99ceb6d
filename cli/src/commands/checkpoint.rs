//! `ardent branch checkpoint ...` and `ardent branch rewind`.

use ardent_api::control::{
    ApiErrorCode, BranchInfo, CheckpointInfo, CheckpointLabel, CheckpointList, CreateCheckpointRequest, DeleteReply,
    ErrorInfo, RewindRequest, SCHEMA_VERSION, SwitchReply,
};
use serde::Serialize;

use super::{history, path_name};
use crate::api::Api;
use crate::args::{
    BranchRewindArgs, CheckpointCommand, CheckpointCreateArgs, CheckpointDeleteArgs, CheckpointListArgs,
};
use crate::config::branch_or_default;
use crate::failure::Failure;
use crate::output::{Output, table};

/// Runs one of the commands.
pub fn run(output: &Output, api: &Api, command: &CheckpointCommand) -> Result<(), Failure> {
    match command {
        CheckpointCommand::Create(args) => create(output, api, args),
        CheckpointCommand::List(args) => list(output, api, args),
        CheckpointCommand::Delete(args) => delete(output, api, args),
    }
}

fn create(output: &Output, api: &Api, args: &CheckpointCreateArgs) -> Result<(), Failure> {
    let name = branch_or_default(args.branch.as_deref())?;
    let made = mark(api, &name, args.label.clone())?;
    output.note(&format!(
        "checkpoint {} of branch {} is at {}; back to it: ardent branch rewind {} {}",
        made.label, made.branch, made.lsn, made.branch, made.label
    ));
    output.data(&made, |made| made.label.clone())
}

/// Asks the server for a checkpoint.
pub fn mark(api: &Api, branch: &str, label: Option<String>) -> Result<CheckpointInfo, Failure> {
    api.post(&format!("/v1/branches/{}/checkpoints", path_name(branch)?), &CreateCheckpointRequest { label })
}

/// Asks the server for a branch's checkpoints.
pub fn all(api: &Api, branch: &str) -> Result<CheckpointList, Failure> {
    api.get(&format!("/v1/branches/{}/checkpoints", path_name(branch)?))
}

fn list(output: &Output, api: &Api, args: &CheckpointListArgs) -> Result<(), Failure> {
    let list = all(api, &branch_or_default(args.branch.as_deref())?)?;
    // What to do next is said to people only.
    let is_root = list.checkpoints.is_empty() && !output.json && branch(api, &list.name)?.is_root;
    output.data(&list, |list| list_text(list, is_root))
}

fn branch(api: &Api, name: &str) -> Result<BranchInfo, Failure> {
    api.get(&format!("/v1/branches/{}", path_name(name)?))
}

fn list_text(list: &CheckpointList, is_root: bool) -> String {
    if list.checkpoints.is_empty() {
        let name = &list.name;
        if is_root {
            return format!("branch {name} has no checkpoints: it follows production, and is not rewound");
        }
        return format!(
            "branch {name} has no checkpoints; make one at each step: ardent branch checkpoint create {name}"
        );
    }
    let kept = |made: &CheckpointInfo| match (&made.kept_until, made.kept) {
        (Some(until), _) => until.clone(),
        (None, true) => "still there".to_owned(),
        (None, false) => "gone".to_owned(),
    };
    let row = |made: &CheckpointInfo| {
        vec![
            made.label.clone(),
            made.lsn.to_string(),
            made.created_at.clone(),
            made.place.as_str().to_owned(),
            kept(made),
        ]
    };
    let rows: Vec<Vec<String>> = list.checkpoints.iter().map(row).collect();
    table(&["LABEL", "LSN", "MADE", "PLACE", "KEPT UNTIL"], &rows)
}

/// What a delete of several prints with `--json`.
#[derive(Serialize)]
struct Deleted {
    schema_version: u32,
    branch: String,
    deleted: Vec<String>,
}

fn delete(output: &Output, api: &Api, args: &CheckpointDeleteArgs) -> Result<(), Failure> {
    let branch = path_name(&args.branch)?;
    // One that is not there stops the whole, before any is forgotten.
    let labels = to_delete(&args.labels, &all(api, &branch)?)?;
    let (mut deleted, mut failure) = (Vec::new(), None);
    for label in &labels {
        match api.delete::<DeleteReply>(&format!("/v1/branches/{branch}/checkpoints/{}", label.as_str())) {
            Ok(reply) => deleted.push(reply.name),
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    if !deleted.is_empty() {
        let reply = Deleted { schema_version: SCHEMA_VERSION, branch: args.branch.clone(), deleted };
        output.data(&reply, |reply| format!("forgot {} of branch {}", reply.deleted.join(", "), reply.branch))?;
    }
    failure.map_or(Ok(()), Err)
}

/// The labels, each once. An error names the first one that the branch does not have.
fn to_delete(given: &[String], list: &CheckpointList) -> Result<Vec<CheckpointLabel>, Failure> {
    let mut labels: Vec<CheckpointLabel> = Vec::new();
    for text in given {
        let label: CheckpointLabel = text.parse().map_err(ErrorInfo::from)?;
        if !list.checkpoints.iter().any(|made| made.label == *text) {
            let message = format!("branch {} has no checkpoint {text:?}: nothing was deleted", list.name);
            let hint = format!("see which it has: ardent branch checkpoint list {}", list.name);
            return Err(ErrorInfo::new(ApiErrorCode::NotFound, message).with_hint(hint).into());
        }
        if !labels.contains(&label) {
            labels.push(label);
        }
    }
    Ok(labels)
}

/// `ardent branch rewind`.
pub fn rewind(output: &Output, api: &Api, args: &BranchRewindArgs) -> Result<(), Failure> {
    let name = branch_or_default(args.branch.as_deref())?;
    let reply = go_back(api, &name, args.label.clone()).map_err(|failure| {
        // A label alone is taken for a branch.
        let is_alone = args.label.is_none() && failure.info.code == ApiErrorCode::NotFound;
        let meant = branch_or_default(None).ok().filter(|meant| is_alone && *meant != name);
        match meant {
            // It is only a hint: where nobody can say what there is, there is none.
            Some(meant) if branch(api, &name).is_err() && branch(api, &meant).is_ok() => {
                failure.hint(format!("a checkpoint comes after its branch: ardent branch rewind {meant} {name}"))
            }
            _ => failure,
        }
    })?;
    let checkpoint = reply.checkpoint.as_deref().unwrap_or_default();
    let what = format!("branch {} is what it was at checkpoint {checkpoint}, {}", reply.branch.name, reply.at_lsn);
    history::say_what_was_done(output, &reply, &what)
}

/// Asks the server to rewind a branch.
pub fn go_back(api: &Api, branch: &str, checkpoint: Option<String>) -> Result<SwitchReply, Failure> {
    api.post(&format!("/v1/branches/{}/rewind", path_name(branch)?), &RewindRequest { checkpoint })
}

#[cfg(test)]
mod tests {
    use ardent_api::control::CheckpointPlace;
    use ardent_types::{Lsn, TimelineId};

    use super::*;

    #[test]
    fn a_list_says_what_can_be_gone_to_and_deleted() {
        let made = |label: &str, place, kept, kept_until: Option<&str>| CheckpointInfo {
            schema_version: SCHEMA_VERSION,
            branch: "x".into(),
            label: label.into(),
            timeline_id: TimelineId::NONE,
            lsn: Lsn::new(0x100),
            created_at: "A".into(),
            place,
            kept,
            kept_until: kept_until.map(str::to_owned),
        };
        let checkpoints = vec![
            made("step-1", CheckpointPlace::Passed, false, None),
            made("mine", CheckpointPlace::Left, true, None),
            made("step-2", CheckpointPlace::Current, true, Some("B")),
        ];
        let list = CheckpointList { schema_version: SCHEMA_VERSION, name: "x".into(), checkpoints };
        let expect = "LABEL   LSN         MADE  PLACE    KEPT UNTIL
step-1  0/00000100  A     passed   gone
mine    0/00000100  A     left     still there
step-2  0/00000100  A     current  B
";
        assert_eq!(list_text(&list, false), expect);
        let given = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect::<Vec<String>>();
        let labels = to_delete(&given(&["mine", "step-1", "mine"]), &list).expect("all are there");
        assert_eq!(labels.iter().map(CheckpointLabel::as_str).collect::<Vec<_>>(), ["mine", "step-1"]);
        let error = to_delete(&given(&["mine", "zzz"]), &list).expect_err("one is not").info;
        assert_eq!(error.code, ApiErrorCode::NotFound);
        assert!(error.message.contains("\"zzz\": nothing was deleted"), "{error:?}");
        let none = CheckpointList { checkpoints: Vec::new(), ..list };
        assert!(list_text(&none, false).contains("ardent branch checkpoint create x"));
        assert!(!list_text(&none, true).contains("checkpoint create"));
    }
}
