//! The HTTP API: who gets in, what the proxy is told, and that the OpenAPI document is true.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use ardent_api::control::ApiErrorCode;

use crate::world::{SOURCE, World, stall};

#[tokio::test]
async fn strangers_get_nothing_but_a_word() {
    let world = World::connected().await;
    let document = world.get("/v1/openapi.json").await;
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in item.as_object().expect("methods").keys() {
            let method = method.to_uppercase();
            for token in [None, Some("wrong"), Some("")] {
                let (status, text) = world.call_raw(&method, path, None, token).await;
                assert_eq!(status, 401, "{method} {path} with {token:?}");
                assert!(text.contains("not_authenticated"), "{text}");
            }
        }
    }
    assert_eq!(world.call_raw("GET", "/v1/no-such-route", None, None).await.0, 401);
    let (_, who) = world.call("GET", "/v1/whoami", None).await;
    assert_eq!(who["token_name"], "test");
    assert_eq!(world.call("DELETE", "/v1/token", None).await.0, 200);
    assert_eq!(world.call_raw("GET", "/v1/whoami", None, Some(&world.token)).await.0, 401);
}

#[tokio::test]
async fn the_proxys_routes_are_on_the_unix_socket_only() {
    let world = World::connected().await;
    let path = "/internal/v1/auth?branch=shop&role=app";
    assert_eq!(world.call("GET", path, None).await.0, 404);
    let (status, known) = world.internal("GET", path, None).await;
    assert_eq!(status, 200, "{known}");
    let verifier = known["verifier"].as_str().expect("verifier");
    assert!(verifier.starts_with("SCRAM-SHA-256$4096:"), "{verifier}");
    let mut answers = BTreeSet::new();
    for (branch, role) in [("shop", "nobody"), ("no", "app"), ("a.b", "app"), ("", "")] {
        let path = format!("/internal/v1/auth?branch={branch}&role={role}");
        let (status, error) = world.internal("GET", &path, None).await;
        assert_eq!(status, 404);
        answers.insert(error.to_string());
    }
    assert_eq!(answers.len(), 1, "unknown branches and roles are told apart: {answers:?}");
    let (status, error) = world.internal("POST", "/internal/v1/wake", Some(json!({ "branch": "shop" }))).await;
    assert_eq!((status, &error["error"]["code"]), (409, &json!("root_branch")));
    assert_eq!(world.internal("GET", "/v1/status", None).await.0, 401, "the public routes ask for a token there too");
}

/// Longer than what one read of a connection gives.
static LONG_BODY: [u8; 512 << 10] = [b' '; 512 << 10];

#[tokio::test]
async fn a_connection_goes_on_after_a_body_that_nobody_wanted() {
    let world = World::connected().await;
    let request = |method: &str, path: &str| (method.to_owned(), path.to_owned());
    let document = world.get("/v1/openapi.json").await;
    let mut routes = vec![request("GET", "/v1/no-such-route")];
    for (path, item) in document["paths"].as_object().expect("paths") {
        let methods = item.as_object().expect("methods").keys();
        routes.extend(methods.map(|method| request(&method.to_uppercase(), path)));
    }
    let strangers = world.call_in_turn(&routes, &LONG_BODY, None).await;
    assert_eq!(strangers, vec![401; routes.len()]);
    let requests = [
        request("POST", "/v1/branches/no/wake"),
        request("POST", "/v1/branches/no/suspend"),
        request("GET", "/v1/status"),
        request("POST", "/v1/branches"),
        request("PUT", "/v1/branches"),
        request("GET", "/v1/no-such-route"),
        request("GET", "/v1/whoami"),
    ];
    let answers = world.call_in_turn(&requests, &LONG_BODY, Some(&world.token)).await;
    assert_eq!(answers, [404, 404, 200, 400, 404, 404, 200]);
    let requests = [request("GET", "/internal/v1/auth?branch=no&role=app"), request("POST", "/internal/v1/wake")];
    assert_eq!(world.internal_in_turn(&requests, &LONG_BODY).await, [404, 400]);
}

/// The connection ends with the answer, which says so, where the rest of a body is too long or does not come.
#[tokio::test]
async fn a_connection_whose_body_is_not_read_is_closed() {
    let world = World::connected().await;
    let head = |token: &str, length: usize| {
        format!(
            "POST /v1/branches/no/wake HTTP/1.1\r\nhost: ardent\r\nauthorization: Bearer {token}\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let token = world.token.as_str();
    for (token, length, status) in [(token, 2 << 20, 404), ("wrong", 2 << 20, 401), (token, 5, 404)] {
        let answer = world.call_with_bytes(head(token, length).as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains("connection: close\r\n") && answer.contains("\"schema_version\""), "{answer}");
    }
}

#[tokio::test]
async fn bad_requests_are_errors_like_all_others() {
    let world = World::connected().await;
    let check = |method: &'static str, path: &'static str, body: Option<Value>, code| {
        let world = &world;
        async move { world.fails(method, path, body, code).await }
    };
    check("GET", "/v1/nothing", None, ApiErrorCode::NotFound).await;
    check("PUT", "/v1/branches", None, ApiErrorCode::NotFound).await;
    check("POST", "/v1/branches", None, ApiErrorCode::InvalidArguments).await;
    check("POST", "/v1/branches", Some(json!({})), ApiErrorCode::InvalidArguments).await;
    check("POST", "/v1/branches", Some(json!({ "name": 1 })), ApiErrorCode::InvalidArguments).await;
    check("POST", "/v1/branches", Some(json!({ "name": "a", "ttl_s": -1 })), ApiErrorCode::InvalidArguments).await;
    check("POST", "/v1/branches", Some(json!({ "name": "a", "ttl_s": u64::MAX })), ApiErrorCode::InvalidArguments)
        .await;
    check("POST", "/v1/connectors", Some(json!({ "url": "mysql://x" })), ApiErrorCode::InvalidArguments).await;
    check("GET", "/v1/connectors/no", None, ApiErrorCode::NotFound).await;
    check("GET", "/v1/branches/no", None, ApiErrorCode::NotFound).await;
}

/// Every object that a route answers with has exactly the fields that the document gives its schema.
#[tokio::test]
async fn the_openapi_document_is_true() {
    let world = World::connected().await;
    let document = world.get("/v1/openapi.json").await;
    let created = world.create_branch(json!({ "name": "a" })).await;
    let check = |schema: &str, value: &Value| {
        let fields = |value: &Value| value.as_object().expect(schema).keys().cloned().collect::<BTreeSet<_>>();
        let described = &document["components"]["schemas"][schema]["properties"];
        assert_eq!(fields(value), fields(described), "{schema}");
        for required in document["components"]["schemas"][schema]["required"].as_array().expect("list") {
            assert!(!value[required.as_str().expect("name")].is_null(), "{schema}: {required} is null");
        }
    };
    check("CreatedBranch", &created);
    check("Status", &world.get("/v1/status").await);
    let timeline = world.fakes.state.lock().safekeeper.keys().next().copied().expect("the branch's");
    world.fakes.state.lock().archive_stalls.push(stall(timeline));
    let safekeepers = world.get("/v1/safekeepers").await;
    check("SafekeeperList", &safekeepers);
    check("Safekeeper", &safekeepers["safekeepers"][0]);
    check("ArchiveStall", &safekeepers["safekeepers"][0]["archive_stalls"][0]);
    check("Whoami", &world.get("/v1/whoami").await);
    let connectors = world.get("/v1/connectors").await;
    check("ConnectorList", &connectors);
    check("Connector", &connectors["connectors"][0]);
    check("Connector", &world.get("/v1/connectors/shop").await);
    let branches = world.get("/v1/branches").await;
    check("BranchList", &branches);
    check("Branch", &branches["branches"][0]);
    check("Branch", &world.get("/v1/branches/a").await);
    check("Url", &world.get("/v1/branches/a/url").await);
    let unnamed = world.get("/v1/branches/a/unnamed-files").await;
    check("UnnamedFiles", &unnamed);
    check("UnnamedRelation", &unnamed["relations"][0]);
    let (_, report) = world.call("POST", "/v1/connectors/preflight", Some(json!({ "url": SOURCE }))).await;
    check("PreflightReport", &report);
    check("PreflightCheck", &report["checks"][0]);
    check("Wake", &world.call("POST", "/v1/branches/a/wake", None).await.1);
    check("Branch", &world.call("POST", "/v1/branches/a/suspend", None).await.1);
    check("Branch", &world.call("PATCH", "/v1/branches/a", Some(json!({}))).await.1);
    check("SwitchedBranch", &world.call("POST", "/v1/branches/a/reset", Some(json!({}))).await.1);
    check("Checkpoint", &world.call("POST", "/v1/branches/a/checkpoints", Some(json!({}))).await.1);
    let checkpoints = world.get("/v1/branches/a/checkpoints").await;
    check("CheckpointList", &checkpoints);
    check("Checkpoint", &checkpoints["checkpoints"][0]);
    check("SwitchedBranch", &world.call("POST", "/v1/branches/a/rewind", Some(json!({}))).await.1);
    check("Deleted", &world.call("DELETE", "/v1/branches/a/checkpoints/step-1", None).await.1);
    let history = world.get("/v1/branches/a/history").await;
    check("BranchHistory", &history);
    check("HistoryStretch", &history["stretches"][0]);
    let error = world.call("GET", "/v1/branches/no", None).await.1;
    check("Error", &error);
    check("ErrorInfo", &error["error"]);
    check("Deleted", &world.call("DELETE", "/v1/branches/a", None).await.1);
    let references = document.to_string();
    for reference in references.split("#/components/schemas/").skip(1) {
        let name: String = reference.chars().take_while(char::is_ascii_alphanumeric).collect();
        assert!(document["components"]["schemas"][&name].is_object(), "{name} is not described");
    }
}

#[tokio::test]
async fn the_status_tells_what_the_page_server_cannot_do() {
    let world = World::connected().await;
    let made = world.create_branch(json!({ "name": "a" })).await;
    assert_eq!(world.get("/v1/status").await["storage_problems"], json!([]));
    let of_branch: ardent_types::TimelineId = made["timeline_id"].as_str().expect("a timeline").parse().expect("an id");
    let of_nobody = ardent_types::TimelineId::from_bytes([7; 16]);
    let problem = |timeline| (timeline, "its layers cannot be written: read-only".to_owned());
    world.fakes.state.lock().page_server_problems = vec![problem(of_branch), problem(of_nobody)];
    let told = world.get("/v1/status").await["storage_problems"].clone();
    let of_nobody = format!("timeline {of_nobody}: its layers cannot be written: read-only");
    assert_eq!(told, json!(["branch a: its layers cannot be written: read-only", of_nobody]));
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let world = World::new().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut config = world.config();
    config.listen = taken.local_addr().expect("address");
    config.data_dir = world.folder.path().join("second");
    let dependencies = ardent_control::Dependencies {
        page_service: world.fakes.clone(),
        wal_service: world.fakes.clone(),
        safekeeper_host: None,
        connectors: world.fakes.clone(),
        logical: world.fakes.clone(),
    };
    let started = ardent_control::Control::start(config, dependencies, Default::default()).await;
    let error = started.err().expect("the port is taken").to_string();
    assert!(
        error.contains(&taken.local_addr().expect("address").port().to_string()) && error.contains("--api-listen"),
        "{error}"
    );
}
