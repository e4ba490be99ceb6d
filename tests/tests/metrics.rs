//! What a running server tells of itself, and to whom.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use ardent_test_pg::TestPg;
use ardent_tests::{House, free_port, production_options, try_sql, wait_until};

/// Told only where pages are in a bucket.
const OF_S3: [&str; 5] = [
    "ardent_store_cache_hits",
    "ardent_store_cache_misses",
    "ardent_store_cache_fetched_bytes",
    "ardent_store_cache_evicted_bytes",
    "ardent_store_cache_size_bytes",
];

/// Status and body of a GET.
fn get(port: u16, path: &str, token: Option<&str>) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let authorization = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{authorization}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers with text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status"), body.to_owned())
}

/// The value of a metric as it is written, with its labels.
fn value(told: &str, metric: &str) -> f64 {
    let line = told.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{metric} is not told: {told}")).parse().expect("a number")
}

#[test]
fn metrics_follow_what_happens_and_are_for_who_has_the_token() {
    let production = TestPg::start(production_options());
    production.sql("create table t as select generate_series(1, 1000) as n");
    // Only a limited slot has a margin to tell of.
    production.sql("alter system set max_slot_wal_keep_size = '1GB'");
    production.sql("select pg_reload_conf()");
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let mut house = House::prepare().with_arguments(&["--metrics-listen", &listen, "--page-cache-size", "48M"]);
    house.up();
    let token = fs::read_to_string(house.data_dir().join("keys/metrics.token")).expect("up writes it");
    let token = token.trim();

    for path in ["/metrics", "/health"] {
        assert_eq!(get(port, path, None).0, 401);
        assert_eq!(get(port, path, Some("ardent_nonsense")).0, 401);
        assert_eq!(get(port, path, Some(&token[..token.len() - 2])).0, 401);
    }
    let told = get(port, "/metrics", Some(token)).1;
    assert_eq!(value(&told, "ardent_control_branches"), 0.0);
    assert_eq!(value(&told, "ardent_pageserver_page_cache_bytes_max"), f64::from(32 << 20));
    assert_eq!(value(&told, "ardent_pageserver_block_cache_bytes_max"), f64::from(16 << 20));
    assert!(told.ends_with("# EOF\n"), "{told}");

    house.connect("main", &production.tcp_url("postgres", "postgres"));
    house.json(&["branch", "create", "dev"]);
    let url = house.ardent(&["branch", "info", "dev", "--print-url"]).stdout;
    assert_eq!(try_sql(url.trim(), "insert into t values (0); select count(*) from t").expect("works"), "1001");
    let told = wait_until("the end of the session is counted", 30, || {
        let told = get(port, "/metrics", Some(token)).1;
        told.contains("ardent_proxy_connections_ended_total{outcome=\"done\"}").then_some(told)
    });
    for (metric, at_least) in [
        ("ardent_control_branches", 1.0),
        ("ardent_control_connectors", 1.0),
        ("ardent_control_computes{state=\"running\"}", 1.0),
        ("ardent_control_branch_create_seconds_count", 1.0),
        ("ardent_control_compute_start_seconds_count{start=\"cold\"}", 1.0),
        ("ardent_proxy_connections_ended_total{outcome=\"done\"}", 1.0),
        ("ardent_proxy_connect_seconds_count", 1.0),
        ("ardent_safekeeper_appended_bytes_total{safekeeper=\"1\"}", 1.0),
        ("ardent_safekeeper_flush_seconds_count{safekeeper=\"1\"}", 1.0),
        ("ardent_pageserver_pages_sent_total", 10.0),
        ("ardent_pageserver_request_seconds_count{request=\"get_pages\",outcome=\"ok\"}", 1.0),
        ("ardent_pageserver_request_seconds_count{request=\"get_base_backup\",outcome=\"ok\"}", 1.0),
        ("ardent_pageserver_reads_total", 10.0),
        ("ardent_pageserver_timelines_followed", 1.0),
        ("ardent_store_calls_total{operation=\"put_if_absent\"}", 1.0),
        ("ardent_store_bytes_total{operation=\"put\"}", 1.0),
        ("process_resident_memory_bytes", 1e6),
    ] {
        assert!(value(&told, metric) >= at_least, "{metric} is {}, not {at_least} or more", value(&told, metric));
    }
    assert_eq!(value(&told, "ardent_pageserver_background_failures_total"), 0.0);
    the_list_in_the_documentation_is_what_is_told(&told);

    let (code, health) = get(port, "/health", Some(token));
    assert_eq!((code, health.contains("\"status\":\"ok\"")), (200, true), "{health}");
    drop(production);
    wait_until("health tells that production is away", 60, || {
        let (code, health) = get(port, "/health", Some(token));
        (code == 503 && health.contains("connector main")).then_some(())
    });
    assert_eq!(value(&get(port, "/metrics", Some(token)).1, "ardent_control_connectors_failing"), 1.0);
}

fn the_list_in_the_documentation_is_what_is_told(told: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let page = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let listed: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let names = told.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let told: BTreeSet<&str> = names.chain(OF_S3).collect();
    let (missing, gone): (Vec<_>, Vec<_>) = (told.difference(&listed).collect(), listed.difference(&told).collect());
    assert!(missing.is_empty() && gone.is_empty(), "docs/metrics.md lacks {missing:?} and has {gone:?} too many");
    let path = path.with_file_name("grafana/ardent.json");
    let dashboard = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for word in dashboard.split(|character: char| !(character.is_ascii_alphanumeric() || character == '_')) {
        if word.starts_with("ardent_") || word.starts_with("process_") {
            let metric = ["_total", "_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
            assert!(told.contains(metric.unwrap_or(word)), "the dashboard shows {word}, which nobody tells");
        }
    }
}

#[test]
fn metrics_are_told_on_this_host_only() {
    let house = House::prepare();
    let mut arguments = house.up_arguments(free_port(), free_port());
    arguments.extend(["--metrics-listen".to_owned(), "0.0.0.0:7481".to_owned()]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let finished = house.ardent(&arguments);
    assert_eq!(finished.code, 2, "{finished:?}");
    assert!(finished.stderr.contains("--metrics-listen"), "{finished:?}");
}
