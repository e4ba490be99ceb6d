#!/usr/bin/env bash
# Makes tables of what scripts/verify-redo.sh printed:
#   scripts/verify-redo.sh | tee log && scripts/verification-table.sh <log >docs/verification/redo.md
#   scripts/verification-table.sh --sections <log      without the heading: for docs/verification/redo-majors.md
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" != --sections ]; then cat <<HEAD
# Redo, verified

Made by \`scripts/verification-table.sh\` from the output of \`make verify-redo\` on $(date -u +%F), code of commit $(git rev-parse --short=12 HEAD), $(/usr/lib/postgresql/15/bin/postgres --version).
What is compared, and what may differ: [docs/redo.md](../redo.md). The suites are of an older minor than the server; their own verdict
is shown and not used: what they write is verified.

"Images" were to be applied and leave nothing to compare; "first seen" are pages whose history lies before the WAL; "unchecked" are redone
without a logged page to compare with (what \`initdb\` wrote, and all of the run that logs as production does); "LSNs" are page LSNs compared.
Record types that are in neither table of a run did not appear in it. The first run must have all that
\`libs/redo-oracle/expected-15.txt\` lists; what can't be had stands there with its reason.
HEAD
fi
awk '
    function cells(from, to,   i, line) { line = ""; for (i = from; i <= to; i++) line = line " " $i " |"; return line }
    /^== / { print "\n## " substr($0, 4) "\n"; table = ""; next }
    /^(initdb:|$)/ { next }
    /^record type / { print "\n| Record type | Records | Checked | Mismatches | Images | First seen | Unreadable | Unchecked | LSNs | Masked bytes |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"; table = "types"; next }
    /^may differ / { print "\n| May differ | Places | Bytes | Differing |\n|---|---:|---:|---:|"; table = "leaves"; next }
    /^records without blocks / { print "\n| Record type without blocks | Records |\n|---|---:|"; table = "others"; next }
    table == "others" && NF == 2 && $1 ~ /\// { print "|" cells(1, 2); next }
    table == "types" && NF == 10 { print "|" cells(1, 10); next }
    table == "leaves" && match($0, /[0-9]+ +[0-9]+ +[0-9]+$/) { name = substr($0, 1, RSTART - 1); sub(/ +$/, "", name); print "| " name " |" cells(NF - 2, NF); next }
    { table = ""; print "\n" $0 }
'
