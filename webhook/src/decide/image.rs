//! Image as a pod writes it, split so that it can be written again with another registry.
//!
//! Invariant: tag and digest stay as written; the registry is in lower case.

use std::str::FromStr;

use piecemeal_proto::{ImageReference, ParseReferenceError};

/// The most bytes that a runtime takes for registry and repository together. Source: distribution/reference.
pub(crate) const NAME_BYTES_MAX: usize = 255;

/// An image's three parts; `Display` of the original is not kept, since what changes is the registry alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// `host` or `host:port`, lower case.
    pub registry: String,
    /// With Docker Hub's `library/` where it was left out.
    pub repository: String,
    /// The text after the repository, as written: `:1.2`, `@sha256:…`, both or nothing.
    pub suffix: String,
}

/// Why a text is left as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAnImageError {
    #[error("the image is not a reference that a runtime would take: {0}")]
    Malformed(#[from] ParseReferenceError),
    #[error("the image is named by its id, which only means something on a node that has it")]
    Id,
}

impl Image {
    /// `registry/repository`, as a pull secret is matched with.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl FromStr for Image {
    type Err = NotAnImageError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_id(text) {
            return Err(NotAnImageError::Id);
        }
        let text = with_lower_case_registry(text);
        let parsed: ImageReference = text.parse()?;
        let name = text.split_once('@').map_or(text.as_str(), |(name, _)| name);
        let colon = name.rfind(':').filter(|colon| !name[*colon..].contains('/'));
        let suffix = text[colon.unwrap_or(name.len())..].to_owned();
        Ok(Self {
            registry: parsed.registry,
            repository: parsed.repository.to_string(),
            suffix,
        })
    }
}

/// DNS knows no case, and the registry's name is compared. An upper-case first component is a registry even without a dot.
fn with_lower_case_registry(text: &str) -> String {
    match text.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) => format!("{}/{rest}", host.to_ascii_lowercase()),
        _ => text.to_owned(),
    }
}

/// `sha256:` and 64 hexadecimal digits, or the digits alone.
fn is_id(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> Result<(String, String, String), NotAnImageError> {
        text.parse::<Image>()
            .map(|image| (image.registry, image.repository, image.suffix))
    }

    #[test]
    fn an_image_is_read_as_a_runtime_reads_it() {
        let sha256 = format!("@sha256:{}", "a".repeat(64));
        let sha512 = format!("@sha512:{}", "b".repeat(128));
        let tag = format!(":{}", "t".repeat(128));
        let with = |name: &str, suffix: &str| format!("{name}{suffix}");
        let cases = [
            ("nginx".to_owned(), ("docker.io", "library/nginx", "")),
            ("nginx:1.27".to_owned(), ("docker.io", "library/nginx", ":1.27")),
            ("a/b".to_owned(), ("docker.io", "a/b", "")),
            ("docker.io/library/x".to_owned(), ("docker.io", "library/x", "")),
            ("docker.io/x".to_owned(), ("docker.io", "library/x", "")),
            (
                "index.docker.io/library/x:2".to_owned(),
                ("docker.io", "library/x", ":2"),
            ),
            ("localhost/x".to_owned(), ("localhost", "x", "")),
            ("host:5000/x".to_owned(), ("host:5000", "x", "")),
            ("host:5000/x:y".to_owned(), ("host:5000", "x", ":y")),
            ("[::1]:5000/x".to_owned(), ("[::1]:5000", "x", "")),
            ("Reg.Example.COM/x:Y".to_owned(), ("reg.example.com", "x", ":Y")),
            (
                "gcr.io/a/b/c__d/e--f/g_h.i".to_owned(),
                ("gcr.io", "a/b/c__d/e--f/g_h.i", ""),
            ),
            (with("a.io/b:c", &sha256), ("a.io", "b", &with(":c", &sha256))),
            (with("a.io/b", &sha512), ("a.io", "b", &sha512)),
            (with("a.io:1/b", &sha256), ("a.io:1", "b", &sha256)),
            (with("a.io/b", &tag), ("a.io", "b", &tag)),
        ];
        for (text, (registry, repository, suffix)) in &cases {
            let expected = ((*registry).to_owned(), (*repository).to_owned(), (*suffix).to_owned());
            assert_eq!(image(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_no_runtime_would_pull_is_left_alone() {
        let long_tag = format!("a.io/b:{}", "t".repeat(129));
        let id = "a".repeat(64);
        let whole_id = format!("sha256:{id}");
        let cases = [
            "",
            "/",
            "a.io/",
            "a.io//b",
            "a.io/b:",
            "a.io/B",
            "a.io/b@",
            "a.io/b@sha256:12",
            "a.io/b_",
            "a_b.io/c",
            "a b",
            " nginx",
            "a.io/b:c:d",
            "https://a.io/b",
            &long_tag,
            &id,
            &whole_id,
        ];
        for text in cases {
            assert!(image(text).is_err(), "{text}");
        }
    }
}
