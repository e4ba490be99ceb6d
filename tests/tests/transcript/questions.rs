//! Twenty questions, answered from the transcript alone.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::record::Transcript;

/// A line of the table that `branch log` and `branch blame` print.
struct Row<'a> {
    role: &'a str,
    application: &'a str,
    rows: &'a str,
    outcome: &'a str,
    statement: &'a str,
}

/// The lines of such a table. What is told of an entry below its line is no row.
fn rows<'a>(transcript: &'a Transcript, command: &str) -> Vec<Row<'a>> {
    // Below the heading.
    let lines = transcript.of(command).output.lines().skip(1);
    let row = |line: &'a str| match line.splitn(7, "  ").collect::<Vec<_>>()[..] {
        ["TIME", role, application, "DURATION", rows, outcome, statement] => {
            Some(Row { role, application, rows, outcome, statement })
        }
        _ => None,
    };
    lines.filter_map(row).collect()
}

/// The only line of such a table.
fn only<'a>(transcript: &'a Transcript, command: &str) -> Row<'a> {
    let mut found = rows(transcript, command);
    assert_eq!(found.len(), 1, "{command}");
    found.remove(0)
}

fn word<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} is no word in {value}"))
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().unwrap_or_else(|| panic!("{field} is no list in {value}"))
}

/// Text as it is, numbers as text, nulls as nothing.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "nothing".to_owned(),
        other => other.to_string(),
    }
}

fn joined<T: AsRef<str>>(words: impl IntoIterator<Item = T>) -> String {
    words.into_iter().map(|word| word.as_ref().to_owned()).collect::<Vec<_>>().join("; ")
}

/// The statements of the log that failed, without the last line, which is of the log.
fn failures(transcript: &Transcript) -> Vec<Value> {
    let lines = transcript.lines("branch log work --failed --ndjson");
    lines.into_iter().filter(|line| line["type"] == "entry").collect()
}

/// What failed of an application, by SQLSTATE, with its statement.
fn failed_of(transcript: &Transcript, application: &str) -> String {
    let failed = failures(transcript);
    let of_it = failed.iter().filter(|entry| entry["application_name"] == application);
    joined(of_it.map(|entry| format!("{} {}", word(entry, "sqlstate"), word(entry, "statement").trim_end_matches(';'))))
}

/// Statements of each application.
fn applications(transcript: &Transcript) -> String {
    let mut counts = BTreeMap::<&str, u32>::new();
    rows(transcript, "branch log work --all").iter().for_each(|row| *counts.entry(row.application).or_default() += 1);
    joined(counts.iter().map(|(application, count)| format!("{application} {count}")))
}

/// The first that failed of the migration, and the message.
fn stopped(transcript: &Transcript) -> String {
    let failed = failures(transcript);
    let first = failed.iter().find(|entry| entry["application_name"] == "migrate").expect("it failed");
    format!("{}: {}", word(first, "statement"), word(first, "error"))
}

/// What became of each statement of the first migration, in order.
fn fates_of_migration(transcript: &Transcript) -> String {
    joined(rows(transcript, "branch log work --application migrate --all").iter().take(8).map(|row| row.outcome))
}

/// Rows that an application changed for good.
fn rows_changed(transcript: &Transcript, command: &str) -> String {
    let rows = rows(transcript, command);
    let kept = rows.iter().filter(|row| row.outcome == "committed");
    kept.map(|row| row.rows.parse::<u64>().expect("writes have rows")).sum::<u64>().to_string()
}

/// Who ran what last changed a row.
fn changed_by(transcript: &Transcript, command: &str) -> String {
    let row = only(transcript, command);
    format!("{} by {}: {}", row.application, row.role, row.statement)
}

/// Which statement, of those that name the table, deleted for good.
fn deleted_by(transcript: &Transcript) -> String {
    let blame = transcript.of("branch blame work orders 30");
    assert!(blame.code == 5 && blame.messages.contains("has no row 30 now"), "{blame:?}");
    let lines = transcript.lines("branch log work --writes --grep 'delete from orders' --ndjson");
    let kept = lines.iter().filter(|entry| entry["outcome"] == "committed");
    joined(kept.map(|entry| format!("{}: {}", word(entry, "application_name"), word(entry, "statement"))))
}

/// Inserted, updated and deleted rows of each table.
fn counts(transcript: &Transcript) -> String {
    let stat = transcript.document("branch diff work --stat --json");
    joined(list(&stat["databases"][0], "tables").iter().map(|table| {
        format!("{} +{} ~{} -{}", word(table, "name"), table["inserted"], table["updated"], table["deleted"])
    }))
}

/// Objects of the schema that are different.
fn objects(transcript: &Transcript) -> String {
    let stat = transcript.document("branch diff work --stat --json");
    let objects = list(&stat["databases"][0]["schema"], "objects");
    joined(
        objects
            .iter()
            .map(|object| format!("{} {}", word(object, "object"), joined(list(object, "changes").iter().map(plain)))),
    )
}

/// Keys of the table's rows that changed in one way.
fn keys(transcript: &Transcript, change: &str, side: &str) -> Vec<u32> {
    let diff = transcript.document("branch diff work --table orders --json");
    let rows = list(&diff["databases"][0]["tables"][0], "rows");
    let of_it = rows.iter().filter(|row| row["change"] == change);
    of_it.map(|row| row[side][0].as_str().and_then(|key| key.parse().ok()).expect("keys are numbers")).collect()
}

fn inserted(transcript: &Transcript) -> String {
    let keys = keys(transcript, "insert", "new");
    let (first, last) = (keys.first().copied().unwrap_or(0), keys.last().copied().unwrap_or(0));
    assert_eq!(keys, (first..=last).collect::<Vec<_>>(), "without a gap");
    format!("{first} to {last}")
}

/// What a line of the diff says of a row.
fn told(transcript: &Transcript, table: &str, key: &str) -> String {
    let output = transcript.of("branch diff work").output;
    let section =
        output.split("\n\n").find(|section| section.starts_with(&format!("public.{table}:"))).expect("it changed");
    let mut lines = section.lines().filter_map(|line| line.trim().strip_prefix(&format!("~ {key} ")));
    lines.next().expect("the row changed").to_owned()
}

fn conflicts(transcript: &Transcript) -> Vec<Value> {
    let command = "branch apply work --to shop --dry-run --json";
    assert_eq!(transcript.of(command).code, 6, "there are conflicts");
    list(&transcript.document(command), "conflicts").to_vec()
}

/// Rows that would conflict, and why.
fn conflicting_rows(transcript: &Transcript) -> String {
    let conflicts = conflicts(transcript);
    let rows = conflicts.iter().filter(|one| one["conflict"] == "row");
    joined(rows.map(|row| format!("{} {}: {}", word(row, "table"), plain(&row["key"][0][1]), word(row, "why"))))
}

/// What three sides have in the columns of a row that conflict.
fn sides(transcript: &Transcript, table: &str, key: &str) -> String {
    let conflicts = conflicts(transcript);
    let row = conflicts.iter().find(|one| one["table"] == table && one["key"][0][1] == key).expect("it conflicts");
    joined(list(row, "columns").iter().map(|column| {
        let [base, branch, target] = ["base", "branch", "target"].map(|side| plain(&column[side]));
        format!("{} was {base}, branch {branch}, production {target}", word(column, "column"))
    }))
}

/// The object of the schema that both made, with both definitions.
fn both_made(transcript: &Transcript) -> String {
    let conflicts = conflicts(transcript);
    joined(conflicts.iter().filter(|one| one["conflict"] == "schema").map(|one| {
        let [branch, target] = ["branch", "target"].map(|side| {
            let definition: Value = serde_json::from_str(word(one, side)).expect("a definition is a document");
            word(&definition["definition"], "definition").to_owned()
        });
        format!("{}: branch {branch}, production {target}", word(one, "object"))
    }))
}

/// Where the migration fails in a rehearsal, the detail, and whether anything is different then.
fn rehearsed_failure(transcript: &Transcript) -> String {
    let report = transcript.document("branch rehearse failed.sql --role migrator --json");
    let failed = list(&report, "statements").iter().find(|one| one["state"] == "failed").expect("it failed");
    let left = list(&report["diff"], "databases").len();
    format!(
        "statement {}, line {}: {} It left {left} databases changed.",
        failed["number"],
        failed["line"],
        word(&failed["error"], "detail")
    )
}

/// Who would wait for the mended migration.
fn blocked(transcript: &Transcript) -> String {
    let output = transcript.of("branch rehearse mended.sql --role migrator").output;
    let section = output
        .split("\n\n")
        .find_map(|section| section.strip_prefix("Others would have waited, from when the locks were given:\n"));
    section.expect("somebody waits").trim().to_owned()
}

/// Strongest locks that each statement of it takes.
fn locks(transcript: &Transcript) -> String {
    let report = transcript.document("branch rehearse mended.sql --role migrator --stat --json");
    let strong = list(&report, "statements").iter().flat_map(|one| {
        let blocking = list(one, "locks").iter().filter(|lock| lock["blocks"] != "neither");
        blocking.map(move |lock| format!("{} {} on {}", one["number"], word(lock, "mode"), word(lock, "relation")))
    });
    joined(strong)
}

#[test]
fn twenty_questions_are_answered_from_the_transcript_alone() {
    let transcript = &Transcript::golden();
    let migration_is_gone = ["email_key", "lost"].map(|trace| {
        let all = rows(transcript, "branch log work --all");
        let kept: BTreeSet<&str> = all
            .iter()
            .filter(|row| row.statement.contains(trace) && row.outcome == "rolled back")
            .map(|row| row.application)
            .collect();
        joined(kept)
    });
    let asked = [
        ("How many statements did the branch run?", rows(transcript, "branch log work --all").len().to_string(), "200"),
        ("Whose were they?", applications(transcript), "agent-7 60; checkout 80; migrate 16; psql 19; report 25"),
        (
            "At which statement did the migration fail, and why?",
            stopped(transcript),
            "create unique index customers_email_key on customers (email_key): could not create unique index \"customers_email_key\"",
        ),
        (
            "What became of each of the migration's statements?",
            fates_of_migration(transcript),
            "done; rolled back; rolled back; rolled back; failed; failed; failed; rolled back",
        ),
        (
            "What else failed, by whose hand: the report's?",
            failed_of(transcript, "report"),
            "42501 update customers set tier = 'gold' where id = 1; 22012 select stock / (id - id) from products",
        ),
        (
            "And the agent's?",
            failed_of(transcript, "agent-7"),
            "23505 insert into orders (id, customer_id, product_id, quantity) values (17, 1, 1, 1); \
             23514 update products set stock = stock - 1000 where id = 4; 42601 selec count(*) from orders",
        ),
        ("Who undid what he had changed?", migration_is_gone.join(", "), "migrate, agent-7"),
        (
            "How many rows did the agent change for good?",
            rows_changed(transcript, "branch log work --application agent-7 --writes"),
            "51",
        ),
        (
            "Which statement last changed order 17?",
            changed_by(transcript, "branch blame work orders 17"),
            "agent-7 by clerk: update orders set state = 'delivered' where id = 17",
        ),
        (
            "Who acted as another role to change order 60?",
            changed_by(transcript, "branch blame work orders 60"),
            "psql by postgres (as clerk): update orders set state = 'returned' where id = 60",
        ),
        (
            "Which statement last changed product 9, though none names its new text?",
            changed_by(transcript, "branch blame work products 9"),
            "psql by postgres: do $$ begin update products set name = upper(name) where id = 9; end $$",
        ),
        (
            "Did the branch change order 99?",
            word(&transcript.document("branch blame work orders 99 --json"), "found").to_owned(),
            "unchanged",
        ),
        ("Which statement deleted order 30?", deleted_by(transcript), "agent-7: delete from orders where id = 30"),
        (
            "How many rows of which tables are different?",
            counts(transcript),
            "customers +0 ~50 -0; notes +1 ~0 -0; orders +20 ~3 -1; products +0 ~10 -0; visits +15 ~0 -0",
        ),
        (
            "Which orders are new, changed and gone?",
            format!(
                "{}, {:?}, {:?}",
                inserted(transcript),
                keys(transcript, "update", "new"),
                keys(transcript, "delete", "old")
            ),
            "101 to 120, [17, 18, 60], [30]",
        ),
        (
            "What was customer 37, and what is it now?",
            told(transcript, "customers", "id=37"),
            "email: C12@example.com -> c37@example.com email_key: NULL -> c37@example.com",
        ),
        (
            "What is different in the schema?",
            objects(transcript),
            "column title of table public.products renamed; table public.notes created; column email_key of table public.customers created; \
             view public.open_orders created; index public.customers_email_key of table public.customers created; \
             index public.customers_tier of table public.customers created; constraint notes_pkey of table public.notes created",
        ),
        (
            "Which rows would conflict with production, and how?",
            format!("{}; {}", conflicting_rows(transcript), sides(transcript, "public.products", "3")),
            "public.customers 25: both updated it; public.customers 45: the branch updated it; the target deleted it; \
             public.orders 101: both inserted a row with this key; public.products 3: both updated it; \
             stock was 100, branch 98, production 500",
        ),
        (
            "What would conflict in the schema?",
            both_made(transcript),
            "index public.customers_tier of table public.customers: \
             branch CREATE INDEX customers_tier ON public.customers USING btree (tier), \
             production CREATE INDEX customers_tier ON public.customers USING btree (tier, id)",
        ),
        (
            "Why would the migration fail on production today, and whom would the mended one stop?",
            format!("{} {}; {}", rehearsed_failure(transcript), blocked(transcript), locks(transcript)),
            "statement 5, line 5: Key (email_key)=(c12@example.com) is duplicated. It left 0 databases changed. \
             public.customers  reads and writes DURATION (statements 4 to 9); \
             4 ACCESS EXCLUSIVE on public.customers; 6 SHARE on public.customers",
        ),
    ];
    assert_eq!(asked.len(), 20);
    for (question, answer, expected) in asked {
        assert_eq!(answer, expected, "{question}");
    }
}
