//! Handle behind the admin port's `/cache`.
//!
//! Invariant: one verification and one warming run at a time; each ends when its reader goes away or the daemon stops.

use std::sync::Arc;

use piecemeal_proto::Digest;
use piecemeal_store::{RemoveContentError, Repository};
use tokio::{sync::Semaphore, time::timeout};
use tracing::info;

use super::{
    CacheError, CacheItem, CacheList, Removed, VerifyRequest, WarmRequest,
    lines::{self, CacheLines, Gone},
    name::CacheName,
    parts::{CacheParts, LOOK_TIME_MAX, too_slow},
    prefetch::{self, PrefetchPlan},
    verify::{self, Verification},
};

/// A daemon's content, for those who run it. Cheap to clone.
#[derive(Clone)]
pub struct Cache {
    parts: Arc<CacheParts>,
    /// One at a time: both read or fetch as fast as they can.
    verifying: Arc<Semaphore>,
    prefetching: Arc<Semaphore>,
}

impl Cache {
    pub(crate) fn new(parts: CacheParts) -> Self {
        Self {
            parts: Arc::new(parts),
            verifying: Arc::new(Semaphore::new(1)),
            prefetching: Arc::new(Semaphore::new(1)),
        }
    }

    /// Lists the images and blobs that are kept.
    ///
    /// # Errors
    /// [`CacheError::Store`].
    pub async fn list(&self) -> Result<CacheList, CacheError> {
        self.parts.look(|view| view.list()).await
    }

    /// Describes an image or a blob.
    ///
    /// # Errors
    /// [`CacheError`]: not a name, nothing of that name.
    pub async fn item(&self, name: &str) -> Result<CacheItem, CacheError> {
        let read = self.parts.read_name(name)?;
        self.parts
            .look(move |view| view.item(&read))
            .await?
            .ok_or_else(|| not_here(name))
    }

    /// Removes a blob, or an image with the blobs that no other image needs.
    ///
    /// # Errors
    /// [`CacheError`]: it is not here, or in use; then nothing has been removed.
    pub async fn remove(&self, name: &str) -> Result<Removed, CacheError> {
        let read = self.parts.read_name(name)?;
        let plan = self.parts.look(move |view| view.removal(&read)).await??;
        let mut removed = Removed {
            names: plan.names,
            manifests: plan.removal.manifests.len() as u64,
            shared_blobs: plan.removal.shared.len() as u64,
            ..Removed::default()
        };
        let taking = self.parts.store.take_out(plan.removal);
        let taken = timeout(LOOK_TIME_MAX, taking).await.map_err(|_| too_slow())?;
        let swept = taken.map_err(|error| refusal(name, &error))?;
        (removed.blobs, removed.freed_bytes) = (swept.blobs.len() as u64, swept.bytes);
        info!(
            cache.name = name,
            blobs = removed.blobs,
            bytes = removed.freed_bytes,
            "{name} was removed by an administrator"
        );
        Ok(removed)
    }

    /// Hashes complete blobs again. Findings come line by line; the work ends when its reader goes away.
    ///
    /// # Errors
    /// [`CacheError`]: a name that is not here, another verification under way.
    pub async fn verify(&self, request: VerifyRequest) -> Result<CacheLines, CacheError> {
        let permit = Arc::clone(&self.verifying).try_acquire_owned();
        let permit = permit.map_err(|_| busy("verification"))?;
        if request.bytes_per_second == Some(0) {
            return Err(CacheError::Malformed(
                "bytes_per_second is 0; give a positive rate".to_owned(),
            ));
        }
        let plan = self.plan_verification(&request).await?;
        let (out, lines) = lines::lines();
        let parts = Arc::clone(&self.parts);
        self.spawn(
            permit,
            out.clone(),
            async move { verify::run(&parts, plan, &out).await },
        );
        Ok(lines)
    }

    async fn plan_verification(&self, request: &VerifyRequest) -> Result<Verification, CacheError> {
        let read = |name: &String| Ok((name.clone(), self.parts.read_name(name)?));
        let names: Vec<(String, CacheName)> = request.names.iter().map(read).collect::<Result<_, CacheError>>()?;
        let mut digests: Vec<Digest> = self
            .parts
            .look(move |view| {
                let mut digests = Vec::new();
                for (name, read) in &names {
                    digests.extend(view.complete_blobs(read).ok_or_else(|| not_here(name))?);
                }
                Ok::<_, CacheError>(digests)
            })
            .await??;
        if request.names.is_empty() {
            digests = self.parts.store.complete_digests();
        }
        digests.sort_unstable();
        digests.dedup();
        Ok(Verification {
            digests,
            bytes_per_second: request.bytes_per_second,
        })
    }

    /// Fetches images that are not here yet. Progress comes line by line; the work ends when its reader goes away, except for the
    /// blobs that are on their way.
    ///
    /// # Errors
    /// [`CacheError`]: nothing that can be tried, another one under way.
    pub async fn warm(&self, request: WarmRequest) -> Result<CacheLines, CacheError> {
        let plan = PrefetchPlan::read(&request, &self.parts.names)?;
        if request.peers {
            self.parts.require_scheduler()?;
        }
        let permit = Arc::clone(&self.prefetching).try_acquire_owned();
        let permit = permit.map_err(|_| busy("warming"))?;
        let (out, lines) = lines::lines();
        let parts = Arc::clone(&self.parts);
        self.spawn(
            permit,
            out.clone(),
            async move { prefetch::run(&parts, plan, &out).await },
        );
        Ok(lines)
    }

    /// Waits until a blob is here, fetching it when it is not.
    ///
    /// # Errors
    /// Why it cannot be fetched or kept, as text for people.
    pub async fn hold(&self, at: &Repository, digest: &Digest) -> Result<(), String> {
        let held = prefetch::fetch(&self.parts, at, digest, None).await;
        held.unwrap_or_else(|Gone| Err("the request for it ended early".to_owned()))
    }

    /// Runs in the background until its end, until its reader goes away, or until the daemon stops.
    fn spawn(
        &self,
        permit: tokio::sync::OwnedSemaphorePermit,
        out: lines::Out,
        work: impl Future<Output = Result<(), Gone>> + Send + 'static,
    ) {
        let stop = self.parts.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                // The reader is gone: there is nothing to report.
                _ = work => {}
                () = out.closed() => {}
                () = stop.cancelled() => {}
            }
            drop(permit);
        });
    }
}

fn busy(what: &str) -> CacheError {
    CacheError::Conflict(format!("another {what} is under way; try again after it has ended"))
}

fn not_here(name: &str) -> CacheError {
    CacheError::Unknown(format!("{name} is not here"))
}

fn refusal(name: &str, error: &RemoveContentError) -> CacheError {
    match error {
        RemoveContentError::InUse(blobs) => {
            let blobs: Vec<String> = blobs.iter().map(ToString::to_string).collect();
            CacheError::Conflict(format!(
                "{name} is in use: {} is being read or fetched; try again afterwards",
                blobs.join(", ")
            ))
        }
        RemoveContentError::Store(error) => CacheError::Store(error.to_string()),
    }
}
