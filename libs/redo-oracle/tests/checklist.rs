//! `docs/verification/checklist.md`: which test covers which trap of reading stock WAL. The table is made from the tests' names,
//! `checklist_NUMBERS_what_they_show`; `ARDENT_UPDATE_DOCS=1` writes it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The traps, in order; the first has number 1.
const TRAPS: [&str; 68] = [
    "A version's LSN is its record's end, never moved past a page header",
    "Records span pages and segments; page headers are checked",
    "The CRC covers a record's body, then its header",
    "A switch pads the segment with what is not checked",
    "A record's start lies behind page headers",
    "A record that crash recovery gave up is dropped",
    "A gap is an error; progress is made where nothing is touched",
    "Each record's link to the one before is checked",
    "A timeline starts in the middle of a segment",
    "Damage in the middle is corruption, at the end it is the end",
    "Segments have the size of the source's",
    "Special block ids; a block of the relation before",
    "Images that are only for comparison are not applied; flags differ between majors",
    "Holes and all compressions",
    "Up to 32 images in one record",
    "An image is stamped unless its page is new",
    "An image or initialisation makes earlier history unneeded",
    "Redo of one block ignores the record's others",
    "Checksums are verified on import",
    "Extension is implicit",
    "Gaps read as zeros",
    "Reading past the end gives no stale data",
    "Truncation has flags for its forks and never grows one",
    "FSM truncation clears the last page's tail",
    "VM truncation clears the last page's tail",
    "Old blocks do not come back after truncation or drop",
    "Drops arrive in commits and aborts, prepared ones too",
    "Of unlogged relations only the init fork is kept",
    "Large relations have many files, in any order",
    "One key for a relation and for a database",
    "Heap records clear map bits without a reference",
    "An update makes one change for each map page",
    "Locks clear only the frozen bit; an insert of frozen tuples marks its page",
    "A bit is cleared where there is no map",
    "Setting map bits stamps the heap page only where hints are logged",
    "Map pages start from zeros",
    "Copies of databases, by file and by WAL",
    "A dropped database is in several tablespaces",
    "Relation maps, shared and of a database",
    "Empty databases have a folder",
    "Tablespaces are mapped",
    "Commits set the status of all subtransactions, over pages",
    "The parts of a commit come in order",
    "Every transaction id seen moves the next one",
    "Clog truncation drops segments and moves the oldest id",
    "The next OID wraps",
    "A shutdown checkpoint does not say what is running",
    "Checkpoint fields are kept up to date by every record",
    "Multixacts span pages and wrap",
    "New SLRU pages are zeros; page numbers are longer since 17",
    "Commit timestamps",
    "A prepared transaction's file has a CRC",
    "The end of a prepared transaction removes its file",
    "Replication origins",
    "Unknown records make their blocks unreadable and nothing else",
    "A record that reads sees what came before in its batch",
    "Layers newer than the manifest are removed",
    "A branch point is pinned before garbage collection can pass it",
    "Image layers hold the map forks too",
    "A base backup ends with pg_control",
    "A relation's size is that of the request's LSN",
    "References to what a fuzzy backup lacks must be explained",
    "Pages of a fuzzy backup are torn or newer",
    "Files that no branch needs are not imported",
    "The backup's label and checksums are believed, not its pg_control",
    "What bounds the slot on production is said",
    "Now on production is what it has flushed",
    "Files that no catalog names are found",
];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Test names by number, each with the file that has it.
fn tests() -> BTreeMap<usize, Vec<(String, String)>> {
    let mut found: BTreeMap<usize, Vec<(String, String)>> = BTreeMap::new();
    let mut folders = vec![top()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository can be read") {
            let path = entry.expect("an entry can be read").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && !name.starts_with('.') && name != "target" && name != "node_modules" {
                folders.push(path);
            } else if name.ends_with(".rs") {
                let text = fs::read_to_string(&path).expect("a source file can be read");
                let file = path.strip_prefix(top()).expect("it is in the repository").display().to_string();
                for (number, test) in text.split("fn checklist_").skip(1).flat_map(numbers_and_name) {
                    found.entry(number).or_default().push((test, file.clone()));
                }
            }
        }
    }
    found.values_mut().for_each(|tests| tests.sort());
    found
}

/// `21_22_what_it_shows(...` is a test of 21 and of 22.
fn numbers_and_name(rest: &str) -> Vec<(usize, String)> {
    let name: String = rest.chars().take_while(|char| char.is_ascii_alphanumeric() || *char == '_').collect();
    let numbers = name.split('_').map_while(|part| part.parse().ok());
    numbers.map(|number| (number, format!("checklist_{name}"))).collect()
}

#[test]
fn every_trap_has_a_test_and_the_table_says_which() {
    let tests = tests();
    let mut table = String::from(
        "# The traps of reading stock WAL, and their tests\n\nMade from the tests' names by `ARDENT_UPDATE_DOCS=1 cargo test -p \
         ardent-redo-oracle --test checklist`, and checked by it.\n\n| No. | Trap | Tests |\n|---:|---|---|\n",
    );
    let mut missing = Vec::new();
    for (number, trap) in (1..).zip(TRAPS) {
        let named = tests.get(&number).map(Vec::as_slice).unwrap_or_default();
        if named.is_empty() {
            missing.push(number);
        }
        let cells = named.iter().map(|(test, file)| format!("`{test}` ({file})"));
        let cell = cells.collect::<Vec<_>>().join("<br>");
        writeln!(table, "| {number} | {trap} | {cell} |").expect("strings take everything");
    }
    assert!(missing.is_empty(), "no test is named after {missing:?}");
    assert!(tests.keys().all(|number| (1..=TRAPS.len()).contains(number)), "{:?}", tests.keys());
    let path = top().join("docs/verification/checklist.md");
    if std::env::var_os("ARDENT_UPDATE_DOCS").is_some() {
        fs::write(&path, &table).expect("the table can be written");
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == table, "{} is out of date: run this test with ARDENT_UPDATE_DOCS=1", path.display());
}
