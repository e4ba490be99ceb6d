//! The line-based channel to control: commands in, events out.

use std::time::Instant;

use ardent_api::compute::{ComputeCommand, ComputeEvent};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, Lines};

/// Events to control.
#[derive(Debug)]
pub(crate) struct Events<W> {
    out: W,
    started: Instant,
}

impl<W: AsyncWrite + Unpin> Events<W> {
    pub(crate) fn new(out: W) -> Self {
        Events { out, started: Instant::now() }
    }

    /// Writes one line. A control that is gone also closes our standard input, which is what ends the compute, so a
    /// failure to write is only logged.
    pub(crate) async fn emit(&mut self, event: &ComputeEvent) {
        let mut line = serde_json::to_vec(event).expect("events are plain data");
        line.push(b'\n');
        let written = async {
            self.out.write_all(&line).await?;
            self.out.flush().await
        };
        if let Err(error) = written.await {
            tracing::warn!(%error, "cannot tell control about an event");
        }
    }

    pub(crate) async fn progress(&mut self, step: impl Into<String>) {
        let elapsed_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.emit(&ComputeEvent::Progress { step: step.into(), elapsed_ms }).await;
    }
}

/// What control wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    /// A command.
    Command(ComputeCommand),
    /// Standard input was closed: control is gone, end at once.
    Orphaned,
}

/// Commands from control.
#[derive(Debug)]
pub(crate) struct Orders<R> {
    lines: Lines<BufReader<R>>,
}

impl<R: AsyncRead + Unpin> Orders<R> {
    pub(crate) fn new(input: R) -> Self {
        Orders { lines: BufReader::new(input).lines() }
    }

    /// Waits for an order to end, before there is anything that another order could be about. Cancel-safe.
    pub(crate) async fn stop(&mut self) {
        loop {
            match self.next().await {
                Order::Command(ComputeCommand::Stop { .. }) => return tracing::info!("stopped while starting"),
                Order::Orphaned => return,
                Order::Command(command) => tracing::debug!(?command, "too early"),
            }
        }
    }

    /// The next order. Cancel-safe. A line that is no command is logged and passed over.
    pub(crate) async fn next(&mut self) -> Order {
        loop {
            match self.lines.next_line().await {
                Ok(Some(line)) => match serde_json::from_str(&line) {
                    Ok(command) => return Order::Command(command),
                    Err(error) => tracing::warn!(%error, line, "not a command"),
                },
                Ok(None) => return Order::Orphaned,
                Err(error) => {
                    tracing::warn!(%error, "standard input cannot be read");
                    return Order::Orphaned;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn orders_are_read_until_the_end() {
        let input = b"nonsense\n{\"command\":\"stop\",\"deadline_ms\":5}\n".as_slice();
        let mut orders = Orders::new(input);
        assert_eq!(orders.next().await, Order::Command(ComputeCommand::Stop { deadline_ms: 5 }));
        assert_eq!(orders.next().await, Order::Orphaned);
    }

    #[tokio::test]
    async fn an_event_is_one_line() {
        let mut out = Vec::new();
        Events::new(&mut out).emit(&ComputeEvent::Idle).await;
        assert_eq!(out, b"{\"event\":\"idle\"}\n");
    }
}
