//! Opening of a blob by a simulated peer: the real decisions, over questions to the mirror that are modelled.
//!
//! No download of a peer begins without an answer of the mirror. An answer takes no time; that there is none shows after a while.

use std::time::Duration;

use piecemeal_peer::download::{Opening, OpeningStep, Unopened};
use piecemeal_proto::FillId;

use crate::{
    download::{FROZEN_DELAY, nanos},
    link::{Nanos, SECOND},
    node::may_use_upstream,
    plan::MIRROR,
    world::{Happening, World},
};

/// A question to a mirror that is connected and says nothing ends after so long.
const OPEN_TIMEOUT: Nanos = 5 * SECOND;
/// A client's next try of a blob whose download has failed: before that the daemon answers with the failure.
const COOL_DOWN: Nanos = SECOND;
/// Fills that peers have begun without the mirror are above, and even: their bytes are good.
const OWN_FILLS: u64 = 1 << 41;

/// What happens to the opening of a blob.
#[derive(Clone, Copy)]
pub(crate) enum OpenStep {
    /// The client asks, or a pause is over.
    Go,
    /// The mirror has not answered.
    Unanswered,
}

impl World {
    pub(crate) fn mirror_answers(&self) -> bool {
        self.nodes[MIRROR].running && !self.nodes[MIRROR].frozen
    }

    /// How long a question takes that the mirror does not answer.
    pub(crate) fn unanswered(&mut self) -> Nanos {
        match self.nodes[MIRROR].running {
            true => OPEN_TIMEOUT,
            false => self.hop(),
        }
    }

    /// A client asks for the blob at this time.
    pub(crate) fn open(&mut self, at: Nanos, node: usize, blob: usize) {
        let may_use_upstream = may_use_upstream(&self.plan, node);
        let holding = &mut self.nodes[node].blobs[blob];
        if holding.wanted {
            holding.opening = Some(Opening::new(Duration::from_nanos(at), true, may_use_upstream));
            self.open_later(at, (node, blob), OpenStep::Go);
        }
    }

    pub(crate) fn try_again(&mut self, node: usize, blob: usize) {
        self.open(self.now + COOL_DOWN, node, blob);
    }

    fn open_later(&mut self, at: Nanos, (node, blob): (usize, usize), step: OpenStep) {
        let life = self.nodes[node].life;
        self.at(at, Happening::Open((node, blob, life), step));
    }

    pub(crate) fn step_opening(&mut self, node: usize, blob: usize, step: OpenStep) {
        let now = self.time();
        if self.nodes[node].frozen {
            return self.open_later(self.now + FROZEN_DELAY, (node, blob), step);
        }
        if matches!(step, OpenStep::Unanswered) {
            self.note_mirror(node, false);
            let since = self.nodes[node].mirror_lost_since;
            let lost = since.map(|since| Duration::from_nanos(self.now - since));
            let grace = self.plan.policy.mirror_grace;
            let opening = self.nodes[node].blobs[blob].opening.as_mut().expect("it has asked");
            opening.handle_unopened(now, Unopened::Lost { lost }, grace);
        }
        let opening = self.nodes[node].blobs[blob].opening.as_ref().expect("it is not open");
        match opening.poll(now) {
            OpeningStep::Ask if self.mirror_answers() => {
                self.note_mirror(node, true);
                self.nodes[node].blobs[blob].opening = None;
                self.begin(node, blob);
            }
            OpeningStep::Ask => {
                let at = self.now + self.unanswered();
                self.open_later(at, (node, blob), OpenStep::Unanswered);
            }
            OpeningStep::Wait(until) => self.open_later(nanos(until), (node, blob), OpenStep::Go),
            OpeningStep::UseUpstream => self.fill_alone(node, blob),
            OpeningStep::Fail => self.try_again(node, blob),
        }
    }

    /// A fill of the peer's own, outside the swarm: it goes on with what an earlier download has left.
    fn fill_alone(&mut self, node: usize, blob: usize) {
        let serial = self.serial();
        let holding = &mut self.nodes[node].blobs[blob];
        holding.opening = None;
        if holding.have.is_empty() {
            holding.restart(FillId(OWN_FILLS + 2 * serial));
        }
        let missing = holding.have.missing().collect();
        self.fill(node, blob, missing, None);
    }

    /// A fill of the peer's own has ended.
    pub(crate) fn filled_alone(&mut self, node: usize, blob: usize, succeeded: bool) {
        if !succeeded || !self.prove(node, blob, None) {
            self.try_again(node, blob);
        }
    }
}
