//! Where a timeline's objects are in the store. See `docs/formats/manifest.md`.
//!
//! ```text
//!  timelines/TENANT/TIMELINE/manifest/GENERATION         16 hexadecimal digits
//!                           /layers/FILE
//!                           /children/TIMELINE/LSN.PREV  pins LSN for a branch; an empty object
//!                           /kept/head                   what the last compute left, and its parts
//!                           /kept/TERM.LSN/NUMBER
//!                           /wal/SEGMENT                 what safekeepers have archived, named as Postgres names WAL files
//!  wal-archive                                           says that WAL is archived here
//! ```

use ardent_object_store::ObjectName;
use ardent_types::{Generation, Lsn, TenantId, TimelineId};

use crate::kept_state::KeptStateId;
use crate::position::BranchPoint;

/// An empty object that is there once safekeepers archive WAL in the store.
pub const WAL_ARCHIVE_MARK: &str = "wal-archive";

/// Names below one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TimelineNames {
    pub(crate) tenant: TenantId,
    pub(crate) timeline: TimelineId,
}

impl TimelineNames {
    pub(crate) fn prefix(&self) -> String {
        format!("{}{}/", tenant_prefix(self.tenant), self.timeline)
    }

    pub(crate) fn manifests(&self) -> String {
        format!("{}manifest/", self.prefix())
    }

    pub(crate) fn layers(&self) -> String {
        format!("{}layers/", self.prefix())
    }

    pub(crate) fn children(&self) -> String {
        format!("{}children/", self.prefix())
    }

    pub(crate) fn manifest(&self, generation: Generation) -> ObjectName {
        name(format!("{}{:016x}", self.manifests(), generation.get()))
    }

    /// `None` for a file name that is none of ours.
    pub(crate) fn layer(&self, file: &str) -> Option<ObjectName> {
        ObjectName::new(format!("{}{file}", self.layers())).ok().filter(|_| !file.contains('/'))
    }

    /// What the last compute left.
    pub(crate) fn kept(&self) -> String {
        format!("{}kept/", self.prefix())
    }

    /// WAL that safekeepers have archived.
    pub(crate) fn wal(&self) -> String {
        format!("{}wal/", self.prefix())
    }

    pub(crate) fn kept_head(&self) -> ObjectName {
        name(format!("{}head", self.kept()))
    }

    pub(crate) fn kept_parts(&self, id: KeptStateId) -> String {
        format!("{}{:016x}.{:016x}/", self.kept(), id.term.get(), id.lsn.get())
    }

    pub(crate) fn kept_part(&self, id: KeptStateId, number: u32) -> ObjectName {
        name(format!("{}{number:08x}", self.kept_parts(id)))
    }

    /// A folder of its own, so that one child is found without going over all of them.
    pub(crate) fn child_prefix(&self, child: TimelineId) -> String {
        format!("{}{child}/", self.children())
    }

    pub(crate) fn child(&self, child: TimelineId, point: BranchPoint) -> ObjectName {
        name(format!("{}{:016x}.{:016x}", self.child_prefix(child), point.lsn.get(), point.prev_lsn.get()))
    }
}

/// The prefix of a tenant's timelines.
pub(crate) fn tenant_prefix(tenant: TenantId) -> String {
    format!("timelines/{tenant}/")
}

/// The generation in a manifest's name.
pub(crate) fn parse_manifest(name: &ObjectName) -> Option<Generation> {
    let digits = name.file_name();
    let number = u64::from_str_radix(digits, 16).ok()?;
    (digits.len() == 16).then_some(Generation::new(number))
}

/// The branch that a child marker names.
pub(crate) fn parse_child(name: &ObjectName) -> Option<(TimelineId, BranchPoint)> {
    let (folder, file) = name.as_str().rsplit_once('/')?;
    let child = folder.rsplit('/').next()?.parse().ok()?;
    let mut parts = file.split('.');
    let mut lsn = || Some(Lsn::new(u64::from_str_radix(parts.next()?, 16).ok()?));
    let point = BranchPoint { lsn: lsn()?, prev_lsn: lsn()? };
    parts.next().is_none().then_some((child, point))
}

fn name(text: String) -> ObjectName {
    ObjectName::new(text).expect("ids and numbers make good names")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let names = TimelineNames { tenant: TenantId::generate(), timeline: TimelineId::generate() };
        assert_eq!(parse_manifest(&names.manifest(Generation::new(255))), Some(Generation::new(255)));
        let (child, point) = (TimelineId::generate(), BranchPoint { lsn: Lsn::new(99), prev_lsn: Lsn::new(9) });
        assert_eq!(parse_child(&names.child(child, point)), Some((child, point)));
        assert_eq!(parse_child(&name("a/b.c".into())), None);
        assert_eq!(parse_manifest(&name("a/12".into())), None);
        assert_eq!(names.layer("../x"), None);
    }
}
