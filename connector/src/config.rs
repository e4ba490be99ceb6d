//! What a connector connects.

use ardent_api::addr::ServiceAddr;
use ardent_api::wal_service::Membership;
use ardent_pg_wire::{ConfigError, ConnectConfig, ConnectMode, Connection};
use ardent_types::{TenantId, TimelineId};

use crate::archive::Archive;
use crate::error::ConnectorError;

/// One connector.
#[derive(Clone)]
pub struct ConnectorConfig {
    /// Tenant.
    pub tenant: TenantId,
    /// Root timeline.
    pub timeline: TimelineId,
    /// The production server's URL with its password.
    pub url: String,
    /// Ask production for an immediate checkpoint when the import begins.
    pub fast: bool,
    /// Most bytes per second of the base backup.
    pub max_rate_bytes: Option<u64>,
    /// Where WAL is that production has removed.
    pub archive: Option<Archive>,
    /// Page server.
    pub pageserver: ServiceAddr,
    /// Safekeepers.
    pub safekeepers: Vec<ServiceAddr>,
    /// Who they are, once they were changed.
    pub members: Membership,
    /// Service token with the right to import and to make the timeline.
    pub token: String,
}

impl std::fmt::Debug for ConnectorConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectorConfig")
            .field("tenant", &self.tenant)
            .field("timeline", &self.timeline)
            .finish_non_exhaustive()
    }
}

impl ConnectorConfig {
    /// The name of its replication slot on production: `ardent_` and the root timeline's id.
    pub fn slot_name(&self) -> String {
        format!("ardent_{}", self.timeline)
    }

    pub(crate) fn connect_config(&self) -> Result<ConnectConfig, ConfigError> {
        Ok(ConnectConfig::parse(&self.url)?.with_application_name("ardent"))
    }

    pub(crate) async fn replication(&self) -> Result<Connection, ConnectorError> {
        Ok(Connection::connect(&self.connect_config()?, ConnectMode::Replication).await?)
    }

    pub(crate) async fn sql(&self) -> Result<Connection, ConnectorError> {
        Ok(Connection::connect(&self.connect_config()?, ConnectMode::Sql).await?)
    }
}

impl From<ConfigError> for ConnectorError {
    fn from(error: ConfigError) -> ConnectorError {
        ConnectorError::Production(error.into())
    }
}
