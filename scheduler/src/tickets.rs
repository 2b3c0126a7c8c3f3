//! Tickets for the leases of one receiver: the scheduler's signed word that a node may take a blob's pieces.
//!
//! Invariant: a ticket that goes out is valid for at least [`TICKET_SECONDS`] less [`TICKET_FRESH_SECONDS`].

use std::sync::Arc;

use lru::LruCache;
use piecemeal_proto::{AuthorityKey, Digest, NodeId, Ticket};

/// Signs one ticket a blob, and another once it is not fresh any more.
pub(crate) struct Tickets {
    key: Arc<AuthorityKey>,
    receiver: NodeId,
    /// At most [`TICKETS_MAX`]. It grows as it is filled: there are as many of these as receivers.
    signed: LruCache<Digest, SignedTicket>,
}

struct SignedTicket {
    ticket: Vec<u8>,
    /// Seconds since 1970.
    signed_at: u64,
}

impl Tickets {
    pub(crate) fn new(key: Arc<AuthorityKey>, receiver: NodeId) -> Self {
        Self {
            key,
            receiver,
            signed: LruCache::unbounded(),
        }
    }

    /// `now` is in seconds since 1970. After the clock was set back, the ticket is a new one, too.
    pub(crate) fn ticket(&mut self, digest: Digest, now: u64) -> Vec<u8> {
        let fresh = |signed: &SignedTicket| {
            (signed.signed_at..signed.signed_at.saturating_add(TICKET_FRESH_SECONDS)).contains(&now)
        };
        if let Some(signed) = self.signed.get(&digest).filter(|&signed| fresh(signed)) {
            return signed.ticket.clone();
        }
        let ticket = Ticket {
            node: self.receiver,
            digest,
            expires: now.saturating_add(TICKET_SECONDS),
        };
        let ticket = ticket.sign(&self.key).into_bytes();
        let signed = SignedTicket {
            ticket: ticket.clone(),
            signed_at: now,
        };
        self.signed.put(digest, signed);
        if self.signed.len() > TICKETS_MAX {
            self.signed.pop_lru();
        }
        ticket
    }
}

/// The life of a ticket, in seconds: for as long, other peers still serve a node that was shut out, since they are not told. Each
/// lease brings a ticket, and its requests are made within the life of the lease.
const TICKET_SECONDS: u64 = 15 * 60;
/// A ticket that is older goes out no more. The rest of its time is for a slow lease, and for a source whose clock differs.
const TICKET_FRESH_SECONDS: u64 = 3 * 60;
/// As many blobs as one peer may want at once, and again as many that it wanted before.
const TICKETS_MAX: usize = 2048;

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
}
