//! A production server as a managed service gives it: no physical replication, and a role that is no superuser.

use ardent_test_pg::{TestPg, TestPgOptions};
use serde_json::Value;

use crate::House;

/// Who may come in: everybody, but nobody for physical replication.
pub const MANAGED_HBA: &str = "local replication all reject\nhost replication all all reject\nlocal all all trust\nhost all all 127.0.0.1/32 trust\n";

/// Such a server, with a database of role `app`, who may make tables in `public`.
pub fn managed(database: &str) -> TestPg {
    let options = TestPgOptions { hba: Some(MANAGED_HBA.to_owned()), ..TestPgOptions::default() };
    let production = TestPg::start(options.with_tcp().set("wal_level", "logical"));
    production.sql("create role app login replication");
    production.sql(&format!("create database {database} owner app"));
    production.sql_in(database, "grant create on schema public to app");
    production
}

/// What `app` connects to it with.
pub fn managed_url(production: &TestPg, database: &str) -> String {
    production.tcp_url("app", database)
}

impl House {
    /// Connects database `shop` in logical mode, as connector `shop`.
    pub fn connect_logical(&self, production: &TestPg, arguments: &[&str]) -> String {
        let url = managed_url(production, "shop");
        self.ok(
            &[&["connector", "create", "postgresql", url.as_str(), "--name", "shop", "--logical"], arguments].concat()
        )
    }

    /// Proves that production and the root branch of connector `shop` are equal; what was said.
    #[track_caller]
    pub fn assert_equal_to_production(&self) -> Value {
        let finished = self.ardent(&["--json", "connector", "verify", "shop"]);
        assert_eq!(finished.code, 0, "{finished:?}\n{}", self.log());
        serde_json::from_str(&finished.stdout).expect("JSON")
    }
}
