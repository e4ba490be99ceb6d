//! What suspended computes leave for a warm start, and when it goes.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::world::{World, until};

/// Makes a branch and wakes it; what its agent would leave is good for so many more seconds.
async fn awake(world: &World, name: &str, good_for_s: i64) -> PathBuf {
    world.create_branch(json!({ "name": name })).await;
    let (status, reply) = world.call("POST", &format!("/v1/branches/{name}/wake"), None).await;
    assert_eq!(status, 200, "{reply}");
    let folder = world.compute_dir(name).expect("it was started");
    std::fs::create_dir(folder.join("data")).expect("made");
    std::fs::write(folder.join("data/1"), vec![1; 1 << 20]).expect("written");
    mark(&folder, good_for_s);
    folder
}

fn mark(folder: &Path, good_for_s: i64) {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("readable");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let lease_until_s = now.checked_add_signed(good_for_s).expect("after 1970");
    let marker = json!({ "version": 2, "boot_id": boot_id.trim(), "lease_until_s": lease_until_s });
    std::fs::write(folder.join("warm.json"), marker.to_string()).expect("written");
}

async fn suspend(world: &World, name: &str) {
    let (status, reply) = world.call("POST", &format!("/v1/branches/{name}/suspend"), None).await;
    assert_eq!((status, &reply["compute"]), (200, &json!("suspended")), "{reply}");
}

fn is_warm(folder: &Path) -> bool {
    folder.join("data/1").exists() && folder.join("warm.json").exists()
}

fn is_empty(folder: &Path) -> bool {
    !["data", "warm.json", "trash.0"].iter().any(|name| folder.join(name).exists())
}

#[tokio::test]
async fn what_is_over_goes_from_suspended_branches_alone() {
    let world = World::connected().await;
    let over = awake(&world, "over", -3600).await;
    let good = awake(&world, "good", 3600).await;
    let up = awake(&world, "up", -3600).await;
    // A data directory that was not stopped in order, and one whose removal was cut off.
    let killed = awake(&world, "killed", 3600).await;
    std::fs::remove_file(killed.join("warm.json")).expect("there");
    std::fs::rename(killed.join("data"), killed.join("trash.0")).expect("there");
    for name in ["over", "good", "killed"] {
        suspend(&world, name).await;
    }
    until("what is over is gone", || is_empty(&over) && is_empty(&killed)).await;
    assert!(is_warm(&good) && is_warm(&up));
    assert_eq!(world.starts("over").len(), 1, "the rest of its folder stays");

    // It starts again, and is watched again.
    world.call("POST", "/v1/branches/over/wake", None).await;
    assert_eq!(world.starts("over").len(), 2);
    std::fs::create_dir(over.join("data")).expect("made");
    suspend(&world, "over").await;
    until("what it left without a marker is gone", || is_empty(&over)).await;
}

#[tokio::test]
async fn the_oldest_go_while_all_take_too_much() {
    let mut world = World::connected().await;
    world.stop().await;
    // Each takes a little more than 1 MiB.
    world.warm_bytes_max = Some(5 << 19);
    world.start().await;
    let newest = awake(&world, "newest", 3000).await;
    let oldest = awake(&world, "oldest", 1000).await;
    let middle = awake(&world, "middle", 2000).await;
    for name in ["newest", "middle", "oldest"] {
        suspend(&world, name).await;
    }
    until("the oldest is gone", || is_empty(&oldest)).await;
    assert!(is_warm(&middle) && is_warm(&newest));

    world.stop().await;
    world.warm_bytes_max = Some(0);
    world.start().await;
    until("none is kept", || is_empty(&middle) && is_empty(&newest)).await;
}
