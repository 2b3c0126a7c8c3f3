//! Mode of a download: where it gets its pieces, by lease, from the mirror, or from upstream. Pure: facts in, the mode out.
//!
//! The scheduler's leases come first. Without a lease a peer asks the mirror while the scheduler is silent, and upstream
//! while mirror and scheduler are lost. In every mode, a connected client is never left without a byte.

use std::{ops::Range, time::Duration};

/// A client without a byte for this long has its piece fetched from the mirror, even if the scheduler is well: it may not
/// know of the mirror's pieces, for example while their session is broken.
const STARVED_AFTER: Duration = Duration::from_secs(3);
/// Without a new piece for this long the mirror is asked again: after a restart it fills what is asked for.
const REOPEN_AFTER: Duration = Duration::from_secs(2);
/// Requests in flight at the mirror: enough to hide the round trip, few enough that order still means something. There is one more
/// while a client waits for a piece that they do not bring.
pub(super) const DIRECT_WINDOW: usize = 4;

/// The state of the scheduler, the mirror and the store, as the task reads it before each step.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The scheduler is connected and not silent.
    pub scheduler_up: bool,
    /// For how long the mirror has not answered; `None` while it does.
    pub mirror_lost: Option<Duration>,
    /// How long the mirror may be lost before upstream is asked.
    pub mirror_grace: Duration,
    /// The pieces that clients want to read: each range from the missing piece that its client waits for, ascending.
    pub waited_for: Vec<Range<u32>>,
    /// The client that waits longest: the piece that it needs, and for how long it has received no byte.
    pub longest_wait: Option<(u32, Duration)>,
    /// An unstored blob has clients. A stored one counts as read.
    pub has_readers: bool,
    /// A client is connected that waits for the blob.
    pub is_attended: bool,
    /// The pieces of an unstored blob that there is room for.
    pub window: Option<Range<u32>>,
    /// The store has ended the fill without its blob.
    pub fill_failed: bool,
}

/// The sources that a download may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sources {
    pub(super) mirror_configured: bool,
    pub(super) may_use_upstream: bool,
    /// Drawn once per download, so that the peers of a site do not go upstream in the same instant.
    pub(super) jitter: Duration,
}

/// What a download does now, besides its leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode {
    /// The most requests in flight at the mirror without a lease.
    pub(super) direct_window: usize,
    /// Ask the mirror again for the blob.
    pub(super) reopen: bool,
    /// Fetch all that is missing from upstream.
    pub(super) upstream: bool,
}

impl Sources {
    /// `idle`: the time since the last piece landed.
    pub(super) fn mode(&self, facts: &Facts, idle: Duration) -> Mode {
        let mirror_up = self.mirror_configured && facts.mirror_lost.is_none();
        let starved = facts.longest_wait.is_some_and(|(_, waited)| waited >= STARVED_AFTER);
        let direct_window = match (mirror_up, facts.scheduler_up) {
            (false, _) => 0,
            (true, false) => DIRECT_WINDOW,
            (true, true) => usize::from(starved),
        };
        let grace_over = !self.mirror_configured
            || facts
                .mirror_lost
                .is_some_and(|lost| lost >= facts.mirror_grace.saturating_add(self.jitter));
        Mode {
            direct_window,
            reopen: self.mirror_configured && idle >= REOPEN_AFTER,
            upstream: self.may_use_upstream && !facts.scheduler_up && grace_over,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCES: Sources = Sources {
        mirror_configured: true,
        may_use_upstream: true,
        jitter: Duration::from_secs(1),
    };

    fn well() -> Facts {
        Facts {
            scheduler_up: true,
            mirror_lost: None,
            mirror_grace: Duration::from_secs(30),
            waited_for: Vec::new(),
            longest_wait: None,
            has_readers: true,
            is_attended: true,
            window: None,
            fill_failed: false,
        }
    }

    const NOTHING: Mode = Mode {
        direct_window: 0,
        reopen: false,
        upstream: false,
    };

    #[test]
    fn while_all_is_well_only_leases_are_followed() {
        assert_eq!(SOURCES.mode(&well(), Duration::ZERO), NOTHING);
    }

    #[test]
    fn without_a_scheduler_the_mirror_is_asked_directly() {
        let facts = Facts {
            scheduler_up: false,
            ..well()
        };
        let direct_window = DIRECT_WINDOW;
        assert_eq!(
            SOURCES.mode(&facts, Duration::ZERO),
            Mode {
                direct_window,
                ..NOTHING
            }
        );
    }

    #[test]
    fn a_starved_client_has_its_piece_fetched_from_the_mirror() {
        let facts = Facts {
            longest_wait: Some((0, STARVED_AFTER)),
            ..well()
        };
        let direct_window = 1;
        assert_eq!(
            SOURCES.mode(&facts, Duration::ZERO),
            Mode {
                direct_window,
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
        let upstream = |sources: Sources, facts: &Facts| sources.mode(facts, Duration::ZERO).upstream;
        assert!(!upstream(SOURCES, &lost(30)));
        assert!(upstream(SOURCES, &lost(31)));
        let forbidden = Sources {
            may_use_upstream: false,
            ..SOURCES
        };
        assert!(!upstream(forbidden, &lost(31)));
        let scheduled = Facts {
            scheduler_up: true,
            ..lost(31)
        };
        assert!(!upstream(SOURCES, &scheduled), "the scheduler leases it to one peer");
        let alone = Sources {
            mirror_configured: false,
            ..SOURCES
        };
        let silent = Facts {
            scheduler_up: false,
            ..well()
        };
        assert!(upstream(alone, &silent));
    }

    #[test]
    fn an_idle_download_asks_the_mirror_again() {
        assert!(SOURCES.mode(&well(), REOPEN_AFTER).reopen);
        let lost = Facts {
            mirror_lost: Some(REOPEN_AFTER),
            ..well()
        };
        assert!(SOURCES.mode(&lost, REOPEN_AFTER).reopen, "it may be back");
    }
}
