//! Lookups: work that is done once for all callers that ask for it at the same time, and goes on when they leave.
//!
//! With whose right it is done, and who hears of a refusal, is the business of `callers`. A failure that is no refusal is told
//! to every caller that waits, but not as the last word: a caller whose own right was not used asks once more.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::watch;

use crate::{
    PullError,
    callers::{Callers, Right, Standing},
};

/// How often a caller begins anew what ended without a word for it.
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
    /// The source serves the repository to anybody.
    pub(crate) public: bool,
}

/// What a lookup has come to.
pub(crate) struct Landed<V> {
    pub(crate) value: V,
    /// The source has said it to this very caller's right.
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
    /// What the source said to this caller; why the lookup failed.
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
                landed.map_or(None, |landed| landed.clone()).unwrap_or_else(|| Err(broke()))
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
                true => return Err(PullError::Unavailable("others are still being refused; ask again".to_owned())),
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
            // A later caller begins anew: what was said is for those that have waited.
            flights.lock().remove(&key);
            flying.landed.send_replace(Some(landed));
        });
        flight
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Arc<Flight<V>>>> {
        self.0.lock().expect("no holder of this lock panics")
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
    PullError::Store("the lookup broke".to_owned())
}
