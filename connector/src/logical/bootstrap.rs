//! An empty cluster of the source's major, encoding and locale, with an empty database by the name of the source's, imported as any
//! production server is: the root branch begins with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use ardent_api::page_service::ManageRequest;
use ardent_page_client::{Binding, PageClient};
use ardent_pg_wire::{ConnectMode, Connection};
use ardent_types::sql::quoted;

use crate::config::ConnectorConfig;
use crate::error::ConnectorError;
use crate::follow::{FollowStatus, follow};
use crate::import::{Imported, import, read_settings};
use crate::logical::config::LogicalConfig;
use crate::logical::error::{LogicalError, source};
use crate::logical::program;
use crate::logical::session::connect_source;

/// How long the empty server may take to start.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long the page server may take to ingest the little that the empty server writes.
const INGEST_PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// The database that every cluster has.
const MAINTENANCE_DATABASE: &str = "postgres";
/// Its socket's number.
const PORT: u16 = 5432;
/// Settings of production that are about its size, not about what sessions see.
const SIZES: [&str; 3] = ["max_", "autovacuum_", "vacuum_"];

/// What the empty cluster has in common with production.
#[derive(Debug)]
struct Likeness {
    major: u32,
    superuser: String,
    encoding: String,
    collate: String,
    ctype: String,
    provider: String,
    locale: Option<String>,
}

impl Likeness {
    async fn read(url: &str) -> Result<Likeness, LogicalError> {
        let client = connect_source(url).await?;
        let row = client
            .query_one(
                "select (current_setting('server_version_num')::int / 10000)::text, \
                 (select rolname::text from pg_roles where oid = 10), pg_encoding_to_char(encoding)::text, \
                 datcollate::text, datctype::text, datlocprovider::text, \
                 coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') \
                 from pg_database d where datname = current_database()",
                &[],
            )
            .await
            .map_err(source("reading its locale"))?;
        let superuser: Option<String> = row.get(1);
        Ok(Likeness {
            major: row.get::<_, String>(0).parse().unwrap_or_default(),
            // A name that is kept for Postgres's own roles cannot be given.
            superuser: superuser.filter(|name| !name.starts_with("pg_")).unwrap_or_else(|| "postgres".to_owned()),
            encoding: row.get(2),
            collate: row.get(3),
            ctype: row.get(4),
            provider: row.get(5),
            locale: row.get(6),
        })
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            "--no-sync".to_owned(),
            "--auth=trust".to_owned(),
            "--no-instructions".to_owned(),
            "--locale=C".to_owned(),
            format!("--username={}", self.superuser),
            format!("--encoding={}", self.encoding),
            format!("--lc-collate={}", self.collate),
            format!("--lc-ctype={}", self.ctype),
        ];
        let locale = self.locale.as_deref().unwrap_or_default();
        match self.provider.as_str() {
            "i" => arguments.extend(["--locale-provider=icu".to_owned(), format!("--icu-locale={locale}")]),
            "b" => arguments.extend(["--locale-provider=builtin".to_owned(), format!("--builtin-locale={locale}")]),
            // Only where there are others to choose from.
            _ => arguments.extend((self.major >= 15).then(|| "--locale-provider=libc".to_owned())),
        }
        arguments
    }
}

/// Makes the root timeline, on page server and safekeepers, out of an empty cluster. It can be read, and written by a compute, once
/// the page server has ingested it. Settings are production's.
pub async fn bootstrap(config: &LogicalConfig) -> Result<Imported, LogicalError> {
    let likeness = Likeness::read(&config.connector.url).await?;
    let mut settings = settings(&config.connector).await?;
    settings.retain(|name, _| !SIZES.iter().any(|prefix| name.starts_with(prefix)));
    let folder = program::folder().map_err(cannot_make(&std::env::temp_dir()))?;
    let mut server = EmptyServer::start(config, &likeness, folder.path()).await?;
    let local = ConnectorConfig {
        url: server.url(&likeness.superuser),
        fast: true,
        max_rate_bytes: None,
        archive: None,
        ..config.connector.clone()
    };
    let imported = import_all(&local).await;
    server.stop().await;
    Ok(Imported { settings, ..imported? })
}

/// Production's settings. Those that are set for the connector's role or database can be asked only where physical replication is let in;
/// elsewhere they are left at Postgres's defaults. What is set for the database and for roles comes to the root branch by itself.
async fn settings(config: &ConnectorConfig) -> Result<BTreeMap<String, String>, LogicalError> {
    let found = read_settings(&mut config.sql().await?).await?;
    if found.hidden.is_empty() {
        return Ok(found.known);
    }
    let (known, hidden) = (found.known.clone(), found.hidden.join(", "));
    let asked = async { found.server_wide(&mut config.replication().await?).await };
    Ok(asked.await.unwrap_or_else(|error| {
        tracing::warn!(
            settings = hidden,
            error = %error.chain(),
            "settings are hidden by what is set for the connector's role or database: branches have Postgres's defaults"
        );
        known
    }))
}

/// Imports the empty server, and follows it until the page server has all that makes the copy consistent.
async fn import_all(local: &ConnectorConfig) -> Result<Imported, LogicalError> {
    let (progress, _) = mpsc::channel(1);
    let imported = import(local, progress).await?;
    let binding = Binding { tenant: local.tenant, timeline: local.timeline, token: local.token.clone() };
    let mut client = PageClient::connect(&local.pageserver, &binding).await.map_err(ConnectorError::from)?;
    let request = ManageRequest::FollowWal { timeline: local.timeline, safekeepers: local.safekeepers.clone() };
    client.manage(request).await.map_err(ConnectorError::from)?;
    let (status_in, _status) = watch::channel(FollowStatus::default());
    let cancel = CancellationToken::new();
    let following = follow(local, cancel.clone(), status_in);
    tokio::pin!(following);
    tokio::select! {
        ended = &mut following => return Err(ended.err().unwrap_or(ConnectorError::StreamEnded).into()),
        // The safekeepers hand out only what they know a quorum to have, and it is the one who writes that tells them.
        reached = client.wait_lsn(imported.end_lsn, INGEST_PATIENCE) => reached.map_err(ConnectorError::from).map(drop)?,
    }
    cancel.cancel();
    following.await?;
    Ok(imported)
}

/// A server with nothing in it, for as long as it is imported.
struct EmptyServer {
    child: Child,
    folder: PathBuf,
}

impl EmptyServer {
    async fn start(config: &LogicalConfig, likeness: &Likeness, folder: &Path) -> Result<Self, LogicalError> {
        let missing = LogicalError::Missing { name: "postgres", major: likeness.major };
        let bin = config.programs.get(&likeness.major).ok_or(missing)?;
        let initdb = bin.join("initdb");
        let data = folder.join("data");
        let mut command = program::command(&initdb);
        command.args(likeness.arguments()).arg("-D").arg(&data);
        program::output(command, &initdb).await?;
        let postgres = bin.join("postgres");
        let log = folder.join("log");
        let file = std::fs::File::create(&log).map_err(cannot_make(&log))?;
        let mut command = program::command(&postgres);
        command.arg("-D").arg(&data).arg("-k").arg(folder).args(["-p", &PORT.to_string()]);
        for setting in ["listen_addresses=", "fsync=off", "autovacuum=off", "shared_buffers=16MB", "wal_level=replica"]
        {
            command.args(["-c", setting]);
        }
        let failed = |source| LogicalError::Program { program: postgres.clone(), source };
        let child = command.stdout(Stdio::null()).stderr(file).spawn().map_err(failed)?;
        let mut server = EmptyServer { child, folder: folder.to_owned() };
        let mut connection = server.wait_until_ready(&likeness.superuser, &log).await?;
        server.make_database(&mut connection, config.connector.connect_config()?.database()).await?;
        Ok(server)
    }

    /// Here it is a copy of files. On a root branch it would be pages fetched one by one, and written to its log.
    async fn make_database(&self, connection: &mut Connection, name: &str) -> Result<(), LogicalError> {
        if name == MAINTENANCE_DATABASE {
            return Ok(());
        }
        let create = format!("create database {} template template0 strategy file_copy", quoted(name));
        let made = connection.query(&create).await;
        made.map(drop)
            .map_err(|error| LogicalError::Failed { program: "postgres".to_owned(), message: error.to_string() })
    }

    fn url(&self, superuser: &str) -> String {
        let encode = |text: &str| -> String { text.bytes().map(|byte| format!("%{byte:02X}")).collect() };
        let folder = encode(&self.folder.to_string_lossy());
        format!("postgresql://{}@{folder}:{PORT}/{MAINTENANCE_DATABASE}", encode(superuser))
    }

    async fn wait_until_ready(&mut self, superuser: &str, log: &Path) -> Result<Connection, LogicalError> {
        let config = ardent_pg_wire::ConnectConfig::parse(&self.url(superuser))?;
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let error = match Connection::connect(&config, ConnectMode::Sql).await {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            if self.child.try_wait().ok().flatten().is_some() || Instant::now() >= deadline {
                let printed = std::fs::read(log).unwrap_or_default();
                let message = format!("{error}: {}", program::tail(&printed));
                return Err(LogicalError::Failed { program: "postgres".to_owned(), message });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// At once: nothing in it is needed any more.
    async fn stop(&mut self) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // An error means that it has ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
        }
        if let Err(error) = self.child.wait().await {
            tracing::warn!(%error, "an empty server that was imported cannot be waited for");
        }
    }
}

fn cannot_make(path: &Path) -> impl Fn(std::io::Error) -> LogicalError {
    let path = path.to_owned();
    move |source| LogicalError::Program { program: path.clone(), source }
}
