//! What a superuser of a branch can reach from inside its Postgres.

use ardent_test_pg::{TestPgOptions, bin_dir_of, test_major};

use crate::rig::{Client, DEADLINE, World};

/// Runs a shell command as Postgres's user, inside; gives its output and errors as one line.
async fn shell(client: &Client, command: &str) -> String {
    let quoted = command.replace('\'', "''");
    let sql = format!(
        "create temp table if not exists out (line text); truncate out;
         copy out from program '{{ {quoted}; }} 2>&1 || true'
           with (format csv, delimiter e'\x01', quote e'\x02');
         select coalesce(string_agg(line, ' '), '') from out"
    );
    client.sql(&sql).await.unwrap_or_else(|error| panic!("{command}: {error:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branchs_superuser_reaches_nothing_outside() {
    let world = World::new(TestPgOptions::default(), "create table t (id int)").await;
    let outside = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = outside.local_addr().expect("bound").port();
    let mut agent = world.start().await;
    let client = agent.connect().await;
    let inside = |command: &'static str| shell(&client, command);

    // Its own view works: a shell, a time zone, a temporary folder, its own name.
    assert_eq!(inside("echo hello; id -un").await, "hello postgres");
    assert_eq!(inside("echo x > /tmp/x && cat /tmp/x").await, "x");

    // No network: nothing but an empty loopback.
    let dial = format!("(exec 3<>/dev/tcp/127.0.0.1/{port}) && echo connected");
    let dialled = shell(&client, &format!("bash -c '{dial}'")).await;
    assert!(dialled.contains("refused") && !dialled.contains("connected"), "{dialled}");
    assert_eq!(inside("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '").await, "lo");

    // No files of others, no token, no place to write but its own.
    let folder = world.folder.path().display();
    let listed = shell(&client, &format!("ls {folder} /root /home /work /var /etc/shadow /etc/ssl")).await;
    assert!(!listed.contains("safekeeper") && !listed.contains("spec"), "{listed}");
    // A server outside of /usr is there under its own path, and nothing else is on the way to it.
    let above = bin_dir_of(test_major()).starts_with("/var");
    assert_eq!(listed.matches("No such file").count(), 7 - usize::from(above), "{listed}");
    assert!(!above || inside("ls /var").await == "tmp", "{listed}");
    let token = shell(&client, "cat /proc/*/environ /proc/*/cmdline /ardent/door/* /ardent/run/* | tr '\\0' ' '").await;
    assert!(!token.contains(&world.token[..20]), "{token}");
    let written = inside("touch /x /etc/x /usr/x /ardent/x /ardent/lib/x; ls /x").await;
    assert_eq!(written.matches("Read-only file system").count(), 5, "{written}");

    // No other processes, no privileges to gain.
    let outside_pid = std::process::id();
    assert_eq!(
        shell(&client, &format!("test -d /proc/{outside_pid} && grep -c . /proc/{outside_pid}/cmdline || echo none"))
            .await,
        "none"
    );
    assert_eq!(
        inside("grep -h -E '^(CapEff|CapPrm|CapBnd)' /proc/self/status | cut -f2 | sort -u").await,
        "0000000000000000"
    );
    assert_eq!(inside("grep NoNewPrivs /proc/self/status | cut -f2").await, "1");

    // Nobody but the agent replicates.
    let stolen =
        inside("/usr/lib/postgresql/15/bin/pg_receivewal -h /ardent/run -U postgres -D /tmp --synchronous -n -s 1")
            .await;
    if nix::unistd::geteuid().is_root() {
        assert!(stolen.contains("authentication failed") || stolen.contains("rejects"), "{stolen}");
    }
    drop(client);
    assert!(agent.stop(DEADLINE).await.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compute_that_fills_the_disk_or_makes_too_many_processes_is_held() {
    let world = World::new(TestPgOptions::default(), "create table t (id int)").await;
    let mut spec = world.spec();
    spec.limits.disk_bytes = Some(300 << 20);
    let mut agent = world.start_with(spec.clone()).await;
    let client = agent.connect().await;
    client.sql("insert into t values (1)").await.expect("works");

    // More processes than its settings call for, and then none of them is left.
    let bomb = "(for i in $(seq 3000); do sleep 600 >/dev/null 2>&1 & done); echo after";
    let bombed = shell(&client, bomb).await;
    assert!(bombed.contains("Cannot fork") && bombed.contains("after"), "{bombed}");
    let sweep = "for p in /proc/[0-9]*; do read c < $p/comm; [ \"$c\" = sleep ] && kill -9 ${p#/proc/}; done";
    shell(&client, sweep).await;
    assert_eq!(client.sql("select count(*) from t").await.expect("lives"), "1");

    // The folders in memory are bounded.
    let filled = shell(&client, "head -c 2G /dev/zero > /tmp/full; rm /tmp/full").await;
    assert!(filled.contains("No space left"), "{filled}");

    // The data directory's disk is not ours to bound: the compute ends, and what was committed stays.
    let fill =
        tokio::spawn(async move { client.sql("copy t from program 'yes 1 | head -c 3G > /ardent/data/full'").await });
    let (code, message) = agent.until_failed().await;
    assert!(
        code == "limit" && message.contains("local disk") && message.contains("--compute-disk"),
        "{code} {message}"
    );
    assert!(fill.await.expect("no panic").is_err());
    assert!(!world.compute_dir().join("data").exists(), "the space is given back");
    assert_eq!(world.recover().sql("select count(*) from t"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compute_that_fills_the_disk_with_a_file_without_a_name_is_held() {
    let world = World::new(TestPgOptions::default(), "create table t (id int)").await;
    let mut spec = world.spec();
    spec.limits.disk_bytes = Some(300 << 20);
    let mut agent = world.start_with(spec).await;
    let client = agent.connect().await;
    client.sql("insert into t values (1)").await.expect("works");
    // It stays open for as long as the shell runs, which is until somebody ends it.
    let program = "exec 3>/ardent/data/full; rm /ardent/data/full; yes 1 | head -c 3G >&3; sleep 600";
    let fill = tokio::spawn(async move { client.sql(&format!("copy t from program '{program}'")).await });
    let (code, message) = agent.until_failed().await;
    assert!(code == "limit" && message.contains("local disk"), "{code} {message}");
    assert!(fill.await.expect("no panic").is_err());
    assert_eq!(world.recover().sql("select count(*) from t"), "1");
}
