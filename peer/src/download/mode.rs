//! Where a download gets its pieces: by lease, from the mirror, or from upstream. Pure: facts in, the mode out.
//!
//! The scheduler's leases come first. Without a lease a peer asks the mirror while the scheduler is silent, and upstream
//! while mirror and scheduler are lost. In every mode, a connected client is never left without a byte.

use std::time::Duration;

/// A client without a byte for this long has its piece fetched from the mirror, even if the scheduler is well: it may not
/// know of the mirror's pieces, for example while their session is broken.
const STARVED_AFTER: Duration = Duration::from_secs(3);
/// Without a new piece for this long the mirror is asked again: after a restart it fills what is asked for.
const REOPEN_AFTER: Duration = Duration::from_secs(2);
/// Requests in flight at the mirror: enough to hide the round trip, few enough that order still means something.
const DIRECT_WINDOW: usize = 4;

/// The facts that decide a download's mode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// The scheduler is connected and not silent.
    pub(crate) scheduler_up: bool,
    /// For how long the mirror has not answered; `None` while it does.
    pub(crate) mirror_lost: Option<Duration>,
    pub(crate) mirror_configured: bool,
    /// For how long the client that waits longest has received no byte.
    pub(crate) starved: Option<Duration>,
    /// The time since the last piece landed.
    pub(crate) idle: Duration,
    pub(crate) may_use_upstream: bool,
    pub(crate) mirror_grace: Duration,
    /// Drawn once per download, so that the peers of a site do not go upstream in the same instant.
    pub(crate) jitter: Duration,
}

/// What a download does now, besides its leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mode {
    /// The most requests in flight at the mirror without a lease.
    pub(crate) direct_window: usize,
    /// Ask the mirror again for the blob.
    pub(crate) reopen: bool,
    /// Fetch all that is missing from upstream.
    pub(crate) upstream: bool,
}

impl Facts {
    pub(crate) fn mode(&self) -> Mode {
        let mirror_up = self.mirror_configured && self.mirror_lost.is_none();
        let starved = self.starved.is_some_and(|starved| starved >= STARVED_AFTER);
        let direct_window = match (mirror_up, self.scheduler_up) {
            (false, _) => 0,
            (true, false) => DIRECT_WINDOW,
            (true, true) => usize::from(starved),
        };
        let grace_over = !self.mirror_configured
            || self
                .mirror_lost
                .is_some_and(|lost| lost >= self.mirror_grace.saturating_add(self.jitter));
        Mode {
            direct_window,
            reopen: self.mirror_configured && self.idle >= REOPEN_AFTER,
            upstream: self.may_use_upstream && !self.scheduler_up && grace_over,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Facts {
        Facts {
            scheduler_up: true,
            mirror_lost: None,
            mirror_configured: true,
            starved: None,
            idle: Duration::ZERO,
            may_use_upstream: true,
            mirror_grace: Duration::from_secs(30),
            jitter: Duration::from_secs(1),
        }
    }

    const NOTHING: Mode = Mode {
        direct_window: 0,
        reopen: false,
        upstream: false,
    };

    #[test]
    fn while_all_is_well_only_leases_are_followed() {
        assert_eq!(well().mode(), NOTHING);
    }

    #[test]
    fn without_a_scheduler_the_mirror_is_asked_directly() {
        let facts = Facts {
            scheduler_up: false,
            ..well()
        };
        assert_eq!(
            facts.mode(),
            Mode {
                direct_window: DIRECT_WINDOW,
                ..NOTHING
            }
        );
    }

    #[test]
    fn a_starved_client_has_its_piece_fetched_from_the_mirror() {
        let facts = Facts {
            starved: Some(STARVED_AFTER),
            ..well()
        };
        assert_eq!(
            facts.mode(),
            Mode {
                direct_window: 1,
                ..NOTHING
            }
        );
    }

    #[test]
    fn upstream_is_the_last_resort_after_the_grace_and_only_where_allowed() {
        let lost = |seconds| Facts {
            scheduler_up: false,
            mirror_lost: Some(Duration::from_secs(seconds)),
            ..well()
        };
        assert!(!lost(30).mode().upstream);
        assert!(lost(31).mode().upstream);
        assert!(
            !Facts {
                may_use_upstream: false,
                ..lost(31)
            }
            .mode()
            .upstream
        );
        assert!(
            !Facts {
                scheduler_up: true,
                ..lost(31)
            }
            .mode()
            .upstream,
            "the scheduler leases it to one peer"
        );
        assert!(
            Facts {
                scheduler_up: false,
                mirror_configured: false,
                ..well()
            }
            .mode()
            .upstream
        );
    }

    #[test]
    fn an_idle_download_asks_the_mirror_again() {
        assert!(
            Facts {
                idle: REOPEN_AFTER,
                ..well()
            }
            .mode()
            .reopen
        );
        assert!(
            Facts {
                idle: REOPEN_AFTER,
                mirror_lost: Some(REOPEN_AFTER),
                ..well()
            }
            .mode()
            .reopen,
            "it may be back"
        );
    }
}
