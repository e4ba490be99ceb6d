#!/usr/bin/env bash
# Runs every test, area by area, and prints what each took beside its budget.
set -uo pipefail
cd "$(dirname "$0")/.."

areas=() seconds=() budgets=() results=()
failed=0

run() { # name, budget in minutes, command...
    local name=$1 budget=$2 start=$SECONDS result=ok
    shift 2
    echo "== $name"
    "$@" || { result=FAILED; failed=1; }
    areas+=("$name") seconds+=($((SECONDS - start))) budgets+=("$budget") results+=("$result")
}

tests() { # crates...
    local arguments=()
    for crate in "$@"; do arguments+=(-p "$crate"); done
    cargo test --quiet --no-fail-fast "${arguments[@]}"
}

build() {
    cargo fmt --all --check && cargo build --bin ardent && cargo test --workspace --no-run
}

run "build" 12 build
if [ $failed -eq 0 ]; then
    run "formats and redo" 4 tests ardent-types ardent-api ardent-pg-format ardent-pg-redo ardent-redo-oracle ardent-pg-ingest ardent-pg-wire ardent-test-pg
    run "storage" 4 tests ardent-object-store ardent-storage ardent-page-client ardent-pageserver
    run "quorum" 2 tests ardent-quorum ardent-wal-client ardent-safekeeper
    run "end to end" 8 tests ardent-presence-map ardent-extension-tests ardent-agent ardent-connector ardent-proxy ardent-control ardent-diff ardent ardent-tests
fi

echo
printf '%-20s %10s %10s  %s\n' area seconds budget result
for index in "${!areas[@]}"; do
    printf '%-20s %10s %10s  %s\n' "${areas[$index]}" "${seconds[$index]}" "$((budgets[index] * 60))" "${results[$index]}"
done
target=${CARGO_TARGET_DIR:-target}
echo "disk: $(du -sh "$target" 2>/dev/null | cut -f1) in $target (budget 4G)"
exit $failed
