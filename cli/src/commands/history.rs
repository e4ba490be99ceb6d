//! `ardent branch reset`, `restore`, `history`, `rename` and `undelete`.

use ardent_api::control::{
    BranchHistory, BranchInfo, BranchName, ErrorInfo, RenameRequest, ResetRequest, RestoreRequest, SwitchReply,
    UndeleteRequest,
};

use super::branch::branch_text;
use super::{path_name, waiting};
use crate::api::Api;
use crate::args::{BranchRenameArgs, BranchResetArgs, BranchRestoreArgs, BranchUndeleteArgs, NameArgs};
use crate::failure::Failure;
use crate::output::{Output, table};

/// `ardent branch reset`.
pub fn reset(output: &Output, api: &Api, args: &BranchResetArgs) -> Result<(), Failure> {
    let request = ResetRequest { at: args.at.clone() };
    let path = format!("/v1/branches/{}/reset", path_name(&args.name)?);
    let what =
        format!("branch {}: what its parent has committed must be ingested, and storage must take it", args.name);
    let reply: SwitchReply = waiting::told(output, api, &what, || api.post(&path, &request))?;
    let parent = reply.branch.parent.as_deref().unwrap_or("its parent");
    let what = format!("branch {} is what {parent} was at {}", reply.branch.name, reply.at_lsn);
    say_what_was_done(output, &reply, &what)
}

/// `ardent branch restore`.
pub fn restore(output: &Output, api: &Api, args: &BranchRestoreArgs) -> Result<(), Failure> {
    let request = RestoreRequest { at: args.at.clone() };
    let path = format!("/v1/branches/{}/restore", path_name(&args.name)?);
    let what = format!("branch {}: storage must take what it was", args.name);
    let reply: SwitchReply = waiting::told(output, api, &what, || api.post(&path, &request))?;
    let what = format!("branch {} is what it was at {}", reply.branch.name, reply.at_lsn);
    say_what_was_done(output, &reply, &what)
}

/// Says what was done, and how to undo it.
pub fn say_what_was_done(output: &Output, reply: &SwitchReply, what: &str) -> Result<(), Failure> {
    output.note(&format!("{what} ({:.1} ms); its sessions have ended", reply.server_us as f64 / 1000.0));
    output.note(&format!(
        "to undo it, until {}: ardent branch restore {} --at {}",
        reply.undo_until, reply.branch.name, reply.undo_at
    ));
    output.data(reply, |reply| branch_text(&reply.branch))
}

/// `ardent branch history`.
pub fn history(output: &Output, api: &Api, args: &NameArgs) -> Result<(), Failure> {
    let history: BranchHistory = api.get(&format!("/v1/branches/{}/history", path_name(&args.name)?))?;
    output.data(&history, history_text)
}

fn history_text(history: &BranchHistory) -> String {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let rows: Vec<Vec<String>> = history
        .stretches
        .iter()
        .map(|stretch| {
            vec![
                stretch.since.clone(),
                stretch.until.clone().unwrap_or_else(|| "now".to_owned()),
                or_dash(&stretch.ended_by),
                stretch.oldest_lsn.to_string(),
                stretch.newest_lsn.to_string(),
                or_dash(&stretch.newest_at),
                or_dash(&stretch.kept_until),
            ]
        })
        .collect();
    table(&["SINCE", "UNTIL", "ENDED BY", "OLDEST", "NEWEST", "LAST COMMIT", "KEPT UNTIL"], &rows)
}

/// `ardent branch rename`.
pub fn rename(output: &Output, api: &Api, args: &BranchRenameArgs) -> Result<(), Failure> {
    let new_name: BranchName = args.new_name.parse().map_err(ErrorInfo::from)?;
    let request = RenameRequest { name: new_name.as_str().to_owned() };
    let branch: BranchInfo = api.post(&format!("/v1/branches/{}/rename", path_name(&args.name)?), &request)?;
    output.note(&format!("branch {} is {} now; its passwords are as they were", args.name, branch.name));
    output.data(&branch, branch_text)
}

/// `ardent branch undelete`.
pub fn undelete(output: &Output, api: &Api, args: &BranchUndeleteArgs) -> Result<(), Failure> {
    let request = UndeleteRequest { name: args.new_name.clone() };
    let branch: BranchInfo = api.post(&format!("/v1/branches/{}/undelete", path_name(&args.name)?), &request)?;
    output.note(&format!("branch {} is back", branch.name));
    output.data(&branch, branch_text)
}

#[cfg(test)]
mod tests {
    use ardent_api::control::{HistoryStretch, SCHEMA_VERSION};
    use ardent_types::{Lsn, TimelineId};

    use super::*;

    #[test]
    fn a_history_is_a_table_of_what_can_be_restored() {
        let stretch = |since: &str, until: Option<&str>| HistoryStretch {
            timeline_id: TimelineId::NONE,
            since: since.into(),
            until: until.map(str::to_owned),
            ended_by: until.map(|_| "reset".to_owned()),
            kept_until: until.map(|_| "D".to_owned()),
            oldest_lsn: Lsn::new(0x100),
            oldest_at: None,
            newest_lsn: Lsn::new(0x200),
            newest_at: None,
        };
        let stretches = vec![stretch("A", Some("B")), stretch("B", None)];
        let history = BranchHistory { schema_version: SCHEMA_VERSION, name: "x".into(), stretches };
        let expect = "SINCE  UNTIL  ENDED BY  OLDEST      NEWEST      LAST COMMIT  KEPT UNTIL
A      B      reset     0/00000100  0/00000200  -            D
B      now    -         0/00000100  0/00000200  -            -
";
        assert_eq!(history_text(&history), expect);
    }
}
