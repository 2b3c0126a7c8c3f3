//! Verification on demand: hashes blobs again, to find those that the disk has damaged.
//!
//! Invariant: each blob counts once at the end: as good, damaged, failed or gone.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use piecemeal_proto::Digest;
use piecemeal_store::{Presence, Verified};
use piecemeal_swarm::Limiter;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    VerifyEvent,
    lines::{Gone, Out},
    parts::CacheParts,
};

/// The blobs to verify.
pub(super) struct Verification {
    pub(super) digests: Vec<Digest>,
    pub(super) bytes_per_second: Option<u64>,
}

/// The interval between two reports of progress.
const TELL_EVERY: Duration = Duration::from_millis(250);

pub(super) async fn run(parts: &CacheParts, plan: Verification, out: &Out) -> Result<(), Gone> {
    let store = &parts.store;
    let sizes = plan.digests.iter().map(|digest| match store.presence(digest) {
        Presence::Complete { blob_bytes } => blob_bytes,
        Presence::Partial { .. } | Presence::Absent => 0,
    });
    out.say(&VerifyEvent::Begin {
        blobs: plan.digests.len() as u64,
        bytes: sizes.sum(),
    })
    .await?;
    let limiter = plan.bytes_per_second.map(|rate| Limiter::new(Some(rate)));
    let (read, looked) = (AtomicU64::new(0), AtomicU64::new(0));
    let (mut good, mut damaged, mut failed, mut gone) = (0, 0, 0, 0);
    let looking = async {
        for digest in &plan.digests {
            let pace = async |bytes: u64| {
                if let Some(limiter) = &limiter {
                    limiter.take(usize::try_from(bytes).unwrap_or(usize::MAX)).await;
                }
                read.fetch_add(bytes, Ordering::Relaxed);
            };
            match store.verify(digest, pace).await {
                Ok(Verified::Good) => good += 1,
                Ok(Verified::Gone) => gone += 1,
                Ok(Verified::Damaged) => {
                    damaged += 1;
                    let (digest, names) = (*digest, parts.images_with(*digest).await);
                    out.say(&VerifyEvent::Damaged { digest, names }).await?;
                }
                Err(error) => {
                    failed += 1;
                    let (digest, error) = (*digest, error.to_string());
                    out.say(&VerifyEvent::Failed { digest, error }).await?;
                }
            }
            looked.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let telling = async {
        let mut tick = interval(TELL_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            out.say(&VerifyEvent::Progress {
                blobs: looked.load(Ordering::Relaxed),
                bytes: read.load(Ordering::Relaxed),
            })
            .await?;
        }
    };
    tokio::select! {
        looked = looking => looked?,
        told = telling => return told,
    }
    out.say(&VerifyEvent::End {
        good,
        damaged,
        failed,
        gone,
        bytes: read.into_inner(),
    })
    .await
}
