#!/usr/bin/env bash
# Fetches drivers of Postgres, and tools on top of them, into target/drivers: Python's, Node's, and Java's. Does nothing when they are there.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=target/drivers
# To be counted up when what is fetched changes.
recipe=2
[ "$(cat $folder/complete 2>/dev/null)" = $recipe ] && exit 0
for tool in python3 npm node java apt-get dpkg; do
    command -v $tool >/dev/null || { echo "setup-drivers: $tool is missing (Debian: python3-venv, npm, default-jdk-headless)" >&2; exit 1; }
done
rm -rf $folder
mkdir -p $folder/node
python3 -m venv $folder/python
$folder/python/bin/pip install --quiet --disable-pip-version-check \
    'psycopg[binary]==3.3.9' asyncpg==0.32.0 sqlalchemy==2.1.9 alembic django==5.2.19
echo '{"private": true}' >$folder/node/package.json
(cd $folder/node && npm install --silent --no-audit --no-fund pg@8.23.1 postgres@3.4.9 drizzle-orm@0.45.4 \
    prisma@7.10.0 @prisma/client@7.10.0 @prisma/adapter-pg@7.10.0 --ignore-scripts --loglevel=error)
# Prisma's client compiles queries by WebAssembly that is in its package. Its command asks for another program, of a host of its own,
# before it does anything; only migrations run that, and any other does for the making of the client.
cat >$folder/node/schema.prisma <<'SCHEMA'
generator client {
  provider   = "prisma-client-js"
  engineType = "client"
}
datasource db {
  provider = "postgresql"
}
model users {
  id   Int     @id
  name String?
}
SCHEMA
(cd $folder/node && PRISMA_SCHEMA_ENGINE_BINARY=$(type -P true) CHECKPOINT_DISABLE=1 \
    node_modules/.bin/prisma generate --schema schema.prisma >/dev/null 2>generated.log) || { cat $folder/node/generated.log >&2; exit 1; }
fetched=$(mktemp -d)
trap 'rm -rf "$fetched"' EXIT
(cd "$fetched" && apt-get download -q libpostgresql-jdbc-java >/dev/null 2>&1 && dpkg -x ./*.deb unpacked)
cp -L "$fetched/unpacked/usr/share/java/postgresql.jar" $folder/jdbc.jar
echo $recipe >$folder/complete
