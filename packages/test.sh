#!/usr/bin/env bash
# Builds the packages around a program, installs them away from this system, and tries what they installed.
#   test.sh PROGRAM
# The Debian package is installed in a copy of this system that is thrown away, which takes root and overlayfs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || { echo "usage: test.sh PROGRAM" >&2; exit 2; }
work=$(mktemp -d)
mounted=''
clean() {
    [ -z "$mounted" ] || umount "$mounted"
    rm -rf "$work"
}
trap clean EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }

"$here/build.sh" --program "$1" --out "$work/packages"
version=$("$1" --version)

echo "-- npm: installed from the tarballs, without a registry"
npm install --silent --offline --no-audit --no-fund --prefix "$work/prefix" "$work"/packages/*.tgz
ardent=$work/prefix/node_modules/.bin/ardent
[ "$("$ardent" --version)" = "$version" ] || fail "npm's ardent is another version"
"$ardent" --json doctor --url http://127.0.0.1:1 >"$work/doctor" 2>/dev/null || true
node -e 'const r = JSON.parse(require("fs").readFileSync(process.argv[1])); if (!Array.isArray(r.checks)) process.exit(1)' "$work/doctor" \
    || fail "npm's ardent doctor does not answer"
code=0
"$ardent" branch 2>/dev/null >&2 || code=$?
[ $code -eq 2 ] || fail "npm's ardent ends with $code where the program ends with 2"
echo '{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}' |
    "$ardent" mcp | grep -q '"serverInfo"' || fail "npm's ardent mcp does not answer"
rm -rf "$work"/prefix/node_modules/ardent-cli-linux-*
("$ardent" --version 2>&1 || true) | grep -q "hint: npm install" || fail "without its program, ardent does not say what to do"

echo "-- Debian: what is in it"
deb=$(echo "$work"/packages/*.deb)
dpkg-deb --contents "$deb" >"$work/contents"
for file in ./usr/bin/ardent ./lib/systemd/system/ardent.service ./lib/systemd/system/ardent@.service ./usr/share/man/man1/ardent.1.gz \
    ./usr/share/man/man1/ardent-branch-create.1.gz ./usr/share/bash-completion/completions/ardent ./etc/default/ardent; do
    grep -q " $file\$" "$work/contents" || fail "$file is not in the package"
done
grep -qv ' root/root ' "$work/contents" && fail "not all belongs to root"
[ "$(dpkg-deb --field "$deb" Version)" = "${version#ardent }" ] || fail "it has another version"
dpkg-deb --field "$deb" Depends | grep -q libc6 || fail "it does not depend on libc6"

echo "-- Debian: its completions for zsh and fish, by the first press of the key"
dpkg-deb --extract "$deb" "$work/tree"
if command -v zsh >/dev/null; then
    PATH=$work/tree/usr/bin:$PATH zsh -f "$here/../tests/clients/press_tab.zsh" "$work/tree/usr/share/zsh/vendor-completions" 'ardent branch cr' |
        grep -q 'line: ardent branch create \]' || fail "zsh does not complete"
fi
if command -v fish >/dev/null; then
    PATH=$work/tree/usr/bin:$PATH HOME=$work fish --no-config -c \
        "source $work/tree/usr/share/fish/vendor_completions.d/ardent.fish; complete -C 'ardent branch cr'" | grep -q '^create' || fail "fish does not complete"
fi
echo "-- Debian: installed, removed and purged in a copy of this system"
[ "$(id -u)" -eq 0 ] || fail "this needs root"
mkdir "$work/upper" "$work/work" "$work/system"
# On a file system of its own: an overlay cannot lie on an overlay.
mount -t tmpfs tmpfs "$work/upper"
mounted=$work/upper
mkdir "$work/upper/u" "$work/upper/w"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper/u,workdir=$work/upper/w" "$work/system"
trap 'umount "$work/system"; clean' EXIT
in_copy() { chroot "$work/system" "$@"; }
cp "$deb" "$work/system/tmp/ardent.deb"
in_copy dpkg --install /tmp/ardent.deb >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "it cannot be installed"; }
[ "$(in_copy /usr/bin/ardent --version)" = "$version" ] || fail "Debian's ardent is another version"
in_copy getent passwd ardent | grep -q ':/var/lib/ardent:' || fail "there is no user ardent"
[ "$(in_copy stat -c '%U %a' /var/lib/ardent)" = "ardent 700" ] || fail "/var/lib/ardent is not the user's alone"
in_copy bash -n /usr/share/bash-completion/completions/ardent || fail "bash cannot read the completions"
in_copy bash -c '. /usr/share/bash-completion/completions/ardent; COMP_WORDS=(ardent branch cr); COMP_CWORD=2; _clap_complete_ardent ardent cr branch; echo "${COMPREPLY[*]}"' |
    grep -q create || fail "bash does not complete"
in_copy man -l /usr/share/man/man1/ardent.1.gz 2>/dev/null | grep -q "branches" || in_copy zcat /usr/share/man/man1/ardent.1.gz | grep -q "^.TH" || fail "there is no manual page"
if command -v systemd-analyze >/dev/null; then
    in_copy systemd-analyze verify /lib/systemd/system/ardent.service /lib/systemd/system/ardent@pageserver.service >"$work/log" 2>&1 ||
        { cat "$work/log" >&2; fail "systemd does not take the units"; }
    ! grep ardent "$work/log" >&2 || fail "systemd has something to say of the units"
fi
echo 'ARDENT_OPTS="--mine"' >"$work/system/etc/default/ardent"
in_copy dpkg --install /tmp/ardent.deb >/dev/null 2>&1 || fail "it cannot be installed again"
grep -q -- --mine "$work/system/etc/default/ardent" || fail "what was configured is lost"
touch "$work/system/var/lib/ardent/branches"
in_copy dpkg --remove ardent >/dev/null 2>&1 || fail "it cannot be removed"
[ ! -e "$work/system/usr/bin/ardent" ] && [ -e "$work/system/etc/default/ardent" ] || fail "a removal takes the program and leaves the configuration"
in_copy dpkg --purge ardent >"$work/log" 2>&1 || fail "it cannot be purged"
[ ! -e "$work/system/etc/default/ardent" ] || fail "a purge leaves the configuration"
[ -e "$work/system/var/lib/ardent/branches" ] && grep -q "holds data" "$work/log" || fail "a purge takes data"
echo "packages: ok"
