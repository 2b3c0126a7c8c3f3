//! Names of repositories, tags and images. Source: OCI distribution-spec, "Pulling manifests".
//!
//! The types hold only what the grammar allows, so that a name is safe in a URL, a path and a log line.

use std::{fmt, str::FromStr};

use crate::{Digest, ParseDigestError};

/// Docker Hub, as images name it.
pub const DOCKER_HUB: &str = "docker.io";
/// Its other names: what old clients write, and the host that answers.
const DOCKER_HUB_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];
/// The most bytes that a repository's name may have: the limit that many clients keep.
pub const REPOSITORY_BYTES_MAX: usize = 255;
/// The most bytes that a tag may have.
pub const TAG_BYTES_MAX: usize = 128;

/// A repository's name within its registry: `library/alpine`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryName(String);

impl RepositoryName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RepositoryName {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > REPOSITORY_BYTES_MAX {
            return Err(ParseReferenceError::RepositoryTooLong);
        }
        if !text.split('/').all(is_path_component) {
            return Err(ParseReferenceError::Repository);
        }
        Ok(Self(text.to_owned()))
    }
}

/// Whether `registry` is another name of [`DOCKER_HUB`].
pub fn is_docker_hub_alias(registry: &str) -> bool {
    DOCKER_HUB_ALIASES.contains(&registry)
}

/// The repository that is meant by `name` at `registry`: Docker Hub alone has its official images below `library/`, and lets
/// that be left out. Source: the reference grammar of distribution, "familiar names".
pub fn full_repository(registry: &str, name: &str) -> String {
    if registry == DOCKER_HUB && !name.contains('/') && !name.is_empty() {
        format!("library/{name}")
    } else {
        name.to_owned()
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    alphanumeric(*first)
        && alphanumeric(*last)
        && bytes.split(|&byte| alphanumeric(byte)).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&byte| byte == b'-')
        })
}

/// A tag or a digest: the name of one manifest of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
    Tag(String),
    Digest(Digest),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    /// Reads the last part of `/v2/<name>/manifests/<reference>`: a colon makes it a digest.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(':') {
            return Ok(Self::Digest(text.parse()?));
        }
        is_tag(text)
            .then(|| Self::Tag(text.to_owned()))
            .ok_or(ParseReferenceError::Tag)
    }
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= TAG_BYTES_MAX
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// An image as a person writes it: `localhost:65001/docker.io/library/alpine:3.20`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageReference {
    /// `host` or `host:port`, as written.
    pub registry: String,
    pub repository: RepositoryName,
    /// `latest` when neither a tag nor a digest is written; the digest when both are.
    pub reference: Reference,
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if matches!(self.reference, Reference::Tag(_)) {
            ':'
        } else {
            '@'
        };
        write!(f, "{}/{}{separator}{}", self.registry, self.repository, self.reference)
    }
}

impl FromStr for ImageReference {
    type Err = ParseReferenceError;

    /// The first component is the registry when it has a dot or a colon or is `localhost`; otherwise the image is Docker Hub's.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse()?)),
            None => (text, None),
        };
        if name.contains("://") {
            return Err(ParseReferenceError::Scheme);
        }
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
            _ => (DOCKER_HUB, name),
        };
        // What `docker pull` makes of it, and all that reads references as it does.
        let registry = if registry == DOCKER_HUB_ALIASES[0] {
            DOCKER_HUB
        } else {
            registry
        };
        if path.rsplit_once('/').is_some_and(|(folder, _)| folder.contains(':')) {
            return Err(ParseReferenceError::PortInPath);
        }
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        if !is_registry(registry) {
            return Err(ParseReferenceError::Registry);
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ParseReferenceError::Tag);
        }
        Ok(Self {
            registry: registry.to_owned(),
            repository: full_repository(registry, repository).parse()?,
            reference: match digest {
                Some(digest) => Reference::Digest(digest),
                None => Reference::Tag(tag.unwrap_or("latest").to_owned()),
            },
        })
    }
}

/// Whether `text` is a registry's `host` or `host:port`: a DNS name, an IPv4 address or a bracketed IPv6 address.
pub fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let host_fits = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.len() <= 253 && host.split('.').all(is_dns_label),
    };
    // Digits only: a number's parser also takes a sign.
    let is_port =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0);
    host_fits && port.is_none_or(is_port)
}

fn is_dns_label(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= 63
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Why a text is not the name of a repository, manifest or image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    #[error("the repository's name is not lower-case components separated by slashes")]
    Repository,
    #[error("the repository's name is longer than {REPOSITORY_BYTES_MAX} bytes")]
    RepositoryTooLong,
    #[error(
        "the tag is not 1 to {TAG_BYTES_MAX} of letters, digits, '_', '.' and '-', starting with a letter, digit or '_'"
    )]
    Tag,
    #[error("the registry is not a host or host:port")]
    Registry,
    #[error("an image is written without a scheme: leave out what ends with ://")]
    Scheme,
    #[error("a path has no place for the colon of a port: write the registry host:port there as host__port")]
    PortInPath,
    #[error(transparent)]
    Digest(#[from] ParseDigestError),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn repositories_follow_the_grammar() {
        for good in ["a", "library/alpine", "a.b/c_d/e__f/g-h/i---j", "0", &"a".repeat(255)] {
            assert_eq!(
                good.parse::<RepositoryName>().map(|name| name.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in [
            "", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", "-a", "a-", "a.", "a:b", "ü", "a b", "../a",
        ] {
            assert_eq!(
                bad.parse::<RepositoryName>(),
                Err(ParseReferenceError::Repository),
                "{bad}"
            );
        }
        assert_eq!(
            "a".repeat(256).parse::<RepositoryName>(),
            Err(ParseReferenceError::RepositoryTooLong)
        );
    }

    #[test]
    fn a_reference_is_a_tag_or_a_digest() {
        for tag in ["latest", "_", "1.0-rc_1", &"t".repeat(128)] {
            assert_eq!(tag.parse(), Ok(Reference::Tag(tag.to_owned())));
        }
        for bad in ["", "-a", ".a", "a/b", "a b", "ü", &"t".repeat(129)] {
            assert_eq!(bad.parse::<Reference>(), Err(ParseReferenceError::Tag), "{bad}");
        }
        let digest = Digest::of(b"x");
        assert_eq!(digest.to_string().parse(), Ok(Reference::Digest(digest)));
        assert_eq!(
            "sha256:baddigeststring".parse::<Reference>(),
            Err(ParseReferenceError::Digest(ParseDigestError::Malformed))
        );
    }

    #[test]
    fn images_are_read_as_people_write_them() {
        let digest = Digest::of(b"x");
        let cases = [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("a/b", "docker.io/a/b:latest".to_owned()),
            ("docker.io/nginx:1", "docker.io/library/nginx:1".to_owned()),
            ("docker.io/a/b:1", "docker.io/a/b:1".to_owned()),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("ghcr.io/nginx", "ghcr.io/nginx:latest".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("host:5000/x:1", "host:5000/x:1".to_owned()),
            ("[::1]:5000/x", "[::1]:5000/x:latest".to_owned()),
            (
                "localhost:65001/docker.io/library/alpine:3.20",
                "localhost:65001/docker.io/library/alpine:3.20".to_owned(),
            ),
            (&format!("ghcr.io/a/b:1@{digest}"), format!("ghcr.io/a/b@{digest}")),
        ];
        for (text, image) in cases {
            assert_eq!(
                text.parse::<ImageReference>().map(|image| image.to_string()),
                Ok(image),
                "{text}"
            );
        }
        for bad in [
            "",
            "nginx:",
            "A/b",
            "host:0/x",
            "host:+80/x",
            "host:99999/x",
            "-h.io/x",
            "x@sha256:1",
            "sha256:a@b",
        ] {
            assert!(bad.parse::<ImageReference>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_written_in_another_form_is_told_the_right_one() {
        for (text, error) in [
            ("docker://localhost:65001/a/b:1", ParseReferenceError::Scheme),
            ("https://ghcr.io/a/b", ParseReferenceError::Scheme),
            ("localhost:65001/localhost:5000/a:1", ParseReferenceError::PortInPath),
            (
                "localhost:65001/reg.test:5000/team/app",
                ParseReferenceError::PortInPath,
            ),
            ("localhost:65001/a/b:1/", ParseReferenceError::PortInPath),
            ("localhost:65001/a/b:-1", ParseReferenceError::Tag),
        ] {
            assert_eq!(text.parse::<ImageReference>(), Err(error), "{text}");
        }
    }

    #[test]
    fn only_docker_hub_has_official_images_whose_folder_may_be_left_out() {
        for (registry, name, full) in [
            ("docker.io", "alpine", "library/alpine"),
            ("docker.io", "team/app", "team/app"),
            ("docker.io", "", ""),
            ("ghcr.io", "alpine", "alpine"),
            ("localhost:5000", "alpine", "alpine"),
        ] {
            assert_eq!(full_repository(registry, name), full, "{registry}/{name}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,64}") {
            let _ = text.parse::<RepositoryName>();
            let _ = text.parse::<Reference>();
            let _ = text.parse::<ImageReference>();
        }

        #[test]
        fn an_image_written_out_reads_back_the_same(
            host in "[a-z]{1,8}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?", name in "[a-z0-9]{1,5}(/[a-z0-9]{1,5}){0,3}", tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}",
        ) {
            let text = format!("{host}/{name}:{tag}");
            prop_assert_eq!(text.parse::<ImageReference>().map(|image| image.to_string()), Ok(text));
        }
    }
}
