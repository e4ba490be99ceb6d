//! The same proof for majors other than 15 (`ARDENT_TEST_MAJORS`, as in "16,17,18"; one of them unless it says otherwise).

mod support;

use ardent_pg_redo::HintBits;
use ardent_redo_oracle::Expectations;
use ardent_test_pg::{StopMode, TestPg, other_majors};
use support::{WORKLOADS, options, run_sql_file, verify};

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
        report.expect(&Expectations::of_major(major).expect("there is a list for each major"));
        assert!(report.passed(), "Postgres {major}\n{report}");
        let total = report.total();
        assert!(total.checked > 100_000 && total.lsns_checked > 100_000, "Postgres {major}\n{report}");
        assert!(total.first_seen < 1_000, "Postgres {major}\n{report}");
    }
}

/// Checksums are on by default since 18.
fn hint_bits(major: u32) -> HintBits {
    if major >= 18 { HintBits::Logged } else { HintBits::NotLogged }
}
