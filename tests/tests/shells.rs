//! What shells complete beside bash, which `branches.rs` presses the key in. `make test-full AREA=packages` installs them.

use std::fs;

use ardent_test_pg::TestPg;
use ardent_tests::{House, production_options};

#[test]
fn zsh_and_fish_complete_commands_and_names_of_branches() {
    if std::env::var_os("ARDENT_SHELLS").is_none() {
        eprintln!(
            "ARDENT_SHELLS is not set: make test-full AREA=packages installs zsh and fish, and completes in them"
        );
        return;
    }
    let production = TestPg::start(production_options());
    let house = House::start();
    house.connect("main", &production.tcp_url("postgres", "postgres"));
    house.branch("one", "main");
    house.branch("two", "main");
    house.branch("two-more", "main");
    let path = format!("PATH={}:/usr/bin:/bin", house.program().parent().expect("it is in a folder").display());

    // In a folder of functions, as packages have it: the first press has to answer too.
    let functions = house.data_dir().join("functions");
    fs::create_dir(&functions).expect("a folder can be made");
    fs::write(functions.join("_ardent"), house.ok(&["completions", "zsh"])).expect("written");
    let functions = functions.to_str().expect("UTF-8");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/press_tab.zsh");
    let zsh = |line: &str| {
        let finished = house.other("env", &[&path, "zsh", "-f", script, functions, line]);
        assert_eq!(finished.code, 0, "{finished:?}");
        finished.stdout
    };
    let becomes = |line: &str, expect: &str| {
        let shown = zsh(line);
        assert!(shown.contains(&format!("[line: {expect}]")), "{line:?}: {shown}");
    };
    becomes("ardent branch inf", "ardent branch info ");
    becomes("ardent branch info o", "ardent branch info one ");
    becomes("ardent psql tw", "ardent psql two");
    becomes("ardent branch create x --from tw", "ardent branch create x --from two");
    becomes("ardent connector status ", "ardent connector status main ");
    let offered = zsh("ardent branch delete ");
    let offered: Vec<&str> = offered.split_whitespace().collect();
    for name in ["one", "two", "two-more"] {
        assert!(offered.contains(&name), "{name}: {offered:?}");
    }
    assert!(!offered.contains(&"main"), "a root goes with its connector: {offered:?}");
    assert!(!offered.iter().any(|word| word.starts_with('-')), "flags stand among names: {offered:?}");
    becomes("ardent branch info one --js", "ardent branch info one --json ");

    // Sourced, as a line of a .zshrc has it.
    let sourced = "autoload -Uz compinit && compinit -D -u && source <(ardent completions zsh)";
    let finished = house.other("env", &[&path, "zsh", "-f", "-c", sourced]);
    assert_eq!((finished.code, finished.stderr.as_str()), (0, ""));

    let fish = |line: &str| -> Vec<String> {
        let press = format!("ardent completions fish | source; complete -C '{line}'");
        let finished = house.other("env", &[&path, "fish", "--no-config", "-c", &press]);
        assert_eq!((finished.code, finished.stderr.as_str()), (0, ""), "{finished:?}");
        // What a word is for stands behind a tab.
        let words = finished.stdout.lines().filter_map(|line| line.split('\t').next()).map(str::to_owned);
        words.filter(|word| !word.starts_with('-')).collect()
    };
    assert_eq!(fish("ardent branch inf"), ["info"]);
    assert_eq!(fish("ardent branch info t"), ["two", "two-more"]);
    assert_eq!(fish("ardent psql "), ["main", "one", "two", "two-more"]);
    assert_eq!(fish("ardent branch create x --from o"), ["one"]);
    assert_eq!(fish("ardent connector status "), ["main"]);
    assert_eq!(fish("ardent --url http://127.0.0.1:1 branch info t"), [""; 0]);
}
