//! The server, its safekeepers and tokens, and what every reply may be.

use super::Object;

pub(super) const OBJECTS: &[Object] = &[
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
            ("open_files_max", "integer?"),
            ("disk_free_bytes", "integer?"),
            ("disk_size_bytes", "integer?"),
            ("storage_problems", "[string]"),
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
    ("Error", &[("schema_version", "integer"), ("error", "ErrorInfo")]),
    ("ErrorInfo", &[("code", "ErrorCode"), ("message", "string"), ("hint", "string?")]),
];
