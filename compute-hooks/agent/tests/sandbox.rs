//! What a superuser of a branch can reach from inside its Postgres.

#[allow(dead_code, reason = "each test program uses a part of it")]
mod rig;

use ardent_test_pg::TestPgOptions;
use rig::{DEADLINE, World};

/// Runs a shell command as Postgres's user, inside; gives its output and errors as one line.
async fn shell(client: &rig::Client, command: &str) -> String {
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
    assert_eq!(listed.matches("No such file").count(), 7, "{listed}");
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
