//! Rounds of questions to every member of the store: has it no quorum, or are we cut off?

use std::sync::Arc;
use std::time::Duration;

use chainfire_client::{Client, LeaderAnswer};
use plasmavmc_core::fence::Said;

use crate::clock::now_ms;
use crate::shared::Shared;

/// Without a renewal for so long, the members are asked.
const ASK_AFTER_MS: u64 = 2_500;
/// Longest time of a round.
const ROUND: Duration = Duration::from_millis(400);
const PAUSE: Duration = Duration::from_millis(200);

/// Asks as long as there is no renewal; never ends.
pub(crate) async fn ask(chainfire: Client, shared: Arc<Shared>) {
    loop {
        if shared.without_renewal_ms().is_none_or(|ms| ms > ASK_AFTER_MS) {
            let began_ms = now_ms();
            let answers = chainfire.ask_leaders(ROUND).await;
            let said: Vec<Said> = answers.into_iter().map(said).collect();
            tracing::debug!(?said, "asked the members for their leaders");
            shared.hear_round(began_ms, &said);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

const fn said(answer: LeaderAnswer) -> Said {
    match answer {
        LeaderAnswer::Nothing => Said::Nothing,
        LeaderAnswer::Refused => Said::Refused,
        LeaderAnswer::Leader => Said::Leader,
        LeaderAnswer::NoLeader { for_ms } => Said::NoLeader { for_ms },
    }
}
