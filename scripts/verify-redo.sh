#!/usr/bin/env bash
# Proves redo against Postgres at scale: runs Postgres's own regression and isolation suites, pgbench and our workloads on a server
# with wal_consistency_checking = all, then verifies every page of its WAL, and every file of the stopped server, with
# `ardent inspect verify-redo`. After that the settings that change what is logged, each with pgbench and our workloads.
#
#   scripts/verify-redo.sh              all of it
#   scripts/verify-redo.sh --major 17   the same for another major than 15: with a server from scripts/setup-majors.sh, or that in
#                                       $ARDENT_TEST_PG_17 (`scripts/setup-majors.sh newest-17` says where the newest minor is); clients
#                                       and the suites' drivers are those of 15 where it brings none. Where the distribution does not
#                                       have the major's sources, the suites of the majors that it has are run instead.
#   VERIFY_REDO_SUITES="workloads"      only some of: regress isolation pgbench workloads records
#   VERIFY_REDO_SUITES_OF="15 18"       the suites of these majors
#   VERIFY_REDO_MATRIX="default"        only this row of `matrix` below
#   VERIFY_REDO_CONF="autovacuum = off"     more lines for postgresql.conf, separated by newlines
#   VERIFY_REDO_INITDB="--icu-locale=en"    more arguments for initdb
#   VERIFY_REDO_DIR=DIR                 work there and keep it (default: a temporary folder, removed at the end)
#   VERIFY_REDO_FLAGS="--json"          more arguments for the program
#   VERIFY_REDO="program"               instead of `target/debug/ardent inspect verify-redo`
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
major=15
if [ "${1:-}" = --major ]; then major=${2:?"say which major"}; fi
clients=/usr/lib/postgresql/15/bin
pgxs=/usr/lib/postgresql/15/lib/pgxs
bin=$clients
all_suites="regress isolation pgbench workloads records"
if [ "$major" != 15 ]; then
  given=ARDENT_TEST_PG_$major
  [ -n "${!given:-}" ] || "$top/scripts/setup-majors.sh" "$major"
  bin=${!given:-${ARDENT_TEST_PG_MAJORS:-/var/tmp/ardent-postgres-$(id -u)}/$major/native/bin}
fi
# A server that brings its own clients is tested with them.
brought=$(dirname "$bin")
if [ -x "$bin/psql" ] && [ -x "$bin/pgbench" ]; then clients=$bin; fi
for at in "$brought/lib/pgxs" "$brought/lib/postgresql/pgxs"; do
  # Those that were fetched alone do not start: they want a later libpq than that of 15.
  if [ -x "$at/src/test/regress/pg_regress" ] && "$at/src/test/isolation/isolationtester" -V >/dev/null 2>&1; then pgxs=$at; fi
done
majors_top=${ARDENT_TEST_PG_MAJORS:-/var/tmp/ardent-postgres-$(id -u)}
suites=${VERIFY_REDO_SUITES:-$all_suites}
# Name | suites | arguments of initdb | settings, separated by semicolons. The first runs everything. The regression suite runs again
# where other records are written: without full-page images, and with checksums, which log hints.
matrix="default|$all_suites||wal_level = logical; wal_compression = lz4; track_commit_timestamp = on
no full-page writes|regress pgbench workloads||full_page_writes = off; wal_compression = off; wal_level = replica
checksums, 1 MB segments, pglz|regress pgbench workloads|--data-checksums --wal-segsize=1|wal_compression = pglz; wal_level = replica
checksums, no full-page writes, 64 MB segments, lz4|pgbench workloads|--data-checksums --wal-segsize=64|full_page_writes = off; wal_compression = lz4; wal_level = logical
hints logged, zstd|pgbench workloads|--wal-segsize=64|wal_log_hints = on; wal_compression = zstd; track_commit_timestamp = on; wal_level = logical
as in production|pgbench workloads||wal_consistency_checking = ''; wal_compression = lz4; wal_level = replica; checkpoint_timeout = 30s"
# Those of scripts/setup-majors.sh were built without these, and have no pg_config; its newest minors have both.
for method in lz4 zstd; do
  "$bin/pg_config" --configure 2>/dev/null | grep -q -- "--with-$method" || matrix=${matrix//"wal_compression = $method"/wal_compression = pglz}
done
verify=${VERIFY_REDO:-${CARGO_TARGET_DIR:-$top/target}/debug/ardent inspect verify-redo}
for need in "$bin/postgres" "$clients/psql" "$pgxs/src/test/regress/pg_regress"; do
  [ -x "$need" ] || { echo "$need is missing: install postgresql-15 and postgresql-server-dev-15 (make setup)" >&2; exit 1; }
done

if [ -n "${VERIFY_REDO_DIR:-}" ]; then work=$VERIFY_REDO_DIR; mkdir -p "$work"; else work=$(mktemp -d /tmp/verify-redo.XXXXXX); fi
chmod 755 "$work"
as_pg=(env)
if [ "$(id -u)" = 0 ]; then
  # Postgres refuses to run as root.
  as_pg=(setpriv --reuid=postgres --regid=postgres --clear-groups env HOME="$work" PATH="$PATH")
fi
started=
finish() {
  [ -z "$started" ] || "${as_pg[@]}" "$bin/pg_ctl" -D "$work/data" -m immediate stop >/dev/null 2>&1 || true
  [ -n "${VERIFY_REDO_DIR:-}" ] || rm -rf "$work"
}
trap finish EXIT

# Sources of a major's suites: the distribution's, from the same places as its packages. Fails where they are not to be had.
fetch_sources() { # major
  local src=$work/src-$1
  [ ! -d "$src/src/test/regress" ] || return 0
  local apt=$work/apt-$1; mkdir -p "$apt/lists/partial" "$apt/sources.list.d" "$apt/packages"
  local file release=()
  # Later majors are in later releases, at the same places. Releases have their security updates elsewhere.
  case $1 in
    15) ;;
    18) release=(-e 's/bookworm[-a-z]*/sid/g') ;;
    *) release=(-e 's/bookworm[-a-z]*/trixie/g') ;;
  esac
  [ "$1" = 15 ] || release+=(-e 's/^URIs:.*security.*/&\nEnabled: no/' -e '/^deb-src .*security/d')
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    if [ -f "$file" ]; then sed -n 's/^deb \(.*\)/deb-src \1/p' "$file" | sed -e '' "${release[@]}" >>"$apt/sources.list.d/src.list"; fi
  done
  for file in /etc/apt/sources.list.d/*.sources; do
    if [ -f "$file" ]; then sed -e 's/^Types:.*/Types: deb-src/' "${release[@]}" "$file" >"$apt/sources.list.d/src-$(basename "$file")"; fi
  done
  local options=(-qq -o "Dir::State::lists=$apt/lists" -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$apt/sources.list.d")
  apt-get "${options[@]}" update 2>/dev/null || true
  # The newest version may have left the mirror already; any minor's suite does.
  local version
  for version in $(apt-cache "${options[@]}" showsrc "postgresql-$1" 2>/dev/null | sed -n 's/^Version: //p' | sort -Vru); do
    if (cd "$apt/packages" && apt-get "${options[@]}" source --download-only "postgresql-$1=$version" >/dev/null 2>&1); then break; fi
  done
  local archive
  archive=$(echo "$apt/packages/postgresql-$1"_*.orig.tar.*)
  [ -f "$archive" ] || return 1
  mkdir -p "$src" && tar -xf "$archive" -C "$src" --strip-components=1
}

# Headers of the server's major, to compile the suite's library with: installed ones for 15, those that scripts/setup-majors.sh or
# somebody else laid beside the servers, or those that the major's own sources make. Fails if there are none.
server_headers() {
  local src=$work/src-$major
  if [ "$major" = 15 ]; then "$clients/pg_config" --includedir-server; return; fi
  if [ -f "$brought/include/server/postgres.h" ]; then echo "$brought/include/server"; return; fi
  if [ -f "$majors_top/headers/$major/postgres.h" ]; then echo "$majors_top/headers/$major"; return; fi
  [ -d "$src" ] || return 1
  if [ ! -f "$src/src/include/utils/errcodes.h" ]; then
    (cd "$src" && ./configure --without-icu --without-readline --without-zlib && make -s -C src/backend generated-headers) >"$work/headers.log" 2>&1 ||
      { echo "the headers of $major can't be made, see $work/headers.log: bison, flex and perl are needed" >&2; return 1; }
  fi
  echo "$src/src/include"
}

# The suite's library, from one major's source and another's headers where need be.
suite_library() { # suite's major
  local library=$work/lib-$1/regress.so headers
  mkdir -p "$work/lib-$1"
  [ ! -f "$library" ] || return 0
  if ! headers=$(server_headers) || ! cc -O1 -fPIC -shared -w -include postgres.h -include utils/array.h -I "$headers" -o "$library" \
    "$work/src-$1/src/test/regress/regress.c" 2>"$work/library-$1.log"; then
    echo "suites of $1: their C functions can't be built for $major (see $work/library-$1.log), and are left out"
  fi
}

suites_of=
case " $suites " in *" regress "*|*" isolation "*)
  suites_of=${VERIFY_REDO_SUITES_OF:-$major}
  if [ -z "${VERIFY_REDO_SUITES_OF:-}" ] && ! fetch_sources "$major"; then
    echo "the distribution does not have the sources of postgresql-$major: running the suites of 15 and 18 on it"
    suites_of="15 18"
  fi
  for of in $suites_of; do
    fetch_sources "$of" || { echo "the sources of postgresql-$of can't be had from the package mirror" >&2; exit 1; }
    suite_library "$of"
    # It loops for ever on a psql that has no pipelines, which came with 18.
    psql_major=$("$clients/psql" --version | sed -E 's/[^0-9]*([0-9]+).*/\1/')
    leave_out=()
    if [ "$psql_major" -lt 18 ]; then leave_out+=(psql_pipeline); fi
    # Queries of these, new with their fixes, end servers of earlier minors and majors with signal 11.
    version=$(sed -nE "s/^PACKAGE_VERSION='(.*)'/\\1/p" "$work/src-$of/configure")
    if [ "$of" = 18 ] && ! "$bin/postgres" --version | grep -qF "$version"; then leave_out+=(sqljson hash_part); fi
    cp "$work/src-$of/src/test/regress/parallel_schedule" "$work/schedule-$of"
    # 16's driver ends at this word of 15's schedule, which only says whose failures do not count.
    sed -i '/^ignore:/d' "$work/schedule-$of"
    for test in "${leave_out[@]}"; do sed -i -E "s/ $test( |\$)/\\1/" "$work/schedule-$of"; done
  done
esac

mkdir -p "$work/sql"
cp -r "$top"/libs/redo-oracle/tests/sql/. "$work/sql/"
if [ "$(id -u)" = 0 ]; then chown -R postgres "$work"; fi

run_suite() { # name, program, folder, schedule, major of the suite
  mkdir -p "$work/out/$1"; if [ "$(id -u)" = 0 ]; then chown postgres "$work/out/$1"; fi
  # What the suite expects to see is not the point here; what it writes is. Its own verdict is shown and not used.
  "${as_pg[@]}" PGUSER=postgres "$2" --bindir="$clients" --inputdir="$3" --outputdir="$work/out/$1" --dlpath="$work/lib-$5" \
    --schedule="$4" --max-concurrent-tests=20 --host="$work" --user=postgres --dbname="$1" >"$work/out/$1.log" 2>&1 || true
  echo "$1, the suite of $5: $(grep -E '^ All|tests (passed|failed)|of [0-9]+ tests' "$work/out/$1.log" | tail -1)"
}

sql() { "${as_pg[@]}" "$clients/psql" -h "$work" -U postgres -qXAt -v ON_ERROR_STOP=1 -c "$1" postgres; }

# Turns full-page writes off and on again, and waits until the server says so in its records.
toggle_full_page_writes() {
  local value
  for value in off on; do
    sql "ALTER SYSTEM SET full_page_writes = $value"
    sql "SELECT pg_reload_conf()" >/dev/null
    until [ "$(sql "SELECT CASE WHEN full_page_writes THEN 'on' ELSE 'off' END FROM pg_control_checkpoint()")" = $value ]; do sql CHECKPOINT; done
  done
}

# Of the database of a suite that is not the server's own and not the first.
suffix() { case $suites_of in "$1"*) ;; *) echo "_$1" ;; esac; }

run_suites() { # suites
  local suite file of
  for suite in $1; do
    case $suite in
      regress)
        for of in $suites_of; do
          run_suite "regression$(suffix "$of")" "$pgxs/src/test/regress/pg_regress" "$work/src-$of/src/test/regress" "$work/schedule-$of" "$of"
        done ;;
      isolation)
        for of in $suites_of; do
          run_suite "isolation_regression$(suffix "$of")" "$pgxs/src/test/isolation/pg_isolation_regress" "$work/src-$of/src/test/isolation" \
            "$work/src-$of/src/test/isolation/isolation_schedule" "$of"
        done ;;
      pgbench)
        "${as_pg[@]}" "$clients/pgbench" -h "$work" -U postgres -q -i -s 5 postgres >"$work/out/pgbench.log" 2>&1
        "${as_pg[@]}" "$clients/pgbench" -h "$work" -U postgres -n -c 4 -t 2500 postgres >>"$work/out/pgbench.log" 2>&1
        echo "pgbench: $(grep 'actually processed' "$work/out/pgbench.log")" ;;
      workloads)
        # What stays prepared in cluster.sql would keep the others from finding dead index items.
        for file in $(ls "$work"/sql/*.sql | grep -v /cluster.sql) "$work/sql/cluster.sql"; do
          "${as_pg[@]}" PGOPTIONS="-c client_min_messages=warning" "$clients/psql" -h "$work" -U postgres -qX -v ON_ERROR_STOP=1 -f "$file" postgres >/dev/null
        done
        echo "workloads: $(ls "$work"/sql/*.sql | wc -l) files" ;;
      records)
        "${as_pg[@]}" PGOPTIONS="-c client_min_messages=warning" "$clients/psql" -h "$work" -U postgres -qX -v ON_ERROR_STOP=1 -f "$work/sql/once/records.sql" postgres >/dev/null
        toggle_full_page_writes
        # What is frozen everywhere, template0 included, needs no status of transactions any more.
        sql "UPDATE pg_database SET datallowconn = true WHERE datname = 'template0'"
        "${as_pg[@]}" "$clients/vacuumdb" -h "$work" -U postgres -qaF
        # Something for the comparison of two-phase files.
        sql "BEGIN; CREATE TABLE prepared_at_end AS SELECT g FROM generate_series(1, 1000) g; SAVEPOINT a; INSERT INTO prepared_at_end VALUES (0); PREPARE TRANSACTION 'at the end'"
        echo "records: done" ;;
      *) echo "unknown suite: $suite" >&2; exit 2 ;;
    esac
  done
}

one_run() { # name, suites, arguments of initdb, settings
  echo; echo "== $1"
  rm -rf "$work/data" "$work/base" "$work/out" && mkdir -p "$work/out"
  if [ "$(id -u)" = 0 ]; then chown postgres "$work/out"; fi
  cd "$work"
  # shellcheck disable=SC2086
  "${as_pg[@]}" "$bin/initdb" -D "$work/data" -U postgres --no-sync $3 ${VERIFY_REDO_INITDB:-} >/dev/null
  cp -a "$work/data" "$work/base"
  cat >>"$work/data/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$work'
fsync = off
wal_consistency_checking = 'all'
max_wal_size = 50GB
wal_keep_size = 50GB
checkpoint_timeout = 1h
max_prepared_transactions = 20
autovacuum_naptime = 5s
$(tr ';' '\n' <<<"$4")
${VERIFY_REDO_CONF:-}
CONF
  "${as_pg[@]}" "$bin/pg_ctl" -D "$work/data" -l "$work/log" -w start >/dev/null
  started=1
  run_suites "$2"
  # Whether hint bits are logged decides what a record of the visibility map stamps.
  local flags=() query="select 'on' in (current_setting('data_checksums'), current_setting('wal_log_hints'))"
  if [ "$("${as_pg[@]}" "$clients/psql" -h "$work" -U postgres -qXAtc "$query" postgres)" = t ]; then flags+=(--hint-bits); fi
  "${as_pg[@]}" "$bin/pg_ctl" -D "$work/data" -m fast -w -t 300 stop >/dev/null
  started=
  echo "WAL: $(du -sh "$work/data/pg_wal" | cut -f1)"
  # What runs everything must reach every record type of the major; what runs less need not.
  if [ "$2" = "$all_suites" ]; then flags+=(--expect major); fi
  cd "$top"
  # shellcheck disable=SC2086
  $verify --wal "$work/data/pg_wal" --base "$work/base" --data "$work/data" "${flags[@]}" ${VERIFY_REDO_FLAGS:-} || failed+=("$1")
}

failed=()
while IFS='|' read -r name row_suites initdb settings; do
  [ "${VERIFY_REDO_MATRIX:-$name}" = "$name" ] || continue
  chosen=
  for suite in $row_suites; do case " $suites " in *" $suite "*) chosen="$chosen $suite" ;; esac; done
  one_run "$name" "${chosen# }" "$initdb" "$settings" </dev/null
done <<<"$matrix"
if [ ${#failed[@]} -gt 0 ]; then printf 'verify-redo: FAILED: %s\n' "${failed[@]}" >&2; exit 1; fi
echo; echo "verify-redo: all runs passed"
