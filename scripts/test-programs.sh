# How the scripts that run tests compile and run them; sourced, from the checkout. Sets `programs`, a file that the caller removes.
#
# Everything is compiled once, for the whole workspace. The test programs are then run as they are: asking cargo for some of
# the crates would choose other features for what they share, and compile that again.

programs=$(mktemp)

# The program with the tests: alone it would be compiled with other features, and all that it is made of once more.
build_test_programs() {
    # One line a test program: the crate's folder and the program.
    cargo build --workspace --bins --tests --quiet --message-format=json-render-diagnostics |
        sed -n '/"overflow_checks":[a-z]*,"test":true/s/.*"manifest_path":"\([^"]*\)\/Cargo.toml".*"executable":"\([^"]*\)".*/\1 \2/p' |
        sort -u >"$programs"
    [ "${PIPESTATUS[0]}" -eq 0 ] && [ -s "$programs" ]
}

# The crate, its folder and the program of each test program of these crates, each ended by a zero byte. CRATE is a folder, or
# CRATE:NAME for the one whose file or folder in tests/ is NAME.
test_programs_of() { # crates...
    local wanted crate name folder program
    for wanted in "$@"; do
        crate=${wanted%%:*} name=${wanted#"$crate"}
        while read -r folder program; do
            [ "$folder" = "$PWD/$crate" ] || continue
            case $name in "" | ":$(test_program_name "$program")") printf '%s\0%s\0%s\0' "$crate" "$folder" "$program" ;; esac
        done <"$programs"
    done
}

# Test programs of tests/ that pass without having looked at anything where their variable is not set: the program, the area of
# test-full.sh that brings what it needs, and the variable.
passed_over=(
    "drivers drivers ARDENT_DRIVERS"
    "mcp_client mcp ARDENT_MCP_PYTHON"
    "shells packages ARDENT_SHELLS"
    "tables storage ARDENT_TABLES"
    "transcript diff ARDENT_TRANSCRIPT"
)

# Those of an area, as test_programs_of takes them.
passed_over_but_in() { # area
    local entry program area
    for entry in "${passed_over[@]}"; do
        read -r program area _ <<<"$entry"
        [ "$area" != "$1" ] || echo "tests:$program"
    done
}

# One line that names those whose variable is not set, and what runs them.
say_what_is_passed_over() {
    local entry program area variable named=
    for entry in "${passed_over[@]}"; do
        read -r program area variable <<<"$entry"
        [ -n "${!variable:-}" ] || named+=", $program (make test-full AREA=$area)"
    done
    [ -z "$named" ] || echo "not run here: ${named#, }"
}

# Without what cargo adds to a program's file.
test_program_name() { basename "$1" | sed 's/-[0-9a-f]*$//'; }
