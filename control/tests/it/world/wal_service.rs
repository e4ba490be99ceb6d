//! The safekeepers: one that has all, and a second one that the quorum does not need.

use futures_util::future::BoxFuture;

use ardent_api::addr::ServiceAddr;
use ardent_api::wal_service::{ArchiveStall, Membership, SafekeeperStatus};
use ardent_control::deps::{LogEnd, MemberService, StorageError, WalBranch, WalService};
use ardent_types::{Lsn, TenantId, TimelineId};

use super::fakes::{Fakes, Held, down, held};

/// A timeline whose WAL cannot be archived.
pub fn stall(timeline: TimelineId) -> ArchiveStall {
    let message = "it holds other WAL".to_owned();
    ArchiveStall { tenant: TenantId::generate(), timeline, lsn: Lsn::new(0x0100_0000), for_s: 90, message }
}

fn second() -> ServiceAddr {
    ServiceAddr::Unix("/fake/safekeeper-2.sock".into())
}

impl WalService for Fakes {
    fn addrs(&self) -> Vec<ServiceAddr> {
        let first = || vec![ServiceAddr::Unix("/fake/safekeeper.sock".into()), second()];
        self.state.lock().members.list.as_ref().map_or_else(first, Membership::addresses)
    }

    fn membership(&self) -> Membership {
        self.state.lock().members.list.clone().unwrap_or_default()
    }

    fn members(&self) -> Option<&dyn MemberService> {
        Some(self)
    }

    fn create_branch(&self, branch: WalBranch) -> BoxFuture<'_, Result<Vec<ServiceAddr>, StorageError>> {
        let mut state = self.state.lock();
        if state.is_held(Held::BeforeSafekeeper) {
            return held();
        }
        let answer = if state.safekeeper_down {
            Err(down("safekeeper"))
        } else {
            state.safekeeper.insert(branch.timeline, branch);
            if state.second_away {
                Ok(vec![second()])
            } else {
                state.second.insert(branch.timeline);
                Ok(Vec::new())
            }
        };
        if state.is_held(Held::AfterSafekeeper) {
            return held();
        }
        Box::pin(async move { answer })
    }

    fn create_root(&self, root: WalBranch) -> BoxFuture<'_, Result<Vec<ServiceAddr>, StorageError>> {
        self.create_branch(root)
    }

    fn create_on<'a>(
        &'a self,
        safekeeper: &'a ServiceAddr,
        _tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'a, Result<(), StorageError>> {
        assert_eq!(*safekeeper, second());
        let mut state = self.state.lock();
        let answer = if state.second_away { Err(down("second safekeeper")) } else { Ok(()) };
        if answer.is_ok() {
            assert!(state.safekeeper.contains_key(&timeline), "the others have it");
            state.second.insert(timeline);
        }
        Box::pin(async move { answer })
    }

    fn delete_timeline(
        &self,
        _tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'_, Result<Vec<ServiceAddr>, StorageError>> {
        let mut state = self.state.lock();
        let answer = if state.safekeeper_down {
            Err(down("safekeeper"))
        } else {
            state.safekeeper.remove(&timeline);
            if state.second_away {
                Ok(vec![second()])
            } else {
                state.second.remove(&timeline);
                Ok(Vec::new())
            }
        };
        Box::pin(async move { answer })
    }

    fn safekeepers(&self) -> BoxFuture<'_, Vec<(ServiceAddr, Result<SafekeeperStatus, StorageError>)>> {
        let addresses = self.addrs();
        let state = self.state.lock();
        let first = SafekeeperStatus {
            disk_free_bytes: 1 << 30,
            disk_size_bytes: 2 << 30,
            kept_for_others_bytes: 0,
            archives: true,
            archive_stalls_total: state.archive_stalls.len() as u64,
            archive_stalls: state.archive_stalls.clone(),
        };
        let of_second = if state.second_away { Err(down("second safekeeper")) } else { Ok(first.clone()) };
        let all = addresses.into_iter().map(|address| {
            let said = if address == second() { of_second.clone() } else { Ok(first.clone()) };
            (address, said)
        });
        let all = all.collect();
        let held = state.answer_held.clone();
        Box::pin(async move {
            if let Some(held) = held {
                held.wait().await;
                held.wait().await;
            }
            all
        })
    }

    fn delete_on<'a>(
        &'a self,
        safekeeper: &'a ServiceAddr,
        _tenant: TenantId,
        timeline: TimelineId,
    ) -> BoxFuture<'a, Result<(), StorageError>> {
        assert_eq!(*safekeeper, second());
        let mut state = self.state.lock();
        let answer = if state.second_away { Err(down("second safekeeper")) } else { Ok(()) };
        if answer.is_ok() {
            state.second.remove(&timeline);
        }
        Box::pin(async move { answer })
    }

    fn log_end(&self, _tenant: TenantId, timeline: TimelineId) -> BoxFuture<'_, Result<Option<LogEnd>, StorageError>> {
        let state = self.state.lock();
        let found = state.safekeeper.get(&timeline).map(|branch| {
            let commit_lsn = branch.start_lsn;
            LogEnd { commit_lsn, flush_lsn: state.left_by_crash.get(&timeline).map_or(commit_lsn, |left| *left) }
        });
        Box::pin(async move { Ok(found) })
    }
}
