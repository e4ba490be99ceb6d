//! Timelines of a safekeeper: create, delete, look at.

use ardent_api::addr::ServiceAddr;
use ardent_api::wal_service::{
    CAN_CHANGE_MEMBERS, CAN_TELL_STATUS, CopySource, ManageReply, ManageRequest, MemberStanding, Membership,
    PromisedTerm, Request, Response, SafekeeperStatus, TimelineOutline, TimelineSpec, TimelineStatus,
};
use ardent_types::{DiskId, TenantId, TimelineId};

use crate::connection::{Binding, Receiver, Sender, connect};
use crate::error::ClientError;

/// What a safekeeper of an older version lacks.
pub(crate) const NO_MEMBERS: &str = "does not know that safekeepers can change";

/// A connection for management, bound to a tenant. One request at a time.
pub struct SafekeeperClient {
    address: ServiceAddr,
    sender: Sender,
    receiver: Receiver,
    next_id: u64,
}

impl SafekeeperClient {
    /// Connects. The token must allow the tenant; creating and deleting need management rights.
    pub async fn connect(address: &ServiceAddr, tenant: TenantId, token: &str) -> Result<Self, ClientError> {
        Self::connect_to_timeline(address, tenant, TimelineId::NONE, token).await
    }

    /// Connects with a token that is bound to one timeline: only requests about that timeline are allowed.
    pub async fn connect_to_timeline(
        address: &ServiceAddr,
        tenant: TenantId,
        timeline: TimelineId,
        token: &str,
    ) -> Result<Self, ClientError> {
        let binding = Binding { tenant, timeline, token: token.to_owned() };
        let (sender, receiver) = connect(address, &binding).await?;
        Ok(SafekeeperClient { address: address.clone(), sender, receiver, next_id: 1 })
    }

    async fn ask(&mut self, request: ManageRequest) -> Result<ManageReply, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        self.sender.send(&Request::Manage { id, request }).await?;
        match self.receiver.next().await? {
            Response::Manage { id: answered, reply } if answered == id => Ok(reply),
            _ => Err(ClientError::unexpected(&self.address)),
        }
    }

    async fn ask_done(&mut self, request: ManageRequest) -> Result<(), ClientError> {
        match self.ask(request).await? {
            ManageReply::Done => Ok(()),
            _ => Err(ClientError::unexpected(&self.address)),
        }
    }

    /// Makes a timeline. The same specification again is no error.
    pub async fn create_timeline(&mut self, spec: TimelineSpec) -> Result<(), ClientError> {
        self.ask_done(ManageRequest::CreateTimeline { spec }).await
    }

    /// Forgets a timeline and its WAL. One that does not exist is no error.
    pub async fn delete_timeline(&mut self, timeline: TimelineId) -> Result<(), ClientError> {
        self.ask_done(ManageRequest::DeleteTimeline { timeline }).await
    }

    /// Facts about a timeline.
    pub async fn status(&mut self, timeline: TimelineId) -> Result<TimelineStatus, ClientError> {
        match self.ask(ManageRequest::TimelineStatus { timeline }).await? {
            ManageReply::Timeline(status) => Ok(status),
            _ => Err(ClientError::unexpected(&self.address)),
        }
    }

    /// Facts about the safekeeper as a whole, with a token that is bound to no tenant. One of an older version, which cannot tell them, is not asked.
    pub async fn safekeeper_status(&mut self) -> Result<SafekeeperStatus, ClientError> {
        self.expect_ability(CAN_TELL_STATUS, "cannot tell how it is")?;
        match self.ask(ManageRequest::SafekeeperStatus).await? {
            ManageReply::Safekeeper(status) => Ok(status),
            _ => Err(ClientError::unexpected(&self.address)),
        }
    }

    fn expect_ability(&self, ability: u32, without: &str) -> Result<(), ClientError> {
        if self.receiver.peer_can(ability) {
            return Ok(());
        }
        let what = format!("its version is older, and {without}");
        Err(ClientError::Protocol { address: self.address.clone(), what })
    }

    async fn ask_of_members(&mut self, request: ManageRequest) -> Result<ManageReply, ClientError> {
        self.expect_ability(CAN_CHANGE_MEMBERS, NO_MEMBERS)?;
        self.ask(request).await
    }

    /// Which disk it is.
    pub async fn identify(&mut self) -> Result<DiskId, ClientError> {
        match self.ask_of_members(ManageRequest::Identify).await? {
            ManageReply::Disk { disk } => Ok(disk),
            _ => Err(ClientError::unexpected(&self.address)),
        }
    }

    /// Whether no tenant has a timeline there. Needs a token that is bound to no tenant.
    pub async fn is_empty(&mut self) -> Result<bool, ClientError> {
        match self.ask_of_members(ManageRequest::IsEmpty).await? {
            ManageReply::Empty { is_empty } => Ok(is_empty),
            _ => Err(ClientError::unexpected(&self.address)),
        }
    }

    /// What one that joins has to begin with.
    pub async fn outline(&mut self, timeline: TimelineId) -> Result<TimelineOutline, ClientError> {
        match self.ask_of_members(ManageRequest::TimelineOutline { timeline }).await? {
            ManageReply::Outline(outline) => Ok(*outline),
            _ => Err(ClientError::unexpected(&self.address)),
        }
    }

    /// Lets it copy a timeline from another safekeeper; one that it has stays as it is. May take as long as the WAL is large.
    pub async fn copy_timeline(&mut self, source: CopySource) -> Result<(), ClientError> {
        match self.ask_of_members(ManageRequest::CopyTimeline { source }).await? {
            ManageReply::Done => Ok(()),
            _ => Err(ClientError::unexpected(&self.address)),
        }
    }

    /// Tells it who the members are and what they have promised, and gives where it stands then.
    pub async fn configure(
        &mut self,
        timeline: TimelineId,
        membership: Membership,
        promise: Option<PromisedTerm>,
    ) -> Result<MemberStanding, ClientError> {
        match self.ask_of_members(ManageRequest::Configure { timeline, membership, promise }).await? {
            ManageReply::Standing(standing) => Ok(*standing),
            _ => Err(ClientError::unexpected(&self.address)),
        }
    }

    /// The tenant's timelines.
    pub async fn list(&mut self) -> Result<Vec<TimelineId>, ClientError> {
        match self.ask(ManageRequest::ListTimelines).await? {
            ManageReply::Timelines { timelines } => Ok(timelines),
            _ => Err(ClientError::unexpected(&self.address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use ardent_api::frame::Frame;
    use ardent_api::wal_service::{CAN_HURRY, PROTOCOL_VERSION};
    use bytes::BytesMut;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn a_safekeeper_of_an_older_version_is_not_asked_what_it_does_not_know() {
        let path = std::env::temp_dir().join(format!("ardent-{}.sock", TimelineId::generate()));
        let listener = UnixListener::bind(&path).expect("a socket");
        let older = async {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut buffer = BytesMut::new();
            while Frame::take(&mut buffer).expect("a frame").is_none() {
                stream.read_buf(&mut buffer).await.expect("read");
            }
            let mut hello = BytesMut::new();
            Response::HelloOk { version: PROTOCOL_VERSION, capabilities: CAN_HURRY }.encode(&mut hello);
            stream.write_all(&hello).await.expect("sent");
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.expect("read");
            rest
        };
        let address = ServiceAddr::Unix(path.clone());
        let asking = async {
            let mut client = SafekeeperClient::connect(&address, TenantId::NONE, "token").await.expect("connects");
            client.safekeeper_status().await.expect_err("it cannot tell")
        };
        let (sent, error) = tokio::join!(older, asking);
        assert!(sent.is_empty() && error.to_string().contains("its version is older"), "{error}");
        std::fs::remove_file(path).expect("removed");
    }
}
