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
