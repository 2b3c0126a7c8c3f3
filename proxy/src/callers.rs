//! The callers of one piece of shared work (a fill, a lookup, a list), and with whose right it goes on.
//!
//! A refusal counts for one right. Only the callers with that right get it, and the work goes on with the right of another
//! caller that joined: one that the source is known to accept, else the one that has waited longest. When no right is left the
//! work ends, and its result is not kept for later callers.
//!
//! The source is asked no more than necessary: until the first refusal only the first caller's right is used. After it all other
//! waiting rights are proven at the same time, so that many bad rights delay the good ones by two round trips at most.

use std::{
    future::Future,
    hash::{Hash, Hasher},
};

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use piecemeal_store::Repository;
use tokio::sync::watch;

use piecemeal_upstream::{Caller, Fingerprint, PullError};

/// The most rights that wait in one piece of work, and the most refusals that it remembers. The oldest is dropped first; its
/// callers join again when the work ends.
const RIGHTS_MAX: usize = 256;
/// A longer credential is used for its own caller's request only. No token that a registry hands out is as long.
const CREDENTIAL_BYTES_MAX: usize = 16 * 1024;

/// All that the source's answer to a request may depend on. Two callers with the same right are one.
#[derive(Clone, Debug)]
pub struct Right {
    pub at: Repository,
    pub caller: Caller,
}

/// A right without what is secret or long: repository, credential, and whether a node of the site asks.
pub(crate) type RightKey = (Repository, Option<Fingerprint>, bool);

impl Right {
    pub fn new(caller: &Caller, at: &Repository) -> Self {
        Self {
            at: at.clone(),
            caller: caller.clone(),
        }
    }

    /// The same request with no credential.
    fn anonymous(&self) -> Self {
        Self {
            at: self.at.clone(),
            caller: Caller {
                node: None,
                credential: None,
                via: self.caller.via.clone(),
                address: self.caller.address,
            },
        }
    }

    /// Whether a registry cannot tell them apart. It is shown `Via`, and looks in it for itself only.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.at == other.at
            && self.caller.credential == other.caller.credential
            && self.caller.node.is_some() == other.caller.node.is_some()
    }

    /// Whether what the source said to `other` is said to this right as well.
    fn shares(&self, other: &Self, error: &PullError) -> bool {
        match error {
            PullError::Loop(_) => self == other,
            _ => self.is_like(other),
        }
    }

    fn is_long(&self) -> bool {
        let credential = self.caller.credential.as_ref();
        credential.is_some_and(|credential| credential.header().len() > CREDENTIAL_BYTES_MAX)
    }

    pub(crate) fn key(&self) -> RightKey {
        let credential = self.caller.credential.as_ref();
        (
            self.at.clone(),
            credential.map(piecemeal_upstream::Credential::fingerprint),
            self.caller.node.is_some(),
        )
    }
}

impl PartialEq for Right {
    fn eq(&self, other: &Self) -> bool {
        self.is_like(other) && self.caller.via == other.caller.via
    }
}

impl Eq for Right {}

impl Hash for Right {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.at.hash(state);
        self.caller.credential.hash(state);
        self.caller.node.is_some().hash(state);
        self.caller.via.hash(state);
    }
}

/// The queue.
pub(crate) struct Callers {
    queue: Mutex<Queue>,
    /// Changes with each refusal.
    refusals: watch::Sender<()>,
}

struct Queue {
    /// The work goes on with this one.
    asked: Right,
    /// In the order in which they came.
    waiting: LruCache<Right, Standing>,
    refused: LruCache<Right, PullError>,
}

/// Standing of a waiting right at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Unknown,
    /// One of its callers asks the source.
    Proving,
    /// The source has served it not long ago.
    Proven,
}

impl Callers {
    pub(crate) fn new(first: Right) -> Self {
        Self {
            queue: Mutex::new(Queue {
                asked: first,
                waiting: LruCache::unbounded(),
                refused: LruCache::unbounded(),
            }),
            refusals: watch::Sender::new(()),
        }
    }

    /// A caller joins. `public`: the source serves the repository without a credential, so that the work may go on without one.
    pub(crate) fn join(&self, right: &Right, standing: Standing, public: bool) {
        let mut queue = self.lock();
        queue.refused.pop(right);
        queue.join(right, standing);
        if public {
            queue.join(&right.anonymous(), Standing::Proven);
        }
    }

    /// The right that the work goes on with.
    pub(crate) fn asked(&self) -> Right {
        self.lock().asked.clone()
    }

    /// Whether what the source says of the work now is said to this right.
    pub(crate) fn asks_with(&self, right: &Right) -> bool {
        self.lock().asked.is_like(right)
    }

    /// The source's refusal of this right, if it has refused it.
    pub(crate) fn refusal(&self, right: &Right) -> Option<PullError> {
        self.lock().refused.peek(right).cloned()
    }

    /// The source has refused `right` with `error`: the right to go on with.
    ///
    /// # Errors
    /// `error`, when no right is left.
    pub(crate) fn refused(&self, right: &Right, error: &PullError) -> Result<Right, PullError> {
        let next = {
            let mut queue = self.lock();
            if queue.asked.is_like(right) {
                queue.refuse(right, error);
            }
            queue.next()
        };
        self.refusals.send_replace(());
        next.ok_or_else(|| error.clone())
    }

    /// Waits until the work has `landed`, or the source has refused `right`. Once it has refused another right this one
    /// proves itself by `prove`, which the caller would have to do afterwards anyway.
    ///
    /// # Errors
    /// The refusal of `right`.
    pub(crate) async fn wait<T>(
        &self,
        right: &Right,
        landed: impl Future<Output = T>,
        prove: impl Future<Output = Result<(), PullError>>,
    ) -> Result<T, PullError> {
        let mut refusals = self.refusals.subscribe();
        tokio::pin!(landed, prove);
        let mut proof = Proof::new(self, right);
        loop {
            if let Some(error) = self.refusal(right) {
                return Err(error);
            }
            proof.claim();
            tokio::select! {
                biased;
                landed = &mut landed => return self.refusal(right).map_or(Ok(landed), Err),
                _ = refusals.changed() => {}
                proven = &mut prove, if proof.is_claimed() => proof.end(proven),
            }
        }
    }

    fn claim_proof(&self, right: &Right) -> bool {
        let mut queue = self.lock();
        if queue.refused.is_empty() || queue.waiting.peek(right) != Some(&Standing::Unknown) {
            return false;
        }
        queue.stand(right, Standing::Proving);
        true
    }

    /// The source has served `right`, which asked on its own account.
    pub(crate) fn proven(&self, right: &Right) {
        self.stand(right, Standing::Proven);
    }

    fn stand(&self, right: &Right, standing: Standing) {
        self.lock().stand(right, standing);
    }

    /// The source has refused `right`, which asked on its own account. Nothing changes for the one that the work goes on with.
    pub(crate) fn refused_while_waiting(&self, right: &Right, error: &PullError) {
        let mut queue = self.lock();
        if !queue.asked.is_like(right) {
            queue.refuse(right, error);
            drop(queue);
            self.refusals.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }
}

impl Queue {
    fn join(&mut self, right: &Right, standing: Standing) {
        if self.asked == *right {
            return;
        }
        match self.waiting.peek_mut(right) {
            Some(known) if standing == Standing::Proven => *known = standing,
            Some(_) => {}
            None if right.is_long() => {}
            None => put(&mut self.waiting, right.clone(), standing),
        }
    }

    fn refuse(&mut self, right: &Right, error: &PullError) {
        let shares = |other: &&Right| other.shares(right, error);
        let sharing: Vec<Right> = self
            .waiting
            .iter()
            .map(|(other, _)| other)
            .filter(shares)
            .cloned()
            .collect();
        for other in sharing {
            self.waiting.pop(&other);
            put(&mut self.refused, other, error.clone());
        }
        put(&mut self.refused, right.clone(), error.clone());
    }

    fn stand(&mut self, right: &Right, standing: Standing) {
        for (other, known) in &mut self.waiting {
            if other.is_like(right) && *known != Standing::Proven {
                *known = standing;
            }
        }
    }

    /// The one that is asked with, while it has not been refused; else one that is proven; else the one that waits longest.
    fn next(&mut self) -> Option<Right> {
        if self.refused.contains(&self.asked) {
            let oldest_first = || self.waiting.iter().rev();
            let proven = oldest_first().find(|(_, standing)| **standing == Standing::Proven);
            let next = proven.or_else(|| oldest_first().next())?.0.clone();
            self.waiting.pop(&next);
            self.asked = next;
        }
        Some(self.asked.clone())
    }
}

/// Tables grow as they fill: most work has one caller.
fn put<V>(table: &mut LruCache<Right, V>, right: Right, value: V) {
    if table.len() >= RIGHTS_MAX && !table.contains(&right) {
        table.pop_lru();
    }
    table.put(right, value);
}

/// A right's own question to the source, asked by one of its callers for all of them.
struct Proof<'a> {
    callers: &'a Callers,
    right: &'a Right,
    claimed: bool,
    ended: bool,
}

impl<'a> Proof<'a> {
    fn new(callers: &'a Callers, right: &'a Right) -> Self {
        Self {
            callers,
            right,
            claimed: false,
            ended: false,
        }
    }

    fn is_claimed(&self) -> bool {
        self.claimed
    }

    fn claim(&mut self) {
        self.claimed = self.claimed || (!self.ended && self.callers.claim_proof(self.right));
    }

    fn end(&mut self, proven: Result<(), PullError>) {
        (self.claimed, self.ended) = (false, true);
        match proven {
            Ok(()) => self.callers.proven(self.right),
            Err(error) if error.is_refusal() => self.callers.refused_while_waiting(self.right, &error),
            // The source itself fails: there is nothing to be learnt from it now.
            Err(_) => {}
        }
    }
}

/// A caller that leaves lets another one of the same right ask.
impl Drop for Proof<'_> {
    fn drop(&mut self) {
        if self.claimed {
            self.callers.stand(self.right, Standing::Unknown);
        }
    }
}
