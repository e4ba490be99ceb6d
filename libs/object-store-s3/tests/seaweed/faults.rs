//! Calls through a proxy that resets, delays, cuts off, refuses, and loses answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ardent_object_store::{ErrorKind, ObjectName, ObjectStore, StoreError, conformance};
use ardent_object_store_s3::RetryPolicy;
use ardent_test_s3::{Fault, Request};

use crate::house::House;

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

/// A plan that does `fault` to the first request that `is_meant`, and counts those that are.
fn once(fault: Fault, is_meant: fn(&Request) -> bool) -> (impl FnMut(&Request) -> Fault + Send, Arc<AtomicU64>) {
    let seen = Arc::new(AtomicU64::new(0));
    let count = seen.clone();
    let plan = move |request: &Request| {
        if is_meant(request) && count.fetch_add(1, Ordering::SeqCst) == 0 { fault.clone() } else { Fault::None }
    };
    (plan, seen)
}

fn is_put(request: &Request) -> bool {
    request.method == "PUT"
}

/// Every kind of fault that a retry may mend.
fn faults() -> Vec<Fault> {
    vec![
        Fault::Reset,
        Fault::Delay(Duration::from_millis(50)),
        Fault::Answer { status: 500, code: "InternalError" },
        Fault::Answer { status: 503, code: "SlowDown" },
        Fault::Answer { status: 502, code: "" },
        Fault::LoseAnswer,
        Fault::DoAndAnswer { status: 500, code: "InternalError" },
        Fault::Truncate,
    ]
}

#[test]
fn conforms_although_every_third_request_fails() {
    let (house, scratch) = (House::new(), tempfile::tempdir().unwrap());
    let (store, proxy) = house.behind_proxy();
    let mut faults = faults().into_iter().cycle();
    proxy.plan(move |request| if request.number % 3 == 2 { faults.next().unwrap_or(Fault::None) } else { Fault::None });
    conformance::check(&store, scratch.path());
    assert!(proxy.requests() > 150, "the faults were met: {}", proxy.requests());
}

#[test]
fn a_conditional_put_whose_answer_was_lost_is_known_as_our_own() {
    let house = House::new();
    let (store, proxy) = house.behind_proxy();
    let lost = [Fault::LoseAnswer, Fault::DoAndAnswer { status: 503, code: "SlowDown" }, Fault::Truncate];
    for (number, fault) in lost.into_iter().enumerate() {
        let name = name(&format!("once/{number}"));
        let (plan, puts) = once(fault.clone(), is_put);
        proxy.plan(plan);
        store.put_if_absent(&name, b"ours").unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert!(puts.load(Ordering::SeqCst) >= 1);
        assert_eq!(&store.get(&name).unwrap()[..], b"ours");
        // The same content by another call is still another's.
        assert_eq!(store.put_if_absent(&name, b"ours").unwrap_err().kind(), ErrorKind::Precondition);
    }
}

#[test]
fn a_lost_answer_does_not_make_another_writer_s_object_ours() {
    let house = House::new();
    let (store, proxy) = house.behind_proxy();
    let name = name("theirs");
    house.store("p").put_if_absent(&name, b"theirs").unwrap();
    let (plan, puts) = once(Fault::LoseAnswer, is_put);
    proxy.plan(plan);
    assert_eq!(store.put_if_absent(&name, b"ours").unwrap_err().kind(), ErrorKind::Precondition);
    assert_eq!(puts.load(Ordering::SeqCst), 2, "it was tried again");
    assert_eq!(&store.get(&name).unwrap()[..], b"theirs");
}

#[test]
fn of_racers_that_lose_answers_exactly_one_wins() {
    let house = House::new();
    let (store, proxy) = house.behind_proxy();
    for round in 0..5 {
        let name = name(&format!("race/{round}"));
        // Half of all answers, and not in step with the calls.
        let is_lost = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 1;
        proxy.plan(move |request| if is_lost(request.number) { Fault::LoseAnswer } else { Fault::None });
        let outcomes: Vec<Result<u8, StoreError>> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..6u8)
                .map(|racer| {
                    let (store, name) = (&store, &name);
                    scope.spawn(move || store.put_if_absent(name, &[racer]).map(|()| racer))
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        proxy.plan(|_| Fault::None);
        let winners: Vec<u8> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok().copied()).collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        assert_eq!(&store.get(&name).unwrap()[..], &winners[..]);
    }
}

#[test]
fn a_body_that_is_cut_off_is_not_content() {
    let house = House::new();
    let (store, proxy) = house.behind_proxy();
    let body: Vec<u8> = (0..300_000u32).map(|at| (at % 251) as u8).collect();
    let name = name("long");
    store.put(&name, &body).unwrap();
    let (plan, gets) = once(Fault::Truncate, |request| request.method == "GET");
    proxy.plan(plan);
    assert!(store.get_range(&name, 1000..200_000).unwrap() == body[1000..200_000]);
    assert_eq!(gets.load(Ordering::SeqCst), 2);
}

#[test]
fn an_upload_in_parts_survives_faults_in_each_of_its_calls() {
    let (house, scratch) = (House::new(), tempfile::tempdir().unwrap());
    let (store, proxy) = house.behind_proxy();
    let body: Vec<u8> = (0..(18u32 << 20)).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let path = scratch.path().join("file");
    let calls: [fn(&Request) -> bool; 3] = [
        |request| request.method == "POST" && request.target.contains("uploads"),
        |request| request.method == "PUT" && request.target.contains("partNumber=2"),
        |request| request.method == "POST" && request.target.contains("uploadId"),
    ];
    for (number, call) in calls.into_iter().enumerate() {
        for fault in [Fault::Reset, Fault::LoseAnswer, Fault::Answer { status: 503, code: "SlowDown" }] {
            std::fs::write(&path, &body).unwrap();
            let (plan, seen) = once(fault.clone(), call);
            proxy.plan(plan);
            let name = name("large");
            store.put_file(&name, &path).unwrap_or_else(|error| panic!("call {number}, {fault:?}: {error}"));
            assert!(seen.load(Ordering::SeqCst) >= 2, "call {number} was made again after {fault:?}");
            assert!(!path.exists());
            assert!(store.get(&name).unwrap() == body, "call {number}, {fault:?}");
            store.delete(&name).unwrap();
        }
    }
}

#[test]
fn an_upload_in_parts_that_fails_is_given_up_and_leaves_nothing() {
    let (house, scratch) = (House::new(), tempfile::tempdir().unwrap());
    let (store, proxy) = house.behind_proxy();
    let path = scratch.path().join("file");
    std::fs::write(&path, vec![7; 18 << 20]).unwrap();
    let aborts = Arc::new(AtomicU64::new(0));
    let seen = aborts.clone();
    proxy.plan(move |request| match request.method.as_str() {
        "PUT" if request.target.contains("partNumber=3") => Fault::Answer { status: 403, code: "AccessDenied" },
        "DELETE" if request.target.contains("uploadId") => {
            seen.fetch_add(1, Ordering::SeqCst);
            Fault::None
        }
        _ => Fault::None,
    });
    let error = store.put_file(&name("large"), &path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert_eq!(aborts.load(Ordering::SeqCst), 1);
    assert!(path.exists(), "the file is kept");
    assert_eq!(store.head(&name("large")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_store_that_is_away_is_an_error_that_says_how_long_it_was_tried() {
    let house = House::new();
    let retry = RetryPolicy { deadline: Duration::from_secs(1), ..RetryPolicy::default() };
    let (store, proxy) = house.behind_proxy_with(retry);
    proxy.plan(|_| Fault::Reset);
    let begun = Instant::now();
    let error = store.get(&name("a")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Retry);
    assert!(error.to_string().contains("the store was not available: tried"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    proxy.plan(|_| Fault::None);
    assert_eq!(store.get(&name("a")).unwrap_err().kind(), ErrorKind::NotFound, "it comes back by itself");
}

#[test]
fn an_answer_that_never_comes_is_given_up() {
    let house = House::new();
    let retry = RetryPolicy {
        deadline: Duration::from_secs(20),
        attempt_timeout: Duration::from_millis(500),
        ..RetryPolicy::default()
    };
    let (store, proxy) = house.behind_proxy_with(retry);
    let (plan, heads) = once(Fault::Delay(Duration::from_secs(30)), |request| request.method == "HEAD");
    proxy.plan(plan);
    assert_eq!(store.head(&name("a")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(heads.load(Ordering::SeqCst), 2);
}

#[test]
fn calls_work_on_threads_that_belong_to_a_runtime() {
    let house = House::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = house.store("r");
        store.put(&name("a"), b"x").unwrap();
        assert_eq!(&store.get(&name("a")).unwrap()[..], b"x");
    });
}
