//! Masked templates.

use super::Object;

pub(super) const OBJECTS: &[Object] = &[
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
];
