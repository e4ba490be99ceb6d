//! Masked templates: what was there before cannot be read from a branch of one, by whoever may do everything on it.
//!
//! Every search is made of an ordinary branch as well, where it has to find what it looks for.

use std::fs;
use std::path::Path;

use ardent_test_pg::TestPg;
use ardent_tests::{House, production_options, sql, try_sql};

/// What is planted everywhere; what stands behind it says where.
const SECRET: &str = "xSECRETx";

const PLANTED: &str = "
    create table people (id int primary key, mail text unique, kind text, doc text, gone text, note text);
    alter table people alter doc set storage external;
    create index people_made on people ((mail || '!'));
    insert into people select i, 'xSECRETxmail-' || i, 'xSECRETxstat', 'xSECRETxdoc' || repeat('-', 9000), 'xSECRETxdropped', 'plain' from generate_series(1, 20) i;
    update people set mail = 'xSECRETxold-' || id where id < 4;
    update people set mail = 'xSECRETxnew-' || id where id < 4;
    insert into people (id, mail) values (99, 'xSECRETxdeleted'); delete from people where id = 99;
    alter table people drop gone;
    create table orders (id int primary key, mail text references people (mail) on update cascade);
    insert into orders select id, mail from people;
    create materialized view seen as select mail from people;
    select lo_from_bytea(0, 'xSECRETxlarge');
    create role app login password 'p'; alter role app set app.key = 'xSECRETxsetting';
    create table empty (a text);
    create table members (id serial primary key, boss int references members);
    insert into members (boss) select nullif(i / 2, 0) from generate_series(1, 50) i;
    create extension pageinspect;
    analyze;";

const RULES: &str = r#"{ "version": 1, "types": { "integer": "keep" },
    "columns": { "postgres.public.people": { "mail": "email", "kind": "hash", "doc": "null", "note": "keep" },
        "postgres.public.orders": { "mail": "email" }, "postgres.public.empty": { "a": "hash" },
        "postgres.public.members": { "id": "permute" } } }"#;

/// Every page of every relation, catalogs included, as it is.
const PAGES: &str = "select string_agg(distinct relation || ':' || m[1], ' ') from (
        select case when c.relkind = 't' then 'toast' else c.relname end as relation, get_raw_page(c.oid::regclass::text, block) as page
        from pg_class c, generate_series(0, pg_relation_size(c.oid) / 8192 - 1) block
        where c.relkind in ('r', 'i', 'm', 't', 'S') and pg_relation_filenode(c.oid) is not null offset 0) pages,
    lateral regexp_matches(encode(page, 'escape'), 'xSECRETx([a-z]+)', 'g') m
    where position('xSECRETx'::bytea in page) > 0";

/// Every file of the data directory, WAL included, by the folder that it is in.
const FILES: &str = "with recursive files(path, is_dir) as (
        select d, (pg_stat_file(d, true)).isdir from pg_ls_dir('.', true, false) d
        union all select f.path || '/' || d, (pg_stat_file(f.path || '/' || d, true)).isdir
            from files f, lateral pg_ls_dir(f.path, true, false) d where f.is_dir)
    select string_agg(distinct split_part(path, '/', 1), ' ')
    from files where not is_dir and position('xSECRETx'::bytea in pg_read_binary_file(path, 0, 100000000, true)) > 0";

/// Whether a file below the folder holds a secret.
fn holds_secret(folder: &Path) -> bool {
    fs::read_dir(folder).expect("a folder").any(|entry| {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            return holds_secret(&path);
        }
        fs::read(&path).expect("a file").windows(SECRET.len()).any(|bytes| bytes == SECRET.as_bytes())
    })
}

/// The same of a branch's WAL on the safekeeper.
fn holds_secret_in_wal(house: &House, branch: &str) -> bool {
    let timeline = house.json(&["branch", "info", branch])["timeline_id"].as_str().expect("an id").to_owned();
    let folders = house.timelines();
    let folder = folders.iter().find(|folder| folder.starts_with("safekeeper") && folder.ends_with(&timeline));
    holds_secret(&house.data_dir().join(folder.expect("its WAL")))
}

#[test]
fn a_branch_of_a_masked_template_holds_nothing_of_what_was() {
    let production = TestPg::start(production_options().set("autovacuum", "off"));
    let mut house = House::start();
    production.sql("create table early (a int)");
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    // After the base backup: all of it is in WAL as well.
    production.sql(PLANTED);

    // The searches find what is there.
    let plain = house.branch("plain", "main");
    let found = sql(&plain, PAGES);
    for place in [
        "people:mail",
        "people:old",
        "people:new",
        "people:deleted",
        "people:dropped",
        "people:stat",
        "toast:doc",
        "people_mail_key:mail",
        "people_mail_key:old",
        "people_made:mail",
        "orders:mail",
        "seen:mail",
        "pg_statistic:stat",
        "pg_statistic:mail",
        "pg_largeobject:large",
        "pg_db_role_setting:setting",
    ] {
        assert!(found.split(' ').any(|found| found == place), "{place} in {found}");
    }
    // A compute's WAL begins where it started; the safekeeper's has what was before.
    sql(&plain, "insert into empty values ('xSECRETxown')");
    assert_eq!(sql(&plain, FILES), "base global pg_wal");
    assert!(holds_secret_in_wal(&house, "plain"));
    let old_file = sql(&plain, "select pg_relation_filenode('people')");

    // What the rules leave open stops it.
    let rules = house.data_dir().join("rules.json");
    let rules = rules.to_str().expect("UTF-8");
    fs::write(rules, r#"{ "version": 1, "types": { "integer": "keep", "text": "hash" }, "columns": { "postgres.public.orders": { "mail": "keep" } } }"#)
        .expect("written");
    house
        .ardent(&["mask", "create", "nightly", "--rules", rules])
        .refused(2, &["foreign key orders_mail_fkey", "nothing was masked"]);
    fs::write(rules, r#"{ "version": 1, "types": { "integer": "keep" } }"#).expect("written");
    house
        .ardent(&["mask", "check", rules, "--json"])
        .refused(2, &["postgres.public.people, column mail (text)", r#"\"mail\": \"hash\""#, "invalid_arguments"]);
    house.ardent(&["branch", "create", "safe", "--masked"]).refused(5, &["ardent mask create"]);
    assert_eq!(house.json(&["mask", "list"])["templates"], serde_json::json!([]));

    let rules_of_others = house.data_dir().join("others.json");
    let rules_of_others = rules_of_others.to_str().expect("UTF-8");
    fs::copy(rules, rules_of_others).expect("copied");
    fs::write(rules, RULES).expect("written");
    let checked = house.json(&["mask", "check", rules]);
    assert_eq!(checked["columns"].as_array().map(Vec::len), Some(11), "{checked}");
    let timelines = house.timelines().len();
    let made = house.json(&["mask", "create", "nightly", "--rules", rules]);
    assert_eq!(house.timelines().len(), timelines + 2, "what it was made of is gone");
    let column = |name: &str| {
        let columns = made["report"]["columns"].as_array().expect("a list").clone();
        columns.into_iter().find(|column| column["table"] == "people" && column["column"] == name).expect("covered")
    };
    let mail = column("mail");
    assert_eq!((&mail["values"], &mail["unchanged"], &mail["action"]), (&20.into(), &0.into(), &"email".into()));
    assert_eq!(column("note")["action"], "keep");
    assert_eq!(made["report"]["secrets"]["large_object_pages"], 1);
    assert_eq!(house.json(&["mask", "report", "nightly"]), made);
    assert_eq!(house.json(&["mask", "create", "nightly", "--rules", rules]), made, "the same again");

    // Whoever may do everything there finds nothing.
    let safe = house.ok(&["branch", "create", "safe", "--masked", "--print-url"]);
    let made = house.mcp(&[], None).ok("create_branch", serde_json::json!({ "branch": "for-an-agent", "masked": "" }));
    assert_eq!((&made["created"], &made["branch"]["masked"]), (&true.into(), &"nightly".into()), "{made}");
    house.ok(&["branch", "delete", "for-an-agent", "--for-good"]);
    assert_eq!(sql(&safe, PAGES), "");
    assert_eq!(sql(&safe, FILES), "", "after all pages were read");
    assert!(!holds_secret_in_wal(&house, "safe"));
    let by_hand = format!(
        "set allow_system_table_mods = on; create table hand (like people); begin;
        update pg_class set relfilenode = {old_file}, relpages = 1 where relname = 'hand'; commit; select count(*) from hand"
    );
    let refused = try_sql(&safe, &by_hand).expect_err("there is no such file");
    assert!(refused.contains("could not open file"), "{refused}");
    sql(&safe, "update pg_class set relfilenode = oid where relname = 'hand'; drop table if exists hand");

    // What is there is whole.
    assert_eq!(
        sql(
            &safe,
            "select count(*), count(distinct mail), min(note) from people where mail like 'user-%@example.invalid'"
        ),
        "20|20|plain"
    );
    assert_eq!(sql(&safe, "select count(*) from orders join people using (mail)"), "20");
    let bosses = "select count(*), count(*) filter (where m.boss = m.id / 2) < 10 from members m join members b on b.id = m.boss";
    assert_eq!(sql(&safe, bosses), "49|t");
    assert_eq!(sql(&plain, bosses), "49|f");
    let next =
        "begin; insert into members default values returning id > 50 and id > all (select id from members); rollback";
    assert_eq!(sql(&safe, next), "t");
    assert!(
        try_sql(&safe, "insert into members select max(id) from members").expect_err("taken").contains("members_pkey")
    );
    assert_eq!(sql(&safe, "select count(*) from seen join people using (mail)"), "20");
    assert_eq!(
        sql(
            &safe,
            "select count(*) from pg_stats where tablename = 'people' and attname = 'kind' and most_common_vals is not null"
        ),
        "1"
    );
    let info = house.json(&["branch", "info", "safe"]);
    assert_eq!((&info["masked"], &info["parent"]), (&"nightly".into(), &"masked.nightly".into()));
    assert!(house.ok(&["branch", "list", "--tree"]).contains("masked.nightly\n└── safe"));

    // Changes are seen as on any branch; where masked values are in the way of applying them, that is a conflict.
    sql(&safe, "update people set note = 'seen' where id = 7; update people set kind = 'mine' where id = 8");
    let diff = house.json(&["branch", "diff", "safe"]);
    let rows = diff["databases"][0]["tables"].to_string();
    assert!(rows.contains("seen") && rows.contains("mine") && !rows.contains(SECRET), "{rows}");
    house
        .ardent(&["branch", "diff", "safe", "--against", "main"])
        .refused(2, &["branch safe of masked template nightly and branch main have no history in common"]);
    let to = production.tcp_url("postgres", "postgres");
    let apply = house.ardent(&["branch", "apply", "safe", "--to", &to, "--dry-run"]);
    assert_eq!(apply.code, 6, "{apply:?}");
    assert!(apply.stdout.contains("kind") || apply.stderr.contains("kind"), "{apply:?}");
    house.ok(&["branch", "apply", "safe", "--to", &to, "--row", "public.people:7"]);
    assert_eq!(production.sql("select note, mail from people where id = 7"), "seen|xSECRETxmail-7");

    // From here on it is the only way.
    let said = house.ardent(&["connector", "set", "main", "--masked-only", "on"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.stderr.contains("1 branch is not masked, as it was made before: plain"), "{said:?}");
    let withheld = ["masked data only", "ardent branch create NAME --masked nightly"];
    house.ardent(&["branch", "create", "x"]).refused(6, &withheld);
    house.ardent(&["branch", "create", "x", "--from", "plain", "--print-url"]).refused(6, &withheld);
    house.ardent(&["branch", "reset", "plain"]).refused(6, &withheld);
    house.ardent(&["branch", "rebase", "plain"]).refused(6, &withheld);
    let migration = house.data_dir().join("migration.sql");
    fs::write(&migration, "alter table people add more int;").expect("written");
    let migration = migration.to_str().expect("UTF-8");
    house.ardent(&["branch", "rehearse", migration]).refused(6, &withheld);
    house.ok(&["branch", "rehearse", migration, "--from", "safe"]);
    let refused = house.mcp(&[], None).refused("create_branch", serde_json::json!({ "branch": "x" }));
    assert!(withheld.iter().all(|words| refused.to_string().contains(words)), "{refused}");
    // What was there stays, and can be compared and masked: nobody can connect to what that takes.
    assert_eq!(house.ok(&["branch", "info", "plain", "--print-url"]), plain);
    assert_eq!(sql(&plain, "select count(*) from people"), "20");
    house.ok(&["branch", "diff", "plain", "--stat"]);
    house.ok(&["mask", "check", rules, "--from", "plain"]);

    // No name leads to the template, and none passes for masked that is not.
    house.ardent(&["branch", "info", "nightly"]).refused(5, &[]);
    house.ardent(&["branch", "create", "x", "--from", "nightly"]).refused(5, &[]);
    house.ardent(&["branch", "create", "plain", "--masked"]).refused(6, &["was not made from masked.nightly"]);
    house.ardent(&["branch", "create", "x", "--masked", "--at", "0/1000028"]).refused(2, &[]);
    house.ardent(&["mask", "delete", "nightly", "--yes"]).refused(6, &["safe"]);
    house.ardent(&["connector", "delete", "main", "--yes"]).refused(6, &["ardent mask delete nightly"]);

    // All of it is known again from the store alone, when the server's database is lost.
    let seen = |house: &House| {
        let mut info = house.json(&["branch", "info", "safe"]);
        // Whether a compute runs is not what the branch is.
        for field in ["state", "compute"] {
            info.as_object_mut().expect("an object").remove(field);
        }
        let connectors = house.json(&["connector", "list"]);
        let connector = &connectors["connectors"][0];
        let gate = (connector["masked_only"].clone(), connector["unmasked_first"].clone());
        (info, house.json(&["mask", "report", "nightly"]), house.json(&["mask", "list"]), gate)
    };
    let mut before = seen(&house);
    house.stop();
    for file in ["control.db", "control.db-wal", "control.db-shm"].map(|file| house.data_dir().join(file)) {
        if file.exists() {
            fs::remove_file(file).expect("removed");
        }
    }
    let dir = house.data_dir().to_string_lossy().into_owned();
    let recovered = house.ok(&["recover", "control", "--data-dir", &dir]);
    assert!(recovered.contains("masked.nightly") && recovered.contains("ardent mask list"), "{recovered}");
    house.up();
    // But for where a template begins, which nobody needs any more.
    for template in [&mut before.1, &mut before.2["templates"][0]] {
        assert!(template["lsn"].is_string(), "{template}");
        template["lsn"] = serde_json::Value::Null;
    }
    assert_eq!(seen(&house), before);
    assert_eq!(before.3, (true.into(), serde_json::json!(["plain"])));
    house.ardent(&["branch", "create", "x"]).refused(6, &withheld);
    let other = house.ok(&["branch", "create", "other", "--masked", "nightly", "--print-url"]);
    assert_eq!(sql(&other, PAGES), "");
    house.ok(&["branch", "delete", "other", "--for-good"]);
    assert_eq!(house.json(&["mask", "create", "nightly", "--rules", rules])["name"], "nightly", "by the same rules");
    house.ardent(&["mask", "create", "nightly", "--rules", rules_of_others]).refused(6, &["not made by these rules"]);

    // A branch of the branch, a reset, a cold start.
    house.ok(&["branch", "suspend", "safe"]);
    house.ok(&["branch", "suspend", "plain"]);
    house.throw_computes_away();
    assert_eq!(sql(&safe, "select note from people where id = 7"), "seen");
    let child = house.branch("child", "safe");
    assert_eq!(sql(&child, PAGES), "");
    assert_eq!(house.json(&["branch", "info", "child"])["masked"], "nightly");
    house.ok(&["branch", "reset", "safe"]);
    assert_eq!(sql(&safe, "select note from people where id = 7"), "plain");
    assert_eq!(sql(&safe, PAGES), "");
    house.ok(&["branch", "delete", "child", "safe", "--for-good"]);
    house.ok(&["mask", "delete", "nightly", "--yes"]);
    assert_eq!(house.timelines().len(), timelines);
}
