// Uses a branch through drivers of Node, by the connection string that `ardent` prints.
//
//     drivers.mjs FOLDER URL
//
// FOLDER has node_modules. A table `users` of 2,000 rows is there. Prints the name of each driver that works, one a line.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, url] = process.argv.slice(2);
const require = createRequire(pathToFileURL(`${folder}/package.json`));

async function usePg() {
  const pg = require("pg");
  const pool = new pg.Pool({ connectionString: url, max: 4 });
  const names = await Promise.all(
    Array.from({ length: 40 }, (_, number) => pool.query("select name from users where id = $1", [number + 1])),
  );
  assert.deepEqual(names.map((found) => found.rows[0].name), Array.from({ length: 40 }, (_, number) => String(number + 1)));
  const client = await pool.connect();
  await client.query("begin");
  await client.query("delete from users");
  await client.query("rollback");
  const counted = await client.query({ name: "counted", text: "select count(*)::int as n from users" });
  assert.equal(counted.rows[0].n, 2000);
  await assert.rejects(client.query("select nothing from users"), { code: "42703" });
  client.release();
  await pool.end();
}

async function usePostgres() {
  const sql = require("postgres")(url, { max: 3, onnotice: () => {} });
  const rows = await sql`select id, name from users where id in ${sql([1, 2, 3])} order by id`;
  assert.deepEqual(rows.map((row) => row.name), ["1", "2", "3"]);
  await assert.rejects(sql.begin(async (sql) => {
    await sql`delete from users`;
    throw new Error("taken back");
  }), /taken back/);
  let seen = 0;
  await sql`select * from users`.cursor(500, (rows) => { seen += rows.length; });
  assert.equal(seen, 2000);
  await sql.end();
}

async function useDrizzle() {
  const pg = require("pg");
  const { drizzle } = require("drizzle-orm/node-postgres");
  const { migrate } = require("drizzle-orm/node-postgres/migrator");
  const { pgTable, serial, text } = require("drizzle-orm/pg-core");
  const { eq } = require("drizzle-orm");
  const fs = require("node:fs");
  const path = require("node:path");

  const migrations = fs.mkdtempSync(path.join(require("node:os").tmpdir(), "drizzle-"));
  try {
    fs.mkdirSync(path.join(migrations, "meta"));
    fs.writeFileSync(path.join(migrations, "0000_notes.sql"),
      'CREATE TABLE "notes" ("id" serial PRIMARY KEY, "body" text NOT NULL);\n--> statement-breakpoint\nCREATE INDEX "notes_body" ON "notes" ("body");\n');
    const entries = [{ idx: 0, version: "7", when: 1767225600000, tag: "0000_notes", breakpoints: true }];
    fs.writeFileSync(path.join(migrations, "meta", "_journal.json"), JSON.stringify({ version: "7", dialect: "postgresql", entries }));
    const pool = new pg.Pool({ connectionString: url });
    const db = drizzle(pool);
    await migrate(db, { migrationsFolder: migrations });
    await migrate(db, { migrationsFolder: migrations });
    const notes = pgTable("notes", { id: serial("id").primaryKey(), body: text("body").notNull() });
    const [made] = await db.insert(notes).values({ body: "one" }).returning();
    await db.update(notes).set({ body: "two" }).where(eq(notes.id, made.id));
    assert.deepEqual(await db.select().from(notes), [{ id: made.id, body: "two" }]);
    await pool.end();
  } finally {
    fs.rmSync(migrations, { recursive: true });
  }
}

async function usePrisma() {
  const { PrismaClient } = require("@prisma/client");
  const { PrismaPg } = require("@prisma/adapter-pg");
  const prisma = new PrismaClient({ adapter: new PrismaPg({ connectionString: url }) });
  const found = await prisma.users.findMany({ where: { id: { in: [1, 2, 3] } }, orderBy: { id: "asc" } });
  assert.deepEqual(found, [1, 2, 3].map((id) => ({ id, name: String(id) })));
  await prisma.$transaction(async (transaction) => {
    await transaction.users.create({ data: { id: 5000, name: "made" } });
    await transaction.users.update({ where: { id: 5000 }, data: { name: "changed" } });
  }, { isolationLevel: "Serializable" });
  assert.equal((await prisma.users.findUniqueOrThrow({ where: { id: 5000 } })).name, "changed");
  await assert.rejects(prisma.$transaction(async (transaction) => {
    await transaction.users.deleteMany();
    throw new Error("taken back");
  }), /taken back/);
  await assert.rejects(prisma.users.create({ data: { id: 1, name: "twice" } }), { code: "P2002" });
  const [made, counted] = await prisma.$transaction([prisma.users.delete({ where: { id: 5000 } }), prisma.users.count()]);
  assert.deepEqual([made.name, counted], ["changed", 2000]);
  const [{ n }] = await prisma.$queryRaw`select count(*)::int as n from users where id <= ${40}`;
  assert.equal(n, 40);
  await prisma.$disconnect();
}

for (const [name, use] of [["pg", usePg], ["postgres", usePostgres], ["drizzle", useDrizzle], ["prisma", usePrisma]]) {
  await use();
  console.log(name);
}
