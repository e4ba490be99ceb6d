//! The same proof for majors other than 15 (`ARDENT_TEST_MAJORS`, as in "16,17,18"; one of them unless it says otherwise).

mod support;

use ardent_pg_redo::HintBits;
use ardent_redo_oracle::{Expectations, Leave, WalFolder};
use ardent_test_pg::{StopMode, TestPg, other_majors};
use support::damage::Damage;
use support::{WORKLOADS, options, run_sql_file, start_with_base, verify, verify_with_end_state};

#[test]
fn every_record_type_of_other_majors_redoes_as_postgres_does() {
    for major in other_majors() {
        // The servers of other majors know no other compression.
        let mut server = TestPg::start(options().major(major).set("wal_compression", "pglz"));
        for name in WORKLOADS {
            run_sql_file(&server, name);
        }
        server.stop(StopMode::Fast);
        let mut report = verify(&server, hint_bits(major));
        let list = Expectations::of_major(major).expect("there is a list for each major");
        report.expect(&list.clone().of_blocks());
        assert!(report.passed(), "Postgres {major}\n{report}");
        let total = report.total();
        assert!(total.checked > 100_000 && total.lsns_checked > 100_000, "Postgres {major}\n{report}");
        assert!(total.first_seen < 1_000, "Postgres {major}\n{report}");
        spoilt_records_never_panic(&server, &list);
    }
}

/// Copies of databases are logged with empty maps. Without images later records meet those, which recent minors reference and stamp.
#[test]
fn without_full_page_writes_other_majors_redo_as_postgres_does() {
    for major in other_majors() {
        let (mut server, base) = start_with_base(options().major(major).set("full_page_writes", "off"));
        run_sql_file(&server, "cluster.sql");
        server.stop(StopMode::Fast);
        let report = verify_with_end_state(&server, base.path(), hint_bits(major));
        assert!(report.passed(), "Postgres {major}\n{report}");
        let copied = report.end_state.as_ref().expect("both oracles").leaves.get(&Leave::MapLoggedEmpty);
        assert!(copied.is_some_and(|count| count.differing > 0), "Postgres {major}\n{report}");
    }
}

fn spoilt_records_never_panic(server: &TestPg, list: &Expectations) {
    let mut wal = WalFolder::open(&server.data_dir().join("pg_wal"), None, None).expect("the WAL is there");
    let (mut damage, major) = (Damage::new(), wal.major());
    while let Some(record) = wal.next_record().expect("the WAL is whole") {
        damage.redo_damaged(&record, major);
    }
    damage.assert_reached(list);
}

/// Checksums are on by default since 18.
fn hint_bits(major: u32) -> HintBits {
    if major >= 18 { HintBits::Logged } else { HintBits::NotLogged }
}
