//! Everybody at once on the same names, and a server that is killed in the middle of everything it does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ardent_test_pg::TestPg;
use ardent_tests::{Background, House, Process, production_options, sql, try_sql, wait_until};
use serde_json::json;

const CLIENTS: u64 = 6;
const NAMES: u64 = 3;

fn start() -> (TestPg, House) {
    let production = TestPg::start(production_options());
    production.sql("create table t (n int primary key); insert into t select generate_series(1, 1000)");
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    (production, house)
}

/// What has a name is whole, and what has none leaves nothing behind.
fn check_house(house: &House) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let listed = house.json(&["branch", "list"]);
        let branches = listed["branches"].as_array().expect("a list");
        let word = |value: &serde_json::Value| value.as_str().expect("a word").to_owned();
        let mut expected: Vec<String> = branches
            .iter()
            .flat_map(|branch| {
                let timeline = format!("{}/{}", word(&branch["tenant_id"]), word(&branch["timeline_id"]));
                [format!("pageserver/store/timelines/{timeline}"), format!("safekeeper/{timeline}")]
            })
            .collect();
        expected.sort();
        let found = house.timelines();
        if found == expected && branches.iter().all(|branch| branch["state"] == "ready") {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "neither finished nor undone: {branches:#?}\nexpected {expected:#?}\nfound {found:#?}\n{}",
            house.log()
        );
        thread::sleep(Duration::from_millis(10));
    }
}

fn url_of(house: &House, name: &str) -> Option<String> {
    let shown = house.ardent(&["branch", "info", name, "--print-url"]);
    assert!([0, 5].contains(&shown.code), "{shown:?}");
    (shown.code == 0).then_some(shown.stdout)
}

#[test]
fn the_same_names_by_many_at_once() {
    let (production, house) = start();
    let seed = AtomicU64::new(20_261_122);
    // Numbers that look random and are the same in every run, up to the order in which clients take them.
    let random = || {
        let number = seed.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        let mixed = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed ^ (mixed >> 27)) >> 11
    };
    let rounds: u64 = std::env::var("ARDENT_ROUNDS").map_or(12, |text| text.parse().expect("a number"));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                for _ in 0..rounds {
                    let name = format!("n-{}", random() % NAMES);
                    let (arguments, codes): (Vec<&str>, &[i32]) = match random() % 8 {
                        0..=2 => (vec!["branch", "create", &name, "--from", "main"], &[0, 6]),
                        3 | 4 => (vec!["branch", "delete", &name], &[0, 5, 6]),
                        5 => (vec!["branch", "suspend", &name], &[0, 5]),
                        6 => (vec!["branch", "wake", &name], &[0, 1, 5, 6]),
                        _ => {
                            if let Some(url) = url_of(&house, &name)
                                && let Ok(count) = try_sql(&url, "select count(*) from t")
                            {
                                assert_eq!(count, "1000");
                            }
                            continue;
                        }
                    };
                    let done = house.ardent(&arguments);
                    assert!(codes.contains(&done.code), "{arguments:?}: {done:?}");
                    // A wake that fails was overtaken by a delete or a suspend, and says so.
                    assert!(!done.stderr.contains("panic"), "{done:?}");
                }
            });
        }
    });
    check_house(&house);
    let listed = house.json(&["branch", "list"]);
    for branch in listed["branches"].as_array().expect("a list") {
        if branch["is_root"] == true {
            continue;
        }
        let name = branch["name"].as_str().expect("a name");
        let url = url_of(&house, name).expect("it is listed");
        assert_eq!(sql(&url, "insert into t values (0); select count(*) from t"), "1001");
        house.ok(&["branch", "delete", name]);
    }
    assert_eq!(house.compute_processes(), []);
    check_house(&house);
    let log = house.log();
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(production.sql("select count(*) from t"), "1000");
}

/// Something that takes several steps, and how far it has come when the server is killed.
struct Phase {
    what: &'static str,
    begin: &'static [&'static str],
    reached: fn(&House, &Before) -> bool,
}

/// How things were before.
struct Before {
    page_server: usize,
    safekeeper: usize,
}

fn counts(house: &House) -> Before {
    let timelines = house.timelines();
    let page_server = timelines.iter().filter(|name| name.starts_with("pageserver")).count();
    Before { page_server, safekeeper: timelines.len() - page_server }
}

fn computes(house: &House, wanted: fn(&Process) -> bool) -> usize {
    house.compute_processes().iter().filter(|process| wanted(process)).count()
}

const CREATE: &[&str] = &["branch", "create", "victim", "--from", "main"];
const DELETE: &[&str] = &["branch", "delete", "victim"];
const WAKE: &[&str] = &["branch", "wake", "victim"];
const DIFF: &[&str] = &["branch", "diff", "kept"];

/// In this order: each begins with what the one before left, or with the branch made again.
const PHASES: &[Phase] = &[
    Phase { what: "creating: asked for", begin: CREATE, reached: |_, _| true },
    Phase {
        what: "creating: on the page server",
        begin: CREATE,
        reached: |house, before| counts(house).page_server > before.page_server,
    },
    Phase {
        what: "creating: on the safekeeper",
        begin: CREATE,
        reached: |house, before| counts(house).safekeeper > before.safekeeper,
    },
    Phase { what: "waking: agent", begin: WAKE, reached: |house, _| computes(house, Process::is_agent) > 0 },
    Phase { what: "waking: postmaster", begin: WAKE, reached: |house, _| computes(house, Process::is_postmaster) > 0 },
    Phase {
        what: "suspending",
        begin: &["branch", "suspend", "victim"],
        reached: |house, _| computes(house, Process::is_postmaster) == 0,
    },
    Phase {
        what: "diff: branch point made",
        begin: DIFF,
        reached: |house, before| counts(house).safekeeper > before.safekeeper,
    },
    Phase { what: "diff: both run", begin: DIFF, reached: |house, _| computes(house, Process::is_postmaster) > 1 },
    Phase {
        what: "deleting: off the page server",
        begin: DELETE,
        reached: |house, before| counts(house).page_server < before.page_server,
    },
    Phase {
        what: "deleting: off the safekeeper",
        begin: DELETE,
        reached: |house, before| counts(house).safekeeper < before.safekeeper,
    },
];

/// Waits without a pause: a phase may be short.
fn wait_for_phase(house: &House, phase: &Phase, before: &Before, running: &mut Background) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !(phase.reached)(house, before) {
        assert!(Instant::now() < deadline, "{}: not reached", phase.what);
        // It may have come and gone between two looks.
        if !running.runs() {
            println!("{}: over before it was seen", phase.what);
            return;
        }
    }
}

#[test]
fn a_server_that_is_killed_in_the_middle_finishes_or_undoes() {
    let (production, mut house) = start();
    let kept = house.branch("kept", "main");
    assert_eq!(sql(&kept, "insert into t values (5000); select count(*) from t"), "1001");
    let mut rows = 1001;
    for phase in PHASES {
        let is_create = phase.begin == CREATE;
        let there = url_of(&house, "victim").is_some();
        if is_create && there {
            house.ok(DELETE);
        } else if !is_create && !there {
            house.branch("victim", "main");
        }
        if phase.begin[1] == "suspend" {
            house.ok(WAKE);
        }
        let before = counts(&house);
        let mut running = house.background(phase.begin);
        wait_for_phase(&house, phase, &before, &mut running);
        house.kill_server();
        let ended = running.finish();
        println!("{}: exit code {}", phase.what, ended.code);
        assert!(!ended.stderr.contains("panicked"), "{ended:?}");
        house.up();
        check_house(&house);
        // What was there before is there, with everything in it, and goes on.
        assert_eq!(sql(&kept, &format!("insert into t values ({})", 5000 + rows)), "");
        rows += 1;
        assert_eq!(sql(&kept, "select count(*) from t"), rows.to_string(), "{}", phase.what);
        if let Some(victim) = url_of(&house, "victim") {
            assert_eq!(sql(&victim, "select count(*) from t"), "1000", "{}", phase.what);
        } else {
            assert!(ended.code != 0 || phase.begin == DELETE, "{}: a branch that was made is gone", phase.what);
        }
        house.ok(&["branch", "suspend", "kept"]);
        house.ardent(&["branch", "suspend", "victim"]);
        assert_eq!(house.compute_processes(), [], "{}", phase.what);
    }
    assert_eq!(production.sql("select count(*) from pg_replication_slots"), "1");
    assert!(!house.log().contains("panicked"), "{}", house.log());
}

#[test]
fn an_import_that_is_killed_is_undone() {
    let production = TestPg::start(production_options());
    production.sql("create table t (n int primary key, filler text)");
    production.sql("insert into t select n, repeat(md5(n::text), 30) from generate_series(1, 20000) n");
    let url = production.tcp_url("postgres", "postgres");
    let create = ["connector", "create", "postgresql", &url, "--name", "main", "--fast", "--max-rate", "16M"];
    let mut house = House::start();
    let slots = || production.sql("select count(*) from pg_replication_slots");
    type Reached<'a> = &'a dyn Fn(&House) -> bool;
    let phases: [(&str, Reached<'_>); 3] = [
        ("the slot is made", &|_| slots() == "1"),
        ("the timeline is made", &|house| !house.timelines().is_empty()),
        ("pages are copied", &|_| {
            let streamed = production.sql("select max(backup_streamed) from pg_stat_progress_basebackup");
            streamed.parse::<u64>().is_ok_and(|bytes| bytes > 4_000_000)
        }),
    ];
    for (what, reached) in phases {
        let running = house.background(&create);
        wait_until(what, 60, || reached(&house).then_some(()));
        house.kill_server();
        assert_eq!(running.finish().code, 1, "{what}");
        house.up();
        wait_until("the import is undone", 60, || {
            let connectors = &house.json(&["connector", "list"])["connectors"];
            (*connectors == json!([]) && slots() == "0" && house.timelines().is_empty()).then_some(())
        });
    }
    house.ok(&create);
    let branch = house.branch("after", "main");
    assert_eq!(sql(&branch, "select count(*), count(distinct filler) from t"), "20000|20000");
    assert_eq!(slots(), "1");
}
