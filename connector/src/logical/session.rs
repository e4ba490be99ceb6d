//! SQL sessions on production and on the root branch, alike in all that values' texts depend on.

use std::sync::Arc;
use std::time::Duration;

use ardent_api::compute::{AGENT_ROLE, USUAL_DATABASES, is_closed_database};
use ardent_pg_wire::{ConnectConfig, ConnectMode, Connection, WireError, driver};
use tokio_postgres::{Client, Config, NoTls};

use crate::logical::config::RootAt;
use crate::logical::error::{LogicalError, filling, reading, root, source};

/// How values are written and read, on both sides and in the stream of changes: what is written on one side is the same on the other. No
/// search path: names of objects in values come with their schema. Statements mean what they mean everywhere.
const FORMATS: &str = "set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres'; set timezone = 'UTC'; \
     set extra_float_digits = 3; set bytea_output = 'hex'; set lc_monetary = 'C'; set xmloption = 'content'; set array_nulls = on; \
     set search_path = ''; set quote_all_identifiers = off; set standard_conforming_strings = on; set transform_null_equals = off";
/// Nothing that an administrator set for ordinary sessions ends ours or keeps it from writing, transactions are ordinary ones, and no
/// row is hidden from us without an error. Settings that this major does not know are left alone.
const PATIENCE: &str = "set row_security = off; set exit_on_error = off; set default_transaction_read_only = off; \
     set default_transaction_deferrable = off; set default_transaction_isolation = 'read committed'; \
     select pg_catalog.set_config(name, '0', false) from pg_catalog.pg_settings where name in \
     ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')";
/// On the root branch, whose database has production's settings: ours is the session of its superuser, in which no trigger fires, and
/// tables are made where all others are.
const ON_ROOT: &str = "set role none; set session_replication_role = replica; set default_tablespace = ''";
/// Libraries that production's sessions load need not be on this host.
const ROOT_OPTIONS: &str = "-c session_preload_libraries= -c local_preload_libraries=";
/// Connecting to a production server that does not answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A session on production.
pub(crate) async fn connect_source(url: &str) -> Result<Client, LogicalError> {
    let (mut config, tls) = driver(url)?;
    config.application_name("ardent");
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    let (client, connection) = config.connect(tls).await.map_err(source("connecting"))?;
    // It ends with the client; its errors reach the queries.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to production ended");
        }
    });
    client.batch_execute(&settings()).await.map_err(source("setting up a session"))?;
    Ok(client)
}

/// The same, to read tables in bulk.
pub(crate) async fn read_source(connect: &ConnectConfig) -> Result<Connection, LogicalError> {
    let connect = connect.clone().with_application_name("ardent");
    let mut connection = Connection::connect(&connect, ConnectMode::Sql).await.map_err(reading("connecting"))?;
    connection.query(&settings()).await.map_err(reading("setting up a session"))?;
    Ok(connection)
}

/// The same, for slots and streams of changes. One that keeps a snapshot is idle in a transaction for as long as rows are copied, and one
/// that makes a slot waits for locks.
pub(crate) async fn replicate_source(connect: &ConnectConfig) -> Result<Connection, WireError> {
    let mut connection = Connection::connect(connect, ConnectMode::Logical).await?;
    connection.query(&settings()).await?;
    Ok(connection)
}

/// A session on the root branch, in which no trigger fires.
pub(crate) async fn connect_root(at: &RootAt, database: &str) -> Result<Arc<Client>, LogicalError> {
    let mut config = Config::new();
    config.host_path(&at.socket_dir).port(at.port).user(AGENT_ROLE).dbname(database).application_name("ardent apply");
    config.options(ROOT_OPTIONS);
    let (client, connection) = config.connect(NoTls).await.map_err(root("connecting"))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to the root branch ended");
        }
    });
    client.batch_execute(&root_settings()).await.map_err(root("setting up a session"))?;
    Ok(Arc::new(client))
}

/// The same, to fill tables in bulk.
pub(crate) async fn fill_root(at: &RootAt, database: &str) -> Result<Connection, LogicalError> {
    let connect = ConnectConfig::unix(&at.socket_dir, at.port, AGENT_ROLE).with_database(database);
    let connect = connect.with_application_name("ardent apply").with_options(ROOT_OPTIONS);
    let mut connection = Connection::connect(&connect, ConnectMode::Sql).await.map_err(filling("connecting"))?;
    connection.query(&root_settings()).await.map_err(filling("setting up a session"))?;
    Ok(connection)
}

/// The same in whichever of the usual databases there is.
pub(crate) async fn connect_root_anywhere(at: &RootAt) -> Result<Arc<Client>, LogicalError> {
    let [first, other] = USUAL_DATABASES;
    match connect_root(at, first).await {
        Err(LogicalError::Root { source, .. }) if source.code().is_some_and(|code| is_closed_database(code.code())) => {
            connect_root(at, other).await
        }
        opened => opened,
    }
}

fn root_settings() -> String {
    format!("{ON_ROOT}; {}", settings())
}

/// The statements that make a session's texts and transactions alike on both sides.
fn settings() -> String {
    format!("{FORMATS}; {PATIENCE}")
}
