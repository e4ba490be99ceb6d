//! Masked templates: data that is masked once, and then branched from as often as needed.
//!
//! ```text
//!  parent ──► hidden branch: masked, written anew ──cut──► a root that holds what is there then ──► branches made --masked
//!                  │                                             (no history, no ancestor)
//!                  └─ deleted, with all that it could be asked for
//! ```
//!
//! Until the template is whole there is nothing that a user could connect to: the hidden branch has no name that the proxy or the API
//! finds, and neither has the template, whose row no command for branches sees. A failure or a crash in between leaves rows that are
//! undone as those of branches are.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::mpsc;
use tracing::{info, warn};

use ardent_api::control::{
    ApiErrorCode, BranchName, BranchState, CreateBranchRequest, DeleteReply, ErrorInfo, SCHEMA_VERSION, WakeReply,
};
use ardent_api::page_service::{ManageReply, ManageRequest};
use ardent_api::policy::BranchPolicy;
use ardent_masking::{
    CheckMaskingRequest, Connect, CreateMaskedRequest, MaskError, MaskEvent, MaskReport, MaskedInfo, Masking,
    MaskingCheck, Progress, RULES_LEN_MAX, Rules,
};
use ardent_types::{BranchId, Lsn, with_causes};

use crate::branches::{not_found, shutting_down};
use crate::deps::WalBranch;
use crate::diff::connect;
use crate::point::{PointSpec, unexpected_reply};
use crate::service::Control;
use crate::store::{BranchRow, InsertBranch, iso8601};

impl Control {
    /// Says what rules would do to a branch's data, by a branch of it that is made for this and deleted. Goes on when the caller goes
    /// away.
    pub async fn check_masking(self: &Arc<Self>, request: CheckMaskingRequest) -> Result<MaskingCheck, ErrorInfo> {
        let rules = parse(&request.rules)?;
        let control = self.clone();
        let task = self.tasks.spawn(async move {
            let parent = control.source_of(request.from)?;
            let hidden = control.branch_to_mask(&parent).await?;
            let checked = async {
                let at = control.wake_branch(&hidden, Instant::now()).await?;
                let connect = opener(at);
                Masking::new(&*connect, &rules).check().await.map_err(|error| masking_failed(&parent, &error))
            };
            let checked = checked.await;
            control.drop_hidden(&hidden).await;
            let columns = checked?.columns();
            Ok(MaskingCheck { schema_version: SCHEMA_VERSION, from: parent.name, columns })
        });
        task.await.map_err(|_| shutting_down())?
    }

    /// Makes a template, or answers with the one that has the name and came from the same rules. What it does and how it ends is told
    /// by `events`; it goes on when nobody listens.
    pub(crate) fn create_masked(
        self: &Arc<Self>,
        request: CreateMaskedRequest,
        events: mpsc::Sender<MaskEvent>,
    ) -> Result<(), ErrorInfo> {
        let name: BranchName = request.name.parse()?;
        let rules = parse(&request.rules)?;
        let control = self.clone();
        self.tasks.spawn(async move {
            let lock = control.name_lock(&BranchRow::template_row_name(name.as_str()));
            let _guard = lock.lock().await;
            let made = control.make_template(&name, &request, &rules, &events).await;
            let end = made.map_or_else(MaskEvent::Error, |made| MaskEvent::Done(Box::new(made)));
            // Whoever went away finds it in the list.
            let _ = events.send(end).await;
        });
        Ok(())
    }

    /// To be called with the name's lock held.
    async fn make_template(
        self: &Arc<Self>,
        name: &BranchName,
        request: &CreateMaskedRequest,
        rules: &Rules,
        events: &mpsc::Sender<MaskEvent>,
    ) -> Result<MaskedInfo, ErrorInfo> {
        let parent = self.source_of(request.from.clone())?;
        let row = BranchRow::below(&parent, BranchRow::template_row_name(name.as_str()));
        match self.context.store.insert_template(&row, &request.rules)? {
            InsertBranch::Inserted { .. } => {}
            // What is going to be masked is not withheld.
            InsertBranch::ParentGone | InsertBranch::Withheld => return Err(not_found(&parent.name)),
            InsertBranch::Exists(existing) => return self.same_template(&existing, request),
        }
        let made = self.mask_and_cut(&row, &parent, rules, events).await;
        if let Err(error) = made {
            self.undo(&row).await;
            return Err(error);
        }
        self.show_masked(name.as_str())
    }

    /// Whether `existing` is what the request would make.
    fn same_template(&self, existing: &BranchRow, request: &CreateMaskedRequest) -> Result<MaskedInfo, ErrorInfo> {
        let name = &request.name;
        if existing.state != BranchState::Ready {
            let message = format!("the masked template {name} is just being deleted");
            return Err(ErrorInfo::new(ApiErrorCode::Conflict, message).with_hint("try again in a moment"));
        }
        let known = self.context.store.masked(existing.id)?;
        if known.is_none_or(|known| !known.is_by(&request.rules)) {
            let message = format!("there is a masked template {name}, and it was not made by these rules");
            return Err(ErrorInfo::new(ApiErrorCode::AlreadyExists, message)
                .with_hint(format!("take another name, or delete it: ardent mask delete {name}")));
        }
        self.show_masked(name)
    }

    async fn mask_and_cut(
        self: &Arc<Self>,
        template: &BranchRow,
        parent: &BranchRow,
        rules: &Rules,
        events: &mpsc::Sender<MaskEvent>,
    ) -> Result<(), ErrorInfo> {
        let hidden = self.branch_to_mask(parent).await?;
        let made = self.mask_and_cut_hidden(template, parent, &hidden, rules, events).await;
        self.drop_hidden(&hidden).await;
        made
    }

    async fn mask_and_cut_hidden(
        self: &Arc<Self>,
        template: &BranchRow,
        parent: &BranchRow,
        hidden: &BranchRow,
        rules: &Rules,
        events: &mpsc::Sender<MaskEvent>,
    ) -> Result<(), ErrorInfo> {
        let mut key = [0; 32];
        let random = SystemRandom::new().fill(&mut key);
        random.map_err(|_| ErrorInfo::new(ApiErrorCode::Internal, "there are no random numbers to be had"))?;
        let at = self.wake_branch(hidden, Instant::now()).await?;
        let connect = opener(at);
        // A line that there is no room for is not missed.
        let tell = |text: String| drop(events.try_send(MaskEvent::Progress(text)));
        let masked = Masking::new(&*connect, rules).run(&key, |progress| tell(progress_text(&progress))).await;
        let report = masked.map_err(|error| masking_failed(parent, &error))?;
        tell("cutting it from its history".to_owned());
        self.pool.suspend(hidden.id).await?;
        let point = self.point_on(hidden, PointSpec::Now).await?;
        let text = serde_json::to_string(&report).map_err(|error| {
            ErrorInfo::new(ApiErrorCode::Internal, format!("the report cannot be written: {error}"))
        })?;
        self.context.store.put_mask_report(template.id, hidden.branch_lsn.unwrap_or_default(), &text)?;
        let described = self.context.store.description(template.timeline)?;
        if described.and_then(|described| described.masked).is_none_or(|masked| masked.report.is_none()) {
            let lost = "the report is too long for the template's manifest: if the server's database is lost, no branch can be made of it any more";
            warn!(template = %template.name, "{lost}");
            tell(lost.to_owned());
        }
        self.cut(template, hidden, point.lsn).await
    }

    /// Makes the template's timeline out of what the hidden branch holds at `at`.
    async fn cut(&self, template: &BranchRow, hidden: &BranchRow, at: Lsn) -> Result<(), ErrorInfo> {
        let lock = self.context.timeline_locks.of(template.timeline);
        let _guard = lock.lock().await;
        let (tenant, timeline, source) = (template.tenant, template.timeline, hidden.timeline);
        let described = self.context.store.description(timeline)?;
        let description = described.as_ref().map(crate::store::Description::to_json);
        let request = ManageRequest::CutRoot { timeline, source, at, description };
        let (start_lsn, prev_lsn) = match self.context.page_service.manage(tenant, request).await? {
            ManageReply::Branch { lsn, prev_lsn } => (lsn, prev_lsn),
            other => return Err(unexpected_reply("the cut of a timeline", &other).into()),
        };
        let root = WalBranch { tenant, timeline, ancestor: source, start_lsn, prev_lsn };
        let away = self.context.wal_service.create_root(root).await?;
        self.context.store.branch_ready(template, (start_lsn, prev_lsn), &away, described.as_ref())?;
        info!(template = %template.name, %start_lsn, "a masked template is made");
        Ok(())
    }

    /// A branch for the server's own use that may be written to.
    async fn branch_to_mask(&self, parent: &BranchRow) -> Result<BranchRow, ErrorInfo> {
        let at = self.point_on(parent, PointSpec::Now).await?.lsn;
        self.create_hidden_with(parent, parent.timeline, at, BranchPolicy::default()).await
    }

    async fn drop_hidden(&self, hidden: &BranchRow) {
        if let Err(error) = self.delete_hidden(hidden).await {
            warn!(branch = %hidden.name, %error, "what was masked is not deleted yet; the housekeeper tries again");
        }
    }

    /// The branch whose data is to be masked.
    fn source_of(&self, from: Option<String>) -> Result<BranchRow, ErrorInfo> {
        self.parent_of(&CreateBranchRequest { from, ..CreateBranchRequest::default() })
    }

    /// The template with this name, for branches to be made from; an empty name stands for the only one.
    pub(crate) fn template_to_branch(&self, name: &str) -> Result<BranchRow, ErrorInfo> {
        if !name.is_empty() {
            let template = self.find_template(name)?;
            return if template.state == BranchState::Ready { self.vouched(template) } else { Err(no_template(name)) };
        }
        let mut ready = self.templates()?;
        ready.retain(|template| template.state == BranchState::Ready);
        let names: Vec<&str> = ready.iter().filter_map(BranchRow::template_name).collect();
        match ready.as_slice() {
            [one] => self.vouched(one.clone()),
            [] => Err(ErrorInfo::new(ApiErrorCode::NotFound, "there is no masked template")
                .with_hint("make one: ardent mask create NAME --rules FILE")),
            _ => Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, "there is more than one masked template")
                .with_hint(format!("say which with --masked: {}", names.join(", ")))),
        }
    }

    /// Gives a template back if what was done to make it is known.
    fn vouched(&self, template: BranchRow) -> Result<BranchRow, ErrorInfo> {
        let made = self.context.store.masked(template.id)?;
        if made.is_some_and(|made| made.report.is_some()) {
            return Ok(template);
        }
        let name = template.template_name().unwrap_or(&template.name);
        let message = format!(
            "what was done to make the masked template {name} is not known: the server's database was lost, and the template's manifest does not say"
        );
        Err(ErrorInfo::new(ApiErrorCode::Conflict, message)
            .with_hint("make another: ardent mask create NAME --rules FILE"))
    }

    /// The name of the template that a branch comes from, at however many removes.
    pub(crate) fn masked_by(&self, branch: &BranchRow) -> Result<Option<String>, ErrorInfo> {
        let mut parent: Option<BranchId> = branch.parent;
        while let Some(id) = parent {
            let Some(row) = self.context.store.branch_by_id(id)? else { return Ok(None) };
            if let Some(name) = row.template_name() {
                return Ok(Some(name.to_owned()));
            }
            parent = row.parent;
        }
        Ok(None)
    }

    pub(crate) fn templates(&self) -> Result<Vec<BranchRow>, ErrorInfo> {
        let mut rows = self.context.store.branches()?;
        rows.retain(|row| row.template_name().is_some());
        Ok(rows)
    }

    fn find_template(&self, name: &str) -> Result<BranchRow, ErrorInfo> {
        let found = self.context.store.branch(&BranchRow::template_row_name(name))?;
        found.ok_or_else(|| no_template(name))
    }

    /// All templates, without their reports.
    pub fn list_masked(&self) -> Result<Vec<MaskedInfo>, ErrorInfo> {
        let infos = self.templates()?.into_iter().map(|row| Ok(MaskedInfo { report: None, ..self.masked_info(&row)? }));
        infos.collect()
    }

    /// One template with its report.
    pub fn show_masked(&self, name: &str) -> Result<MaskedInfo, ErrorInfo> {
        self.masked_info(&self.find_template(name)?)
    }

    fn masked_info(&self, row: &BranchRow) -> Result<MaskedInfo, ErrorInfo> {
        let parent = row.parent.map(|id| self.context.store.branch_by_id(id)).transpose()?.flatten();
        let known = self.context.store.masked(row.id)?;
        let report: Option<MaskReport> =
            known.as_ref().and_then(|known| known.report.as_deref()).map(serde_json::from_str).transpose().map_err(
                |error| ErrorInfo::new(ApiErrorCode::Internal, format!("the report cannot be read: {error}")),
            )?;
        Ok(MaskedInfo {
            schema_version: SCHEMA_VERSION,
            name: row.template_name().unwrap_or(&row.name).to_owned(),
            connector: row.connector.clone(),
            from: parent.map_or_else(|| row.connector.clone(), |parent| parent.known_name().to_owned()),
            source_lsn: known.and_then(|known| known.source_lsn),
            lsn: row.start_lsn,
            created_at: iso8601(row.created_us),
            ready: row.state == BranchState::Ready,
            branches: self.context.store.children(row.id)?.into_iter().filter(|name| !name.contains('.')).collect(),
            report,
        })
    }

    /// Deletes a template for good. Refused while there are branches of it. Goes on when the caller goes away.
    pub async fn delete_masked(self: &Arc<Self>, name: &str) -> Result<DeleteReply, ErrorInfo> {
        let (control, name) = (self.clone(), name.to_owned());
        let task = self.tasks.spawn(async move {
            let lock = control.name_lock(&BranchRow::template_row_name(&name));
            let _guard = lock.lock().await;
            let template = control.find_template(&name)?;
            control.delete_for_good(&template).await?;
            Ok(DeleteReply { schema_version: SCHEMA_VERSION, name, warning: None, kept_until: None })
        });
        task.await.map_err(|_| shutting_down())?
    }
}

fn parse(rules: &str) -> Result<Rules, ErrorInfo> {
    let hint = "docs/masking.md describes the rules";
    if rules.len() > RULES_LEN_MAX {
        let message = format!("the rules are {} bytes long, and at most {RULES_LEN_MAX} are taken", rules.len());
        return Err(ErrorInfo::new(ApiErrorCode::InvalidArguments, message).with_hint(hint));
    }
    Rules::parse(rules)
        .map_err(|error| ErrorInfo::new(ApiErrorCode::InvalidArguments, error.to_string()).with_hint(hint))
}

/// Opens sessions on a compute.
fn opener(at: WakeReply) -> Box<Connect> {
    type Opened = Result<tokio_postgres::Client, Box<dyn std::error::Error + Send + Sync>>;
    Box::new(move |database| {
        let at = at.clone();
        Box::pin(async move { connect(&at, &database).await.map_err(Into::into) })
            as Pin<Box<dyn Future<Output = Opened> + Send>>
    })
}

fn masking_failed(parent: &BranchRow, error: &MaskError) -> ErrorInfo {
    if let MaskError::Plan(error) = error {
        let info = ErrorInfo::new(ApiErrorCode::InvalidArguments, error.to_string());
        return match error.snippet() {
            Some(snippet) => {
                info.with_hint(format!("nothing was masked. Add rules such as these, or rules for types:\n{snippet}"))
            }
            None => info.with_hint("nothing was masked. Change the rules: docs/masking.md describes them"),
        };
    }
    let message = format!("the data of {} cannot be masked: {}", parent.name, with_causes(error));
    ErrorInfo::new(ApiErrorCode::ComputeFailed, message)
        .with_hint("nothing of it is left. Change the rules, or production, and make the template again")
}

fn progress_text(progress: &Progress) -> String {
    let Progress { phase, place, done, of } = progress;
    match *phase {
        "rewrite" => format!("writing database {place} anew"),
        _ => format!("masking {place} ({} of {of})", done + 1),
    }
}

fn no_template(name: &str) -> ErrorInfo {
    ErrorInfo::new(ApiErrorCode::NotFound, format!("there is no masked template {name}"))
        .with_hint("ardent mask list shows which there are")
}
