#!/usr/bin/env bash
# Proves redo against Postgres 15 at scale: runs Postgres's own regression and isolation suites and our workloads on a server
# with wal_consistency_checking = all, then verifies every page of its WAL with `ardent inspect verify-redo`.
#
#   scripts/verify-redo.sh              all of it
#   VERIFY_REDO_SUITES="workloads"      only some of: regress isolation workloads
#   VERIFY_REDO_CONF="full_page_writes = off"     more lines for postgresql.conf, separated by newlines
#   VERIFY_REDO_INITDB="--data-checksums"         more arguments for initdb
#   VERIFY_REDO_DIR=DIR                 work there and keep it (default: a temporary folder, removed at the end)
#   VERIFY_REDO="program"               instead of `target/debug/ardent inspect verify-redo`
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
bin=/usr/lib/postgresql/15/bin
pgxs=/usr/lib/postgresql/15/lib/pgxs
suites=${VERIFY_REDO_SUITES:-regress isolation workloads}
verify=${VERIFY_REDO:-$top/target/debug/ardent inspect verify-redo}
for need in "$bin/postgres" "$pgxs/src/test/regress/pg_regress"; do
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

# Sources of the suites: the distribution's, from the same places as its packages.
fetch_sources() {
  local apt=$work/apt; mkdir -p "$apt/lists/partial" "$apt/sources.list.d"
  local file
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    if [ -f "$file" ]; then sed -n 's/^deb \(.*\)/deb-src \1/p' "$file" >>"$apt/sources.list.d/src.list"; fi
  done
  for file in /etc/apt/sources.list.d/*.sources; do
    if [ -f "$file" ]; then sed 's/^Types:.*/Types: deb-src/' "$file" >"$apt/sources.list.d/src-$(basename "$file")"; fi
  done
  local options=(-qq -o "Dir::State::lists=$apt/lists" -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$apt/sources.list.d")
  apt-get "${options[@]}" update
  # The newest version may have left the mirror already; any minor's suite does.
  local version
  for version in $(apt-cache "${options[@]}" showsrc postgresql-15 | sed -n 's/^Version: //p' | sort -Vru); do
    if (cd "$work" && apt-get "${options[@]}" source --download-only "postgresql-15=$version" >/dev/null 2>&1); then break; fi
    rm -f "$work"/postgresql-15_*
  done
  local archive
  archive=$(echo "$work"/postgresql-15_*.orig.tar.*)
  [ -f "$archive" ] || { echo "the sources of postgresql-15 can't be had from the package mirror" >&2; exit 1; }
  mkdir -p "$work/src" && tar -xf "$archive" -C "$work/src" --strip-components=1
}

case " $suites " in *" regress "*|*" isolation "*)
  [ -d "$work/src/src/test/regress" ] || fetch_sources
  if [ ! -f "$work/lib/regress.so" ]; then
    mkdir -p "$work/lib"
    cc -O1 -fPIC -shared -I "$("$bin/pg_config" --includedir-server)" -o "$work/lib/regress.so" "$work/src/src/test/regress/regress.c"
  fi
esac

rm -rf "$work/data" "$work/out" && mkdir -p "$work/out" "$work/sql"
cp "$top"/libs/redo-oracle/tests/sql/*.sql "$work/sql/"
if [ "$(id -u)" = 0 ]; then chown -R postgres "$work"; fi
cd "$work"
# shellcheck disable=SC2086
"${as_pg[@]}" "$bin/initdb" -D "$work/data" -U postgres --no-sync ${VERIFY_REDO_INITDB:-} >/dev/null
cat >>"$work/data/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$work'
fsync = off
wal_consistency_checking = 'all'
wal_level = logical
max_wal_size = 50GB
wal_keep_size = 50GB
checkpoint_timeout = 1h
max_prepared_transactions = 20
autovacuum_naptime = 5s
${VERIFY_REDO_CONF:-}
CONF
"${as_pg[@]}" "$bin/pg_ctl" -D "$work/data" -l "$work/log" -w start >/dev/null
started=1

run_suite() { # suite's name, program, folder, schedule
  mkdir -p "$work/out/$1"; if [ "$(id -u)" = 0 ]; then chown postgres "$work/out/$1"; fi
  # What the suite expects to see is not the point here; what it writes is. Its own verdict is shown and not used.
  "${as_pg[@]}" PGUSER=postgres "$2" --bindir="$bin" --inputdir="$3" --outputdir="$work/out/$1" --dlpath="$work/lib" \
    --schedule="$4" --max-concurrent-tests=20 --host="$work" --user=postgres --dbname="$1" ${5:-} >"$work/out/$1.log" 2>&1 || true
  echo "$1: $(grep -E '^ All|tests (passed|failed)|of [0-9]+ tests' "$work/out/$1.log" | tail -1)"
}
for suite in $suites; do
  case $suite in
    regress) run_suite regression "$pgxs/src/test/regress/pg_regress" "$work/src/src/test/regress" "$work/src/src/test/regress/parallel_schedule" ;;
    isolation)
      run_suite isolation_regression "$pgxs/src/test/isolation/pg_isolation_regress" "$work/src/src/test/isolation" "$work/src/src/test/isolation/isolation_schedule" ;;
    workloads)
      for file in "$work"/sql/*.sql; do
        "${as_pg[@]}" PGOPTIONS="-c client_min_messages=warning" psql -h "$work" -U postgres -qX -v ON_ERROR_STOP=1 -f "$file" postgres >/dev/null
      done
      echo "workloads: $(ls "$work"/sql/*.sql | wc -l) files" ;;
    *) echo "unknown suite: $suite" >&2; exit 2 ;;
  esac
done
"${as_pg[@]}" "$bin/pg_ctl" -D "$work/data" -m fast -w -t 300 stop >/dev/null
started=
echo "WAL: $(du -sh "$work/data/pg_wal" | cut -f1)"
expect=()
if [ "$suites" = "regress isolation workloads" ]; then expect=(--expect "$top/libs/redo-oracle/expected-15.txt"); fi
cd "$top"
$verify --wal "$work/data/pg_wal" "${expect[@]}"
