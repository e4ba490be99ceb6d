#!/usr/bin/env bash
# Builds the library that computes load, once per major version of Postgres, and puts it into a folder:
#   build.sh DIR [MAJOR...]    makes DIR/libardent_compute_MAJOR.so
# Needs libclang and the major's server headers: postgresql-server-dev-MAJOR, or what scripts/setup-majors.sh has fetched, or a
# folder that ARDENT_PG_INCLUDE_MAJOR names. Without majors named: 15, and the others whose headers are there.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: build.sh DIR [MAJOR...]" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
here=$(cd "$(dirname "$0")" && pwd)
# A folder of its own: another workspace's lock must not be waited for, nor its artifacts be thrown out.
target=${CARGO_TARGET_DIR:-$here/../../target}/compute-hooks
fetched=${ARDENT_TEST_PG_MAJORS:-/var/tmp/ardent-postgres-$(id -u)}/headers

# Where the headers of a major are; empty: nowhere.
include() {
    local given=ARDENT_PG_INCLUDE_$1 pg_config=/usr/lib/postgresql/$1/bin/pg_config folder
    if [ -n "${!given:-}" ]; then echo "${!given}"; return; fi
    if [ "$1" = 15 ] && [ -n "${PG_CONFIG:-}" ]; then pg_config=$PG_CONFIG; fi
    for folder in "$([ ! -x "$pg_config" ] || "$pg_config" --includedir-server)" "$fetched/$1"; do
        if [ -n "$folder" ] && [ -f "$folder/storage/smgr.h" ]; then echo "$folder"; return; fi
    done
}

majors=("$@")
if [ $# -eq 0 ]; then
    majors=(15)
    for major in 16 17 18; do [ -z "$(include $major)" ] || majors+=($major); done
fi
for major in "${majors[@]}"; do
    folder=$(include "$major")
    [ -n "$folder" ] || {
        echo "build.sh: no server headers of Postgres $major. Install postgresql-server-dev-$major, or run scripts/setup-majors.sh $major, or name their folder in ARDENT_PG_INCLUDE_$major." >&2
        exit 1
    }
    env "ARDENT_PG_INCLUDE_$major=$folder" cargo build --quiet --release --manifest-path "$here/Cargo.toml" --target-dir "$target" \
        --no-default-features --features "pg$major"
    # By rename, so that nobody loads half a library; left alone when it is the same, so that nobody packs it again.
    if ! cmp -s "$target/release/libardent_compute.so" "$out/libardent_compute_$major.so"; then
        cp "$target/release/libardent_compute.so" "$out/.libardent_compute_$major.so.$$"
        mv "$out/.libardent_compute_$major.so.$$" "$out/libardent_compute_$major.so"
    fi
done
