//! The placement brain: who fetches which piece of which blob from whom.
//!
//! Pure: events and the time go in ([`Brain::handle`], [`Brain::handle_timeout`]), commands come out. No clock, no I/O, no
//! randomness but the seed's, no iteration over unordered maps: equal histories give equal commands, in the server as in the
//! simulator. One event costs a fixed sample, or what is known of the member that it is about.
//!
//! Members connect ([`Event::Joined`]) and say what they want and hold of a blob. A swarm is one blob in one pool; a seat is a
//! member's place in it. A lease is an order to fetch a run of pieces from a source; a piece is, for each receiver, had, leased or
//! missing, exactly one. Every event changes seats first, then the members that gained room or pieces are matched:
//!
//! - a source with room looks at a sample of hungry receivers and serves the least complete ([`Brain`]'s `give`);
//! - a receiver with room looks at a sample of sources ([`Brain`]'s `supply`);
//! - either way it gets the rarest piece of a sample, copies in flight counted, and a mirror injects every piece once before any
//!   twice.
//!
//! What the samples miss is tried again by the swarm's tick.

mod backoff;
#[expect(clippy::module_inception, reason = "the noun is a brain; the folder holds its parts")]
mod brain;
mod conviction;
mod describe;
mod fill;
mod fill_in_force;
mod hash_claims;
mod have;
mod holders;
mod holdings;
mod invariants;
mod lease;
mod lease_table;
mod lease_time;
mod liveness;
mod member;
mod membership;
mod message;
mod outcome;
mod pairing;
mod piece_hashes;
mod placement;
mod policy;
mod pool;
mod rarity;
mod recall;
mod receiver;
mod receiver_class;
mod rng;
mod run;
mod sample_set;
mod slab;
mod stall;
mod status;
mod straggler;
mod swarm;
mod swarm_member;
#[cfg(test)]
mod testing;
mod upstream;
mod waiting;
mod want;

pub use brain::Brain;
pub use message::{
    Command, Conviction, Event, Features, Lease, LeaseId, Member, MemberId, Outcome, Priority, Role, Source, Time,
};
pub use policy::Policy;
pub use status::{MemberStatus, Status, SwarmStatus};
