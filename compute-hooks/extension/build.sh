#!/usr/bin/env bash
# Builds the library that computes load, once per major version of Postgres, and puts it into a folder:
#   build.sh DIR    makes DIR/libardent_compute_15.so
# Needs the server headers (postgresql-server-dev-15 or PG_CONFIG naming that server's pg_config) and libclang.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: build.sh DIR" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
# A folder of its own: another workspace's lock must not be waited for, nor its artifacts be thrown out.
target=${CARGO_TARGET_DIR:-$here/../../target}/compute-hooks

for major in 15; do
    cargo build --quiet --release --manifest-path "$here/Cargo.toml" --target-dir "$target" \
        --no-default-features --features "pg$major"
    # By rename, so that nobody loads half a library.
    cp "$target/release/libardent_compute.so" "$out/.libardent_compute_$major.so.$$"
    mv "$out/.libardent_compute_$major.so.$$" "$out/libardent_compute_$major.so"
done
