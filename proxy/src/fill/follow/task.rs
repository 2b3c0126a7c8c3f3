//! Task of a follower: the I/O of a transfer while another upstream's transfer of the same digest leads.
//!
//! It follows the leader, so that the bytes cross the WAN once, as long as they are public, are its own upstream's too and keep coming. (A sample
//! shows that an upstream knows the beginning of a blob: too little for what another keeps private.) Otherwise one of the two
//! upstreams may lie or stall, and until the blob is proven nothing says which: it then fills apart, in memory, and harms the
//! leader in nothing. The first whose bytes have the digest has told the truth, and the other's are dropped. The machine decides all of it.

use std::{
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use piecemeal_proto::{Digest, PieceMap};
use piecemeal_store::Filling;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::{
    action::{Action, End, Leader, Reply},
    apart::rival,
    machine::Following,
};
use crate::{
    Arrived, Progress, Transfer,
    fill::{
        registry_source::{FillSource, RegistrySource},
        segment::Body,
    },
};
use piecemeal_upstream::{Place, PullError};

impl RegistrySource {
    /// Carries out a transfer behind the one that leads, or instead of it once that has failed.
    ///
    /// # Errors
    /// As [`RegistrySource::fill`].
    pub(in crate::fill) async fn fill_or_follow(
        &self,
        source: FillSource<'_>,
        digest: &Digest,
        transfer: &Transfer,
    ) -> Result<Arrived, PullError> {
        Follower::new(self, source, digest, transfer).run().await
    }
}

/// A transfer that may have a leader, at work.
struct Follower<'a> {
    blobs: &'a RegistrySource,
    source: FillSource<'a>,
    digest: &'a Digest,
    transfer: &'a Transfer,
    machine: Following,
    /// The start of the machine's time.
    started: Instant,
    leader: Option<Arc<Transfer>>,
    /// What the leader fills, once its first bytes are here.
    leader_fill: Option<Filling>,
    /// The request or the wait that is under way.
    work: Option<Pin<Box<dyn Future<Output = Event> + Send + 'a>>>,
    /// The place of a fill apart.
    place: Option<Place>,
    /// What the leader fills, where this transfer takes over from it.
    beginning: Option<Filling>,
    /// The first body of a fill apart.
    body: Option<(PieceMap, Body)>,
    /// What is filled apart.
    apart: Option<Filling>,
    arrived: Option<Arrived>,
    /// This upstream's last error.
    error: Option<PullError>,
}

/// What a follower waits for.
enum Event {
    /// The leader's first bytes are here; `None`: it has failed before.
    Begun(Option<Filling>),
    Replied(Result<bool, PullError>),
    LeaderEnded(Progress),
    /// `None`: there is none to be had.
    Placed(Option<Place>),
    Opened(Result<(PieceMap, Body), PullError>),
    Room(Filling),
    Filled(Result<Arrived, PullError>),
    /// Another fill needs the place.
    PlaceLost,
    TimedOut,
}

impl<'a> Follower<'a> {
    fn new(blobs: &'a RegistrySource, source: FillSource<'a>, digest: &'a Digest, transfer: &'a Transfer) -> Self {
        Self {
            blobs,
            source,
            digest,
            transfer,
            machine: Following::new(),
            started: Instant::now(),
            leader: None,
            leader_fill: None,
            work: None,
            place: None,
            beginning: None,
            body: None,
            apart: None,
            arrived: None,
            error: None,
        }
    }

    async fn run(mut self) -> Result<Arrived, PullError> {
        loop {
            while let Some(action) = self.machine.poll_action() {
                if let Action::End(end) = action {
                    return self.end(end).await;
                }
                self.act(action).await;
            }
            let event = self.event().await;
            self.work = None;
            self.handle(event);
        }
    }

    async fn event(&mut self) -> Event {
        let (timeout, awaits_end) = (self.machine.poll_timeout(), self.machine.awaits_end());
        let until = self.started + timeout.unwrap_or_default();
        let (work, leader, place) = (&mut self.work, &self.leader, &self.place);
        let worked = async {
            match work {
                Some(work) => work.await,
                None => pending().await,
            }
        };
        let leader_ended = async {
            match leader {
                Some(leader) if awaits_end => leader.ended().await,
                _ => pending().await,
            }
        };
        let place_lost = async {
            match place {
                Some(place) => place.given_up().await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            progress = leader_ended => Event::LeaderEnded(progress),
            event = worked => event,
            () = place_lost => Event::PlaceLost,
            () = sleep_until(until), if timeout.is_some() => Event::TimedOut,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Begun(filling) => {
                self.leader_fill = filling;
                self.machine.handle_first_bytes(self.leader_fill.is_some());
            }
            Event::Replied(replied) => {
                let reply = self.reply(replied);
                self.machine.handle_reply(self.now(), reply, self.leader_bytes());
            }
            Event::LeaderEnded(progress) => {
                self.arrived = arrived(progress);
                self.machine.handle_leader_ended(self.arrived.is_some());
            }
            Event::Placed(Some(place)) => self.place = self.done(Ok(place)),
            Event::Placed(None) | Event::PlaceLost => self.machine.handle_crowded(),
            Event::Opened(opened) => self.body = self.done(opened),
            Event::Room(filling) => self.apart = self.done(Ok(filling)),
            Event::Filled(Err(error)) if self.apart().failure().is_some_and(|why| why.discards()) => {
                self.error = Some(error);
                self.machine.handle_wrong();
            }
            Event::Filled(filled) => self.arrived = self.done(filled),
            Event::TimedOut => {
                let is_full = self
                    .leader_fill
                    .as_ref()
                    .is_some_and(|filling| filling.landed().is_full());
                self.machine.handle_timeout(self.now(), self.leader_bytes(), is_full);
            }
        }
    }

    fn reply(&mut self, replied: Result<bool, PullError>) -> Reply {
        match replied {
            Ok(true) => Reply::Has,
            Ok(false) => Reply::Other,
            Err(error) => {
                let is_refusal = error.is_refusal();
                self.error = Some(error);
                if is_refusal { Reply::Refuses } else { Reply::Fails }
            }
        }
    }

    /// A step of the fill apart has ended.
    fn done<T>(&mut self, result: Result<T, PullError>) -> Option<T> {
        match result {
            Ok(done) => {
                let leader_had = self.leader().own_filling().map(|filling| filling.arrived_bytes());
                self.machine.handle_done(self.now(), leader_had);
                Some(done)
            }
            Err(error) => {
                self.error = Some(error);
                self.machine.handle_failed();
                None
            }
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::FindLeader => self.find_leader(),
            Action::AwaitBytes => self.work = Some(Box::pin(first_bytes(Arc::clone(self.leader())))),
            Action::AskUpstream => self.ask_upstream(),
            Action::Compare(bytes) => self.compare(bytes),
            Action::Follow => self
                .transfer
                .follow(self.leader_fill().clone(), self.source.right.clone()),
            Action::StartOver => self.transfer.starts_over(),
            Action::TakePlace => self.take_place(),
            Action::OpenBody => self.open_body(),
            Action::TakeRoom => self.take_room(),
            Action::Receive => self.receive(),
            Action::TakeOver => self.take_over(),
            Action::Judge => self.judge(),
            Action::JudgeNext => {
                self.leader = self.blobs.transfers.leader(self.transfer);
                self.judge();
            }
            Action::EndLeader(reason) => {
                let (leader, filling) = (Arc::clone(self.leader()), self.leader_fill.take());
                self.blobs.end_leader(&leader, filling, reason).await;
            }
            Action::End(_) => {}
        }
    }

    fn find_leader(&mut self) {
        self.leader_fill = None;
        self.leader = self.blobs.transfers.leader(self.transfer);
        let leader = match &self.leader {
            None => Leader::Own,
            Some(leader) if (self.blobs.is_public)(&leader.callers().asked().at) => Leader::Public,
            Some(_) => Leader::Private,
        };
        self.machine.handle_leader(self.now(), leader);
    }

    fn ask_upstream(&mut self) {
        let FillSource { upstream, right, .. } = self.source;
        let digest = self.digest;
        self.work = Some(Box::pin(async move {
            let answer = upstream.head_blob(&right.caller, &right.at, digest).await;
            Event::Replied(answer.map(|_| true))
        }));
    }

    fn compare(&mut self, bytes: u64) {
        let (blobs, source, filling) = (self.blobs, self.source, self.leader_fill().clone());
        self.work = Some(Box::pin(async move {
            Event::Replied(blobs.has_same(source, &filling, bytes).await)
        }));
    }

    fn take_place(&mut self) {
        self.beginning = self.leader_fill.take().filter(|_| self.machine.takes_over());
        let (at, digest, other) = (&self.source.right.at, self.digest, self.leader().upstream());
        info!(blob.digest = %digest, upstream = at.upstream, leader = other, "{digest} comes from {} apart: what {other} sends of it is private, differs, comes slowly or not at all", at.upstream);
        let disputes = self.blobs.transfers.disputes();
        self.work = Some(Box::pin(async move {
            Event::Placed(disputes.take(&at.upstream).await.ok())
        }));
    }

    fn open_body(&mut self) {
        let (apart, source, digest) = (self.blobs.unannounced(), self.source, self.digest);
        self.beginning = None;
        self.work = Some(Box::pin(async move {
            Event::Opened(apart.first_body(source, digest).await)
        }));
    }

    fn take_room(&mut self) {
        let of_body = self.body.as_ref().map(|(map, _)| *map);
        let map = of_body.or(self.beginning.as_ref().map(Filling::map));
        let (store, digest, map) = (
            &self.blobs.store,
            self.digest,
            map.expect("a body or a leader has begun"),
        );
        self.work = Some(Box::pin(
            async move { Event::Room(store.begin_apart(digest, map).await) },
        ));
    }

    fn receive(&mut self) {
        let (apart, source, transfer) = (self.blobs.unannounced(), self.source, self.transfer);
        let (_, body) = self.body.take().expect("a body has begun");
        let filling = self.apart().clone();
        self.work = Some(Box::pin(async move {
            Event::Filled(apart.fill_apart(source, &filling, body, transfer).await)
        }));
    }

    fn take_over(&mut self) {
        let (apart, source, transfer) = (self.blobs.unannounced(), self.source, self.transfer);
        let leader = self.beginning.take().expect("the leader has begun");
        let filling = self.apart().clone();
        self.work = Some(Box::pin(async move {
            Event::Filled(apart.take_over(source, &filling, &leader, transfer).await)
        }));
    }

    fn judge(&mut self) {
        let leader = self.leader.as_ref();
        self.leader_fill = leader.and_then(|leader| leader.own_filling());
        let rival = leader.map(|_| rival(self.leader_fill.as_ref(), self.apart()));
        self.machine.handle_rival(rival);
    }

    async fn end(self, end: End) -> Result<Arrived, PullError> {
        let Self {
            blobs,
            source,
            digest,
            transfer,
            ..
        } = self;
        let unknown = || PullError::Unavailable("upstream failed without a reason".to_owned());
        match end {
            End::Lead => blobs.lead(source, digest, transfer).await,
            End::Followed | End::Apart => self.arrived.ok_or_else(unknown),
            End::Keep => {
                let kept = match &self.apart {
                    Some(apart) => blobs.keep(source, apart, transfer).await,
                    None => None,
                };
                kept.or(self.arrived).ok_or_else(unknown)
            }
            End::Crowded => {
                let (other, own) = (self.leader().upstream(), &source.right.at.upstream);
                Err(PullError::Unavailable(format!(
                    "{other} and {own} send {digest} at once, and too many blobs are in such a dispute; try again"
                )))
            }
            End::Failed => Err(self.error.unwrap_or_else(unknown)),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn leader(&self) -> &Arc<Transfer> {
        self.leader.as_ref().expect("a leader was found")
    }

    fn leader_fill(&self) -> &Filling {
        self.leader_fill.as_ref().expect("the leader has begun")
    }

    fn leader_bytes(&self) -> u64 {
        self.leader_fill.as_ref().map_or(0, Filling::arrived_bytes)
    }

    fn apart(&self) -> &Filling {
        self.apart.as_ref().expect("a fill apart has begun")
    }
}

fn arrived(ended: Progress) -> Option<Arrived> {
    match ended {
        Progress::Complete(blob) => Some(Arrived::Kept(blob)),
        Progress::Open(_) => Some(Arrived::Passed),
        Progress::Starting { .. } | Progress::Failed(_) => None,
    }
}

/// Waits until there is something of the leader's fill to compare, or the leader has failed.
async fn first_bytes(leader: Arc<Transfer>) -> Event {
    let Progress::Open(filling) = leader.started().await else {
        return Event::Begun(None);
    };
    Event::Begun(filling.wait_arrived().await.is_ok().then_some(filling))
}
