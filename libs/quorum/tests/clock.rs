//! A writer whose clock jumps.

use ardent_api::wal_service::ProposerId;
use ardent_quorum::{Configuration, Proposer, ProposerEffect, ProposerInput, ProposerLimits};

const HOUR_US: u64 = 3_600_000_000;

fn asks(writer: &mut Proposer, now_us: u64, input: ProposerInput) -> bool {
    let mut effects = Vec::new();
    writer.step(now_us, input, &mut effects);
    effects.iter().any(|effect| matches!(effect, ProposerEffect::SendVote(..)))
}

#[test]
fn a_clock_that_is_set_back_does_not_keep_it_from_asking_again() {
    let limits = ProposerLimits::default();
    let mut writer = Proposer::new(ProposerId::new(1), Configuration::unnumbered(3), limits);
    assert!(asks(&mut writer, HOUR_US, ProposerInput::Connected(0)));
    assert!(!asks(&mut writer, 0, ProposerInput::Tick), "its question may be on its way yet");
    assert!(!asks(&mut writer, limits.resend_after_us - 1, ProposerInput::Tick));
    assert!(asks(&mut writer, limits.resend_after_us, ProposerInput::Tick));
}
