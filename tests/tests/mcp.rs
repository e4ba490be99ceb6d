//! The tools for agents: what they do, what they refuse, and what they ask before they do it.

use ardent_test_pg::TestPg;
use ardent_tests::{House, Mcp, production_options, sql, table_sums};
use serde_json::{Value, json};

fn with(mut arguments: Value, name: &str, value: &Value) -> Value {
    arguments[name] = value.clone();
    arguments
}

/// A call that is confirmed by its caller.
#[track_caller]
fn confirmed(mcp: &mut Mcp, tool: &str, arguments: Value) -> Value {
    let asked = mcp.ok(tool, arguments.clone());
    assert_eq!(asked["state"], "needs_confirmation", "{asked}");
    let done = mcp.ok(tool, with(arguments.clone(), "confirmation", &asked["confirmation"]));
    assert_eq!(done["state"], "done", "{done}");
    let again = mcp.refused(tool, with(arguments, "confirmation", &asked["confirmation"]));
    assert!(again["message"].as_str().is_some_and(|message| message.contains("used")), "{again}");
    done
}

#[test]
fn an_agent_works_on_branches_and_asks_before_it_destroys() {
    let production = TestPg::start(production_options());
    production.sql(
        "create table users (id int primary key, name text); insert into users select n, 'user ' || n from generate_series(1, 2000) n;
         create function forget() returns int language plpgsql as $$ begin delete from users; return 1; end $$;
         create sequence s",
    );
    let url = production.tcp_url("postgres", "postgres");
    let mut house = House::prepare();
    // It is there before any server is, and says what to do.
    let mut mcp = house.mcp(&[], None);
    let error = mcp.refused("list_branches", json!({}));
    assert!(error["next"].as_str().is_some_and(|next| next.contains("ardent up")), "{error}");
    what_is_no_message_is_answered(&mut mcp);
    house.up();
    house.connect("main", &url);
    let before = table_sums(&url);

    let made = mcp.ok("create_branch", json!({ "branch": "work", "ttl": "1h" }));
    assert_eq!((&made["created"], &made["branch"]["parent"]), (&json!(true), &json!("main")), "{made}");
    assert!(!made.to_string().contains("postgresql://"), "no password where none was asked for: {made}");
    assert_eq!(mcp.ok("create_branch", json!({ "branch": "work" }))["created"], false);
    let listed = mcp.ok("list_branches", json!({ "contains": "or" }));
    assert_eq!(listed["branches"].as_array().map(Vec::len), Some(1), "{listed}");
    let error = mcp.refused("query", json!({ "branch": "main", "sql": "select 1" }));
    assert_eq!(error["code"], "root_branch", "{error}");
    assert_eq!(mcp.refused("branch_info", json!({ "branch": "nowhere" }))["code"], "not_found");
    let error = mcp.refused("query", json!({ "sql": "select 1" }));
    assert!(error["message"].as_str().is_some_and(|message| message.contains("branch")), "{error}");

    queries_only_read(&mut mcp);
    let done = mcp.ok(
        "execute",
        json!({ "branch": "work", "sql": "update users set name = 'x' where id <= 3; select 7 as seven" }),
    );
    assert_eq!(done["statements"][0], json!({ "row_count": 3, "result": null }), "{done}");
    assert_eq!(done["statements"][1]["result"]["rows"], json!([["7"]]), "{done}");
    let error = mcp.refused("execute", json!({ "branch": "work", "sql": "delete from users; select nothing" }));
    assert_eq!((&error["code"], &error["sqlstate"]), (&json!("sql"), &json!("42703")), "{error}");
    for copy in ["copy users from stdin", "copy users to stdout", "select 1; copy users (id) from stdin; select 2"] {
        let error = mcp.refused("execute", json!({ "branch": "work", "sql": copy }));
        let said = error.to_string();
        assert!(
            error["code"] == "invalid_arguments" && said.contains("COPY") && said.contains("ardent psql work"),
            "{error}"
        );
    }

    let diff = mcp.ok("diff", json!({ "branch": "work" }));
    assert_eq!(
        diff["databases"][0]["tables"][0],
        json!({ "table": "public.users", "state": "kept", "inserted": 0, "updated": 3, "deleted": 0 })
    );
    let page = mcp.ok("diff", json!({ "branch": "work", "table": "users", "limit": 2 }));
    let first =
        json!({ "change": "update", "key": { "id": "1" }, "columns": { "name": { "from": "user 1", "to": "x" } } });
    assert_eq!((&page["rows"][0], &page["next_skip"]), (&first, &json!(2)), "{page}");

    let migration = "alter table users add column age int; update users set age = 1 where id = 5; alter table users alter age type bigint";
    let report = mcp.ok("rehearse", json!({ "sql": migration, "branch": "work" }));
    assert_eq!(
        (&report["succeeded"], report["statements"].as_array().map(Vec::len)),
        (&json!(true), Some(3)),
        "{report}"
    );
    assert!(report["statements"][2]["rewritten"].to_string().contains("public.users"), "{report}");
    assert!(mcp.progress().iter().any(|line| line.starts_with("2/3: ")), "{:?}", mcp.progress());

    assert_eq!(table_sums(&url), before, "production is as it was");
    let apply = json!({ "branch": "work", "to": "main" });
    let asked = mcp.ok("apply", apply.clone());
    assert!(
        asked["message"]
            .as_str()
            .is_some_and(|question| question.contains("production") && question.contains("3 updated")),
        "{asked}"
    );
    assert_eq!(table_sums(&url), before, "nothing is done before it is confirmed");
    // What is confirmed is what was shown, whatever the branch became meanwhile.
    mcp.ok("execute", json!({ "branch": "work", "sql": "delete from users where id = 9" }));
    let other = mcp.refused(
        "apply",
        json!({ "branch": "work", "to": "main", "tables": ["users"], "confirmation": asked["confirmation"] }),
    );
    assert!(other["message"].as_str().is_some_and(|message| message.contains("something else")), "{other}");
    let done = confirmed(&mut mcp, "apply", apply.clone());
    assert_eq!(production.sql("select count(*), count(*) filter (where name = 'x') from users"), "1999|3");
    let undo = done["details"]["undo_file"].as_str().expect("a file").to_owned();
    house.ok(&["branch", "apply", &undo, "--to", &url]);
    assert_eq!(table_sums(&url), before);
    production.sql("update users set name = 'mine' where id = 2");
    let conflict = mcp.ok("apply", apply);
    assert_eq!((&conflict["state"], &conflict["confirmation"]), (&json!("conflict"), &Value::Null), "{conflict}");

    steps(&mut mcp);
    confirmed(&mut mcp, "reset_branch", json!({ "branch": "work" }));
    assert_eq!(mcp.ok("diff", json!({ "branch": "work" }))["changed"], false);
    with_a_user(&house);
    // A rehearsal that nobody waits for any more leaves no branch behind.
    house.mcp(&[], None).leave_during("rehearse", json!({ "sql": "select pg_sleep(60)" }));
    confirmed(&mut mcp, "delete_branch", json!({ "branch": "work" }));
    let left = mcp.ok("list_branches", json!({}));
    assert_eq!(left["branches"].as_array().map(Vec::len), Some(1), "{left}");
}

/// Whoever sends what cannot be read does not wait for ever, and is served on.
fn what_is_no_message_is_answered(mcp: &mut Mcp) {
    let mut answer = |line: &[u8]| {
        let answer = mcp.line(line);
        (answer["error"]["code"].as_i64(), answer.get("id").cloned())
    };
    for line in [&b"hello"[..], b"{\"jsonrpc\": \"2.0\", \"id\": 7,", b"\xff\xfe", b"{} {}"] {
        assert_eq!(answer(line), (Some(-32700), Some(Value::Null)), "{}", String::from_utf8_lossy(line));
    }
    let wrong = b"{\"jsonrpc\": \"2.0\", \"id\": \"x\", \"method\": 5}";
    assert_eq!(answer(wrong), (Some(-32600), Some(json!("x"))));
    // An answer that nobody asked for could be taken for that of another request.
    assert_eq!(answer(b"{\"jsonrpc\": \"2.0\", \"id\": 7}"), (Some(-32600), Some(Value::Null)));
    // Nothing is said of a blank line, nor of a notification.
    let long = [b"\n{\"jsonrpc\": \"2.0\", \"method\": 5}\n".to_vec(), vec![b'x'; 17 << 20]].concat();
    assert_eq!(answer(&long), (Some(-32600), Some(Value::Null)));
    assert!(mcp.refused("list_branches", json!({}))["next"].is_string(), "it goes on");
}

/// What a query cannot do. The library's own test tries many more.
fn queries_only_read(mcp: &mut Mcp) {
    let mut query = |sql: &str| mcp.call("query", json!({ "branch": "work", "sql": sql}));
    let (rows, _) = query("select id, name, null as n from users order by id limit 2 -- the end");
    let expect = json!({
        "columns": ["id", "name", "n"], "rows": [["1", "user 1", null], ["2", "user 2", null]], "more_rows": false, "values_cut": 0,
    });
    assert_eq!(rows, expect);
    let (many, _) = query("table users");
    assert_eq!((many["rows"].as_array().map(Vec::len), &many["more_rows"]), (Some(100), &json!(true)));
    assert!(
        query("explain (analyze, format json) select * from users").0["rows"][0][0].to_string().contains("Seq Scan")
    );
    for sql in [
        "select 1; drop table users",
        "select 1; commit; drop table users",
        "with gone as (delete from users returning 1) select count(*) from gone",
        "select forget()",
        "select nextval('s')",
        "select set_config('transaction_read_only', 'off', false), forget()",
        "select set_config('ardent.read_only_session', 'off', false)",
        "select pg_terminate_backend(pid) from pg_stat_activity",
        "select pg_switch_wal()",
        "select lo_export(1, '/tmp/x')",
        "explain analyze delete from users",
        "explain select 1; drop table users",
        "commit",
        "do $$ begin delete from users; end $$",
        "copy users to program 'true'",
        "delete from users",
        "",
    ] {
        let (answer, is_error) = query(sql);
        assert!(is_error, "{sql}: {answer}");
    }
    assert_eq!(query("select nothing from users").0["error"]["position"], 8);
    let (wide, _) = query("select repeat('x', 5000) from generate_series(1, 500)");
    assert!(wide.to_string().len() < 64 << 10 && wide["more_rows"] == true, "{}", wide.to_string().len());
    assert_eq!(query("select count(*) from users").0["rows"], json!([["2000"]]));
    let lacking = mcp.refused("query", json!({ "branch": "work", "sql": "explain select $1::int" }));
    assert_eq!(lacking["code"], "invalid_arguments", "{lacking}");
    let late = mcp.refused("query", json!({ "branch": "work", "sql": "select pg_sleep(60)", "timeout_s": 1 }));
    assert_eq!(late["sqlstate"], "57014", "{late}");
}

/// Marks and goes back.
fn steps(mcp: &mut Mcp) {
    let run = |mcp: &mut Mcp, sql: &str| mcp.ok("execute", json!({ "branch": "work", "sql": sql }));
    let none = mcp.refused("rewind", json!({ "branch": "work" }));
    assert_eq!(none["code"], "not_found", "{none}");
    run(mcp, "create table steps (n int)");
    assert_eq!(mcp.ok("checkpoint", json!({ "branch": "work" }))["label"], "step-1");
    run(mcp, "insert into steps values (1)");
    assert_eq!(mcp.ok("checkpoint", json!({ "branch": "work", "label": "one" }))["label"], "one");
    run(mcp, "insert into steps values (2)");
    let since = mcp.ok("diff", json!({ "branch": "work", "since": "one" }));
    assert_eq!(since["databases"][0]["tables"][0]["inserted"], 1, "{since}");
    // What is confirmed is of the state that it was asked about.
    let asked = mcp.ok("rewind", json!({ "branch": "work", "checkpoint": "one" }));
    assert!(asked["message"].as_str().is_some_and(|question| question.contains("checkpoint one")), "{asked}");
    let rows = |mcp: &mut Mcp| {
        mcp.ok("query", json!({ "branch": "work", "sql": "select count(*) from steps" }))["rows"].clone()
    };
    assert_eq!(rows(mcp), json!([["2"]]), "nothing is done before it is confirmed");
    let done = confirmed(mcp, "rewind", json!({ "branch": "work" }));
    assert!(done["message"].as_str().is_some_and(|message| message.contains("checkpoint one")), "{done}");
    assert_eq!(rows(mcp), json!([["1"]]));
    let old =
        mcp.refused("rewind", json!({ "branch": "work", "checkpoint": "one", "confirmation": asked["confirmation"] }));
    assert_eq!(old["code"], "conflict", "{old}");
    confirmed(mcp, "rewind", json!({ "branch": "work", "checkpoint": "step-1" }));
    assert_eq!(rows(mcp), json!([["0"]]));
    let unknown = mcp.refused("rewind", json!({ "branch": "work", "checkpoint": "two" }));
    assert!(unknown["next"].as_str().is_some_and(|next| next.contains("one, step-1")), "{unknown}");
}

/// A client that can ask its user.
fn with_a_user(house: &House) {
    let answer = |action: &str, yes: bool| Some(json!({ "action": action, "content": { "confirm": yes } }));
    let delete = json!({ "branch": "asked" });
    let url = house.branch("asked", "main");
    for no in [answer("decline", true), answer("accept", false)] {
        let mut mcp = house.mcp(&[], no);
        let declined = mcp.ok("delete_branch", delete.clone());
        assert_eq!(declined["state"], "declined", "{declined}");
        assert!(mcp.asked().len() == 1 && mcp.asked()[0].contains("branch asked"), "{:?}", mcp.asked());
    }
    assert_eq!(sql(&url, "select 1"), "1");
    let mut mcp = house.mcp(&[], answer("accept", true));
    assert_eq!(mcp.ok("delete_branch", delete)["state"], "done");
    // One that is to read alone has no other tools.
    let mut reader = house.mcp(&["--read-only"], None);
    let tools = reader.request("tools/list", json!({}));
    let names: Vec<&str> =
        tools["tools"].as_array().expect("a list").iter().filter_map(|tool| tool["name"].as_str()).collect();
    assert_eq!(names, ["list_branches", "branch_info", "query", "diff"]);
}
