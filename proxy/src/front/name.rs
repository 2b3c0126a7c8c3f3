//! Names in a request: the upstream, the repository, the manifest or blob.
//!
//! The upstream is named by `?ns=` (containerd), by the first component of the path (podman, skopeo, crane), by the Host
//! header, or is the default. Only configured upstreams are ever meant: `ns` is no way to reach other hosts.
//!
//! Wherever a name occurs it may be an accelerated one, which stands for the registry that it was made from.

use std::collections::BTreeSet;

use axum::{
    body::Body,
    http::{Response, StatusCode},
};
use piecemeal_proto::{Digest, Reference, RepositoryName, accelerated};
use piecemeal_store::Repository;

use super::error::{coded, error_response};
use crate::ListQuery;
use piecemeal_upstream::{PullError, matches_pattern};

/// The upstreams that may be named.
#[derive(Clone, Debug, Default)]
pub struct UpstreamNames {
    names: BTreeSet<String>,
    default: Option<String>,
}

/// The endpoint that one request is for.
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
    List(Repository, ListQuery),
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
    pub(super) fn target(
        &self,
        path: &str,
        query: Option<&str>,
        host: Option<&str>,
    ) -> Result<Target, Box<Response<Body>>> {
        let namespace = query.and_then(namespace);
        let path = path.strip_prefix("/v2").unwrap_or(path).trim_start_matches('/');
        if path.is_empty() {
            return Ok(Target {
                endpoint: Endpoint::Ping,
                namespace,
            });
        }
        let malformed = |error: PullError| Box::new(error_response(&error, "NAME_UNKNOWN"));
        let repository = |name| self.repository(name, namespace.as_deref(), host).map_err(malformed);
        let endpoint = if let Some((name, reference)) = split(path, "/manifests/") {
            let at = repository(name)?;
            Endpoint::Manifest(
                at,
                reference
                    .parse()
                    .map_err(|error| malformed(PullError::Malformed(error)))?,
            )
        } else if let Some((name, digest)) = split(path, "/blobs/") {
            let at = repository(name)?;
            Endpoint::Blob(at, parse_digest(digest).map_err(malformed)?)
        } else if let Some(name) = path.strip_suffix("/tags/list") {
            let parameter = |name| query.and_then(|query| parameter(query, name));
            let n = parameter("n")
                .map(|n| n.parse().map_err(|_| malformed(PullError::Number(n))))
                .transpose()?;
            let last = parameter("last");
            Endpoint::List(repository(name)?, ListQuery::Tags { n, last })
        } else if let Some((name, subject)) = split(path, "/referrers/") {
            let at = repository(name)?;
            let subject = parse_digest(subject).map_err(malformed)?;
            let artifact_type = query
                .and_then(|query| parameter(query, "artifactType"))
                .filter(|wanted| !wanted.is_empty());
            Endpoint::List(at, ListQuery::Referrers { subject, artifact_type })
        } else {
            return Err(Box::new(coded(
                StatusCode::NOT_FOUND,
                "UNSUPPORTED",
                "there is no such resource: /v2/<name>/ has manifests/<reference>, blobs/<digest>, tags/list and referrers/<digest>",
            )));
        };
        Ok(Target { endpoint, namespace })
    }

    /// # Errors
    /// [`PullError::UnknownUpstream`].
    pub fn require(&self, upstream: &str) -> Result<(), PullError> {
        if self.knows(upstream) {
            Ok(())
        } else {
            Err(PullError::UnknownUpstream(upstream.to_owned()))
        }
    }

    fn knows(&self, upstream: &str) -> bool {
        let is_host = || piecemeal_proto::is_registry(upstream);
        self.names.contains(upstream)
            || self
                .names
                .iter()
                .any(|name| matches_pattern(name, upstream) && is_host())
    }

    /// The registry that a name stands for, which may be an accelerated one.
    pub(crate) fn resolve(&self, name: &str) -> Option<String> {
        let original = || accelerated::original(name).find(|original| self.knows(original));
        self.knows(name).then(|| name.to_owned()).or_else(original)
    }

    fn repository(&self, name: &str, namespace: Option<&str>, host: Option<&str>) -> Result<Repository, PullError> {
        let (upstream, name) = match namespace {
            Some(namespace) => {
                let resolved = self.resolve(namespace);
                (
                    resolved.ok_or_else(|| PullError::UnknownUpstream(namespace.to_owned()))?,
                    name,
                )
            }
            None => self.by_path(name, host)?,
        };
        let name: RepositoryName = name.parse()?;
        Ok(Repository {
            upstream,
            name: name.to_string(),
        })
    }

    /// The first component is a host when it looks like one; a port is written `host__port`, since a colon is none of a path's.
    fn by_path<'a>(&self, name: &'a str, host: Option<&str>) -> Result<(String, &'a str), PullError> {
        if let Some((first, rest)) = name.split_once('/') {
            let named = first.replace("__", ":");
            if let Some(upstream) = self.resolve(&named) {
                return Ok((upstream, rest));
            }
            if named.contains(['.', ':']) {
                return Err(PullError::UnknownUpstream(named));
            }
        }
        // Only an accelerated name shows that the client means a registry by the Host header, and not just this daemon.
        let by_host = host.and_then(|host| accelerated::original(host).find(|original| self.knows(original)));
        by_host
            .or_else(|| self.default.clone())
            .map(|upstream| (upstream, name))
            .ok_or_else(|| PullError::UnknownUpstream(name.split('/').next().unwrap_or_default().to_owned()))
    }
}

/// Splits at the last `separator`; what follows is one component.
fn split<'a>(path: &'a str, separator: &str) -> Option<(&'a str, &'a str)> {
    let (name, last) = path.rsplit_once(separator)?;
    (!last.contains('/')).then_some((name, last))
}

/// The value of `ns`, decoded.
fn namespace(query: &str) -> Option<String> {
    parameter(query, "ns")
}

fn parameter(query: &str, name: &str) -> Option<String> {
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

fn parse_digest(text: &str) -> Result<Digest, PullError> {
    text.parse::<Digest>()
        .map_err(|error| PullError::Malformed(error.into()))
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
                .target(path, query, None)
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
            ("/v2/app/tags/list", Some("n=x"), StatusCode::BAD_REQUEST),
            (
                "/v2/app/referrers/sha256:baddigeststring",
                None,
                StatusCode::BAD_REQUEST,
            ),
            ("/v2/app/uploads/x", None, StatusCode::NOT_FOUND),
            ("/v2/app", None, StatusCode::NOT_FOUND),
        ];
        for (path, query, status) in cases {
            let response = names().target(path, query, None).unwrap_err();
            assert_eq!(response.status(), status, "{path}");
        }
        let no_default = UpstreamNames::new(["origin.test".to_owned()], None);
        assert_eq!(
            no_default
                .target("/v2/app/manifests/v1", None, None)
                .unwrap_err()
                .status(),
            StatusCode::NOT_FOUND
        );
    }

    #[test]
    fn the_ping_names_nothing() {
        for path in ["/v2", "/v2/"] {
            assert_eq!(names().target(path, None, None).unwrap().endpoint, Endpoint::Ping);
        }
    }
}
