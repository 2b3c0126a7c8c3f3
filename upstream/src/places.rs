//! Places that names share: repositories of a registry, callers of a repository, or the registries that a pattern stands for.
//!
//! A name may take a place as long as it holds fewer than are free. So one name alone gets half of the places, two get a third each,
//! and a name that holds none gets the last one. Source: Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory
//! Packet Switches".
//!
//! Those that wait are bounded in the same spirit: of each name so many, and where all are too many the name with the most of them
//! loses one. A place that is freed wakes the one that gets it: of the names that hold the fewest that of the caller that holds the
//! fewest, and of equal ones the one that has waited longest. So names that one caller makes up hold up its own.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// The most that wait in one name, and in all.
const WAITING_OF_NAME_MAX: usize = 1024;
const WAITING_MAX: usize = 4096;

/// Too many wait already.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("too many wait for a place already")]
pub struct CrowdedError;

/// The places, and their holders. Clones share them.
#[derive(Clone)]
pub struct Places(Arc<Mutex<Table>>);

/// Who holds which place, and who waits for one. Times are passed in.
struct Table {
    places_max: usize,
    /// From this age on a holder has to give way to a name that holds no place. `None`: it never has to.
    slow: Option<Duration>,
    /// The oldest first.
    taken: Vec<Taken>,
    /// Those that hold a place or wait for one.
    names: HashMap<String, Name>,
    waiting: usize,
    next: u64,
}

struct Name {
    /// Whose it is, where one caller may have many names.
    caller: String,
    held: usize,
    /// In the order in which they came.
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    number: u64,
    granted: oneshot::Sender<Place>,
}

struct Taken {
    number: u64,
    name: String,
    since: Instant,
    given_up: CancellationToken,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Places,
    number: u64,
    given_up: CancellationToken,
}

/// One that waits, until it is dropped.
struct Queued<'a> {
    places: &'a Places,
    name: &'a str,
    number: u64,
}

impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Places(..)")
    }
}

impl Places {
    pub fn new(places_max: usize) -> Self {
        Self::with(places_max, None)
    }

    /// A holder that is older than `slow` gives its place up when a name without one waits.
    pub fn giving_up(places_max: usize, slow: Duration) -> Self {
        Self::with(places_max, Some(slow))
    }

    fn with(places_max: usize, slow: Option<Duration>) -> Self {
        Self(Arc::new(Mutex::new(Table {
            places_max,
            slow,
            taken: Vec::new(),
            names: HashMap::new(),
            waiting: 0,
            next: 0,
        })))
    }

    /// Waits for a place: the caller says for how long.
    ///
    /// # Errors
    /// [`CrowdedError`], at once, or when another name needs the room to wait in.
    pub async fn take(&self, name: &str) -> Result<Place, CrowdedError> {
        self.take_for(name, name).await
    }

    /// The same for a caller that may have many names. A name is one caller's.
    ///
    /// # Errors
    /// As [`Places::take`].
    pub async fn take_for(&self, caller: &str, name: &str) -> Result<Place, CrowdedError> {
        let (granted, mut grant) = oneshot::channel();
        let number = {
            let mut table = self.0.lock();
            if let Some(place) = table.take(caller, name, now()) {
                return Ok(self.place(place));
            }
            table.wait(caller, name, granted)?
        };
        let _queued = Queued {
            places: self,
            name,
            number,
        };
        loop {
            let due = self.0.lock().give_up(name, now());
            tokio::select! {
                granted = &mut grant => return granted.map_err(|_| CrowdedError),
                // The table says what is next.
                () = sleep_until(due) => {}
            }
        }
    }

    /// Whether no place is taken and none waited for.
    pub fn is_idle(&self) -> bool {
        self.0.lock().names.is_empty()
    }

    fn place(&self, (number, given_up): (u64, CancellationToken)) -> Place {
        Place {
            places: self.clone(),
            number,
            given_up,
        }
    }
}

impl Place {
    /// Returns when another has to have the place.
    pub async fn given_up(&self) {
        self.given_up.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut granted = Vec::new();
        {
            let mut table = self.places.0.lock();
            table.give_back(self.number);
            while let Some((waiting, taken)) = table.grant(now()) {
                granted.push((waiting, self.places.place(taken)));
            }
            table.hurry(now());
        }
        for (waiting, place) in granted {
            // One that has just left gives it back in turn.
            drop(waiting.granted.send(place));
        }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.places.0.lock().leave(self.name, self.number);
    }
}

/// `None`: for ever.
async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Table {
    /// A place, if there is one for this name now.
    fn take(&mut self, caller: &str, name: &str, now: Instant) -> Option<(u64, CancellationToken)> {
        if self.held(name) >= self.places_max - self.taken.len() {
            return None;
        }
        let (number, given_up) = (self.next, CancellationToken::new());
        self.next += 1;
        self.name(caller, name).held += 1;
        self.taken.push(Taken {
            number,
            name: name.to_owned(),
            since: now,
            given_up: given_up.clone(),
        });
        Some((number, given_up))
    }

    fn name(&mut self, caller: &str, name: &str) -> &mut Name {
        self.names.entry(name.to_owned()).or_insert_with(|| Name {
            caller: caller.to_owned(),
            held: 0,
            waiting: VecDeque::new(),
        })
    }

    fn held(&self, name: &str) -> usize {
        self.names.get(name).map_or(0, |name| name.held)
    }

    /// Puts it in the queue, instead of another where all queues together are full.
    fn wait(&mut self, caller: &str, name: &str, granted: oneshot::Sender<Place>) -> Result<u64, CrowdedError> {
        let own = self.names.get(name).map_or(0, |name| name.waiting.len());
        if own >= WAITING_OF_NAME_MAX || (self.waiting >= WAITING_MAX && !self.refuse_of_largest(own)) {
            return Err(CrowdedError);
        }
        let number = self.next;
        self.next += 1;
        self.waiting += 1;
        let waiting = Waiting { number, granted };
        self.name(caller, name).waiting.push_back(waiting);
        Ok(number)
    }

    /// Refuses the newest of the longest queue, if that is longer than `own`; of equal ones that of the oldest.
    fn refuse_of_largest(&mut self, own: usize) -> bool {
        let queues = self.names.iter().filter(|(_, name)| name.waiting.len() > own);
        let largest = queues.max_by_key(|(_, name)| {
            let oldest = name.waiting.front().map(|waiting| waiting.number);
            (name.waiting.len(), std::cmp::Reverse(oldest))
        });
        let newest = largest.and_then(|(name, state)| Some((name.clone(), state.waiting.back()?.number)));
        newest.is_some_and(|(name, number)| self.leave(&name, number).is_some())
    }

    /// Takes it out of the queue, if it is in there.
    fn leave(&mut self, name: &str, number: u64) -> Option<Waiting> {
        let queue = &mut self.names.get_mut(name)?.waiting;
        let index = queue.binary_search_by_key(&number, |waiting| waiting.number).ok()?;
        let left = queue.remove(index);
        self.waiting -= 1;
        self.forget_unused(name);
        left
    }

    /// Takes the next one out of the queue that there is a place for, and the place.
    fn grant(&mut self, now: Instant) -> Option<(Waiting, (u64, CancellationToken))> {
        if self.waiting == 0 {
            return None;
        }
        let mut held = HashMap::<&str, usize>::new();
        for state in self.names.values() {
            *held.entry(&state.caller).or_default() += state.held;
        }
        let waiting = self.names.iter().filter_map(|(name, state)| {
            let oldest = state.waiting.front()?.number;
            Some((state.held, held[state.caller.as_str()], oldest, name, &state.caller))
        });
        let (_, _, number, name, caller) = waiting.min()?;
        let (name, caller) = (name.clone(), caller.clone());
        let taken = self.take(&caller, &name, now)?;
        Some((self.leave(&name, number)?, taken))
    }

    /// Tells the oldest holder to give way, if it is slow and a name without a place waits. One at a time. When to ask again; `None`:
    /// holders never have to give way.
    fn give_up(&mut self, name: &str, now: Instant) -> Option<Instant> {
        let slow = self.slow?;
        let is_giving_up = self.taken.iter().any(|taken| taken.given_up.is_cancelled());
        let oldest = self.taken.first();
        let Some(oldest) = oldest.filter(|_| !is_giving_up && self.held(name) == 0) else {
            return Some(now + slow);
        };
        let due = oldest.since + slow;
        if now < due {
            return Some(due);
        }
        oldest.given_up.cancel();
        Some(now + slow)
    }

    /// The same for all names that wait.
    fn hurry(&mut self, now: Instant) {
        let without = |(_, state): &(&String, &Name)| state.held == 0 && !state.waiting.is_empty();
        if let Some(name) = self.names.iter().find(without).map(|(name, _)| name.clone()) {
            self.give_up(&name, now);
        }
    }

    fn give_back(&mut self, number: u64) {
        let Some(index) = self.taken.iter().position(|taken| taken.number == number) else {
            return;
        };
        let Taken { name, .. } = self.taken.remove(index);
        if let Some(state) = self.names.get_mut(&name) {
            state.held -= 1;
        }
        self.forget_unused(&name);
    }

    /// Forgets a name that neither holds a place nor waits.
    fn forget_unused(&mut self, name: &str) {
        if let Some(state) = self.names.get(name)
            && state.held == 0
            && state.waiting.is_empty()
        {
            self.names.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_secs(1);

    /// All that `name` gets at once.
    async fn take_all(places: &Places, name: &str) -> Vec<Place> {
        let mut taken = Vec::new();
        while let Ok(Ok(place)) = tokio::time::timeout(Duration::from_millis(1), places.take(name)).await {
            taken.push(place);
        }
        taken
    }

    #[tokio::test(start_paused = true)]
    async fn one_name_leaves_places_to_others_and_a_name_without_one_gets_the_last() {
        let places = Places::new(256);
        let one = take_all(&places, "one").await;
        assert_eq!(one.len(), 128);
        let mut others = Vec::new();
        for expected in [64, 32, 16, 8, 4, 2, 1, 1] {
            let taken = take_all(&places, &format!("{expected} of {}", others.len())).await;
            assert_eq!(taken.len(), expected);
            others.push(taken);
        }
        assert_eq!(take_all(&places, "late").await.len(), 0, "the places are bounded");
        drop(one);
        assert_eq!(take_all(&places, "late").await.len(), 64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_freed_goes_to_the_name_that_has_none() {
        let places = Places::new(2);
        let held = places.take("one").await.unwrap();
        let other = places.take("other").await.unwrap();
        let take = |name: &'static str| {
            let places = places.clone();
            tokio::spawn(async move { places.take(name).await.unwrap() })
        };
        let (more, late) = (take("one"), take("late"));
        tokio::time::sleep(SLOW).await;
        drop(other);
        let late = late.await.unwrap();
        assert!(!more.is_finished());
        drop((held, late));
        more.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_slow_holder_gives_way_to_a_name_without_a_place_and_to_no_other() {
        let places = Places::giving_up(2, SLOW);
        let oldest = places.take("one").await.unwrap();
        tokio::time::sleep(SLOW / 2).await;
        let younger = places.take("other").await.unwrap();
        tokio::time::sleep(SLOW * 2).await;
        assert!(take_all(&places, "one").await.is_empty());
        let is_given_up = |place: &Place| place.given_up.is_cancelled();
        assert!(!is_given_up(&oldest), "the same name waits");
        assert!(take_all(&places, "late").await.is_empty());
        assert!(is_given_up(&oldest) && !is_given_up(&younger), "one at a time");
        drop(oldest);
        let _late = places.take("late").await.unwrap();
        assert!(!is_given_up(&younger), "no name waits");
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_is_given_up_no_earlier_than_it_is_slow() {
        let places = Places::giving_up(1, SLOW);
        let held = places.take("one").await.unwrap();
        let began = tokio::time::Instant::now();
        let holds = async {
            held.given_up().await;
            let waited = began.elapsed();
            drop(held);
            waited
        };
        let (waited, _place) = futures_util::future::join(holds, places.take("other")).await;
        assert!(waited >= SLOW, "{waited:?}");
    }
    /// Lets all that wait begin to.
    async fn settle() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    fn wait(places: &Places, name: impl Into<String>) -> tokio::task::JoinHandle<Result<Place, CrowdedError>> {
        let (places, name) = (places.clone(), name.into());
        tokio::spawn(async move { places.take(&name).await })
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_of_one_name_wait_and_the_next_hears_of_it_at_once() {
        let places = Places::new(2);
        let held = places.take("one").await.unwrap();
        let waiting: Vec<_> = (0..WAITING_OF_NAME_MAX).map(|_| wait(&places, "one")).collect();
        settle().await;
        let began = tokio::time::Instant::now();
        assert_eq!(places.take("one").await.unwrap_err(), CrowdedError);
        assert_eq!(began.elapsed(), Duration::ZERO);
        let other = places.take("other").await.unwrap();
        // One that leaves makes room.
        waiting[0].abort();
        settle().await;
        let next = wait(&places, "one");
        settle().await;
        assert!(!next.is_finished());
        for waiting in waiting {
            waiting.abort();
        }
        next.abort();
        settle().await;
        drop((held, other));
        assert!(places.is_idle());
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_crowd_the_queue_give_way_to_one_that_waits_less() {
        let places = Places::new(1);
        let held = places.take("held").await.unwrap();
        let crowd: Vec<_> = (0..WAITING_MAX / WAITING_OF_NAME_MAX)
            .flat_map(|name| (0..WAITING_OF_NAME_MAX).map(move |_| name))
            .map(|name| wait(&places, name.to_string()))
            .collect();
        settle().await;
        let honest = wait(&places, "honest");
        settle().await;
        assert!(!honest.is_finished());
        let refused: Vec<_> = (0..).zip(&crowd).filter(|(_, waiting)| waiting.is_finished()).collect();
        assert_eq!(
            refused.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
            [WAITING_OF_NAME_MAX - 1]
        );
        for waiting in crowd {
            waiting.abort();
        }
        drop(held);
        honest.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_names_that_wait_once_each_loses_its_oldest_to_a_new_name() {
        let places = Places::new(1);
        let _held = places.take("held").await.unwrap();
        let crowd: Vec<_> = (0..WAITING_MAX).map(|name| wait(&places, name.to_string())).collect();
        settle().await;
        let late = wait(&places, "late");
        let again = wait(&places, "5");
        settle().await;
        assert!(!late.is_finished() && again.await.unwrap().is_err());
        let refused: Vec<_> = (0..).zip(&crowd).filter(|(_, waiting)| waiting.is_finished()).collect();
        assert_eq!(refused.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_wakes_the_one_that_gets_it_and_one_that_has_left_gets_none() {
        let places = Places::new(2);
        let (one, other) = (places.take("one").await.unwrap(), places.take("other").await.unwrap());
        let [gone, first, second] = ["gone", "first", "second"].map(|name| {
            let waiting = wait(&places, name);
            (waiting, name)
        });
        settle().await;
        gone.0.abort();
        settle().await;
        drop(one);
        let first = first.0.await.unwrap().unwrap();
        settle().await;
        assert!(!second.0.is_finished());
        // The place is handed over, and the one that was to have it is gone before it looks.
        drop(other);
        second.0.abort();
        settle().await;
        drop(first);
        assert!(places.is_idle());
    }
    #[tokio::test(start_paused = true)]
    async fn names_that_one_caller_makes_up_hold_up_its_own_and_no_other_callers() {
        let places = Places::new(4);
        let made_up = |name: usize| {
            let places = places.clone();
            tokio::spawn(async move { places.take_for("stranger", &name.to_string()).await.unwrap() })
        };
        let mut held: Vec<_> = (0..4).map(made_up).collect();
        let waiting: Vec<_> = (4..60).map(made_up).collect();
        settle().await;
        let honest = places.take_for("honest", "app");
        let freed = held.remove(0).await.unwrap();
        let (_honest, ()) = futures_util::future::join(honest, async { drop(freed) }).await;
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    }
}
