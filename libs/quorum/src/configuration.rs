//! Who keeps a timeline's WAL, and how that changes.
//!
//! ```text
//!  members A B C ──begin_change(A B D)──► members A B C, next A B D ──settled──► members A B D
//!   generation 1                             generation 2    │                    generation 3
//!                                                            └──cancelled──► members A B C, generation 3
//! ```

use ardent_api::wal_service::{MEMBERS_MAX, Membership};
use ardent_types::Lsn;
pub use ardent_types::{DiskId, MemberGeneration};

/// The members whose majority decides; while they change, a majority of the next ones as well.
///
/// The default one, of generation 0 and without members, is what an acceptor has that was never told of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    generation: MemberGeneration,
    members: Vec<DiskId>,
    next: Option<Vec<DiskId>>,
}

/// A change of members cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    /// One at a time.
    #[error("a change of members is on its way already, in generation {0}; let it end or cancel it first")]
    InProgress(MemberGeneration),
    /// There is none to end.
    #[error("no change of members is on its way in generation {0}")]
    NotInProgress(MemberGeneration),
    /// Nobody would keep the WAL.
    #[error("at least one member must be left")]
    Empty,
}

fn sorted(disks: impl IntoIterator<Item = DiskId>) -> Vec<DiskId> {
    let mut disks: Vec<DiskId> = disks.into_iter().collect();
    disks.sort_unstable();
    disks.dedup();
    disks
}

impl Configuration {
    /// The first configuration, with these members.
    pub fn first(members: impl IntoIterator<Item = DiskId>) -> Self {
        Configuration { generation: MemberGeneration::new(1), members: sorted(members), next: None }
    }

    /// For a writer that knows its safekeepers by their order only: no change has ever been made, and no acceptor tells its disk.
    pub fn unnumbered(count: usize) -> Self {
        let members = (0..count as u128).map(DiskId::new).collect();
        Configuration { generation: MemberGeneration::default(), members, next: None }
    }

    /// A configuration from what a message or file gave; `None` where members are missing, repeated or out of order.
    pub fn from_parts(generation: MemberGeneration, members: Vec<DiskId>, next: Option<Vec<DiskId>>) -> Option<Self> {
        let ascends = |disks: &[DiskId]| !disks.is_empty() && disks.is_sorted_by(|a, b| a < b);
        let valid = if generation == MemberGeneration::default() {
            members.is_empty() && next.is_none()
        } else {
            ascends(&members) && next.as_deref().is_none_or(ascends)
        };
        valid.then_some(Configuration { generation, members, next })
    }

    /// What a message, a file or control's store says of them; `None` where members are missing, repeated, out of order or too many.
    pub fn of(membership: &Membership) -> Option<Self> {
        if [Some(&membership.members), membership.next.as_ref()]
            .into_iter()
            .flatten()
            .any(|list| list.len() > MEMBERS_MAX)
        {
            return None;
        }
        let disks = |members: &[ardent_api::wal_service::Member]| members.iter().map(|member| member.disk).collect();
        let next = membership.next.as_deref().map(disks);
        Self::from_parts(membership.generation, disks(&membership.members), next)
    }

    /// Its number.
    pub fn generation(&self) -> MemberGeneration {
        self.generation
    }

    /// The members; ascending.
    pub fn members(&self) -> &[DiskId] {
        &self.members
    }

    /// The next members while a change is on its way; ascending.
    pub fn next(&self) -> Option<&[DiskId]> {
        self.next.as_deref()
    }

    /// All that take part, each once, ascending.
    pub fn everyone(&self) -> Vec<DiskId> {
        sorted(self.members.iter().chain(self.next.iter().flatten()).copied())
    }

    /// Next members that are not members yet.
    pub fn joining(&self) -> impl Iterator<Item = DiskId> {
        self.next.iter().flatten().filter(|disk| !self.members.contains(disk)).copied()
    }

    /// Whether there is nobody but this one, now and after the change.
    pub fn is_single(&self) -> bool {
        self.members.len() == 1 && self.next.is_none()
    }

    /// Whether those that `has` is true for are a majority of the members and, during a change, of the next members.
    pub fn is_quorum(&self, has: impl Fn(DiskId) -> bool) -> bool {
        self.groups().all(|group| group.iter().filter(|disk| has(**disk)).count() > group.len() / 2)
    }

    /// The position that a quorum has reached, if each has reached `reached`.
    pub fn quorum_lsn(&self, reached: impl Fn(DiskId) -> Lsn) -> Lsn {
        let of_group = |group: &[DiskId]| {
            let mut all: Vec<Lsn> = group.iter().map(|disk| reached(*disk)).collect();
            all.sort_unstable_by(|a, b| b.cmp(a));
            all[group.len() / 2]
        };
        self.groups().map(of_group).min().expect("there are members")
    }

    fn groups(&self) -> impl Iterator<Item = &[DiskId]> {
        std::iter::once(self.members.as_slice()).chain(self.next.as_deref())
    }

    /// The configuration in which both the members and `next` decide.
    pub fn begin_change(&self, next: impl IntoIterator<Item = DiskId>) -> Result<Self, ChangeRefused> {
        let next = sorted(next);
        if self.next.is_some() {
            return Err(ChangeRefused::InProgress(self.generation));
        }
        if next.is_empty() {
            return Err(ChangeRefused::Empty);
        }
        Ok(Configuration { generation: self.generation.next(), members: self.members.clone(), next: Some(next) })
    }

    /// The change is over: the next members alone decide. Only right once [`CatchUp`](crate::CatchUp) says so.
    pub fn settled(&self) -> Result<Self, ChangeRefused> {
        let next = self.next.clone().ok_or(ChangeRefused::NotInProgress(self.generation))?;
        Ok(Configuration { generation: self.generation.next(), members: next, next: None })
    }

    /// The change is given up: the members alone decide, as before. Right at any time, as they decided all the while.
    pub fn cancelled(&self) -> Result<Self, ChangeRefused> {
        if self.next.is_none() {
            return Err(ChangeRefused::NotInProgress(self.generation));
        }
        Ok(Configuration { generation: self.generation.next(), members: self.members.clone(), next: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks(numbers: &[u128]) -> Vec<DiskId> {
        numbers.iter().map(|number| DiskId::new(*number)).collect()
    }

    #[test]
    fn a_change_needs_both_majorities() {
        let check = |from: &[u128], to: &[u128], has: &[u128], expect: bool| {
            let joint = Configuration::first(disks(from)).begin_change(disks(to)).expect("settled");
            assert_eq!(joint.is_quorum(|disk| disks(has).contains(&disk)), expect, "{has:?} of {from:?} and {to:?}");
        };
        check(&[1], &[1, 2, 3], &[1, 2], true);
        check(&[1], &[1, 2, 3], &[2, 3], false);
        check(&[1], &[1, 2, 3], &[1], false);
        check(&[1, 2, 3], &[1], &[1, 2], true);
        check(&[1, 2, 3], &[1], &[2, 3], false);
        check(&[1, 2, 3], &[1, 2, 4], &[1, 4], false);
        check(&[1, 2, 3], &[1, 2, 4], &[1, 2], true);
        check(&[1, 2, 3], &[4, 5, 6], &[1, 2, 4, 5], true);
        check(&[1, 2, 3], &[4, 5, 6], &[1, 2, 3, 4], false);
    }

    #[test]
    fn what_a_quorum_reached_is_the_lower_of_both() {
        let lsn = |disk: DiskId| Lsn::new(disk.get() as u64 * 100);
        let three = Configuration::first(disks(&[1, 2, 3]));
        assert_eq!(three.quorum_lsn(lsn), Lsn::new(200));
        assert_eq!(three.begin_change(disks(&[3])).expect("settled").quorum_lsn(lsn), Lsn::new(200));
        assert_eq!(three.begin_change(disks(&[1])).expect("settled").quorum_lsn(lsn), Lsn::new(100));
        assert_eq!(Configuration::unnumbered(5).quorum_lsn(lsn), Lsn::new(200));
    }

    #[test]
    fn changes_follow_each_other() {
        let first = Configuration::first(disks(&[2, 1, 2]));
        assert_eq!((first.members(), first.generation().get()), (&disks(&[1, 2])[..], 1));
        assert_eq!(first.settled(), Err(ChangeRefused::NotInProgress(first.generation())));
        assert_eq!(first.begin_change([]), Err(ChangeRefused::Empty));
        let joint = first.begin_change(disks(&[3, 2])).expect("settled");
        assert_eq!((joint.everyone(), joint.joining().collect()), (disks(&[1, 2, 3]), disks(&[3])));
        assert_eq!(joint.begin_change(disks(&[1])), Err(ChangeRefused::InProgress(joint.generation())));
        let settled = joint.settled().expect("a change is on its way");
        assert_eq!((settled.members(), settled.generation().get()), (&disks(&[2, 3])[..], 3));
        assert_eq!(joint.cancelled().expect("a change is on its way").members(), first.members());
    }

    #[test]
    fn a_list_that_no_message_could_carry_is_none() {
        use ardent_api::wal_service::Member;
        let check = |count: usize, expect: bool| {
            let address: ardent_api::addr::ServiceAddr = "unix:/a".parse().expect("an address");
            let member = |disk| Member { disk: DiskId::new(disk), address: address.clone() };
            let list: Vec<Member> = (0..count as u128).map(member).collect();
            let generation = MemberGeneration::new(1);
            let members = Membership { generation, members: list.clone(), ..Membership::default() };
            assert_eq!(Configuration::of(&members).is_some(), expect, "{count} members");
            let next = Membership { members: list[..1].to_vec(), next: Some(list), ..members };
            assert_eq!(Configuration::of(&next).is_some(), expect, "{count} next members");
        };
        check(MEMBERS_MAX, true);
        check(MEMBERS_MAX + 1, false);
        check(300, false);
    }

    #[test]
    fn parts_are_checked() {
        let check = |generation, members: &[u128], next: Option<&[u128]>, expect: bool| {
            let parts = Configuration::from_parts(MemberGeneration::new(generation), disks(members), next.map(disks));
            assert_eq!(parts.is_some(), expect, "{generation} {members:?} {next:?}");
        };
        check(0, &[], None, true);
        check(0, &[1], None, false);
        check(1, &[], None, false);
        check(1, &[1, 2], Some(&[3]), true);
        check(1, &[2, 1], None, false);
        check(1, &[1, 1], None, false);
        check(1, &[1], Some(&[]), false);
    }
}
