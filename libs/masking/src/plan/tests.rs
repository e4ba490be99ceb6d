use super::*;
use crate::catalog::ForeignKey;

fn column(number: i16, name: &str, data_type: &str) -> Column {
    Column {
        number,
        name: name.to_owned(),
        sql_type: data_type.to_owned(),
        declared_type: data_type.to_owned(),
        base_type: data_type.to_owned(),
        not_null: false,
        unique: false,
        partition_key: false,
        always_generated: false,
    }
}

fn key(number: i16, name: &str, data_type: &str) -> Column {
    Column { not_null: true, unique: true, ..column(number, name, data_type) }
}

fn table(oid: u32, name: &str, columns: Vec<Column>) -> Table {
    Table { oid, schema: "public".to_owned(), name: name.to_owned(), is_partitioned: false, columns }
}

fn foreign_key(name: &str, from: (u32, i16), to: (u32, i16)) -> ForeignKey {
    ForeignKey { name: name.to_owned(), from, to, to_partition: false }
}

fn database(tables: Vec<Table>) -> Database {
    Database { name: "shop".to_owned(), tables, ..Database::default() }
}

fn users() -> Table {
    table(1, "users", vec![key(1, "id", "integer"), column(2, "email", "text"), column(3, "born", "date")])
}

fn rules(columns: Value, types: Value) -> Rules {
    Rules::parse(&json!({ "version": 1, "columns": columns, "types": types }).to_string()).expect("good rules")
}

#[track_caller]
fn refused(columns: Value, types: Value, databases: &[Database], expect: &str) {
    let error = plan(&rules(columns, types), databases).expect_err("it leaves something open");
    assert_eq!(error.to_string(), expect);
}

#[test]
fn the_nearest_rule_counts() {
    let rules = rules(
        json!({ "shop.public.users": { "email": "hash" }, "shop.public.notes": { "id": "keep", "*": "null" } }),
        json!({ "int": "keep", "date": { "shift_days": 9 }, "text": "keep" }),
    );
    let notes = table(2, "notes", vec![key(1, "id", "integer"), column(2, "body", "text")]);
    let found = plan(&rules, &[database(vec![users(), notes])]).expect("all is named");
    let short: Vec<String> = found
        .columns()
        .iter()
        .map(|column| format!("{}.{}: {} by {}", column.table, column.column, column.action, column.rule))
        .collect();
    assert_eq!(
        short,
        [
            "users.id: keep by type",
            "users.email: hash by column",
            "users.born: shift by up to 9 days by type",
            "notes.id: keep by column",
            "notes.body: null by table",
        ]
    );
    assert_eq!(
        found.tables[1].statement.as_deref(),
        Some(
            "with changed as (update only \"public\".\"notes\" as n set \"body\" = null::text from only \"public\".\"notes\" as o
            where n.ctid = o.ctid and n.tableoid = o.tableoid returning o.\"body\" is not null as had0, n.\"body\"::text = o.\"body\"::text as same0)
        select count(*), count(*) filter (where had0), count(*) filter (where same0) from changed"
        )
    );
}

#[test]
fn what_no_rule_names_is_listed_with_rules_to_paste() {
    let rules = rules(json!({}), json!({ "date": "keep" }));
    let odd = table(2, "odd", vec![Column { not_null: true, ..column(1, "doc", "jsonb") }]);
    let other = Database {
        name: "other".to_owned(),
        tables: vec![table(9, "t", vec![column(1, "x", "text[]")])],
        ..Database::default()
    };
    let error = plan(&rules, &[database(vec![users(), odd]), other]).expect_err("it leaves something open");
    assert_eq!(
        error.to_string(),
        "no rule names 4 column(s), nor their types:
  shop.public.users, column id (integer)
  shop.public.users, column email (text)
  shop.public.odd, column doc (jsonb)
  other.public.t, column x (text[])"
    );
    let snippet: Value = serde_json::from_str(&error.snippet().expect("there are some")).expect("JSON");
    assert_eq!(
        snippet,
        json!({ "columns": {
            "shop.public.users": { "id": "permute", "email": "hash" },
            "shop.public.odd": { "doc": "CHOOSE" },
            "other.public.t": { "x": "null" },
        } })
    );
}

#[test]
fn rules_that_do_not_fit_are_refused_by_name() {
    let all = json!({ "integer": "keep", "text": "keep", "date": "keep" });
    refused(
        json!({ "shop.public.users": { "emial": "hash" }, "shop.public.people": { "a": "hash" } }),
        all.clone(),
        &[database(vec![users()])],
        "the rules do not fit the database:
  shop.public.users: the table has no column emial with values of its own
  shop.public.people: there is no such table: a partition has the rules of the table that it is a part of",
    );
    refused(
        json!({ "shop.public.users": { "id": "hash", "email": { "number": [1, 2] }, "born": "email" } }),
        all.clone(),
        &[database(vec![users()])],
        "the rules do not fit the database:
  shop.public.users, column id: hash would make values equal that have to be unique: take permute
  shop.public.users, column email: number 1 to 2 is for number types, and its type is text
  shop.public.users, column born: email is for text types, and its type is date",
    );
    let by_born = Column { partition_key: true, ..column(3, "born", "date") };
    refused(
        json!({ "shop.public.users": { "born": { "shift_days": 3 } } }),
        all.clone(),
        &[database(vec![table(20_000, "users", vec![by_born])])],
        "the rules do not fit the database:
  shop.public.users, column born: partitions list its values, and new ones have none: keep it, or give the table a default partition",
    );
    refused(
        json!({ "shop.public.users": { "id": "null" } }),
        all.clone(),
        &[Database { always_run: vec!["trigger t on public.users".to_owned()], ..database(vec![users()]) }],
        "the rules do not fit the database:
  shop.public.users, column id: it may not be NULL
  database shop: trigger t on public.users runs even where triggers are off, and could copy what is being masked: drop it on production's side, or ENABLE it without ALWAYS or REPLICA",
    );
    let small = table(3, "s", vec![column(1, "n", "smallint")]);
    refused(
        json!({ "shop.public.s": { "n": { "number": [0, 40_000] } } }),
        json!({}),
        &[database(vec![small])],
        "the rules do not fit the database:
  shop.public.s, column n: smallint has no room for number 0 to 40000",
    );
}

#[test]
fn both_sides_of_a_foreign_key_are_treated_alike() {
    let people = table(1, "people", vec![key(1, "mail", "text")]);
    let orders = table(2, "orders", vec![column(1, "person", "text")]);
    let foreign_keys = vec![foreign_key("fk", (2, 1), (1, 1))];
    let shop = Database { foreign_keys, ..database(vec![people, orders]) };
    let both = |from: &str, to: &str| {
        rules(json!({ "shop.public.people": { "mail": to }, "shop.public.orders": { "person": from } }), json!({}))
    };
    for (from, to) in [("hash", "hash"), ("keep", "keep"), ("null", "hash"), ("email", "email")] {
        plan(&both(from, to), std::slice::from_ref(&shop)).expect("they stay consistent");
    }
    for (from, to) in [("keep", "hash"), ("hash", "keep"), ("hash", "email")] {
        let error = plan(&both(from, to), std::slice::from_ref(&shop)).expect_err("rows would refer to nothing");
        let expect = format!(
            "the rules do not fit the database:\n  foreign key fk of database shop: person would be {from} (text), and what it refers to, mail, {to} (text): rows would refer to nothing"
        );
        assert_eq!(error.to_string(), expect);
    }
}

/// People, and what refers to them: by whole numbers of another width, and by a table between them.
fn referring() -> Database {
    let people = table(1, "people", vec![key(1, "id", "integer")]);
    let staff = table(2, "staff", vec![key(1, "person", "integer")]);
    let tasks = table(3, "tasks", vec![column(1, "owner", "bigint"), column(2, "points", "integer")]);
    let foreign_keys = vec![foreign_key("owned", (3, 1), (2, 1)), foreign_key("employed", (2, 1), (1, 1))];
    Database { foreign_keys, ..database(vec![people, staff, tasks]) }
}

#[test]
fn what_refers_to_a_column_with_a_rule_of_its_own_follows_it() {
    let check = |columns: Value, types: Value, expect: &[&str]| {
        let found = plan(&rules(columns, types), &[referring()]).expect("all is named");
        let columns = found.columns();
        let short: Vec<String> = columns
            .iter()
            .map(|column| format!("{}.{}: {} by {}", column.table, column.column, column.action, column.rule))
            .collect();
        assert_eq!(short, expect);
    };
    let people = json!({ "shop.public.people": { "id": "permute" }, "shop.public.tasks": { "points": "hash" } });
    let followed = [
        "people.id: permute by column",
        "staff.person: permute by reference",
        "tasks.owner: permute by reference",
        "tasks.points: hash by column",
    ];
    check(people.clone(), json!({}), &followed);
    check(people.clone(), json!({ "integer": "keep", "bigint": "hash" }), &followed);
    // What hides more may.
    check(
        people,
        json!({ "integer": "keep", "bigint": "null" }),
        &[
            "people.id: permute by column",
            "staff.person: permute by reference",
            "tasks.owner: null by type",
            "tasks.points: hash by column",
        ],
    );
    check(
        json!({}),
        json!({ "integer": "keep", "bigint": "keep" }),
        &[
            "people.id: keep by type",
            "staff.person: keep by type",
            "tasks.owner: keep by type",
            "tasks.points: keep by type",
        ],
    );
    // A rule of its own is what somebody wants.
    refused(
        json!({ "shop.public.people": { "id": "permute" }, "shop.public.staff": { "person": { "permute_in": [1, 9] } } }),
        json!({ "integer": "keep", "bigint": "keep" }),
        &[referring()],
        "the rules do not fit the database:
  foreign key employed of database shop: person would be permute in 1 to 9 (integer), and what it refers to, id, permute (integer): rows would refer to nothing",
    );
    // Nobody said of what refers that it may be kept.
    refused(
        json!({ "shop.public.people": { "id": "keep" } }),
        json!({ "integer": "null", "bigint": "permute" }),
        &[referring()],
        "the rules do not fit the database:
  shop.public.staff, column person: it may not be NULL
  foreign key owned of database shop: owner would be permute (bigint), and what it refers to, person, null (integer): rows would refer to nothing",
    );
    // Rows may leave a partition.
    let mut partition = referring();
    partition.foreign_keys[1].to_partition = true;
    refused(
        json!({ "shop.public.people": { "id": "permute" } }),
        json!({ "integer": "keep" }),
        &[partition],
        "the rules do not fit the database:
  foreign key employed of database shop: it refers to id in one partition alone, and rows that are masked by permute may go to another: keep that column",
    );
    let error = plan(&rules(json!({}), json!({})), &[referring()]).expect_err("nothing is named");
    let snippet = error.snippet().expect("there are some");
    let suggested = Rules::parse(
        &json!({ "version": 1, "columns": serde_json::from_str::<Value>(&snippet).expect("JSON")["columns"] })
            .to_string(),
    );
    let found = plan(&suggested.expect("rules"), &[referring()]).expect("what is suggested fits together");
    assert_eq!(found.columns().iter().filter(|column| column.action == "permute").count(), 3);
}

#[test]
fn whole_numbers_are_what_can_be_permuted() {
    let one = |declared: &str, base: &str| {
        let column = Column { base_type: base.to_owned(), ..key(1, "n", declared) };
        [database(vec![table(1, "t", vec![column])])]
    };
    let on_n = |action: Value| json!({ "shop.public.t": { "n": action } });
    for (declared, base) in
        [("smallint", "smallint"), ("public.short", "integer"), ("numeric(18,0)", "numeric"), ("bigint", "bigint")]
    {
        let found = plan(&rules(on_n(json!("permute")), json!({})), &one(declared, base)).expect("it has room");
        assert!(found.tables[0].permutes && found.tables[0].checks.is_empty());
    }
    for declared in ["numeric", "numeric(19,0)", "numeric(10,2)", "numeric(3,-2)", "text", "real"] {
        let base = declared.split('(').next().expect("a name");
        let expect = format!(
            "the rules do not fit the database:
  shop.public.t, column n: permute is for integer types and numeric(1,0) to numeric(18,0), and its type is {declared}"
        );
        refused(on_n(json!("permute")), json!({}), &one(declared, base), &expect);
    }
    let found = plan(&rules(on_n(json!({ "permute_in": [1, 999] })), json!({})), &one("numeric(3,0)", "numeric"));
    let checks = found.expect("it has room").tables.remove(0).checks;
    assert_eq!(
        checks[0].statement,
        "select count(*) from only \"public\".\"t\" as o where o.\"n\" not between '1'::bigint and '999'::bigint"
    );
    refused(
        on_n(json!({ "permute_in": [0, 1000] })),
        json!({}),
        &one("numeric(3,0)", "numeric"),
        "the rules do not fit the database:
  shop.public.t, column n: numeric(3,0) has no room for permute in 0 to 1000",
    );
}
