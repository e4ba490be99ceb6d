#!/usr/bin/env bash
# Fetches drivers of Postgres, and tools on top of them, into target/drivers: Python's, Node's, and Java's. Does nothing when they are there.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=target/drivers
[ -e $folder/complete ] && exit 0
for tool in python3 npm node java apt-get dpkg; do
    command -v $tool >/dev/null || { echo "setup-drivers: $tool is missing (Debian: python3-venv, npm, default-jdk-headless)" >&2; exit 1; }
done
rm -rf $folder
mkdir -p $folder/node
python3 -m venv $folder/python
$folder/python/bin/pip install --quiet --disable-pip-version-check \
    'psycopg[binary]==3.3.9' asyncpg==0.32.0 sqlalchemy==2.1.9 alembic django==5.2.19
echo '{"private": true}' >$folder/node/package.json
(cd $folder/node && npm install --silent --no-audit --no-fund pg@8.23.1 postgres@3.4.9 drizzle-orm@0.45.4)
fetched=$(mktemp -d)
trap 'rm -rf "$fetched"' EXIT
(cd "$fetched" && apt-get download -q libpostgresql-jdbc-java >/dev/null 2>&1 && dpkg -x ./*.deb unpacked)
cp -L "$fetched/unpacked/usr/share/java/postgresql.jar" $folder/jdbc.jar
touch $folder/complete
