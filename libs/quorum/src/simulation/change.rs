//! Members that change in a simulated cluster: who changes them, and what goes wrong meanwhile.
//!
//! The store is what control's database is: it takes a configuration if it follows the one that it has. Those who change read it, are late,
//! act on what they read, crash, and are two at once.

use std::collections::BTreeMap;

use super::world::{Event, FAULTS_END_US, World};
use crate::bug::Bug;
use crate::invariant::{self, Violation};
use crate::{CatchUp, CatchUpVerdict, Configuration, DiskId, Promise, Standing};

/// Numbers of changers where proposers have theirs.
const CHANGER: usize = 1_000_000;
const CHANGERS_ALIVE_MAX: usize = 2;

#[derive(Clone, Debug)]
pub(crate) enum ChangeEvent {
    Chaos,
    Tick(usize),
    /// A node's timeline is copied to one that is to join.
    Copy {
        from: DiskId,
        to: DiskId,
    },
    Ask {
        changer: usize,
        disk: DiskId,
        configuration: Configuration,
        promise: Option<Promise>,
    },
    Answer {
        changer: usize,
        disk: DiskId,
        standing: Standing,
    },
    /// One that is no member any more may forget the timeline.
    Forget(DiskId),
}

/// Who changes the members.
struct Changer {
    alive: bool,
    /// What it read last.
    known: Configuration,
    /// Whom it wants; `None`: it only ends what another began.
    target: Option<Vec<DiskId>>,
    catch_up: Option<CatchUp>,
    has_begun: bool,
}

pub(crate) struct Changes {
    enabled: bool,
    pub(crate) store: Configuration,
    /// All that was ever stored.
    past: Vec<Configuration>,
    /// Where each disk was first seen.
    pub(crate) addresses: BTreeMap<DiskId, usize>,
    /// The logs of disks that are lost, and of timelines that were forgotten.
    graves: Vec<(DiskId, Vec<u8>)>,
    changers: Vec<Changer>,
    pub(crate) seen: Seen,
}

/// How often what happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) grown: usize,
    pub(crate) shrunk: usize,
    /// Lost disks that are members no more.
    pub(crate) replaced: usize,
    pub(crate) settled: usize,
    pub(crate) cancelled: usize,
    /// Two at once, of which one came too late.
    pub(crate) too_late: usize,
    /// Changers that ended what another had begun.
    pub(crate) taken_over: usize,
    /// Writers that were told of members of long ago.
    pub(crate) late_writers: usize,
    /// Empty timelines on new disks at a lost one's address.
    pub(crate) impostors: usize,
}

impl Seen {
    pub(crate) fn add(&mut self, other: Seen) {
        self.grown += other.grown;
        self.shrunk += other.shrunk;
        self.replaced += other.replaced;
        self.settled += other.settled;
        self.cancelled += other.cancelled;
        self.too_late += other.too_late;
        self.taken_over += other.taken_over;
        self.late_writers += other.late_writers;
        self.impostors += other.impostors;
    }

    /// Whether all of it happened.
    pub(crate) fn is_all(&self) -> bool {
        let Seen { grown, shrunk, replaced, settled, cancelled, too_late, taken_over, late_writers, impostors } = *self;
        [grown, shrunk, replaced, settled, cancelled, too_late, taken_over, late_writers, impostors]
            .iter()
            .all(|count| *count > 0)
    }
}

impl Changes {
    pub(crate) fn new(members: Configuration, disks: &[DiskId], enabled: bool) -> Self {
        Changes {
            enabled,
            past: vec![members.clone()],
            store: members,
            addresses: disks.iter().enumerate().map(|(node, disk)| (*disk, node)).collect(),
            graves: Vec::new(),
            changers: Vec::new(),
            seen: Seen::default(),
        }
    }
}

impl World {
    pub(super) fn start_changes(&mut self) {
        if self.changes.enabled {
            self.schedule(0, Event::Change(ChangeEvent::Chaos));
        }
    }

    /// After the faults somebody ends what is half done.
    pub(super) fn calm_changes(&mut self) {
        for changer in &mut self.changes.changers {
            changer.alive = false;
        }
        if self.changes.enabled {
            self.spawn_changer(None);
        }
    }

    /// What a new writer is told: mostly what is in force, sometimes what was long ago.
    pub(super) fn configuration_for_a_writer(&mut self) -> Configuration {
        if self.changes.enabled && self.faults() && self.dice.chance(300) {
            let which = self.dice.between(0, self.changes.past.len() as u64 - 1) as usize;
            self.changes.seen.late_writers += usize::from(which + 1 < self.changes.past.len());
            return self.changes.past[which].clone();
        }
        self.changes.store.clone()
    }

    fn spawn_changer(&mut self, target: Option<Vec<DiskId>>) {
        let known = self.changes.store.clone();
        self.changes.changers.push(Changer { alive: true, known, target, catch_up: None, has_begun: false });
        self.schedule(1_000, Event::Change(ChangeEvent::Tick(self.changes.changers.len() - 1)));
    }

    /// The node at a disk's address.
    fn address(&self, disk: DiskId) -> usize {
        self.changes.addresses[&disk]
    }

    fn is_lost(&self, disk: DiskId) -> bool {
        self.nodes[self.address(disk)].disk_id() != disk
    }

    /// Whether `bytes` is on this disk, or was when that was lost.
    pub(super) fn has_held(&self, disk: DiskId, bytes: &[u8]) -> bool {
        self.holds(disk, bytes) || self.is_in_grave(disk, bytes)
    }

    fn holds(&self, disk: DiskId, bytes: &[u8]) -> bool {
        !self.is_lost(disk) && self.nodes[self.address(disk)].durable_log().starts_with(bytes)
    }

    fn is_in_grave(&self, disk: DiskId, bytes: &[u8]) -> bool {
        self.changes.graves.iter().any(|(lost, log)| *lost == disk && log.starts_with(bytes))
    }

    pub(super) fn change(&mut self, event: ChangeEvent) -> Result<(), Violation> {
        match event {
            ChangeEvent::Chaos => self.change_chaos(),
            ChangeEvent::Tick(changer) => self.changer_tick(changer),
            ChangeEvent::Copy { from, to } => self.copy_timeline(from, to),
            ChangeEvent::Ask { changer, disk, configuration, promise } => {
                self.ask_to_change(changer, disk, &configuration, promise)
            }
            ChangeEvent::Answer { changer, disk, standing } => self.changer_heard(changer, disk, standing),
            ChangeEvent::Forget(disk) => {
                self.forget(disk);
                Ok(())
            }
        }
    }

    fn changer_tick(&mut self, index: usize) -> Result<(), Violation> {
        if !self.changes.changers[index].alive {
            return Ok(());
        }
        let pause = self.dice.between(5_000, 40_000);
        self.schedule(pause, Event::Change(ChangeEvent::Tick(index)));
        let known = self.changes.changers[index].known.clone();
        if let Some(next) = known.next() {
            let hopeless = next.iter().any(|disk| self.is_lost(*disk));
            let whim = self.faults() && self.dice.chance(10);
            if hopeless || whim {
                self.store(&known.cancelled().expect("a change is on its way"));
            } else {
                self.ask_all(index, &known);
            }
        } else {
            self.want_change(index, &known);
            // Whoever has not heard of it yet.
            for disk in known.everyone() {
                self.ask(index, disk, known.clone(), None);
            }
        }
        self.changes.changers[index].known = self.changes.store.clone();
        Ok(())
    }

    /// Those that are to join get the timeline first; only then are they members.
    fn want_change(&mut self, index: usize, known: &Configuration) {
        let Some(target) = self.changes.changers[index].target.clone() else { return };
        let absent: Vec<DiskId> =
            target.iter().filter(|disk| !self.nodes[self.address(**disk)].has_timeline()).copied().collect();
        for to in &absent {
            let members = known.members();
            let from = members[self.dice.between(0, members.len() as u64 - 1) as usize];
            let node = self.address(*to);
            self.post(CHANGER + index, node, Event::Change(ChangeEvent::Copy { from, to: *to }));
        }
        if absent.is_empty() {
            self.changes.changers[index].target = None;
            if known.members() != target {
                self.changes.changers[index].has_begun =
                    self.store(&known.begin_change(target).expect("no change is on its way"));
            }
        }
    }

    fn ask_all(&mut self, index: usize, joint: &Configuration) {
        let bugs = self.bugs;
        let catch_up = &mut self.changes.changers[index].catch_up;
        if catch_up.as_ref().is_none_or(|catch_up| catch_up.joint() != joint) {
            let mut fresh = CatchUp::new(joint.clone());
            fresh.set_bugs(bugs);
            *catch_up = Some(fresh);
        }
        let questions = catch_up.as_ref().expect("set above").questions();
        for (disk, promise) in questions {
            self.ask(index, disk, joint.clone(), promise);
        }
    }

    fn ask(&mut self, changer: usize, disk: DiskId, configuration: Configuration, promise: Option<Promise>) {
        let node = self.address(disk);
        let ask = ChangeEvent::Ask { changer, disk, configuration, promise };
        self.post(CHANGER + changer, node, Event::Change(ask));
    }

    /// Stores what follows the stored one; anything else comes too late. True: it is stored.
    fn store(&mut self, configuration: &Configuration) -> bool {
        let follows = configuration.generation().get() == self.changes.store.generation().get() + 1;
        if follows {
            let former = std::mem::replace(&mut self.changes.store, configuration.clone());
            self.changes.past.push(configuration.clone());
            self.note(&former);
        } else {
            self.changes.seen.too_late += 1;
        }
        follows
    }

    /// What became of `former`.
    fn note(&mut self, former: &Configuration) {
        let (store, seen) = (&self.changes.store, &mut self.changes.seen);
        if former.next().is_some() && store.members() == former.members() {
            seen.cancelled += 1;
        } else if former.next().is_some() {
            seen.settled += 1;
            seen.grown += usize::from(store.members().len() > former.members().len());
            seen.shrunk += usize::from(store.members().len() < former.members().len());
            let lost = |disk: &&DiskId| self.nodes[self.changes.addresses[disk]].disk_id() != **disk;
            seen.replaced +=
                former.members().iter().filter(|disk| !store.members().contains(disk)).filter(lost).count();
        }
    }

    fn ask_to_change(
        &mut self,
        changer: usize,
        disk: DiskId,
        configuration: &Configuration,
        promise: Option<Promise>,
    ) -> Result<(), Violation> {
        let index = self.address(disk);
        if self.is_lost(disk) && !self.bugs.has(Bug::DiskNotChecked) {
            return Ok(());
        }
        let Some(acceptor) = self.nodes[index].acceptor_mut() else { return Ok(()) };
        invariant::one_configuration_per_generation(&acceptor.state().configuration, configuration)?;
        let mut effects = Vec::new();
        acceptor.configure(configuration, promise, &mut effects).expect("checked above");
        if self.carry_out(index, None, effects)?
            && let Some(acceptor) = self.nodes[index].acceptor()
        {
            let standing = acceptor.standing();
            self.nodes[index].told(standing.configuration.generation());
            let answer = ChangeEvent::Answer { changer, disk, standing };
            self.post(CHANGER + changer, index, Event::Change(answer));
        }
        Ok(())
    }

    fn changer_heard(&mut self, index: usize, disk: DiskId, standing: Standing) -> Result<(), Violation> {
        let changer = &mut self.changes.changers[index];
        let Some(catch_up) = changer.catch_up.as_mut().filter(|_| changer.alive) else { return Ok(()) };
        catch_up.heard(disk, standing);
        let joint = catch_up.joint().clone();
        match catch_up.verdict() {
            CatchUpVerdict::Pending => {}
            CatchUpVerdict::Superseded(_) => changer.catch_up = None,
            CatchUpVerdict::CaughtUp => {
                changer.catch_up = None;
                let settled = joint.settled().expect("a change is on its way");
                let took_over = changer.target.is_none() && !changer.has_begun;
                if self.store(&settled) {
                    self.changes.seen.taken_over += usize::from(took_over);
                    // Whoever lost its disk after it answered held it until then.
                    invariant::next_members_hold_committed(&settled, |disk| {
                        self.holds(disk, &self.committed)
                            || self.is_lost(disk) && self.is_in_grave(disk, &self.committed)
                    })?;
                    self.forget_former(&joint);
                }
            }
        }
        Ok(())
    }

    fn forget_former(&mut self, joint: &Configuration) {
        for disk in joint.everyone() {
            if !self.changes.store.members().contains(&disk) && self.dice.chance(700) {
                let after = self.dice.between(1_000, 1_000_000);
                self.schedule(after, Event::Change(ChangeEvent::Forget(disk)));
            }
        }
    }

    fn forget(&mut self, disk: DiskId) {
        // Control holds a lock over this and over making it a member again.
        let wanted =
            self.changes.store.everyone().contains(&disk)
                || self.changes.changers.iter().any(|changer| {
                    changer.alive && changer.target.as_ref().is_some_and(|target| target.contains(&disk))
                });
        if !wanted && !self.is_lost(disk) {
            let node = self.address(disk);
            let log = self.nodes[node].lose_disk(disk);
            self.changes.graves.push((disk, log));
        }
    }

    fn copy_timeline(&mut self, from: DiskId, to: DiskId) -> Result<(), Violation> {
        let (donor, node) = (self.address(from), self.address(to));
        if self.is_lost(from) || self.is_lost(to) || self.nodes[node].has_timeline() {
            return Ok(());
        }
        match self.nodes[donor].for_joining() {
            Some((state, log)) => self.nodes[node].make_timeline(state, log),
            None => Ok(()),
        }
    }

    fn change_chaos(&mut self) -> Result<(), Violation> {
        if !self.faults() {
            return Ok(());
        }
        let pause = self.dice.between(20_000, 250_000);
        self.schedule(pause, Event::Change(ChangeEvent::Chaos));
        let node = self.dice.between(0, self.nodes.len() as u64 - 1) as usize;
        let alive: Vec<usize> =
            (0..self.changes.changers.len()).filter(|index| self.changes.changers[*index].alive).collect();
        match self.dice.between(0, 9) {
            0..=3 if alive.len() < CHANGERS_ALIVE_MAX && self.now_us < FAULTS_END_US - 500_000 => {
                let target = self.a_target();
                self.spawn_changer(Some(target));
            }
            4 => {
                if let Some(index) = alive.first() {
                    self.changes.changers[*index].alive = false;
                }
            }
            5 => {
                if let Some(index) = alive.last() {
                    self.cut.push((CHANGER + index, node));
                }
            }
            6 => self.lose_disk(node),
            // Somebody makes the timeline anew where it was lost, as if it had never been there.
            7 if !self.nodes[node].has_timeline()
                && self.changes.addresses.values().filter(|at| **at == node).count() > 1 =>
            {
                let configuration = self.changes.store.clone();
                self.changes.seen.impostors += 1;
                self.nodes[node].make_empty_timeline(configuration)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// One, three or five of the disks that there are.
    fn a_target(&mut self) -> Vec<DiskId> {
        let mut disks: Vec<DiskId> = self.nodes.iter().map(|node| node.disk_id()).collect();
        let count = [1, 3, 3, 5][self.dice.between(0, 3) as usize].min(disks.len());
        while disks.len() > count {
            let which = self.dice.between(0, disks.len() as u64 - 1) as usize;
            disks.remove(which);
        }
        disks.sort_unstable();
        disks
    }

    /// A disk is lost, if a majority of the members is left.
    fn lose_disk(&mut self, node: usize) {
        let disk = self.nodes[node].disk_id();
        let store = &self.changes.store;
        let survivable = std::iter::once(store.members()).chain(store.next()).all(|group| {
            let lost = group.iter().filter(|member| **member == disk || self.is_lost(**member)).count();
            !group.contains(&disk) || lost <= (group.len() - 1) / 2
        });
        if !survivable {
            return;
        }
        let fresh = DiskId::new(self.changes.addresses.len() as u128);
        let log = self.nodes[node].lose_disk(fresh);
        self.changes.graves.push((disk, log));
        self.changes.addresses.insert(fresh, node);
    }
}
