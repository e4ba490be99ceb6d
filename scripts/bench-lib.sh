# What the scripts that measure have in common; sourced. They set top (the checkout), pg_bin, work (their folder), seconds (a pgbench
# run's length) and port_of (each stock server's port).

as_pg=(env)
# Postgres and pgbouncer refuse to run as root.
if [ "$(id -u)" = 0 ]; then as_pg=(setpriv --reuid=postgres --regid=postgres --clear-groups env); fi

need() { # program, Debian's package
    command -v "$1" >/dev/null || { echo "bench: $1 is missing: apt-get install $2" >&2; exit 1; }
}

# What waits for several processes in turn says more about a busy machine than about the program.
say_load() { # sets load_at_start
    load_at_start=$(cut -d' ' -f1 /proc/loadavg)
    echo "bench: load $load_at_start at the start"
    if [ "${load_at_start%%.*}" -ge 1 ]; then
        echo "bench: WARNING: this machine is busy (load above 1): take ratios of what ran side by side, and no absolute figure" >&2
    fi
}

end() { # pid: ends a process of ours in order and waits for it
    local tries
    kill -INT "$1" 2>/dev/null || return 0
    for tries in $(seq 300); do
        # A process that ended stays until it is waited for.
        [ "$(cut -d' ' -f3 "/proc/$1/stat" 2>/dev/null || echo Z)" != Z ] || { wait "$1" 2>/dev/null || true; return 0; }
        sleep 0.1
    done
    echo "bench: process $1 did not end; killing it" >&2
    kill -KILL "$1" 2>/dev/null || true
}

free_port() {
    local port
    for port in $(shuf -i 20000-32000 -n 200); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return 0; }
    done
    return 1
}

wait_for() { # pid, seconds, command: until the command succeeds; fails when the process ends before
    local pid=$1 tries
    for tries in $(seq $(($2 * 10))); do
        ! "${@:3}" >/dev/null 2>&1 || return 0
        kill -0 "$pid" 2>/dev/null || return 1
        sleep 0.1
    done
    return 1
}

# Ours and the peer are measured in turns, a line each: the ratio of every pair, and then the median of these. Where others use the
# machine too, that says more than the ratio of two medians.
pair_ratio() { # file with ours, file with the peer's
    paste "$1" "$2" | awk '$2 > 0 { print $1 / $2 }' | median | awk '{ printf "%.2f\n", $1 }'
}
now_us() { echo "${EPOCHREALTIME/[.,]/}"; }
median() { sort -n | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
divide() { awk -v a="$1" -v b="$2" -v digits="${3:-2}" 'BEGIN { if (b > 0) printf "%.*f", digits, a / b; else print "-" }'; }
number_of() { sed -nE 's/.*"'"$1"'": ?([0-9]+).*/\1/p' | head -n 1; }
text_of() { sed -nE 's/.*"'"$1"'": ?"([^"]*)".*/\1/p' | head -n 1; }
row() { # case, ours, peer, ratio, target
    printf '%s|%s|%s|%s|%s\n' "$@" >>"$work/rows"
    printf '  %s: ours %s, peer %s, ratio %s, target %s\n' "$@"
}

# A run leaves work behind it, for the page server's compaction above all, which the next one pays for: nobody is always the one who comes after
# the one that wrote most.
in_turn() { # round, names: the names, beginning with another one in every round
    local round=$1 names=("${@:2}") at
    for at in "${!names[@]}"; do echo "${names[((round + at) % ${#names[@]})]}"; done
}

tps() { # script, clients, where: transactions a second
    local script=$1 clients=$2
    "$pg_bin/pgbench" -n -b "$script" -c "$clients" -j "$clients" -T "$seconds" "${@:3}" 2>"$work/pgbench.log" |
        sed -nE 's/^tps = ([0-9]+).*without.*/\1/p'
    ! grep -iE 'error|fatal|aborted' "$work/pgbench.log" >&2
}

stock() { # name, start or stop, pg_ctl's options: a stock server with Debian's settings, fsync on
    "${as_pg[@]}" "$pg_bin/pg_ctl" -s -D "$work/stock/$1" -l "$work/stock/$1.log" "${@:3}" \
        -o "-p ${port_of[$1]} -k $work/stock -c listen_addresses=127.0.0.1 -c max_wal_size=2GB" "$2"
}

build_program() { # sets ardent_bin, ARDENT_BIN's or the one of target/debug, and commit
    ardent_bin=${ARDENT_BIN:-}
    if [ -z "$ardent_bin" ]; then
        export ARDENT_COMPUTE_LIB_DIR=${ARDENT_COMPUTE_LIB_DIR:-$top/target/compute-lib}
        [ -d "$ARDENT_COMPUTE_LIB_DIR" ] || { echo "bench: the library that computes load is not built: run make bench" >&2; exit 1; }
        cargo build --manifest-path "$top/Cargo.toml" --bin ardent
        ardent_bin=${CARGO_TARGET_DIR:-$top/target}/debug/ardent
    fi
    ardent_bin=$(realpath "$ardent_bin")
    commit=$(git -C "$top" rev-parse --short HEAD 2>/dev/null || echo unknown)
}

use_program() { # from here on ardent is that program, and nothing of the user's configuration is seen
    mkdir "$work/stock" "$work/bin" "$work/running"
    [ "$(id -u)" != 0 ] || chown postgres "$work/stock"
    ln -s "$ardent_bin" "$work/bin/ardent"
    PATH="$work/bin:$PATH"
    export PATH XDG_CONFIG_HOME="$work/config" PGCONNECT_TIMEOUT=60 PGUSER=shop PGDATABASE=shop
    unset ARDENT_URL ARDENT_TOKEN ARDENT_BRANCH ARDENT_SOURCE_URL ARDENT_DATA_DIR PGHOST PGPORT PGPASSWORD PGOPTIONS PGSERVICE
    # No .ardent file of another folder is found from here.
    cd "$work"
}

make_production() { # name, scale, copies: a server with pgbench's tables, and copies of its folder for peers
    local copy
    echo secret >"$work/password"
    chmod 644 "$work/password"
    "${as_pg[@]}" "$pg_bin/initdb" -D "$work/stock/$1" -U shop --auth-local=trust --auth-host=scram-sha-256 \
        --pwfile="$work/password" --no-sync >/dev/null
    stock "$1" start -w
    psql -Xq -h "$work/stock" -p "${port_of[$1]}" -d postgres -c 'create database shop'
    "$pg_bin/pgbench" -h "$work/stock" -p "${port_of[$1]}" -i -s "$2" -q >"$work/load.log" 2>&1
    stock "$1" stop -w
    for copy in "${@:3}"; do "${as_pg[@]}" cp -a "$work/stock/$1" "$work/stock/$copy"; done
    stock "$1" start -w
}

make_branch() { # name, connector: prints the reply
    ardent branch create "$1" --from "$2" --idle-timeout 1h --json
}

scan() { # psql's arguments: microseconds a page of a first read of pgbench_accounts from end to end
    psql -XAt "$@" <<'SQL' | awk '/^Time:/ { ms = $2 } /^pages / { pages = $2 } END { printf "%.1f\n", ms * 1000 / pages }'
set max_parallel_workers_per_gather = 0;
-- pgbench vacuums its tables: left alone, count(*) reads an index.
set enable_indexonlyscan = off;
set enable_indexscan = off;
set enable_bitmapscan = off;
select 'pages ' || pg_relation_size('pgbench_accounts') / current_setting('block_size')::int;
\timing on
select count(*) from pgbench_accounts;
SQL
}

warm() { # psql's arguments: reads all that pgbench will read, indexes and catalogs as well
    scan "$@" >/dev/null
    psql -XAtq "$@" >/dev/null <<'SQL'
set enable_seqscan = off;
set enable_bitmapscan = off;
select count(*) from pgbench_accounts where aid > 0;
SQL
    "$pg_bin/pgbench" -n -c 8 -t 200 "$@" >"$work/pgbench.log" 2>&1
}

socket_of() { # branch: sets socket to psql's arguments for its own socket
    ardent branch wake "$1" --json >"$work/wake"
    socket=(-h "$(text_of socket_dir <"$work/wake")" -p "$(number_of port <"$work/wake")")
}
