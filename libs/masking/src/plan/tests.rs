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
    }
}

fn key(number: i16, name: &str, data_type: &str) -> Column {
    Column { not_null: true, unique: true, ..column(number, name, data_type) }
}

fn table(oid: u32, name: &str, columns: Vec<Column>) -> Table {
    Table { oid, schema: "public".to_owned(), name: name.to_owned(), is_partitioned: false, columns }
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
            "shop.public.users": { "id": "CHOOSE", "email": "hash" },
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
  shop.public.users, column id: hash would make values equal that have to be unique
  shop.public.users, column email: number 1 to 2 is for number types, and its type is text
  shop.public.users, column born: email is for text types, and its type is date",
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
    let foreign_keys = vec![ForeignKey { name: "fk".to_owned(), from: (2, 1), to: (1, 1) }];
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
