//! Branches and connectors from birth to death, with faults and restarts in between.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use ardent_api::control::{ApiErrorCode, SlotInfo};
use ardent_control::compute::ProcessIdentity;
use ardent_control::store::Store;
use ardent_types::{Lsn, TimelineId};

use crate::world::{SOURCE, World, stall, until};

#[tokio::test]
async fn a_branch_is_made_once_and_prints_the_same_url() {
    let world = World::connected().await;
    let first = world.create_branch(json!({ "name": "a" })).await;
    assert_eq!(first["created"], true);
    assert_eq!(first["parent"], "shop");
    assert_eq!(first["role"], "app");
    let url = first["url"].as_str().expect("url");
    assert!(url.starts_with("postgresql://app:") && url.ends_with("@a.localhost:7432/shop?sslmode=require"), "{url}");
    let again = world.create_branch(json!({ "name": "a", "from": "shop" })).await;
    assert_eq!(again["created"], false);
    assert_eq!((&again["id"], &again["url"]), (&first["id"], &first["url"]));
    assert_eq!(world.fakes.timelines(), (2, 1));

    let shown = world.get("/v1/branches/a").await;
    assert_eq!(shown["url"], "postgresql://app@a.localhost:7432/shop?sslmode=require", "no password in what is shown");
    assert_eq!(world.get("/v1/branches/a/url").await["url"], first["url"]);
    let root = world.get("/v1/branches/shop").await;
    assert_eq!((&root["is_root"], &root["children"]), (&json!(true), &json!(["a"])));
}

#[tokio::test]
async fn fifty_calls_at_once_for_one_name_make_one_branch() {
    let world = World::connected().await;
    let calls = (0..50).map(|_| world.create_branch(json!({ "name": "a" })));
    let replies = futures_util::future::join_all(calls).await;
    assert_eq!(replies.iter().filter(|reply| reply["created"] == true).count(), 1);
    assert!(replies.iter().all(|reply| reply["url"] == replies[0]["url"]));
    assert_eq!(world.fakes.timelines(), (2, 1));
}

#[tokio::test]
async fn a_branch_taken_now_holds_what_production_had_committed() {
    let world = World::connected().await;
    world.fakes.production.send_replace(Lsn::new(0x2000));
    let asked = world.fakes.state.lock().status_asked;
    let making = world.create_branch(json!({ "name": "a" }));
    let ingest = async {
        // It has been told that the page server is behind.
        until("the branch is being made", || world.fakes.state.lock().status_asked > asked).await;
        assert_eq!(world.fakes.state.lock().requests, Vec::<String>::new(), "it waits");
        world.fakes.ingested.send_replace(Lsn::new(0x2000));
    };
    let (branch, ()) = tokio::join!(making, ingest);
    assert_eq!(branch["branch_lsn"], "0/00002000");
    assert!(branch["waited_us"].as_u64().expect("a number") > 0);
}

#[tokio::test]
async fn wal_begins_where_the_page_server_has_begun_the_branch() {
    let world = World::connected().await;
    world.fakes.state.lock().begins_at = Some(Lsn::new(0xF80));
    let branch = world.create_branch(json!({ "name": "a" })).await;
    assert_eq!(branch["branch_lsn"], "0/00000F80");
    let begun: Vec<Lsn> = world.fakes.state.lock().safekeeper.values().map(|branch| branch.start_lsn).collect();
    assert_eq!(begun, [Lsn::new(0xF80)]);
}

/// What a safekeeper knew to be committed when it was killed is less than what was: a writer has to say so.
#[tokio::test]
async fn what_a_crash_left_is_committed_before_somebody_branches_from_it_or_wakes_what_hangs_on_it() {
    let world = World::connected().await;
    let timeline = |branch: &serde_json::Value| branch["timeline_id"].as_str().expect("an id").parse().expect("an id");
    let parent = timeline(&world.create_branch(json!({ "name": "parent" })).await);
    let elections = || {
        let state = world.fakes.state.lock();
        state.requests.iter().filter(|request| **request == format!("elect {parent}")).count()
    };
    world.create_branch(json!({ "name": "early", "from": "parent" })).await;
    assert_eq!(elections(), 0, "the safekeepers had no more than what is committed");
    world.fakes.state.lock().left_by_crash.insert(parent, Lsn::new(0x2100));
    let child = world.create_branch(json!({ "name": "child", "from": "parent" })).await;
    assert_eq!((child["branch_lsn"].as_str(), elections()), (Some("0/00002100"), 1));

    // Everything is started again, and the page server has not got that far yet.
    world.fakes.ingested.send_replace(Lsn::new(0x2000));
    world.fakes.state.lock().left_by_crash.insert(parent, Lsn::new(0x2100));
    let (status, reply) = world.call("POST", "/v1/branches/child/wake", None).await;
    assert_eq!((status, elections()), (200, 2), "{reply}");
    // Nobody is elected beside a compute, which has a writer.
    assert_eq!(world.call("POST", "/v1/branches/parent/wake", None).await.0, 200);
    world.fakes.state.lock().left_by_crash.insert(parent, Lsn::new(0x2200));
    world.create_branch(json!({ "name": "late", "from": "parent" })).await;
    assert_eq!(elections(), 2);
}

#[tokio::test]
async fn production_out_of_reach_is_said_and_latest_works() {
    let world = World::connected().await;
    world.fakes.state.lock().production_down = true;
    let body = json!({ "name": "a" });
    let error = world.fails("POST", "/v1/branches", Some(body), ApiErrorCode::ConnectorUnavailable).await;
    let hint = error["hint"].as_str().expect("hint");
    assert!(hint.contains("--at latest") && hint.contains("days old"), "{hint}");
    assert_eq!(world.fakes.timelines(), (1, 0), "nothing is left of the attempt");
    world.fails("GET", "/v1/branches/a", None, ApiErrorCode::NotFound).await;
    world.create_branch(json!({ "name": "a", "at": "latest" })).await;
}

#[tokio::test]
async fn points_in_the_past() {
    let world = World::connected().await;
    let at_lsn = world.create_branch(json!({ "name": "a", "at": "0/800" })).await;
    assert_eq!(at_lsn["branch_lsn"], "0/00000800");
    let at_time = world.create_branch(json!({ "name": "b", "at": "1970-01-01T00:00:00.000256Z" })).await;
    assert_eq!(at_time["branch_lsn"], "0/00000100");
    world.fails("POST", "/v1/branches", Some(json!({ "name": "c", "at": "x" })), ApiErrorCode::InvalidArguments).await;
}

#[tokio::test]
async fn names_are_checked_and_children_protect_their_parent() {
    let world = World::connected().await;
    let body = json!({ "name": "feature/x" });
    let error = world.fails("POST", "/v1/branches", Some(body), ApiErrorCode::InvalidName).await;
    assert_eq!(error["hint"], "try the name feature-x");
    world.create_branch(json!({ "name": "a" })).await;
    world.create_branch(json!({ "name": "b", "from": "a" })).await;
    let body = json!({ "name": "b", "from": "shop" });
    world.fails("POST", "/v1/branches", Some(body), ApiErrorCode::AlreadyExists).await;
    world.fails("POST", "/v1/branches", Some(json!({ "name": "shop" })), ApiErrorCode::AlreadyExists).await;
    world.fails("POST", "/v1/branches", Some(json!({ "name": "x", "from": "no" })), ApiErrorCode::NotFound).await;
    let error = world.fails("DELETE", "/v1/branches/a", None, ApiErrorCode::Conflict).await;
    assert_eq!(error["hint"], "delete them first: ardent branch delete b");
    world.fails("DELETE", "/v1/branches/shop", None, ApiErrorCode::RootBranch).await;
    world.fails("DELETE", "/v1/connectors/shop", None, ApiErrorCode::Conflict).await;
    for name in ["b", "a"] {
        assert_eq!(world.call("DELETE", &format!("/v1/branches/{name}"), None).await.0, 200);
    }
    assert_eq!(world.fakes.timelines(), (1, 0));
    assert_eq!(world.call("DELETE", "/v1/connectors/shop", None).await.0, 200);
    assert_eq!(world.fakes.timelines(), (0, 0));
    assert_eq!(world.fakes.state.lock().slots, 0);
}

#[tokio::test]
async fn of_several_connectors_the_one_that_is_meant_is_branched_from() {
    let world = World::connected().await;
    world.connect("crm").await;
    let error = world.fails("POST", "/v1/branches", Some(json!({ "name": "a" })), ApiErrorCode::InvalidArguments).await;
    assert!(
        error["hint"].as_str().is_some_and(|hint| hint.contains("crm, shop") && hint.contains("switch")),
        "{error}"
    );
    let made = world.create_branch(json!({ "name": "a", "connector": "crm" })).await;
    assert_eq!((&made["connector"], &made["parent"]), (&json!("crm"), &json!("crm")));
    // What is named counts; and the same again is the same, whatever of the connector it was made from.
    let made = world.create_branch(json!({ "name": "b", "from": "shop", "connector": "crm" })).await;
    assert_eq!(made["connector"], "shop");
    world.create_branch(json!({ "name": "c", "from": "a" })).await;
    let (_, again) = world.call("POST", "/v1/branches", Some(json!({ "name": "c", "connector": "crm" }))).await;
    assert_eq!((&again["created"], &again["parent"]), (&json!(false), &json!("a")), "{again}");
    let other = json!({ "name": "c", "connector": "shop" });
    world.fails("POST", "/v1/branches", Some(other), ApiErrorCode::AlreadyExists).await;
    let none = json!({ "name": "d", "connector": "none" });
    world.fails("POST", "/v1/branches", Some(none), ApiErrorCode::NotFound).await;
}

#[tokio::test]
async fn a_branch_that_storage_refuses_is_undone_even_later() {
    let world = World::connected().await;
    world.fakes.state.lock().safekeeper_down = true;
    let body = json!({ "name": "a" });
    world.fails("POST", "/v1/branches", Some(body.clone()), ApiErrorCode::StorageUnavailable).await;
    // It cannot be undone either, while the safekeeper is away: the name is not free yet.
    world.fails("POST", "/v1/branches", Some(body.clone()), ApiErrorCode::Conflict).await;
    world.fakes.state.lock().safekeeper_down = false;
    until("the housekeeper has undone it", || world.control().find_branch("a").is_err()).await;
    assert_eq!(world.fakes.timelines(), (1, 0));
    world.create_branch(body).await;
}

#[tokio::test]
async fn what_was_half_made_at_a_crash_is_undone_at_the_next_start() {
    let mut world = World::connected().await;
    world.create_branch(json!({ "name": "kept" })).await;
    // Production is ahead of what is ingested: the branch stays half made.
    world.fakes.production.send_replace(Lsn::new(0x2000));
    let reply = world.create_branch(json!({ "name": "half", "no_wait": true })).await;
    assert_eq!(reply["state"], "creating");
    world.fakes.state.lock().import_held = true;
    let import = tokio::spawn({
        let body = json!({ "name": "other", "url": SOURCE });
        let address = world.socket();
        let token = world.token.clone();
        async move {
            let mut stream = tokio::net::UnixStream::connect(address).await.expect("connects");
            let text = format!(
                "POST /v1/connectors HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\
                 content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.to_string().len()
            );
            // Kept open: a server may drop the request of a client that is gone before it looked at it.
            tokio::io::AsyncWriteExt::write_all(&mut stream, text.as_bytes()).await.map(|()| stream)
        }
    });
    until("the import has begun", || world.fakes.state.lock().slots == 2).await;
    drop(import.await.expect("no panic").expect("sent"));
    world.crash();
    world.fakes.state.lock().import_held = false;

    world.start().await;
    until("all of it is undone", || {
        world.fakes.timelines() == (2, 1)
            && world.fakes.state.lock().slots == 1
            && world.control().find_branch("half").is_err()
    })
    .await;
    let names: Vec<_> = world.control().list_branches().expect("list").into_iter().map(|branch| branch.name).collect();
    assert_eq!(names, ["kept", "shop"]);
    until("the connector is followed again", || {
        world.fakes.state.lock().page_server.values().any(|timeline| timeline.ancestor.is_none() && timeline.following)
    })
    .await;
}

#[tokio::test]
async fn a_wake_starts_one_compute_for_any_number_of_waiters() {
    let mut world = World::connected().await;
    world.create_branch(json!({ "name": "a" })).await;
    let body = || Some(json!({ "branch": "a" }));
    let wakes = (0..20).map(|_| world.internal("POST", "/internal/v1/wake", body()));
    for (status, reply) in futures_util::future::join_all(wakes).await {
        assert_eq!((status, &reply["port"], &reply["incarnation"]), (200, &json!(5432), &json!(1)), "{reply}");
    }
    assert_eq!(world.starts("a").len(), 1);
    let shown = world.get("/v1/branches/a").await;
    assert_eq!(
        (&shown["compute"], &shown["missing_libraries"]),
        (&json!("running"), &json!(["timescaledb"])),
        "{shown}"
    );
    assert_eq!(world.fakes.state.lock().leases.values().next(), Some(&Lsn::new(0x2000)));

    let (status, reply) = world.call("POST", "/v1/branches/a/suspend", None).await;
    assert_eq!((status, &reply["compute"]), (200, &json!("suspended")), "{reply}");
    assert!(
        !world
            .fakes
            .state
            .lock()
            .page_server
            .values()
            .any(|timeline| timeline.ancestor.is_some() && timeline.following)
    );
    let (_, reply) = world.call("POST", "/v1/branches/a/wake", None).await;
    assert_eq!((&reply["incarnation"], &reply["was_running"]), (&json!(2), &json!(false)), "{reply}");
    world.stop().await;
    for pid in world.starts("a") {
        assert!(kill(Pid::from_raw(pid), None).is_err(), "agent {pid} is left");
    }
}

#[tokio::test]
async fn a_crashed_compute_is_started_again_and_an_idle_one_is_not() {
    let world = World::connected().await;
    world.create_branch(json!({ "name": "a" })).await;
    world.call("POST", "/v1/branches/a/wake", None).await;
    kill(Pid::from_raw(world.starts("a")[0]), Signal::SIGKILL).expect("killed");
    until("it was started again", || world.starts("a").len() == 2).await;
    let (_, reply) = world.call("POST", "/v1/branches/a/wake", None).await;
    assert_eq!(reply["incarnation"], 2, "{reply}");
}

#[tokio::test]
async fn a_compute_that_cannot_start_says_why() {
    let world = World::connected().await;
    for (name, why) in [("broken", "no server programs of major 15"), ("silent", "ended without a word")] {
        world.create_branch(json!({ "name": name })).await;
        let path = format!("/v1/branches/{name}/wake");
        let error = world.fails("POST", &path, None, ApiErrorCode::ComputeFailed).await;
        assert!(error["message"].as_str().expect("message").contains(why), "{error}");
        let shown = world.get(&format!("/v1/branches/{name}")).await;
        assert!(shown["compute_problem"].as_str().expect("problem").contains(why), "{shown}");
    }
    let error = world.fails("POST", "/v1/branches/shop/wake", None, ApiErrorCode::RootBranch).await;
    assert!(error["hint"].as_str().expect("hint").contains("ardent branch create NAME --from shop"), "{error}");
}

#[tokio::test]
async fn a_start_that_takes_too_long_says_what_of_storage_fails_meanwhile() {
    let mut world = World::connected().await;
    world.stop().await;
    world.wake_timeout = Duration::from_millis(300);
    world.start().await;
    let made = world.create_branch(json!({ "name": "slow" })).await;
    let timeline = made["timeline_id"].as_str().expect("a timeline").parse().expect("an id");
    let said = async |problems: Vec<(TimelineId, String)>| {
        world.fakes.state.lock().page_server_problems = problems;
        let error = world.fails("POST", "/v1/branches/slow/wake", None, ApiErrorCode::Timeout).await;
        error["message"].as_str().expect("message").to_owned()
    };
    let plain = "branch slow did not start within 0 s";
    assert_eq!(said(Vec::new()).await, plain);
    let of_other = (TimelineId::from_bytes([7; 16]), "no answer from the store".to_owned());
    let told = "; the page server cannot keep up its store";
    let elsewhere = format!("{plain}{told} for other branches: ardent status tells why");
    assert_eq!(said(vec![of_other.clone()]).await, elsewhere);
    let own = (timeline, "its layers cannot be written".to_owned());
    assert_eq!(said(vec![of_other, own]).await, format!("{plain}{told}: its layers cannot be written"));
}

#[tokio::test]
async fn processes_of_a_killed_server_are_ended_before_anything_else() {
    let mut world = World::connected().await;
    let branch = world.create_branch(json!({ "name": "a" })).await;
    world.stop().await;
    // What a kill -9 leaves: a row with the identity of a process that runs.
    let mut leftover = std::process::Command::new("sleep").arg("60").spawn().expect("sleep runs");
    let store = Store::open(&world.folder.path().join("control.db")).expect("the store opens");
    let id = branch["id"].as_str().expect("id").parse().expect("an id");
    let compute = store.begin_compute(id, None).expect("written");
    let identity = ProcessIdentity::of(leftover.id()).expect("it runs");
    store.set_processes(compute.id, None, Some(&identity)).expect("written");
    drop(store);

    world.start().await;
    assert!(!identity.is_alive());
    assert!(!leftover.wait().expect("reaped").success(), "it was killed");
    let (_, reply) = world.call("POST", "/v1/branches/a/wake", None).await;
    assert_eq!(reply["incarnation"], 2, "{reply}");
}

#[tokio::test]
async fn deleting_a_running_branch_leaves_nothing() {
    let world = World::connected().await;
    world.create_branch(json!({ "name": "a" })).await;
    world.call("POST", "/v1/branches/a/wake", None).await;
    let folder = world.compute_dir("a").expect("it was started");
    assert_eq!(world.call("DELETE", "/v1/branches/a", None).await.0, 200);
    assert!(!folder.exists() && !folder.with_extension("spec").exists());
    assert_eq!(world.fakes.timelines(), (1, 0));
    world.fails("DELETE", "/v1/branches/a", None, ApiErrorCode::NotFound).await;
}

/// Of a branch that somebody else makes and deletes all the time each request says that it is there or that it is not, and nothing else.
#[tokio::test]
async fn what_is_asked_of_a_branch_that_comes_and_goes_is_answered() {
    const ROUNDS: usize = 150;
    let world = World::connected().await;
    let over_and_over = async |method: &str, path: &str, body: Option<Value>, allowed: &[u16]| {
        for _ in 0..ROUNDS {
            let (status, value) = world.call(method, path, body.clone()).await;
            assert!(allowed.contains(&status), "{method} {path}: {status} {value}");
        }
    };
    let branch = || Some(json!({ "name": "a" }));
    tokio::join!(
        over_and_over("POST", "/v1/branches", branch(), &[200, 409]),
        over_and_over("POST", "/v1/branches", branch(), &[200, 409]),
        over_and_over("DELETE", "/v1/branches/a", None, &[200, 404, 409]),
        over_and_over("DELETE", "/v1/branches/a", None, &[200, 404, 409]),
        over_and_over("GET", "/v1/branches/a/url", None, &[200, 404]),
        over_and_over("POST", "/v1/branches/a/password", Some(json!({})), &[200, 404]),
        over_and_over("POST", "/v1/branches/a/checkpoints", Some(json!({})), &[200, 404, 409]),
    );
}

#[tokio::test]
async fn an_expired_branch_is_deleted_once_its_children_are() {
    let world = World::connected().await;
    world.create_branch(json!({ "name": "a", "ttl_s": 3600 })).await;
    world.create_branch(json!({ "name": "child", "from": "a" })).await;
    world.call("POST", "/v1/branches/a/wake", None).await;
    world.call("PATCH", "/v1/branches/a", Some(json!({ "ttl_s": 1 }))).await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while world.get("/v1/branches/a").await["compute"] != "suspended" {
        assert!(std::time::Instant::now() < deadline, "the expired one is suspended");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    world.fails("POST", "/v1/branches/a/wake", None, ApiErrorCode::Conflict).await;
    assert_eq!(world.call("DELETE", "/v1/branches/child", None).await.0, 200);
    world.create_branch(json!({ "name": "b", "ttl_s": 3600 })).await;
    until("the expired one is gone", || world.control().find_branch("a").is_err()).await;
    let (_, kept) = world.call("PATCH", "/v1/branches/b", Some(json!({ "ttl_s": 0, "idle_timeout_s": 7 }))).await;
    assert_eq!((&kept["expires_at"], &kept["idle_timeout_s"]), (&json!(null), &json!(7)));
}

#[tokio::test]
async fn a_connector_that_fails_leaves_nothing_and_the_same_again_joins() {
    let world = World::new().await;
    world.fakes.state.lock().preflight_fails = true;
    let events = world.connect("shop").await;
    assert_eq!(events[0]["event"], "preflight");
    assert_eq!(events[1]["error"]["code"], "preflight_failed", "{events:?}");
    assert_eq!(events[1]["error"]["hint"], "ALTER ROLE app REPLICATION");
    {
        let mut state = world.fakes.state.lock();
        state.preflight_fails = false;
        state.import_fails = true;
    }
    let events = world.connect("shop").await;
    assert_eq!(events.last().expect("events")["error"]["code"], "connector_unavailable", "{events:?}");
    assert_eq!((world.fakes.timelines(), world.fakes.state.lock().slots), ((0, 0), 0));
    world.fakes.state.lock().import_fails = false;
    let (first, second) = tokio::join!(world.connect("shop"), world.connect("shop"));
    for events in [first, second] {
        assert_eq!(events.last().expect("events")["event"], "done", "{events:?}");
    }
    let events = world.connect("shop").await;
    assert_eq!((events.len(), &events[0]["event"]), (1, &json!("done")));
    assert!(!events[0].to_string().contains("s3cret"));
    let body = json!({ "name": "shop", "url": "postgresql://other@elsewhere/db" });
    world.fails("POST", "/v1/connectors", Some(body), ApiErrorCode::AlreadyExists).await;
    assert_eq!(world.get("/v1/connectors/shop").await["lag_bytes"], 0);
    world.fakes.state.lock().production_down = true;
    let (status, deleted) = world.call("DELETE", "/v1/connectors/shop", None).await;
    assert_eq!(status, 200);
    assert!(deleted["warning"].as_str().expect("warning").contains("pg_drop_replication_slot"), "{deleted}");
}

#[tokio::test]
async fn a_safekeeper_that_was_away_is_told_what_it_missed_even_after_a_restart() {
    let mut world = World::connected().await;
    world.create_branch(json!({ "name": "a" })).await;
    assert_eq!(world.fakes.state.lock().second.len(), 1);
    world.fakes.state.lock().second_away = true;
    world.create_branch(json!({ "name": "b" })).await;
    world.create_branch(json!({ "name": "c" })).await;
    for name in ["a", "c"] {
        assert_eq!(world.call("DELETE", &format!("/v1/branches/{name}"), None).await.0, 200);
        world.fails("GET", &format!("/v1/branches/{name}"), None, ApiErrorCode::NotFound).await;
    }
    let state = |world: &World| {
        let state = world.fakes.state.lock();
        let all: Vec<_> = state.safekeeper.keys().copied().collect();
        (all.len(), state.second.iter().copied().eq(all), state.second.len())
    };
    assert_eq!(state(&world), (1, false, 1), "the second one has the deleted branch and lacks the new one");

    world.crash();
    world.fakes.state.lock().second_away = false;
    world.start().await;
    until("the housekeeper has told it", || state(&world) == (1, true, 1)).await;
}

#[tokio::test]
async fn how_the_safekeepers_are_is_shown_with_the_names_of_branches() {
    let world = World::connected().await;
    world.create_branch(json!({ "name": "a" })).await;
    let shown = world.get("/v1/safekeepers").await["safekeepers"].clone();
    let up = |number: usize| (shown[number]["number"].as_u64(), shown[number]["is_up"].as_bool());
    assert_eq!((up(0), up(1)), ((Some(1), Some(true)), (Some(2), Some(true))));
    let branch = world.fakes.state.lock().safekeeper.keys().next().copied().expect("the branch's");
    {
        let mut state = world.fakes.state.lock();
        state.archive_stalls = vec![stall(branch), stall(TimelineId::generate())];
        state.second_away = true;
    }
    let shown = world.get("/v1/safekeepers").await["safekeepers"].clone();
    let stalls = &shown[0]["archive_stalls"];
    assert_eq!(
        (&stalls[0]["branch"], &stalls[1]["branch"], &stalls[0]["for_s"]),
        (&json!("a"), &json!(null), &json!(90))
    );
    assert_eq!((shown[1]["is_up"].as_bool(), &shown[1]["disk_free_bytes"]), (Some(false), &json!(null)));
    assert!(shown[1]["error"].as_str().expect("why").contains("second safekeeper"), "{shown}");
}

#[tokio::test]
async fn what_production_keeps_is_shown_and_warned_of() {
    let world = World::connected().await;
    let slot = |kept_bytes: u64| SlotInfo {
        name: "ardent_1".into(),
        active: true,
        wal_status: Some("extended".into()),
        kept_bytes: Some(kept_bytes),
        safe_bytes: None,
        current: true,
    };
    for (kept_bytes, warnings) in [(50 << 20, 0), (200 << 20, 1), (50 << 20, 0)] {
        world.fakes.state.lock().slot = Some(slot(kept_bytes));
        let info = world.get("/v1/connectors/shop").await;
        assert_eq!(
            (&info["slot"]["kept_bytes"], info["warnings"].as_array().map(Vec::len)),
            (&json!(kept_bytes), Some(warnings)),
            "{info}"
        );
        assert_eq!(world.get("/v1/connectors").await["connectors"][0]["warnings"], info["warnings"]);
        assert_eq!(info["slot"]["current"], true);
    }
    world.fakes.state.lock().production_down = true;
    let slot = world.get("/v1/connectors/shop").await["slot"].clone();
    assert_eq!((&slot["kept_bytes"], &slot["current"]), (&json!(50 << 20), &json!(false)), "it was so once");
}

#[tokio::test]
async fn a_connector_is_moved_to_a_server_that_has_what_follows_or_stays() {
    let mut world = World::connected().await;
    let path = "/v1/connectors/shop/move";
    let other = Some(json!({ "url": SOURCE.replace("prod.example", "other.example") }));
    let error = world.fails("POST", path, other, ApiErrorCode::ConnectorUnavailable).await;
    assert!(error["hint"].as_str().expect("hint").contains("stays where it was"), "{error}");
    until("it is followed again", || world.fakes.state.lock().followers == 1).await;
    assert_eq!(world.fakes.state.lock().followed_url, SOURCE);

    let new = SOURCE.replace("prod.example", "new.example");
    let (status, info) = world.call("POST", path, Some(json!({ "url": new }))).await;
    assert_eq!((status, info["source"].as_str()), (200, Some("postgresql://app:***@new.example/shop")), "{info}");
    until("the new one is followed", || world.fakes.state.lock().followed_url == new).await;
    assert_eq!(world.fakes.state.lock().followers, 1);
    // Also after a restart.
    world.stop().await;
    world.fakes.state.lock().followed_url.clear();
    world.start().await;
    until("it is followed", || world.fakes.state.lock().followed_url == new).await;
    world.fails("POST", "/v1/connectors/none/move", Some(json!({ "url": new })), ApiErrorCode::NotFound).await;
}
