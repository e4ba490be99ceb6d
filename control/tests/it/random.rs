//! Random histories of branches against a model: made, reset, restored, rewound, renamed, deleted and had back, while control is killed in the
//! middle and storage is away.
//!
//! After each step the branches are those of the model with their ids and passwords, and storage has exactly the timelines that these, what they
//! were, and what can be had back need. `ARDENT_SEED=n` runs one seed alone, `ARDENT_SEEDS=n` so many.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use ardent_types::TimelineId;

use crate::world::{FakeState, Held, World, until};

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const STEPS: usize = 20;
/// Histories at the same time.
const AT_ONCE: usize = 8;
const PATIENCE: Duration = Duration::from_secs(20);

/// A branch that is there or can be had back.
#[derive(Clone, Debug)]
struct Branch {
    name: String,
    /// Its parent's id; `None` is the root branch.
    parent: Option<String>,
    timeline: TimelineId,
    /// What it was before it was reset or restored.
    was: BTreeSet<TimelineId>,
    branch_lsn: Value,
    password: String,
    deleted: bool,
}

/// By id.
type Model = BTreeMap<String, Branch>;

struct Run {
    world: World,
    model: Model,
    random: StdRng,
    done: Vec<String>,
}

fn password(url: &Value) -> String {
    let url = url.as_str().expect("a URL");
    url.split_once('@').expect("a host").0.to_owned()
}

fn timeline(branch: &Value) -> TimelineId {
    branch["timeline_id"].as_str().expect("a timeline").parse().expect("an id")
}

fn id(branch: &Value) -> String {
    branch["id"].as_str().expect("an id").to_owned()
}

impl Run {
    async fn begin(seed: u64) -> Run {
        let mut world = World::connected().await;
        world.keep_deleted_for(Duration::from_secs(3600)).await;
        Run { world, model: Model::new(), random: StdRng::seed_from_u64(seed), done: Vec::new() }
    }

    fn one_in(&mut self, times: u32) -> bool {
        self.random.random_ratio(1, times)
    }

    fn any(&mut self, deleted: bool) -> Option<(String, Branch)> {
        let all: Vec<_> = self.model.iter().filter(|(_, branch)| branch.deleted == deleted).collect();
        all.choose(&mut self.random).map(|(id, branch)| ((*id).clone(), (*branch).clone()))
    }

    fn is_live(&self, name: &str) -> bool {
        self.model.values().any(|branch| !branch.deleted && branch.name == name)
    }

    fn children(&self, id: &str, deleted: bool) -> Vec<String> {
        let is_child = |branch: &Branch| branch.parent.as_deref() == Some(id) && branch.deleted == deleted;
        self.model.iter().filter(|(_, branch)| is_child(branch)).map(|(id, _)| id.clone()).collect()
    }

    /// A branch and all that was deleted below it.
    fn forget(&mut self, id: &str) {
        for child in self.children(id, true) {
            self.forget(&child);
        }
        self.model.remove(id);
    }

    /// A request whose answer has this status.
    async fn expect(&mut self, method: &str, path: &str, body: Option<Value>, status: u16) -> Value {
        let text = body.as_ref().map(Value::to_string).unwrap_or_default();
        self.done.push(format!("{method} {path} {text}: {status}"));
        let (found, value) = self.world.call(method, path, body).await;
        assert_eq!(found, status, "{value}\n{}", self.done.join("\n"));
        value
    }

    async fn create(&mut self) {
        let name = *NAMES.choose(&mut self.random).expect("names");
        let parent = if self.one_in(3) { None } else { self.any(false) };
        let from = parent.as_ref().map_or("shop", |(_, branch)| &branch.name).to_owned();
        let body = json!({ "name": name, "from": from });
        if self.is_live(name) {
            return;
        }
        let made = self.expect("POST", "/v1/branches", Some(body), 200).await;
        let branch = Branch {
            name: name.to_owned(),
            parent: parent.map(|(id, _)| id),
            timeline: timeline(&made),
            was: BTreeSet::new(),
            branch_lsn: made["branch_lsn"].clone(),
            password: password(&made["url"]),
            deleted: false,
        };
        assert!(self.model.insert(id(&made), branch).is_none(), "ids are new");
    }

    async fn reset_or_restore(&mut self) {
        let Some((id, branch)) = self.any(false) else { return };
        let (verb, body) = match self.random.random_range(0..3) {
            0 => ("reset", json!({})),
            1 => ("restore", json!({ "at": branch.branch_lsn })),
            _ => {
                let path = format!("/v1/branches/{}/checkpoints", branch.name);
                self.expect("POST", &path, Some(json!({})), 200).await;
                ("rewind", json!({}))
            }
        };
        let path = format!("/v1/branches/{}/{verb}", branch.name);
        let anew = self.expect("POST", &path, Some(body), 200).await;
        self.is_anew(&id, &anew);
    }

    fn is_anew(&mut self, id: &str, shown: &Value) {
        let branch = self.model.get_mut(id).expect("it is there");
        let before = std::mem::replace(&mut branch.timeline, timeline(shown));
        assert_ne!(before, branch.timeline);
        branch.was.insert(before);
        branch.branch_lsn = shown["branch_lsn"].clone();
    }

    async fn delete(&mut self) {
        let Some((id, branch)) = self.any(false) else { return };
        let for_good = self.one_in(3);
        let path = format!("/v1/branches/{}{}", branch.name, if for_good { "?for_good=true" } else { "" });
        if !self.children(&id, false).is_empty() {
            self.expect("DELETE", &path, None, 409).await;
            return;
        }
        self.expect("DELETE", &path, None, 200).await;
        if for_good {
            self.forget(&id);
        } else {
            self.model.get_mut(&id).expect("it is there").deleted = true;
        }
    }

    async fn undelete(&mut self) {
        let Some((id, branch)) = self.any(true) else { return };
        if self.model.values().filter(|other| other.deleted && other.name == branch.name).count() > 1 {
            return;
        }
        let path = format!("/v1/branches/{}/undelete", branch.name);
        let parent = branch.parent.as_ref().map(|id| &self.model[id]);
        if parent.is_some_and(|parent| parent.deleted) || self.is_live(&branch.name) {
            self.expect("POST", &path, Some(json!({})), 409).await;
            return;
        }
        let back = self.expect("POST", &path, Some(json!({})), 200).await;
        assert_eq!(timeline(&back), branch.timeline);
        self.model.get_mut(&id).expect("it is there").deleted = false;
    }

    async fn rename(&mut self) {
        let Some((id, branch)) = self.any(false) else { return };
        let name = *NAMES.choose(&mut self.random).expect("names");
        if name == branch.name {
            return;
        }
        let path = format!("/v1/branches/{}/rename", branch.name);
        let status = if self.is_live(name) { 409 } else { 200 };
        self.expect("POST", &path, Some(json!({ "name": name })), status).await;
        if status == 200 {
            self.model.get_mut(&id).expect("it is there").name = name.to_owned();
        }
    }

    /// A part of storage is away: what needs it fails and changes nothing.
    async fn with_storage_away(&mut self) {
        let page_server = self.one_in(2);
        let Some((_, branch)) = self.any(false) else { return };
        let set = |world: &World, away: bool| {
            let mut state = world.fakes.state.lock();
            if page_server { state.page_server_down = away } else { state.safekeeper_down = away }
        };
        set(&self.world, true);
        self.done.push(format!("page server {page_server} away"));
        let free = NAMES.iter().find(|name| !self.is_live(name));
        if let Some(name) = free.filter(|_| self.random.random()) {
            let body = json!({ "name": name, "from": branch.name });
            let status = ardent_api::control::ApiErrorCode::StorageUnavailable.http_status();
            self.expect("POST", "/v1/branches", Some(body), status).await;
        } else {
            let path = format!("/v1/branches/{}/reset", branch.name);
            let status = ardent_api::control::ApiErrorCode::StorageUnavailable.http_status();
            self.expect("POST", &path, Some(json!({})), status).await;
        }
        set(&self.world, false);
    }

    /// Control ends in the middle of making a timeline.
    async fn crash_in_the_middle(&mut self) {
        let steps = [Held::BeforePageServer, Held::AfterPageServer, Held::BeforeSafekeeper, Held::AfterSafekeeper];
        let step = *steps.choose(&mut self.random).expect("steps");
        let chosen = self.any(false);
        let free = NAMES.iter().find(|name| !self.is_live(name)).copied();
        let (path, body, reset) = match (chosen, free) {
            (Some((id, branch)), _) if self.one_in(2) => {
                (format!("/v1/branches/{}/reset", branch.name), json!({}), Some((id, branch)))
            }
            (chosen, Some(name)) => {
                let from = chosen.map_or("shop".to_owned(), |(_, branch)| branch.name);
                ("/v1/branches".to_owned(), json!({ "name": name, "from": from }), None)
            }
            _ => return,
        };
        self.done.push(format!("POST {path} {body}: killed {step:?}"));
        {
            let mut state = self.world.fakes.state.lock();
            (state.held, state.reached) = (Some(step), false);
        }
        let (address, token, text) = (self.world.socket(), self.world.token.clone(), body.to_string());
        let length = text.len();
        let mut stream = tokio::net::UnixStream::connect(address).await.expect("connects");
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{text}"
        );
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.expect("sent");
        until("the step is reached", || self.world.fakes.state.lock().reached).await;
        self.world.crash();
        self.world.fakes.state.lock().held = None;
        self.world.start().await;
        if let Some((id, branch)) = reset {
            let shown = self.world.get(&format!("/v1/branches/{}", branch.name)).await;
            if timeline(&shown) != branch.timeline {
                self.is_anew(&id, &shown);
            }
        }
    }

    async fn step(&mut self) {
        match self.random.random_range(0..20) {
            0..=5 => self.create().await,
            6..=8 => self.reset_or_restore().await,
            9..=11 => self.delete().await,
            12..=13 => self.undelete().await,
            14..=15 => self.rename().await,
            16 => self.with_storage_away().await,
            17..=18 => self.crash_in_the_middle().await,
            _ => {
                self.done.push("killed".to_owned());
                self.world.crash();
                self.world.start().await;
            }
        }
        if self.one_in(6) {
            let mut state = self.world.fakes.state.lock();
            state.second_away = !state.second_away;
        }
    }

    /// What storage must have: all that is there or can be had back, what it was, and what these hang on.
    fn needed(&self) -> BTreeSet<TimelineId> {
        let state = self.world.fakes.state.lock();
        let mut needed: BTreeSet<TimelineId> = BTreeSet::new();
        let named = self.model.values().flat_map(|branch| branch.was.iter().chain([&branch.timeline]));
        for timeline in named {
            let mut next = Some(*timeline);
            while let Some(timeline) = next {
                needed.insert(timeline);
                next = state.page_server.get(&timeline).and_then(|found| found.ancestor);
            }
        }
        needed.extend(state.page_server.iter().filter(|(_, found)| found.ancestor.is_none()).map(|(id, _)| id));
        needed
    }

    /// The branches that are shown, by id.
    async fn listed(&self) -> BTreeMap<String, (String, TimelineId)> {
        let listed = self.world.get("/v1/branches").await;
        let branches = listed["branches"].as_array().expect("a list").iter();
        branches
            .filter(|branch| branch["name"] != "shop")
            .map(|branch| (id(branch), (branch["name"].as_str().expect("a name").to_owned(), timeline(branch))))
            .collect()
    }

    async fn check(&self) {
        let done = || self.done.join("\n");
        let live = self.model.iter().filter(|(_, branch)| !branch.deleted);
        let expected: BTreeMap<String, (String, TimelineId)> =
            live.map(|(id, branch)| (id.clone(), (branch.name.clone(), branch.timeline))).collect();
        // What was half made is shown until it is undone.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let listed = self.listed().await;
            if listed == expected {
                break;
            }
            assert!(Instant::now() < deadline, "{listed:?}\nwhere there should be\n{expected:?}\n{}", done());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for branch in self.model.values().filter(|branch| !branch.deleted) {
            let url = self.world.get(&format!("/v1/branches/{}/url", branch.name)).await;
            let found = password(&url["url"]).replace("postgresql://", "");
            assert_eq!(found, branch.password.replace("postgresql://", ""), "{}", done());
        }
        let needed = self.needed();
        let root =
            |state: &FakeState| state.page_server.iter().find(|(_, found)| found.ancestor.is_none()).map(|(id, _)| *id);
        until(&format!("storage has what is needed, {needed:?}:\n{}", done()), || {
            let state = self.world.fakes.state.lock();
            let pages: BTreeSet<TimelineId> = state.page_server.keys().copied().collect();
            let wal: BTreeSet<TimelineId> = state.safekeeper.keys().copied().collect();
            let without_root: BTreeSet<TimelineId> =
                needed.iter().copied().filter(|id| Some(*id) != root(&state)).collect();
            pages == needed && wal == without_root
        })
        .await;
    }
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

#[tokio::test(flavor = "multi_thread")]
async fn random_histories_leave_what_the_model_has() {
    let seeds = match number_from("ARDENT_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..number_from("ARDENT_SEEDS").unwrap_or(8) + 1,
    };
    // They wait more than they work: some at a time.
    let runs = seeds.map(|seed| async move { tokio::spawn(history(seed)).await.map_err(|error| (seed, error)) });
    let mut runs = futures_util::stream::iter(runs).buffer_unordered(AT_ONCE);
    let mut count = 0;
    while let Some(ended) = runs.next().await {
        let Ok(()) = ended else { panic!("{ended:?}: ARDENT_SEED of the first number repeats it") };
        count += 1;
    }
    assert!(count > 0);
    println!("{count} histories of {STEPS} steps");
}

async fn history(seed: u64) {
    let mut run = Run::begin(seed).await;
    for _ in 0..STEPS {
        run.step().await;
        run.check().await;
    }
    // The safekeeper that was away is told what it missed.
    run.world.fakes.state.lock().second_away = false;
    until("the second safekeeper has what the first has", || {
        let state = run.world.fakes.state.lock();
        state.second.iter().eq(state.safekeeper.keys())
    })
    .await;
}
