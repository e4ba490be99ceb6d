//! What a timeline is to whoever manages it. It is kept with the timeline, for when that one's memory is lost, and never looked into.

use ardent_api::page_service::{DESCRIPTION_LEN_MAX, ErrorCode};
use ardent_storage::Timeline;

use crate::connection::Failure;
use crate::pages::commit_failure;

/// Metadata of a timeline: its description.
pub const DESCRIPTION: &str = "description";

/// A description as metadata, unless it is too long.
pub(crate) fn entry(description: serde_json::Value) -> Result<(String, serde_json::Value), Failure> {
    let length = description.to_string().len();
    if length > DESCRIPTION_LEN_MAX {
        let message = format!("a description of {length} bytes; {DESCRIPTION_LEN_MAX} are allowed");
        return Err(Failure::new(ErrorCode::Invalid, message));
    }
    Ok((DESCRIPTION.to_owned(), description))
}

/// Keeps a description, durably.
pub(crate) fn set(timeline: &Timeline, description: serde_json::Value) -> Result<(), Failure> {
    let (name, value) = entry(description)?;
    if timeline.get_metadata(&name).as_ref() == Some(&value) {
        return Ok(());
    }
    timeline.set_metadata(&name, value).map_err(|error| commit_failure(&error))
}
