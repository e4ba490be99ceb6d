#!/usr/bin/env bash
# Installs the Debian packages that Ardent needs and that are missing. Does nothing when all are there.
set -euo pipefail

packages=(postgresql-15 postgresql-server-dev-15 postgresql-plpython3-15 bubblewrap build-essential pkg-config clang libclang-dev)
major=15

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
command -v cargo >/dev/null || {
    echo "setup: cargo is missing. Install Rust (https://rustup.rs or your distribution's package), then run this again." >&2
    exit 1
}
[ ${#missing[@]} -eq 0 ] && exit 0

command -v apt-get >/dev/null || {
    echo "setup: this is not Debian. Install by your own means: Postgres $major with its server headers, bubblewrap, a C compiler, clang and libclang. Then run the cargo commands of the Makefile." >&2
    exit 1
}
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "setup: ${missing[*]} must be installed; run this as root or install sudo." >&2; exit 1; }
    as_root=(sudo)
fi

echo "setup: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
# The package would create and start a server of its own on port 5432; we need only its programs.
if ! dpkg-query -W -f='${Status}' postgresql-common 2>/dev/null | grep -q 'ok installed'; then
    "${as_root[@]}" mkdir -p /etc/postgresql-common/createcluster.d
    echo 'create_main_cluster = false' | "${as_root[@]}" tee /etc/postgresql-common/createcluster.d/ardent.conf >/dev/null
fi
"${as_root[@]}" apt-get update -q >&2
for package in "${missing[@]}"; do
    apt-cache show "$package" >/dev/null 2>&1 || {
        echo "setup: $package is not packaged for this release (Debian 12 has it). Add a package source that has Postgres $major, then run this again." >&2
        exit 1
    }
done
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
