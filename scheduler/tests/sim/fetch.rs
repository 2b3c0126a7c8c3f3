//! Fetches of pieces over simulated links, a piece at a time: by lease, from the mirror without one, or from upstream.

use std::collections::VecDeque;

use piecemeal_peer::download::Ended;
use piecemeal_proto::{FillId, wire::Outcome};
use piecemeal_scheduler::brain::{Lease, Source};

use crate::{
    download::FROZEN_DELAY,
    link::{Nanos, SECOND},
    node::{forged, genuine, hash},
    plan::MIRROR,
    world::{Happening, World},
};

/// A source that sends nothing for so long has stalled, and the mirror, which may wait for the WAN, after the other.
const STALL: Nanos = SECOND;
const PATIENT_STALL: Nanos = 30 * SECOND;

/// One fetch of a download.
pub(crate) struct Fetch {
    pub(crate) blob: usize,
    pub(crate) work: Work,
    fill: FillId,
    /// Still to come, the next first.
    pieces: VecDeque<u32>,
    from: From,
    /// When the next piece was asked for.
    asked_at: Nanos,
    /// The piece asked for will never come.
    lost: bool,
}

pub(crate) enum Work {
    Lease(Lease),
    /// This piece from the mirror, without a lease.
    Piece(u32),
    /// All that is missing, from upstream.
    Rest,
}

#[derive(Clone, Copy)]
enum From {
    /// A node in one of its lives.
    Node(usize, u32),
    Mirror,
    Upstream,
    /// A member that is gone.
    Nowhere,
}

/// What happens to the piece that a fetch has asked for.
#[derive(Clone, Copy)]
pub(crate) enum Transit {
    /// The request reaches the source.
    Asked,
    /// The piece has left its source.
    Sent {
        content: u64,
    },
    Landed {
        content: u64,
    },
    Failed(Outcome),
    /// The receiver looks whether its source still sends.
    Checked,
}

impl World {
    pub(crate) fn fetch(&mut self, node: usize, blob: usize, work: Work, pieces: Vec<u32>) {
        let from = match &work {
            Work::Lease(Lease { source, .. }) => match source {
                Source::Upstream => From::Upstream,
                Source::Member(member) => match self.members.get(member) {
                    Some(&source) => From::Node(source, self.nodes[source].life),
                    None => From::Nowhere,
                },
            },
            Work::Piece(_) => From::Mirror,
            Work::Rest => From::Upstream,
        };
        let serial = self.serial();
        let fill = self.nodes[node].blobs[blob].fill;
        let fetch = Fetch {
            blob,
            work,
            fill,
            pieces: pieces.into(),
            from,
            asked_at: self.now,
            lost: false,
        };
        self.nodes[node].fetches.insert(serial, fetch);
        // A fetch is a task of its own.
        self.at(self.now, Happening::Fetch(node, serial));
    }

    /// Asks for the fetch's next piece, or ends it.
    pub(crate) fn advance(&mut self, node: usize, serial: u64) {
        let state = &mut self.nodes[node];
        let Some(fetch) = state.fetches.get_mut(&serial) else {
            return;
        };
        fetch.asked_at = self.now;
        let (blob, from) = (fetch.blob, fetch.from);
        let have = &state.blobs[blob].have;
        let here = fetch.pieces.iter().take_while(|piece| have.contains(**piece));
        fetch.pieces.drain(..here.count());
        let Some(&piece) = fetch.pieces.front() else {
            return self.end_fetch(node, serial, Outcome::Done.into());
        };
        let transit = match from {
            From::Nowhere => Transit::Failed(Outcome::Unreachable),
            From::Node(..) | From::Mirror => Transit::Asked,
            From::Upstream => {
                let pieces = fetch.pieces.iter().copied().collect();
                return self.fill(node, blob, pieces, Some(serial));
            }
        };
        let at = self.now + self.hop();
        self.transit(at, (node, serial), piece, transit);
        self.transit(self.now + STALL, (node, serial), piece, Transit::Checked);
    }

    fn transit(&mut self, at: Nanos, to: (usize, u64), piece: u32, transit: Transit) {
        self.at(at, Happening::Transit(to, piece, transit));
    }

    pub(crate) fn step_fetch(&mut self, to: (usize, u64), piece: u32, transit: Transit) {
        let fetch = self.nodes[to.0].fetches.get_mut(&to.1);
        let Some(fetch) = fetch.filter(|fetch| fetch.pieces.front() == Some(&piece)) else {
            return;
        };
        match transit {
            Transit::Asked => self.asked(to, piece),
            Transit::Sent { content } => {
                let gone = match fetch.from {
                    From::Node(source, life) => self.nodes[source].life != life,
                    _ => false,
                };
                if gone || self.chance.happens(self.plan.loss) {
                    self.nodes[to.0].fetches.get_mut(&to.1).expect("it is sent to").lost = true;
                    return;
                }
                let at = self.nodes[to.0].down.receive(self.now, self.map.len(piece));
                self.transit(at, to, piece, Transit::Landed { content });
            }
            Transit::Landed { .. } | Transit::Failed(_) if self.nodes[to.0].frozen => {
                self.transit(self.now + FROZEN_DELAY, to, piece, transit);
            }
            Transit::Landed { content } => self.landed(to, piece, content),
            Transit::Failed(outcome) => self.end_fetch(to.0, to.1, Ended { outcome, piece }),
            Transit::Checked => self.look(to, piece),
        }
    }

    /// A request is at its source.
    fn asked(&mut self, to: (usize, u64), piece: u32) {
        let fetch = self.nodes[to.0].fetches.get_mut(&to.1).expect("it asked");
        let (source, life) = match fetch.from {
            From::Node(source, life) => (source, Some(life)),
            _ => (MIRROR, None),
        };
        let (blob, fill) = (fetch.blob, fetch.fill);
        let state = &self.nodes[source];
        if !state.running || life.is_some_and(|life| state.life != life) {
            let at = self.now + self.hop();
            return self.transit(at, to, piece, Transit::Failed(Outcome::Unreachable));
        }
        if state.frozen {
            self.nodes[to.0].fetches.get_mut(&to.1).expect("it asked").lost = true;
            return;
        }
        let holding = &state.blobs[blob];
        let is_fill = holding.fill == fill || holding.complete;
        if is_fill && !holding.have.contains(piece) && life.is_none() {
            // With a grant the answer waits for the WAN.
            return self.awaited.entry((blob, piece)).or_default().push(to);
        }
        if !is_fill || !holding.have.contains(piece) {
            let at = self.now + self.hop();
            return self.transit(at, to, piece, Transit::Failed(Outcome::Missing));
        }
        self.send(source, to, (blob, piece));
    }

    fn send(&mut self, source: usize, to: (usize, u64), (blob, piece): (usize, u32)) {
        let lie = self.nodes[source].liar && self.chance.happens(500);
        let summed = self.plan.summed && source != MIRROR;
        let state = &mut self.nodes[source];
        let content = state.blobs[blob].content[piece as usize] ^ u64::from(lie);
        state.sent += 1;
        let link = if summed { &mut state.down } else { &mut state.up };
        let sent = link.send(self.now, self.map.len(piece));
        let at = sent + self.hop();
        self.transit(at, to, piece, Transit::Sent { content });
    }

    /// The mirror has begun another fill: what waits for the former is answered at once.
    pub(crate) fn refuse_awaited(&mut self) {
        let awaited: Vec<_> = self.awaited.keys().copied().collect();
        awaited
            .into_iter()
            .for_each(|(blob, piece)| self.answer_awaited(blob, piece));
    }

    /// The mirror is gone, and with it the connections of what waits for it.
    pub(crate) fn break_awaited(&mut self) {
        for ((_, piece), fetches) in std::mem::take(&mut self.awaited) {
            for to in fetches {
                let at = self.now + self.hop();
                self.transit(at, to, piece, Transit::Failed(Outcome::Stalled));
            }
        }
    }

    /// The mirror has a piece that requests wait for, or will not have it.
    pub(crate) fn answer_awaited(&mut self, blob: usize, piece: u32) {
        for to in self.awaited.remove(&(blob, piece)).unwrap_or_default() {
            if self.nodes[to.0].fetches.contains_key(&to.1) {
                self.asked(to, piece);
            }
        }
    }

    fn landed(&mut self, to: (usize, u64), piece: u32, content: u64) {
        let fetch = &self.nodes[to.0].fetches[&to.1];
        let (blob, fill) = (fetch.blob, fetch.fill);
        let stated = match &fetch.work {
            Work::Lease(lease) => lease.hashes[(piece - lease.first) as usize],
            Work::Piece(_) | Work::Rest => None,
        };
        if stated.is_some_and(|stated| stated != hash(content)) {
            let outcome = Outcome::Corrupt;
            return self.end_fetch(to.0, to.1, Ended { outcome, piece });
        }
        let bad_fill = fill.0 % 2 == 1 && self.plan.revoked_at.is_some();
        let was_claimed = content == forged(blob, piece) && self.spoken[blob][piece as usize].is_none();
        assert!(
            bad_fill || content == genuine(blob, piece) || was_claimed || self.is_news(to.0, blob, piece),
            "seed {}: unverified bytes were accepted",
            self.plan.seed
        );
        self.land(to.0, blob, piece, content);
        self.advance(to.0, to.1);
    }

    /// A peer stores a piece, and its download hears of it.
    pub(crate) fn land(&mut self, node: usize, blob: usize, piece: u32, content: u64) {
        self.nodes[node].blobs[blob].store(piece, content, self.now);
        self.tell_piece(node, blob, piece);
        self.tell(node, blob, |_, _, _| ());
    }

    pub(crate) fn end_fetch(&mut self, node: usize, serial: u64, ended: Ended) {
        let state = &mut self.nodes[node];
        let Some(fetch) = state.fetches.remove(&serial) else {
            return;
        };
        let have = state.blobs[fetch.blob].have.clone();
        self.tell(node, fetch.blob, |machine, now, _| match fetch.work {
            Work::Lease(lease) => machine.handle_lease_ended(lease.id.0, ended, &have),
            Work::Piece(piece) => machine.handle_piece(now, piece, ended, &have),
            Work::Rest => machine.handle_rest_ended(ended.outcome == Outcome::Done),
        });
    }

    fn look(&mut self, to: (usize, u64), piece: u32) {
        let fetch = &self.nodes[to.0].fetches[&to.1];
        let is_gone = |node: usize, life: Option<u32>| {
            let source = &self.nodes[node];
            !source.running || life.is_some_and(|life| source.life != life)
        };
        let (silent, gone) = match fetch.from {
            From::Node(node, life) => (self.nodes[node].frozen, is_gone(node, Some(life))),
            From::Mirror => (true, is_gone(MIRROR, None)),
            From::Upstream | From::Nowhere => (false, false),
        };
        let patience = if matches!(fetch.from, From::Mirror) {
            PATIENT_STALL
        } else {
            STALL
        };
        let stalled = (fetch.lost || silent) && self.now >= fetch.asked_at + patience;
        if gone || stalled {
            let outcome = Outcome::Stalled;
            self.end_fetch(to.0, to.1, Ended { outcome, piece });
        } else {
            self.transit(self.now + STALL, to, piece, Transit::Checked);
        }
    }
}
