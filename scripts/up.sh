#!/usr/bin/env bash
# Runs Ardent for your own database until Ctrl-C: scripts/up.sh [arguments of ardent up].
set -euo pipefail
cd "$(dirname "$0")/.."
ardent=${CARGO_TARGET_DIR:-target}/debug/ardent
[ -x "$ardent" ] || { echo "up: $ardent is missing: run make up, or cargo build --bin ardent" >&2; exit 1; }
exec "$ardent" up "$@"
