//! Checkpoints of branches, and rewinds to them.

use std::time::Duration;

use serde_json::{Value, json};

use ardent_api::control::ApiErrorCode;
use ardent_types::{Lsn, TimelineId};

use crate::world::World;

async fn post(world: &World, path: &str, body: Value) -> Value {
    let (status, value) = world.call("POST", path, Some(body)).await;
    assert_eq!(status, 200, "{path}: {value}");
    value
}

async fn mark(world: &World, branch: &str, body: Value) -> Value {
    post(world, &format!("/v1/branches/{branch}/checkpoints"), body).await
}

async fn rewind(world: &World, branch: &str, body: Value) -> Value {
    post(world, &format!("/v1/branches/{branch}/rewind"), body).await
}

fn written_up_to(world: &World, lsn: u64) {
    world.fakes.ingested.send_replace(Lsn::new(lsn));
}

fn timeline(value: &Value) -> TimelineId {
    value["timeline_id"].as_str().expect("a timeline").parse().expect("an id")
}

fn ancestor(world: &World, timeline: TimelineId) -> Option<TimelineId> {
    world.fakes.state.lock().page_server[&timeline].ancestor
}

/// Each checkpoint's label and place; `-` after it: it is not kept.
async fn listed(world: &World, branch: &str) -> Vec<String> {
    let list = world.get(&format!("/v1/branches/{branch}/checkpoints")).await;
    let text = |made: &Value| {
        let (label, place) = (made["label"].as_str().expect("a label"), made["place"].as_str().expect("a word"));
        format!("{label} {place}{}", if made["kept"] == true { "" } else { "-" })
    };
    list["checkpoints"].as_array().expect("a list").iter().map(text).collect()
}

/// A branch with `step-1` where it begins, `import` at 0/2000, `step-2` at 0/3000, and 0/1000 more.
async fn marked() -> (World, Value) {
    let world = World::connected().await;
    let made = world.create_branch(json!({ "name": "a" })).await;
    let first = mark(&world, "a", json!({})).await;
    assert_eq!((&first["label"], &first["lsn"]), (&json!("step-1"), &json!("0/00001000")), "{first}");
    assert_eq!(Some(timeline(&first)), ancestor(&world, timeline(&made)), "where it begins is a place of its parent's");
    assert!(first["kept_until"].is_string() && first["place"] == "current", "{first}");
    written_up_to(&world, 0x2000);
    let second = mark(&world, "a", json!({ "label": "import" })).await;
    assert_eq!((timeline(&second), &second["lsn"]), (timeline(&made), &json!("0/00002000")), "{second}");
    written_up_to(&world, 0x3000);
    assert_eq!(mark(&world, "a", json!({})).await["label"], "step-2");
    written_up_to(&world, 0x4000);
    (world, made)
}

#[tokio::test]
async fn a_branch_goes_back_to_a_step_and_forward_again() {
    let (world, made) = marked().await;
    assert!(world.compute_dir("a").is_none(), "nothing was woken");
    assert_eq!(listed(&world, "a").await, ["step-1 passed", "import passed", "step-2 current"]);

    let last = rewind(&world, "a", json!({})).await;
    assert_eq!((&last["checkpoint"], &last["at_lsn"]), (&json!("step-2"), &json!("0/00003000")), "{last}");
    let import = rewind(&world, "a", json!({ "checkpoint": "import" })).await;
    assert_eq!(import["at_lsn"], "0/00002000");
    assert_eq!(import["branch_lsn"], made["branch_lsn"], "compared with what it was compared with");
    assert_eq!(listed(&world, "a").await, ["step-1 passed", "import current", "step-2 left"]);
    let again = rewind(&world, "a", json!({})).await;
    assert_eq!(again["checkpoint"], "import");
    for rewound in [&last, &import, &again] {
        assert_eq!(ancestor(&world, timeline(rewound)), Some(timeline(&made)), "no chain");
    }

    // To where it began, which is on its parent's timeline; and from there forward.
    let start = rewind(&world, "a", json!({ "checkpoint": "step-1" })).await;
    assert_eq!(ancestor(&world, timeline(&start)), ancestor(&world, timeline(&made)));
    assert_eq!(listed(&world, "a").await, ["step-1 current", "import left", "step-2 left"]);
    let forward = rewind(&world, "a", json!({ "checkpoint": "step-2" })).await;
    assert_eq!(ancestor(&world, timeline(&forward)), Some(timeline(&made)));
    assert_eq!(listed(&world, "a").await, ["step-1 passed", "import passed", "step-2 current"]);
    let history = world.get("/v1/branches/a/history").await;
    let ends: Vec<&Value> =
        history["stretches"].as_array().expect("stretches").iter().map(|one| &one["ended_by"]).collect();
    assert_eq!(ends[..5], [&json!("restore"); 5], "{history}");
}

#[tokio::test]
async fn a_reset_leaves_the_checkpoints_behind() {
    let (world, made) = marked().await;
    let reset = post(&world, "/v1/branches/a/reset", json!({})).await;
    assert_eq!((&reset["at_lsn"], &reset["checkpoint"]), (&json!("0/00004000"), &Value::Null));
    assert_eq!(listed(&world, "a").await, ["step-1 left", "import left", "step-2 left"]);
    let error = world.fails("POST", "/v1/branches/a/rewind", Some(json!({})), ApiErrorCode::NotFound).await;
    assert!(error["message"].as_str().is_some_and(|text| text.contains("passed none")), "{error}");
    assert!(error["hint"].as_str().is_some_and(|text| text.contains("step-2, import, step-1")), "{error}");
    let since = Some(json!({ "since": "import" }));
    let error = world.fails("POST", "/v1/branches/a/diff", since, ApiErrorCode::InvalidArguments).await;
    assert!(error["message"].as_str().is_some_and(|text| text.contains("left that")), "{error}");
    let back = rewind(&world, "a", json!({ "checkpoint": "import" })).await;
    assert_eq!(ancestor(&world, timeline(&back)), Some(timeline(&made)));
    assert_eq!(listed(&world, "a").await, ["step-1 passed", "import current", "step-2 left"]);
}

#[tokio::test]
async fn what_is_asked_for_wrongly_is_said() {
    let (world, _) = marked().await;
    let path = "/v1/branches/a/checkpoints";
    let taken = world.fails("POST", path, Some(json!({ "label": "import" })), ApiErrorCode::AlreadyExists).await;
    assert!(taken["hint"].as_str().is_some_and(|text| text.contains("checkpoint delete a import")), "{taken}");
    for bad in ["", "0/2000", "../x", "a b"] {
        world.fails("POST", path, Some(json!({ "label": bad })), ApiErrorCode::InvalidArguments).await;
    }
    let unknown = Some(json!({ "checkpoint": "export" }));
    let error = world.fails("POST", "/v1/branches/a/rewind", unknown, ApiErrorCode::NotFound).await;
    assert!(error["hint"].as_str().is_some_and(|text| text.contains("step-2, import, step-1")), "{error}");
    for body in [json!({ "since": "export" }), json!({ "since": "import", "against": "shop" })] {
        let code = if body["against"].is_null() { ApiErrorCode::NotFound } else { ApiErrorCode::InvalidArguments };
        world.fails("POST", "/v1/branches/a/diff", Some(body), code).await;
    }
    world.fails("POST", "/v1/branches/shop/checkpoints", Some(json!({})), ApiErrorCode::RootBranch).await;
    world.fails("POST", "/v1/branches/shop/rewind", Some(json!({})), ApiErrorCode::RootBranch).await;
    world.fails("GET", "/v1/branches/no/checkpoints", None, ApiErrorCode::NotFound).await;
    assert_eq!(listed(&world, "shop").await, Vec::<String>::new());

    let (status, deleted) = world.call("DELETE", "/v1/branches/a/checkpoints/import", None).await;
    assert_eq!((status, &deleted["name"]), (200, &json!("import")), "{deleted}");
    world.fails("DELETE", "/v1/branches/a/checkpoints/import", None, ApiErrorCode::NotFound).await;
    assert_eq!(listed(&world, "a").await, ["step-1 passed", "step-2 current"]);

    world.create_branch(json!({ "name": "bare" })).await;
    let error = world.fails("POST", "/v1/branches/bare/rewind", Some(json!({})), ApiErrorCode::NotFound).await;
    assert!(error["hint"].as_str().is_some_and(|text| text.contains("checkpoint create bare")), "{error}");
}

#[tokio::test]
async fn checkpoints_outlive_a_crash_another_name_and_a_deletion() {
    let (mut world, _) = marked().await;
    let expect = ["step-1 passed", "import passed", "step-2 current"];
    world.crash();
    world.start().await;
    assert_eq!(listed(&world, "a").await, expect);
    world.keep_deleted_for(Duration::from_secs(3600)).await;
    post(&world, "/v1/branches/a/rename", json!({ "name": "b" })).await;
    assert_eq!(listed(&world, "b").await, expect);
    assert_eq!(world.call("DELETE", "/v1/branches/b", None).await.0, 200);
    world.fails("GET", "/v1/branches/b/checkpoints", None, ApiErrorCode::NotFound).await;
    post(&world, "/v1/branches/b/undelete", json!({})).await;
    assert_eq!(listed(&world, "b").await, expect);
    assert_eq!(rewind(&world, "b", json!({})).await["checkpoint"], "step-2");
    // Another branch of the name has nothing of it.
    assert_eq!(world.call("DELETE", "/v1/branches/b?for_good=true", None).await.0, 200);
    world.create_branch(json!({ "name": "b" })).await;
    assert_eq!(listed(&world, "b").await, Vec::<String>::new());
}

#[tokio::test]
async fn what_history_has_given_up_is_said_and_what_a_timeline_begins_at_is_not() {
    let (world, made) = marked().await;
    rewind(&world, "a", json!({ "checkpoint": "step-2" })).await;
    // As if nothing were kept before 0/3800 of what it was on.
    world.fakes.state.lock().page_server.get_mut(&timeline(&made)).expect("it is there").branch_lsn = Lsn::new(0x3800);
    assert_eq!(listed(&world, "a").await, ["step-1 passed", "import passed-", "step-2 current"]);
    let gone = Some(json!({ "checkpoint": "import" }));
    let error = world.fails("POST", "/v1/branches/a/rewind", gone, ApiErrorCode::InvalidArguments).await;
    let message = error["message"].as_str().expect("message");
    assert!(message.contains("not in the history of branch a, which goes from 0/00003800"), "{message}");
    // The branch's timeline hangs there, and so does what is made anew.
    let rewound = rewind(&world, "a", json!({})).await;
    assert_eq!((&rewound["checkpoint"], &rewound["at_lsn"]), (&json!("step-2"), &json!("0/00003000")));
    assert_eq!(ancestor(&world, timeline(&rewound)), Some(timeline(&made)));
}
