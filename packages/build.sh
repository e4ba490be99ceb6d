#!/usr/bin/env bash
# Makes the packages of this platform: npm's ardent-cli with its program, and Debian's ardent.
#   build.sh [--program FILE] [--out DIR]
# Without a program, the release build is made. What it writes: *.tgz and *.deb in DIR (target/packages).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
program='' out=$root/target/packages
while [ $# -gt 0 ]; do
    case $1 in
        --program) program=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        *) echo "usage: build.sh [--program FILE] [--out DIR]" >&2; exit 2 ;;
    esac
done
if [ -z "$program" ]; then
    export ARDENT_COMPUTE_LIB_DIR=${ARDENT_COMPUTE_LIB_DIR:-$root/target/compute-lib}
    [ -e "$ARDENT_COMPUTE_LIB_DIR" ] || { echo "build.sh: make extension first: the program carries the library of computes" >&2; exit 1; }
    cargo build --release --bin ardent --manifest-path "$root/Cargo.toml"
    program=${CARGO_TARGET_DIR:-$root/target}/release/ardent
fi
for tool in npm dpkg-deb dpkg-shlibdeps strip; do
    command -v $tool >/dev/null || { echo "build.sh: $tool is missing (Debian: npm, dpkg, dpkg-dev, binutils)" >&2; exit 1; }
done

mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$program" "$work/ardent"
strip "$work/ardent"
version=$("$work/ardent" --version | sed 's/^ardent //')
case $(uname -m) in
    x86_64) cpu=x64 architecture=amd64 ;;
    aarch64) cpu=arm64 architecture=arm64 ;;
    *) echo "build.sh: no package is made for $(uname -m)" >&2; exit 1 ;;
esac
platform=linux-$cpu

filled() { # file...: with this build's words
    sed -i -e "s/@VERSION@/$version/g" -e "s/@PLATFORM@/$platform/g" -e "s/@OS@/linux/g" -e "s/@CPU@/$cpu/g" "$@"
}

npm_packages() {
    cp -r "$here/npm/ardent-cli" "$here/npm/platform" "$work/"
    filled "$work/ardent-cli/package.json" "$work/platform/package.json"
    install -D -m 0755 "$work/ardent" "$work/platform/bin/ardent"
    cp "$root/LICENSE" "$work/ardent-cli/"
    cp "$root/LICENSE" "$work/platform/"
    for package in platform ardent-cli; do
        (cd "$work/$package" && npm pack --silent --pack-destination "$out")
    done
}

debian_package() {
    local tree=$work/tree file
    install -D -m 0755 "$work/ardent" "$tree/usr/bin/ardent"
    install -D -m 0644 "$here/debian/ardent.default" "$tree/etc/default/ardent"
    for file in ardent.service ardent@.service; do
        install -D -m 0644 "$here/debian/$file" "$tree/lib/systemd/system/$file"
    done
    mkdir -p "$tree/usr/share/bash-completion/completions" "$tree/usr/share/zsh/vendor-completions" \
        "$tree/usr/share/fish/vendor_completions.d" "$tree/usr/share/doc/ardent" "$tree/DEBIAN"
    "$work/ardent" completions bash >"$tree/usr/share/bash-completion/completions/ardent"
    "$work/ardent" completions zsh >"$tree/usr/share/zsh/vendor-completions/_ardent"
    "$work/ardent" completions fish >"$tree/usr/share/fish/vendor_completions.d/ardent.fish"
    "$work/ardent" man --dir "$tree/usr/share/man/man1"
    gzip -9n "$tree"/usr/share/man/man1/*
    {
        echo "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/"
        printf '\nFiles: *\nCopyright: The Ardent authors\nLicense: Apache-2.0\n On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n'
    } >"$tree/usr/share/doc/ardent/copyright"

    # What it is linked with, as Debian names it.
    mkdir -p "$work/shlibs/debian"
    printf 'Source: ardent\n\nPackage: ardent\nArchitecture: any\n' >"$work/shlibs/debian/control"
    local depends size
    depends=$(cd "$work/shlibs" && dpkg-shlibdeps -O "$tree/usr/bin/ardent" 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
    [ -n "$depends" ] || { echo "build.sh: what the program is linked with is not known to dpkg-shlibdeps" >&2; exit 1; }
    size=$(du -ks --apparent-size "$tree" | cut -f1)
    sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@DEPENDS@/$depends/" -e "s/@SIZE@/$size/" \
        "$here/debian/control" >"$tree/DEBIAN/control"
    install -m 0755 "$here/debian/postinst" "$here/debian/prerm" "$here/debian/postrm" "$tree/DEBIAN/"
    echo /etc/default/ardent >"$tree/DEBIAN/conffiles"
    dpkg-deb --root-owner-group --build "$tree" "$out/ardent_${version}_$architecture.deb" >/dev/null
    echo "ardent_${version}_$architecture.deb"
}

npm_packages
debian_package
