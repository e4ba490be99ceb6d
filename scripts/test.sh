#!/usr/bin/env bash
# Runs every test, area by area, and prints what each took beside its budget.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/test-programs.sh

declare -A crates=(
    ["formats and redo"]="libs/types libs/api libs/pg-format libs/pg-redo libs/redo-oracle libs/pg-ingest libs/pg-wire libs/pgoutput libs/test-pg"
    ["storage"]="pageserver/storage libs/object-store-s3 pageserver libs/trusted-clock libs/object-store libs/test-s3 libs/page-client"
    ["quorum"]="safekeeper libs/unix-stream libs/service-tls libs/quorum libs/wal-client"
    ["end to end"]="libs/presence-map compute-hooks/extension-tests compute-hooks/agent connector proxy control libs/schema-diff libs/diff libs/change-set libs/sql-script libs/rehearsal libs/statement-log libs/masking libs/open-files cli tests"
)
declare -A minutes=(["build"]=12 ["formats and redo"]=4 ["storage"]=4 ["quorum"]=2 ["end to end"]=8)
order=("formats and redo" "storage" "quorum" "end to end")

# What is built once needs no help for the next time.
[ -z "${CI:-}" ] || export CARGO_INCREMENTAL=0

# Servers are made by the hundred, and most of what that costs is a file system at work: in memory it is half the time. Whoever wants
# a disk says which one with TMPDIR.
memory=
if [ -z "${TMPDIR:-}" ] && [ "$(df --output=avail -B 1G /dev/shm 2>/dev/null | tail -n 1)" -ge 8 ] 2>/dev/null; then
    memory=$(mktemp -d /dev/shm/t.XXX)
    chmod 755 "$memory"
    export TMPDIR=$memory
fi

trap 'rm -rf "$programs" "$memory"' EXIT
lines=()
failed=0

area() { # name, command...
    local name=$1 start=$SECONDS result=ok
    shift
    echo "== $name"
    "$@" || { result=FAILED; failed=1; }
    lines+=("$(printf '%-20s %10s %10s  %s' "$name" $((SECONDS - start)) $((minutes[$name] * 60)) "$result")")
}

build() {
    every_crate_has_an_area && cargo fmt --all --check && build_test_programs
}

# Said before anything is compiled.
every_crate_has_an_area() {
    local folder known=" ${crates[*]} " result=0
    for folder in $(sed -n '/^members = \[/,/^\]/s/^ *"\(.*\)",$/\1/p' Cargo.toml); do
        [[ $known == *" $folder "* ]] || { echo "test.sh: $folder belongs to no area" >&2; result=1; }
    done
    return $result
}

# One program's tests, one after the other: others run beside it. What it printed is shown at its end.
run_program() { # crate, folder, program
    local printed result=0
    printed=$(mktemp)
    (cd "$2" && CARGO_MANIFEST_DIR=$2 RUST_TEST_THREADS=1 "$3" --quiet </dev/null) >"$printed" 2>&1 || result=1
    {
        flock 9
        echo "-- $1: $(test_program_name "$3")"
        cat "$printed"
        [ $result -eq 0 ] || echo "FAILED: $1 $3"
    } 9<"$programs"
    rm "$printed"
    return $result
}
export -f run_program test_program_name
export programs

# As many programs at once as there are processors: most have fewer tests than that. Where one takes most of an area's time, its crate is first.
# Those of whole servers wait for a third of the time and more: one more of them at once.
tests() { # area
    local folders at_once
    read -ra folders <<<"${crates[$1]}"
    at_once=$(nproc)
    [ "$1" != "end to end" ] || at_once=$((at_once + 1))
    test_programs_of "${folders[@]}" | xargs -0 -r -n 3 -P "$at_once" bash -c 'run_program "$@"' run_program
}

area build build
if [ $failed -eq 0 ]; then
    for name in "${order[@]}"; do area "$name" tests "$name"; done
fi

echo
printf '%-20s %10s %10s  %s\n' area seconds budget result
printf '%s\n' "${lines[@]}"
say_what_is_passed_over
target=${CARGO_TARGET_DIR:-target}
echo "disk: $(du -sh "$target" 2>/dev/null | cut -f1) in $target (budget 4G)"
exit $failed
