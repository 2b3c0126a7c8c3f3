//! The real download of a simulated peer: its events, its facts, and what it decides, carried out over simulated links.
//!
//! Around the machine stands what the peer's task does in production.

use std::{sync::Arc, time::Duration};

use piecemeal_peer::download::{Action, Beginning, Download, Facts, Order, Reopened};
use piecemeal_proto::{FillId, SignedPieceHashes, wire};
use piecemeal_scheduler::brain::{Event, Lease, LeaseId, Outcome};

use crate::{
    fetch::Work,
    link::{MILLISECOND, Nanos, SECOND},
    node::{hash, may_use_upstream},
    world::{Happening, World},
};

/// A scheduler that says nothing for so long counts as lost.
const SILENCE: Nanos = SECOND;
/// What reaches a frozen process is tried again this often.
pub(crate) const FROZEN_DELAY: Nanos = 50 * MILLISECOND;

/// A download under way.
pub(crate) struct Running {
    machine: Download,
    /// No other download's.
    serial: u64,
    /// A tick is in the queue.
    ticks: bool,
    /// The scheduler refuses its grant, until the mirror has given another.
    pub(crate) has_old_grant: bool,
    /// The lease that was ordered last.
    ordered: Option<Lease>,
}

/// What happens to one download.
#[derive(Clone, Copy)]
pub(crate) enum Step {
    Tick,
    /// A question reaches the mirror.
    Opening,
    /// Its answer reaches the peer: the fill, or `None` where the mirror does not answer.
    Opened(Option<FillId>),
    /// The scheduler has refused its want.
    Refused,
}

impl World {
    pub(crate) fn time(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    /// Puts a step of the download that is under way into the queue.
    pub(crate) fn step_later(&mut self, at: Nanos, (node, blob): (usize, usize), step: Step) {
        if let Some(running) = &self.nodes[node].blobs[blob].download {
            let download = (node, blob, running.serial);
            self.at(at, Happening::Download(download, step));
        }
    }

    pub(crate) fn serial(&mut self) -> u64 {
        self.serials += 1;
        self.serials
    }

    /// The blob is open at the mirror, which has named the fill: its download begins.
    pub(crate) fn begin(&mut self, node: usize, blob: usize) {
        let fill = self.fill;
        let (serial, seed) = (self.serial(), self.chance.draw());
        let has_old_grant = self.chance.happens(self.plan.old_grants);
        let holding = &mut self.nodes[node].blobs[blob];
        if holding.fill != fill {
            holding.restart(fill);
        }
        let beginning = Beginning {
            fill,
            map: self.map,
            landed: holding.have.clone(),
            mirror_configured: true,
            may_use_upstream: may_use_upstream(&self.plan, node),
            seed,
        };
        holding.download = Some(Running {
            machine: Download::new(Duration::from_nanos(self.now), beginning),
            serial,
            ticks: false,
            has_old_grant,
            ordered: None,
        });
        self.say_want(node, blob);
        self.drive(node, blob);
    }

    /// What is fixed takes no time to read: there are hundreds of downloads.
    fn facts(&self, node: usize, blob: usize) -> Facts {
        let state = &self.nodes[node];
        let holding = &state.blobs[blob];
        let is_silent = self.now < self.paused_until && self.now >= self.paused_since + SILENCE;
        let waits = (holding.prefix < self.map.count()).then_some(holding.prefix);
        let waited = Duration::from_nanos(self.now - holding.fed_at);
        let jump = self
            .plan
            .jump
            .filter(|piece| node == 1 && waits.is_some_and(|next| next < *piece) && !holding.have.contains(*piece));
        let lost = state.mirror_lost_since.map(|since| self.now - since);
        Facts {
            scheduler_up: state.member.is_some() && !is_silent,
            mirror_lost: lost.map(Duration::from_nanos),
            mirror_grace: self.plan.policy.mirror_grace,
            waited_for: waits.into_iter().chain(jump).map(|piece| piece..piece + 1).collect(),
            longest_wait: waits.map(|piece| (piece, waited)),
            has_readers: true,
            is_attended: true,
            window: None,
            fill_failed: false,
        }
    }

    /// Hands an event to the download, if there is one, and carries out what follows.
    pub(crate) fn tell(
        &mut self,
        node: usize,
        blob: usize,
        event: impl FnOnce(&mut Download, Duration, &Facts),
    ) -> bool {
        let (now, facts) = (self.time(), self.facts(node, blob));
        let Some(running) = &mut self.nodes[node].blobs[blob].download else {
            return false;
        };
        event(&mut running.machine, now, &facts);
        self.drive(node, blob);
        true
    }

    /// The scheduler's order about a blob; says whether there is a download to take it.
    pub(crate) fn order(&mut self, node: usize, blob: usize, order: Order) -> bool {
        self.tell(node, blob, |machine, _, _| machine.handle_order(order))
    }

    pub(crate) fn order_lease(&mut self, node: usize, blob: usize, lease: Lease) {
        let order = Order::Lease(wire::Lease {
            lease: lease.id.0,
            fill: lease.fill.0,
            first: lease.first,
            count: lease.count,
            ..wire::Lease::default()
        });
        let id = lease.id;
        if let Some(running) = &mut self.nodes[node].blobs[blob].download {
            running.ordered = Some(lease);
        }
        if !self.order(node, blob, order) {
            self.end_lease(node, id, Outcome::Cancelled);
        }
    }

    /// Carries out every action; then the machine's timeout is in the queue.
    fn drive(&mut self, node: usize, blob: usize) {
        self.note_stored(node, blob);
        loop {
            let (now, facts) = (self.time(), self.facts(node, blob));
            let Some(running) = &mut self.nodes[node].blobs[blob].download else {
                return;
            };
            let Some(action) = running.machine.poll_action(now, &facts) else {
                break;
            };
            self.act(node, blob, action);
        }
        let Some(running) = &mut self.nodes[node].blobs[blob].download else {
            return;
        };
        if let Some(at) = running.machine.poll_timeout().filter(|_| !running.ticks) {
            running.ticks = true;
            self.step_later(nanos(at), (node, blob), Step::Tick);
        }
    }

    fn note_stored(&mut self, node: usize, blob: usize) {
        let now = self.time();
        let holding = &mut self.nodes[node].blobs[blob];
        if let Some(running) = &mut holding.download {
            running.machine.handle_stored(now, holding.have.clone(), &holding.have);
        }
    }

    pub(crate) fn step_download(&mut self, (node, blob, download): (usize, usize, u64), step: Step) {
        let state = &mut self.nodes[node];
        let running = state.blobs[blob].download.as_mut();
        let Some(running) = running.filter(|running| running.serial == download) else {
            return;
        };
        if state.frozen && !matches!(step, Step::Opening) {
            return self.step_later(self.now + FROZEN_DELAY, (node, blob), step);
        }
        match step {
            Step::Tick => {
                running.ticks = false;
                self.tell(node, blob, |machine, now, facts| machine.handle_timeout(now, facts));
            }
            Step::Opening => {
                let (fill, after) = match self.mirror_answers() {
                    true => (Some(self.fill), self.hop()),
                    false => (None, self.unanswered()),
                };
                self.step_later(self.now + after, (node, blob), Step::Opened(fill));
            }
            Step::Opened(fill) => self.opened(node, blob, fill),
            Step::Refused => _ = self.order(node, blob, Order::WantRefused("it is old".into())),
        }
    }

    fn opened(&mut self, node: usize, blob: usize, fill: Option<FillId>) {
        let reopened = match fill {
            Some(fill) if fill == self.nodes[node].blobs[blob].fill => Reopened::Renewed,
            Some(_) => Reopened::OtherFill,
            None => Reopened::Lost,
        };
        self.note_mirror(node, fill.is_some());
        if let Some(running) = &mut self.nodes[node].blobs[blob].download {
            running.has_old_grant &= fill.is_none();
        }
        self.tell(node, blob, |machine, now, _| machine.handle_reopened(now, reopened));
    }

    pub(crate) fn note_mirror(&mut self, node: usize, answers: bool) {
        let since = self.nodes[node].mirror_lost_since.unwrap_or(self.now);
        self.nodes[node].mirror_lost_since = (!answers).then_some(since);
    }

    fn act(&mut self, node: usize, blob: usize, action: Action) {
        match action {
            Action::FetchLease { lease, pieces } => {
                let running = self.nodes[node].blobs[blob].download.as_mut().expect("it acts");
                let lease = running.ordered.take().filter(|ordered| ordered.id.0 == lease.lease);
                self.fetch(node, blob, Work::Lease(lease.expect("it was ordered just now")), pieces);
            }
            Action::AbortLease(lease) => {
                let is_it = |work: &Work| matches!(work, Work::Lease(other) if other.id.0 == lease);
                self.nodes[node].fetches.retain(|_, fetch| !is_it(&fetch.work));
            }
            Action::EndLease { lease, ended } => {
                let ended = wire::LeaseEnded {
                    lease,
                    outcome: ended.outcome.into(),
                    piece: ended.piece,
                };
                self.end_lease(node, LeaseId(lease), Outcome::from(&ended));
            }
            Action::FetchPiece(piece) => {
                self.check_rescue(node, blob, piece);
                self.fetch(node, blob, Work::Piece(piece), vec![piece]);
            }
            Action::FetchRest => {
                let missing = self.nodes[node].blobs[blob].have.missing().collect();
                self.fetch(node, blob, Work::Rest, missing);
            }
            Action::Reopen { .. } => {
                let at = self.now + self.hop();
                self.step_later(at, (node, blob), Step::Opening);
            }
            Action::NoteMirrorLost => self.note_mirror(node, false),
            Action::Compare(list) => self.compare(node, blob, &list),
            Action::TakeBack(pieces) => {
                let holding = &mut self.nodes[node].blobs[blob];
                pieces.into_iter().for_each(|piece| holding.drop_piece(piece));
                self.note_stored(node, blob);
            }
            Action::SendWant => self.say_want(node, blob),
            // The inventory after a connection states what is wanted then.
            Action::RenewWant => {}
            Action::SendWaiting(piece) => {
                self.say_of(node, blob, |member, digest| Event::Waiting { member, digest, piece })
            }
            Action::SendUnwant => self.say_of(node, blob, |member, digest| Event::Unwant { member, digest }),
            Action::SendLost => self.say_of(node, blob, |member, digest| Event::Lost { member, digest }),
            Action::Publish(list) => self.publish(node, blob, list),
            Action::Abandon => {
                let holding = &mut self.nodes[node].blobs[blob];
                holding.restart(holding.fill);
            }
            Action::Fail(_) => self.close(node, blob, false),
        }
    }

    fn compare(&mut self, node: usize, blob: usize, list: &SignedPieceHashes) {
        let holding = &mut self.nodes[node].blobs[blob];
        let stated = (0..).zip(list.hashes());
        let here = stated.filter(|(piece, _)| holding.have.contains(*piece));
        let differing = here.filter(|(piece, stated)| hash(holding.content[*piece as usize]) != **stated);
        let differing = differing.map(|(piece, _)| piece).collect();
        let running = holding.download.as_mut().expect("it acts");
        running.machine.handle_compared(differing);
    }

    fn publish(&mut self, node: usize, blob: usize, list: Option<Arc<SignedPieceHashes>>) {
        let is_genuine = self.prove(node, blob, list);
        self.close(node, blob, is_genuine);
    }

    /// Every piece is here. Where the whole has another digest it is dropped; returns whether it is kept.
    pub(crate) fn prove(&mut self, node: usize, blob: usize, list: Option<Arc<SignedPieceHashes>>) -> bool {
        let state = &mut self.nodes[node];
        let holding = &mut state.blobs[blob];
        assert!(holding.have.is_full(), "only a whole blob is published");
        let (fill, is_genuine) = (holding.fill, holding.is_genuine(blob));
        if is_genuine {
            (holding.complete, holding.wanted, holding.list) = (true, false, list);
            if state.blobs.iter().all(|blob| blob.complete) {
                state.finished_at = Some(self.now);
            }
            self.say_of(node, blob, |member, digest| Event::Complete { member, digest });
        } else {
            state.failed += 1;
            holding.restart(fill);
            self.say_of(node, blob, |member, digest| Event::Doubt { member, digest, fill });
        }
        is_genuine
    }

    /// The download's task ends; without its blob the client tries again.
    fn close(&mut self, node: usize, blob: usize, kept: bool) {
        let (now, facts) = (self.time(), self.facts(node, blob));
        let state = &mut self.nodes[node];
        state.fetches.retain(|_, fetch| fetch.blob != blob);
        let mut running = state.blobs[blob].download.take().expect("it ends");
        running.machine.handle_closed(kept, false);
        while let Some(action) = running.machine.poll_action(now, &facts) {
            self.act(node, blob, action);
        }
        if !kept {
            self.try_again(node, blob);
        }
    }

    pub(crate) fn end_lease(&mut self, node: usize, lease: LeaseId, outcome: Outcome) {
        if let Some(member) = self.nodes[node].member {
            self.say(node, Event::LeaseEnded { member, lease, outcome });
        }
    }
}

pub(crate) fn nanos(time: Duration) -> Nanos {
    u64::try_from(time.as_nanos()).expect("runs are short")
}
