#!/usr/bin/env bash
# The long runs, one area at a time. Commit the summary that they print under docs/verification/.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/test-programs.sh
trap 'rm -f "$programs"' EXIT

# Whether a test program failed. What comes after it is run all the same: a long run that ends at its first failure has to be made again.
failed=0

# Test programs one after the other, with what they print.
run_tests() { # as of test_programs_of, then, after --, arguments of the programs
    local wanted=() crate folder program
    while [ $# -gt 0 ] && [ "$1" != -- ]; do wanted+=("$1"); shift; done
    [ $# -eq 0 ] || shift
    for crate in "${wanted[@]}"; do
        # A name that nothing has is a mistake in this file.
        [ "$(test_programs_of "$crate" | wc -c)" -gt 0 ] || { echo "test-full: no test program $crate" >&2; return 2; }
    done
    while IFS= read -rd '' crate && IFS= read -rd '' folder && IFS= read -rd '' program; do
        echo "-- $crate: $(test_program_name "$program")"
        (cd "$folder" && CARGO_MANIFEST_DIR=$folder "$program" "$@" </dev/null) || { echo "FAILED: $crate $program"; failed=1; }
    done < <(test_programs_of "${wanted[@]}")
}

# Those that make test passes over and this area does not, with the variable that the caller sets.
run_passed_over() { # area
    local these
    mapfile -t these < <(passed_over_but_in "$1")
    [ ${#these[@]} -gt 0 ] || { echo "test-full: scripts/test-programs.sh lists nothing of area $1" >&2; return 2; }
    run_tests "${these[@]}" -- --nocapture
}

echo "area ${1:-}: commit $(git rev-parse --short HEAD), $(date -u +%F)"
case "${1:-}" in
    redo)
        scripts/verify-redo.sh
        # Each run begins the dice elsewhere; the seed is printed to repeat it.
        export ARDENT_SEEDS=${ARDENT_SEEDS:-20} ARDENT_SEED=${ARDENT_SEED:-$RANDOM$RANDOM} ARDENT_FUZZ_CASES=${ARDENT_FUZZ_CASES:-2000000}
        echo "ARDENT_SEED=$ARDENT_SEED"
        build_test_programs
        run_tests libs/pg-redo libs/redo-oracle libs/pg-ingest
        ;;
    majors)
        majors=${ARDENT_TEST_MAJORS:-16,17,18}
        scripts/setup-majors.sh ${majors//,/ } clients packages
        compute-hooks/extension/build.sh "$ARDENT_COMPUTE_LIB_DIR"
        build_test_programs
        export ARDENT_TEST_MAJORS=$majors ARDENT_SEEDS=${ARDENT_SEEDS:-20} ARDENT_SEED=${ARDENT_SEED:-$RANDOM$RANDOM}
        echo "ARDENT_SEED=$ARDENT_SEED"
        run_tests libs/redo-oracle:other_majors
        run_tests libs/pg-format libs/pg-ingest connector
        # The newest minors of those that have some: their heap records reference the visibility map's pages.
        newest=()
        for major in ${majors//,/ }; do case $major in 17 | 18) newest+=("$major") ;; esac; done
        if [ ${#newest[@]} -gt 0 ]; then
            servers=$(scripts/setup-majors.sh "${newest[@]/#/newest-}")
            (
                eval "$servers"
                ARDENT_TEST_MAJORS=$(IFS=,; echo "${newest[*]}")
                run_tests libs/redo-oracle:other_majors
                run_tests libs/pg-format libs/pg-ingest
                exit $failed
            ) || failed=1
        fi
        run_tests tests:majors -- --nocapture
        # Extensions that do not come with Postgres, with 15; pgvector with those of the others that have it.
        ARDENT_TEST_PACKAGES=postgis,wal2json run_tests tests:import -- --nocapture
        # What 15 is judged by, with servers of each other major and each area's own seeds.
        unset ARDENT_SEED ARDENT_SEEDS
        for major in ${majors//,/ }; do
            echo "major $major"
            export ARDENT_TEST_MAJOR=$major
            case $major in 16 | 18) export ARDENT_TEST_PACKAGES=vector ;; *) unset ARDENT_TEST_PACKAGES ;; esac
            run_tests compute-hooks/extension-tests compute-hooks/agent
            run_tests libs/schema-diff libs/diff libs/change-set libs/rehearsal
            run_tests tests -- --nocapture
        done
        ;;
    storage)
        build_test_programs
        ARDENT_SEEDS=${ARDENT_SEEDS:-3000} run_tests pageserver/storage libs/object-store libs/object-store-s3 -- --nocapture
        # About ten minutes on two cores, and 5 GB under the temporary folder.
        ARDENT_UPDATES_WAL_MB=${ARDENT_UPDATES_WAL_MB:-10240} ARDENT_UPDATES_TABLE_MB=${ARDENT_UPDATES_TABLE_MB:-1024} \
            run_tests pageserver:it -- --nocapture amplification::
        ARDENT_OUTAGE_S=${ARDENT_OUTAGE_S:-60} run_tests tests:s3 -- --nocapture
        # What grows without being large: 100,000 tables and 100 GB made up, 64 branches of branches, 100,000 tables of a real server.
        run_tests pageserver:it -- --nocapture large::
        ARDENT_CHAIN_DEPTH=${ARDENT_CHAIN_DEPTH:-64} run_tests tests:many -- --nocapture a_chain_of_branches
        ARDENT_TABLES=${ARDENT_TABLES:-100000} run_passed_over storage
        ;;
    quorum)
        build_test_programs
        ARDENT_MODEL=full ARDENT_SIMULATION_SEEDS=${ARDENT_SIMULATION_SEEDS:-10000} run_tests libs/quorum -- --nocapture
        run_tests safekeeper libs/wal-client
        ;;
    diff)
        build_test_programs
        ARDENT_SEEDS=${ARDENT_SEEDS:-200} run_tests libs/schema-diff libs/diff libs/change-set -- --nocapture
        # The same of branches, by the commands.
        ARDENT_ROUND_TRIPS=${ARDENT_ROUND_TRIPS:-20} run_tests tests:round_trip -- --nocapture
        # 200 statements on a branch, and what the commands say of them.
        ARDENT_TRANSCRIPT=1 run_passed_over diff
        ;;
    e2e)
        build_test_programs
        # The long form of each test, once.
        ARDENT_DIFF_TABLE_MB=${ARDENT_DIFF_TABLE_MB:-1024} ARDENT_AWAKE=${ARDENT_AWAKE:-50} ARDENT_SLEEPS=${ARDENT_SLEEPS:-100} \
            ARDENT_KILL_ROUNDS=${ARDENT_KILL_ROUNDS:-25} ARDENT_ROUNDS=${ARDENT_ROUNDS:-100} \
            ARDENT_RESET_ROUNDS=${ARDENT_RESET_ROUNDS:-5} \
            run_tests tests -- --nocapture
        ARDENT_SEEDS=${ARDENT_SEEDS:-200} run_tests control:it -- --nocapture random::
        # The short form of all, again and again.
        for round in $(seq "${ROUNDS:-10}"); do
            echo "round $round"
            run_tests compute-hooks/agent compute-hooks/extension-tests tests
        done
        ;;
    chaos)
        # Faults of processes, networks and disks, from several seeds. Needs root: each run has a network and mounts of its own.
        scripts/setup-chaos.sh
        build_test_programs
        for seed in ${ARDENT_SEED:-1 2 3 4}; do
            ARDENT_SEED=$seed ARDENT_CHAOS_S=${ARDENT_CHAOS_S:-180} run_tests tests:chaos -- --nocapture
        done
        ;;
    mcp)
        # The protocol's own client, which brings a web framework along: a Python of its own.
        python=target/mcp-client
        [ -x $python/bin/python ] || python3 -m venv $python
        $python/bin/pip install --quiet --disable-pip-version-check 'mcp==2.3.0'
        build_test_programs
        run_tests tests:mcp
        ARDENT_MCP_PYTHON=$PWD/$python/bin/python run_passed_over mcp
        ;;
    drivers)
        scripts/setup-drivers.sh
        build_test_programs
        ARDENT_DRIVERS=$PWD/target/drivers run_passed_over drivers
        ;;
    packages)
        scripts/setup-shells.sh
        # Of the program that all tests run.
        build_test_programs
        ARDENT_SHELLS=1 run_passed_over packages
        packages/test.sh "${CARGO_TARGET_DIR:-target}/debug/ardent"
        ;;
    *)
        echo "say which: make test-full AREA=redo|majors|storage|quorum|chaos|diff|e2e|mcp|packages|drivers" >&2
        exit 2
        ;;
esac
exit $failed
