//! The agent's own short sessions in its Postgres.

use std::path::{Path, PathBuf};

use ardent_api::compute::{AGENT_ROLE, USUAL_DATABASES, is_closed_database};
use tokio_postgres::{NoTls, SimpleQueryMessage};

use crate::layout::PORT;

/// What the branch's users may have set for the role or the database must not reach the agent.
const OPTIONS: &str = "-c statement_timeout=0 -c lock_timeout=0 -c role=none -c search_path=pg_catalog \
    -c default_transaction_isolation=read\\ committed -c client_encoding=utf8 -c session_preload_libraries= \
    -c local_preload_libraries=";

/// Asks the compute whose sockets are in `folder`; every question is a session of its own.
#[derive(Clone, Debug)]
pub(crate) struct Sessions {
    folder: PathBuf,
}

/// Rows of text; absent: null.
pub(crate) type Rows = Vec<Vec<Option<String>>>;

impl Sessions {
    pub(crate) fn new(folder: &Path) -> Self {
        Sessions { folder: folder.to_owned() }
    }

    /// Runs one query in whichever of the usual databases there is.
    pub(crate) async fn ask(&self, query: &str) -> Result<Rows, tokio_postgres::Error> {
        let [first, other] = USUAL_DATABASES;
        match self.ask_in(first, query).await {
            Err(error) if error.code().is_some_and(|code| is_closed_database(code.code())) => {
                self.ask_in(other, query).await
            }
            answer => answer,
        }
    }

    async fn ask_in(&self, database: &str, query: &str) -> Result<Rows, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.folder).port(PORT).user(AGENT_ROLE).dbname(database);
        config.application_name("ardent agent").options(OPTIONS);
        let (client, connection) = config.connect(NoTls).await?;
        // The client goes with the question, and the connection ends with it.
        let ask = async move { client.simple_query(query).await };
        let (answer, _) = tokio::join!(ask, connection);
        let rows = answer?.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
            _ => None,
        });
        Ok(rows.collect())
    }
}
