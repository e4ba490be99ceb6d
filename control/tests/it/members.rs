//! Which safekeepers there are changes: control ends in any phase and goes on, gives it up, or refuses it and has changed nothing.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Barrier;

use ardent_api::control::{ApiErrorCode, ChangePhase};

use crate::world::members::address;
use crate::world::{World, until};

async fn change(world: &World, body: Value) -> Value {
    let (status, value) = world.call("POST", "/v1/safekeepers/change", Some(body)).await;
    assert_eq!(status, 200, "{value}");
    value
}

async fn until_over(world: &World) -> Value {
    for _ in 0..1000 {
        let told = world.get("/v1/safekeepers").await;
        if told["change"].is_null() {
            return told;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("not over in time: {}", world.get("/v1/safekeepers").await);
}

async fn until_held(world: &World) {
    until("the change has come there", || world.fakes.state.lock().members.reached).await;
}

fn hold(world: &World, phase: Option<ChangePhase>) {
    let members = &mut world.fakes.state.lock().members;
    (members.hold, members.reached) = (phase, false);
}

/// Nothing was begun: not who they are, not the new one's folder.
async fn nothing_has_changed(world: &World) {
    let told = world.get("/v1/safekeepers").await;
    assert_eq!((&told["generation"], &told["change"]), (&json!(0), &Value::Null), "{told}");
    let state = world.fakes.state.lock();
    assert_eq!((&state.members.list, state.members.own.as_slice()), (&None, &[][..]));
}

#[tokio::test]
async fn a_change_is_made_and_the_connector_stays_followed_whatever_the_page_server_does() {
    let world = World::connected().await;
    world.create_branch(json!({ "name": "a" })).await;
    hold(&world, Some(ChangePhase::Settled));
    let begun = change(&world, json!({ "count": 3 })).await;
    assert_eq!((&begun["phase"], &begun["adding"]), (&json!("copying"), &json!([address(3).to_string()])));
    until_held(&world).await;
    // To follow anew must not need it: a connector that was stopped for that would stay stopped.
    world.fakes.state.lock().follow_wal_fails = true;
    hold(&world, None);
    let told = until_over(&world).await;
    assert_eq!(told["generation"], 3);
    until("production is followed", || world.fakes.state.lock().followers == 1).await;
    let list = world.fakes.state.lock().members.list.clone().expect("a list");
    assert_eq!((list.members.len(), list.next), (3, None));
    let state = world.fakes.state.lock();
    assert!(state.members.kept.contains(&address(3).to_string()), "it is no guest any more");
    assert_eq!(state.named.last().map(Vec::len), Some(3), "the page server knows");
    assert_eq!(state.members.copied.len(), 2);
}

#[tokio::test]
async fn control_that_dies_in_any_phase_goes_on() {
    for phase in [ChangePhase::Copying, ChangePhase::Joint, ChangePhase::Settled] {
        let mut world = World::connected().await;
        hold(&world, Some(phase));
        change(&world, json!({ "count": 3 })).await;
        until_held(&world).await;
        assert_eq!(world.get("/v1/safekeepers").await["change"]["phase"], phase.as_str());
        world.crash();
        hold(&world, None);
        // A new process knows who they are from its database alone.
        world.fakes.state.lock().members.list = None;
        world.start().await;
        let told = until_over(&world).await;
        assert_eq!(told["generation"], 3, "{phase:?}");
        assert_eq!(world.fakes.state.lock().members.list.as_ref().map(|list| list.members.len()), Some(3));
    }
}

/// While the safekeepers are asked how they are a change goes on: who they are and where it is are not told of two moments.
#[tokio::test]
async fn what_is_told_of_a_change_is_of_one_moment() {
    let world = World::connected().await;
    hold(&world, Some(ChangePhase::Joint));
    change(&world, json!({ "count": 3 })).await;
    until_held(&world).await;
    let held = Arc::new(Barrier::new(2));
    world.fakes.state.lock().answer_held = Some(held.clone());
    let goes_on = async {
        held.wait().await;
        world.fakes.state.lock().answer_held = None;
        hold(&world, None);
        until_over(&world).await;
        held.wait().await;
    };
    let (told, ()) = tokio::join!(world.get("/v1/safekeepers"), goes_on);
    assert_eq!((&told["generation"], &told["change"]["phase"]), (&json!(2), &json!("joint")), "{told}");
    assert_eq!(until_over(&world).await["generation"], 3);
}

#[tokio::test]
async fn a_change_is_given_up_in_the_first_two_phases_and_not_after() {
    for (phase, generation) in [(ChangePhase::Copying, 1), (ChangePhase::Joint, 3)] {
        let world = World::connected().await;
        hold(&world, Some(phase));
        change(&world, json!({ "count": 3 })).await;
        until_held(&world).await;
        let (status, value) = world.call("DELETE", "/v1/safekeepers/change", None).await;
        assert_eq!(status, 200, "{value}");
        // Nobody waits for what is held.
        let told = until_over(&world).await;
        assert_eq!(told["generation"], generation, "{phase:?}");
        assert_eq!(told["safekeepers"].as_array().expect("a list").len(), 2);
        let state = world.fakes.state.lock();
        assert_eq!((state.members.copied.len(), state.members.own.len(), state.members.joining.len()), (0, 0, 0));
        assert!(state.members.removed.contains(&address(3).to_string()));
    }
    let world = World::connected().await;
    hold(&world, Some(ChangePhase::Settled));
    change(&world, json!({ "count": 3 })).await;
    until_held(&world).await;
    let error = world.fails("DELETE", "/v1/safekeepers/change", None, ApiErrorCode::Conflict).await;
    assert!(error["message"].as_str().expect("text").contains("settled"), "{error}");
    hold(&world, None);
    until_over(&world).await;
    world.fails("DELETE", "/v1/safekeepers/change", None, ApiErrorCode::NotFound).await;
}

#[tokio::test]
async fn a_request_that_is_refused_changes_nothing() {
    let world = World::connected().await;
    let refused = async |body: Value, code, words: &str| {
        let error = world.fails("POST", "/v1/safekeepers/change", Some(body), code).await;
        assert!(error.to_string().contains(words), "{words}: {error}");
        nothing_has_changed(&world).await;
    };
    refused(json!({ "count": 2 }), ApiErrorCode::InvalidArguments, "changes nothing").await;
    refused(json!({ "count": 10 }), ApiErrorCode::InvalidArguments, "1 to 9").await;
    refused(json!({ "remove": ["7"] }), ApiErrorCode::InvalidArguments, "ardent status").await;
    refused(json!({ "remove": ["1", "2"] }), ApiErrorCode::InvalidArguments, "0 safekeepers").await;
    refused(json!({ "count": 3, "remove": ["2"] }), ApiErrorCode::InvalidArguments, "either").await;
    refused(json!({ "add": [address(2).to_string()] }), ApiErrorCode::InvalidArguments, "one of them already").await;

    world.fakes.state.lock().old_page_server = true;
    refused(json!({ "count": 3 }), ApiErrorCode::Conflict, "of one version").await;
    world.fakes.state.lock().old_page_server = false;
    // One that has lost its disk is not made a member by its address.
    world.fakes.state.lock().members.blank.insert(address(2).to_string());
    refused(json!({ "count": 3 }), ApiErrorCode::Conflict, "--replace 2").await;
    world.fakes.state.lock().members.blank.clear();

    // A connector that is just being made makes its root timeline on those that it was told of.
    world.fakes.state.lock().import_held = true;
    let making = world.connect("late");
    let refusing = async {
        until("it is being made", || world.fakes.state.lock().slots == 2).await;
        refused(json!({ "count": 3 }), ApiErrorCode::Conflict, "connector late is just being made").await;
        assert!(
            world.fakes.state.lock().members.removed.contains(&address(3).to_string()),
            "it was started for nothing"
        );
        world.fakes.production.send_replace(ardent_types::Lsn::new(0x1000));
    };
    let (events, ()) = tokio::join!(making, refusing);
    assert_eq!(events.last().expect("events")["event"], "done", "{events:?}");
    change(&world, json!({ "count": 3 })).await;
    until_over(&world).await;
}

#[tokio::test]
async fn no_connector_and_no_second_change_begins_while_one_is_on_its_way() {
    let world = World::connected().await;
    hold(&world, Some(ChangePhase::Copying));
    change(&world, json!({ "count": 3 })).await;
    until_held(&world).await;
    let second = Some(json!({ "count": 1 }));
    let error = world.fails("POST", "/v1/safekeepers/change", second, ApiErrorCode::Conflict).await;
    assert!(error["hint"].as_str().expect("a hint").contains("--cancel"), "{error}");
    let events = world.connect("late").await;
    let last = events.last().expect("events").to_string();
    assert!(last.contains("just being changed"), "{last}");
    hold(&world, None);
    until_over(&world).await;
    let events = world.connect("late").await;
    assert_eq!(events.last().expect("events")["event"], "done", "{events:?}");
}

/// Safekeepers that say that they do not have what there is are not believed: their disks may not be mounted.
#[tokio::test]
async fn a_timeline_of_a_branch_that_is_nowhere_holds_the_change_up() {
    let world = World::connected().await;
    world.fakes.state.lock().members.lost = true;
    change(&world, json!({ "count": 3 })).await;
    let mut told = Value::Null;
    for _ in 0..500 {
        told = world.get("/v1/safekeepers").await;
        if told["change"]["problem"].is_string() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(told["change"]["problem"].to_string().contains("mount their disks"), "{told}");
    assert_eq!(told["change"]["phase"], "copying");
    world.fakes.state.lock().members.lost = false;
    assert_eq!(until_over(&world).await["generation"], 3);
}
