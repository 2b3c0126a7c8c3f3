//! Streams of one connection: the scheduler's orders in, this daemon's reports out.
//!
//! Invariant: while this daemon is busy, the scheduler gets a heartbeat.

use std::collections::VecDeque;

use piecemeal_proto::wire::{self, HEARTBEAT, order::Order};
use tokio::{sync::mpsc, time::sleep};
use tonic::Streaming;

use super::end::EndConnectionError::{self, Lost};

/// Orders of the scheduler.
pub(super) struct Orders {
    stream: Streaming<wire::Orders>,
    /// Orders received and not yet handled.
    pub(super) read: VecDeque<wire::Order>,
}

impl Orders {
    pub(super) fn new(stream: Streaming<wire::Orders>) -> Self {
        let read = VecDeque::new();
        Self { stream, read }
    }

    /// Waits for a message, be it empty. Cancel safe.
    pub(super) async fn hear(&mut self) -> Result<(), EndConnectionError> {
        match self.stream.message().await {
            Ok(Some(message)) => {
                self.read.extend(message.orders);
                Ok(())
            }
            Ok(None) => Err(Lost("it ended the stream".into())),
            Err(status) => Err(Lost(status.message().to_owned())),
        }
    }

    /// The next order of a kind that is known.
    pub(super) async fn next(&mut self) -> Result<Order, EndConnectionError> {
        loop {
            match self.read.pop_front() {
                Some(wire::Order { order: Some(order) }) => return Ok(order),
                Some(wire::Order { order: None }) => {}
                None => self.hear().await?,
            }
        }
    }
}

/// Does `work`, and sends heartbeats in the meantime.
pub(super) async fn beating<T>(
    reports: &mpsc::Sender<wire::Reports>,
    work: impl Future<Output = T>,
) -> Result<T, EndConnectionError> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            () = sleep(HEARTBEAT) => send(reports, wire::Reports::default()).await?,
        }
    }
}

pub(super) async fn send(
    reports: &mpsc::Sender<wire::Reports>,
    message: wire::Reports,
) -> Result<(), EndConnectionError> {
    let ended = |_| Lost("it ended the stream".into());
    reports.send(message).await.map_err(ended)
}
