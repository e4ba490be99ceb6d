//! Tools that list, show and make branches.

use ardent_api::control::{
    BranchInfo, BranchList, BranchName, CreateBranchReply, CreateBranchRequest, ErrorInfo, UrlReply,
};
use ardent_api::policy::BranchPolicy;
use rmcp::schemars::{self, JsonSchema};
use serde::{Deserialize, Serialize};

use super::answer::Trouble;
use super::call::Call;
use crate::commands::{branch, path_name};
use crate::duration::{parse_lifetime, parse_milliseconds, parse_size};
use crate::failure::Failure;

/// Most branches that are listed.
const LISTED_MAX: usize = 200;

/// Which branches to list.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListArgs {
    /// Only branches whose name contains this
    pub contains: Option<String>,
}

/// Which branch.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BranchArgs {
    /// The branch's name
    pub branch: String,
}

/// Which branch, and as whom.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectionArgs {
    /// The branch's name
    pub branch: String,
    /// The role to connect as; absent: the branch's own
    pub role: Option<String>,
}

/// What branch to make.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateArgs {
    /// Its name: a-z, 0-9 and -, at most 63 characters
    pub branch: String,
    /// The branch to start from; absent: production's newest state
    pub from: Option<String>,
    /// Start from a masked template of this name in place of a branch: nothing that was there before it was masked can be read; "" is the
    /// only template
    pub masked: Option<String>,
    /// "latest", an LSN, or a time such as 2026-01-31T12:00:00Z in that branch's history; absent: now
    pub at: Option<String>,
    /// Delete it after this long, such as "2h" or "3d"; absent: never
    pub ttl: Option<String>,
    /// Refuse every change on it
    #[serde(default)]
    pub read_only: bool,
    /// No statement runs longer than this, such as "30s"
    pub statement_timeout: Option<String>,
    /// Most rows that may be inserted, updated and deleted on it
    pub max_rows_changed: Option<u64>,
    /// Most bytes of WAL that may be written on it, such as "1GB"
    pub max_bytes_written: Option<String>,
}

/// A branch, in short.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Branch {
    /// Its name
    name: String,
    /// The branch that it was made from; null: it follows production
    parent: Option<String>,
    /// The template by which its data is masked; null: it holds what production does
    masked: Option<String>,
    /// Follows a production server: it cannot be connected to, branches are made from it
    is_root: bool,
    /// The connector to production that it descends from
    connector: String,
    /// Where it leaves its parent
    branch_lsn: Option<String>,
    /// What its Postgres does: none, suspended, starting, running, stopping; the next query starts one that is suspended
    compute: String,
    /// Why it did not start, if it did not
    problem: Option<String>,
    created_at: String,
    /// When it is deleted; null: never
    expires_at: Option<String>,
    /// The branch refuses every change
    read_only: bool,
    statement_timeout_ms: Option<u64>,
    max_rows_changed: Option<u64>,
    rows_changed: Option<u64>,
    max_bytes_written: Option<u64>,
    /// The role and the database that queries use if none is named
    role: String,
    database: String,
    /// Branches made from it
    children: Vec<String>,
}

impl From<BranchInfo> for Branch {
    fn from(info: BranchInfo) -> Self {
        Branch {
            name: info.name,
            parent: info.parent,
            masked: info.masked,
            is_root: info.is_root,
            connector: info.connector,
            branch_lsn: info.branch_lsn.map(|lsn| lsn.to_string()),
            compute: info.compute.as_str().to_owned(),
            problem: info.compute_problem,
            created_at: info.created_at,
            expires_at: info.expires_at,
            read_only: info.policy.read_only,
            statement_timeout_ms: info.policy.statement_timeout_ms,
            max_rows_changed: info.policy.max_rows_changed,
            rows_changed: info.rows_changed,
            max_bytes_written: info.policy.max_bytes_written,
            role: info.role,
            database: info.database,
            children: info.children,
        }
    }
}

/// Branches, by name.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Branches {
    branches: Vec<Branch>,
    /// How many more there are
    left_out: usize,
}

/// A branch that was asked for.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Created {
    /// False: it was there already, and is as it was
    created: bool,
    branch: Branch,
    /// What there is to know about it
    warnings: Vec<String>,
}

/// How to connect.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Connection {
    branch: String,
    role: String,
    /// The connection string, with its password
    url: String,
}

/// `list_branches`.
pub async fn list(call: &Call, args: ListArgs) -> Result<Branches, Trouble> {
    let list: BranchList = call.blocking("listing branches", |api, _| api.get("/v1/branches")).await?;
    let wanted = |branch: &BranchInfo| args.contains.as_ref().is_none_or(|part| branch.name.contains(part.as_str()));
    let mut branches: Vec<Branch> = list.branches.into_iter().filter(wanted).map(Branch::from).collect();
    let left_out = branches.len().saturating_sub(LISTED_MAX);
    branches.truncate(LISTED_MAX);
    Ok(Branches { branches, left_out })
}

/// What the server says of a branch.
pub async fn look(call: &Call, name: &str) -> Result<BranchInfo, Trouble> {
    let path = format!("/v1/branches/{}", path_name(name)?);
    call.blocking("asking for the branch", move |api, _| api.get(&path)).await
}

/// `branch_info`.
pub async fn info(call: &Call, args: BranchArgs) -> Result<Branch, Trouble> {
    Ok(look(call, &args.branch).await?.into())
}

/// `create_branch`.
pub async fn create(call: &Call, args: CreateArgs) -> Result<Created, Trouble> {
    let name: BranchName = args.branch.parse().map_err(|error| Failure::from(ErrorInfo::from(error)))?;
    let number = |text: Option<&str>, parse: fn(&str) -> Result<u64, String>| -> Result<Option<u64>, Failure> {
        text.map(parse).transpose().map_err(Failure::usage)
    };
    let request = CreateBranchRequest {
        name: name.as_str().to_owned(),
        from: args.from,
        masked: args.masked,
        at: args.at,
        ttl_s: number(args.ttl.as_deref(), parse_lifetime)?.filter(|seconds| *seconds > 0),
        policy: BranchPolicy {
            read_only: args.read_only,
            statement_timeout_ms: number(args.statement_timeout.as_deref(), parse_milliseconds)?,
            max_rows_changed: args.max_rows_changed,
            max_bytes_written: number(args.max_bytes_written.as_deref(), parse_size)?,
        },
        ..CreateBranchRequest::default()
    };
    let reply: CreateBranchReply =
        call.blocking("making the branch", move |api, _| api.post("/v1/branches", &request)).await?;
    Ok(Created { created: reply.created, branch: reply.branch.into(), warnings: reply.warnings })
}

/// `connection_string`.
pub async fn connection(call: &Call, args: ConnectionArgs) -> Result<Connection, Trouble> {
    let reply: UrlReply = call
        .blocking("asking for the connection string", move |api, _| {
            branch::url(api, &args.branch, args.role.as_deref())
        })
        .await?;
    Ok(Connection { branch: reply.name, role: reply.role, url: reply.url })
}
