//! The placement brain: decides which member fetches which piece of which blob from which source.
//!
//! Invariant: equal histories give equal commands, in the server as in the simulator. Events and the time go in
//! ([`Brain::handle`], [`Brain::handle_timeout`]), commands come out. There is no clock, no I/O, no randomness but the seed's, and no
//! iteration over unordered maps. One event costs a fixed sample, or as much as is known of the member that it is about.
//!
//! Members connect ([`Event::Joined`]) and report the blobs that they want and the pieces that they hold. A swarm is the
//! members of one blob in one pool. A lease is an order to a receiver to fetch a run of pieces from a source. For each receiver
//! a piece is held, leased or missing, exactly one of them. A piece lands when its receiver reports that it has it. Every event first
//! changes the members of swarms (`swarm_member.rs`); then the members that gained room or pieces are matched (`placement.rs`):
//!
//! - a source with room looks at a sample of receivers and serves the least complete;
//! - a receiver with room looks at a sample of sources;
//! - either way the receiver gets the rarest piece of a sample, copies in flight counted, and a mirror injects every piece once
//!   before any twice.
//!
//! The swarm's tick tries again what the samples miss.
//!
//! Members are numbered: a slot is a member's place in [`Brain`], an index its place in one swarm.
//!
//! | to change | see |
//! |---|---|
//! | when a member is silent or gone | `liveness.rs`, `member.rs`, `pool.rs` |
//! | the effect of a member's report | `want.rs`, `have.rs`, `fill_in_force.rs`, `outcome.rs`, `waiting.rs`, `clients.rs` |
//! | which receiver gets which piece from which source | `placement.rs`, `pairing.rs`, `rarity.rs`, `upstream.rs`, `straggler.rs` |
//! | how many leases a member may have | `receiver.rs`, `receiver_class.rs`, `stall.rs`, `backoff.rs`, `policy.rs` |
//! | which hash of a piece is believed | `describe.rs`, `piece_hashes.rs`, `hash_claims.rs`, `conviction.rs`, `recall.rs` |
//! | the memory of unwanted blobs | `holdings.rs`, `holders.rs`, `membership.rs` |

mod backoff;
#[expect(clippy::module_inception, reason = "the noun is a brain; the folder holds its parts")]
mod brain;
mod clients;
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
