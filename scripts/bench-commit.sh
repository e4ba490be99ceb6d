#!/usr/bin/env bash
# Measures what a commit costs that has to be on safekeepers, and prints one table as scripts/bench.sh does. The roles are processes of
# their own here, and the page server gets WAL through one more, which can be halted: the same load with ingest and without.
# Exits 0 when every case could be measured, whether or not a target was met.
#
#   ARDENT_BIN=PROGRAM    instead of building target/debug/ardent
#   BENCH_SCALE=N         pgbench's scale (default 50)
#   BENCH_SECONDS=N       length of each pgbench run (default 60)
#   BENCH_ROUNDS=N        runs that a median is taken of (default 2)
#   BENCH_CLIENTS=LIST    numbers of clients (default "1 8 32")
#   BENCH_CASES=LIST      which of one, three, hop, failover and archive to run (default: all)
#
# All of it takes about three quarters of an hour; five minutes: BENCH_SECONDS=5 BENCH_ROUNDS=2. It needs Debian's postgresql-15 and some GB under /tmp, and
# 1 GB in /dev/shm for the case hop; and Python 3. The case archive needs the S3 server that scripts/setup-s3.sh installs (ARDENT_WEED: another). Everything is in temporary folders and ended at the end.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
scale=${BENCH_SCALE:-50}
seconds=${BENCH_SECONDS:-60}
rounds=${BENCH_ROUNDS:-2}
clients_of=(${BENCH_CLIENTS:-1 8 32})
pg_bin=/usr/lib/postgresql/15/bin
. "$top/scripts/bench-lib.sh"
known_cases=(one three hop failover archive)
cases=(${BENCH_CASES:-${known_cases[*]}})
for case in "${cases[@]}"; do
    [[ " ${known_cases[*]} " = *" $case "* ]] || { echo "bench: there is no case $case; there are ${known_cases[*]}" >&2; exit 2; }
done
step="look for programs"
work=
shm=

finish() {
    local code=$? role data
    trap - EXIT INT TERM
    set +e
    if [ "$code" -ne 0 ]; then
        echo "bench: FAILED: $step (exit code $code)" >&2
        tail -n 5 "$work"/*.log >&2
    fi
    # Those who start computes end first.
    for role in proxy control pageserver relay safekeeper weed; do
        for pid in "$work"/running/*."$role"*; do [ ! -e "$pid" ] || { kill -CONT "$(cat "$pid")" 2>/dev/null; end "$(cat "$pid")"; }; done
    done
    for data in "$work"/stock/*; do
        [ ! -e "$data/postmaster.pid" ] || "${as_pg[@]}" "$pg_bin/pg_ctl" -D "$data" -m immediate stop >/dev/null 2>&1
    done
    [ -z "$work" ] || rm -rf "$work"
    [ -z "$shm" ] || rm -rf "$shm"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

need "$pg_bin/postgres" postgresql-15
need "$pg_bin/pgbench" postgresql-15
need psql postgresql-client-15
need python3 python3
say_load
step="build"
build_program
work=$(mktemp -d /tmp/ardent-bench.XXXXXX)
chmod 711 "$work"
use_program

# ---- production, and the stock servers with the same rows ----

step="stock servers"
declare -A port_of=()
for name in big peer ceiling standby; do port_of[$name]=$(free_port); done
make_production big "$scale" peer ceiling standby
# As fast as this server can be: nothing is waited for, and no page is in its WAL.
fast=("fsync = off" "full_page_writes = off")
printf '%s\n' "${fast[@]}" >>"$work/stock/ceiling/postgresql.conf"
# The same with commits that wait for a synchronous standby: Postgres's own program, which fsyncs what it is sent.
await_receiver="synchronous_standby_names = pg_receivewal"
printf '%s\n' "${fast[@]}" "$await_receiver" >>"$work/stock/standby/postgresql.conf"

receive() { # name of a stock server, folder: keeps its WAL until it stops
    mkdir -p "$2"
    "$pg_bin/pg_receivewal" --synchronous --no-loop -h "$work/stock" -p "${port_of[$1]}" -U shop -D "$2" 2>>"$work/$1.receive.log" &
    echo $! >"$work/running/$1.receive"
    wait_for $! 10 psql -Xq -h "$work/stock" -p "${port_of[$1]}" -d postgres -v ON_ERROR_STOP=1 \
        -c "select 1 / count(*) from pg_stat_replication where sync_state = 'sync'"
}

received() { # name: its server has stopped
    end "$(cat "$work/running/$1.receive")"
    rm "$work/running/$1.receive"
}

# ---- Ardent ----

role() { # name of the installation, role, arguments: starts it and waits until it is ready
    local name="$1.$2"
    : >"$work/$name.out"
    ardent "${2%-*}" "${@:3}" >"$work/$name.out" 2>>"$work/$name.log" &
    echo $! >"$work/running/$name"
    wait_for $! 60 grep -q '^ready' "$work/$name.out"
}

pid_of() { cat "$work/running/$1"; } # installation.role

relay() { # name of the installation, socket, socket of a safekeeper: hands bytes through
    python3 - "$2" "$3" <<'PY' 2>>"$work/$1.relay.log" &
import asyncio, signal, sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background process has it ignored

async def hand(reader, writer):
    try:
        while data := await reader.read(1 << 18):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()

async def connected(reader, writer):
    there, back = await asyncio.open_unix_connection(sys.argv[2])
    await asyncio.gather(hand(reader, back), hand(there, writer))

async def main():
    async with await asyncio.start_unix_server(connected, sys.argv[1]) as server:
        await server.serve_forever()

asyncio.run(main())
PY
    echo $! >"$work/running/$1.relay"
    wait_for $! 10 test -S "$2"
}

keeper_arguments=()
install() { # name, folder, safekeepers: an installation with production connected and a branch `bench` awake; sets socket and url
    local name=$1 at=$2 keeper keepers=() address
    mkdir "$at"
    chmod 711 "$at"
    ardent keys --data-dir "$at/data" >/dev/null
    for keeper in $(seq "$3"); do
        address="unix:$at/wal-$keeper.sock"
        keepers+=("--safekeeper=$address")
        role "$name" "safekeeper-$keeper" "--data-dir=$at/wal-$keeper" "--listen=$address" "--key=$at/data/keys/service.pub" "${keeper_arguments[@]}"
    done
    relay "$name" "$at/relay.sock" "$at/wal-1.sock"
    role "$name" pageserver "--data-dir=$at/pages" "--listen=unix:$at/pages.sock" "--key=$at/data/keys/service.pub" \
        "--token-file=$at/data/keys/pageserver.token" "--safekeeper=unix:$at/relay.sock" "${keepers[@]:1}"
    local listen="127.0.0.1:$(free_port)"
    role "$name" control "--data-dir=$at/data" "--pageserver=unix:$at/pages.sock" "${keepers[@]}" \
        "--api-listen=127.0.0.1:$(free_port)" "--listen=$listen"
    role "$name" proxy "--data-dir=$at/data" "--listen=$listen"
    ardent connector create postgresql "postgresql://shop:secret@127.0.0.1:${port_of[big]}/shop" --name big --fast >"$work/connect.log"
    url=$(make_branch bench big | text_of url)
    socket_of bench
}

uninstall() { # name
    local pid
    for role in proxy control pageserver relay safekeeper; do
        for pid in "$work"/running/"$1.$role"*; do
            end "$(cat "$pid")"
            rm "$pid"
        done
    done
}

# Until the page server has ingested what the branch has committed: a branch of it waits for that.
settle() {
    make_branch settled bench >/dev/null
    ardent branch delete settled >/dev/null
    sync
}

halted() { # process, command: runs it while the process stands still
    local result=0
    kill -STOP "$1"
    "${@:2}" || result=$?
    kill -CONT "$1"
    return $result
}

tpcb_in_turns() { # installation, kinds: runs each with each number of clients, in turns
    local name=$1 kind clients round
    for clients in "${clients_of[@]}"; do
        for round in $(seq "$rounds"); do
            for kind in $(in_turn "$round" "${@:2}"); do
                case $kind in
                ours) tps tpcb-like "$clients" "${socket[@]}" ;;
                halted) halted "$(pid_of "$name.relay")" tps tpcb-like "$clients" "${socket[@]}" ;;
                *) tps tpcb-like "$clients" -h "$work/stock" -p "${port_of[$kind]}" ;;
                esac >>"$work/$name.$kind.$clients"
                case $kind in ours | halted) settle ;; esac
            done
        done
    done
}

tpcb_row() { # installation, kind, case, clients, target
    row "$3" "$(median <"$work/$1.$2.$4") tps" "$(median <"$work/$1.peer.$4") tps (stock)" \
        "$(pair_ratio "$work/$1.$2.$4" "$work/$1.peer.$4")" "$5"
}

target_of() { case $1 in 1) echo ">= 0.95" ;; 8) echo ">= 0.9" ;; 32) echo ">= 1.0" ;; *) echo - ;; esac; } # clients

case_one() {
    local clients
    install one "$work/one" 1
    stock peer start -w
    stock ceiling start -w
    stock standby start -w
    receive standby "$work/received"
    warm "${socket[@]}"
    for kind in peer ceiling standby; do warm -h "$work/stock" -p "${port_of[$kind]}"; done
    tpcb_in_turns one ours halted peer ceiling standby
    for clients in "${clients_of[@]}"; do
        tpcb_row one ours "tpcb-like, $clients clients, one safekeeper" "$clients" "$(target_of "$clients")"
        tpcb_row one halted "... without ingest" "$clients" "$(target_of "$clients")"
        row "... beside the ceiling" "$(median <"$work/one.ours.$clients") tps" "$(median <"$work/one.ceiling.$clients") tps (no fsync, no images, no standby)" \
            "$(pair_ratio "$work/one.ours.$clients" "$work/one.ceiling.$clients")" "goal 0.9"
        row "... beside Postgres's own standby" "$(median <"$work/one.ours.$clients") tps" "$(median <"$work/one.standby.$clients") tps (pg_receivewal)" \
            "$(pair_ratio "$work/one.ours.$clients" "$work/one.standby.$clients")" -
    done
    for kind in peer ceiling standby; do stock "$kind" stop -w; done
    received standby
    rm -rf "$work/received"
    uninstall one
}

case_three() {
    local clients
    install three "$work/three" 3
    stock peer start -w
    warm "${socket[@]}"
    warm -h "$work/stock" -p "${port_of[peer]}"
    tpcb_in_turns three ours peer
    for clients in "${clients_of[@]}"; do
        tpcb_row three ours "tpcb-like, $clients clients, three safekeepers on one disk" "$clients" -
    done
    stock peer stop -w
    uninstall three
}

# A commit with next to nothing in it, by one client: with the way to the safekeeper and back, and without. The safekeeper's folder is in
# memory, where an fsync costs nothing. The peer is the same difference on a stock server with pg_receivewal, whose files are in memory, too.
case_hop() {
    local round of
    [ -w /dev/shm ] || { echo "bench: /dev/shm is not there: leave the case hop out" >&2; return 1; }
    shm=$(mktemp -d /dev/shm/ardent-bench.XXXXXX)
    chmod 711 "$shm"
    # The smallest production: it goes to memory as well.
    port_of[tiny]=$(free_port)
    make_production tiny 1
    local big=${port_of[big]}
    port_of[big]=${port_of[tiny]}
    install hop "$shm/hop" 1
    port_of[big]=$big
    echo "select pg_logical_emit_message(true, 'bench', 'x')" >"$work/commit.sql"
    commits() { # synchronous_commit, where: each commit's microseconds
        rm -f "$work"/times.*
        PGOPTIONS="-c synchronous_commit=$1" "$pg_bin/pgbench" -n -f "$work/commit.sql" -c 1 -T "$seconds" -l --log-prefix="$work/times" \
            "${@:2}" >"$work/pgbench.log" 2>&1
        cut -d' ' -f3 "$work"/times.*
    }
    ways() { # name, where: appends the median way of each round
        for round in $(seq "$rounds"); do
            for of in $(in_turn "$round" on off); do commits "$of" "${@:2}" | median >>"$work/$1.$of"; done
        done
        paste "$work/$1.on" "$work/$1.off" | awk '{ print $1 - $2 }' >"$work/$1.way"
    }
    ways hop "${socket[@]}"
    uninstall hop
    stock tiny stop -w
    printf '%s\n' "${fast[@]}" "$await_receiver" >>"$work/stock/tiny/postgresql.conf"
    stock tiny start -w
    receive tiny "$shm/received"
    ways standby-hop -h "$work/stock" -p "${port_of[tiny]}"
    stock tiny stop -w
    received tiny
    row "a commit's way to the safekeeper and back, without fsync, median" "$(median <"$work/hop.way") us" \
        "$(median <"$work/standby-hop.way") us (pg_receivewal)" "$(pair_ratio "$work/hop.way" "$work/standby-hop.way")" "<= 100 us"
    row "... the same commit without it" "$(median <"$work/hop.off") us" "$(median <"$work/standby-hop.off") us" - -
    rm -rf "$shm"
}

# From the death of what runs the compute to the next commit, through the proxy.
case_failover() {
    local round agent began
    install failover "$work/failover" 1
    psql -Xq "$url" -c 'create table ledger (n bigint generated always as identity primary key)'
    for round in $(seq $((rounds * 5))); do
        psql -Xq "$url" -c 'insert into ledger default values'
        agent=$(pgrep -P "$(pid_of failover.control)" -f 'agent .*--spec')
        began=$(now_us)
        kill -KILL "$agent"
        until psql -Xq "$url" -c 'insert into ledger default values' 2>/dev/null; do :; done
        echo $(($(now_us) - began)) >>"$work/failover.us"
    done
    [ "$(psql -XAt "$url" -c 'select count(*) from ledger')" -ge $((rounds * 10)) ] || { echo "bench: commits are missing" >&2; return 1; }
    row "a compute's agent is killed: until the next commit, median" "$(divide "$(median <"$work/failover.us")" 1000 0) ms" - - "< 2000 ms"
    row "... the longest of $((rounds * 5))" "$(divide "$(sort -n "$work/failover.us" | tail -n 1)" 1000 0) ms" - - "< 2000 ms"
    uninstall failover
}

# Two installations with one safekeeper each, in turns: one archives its WAL in S3. Both insert a million rows of text, some 200 MB of WAL, as
# one client: how long that takes, what CPU time the safekeeper takes for each GB of WAL, and what the archive has of it in the end.
case_archive() {
    local weed=${ARDENT_WEED:-$top/target/seaweedfs/weed} at=$work/weed s3 filer round kind before began wal
    [ -x "$weed" ] || { echo "bench: $weed is missing: run scripts/setup-s3.sh, or leave the case archive out" >&2; return 1; }
    mkdir -p "$at/data"
    s3=$(free_port) filer=$(free_port)
    echo '{"identities":[{"name":"bench","credentials":[{"accessKey":"bench","secretKey":"bench-secret"}],"actions":["Admin","Read","Write","List"]}]}' >"$at/s3.json"
    local flags=(server -s3 "-dir=$at/data" -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.telemetry=false -volume.max=50 "-s3.port=$s3" "-s3.config=$at/s3.json"
        -s3.autoCreateBucket=false -s3.port.iceberg=0 -s3.port.lance=0 "-s3.port.grpc=$(free_port)" "-filer.port=$filer" "-filer.port.grpc=$(free_port)"
        "-filer.localSocket=$at/filer.sock" "-s3.localSocket=$at/s3.sock"
        "-master.port=$(free_port)" "-master.port.grpc=$(free_port)" "-volume.port=$(free_port)" "-volume.port.grpc=$(free_port)")
    "$weed" -logtostderr=true "${flags[@]}" >"$at/out" 2>"$work/weed.log" &
    echo $! >"$work/running/archive.weed"
    wait_for $! 120 curl -sf "http://127.0.0.1:$filer/"
    wait_for $! 120 curl -s "http://127.0.0.1:$s3/"
    curl -sf -X POST "http://127.0.0.1:$filer/buckets/bench/" >/dev/null
    install plain "$work/plain" 1
    local -A socket_for=([plain]="${socket[*]}")
    keeper_arguments=("--archive=s3://bench/pages?endpoint=http://127.0.0.1:$s3")
    export AWS_ACCESS_KEY_ID=bench AWS_SECRET_ACCESS_KEY=bench-secret
    install archived "$work/archived" 1
    socket_for[archived]="${socket[*]}"
    keeper_arguments=()
    cpu_of() { awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); print ($12 + $13) / hz }' "/proc/$(pid_of "$1.safekeeper-1")/stat"; }
    wal_of() { psql -XAt ${socket_for[$1]} -c "select pg_current_wal_insert_lsn() - '0/0'"; }
    for kind in plain archived; do
        psql -XAtq ${socket_for[$kind]} -c 'create table bulk (n int, filler text)'
    done
    for round in $(seq "$rounds"); do
        for kind in $(in_turn "$round" plain archived); do
            before=$(cpu_of "$kind") wal=$(wal_of "$kind") began=$(now_us)
            psql -XAtq ${socket_for[$kind]} -c "insert into bulk select n, md5(n::text) || md5((n + 1)::text) || md5((n + 2)::text) || md5((n + 3)::text)
                from generate_series(1, 1000000) n"
            wal=$(($(wal_of "$kind") - wal))
            echo $(($(now_us) - began)) | awk -v wal="$wal" '{ print wal / $1 }' >>"$work/archive.$kind"
            # What is archived late is paid for as well.
            sleep 3
            echo "$(cpu_of "$kind") $before" | awk -v wal="$wal" '{ print ($1 - $2) / (wal / 1e9) }' >>"$work/archive.cpu.$kind"
        done
    done
    row "insert of a million rows, WAL archived in S3" "$(divide "$(median <"$work/archive.archived")" 1 0) MB/s of WAL" "$(divide "$(median <"$work/archive.plain")" 1 0) MB/s (not archived)" \
        "$(pair_ratio "$work/archive.archived" "$work/archive.plain")" -
    row "... CPU time of the safekeeper for each GB of WAL" "$(divide "$(median <"$work/archive.cpu.archived")" 1) s" "$(divide "$(median <"$work/archive.cpu.plain")" 1) s (not archived)" \
        "$(pair_ratio "$work/archive.cpu.archived" "$work/archive.cpu.plain")" -
    python3 - "http://127.0.0.1:$filer" >"$work/archive.count" <<'PY'
import json, sys, urllib.request

def walk(path):
    request = urllib.request.Request(sys.argv[1] + path + "/?limit=100000", headers={"Accept": "application/json"})
    for entry in json.load(urllib.request.urlopen(request)).get("Entries") or []:
        if entry["Mode"] & 1 << 31:
            yield from walk(entry["FullPath"])
        else:
            yield entry["FullPath"], entry["FileSize"]

segments = [size for name, size in walk("/buckets/bench") if "/wal/" in name]
print(len(segments), sum(segments))
PY
    read -r segments bytes <"$work/archive.count"
    row "... puts and bytes in the archive for each GB of WAL (of $segments segments)" \
        "$(divide 1000000000 16777216 0) puts, $(divide "$(divide "$bytes" 1000000 6)" "$(divide "$((segments * 16777216))" 1000000000 6)" 0) MB" - - -
    uninstall plain
    uninstall archived
}

for case in "${cases[@]}"; do
    step=$case
    echo "bench: $case, after $SECONDS s"
    # Not a subshell: with one, `set -e` would be off in it.
    "case_$case"
done

echo
echo "$(date +%F), commit $commit, $(nproc) cores, load $load_at_start at the start and $(cut -d' ' -f1 /proc/loadavg) at the end, scale $scale, runs of $seconds s, $rounds of each"
echo
echo "| case | ours | peer | ratio | target |"
echo "|---|---|---|---|---|"
sed 's/|/ | /g; s/^/| /; s/$/ |/' "$work/rows"
echo
echo "bench: done in $SECONDS s"
