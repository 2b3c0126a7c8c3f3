//! Lookups: work that is done once for all callers that ask for it at the same time, and goes on when they leave.
//!
//! `callers` decides with whose right it is done, and which callers get a refusal. Every waiting caller gets a failure that is no
//! refusal, but not as the final answer: a caller whose own right was not used asks once more.

use std::{collections::HashMap, future::Future, hash::Hash, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::callers::{Callers, Right, Standing};
use piecemeal_upstream::PullError;

/// The most times that a caller starts a lookup again that ended without a result for it.
const REJOINS_MAX: usize = 8;
/// The same after a failure that another caller ran into.
const RETRIES_MAX: usize = 1;

/// The lookups that are under way, by what is looked up. Cheap to clone.
pub(crate) struct Flights<K, V>(Arc<Mutex<HashMap<K, Arc<Flight<V>>>>>);

struct Flight<V> {
    callers: Callers,
    landed: watch::Sender<Option<Result<V, PullError>>>,
}

/// A caller that joins a lookup.
#[derive(Clone)]
pub(crate) struct Boarding {
    pub(crate) right: Right,
    pub(crate) standing: Standing,
    /// The source serves the repository without a credential.
    pub(crate) public: bool,
}

/// The result of a lookup.
pub(crate) struct Landed<V> {
    pub(crate) value: V,
    /// Whether the source gave this answer to the caller's own right.
    pub(crate) own: bool,
}

impl<K, V> Clone for Flights<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the lookup of `key`, or starts it. `work` is carried out with one right after the other until the source does not
    /// refuse. `prove`: asks the source whether it serves this caller.
    ///
    /// # Errors
    /// The source's error for this caller, or the reason why the lookup failed.
    pub(crate) async fn join<F, P>(
        &self,
        key: K,
        boarding: Boarding,
        work: impl Fn(Right) -> F + Clone + Send + 'static,
        prove: impl Fn() -> P,
    ) -> Result<Landed<V>, PullError>
    where
        F: Future<Output = Result<V, PullError>> + Send + 'static,
        P: Future<Output = Result<(), PullError>>,
    {
        let right = &boarding.right;
        let (mut rejoins, mut retries) = (0, 0);
        loop {
            let flight = self.board(&key, &boarding, work.clone());
            let mut landing = flight.landed.subscribe();
            let landed = async {
                let landed = landing.wait_for(Option::is_some).await;
                landed
                    .map_or(None, |landed| landed.clone())
                    .unwrap_or_else(|| Err(broke()))
            };
            let error = match flight.callers.wait(right, landed, prove()).await? {
                Ok(value) => {
                    let own = flight.callers.asks_with(right);
                    return Ok(Landed { value, own });
                }
                Err(error) => error,
            };
            if flight.callers.asks_with(right) || matches!(error, PullError::Store(_)) {
                return Err(error);
            }
            match error.is_refusal() {
                true if rejoins < REJOINS_MAX => rejoins += 1,
                true => {
                    return Err(PullError::Unavailable(
                        "other callers' requests are still being refused; try again".to_owned(),
                    ));
                }
                false if retries < RETRIES_MAX => retries += 1,
                false => return Err(error),
            }
        }
    }

    fn board<F>(&self, key: &K, boarding: &Boarding, work: impl Fn(Right) -> F + Send + 'static) -> Arc<Flight<V>>
    where
        F: Future<Output = Result<V, PullError>> + Send + 'static,
    {
        let mut flights = self.lock();
        if let Some(flight) = flights.get(key) {
            flight.callers.join(&boarding.right, boarding.standing, boarding.public);
            return Arc::clone(flight);
        }
        let flight = Arc::new(Flight {
            callers: Callers::new(boarding.right.clone()),
            landed: watch::Sender::new(None),
        });
        flight.callers.join(&boarding.right, boarding.standing, boarding.public);
        flights.insert(key.clone(), Arc::clone(&flight));
        let (flights, flying, key, first) = (self.clone(), Arc::clone(&flight), key.clone(), boarding.right.clone());
        tokio::spawn(async move {
            let landed = fly(&flying.callers, first, work).await;
            // A later caller starts its own lookup: this result is for the callers that waited for it.
            flights.lock().remove(&key);
            flying.landed.send_replace(Some(landed));
        });
        flight
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Arc<Flight<V>>>> {
        self.0.lock()
    }
}

/// Does the work with one right after the other.
async fn fly<F, V>(callers: &Callers, first: Right, work: impl Fn(Right) -> F) -> Result<V, PullError>
where
    F: Future<Output = Result<V, PullError>> + Send + 'static,
    V: Send + 'static,
{
    let mut right = first;
    loop {
        // Kept apart, so that even a panic in the work ends the lookup instead of leaving its callers waiting.
        let result = tokio::spawn(work(right.clone())).await.unwrap_or_else(|_| Err(broke()));
        right = match result {
            Err(error) if error.is_refusal() => callers.refused(&right, &error)?,
            landed => return landed,
        };
    }
}

fn broke() -> PullError {
    PullError::Store("the lookup failed".to_owned())
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        future,
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use piecemeal_store::Repository;
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
    use tokio::time::sleep;

    use super::*;
    use piecemeal_upstream::{Caller, Credential};

    const CALLERS: usize = 40;
    const SEEDS: u64 = 300;

    fn right(token: usize) -> Right {
        let at = Repository {
            upstream: "a.test".to_owned(),
            name: "library/app".to_owned(),
        };
        let caller = Caller {
            credential: Credential::bearer(&format!("token{token}")),
            ..Caller::default()
        };
        Right::new(&caller, &at)
    }

    /// A source that knows some tokens, and has an error of its own for each of the others.
    struct FakeSource {
        bad: HashSet<usize>,
        latencies: Mutex<StdRng>,
        lookups: AtomicUsize,
        served: AtomicUsize,
        proofs: AtomicUsize,
    }

    impl FakeSource {
        fn new(seed: u64, bad: HashSet<usize>) -> Arc<Self> {
            Arc::new(Self {
                bad,
                latencies: Mutex::new(StdRng::seed_from_u64(seed)),
                lookups: AtomicUsize::new(0),
                served: AtomicUsize::new(0),
                proofs: AtomicUsize::new(0),
            })
        }

        fn token(&self, right: &Right) -> usize {
            let of = |token: &usize| super::tests::right(*token) == *right;
            (0..CALLERS).find(of).expect("a token of this test")
        }

        async fn answer(&self, right: &Right) -> Result<&'static str, PullError> {
            let latency = self.latencies.lock().random_range(50..100);
            sleep(Duration::from_millis(latency)).await;
            let token = self.token(right);
            match self.bad.contains(&token) {
                true => Err(refusal(token)),
                false => Ok("the manifest"),
            }
        }
    }

    /// Each kind of refusal, with the token in it, so that one cannot be taken for another.
    fn refusal(token: usize) -> PullError {
        let said = format!("said to token{token}");
        match token % 6 {
            0 => PullError::Denied {
                upstream: said,
                status: 401,
                challenges: Vec::new(),
            },
            1 => PullError::Denied {
                upstream: said,
                status: 403,
                challenges: Vec::new(),
            },
            2 => PullError::Unknown(said),
            3 => PullError::Rejected {
                upstream: said,
                status: 431,
                path: "library/app/manifests/v1".to_owned(),
            },
            4 => PullError::TooManyRequests {
                upstream: said,
                retry_after: None,
            },
            _ => PullError::Withheld(said),
        }
    }

    async fn ask(
        flights: &Flights<(), &'static str>,
        source: &Arc<FakeSource>,
        token: usize,
    ) -> Result<&'static str, PullError> {
        let boarding = Boarding {
            right: right(token),
            standing: Standing::Unknown,
            public: false,
        };
        let asked = Arc::clone(source);
        let work = move |right| {
            let source = Arc::clone(&asked);
            async move {
                source.lookups.fetch_add(1, Ordering::Relaxed);
                let answer = source.answer(&right).await;
                source.served.fetch_add(usize::from(answer.is_ok()), Ordering::Relaxed);
                answer
            }
        };
        let prove = async || {
            source.proofs.fetch_add(1, Ordering::Relaxed);
            source.answer(&right(token)).await.map(drop)
        };
        let landed = flights.join((), boarding, work, prove).await?;
        if !landed.own {
            // As `Rights` does for a caller that the source has not answered.
            source.answer(&right(token)).await?;
        }
        Ok(landed.value)
    }

    #[tokio::test(start_paused = true)]
    async fn every_caller_hears_what_was_said_to_it_and_good_ones_share_one_answer() {
        for seed in 0..SEEDS {
            let mut dice = StdRng::seed_from_u64(seed);
            let share = [0.0, 0.1, 0.5, 0.95][dice.random_range(0..4)];
            let bad: HashSet<usize> = (0..CALLERS).filter(|_| dice.random_bool(share)).collect();
            let source = FakeSource::new(seed, bad);
            let flights = Flights::default();
            let callers: Vec<_> = (0..CALLERS)
                .map(|_| {
                    let (token, delay) = (dice.random_range(0..CALLERS), dice.random_range(0..50));
                    // Some leave before there can be an answer.
                    let leaves = dice.random_bool(0.1);
                    let (flights, source) = (flights.clone(), Arc::clone(&source));
                    let asking = tokio::spawn(async move {
                        sleep(Duration::from_millis(delay)).await;
                        ask(&flights, &source, token).await
                    });
                    (token, leaves, asking)
                })
                .collect();
            sleep(Duration::from_millis(49)).await;
            for (_, _, asking) in callers.iter().filter(|(_, leaves, _)| *leaves) {
                asking.abort();
            }
            let mut good = 0;
            for (token, _, asking) in callers.into_iter().filter(|(_, leaves, _)| !leaves) {
                let heard = asking.await.unwrap();
                if source.bad.contains(&token) {
                    let error = heard.expect_err("a refused caller gets nothing");
                    assert_eq!(error.to_string(), refusal(token).to_string(), "seed {seed}");
                } else {
                    heard.unwrap_or_else(|error| panic!("seed {seed}: token{token} heard {error}"));
                    good += 1;
                }
            }
            let served = source.served.load(Ordering::Relaxed);
            assert!(
                served <= 1 && (good == 0 || served == 1),
                "seed {seed}: served {served} times"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_are_all_accepted_share_one_lookup() {
        let source = FakeSource::new(1, HashSet::new());
        let flights = Flights::default();
        let all = (0..CALLERS).map(|token| ask(&flights, &source, token));
        for heard in futures_util::future::join_all(all).await {
            heard.unwrap();
        }
        let [lookups, proofs] = [&source.lookups, &source.proofs].map(|count| count.load(Ordering::Relaxed));
        assert_eq!((lookups, proofs), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_bad_callers_holds_a_good_one_up_for_a_few_round_trips_only() {
        let good = CALLERS - 1;
        let source = FakeSource::new(1, (0..good).collect());
        let flights = Flights::default();
        let began = tokio::time::Instant::now();
        let bad = (0..good).map(|token| ask(&flights, &source, token));
        let (heard, _) =
            futures_util::future::join(ask(&flights, &source, good), futures_util::future::join_all(bad)).await;
        heard.unwrap();
        assert!(began.elapsed() <= Duration::from_millis(500), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_another_caller_ran_into_is_not_the_last_word() {
        // A server that breaks over one token, and answers the others.
        let flights: Flights<(), &'static str> = Flights::default();
        let ask = async |token: usize| {
            let boarding = Boarding {
                right: right(token),
                standing: Standing::Unknown,
                public: false,
            };
            let work = |asked: Right| async move {
                sleep(Duration::from_millis(50)).await;
                match asked == right(0) {
                    true => Err(PullError::Unavailable("a.test answered 500".to_owned())),
                    false => Ok("the manifest"),
                }
            };
            flights
                .join((), boarding, work, future::pending)
                .await
                .map(|landed| landed.value)
        };
        let heard = futures_util::future::join_all((0..CALLERS).map(ask)).await;
        assert!(heard[0].is_err());
        assert!(heard[1..].iter().all(Result::is_ok));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fetch_from_a_public_repository_goes_on_without_a_credential() {
        let flights: Flights<(), &'static str> = Flights::default();
        let boarding = |token, public| Boarding {
            right: right(token),
            standing: Standing::Unknown,
            public,
        };
        let work = |asked: Right| async move {
            sleep(Duration::from_millis(50)).await;
            match asked.caller.credential {
                Some(_) => Err(refusal(0)),
                None => Ok("the manifest"),
            }
        };
        let refused = flights.join((), boarding(0, true), work, future::pending);
        let anonymous = Right {
            caller: Caller::default(),
            ..right(1)
        };
        let anonymous = Boarding {
            right: anonymous,
            ..boarding(1, true)
        };
        let served = flights.join((), anonymous, work, future::pending);
        let (refused, served) = futures_util::future::join(refused, served).await;
        assert!(refused.is_err());
        assert_eq!(served.unwrap().value, "the manifest");
    }
}
