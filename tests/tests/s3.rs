//! The whole job with an S3 server as the store, through a proxy that can take it away.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ardent_test_pg::TestPg;
use ardent_test_s3::{Fault, FaultProxy, Seaweed};
use ardent_tests::{House, production_options, sql, table_sums};
use serde_json::Value;

const BUCKET: &str = "pages";

/// A server with a bucket, and a proxy in front of it.
fn store() -> (Arc<Seaweed>, FaultProxy) {
    let server = Seaweed::shared();
    // It may be another server than that of the test before, or the same.
    server.make_bucket(BUCKET);
    let proxy = FaultProxy::start(server.address());
    (server, proxy)
}

/// A house whose pages are below `prefix`; the keys come from a file of the AWS kind.
fn house_on(server: &Seaweed, proxy: &FaultProxy, prefix: &str) -> House {
    let url = format!("s3://{BUCKET}/{prefix}?endpoint={}", proxy.endpoint());
    House::prepare()
        .with_arguments(&["--store", &url, "--cache-size", "64M"])
        .with_environment("AWS_SHARED_CREDENTIALS_FILE", &server.credentials_file().to_string_lossy())
}

#[test]
fn the_whole_job_with_kills_a_lost_cache_and_an_outage() {
    let (server, proxy) = store();
    let production = TestPg::start(production_options());
    production.sql("create table t (n int primary key, filler text)");
    production.sql("insert into t select n, repeat(md5(n::text), 20) from generate_series(1, 20000) n");
    production.sql("create table untouched as select n, md5(n::text) from generate_series(1, 5000) n");
    let mut house = house_on(&server, &proxy, "job");
    house.up();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    let branch = house.branch("work", "main");
    assert_eq!(table_sums(&branch), table_sums(&production.socket_url("postgres")));
    sql(&branch, "update t set filler = 'changed' where n <= 7; delete from t where n = 8");
    let diff = house.ardent(&["branch", "diff", "work", "--stat", "--exit-code"]);
    assert_eq!(diff.code, 3, "{}", diff.stderr);
    assert!(!house.data_dir().join("pageserver/store").exists(), "pages are in the bucket alone");

    // A crash, then a start with nothing left on local disk but the WAL that the store does not have yet.
    house.kill_server();
    house.up();
    let held = "select count(*), sum(n), count(*) filter (where filler = 'changed') from t";
    assert_eq!(sql(&branch, held), "19999|200009992|7");
    house.stop();
    for folder in ["pageserver/cache", "computes"] {
        fs::remove_dir_all(house.data_dir().join(folder)).expect("a folder can be removed");
    }
    house.up();
    assert_eq!(sql(&branch, held), "19999|200009992|7");
    let untouched = |sums: String| -> String {
        sums.lines().find(|line| line.starts_with("untouched|5000|")).expect("the table is there").to_owned()
    };
    let before = untouched(table_sums(&branch));

    // The store is gone: what is here goes on, also new commits; when it is back, so is everything else.
    proxy.plan(|_| Fault::Reset);
    let outage = std::env::var("ARDENT_OUTAGE_S").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let until = Instant::now() + Duration::from_secs(outage);
    let mut commits = 0;
    while Instant::now() < until || commits < 5 {
        sql(&branch, "insert into t select max(n) + 1, 'during the outage' from t");
        commits += 1;
    }
    assert_eq!(untouched(table_sums(&branch)), before, "what was read before is read still");
    proxy.plan(|_| Fault::None);
    let child = house.branch("child", "work");
    assert_eq!(sql(&child, "select count(*) from t where filler = 'during the outage'"), commits.to_string());

    // The page server's disk is lost, in a crash at that.
    let before = table_sums(&child);
    sql(&child, "insert into t values (-1, 'just before')");
    house.kill_server();
    fs::remove_dir_all(house.data_dir().join("pageserver")).expect("a folder can be removed");
    house.up();
    assert_eq!(sql(&child, "delete from t where n = -1 returning filler"), "just before");
    assert_eq!(table_sums(&child), before);

    // Answers get lost and calls fail all the time, and nobody notices.
    let faults = [Fault::Reset, Fault::LoseAnswer, Fault::Answer { status: 503, code: "SlowDown" }, Fault::Truncate];
    proxy.plan(move |request| match request.number % 5 {
        0 => faults[(request.number / 5 % 4) as usize].clone(),
        _ => Fault::None,
    });
    sql(&child, "create table more as select n, md5(n::text) from generate_series(1, 5000) n");
    let other = house.branch("other", "child");
    assert_eq!(table_sums(&other), table_sums(&child));
    proxy.plan(|_| Fault::None);
    house.ok(&["branch", "delete", "other"]);
    house.ok(&["branch", "delete", "child"]);
    house.ok(&["branch", "delete", "work"]);
    house.ok(&["connector", "delete", "main", "--yes"]);
    house.stop();
}

#[test]
fn a_store_that_ignores_conditions_is_refused_by_name() {
    let (server, proxy) = store();
    let mut house = house_on(&server, &proxy, "refused");
    let store = format!("s3://{BUCKET}/refused?endpoint={}", proxy.endpoint());
    let doctor = |house: &House| {
        // Other checks may fail on a machine; this is about the store.
        let finished = house.ardent(&["--json", "doctor", "--store", &store]);
        finished.stdout + &finished.stderr
    };
    assert!(doctor(&house).contains("honours conditional puts"), "{}", doctor(&house));

    proxy.plan(|_| Fault::IgnoreCondition);
    let said = doctor(&house);
    assert!(said.contains("ignores If-None-Match"), "{said}");
    let (listen, api) = house.ports();
    let arguments = house.up_arguments(listen, api);
    let refused = house.ardent(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("ignores If-None-Match"), "{}", refused.stderr);

    proxy.plan(|_| Fault::None);
    house.up();
    let elsewhere = format!("file:{}", house.data_dir().join("x").display());
    house.stop();
    let (listen, api) = [listen, api].map(|port| format!("127.0.0.1:{port}")).into();
    let data_dir = house.data_dir().display().to_string();
    let at = ["--data-dir", &data_dir, "--listen", &listen, "--api-listen", &api];
    let moved = house.ardent(&[&["up"], &at[..], &["--store", &elsewhere]].concat());
    assert_ne!(moved.code, 0);
    assert!(moved.stderr.contains("data is in s3://pages/refused/"), "{}", moved.stderr);
}

/// An upload that somebody began in 2024 and left.
const LEFT: (&str, u64) = ("2024-01-02T03:04:05.000Z", 1_704_164_645);

#[test]
fn uploads_that_were_cut_off_are_told_and_removed_and_a_store_that_does_not_list_them_is_no_obstacle() {
    let (server, proxy) = store();
    let production = TestPg::start(production_options());
    production.sql("create table t as select generate_series(1, 100) n");
    let mut house = house_on(&server, &proxy, "inspected");
    house.up();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    house.ok(&["branch", "create", "work", "--from", "main"]);
    let info = house.json(&["branch", "info", "work"]);
    let id = |name: &str| info[name].as_str().unwrap_or_else(|| panic!("no {name} in {info}")).to_owned();
    let (tenant, timeline) = (id("tenant_id"), id("timeline_id"));
    house.stop();
    let url = format!("s3://{BUCKET}/inspected?endpoint={}", proxy.endpoint());
    let inspect = ["inspect", "store", "--store", &url];
    let is_list = |target: &str| target.contains("?uploads") || target.contains("&uploads");

    proxy.plan(move |request| {
        let refused = Fault::Answer { status: 403, code: "AccessDenied" };
        if is_list(&request.target) { refused } else { Fault::None }
    });
    let said = house.ok(&inspect);
    for word in ["uploads that were cut off could not be looked for", "docs/s3.md", timeline.as_str(), "leftovers:"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    let report = house.json(&inspect);
    assert!(report["uploads_refused"].as_str().is_some_and(|why| why.contains("docs/s3.md")), "{report}");

    let object = format!("timelines/{tenant}/{timeline}/layers/i1-0000000000000110-0000000000000000-0");
    let (begun, begun_s) = LEFT;
    let listed = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListMultipartUploadsResult><Bucket>{BUCKET}</Bucket><IsTruncated>false</IsTruncated>\
         <Upload><Key>inspected/{object}</Key><UploadId>left-1</UploadId><Initiated>{begun}</Initiated></Upload></ListMultipartUploadsResult>"
    );
    let given_up = Arc::new(AtomicBool::new(false));
    let seen = given_up.clone();
    proxy.plan(move |request| {
        if request.method == "DELETE" && request.target.contains("uploadId=left-1") {
            seen.store(true, Ordering::SeqCst);
        }
        if is_list(&request.target) { Fault::Say(listed.clone()) } else { Fault::None }
    });
    let said = house.ok(&inspect);
    let line = format!("{object} (upload left-1)");
    for word in ["1 x upload that was cut off", line.as_str(), "remove them with --delete"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    let report = house.json(&inspect);
    assert_eq!(report["uploads_refused"], Value::Null);
    let orphans = report["orphans"].as_array().expect("a list");
    let upload = orphans.iter().find(|orphan| orphan["kind"] == "unfinished_upload").expect("it is listed");
    assert_eq!((&upload["object"], &upload["upload"]), (&Value::from(object), &Value::from("left-1")));
    assert_eq!(upload["modified_s"], begun_s);

    // Whatever else was left a moment ago is too young.
    let said = house.ok(&[&inspect[..], &["--delete"]].concat());
    assert!(said.contains("removed 1 leftovers"), "{said}");
    assert!(given_up.load(Ordering::SeqCst), "the store is told");
    proxy.plan(|_| Fault::None);
    let said = house.ok(&inspect);
    assert!(!said.contains("cut off"), "{said}");

    // All layers are read in pieces, not block by block.
    let reads = Arc::new(AtomicU64::new(0));
    let seen = reads.clone();
    proxy.plan(move |request| {
        let object = request.target.split('?').next().unwrap_or_default();
        if request.method == "GET" && object.contains("/layers/") {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        Fault::None
    });
    let report = house.json(&[&inspect[..], &["--verify"]].concat());
    let timelines = report["timelines"].as_array().expect("a list");
    let sum = |name: &str| timelines.iter().map(|timeline| timeline[name].as_u64().expect("a number")).sum::<u64>();
    let layers = sum("layers");
    assert!(layers > 0 && report["verified_layers"] == layers, "{report}");
    assert_eq!(report["damaged"], Value::Array(Vec::new()));
    let (reads, most) = (reads.load(Ordering::SeqCst), sum("layer_bytes") / (2 << 20) + 3 * layers);
    assert!((layers..=most).contains(&reads), "{reads} reads for {layers} layers, at most {most}");
}
