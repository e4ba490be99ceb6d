//! Connectors that give out masked data only.

use std::time::Duration;

use serde_json::{Value, json};

use ardent_api::control::ApiErrorCode;
use ardent_control::store::{BranchRow, Store};
use ardent_types::Lsn;

use crate::world::{FakeTimeline, World};

async fn set(world: &World, masked_only: bool) -> Value {
    let body = json!({ "masked_only": masked_only });
    let (status, connector) = world.call("PATCH", "/v1/connectors/shop", Some(body)).await;
    assert_eq!(status, 200, "{connector}");
    assert_eq!(connector["masked_only"], masked_only);
    connector
}

/// Everything that would put data that is not masked behind a URL that it was not behind. `a` is not masked, and neither is `b`, which
/// is deleted.
async fn assert_withheld(world: &World, next: &str) {
    let timelines = world.fakes.timelines();
    for (path, body) in [
        ("/v1/branches", json!({ "name": "c" })),
        ("/v1/branches", json!({ "name": "c", "from": "a" })),
        ("/v1/branches", json!({ "name": "c", "at": "latest", "no_wait": true })),
        ("/v1/branches/a/reset", json!({})),
        ("/v1/branches/a/rebase", json!({})),
        ("/v1/branches/a/rebase", json!({ "dry_run": true })),
        ("/v1/branches/b/undelete", json!({})),
    ] {
        let error = world.fails("POST", path, Some(body), ApiErrorCode::Conflict).await;
        let has = |field: &str, words: &str| error[field].as_str().is_some_and(|text| text.contains(words));
        assert!(has("message", "connector shop gives out masked data only") && has("hint", next), "{path}: {error}");
    }
    assert_eq!(world.fakes.timelines(), timelines, "nothing was made");
}

/// A template as masking leaves it.
fn make_template(world: &World, name: &str) {
    let store = Store::open(&world.folder.path().join("control.db")).expect("opened");
    let root = store.branch("shop").expect("read").expect("the root");
    let template = BranchRow::below(&root, BranchRow::template_row_name(name));
    store.insert_template(&template, "{}").expect("inserted");
    let report = serde_json::to_string(&ardent_masking::MaskReport::default()).expect("plain data");
    store.put_mask_report(template.id, Lsn::new(0x1000), &report).expect("kept");
    let timeline = FakeTimeline { ancestor: None, branch_lsn: Lsn::new(0x1000), following: false };
    world.fakes.state.lock().page_server.insert(template.timeline, timeline);
    store.branch_ready(&template, (Lsn::new(0x1000), Lsn::new(0xF00)), &[], None).expect("ready");
}

#[tokio::test]
async fn what_would_put_other_data_behind_a_url_is_refused() {
    let mut world = World::connected().await;
    world.keep_deleted_for(Duration::from_secs(3600)).await;
    let made = world.create_branch(json!({ "name": "a" })).await;
    world.create_branch(json!({ "name": "b" })).await;
    assert_eq!(world.call("DELETE", "/v1/branches/b", None).await.0, 200);
    let shown = world.get("/v1/connectors/shop").await;
    assert_eq!((&shown["masked_only"], &shown["unmasked_branches"]), (&json!(false), &json!(null)));

    let connector = set(&world, true).await;
    assert_eq!((&connector["unmasked_branches"], &connector["unmasked_first"]), (&json!(1), &json!(["a"])));
    assert_eq!(world.get("/v1/connectors").await["connectors"][0]["unmasked_first"], json!(["a"]));
    assert_withheld(&world, "ardent mask create TEMPLATE --from shop").await;

    // What is there stays, with what it was.
    let again = world.create_branch(json!({ "name": "a" })).await;
    assert_eq!((&again["created"], &again["url"]), (&json!(false), &made["url"]));
    assert_eq!(world.get("/v1/branches/a/url").await["url"], made["url"]);
    let body = json!({ "at": made["branch_lsn"] });
    assert_eq!(world.call("POST", "/v1/branches/a/restore", Some(body)).await.0, 200);
    assert_eq!(world.call("POST", "/v1/branches/a/wake", None).await.0, 200);
    // What the server compares with, and masks, no name reaches.
    let root = world.control().find_branch("shop").expect("the root");
    let hidden = world.control().create_hidden(&root, root.timeline, Lsn::new(0x1000)).await.expect("made");
    world.control().delete_hidden(&hidden).await.expect("deleted");

    make_template(&world, "nightly");
    assert_withheld(&world, "ardent branch create NAME --masked nightly").await;
    let safe = world.create_branch(json!({ "name": "safe", "masked": "nightly" })).await;
    assert_eq!(safe["masked"], "nightly");
    world.create_branch(json!({ "name": "child", "from": "safe" })).await;
    assert_eq!(world.call("POST", "/v1/branches/child/reset", Some(json!({}))).await.0, 200);
    assert_eq!(world.call("DELETE", "/v1/branches/child", None).await.0, 200);
    assert_eq!(world.call("POST", "/v1/branches/child/undelete", Some(json!({}))).await.0, 200);
    assert_eq!(world.get("/v1/connectors/shop").await["unmasked_first"], json!(["a"]));

    // It outlasts a restart, and can be taken back.
    world.crash();
    world.start().await;
    assert_withheld(&world, "--masked nightly").await;
    let nothing = world.call("PATCH", "/v1/connectors/shop", Some(json!({}))).await;
    assert_eq!((nothing.0, &nothing.1["masked_only"]), (200, &json!(true)));
    world.fails("PATCH", "/v1/connectors/no", Some(json!({ "masked_only": true })), ApiErrorCode::NotFound).await;
    set(&world, false).await;
    world.create_branch(json!({ "name": "c" })).await;
    assert_eq!(world.call("POST", "/v1/branches/b/undelete", Some(json!({}))).await.0, 200);
}
