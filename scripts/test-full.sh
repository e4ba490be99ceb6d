#!/usr/bin/env bash
# The long runs, one area at a time. Commit the summary that they print under docs/verification/.
set -euo pipefail
cd "$(dirname "$0")/.."

echo "area ${1:-}: commit $(git rev-parse --short HEAD), $(date -u +%F)"
case "${1:-}" in
    redo)
        scripts/verify-redo.sh
        # Each run begins the dice elsewhere; the seed is printed to repeat it.
        export ARDENT_SEEDS=${ARDENT_SEEDS:-20} ARDENT_SEED=${ARDENT_SEED:-$RANDOM$RANDOM} ARDENT_FUZZ_CASES=${ARDENT_FUZZ_CASES:-2000000}
        echo "ARDENT_SEED=$ARDENT_SEED"
        cargo test -p ardent-pg-redo -p ardent-redo-oracle -p ardent-pg-ingest
        ;;
    majors)
        majors=${ARDENT_TEST_MAJORS:-16,17,18}
        scripts/setup-majors.sh ${majors//,/ } clients packages
        compute-hooks/extension/build.sh "$ARDENT_COMPUTE_LIB_DIR"
        cargo build --workspace --bins --tests
        export ARDENT_TEST_MAJORS=$majors ARDENT_SEEDS=${ARDENT_SEEDS:-20} ARDENT_SEED=${ARDENT_SEED:-$RANDOM$RANDOM}
        echo "ARDENT_SEED=$ARDENT_SEED"
        cargo test -p ardent-redo-oracle --test other_majors
        cargo test -p ardent-pg-format -p ardent-pg-ingest -p ardent-connector
        # The newest minors of those that have some: their heap records reference the visibility map's pages.
        newest=()
        for major in ${majors//,/ }; do case $major in 17 | 18) newest+=("$major") ;; esac; done
        if [ ${#newest[@]} -gt 0 ]; then
            servers=$(scripts/setup-majors.sh "${newest[@]/#/newest-}")
            (
                eval "$servers"
                ARDENT_TEST_MAJORS=$(IFS=,; echo "${newest[*]}")
                cargo test -p ardent-redo-oracle --test other_majors
                cargo test -p ardent-pg-format -p ardent-pg-ingest
            )
        fi
        cargo test -p ardent-tests --test majors -- --nocapture
        # Extensions that do not come with Postgres, with 15; pgvector with those of the others that have it.
        ARDENT_TEST_PACKAGES=postgis,wal2json cargo test -p ardent-tests --test import -- --nocapture
        # What 15 is judged by, with servers of each other major and each area's own seeds.
        unset ARDENT_SEED ARDENT_SEEDS
        for major in ${majors//,/ }; do
            echo "major $major"
            export ARDENT_TEST_MAJOR=$major
            case $major in 16 | 18) export ARDENT_TEST_PACKAGES=vector ;; *) unset ARDENT_TEST_PACKAGES ;; esac
            cargo test -p ardent-extension-tests -p ardent-agent --tests
            cargo test -p ardent-schema-diff -p ardent-diff -p ardent-change-set -p ardent-rehearsal --tests
            cargo test -p ardent-tests -- --nocapture
        done
        ;;
    storage)
        ARDENT_SEEDS=${ARDENT_SEEDS:-3000} cargo test -p ardent-storage -p ardent-object-store -p ardent-object-store-s3 -- --nocapture
        # About ten minutes on two cores, and 5 GB under the temporary folder.
        ARDENT_UPDATES_WAL_MB=${ARDENT_UPDATES_WAL_MB:-10240} ARDENT_UPDATES_TABLE_MB=${ARDENT_UPDATES_TABLE_MB:-1024} \
            cargo test -p ardent-pageserver --test amplification -- --nocapture
        cargo build --workspace --bins --tests
        ARDENT_OUTAGE_S=${ARDENT_OUTAGE_S:-60} cargo test -p ardent-tests --test s3 -- --nocapture
        ;;
    quorum)
        ARDENT_MODEL=full ARDENT_SIMULATION_SEEDS=${ARDENT_SIMULATION_SEEDS:-10000} cargo test -p ardent-quorum -- --nocapture
        cargo test -p ardent-safekeeper -p ardent-wal-client
        ;;
    diff)
        ARDENT_SEEDS=${ARDENT_SEEDS:-200} cargo test -p ardent-schema-diff -p ardent-diff -p ardent-change-set -- --nocapture
        # 200 statements on a branch, and what the commands say of them.
        cargo build --workspace --bins --tests
        ARDENT_TRANSCRIPT=1 cargo test -p ardent-tests --test transcript -- --nocapture
        ;;
    e2e)
        cargo build --workspace --bins --tests
        # The long form of each test, once.
        ARDENT_DIFF_TABLE_MB=${ARDENT_DIFF_TABLE_MB:-1024} ARDENT_AWAKE=${ARDENT_AWAKE:-50} ARDENT_SLEEPS=${ARDENT_SLEEPS:-100} \
            ARDENT_KILL_ROUNDS=${ARDENT_KILL_ROUNDS:-25} ARDENT_ROUNDS=${ARDENT_ROUNDS:-100} \
            ARDENT_RESET_ROUNDS=${ARDENT_RESET_ROUNDS:-5} \
            cargo test -p ardent-tests -- --nocapture
        ARDENT_SEEDS=${ARDENT_SEEDS:-200} cargo test -p ardent-control --test random -- --nocapture
        # The short form of all, again and again.
        for round in $(seq "${ROUNDS:-10}"); do
            echo "round $round"
            cargo test -p ardent-agent -p ardent-extension-tests -p ardent-tests
        done
        ;;
    chaos)
        # Faults of processes, networks and disks, from several seeds. Needs root: each run has a network and mounts of its own.
        scripts/setup-chaos.sh
        cargo build --workspace --bins --tests
        for seed in ${ARDENT_SEED:-1 2 3 4}; do
            ARDENT_SEED=$seed ARDENT_CHAOS_S=${ARDENT_CHAOS_S:-180} cargo test -p ardent-tests --test chaos -- --nocapture
        done
        ;;
    mcp)
        # The protocol's own client, which brings a web framework along: a Python of its own.
        python=target/mcp-client
        [ -x $python/bin/python ] || python3 -m venv $python
        $python/bin/pip install --quiet --disable-pip-version-check 'mcp==2.3.0'
        cargo build --workspace --bins --tests
        cargo test -p ardent-tests --test mcp
        ARDENT_MCP_PYTHON=$PWD/$python/bin/python cargo test -p ardent-tests --test mcp_client -- --nocapture
        ;;
    drivers)
        scripts/setup-drivers.sh
        cargo build --workspace --bins --tests
        ARDENT_DRIVERS=$PWD/target/drivers cargo test -p ardent-tests --test drivers -- --nocapture
        ;;
    packages)
        scripts/setup-shells.sh
        # Of the program that all tests run.
        cargo build --workspace --bins --tests
        ARDENT_SHELLS=1 cargo test -p ardent-tests --test shells -- --nocapture
        packages/test.sh "${CARGO_TARGET_DIR:-target}/debug/ardent"
        ;;
    *)
        echo "say which: make test-full AREA=redo|majors|storage|quorum|chaos|diff|e2e|mcp|packages|drivers" >&2
        exit 2
        ;;
esac
