//! Page server and safekeepers over their wire protocols.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use ardent_api::addr::ServiceAddr;
use ardent_api::page_service::{ErrorCode, ManageReply, ManageRequest};
use ardent_api::wal_service::{self, CopySource, Member, MemberStanding, Membership, PromisedTerm, SafekeeperStatus};
use ardent_page_client::{Binding, PageClient, PageError};
use ardent_quorum::Configuration;
use ardent_types::{DiskId, Lsn, MemberGeneration, TenantId, TimelineId, with_causes};
use ardent_wal_client::{
    Ancestor, ClientError, Proposer, ProposerConfig, SafekeeperClient, TimelineSpec, TimelineStatus,
};

use crate::deps::{LogEnd, MemberService, PageService, StorageError, StorageErrorKind, WalBranch, WalService};

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
    problems: Option<Problems>,
}

/// Tells what of a page server's own work fails now, by timeline.
type Problems = Box<dyn Fn() -> Vec<(TimelineId, String)> + Send + Sync>;

impl PageServerAt {
    /// The page server at `addr`; `token` must allow management of every tenant.
    pub fn new(addr: ServiceAddr, token: String) -> Self {
        PageServerAt { addr, token, idle: Idle::new(), problems: None }
    }

    /// One of this process, of which `problems` tells what fails.
    pub fn with_problems(self, problems: impl Fn() -> Vec<(TimelineId, String)> + Send + Sync + 'static) -> Self {
        PageServerAt { problems: Some(Box::new(problems)), ..self }
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

    fn problems(&self) -> Vec<(TimelineId, String)> {
        self.problems.as_ref().map(|problems| problems()).unwrap_or_default()
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
    StorageError::new(kind, with_causes(&error))
}

/// How long a safekeeper may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the others may take once a quorum has answered: one that hangs must not hold up what does not need it.
const REST_TIMEOUT: Duration = Duration::from_millis(300);

/// How long a safekeeper may take to copy a timeline.
const COPY_TIMEOUT: Duration = Duration::from_secs(3600);

/// Safekeepers behind their addresses.
pub struct SafekeepersAt {
    members: RwLock<Arc<Members>>,
    token: String,
}

/// Those that there are at a moment.
struct Members {
    /// Of generation 0 as long as they never changed.
    membership: Membership,
    configuration: Configuration,
    /// The same, in the order in which they are shown.
    list: Vec<Member>,
    /// Those that copy what the members have.
    joining: Vec<Member>,
}

impl Members {
    fn unnumbered(addrs: Vec<ServiceAddr>) -> Self {
        let configuration = Configuration::unnumbered(addrs.len());
        let list = configuration.members().iter().zip(addrs).map(|(disk, address)| Member { disk: *disk, address });
        let list = list.collect();
        Members { membership: Membership::default(), configuration, list, joining: Vec::new() }
    }

    fn new(membership: Membership) -> Self {
        let configuration = Configuration::of(&membership).expect("the store holds lists that are in order");
        let mut list: Vec<Member> = membership.everyone().into_iter().cloned().collect();
        // As people count: the shorter name is the lower number.
        list.sort_by_cached_key(|member| (member.address.to_string().len(), member.address.to_string()));
        Members { membership, configuration, list, joining: Vec::new() }
    }

    /// Whether those that `has` is true for, by their places in the list, are a quorum.
    fn is_quorum(&self, has: impl Fn(usize) -> bool) -> bool {
        self.configuration.is_quorum(|disk| self.list.iter().position(|member| member.disk == disk).is_some_and(&has))
    }

    fn is_numbered(&self) -> bool {
        self.membership.generation > MemberGeneration::default()
    }
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
        SafekeepersAt { members: RwLock::new(Arc::new(Members::unnumbered(addrs))), token }
    }

    fn now(&self) -> Arc<Members> {
        Arc::clone(&self.members.read())
    }

    async fn connect(&self, addr: &ServiceAddr, tenant: TenantId) -> Result<SafekeeperClient, ClientError> {
        SafekeeperClient::connect(addr, tenant, &self.token).await
    }

    /// Connects to a member: whoever else answers at its address is not asked.
    async fn connect_to(
        &self,
        members: &Members,
        member: &Member,
        tenant: TenantId,
    ) -> Result<SafekeeperClient, ClientError> {
        if members.is_numbered() {
            self.connect_to_disk(member, tenant).await
        } else {
            self.connect(&member.address, tenant).await
        }
    }

    /// Connects to the one with this disk.
    async fn connect_to_disk(&self, member: &Member, tenant: TenantId) -> Result<SafekeeperClient, ClientError> {
        let mut client = self.connect(&member.address, tenant).await?;
        let (expected, found) = (member.disk, client.identify().await?);
        if found != expected {
            return Err(ClientError::OtherDisk { address: member.address.clone(), expected, found });
        }
        Ok(client)
    }

    /// Asks all of them at once. When a quorum has answered well, the others get a moment more. Gives what each said, in their order.
    async fn ask_all<'a, T>(
        &'a self,
        members: &'a Members,
        ask: impl Fn(&'a Member) -> BoxFuture<'a, Result<T, ClientError>>,
    ) -> Answers<T> {
        let each = members.list.iter().enumerate();
        let mut asked: FuturesUnordered<_> = each.map(|(at, member)| ask(member).map(move |said| (at, said))).collect();
        let mut answers: Vec<Option<Result<T, StorageError>>> = members.list.iter().map(|_| None).collect();
        let mut deadline = Instant::now() + ANSWER_TIMEOUT;
        while let Ok(Some((at, said))) = tokio::time::timeout_at(deadline, asked.next()).await {
            answers[at] = Some(said.map_err(wal_error));
            if members.is_quorum(|at| matches!(answers[at], Some(Ok(_)))) {
                deadline = deadline.min(Instant::now() + REST_TIMEOUT);
            }
        }
        let said = |(member, said): (&Member, Option<_>)| {
            (member.address.clone(), said.unwrap_or_else(|| Err(silent(&member.address))))
        };
        members.list.iter().zip(answers).map(said).collect()
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
        members: &Members,
        member: &Member,
        branch: WalBranch,
        origin: Origin,
    ) -> Result<TimelineSpec, ClientError> {
        let mut client = self.connect_to(members, member, branch.tenant).await?;
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
        let members = self.now();
        let making = |member| self.create_beside(&members, member, branch, origin).boxed();
        let made = self.ask_all(&members, making).await;
        let spec = made.iter().find_map(|(_, said)| said.as_ref().ok()).copied();
        let mut answers = Vec::with_capacity(made.len());
        for (member, (addr, said)) in members.list.iter().zip(made) {
            let said = match (said, spec) {
                // It was away when the ancestor was made, and has not been told of that yet.
                (Err(error), Some(spec)) if error.kind == StorageErrorKind::NotFound => {
                    self.ask(&addr, self.create_as(&members, member, spec)).await
                }
                (said, _) => said.map(|_| ()),
            };
            answers.push((addr, said));
        }
        away(&members, answers)
    }

    async fn create_as(&self, members: &Members, member: &Member, spec: TimelineSpec) -> Result<(), ClientError> {
        self.connect_to(members, member, spec.tenant).await?.create_timeline(spec).await
    }

    async fn delete(
        &self,
        members: &Members,
        member: &Member,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<(), ClientError> {
        self.connect_to(members, member, tenant).await?.delete_timeline(timeline).await
    }

    /// Connects to the member at this address.
    async fn connect_at(
        &self,
        members: &Members,
        addr: &ServiceAddr,
        tenant: TenantId,
    ) -> Result<SafekeeperClient, ClientError> {
        match members.list.iter().find(|member| member.address == *addr) {
            Some(member) => self.connect_to(members, member, tenant).await,
            None => self.connect(addr, tenant).await,
        }
    }

    /// What each of them knows of a timeline.
    async fn statuses(&self, members: &Members, tenant: TenantId, timeline: TimelineId) -> Answers<TimelineStatus> {
        let status =
            |member| async move { self.connect_to(members, member, tenant).await?.status(timeline).await }.boxed();
        self.ask_all(members, status).await
    }
}

/// Those that are away, if the others did what they were asked and are a quorum.
fn away(members: &Members, answers: Answers<()>) -> Result<Vec<ServiceAddr>, StorageError> {
    let is_quorum = members.is_quorum(|at| answers[at].1.is_ok());
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
        Some(error) if !is_quorum => Err(error),
        _ => Ok(away),
    }
}

impl WalService for SafekeepersAt {
    fn addrs(&self) -> Vec<ServiceAddr> {
        let mut addrs: Vec<ServiceAddr> = self.now().list.iter().map(|member| member.address.clone()).collect();
        // A new disk may be where the old one was.
        addrs.dedup();
        addrs
    }

    fn membership(&self) -> Membership {
        self.now().membership.clone()
    }

    fn members(&self) -> Option<&dyn MemberService> {
        Some(self)
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
            let members = self.now();
            let answers = self.statuses(&members, tenant, timeline).await;
            let (found, failed): (Vec<_>, Vec<_>) = answers.into_iter().map(|(_, said)| said).partition(Result::is_ok);
            match (found.into_iter().flatten().next(), failed.into_iter().filter_map(Result::err).next()) {
                (Some(status), _) => {
                    let create = async {
                        self.connect_at(&members, safekeeper, tenant).await?.create_timeline(status.spec).await
                    };
                    self.ask(safekeeper, create).await
                }
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
        async move {
            let members = self.now();
            let delete = |member| self.delete(&members, member, tenant, timeline).boxed();
            let answers = self.ask_all(&members, delete).await;
            let mut away = away(&members, answers)?;
            // They are needed for nothing yet: what they keep of it they are told of once they are members.
            for member in &members.joining {
                if self.forget_timeline(member, tenant, timeline).await.is_err() {
                    away.push(member.address.clone());
                }
            }
            Ok(away)
        }
        .boxed()
    }

    fn delete_on<'a>(
        &'a self,
        safekeeper: &'a ServiceAddr,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'a, Result<(), StorageError>> {
        async move {
            let members = self.now();
            let delete = async { self.connect_at(&members, safekeeper, tenant).await?.delete_timeline(timeline).await };
            self.ask(safekeeper, delete).await
        }
        .boxed()
    }

    fn log_end(&self, tenant: TenantId, timeline: TimelineId) -> BoxFuture<'_, Result<Option<LogEnd>, StorageError>> {
        async move {
            let members = self.now();
            let answers = self.statuses(&members, tenant, timeline).await;
            let has_said = |at: usize| match &answers[at].1 {
                Ok(_) => true,
                Err(error) => error.kind == StorageErrorKind::NotFound,
            };
            // A minority may be away: what is committed is known to some of every majority.
            let is_quorum = members.is_quorum(has_said);
            let (mut newest, mut last_error): (Option<LogEnd>, _) = (None, None);
            for (_, said) in answers {
                match said {
                    Ok(TimelineStatus { commit_lsn, flush_lsn, .. }) => {
                        let so_far = newest.unwrap_or(LogEnd { commit_lsn, flush_lsn });
                        newest = Some(LogEnd {
                            commit_lsn: so_far.commit_lsn.max(commit_lsn),
                            flush_lsn: so_far.flush_lsn.max(flush_lsn),
                        });
                    }
                    Err(error) if error.kind == StorageErrorKind::NotFound => {}
                    Err(error) => last_error = Some(error),
                }
            }
            match last_error {
                Some(error) if !is_quorum => Err(error),
                _ => Ok(newest),
            }
        }
        .boxed()
    }

    fn safekeepers(&self) -> BoxFuture<'_, Vec<(ServiceAddr, Result<SafekeeperStatus, StorageError>)>> {
        async move {
            let members = self.now();
            let status = |member| {
                let members = &members;
                async move { self.connect_to(members, member, TenantId::NONE).await?.safekeeper_status().await }.boxed()
            };
            self.ask_all(&members, status).await
        }
        .boxed()
    }
}

impl MemberService for SafekeepersAt {
    fn set_membership(&self, membership: Membership) {
        let mut now = self.members.write();
        let (known, given) = (now.membership.generation, membership.generation);
        if given >= known {
            let joining = if given == known { now.joining.clone() } else { Vec::new() };
            *now = Arc::new(Members { joining, ..Members::new(membership) });
        }
    }

    fn set_joining(&self, joining: Vec<Member>) {
        let mut now = self.members.write();
        let Members { membership, configuration, list, .. } = &**now;
        let (membership, configuration, list) = (membership.clone(), configuration.clone(), list.clone());
        *now = Arc::new(Members { membership, configuration, list, joining });
    }

    fn identify<'a>(&'a self, at: &'a ServiceAddr) -> BoxFuture<'a, Result<DiskId, StorageError>> {
        self.ask(at, async move { self.connect(at, TenantId::NONE).await?.identify().await }).boxed()
    }

    fn is_empty<'a>(&'a self, at: &'a ServiceAddr) -> BoxFuture<'a, Result<bool, StorageError>> {
        self.ask(at, async move { self.connect(at, TenantId::NONE).await?.is_empty().await }).boxed()
    }

    fn timeline_status<'a>(
        &'a self,
        of: &'a Member,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'a, Result<TimelineStatus, StorageError>> {
        let asked = async move { self.connect_to_disk(of, tenant).await?.status(timeline).await };
        self.ask(&of.address, asked).boxed()
    }

    fn copy_timeline<'a>(&'a self, to: &'a Member, source: CopySource) -> BoxFuture<'a, Result<(), StorageError>> {
        async move {
            let mut client = self.ask(&to.address, self.connect_to_disk(to, source.tenant)).await?;
            match tokio::time::timeout(COPY_TIMEOUT, client.copy_timeline(source)).await {
                Ok(copied) => copied.map_err(wal_error),
                Err(_) => Err(silent(&to.address)),
            }
        }
        .boxed()
    }

    fn forget_timeline<'a>(
        &'a self,
        of: &'a Member,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'a, Result<(), StorageError>> {
        let asked = async move { self.connect_to_disk(of, tenant).await?.delete_timeline(timeline).await };
        self.ask(&of.address, asked).boxed()
    }

    fn configure<'a>(
        &'a self,
        of: &'a Member,
        (tenant, timeline): (TenantId, TimelineId),
        membership: &'a Membership,
        promise: Option<PromisedTerm>,
    ) -> BoxFuture<'a, Result<MemberStanding, StorageError>> {
        let configured = async move {
            self.connect_to_disk(of, tenant).await?.configure(timeline, membership.clone(), promise).await
        };
        self.ask(&of.address, configured).boxed()
    }

    fn elect(
        &self,
        (tenant, timeline): (TenantId, TimelineId),
        membership: Membership,
        token: String,
    ) -> BoxFuture<'_, Result<(Box<dyn std::any::Any + Send + Sync>, Lsn), StorageError>> {
        async move {
            let config = ProposerConfig { membership, ..ProposerConfig::new(tenant, timeline, self.addrs(), token) };
            let elected = Proposer::elect(config, CancellationToken::new()).await;
            let (proposer, found) =
                elected.map_err(|error| StorageError::new(StorageErrorKind::Unavailable, with_causes(&error)))?;
            Ok((Box::new(proposer) as Box<dyn std::any::Any + Send + Sync>, found.end_lsn))
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
        // Whoever is there is not the one that is meant: that one is away, as one on another disk is.
        None if error.is_retryable() || matches!(error, ClientError::WrongKey { .. }) => StorageErrorKind::Unavailable,
        None => StorageErrorKind::Failed,
    };
    // Such a message goes to people at once: with the reason.
    StorageError::new(kind, with_causes(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership(generation: u64, disk: u128) -> Membership {
        let address = ServiceAddr::Unix(format!("/run/{disk}").into());
        let members = vec![Member { disk: DiskId::new(disk), address }];
        Membership { generation: MemberGeneration::new(generation), members, ..Membership::default() }
    }

    /// Answers which disk it is and that it has forgotten a timeline, which it notes.
    async fn answer(listener: tokio::net::UnixListener, disk: DiskId, forgotten: Arc<Mutex<Vec<TimelineId>>>) {
        use ardent_api::frame::Frame;
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        use wal_service::{CAN_CHANGE_MEMBERS, ManageReply, ManageRequest, PROTOCOL_VERSION, Request, Response};
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let (mut asked, mut answers) = (bytes::BytesMut::new(), bytes::BytesMut::new());
            while stream.read_buf(&mut asked).await.expect("read") > 0 {
                while let Some(frame) = Frame::take(&mut asked).expect("frames") {
                    let response = match Request::decode(frame).expect("a message") {
                        Request::Manage { id, request: ManageRequest::DeleteTimeline { timeline } } => {
                            forgotten.lock().push(timeline);
                            Response::Manage { id, reply: ManageReply::Done }
                        }
                        Request::Manage { id, .. } => Response::Manage { id, reply: ManageReply::Disk { disk } },
                        _ => Response::HelloOk { version: PROTOCOL_VERSION, capabilities: CAN_CHANGE_MEMBERS },
                    };
                    response.encode(&mut answers);
                }
                stream.write_all_buf(&mut answers).await.expect("sent");
            }
        }
    }

    #[tokio::test]
    async fn what_is_deleted_while_others_copy_it_is_deleted_there_as_well() {
        let folder = tempfile::tempdir().expect("a folder");
        let address = |name: &str| ServiceAddr::Unix(folder.path().join(name));
        let mut forgotten = Vec::new();
        for (name, disk) in [("a", 1), ("b", 2)] {
            let ServiceAddr::Unix(path) = address(name) else { unreachable!("a socket") };
            let listener = tokio::net::UnixListener::bind(path).expect("bound");
            forgotten.push(Arc::new(Mutex::new(Vec::new())));
            tokio::spawn(answer(listener, DiskId::new(disk), Arc::clone(forgotten.last().expect("just made"))));
        }
        let service = SafekeepersAt::new(vec![address("a")], String::new());
        let members = vec![Member { disk: DiskId::new(1), address: address("a") }];
        let first = Membership { generation: MemberGeneration::new(1), members, ..Membership::default() };
        service.set_membership(first.clone());
        service.set_joining(vec![Member { disk: DiskId::new(2), address: address("b") }]);
        // Told again who they are, it knows who joins.
        service.set_membership(first.clone());
        let (tenant, timeline) = (TenantId::generate(), TimelineId::generate());
        assert_eq!(service.delete_timeline(tenant, timeline).await.expect("deleted"), []);
        assert_eq!(forgotten.iter().map(|forgotten| forgotten.lock().clone()).collect::<Vec<_>>(), [[timeline]; 2]);
        // One on another disk is told when it is a member, and back.
        service.set_joining(vec![Member { disk: DiskId::new(3), address: address("b") }]);
        assert_eq!(service.delete_timeline(tenant, timeline).await.expect("deleted"), [address("b")]);
        let next = Membership { generation: MemberGeneration::new(2), ..first };
        service.set_membership(next);
        assert_eq!(service.delete_timeline(tenant, timeline).await.expect("deleted"), []);
    }

    #[test]
    fn an_older_list_does_not_come_back() {
        let service = SafekeepersAt::new(vec![ServiceAddr::Unix("/run/0".into())], String::new());
        service.set_membership(membership(3, 3));
        service.set_membership(membership(2, 2));
        assert_eq!(service.membership(), membership(3, 3));
        service.set_membership(membership(4, 4));
        assert_eq!((service.membership(), service.addrs().len()), (membership(4, 4), 1));
    }
}
