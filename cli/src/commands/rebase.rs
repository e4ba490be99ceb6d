//! `ardent branch rebase`.

use ardent_api::control::{ApiErrorCode, ErrorInfo};
use ardent_change_set::{Prefer, RebaseReply, RebaseRequest};

use super::{apply, path_name};
use crate::api::Api;
use crate::args::BranchRebaseArgs;
use crate::config::branch_or_default;
use crate::failure::Failure;
use crate::output::{Output, counted};

/// Takes a branch's changes onto the newest state of its parent, or takes that back.
pub fn run(output: &Output, api: &Api, args: &BranchRebaseArgs) -> Result<(), Failure> {
    let name = path_name(&branch_or_default(args.name.as_deref())?)?;
    let prefer = args.prefer.as_deref().map(|side| if side == "branch" { Prefer::Branch } else { Prefer::Target });
    let request = RebaseRequest { dry_run: args.dry_run, prefer, undo: args.undo };
    let reply: RebaseReply = api.post_long(&format!("/v1/branches/{name}/rebase"), &request)?;
    output.data(&reply, |reply| if args.undo { undone_text(reply) } else { text(reply) })?;
    if reply.dry_run && reply.conflicts.is_empty() {
        output.note("nothing was changed; the same without --dry-run does it");
    }
    match apply::conflicts(reply.conflicts.len() as u64 + reply.conflicts_left_out) {
        None => Ok(()),
        Some(plural) => Err(ErrorInfo::new(ApiErrorCode::Conflict, format!("{plural}: nothing was changed"))
            .with_hint("make branch and parent agree, or choose a side: --prefer branch, or --prefer parent")
            .into()),
    }
}

fn undone_text(reply: &RebaseReply) -> String {
    let RebaseReply { name, from_lsn, onto_lsn, .. } = reply;
    let mut out = format!("{name} has the other state again, on {onto_lsn} in place of {from_lsn}\n");
    if let Some(kept) = &reply.kept_as {
        out.push_str(&format!("what it was is branch {kept}; back to that: ardent branch rebase {name} --undo\n"));
    }
    out
}

fn text(reply: &RebaseReply) -> String {
    let mut out = String::new();
    for conflict in &reply.conflicts {
        out.push_str(&apply::conflict_text(conflict, "parent"));
    }
    if reply.conflicts_left_out > 0 {
        out.push_str(&format!("and {} more\n", counted(reply.conflicts_left_out, "conflict")));
    }
    for note in &reply.notes {
        out.push_str(&format!("note: {note}\n"));
    }
    let RebaseReply { name, from_lsn, onto_lsn, statements, rows, already_there, settled, .. } = reply;
    if reply.conflicts.is_empty() {
        let verb = match (reply.rebased, reply.dry_run) {
            (_, true) => "would take",
            (true, _) => "took",
            _ => "did not take",
        };
        let others = apply::beside_rows(reply.large_objects, reply.sequences);
        out.push_str(&format!(
            "{verb} {name} from {from_lsn} onto {onto_lsn}: {}; {} inserted, {} updated, {} deleted{others}; {}; {} settled\n",
            counted(*statements, "statement"),
            counted(rows.inserted, "row"),
            rows.updated,
            rows.deleted,
            apply::already_there(*already_there),
            counted(*settled, "row")
        ));
    }
    if let Some(kept) = &reply.kept_as {
        out.push_str(&format!("the state from before is branch {kept}; undo: ardent branch rebase {name} --undo\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_row_is_counted_too() {
        let check = |large_objects, sequences, words: &str| {
            let reply = RebaseReply { rebased: true, large_objects, sequences, ..RebaseReply::default() };
            let said = text(&reply);
            assert!(said.contains(words), "{said}");
        };
        check(0, 0, "0 deleted; 0 changes were there already");
        check(1, 2, "0 deleted; 1 large object changed; 2 sequences set; 0 changes");
    }
}
