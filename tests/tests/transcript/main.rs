//! What people learn from `branch log`, `blame`, `diff`, `apply --dry-run` and `rehearse` about 200 statements that were run on a
//! branch, a failed migration among them, while production went on.
//!
//! ```text
//!  script ──► ardent up ──► commands' output ─ plain ─► golden.txt ──► questions
//! ```
//!
//! `golden.txt` holds what the commands print; questions are answered from nothing else. `make test-full AREA=diff` runs the commands
//! and compares; with `ARDENT_UPDATE_TRANSCRIPT=1` it writes the file anew.

mod plain;
mod questions;
mod record;
mod script;

use std::{env, fs};

use ardent_test_pg::TestPg;
use ardent_tests::{House, production_options};
use record::Recorder;

/// What is asked of the branch. `shop` is the connector.
const COMMANDS: &[&str] = &[
    "branch log work --all",
    "branch log work --failed --ndjson",
    "branch log work --application agent-7 --writes",
    "branch log work --application migrate --all",
    "branch log work --writes --grep 'delete from orders' --ndjson",
    "branch log work --role clerk --application psql --json",
    "branch blame work orders 17",
    "branch blame work orders 17 --json",
    "branch blame work orders 60",
    "branch blame work products 9",
    "branch blame work customers 37 --json",
    "branch blame work orders 99 --json",
    "branch blame work orders 30",
    "branch diff work",
    "branch diff work --stat",
    "branch diff work --stat --json",
    "branch diff work --schema-only --json",
    "branch diff work --table orders --json",
    "branch diff work --sql",
    "branch apply work --to shop --dry-run",
    "branch apply work --to shop --dry-run --json",
    "branch apply work --to shop --dry-run --data-only --prefer target",
    "branch rehearse failed.sql --role migrator",
    "branch rehearse failed.sql --role migrator --json",
    "branch rehearse mended.sql --role migrator",
    "branch rehearse mended.sql --role migrator --stat --json",
];

#[test]
fn commands_print_what_is_in_the_golden_transcript() {
    let is_to_be_written = env::var_os("ARDENT_UPDATE_TRANSCRIPT").is_some();
    if !is_to_be_written && env::var_os("ARDENT_TRANSCRIPT").is_none() {
        eprintln!("not run: make test-full AREA=diff (ARDENT_TRANSCRIPT=1) does");
        return;
    }
    let production = TestPg::start(production_options());
    script::PRODUCTION.iter().for_each(|statement| drop(production.sql(statement)));
    let house = House::start();
    house.connect("shop", &production.tcp_url("postgres", "postgres"));
    house.branch("work", "shop");
    let visits = script::visits();
    assert_eq!(visits.iter().map(|visit| visit.statements.len()).sum::<usize>(), 200);
    for visit in visits {
        let url = house.json(&["branch", "password", "work", "--role", visit.role]);
        visit.run(url["url"].as_str().expect("a connection string"));
    }
    script::MEANWHILE.iter().for_each(|statement| drop(production.sql(statement)));
    let file = |name: &str, statements: &[&str]| {
        let text: String = statements.iter().map(|statement| format!("{statement};\n")).collect();
        fs::write(house.data_dir().join("..").join(name), text).expect("the file can be written");
    };
    file("failed.sql", script::FAILED);
    file("mended.sql", &[&[script::MEND], script::FAILED].concat());

    let mut recorder = Recorder::new(&house);
    COMMANDS.iter().for_each(|command| recorder.run(command));
    let transcript = recorder.finish();
    if is_to_be_written {
        return fs::write(record::golden_path(), transcript).expect("the transcript can be written");
    }
    let golden = fs::read_to_string(record::golden_path()).expect("the transcript is committed");
    let differs = transcript.lines().zip(golden.lines()).enumerate().find(|(_, (now, then))| now != then);
    assert!(
        transcript == golden,
        "golden.txt is not what the commands print (first difference, line and both: {differs:?}); see it, and write it anew with \
         ARDENT_UPDATE_TRANSCRIPT=1"
    );
}
