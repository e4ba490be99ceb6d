//! Branches that are reset, restored, deleted and had back; and control that ends in the middle of it.

use std::time::Duration;

use serde_json::{Value, json};

use ardent_api::control::ApiErrorCode;
use ardent_trusted_clock::{KeptClock, Reading, boot_id};
use ardent_types::{Lsn, TimelineId};

use crate::world::{Held, World, until};

async fn post(world: &World, path: &str, body: Value) -> Value {
    let (status, value) = world.call("POST", path, Some(body)).await;
    assert_eq!(status, 200, "{path}: {value}");
    value
}

fn timeline(branch: &Value) -> TimelineId {
    branch["timeline_id"].as_str().expect("a timeline").parse().expect("an id")
}

fn ancestor(world: &World, timeline: TimelineId) -> Option<TimelineId> {
    world.fakes.state.lock().page_server[&timeline].ancestor
}

async fn url(world: &World, name: &str) -> Value {
    world.get(&format!("/v1/branches/{name}/url")).await["url"].clone()
}

#[tokio::test]
async fn a_reset_branch_is_its_parent_anew_and_can_be_had_back() {
    let world = World::connected().await;
    let made = world.create_branch(json!({ "name": "a", "max_rows_changed": 7 })).await;
    let child = world.create_branch(json!({ "name": "child", "from": "a" })).await;
    let (_, first) = world.call("POST", "/v1/branches/a/wake", None).await;
    let folder = world.compute_dir("a").expect("it was started");

    world.fakes.ingested.send_replace(Lsn::new(0x2000));
    let reset = post(&world, "/v1/branches/a/reset", json!({})).await;
    assert_ne!(timeline(&reset), timeline(&made));
    assert_eq!(ancestor(&world, timeline(&reset)), ancestor(&world, timeline(&made)));
    for same in ["id", "name", "parent", "url", "max_rows_changed", "role"] {
        let shown = world.get("/v1/branches/a").await;
        assert_eq!(reset[same], shown[same], "{same}");
    }
    assert_eq!((&reset["max_rows_changed"], &reset["compute"]), (&json!(7), &json!("suspended")));
    assert_eq!(url(&world, "a").await, made["url"], "the password is the same");
    assert!(!folder.exists(), "what ran on the old timeline is gone");
    let (_, again) = world.call("POST", "/v1/branches/a/wake", None).await;
    assert_ne!(again["compute_id"], first["compute_id"], "{again}");
    assert_eq!(again["incarnation"], 1, "{again}");
    let spec = std::fs::read_to_string(world.compute_dir("a").expect("it runs").with_extension("spec")).expect("read");
    assert!(spec.contains(&timeline(&reset).to_string()), "{spec}");
    // What was made from it hangs on what it was.
    assert_eq!(ancestor(&world, timeline(&child)), Some(timeline(&made)));
    assert_eq!(world.get("/v1/branches/a").await["children"], json!(["child"]));

    let history = world.get("/v1/branches/a/history").await;
    let stretches = history["stretches"].as_array().expect("stretches");
    assert_eq!(stretches.len(), 2);
    assert_eq!((&stretches[0]["ended_by"], &stretches[1]["until"]), (&json!("reset"), &json!(null)));
    assert_eq!(stretches[0]["until"], stretches[1]["since"]);

    let undone = post(&world, "/v1/branches/a/restore", json!({ "at": reset["undo_at"] })).await;
    assert_eq!(ancestor(&world, timeline(&undone)), Some(timeline(&made)), "from what it was before the reset");
    assert_eq!(undone["branch_lsn"], made["branch_lsn"], "compared with what it was compared with");
    assert_eq!(url(&world, "a").await, made["url"]);
    assert_eq!(world.fakes.timelines(), (5, 4));
}

#[tokio::test]
async fn a_branch_is_compared_with_what_it_was_compared_with_at_the_point_that_it_goes_back_to() {
    let world = World::connected().await;
    let written_up_to = |lsn| world.fakes.ingested.send_replace(Lsn::new(lsn));
    let made = world.create_branch(json!({ "name": "a" })).await;
    written_up_to(0x1400);
    let old = post(&world, "/v1/branches/a/checkpoints", json!({ "label": "old" })).await;
    assert_eq!((timeline(&old), &old["lsn"]), (timeline(&made), &json!("0/00001400")));
    written_up_to(0x2000);
    let reset = post(&world, "/v1/branches/a/reset", json!({})).await;
    assert_eq!((&made["branch_lsn"], &reset["branch_lsn"]), (&json!("0/00001000"), &json!("0/00002000")));
    written_up_to(0x2800);
    let new = post(&world, "/v1/branches/a/checkpoints", json!({ "label": "new" })).await;
    assert_eq!((timeline(&new), &new["lsn"]), (timeline(&reset), &json!("0/00002800")));

    let before = post(&world, "/v1/branches/a/restore", json!({ "at": "0/1800" })).await;
    assert_eq!(ancestor(&world, timeline(&before)), Some(timeline(&made)));
    assert_eq!(before["branch_lsn"], made["branch_lsn"], "not with what the reset made of it");
    let deeper = post(&world, "/v1/branches/a/restore", json!({ "at": "0/1C00" })).await;
    assert_eq!(ancestor(&world, timeline(&deeper)), Some(timeline(&before)));
    assert_eq!(deeper["branch_lsn"], made["branch_lsn"]);
    let again = post(&world, "/v1/branches/a/restore", json!({ "at": "0/1800" })).await;
    assert_eq!(ancestor(&world, timeline(&again)), Some(timeline(&made)));
    assert_eq!(again["branch_lsn"], made["branch_lsn"]);

    for _ in 0..2 {
        let after = post(&world, "/v1/branches/a/rewind", json!({ "checkpoint": "new" })).await;
        assert_eq!(ancestor(&world, timeline(&after)), Some(timeline(&reset)));
        assert_eq!(after["branch_lsn"], reset["branch_lsn"], "after the reset again");
        let before = post(&world, "/v1/branches/a/rewind", json!({ "checkpoint": "old" })).await;
        assert_eq!(ancestor(&world, timeline(&before)), Some(timeline(&made)));
        assert_eq!(before["branch_lsn"], made["branch_lsn"], "and before it again");
    }
}

#[tokio::test]
async fn restoring_the_same_point_again_and_again_makes_no_chain() {
    let world = World::connected().await;
    let made = world.create_branch(json!({ "name": "a" })).await;
    let start = made["branch_lsn"].clone();
    for _ in 0..3 {
        let restored = post(&world, "/v1/branches/a/restore", json!({ "at": start })).await;
        assert_eq!(ancestor(&world, timeline(&restored)), ancestor(&world, timeline(&made)));
    }
    for body in [json!({ "at": "now" }), json!({ "at": "latest" }), json!({ "at": "0/FFFFFFFF" })] {
        world.fails("POST", "/v1/branches/a/restore", Some(body), ApiErrorCode::InvalidArguments).await;
    }
    world.fails("POST", "/v1/branches/shop/reset", Some(json!({})), ApiErrorCode::RootBranch).await;
    world.fails("POST", "/v1/branches/no/reset", Some(json!({})), ApiErrorCode::NotFound).await;
}

/// Control ends at each step of a reset. Before the new timeline is whole, the branch is what it was; after that, it is new.
#[tokio::test]
async fn a_reset_that_is_cut_off_is_undone_or_finished() {
    let steps = [Held::BeforePageServer, Held::AfterPageServer, Held::BeforeSafekeeper, Held::AfterSafekeeper];
    for step in steps.into_iter().map(Some).chain([None]) {
        let mut world = World::connected().await;
        let name = if step.is_some() { "a" } else { "stubborn" };
        let made = world.create_branch(json!({ "name": name })).await;
        world.call("POST", &format!("/v1/branches/{name}/wake"), None).await;
        world.fakes.state.lock().held = step;
        let (address, token) = (world.socket(), world.token.clone());
        let request = tokio::spawn(async move {
            let mut stream = tokio::net::UnixStream::connect(address).await.expect("connects");
            let text = format!(
                "POST /v1/branches/{name}/reset HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\
                 content-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
            );
            tokio::io::AsyncWriteExt::write_all(&mut stream, text.as_bytes()).await.map(|()| stream)
        });
        let stream = request.await.expect("no panic").expect("sent");
        match step {
            Some(_) => until("the step is reached", || world.fakes.state.lock().reached).await,
            // The new timeline is whole, and the old one's compute does not stop.
            None => {
                until("the compute is being stopped", || {
                    let shown = world.control().show_branch(name).expect("it is there");
                    shown.compute == ardent_api::control::ComputeState::Stopping
                })
                .await;
            }
        }
        world.crash();
        drop(stream);
        world.fakes.state.lock().held = None;

        world.start().await;
        let shown = world.get(&format!("/v1/branches/{name}")).await;
        assert_eq!(shown["state"], "ready");
        assert_eq!(timeline(&shown) == timeline(&made), step.is_some(), "{step:?}");
        let (status, woken) = world.call("POST", &format!("/v1/branches/{name}/wake"), None).await;
        assert_eq!(status, 200, "{step:?}: {woken}");
        assert_eq!(url(&world, name).await, made["url"]);
        // Root, branch, and what the branch was if it is not that any more.
        let timelines = if step.is_some() { (2, 1) } else { (3, 2) };
        until("nothing is left over", || world.fakes.timelines() == timelines).await;
        if step.is_some() {
            post(&world, &format!("/v1/branches/{name}/reset"), json!({})).await;
        }
    }
}

#[tokio::test]
async fn a_reset_that_storage_refuses_leaves_the_branch_as_it_was() {
    let world = World::connected().await;
    let made = world.create_branch(json!({ "name": "a" })).await;
    world.call("POST", "/v1/branches/a/wake", None).await;
    world.fakes.state.lock().safekeeper_down = true;
    world.fails("POST", "/v1/branches/a/reset", Some(json!({})), ApiErrorCode::StorageUnavailable).await;
    let shown = world.get("/v1/branches/a").await;
    assert_eq!((timeline(&shown), &shown["compute"]), (timeline(&made), &json!("running")), "nobody was disturbed");
    world.fakes.state.lock().safekeeper_down = false;
    until("what was made of it is gone", || world.fakes.timelines() == (2, 1)).await;
    post(&world, "/v1/branches/a/reset", json!({})).await;
}

#[tokio::test]
async fn what_a_branch_was_goes_when_history_does_and_what_hangs_on_it_stays() {
    let mut world = World::connected().await;
    let made = world.create_branch(json!({ "name": "a" })).await;
    world.create_branch(json!({ "name": "child", "from": "a" })).await;
    post(&world, "/v1/branches/a/reset", json!({})).await;
    let second = world.get("/v1/branches/a").await;
    post(&world, "/v1/branches/a/reset", json!({})).await;
    assert_eq!(world.fakes.timelines(), (5, 4));

    world.stop().await;
    world.retention = Duration::ZERO;
    world.start().await;
    until("what nobody needs is gone", || {
        let state = world.fakes.state.lock();
        !state.page_server.contains_key(&timeline(&second)) && state.retired == [timeline(&made)]
    })
    .await;
    assert_eq!(world.fakes.timelines(), (4, 3), "what hangs on it holds the first one");
    let body = json!({ "at": "2000-01-01T00:00:00Z" });
    let error = world.fails("POST", "/v1/branches/a/restore", Some(body), ApiErrorCode::InvalidArguments).await;
    assert!(error["message"].as_str().expect("message").contains("which goes from 0/"), "{error}");
    assert_eq!(world.call("DELETE", "/v1/branches/child", None).await.0, 200);
    assert_eq!(world.fakes.timelines(), (2, 1));
}

#[tokio::test]
async fn a_deleted_branch_can_be_had_back_for_a_while() {
    let mut world = World::connected().await;
    world.keep_deleted_for(Duration::from_secs(3600)).await;
    let made = world.create_branch(json!({ "name": "a" })).await;
    world.call("POST", "/v1/branches/a/wake", None).await;
    let folder = world.compute_dir("a").expect("it was started");
    let (_, deleted) = world.call("DELETE", "/v1/branches/a", None).await;
    assert!(deleted["kept_until"].is_string(), "{deleted}");
    assert!(!folder.exists());
    for (method, path) in [("GET", "/v1/branches/a"), ("DELETE", "/v1/branches/a"), ("POST", "/v1/branches/a/wake")] {
        world.fails(method, path, None, ApiErrorCode::NotFound).await;
    }
    let secret = made["id"].as_str().expect("an id");
    world.fails("GET", &format!("/v1/branches/deleted.{secret}"), None, ApiErrorCode::NotFound).await;
    let path = "/internal/v1/auth?branch=a&role=app";
    assert_eq!(world.internal("GET", path, None).await.0, 404, "nobody gets in");
    let listed = world.get("/v1/branches?deleted=true").await;
    assert_eq!((&listed["branches"][0]["name"], &listed["branches"][0]["state"]), (&json!("a"), &json!("deleted")));
    assert_eq!(world.get("/v1/branches").await["branches"].as_array().expect("list").len(), 1);
    assert_eq!(world.get("/v1/branches/shop").await["children"], json!([]));

    // Over a restart; the name is free meanwhile.
    world.crash();
    world.start().await;
    let other = world.create_branch(json!({ "name": "a" })).await;
    assert_ne!(other["id"], made["id"]);
    let body = Some(json!({}));
    world.fails("POST", "/v1/branches/a/undelete", body, ApiErrorCode::AlreadyExists).await;
    let back = post(&world, "/v1/branches/a/undelete", json!({ "name": "b" })).await;
    assert_eq!((timeline(&back), &back["name"], &back["state"]), (timeline(&made), &json!("b"), &json!("ready")));
    let password = |url: &Value| {
        let url = url.as_str().expect("url");
        url.split_once('@').expect("a host").0.to_owned()
    };
    assert_eq!(password(&url(&world, "b").await), password(&made["url"]));
    assert_eq!(world.call("POST", "/v1/branches/b/wake", None).await.0, 200);

    let (_, gone) = world.call("DELETE", "/v1/branches/b?for_good=true", None).await;
    assert_eq!(gone["kept_until"], json!(null));
    world.fails("POST", "/v1/branches/b/undelete", Some(json!({})), ApiErrorCode::NotFound).await;
    assert_eq!(world.fakes.timelines(), (2, 1));
    assert_eq!(world.call("DELETE", "/v1/branches/a", None).await.0, 200);
    assert_eq!(world.fakes.timelines(), (2, 1));
    world.keep_deleted_for(Duration::ZERO).await;
    until("its time is over, and its space is given back", || world.fakes.timelines() == (1, 0)).await;
    assert_eq!(world.get("/v1/branches?deleted=true").await["branches"], json!([]));
}

#[tokio::test]
async fn a_clock_that_has_jumped_deletes_nothing_for_its_age() {
    let mut world = World::connected().await;
    world.keep_deleted_for(Duration::from_secs(3600)).await;
    for name in ["a", "e"] {
        world.create_branch(json!({ "name": name })).await;
    }
    assert_eq!(world.get("/v1/status").await["clock_problem"], json!(null));
    assert_eq!(world.call("DELETE", "/v1/branches/a", None).await.0, 200);
    // What the housekeeper finishes, whatever the clock says; by its name it comes after the other, which is `deleted.ID` now.
    world.fakes.state.lock().page_server_down = true;
    assert_ne!(world.call("DELETE", "/v1/branches/e?for_good=true", None).await.0, 200);
    world.stop().await;
    world.fakes.state.lock().page_server_down = false;
    assert_eq!(world.fakes.timelines(), (3, 2));

    // As if the clock had been a week behind, and right, while it was seen last.
    let path = world.folder.path().join("clock");
    std::fs::remove_file(&path).expect("it is kept there");
    let behind = || {
        let now = Reading::of_host();
        Reading { wall: now.wall - Duration::from_secs(7 * 86_400 + 3600), ..now }
    };
    drop(KeptClock::open_with(path.clone(), &boot_id(), behind));
    world.keep_deleted = Duration::ZERO;
    world.start().await;
    until("the housekeeper was there", || world.fakes.timelines() == (2, 1)).await;
    let problem = world.get("/v1/status").await["clock_problem"].clone();
    assert!(problem.as_str().is_some_and(|text| text.contains("clock is 7 days ahead")), "{problem}");
    post(&world, "/v1/branches/a/undelete", json!({})).await;

    assert_eq!(world.call("DELETE", "/v1/branches/a", None).await.0, 200);
    assert_eq!(world.fakes.timelines(), (1, 0), "what somebody asks for is done");
}

#[tokio::test]
async fn deleted_branches_go_with_what_they_were_made_from() {
    let mut world = World::connected().await;
    world.keep_deleted_for(Duration::from_secs(3600)).await;
    for (name, from) in [("a", "shop"), ("b", "a"), ("c", "b")] {
        world.create_branch(json!({ "name": name, "from": from })).await;
    }
    world.fails("DELETE", "/v1/branches/b", None, ApiErrorCode::Conflict).await;
    for name in ["c", "b"] {
        assert_eq!(world.call("DELETE", &format!("/v1/branches/{name}"), None).await.0, 200);
    }
    let error = world.fails("POST", "/v1/branches/c/undelete", Some(json!({})), ApiErrorCode::Conflict).await;
    assert!(error["hint"].as_str().expect("hint").contains("undelete b"), "{error}");
    for name in ["b", "c"] {
        post(&world, &format!("/v1/branches/{name}/undelete"), json!({})).await;
    }
    for name in ["c", "b"] {
        assert_eq!(world.call("DELETE", &format!("/v1/branches/{name}"), None).await.0, 200);
    }
    assert_eq!(world.fakes.timelines(), (4, 3));
    assert_eq!(world.call("DELETE", "/v1/branches/a?for_good=true", None).await.0, 200);
    assert_eq!(world.fakes.timelines(), (1, 0));

    // A connector takes along what could have been had back, and what branches were.
    world.create_branch(json!({ "name": "d" })).await;
    post(&world, "/v1/branches/d/reset", json!({})).await;
    world.fails("DELETE", "/v1/connectors/shop", None, ApiErrorCode::Conflict).await;
    assert_eq!(world.call("DELETE", "/v1/branches/d", None).await.0, 200);
    let (status, deleted) = world.call("DELETE", "/v1/connectors/shop", None).await;
    assert_eq!(status, 200, "{deleted}");
    assert_eq!(world.fakes.timelines(), (0, 0));
}

#[tokio::test]
async fn names_change_and_passwords_stay() {
    let world = World::connected().await;
    let made = world.create_branch(json!({ "name": "a" })).await;
    world.create_branch(json!({ "name": "b" })).await;
    world.fails("POST", "/v1/branches/a/rename", Some(json!({ "name": "b" })), ApiErrorCode::AlreadyExists).await;
    world.fails("POST", "/v1/branches/a/rename", Some(json!({ "name": "shop" })), ApiErrorCode::AlreadyExists).await;
    world.fails("POST", "/v1/branches/a/rename", Some(json!({ "name": "A/b" })), ApiErrorCode::InvalidName).await;
    world.fails("POST", "/v1/branches/shop/rename", Some(json!({ "name": "c" })), ApiErrorCode::RootBranch).await;
    let renamed = post(&world, "/v1/branches/a/rename", json!({ "name": "c" })).await;
    assert_eq!((&renamed["name"], &renamed["id"]), (&json!("c"), &made["id"]));
    world.fails("GET", "/v1/branches/a", None, ApiErrorCode::NotFound).await;
    let url = url(&world, "c").await;
    assert_eq!(url.as_str().expect("url").replace("@c.", "@a."), made["url"].as_str().expect("url"));
}

#[tokio::test]
async fn a_point_outside_names_the_range() {
    let world = World::connected().await;
    world.fakes.state.lock().oldest_us = 1_000_000_000;
    let create = |at: &str| Some(json!({ "name": "a", "at": at }));
    let too_old = create("1970-01-01T00:00:01Z");
    let error = world.fails("POST", "/v1/branches", too_old, ApiErrorCode::InvalidArguments).await;
    let message = error["message"].as_str().expect("message");
    let range = "the history of branch shop goes from 0/00000001 (last commit 1970-01-01T00:00:00.000Z) to 0/00001000 \
                 (last commit 1970-01-01T00:00:01.000Z)";
    assert!(message.contains(range), "{message}");
    let ahead = world.fails("POST", "/v1/branches", create("0/9999"), ApiErrorCode::InvalidArguments).await;
    assert!(ahead["message"].as_str().expect("message").contains("0/00001000"), "{ahead}");
    assert_eq!(ahead["hint"], "choose an earlier point");
    let future = world.fails("POST", "/v1/branches", create("2999-01-01T00:00:00Z"), ApiErrorCode::InvalidArguments);
    assert!(future.await["message"].as_str().expect("message").contains("lies in the future"));
    let before_all = world.fails("POST", "/v1/branches", create("0/0"), ApiErrorCode::InvalidArguments).await;
    let message = before_all["message"].as_str().expect("message");
    let range = "0/00000000 is before all that is kept of branch shop; the history of branch shop goes from 0/00000001";
    assert!(message.starts_with(range), "{message}");
    assert_eq!(world.fakes.timelines(), (1, 0), "nothing is left of the attempts");
}

#[tokio::test]
async fn an_lsn_from_before_a_branch_is_its_parents() {
    let world = World::connected().await;
    world.create_branch(json!({ "name": "a" })).await;
    world.fakes.ingested.send_replace(Lsn::new(0x2000));
    let from_a = |at: &str| Some(json!({ "name": "b", "from": "a", "at": at }));
    for at in ["0/800", "0/0"] {
        let refused = world.fails("POST", "/v1/branches", from_a(at), ApiErrorCode::InvalidArguments).await;
        let message = refused["message"].as_str().expect("message");
        let range = "is before branch a was made, at 0/00001000; the history of branch a goes from 0/00001000";
        assert!(message.contains(range), "{message}");
        assert!(refused["hint"].as_str().is_some_and(|hint| hint.contains("--from shop")), "{refused}");
    }
    let parents = world.create_branch(json!({ "name": "b", "at": "0/800" })).await;
    assert_eq!(parents["branch_lsn"], "0/00000800");
    let first = world.create_branch(json!({ "name": "c", "from": "a", "at": "0/1000" })).await;
    assert_eq!(first["branch_lsn"], "0/00001000");
    // What a restore left is the branch's own.
    world.fakes.ingested.send_replace(Lsn::new(0x2800));
    post(&world, "/v1/branches/a/restore", json!({ "at": "0/2000" })).await;
    let own = world.create_branch(json!({ "name": "d", "from": "a", "at": "0/1800" })).await;
    assert_eq!(own["branch_lsn"], "0/00001800");
    let before = Some(json!({ "name": "e", "from": "a", "at": "0/FFF" }));
    world.fails("POST", "/v1/branches", before, ApiErrorCode::InvalidArguments).await;
}

#[tokio::test]
async fn history_is_kept_as_long_as_the_branch_says() {
    let world = World::connected().await;
    let made = world.create_branch(json!({ "name": "a" })).await;
    let patch = |path: &'static str, seconds: u64| world.call("PATCH", path, Some(json!({ "retention_s": seconds })));
    let (_, set) = patch("/v1/branches/a", 3600).await;
    assert_eq!(set["retention_s"], 3600);
    let reset = post(&world, "/v1/branches/a/reset", json!({})).await;
    let (old, new) = (timeline(&made), timeline(&reset));
    assert_eq!(world.fakes.state.lock().retention_s, [(old, 3600), (new, 3600)].into());
    patch("/v1/branches/a", 0).await;
    assert!(world.fakes.state.lock().retention_s.is_empty());
    let (status, root) = patch("/v1/branches/shop", 86_400).await;
    assert_eq!((status, &root["retention_s"]), (200, &json!(86_400)));
    world.fails("PATCH", "/v1/branches/shop", Some(json!({ "ttl_s": 1 })), ApiErrorCode::RootBranch).await;
}
