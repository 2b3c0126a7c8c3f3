//! Redirects to object storage, led through an accelerated host.
//!
//! Registries answer a blob with a redirect to a signed URL. Where the signature does not cover the host, the same path and
//! query are good at the storage's accelerated host too, which may be much nearer. Only its
//! owner knows whether a bucket has acceleration: a bucket where it fails is not tried again for [`FAILED_LIFE`].
//!
//! Source: Alibaba Cloud OSS, "Transfer acceleration" and its SDK's signers; AWS Signature V4 for query strings.

use std::{
    num::NonZeroUsize,
    str::FromStr,
    time::{Duration, Instant},
};

use lru::LruCache;
use parking_lot::Mutex;
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use url::Url;

use crate::{labels::matches_labels, reachable::AllowedTarget};

const FAILED_LIFE: Duration = Duration::from_secs(10 * 60);
const FAILED_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("more than none");

/// One rule: hosts that match are reached by another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteRule {
    /// `*` stands for the bucket as the first label, and for any text without a dot elsewhere.
    from: String,
    /// `*` stands for the bucket.
    to: String,
}

impl RewriteRule {
    /// Alibaba Cloud OSS: `B.oss-cn-hangzhou.aliyuncs.com`, also `-internal`, by way of `B.oss-accelerate.aliyuncs.com`.
    pub const OSS_ACCELERATE: &'static str = "oss-accelerate";

    fn preset() -> Self {
        Self {
            from: "*.oss-*.aliyuncs.com".to_owned(),
            to: "*.oss-accelerate.aliyuncs.com".to_owned(),
        }
    }

    /// The rule's own target, as one that the administrator has allowed. The preset's target is public.
    pub(crate) fn target(&self) -> Option<AllowedTarget> {
        self.to.parse().ok()
    }

    fn apply(&self, host: &str) -> Option<String> {
        let (bucket, rest) = host.split_once('.')?;
        let (first, from) = self.from.split_once('.')?;
        let matches = (first == "*" || first == bucket) && matches_labels(from, rest);
        let to = self.to.replacen('*', bucket, 1);
        // Hosts that are accelerated already match too.
        (matches && !rest.starts_with("oss-accelerate"))
            .then_some(to)
            .filter(|to| to != host)
    }
}

impl FromStr for RewriteRule {
    type Err = String;

    /// `oss-accelerate`, or `FROM=TO`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == Self::OSS_ACCELERATE {
            return Ok(Self::preset());
        }
        let problem = || {
            format!(
                "{text:?} is not {}, nor FROM=TO, such as *.s3.example.com=*.s3-near.example.com",
                Self::OSS_ACCELERATE
            )
        };
        let (from, to) = text.split_once('=').ok_or_else(problem)?;
        let is_host = |host: &str| {
            host.contains('.')
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"*.-".contains(&byte))
        };
        if !is_host(from) || !is_host(to) {
            return Err(problem());
        }
        Ok(Self {
            from: from.to_owned(),
            to: to.to_owned(),
        })
    }
}

/// The rules of a daemon, and the counters of their results.
pub(crate) struct Rewrites {
    rules: Vec<RewriteRule>,
    failed: Mutex<LruCache<String, Instant>>,
    rewritten: Counter,
    failures: Counter,
}

impl Default for Rewrites {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl Rewrites {
    pub(crate) fn new(rules: Vec<RewriteRule>) -> Self {
        Self {
            rules,
            failed: Mutex::new(LruCache::sparse(FAILED_MAX)),
            rewritten: Counter::default(),
            failures: Counter::default(),
        }
    }

    /// The accelerated URL of `url`: the same path and query, to the byte. `None` when there is none that is worth a try.
    pub(crate) fn apply(&self, url: &Url, now: Instant) -> Option<Url> {
        let host = url.host_str()?;
        let to = self.rules.iter().find_map(|rule| rule.apply(host))?;
        if covers_host(url) || self.has_failed(host, now) {
            return None;
        }
        let text = url.as_str();
        let at = text.find(host)?;
        let faster = Url::parse(&format!("{}{to}{}", &text[..at], &text[at + host.len()..])).ok()?;
        self.rewritten.inc();
        Some(faster)
    }

    /// The accelerated URL failed.
    pub(crate) fn failed(&self, url: &Url, now: Instant) {
        self.failures.inc();
        let Some(host) = url.host_str() else { return };
        let mut failed = self.failed.lock();
        failed.put(host.to_owned(), now + FAILED_LIFE);
    }

    /// Adds the counters.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("piecemeal_redirects");
        registry.register(
            "rewritten",
            "Redirects that were rewritten to an accelerated host",
            self.rewritten.clone(),
        );
        registry.register(
            "rewrite_failures",
            "Redirects whose accelerated host failed, so that the original host was used",
            self.failures.clone(),
        );
    }

    fn has_failed(&self, host: &str, now: Instant) -> bool {
        let mut failed = self.failed.lock();
        failed.get(host).is_some_and(|until| now < *until)
    }
}

/// Whether the signature in the query covers the host, so that it would be wrong at another.
fn covers_host(url: &Url) -> bool {
    url.query_pairs()
        .any(|(key, value)| match key.to_ascii_lowercase().as_str() {
            "x-amz-signedheaders" | "x-goog-signedheaders" | "x-oss-additional-headers" => value
                .split(';')
                .any(|header| header.trim().eq_ignore_ascii_case("host")),
            _ => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oss() -> Rewrites {
        Rewrites::new(vec!["oss-accelerate".parse().unwrap()])
    }

    fn apply(rewrites: &Rewrites, url: &str) -> Option<String> {
        let faster = rewrites.apply(&Url::parse(url).unwrap(), Instant::now());
        faster.map(String::from)
    }

    #[test]
    fn oss_is_reached_by_its_accelerated_host_with_the_query_to_the_byte() {
        let cases = [
            (
                "https://b.oss-cn-hangzhou.aliyuncs.com/docker/x?Expires=1&OSSAccessKeyId=a%2Fb&Signature=x%2By%3D",
                Some(
                    "https://b.oss-accelerate.aliyuncs.com/docker/x?Expires=1&OSSAccessKeyId=a%2Fb&Signature=x%2By%3D",
                ),
            ),
            (
                "https://b.oss-cn-hangzhou-internal.aliyuncs.com/x?a=~%7E",
                Some("https://b.oss-accelerate.aliyuncs.com/x?a=~%7E"),
            ),
            (
                "https://b.oss-us-west-1.aliyuncs.com/x?x-oss-signature-version=OSS4-HMAC-SHA256&x-oss-signature=0",
                Some(
                    "https://b.oss-accelerate.aliyuncs.com/x?x-oss-signature-version=OSS4-HMAC-SHA256&x-oss-signature=0",
                ),
            ),
            (
                "https://b.oss-cn-hangzhou.aliyuncs.com/x?x-oss-signature-version=OSS4-HMAC-SHA256&x-oss-additional-headers=host",
                None,
            ),
            ("https://b.oss-accelerate.aliyuncs.com/x", None),
            ("https://b.oss-accelerate-overseas.aliyuncs.com/x", None),
            ("https://oss-cn-hangzhou.aliyuncs.com/x", None),
            ("https://b.oss-cn-hangzhou.aliyuncs.com.evil.io/x", None),
            ("https://b.s3.amazonaws.com/x?X-Amz-SignedHeaders=host", None),
            ("http://10.0.0.1/x", None),
        ];
        for (url, faster) in cases {
            assert_eq!(apply(&oss(), url).as_deref(), faster, "{url}");
        }
    }

    #[test]
    fn other_storage_needs_a_rule_and_a_signature_without_the_host() {
        let rewrites = Rewrites::new(vec!["*.s3.example.com=*.s3-near.example.com".parse().unwrap()]);
        assert_eq!(
            apply(&rewrites, "http://b.s3.example.com:9000/x?sig=1").as_deref(),
            Some("http://b.s3-near.example.com:9000/x?sig=1")
        );
        assert_eq!(
            apply(
                &rewrites,
                "http://b.s3.example.com/x?X-Amz-SignedHeaders=content-md5%3BHOST"
            ),
            None
        );
        for bad in ["", "oss", "a.b", "a=b", "https://a.b=c.d", "*.A.b=c.d"] {
            assert!(bad.parse::<RewriteRule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bucket_where_it_fails_is_left_alone_for_a_while() {
        let (rewrites, now) = (oss(), Instant::now());
        let [one, other] =
            ["b", "c"].map(|b| Url::parse(&format!("https://{b}.oss-cn-hangzhou.aliyuncs.com/x")).unwrap());
        assert!(rewrites.apply(&one, now).is_some());
        rewrites.failed(&one, now);
        assert!(rewrites.apply(&one, now).is_none());
        assert!(rewrites.apply(&other, now).is_some());
        assert!(rewrites.apply(&one, now + FAILED_LIFE).is_some());
        assert_eq!((rewrites.rewritten.get(), rewrites.failures.get()), (3, 1));
    }

    #[test]
    fn a_full_table_forgets_the_bucket_that_failed_longest_ago_alone() {
        let (rewrites, now) = (oss(), Instant::now());
        let bucket = |n: usize| Url::parse(&format!("https://b{n}.oss-cn-hangzhou.aliyuncs.com/x")).unwrap();
        for n in 0..=FAILED_MAX.get() {
            rewrites.failed(&bucket(n), now);
        }
        assert!(rewrites.apply(&bucket(0), now).is_some());
        assert!(rewrites.apply(&bucket(1), now).is_none());
    }
}
