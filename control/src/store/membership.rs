//! Who the safekeepers are, and a change of them that is on its way: the one place that decides, a step at a time.

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use ardent_api::control::ChangePhase;
use ardent_api::wal_service::{Member, Membership};
use ardent_types::{MemberGeneration, TenantId, TimelineId};

use super::{Store, StoreError, now_us, parsed};

/// A change of the safekeepers that is on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberChange {
    /// Where it is.
    pub phase: ChangePhase,
    /// Who they were.
    pub from: Vec<Member>,
    /// Who they are to be.
    pub to: Vec<Member>,
}

impl MemberChange {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let word: String = row.get("phase")?;
        Ok(MemberChange {
            // The schema's CHECK leaves no fifth word.
            phase: ChangePhase::parse(&word).unwrap_or(ChangePhase::Copying),
            from: members(row, "from_members")?,
            to: members(row, "to_members")?,
        })
    }

    /// Those that join, if it is settled.
    pub fn joining(&self) -> Vec<Member> {
        self.to.iter().filter(|member| !has_disk(&self.from, member)).cloned().collect()
    }

    /// Those that leave, if it is settled.
    pub fn leaving(&self) -> Vec<Member> {
        self.from.iter().filter(|member| !has_disk(&self.to, member)).cloned().collect()
    }
}

fn has_disk(members: &[Member], wanted: &Member) -> bool {
    members.iter().any(|member| member.disk == wanted.disk)
}

/// Somebody else was faster, or the step does not follow from where things are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the safekeepers have been changed meanwhile")]
pub struct Outdated;

fn json<T: serde::de::DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error)))
}

fn members(row: &Row<'_>, column: &str) -> rusqlite::Result<Vec<Member>> {
    json(&row.get::<_, String>(column)?)
}

fn text(members: &[Member]) -> String {
    serde_json::to_string(members).expect("plain data")
}

pub(super) fn membership(connection: &Connection) -> rusqlite::Result<Option<Membership>> {
    // What is in the store is true without a seal; whoever it is told to gets it with one.
    let read = |row: &Row<'_>| {
        let generation: i64 = row.get("generation")?;
        let next: Option<String> = row.get("next")?;
        Ok(Membership {
            generation: MemberGeneration::new(generation.cast_unsigned()),
            members: members(row, "members")?,
            next: next.map(|text| json(&text)).transpose()?,
            ..Membership::default()
        })
    };
    connection.query_row("SELECT generation, members, next FROM membership", [], read).optional()
}

pub(super) fn change(connection: &Connection) -> rusqlite::Result<Option<MemberChange>> {
    let query = "SELECT phase, from_members, to_members FROM membership_change";
    connection.query_row(query, [], MemberChange::read).optional()
}

fn put(transaction: &Transaction<'_>, membership: &Membership) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO membership (id, generation, members, next) VALUES (1, ?1, ?2, ?3)
         ON CONFLICT (id) DO UPDATE SET generation = ?1, members = ?2, next = ?3",
        params![
            membership.generation.get().cast_signed(),
            text(&membership.members),
            membership.next.as_deref().map(text)
        ],
    )?;
    Ok(())
}

/// The step from `current`, with the phase that it begins.
fn step(transaction: &Transaction<'_>, next: &Membership, phase: ChangePhase) -> rusqlite::Result<()> {
    put(transaction, next)?;
    transaction.execute("UPDATE membership_change SET phase = ?1", params![phase.as_str()])?;
    Ok(())
}

impl Store {
    /// Who the safekeepers are; `None` as long as they never changed.
    pub fn membership(&self) -> Result<Option<Membership>, StoreError> {
        self.read(membership)
    }

    /// The change that is on its way.
    pub fn member_change(&self) -> Result<Option<MemberChange>, StoreError> {
        self.read(change)
    }

    /// Both of one moment: a step changes them together.
    pub fn membership_and_change(&self) -> Result<(Option<Membership>, Option<MemberChange>), StoreError> {
        self.read(|connection| Ok((membership(connection)?, change(connection)?)))
    }

    /// Begins a change from the members of `current` to `to`; at the first one `current` is written down as well. While a connector is being made
    /// whose root timeline may not be there yet nothing is changed: its name is the error.
    pub fn begin_member_change(
        &self,
        current: &Membership,
        to: &[Member],
    ) -> Result<Result<Result<(), String>, Outdated>, StoreError> {
        self.write(|transaction| {
            let known = membership(transaction)?;
            let is_current = known.as_ref().is_none_or(|known| *known == current.unsealed());
            if !is_current || change(transaction)?.is_some() {
                return Ok(Err(Outdated));
            }
            let query = "SELECT name FROM connectors WHERE state = 'creating'
                AND NOT EXISTS (SELECT 1 FROM branches WHERE branches.timeline_id = connectors.timeline_id)";
            let creating: Option<String> = transaction.query_row(query, [], |row| row.get(0)).optional()?;
            if let Some(name) = creating {
                return Ok(Ok(Err(name)));
            }
            if known.is_none() {
                put(transaction, current)?;
            }
            transaction.execute(
                "INSERT INTO membership_change (id, phase, from_members, to_members, begun_us) VALUES (1, 'copying', ?1, ?2, ?3)",
                params![text(&current.members), text(to), now_us()],
            )?;
            Ok(Ok(Ok(())))
        })
    }

    /// From `phase` to `next` in the phase that follows, if nothing else has happened meanwhile.
    pub fn step_members(
        &self,
        (phase, current): (ChangePhase, &Membership),
        (next_phase, next): (ChangePhase, &Membership),
    ) -> Result<Result<(), Outdated>, StoreError> {
        self.write(|transaction| {
            let is_current = membership(transaction)?.is_some_and(|known| known == current.unsealed());
            if !is_current || change(transaction)?.map(|change| change.phase) != Some(phase) {
                return Ok(Err(Outdated));
            }
            step(transaction, next, next_phase)?;
            Ok(Ok(()))
        })
    }

    /// All who are concerned have been told: it is over. What those that have left missed is no debt any more.
    pub fn end_member_change(&self, left: &[Member], members: &[Member]) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.execute("DELETE FROM membership_change WHERE phase IN ('settled', 'cancelled')", [])?;
            for member in left {
                if !members.iter().any(|stays| stays.address == member.address) {
                    let address = member.address.to_string();
                    transaction.execute("DELETE FROM wal_debts WHERE safekeeper = ?1", params![address])?;
                }
            }
            Ok(())
        })
    }

    /// What the timeline hangs on: its parent first, the root last.
    pub fn ancestors_of(&self, timeline: TimelineId) -> Result<Vec<TimelineId>, StoreError> {
        let sql = "WITH RECURSIVE above (id, depth) AS (
                SELECT ancestor_id, 1 FROM timelines WHERE id = ?1
                UNION ALL SELECT t.ancestor_id, depth + 1 FROM timelines t JOIN above ON t.id = above.id)
            SELECT id FROM above WHERE id IS NOT NULL ORDER BY depth";
        self.read(|connection| {
            let mut statement = connection.prepare_cached(sql)?;
            statement.query_map([timeline.to_string()], |row| parsed(row, "id"))?.collect()
        })
    }

    /// Every timeline that has a row, ancestors first.
    pub fn all_timelines(&self) -> Result<Vec<(TenantId, TimelineId)>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT tenant_id, id FROM timelines ORDER BY rowid")?;
            statement.query_map([], |row| Ok((parsed(row, "tenant_id")?, parsed(row, "id")?)))?.collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use ardent_types::DiskId;

    fn member(disk: u128) -> Member {
        Member { disk: DiskId::new(disk), address: format!("unix:/run/{disk}").parse().expect("an address") }
    }

    fn of(generation: u64, members: &[u128], next: Option<&[u128]>) -> Membership {
        let list = |disks: &[u128]| disks.iter().copied().map(member).collect::<Vec<_>>();
        Membership {
            generation: MemberGeneration::new(generation),
            members: list(members),
            next: next.map(list),
            ..Membership::default()
        }
    }

    #[test]
    fn a_change_takes_its_steps_one_after_another_and_nobody_else_takes_them() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::open(&folder.path().join("control.db")).expect("made");
        assert_eq!(store.membership().expect("read"), None);
        let (first, joint, after) = (of(1, &[1], None), of(2, &[1], Some(&[1, 2])), of(3, &[1, 2], None));
        let to = [member(1), member(2)];
        assert_eq!(store.begin_member_change(&first, &to).expect("written"), Ok(Ok(())));
        assert_eq!(store.membership().expect("read"), Some(first.clone()));
        assert_eq!(store.begin_member_change(&of(1, &[9], None), &to).expect("read"), Err(Outdated));
        assert_eq!(store.begin_member_change(&first, &to).expect("read"), Err(Outdated), "one at a time");
        let change = store.member_change().expect("read").expect("on its way");
        assert_eq!((change.phase, change.joining(), change.leaving()), (ChangePhase::Copying, vec![member(2)], vec![]));

        use ChangePhase::{Cancelled, Copying, Joint, Settled};
        let step = |from, to| store.step_members(from, to).expect("written");
        assert_eq!(step((Joint, &first), (Settled, &after)), Err(Outdated));
        assert_eq!(step((Copying, &joint), (Joint, &joint)), Err(Outdated));
        assert_eq!(step((Copying, &first), (Joint, &joint)), Ok(()));
        assert_eq!(step((Copying, &first), (Cancelled, &first)), Err(Outdated));
        assert_eq!(store.membership().expect("read"), Some(joint.clone()));
        store.end_member_change(&[], &[]).expect("written");
        assert!(store.member_change().expect("read").is_some(), "it is not over");
        assert_eq!(step((Joint, &joint), (Settled, &after)), Ok(()));
        assert_eq!(step((Joint, &joint), (Cancelled, &of(3, &[1], None))), Err(Outdated), "settled is settled");
        drop(store);
        let store = Store::open(&folder.path().join("control.db")).expect("opened");
        store.end_member_change(&[], &after.members).expect("written");
        assert_eq!((store.membership().expect("read"), store.member_change().expect("read")), (Some(after), None));
    }
}
