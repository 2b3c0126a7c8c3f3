//! Pieces are leased from members only with their hashes: a holder that can state unknown ones is asked to.
//!
//! Invariant: a swarm asks at most once per `describe_every`.

use super::{Brain, Command, swarm::Swarm};

impl Brain {
    /// Asks a mirror, else a peer of a sample, that holds pieces whose hash is not known.
    pub(super) fn describe(&mut self, swarm: u32, out: &mut Vec<Command>) {
        let Some(state) = self.swarms.get(swarm).filter(|state| state.is_live()) else {
            return;
        };
        let recently = state
            .described_at
            .is_some_and(|at| self.now < at + self.policy.describe_every);
        let Some(fill) = state.fill.as_ref().filter(|fill| !fill.hashed.is_full()) else {
            return;
        };
        if recently {
            return;
        }
        let len = state.sources.len();
        let start = self.dice.below(len);
        let word = self.dice.below(fill.hashed.words().len());
        let peers = state.sources.as_slice().iter().cycle().skip(start);
        let mut asked = state
            .mirrors
            .iter()
            .chain(peers.take(len.min(self.policy.sources_sampled)));
        let holder = asked.find(|&&seat| {
            self.is_usable(state.seats[seat].member) && state.sources.contains(seat) && knows_more(state, seat, word)
        });
        if let Some(&seat) = holder {
            out.push(Command::Describe {
                to: self.members[state.seats[seat].member].id,
                digest: state.digest,
            });
            self.swarms[swarm].described_at = Some(self.now);
        }
    }
}

/// Whether a seat holds a piece whose hash is not known, as far as one look from bitmap word `start` goes.
fn knows_more(swarm: &Swarm, seat: u32, start: usize) -> bool {
    let seat = &swarm.seats[seat];
    let Some(fill) = &swarm.fill else {
        return false;
    };
    let words = fill.hashed.words();
    seat.complete
        || (0..words.len().min(WORDS_MAX))
            .map(|step| (start + step) % words.len())
            .any(|word| seat.held_word(word) & !words[word] != 0)
}

/// Bitmap words that one look covers.
const WORDS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::super::{
        Event, Time,
        testing::{MIRROR, Site, peer},
    };

    #[test]
    fn a_piece_without_a_hash_is_asked_for_and_not_leased() {
        let mut site = Site::new(4, 1);
        site.complete(MIRROR);
        site.want(peer(1), []);
        assert_eq!(site.described(), [MIRROR]);
        assert!(site.leases().is_empty());
        site.pass(Time::from_millis(900), &[]);
        assert!(site.described().is_empty(), "once a second at most");
        site.pass(Time::from_millis(200), &[]);
        assert_eq!(site.described(), [MIRROR]);
        site.have(MIRROR, 0..4);
        assert_eq!(site.leases().len(), 4);
    }

    #[test]
    fn who_holds_the_whole_blob_states_hashes_under_any_fill() {
        let mut site = Site::without_mirror(4, 2);
        site.complete(peer(1));
        site.want(peer(2), []);
        assert_eq!(site.described(), [peer(1)]);
        let (digest, map) = (site.digest, site.map);
        site.event(Event::Have {
            member: peer(1),
            digest,
            map,
            fill: piecemeal_proto::FillId(0),
            first: 0,
            hashes: vec![Some([3; 32]); 4],
        });
        assert_eq!(site.leases().len(), 3, "as many as a peer uploads");
    }
}
