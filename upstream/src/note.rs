//! Note beside an answer: what a caller is told with it.
//!
//! Invariant: only the site's own mirror can mark an answer as stale. What a registry, or a proxy before it, adds to an answer is
//! passed on, and changes nothing of what is kept and how.

use reqwest::header::{HeaderMap, WARNING};

use crate::upstream::Upstream;

/// The mark of a mirror on an answer that it could not check upstream. A node reads it of its mirror alone.
pub const STALE_HEADER: &str = "piecemeal-stale";
/// Source: OCI distribution-spec, "Warnings".
const WARNING_BYTES_MAX: usize = 4096;

/// The note beside an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// `Warning`, for the client: whatever it says.
    pub warning: Option<String>,
    /// Whether the answer could not be checked upstream.
    pub is_stale: bool,
}

impl Note {
    /// The note beside an answer that is put together from both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            warning: self.warning.or(other.warning),
            is_stale: self.is_stale || other.is_stale,
        }
    }

    fn read(headers: &HeaderMap, from_mirror: bool) -> Self {
        let warnings: Vec<&str> = headers
            .get_all(WARNING)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let warning = Some(warnings.join(", "));
        Self {
            warning: warning.filter(|text| (1..=WARNING_BYTES_MAX).contains(&text.len())),
            is_stale: from_mirror && headers.contains_key(STALE_HEADER),
        }
    }
}

impl Upstream {
    pub(crate) fn note_of(&self, headers: &HeaderMap) -> Note {
        Note::read(headers, self.node.is_some())
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderName;

    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_the_mirror_marks_an_answer_as_stale_and_no_other_header_does() {
        let loud = [
            ("warning", "299 - \"stale: a.io answered 503\""),
            ("warning", "110 - \"Response is Stale\""),
            ("age", "86400"),
            ("via", "1.1 cache"),
            ("cache-control", "no-store"),
            ("retry-after", "60"),
            ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
            ("x-cache", "STALE"),
        ];
        for from_mirror in [true, false] {
            let note = Note::read(&headers(&loud), from_mirror);
            assert!(!note.is_stale, "{from_mirror}");
            let passed_on = r#"299 - "stale: a.io answered 503", 110 - "Response is Stale""#;
            assert_eq!(note.warning.as_deref(), Some(passed_on));
            let marked = Note::read(&headers(&[(STALE_HEADER, "1")]), from_mirror);
            assert_eq!(marked.is_stale, from_mirror, "a registry may send it too");
        }
    }

    #[test]
    fn a_warning_that_is_too_long_is_left_out() {
        let long = "x".repeat(WARNING_BYTES_MAX + 1);
        assert_eq!(Note::read(&headers(&[("warning", &long)]), false), Note::default());
        assert_eq!(Note::read(&HeaderMap::new(), true), Note::default());
    }

    #[test]
    fn one_stale_part_makes_the_whole_stale() {
        let stale = Note {
            warning: None,
            is_stale: true,
        };
        let warned = Note {
            warning: Some("a".to_owned()),
            is_stale: false,
        };
        for both in [stale.clone().and(warned.clone()), warned.and(stale)] {
            assert!(both.is_stale && both.warning.is_some());
        }
    }
}
