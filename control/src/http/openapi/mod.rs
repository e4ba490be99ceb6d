//! The OpenAPI document: operations in `operations.rs`, objects in a file for each thing that they are about. A test compares it with
//! the routes and with what the types really serialize to.

mod branches;
mod changes;
mod connectors;
mod log;
mod masking;
mod operations;
mod server;

use serde_json::{Map, Value, json};

use ardent_api::control::ApiErrorCode;

use branches::{BRANCH, CREATED, SWITCHED};
use operations::OPERATIONS;

/// Fields of an object, each with its kind; a `?` after the kind: may be null or absent.
type Fields = &'static [(&'static str, &'static str)];

/// The name of its schema, and what it has.
type Object = (&'static str, Fields);

/// Every object.
const OBJECTS: [&[Object]; 6] =
    [server::OBJECTS, connectors::OBJECTS, branches::OBJECTS, log::OBJECTS, changes::OBJECTS, masking::OBJECTS];

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
        for part in ["name", "label", "token"] {
            if path.contains(&format!("{{{part}}}")) {
                parameters
                    .push(json!({ "name": part, "in": "path", "required": true, "schema": { "type": "string" } }));
            }
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
    for (name, fields) in OBJECTS.into_iter().flatten() {
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
    schemas.insert("CheckpointPlace".into(), words(&["current", "passed", "left"]));
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
                ("bytes_total", "integer"), ("elapsed_ms", "integer"), ("waits_for", "[string]")]),
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
