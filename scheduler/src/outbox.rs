//! Outbox of one daemon: a bounded queue of orders, and the writer that empties it into the stream.
//!
//! Invariant: no single order is dropped. A daemon that does not read its orders is cut off, and resyncs when it reconnects.

use std::sync::Arc;

use piecemeal_proto::{SignedPieceHashes, wire};
use prost::Message as _;
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, sleep_until, timeout},
};
use tonic::Status;
use wire::order::Order as OrderKind;

use crate::{ambient::unix_seconds, brain::Lease, orders, session_end::SessionEnd, tickets::Tickets};

/// One entry of the queue. A lease waits without its ticket, so that placement does not wait for the signature.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Lease {
        lease: Lease,
        source: Arc<wire::Source>,
    },
    Order(OrderKind),
    /// One prefetch request, shared by the peers of a pool.
    Warm(Arc<wire::Warm>),
    PieceHashes(Arc<SignedPieceHashes>),
}

/// The stream of a session's orders.
pub(crate) type OrderSender = mpsc::Sender<Result<wire::Orders, Status>>;

/// Writes until the queue or the stream ends, or the daemon does not read.
pub(crate) async fn write(
    mut queue: mpsc::Receiver<Outgoing>,
    mut tickets: Tickets,
    orders: &OrderSender,
) -> SessionEnd {
    let mut next_batch = Instant::now();
    let mut batch = Vec::new();
    loop {
        // The first order after an idle time goes at once; orders that follow within the delay go together.
        match timeout(wire::HEARTBEAT, queue.recv()).await {
            Ok(None) => return SessionEnd::Stopping,
            Ok(Some(first)) => {
                batch.push(order(first, &mut tickets));
                sleep_until(next_batch).await;
                while batch.len() < ORDERS_BATCHED_MAX
                    && let Ok(more) = queue.try_recv()
                {
                    batch.push(order(more, &mut tickets));
                }
            }
            Err(_idle) => {}
        }
        for message in pack(batch.drain(..)) {
            match timeout(BEHIND_MAX, orders.send(Ok(message))).await {
                Ok(Ok(())) => {}
                Ok(Err(_closed)) => return SessionEnd::Left,
                Err(_late) => return SessionEnd::Behind,
            }
        }
        next_batch = Instant::now() + wire::BATCH_DELAY;
    }
}

fn order(outgoing: Outgoing, tickets: &mut Tickets) -> wire::Order {
    let order = match outgoing {
        Outgoing::Lease { lease, source } => {
            let ticket = tickets.ticket(lease.digest, unix_seconds());
            orders::lease(lease, &source, ticket)
        }
        Outgoing::Order(order) => order,
        Outgoing::PieceHashes(list) => OrderKind::PieceHashes(list.to_wire()),
        Outgoing::Warm(warm) => OrderKind::Warm(wire::Warm::clone(&warm)),
    };
    wire::Order { order: Some(order) }
}

/// As few messages as the limit on their size allows; an empty one, the heartbeat, when there are no orders.
fn pack(orders: impl Iterator<Item = wire::Order>) -> Vec<wire::Orders> {
    let mut messages = vec![wire::Orders::default()];
    let mut bytes = 0;
    for order in orders {
        let order_bytes = order.encoded_len() + ORDER_OVERHEAD_BYTES;
        if bytes > 0 && bytes + order_bytes > wire::MESSAGE_BYTES_MAX {
            messages.push(wire::Orders::default());
            bytes = 0;
        }
        bytes += order_bytes;
        messages.last_mut().expect("there is always one").orders.push(order);
    }
    messages
}

/// More than a daemon that reads has waiting: a few leases, and an order about each blob that it wants or holds.
pub(crate) const ORDERS_QUEUED_MAX: usize = 16 * 1024;
const ORDERS_BATCHED_MAX: usize = 1024;
/// A daemon that reads nothing for this long is cut off.
const BEHIND_MAX: Duration = Duration::from_secs(1);
/// A field's tag and length, within a message of [`wire::MESSAGE_BYTES_MAX`].
const ORDER_OVERHEAD_BYTES: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_stay_below_their_limit() {
        let order = |bytes: usize| wire::Order {
            order: Some(OrderKind::Refused(wire::Refused {
                reason: "x".repeat(bytes),
            })),
        };
        let mib = 1 << 20;
        let messages = pack([order(3 * mib), order(mib), order(mib), order(10)].into_iter());
        assert_eq!(messages.iter().map(|m| m.orders.len()).collect::<Vec<_>>(), [1, 3]);
        assert!(messages.iter().all(|m| m.encoded_len() <= wire::MESSAGE_BYTES_MAX));
        assert_eq!(pack([].into_iter()), [wire::Orders::default()]);
    }
}
