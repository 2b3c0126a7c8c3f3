//! The connections of one fill at work: what they do is `segment`, what each asks for is `plan`, how many there are is the
//! upstream's `lanes`. Here they are started, ended, and started again after a failure.

use std::{
    future::Future,
    ops::Range,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use piecemeal_store::Filling;
use tracing::{debug, warn};

use super::{
    plan::{Pace, Plan},
    registry_source::{FillSource, RegistrySource},
    segment::{Body, Segment, SegmentContext},
};
use crate::{Right, callers::Callers};
use piecemeal_upstream::{BlobAnswer, LaneShare, PullError, WIDTH_MAX};

const RETRY_DELAY: Duration = Duration::from_millis(200);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(3);
/// So many bodies in a row that bring nothing new are enough: an upstream without ranges that always breaks off would send
/// its beginning again and again.
const BARREN_MAX: u32 = 5;
/// How long an unstored fill may go without readers.
const UNREAD_MAX: Duration = Duration::from_secs(30);
/// How often the fill checks whether a client waits for a piece that no connection fetches yet.
const LOOK_AROUND: Duration = Duration::from_millis(100);

/// A fill at work.
pub(super) struct Run<'a> {
    context: SegmentContext<'a>,
    callers: Option<&'a Callers>,
    plan: Plan,
    seat: LaneShare<'a>,
    lanes: FuturesUnordered<Pin<Box<dyn Future<Output = Step> + Send + 'a>>>,
    /// The number of `lanes` whose body has begun.
    receiving: usize,
    /// One of those carries all that is missing: upstream knows no ranges.
    whole: bool,
    patience: Patience,
    /// Upstream has answered.
    began: bool,
    /// When the fill last had a reader.
    read_at: Instant,
}

/// Progress of a connection.
enum Step {
    Answered {
        segment: Segment,
        /// The right that the request used.
        right: Arc<Right>,
        answer: Result<BlobAnswer, PullError>,
    },
    Ended {
        segment: Range<u64>,
        result: Result<(), PullError>,
        progressed: bool,
    },
}

impl<'a> Run<'a> {
    /// Of what is missing of `within`. `patience`: how long upstream may send nothing new.
    pub(super) fn new(
        blobs: &'a RegistrySource,
        FillSource {
            upstream,
            right,
            callers,
        }: FillSource<'a>,
        filling: &'a Filling,
        within: &Range<u64>,
        patience: Duration,
    ) -> Self {
        Self {
            context: SegmentContext {
                ending: Arc::default(),
                blobs,
                upstream,
                right: Arc::new(right.clone()),
                filling,
                received: Arc::default(),
                served: Arc::default(),
            },
            callers,
            plan: Plan::new(filling.map(), &filling.landed(), within),
            seat: upstream.lanes().enter(&right.at, missing_bytes(filling)),
            lanes: FuturesUnordered::new(),
            receiving: 0,
            whole: false,
            patience: Patience::new(patience),
            began: false,
            read_at: Instant::now(),
        }
    }

    /// Until upstream has answered this right for the first time.
    ///
    /// # Errors
    /// The first answer, when it is none to go on with.
    pub(super) async fn first_answer(&mut self) -> Result<(), PullError> {
        self.start_lanes().await;
        while let Some(step) = self.lanes.next().await {
            match self.take(step) {
                // Others of its first requests may be answered better, unless this is a word that stands.
                Err(error) if error.is_refusal() || self.lanes.is_empty() => return Err(error),
                Err(_) => {}
                Ok(()) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Goes on with the body of a blob that was asked for as a whole.
    pub(super) async fn begin_with(&mut self, body: Body) {
        let all = self.plan.take_rest(0);
        if !all.is_empty() {
            let segment = Segment::new(self.context.filling, all).await;
            self.whole = true;
            self.context.served.store(true, Ordering::Relaxed);
            self.receive(segment, body);
        }
    }

    /// Until nothing is missing.
    ///
    /// # Errors
    /// Why there is no sense in going on.
    pub(super) async fn rest(mut self) -> Result<(), PullError> {
        let mut look_around = tokio::time::interval(LOOK_AROUND);
        look_around.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if self.patience.rested() {
                self.start_lanes().await;
            }
            if self.lanes.is_empty() && self.patience.rested() {
                return Ok(());
            }
            if self.context.filling.has_readers() {
                self.read_at = Instant::now();
            } else if self.read_at.elapsed() >= UNREAD_MAX {
                return Err(PullError::Unavailable(
                    "the blob does not fit into the cache, and its last reader has left".to_owned(),
                ));
            }
            let step = tokio::select! {
                Some(step) = self.lanes.next(), if !self.lanes.is_empty() => step,
                () = self.context.ending.changed() => continue,
                _ = look_around.tick() => continue,
            };
            let result = self.take(step);
            let Err(error) = result else { continue };
            let hopeless = error.is_verdict() || matches!(error, PullError::Store(_));
            if hopeless || self.patience.is_over() {
                let digest = self.context.filling.digest();
                warn!(blob.digest = %digest, upstream = self.context.right.at.upstream, %error, "the fill of {digest} stops: {error}");
                return Err(error);
            }
            self.patience.rest();
        }
    }

    async fn start_lanes(&mut self) {
        let filling = self.context.filling;
        while !self.whole {
            let busy = self.lanes.len() - self.context.ending.count();
            // An unstored fill's pieces have room in order only.
            let share = match filling.is_unstored() {
                true => 1,
                false => self.seat.share(missing_bytes(filling), busy),
            };
            // In an unstored fill a reader waits until its piece has its turn: there is no room for that piece before.
            let wanted = filling.wanted().filter(|_| !filling.is_unstored());
            // A waiting reader gets an extra connection at once, rather than wait for a segment to end.
            let allowed =
                share + usize::from(self.plan.lacks(wanted) && self.receiving == self.lanes.len() && share > 1);
            if busy >= allowed || self.lanes.len() >= allowed.max(WIDTH_MAX) {
                return;
            }
            let pace = Pace {
                lanes: share,
                busy,
                lane_rate: self.seat.lane_rate(),
            };
            let Some(segment) = self.plan.take(wanted, pace) else {
                return;
            };
            let (segment, context) = (Segment::new(filling, segment).await, self.context.clone());
            self.lanes.push(Box::pin(async move {
                let answer = segment.request(&context).await;
                let right = context.right;
                Step::Answered { segment, right, answer }
            }));
        }
    }

    fn receive(&mut self, segment: Segment, body: Body) {
        self.began = true;
        self.receiving += 1;
        let context = self.context.clone();
        self.lanes.push(Box::pin(async move {
            let (result, progressed) = segment.receive(&context, body).await;
            Step::Ended {
                segment: segment.bytes,
                result,
                progressed,
            }
        }));
    }

    fn take(&mut self, step: Step) -> Result<(), PullError> {
        match step {
            Step::Answered {
                segment,
                answer: Ok(answer),
                ..
            } => self.answered(segment, answer),
            Step::Answered {
                segment,
                right,
                answer: Err(error),
            } => {
                self.plan.give_back(&segment.bytes, &self.context.filling.landed());
                if matches!(error, PullError::TooManyRequests { .. }) {
                    self.context.upstream.lanes().calm_down();
                }
                if error.is_refusal() && self.goes_on_without(&right, &error) {
                    return Ok(());
                }
                return Err(error);
            }
            Step::Ended {
                segment,
                result,
                progressed,
            } => {
                self.receiving -= 1;
                self.whole &= self.receiving > 0;
                if progressed {
                    self.patience.renew();
                } else {
                    self.patience.barren += 1;
                }
                self.plan.give_back(&segment, &self.context.filling.landed());
                return result;
            }
        }
        Ok(())
    }

    /// Upstream refuses a right that it has accepted before, while others' bodies come: the next caller's is used.
    fn goes_on_without(&mut self, right: &Arc<Right>, error: &PullError) -> bool {
        if !Arc::ptr_eq(right, &self.context.right) {
            return true;
        }
        let Some(callers) = self.callers.filter(|_| self.began) else {
            return false;
        };
        let Ok(next) = callers.refused(right, error) else {
            return false;
        };
        debug!(blob.digest = %self.context.filling.digest(), %error, "the fill of {} continues with another caller's credential", self.context.filling.digest());
        self.context.right = Arc::new(next);
        self.context.served = Arc::default();
        true
    }

    fn answered(&mut self, mut segment: Segment, answer: BlobAnswer) {
        let all_of_it = segment.bytes == (0..self.context.filling.map().blob_bytes());
        if answer.is_part || all_of_it {
            return self.receive(segment, Body::Answer(answer));
        }
        // It was asked for a part and sends the whole: from it one connection takes what it can.
        debug!(
            upstream = self.context.right.at.upstream,
            "{} does not support ranges", self.context.right.at.upstream
        );
        self.context.upstream.lanes().calm_down();
        if self.receiving > 0 {
            self.plan.give_back(&segment.bytes, &self.context.filling.landed());
            return;
        }
        self.whole = true;
        segment.bytes = self.plan.take_rest(segment.bytes.start);
        self.receive(segment, Body::Answer(answer));
    }
}

/// To the piece.
fn missing_bytes(filling: &Filling) -> u64 {
    let have = filling.landed();
    u64::from(have.capacity() - have.count()) * filling.map().piece_bytes()
}

/// How long upstream may fail.
struct Patience {
    max: Duration,
    last_progress: Instant,
    /// Bodies since then.
    barren: u32,
    delay: Duration,
    resting_until: Option<Instant>,
}

impl Patience {
    fn new(max: Duration) -> Self {
        Self {
            max,
            last_progress: Instant::now(),
            barren: 0,
            delay: RETRY_DELAY,
            resting_until: None,
        }
    }

    /// Something came that was not here before.
    fn renew(&mut self) {
        self.last_progress = Instant::now();
        self.barren = 0;
        self.delay = RETRY_DELAY;
    }

    fn is_over(&self) -> bool {
        self.barren >= BARREN_MAX || self.last_progress.elapsed() + self.delay > self.max
    }

    fn rest(&mut self) {
        self.resting_until = Some(Instant::now() + self.delay);
        self.delay = (self.delay * 2).min(RETRY_DELAY_MAX);
    }

    fn rested(&self) -> bool {
        self.resting_until.is_none_or(|until| Instant::now() >= until)
    }
}
