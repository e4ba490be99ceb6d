//! Page server and safekeepers over their wire protocols.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use tokio::time::Instant;

use ardent_api::addr::ServiceAddr;
use ardent_api::page_service::{ErrorCode, ManageReply, ManageRequest};
use ardent_api::wal_service::{self, SafekeeperStatus};
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

/// How long a safekeeper may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the others may take once a quorum has answered: one that hangs must not hold up what does not need it.
const REST_TIMEOUT: Duration = Duration::from_millis(300);

/// Safekeepers behind their addresses.
pub struct SafekeepersAt {
    addrs: Vec<ServiceAddr>,
    token: String,
}

/// Whether a timeline hangs on the one that it is made like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Hangs,
    Root,
}

/// What each safekeeper said.
type Answers<T> = Vec<(ServiceAddr, Result<T, StorageError>)>;

impl SafekeepersAt {
    /// The safekeepers at `addrs`; `token` must allow management of every tenant.
    pub fn new(addrs: Vec<ServiceAddr>, token: String) -> Self {
        SafekeepersAt { addrs, token }
    }

    async fn connect(&self, addr: &ServiceAddr, tenant: TenantId) -> Result<SafekeeperClient, ClientError> {
        SafekeeperClient::connect(addr, tenant, &self.token).await
    }

    fn quorum(&self) -> usize {
        self.addrs.len() / 2 + 1
    }

    /// Asks all of them at once. When a quorum has answered well, the others get a moment more.
    async fn ask_all<'a, T>(
        &'a self,
        ask: impl Fn(&'a ServiceAddr) -> BoxFuture<'a, Result<T, ClientError>>,
    ) -> Answers<T> {
        let mut asked: FuturesUnordered<_> =
            self.addrs.iter().map(|addr| ask(addr).map(move |said| (addr, said))).collect();
        let mut answers: Answers<T> = Vec::with_capacity(self.addrs.len());
        let mut deadline = Instant::now() + ANSWER_TIMEOUT;
        while let Ok(Some((addr, said))) = tokio::time::timeout_at(deadline, asked.next()).await {
            answers.push((addr.clone(), said.map_err(wal_error)));
            if answers.iter().filter(|(_, said)| said.is_ok()).count() == self.quorum() {
                deadline = deadline.min(Instant::now() + REST_TIMEOUT);
            }
        }
        for addr in &self.addrs {
            if !answers.iter().any(|(answered, _)| answered == addr) {
                answers.push((addr.clone(), Err(silent(addr))));
            }
        }
        answers
    }

    /// Asks one of them.
    async fn ask<T>(
        &self,
        addr: &ServiceAddr,
        asked: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, StorageError> {
        match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(said) => said.map_err(wal_error),
            Err(_) => Err(silent(addr)),
        }
    }

    /// Makes a branch, or a root, where its ancestor is: system identifier, segment size and major are the ancestor's.
    async fn create_beside(
        &self,
        addr: &ServiceAddr,
        branch: WalBranch,
        origin: Origin,
    ) -> Result<TimelineSpec, ClientError> {
        let mut client = self.connect(addr, branch.tenant).await?;
        let ancestor = client.status(branch.ancestor).await?.spec;
        let spec = TimelineSpec {
            timeline: branch.timeline,
            start_lsn: branch.start_lsn,
            prev_lsn: branch.prev_lsn,
            ancestor: match origin {
                Origin::Hangs => Some(Ancestor { timeline: branch.ancestor, lsn: branch.start_lsn }),
                Origin::Root => None,
            },
            ..ancestor
        };
        client.create_timeline(spec).await?;
        Ok(spec)
    }

    async fn create(&self, branch: WalBranch, origin: Origin) -> Result<Vec<ServiceAddr>, StorageError> {
        let made = self.ask_all(|addr| self.create_beside(addr, branch, origin).boxed()).await;
        let spec = made.iter().find_map(|(_, said)| said.as_ref().ok()).copied();
        let mut answers = Vec::with_capacity(made.len());
        for (addr, said) in made {
            let said = match (said, spec) {
                // It was away when the ancestor was made, and has not been told of that yet.
                (Err(error), Some(spec)) if error.kind == StorageErrorKind::NotFound => {
                    self.ask(&addr, self.create_as(&addr, spec)).await
                }
                (said, _) => said.map(|_| ()),
            };
            answers.push((addr, said));
        }
        self.away(answers)
    }

    async fn create_as(&self, addr: &ServiceAddr, spec: TimelineSpec) -> Result<(), ClientError> {
        self.connect(addr, spec.tenant).await?.create_timeline(spec).await
    }

    async fn delete(&self, addr: &ServiceAddr, tenant: TenantId, timeline: TimelineId) -> Result<(), ClientError> {
        self.connect(addr, tenant).await?.delete_timeline(timeline).await
    }

    /// Those that are away, if the others did what they were asked and are a quorum.
    fn away(&self, answers: Answers<()>) -> Result<Vec<ServiceAddr>, StorageError> {
        let (mut away, mut why) = (Vec::new(), None);
        for (addr, said) in answers {
            match said {
                Ok(()) => {}
                Err(error) if error.kind == StorageErrorKind::Unavailable => {
                    away.push(addr);
                    why = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match why {
            Some(error) if self.addrs.len() - away.len() < self.quorum() => Err(error),
            _ => Ok(away),
        }
    }
}

impl WalService for SafekeepersAt {
    fn addrs(&self) -> Vec<ServiceAddr> {
        self.addrs.clone()
    }

    fn create_branch(&self, branch: WalBranch) -> BoxFuture<'_, Result<Vec<ServiceAddr>, StorageError>> {
        self.create(branch, Origin::Hangs).boxed()
    }

    fn create_root(&self, root: WalBranch) -> BoxFuture<'_, Result<Vec<ServiceAddr>, StorageError>> {
        self.create(root, Origin::Root).boxed()
    }

    fn create_on<'a>(
        &'a self,
        safekeeper: &'a ServiceAddr,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'a, Result<(), StorageError>> {
        async move {
            let status = |addr| async move { self.connect(addr, tenant).await?.status(timeline).await }.boxed();
            let answers = self.ask_all(status).await;
            let (found, failed): (Vec<_>, Vec<_>) = answers.into_iter().map(|(_, said)| said).partition(Result::is_ok);
            match (found.into_iter().flatten().next(), failed.into_iter().filter_map(Result::err).next()) {
                (Some(status), _) => self.ask(safekeeper, self.create_as(safekeeper, status.spec)).await,
                (None, Some(error)) => Err(error),
                (None, None) => Err(StorageError::new(StorageErrorKind::Failed, "no safekeeper is configured")),
            }
        }
        .boxed()
    }

    fn delete_timeline(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'_, Result<Vec<ServiceAddr>, StorageError>> {
        async move { self.away(self.ask_all(|addr| self.delete(addr, tenant, timeline).boxed()).await) }.boxed()
    }

    fn delete_on<'a>(
        &'a self,
        safekeeper: &'a ServiceAddr,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'a, Result<(), StorageError>> {
        self.ask(safekeeper, self.delete(safekeeper, tenant, timeline)).boxed()
    }

    fn commit_lsn(&self, tenant: TenantId, timeline: TimelineId) -> BoxFuture<'_, Result<Option<Lsn>, StorageError>> {
        async move {
            let status = |addr| async move { self.connect(addr, tenant).await?.status(timeline).await }.boxed();
            let (mut newest, mut answered, mut last_error) = (None, 0, None);
            for (_, said) in self.ask_all(status).await {
                match said {
                    Ok(status) => {
                        answered += 1;
                        newest = newest.max(Some(status.commit_lsn));
                    }
                    Err(error) if error.kind == StorageErrorKind::NotFound => answered += 1,
                    Err(error) => last_error = Some(error),
                }
            }
            match last_error {
                // A minority may be away: what is committed is known to some of every majority.
                Some(error) if answered < self.quorum() => Err(error),
                _ => Ok(newest),
            }
        }
        .boxed()
    }

    fn safekeepers(&self) -> BoxFuture<'_, Vec<(ServiceAddr, Result<SafekeeperStatus, StorageError>)>> {
        async move {
            let status =
                |addr| async move { self.connect(addr, TenantId::NONE).await?.safekeeper_status().await }.boxed();
            let mut answers = self.ask_all(status).await;
            answers.sort_by_key(|(answered, _)| self.addrs.iter().position(|addr| addr == answered));
            answers
        }
        .boxed()
    }
}

fn silent(addr: &ServiceAddr) -> StorageError {
    StorageError::new(StorageErrorKind::Unavailable, format!("the safekeeper at {addr} does not answer"))
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
