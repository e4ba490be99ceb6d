//! Page server and safekeepers over their wire protocols.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _, try_join_all};
use parking_lot::Mutex;

use ardent_api::addr::ServiceAddr;
use ardent_api::page_service::{ErrorCode, ManageReply, ManageRequest};
use ardent_api::wal_service;
use ardent_page_client::{Binding, PageClient, PageError};
use ardent_types::{Lsn, TenantId, TimelineId};
use ardent_wal_client::{Ancestor, ClientError, SafekeeperClient, TimelineSpec};

use crate::deps::{PageService, StorageError, StorageErrorKind, WalBranch, WalService};

/// Open connections that are kept for the next request, over all tenants.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// Connections between requests, by what they are bound to.
struct Idle<C> {
    connections: Mutex<HashMap<(TenantId, TimelineId), Vec<C>>>,
}

impl<C> Idle<C> {
    fn new() -> Self {
        Idle { connections: Mutex::default() }
    }

    fn take(&self, tenant: TenantId, timeline: TimelineId) -> Option<C> {
        self.connections.lock().get_mut(&(tenant, timeline)).and_then(Vec::pop)
    }

    fn put(&self, tenant: TenantId, timeline: TimelineId, connection: C) {
        let mut connections = self.connections.lock();
        connections.retain(|_, list| !list.is_empty());
        if connections.values().map(Vec::len).sum::<usize>() < IDLE_CONNECTIONS_MAX {
            connections.entry((tenant, timeline)).or_default().push(connection);
        }
    }
}

/// A page server behind its address.
pub struct PageServerAt {
    addr: ServiceAddr,
    token: String,
    idle: Idle<PageClient>,
}

impl PageServerAt {
    /// The page server at `addr`; `token` must allow management of every tenant.
    pub fn new(addr: ServiceAddr, token: String) -> Self {
        PageServerAt { addr, token, idle: Idle::new() }
    }

    async fn connect(&self, tenant: TenantId, timeline: TimelineId) -> Result<PageClient, PageError> {
        PageClient::connect(&self.addr, &Binding { tenant, timeline, token: self.token.clone() }).await
    }

    async fn manage_on(
        &self,
        kept: Option<PageClient>,
        tenant: TenantId,
        request: ManageRequest,
    ) -> Result<ManageReply, PageError> {
        let mut client = match kept {
            Some(client) => client,
            None => self.connect(tenant, TimelineId::NONE).await?,
        };
        let reply = client.manage(request).await;
        // After an error of its own the connection may be out of step; after the server's answer it is not.
        if reply.as_ref().err().is_none_or(|error| error.code().is_some_and(|code| code != ErrorCode::Refused)) {
            self.idle.put(tenant, TimelineId::NONE, client);
        }
        reply
    }
}

impl PageService for PageServerAt {
    fn addr(&self) -> ServiceAddr {
        self.addr.clone()
    }

    fn manage(&self, tenant: TenantId, request: ManageRequest) -> BoxFuture<'_, Result<ManageReply, StorageError>> {
        async move {
            if let Some(kept) = self.idle.take(tenant, TimelineId::NONE) {
                match self.manage_on(Some(kept), tenant, request.clone()).await {
                    // A kept connection that the server has closed meanwhile says nothing about the server. All management
                    // requests are idempotent.
                    Err(PageError::Lost { .. } | PageError::Broken { .. }) => {}
                    answer => return answer.map_err(page_error),
                }
            }
            self.manage_on(None, tenant, request).await.map_err(page_error)
        }
        .boxed()
    }

    fn wait_lsn(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
        lsn: Lsn,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Lsn, StorageError>> {
        async move {
            if let Some(mut kept) = self.idle.take(tenant, timeline) {
                match kept.wait_lsn(lsn, timeout).await {
                    Err(PageError::Lost { .. } | PageError::Broken { .. }) => {}
                    answer => {
                        if answer.as_ref().err().is_none_or(|error| error.code() == Some(ErrorCode::Timeout)) {
                            self.idle.put(tenant, timeline, kept);
                        }
                        return answer.map_err(page_error);
                    }
                }
            }
            let mut client = self.connect(tenant, timeline).await.map_err(page_error)?;
            let reached = client.wait_lsn(lsn, timeout).await.map_err(page_error)?;
            self.idle.put(tenant, timeline, client);
            Ok(reached)
        }
        .boxed()
    }
}

fn page_error(error: PageError) -> StorageError {
    let kind = match error.code() {
        Some(ErrorCode::TimelineNotFound | ErrorCode::NotFound) => StorageErrorKind::NotFound,
        Some(ErrorCode::LsnOutOfRange | ErrorCode::BaseLsnExpired) => StorageErrorKind::OutOfRange,
        Some(ErrorCode::Conflict) => StorageErrorKind::Conflict,
        Some(ErrorCode::Timeout) => StorageErrorKind::Timeout,
        Some(ErrorCode::Unavailable) => StorageErrorKind::Unavailable,
        Some(_) => StorageErrorKind::Failed,
        None if error.is_retryable() => StorageErrorKind::Unavailable,
        None => StorageErrorKind::Failed,
    };
    StorageError::new(kind, with_cause(&error))
}

/// Safekeepers behind their addresses.
pub struct SafekeepersAt {
    addrs: Vec<ServiceAddr>,
    token: String,
}

impl SafekeepersAt {
    /// The safekeepers at `addrs`; `token` must allow management of every tenant.
    pub fn new(addrs: Vec<ServiceAddr>, token: String) -> Self {
        SafekeepersAt { addrs, token }
    }

    async fn connect(&self, addr: &ServiceAddr, tenant: TenantId) -> Result<SafekeeperClient, ClientError> {
        SafekeeperClient::connect(addr, tenant, &self.token).await
    }

    async fn create_on(&self, addr: &ServiceAddr, branch: WalBranch) -> Result<(), ClientError> {
        let mut client = self.connect(addr, branch.tenant).await?;
        // System identifier, segment size and major are the ancestor's.
        let ancestor = client.status(branch.ancestor).await?.spec;
        let spec = TimelineSpec {
            timeline: branch.timeline,
            start_lsn: branch.start_lsn,
            prev_lsn: branch.prev_lsn,
            ancestor: Some(Ancestor { timeline: branch.ancestor, lsn: branch.start_lsn }),
            ..ancestor
        };
        client.create_timeline(spec).await
    }
}

impl WalService for SafekeepersAt {
    fn addrs(&self) -> Vec<ServiceAddr> {
        self.addrs.clone()
    }

    fn create_branch(&self, branch: WalBranch) -> BoxFuture<'_, Result<(), StorageError>> {
        async move {
            // On all, not on a quorum: a writer needs the timeline on each one that it counts.
            try_join_all(self.addrs.iter().map(|addr| self.create_on(addr, branch))).await.map_err(wal_error)?;
            Ok(())
        }
        .boxed()
    }

    fn delete_timeline(&self, tenant: TenantId, timeline: TimelineId) -> BoxFuture<'_, Result<(), StorageError>> {
        let delete_on = async move |addr: &ServiceAddr| {
            let mut client = self.connect(addr, tenant).await?;
            client.delete_timeline(timeline).await
        };
        async move {
            for addr in &self.addrs {
                delete_on(addr).await.map_err(wal_error)?;
            }
            Ok(())
        }
        .boxed()
    }

    fn commit_lsn(&self, tenant: TenantId, timeline: TimelineId) -> BoxFuture<'_, Result<Option<Lsn>, StorageError>> {
        async move {
            let mut newest = None;
            let mut answers = 0;
            let mut last_error = None;
            for addr in &self.addrs {
                let status = async { self.connect(addr, tenant).await?.status(timeline).await };
                match status.await {
                    Ok(status) => {
                        answers += 1;
                        newest = newest.max(Some(status.commit_lsn));
                    }
                    Err(error) if error.code() == Some(wal_service::ErrorCode::TimelineNotFound) => answers += 1,
                    Err(error) => last_error = Some(error),
                }
            }
            match last_error {
                // A minority may be away: what is committed is known to some of every majority.
                Some(error) if answers * 2 <= self.addrs.len() => Err(wal_error(error)),
                _ => Ok(newest),
            }
        }
        .boxed()
    }
}

fn wal_error(error: ClientError) -> StorageError {
    use wal_service::ErrorCode;
    let kind = match error.code() {
        Some(ErrorCode::TimelineNotFound) => StorageErrorKind::NotFound,
        Some(ErrorCode::LsnOutOfRange) => StorageErrorKind::OutOfRange,
        Some(ErrorCode::Conflict) => StorageErrorKind::Conflict,
        Some(ErrorCode::Unavailable) => StorageErrorKind::Unavailable,
        Some(_) => StorageErrorKind::Failed,
        None if error.is_retryable() => StorageErrorKind::Unavailable,
        None => StorageErrorKind::Failed,
    };
    StorageError::new(kind, with_cause(&error))
}

/// These messages go to people at once, with the reason.
fn with_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
