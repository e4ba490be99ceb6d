//! `docs/cli.md` is made from the command line itself; a test keeps it true.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Command, CommandFactory as _};

use ardent_api::control::ApiErrorCode;

use crate::args::Cli;

const HEAD: &str = "# The `ardent` command

Made from the program's own help; `ARDENT_UPDATE_DOCS=1 cargo test -p ardent reference` writes it anew.

Data goes to standard output, everything else to standard error. With `--json` every command prints one flat object (`schema_version`,
ISO 8601 times, null for what is absent), and errors are `{\"schema_version\":1,\"error\":{\"code\",\"message\",\"hint\"}}` on standard error.
Settings are taken from the flag, then the environment (`ARDENT_URL`, `ARDENT_TOKEN`, `ARDENT_BRANCH`,
`ARDENT_CONNECTOR`, `ARDENT_SOURCE_URL`, `ARDENT_DATA_DIR`, `ARDENT_STORE`), then the nearest `.ardent` file upward (`branch = NAME`,
`connector = NAME`, `url = URL`; it holds no secret), then the user's configuration (`~/.config/ardent/config.json`, 0600), then the default.

## Exit codes

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | failed |
| 2 | wrong usage, or a failed preflight |
| 3 | differences found (`--exit-code`) |
| 4 | not authenticated |
| 5 | not found |
| 6 | conflict |
| 7 | timed out |

## Error codes

| code | exit code | HTTP status |
| --- | --- | --- |
";

fn reference() -> String {
    let mut out = HEAD.to_owned();
    for code in ApiErrorCode::ALL {
        writeln!(out, "| `{code}` | {} | {} |", code.exit_code(), code.http_status()).expect("into a string");
    }
    out.push_str("\n## Commands\n");
    let mut root = Cli::command().term_width(100);
    root.build();
    write_command(&mut out, &root, &mut Vec::new());
    out
}

fn write_command(out: &mut String, command: &Command, path: &mut Vec<String>) {
    path.push(command.get_name().to_owned());
    let help = command.clone().term_width(100).render_long_help().to_string();
    writeln!(out, "\n### {}\n\n```text\n{}\n```", path.join(" "), help.trim_end()).expect("into a string");
    for sub in command.get_subcommands() {
        if !sub.is_hide_set() && sub.get_name() != "help" {
            write_command(out, sub, path);
        }
    }
    path.pop();
}

#[test]
fn the_reference_is_what_the_program_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let made: String = reference().lines().map(|line| format!("{}\n", line.trim_end())).collect();
    if std::env::var_os("ARDENT_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &made).expect("docs/cli.md is written");
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = made.lines().zip(there.lines()).find(|(made, there)| made != there);
    assert!(
        made == there,
        "docs/cli.md is not what the program says (first difference: {differs:?}); write it anew with ARDENT_UPDATE_DOCS=1"
    );
}
