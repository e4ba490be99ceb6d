//! Transactions of production's that a slot waits for: its snapshot is that of a moment at which all of them have ended.

use std::convert::Infallible;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_postgres::Client;

use crate::logical::error::{LogicalError, source};
use crate::logical::session::connect_source;

/// How long a slot may take before it is asked what for, and how often that is asked again.
const PERIOD: Duration = Duration::from_secs(1);

/// What hinders WAL senders of this role, which wait for one transaction after the other. A prepared one is nobody's process.
const HOLDERS: &str = "
    select distinct case
        when p.gid is not null
        then format('transaction prepared as %L by role %s in database %s', p.gid, p.owner, p.database)
            || format(', since %s', date_trunc('second', p.prepared))
        else format('transaction of role %s in database %s (process %s)', a.usename, a.datname, held.pid)
            || coalesce(format(', since %s', date_trunc('second', a.xact_start)), '') end
    from pg_locks waiting
        join pg_stat_activity sender on sender.pid = waiting.pid
        join pg_locks held on held.locktype = 'transactionid' and held.granted and held.transactionid = waiting.transactionid
        left join pg_prepared_xacts p on p.transaction = held.transactionid
        left join pg_stat_activity a on a.pid = held.pid
    where waiting.locktype = 'transactionid' and not waiting.granted
        and sender.backend_type = 'walsender' and sender.usename = current_user
    order by 1";

/// Waits for what makes a slot. Meanwhile it is told what that waits for, and at the end that it is nothing.
pub(crate) async fn telling_waits<T>(url: &str, making: impl Future<Output = T>, tell: impl Fn(Vec<String>)) -> T {
    let made = tokio::select! {
        made = making => made,
        never = ask(url, &tell) => match never {},
    };
    tell(Vec::new());
    made
}

/// The same, for at most so long; an error names what is still waited for.
pub(crate) async fn within<T>(
    url: &str,
    patience: Duration,
    making: impl Future<Output = T>,
) -> Result<T, LogicalError> {
    let waits_for = Mutex::new(Vec::new());
    let making = telling_waits(url, making, |waits| *waits_for.lock() = waits);
    let made = tokio::time::timeout(patience, making).await;
    made.map_err(|_| no_snapshot(patience, &waits_for.lock()))
}

fn no_snapshot(patience: Duration, waits_for: &[String]) -> LogicalError {
    let seconds = patience.as_secs();
    let which = if waits_for.is_empty() { String::new() } else { format!(" ({})", waits_for.join(", ")) };
    LogicalError::Refused(format!(
        "production gave no snapshot within {seconds} s: transactions that began before must end first{which}"
    ))
}

async fn ask(url: &str, tell: impl Fn(Vec<String>)) -> Infallible {
    let mut session = None;
    loop {
        tokio::time::sleep(PERIOD).await;
        match holders(url, &mut session).await {
            Ok(holders) => tell(holders),
            // What is being made shows by itself whether production is there.
            Err(error) => tracing::debug!(error = %error.chain(), "production cannot be asked what a slot waits for"),
        }
    }
}

async fn holders(url: &str, session: &mut Option<Client>) -> Result<Vec<String>, LogicalError> {
    let client = match session.take().filter(|client| !client.is_closed()) {
        Some(client) => client,
        None => connect_source(url).await?,
    };
    let rows = client.query(HOLDERS, &[]).await.map_err(source("asking what a slot waits for"))?;
    *session = Some(client);
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_waited_for_is_named() {
        let said = |waits_for: &[String]| no_snapshot(Duration::from_secs(30), waits_for).to_string();
        let named = said(&["process 7".to_owned(), "process 8".to_owned()]);
        assert!(named.contains("within 30 s") && named.ends_with("must end first (process 7, process 8)"), "{named}");
        assert!(said(&[]).ends_with("must end first"));
    }

    #[tokio::test]
    async fn at_the_end_nothing_is_waited_for() {
        let told = Mutex::new(vec![vec!["process 7".to_owned()]]);
        let made = telling_waits("postgresql://nobody@127.0.0.1:1/none", async { 7 }, |waits| told.lock().push(waits));
        assert_eq!(made.await, 7);
        assert_eq!(told.lock().last().map(Vec::len), Some(0));
    }
}
