//! The diff of a branch against its branch point, a checkpoint or LSN of its history, or another branch: two computes, the page server's list
//! of changed blocks, and `ardent-diff`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::sync::mpsc;
use tokio_postgres::{Client, NoTls};
use tracing::warn;

use ardent_api::compute::{AGENT_ROLE, USUAL_DATABASES, is_closed_database};
use ardent_api::control::{ApiErrorCode, BranchState, DiffPart, DiffRequest, ErrorInfo, SCHEMA_VERSION, WakeReply};
use ardent_api::page_service::{ChangedRelation, ManageReply, ManageRequest};
use ardent_api::token::{Claims, Rights, Service};
use ardent_diff::{
    ChangeSet, CompareOptions, DiffEnd, DiffError, DiffReport, Found, Identity, PIECES_WAITING_MAX, Part,
    SequenceFooting, Session, compare_in_pieces,
};
use ardent_page_client::{Binding, PageClient, PageError};
use ardent_types::{Lsn, TimelineId, with_causes};

use crate::lineage::{History, changed_on_either, common_point, timeline_at};
use crate::point::{PointSpec, unexpected_reply};
use crate::service::Control;
use crate::store::BranchRow;

/// How long the page server may take to ingest what the branch had written when the diff was asked for.
const INGEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What is told of a diff while it is made.
pub(crate) enum DiffEvent {
    /// A part of it.
    Found(Found),
    /// The end: that was all.
    End(DiffEnd),
    /// The end: the rest could not be had.
    Error(ErrorInfo),
}

/// What a branch is compared with.
enum Against {
    /// A state of its own history, on this timeline, which `parent` is or was on.
    Past { parent: Box<BranchRow>, timeline: TimelineId, lsn: Lsn, is_branch_point: bool },
    /// Another branch.
    Branch(Box<BranchRow>),
    /// Production as it is now, by the root branch that follows it.
    Root(Box<BranchRow>),
}

/// A database that is read on one side.
struct Open {
    oid: u32,
    name: String,
    session: Session,
}

/// One side of the diff: all its databases, each in a snapshot, and an LSN that covers them all.
struct Side {
    databases: Vec<Open>,
    lsn: Lsn,
}

/// Where transactions began to write, see [`ManageReply::OldestRunning`].
struct Began {
    lsn: Lsn,
    prepared: bool,
    complete: bool,
}

/// What may differ.
struct Changed {
    blocks: Vec<ChangedRelation>,
    /// Since here.
    from_lsn: Lsn,
    /// More than these blocks, and nobody knows which.
    whole: bool,
    /// What sequences are to be compared by.
    footing: SequenceFooting,
}

/// Both, as they were found.
struct Sides<'a> {
    branch: &'a BranchRow,
    base: &'a BranchRow,
    against: &'a Against,
    head_at: WakeReply,
    base_at: WakeReply,
    /// What the page server had sent to the branch's compute before.
    read_before: u64,
}

impl Control {
    /// What changed on a branch. Goes on when the caller goes away, so that what it makes is cleared away.
    pub async fn diff_branch(self: &Arc<Self>, name: &str, request: DiffRequest) -> Result<DiffReport, ErrorInfo> {
        let branch = self.find_branch(name)?;
        let control = self.clone();
        let task = self.tasks.spawn(async move { control.diff(&branch, &request).await });
        task.await.map_err(|_| crate::branches::shutting_down())?
    }

    /// The same, told part by part while it is found. Ends when nobody listens any more; what it makes is cleared away.
    pub(crate) fn diff_in_parts(
        self: &Arc<Self>,
        name: &str,
        request: DiffRequest,
    ) -> Result<mpsc::Receiver<DiffEvent>, ErrorInfo> {
        let branch = self.find_branch(name)?;
        let (events, receiver) = mpsc::channel(PIECES_WAITING_MAX);
        let control = self.clone();
        self.tasks.spawn(async move {
            let (found, mut pieces) = mpsc::channel(PIECES_WAITING_MAX);
            let passing_on = async {
                loop {
                    let piece = tokio::select! {
                        piece = pieces.recv() => piece,
                        () = events.closed() => None,
                    };
                    let Some(piece) = piece else { break };
                    if events.send(DiffEvent::Found(piece)).await.is_err() {
                        break;
                    }
                }
                // Closed: the comparison ends at its next part.
                drop(pieces);
            };
            let (end, ()) = tokio::join!(control.find_differences(&branch, &request, found), passing_on);
            // Whoever went away has no more questions.
            let _ = events.send(end.map_or_else(DiffEvent::Error, DiffEvent::End)).await;
        });
        Ok(receiver)
    }

    pub(crate) async fn diff(
        self: &Arc<Self>,
        branch: &BranchRow,
        request: &DiffRequest,
    ) -> Result<DiffReport, ErrorInfo> {
        let (found, mut pieces) = mpsc::channel(PIECES_WAITING_MAX);
        let mut databases: Vec<ChangeSet> = Vec::new();
        let collecting = async {
            while let Some(Found { database, piece }) = pieces.recv().await {
                if databases.last().is_none_or(|set| set.database != database) {
                    databases.push(ChangeSet { database, ..ChangeSet::default() });
                }
                databases.last_mut().expect("one was just made").add(piece);
            }
        };
        let (end, ()) = tokio::join!(self.find_differences(branch, request, found), collecting);
        let end = end?;
        Ok(DiffReport {
            schema_version: end.schema_version,
            branch: end.branch,
            against: end.against,
            from_lsn: end.from_lsn,
            to_lsn: end.to_lsn,
            changed_blocks: end.changed_blocks,
            pages_read_branch_point: end.pages_read_branch_point,
            pages_read_head: end.pages_read_head,
            databases,
            databases_not_compared: end.databases_not_compared,
        })
    }

    /// Sends what it finds, database by database, and gives what there is to say besides.
    async fn find_differences(
        self: &Arc<Self>,
        branch: &BranchRow,
        request: &DiffRequest,
        found: mpsc::Sender<Found>,
    ) -> Result<DiffEnd, ErrorInfo> {
        let against = self.against(branch, request)?;
        // What lies on an older timeline was reached before that was left.
        if let Against::Past { timeline, lsn, .. } = &against
            && *timeline == branch.timeline
        {
            self.check_reached(branch, *lsn).await?;
        }
        let began = Instant::now();
        let read_before = self.pages_sent(branch).await?;
        // Its Postgres starts while the other is made; what comes of it is heard below.
        let (waking, row) = (self.clone(), branch.clone());
        let woken = self.tasks.spawn(async move { waking.wake_branch(&row, began).await });
        let base = match &against {
            Against::Past { parent, timeline, lsn, .. } => self.create_hidden(parent, *timeline, *lsn).await?,
            Against::Root(root) => self.create_hidden(root, root.timeline, self.production_now(root).await?).await?,
            Against::Branch(other) => (**other).clone(),
        };
        let result = async {
            let head_woken = async { woken.await.map_err(|_| crate::branches::shutting_down())? };
            let (head_at, base_at) = tokio::try_join!(head_woken, self.wake_branch(&base, began))?;
            let sides = Sides { branch, base: &base, against: &against, head_at, base_at, read_before };
            self.diff_with(&sides, request, &found).await
        };
        let result = tokio::select! {
            result = result => result,
            // Its connections end with it, and what they ask for.
            () = found.closed() => Err(failed(&DiffError::Unwanted)),
        };
        if base.hidden
            && let Err(error) = self.delete_hidden(&base).await
        {
            warn!(branch = %branch.name, %error, "the compute at the branch point is not deleted yet; the housekeeper tries again");
        }
        result
    }

    /// Understands what is to be compared with.
    fn against(&self, branch: &BranchRow, request: &DiffRequest) -> Result<Against, ErrorInfo> {
        let name = &branch.name;
        if branch.is_root() {
            let message = format!("{name} follows production: it has no Postgres to compare");
            return Err(ErrorInfo::new(ApiErrorCode::RootBranch, message)
                .with_hint(format!("make a branch of it: ardent branch create NAME --from {name}")));
        }
        ready(branch)?;
        let Some(branch_lsn) = branch.branch_lsn else { return Err(busy(branch)) };
        if let Some(label) = &request.since {
            if request.against.is_some() {
                let message = "a branch is compared with one thing: since a checkpoint, or against something else";
                return Err(
                    ErrorInfo::new(ApiErrorCode::InvalidArguments, message).with_hint("leave --since or --against out")
                );
            }
            // On the line that the branch is the end of, an LSN is one point.
            return self.past(branch, branch_lsn, self.passed_checkpoint(branch, label)?);
        }
        match request.against.as_deref().map(|text| (text, text.parse::<Lsn>())) {
            None => self.past(branch, branch_lsn, branch_lsn),
            Some((_, Ok(lsn))) => self.past(branch, branch_lsn, lsn),
            Some((text, Err(_))) => {
                let other = Box::new(self.find_branch(text)?);
                if other.id == branch.id {
                    return Err(ErrorInfo::new(
                        ApiErrorCode::InvalidArguments,
                        format!("{name} cannot differ from itself"),
                    )
                    .with_hint("leave --against out to compare with the branch point, or give an LSN"));
                }
                if !other.is_root() {
                    ready(&other)?;
                }
                // Before anything is made or woken for it.
                if common_point(&self.history(branch)?, &self.history(&other)?).is_none() {
                    return Err(self.unrelated(branch, &other)?);
                }
                Ok(if other.is_root() { Against::Root(other) } else { Against::Branch(other) })
            }
        }
    }

    /// Why two branches cannot be compared that share nothing.
    fn unrelated(&self, branch: &BranchRow, other: &BranchRow) -> Result<ErrorInfo, ErrorInfo> {
        let (of_branch, of_other) = (self.masked_by(branch)?, self.masked_by(other)?);
        Ok(unrelated((branch.name.as_str(), of_branch.as_deref()), (other.name.as_str(), of_other.as_deref())))
    }

    /// Refuses an LSN that is not there yet: nobody knows when it will be.
    async fn check_reached(&self, branch: &BranchRow, lsn: Lsn) -> Result<(), ErrorInfo> {
        let ingested = self.context.timeline_status(branch.tenant, branch.timeline).await?.last_record_lsn;
        let committed = self.context.wal_service.commit_lsn(branch.tenant, branch.timeline).await?;
        let end = committed.unwrap_or(ingested).max(ingested);
        if lsn <= end {
            return Ok(());
        }
        let message = format!("{lsn} lies past the end of {}'s history, which is {end}", branch.name);
        Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, message)
            .with_hint("give an LSN that the branch has reached: select pg_current_wal_insert_lsn()"))
    }

    fn past(&self, branch: &BranchRow, branch_lsn: Lsn, lsn: Lsn) -> Result<Against, ErrorInfo> {
        let history = self.history(branch)?;
        let is_branch_point = lsn == branch_lsn;
        // After a restore, the branch point is on a timeline further back than the one that its own hangs on.
        let timeline = match branch.base_timeline {
            Some(timeline) if is_branch_point => Some(timeline),
            _ => timeline_at(&history, lsn).filter(|_| lsn > Lsn::INVALID),
        };
        let timeline = timeline.ok_or_else(|| {
            ErrorInfo::new(ApiErrorCode::NotFound, format!("{lsn} is not in {}'s history", branch.name))
                .with_hint(format!("its branch point is {branch_lsn}: ardent branch info {}", branch.name))
        })?;
        // Of a timeline that was left, nobody is the branch; it is kept for this one.
        let owner = self.context.store.branch_of_timeline(timeline)?;
        let parent = owner.filter(|row| row.state == BranchState::Ready && row.deleted.is_none());
        let parent = Box::new(parent.unwrap_or_else(|| branch.clone()));
        Ok(Against::Past { parent, timeline, lsn, is_branch_point })
    }

    /// The timelines of a branch's history.
    pub(crate) fn history(&self, branch: &BranchRow) -> Result<History, ErrorInfo> {
        let mut history = vec![(branch.timeline, None)];
        let mut timeline = branch.timeline;
        while let Some((ancestor, lsn)) = self.context.store.ancestor(timeline)? {
            history.push((ancestor, Some(lsn)));
            timeline = ancestor;
        }
        Ok(history)
    }

    async fn production_now(&self, root: &BranchRow) -> Result<Lsn, ErrorInfo> {
        let connector = self.connector_spec(&root.connector)?;
        Ok(self.context.resolve_point(root, Some(connector), PointSpec::Now).await?.lsn)
    }

    async fn diff_with(
        &self,
        sides: &Sides<'_>,
        request: &DiffRequest,
        found: &mpsc::Sender<Found>,
    ) -> Result<DiffEnd, ErrorInfo> {
        let Sides { branch, base, against, .. } = sides;
        let base_name = match against {
            Against::Past { is_branch_point: true, .. } => "branch point".to_owned(),
            Against::Past { lsn, .. } => lsn.to_string(),
            Against::Root(other) | Against::Branch(other) => format!("branch {}", other.name),
        };
        // A compute that was made for this has read nothing before.
        let base_read_before = if base.hidden { 0 } else { self.pages_sent(base).await? };
        let (head, old) =
            tokio::try_join!(open_side(branch, &sides.head_at, "head"), open_side(base, &sides.base_at, &base_name))?;
        check_tables(&request.tables, &branch.name, &base_name, &head, &old).await?;
        let changed = match against {
            // What ran at the branch point is aborted on the branch; what was prepared there is looked for by its locks.
            Against::Past { is_branch_point: true, .. } => {
                let from_lsn = base.branch_lsn.unwrap_or_default();
                let blocks = self.changed_blocks(branch, from_lsn, head.lsn).await?;
                Changed { blocks, from_lsn, whole: false, footing: SequenceFooting::Shown }
            }
            // Elsewhere it may have been committed later.
            Against::Past { timeline, .. } => {
                let from_lsn = base.branch_lsn.unwrap_or_default();
                let began = self.began_before(base, from_lsn).await?;
                let blocks = self.changed_blocks(branch, began.lsn, head.lsn).await?;
                let footing = footing(*timeline == branch.timeline);
                Changed { blocks, from_lsn, whole: !began.complete, footing }
            }
            Against::Branch(_) | Against::Root(_) => self.changed_on_both((branch, head.lsn), (base, old.lsn)).await?,
        };
        let Changed { blocks: changed, from_lsn, whole, footing } = changed;
        let options = CompareOptions {
            tables: request.tables.clone(),
            part: match request.part {
                None => Part::Whole,
                Some(DiffPart::Schema) => Part::Schema,
                Some(DiffPart::Rows) => Part::Rows,
            },
            identity: if matches!(against, Against::Past { .. }) { Identity::Oid } else { Identity::Name },
            footing,
            whole,
            ..CompareOptions::default()
        };
        let mut skipped = Vec::new();
        for open in &head.databases {
            // Without one it was made on the branch, or renamed there.
            let Some(old) = old.databases.iter().find(|old| old.name == open.name) else {
                skipped.push(open.name.clone());
                continue;
            };
            if options.identity == Identity::Name && old.oid != open.oid {
                skipped.push(open.name.clone());
                continue;
            }
            let compared = compare_in_pieces(&old.session, &open.session, open.oid, &changed, &options, found).await;
            compared.map_err(|error| failed(&error))?;
        }
        // Dropped on the branch, or renamed there.
        let gone = old.databases.iter().filter(|old| !head.databases.iter().any(|open| open.name == old.name));
        skipped.extend(gone.map(|old| old.name.clone()));
        let (read_head, read_base) = tokio::try_join!(self.pages_sent(branch), self.pages_sent(base))?;
        Ok(DiffEnd {
            schema_version: SCHEMA_VERSION,
            branch: branch.name.clone(),
            against: request.against.clone().or_else(|| request.since.clone()),
            from_lsn,
            to_lsn: head.lsn,
            changed_blocks: changed.iter().flat_map(|rel| &rel.ranges).map(|range| u64::from(range.count)).sum(),
            pages_read_branch_point: read_base.saturating_sub(base_read_before),
            pages_read_head: read_head.saturating_sub(sides.read_before),
            databases_not_compared: skipped,
        })
    }

    async fn pages_sent(&self, branch: &BranchRow) -> Result<u64, ErrorInfo> {
        Ok(self.context.timeline_status(branch.tenant, branch.timeline).await?.pages_sent)
    }

    /// Where what ran at `lsn`, just where `base` was made, began to write.
    async fn began_before(&self, base: &BranchRow, lsn: Lsn) -> Result<Began, ErrorInfo> {
        let timeline = self.context.store.ancestor(base.timeline)?.map_or(base.timeline, |(timeline, _)| timeline);
        self.oldest_running(base, timeline, lsn).await
    }

    async fn oldest_running(&self, branch: &BranchRow, timeline: TimelineId, lsn: Lsn) -> Result<Began, ErrorInfo> {
        let request = ManageRequest::OldestRunning { timeline, lsn };
        match self.context.page_service.manage(branch.tenant, request).await? {
            ManageReply::OldestRunning { lsn, prepared, complete } => Ok(Began { lsn, prepared, complete }),
            other => Err(unexpected_reply("where transactions began", &other).into()),
        }
    }

    /// What changed on either of two branches since the point that they share, and that point.
    async fn changed_on_both(
        &self,
        (head, head_lsn): (&BranchRow, Lsn),
        (base, base_lsn): (&BranchRow, Lsn),
    ) -> Result<Changed, ErrorInfo> {
        let point = common_point(&self.history(head)?, &self.history(base)?).ok_or_else(|| {
            // They had one when this began.
            let message = format!("branch {} and what it is compared with share no history any more", head.name);
            ErrorInfo::new(ApiErrorCode::Conflict, message).with_hint("try again in a moment")
        })?;
        let began = self.oldest_running(head, point.timeline, point.lsn).await?;
        // What ran at the point is aborted on a branch that leaves there, unless it was prepared.
        let since = |stays: bool| if stays || began.prepared { began.lsn } else { point.lsn };
        let (on_head, on_base) = tokio::try_join!(
            self.changed_blocks(head, since(point.first_stays), head_lsn),
            self.changed_blocks(base, since(point.second_stays), base_lsn)
        )?;
        let whole = !began.complete && (point.first_stays || point.second_stays || began.prepared);
        let footing = footing([head.timeline, base.timeline].contains(&point.timeline));
        Ok(Changed { blocks: changed_on_either(on_head, on_base), from_lsn: point.lsn, whole, footing })
    }

    pub(crate) async fn changed_blocks(
        &self,
        branch: &BranchRow,
        from: Lsn,
        to: Lsn,
    ) -> Result<Vec<ChangedRelation>, ErrorInfo> {
        let claims = Claims {
            service: Service::Pageserver,
            tenant: Some(branch.tenant),
            timeline: Some(branch.timeline),
            rights: Rights::Read,
            expires_at_s: None,
        };
        let binding =
            Binding { tenant: branch.tenant, timeline: branch.timeline, token: self.context.tokens.issue(&claims) };
        let unavailable = |error: PageError| {
            let message = format!("the page server cannot say what changed: {}", with_causes(&error));
            ErrorInfo::new(ApiErrorCode::StorageUnavailable, message)
        };
        let mut client = PageClient::connect(&self.context.page_service.addr(), &binding).await.map_err(unavailable)?;
        client.wait_lsn(to, INGEST_TIMEOUT).await.map_err(unavailable)?;
        client.get_changed(from, to).await.map_err(unavailable)
    }
}

/// What sequences are compared by. Where one side's own Postgres ran on through the point at which the other reads, or began, it may have given
/// out less than what was logged there.
fn footing(one_ran_through: bool) -> SequenceFooting {
    if one_ran_through { SequenceFooting::Logged } else { SequenceFooting::Shown }
}

/// A table that neither side has is a mistake, not one without changes.
async fn check_tables(wanted: &[String], branch: &str, base: &str, head: &Side, old: &Side) -> Result<(), ErrorInfo> {
    if wanted.is_empty() {
        return Ok(());
    }
    let sessions = head.databases.iter().chain(&old.databases).map(|open| ardent_diff::names(&open.session));
    let names = try_join_all(sessions).await.map_err(|error| failed(&error))?.into_iter().flatten().collect();
    let unknown = ardent_diff::unknown(wanted, &names);
    if unknown.is_empty() {
        return Ok(());
    }
    let (tables, near): (Vec<&str>, Vec<Vec<String>>) = unknown.into_iter().unzip();
    let noun = if tables.len() == 1 { "table" } else { "tables" };
    let message = format!("neither branch {branch} nor its other side ({base}) has {noun} {}", tables.join(", "));
    let near = near.concat();
    let hint = match near.is_empty() {
        true => format!("ardent branch diff {branch} --stat names what changed"),
        false => format!("there is {}", near.join(", ")),
    };
    Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, message).with_hint(hint))
}

/// The same for two branches' names, each with the template that it comes from, if it is masked.
fn unrelated(first: (&str, Option<&str>), second: (&str, Option<&str>)) -> ErrorInfo {
    let named = |(name, template): (&str, Option<&str>)| match template {
        Some(template) => format!("branch {name} of masked template {template}"),
        None => format!("branch {name}"),
    };
    let message = format!("{} and {} have no history in common", named(first), named(second));
    let hint = match first.1.or(second.1) {
        Some(template) => format!(
            "a masked branch shares nothing with the root, its branches, and those of other templates: leave --against out, or name another \
             branch of masked template {template}"
        ),
        None => "only branches of one connector can be compared".to_owned(),
    };
    ErrorInfo::new(ApiErrorCode::InvalidArguments, message).with_hint(hint)
}

fn busy(branch: &BranchRow) -> ErrorInfo {
    let doing = if branch.state == BranchState::Deleting { "deleted" } else { "made" };
    ErrorInfo::new(ApiErrorCode::Conflict, format!("branch {} is just being {doing}", branch.name))
        .with_hint("try again in a moment")
}

fn ready(branch: &BranchRow) -> Result<(), ErrorInfo> {
    if branch.state == BranchState::Ready { Ok(()) } else { Err(busy(branch)) }
}

/// Takes a snapshot of every database. `name` is what errors call this side.
async fn open_side(branch: &BranchRow, at: &WakeReply, name: &str) -> Result<Side, ErrorInfo> {
    let lister = connect_anywhere(at, branch).await?;
    let listed = lister
        .query("select oid, datname::text from pg_catalog.pg_database where datallowconn and datconnlimit <> -2 order by datname", &[])
        .await
        .map_err(|error| query_failed(branch, &error))?;
    let opening = listed.iter().map(|row| async move {
        let (oid, database): (u32, String) = (row.get(0), row.get(1));
        let client = connect(at, &database).await?;
        let (session, lsn) = Session::open(client, name, &database).await.map_err(|error| failed(&error))?;
        Ok::<_, ErrorInfo>((Open { oid, name: database, session }, lsn))
    });
    let mut side = Side { databases: Vec::new(), lsn: Lsn::INVALID };
    for (open, lsn) in try_join_all(opening).await? {
        side.lsn = side.lsn.max(lsn);
        side.databases.push(open);
    }
    if branch.hidden {
        // It writes nothing: what it shows is what was there where it was made.
        side.lsn = branch.branch_lsn.unwrap_or(side.lsn);
        return Ok(side);
    }
    // Commits, so that all WAL up to the snapshots is flushed and on its way.
    lister
        .batch_execute("set default_transaction_read_only = off; select pg_catalog.pg_logical_emit_message(true, 'ardent', 'diff')")
        .await
        .map_err(|error| query_failed(branch, &error))?;
    Ok(side)
}

/// Connects to a compute as its agent does.
pub(crate) async fn connect(at: &WakeReply, database: &str) -> Result<Client, ErrorInfo> {
    open(at, database).await.map_err(|error| not_opened(database, &error))
}

/// The same in whichever of the usual databases there is, or else in the branch's own: its users may have renamed, dropped or closed
/// any of them.
pub(crate) async fn connect_anywhere(at: &WakeReply, branch: &BranchRow) -> Result<Client, ErrorInfo> {
    let [first, second] = USUAL_DATABASES;
    let databases = [first, second, branch.database.as_str()];
    for database in databases {
        match open(at, database).await {
            Err(error) if error.code().is_some_and(|code| is_closed_database(code.code())) => {}
            opened => return opened.map_err(|error| not_opened(database, &error)),
        }
    }
    let message =
        format!("none of the databases {} of branch {} takes connections", databases.join(", "), branch.known_name());
    Err(ErrorInfo::new(ApiErrorCode::ComputeFailed, message)
        .with_hint(format!("let one of them in again: ALTER DATABASE {first} ALLOW_CONNECTIONS true")))
}

fn not_opened(database: &str, error: &tokio_postgres::Error) -> ErrorInfo {
    let code = match error.code() {
        Some(&tokio_postgres::error::SqlState::INVALID_CATALOG_NAME) => ApiErrorCode::NotFound,
        _ => ApiErrorCode::ComputeFailed,
    };
    ErrorInfo::new(code, format!("database {database} cannot be opened: {}", with_causes(error)))
}

async fn open(at: &WakeReply, database: &str) -> Result<Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host_path(&at.socket_dir).port(at.port).user(AGENT_ROLE).dbname(database).application_name("ardent diff");
    let (client, connection) = config.connect(NoTls).await?;
    // Ends with the client; its errors reach the queries.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a compute ended");
        }
    });
    Ok(client)
}

fn failed(error: &DiffError) -> ErrorInfo {
    ErrorInfo::new(ApiErrorCode::ComputeFailed, with_causes(error))
}

fn query_failed(branch: &BranchRow, error: &tokio_postgres::Error) -> ErrorInfo {
    ErrorInfo::new(
        ApiErrorCode::ComputeFailed,
        format!("branch {} cannot be read: {}", branch.name, with_causes(error)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_that_share_nothing_are_named_with_their_templates() {
        let check = |first, second, message: &str, hint: &str| {
            let error = unrelated(first, second);
            assert_eq!((error.code, error.message.as_str()), (ApiErrorCode::InvalidArguments, message));
            assert!(error.hint.as_deref().is_some_and(|said| said.contains(hint)), "{error:?}");
        };
        let masked = "branch m2 of masked template nightly and branch shop have no history in common";
        check(("m2", Some("nightly")), ("shop", None), masked, "shares nothing with the root, its branches");
        let turned = "branch b and branch m2 of masked template nightly have no history in common";
        check(("b", None), ("m2", Some("nightly")), turned, "another branch of masked template nightly");
        check(("a", None), ("b", None), "branch a and branch b have no history in common", "of one connector");
    }
}
