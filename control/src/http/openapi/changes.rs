//! What branches changed: diff, rebase, apply.

use super::Object;

pub(super) const OBJECTS: &[Object] = &[
    ("Diff", &[("tables", "[string]?"), ("against", "string?"), ("since", "string?"), ("part", "DiffPart?")]),
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
    ("SequenceChange", &[("schema", "string"), ("name", "string"), ("old", "integer?"), ("new", "integer?")]),
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
            ("large_objects", "integer"),
            ("sequences", "integer"),
            ("already_there", "integer"),
            ("settled", "integer"),
            ("conflicts", "[Object]"),
            ("conflicts_left_out", "integer"),
            ("notes", "[string]"),
        ],
    ),
    (
        "ApplyEvent",
        &[
            ("progress", "string?"),
            ("ready", "Object?"),
            ("done", "Object?"),
            ("error", "ErrorInfo?"),
            ("unknown", "ErrorInfo?"),
        ],
    ),
    ("Commit", &[("schema_version", "integer")]),
];
