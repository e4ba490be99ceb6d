//! Branches, their history and their checkpoints.

use super::{Fields, Object};

/// What a branch has in every reply.
pub(super) const BRANCH: Fields = &[
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

/// What [`BRANCH`] has besides when it was just made.
pub(super) const CREATED: Fields =
    &[("created", "boolean"), ("server_us", "integer"), ("waited_us", "integer"), ("warnings", "[string]")];

/// What [`BRANCH`] has besides when it was just reset, restored or rewound.
pub(super) const SWITCHED: Fields = &[
    ("at_lsn", "Lsn"),
    ("checkpoint", "string?"),
    ("undo_at", "Time"),
    ("undo_until", "Time"),
    ("server_us", "integer"),
];

pub(super) const OBJECTS: &[Object] = &[
    (
        "CreateBranch",
        &[
            ("name", "string"),
            ("from", "string?"),
            ("connector", "string?"),
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
    ("CreateCheckpoint", &[("label", "string?")]),
    ("Rewind", &[("checkpoint", "string?")]),
    (
        "Checkpoint",
        &[
            ("schema_version", "integer"),
            ("branch", "string"),
            ("label", "string"),
            ("timeline_id", "string"),
            ("lsn", "Lsn"),
            ("created_at", "Time"),
            ("place", "CheckpointPlace"),
            ("kept", "boolean"),
            ("kept_until", "Time?"),
        ],
    ),
    ("CheckpointList", &[("schema_version", "integer"), ("name", "string"), ("checkpoints", "[Checkpoint]")]),
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
    ("Reindexed", &[("schema_version", "integer"), ("name", "string"), ("databases", "[ReindexedDatabase]")]),
    ("ReindexedDatabase", &[("database", "string"), ("collations", "[string]"), ("indexes", "[string]")]),
];
