//! The OpenAPI document. A test compares it with the routes and with what the types really serialize to.

use serde_json::{Map, Value, json};

use ardent_api::control::ApiErrorCode;

/// One operation: method, path, what it does, body schema, reply schema.
type Operation = (&'static str, &'static str, &'static str, Option<&'static str>, &'static str);

/// Every public operation.
pub(crate) const OPERATIONS: &[Operation] = &[
    ("get", "/v1/openapi.json", "This document", None, "Object"),
    ("get", "/v1/status", "Facts about the server", None, "Status"),
    ("get", "/v1/safekeepers", "How each safekeeper is", None, "SafekeeperList"),
    (
        "post",
        "/v1/safekeepers/change",
        "Begin to change which safekeepers there are",
        Some("ChangeSafekeepers"),
        "SafekeeperChange",
    ),
    ("delete", "/v1/safekeepers/change", "Give up the change that is on its way", None, "SafekeeperList"),
    ("get", "/v1/whoami", "Whose token this is", None, "Whoami"),
    ("delete", "/v1/token", "Revoke the token that the request carries", None, "Deleted"),
    ("get", "/v1/connectors", "All connectors", None, "ConnectorList"),
    (
        "post",
        "/v1/connectors",
        "Connect a production server; NDJSON, one event a line",
        Some("CreateConnector"),
        "ConnectorEvent",
    ),
    (
        "post",
        "/v1/connectors/preflight",
        "Look at a server that may become a source",
        Some("Preflight"),
        "PreflightReport",
    ),
    ("get", "/v1/connectors/{name}", "One connector with its lag", None, "Connector"),
    (
        "post",
        "/v1/connectors/{name}/verify",
        "Hold production and the root branch of a connector in logical mode against one another",
        None,
        "Verified",
    ),
    (
        "post",
        "/v1/connectors/{name}/move",
        "Follow the same production at another URL, or the server that has taken its place",
        Some("MoveConnector"),
        "Connector",
    ),
    (
        "post",
        "/v1/branches/{name}/reindex-collations",
        "Make the indexes anew whose texts this host sorts otherwise than the server that made them",
        None,
        "Reindexed",
    ),
    (
        "post",
        "/v1/connectors/{name}/resume",
        "Try again at once what could not go on, after SQL on the root branch of a connector in logical mode",
        Some("ResumeConnector"),
        "Connector",
    ),
    (
        "post",
        "/v1/connectors/{name}/tables",
        "Take over tables that are new on production, with their rows, into a connector in logical mode",
        Some("AddTables"),
        "AddedTables",
    ),
    ("delete", "/v1/connectors/{name}", "Delete a connector that has no branches", None, "Deleted"),
    (
        "get",
        "/v1/branches",
        "All branches; query deleted=true: those that were deleted and can be had back",
        None,
        "BranchList",
    ),
    (
        "post",
        "/v1/branches",
        "Make a branch, or answer with the one that has the name",
        Some("CreateBranch"),
        "CreatedBranch",
    ),
    ("get", "/v1/branches/{name}", "One branch", None, "Branch"),
    ("patch", "/v1/branches/{name}", "Change a branch's settings", Some("UpdateBranch"), "Branch"),
    (
        "delete",
        "/v1/branches/{name}",
        "Delete a branch that has no children; query for_good=true: it cannot be had back",
        None,
        "Deleted",
    ),
    ("get", "/v1/branches/{name}/url", "The connection string with its password; query role", None, "Url"),
    ("get", "/v1/branches/{name}/unnamed-files", "Files that no catalog names", None, "UnnamedFiles"),
    (
        "post",
        "/v1/branches/{name}/password",
        "A new password for a role, in place of the old one",
        Some("Password"),
        "Url",
    ),
    ("post", "/v1/branches/{name}/wake", "Start the branch's Postgres and wait for it", None, "Wake"),
    ("post", "/v1/branches/{name}/suspend", "Stop the branch's Postgres", None, "Branch"),
    (
        "post",
        "/v1/branches/{name}/diff",
        "What changed since the branch was made, since an LSN, or against another branch",
        Some("Diff"),
        "DiffReport",
    ),
    (
        "post",
        "/v1/branches/{name}/diff/lines",
        "The same as NDJSON while it is being made: a line for each change, and one that says how it ended",
        Some("Diff"),
        "DiffEvent",
    ),
    (
        "post",
        "/v1/branches/{name}/log",
        "What the branch ran, also while it sleeps: NDJSON, a line for each statement, and one that says how it ended",
        Some("Log"),
        "LogLine",
    ),
    ("post", "/v1/branches/{name}/blame", "Which statement last changed a row", Some("Blame"), "BlameReply"),
    (
        "post",
        "/v1/branches/{name}/rebase",
        "Take the branch's changes onto the newest state of its parent",
        Some("Rebase"),
        "RebaseReport",
    ),
    (
        "post",
        "/v1/connectors/{name}/apply",
        "Apply a branch's changes, or the change set in the body, to production; query request; NDJSON, one event a line",
        None,
        "ApplyEvent",
    ),
    ("get", "/v1/masked", "All masked templates, without their reports", None, "MaskedList"),
    (
        "post",
        "/v1/masked",
        "Mask a branch's data by rules, for branches to be made from; NDJSON, one event a line",
        Some("CreateMasked"),
        "MaskEvent",
    ),
    (
        "post",
        "/v1/masked/check",
        "What rules would do to each column; nothing is masked",
        Some("CheckMasking"),
        "MaskingCheck",
    ),
    ("get", "/v1/masked/{name}", "One masked template with its report", None, "Masked"),
    ("delete", "/v1/masked/{name}", "Delete a masked template that has no branches", None, "Deleted"),
    ("post", "/v1/branches/{name}/reset", "Make the branch what its parent is", Some("Reset"), "SwitchedBranch"),
    ("post", "/v1/branches/{name}/restore", "Make the branch what it was", Some("Restore"), "SwitchedBranch"),
    ("get", "/v1/branches/{name}/history", "What the branch was, and can be restored to", None, "BranchHistory"),
    ("post", "/v1/branches/{name}/undelete", "Bring a deleted branch back", Some("Undelete"), "Branch"),
    ("post", "/v1/branches/{name}/rename", "Give the branch another name", Some("Rename"), "Branch"),
];

/// Fields of an object, each with its kind; a `?` after the kind: may be null or absent.
type Fields = &'static [(&'static str, &'static str)];

const BRANCH: Fields = &[
    ("schema_version", "integer"),
    ("id", "string"),
    ("name", "string"),
    ("state", "BranchState"),
    ("connector", "string"),
    ("is_root", "boolean"),
    ("parent", "string?"),
    ("masked", "string?"),
    ("branch_lsn", "Lsn?"),
    ("tenant_id", "string"),
    ("timeline_id", "string"),
    ("created_at", "Time"),
    ("expires_at", "Time?"),
    ("deleted_at", "Time?"),
    ("kept_until", "Time?"),
    ("retention_s", "integer?"),
    ("compute", "ComputeState"),
    ("compute_problem", "string?"),
    ("missing_libraries", "[string]"),
    ("idle_timeout_s", "integer"),
    ("read_only", "boolean"),
    ("statement_timeout_ms", "integer?"),
    ("max_rows_changed", "integer?"),
    ("max_bytes_written", "integer?"),
    ("rows_changed", "integer?"),
    ("role", "string"),
    ("database", "string"),
    ("url", "string"),
    ("children", "[string]"),
];

/// Every object, by the name of its schema.
pub(crate) const OBJECTS: &[(&str, Fields)] = &[
    (
        "Status",
        &[
            ("schema_version", "integer"),
            ("version", "string"),
            ("started_at", "Time"),
            ("data_dir", "string"),
            ("proxy_host", "string"),
            ("proxy_port", "integer"),
            ("proxy_wildcard", "boolean"),
            ("ca_file", "string"),
            ("connectors", "integer"),
            ("branches", "integer"),
            ("computes_running", "integer"),
            ("clock_problem", "string?"),
        ],
    ),
    (
        "SafekeeperList",
        &[
            ("schema_version", "integer"),
            ("safekeepers", "[Safekeeper]"),
            ("generation", "integer"),
            ("change", "SafekeeperChange?"),
        ],
    ),
    (
        "SafekeeperChange",
        &[
            ("phase", "ChangePhase"),
            ("adding", "[string]"),
            ("removing", "[string]"),
            ("timelines_done", "integer"),
            ("timelines", "integer"),
            ("problem", "string?"),
        ],
    ),
    (
        "ChangeSafekeepers",
        &[("count", "integer?"), ("add", "[string]?"), ("add_own", "integer?"), ("remove", "[string]?")],
    ),
    (
        "Safekeeper",
        &[
            ("number", "integer"),
            ("address", "string"),
            ("disk", "string?"),
            ("is_up", "boolean"),
            ("error", "string?"),
            ("disk_free_bytes", "integer?"),
            ("disk_size_bytes", "integer?"),
            ("kept_for_others_bytes", "integer?"),
            ("archives", "boolean?"),
            ("archive_stalls", "[ArchiveStall]"),
            ("archive_stalls_total", "integer"),
        ],
    ),
    (
        "ArchiveStall",
        &[("branch", "string?"), ("timeline", "string"), ("lsn", "Lsn"), ("for_s", "integer"), ("error", "string")],
    ),
    ("Whoami", &[("schema_version", "integer"), ("token_name", "string"), ("created_at", "Time")]),
    ("Deleted", &[("schema_version", "integer"), ("name", "string"), ("warning", "string?"), ("kept_until", "Time?")]),
    ("Preflight", &[("url", "string"), ("logical", "LogicalOptions?")]),
    ("LogicalOptions", &[("schemas", "[string]?"), ("keyless", "KeylessTables?"), ("new_tables", "NewTables?")]),
    (
        "Logical",
        &[
            ("options", "LogicalOptions"),
            ("phase", "string"),
            ("tables", "integer"),
            ("applied_lsn", "Lsn?"),
            ("left_out", "[string]"),
            ("new_tables", "[string]"),
            ("not_followed", "[SkippedTable]"),
            ("schema_changes", "[string]"),
        ],
    ),
    (
        "Verified",
        &[
            ("schema_version", "integer"),
            ("name", "string"),
            ("at_lsn", "Lsn"),
            ("equal", "boolean"),
            ("tables", "[VerifiedTable]"),
            ("sequences_behind", "[string]"),
            ("not_followed", "[string]"),
            ("schema_differences", "[string]"),
        ],
    ),
    (
        "VerifiedTable",
        &[("table", "string"), ("production_rows", "integer"), ("root_rows", "integer"), ("equal", "boolean")],
    ),
    ("AddTables", &[("tables", "[string]?")]),
    (
        "AddedTables",
        &[
            ("schema_version", "integer"),
            ("name", "string"),
            ("at_lsn", "Lsn?"),
            ("added", "[string]"),
            ("skipped", "[SkippedTable]"),
            ("left_out", "[string]"),
        ],
    ),
    ("SkippedTable", &[("table", "string"), ("why", "string")]),
    ("PreflightCheck", &[("name", "string"), ("outcome", "CheckOutcome"), ("message", "string"), ("fix", "string?")]),
    ("PreflightReport", &[("schema_version", "integer"), ("passed", "boolean"), ("checks", "[PreflightCheck]")]),
    (
        "CreateConnector",
        &[
            ("name", "string?"),
            ("url", "string"),
            ("fast", "boolean?"),
            ("max_rate_bytes", "integer?"),
            ("logical", "LogicalOptions?"),
        ],
    ),
    (
        "Connector",
        &[
            ("schema_version", "integer"),
            ("name", "string"),
            ("state", "ConnectorState"),
            ("source", "string"),
            ("tenant_id", "string"),
            ("timeline_id", "string"),
            ("created_at", "Time"),
            ("pg_major", "integer?"),
            ("following", "boolean"),
            ("problem", "string?"),
            ("ingested_lsn", "Lsn?"),
            ("last_commit_at", "Time?"),
            ("production_lsn", "Lsn?"),
            ("lag_bytes", "integer?"),
            ("lag_seconds", "integer?"),
            ("logical_size_bytes", "integer?"),
            ("slot", "Slot?"),
            ("warnings", "[string]"),
            ("branches", "integer"),
            ("logical", "Logical?"),
        ],
    ),
    (
        "Slot",
        &[
            ("name", "string"),
            ("active", "boolean"),
            ("wal_status", "string?"),
            ("kept_bytes", "integer?"),
            ("safe_bytes", "integer?"),
            ("current", "boolean"),
        ],
    ),
    ("Reindexed", &[("schema_version", "integer"), ("name", "string"), ("databases", "[ReindexedDatabase]")]),
    ("ReindexedDatabase", &[("database", "string"), ("collations", "[string]"), ("indexes", "[string]")]),
    ("ResumeConnector", &[("sql", "string?")]),
    ("MoveConnector", &[("url", "string")]),
    ("ConnectorList", &[("schema_version", "integer"), ("connectors", "[Connector]")]),
    (
        "CreateBranch",
        &[
            ("name", "string"),
            ("from", "string?"),
            ("masked", "string?"),
            ("at", "string?"),
            ("ttl_s", "integer?"),
            ("idle_timeout_s", "integer?"),
            ("role", "string?"),
            ("no_wait", "boolean?"),
            ("read_only", "boolean?"),
            ("statement_timeout_ms", "integer?"),
            ("max_rows_changed", "integer?"),
            ("max_bytes_written", "integer?"),
            ("password_expires_s", "integer?"),
        ],
    ),
    (
        "UpdateBranch",
        &[
            ("idle_timeout_s", "integer?"),
            ("ttl_s", "integer?"),
            ("read_only", "boolean?"),
            ("statement_timeout_ms", "integer?"),
            ("max_rows_changed", "integer?"),
            ("max_bytes_written", "integer?"),
            ("retention_s", "integer?"),
        ],
    ),
    ("Reset", &[("at", "string?")]),
    ("Restore", &[("at", "string")]),
    ("Undelete", &[("name", "string?")]),
    ("Rename", &[("name", "string")]),
    ("BranchHistory", &[("schema_version", "integer"), ("name", "string"), ("stretches", "[HistoryStretch]")]),
    (
        "HistoryStretch",
        &[
            ("timeline_id", "string"),
            ("since", "Time"),
            ("until", "Time?"),
            ("ended_by", "string?"),
            ("kept_until", "Time?"),
            ("oldest_lsn", "Lsn"),
            ("oldest_at", "Time?"),
            ("newest_lsn", "Lsn"),
            ("newest_at", "Time?"),
        ],
    ),
    ("Password", &[("role", "string?"), ("expires_s", "integer?")]),
    ("Branch", BRANCH),
    ("BranchList", &[("schema_version", "integer"), ("branches", "[Branch]")]),
    (
        "Url",
        &[
            ("schema_version", "integer"),
            ("name", "string"),
            ("role", "string"),
            ("url", "string"),
            ("host_address", "string"),
            ("ca_file", "string"),
        ],
    ),
    (
        "UnnamedFiles",
        &[
            ("schema_version", "integer"),
            ("name", "string"),
            ("lsn", "Lsn"),
            ("found", "integer"),
            ("bytes", "integer"),
            ("relations", "[UnnamedRelation]"),
        ],
    ),
    (
        "UnnamedRelation",
        &[
            ("tablespace", "integer"),
            ("database", "integer"),
            ("file", "integer"),
            ("bytes", "integer"),
            ("database_exists", "boolean"),
        ],
    ),
    (
        "Wake",
        &[
            ("schema_version", "integer"),
            ("branch_id", "string"),
            ("compute_id", "string"),
            ("incarnation", "integer"),
            ("socket_dir", "string"),
            ("port", "integer"),
            ("warm", "boolean"),
            ("was_running", "boolean"),
            ("missing_libraries", "[string]"),
            ("waited_ms", "integer"),
        ],
    ),
    ("Diff", &[("tables", "[string]?"), ("against", "string?"), ("part", "DiffPart?")]),
    (
        "Log",
        &[
            ("since", "Time?"),
            ("until", "Time?"),
            ("role", "string?"),
            ("application", "string?"),
            ("client", "string?"),
            ("database", "string?"),
            ("failed", "boolean?"),
            ("writes", "boolean?"),
            ("grep", "string?"),
            ("limit", "integer?"),
            ("follow", "boolean?"),
        ],
    ),
    ("Blame", &[("table", "string"), ("key", "[string]"), ("database", "string?")]),
    (
        "BlameReply",
        &[
            ("schema_version", "integer"),
            ("branch", "string"),
            ("database", "string"),
            ("table", "string"),
            ("key", "[string]"),
            ("xid", "integer"),
            ("found", "BlameFound"),
            ("on_branch", "string?"),
            ("message", "string"),
            ("statements", "[LogEntry]"),
        ],
    ),
    (
        "LogEntry",
        &[
            ("kind", "LogEntryKind"),
            ("at", "Time"),
            ("duration_us", "integer?"),
            ("pid", "integer"),
            ("session_started_at", "Time"),
            ("number", "integer"),
            ("database", "string"),
            ("session_role", "string"),
            ("role", "string"),
            ("application_name", "string"),
            ("client_address", "string?"),
            ("is_own", "boolean"),
            ("statement", "string"),
            ("statement_bytes", "integer"),
            ("parameters", "string?"),
            ("parameters_count", "integer"),
            ("rows", "integer?"),
            ("outcome", "Outcome"),
            ("sqlstate", "string?"),
            ("error", "string?"),
            ("xid", "integer?"),
            ("lsn_from", "Lsn?"),
            ("lsn_to", "Lsn?"),
            ("ended_at", "Time?"),
            ("end_lsn", "Lsn?"),
            ("timeline_id", "string"),
        ],
    ),
    (
        "LogEnd",
        &[
            ("schema_version", "integer"),
            ("branch", "string"),
            ("shown", "integer"),
            ("has_earlier", "boolean"),
            ("begins_at", "Time?"),
            ("is_cut", "boolean"),
            ("damaged", "[string]"),
        ],
    ),
    (
        "DiffEvent",
        &[
            ("type", "string"),
            ("database", "string?"),
            ("schema_version", "integer?"),
            ("from_lsn", "Lsn?"),
            ("to_lsn", "Lsn?"),
            ("error", "ErrorInfo?"),
        ],
    ),
    (
        "DiffReport",
        &[
            ("schema_version", "integer"),
            ("branch", "string"),
            ("against", "string?"),
            ("from_lsn", "Lsn"),
            ("to_lsn", "Lsn"),
            ("changed_blocks", "integer"),
            ("pages_read_branch_point", "integer"),
            ("pages_read_head", "integer"),
            ("databases", "[ChangeSet]"),
            ("databases_not_compared", "[string]"),
        ],
    ),
    ("ChangeSet", &[("database", "string"), ("tables", "[TableChange]"), ("sequences", "[SequenceChange]")]),
    (
        "TableChange",
        &[
            ("schema", "string"),
            ("name", "string"),
            ("renamed_from", "[string]?"),
            ("state", "TableState"),
            ("columns", "[string]"),
            ("columns_added", "[string]"),
            ("columns_dropped", "[string]"),
            ("key", "[string]"),
            ("rows", "[Object]"),
        ],
    ),
    ("Rebase", &[("dry_run", "boolean?"), ("prefer", "string?"), ("undo", "boolean?")]),
    (
        "RebaseReport",
        &[
            ("schema_version", "integer"),
            ("name", "string"),
            ("rebased", "boolean"),
            ("dry_run", "boolean"),
            ("from_lsn", "Lsn"),
            ("onto_lsn", "Lsn"),
            ("kept_as", "string?"),
            ("statements", "integer"),
            ("rows", "Object"),
            ("already_there", "integer"),
            ("settled", "integer"),
            ("conflicts", "[Object]"),
            ("conflicts_left_out", "integer"),
            ("notes", "[string]"),
        ],
    ),
    ("CreateMasked", &[("name", "string"), ("from", "string?"), ("rules", "string")]),
    ("CheckMasking", &[("from", "string?"), ("rules", "string")]),
    ("MaskingCheck", &[("schema_version", "integer"), ("from", "string"), ("columns", "[MaskedColumn]")]),
    (
        "MaskedColumn",
        &[
            ("database", "string"),
            ("schema", "string"),
            ("table", "string"),
            ("column", "string"),
            ("data_type", "string"),
            ("action", "string"),
            ("rule", "string"),
            ("rows", "integer?"),
            ("values", "integer?"),
            ("unchanged", "integer?"),
        ],
    ),
    (
        "Masked",
        &[
            ("schema_version", "integer"),
            ("name", "string"),
            ("connector", "string"),
            ("from", "string"),
            ("source_lsn", "Lsn?"),
            ("lsn", "Lsn?"),
            ("created_at", "Time"),
            ("ready", "boolean"),
            ("branches", "[string]"),
            ("report", "MaskReport?"),
        ],
    ),
    ("MaskReport", &[("columns", "[MaskedColumn]"), ("secrets", "MaskedSecrets"), ("relations_rewritten", "integer")]),
    (
        "MaskedSecrets",
        &[
            ("role_passwords", "integer"),
            ("settings", "integer"),
            ("subscriptions", "integer"),
            ("foreign_options", "integer"),
            ("large_object_pages", "integer?"),
            ("prepared_transactions", "integer"),
        ],
    ),
    ("MaskedList", &[("schema_version", "integer"), ("templates", "[Masked]")]),
    ("MaskEvent", &[("progress", "string?"), ("done", "Masked?"), ("error", "ErrorInfo?")]),
    ("ApplyEvent", &[("progress", "string?"), ("done", "Object?"), ("error", "ErrorInfo?")]),
    ("SequenceChange", &[("schema", "string"), ("name", "string"), ("old", "integer?"), ("new", "integer?")]),
    ("Error", &[("schema_version", "integer"), ("error", "ErrorInfo")]),
    ("ErrorInfo", &[("code", "ErrorCode"), ("message", "string"), ("hint", "string?")]),
];

/// What [`BRANCH`] has besides when it was just made.
pub(crate) const CREATED: Fields =
    &[("created", "boolean"), ("server_us", "integer"), ("waited_us", "integer"), ("warnings", "[string]")];

/// What [`BRANCH`] has besides when it was just reset or restored.
pub(crate) const SWITCHED: Fields =
    &[("at_lsn", "Lsn"), ("undo_at", "Time"), ("undo_until", "Time"), ("server_us", "integer")];

/// The document.
pub(crate) fn document() -> Value {
    let mut paths = Map::new();
    for (method, path, summary, body, reply) in OPERATIONS {
        let item = paths.entry(*path).or_insert_with(|| json!({}));
        let media = if reply.ends_with("Event") { "application/x-ndjson" } else { "application/json" };
        let mut operation = json!({
            "summary": summary,
            "responses": {
                "200": { "description": "Done", "content": { media: { "schema": schema(reply) } } },
                "default": { "description": "Failed", "content": { "application/json": { "schema": schema("Error") } } },
            },
        });
        if let Some(body) = body {
            operation["requestBody"] =
                json!({ "required": true, "content": { "application/json": { "schema": schema(body) } } });
        }
        let mut parameters = Vec::new();
        if path.contains("{name}") {
            parameters.push(json!({ "name": "name", "in": "path", "required": true, "schema": { "type": "string" } }));
        }
        let query = match (*method, *path) {
            ("get", "/v1/branches/{name}/url") => Some(("role", "string")),
            ("get", "/v1/branches") => Some(("deleted", "boolean")),
            ("delete", "/v1/branches/{name}") => Some(("for_good", "boolean")),
            _ => None,
        };
        if let Some((name, kind)) = query {
            parameters.push(json!({ "name": name, "in": "query", "schema": { "type": kind } }));
        }
        if !parameters.is_empty() {
            operation["parameters"] = Value::Array(parameters);
        }
        item[*method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Ardent",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Branches of a Postgres server. Every request carries a bearer token.",
        },
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas(),
        },
    })
}

fn schemas() -> Value {
    let mut schemas = Map::new();
    for (name, fields) in OBJECTS {
        schemas.insert((*name).to_owned(), object(fields));
    }
    let created: Vec<_> = BRANCH.iter().chain(CREATED).copied().collect();
    schemas.insert("CreatedBranch".into(), object(&created));
    let switched: Vec<_> = BRANCH.iter().chain(SWITCHED).copied().collect();
    schemas.insert("SwitchedBranch".into(), object(&switched));
    schemas.insert("Object".into(), json!({ "type": "object" }));
    schemas.insert("Lsn".into(), json!({ "type": "string", "pattern": "^[0-9A-F]{1,8}/[0-9A-F]{1,8}$" }));
    schemas.insert("Time".into(), json!({ "type": "string", "format": "date-time" }));
    let words = |words: &[&str]| json!({ "type": "string", "enum": words });
    schemas.insert("BranchState".into(), words(&["creating", "ready", "deleting", "deleted"]));
    schemas.insert("ConnectorState".into(), words(&["creating", "ready", "deleting"]));
    schemas.insert("KeylessTables".into(), words(&["refuse", "empty"]));
    schemas.insert("NewTables".into(), words(&["report", "add"]));
    schemas.insert("ChangePhase".into(), words(&["copying", "joint", "settled", "cancelled"]));
    schemas.insert("ComputeState".into(), words(&["none", "suspended", "starting", "running", "stopping"]));
    schemas.insert("TableState".into(), words(&["kept", "created", "dropped"]));
    schemas.insert("DiffPart".into(), words(&["schema", "rows"]));
    schemas.insert("BlameFound".into(), words(&["statement", "transaction", "unchanged", "unknown"]));
    schemas.insert("LogEntryKind".into(), words(&["statement", "no_statement", "lost"]));
    let outcomes = ["done", "committed", "rolled_back", "failed", "prepared", "open"];
    schemas.insert("Outcome".into(), words(&outcomes));
    schemas.insert("CheckOutcome".into(), words(&["ok", "warning", "failed"]));
    schemas.insert("ErrorCode".into(), words(&ApiErrorCode::ALL.map(ApiErrorCode::as_str)));
    let event = |word: &str, fields: Fields| {
        let mut event = object(fields);
        event["properties"]["event"] = json!({ "const": word });
        event
    };
    schemas.insert(
        "ConnectorEvent".into(),
        json!({ "oneOf": [
            event("preflight", &[("event", "string"), ("report", "PreflightReport")]),
            event("progress", &[("event", "string"), ("phase", "string"), ("bytes_done", "integer"),
                ("bytes_total", "integer"), ("elapsed_ms", "integer")]),
            event("done", &[("event", "string"), ("connector", "Connector")]),
            event("error", &[("event", "string"), ("error", "ErrorInfo")]),
        ] }),
    );
    let line = |word: &str, fields: &[&str]| {
        let mut parts =
            vec![json!({ "type": "object", "properties": { "type": { "const": word } }, "required": ["type"] })];
        parts.extend(fields.iter().map(|name| schema(name)));
        json!({ "allOf": parts })
    };
    let mut error = object(&[("type", "string"), ("error", "ErrorInfo")]);
    error["properties"]["type"] = json!({ "const": "error" });
    let lines = [line("entry", &["LogEntry"]), line("waiting", &[]), line("end", &["LogEnd"]), error];
    schemas.insert("LogLine".into(), json!({ "oneOf": lines }));
    Value::Object(schemas)
}

fn object(fields: &[(&str, &str)]) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (name, kind) in fields {
        let (kind, optional) = match kind.strip_suffix('?') {
            Some(kind) => (kind, true),
            None => (*kind, false),
        };
        let plain = match kind.strip_prefix('[').and_then(|kind| kind.strip_suffix(']')) {
            Some(item) => json!({ "type": "array", "items": schema(item) }),
            None => schema(kind),
        };
        if optional {
            properties.insert((*name).to_owned(), json!({ "anyOf": [plain, { "type": "null" }] }));
        } else {
            required.push(*name);
            properties.insert((*name).to_owned(), plain);
        }
    }
    json!({ "type": "object", "properties": properties, "required": required })
}

fn schema(kind: &str) -> Value {
    match kind {
        "string" | "integer" | "boolean" => json!({ "type": kind }),
        named => json!({ "$ref": format!("#/components/schemas/{named}") }),
    }
}
