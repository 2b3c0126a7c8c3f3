//! Decision on a copy that no pod names: it stays for a while, marked with the moment since when. Pure: the clock is the caller's.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::copy::UNUSED_SINCE;

/// The age from which on a copy can be unused: the pod that it was made for may not be stored yet.
const GRACE: Duration = Duration::from_secs(60);

/// The fate of a copy that no pod names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnusedCopy {
    Keep,
    /// It is unused from now on.
    Mark,
    Delete,
}

impl UnusedCopy {
    /// `keep`: how long an unused copy stays.
    pub(super) fn decide(copy: &Value, keep: Duration, now: Timestamp) -> Self {
        match unused_for(copy, now) {
            None if age(copy, now) < GRACE.min(keep) => Self::Keep,
            None => Self::Mark,
            Some(unused) if unused >= keep => Self::Delete,
            Some(_) => Self::Keep,
        }
    }
}

/// None for a copy that is not marked.
fn unused_for(copy: &Value, now: Timestamp) -> Option<Duration> {
    let since: Timestamp = copy["metadata"]["annotations"][UNUSED_SINCE].as_str()?.parse().ok()?;
    Some(Duration::try_from(now.duration_since(since)).unwrap_or_default())
}

fn age(copy: &Value, now: Timestamp) -> Duration {
    let created = copy["metadata"]["creationTimestamp"]
        .as_str()
        .and_then(|text| text.parse::<Timestamp>().ok());
    created.map_or(Duration::MAX, |created| {
        Duration::try_from(now.duration_since(created)).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_unused_copy_has_its_time() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let copy = |since: &str| json!({"metadata": {"annotations": {UNUSED_SINCE: since}}});
        assert_eq!(
            unused_for(&copy("2026-01-01T00:00:00Z"), now),
            Some(Duration::from_secs(24 * 3600))
        );
        assert_eq!(unused_for(&copy("2026-01-03T00:00:00Z"), now), Some(Duration::ZERO));
        assert_eq!(unused_for(&json!({}), now), None);
    }

    #[test]
    fn a_copy_without_a_pod_is_marked_after_a_grace_and_deleted_when_its_time_is_up() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let keep = Duration::from_secs(3600);
        let decide = |metadata: Value| UnusedCopy::decide(&json!({ "metadata": metadata }), keep, now);
        let marked = |since: &str| json!({"annotations": {UNUSED_SINCE: since}});
        assert_eq!(
            decide(json!({"creationTimestamp": "2026-01-01T23:59:30Z"})),
            UnusedCopy::Keep
        );
        assert_eq!(
            decide(json!({"creationTimestamp": "2026-01-01T23:59:00Z"})),
            UnusedCopy::Mark
        );
        assert_eq!(decide(marked("2026-01-01T23:30:00Z")), UnusedCopy::Keep);
        assert_eq!(decide(marked("2026-01-01T23:00:00Z")), UnusedCopy::Delete);
    }
}
