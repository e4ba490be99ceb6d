//! Asking for a change, and giving it up: what is refused is refused before anything has happened.

use std::collections::HashSet;

use tracing::{info, warn};

use ardent_api::addr::ServiceAddr;
use ardent_api::control::{ApiErrorCode, ChangePhase, ChangeSafekeepersRequest, ErrorInfo, SafekeeperChange};
use ardent_api::wal_service::{Member, Membership};
use ardent_types::{DiskId, MemberGeneration};

use super::{ChangeError, Progress, configuration_of, conflict, follow, is_majority};
use crate::deps::{MemberService, StorageErrorKind};
use crate::service::Control;

/// Most safekeepers.
const COUNT_MAX: usize = 9;

/// Refuses a number of safekeepers that costs one more disk than the number below it and bears no more losses. One that is there already may stay:
/// whoever replaces one of an even number leaves it as it was.
pub fn check_safekeeper_count(after: usize) -> Result<(), ErrorInfo> {
    if after % 2 == 1 {
        return Ok(());
    }
    let (fewer, majority, losses) = (after.saturating_sub(1), after / 2 + 1, (after / 2).saturating_sub(1));
    let message = format!(
        "there would be {after} safekeepers, of which {majority} must be up for a commit: they bear the loss of {losses}, as {fewer} would"
    );
    let hint = format!("choose an odd number: ardent reconfigure safekeepers {fewer} (or {})", after + 1);
    Err(invalid(message).with_hint(hint))
}

fn invalid(message: impl Into<String>) -> ErrorInfo {
    ErrorInfo::new(ApiErrorCode::InvalidArguments, message)
}

fn sorted(mut members: Vec<Member>) -> Vec<Member> {
    members.sort_by_key(|member| member.disk);
    members
}

impl Control {
    /// Begins a change; gives it as it is then.
    pub async fn change_safekeepers(&self, request: &ChangeSafekeepersRequest) -> Result<SafekeeperChange, ErrorInfo> {
        let _turn = self.changing.asking.lock().await;
        let service = self.member_service()?;
        let store = &self.context.store;
        if let Some(change) = store.member_change()? {
            return Err(conflict(format!(
                "a change of the safekeepers is on its way already: {}",
                change.phase.as_str()
            ))
            .with_hint("ardent status shows it; to give it up: ardent reconfigure safekeepers --cancel"));
        }
        self.check_page_server().await?;
        let listed = self.listed_members(service, request).await?;
        let leaving = listed.leaving();
        let stays = listed.present.len() - leaving.len();
        let count = request.count.map_or(0, usize::from);
        let own = usize::from(request.add_own) + count.saturating_sub(stays);
        let after = stays + request.add.len() + own;
        if after == 0 || after > COUNT_MAX {
            return Err(invalid(format!("there would be {after} safekeepers: there can be 1 to {COUNT_MAX}")));
        }
        if leaving.is_empty() && own == 0 && request.add.is_empty() {
            return Err(invalid("that changes nothing: the safekeepers are these already"));
        }
        let mut joining = Vec::with_capacity(after);
        for address in &request.add {
            joining.push(self.check_joining(service, address, &listed).await?);
        }
        if after != listed.present.len() {
            check_safekeeper_count(after)?;
        }
        if own > 0 && self.host.is_none() {
            return Err(invalid("this server starts no safekeepers of its own")
                .with_hint("start one with ardent safekeeper on an empty folder, and give its address: --add ADDR"));
        }

        let first = Membership {
            generation: MemberGeneration::new(1),
            members: sorted(listed.present.iter().map(|listed| listed.member.clone()).collect()),
            ..Membership::default()
        };
        let current = match self.membership()? {
            Some(known) => known,
            None => {
                let first = self.known_elsewhere(service, &first).await?.unwrap_or(first);
                self.context.tokens.seal(&first)
            }
        };
        let gone: HashSet<DiskId> = leaving.iter().map(|member| member.disk).collect();
        let mut started = Vec::new();
        let begun = self.begin_change(service, &current, &gone, joining, own, &mut started).await;
        let to = match begun {
            Ok(to) => to,
            Err(error) => {
                // A request that is refused leaves nothing.
                for address in &started {
                    self.remove_own(address).await;
                }
                return Err(error);
            }
        };
        // From here on the store says who they are, and not what the server was started with.
        service.set_membership(current);
        info!(safekeepers = to.len(), "the safekeepers are being changed");
        *self.changing.progress.lock() = Progress::default();
        self.changing.wanted.notify_one();
        self.safekeeper_change()?.ok_or_else(|| conflict("the change was ended meanwhile"))
    }

    /// Starts what the server starts itself, whose addresses go to `started`, and begins the change in the store. Gives who there are to be.
    async fn begin_change(
        &self,
        service: &dyn MemberService,
        current: &Membership,
        gone: &HashSet<DiskId>,
        mut joining: Vec<Member>,
        own: usize,
        started: &mut Vec<ServiceAddr>,
    ) -> Result<Vec<Member>, ErrorInfo> {
        for _ in 0..own {
            let member = self.start_own(service, current, &joining, started).await?;
            joining.push(member);
        }
        let stay = current.members.iter().filter(|member| !gone.contains(&member.disk)).cloned();
        let to = sorted(stay.chain(joining).collect());
        if to.windows(2).any(|pair| pair[0].disk == pair[1].disk) {
            return Err(invalid("one safekeeper would be there twice"));
        }
        match self.context.store.begin_member_change(current, &to)? {
            Ok(Ok(())) => Ok(to),
            Ok(Err(connector)) => Err(conflict(format!("connector {connector} is just being made"))
                .with_hint("wait until ardent connector list shows it as ready, or delete it")),
            Err(outdated) => Err(conflict(outdated.to_string()).with_hint("try again")),
        }
    }

    async fn remove_own(&self, address: &ServiceAddr) {
        let Some(host) = &self.host else { return };
        if let Err(error) = host.remove(address).await {
            warn!(%address, error = %error.message, "a safekeeper that was started for nothing still runs");
        }
    }

    /// Before anything begins: it has to be told of the change, and one of an older version cannot be.
    async fn check_page_server(&self) -> Result<(), ErrorInfo> {
        match self.name_safekeepers().await {
            Ok(()) => Ok(()),
            Err(ChangeError::Storage(error)) if error.kind == StorageErrorKind::Unavailable => Err(error.into()),
            Err(error) => {
                Err(conflict(format!("the page server cannot be told of a change of the safekeepers: {error}"))
                    .with_hint("all roles must be of one version: start the page server with this one"))
            }
        }
    }

    /// Gives up the change that is on its way.
    pub async fn cancel_safekeeper_change(&self) -> Result<(), ErrorInfo> {
        let _turn = self.changing.asking.lock().await;
        let service = self.member_service()?;
        loop {
            let nothing = || ErrorInfo::new(ApiErrorCode::NotFound, "no change of the safekeepers is on its way");
            let (current, change) = self.context.store.membership_and_change()?;
            let change = change.ok_or_else(nothing)?;
            let current = self.context.tokens.seal(&current.ok_or_else(nothing)?);
            let next = match change.phase {
                ChangePhase::Copying => current.clone(),
                ChangePhase::Joint => {
                    let cancelled = configuration_of(&current).cancelled();
                    let cancelled = cancelled.map_err(|refused| conflict(refused.to_string()))?;
                    self.context.tokens.seal(&follow(&current, None, &cancelled))
                }
                ChangePhase::Cancelled => return Ok(()),
                ChangePhase::Settled => {
                    return Err(conflict("the change is settled: the new safekeepers decide alone already")
                        .with_hint("when it is over, change them back"));
                }
            };
            let step = self.context.store.step_members((change.phase, &current), (ChangePhase::Cancelled, &next))?;
            if step.is_ok() {
                // Those that were to join are told of deletions until they have forgotten all.
                if change.phase == ChangePhase::Joint {
                    service.set_membership(next);
                }
                info!("the change of the safekeepers is given up");
                self.changing.given_up.notify_one();
                self.changing.wanted.notify_one();
                return Ok(());
            }
        }
    }

    /// Who there are, each with its number; those that the request removes are marked.
    async fn listed_members(
        &self,
        service: &dyn MemberService,
        request: &ChangeSafekeepersRequest,
    ) -> Result<Listed, ErrorInfo> {
        if request.count.is_some() && (!request.add.is_empty() || !request.remove.is_empty() || request.add_own > 0) {
            return Err(invalid("either a number of safekeepers, or which of them come and go"));
        }
        let numbered = self.context.store.membership()?;
        let addresses = self.context.wal_service.addrs();
        let mut present: Vec<ListedMember> = Vec::with_capacity(addresses.len());
        for (number, address) in self.numbers_of(&addresses).into_iter().zip(&addresses) {
            let of_store = numbered.iter().flat_map(|known| &known.members).filter(|member| member.address == *address);
            for disk in of_store.map(|member| Some(member.disk)).chain(numbered.is_none().then_some(None)) {
                let member = Member { disk: disk.unwrap_or(DiskId::new(0)), address: address.clone() };
                present.push(ListedMember { number, member, leaves: false });
            }
        }
        for word in &request.remove {
            let mut found = present
                .iter_mut()
                .filter(|listed| listed.number.to_string() == *word || listed.member.address.to_string() == *word);
            let listed = found.next().ok_or_else(|| {
                invalid(format!("{word} is no safekeeper")).with_hint("ardent status shows their numbers and addresses")
            })?;
            listed.leaves = true;
        }
        if let Some(count) = request.count {
            let mut numbers: Vec<u32> = present.iter().map(|listed| listed.number).collect();
            numbers.sort_unstable();
            let last = numbers.into_iter().nth(usize::from(count)).unwrap_or(u32::MAX);
            for listed in present.iter_mut().filter(|listed| listed.number >= last) {
                listed.leaves = true;
            }
        }
        if numbered.is_none() {
            for listed in &mut present {
                listed.member.disk = self.first_disk(service, listed).await?;
            }
        }
        Ok(Listed { present })
    }

    /// Which disk one of generation 0 is on, at the first change. There is nobody to say whether it is the one that always was, but one that has
    /// nothing of what there is cannot be it: its disk is not mounted, or lost.
    async fn first_disk(&self, service: &dyn MemberService, listed: &ListedMember) -> Result<DiskId, ErrorInfo> {
        let (address, number) = (&listed.member.address, listed.number);
        let found = async {
            let disk = service.identify(address).await?;
            let is_blank = self.is_made_of(|_| true)? && service.is_empty(address).await?;
            let blank = || {
                conflict(format!("safekeeper {number} at {address} has nothing of what this installation keeps"))
                    .with_hint(format!(
                        "mount its disk, and start it; if it is lost: ardent reconfigure safekeepers --replace {number}"
                    ))
            };
            if is_blank { Err(blank()) } else { Ok(disk) }
        };
        match found.await {
            // Which disk that was nobody knows any more, and it is not to come back: one that no disk has stands for it.
            Err(_) if listed.leaves => Ok(DiskId::generate()),
            found => found,
        }
    }

    /// Who the safekeepers say that they are, if they were ever changed: this server's database may have been lost since. `first` is what it would
    /// be otherwise.
    async fn known_elsewhere(
        &self,
        service: &dyn MemberService,
        first: &Membership,
    ) -> Result<Option<Membership>, ErrorInfo> {
        let mut newest: Option<Membership> = None;
        for timeline in self.context.store.all_timelines()? {
            let mut failed = None;
            let mut answered = 0;
            for member in &first.members {
                // Nobody takes generation 0: it only asks.
                match service.configure(member, timeline, &Membership::default(), None).await {
                    Ok(said) => {
                        answered += 1;
                        let is_newer =
                            newest.as_ref().is_none_or(|known| known.generation < said.membership.generation);
                        newest = if is_newer { Some(said.membership) } else { newest };
                    }
                    Err(error) if error.kind == StorageErrorKind::NotFound => answered += 1,
                    Err(error) => failed = Some(error),
                }
            }
            // A majority of them was told of whatever was settled.
            if let Some(error) = failed.filter(|_| !is_majority(answered, &first.members)) {
                return Err(error.into());
            }
        }
        let Some(newest) = newest.filter(|newest| newest.generation > MemberGeneration::default()) else {
            return Ok(None);
        };
        let disks = |members: &[Member]| members.iter().map(|member| member.disk).collect::<Vec<_>>();
        if newest.is_changing() || disks(&newest.members) != disks(&first.members) {
            let addresses: Vec<String> = newest.addresses().iter().map(ToString::to_string).collect();
            let message = format!(
                "this server's database does not know that its safekeepers were changed: they are {} (generation {})",
                addresses.join(", "),
                newest.generation
            );
            return Err(conflict(message).with_hint("start the server with all of these, and with no others"));
        }
        Ok(Some(Membership { members: first.members.clone(), ..newest }))
    }

    /// As people call them: by their folders' numbers; others by the numbers that are left, in their order.
    pub(crate) fn numbers_of(&self, addresses: &[ServiceAddr]) -> Vec<u32> {
        let own = self.host.as_ref().map(|host| host.own()).unwrap_or_default();
        numbers(&own, addresses)
    }

    /// One that joins is there, is none of those that are, and has nothing from another time.
    async fn check_joining(
        &self,
        service: &dyn MemberService,
        address: &ServiceAddr,
        listed: &Listed,
    ) -> Result<Member, ErrorInfo> {
        let disk = service.identify(address).await?;
        if listed.present.iter().any(|present| present.member.disk == disk) {
            return Err(invalid(format!("the safekeeper at {address} is one of them already")));
        }
        if !service.is_empty(address).await? {
            return Err(conflict(format!("the safekeeper at {address} has WAL from another time"))
                .with_hint("start it on an empty folder"));
        }
        Ok(Member { disk, address: address.clone() })
    }

    /// One of the server's own that is no member: one that an attempt left over, or a new one.
    async fn start_own(
        &self,
        service: &dyn MemberService,
        current: &Membership,
        joining: &[Member],
        started: &mut Vec<ServiceAddr>,
    ) -> Result<Member, ErrorInfo> {
        let host = self.host.as_ref().ok_or_else(|| conflict("this server starts no safekeepers of its own"))?;
        let is_used =
            |address: &ServiceAddr| current.members.iter().chain(joining).any(|member| member.address == *address);
        for (_, address) in host.own() {
            if !is_used(&address) && service.is_empty(&address).await.is_ok_and(|is_empty| is_empty) {
                return Ok(Member { disk: service.identify(&address).await?, address });
            }
        }
        let address = host.add().await?;
        started.push(address.clone());
        Ok(Member { disk: service.identify(&address).await?, address })
    }
}

/// The numbers of those at `addresses`, of which `own` have theirs.
fn numbers(own: &[(u32, ServiceAddr)], addresses: &[ServiceAddr]) -> Vec<u32> {
    let mut free = (1..).filter(|number| !own.iter().any(|(taken, _)| taken == number));
    let number_of = |address: &ServiceAddr| match own.iter().find(|(_, own)| own == address) {
        Some((number, _)) => *number,
        None => free.next().expect("there are more numbers than safekeepers"),
    };
    addresses.iter().map(number_of).collect()
}

/// The safekeepers as people know them.
struct Listed {
    present: Vec<ListedMember>,
}

struct ListedMember {
    number: u32,
    member: Member,
    leaves: bool,
}

impl Listed {
    fn leaving(&self) -> Vec<&Member> {
        self.present.iter().filter(|listed| listed.leaves).map(|listed| &listed.member).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_number_is_refused_with_what_it_would_be_good_for() {
        for odd in [1, 3, 5, 7, 9] {
            assert_eq!(check_safekeeper_count(odd), Ok(()), "{odd}");
        }
        let refused = check_safekeeper_count(2).expect_err("two");
        assert_eq!(refused.code, ApiErrorCode::InvalidArguments);
        let words = "2 must be up for a commit: they bear the loss of 0, as 1 would";
        assert!(refused.message.contains(words), "{refused}");
        let refused = check_safekeeper_count(4).expect_err("four");
        let words = "3 must be up for a commit: they bear the loss of 1, as 3 would";
        assert!(refused.message.contains(words), "{refused}");
        assert!(refused.hint.expect("a hint").contains("ardent reconfigure safekeepers 3 (or 5)"));
    }

    #[test]
    fn no_two_safekeepers_have_one_number() {
        let address = |name: &str| ServiceAddr::Unix(format!("/run/{name}").into());
        let check = |own: &[(u32, &str)], addresses: &[&str], expect: &[u32]| {
            let own: Vec<(u32, ServiceAddr)> = own.iter().map(|(number, name)| (*number, address(name))).collect();
            let addresses: Vec<ServiceAddr> = addresses.iter().map(|name| address(name)).collect();
            assert_eq!(numbers(&own, &addresses), expect);
        };
        check(&[], &["a", "b"], &[1, 2]);
        check(&[(1, "a"), (3, "c")], &["a", "c"], &[1, 3]);
        check(&[(2, "b"), (3, "c")], &["x", "b", "y", "c"], &[1, 2, 4, 3]);
    }
}
