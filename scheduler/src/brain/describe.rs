//! Requests for missing piece hashes, since a piece is leased from a member only with its hash.
//!
//! Invariant: a swarm asks at most once per `describe_every`. A peer is asked for the signed list at any time; its own claims
//! count once its turn has come (`hash_claims.rs`).

use super::{Brain, Command, swarm::Swarm};

impl Brain {
    /// Asks a mirror, else a peer of a sample, that holds pieces whose hash is not known.
    pub(super) fn describe(&mut self, swarm: u32, out: &mut Vec<Command>) {
        let Some(state) = self.swarms.get(swarm).filter(|state| state.is_live()) else {
            return;
        };
        let described_at = state.described_at;
        let recently = described_at.is_some_and(|at| self.now < at + self.policy.describe_every);
        let Some(fill) = state.fill.as_ref().filter(|fill| !fill.hashed.is_full()) else {
            return;
        };
        if recently {
            return;
        }
        let start = self.rng.below(state.sources.len());
        let word = self.rng.below(fill.hashed.words().len());
        let claims = self.accepts_claims(swarm);
        let Some(index) = self.pick_describer(swarm, start, word, claims) else {
            return;
        };
        out.push(Command::Describe {
            to: self.members[state.members[index].slot].id,
            digest: state.digest,
        });
        let takes_turn = claims && self.may_be_asked(swarm, index);
        let state = &mut self.swarms[swarm];
        state.described_at = Some(self.now);
        if !takes_turn {
            return;
        }
        if let Some(silent) = state.hash_source.filter(|_| state.hash_source_owes) {
            state.members[silent].claim_backoff.strike(self.now, &self.policy);
        }
        (state.hash_source, state.hash_source_owes) = (Some(index), true);
    }

    /// The member to ask: a mirror, the hash source, or a peer of a sample of the sources from `start` on, complete ones first.
    /// `word`: where the search for unknown hashes begins. `claims`: hashes that a peer itself states count, too.
    fn pick_describer(&self, swarm: u32, start: usize, word: usize, claims: bool) -> Option<u32> {
        let state = &self.swarms[swarm];
        let may_claim = |index: u32| claims && self.may_be_asked(swarm, index);
        let keeps_lists = |index: u32| self.members[state.members[index].slot].info.features.piece_hashes;
        let is_holder = |index: u32| {
            self.is_usable(state.members[index].slot) && state.sources.contains(index) && knows_more(state, index, word)
        };
        let sample = state.sources.as_slice().iter().cycle().skip(start);
        let peers = || {
            let len = state.sources.len().min(self.policy.sources_sampled);
            let sample = sample.clone().take(len).copied();
            sample.filter(|&index| (may_claim(index) || keeps_lists(index)) && is_holder(index))
        };
        let hash_source = state.hash_source.filter(|_| !state.hash_source_owes);
        let mirror = state.mirrors.iter().copied().find(|&index| is_holder(index));
        mirror
            .or_else(|| hash_source.filter(|&index| may_claim(index) && is_holder(index)))
            .or_else(|| peers().find(|&index| state.members[index].complete))
            .or_else(|| peers().next())
    }

    /// Whether the member may be the one whose claims are used.
    fn may_be_asked(&self, swarm: u32, index: u32) -> bool {
        let member = &self.swarms[swarm].members[index];
        !member.mirror && !member.claim_backoff.is_active(self.now) && !self.has_lied(&self.members[member.slot].info)
    }

    /// Asks a peer for the hashes of the pieces that it brought along, once some of them can be compared.
    pub(super) fn compare(&mut self, swarm: u32, index: u32, out: &mut Vec<Command>) {
        let (now, every) = (self.now, self.policy.describe_every);
        let state = &mut self.swarms[swarm];
        let (Some(fill), digest) = (&state.fill, state.digest) else {
            return;
        };
        let asked = &mut state.members[index];
        let words = asked.unproven.words().iter().zip(fill.hashed.words());
        let is_due = asked.asked_at.is_none_or(|at| now >= at + every);
        if !asked.unproven.is_empty() && is_due && words.into_iter().any(|(unproven, hashed)| unproven & hashed != 0) {
            asked.asked_at = Some(now);
            let to = self.members[asked.slot].id;
            out.push(Command::Describe { to, digest });
        }
    }
}

/// Whether a member holds a piece whose hash is not known, as far as one search from bitmap word `start` goes.
fn knows_more(swarm: &Swarm, index: u32, start: usize) -> bool {
    let member = &swarm.members[index];
    let Some(fill) = &swarm.fill else {
        return false;
    };
    let words = fill.hashed.words();
    member.complete
        || (0..words.len().min(WORDS_MAX))
            .map(|step| (start + step) % words.len())
            .any(|word| member.have.words().get(word).copied().unwrap_or(0) & !words[word] != 0)
}

/// Bitmap words that one search covers.
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
