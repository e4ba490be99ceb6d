//! A lost database comes back from what stands in timelines' manifests.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use ardent_api::control::ApiErrorCode;
use ardent_control::recovery::{FoundTimeline, RecoveryError, make_database};
use ardent_control::secrets::Keyring;
use ardent_control::store::{MaskedRow, Store, StoreError};
use ardent_types::{BranchId, Lsn, TenantId, TimelineId};

use crate::world::{FakeTimeline, SOURCE, World, until};

const PREV: Lsn = Lsn::new(0xF00);

fn database(world: &World) -> PathBuf {
    world.folder.path().join("control.db")
}

/// Waits until everything that changed is told.
async fn told(world: &World) {
    let path = database(world);
    until("everything is told", || {
        Store::open(&path).and_then(|store| store.untold(1)).is_ok_and(|left| left.is_empty())
    })
    .await;
}

/// What the store would say of the timelines that are there.
fn found(world: &World, tenant: TenantId) -> Vec<FoundTimeline> {
    let state = world.fakes.state.lock();
    let one = |(timeline, fake): (&TimelineId, &FakeTimeline)| FoundTimeline {
        tenant,
        timeline: *timeline,
        ancestor: fake.ancestor.map(|ancestor| (ancestor, fake.branch_lsn, PREV)),
        importing: false,
        description: state.descriptions.get(timeline).cloned(),
    };
    state.page_server.iter().map(one).collect()
}

fn lose(world: &World) {
    for suffix in ["", "-wal", "-shm"] {
        let file = PathBuf::from(format!("{}{suffix}", database(world).display()));
        if file.exists() {
            std::fs::remove_file(file).expect("removed");
        }
    }
}

fn keyring(world: &World) -> Keyring {
    Keyring::open_or_create(&world.folder.path().join("keys/secrets.key")).expect("the key")
}

async fn tenant(world: &World) -> TenantId {
    world.get("/v1/branches/shop").await["tenant_id"].as_str().expect("text").parse().expect("an id")
}

/// What users see of everything.
async fn seen(world: &World) -> Vec<Value> {
    let mut seen = vec![world.get("/v1/branches").await, world.get("/v1/branches?deleted=true").await];
    for branch in ["a", "b2"] {
        seen.push(world.get(&format!("/v1/branches/{branch}/url")).await);
        seen.push(world.get(&format!("/v1/branches/{branch}/history")).await);
        seen.push(world.get(&format!("/v1/branches/{branch}/checkpoints")).await);
    }
    let mut connector = world.get("/v1/connectors/shop").await;
    // How it runs is not what it is.
    for field in ["following", "lag_bytes", "lag_seconds", "applied_lsn"] {
        connector.as_object_mut().expect("an object").remove(field);
    }
    seen.push(connector);
    seen
}

/// Branches of all kinds.
async fn full_world() -> World {
    let mut world = World::connected().await;
    world.keep_deleted_for(Duration::from_secs(3600)).await;
    world.create_branch(json!({ "name": "a", "idle_timeout_s": 60, "policy": { "max_rows_changed": 7 } })).await;
    world.create_branch(json!({ "name": "b", "from": "a", "ttl_s": 3600 })).await;
    world.create_branch(json!({ "name": "c" })).await;
    let (status, _) = world.call("POST", "/v1/branches/b/rename", Some(json!({ "name": "b2" }))).await;
    assert_eq!(status, 200);
    let (status, _) = world.call("DELETE", "/v1/branches/c", None).await;
    assert_eq!(status, 200);
    let mark = |branch: &'static str, body: Value| {
        let world = &world;
        async move {
            let (status, reply) = world.call("POST", &format!("/v1/branches/{branch}/checkpoints"), Some(body)).await;
            assert_eq!(status, 200, "{reply}");
        }
    };
    mark("a", json!({})).await;
    mark("b2", json!({ "label": "gone" })).await;
    mark("b2", json!({ "label": "first" })).await;
    let (status, reply) = world.call("POST", "/v1/branches/a/reset", Some(json!({}))).await;
    assert_eq!(status, 200, "{reply}");
    mark("a", json!({ "label": "after-the-reset" })).await;
    let (status, reply) = world.call("DELETE", "/v1/branches/b2/checkpoints/gone", None).await;
    assert_eq!(status, 200, "{reply}");
    told(&world).await;
    world
}

#[tokio::test]
async fn everything_is_as_it_was_after_the_database_was_lost() {
    let mut world = full_world().await;
    let (before, tenant) = (seen(&world).await, tenant(&world).await);
    world.crash();
    lose(&world);
    let recovered = make_database(&database(&world), &keyring(&world), found(&world, tenant)).expect("made");
    assert_eq!(
        recovered.connectors.iter().map(|one| (one.name.as_str(), one.has_url)).collect::<Vec<_>>(),
        [("shop", true)]
    );
    let branches: Vec<_> =
        recovered.branches.iter().map(|one| (one.name.as_str(), one.is_described, one.deleted)).collect();
    assert_eq!(branches, [("a", true, false), ("b2", true, false), ("c", true, true)]);
    assert!(recovered.left.is_empty() && recovered.branches.iter().all(|branch| branch.has_passwords));
    world.start().await;
    world.token = world.control().new_user_token("again").expect("token");
    assert_eq!(seen(&world).await, before);
    let labels = |list: &Value| {
        let list = list["checkpoints"].as_array().expect("a list").iter();
        list.map(|made| made["label"].as_str().expect("a label").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(labels(&world.get("/v1/branches/a/checkpoints").await), ["step-1", "after-the-reset"]);
    assert_eq!(labels(&world.get("/v1/branches/b2/checkpoints").await), ["first"]);
    // They are not only shown.
    let (status, reply) = world.call("POST", "/v1/branches/a/rewind", Some(json!({ "checkpoint": "step-1" }))).await;
    assert_eq!(status, 200, "{reply}");
    world.create_branch(json!({ "name": "d", "from": "b2" })).await;
    let (status, reply) = world.call("POST", "/v1/branches/c/undelete", Some(json!({}))).await;
    assert_eq!(status, 200, "{reply}");
    let (status, reply) = world.call("DELETE", "/v1/branches/d", None).await;
    assert_eq!(status, 200, "{reply}");
}

#[tokio::test]
async fn a_branch_is_described_from_its_first_manifest_on() {
    let world = World::connected().await;
    told(&world).await;
    let made = world.create_branch(json!({ "name": "a" })).await;
    told(&world).await;
    let timeline: TimelineId = made["timeline_id"].as_str().expect("text").parse().expect("an id");
    let state = world.fakes.state.lock();
    assert_eq!(state.descriptions[&timeline]["branch"]["name"], "a");
    assert!(!state.described.contains(&timeline), "its manifest was written once more");
}

#[tokio::test]
async fn what_cannot_be_told_now_is_told_later() {
    let mut world = World::connected().await;
    world.create_branch(json!({ "name": "a" })).await;
    told(&world).await;
    world.fakes.state.lock().page_server_down = true;
    let (status, _) = world.call("POST", "/v1/branches/a/rename", Some(json!({ "name": "z" }))).await;
    assert_eq!(status, 200);
    world.stop().await;
    assert_eq!(Store::open(&database(&world)).expect("opens").untold(9).expect("read").len(), 1);
    world.fakes.state.lock().page_server_down = false;
    world.start().await;
    told(&world).await;
    let names: Vec<_> =
        world.fakes.state.lock().descriptions.values().map(|one| one["branch"]["name"].clone()).collect();
    assert!(names.contains(&json!("z")), "{names:?}");
}

#[tokio::test]
async fn without_the_key_log_ins_stay_and_the_url_is_asked_for() {
    let mut world = full_world().await;
    let tenant = tenant(&world).await;
    world.stop().await;
    lose(&world);
    std::fs::remove_file(world.folder.path().join("keys/secrets.key")).expect("removed");
    let recovered = make_database(&database(&world), &keyring(&world), found(&world, tenant)).expect("made");
    assert!(!recovered.connectors[0].has_url);
    assert!(recovered.branches.iter().all(|branch| branch.is_described && !branch.has_passwords));
    world.start().await;
    world.token = world.control().new_user_token("again").expect("token");
    let id = world.get("/v1/branches/a").await["id"].as_str().expect("text").parse().expect("an id");
    let credential =
        Store::open(&database(&world)).expect("opens").credential(id, "app").expect("read").expect("there");
    assert!(credential.password_sealed.is_none() && credential.verifier.starts_with("SCRAM-SHA-256$"));
    let error = world.fails("GET", "/v1/branches/a/url", None, ApiErrorCode::Conflict).await;
    assert!(error["message"].as_str().is_some_and(|text| text.contains("not known here")), "{error}");
    let (status, reply) = world.call("POST", "/v1/branches/a/password", Some(json!({}))).await;
    assert_eq!(status, 200, "{reply}");
    let (status, reply) = world.call("POST", "/v1/connectors/shop/move", Some(json!({ "url": SOURCE }))).await;
    assert_eq!(status, 200, "{reply}");
    world.create_branch(json!({ "name": "new" })).await;
}

#[tokio::test]
async fn what_nothing_describes_comes_back_under_another_name_and_nothing_is_claimed_twice() {
    let mut world = full_world().await;
    let tenant = tenant(&world).await;
    world.crash();
    lose(&world);
    let mut found = found(&world, tenant);
    let named = |found: &[FoundTimeline], name: &str| {
        let is_it = |one: &FoundTimeline| {
            one.description.as_ref().is_some_and(|json| json["branch"]["name"] == name && json["past"].is_null())
        };
        found.iter().position(is_it).expect("there")
    };
    // One is not described, one claims to be a branch that another is, a third hangs on nothing.
    let (b2, c) = (named(&found, "b2"), named(&found, "c"));
    found[b2].description = None;
    let mut stolen = found[named(&found, "a")].description.clone().expect("described");
    stolen["branch"]["since_us"] = json!(1);
    found[c].description = Some(stolen);
    let lost = FoundTimeline {
        timeline: TimelineId::generate(),
        ancestor: Some((TimelineId::generate(), Lsn::new(8), PREV)),
        description: None,
        ..found[c].clone()
    };
    let unfinished =
        FoundTimeline { timeline: TimelineId::generate(), ancestor: None, importing: true, ..lost.clone() };
    let damaged = FoundTimeline {
        timeline: TimelineId::generate(),
        description: Some(json!({ "format": 1, "branch": 5 })),
        ..found[c].clone()
    };
    let newer = FoundTimeline {
        timeline: TimelineId::generate(),
        description: Some(json!({ "format": 2, "branch": 5 })),
        ..found[c].clone()
    };
    let expect_named =
        [found[b2].timeline, found[c].timeline].map(|timeline| format!("recovered-{}", &timeline.to_string()[..8]));
    found.extend([lost, unfinished, damaged, newer]);
    let recovered = make_database(&database(&world), &keyring(&world), found).expect("made");
    let reasons: Vec<&str> = recovered.left.iter().map(|left| left.reason.as_str()).collect();
    for part in ["hangs on", "never complete", "cannot be read", "newer ardent"] {
        assert!(reasons.iter().any(|reason| reason.contains(part)), "{part}: {reasons:?}");
    }
    assert_eq!(reasons.len(), 4);
    let mut unnamed: Vec<String> =
        recovered.branches.iter().filter(|branch| !branch.is_described).map(|branch| branch.name.clone()).collect();
    unnamed.sort();
    let mut expect_named = expect_named.to_vec();
    expect_named.sort();
    assert_eq!(unnamed, expect_named);
    world.start().await;
    world.token = world.control().new_user_token("again").expect("token");
    assert_eq!(world.get("/v1/branches/a").await["parent"], "shop");
    for name in expect_named {
        assert_eq!(world.get(&format!("/v1/branches/{name}")).await["state"], "ready");
        let url = world.get(&format!("/v1/branches/{name}/url")).await;
        assert!(url["url"].as_str().is_some_and(|url| url.starts_with("postgresql://app:")), "{url}");
    }
}

#[tokio::test]
async fn what_a_branch_was_compared_with_before_a_reset_is_known_after_the_database_was_lost() {
    let mut world = World::connected().await;
    let made = world.create_branch(json!({ "name": "a" })).await;
    world.fakes.ingested.send_replace(Lsn::new(0x2000));
    let (status, reset) = world.call("POST", "/v1/branches/a/reset", Some(json!({}))).await;
    assert_eq!(status, 200, "{reset}");
    assert_ne!(reset["branch_lsn"], made["branch_lsn"]);
    for at in ["0/1800", "0/1C00"] {
        told(&world).await;
        let tenant = tenant(&world).await;
        world.crash();
        lose(&world);
        make_database(&database(&world), &keyring(&world), found(&world, tenant)).expect("made");
        world.start().await;
        world.token = world.control().new_user_token("again").expect("token");
        let (status, restored) = world.call("POST", "/v1/branches/a/restore", Some(json!({ "at": at }))).await;
        assert_eq!(status, 200, "{restored}");
        assert_eq!(restored["branch_lsn"], made["branch_lsn"], "{at}");
    }
}

#[tokio::test]
async fn a_database_that_is_there_stays_and_an_empty_store_makes_none() {
    let mut world = full_world().await;
    let tenant = tenant(&world).await;
    world.stop().await;
    let (path, before) = (database(&world), std::fs::read(database(&world)).expect("read"));
    let again = make_database(&path, &keyring(&world), found(&world, tenant));
    assert!(matches!(again, Err(RecoveryError::DatabaseExists { .. })));
    assert_eq!(std::fs::read(&path).expect("read"), before);
    lose(&world);
    assert!(matches!(make_database(&path, &keyring(&world), Vec::new()), Err(RecoveryError::NothingFound)));
    assert!(!path.exists());
    // What an attempt that was cut off left is in nobody's way.
    std::fs::write(path.with_extension("db.recovering"), b"half").expect("written");
    make_database(&path, &keyring(&world), found(&world, tenant)).expect("made");
    let opened: Result<Store, StoreError> = Store::open(&path);
    assert!(opened.is_ok() && !path.with_extension("db.recovering").exists());
}

#[tokio::test]
async fn a_connector_that_gives_out_masked_data_only_comes_back_as_one() {
    let world = World::connected().await;
    let (status, reply) = world.call("PATCH", "/v1/connectors/shop", Some(json!({ "masked_only": true }))).await;
    assert_eq!(status, 200, "{reply}");
    told(&world).await;
    let path = world.folder.path().join("other.db");
    make_database(&path, &keyring(&world), found(&world, tenant(&world).await)).expect("made anew");
    let connector = Store::open(&path).expect("opened").connector("shop").expect("read").expect("it is back");
    assert!(connector.masked_only);
}

#[tokio::test]
async fn a_masked_template_and_its_branches_come_back() {
    let world = World::connected().await;
    world.create_branch(json!({ "name": "a" })).await;
    told(&world).await;
    let mut found = found(&world, tenant(&world).await);
    let a = found.iter().find(|one| one.description.as_ref().is_some_and(|text| text["branch"]["name"] == "a"));
    let a = a.expect("it is described").clone();
    let like_a = |name: &str, parent: Option<BranchId>, ancestor: Option<TimelineId>| {
        let mut one = FoundTimeline { timeline: TimelineId::generate(), ..a.clone() };
        one.ancestor = ancestor.map(|timeline| (timeline, Lsn::new(0x3000), PREV));
        let id = BranchId::generate();
        let branch = &mut one.description.as_mut().expect("described")["branch"];
        (branch["id"], branch["name"], branch["credentials"]) = (json!(id.to_string()), json!(name), json!([]));
        if let Some(parent) = parent {
            branch["parent"] = json!(parent.to_string());
        }
        (id, one)
    };
    let (template, mut of_template) = like_a("masked.nightly", None, None);
    let made = MaskedRow {
        rules: "{}".to_owned(),
        source_lsn: Some(Lsn::new(0x2000)),
        report: Some(serde_json::to_string(&ardent_masking::MaskReport::default()).expect("plain data")),
    };
    let description = made.description().expect("it can be packed");
    of_template.description.as_mut().expect("described")["masked"] = serde_json::to_value(&description).expect("JSON");
    let made = description.row();
    let (_, of_child) = like_a("safe", Some(template), Some(of_template.timeline));
    // What has a history is no template, whatever it says.
    let (_, mut pretender) = like_a("masked.pretender", None, a.ancestor.map(|(timeline, ..)| timeline));
    pretender.description.as_mut().expect("described")["masked"] = serde_json::to_value(&description).expect("JSON");
    let pretender_name = format!("recovered-{}", &pretender.timeline.to_string()[..8]);
    // Whose parent is gone hangs on the connector's root.
    let (_, of_orphan) = like_a("masked.orphan", Some(BranchId::generate()), None);
    found.extend([of_template, of_child, of_orphan, pretender]);
    let path = world.folder.path().join("other.db");
    let recovered = make_database(&path, &keyring(&world), found).expect("made anew");
    assert_eq!(recovered.left, []);
    let store = Store::open(&path).expect("opened");
    let row = |name: &str| store.branch(name).expect("read").expect(name);
    let root = row("shop").id;
    assert_eq!(
        (row("masked.nightly").id, row("masked.nightly").parent, row("masked.nightly").ancestor),
        (template, Some(root), None)
    );
    assert_eq!(row("masked.orphan").parent, Some(root));
    assert_eq!((row("safe").parent, row("safe").branch_lsn), (Some(template), Some(Lsn::new(0x3000))));
    assert!(!row("masked.nightly").is_listed() && row("masked.nightly").template_name() == Some("nightly"));
    assert_eq!(store.masked(template).expect("read").as_ref(), Some(&made));
    assert!(made.is_by("{}") && made.report.is_some());
    assert_eq!(store.masked(row("masked.orphan").id).expect("read"), None, "its manifest did not say");
    let known: Vec<_> = recovered.branches.iter().map(|one| (one.name.as_str(), one.has_report)).collect();
    let expect = [("a", None), ("masked.nightly", Some(true)), ("masked.orphan", Some(false)), ("safe", None)];
    let mut expect = [&expect[..], &[(pretender_name.as_str(), None)]].concat();
    expect.sort();
    assert_eq!(known, expect);
}

#[tokio::test]
async fn no_branch_is_made_of_a_template_that_nothing_vouches_for() {
    let mut world = World::connected().await;
    world.create_branch(json!({ "name": "a" })).await;
    told(&world).await;
    let mut found = found(&world, tenant(&world).await);
    let mut template = found
        .iter()
        .find(|one| one.description.as_ref().is_some_and(|text| text["branch"]["name"] == "a"))
        .expect("it is described")
        .clone();
    (template.timeline, template.ancestor) = (TimelineId::generate(), None);
    let description = template.description.as_mut().expect("described");
    description["branch"]["id"] = json!(BranchId::generate().to_string());
    (description["branch"]["name"], description["branch"]["credentials"]) = (json!("masked.nightly"), json!([]));
    description["masked"] = json!({ "rules_sha256": "00", "source_lsn": null, "report": "c29tZXRoaW5n" });
    found.push(template);
    world.crash();
    lose(&world);
    make_database(&database(&world), &keyring(&world), found).expect("made");
    world.start().await;
    world.token = world.control().new_user_token("again").expect("token");
    let listed = world.get("/v1/masked").await;
    assert_eq!(listed["templates"][0]["name"], "nightly");
    assert_eq!(world.get("/v1/masked/nightly").await["report"], Value::Null);
    for masked in ["nightly", ""] {
        let request = json!({ "name": "safe", "masked": masked });
        let error = world.fails("POST", "/v1/branches", Some(request), ApiErrorCode::Conflict).await;
        assert!(error["message"].as_str().is_some_and(|text| text.contains("nightly is not known")), "{error}");
    }
}
