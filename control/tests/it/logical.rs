//! Connectors in logical mode, with restarts in between.

use serde_json::json;

use ardent_api::control::ApiErrorCode;
use ardent_types::Lsn;

use crate::world::{SOURCE, World, until};

async fn connect(world: &World) -> Vec<serde_json::Value> {
    let body = json!({ "name": "shop", "url": SOURCE, "logical": { "schemas": ["a"] } });
    let (_, text) = world.call_raw("POST", "/v1/connectors", Some(body), Some(&world.token)).await;
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

#[tokio::test]
async fn an_import_that_a_restart_interrupts_goes_on_and_is_joined() {
    let mut world = World::new().await;
    world.fakes.state.lock().copy_held = true;
    {
        let connecting = connect(&world);
        tokio::pin!(connecting);
        let begun = async {
            until("it copies", || !world.fakes.state.lock().logical_running.is_empty()).await;
            let info = world.get("/v1/connectors/shop").await;
            assert_eq!((&info["state"], &info["logical"]["phase"]), (&json!("creating"), &json!("copy")), "{info}");
            // Its root branch is nobody's yet.
            world.fails("GET", "/v1/branches/shop", None, ApiErrorCode::NotFound).await;
        };
        tokio::select! {
            events = &mut connecting => panic!("it cannot be made yet: {events:?}"),
            () = begun => {}
        }
    }
    world.crash();
    world.fakes.state.lock().logical_running.clear();
    world.start().await;
    until("it goes on", || !world.fakes.state.lock().logical_running.is_empty()).await;
    world.fakes.state.lock().copy_held = false;
    let events = connect(&world).await;
    let last = events.last().expect("events");
    assert_eq!(last["event"], "done", "{events:?}");
    assert_eq!(last["connector"]["logical"]["options"]["schemas"], json!(["a"]));
    assert_eq!(world.fakes.state.lock().logical_begun, 1, "it was not begun anew");
    assert_eq!(world.get("/v1/branches/shop").await["is_root"], true);
    world.create_branch(json!({ "name": "dev" })).await;
    let other = json!({ "name": "shop", "url": SOURCE });
    let (_, text) = world.call_raw("POST", "/v1/connectors", Some(other), Some(&world.token)).await;
    assert!(text.contains("already_exists") && text.contains("logical mode"), "{text}");
}

#[tokio::test]
async fn a_branch_waits_until_the_root_has_what_production_had() {
    let world = World::new().await;
    connect(&world).await;
    // Production's positions mean nothing on the root.
    world.fakes.production.send_replace(Lsn::new(0xFF_0000_0000));
    world.create_branch(json!({ "name": "dev" })).await;
    world.fakes.state.lock().production_down = true;
    let error =
        world.fails("POST", "/v1/branches", Some(json!({ "name": "late" })), ApiErrorCode::ConnectorUnavailable).await;
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("--at latest")), "{error}");
}

#[tokio::test]
async fn an_import_that_waits_without_end_can_be_deleted() {
    let mut world = World::new().await;
    world.fakes.state.lock().copy_held = true;
    {
        let connecting = connect(&world);
        tokio::pin!(connecting);
        tokio::select! {
            _ = &mut connecting => panic!("it cannot be made yet"),
            () = until("it copies", || !world.fakes.state.lock().logical_running.is_empty()) => {}
        }
    }
    world.stop().await;
    world.start().await;
    let (status, reply) = world.call("DELETE", "/v1/connectors/shop", None).await;
    assert_eq!(status, 200, "{reply}");
    assert_eq!(world.get("/v1/connectors").await["connectors"], json!([]));
    assert_eq!(world.fakes.timelines(), (0, 0));
    assert_eq!(world.fakes.state.lock().slots, 0);
}

#[tokio::test]
async fn only_logical_connectors_are_verified() {
    let world = World::connected().await;
    world.fails("POST", "/v1/connectors/shop/verify", None, ApiErrorCode::InvalidArguments).await;
    let world = World::new().await;
    connect(&world).await;
    let (status, reply) = world.call("POST", "/v1/connectors/shop/verify", None).await;
    assert_eq!((status, &reply["name"], &reply["equal"]), (200, &json!("shop"), &json!(true)), "{reply}");
}

#[tokio::test]
async fn tables_are_added_to_logical_connectors_alone() {
    let world = World::connected().await;
    let path = "/v1/connectors/shop/tables";
    world.fails("POST", path, Some(json!({})), ApiErrorCode::InvalidArguments).await;
    let world = World::new().await;
    connect(&world).await;
    let (status, reply) = world.call("POST", path, Some(json!({ "tables": ["a.b"] }))).await;
    assert_eq!((status, &reply["name"], &reply["added"]), (200, &json!("shop"), &json!(["a.b"])), "{reply}");
    world.fails("POST", path, Some(json!({ "table": "a.b" })), ApiErrorCode::InvalidArguments).await;
    world.fails("POST", "/v1/connectors/other/tables", Some(json!({})), ApiErrorCode::NotFound).await;
}

#[tokio::test]
async fn a_connector_is_resumed_after_sql_on_its_root() {
    let world = World::connected().await;
    let path = "/v1/connectors/shop/resume";
    world.fails("POST", path, Some(json!({ "sql": "select 1" })), ApiErrorCode::InvalidArguments).await;
    let world = World::new().await;
    connect(&world).await;
    let began = world.fakes.state.lock().logical_running.len();
    let (status, info) = world.call("POST", path, Some(json!({ "sql": "alter table t rename a to b" }))).await;
    assert_eq!((status, &info["name"]), (200, &json!("shop")), "{info}");
    assert_eq!(world.fakes.state.lock().ran_on_root, ["alter table t rename a to b"]);
    until("it runs again", || world.fakes.state.lock().logical_running.len() == began + 1).await;
}
