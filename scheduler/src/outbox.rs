//! Outbox of one daemon: a bounded queue of orders, and the writer that empties it into the stream.
//!
//! Single orders are never dropped: a daemon that does not read them is cut off, and resyncs when it reconnects.

use std::sync::Arc;

use lru::LruCache;
use piecemeal_proto::{AuthorityKey, Digest, NodeId, SignedPieceHashes, Ticket, wire};
use prost::Message as _;
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, sleep_until, timeout},
};
use tonic::Status;
use wire::order::Order as Kind;

use crate::{
    ambient::unix_seconds,
    brain::{Lease, Priority},
    session_end::SessionEnd,
};

/// One entry of the queue. A lease waits without its ticket, which costs a signature that placement must not wait for.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Lease {
        lease: Lease,
        source: Arc<wire::Source>,
    },
    Order(Kind),
    /// The same for a whole pool.
    Warm(Arc<wire::Warm>),
    PieceHashes(Arc<SignedPieceHashes>),
}

/// Where a session's orders go.
pub(crate) type OrderSender = mpsc::Sender<Result<wire::Orders, Status>>;

/// Writes until the daemon does not read. Never ends by itself otherwise.
pub(crate) async fn write(
    mut queue: mpsc::Receiver<Outgoing>,
    mut tickets: Tickets,
    orders: &OrderSender,
) -> SessionEnd {
    let mut next_batch = Instant::now();
    let mut batch = Vec::new();
    loop {
        // What comes when the stream is idle goes at once; what follows within the delay goes together.
        match timeout(wire::HEARTBEAT, queue.recv()).await {
            Ok(None) => return SessionEnd::Stopping,
            Ok(Some(first)) => {
                batch.push(tickets.stamp(first));
                sleep_until(next_batch).await;
                while batch.len() < ORDERS_BATCHED_MAX
                    && let Ok(more) = queue.try_recv()
                {
                    batch.push(tickets.stamp(more));
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

/// Signs tickets for one receiver, one a blob, and again once half their time is over.
pub(crate) struct Tickets {
    key: Arc<AuthorityKey>,
    receiver: NodeId,
    /// At most [`TICKETS_MAX`]. It grows as it is filled: there are as many of these as receivers.
    signed: LruCache<Digest, Signed>,
}

struct Signed {
    ticket: Vec<u8>,
    at: u64,
}

impl Tickets {
    pub(crate) fn new(key: Arc<AuthorityKey>, receiver: NodeId) -> Self {
        Self {
            key,
            receiver,
            signed: LruCache::unbounded(),
        }
    }

    fn stamp(&mut self, outgoing: Outgoing) -> wire::Order {
        let order = match outgoing {
            Outgoing::Lease { lease, source } => {
                let ticket = self.ticket(lease.digest, unix_seconds());
                Kind::Lease(lease_order(lease, &source, ticket))
            }
            Outgoing::Order(order) => order,
            Outgoing::PieceHashes(list) => Kind::PieceHashes(list.to_wire()),
            Outgoing::Warm(warm) => Kind::Warm(wire::Warm::clone(&warm)),
        };
        wire::Order { order: Some(order) }
    }

    /// `now` is in seconds since 1970. A clock that was set back makes a new ticket, too.
    fn ticket(&mut self, digest: Digest, now: u64) -> Vec<u8> {
        let fresh = |signed: &Signed| (signed.at..signed.at.saturating_add(TICKET_FRESH_SECONDS)).contains(&now);
        if let Some(signed) = self.signed.get(&digest).filter(|&signed| fresh(signed)) {
            return signed.ticket.clone();
        }
        let ticket = Ticket {
            node: self.receiver,
            digest,
            expires: now.saturating_add(TICKET_SECONDS),
        };
        let ticket = ticket.sign(&self.key).into_bytes();
        let signed = Signed {
            ticket: ticket.clone(),
            at: now,
        };
        self.signed.put(digest, signed);
        if self.signed.len() > TICKETS_MAX {
            self.signed.pop_lru();
        }
        ticket
    }
}

fn lease_order(lease: Lease, source: &wire::Source, ticket: Vec<u8>) -> wire::Lease {
    wire::Lease {
        lease: lease.id.0,
        digest: lease.digest.to_string(),
        fill: lease.fill.0,
        first: lease.first,
        count: lease.count,
        source: Some(source.clone()),
        ticket,
        priority: match lease.priority {
            Priority::Normal => 0,
            Priority::Waiting => 1,
        },
        hash_algorithm: wire::HashAlgorithm::Sha256.into(),
        hashes: wire::join_hashes(&lease.hashes),
        ..wire::Lease::default()
    }
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

/// More than a daemon that reads is ever behind by: a few leases, and a word on each of the blobs that it has a part in.
pub(crate) const ORDERS_QUEUED_MAX: usize = 16 * 1024;
const ORDERS_BATCHED_MAX: usize = 1024;
/// A daemon that takes nothing for this long is cut off.
const BEHIND_MAX: Duration = Duration::from_secs(1);
/// How long a node that is shut out is served by other peers, which are not told. Each lease brings a ticket, and its requests are made
/// within the life of a lease.
const TICKET_SECONDS: u64 = 15 * 60;
/// A ticket that is older than this goes out no more. What is left of its time is for a lease that is slow, and for a source whose
/// clock differs.
const TICKET_FRESH_SECONDS: u64 = 3 * 60;
/// As many blobs as one peer may want at once, and again as many that it wanted before.
const TICKETS_MAX: usize = 2048;
/// A field's tag and length, within a message of [`wire::MESSAGE_BYTES_MAX`].
const ORDER_OVERHEAD_BYTES: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn tickets() -> Tickets {
        Tickets::new(Arc::new(AuthorityKey::from_seed([3; 32])), NodeId([1; 16]))
    }

    fn check(ticket: &[u8], now: u64) -> Ticket {
        let public = AuthorityKey::from_seed([3; 32]).public();
        Ticket::check(str::from_utf8(ticket).unwrap(), &public, now).unwrap()
    }

    #[test]
    fn a_ticket_goes_out_for_three_minutes_and_is_good_for_fifteen() {
        let mut tickets = tickets();
        let digest = Digest::of(b"blob");
        let first = tickets.ticket(digest, 1000);
        assert_eq!(check(&first, 1000).expires, 1000 + 15 * 60);
        assert_eq!(tickets.ticket(digest, 1000 + 179), first);
        let second = tickets.ticket(digest, 1000 + 180);
        assert_eq!(check(&second, 1000).expires, 1000 + 180 + 15 * 60);
        assert_eq!(check(&tickets.ticket(digest, 10), 10).expires, 10 + 900);
    }

    #[test]
    fn one_ticket_too_many_takes_the_place_of_the_one_used_longest_ago() {
        let mut tickets = tickets();
        let digest = |number: usize| Digest::of(&number.to_be_bytes());
        for number in 0..TICKETS_MAX {
            tickets.ticket(digest(number), 1000);
        }
        tickets.ticket(digest(0), 1001);
        tickets.ticket(digest(TICKETS_MAX), 1001);
        let kept = |number| tickets.signed.contains(&digest(number));
        assert!(!kept(1) && (0..=TICKETS_MAX).filter(|&number| number != 1).all(kept));
    }

    #[test]
    fn messages_stay_below_their_limit() {
        let order = |bytes: usize| wire::Order {
            order: Some(Kind::Refused(wire::Refused {
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
