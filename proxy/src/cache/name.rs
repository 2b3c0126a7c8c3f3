//! Names of images and blobs, as an administrator writes them.
//!
//! Invariant: [`written`] gives a name that [`CacheName::read`] reads as the same image.

use piecemeal_proto::{Digest, ImageReference, Reference};
use piecemeal_store::Repository;

use super::CacheError;
use crate::UpstreamNames;

/// The thing that a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CacheName {
    Image(Repository, Reference),
    Blob(Digest),
}

impl CacheName {
    /// Reads an image as a container runtime does (`alpine` is `docker.io/library/alpine:latest`), or a bare digest. The name of
    /// a peer or mirror before that of the registry, as in `localhost:65001/docker.io/library/alpine`, is left out.
    pub(super) fn read(text: &str, names: &UpstreamNames) -> Result<Self, CacheError> {
        // No registry has an image `sha256`: that is a mistyped digest.
        if text.starts_with("sha256:") || text.starts_with("sha512:") {
            let digest = text.parse::<Digest>();
            return digest
                .map(Self::Blob)
                .map_err(|error| CacheError::Malformed(format!("{text:?}: {error}")));
        }
        let image: ImageReference = text
            .parse()
            .map_err(|error| CacheError::Malformed(format!("{text:?} names no image: {error}")))?;
        let at = names
            .repository(&image.registry, image.repository.as_str())
            .ok()
            .or_else(|| behind_endpoint(&image, names));
        let as_written = || Repository {
            upstream: image.registry.clone(),
            name: image.repository.to_string(),
        };
        Ok(Self::Image(at.unwrap_or_else(as_written), image.reference))
    }
}

fn behind_endpoint(image: &ImageReference, names: &UpstreamNames) -> Option<Repository> {
    let (host, repository) = image.repository.as_str().split_once('/')?;
    names.repository(&host.replace("__", ":"), repository).ok()
}

/// As [`CacheName::read`] reads it.
pub(super) fn written(at: &Repository, reference: &Reference) -> String {
    let separator = match reference {
        Reference::Tag(_) => ':',
        Reference::Digest(_) => '@',
    };
    format!("{}/{}{separator}{reference}", at.upstream, at.name)
}

#[cfg(test)]
mod tests {
    use piecemeal_upstream::UpstreamConfig;

    use super::*;

    fn read(text: &str) -> Result<String, CacheError> {
        let config = |name: &str| {
            let url = format!("https://{name}").parse().unwrap();
            UpstreamConfig::new(name.to_owned(), vec![url])
        };
        let names = UpstreamNames::new(&["docker.io", "ghcr.io", "origin.test"].map(config), None);
        Ok(match CacheName::read(text, &names)? {
            CacheName::Image(at, reference) => written(&at, &reference),
            CacheName::Blob(digest) => digest.to_string(),
        })
    }

    #[test]
    fn names_are_read_as_runtimes_and_our_own_lists_write_them() {
        let digest = Digest::of(b"x").to_string();
        let by_digest = format!("origin.test/team/app@{digest}");
        for (text, name) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("docker.io/library/alpine:3", "docker.io/library/alpine:3"),
            ("localhost:65001/ghcr.io/a/b:1", "ghcr.io/a/b:1"),
            ("127.0.0.1:65001/origin.test/team/app", "origin.test/team/app:latest"),
            ("elsewhere.test/a/b:1", "elsewhere.test/a/b:1"),
            ("docker.io/alpine:3", "docker.io/library/alpine:3"),
            ("localhost:65001/docker.io/alpine:3", "docker.io/library/alpine:3"),
            (
                "docker.io.piecemeal.internal:65001/alpine:3",
                "docker.io/library/alpine:3",
            ),
            ("Ghcr.io:443/a/b:1", "ghcr.io/a/b:1"),
            ("docker.io.piecemeal.internal:65001/a/b:1", "docker.io/a/b:1"),
            (&by_digest, &by_digest),
            (&digest, &digest),
        ] {
            assert_eq!(read(text).as_deref(), Ok(name), "{text}");
        }
        for bad in ["", "UPPER/case", "sha256:1", "a b", "x@sha256:1"] {
            assert!(matches!(read(bad), Err(CacheError::Malformed(_))), "{bad}");
        }
    }
}
