//! Places that names share: repositories of a registry, or the registries that a pattern stands for.
//!
//! A name may take a place as long as it holds fewer than are free. So one name alone gets half of the places, two get a third each,
//! and a name that holds none gets the last one. Source: Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory
//! Packet Switches".

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The places, and their holders. Clones share them.
#[derive(Clone)]
pub struct Places(Arc<Shared>);

struct Shared {
    table: Mutex<Table>,
    freed: Notify,
}

/// The table of places and their holders. Times are passed in.
struct Table {
    places_max: usize,
    /// From this age on a holder has to give way to a name that holds no place. `None`: it never has to.
    slow: Option<Duration>,
    /// The oldest first.
    taken: Vec<Taken>,
    next: u64,
}

struct Taken {
    number: u64,
    name: String,
    since: Instant,
    given_up: CancellationToken,
}

/// A place, until it is dropped.
pub struct Place {
    places: Places,
    number: u64,
    given_up: CancellationToken,
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
        Self(Arc::new(Shared {
            table: Mutex::new(Table {
                places_max,
                slow,
                taken: Vec::new(),
                next: 0,
            }),
            freed: Notify::new(),
        }))
    }

    /// Waits for a place: the caller says for how long.
    pub async fn take(&self, name: &str) -> Place {
        loop {
            let mut freed = std::pin::pin!(self.0.freed.notified());
            // From here on no place is freed unnoticed.
            freed.as_mut().enable();
            let now = tokio::time::Instant::now().into_std();
            let taken = self.lock().take(name, now);
            match taken {
                Ok((number, given_up)) => {
                    return Place {
                        places: self.clone(),
                        number,
                        given_up,
                    };
                }
                Err(None) => freed.await,
                Err(Some(due)) => {
                    // Either way the table says what is next.
                    let _ = tokio::time::timeout_at(due.into(), freed).await;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().expect("no holder of this lock panics")
    }
}

impl Place {
    /// Returns when the holder must give the place to another name.
    pub async fn given_up(&self) {
        self.given_up.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().give_back(self.number);
        self.places.0.freed.notify_waiters();
    }
}

impl Table {
    /// # Errors
    /// Takes a place. `Err`: there is none for this name now, and when to ask again, unless a place is freed before.
    fn take(&mut self, name: &str, now: Instant) -> Result<(u64, CancellationToken), Option<Instant>> {
        if self.held(name) >= self.places_max - self.taken.len() {
            return Err(self.give_up(name, now));
        }
        let (number, given_up) = (self.next, CancellationToken::new());
        self.next += 1;
        self.taken.push(Taken {
            number,
            name: name.to_owned(),
            since: now,
            given_up: given_up.clone(),
        });
        Ok((number, given_up))
    }

    fn held(&self, name: &str) -> usize {
        self.taken.iter().filter(|taken| taken.name == name).count()
    }

    /// Tells the oldest holder to give way, if it is slow; says when it will be. One at a time.
    fn give_up(&self, name: &str, now: Instant) -> Option<Instant> {
        let is_giving_up = self.taken.iter().any(|taken| taken.given_up.is_cancelled());
        if is_giving_up || self.held(name) > 0 {
            return None;
        }
        let oldest = self.taken.first()?;
        let due = oldest.since + self.slow?;
        if now < due {
            return Some(due);
        }
        oldest.given_up.cancel();
        None
    }

    fn give_back(&mut self, number: u64) {
        self.taken.retain(|taken| taken.number != number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_secs(1);

    /// All that `name` gets at once.
    async fn take_all(places: &Places, name: &str) -> Vec<Place> {
        let mut taken = Vec::new();
        while let Ok(place) = tokio::time::timeout(Duration::from_millis(1), places.take(name)).await {
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
        let held = places.take("one").await;
        let other = places.take("other").await;
        let take = |name: &'static str| {
            let places = places.clone();
            tokio::spawn(async move { places.take(name).await })
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
        let oldest = places.take("one").await;
        tokio::time::sleep(SLOW / 2).await;
        let younger = places.take("other").await;
        tokio::time::sleep(SLOW * 2).await;
        assert!(take_all(&places, "one").await.is_empty());
        let is_given_up = |place: &Place| place.given_up.is_cancelled();
        assert!(!is_given_up(&oldest), "the same name waits");
        assert!(take_all(&places, "late").await.is_empty());
        assert!(is_given_up(&oldest) && !is_given_up(&younger), "one at a time");
        drop(oldest);
        let _late = places.take("late").await;
        assert!(!is_given_up(&younger), "no name waits");
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_is_given_up_no_earlier_than_it_is_slow() {
        let places = Places::giving_up(1, SLOW);
        let held = places.take("one").await;
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
}
