//! The life of one compute: start, work, stop, start again.

mod rig;

use std::time::Duration;

use ardent_api::compute::Sandbox;
use ardent_test_pg::TestPgOptions;
use rig::{DEADLINE, World};

const SOURCE: &str =
    "create table t (id int primary key, v text); insert into t select i, 'v' || i from generate_series(1, 1000) i";

#[tokio::test(flavor = "multi_thread")]
async fn starts_serves_stops_and_wakes_warm() {
    let world = World::new(TestPgOptions::default(), SOURCE).await;
    let mut agent = world.start().await;
    println!("{:?}", agent.steps);
    assert!(!agent.ready().warm);
    assert_eq!(agent.ready().base_lsn, world.timeline.start_lsn);
    assert_eq!(agent.sql("select count(*) from t").await, "1000");
    agent.sql("insert into t values (0, 'new')").await;
    let (clean, end) = agent.stop(DEADLINE).await;
    assert!(clean && end.is_some_and(|end| end > world.timeline.start_lsn));

    let mut agent = world.start().await;
    println!("{:?}", agent.steps);
    assert!(agent.ready().warm);
    assert_eq!(agent.sql("select v from t where id = 0").await, "new");
    let (clean, again) = agent.stop(Duration::from_secs(30)).await;
    assert!(clean && again > end);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_without_a_sandbox_too() {
    let world = World::new(TestPgOptions::default(), SOURCE).await;
    let mut spec = world.spec();
    spec.sandbox = Sandbox::None;
    let mut agent = world.start_with(spec).await;
    assert_eq!(agent.sql("select count(*) from t").await, "1000");
    assert!(agent.stop(DEADLINE).await.0);
}
