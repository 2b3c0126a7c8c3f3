//! Sources of a peer's bytes, read from its metrics before and after a pull.
//!
//! Invariant: a pull goes on without a peer that answers; then there are no figures.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde_json::Value;
use url::Url;

use crate::cli::{http::http_client, status::format_bytes};

/// Bytes by source: `upstream`, `mirror`, `peer`, and `local` for what the node had already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BytesBySource(BTreeMap<&'static str, u64>);

impl BytesBySource {
    /// The bytes that came after `earlier`. A peer that has restarted counts from zero.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let delta = |(source, bytes): (&&'static str, &u64)| {
            let before = earlier.0.get(source).copied().unwrap_or(0);
            (*source, bytes.checked_sub(before).unwrap_or(*bytes))
        };
        Self(self.0.iter().map(delta).collect())
    }

    pub(super) fn to_json(&self) -> Value {
        self.0
            .iter()
            .map(|(source, bytes)| ((*source).to_owned(), Value::from(*bytes)))
            .collect()
    }

    fn parse(metrics: &str) -> Self {
        let mut sources: BTreeMap<&'static str, u64> = WAYS.iter().map(|(from, _)| (*from, 0)).collect();
        for line in metrics.lines() {
            let Some((labels, value)) = line.strip_prefix(METRIC).and_then(|rest| rest.split_once("} ")) else {
                continue;
            };
            let has = |label: &str, value: &str| labels.contains(&format!("{label}=\"{value}\""));
            let way = WAYS.iter().find(|(from, to)| has("from", from) && has("to", to));
            if let Some(((from, _), bytes)) = way.zip(value.split(' ').next().and_then(|text| text.parse::<u64>().ok()))
            {
                *sources.entry(from).or_default() += bytes;
            }
        }
        Self(sources)
    }
}

impl fmt::Display for BytesBySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self
            .0
            .iter()
            .map(|(source, bytes)| format!("{source} {}", format_bytes(*bytes)))
            .collect();
        f.write_str(&texts.join(", "))
    }
}

/// `None` when no peer answers: the pull goes on without.
pub(super) async fn read(admin: Option<&Url>) -> Option<BytesBySource> {
    let client = http_client(|client| client.timeout(READ_TIME_MAX).no_proxy()).ok()?;
    let answer = client.get(admin?.join("/metrics").ok()?).send().await.ok()?;
    let text = answer.error_for_status().ok()?.text().await.ok()?;
    text.contains(OURS).then(|| BytesBySource::parse(&text))
}

/// In the metrics of every Piecemeal daemon, even before it has counted bytes.
const OURS: &str = "piecemeal_";
const METRIC: &str = "piecemeal_blob_bytes_total{";
/// Bytes that the node fetched are counted on their way into the store; those that it had, on their way out.
const WAYS: [(&str, &str); 4] = [
    ("local", "client"),
    ("mirror", "store"),
    ("peer", "store"),
    ("upstream", "store"),
];
const READ_TIME_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(mirror: u64) -> String {
        format!(
            "# TYPE piecemeal_blob_bytes counter\n\
             piecemeal_blob_bytes_total{{from=\"mirror\",to=\"store\"}} {mirror}\n\
             piecemeal_blob_bytes_total{{from=\"transfer\",to=\"client\"}} 99\n\
             piecemeal_blob_bytes_total{{from=\"local\",to=\"node\"}} 99\n\
             piecemeal_blob_bytes_total{{from=\"local\",to=\"client\"}} 5\n# EOF\n"
        )
    }

    #[test]
    fn only_what_came_in_between_is_counted() {
        let (before, after) = (BytesBySource::parse(&metrics(10)), BytesBySource::parse(&metrics(110)));
        let between = after.since(&before);
        assert_eq!(
            between.to_json().to_string(),
            r#"{"local":0,"mirror":100,"peer":0,"upstream":0}"#
        );
        assert_eq!(before.since(&after).0["mirror"], 10);
        assert_eq!(between.to_string(), "local 0 B, mirror 100 B, peer 0 B, upstream 0 B");
    }
}
