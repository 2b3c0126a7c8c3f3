//! What a request names: the upstream, the repository, the manifest or blob.
//!
//! The upstream is named by `?ns=` (containerd), by the first component of the path (podman, skopeo, crane), or is the
//! default. Only configured upstreams are ever meant: `ns` is no way to reach other hosts.

use std::collections::BTreeSet;

use axum::{
    body::Body,
    http::{Response, StatusCode},
};
use piecemeal_proto::{Digest, Reference, RepositoryName};
use piecemeal_store::Repository;

use super::error::{coded, error_response};
use crate::PullError;

/// The upstreams that may be named.
#[derive(Clone, Debug, Default)]
pub struct UpstreamNames {
    names: BTreeSet<String>,
    default: Option<String>,
}

/// What one request is for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) endpoint: Endpoint,
    /// The upstream as the client named it by `ns`.
    pub(super) namespace: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Ping,
    Manifest(Repository, Reference),
    Blob(Repository, Digest),
}

impl UpstreamNames {
    /// `default`: meant by a request that names none.
    pub fn new(names: impl IntoIterator<Item = String>, default: Option<String>) -> Self {
        Self {
            names: names.into_iter().collect(),
            default,
        }
    }

    /// Reads a request's path and query.
    pub(super) fn target(&self, path: &str, query: Option<&str>) -> Result<Target, Box<Response<Body>>> {
        let namespace = query.and_then(namespace);
        let path = path.strip_prefix("/v2").unwrap_or(path).trim_start_matches('/');
        if path.is_empty() {
            return Ok(Target {
                endpoint: Endpoint::Ping,
                namespace,
            });
        }
        let malformed = |error: PullError| Box::new(error_response(&error, "NAME_UNKNOWN"));
        let endpoint = if let Some((name, reference)) = split(path, "/manifests/") {
            let at = self.repository(name, namespace.as_deref()).map_err(malformed)?;
            Endpoint::Manifest(
                at,
                reference
                    .parse()
                    .map_err(|error| malformed(PullError::Malformed(error)))?,
            )
        } else if let Some((name, digest)) = split(path, "/blobs/") {
            let at = self.repository(name, namespace.as_deref()).map_err(malformed)?;
            let digest = digest
                .parse::<Digest>()
                .map_err(|error| malformed(PullError::Malformed(error.into())))?;
            Endpoint::Blob(at, digest)
        } else {
            return Err(Box::new(coded(
                StatusCode::NOT_FOUND,
                "UNSUPPORTED",
                "only manifests and blobs can be pulled here: /v2/<name>/manifests/<reference> and /v2/<name>/blobs/<digest>",
            )));
        };
        Ok(Target { endpoint, namespace })
    }

    /// # Errors
    /// [`PullError::UnknownUpstream`].
    pub(crate) fn require(&self, upstream: &str) -> Result<(), PullError> {
        if self.names.contains(upstream) {
            Ok(())
        } else {
            Err(PullError::UnknownUpstream(upstream.to_owned()))
        }
    }

    fn repository(&self, name: &str, namespace: Option<&str>) -> Result<Repository, PullError> {
        let (upstream, name) = match namespace {
            Some(namespace) => (namespace.to_owned(), name),
            None => self.by_path(name)?,
        };
        self.require(&upstream)?;
        let name: RepositoryName = name.parse()?;
        Ok(Repository {
            upstream,
            name: name.to_string(),
        })
    }

    /// The first component is a host when it looks like one; a port is written `host__port`, since a colon is none of a path's.
    fn by_path<'a>(&self, name: &'a str) -> Result<(String, &'a str), PullError> {
        if let Some((first, rest)) = name.split_once('/') {
            let host = first.replace("__", ":");
            if self.names.contains(&host) || host.contains(['.', ':']) {
                return Ok((host, rest));
            }
        }
        match &self.default {
            Some(default) => Ok((default.clone(), name)),
            None => Err(PullError::UnknownUpstream(
                name.split('/').next().unwrap_or_default().to_owned(),
            )),
        }
    }
}

/// Splits at the last `separator`; what follows is one component.
fn split<'a>(path: &'a str, separator: &str) -> Option<(&'a str, &'a str)> {
    let (name, last) = path.rsplit_once(separator)?;
    (!last.contains('/')).then_some((name, last))
}

/// The value of `ns`, decoded.
fn namespace(query: &str) -> Option<String> {
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == "ns")
        .map(|(_, value)| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> UpstreamNames {
        UpstreamNames::new(
            ["docker.io", "origin.test", "localhost:5000"].map(str::to_owned),
            Some("docker.io".to_owned()),
        )
    }

    fn at(upstream: &str, name: &str) -> Repository {
        Repository {
            upstream: upstream.to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn the_upstream_is_named_by_ns_by_path_or_is_the_default() {
        let cases = [
            (
                "/v2/library/app/manifests/v1",
                Some("ns=origin.test"),
                at("origin.test", "library/app"),
            ),
            (
                "/v2/library/app/manifests/v1",
                Some("x=1&ns=localhost%3A5000"),
                at("localhost:5000", "library/app"),
            ),
            (
                "/v2/origin.test/library/app/manifests/v1",
                None,
                at("origin.test", "library/app"),
            ),
            (
                "/v2/localhost__5000/app/manifests/v1",
                None,
                at("localhost:5000", "app"),
            ),
            ("/v2/localhost:5000/app/manifests/v1", None, at("localhost:5000", "app")),
            ("/v2/library/app/manifests/v1", None, at("docker.io", "library/app")),
            ("/v2/app/manifests/v1", None, at("docker.io", "app")),
            ("/v2/a/manifests/b/manifests/v1", None, at("docker.io", "a/manifests/b")),
        ];
        for (path, query, repository) in cases {
            let target = names()
                .target(path, query)
                .map_err(|response| response.status())
                .unwrap();
            assert_eq!(
                target.endpoint,
                Endpoint::Manifest(repository, Reference::Tag("v1".to_owned())),
                "{path}"
            );
        }
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_its_status() {
        let cases = [
            ("/v2/app/manifests/v1", Some("ns=evil.test"), StatusCode::NOT_FOUND),
            ("/v2/evil.test/app/manifests/v1", None, StatusCode::NOT_FOUND),
            ("/v2/app/blobs/sha256:baddigeststring", None, StatusCode::BAD_REQUEST),
            ("/v2/APP/manifests/v1", None, StatusCode::BAD_REQUEST),
            ("/v2/app/manifests/-bad", None, StatusCode::BAD_REQUEST),
            ("/v2/app/manifests/", None, StatusCode::BAD_REQUEST),
            ("/v2/app/tags/list", None, StatusCode::NOT_FOUND),
            ("/v2/app", None, StatusCode::NOT_FOUND),
        ];
        for (path, query, status) in cases {
            let response = names().target(path, query).unwrap_err();
            assert_eq!(response.status(), status, "{path}");
        }
        let no_default = UpstreamNames::new(["origin.test".to_owned()], None);
        assert_eq!(
            no_default.target("/v2/app/manifests/v1", None).unwrap_err().status(),
            StatusCode::NOT_FOUND
        );
    }

    #[test]
    fn the_ping_names_nothing() {
        for path in ["/v2", "/v2/"] {
            assert_eq!(names().target(path, None).unwrap().endpoint, Endpoint::Ping);
        }
    }
}
