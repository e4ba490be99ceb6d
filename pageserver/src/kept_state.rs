//! What a compute leaves when it is suspended, kept for its next cold start. Opaque here: the agent makes and reads it.

use ardent_api::page_service::{ErrorCode, KeptAt, KeptState, ManageReply, Response};
use ardent_api::token::Rights;
use ardent_storage::{KeptStateError, KeptStateId, Timeline};
use ardent_types::with_causes;

use crate::connection::{Bound, Connection, Failure};
use crate::pages::code_of;

impl Connection<'_> {
    pub(crate) fn keep_part(
        &mut self,
        bound: &Bound,
        id: u64,
        at: KeptAt,
        part: u32,
        data: &[u8],
    ) -> Result<(), Failure> {
        let timeline = self.bound_timeline(bound)?;
        bound.allow(timeline.id(), Rights::Write)?;
        timeline.keep_part(id_of(at), part, data).map_err(failure)?;
        self.reply(&Response::Manage { id, reply: ManageReply::Done })
    }

    pub(crate) fn get_kept_part(&mut self, bound: &Bound, id: u64, at: KeptAt, part: u32) -> Result<(), Failure> {
        let timeline = self.bound_timeline(bound)?;
        bound.allow(timeline.id(), Rights::Read)?;
        let data = timeline.kept_part(id_of(at), part).map_err(failure)?;
        self.reply(&Response::KeptPart { id, data })
    }
}

pub(crate) fn keep(timeline: &Timeline, at: KeptAt, parts: u32) -> Result<ManageReply, Failure> {
    timeline.keep_state(id_of(at), parts).map_err(failure)?;
    Ok(ManageReply::Done)
}

pub(crate) fn kept(timeline: &Timeline) -> Result<ManageReply, Failure> {
    let head = timeline.kept_state().map_err(failure)?;
    let state = head.map(|head| KeptState {
        at: KeptAt { lsn: head.id.lsn, term: head.id.term },
        parts: u32::try_from(head.parts()).unwrap_or(u32::MAX),
        outdated: head.outdated,
    });
    Ok(ManageReply::KeptState { state })
}

pub(crate) fn outdate(timeline: &Timeline, at: KeptAt) -> Result<ManageReply, Failure> {
    timeline.outdate_kept_state(id_of(at)).map_err(failure)?;
    Ok(ManageReply::Done)
}

fn id_of(at: KeptAt) -> KeptStateId {
    KeptStateId { lsn: at.lsn, term: at.term }
}

fn failure(error: KeptStateError) -> Failure {
    let code = match error {
        KeptStateError::NotFound { .. } => ErrorCode::NotFound,
        KeptStateError::Fenced { .. } => ErrorCode::Conflict,
        ref other => code_of(other.kind(), ErrorCode::Unreadable),
    };
    Failure::new(code, with_causes(&error))
}
