#!/usr/bin/env bash
# Measures what the log of statements costs: pgbench on a branch of a server that keeps one, beside a branch of a server that keeps
# none (--statement-log none), in turns; and prints, for each kind of load, the median of the ratios of the pairs.
#
#   ARDENT_BIN=PROGRAM   instead of target/debug/ardent
#   BENCH_SECONDS=N      length of each pgbench run (default 3)
#   BENCH_ROUNDS=N       pairs of each kind (default 6)
#
# About 3 minutes. It needs Debian's postgresql-15; everything is in a temporary folder and ended at the end.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
program=${ARDENT_BIN:-$top/target/debug/ardent}
pg_bin=/usr/lib/postgresql/15/bin
work=$(mktemp -d /tmp/ardent-bench-XXXXXX)
chmod 711 "$work"
as_pg=(env)
# Postgres refuses to run as root.
if [ "$(id -u)" = 0 ]; then as_pg=(setpriv --reuid=postgres --regid=postgres --clear-groups env); fi
servers=()

finish() {
    local pid
    for pid in "${servers[@]}"; do
        kill -INT "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    "${as_pg[@]}" "$pg_bin/pg_ctl" -D "$work/production/data" -m immediate stop >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap finish EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

mkdir -m 700 "$work/production"
[ "$(id -u)" != 0 ] || chown postgres "$work/production"
port=$(free_port)
"${as_pg[@]}" "$pg_bin/initdb" -D "$work/production/data" -A trust -U postgres >/dev/null
"${as_pg[@]}" "$pg_bin/pg_ctl" -D "$work/production/data" -w -l "$work/production/log" \
    -o "-p $port -c unix_socket_directories= -c wal_level=replica -c max_wal_size=2GB" start >/dev/null
pgbench -q -i -s 10 -h 127.0.0.1 -p "$port" -U postgres postgres >/dev/null 2>&1

declare -A socket
for kept in none 64MB; do
    export HOME=$work/home-$kept
    mkdir "$HOME"
    : >"$work/up-$kept.out"
    "$program" up --data-dir "$work/$kept" --listen "127.0.0.1:$(free_port)" --api-listen "127.0.0.1:$(free_port)" \
        --statement-log "$kept" >"$work/up-$kept.out" 2>"$work/up-$kept.log" &
    servers+=($!)
    for _ in $(seq 300); do ! grep -q '^branches at' "$work/up-$kept.out" || break; sleep 0.1; done
    "$program" connector create postgresql "postgresql://postgres@127.0.0.1:$port/postgres" --name shop --fast >/dev/null 2>&1
    "$program" branch create bench --idle-timeout 1h --json >/dev/null
    wake=$("$program" branch wake bench --json)
    socket[$kept]="-h $(field socket_dir <<<"$wake") -p $(field port <<<"$wake")"
    # All pages are there.
    psql -XAtq ${socket[$kept]} -U postgres postgres -c 'select sum(abalance) from pgbench_accounts' >/dev/null
done

run() { # kept, pgbench's arguments: transactions a second
    # shellcheck disable=SC2086
    pgbench -n ${socket[$1]} -U postgres -T "${BENCH_SECONDS:-3}" $2 postgres 2>/dev/null | awk '/^tps/ { print $3 }'
}
kinds=("-S -c 1" "-S -c 4 -M prepared" "-c 1" "-c 4")
for kind in "${kinds[@]}"; do
    for kept in none 64MB; do run "$kept" "$kind" >/dev/null; done
done
for round in $(seq "${BENCH_ROUNDS:-6}"); do
    for kind in "${kinds[@]}"; do
        if [ $((round % 2)) = 0 ]; then
            without=$(run none "$kind"); with=$(run 64MB "$kind")
        else
            with=$(run 64MB "$kind"); without=$(run none "$kind")
        fi
        echo "$kind|$with|$without"
    done
done | python3 -c '
import statistics, sys
pairs = {}
for line in sys.stdin:
    kind, ours, peer = line.strip().split("|")
    pairs.setdefault(kind, []).append((float(ours), float(peer)))
print("| pgbench | with, tps | without, tps | ratio | least and greatest |\n|---|---|---|---|---|")
for kind, both in pairs.items():
    ratios = sorted(ours / peer for ours, peer in both)
    ours, peer = (statistics.median(one) for one in zip(*both))
    print(f"| `{kind}` | {ours:,.0f} | {peer:,.0f} | {statistics.median(ratios):.3f} | {ratios[0]:.3f} .. {ratios[-1]:.3f} |")
'
