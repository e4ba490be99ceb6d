#!/usr/bin/env bash
# Measures Ardent end to end, each case beside its peer in the same run, and prints one table: case, ours, peer, ratio, target.
# What each case does and the last numbers are in benches/README.md. Everything is in a temporary folder and ended at the end.
# Exits 0 when every case could be measured, whether or not a target was met.
#
#   ARDENT_BIN=PROGRAM    instead of building target/debug/ardent
#   BENCH_SCALE=N         size of the big production, about 15 MB each (default 100)
#   BENCH_SECONDS=N       length of each pgbench run (default 10)
#   BENCH_ROUNDS=N        samples that a median is taken of (default 10); for scans and pgbench half as many, at least 3
#   BENCH_CASES=LIST      which of create, first_row, scan, diff, socket, tls, wal, suite, redo, storage, idle, import and ingest to run (default: all; ingest is always last)
#   BENCH_DIFF_MB=N       size of the table that is diffed (default 100)
#   BENCH_DIFF_ROWS=LIST  numbers of changed rows (default "1 1000 100000")
#   BENCH_DIFF_SPARSE_MB=N  size of another one with as many rows, the rest of it empty pages (default 10240; 0: none)
#
# About a quarter of an hour on two cores: BENCH_SCALE=50 BENCH_SECONDS=4 BENCH_ROUNDS=8. One case alone, with the set-up that it
# needs: 2 to 3 minutes, e.g. BENCH_CASES=tls.
# The diff alone, whole, in about 5 minutes: BENCH_CASES=diff BENCH_SCALE=1 BENCH_ROUNDS=3. Shorter: BENCH_DIFF_SPARSE_MB=1024, or 0
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
scale=${BENCH_SCALE:-100}
seconds=${BENCH_SECONDS:-10}
rounds=${BENCH_ROUNDS:-10}
long_rounds=$((rounds / 2 < 3 ? 3 : rounds / 2))
known_cases=(create first_row scan diff socket tls wal suite redo storage idle import ingest)
cases=()
for case in "${known_cases[@]}"; do
    [[ " ${BENCH_CASES:-${known_cases[*]}} " != *" $case "* ]] || cases+=("$case")
done
for case in ${BENCH_CASES:-}; do
    [[ " ${known_cases[*]} " = *" $case "* ]] || { echo "bench: there is no case $case; there are ${known_cases[*]}" >&2; exit 2; }
done
wanted() { # cases: whether one of them is to be run
    local case
    for case in "$@"; do [[ " ${cases[*]} " != *" $case "* ]] || return 0; done
    return 1
}
diff_mb=${BENCH_DIFF_MB:-100}
diff_rows=${BENCH_DIFF_ROWS:-1 1000 100000}
diff_sparse_mb=${BENCH_DIFF_SPARSE_MB:-10240}
pg_bin=/usr/lib/postgresql/15/bin
. "$top/scripts/bench-lib.sh"
step="look for programs"
work=

finish() {
    local code=$? pid data
    trap - EXIT INT TERM
    set +e
    if [ "$code" -ne 0 ]; then
        echo "bench: FAILED: $step (exit code $code)" >&2
        local log
        for log in "$work/up.log" $(find "$work/data/computes" -name '*.log' 2>/dev/null); do
            [ ! -s "$log" ] || { echo "--- last lines of $log" >&2; tail -n 15 "$log" >&2; }
        done
    fi
    for pid in "$work"/running/*; do [ ! -e "$pid" ] || end "$(cat "$pid")"; done
    for data in "$work"/stock/* "$work"/btrfs/*; do
        [ ! -e "$data/postmaster.pid" ] || "${as_pg[@]}" "$pg_bin/pg_ctl" -D "$data" -m immediate stop >/dev/null 2>&1
    done
    if mountpoint -q "$work/btrfs" 2>/dev/null; then umount "$work/btrfs"; fi
    [ -z "$work" ] || rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

PATH="$PATH:/usr/sbin"
need "$pg_bin/postgres" postgresql-15
need "$pg_bin/pgbench" postgresql-15
need psql postgresql-client-15
if wanted tls; then need pgbouncer pgbouncer; need openssl openssl; fi
if wanted first_row && [ "$(id -u)" = 0 ]; then need mkfs.btrfs btrfs-progs; fi

say_load
step="build"
build_program

work=$(mktemp -d /tmp/ardent-bench.XXXXXX)
chmod 711 "$work"
use_program

drop_caches() {
    [ "$(id -u)" = 0 ] || return 1
    sync
    { echo 3 >/proc/sys/vm/drop_caches; } 2>/dev/null
}

# ---- production, and the stock servers with the same rows ----

step="stock servers"
declare -A port_of=()
for name in small big bare peer diffed; do port_of[$name]=$(free_port); done
echo "bench: a production of scale $scale and one of scale 1"
make_production small 1 bare
make_production big "$scale" peer
echo "bench: set up after $SECONDS s"
big_size=$(psql -XAt -h "$work/stock" -p "${port_of[big]}" -c "select pg_size_pretty(pg_database_size('shop'))")
small_size=$(psql -XAt -h "$work/stock" -p "${port_of[small]}" -c "select pg_size_pretty(pg_database_size('shop'))")

# ---- Ardent ----

step="ardent up"
listen_port=$(free_port)
api_port=$(free_port)
# Cases run in subshells: what they start is written down for the end, in $work/running.
start_up() {
    ardent up --data-dir "$work/data" --listen "127.0.0.1:$listen_port" --api-listen "127.0.0.1:$api_port" \
        >"$work/up.out" 2>>"$work/up.log" &
    up=$!
    echo "$up" >"$work/running/up"
    wait_for "$up" 60 grep -q '^branches at' "$work/up.out"
}
start_up
# The most that the whole program has held; computes are other processes.
peak_mb() { awk '/^VmHWM/ { printf "%d", $2 / 1024 }' "/proc/$up/status"; }

step="import"
connect() { # name
    ardent connector create postgresql "postgresql://shop:secret@127.0.0.1:${port_of[$1]}/shop" --name "$1" --fast >"$work/connect.log"
}
echo "bench: importing $big_size"
began=$(now_us)
connect big
took=$(($(now_us) - began))
row "memory of ardent up, import of $big_size in $(divide "$took" 1000000 1) s" "$(peak_mb) MB" - - "<= 512 MB + 192 MB of caches"
connect small

first_row() { # URL or psql's arguments
    [ "$(psql -XAt "$@" -c 'select 1')" = 1 ]
}

# What others have just written, above all the snapshot's file system in a file, must not be paid for by the next one's fsyncs.
settle() { [ ! -d "$work/btrfs" ] || btrfs filesystem sync "$work/btrfs"; sync; }
since() { echo $(($(now_us) - $1)); } # microseconds since then

bare_start() { # a stock server's start to the first row, in microseconds
    local began
    settle
    began=$(now_us)
    # Not -w: it looks only ten times a second.
    stock bare start -W
    until first_row -h "$work/stock" -p "${port_of[bare]}" 2>/dev/null; do :; done
    since "$began"
    stock bare stop -w -m fast
}

case_create() {
    local of size round
    for round in $(seq "$rounds"); do
        for of in big small; do
            make_branch "c$round" "$of" >"$work/reply"
            number_of server_us <"$work/reply" >>"$work/create.$of"
            number_of waited_us <"$work/reply" >>"$work/waited.$of"
            ardent branch delete "c$round" >/dev/null
        done
    done
    for of in big small; do
        size=${of}_size
        row "branch create, ${!size}, at the server" "$(divide "$(median <"$work/create.$of")" 1000 1) ms" - - "<= 20 ms"
        row "... of it, waiting for ingest" "$(divide "$(median <"$work/waited.$of")" 1000 1) ms" - - -
    done
}

# ---- the peer of a branch: a snapshot of a running server's folder, on btrfs in a file ----

snapshots=
prepare_snapshots() { # sets snapshots: empty where they can be made, else why not
    local of bytes
    if [ "$(id -u)" != 0 ]; then snapshots="needs root"; return; fi
    bytes=$(du -sb "$work/stock/bare" "$work/stock/peer" | awk '{ sum += $1 } END { print sum }')
    truncate -s $((bytes + bytes / 2 + (1 << 30))) "$work/btrfs.img"
    mkdir "$work/btrfs"
    if ! { mkfs.btrfs -q "$work/btrfs.img" && mount -o loop "$work/btrfs.img" "$work/btrfs"; } >"$work/btrfs.log" 2>&1; then
        snapshots="no btrfs here"
        return
    fi
    chown postgres "$work/btrfs"
    port_of[snapshot]=$(free_port)
    for of in small:bare big:peer; do
        port_of[${of%:*}_on_btrfs]=$(free_port)
        btrfs -q subvolume create "$work/btrfs/${of%:*}"
        cp -a "$work/stock/${of#*:}/." "$work/btrfs/${of%:*}/"
        on_btrfs "${of%:*}" "${port_of[${of%:*}_on_btrfs]}" start -w
    done
}

on_btrfs() { # folder, port, pg_ctl's command and options
    "${as_pg[@]}" "$pg_bin/pg_ctl" -s -D "$work/btrfs/$1" -l "$work/stock/btrfs.log" "${@:4}" \
        -o "-p $2 -k $work/stock -c listen_addresses= -c max_wal_size=2GB" "$3"
}

snapshot_start() { # big or small: a snapshot of the running server and its start to the first row, in microseconds
    local began
    # Something has been committed since the last checkpoint, as on a server that is in use.
    psql -Xq -h "$work/stock" -p "${port_of[$1_on_btrfs]}" -c 'update pgbench_branches set bbalance = bbalance + 1 where bid = 1'
    settle
    began=$(now_us)
    btrfs -q subvolume snapshot "$work/btrfs/$1" "$work/btrfs/snapshot"
    rm "$work/btrfs/snapshot/postmaster.pid"
    on_btrfs snapshot "${port_of[snapshot]}" start -W
    until first_row -h "$work/stock" -p "${port_of[snapshot]}" 2>/dev/null; do :; done
    since "$began"
    on_btrfs snapshot "${port_of[snapshot]}" stop -w -m immediate
    btrfs -q subvolume delete "$work/btrfs/snapshot"
}

case_first_row() {
    local of round began url size
    ms() { echo "$(divide "$(median <"$1")" 1000 0) ms"; }
    prepare_snapshots
    url=$(make_branch warm big | text_of url)
    first_row "$url"
    for round in $(seq "$rounds"); do
        bare_start >>"$work/bare"
        for of in big small; do
            settle
            began=$(now_us)
            make_branch "r$round-$of" "$of" >"$work/reply"
            first_row "$(text_of url <"$work/reply")"
            since "$began" >>"$work/cold.$of"
            # Deleted at the end: for a minute ext4 walks past every inode that was given back, at each new file of the next branch.
            ardent branch suspend "r$round-$of" >/dev/null
            [ -n "$snapshots" ] || snapshot_start "$of" >>"$work/snapshot.$of"
        done
        ardent branch suspend warm >/dev/null
        settle
        began=$(now_us)
        first_row "$url"
        since "$began" >>"$work/warm"
    done
    ardent branch delete warm >/dev/null
    for round in $(seq "$rounds"); do
        for of in big small; do ardent branch delete "r$round-$of" >/dev/null; done
    done
    for of in big small; do
        size=${of}_size
        row "create to first row, cold, ${!size}" "$(ms "$work/cold.$of")" "$(ms "$work/bare") (pg_ctl start)" \
            "$(pair_ratio "$work/cold.$of" "$work/bare")" "<= 6"
        if [ -n "$snapshots" ]; then
            row "... beside a btrfs snapshot of a running server, and its start" "$(ms "$work/cold.$of")" "- ($snapshots)" - -
        else
            row "... beside a btrfs snapshot of a running server, and its start" "$(ms "$work/cold.$of")" \
                "$(ms "$work/snapshot.$of") (btrfs)" "$(pair_ratio "$work/cold.$of" "$work/snapshot.$of")" -
        fi
    done
    row "warm wake to first row" "$(ms "$work/warm")" "$(ms "$work/bare") (pg_ctl start)" "$(pair_ratio "$work/warm" "$work/bare")" "<= 3"
    [ -n "$snapshots" ] || for of in big small; do on_btrfs "$of" "${port_of[${of}_on_btrfs]}" stop -w -m immediate; done
    if mountpoint -q "$work/btrfs"; then umount "$work/btrfs"; fi
    rm -f "$work/btrfs.img"
}

case_scan() {
    local round cache="cold page cache" ours peer
    for round in $(seq "$long_rounds"); do
        make_branch scan big >/dev/null
        stock peer start -w
        socket_of scan
        first_row "${socket[@]}"
        stock peer stop -w
        drop_caches || cache="warm page cache"
        stock peer start -w
        scan -h "$work/stock" -p "${port_of[peer]}" >>"$work/scan.peer"
        stock peer stop -w
        drop_caches || true
        scan "${socket[@]}" >>"$work/scan.ours"
        ardent branch delete scan >/dev/null
    done
    ours=$(median <"$work/scan.ours") peer=$(median <"$work/scan.peer")
    row "sequential scan of a fresh branch, a page" "$ours us" "$peer us ($cache)" "$(pair_ratio "$work/scan.ours" "$work/scan.peer")" "<= 10 us"
}

diffed() { # psql's arguments
    psql -XAtq -v ON_ERROR_STOP=1 -h "$work/stock" -p "${port_of[diffed]}" "$@"
}

make_diffed() { # a production with a table of that size, and one with as many rows that is made long by empty pages
    local rows=$((diff_mb * 1024)) file segment
    "${as_pg[@]}" "$pg_bin/initdb" -D "$work/stock/diffed" -U shop --auth-local=trust --auth-host=scram-sha-256 \
        --pwfile="$work/password" --no-sync >/dev/null
    stock diffed start -w
    diffed -d postgres -c 'create database shop'
    for table in whole ${sparse:+sparse}; do
        diffed -c "create table $table (id int primary key, v int, filler text)" \
            -c "insert into $table select n, 0, repeat(md5(n::text), 29) from generate_series(1, $rows) n" -c "vacuum analyze $table"
    done
    [ -n "$sparse" ] || return 0
    file=$work/stock/diffed/$(diffed -c "select pg_relation_filepath('sparse')")
    stock diffed stop -w
    # Postgres takes a page of zeros for an empty one. A file is a gigabyte at most.
    for segment in $(seq 0 $(((diff_sparse_mb - 1) / 1024))); do
        local left=$((diff_sparse_mb - segment * 1024))
        "${as_pg[@]}" truncate -s "$((left < 1024 ? left : 1024))M" "$file$([ "$segment" = 0 ] || echo ".$segment")"
    done
    stock diffed start -w
}

case_diff() {
    local table changed rows=$((diff_mb * 1024)) sparse='' size began url ours peer blocks pages count
    [ "$diff_sparse_mb" = 0 ] || sparse=yes
    make_diffed
    connect diffed
    make_branch diffbase diffed >/dev/null
    socket_of diffbase
    local base=("${socket[@]}")
    for table in whole ${sparse:+sparse}; do
        size=$(diffed -c "select pg_size_pretty(pg_relation_size('$table'))")
        for changed in $diff_rows; do
            [ "$changed" -le "$rows" ] || changed=$rows
            url=$(make_branch differs diffed | text_of url)
            # Spread over the table.
            psql -XAtq "$url" -c "update $table set v = 1 where id % ($rows / $changed) = 0 and id / ($rows / $changed) <= $changed"
            rm -f "$work/diff.ours"
            for round in $(seq "$rounds"); do
                began=$(now_us)
                ardent branch diff differs --stat >"$work/diff.stat"
                echo $(($(now_us) - began)) >>"$work/diff.ours"
            done
            grep -q "~$changed " "$work/diff.stat" || { cat "$work/diff.stat" >&2; return 1; }
            ardent branch diff differs --json >"$work/diff.json"
            blocks=$(number_of changed_blocks <"$work/diff.json")
            pages=$(($(number_of pages_read_branch_point <"$work/diff.json") + $(number_of pages_read_head <"$work/diff.json")))
            # The peer has both servers running, and every page of theirs read once: two sorted streams of all rows, compared.
            socket_of differs
            local head=("${socket[@]}")
            all_rows() { psql -XAtq "$@" -c "copy (select id, v, filler from $table order by id::text collate \"C\") to stdout"; }
            all_rows "${base[@]}" >/dev/null
            all_rows "${head[@]}" >/dev/null
            began=$(now_us)
            count=$(LC_ALL=C comm -3 --nocheck-order <(all_rows "${base[@]}") <(all_rows "${head[@]}") | wc -l)
            peer=$(($(now_us) - began))
            [ "$count" = $((changed * 2)) ] || { echo "bench: the peer found $count lines" >&2; return 1; }
            ours=$(median <"$work/diff.ours")
            row "diff of $changed changed rows, table of $size" "$(divide "$ours" 1000 0) ms" "$(divide "$peer" 1000 0) ms (two sorted COPYs, warm)" \
                "$(divide "$ours" "$peer")" "-"
            row "... changed blocks, and pages read on both sides with catalogs and start" "$blocks, $pages" - - "<= 4 x blocks + 2000"
            ardent branch delete differs >/dev/null
        done
    done
    ardent branch delete diffbase >/dev/null
    ardent connector delete diffed --yes >/dev/null
    stock diffed stop -w -m fast
}

bouncer() { # user, host, port: starts a pgbouncer of that user's before the server whose socket is in that folder; sets bouncer_pid
    local ini="$work/bouncer.$3.ini" as=()
    [ "$(id -u)" != 0 ] || as=(setpriv "--reuid=$1" "--regid=$(id -g "$1" 2>/dev/null || echo "$1")" --clear-groups)
    bouncer_port=$(free_port)
    cat >"$ini" <<INI
[databases]
shop = host=$2 port=$3 dbname=shop user=shop
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $bouncer_port
unix_socket_dir =
auth_type = any
pool_mode = session
default_pool_size = 20
client_tls_sslmode = allow
client_tls_key_file = $work/bouncer.key
client_tls_cert_file = $work/bouncer.crt
INI
    (exec "${as[@]}" pgbouncer "$ini") >>"$work/bouncer.log" 2>&1 &
    bouncer_pid=$!
    echo "$bouncer_pid" >"$work/running/bouncer"
    wait_for "$bouncer_pid" 30 bash -c "exec 3<>/dev/tcp/127.0.0.1/$bouncer_port"
}

begin_pgbench() { # a branch and a stock server that have read every row: sets url, socket and stock_at
    url=$(make_branch bench big | text_of url)
    case $url in *sslmode=require*) ;; *) echo "bench: the branch's URL lacks sslmode=require: $url" >&2; return 1 ;; esac
    socket_of bench
    warm "${socket[@]}"
}

case_socket() {
    local url script clients round of where direct local_tps stock_at=(-h "$work/stock" -p "${port_of[peer]}")
    begin_pgbench
    stock peer start -w
    warm "${stock_at[@]}"
    for script in tpcb-like select-only; do
        for clients in 1 8; do
            for round in $(seq "$long_rounds"); do
                for of in $(in_turn "$round" socket stock); do
                    case $of in socket) where=("${socket[@]}") ;; stock) where=("${stock_at[@]}") ;; esac
                    tps "$script" "$clients" "${where[@]}" >>"$work/tps.$of.$script.$clients"
                done
            done
            direct=$(median <"$work/tps.socket.$script.$clients") local_tps=$(median <"$work/tps.stock.$script.$clients")
            row "pgbench $script, $clients clients, socket" "$direct tps" "$local_tps tps (stock)" \
                "$(pair_ratio "$work/tps.socket.$script.$clients" "$work/tps.stock.$script.$clients")" ">= 0.9"
        done
    done
    ardent branch delete bench >/dev/null
    stock peer stop -w
}

case_tls() {
    local url script clients round of way where through
    begin_pgbench
    # The peer of the proxy stands before the very same compute.
    bouncer "$(stat -c %u "${socket[1]}")" "${socket[1]}" "${socket[3]}"
    through="host=127.0.0.1 port=$bouncer_port dbname=shop user=shop"
    for script in tpcb-like select-only; do
        for clients in 1 8; do
            of="$script.$clients"
            for round in $(seq "$long_rounds"); do
                for way in $(in_turn "$round" proxy bouncer direct); do
                    case $way in
                    proxy) where=("$url") ;;
                    bouncer) where=("$through sslmode=require") ;;
                    direct) where=("${socket[@]}") ;;
                    esac
                    tps "$script" "$clients" "${where[@]}" >>"$work/tps.$way.$of"
                done
            done
            row "pgbench $script, $clients clients, TLS" "$(median <"$work/tps.proxy.$of") tps (proxy)" \
                "$(median <"$work/tps.bouncer.$of") tps (pgbouncer)" "$(pair_ratio "$work/tps.proxy.$of" "$work/tps.bouncer.$of")" ">= 1"
            row "... share kept of the socket's" "$(pair_ratio "$work/tps.proxy.$of" "$work/tps.direct.$of")" \
                "$(pair_ratio "$work/tps.bouncer.$of" "$work/tps.direct.$of")" - -
        done
    done
    end "$bouncer_pid"
    rm "$work/running/bouncer"
    ardent branch delete bench >/dev/null
}

lsn_of() { # what: production's position, as a number
    psql -XAt -h "$work/stock" -p "${port_of[big]}" -d postgres -c "select pg_wal_lsn_diff($1, '0/0')::bigint"
}

ingested() { # until: whether Ardent has ingested production's WAL up to there
    local lsn
    lsn=$(ardent connector status big --json | text_of ingested_lsn)
    [ -n "$lsn" ] && [ $((16#${lsn%/*} << 32 | 16#${lsn#*/})) -ge "$1" ]
}

wait_ingested() {
    local deadline=$((SECONDS + 900))
    until ingested "$1" 2>/dev/null; do
        [ $SECONDS -lt $deadline ] || { echo "bench: WAL was not ingested in time" >&2; return 1; }
        sleep 0.02
    done
}

of_crates() { # benchmarks: runs crates' own, whose tables have a column for the ratio of CPU time
    local case ours peer ratio cpu target
    cargo test -q --manifest-path "$top/Cargo.toml" --workspace "${@/#/--bench=}" >"$work/crates.rows" 2>"$work/crates.log" ||
        { cat "$work/crates.log" >&2; return 1; }
    while IFS='|' read -r _ case ours peer ratio cpu target _; do
        case $case in ' case '* | ---*) continue ;; esac
        [ "$cpu" = ' - ' ] || ratio="$ratio($(echo $cpu) of CPU time)"
        row "$(echo $case)" "$(echo $ours)" "$(echo $peer)" "$(echo $ratio)" "$(echo "$target" | sed 's/^ *//; s/ *$//')"
    done < <(grep '^|' "$work/crates.rows")
}

case_wal() { of_crates pgbench_wal ingest; } # decoding, redo and layers from WAL in files, without servers of ours

# Decoding and redo of what Postgres's own regression suite writes, without images and with them.
case_suite() {
    local kind row
    for kind in without with; do
        row="no full-page writes"
        [ $kind = without ] || row=default
        # Logged as in production; nothing is verified here.
        VERIFY_REDO=true VERIFY_REDO_SUITES=regress VERIFY_REDO_MATRIX=$row VERIFY_REDO_DIR=$work/suite-$kind \
            VERIFY_REDO_CONF=$'wal_consistency_checking = \'\'\nwal_compression = off\nwal_level = replica' \
            "$top/scripts/verify-redo.sh" >"$work/suite-$kind.log" 2>&1 || { cat "$work/suite-$kind.log" >&2; return 1; }
    done
    BENCH_SUITE_WITHOUT_IMAGES=$work/suite-without BENCH_SUITE_WITH_IMAGES=$work/suite-with of_crates pgbench_wal
}

# Single records, and whole pages, redone in memory.
case_redo() {
    local name ns target
    cargo test --manifest-path "$top/Cargo.toml" --workspace --features=ardent-pg-redo/bench --bench=redo -- --bench --output-format bencher >"$work/redo.out" 2>"$work/redo.log" ||
        { cat "$work/redo.log" >&2; return 1; }
    sed -nE 's|^test (.*) \.\.\. bench: +([0-9,]+) ns/iter.*|\1;\2|p' "$work/redo.out" | tr -d , >"$work/redo.figures"
    [ -s "$work/redo.figures" ] || { cat "$work/redo.out" >&2; return 1; }
    while IFS=';' read -r name ns; do
        case $name in "page from an image"*) target="<= 25 us" ;; *) target=- ;; esac
        row "$name" "$(divide "$ns" 1000 2) us" - - "$target"
    done <"$work/redo.figures"
}

# A page server's latency, its branches, what it stores, and how fast that comes from S3.
case_storage() { of_crates get_page branches stored_size cold_scan; }

# What a safekeeper takes for timelines that nobody uses.
case_idle() { of_crates idle; }

in_pairs() { # name: runs NAME_ours and NAME_peer in turns, and what undoes each; their times go to two files
    local round of began
    for round in $(seq "$long_rounds"); do
        for of in $(in_turn "$round" ours peer); do
            settle
            began=$(now_us)
            "$1_$of"
            since "$began" >>"$work/$1.$of"
            "undo_$1_$of"
        done
    done
}
seconds_of() { divide "$(median <"$work/$1")" 1000000; } # file of times

# Each with the variables of case_import.
connect_again() { # more arguments
    ardent connector create postgresql "postgresql://shop:secret@127.0.0.1:${port_of[big]}/shop" --name again "$@" >"$work/connect.log"
}
disconnect_again() { ardent connector delete again --yes >/dev/null; }
import_ours() { connect_again --fast; }
undo_import_ours() { disconnect_again; }
import_peer() { "$pg_bin/pg_basebackup" "${at[@]}" -D "$work/backup" -c fast -X stream >"$work/load.log" 2>&1; }
undo_import_peer() { rm -rf "$work/backup"; }
logical_ours() { connect_again --logical; }
undo_logical_ours() { disconnect_again; }
logical_peer() {
    psql -Xq "${peer_at[@]}" -d postgres -c 'create database restored'
    "$pg_bin/pg_dump" "${at[@]}" -Fc -f "$work/dump" shop
    "$pg_bin/pg_restore" "${peer_at[@]}" -j 2 -d restored "$work/dump"
}
undo_logical_peer() { psql -Xq "${peer_at[@]}" -d postgres -c 'drop database restored'; rm "$work/dump"; }

# The import of a running production beside a copy of its folder and beside a dump that is restored; then how far behind Ardent is at production's
# full load.
case_import() {
    local at=(-h "$work/stock" -p "${port_of[big]}") peer_at=(-h "$work/stock" -p "${port_of[peer]}") until
    in_pairs import
    row "import of $big_size until branches can be made" "$(seconds_of import.ours) s" "$(seconds_of import.peer) s (pg_basebackup)" \
        "$(pair_ratio "$work/import.peer" "$work/import.ours") of its rate" ">= 0.7"

    psql -Xq "${at[@]}" -c "alter table pgbench_history replica identity full" -c "alter system set wal_level = logical"
    stock big stop -w -m fast
    stock big start -w
    stock peer start -w
    in_pairs logical
    stock peer stop -w
    row "... by logical replication" "$(seconds_of logical.ours) s" "$(seconds_of logical.peer) s (pg_dump, pg_restore -j 2)" \
        "$(pair_ratio "$work/logical.peer" "$work/logical.ours") of its rate" ">= 1"
    psql -Xq "${at[@]}" -d postgres -c "alter system reset wal_level"
    stock big stop -w -m fast
    stock big start -w
    until=$(lsn_of 'pg_current_wal_flush_lsn()')
    wait_ingested "$until"

    local load tps
    "$pg_bin/pgbench" -n -c 8 -j 2 -T "$((seconds * 3))" "${at[@]}" >"$work/load.log" 2>&1 &
    load=$!
    echo "$load" >"$work/running/load"
    sleep 1
    while kill -0 "$load" 2>/dev/null; do
        # What production has flushed, and how long until Ardent has that.
        began=$(now_us)
        until=$(lsn_of 'pg_current_wal_flush_lsn()')
        wait_ingested "$until"
        since "$began" >>"$work/lag"
        ardent branch create "lag-$began" --from big --json | number_of waited_us >>"$work/lag.waited"
        sleep 0.3
    done
    wait "$load"
    rm "$work/running/load"
    tps=$(sed -nE 's/^tps = ([0-9]+).*/\1/p' "$work/load.log")
    row "lag behind production at $tps transactions a second (8 clients, same two cores), median, with two commands that ask" \
        "$(divide "$(median <"$work/lag")" 1000 0) ms" - - "< 1000 ms"
    row "... the longest of $(wc -l <"$work/lag")" "$(divide "$(sort -n "$work/lag" | tail -n 1)" 1000 0) ms" - - "< 1000 ms"
    row "... that branch create waited for, median" "$(divide "$(median <"$work/lag.waited")" 1000 1) ms" - - -
    ardent branch list --json | sed -nE 's/.*"name": ?"(lag-[0-9]+)".*/\1/p' | xargs -r ardent branch delete >/dev/null
}

case_ingest() { # the last one: it changes production
    local from until records recovered began took at=(-h "$work/stock" -p "${port_of[big]}")
    # WAL that is written while Ardent is away: it catches up with it, and production recovers from it.
    end "$up"
    psql -Xq "${at[@]}" -d postgres -c 'alter system set full_page_writes = off' -c 'select pg_reload_conf()' -c checkpoint >/dev/null
    from=$(lsn_of 'pg_current_wal_lsn()')
    PGOPTIONS='-c synchronous_commit=off' "$pg_bin/pgbench" -n -c 8 -j 2 -T "$((seconds * 3))" "${at[@]}" >"$work/load.log" 2>&1
    psql -Xq "${at[@]}" -d postgres -c 'select pg_switch_wal()' >/dev/null
    until=$(lsn_of 'pg_current_wal_flush_lsn()')
    hex() { printf '%X/%X' $(($1 >> 32)) $(($1 & 0xFFFFFFFF)); }
    records=$("${as_pg[@]}" "$pg_bin/pg_waldump" -p "$work/stock/big/pg_wal" --stats -s "$(hex "$from")" -e "$(hex "$until")" 2>/dev/null |
        awk '$1 == "Total" { print $2 }')
    stock big stop -w -m immediate
    stock big start -w
    recovered=$(sed -nE 's/.*redo done at .*elapsed: ([0-9.]+) s.*/\1/p' "$work/stock/big.log" | tail -n 1)
    began=$(now_us)
    start_up
    wait_ingested "$until"
    took=$(($(now_us) - began))
    row "ingest of $(((until - from) / 1048576)) MB of pgbench's WAL without full-page images, with the program's start and the way from production" \
        "$(divide "$((records * 1000))" "$((took / 1000))" 0) records/s" \
        "$(divide "$records" "$recovered" 0) records/s (recovery, $recovered s)" \
        "$(divide "$(divide "$((records * 1000))" "$((took / 1000))" 0)" "$(divide "$records" "$recovered" 0)")" ">= 1"
    psql -Xq "${at[@]}" -d postgres -c 'alter system reset full_page_writes' -c 'select pg_reload_conf()' -c 'create database more' >/dev/null
    from=$(lsn_of 'pg_current_wal_lsn()')
    PGDATABASE=more "$pg_bin/pgbench" "${at[@]}" -i -s "$scale" -q >"$work/load.log" 2>&1
    until=$(lsn_of 'pg_current_wal_flush_lsn()')
    wait_ingested "$until"
    row "memory of ardent up, ingest of $(((until - from) / 1048576)) MB more" "$(peak_mb) MB" - - "<= 512 MB + 192 MB of caches"
}

step="pgbouncer"
! wanted tls || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
    -keyout "$work/bouncer.key" -out "$work/bouncer.crt" 2>/dev/null
[ ! -e "$work/bouncer.key" ] || chmod 644 "$work/bouncer.key"
failed=()
for case in "${cases[@]}"; do
    step="case $case"
    echo "bench: $case, after $SECONDS s, load $(cut -d' ' -f1 /proc/loadavg)"
    # In a subshell, outside of any condition: there a failing command ends the case and not the others.
    set +e
    (set -e; "case_$case")
    code=$?
    set -e
    [ "$code" = 0 ] || { failed+=("$case"); echo "bench: case $case failed (exit code $code)" >&2; }
    # A case that failed half way may have left its server running.
    if mountpoint -q "$work/btrfs"; then
        for data in "$work"/btrfs/*; do
            [ ! -e "$data/postmaster.pid" ] || "${as_pg[@]}" "$pg_bin/pg_ctl" -s -D "$data" -m immediate stop
        done
        umount "$work/btrfs"
    fi
    for name in peer bare diffed; do [ ! -e "$work/stock/$name/postmaster.pid" ] || stock "$name" stop -w -m fast; done
done

echo
echo "$(date -u +%F), commit $commit, $(nproc) cores, load $load_at_start at the start and $(cut -d' ' -f1 /proc/loadavg) at the end, profile dev, scale $scale, medians of $rounds (scans and pgbench $long_rounds), pgbench runs of $seconds s"
echo
awk -F'|' 'BEGIN { print "| case | ours | peer | ratio | target |\n|---|---|---|---|---|" } { print "| " $1 " | " $2 " | " $3 " | " $4 " | " $5 " |" }' "$work/rows"
if [ ${#failed[@]} -gt 0 ]; then step="cases: ${failed[*]}"; exit 1; fi
echo
echo "bench: done in $SECONDS s"
