#!/usr/bin/env bash
# Walks the whole job on a sample production server that is being written to, in a temporary folder: prints each command,
# its output and its time. Ends everything that it started. Exits 0, or says which step failed.
#
#   ARDENT_BIN=PROGRAM    instead of target/debug/ardent
#   DEMO_SCALE=N          size of production, about 15 MB each (default 7)
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$top/target}
ardent_bin=${ARDENT_BIN:-$target/debug/ardent}
pg_bin=/usr/lib/postgresql/15/bin
step="look for programs"
pids=()
work=

as_pg=(env)
# Postgres refuses to run as root.
if [ "$(id -u)" = 0 ]; then as_pg=(setpriv --reuid=postgres --regid=postgres --clear-groups env); fi

end() { # signal, pid: ends a process of ours and waits for it
    kill -0 "$2" 2>/dev/null || return 0
    kill "-$1" "$2" 2>/dev/null || true
    local tries
    for tries in $(seq 300); do
        kill -0 "$2" 2>/dev/null || return 0
        # A process that ended stays until it is waited for.
        [ "$(cut -d' ' -f3 "/proc/$2/stat" 2>/dev/null || echo Z)" != Z ] || { wait "$2" 2>/dev/null || true; return 0; }
        sleep 0.1
    done
    echo "demo: process $2 did not end; killing it" >&2
    kill -KILL "$2" 2>/dev/null || true
}

finish() {
    local code=$? index
    trap - EXIT INT TERM
    set +e
    if [ "$code" -ne 0 ]; then
        echo >&2
        echo "demo: FAILED: $step (exit code $code)" >&2
        if [ -n "$work" ]; then
            local log
            for log in up production load; do
                [ ! -s "$work/$log.log" ] || { echo "--- last lines of $log.log" >&2; tail -n 15 "$work/$log.log" >&2; }
            done
        fi
    fi
    # The newest first: the load, Ardent, production. SIGINT asks each to end in order.
    for ((index = ${#pids[@]} - 1; index >= 0; index--)); do end INT "${pids[$index]}"; done
    [ -z "$work" ] || rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for need in "$ardent_bin" "$pg_bin/postgres" "$pg_bin/pgbench"; do
    [ -x "$need" ] || { echo "demo: $need is missing: run make demo, which installs and builds what is needed" >&2; exit 1; }
done

work=$(mktemp -d /tmp/ardent-demo.XXXXXX)
chmod 711 "$work"
mkdir "$work/production" "$work/bin"
ln -s "$(realpath "$ardent_bin")" "$work/bin/ardent"
PATH="$work/bin:$PATH"
export PATH XDG_CONFIG_HOME="$work/config" PGCONNECT_TIMEOUT=60 PAGER=cat PSQLRC=/dev/null
unset ARDENT_URL ARDENT_TOKEN ARDENT_BRANCH ARDENT_SOURCE_URL ARDENT_DATA_DIR PGHOST PGPORT PGUSER PGDATABASE PGPASSWORD PGOPTIONS PGSERVICE
# No .ardent file of another folder is found from here.
cd "$work"

title() { step=$1; printf '\n\033[1m== %s\033[0m\n' "$1"; }

run() { # command: prints it, its output and its time
    local start end_at word
    printf '$'
    for word in "$@"; do
        case $word in
            *\'*) printf ' "%s"' "$word" ;;
            *[!A-Za-z0-9_./:=@-]*) printf " '%s'" "$word" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
    echo
    start=$(date +%s%N)
    "$@"
    end_at=$(date +%s%N)
    printf '  (%d ms)\n' $(((end_at - start) / 1000000))
}

free_port() {
    local port
    for port in $(shuf -i 20000-32000 -n 200); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return 0; }
    done
    return 1
}

wait_for() { # file, pattern, pid, seconds
    local tries
    for tries in $(seq $(($4 * 10))); do
        ! grep -q "$2" "$1" 2>/dev/null || return 0
        kill -0 "$3" 2>/dev/null || return 1
        sleep 0.1
    done
    return 1
}

production() { # psql's arguments
    PGPASSWORD=secret psql -X -h 127.0.0.1 -p "$production_port" -U shop -d shop -v ON_ERROR_STOP=1 "$@"
}

compute_processes() {
    local args count=0 pid
    for pid in /proc/[0-9]*; do
        args=$({ tr '\0' ' ' <"$pid/cmdline"; } 2>/dev/null) || continue
        case $args in *"$work/data/computes"*) count=$((count + 1)) ;; esac
    done
    echo "$count"
}

expect() { # what, wanted, found
    if [ "$2" != "$3" ]; then
        echo "demo: $1: expected $2, found $3" >&2
        return 1
    fi
    echo "  ok: $1 ($3)"
}

title "a sample production server, about $((${DEMO_SCALE:-7} * 15)) MB, under write load"
production_port=$(free_port)
[ "$(id -u)" != 0 ] || chown postgres "$work/production"
echo secret >"$work/password"
chmod 644 "$work/password"
"${as_pg[@]}" "$pg_bin/initdb" -D "$work/production/data" -U shop --auth=scram-sha-256 --pwfile="$work/password" --no-sync >/dev/null
(
    cd /
    exec "${as_pg[@]}" "$pg_bin/postgres" -D "$work/production/data" -p "$production_port" -k "$work/production" \
        -c listen_addresses=127.0.0.1 -c wal_level=replica -c fsync=off -c shared_buffers=64MB -c max_wal_size=2GB
) >"$work/production.log" 2>&1 &
pids+=($!)
wait_for "$work/production/data/postmaster.pid" '^ready' $! 60
PGPASSWORD=secret psql -Xq -h 127.0.0.1 -p "$production_port" -U shop -d postgres -c 'create database shop'
export PGPASSWORD=secret
"$pg_bin/pgbench" -h 127.0.0.1 -p "$production_port" -U shop -i -s "${DEMO_SCALE:-7}" -q shop 2>"$work/load.log"
unset PGPASSWORD
production -q <<'SQL'
create table customers (id int primary key, name text not null, mail text not null);
insert into customers select n, 'customer ' || n, 'c' || n || '@example.com' from generate_series(1, 1000) n;
create table orders (id int primary key, customer int not null references customers, total numeric(10, 2) not null, note text);
insert into orders select n, n % 1000 + 1, n * 0.25, 'order ' || n from generate_series(1, 20000) n;
create table coupons (code text primary key, percent int not null);
insert into coupons values ('WELCOME', 10), ('SPRING', 15);
SQL
(PGPASSWORD=secret exec "$pg_bin/pgbench" -h 127.0.0.1 -p "$production_port" -U shop -n -c 2 -T 3600 -R 50 shop) >"$work/load.log" 2>&1 &
pids+=($!)
load=$!
production -c "select pg_size_pretty(pg_database_size('shop')) as size, (select count(*) from pgbench_history) as history"

title "ardent up"
listen_port=$(free_port)
api_port=$(free_port)
up_arguments=(--data-dir "$work/data" --listen "127.0.0.1:$listen_port" --api-listen "127.0.0.1:$api_port")
sandbox=bubblewrap
checks=$(ardent doctor --json || true)
if grep -q '"name":"sandbox","outcome":"failed"' <<<"$checks"; then
    echo "This machine lets this user make no sandbox (ardent doctor says why). The demo's branches are its own, so it goes on without."
    up_arguments+=(--no-sandbox)
    sandbox=none
fi
echo "\$ ardent up ${up_arguments[*]}"
ardent up "${up_arguments[@]}" >"$work/up.out" 2>"$work/up.log" &
pids+=($!)
up=$!
wait_for "$work/up.out" '^next' "$up" 60
cat "$work/up.out"

title "doctor"
# The one check that is known to fail must be the only one.
if [ "$sandbox" = none ] && [ "$(grep -o '"outcome":"failed"' <<<"$checks" | wc -l)" = 1 ]; then
    run ardent doctor || echo "  ok: nothing fails but the sandbox"
else
    run ardent doctor
fi

title "connector create"
run ardent connector create postgresql "postgresql://shop:secret@127.0.0.1:$production_port/shop" --name shop --fast
run ardent connector status shop

title "branch create"
run ardent branch create feature-x
url=$(ardent branch info feature-x --print-url)

title "psql at the branch"
run psql -X "$url" -c 'select count(*) as customers, (select count(*) from orders) as orders from customers'
run psql -X "$url" -c 'select count(*) as orders, sum(total) from orders'

title "break things on the branch"
run psql -X "$url" -v ON_ERROR_STOP=1 -c "update customers set mail = 'lost@example.com' where id in (7, 8)" \
    -c "delete from orders where id <= 3" -c "insert into customers values (5001, 'new customer', 'new@example.com')" \
    -c "drop table coupons"

title "branch diff"
run ardent branch diff feature-x --stat
run ardent branch diff feature-x

title "production is untouched"
production_url="postgresql://shop:secret@127.0.0.1:$production_port/shop"
run psql -X "$production_url" -c "select count(*) as customers, count(*) filter (where mail like 'lost%') as broken from customers" \
    -c 'select count(*) as orders from orders' -c 'select * from coupons'
expect "orders in production" 20000 "$(production -Atc 'select count(*) from orders')"
expect "orders on the branch" 19997 "$(psql -X "$url" -Atc 'select count(*) from orders')"
expect "coupons in production" 2 "$(production -Atc 'select count(*) from coupons')"
kill -0 "$load" || { echo "demo: the load on production ended" >&2; exit 1; }

title "a branch at rest costs no process"
run ardent branch suspend feature-x
expect "processes of computes" 0 "$(compute_processes)"

title "the next connection wakes it"
run psql -X "$url" -c "select id, mail from customers where id in (7, 8, 5001) order by id"

title "a branch of the branch"
run ardent branch create feature-y --from feature-x
expect "orders on the branch of the branch" 19997 "$(ardent psql feature-y -- -XAtc 'select count(*) from orders')"
run ardent branch list

title "branch delete"
run ardent branch delete feature-y
run ardent branch delete feature-x

title "connector delete"
run ardent connector delete shop --yes
expect "replication slots left in production" 0 "$(production -Atc 'select count(*) from pg_replication_slots')"

title "the end"
kill -0 "$up" || { echo "demo: ardent up ended by itself" >&2; exit 1; }
end INT "$up"
end INT "$load"
expect "processes of computes" 0 "$(compute_processes)"
echo
echo "demo: done in $SECONDS s"
