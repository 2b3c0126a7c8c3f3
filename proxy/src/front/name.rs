//! Names in a request: the upstream, the repository, the manifest or blob.
//!
//! The upstream is named by `?ns=` (containerd), by an accelerated name in the Host header, by the first component of the path
//! (podman, skopeo, crane), or is the default. Where `ns` or Host names it, the path may name it once more: so do mirrors that are
//! configured with a path (`override_path` of containerd, `mirrors` of buildkit). A repository that really is named so is asked for
//! with the name twice.
//!
//! The path is decoded exactly once, and the decoded text is judged: no escape means anything in it.

use axum::{
    body::Body,
    http::{Response, StatusCode},
};
use piecemeal_proto::{Digest, Reference, RepositoryName, is_registry};
use piecemeal_store::Repository;

use super::{
    error::{coded, error_response},
    path::{below_v2, decoded},
    upstream_names::UpstreamNames,
};
use crate::ListQuery;
use piecemeal_upstream::PullError;

/// The endpoint that one request is for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) endpoint: Endpoint,
    /// The upstream as the client named it by `ns`.
    pub(super) namespace: Option<String>,
    pub(super) named: Named,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// With the upstream that is named, if one is.
    Ping(Option<String>),
    Manifest(Repository, Reference),
    Blob(Repository, Digest),
    List(Repository, ListQuery),
}

/// The part of a request that names its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Named {
    Namespace,
    Host,
    Path,
    /// None does: the default is meant.
    Default,
}

impl Named {
    /// As a metric's label has it.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Namespace => "ns",
            Self::Host => "host",
            Self::Path => "path",
            Self::Default => "default",
        }
    }
}

/// A request's own words.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked<'a> {
    /// As it came, with its escapes.
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    pub(super) host: Option<&'a str>,
    /// Whether a node of the site asks: it names the upstream by `ns` alone, and the path is the repository's name.
    pub(super) by_node: bool,
}

/// An answer instead of a target.
pub(super) type Refusal = Box<Response<Body>>;

/// The upstream that a request names beside its path, if it does.
type Naming = Result<Option<(String, Named)>, PullError>;

impl UpstreamNames {
    /// Reads a request's path and query.
    pub(super) fn target(&self, asked: Asked<'_>) -> Result<Target, Refusal> {
        let namespace = asked.query.and_then(|query| parameter(query, "ns"));
        let decoded = decoded(asked.path).ok_or_else(|| {
            bad_request(
                "NAME_INVALID",
                "the path has an escape that is not % and two hexadecimal digits of UTF-8",
            )
        })?;
        let Some(path) = below_v2(&decoded) else {
            return Err(no_resource(&decoded));
        };
        let naming = self.naming(namespace.as_deref(), asked);
        let (endpoint, named) = match path {
            "" => {
                let upstream = naming.ok().flatten().map(|(upstream, _)| upstream);
                (Endpoint::Ping(upstream), Named::Default)
            }
            _ => self.resource(path, asked, naming)?,
        };
        Ok(Target {
            endpoint,
            namespace,
            named,
        })
    }

    /// The upstream that is named beside the path, if one is.
    fn naming(&self, namespace: Option<&str>, asked: Asked<'_>) -> Naming {
        let Some(namespace) = namespace else {
            let by_host = asked.host.and_then(|host| self.by_host(host));
            return Ok(by_host.map(|upstream| (upstream, Named::Host)));
        };
        match self.resolve(namespace) {
            Some(upstream) => Ok(Some((upstream, Named::Namespace))),
            None => Err(PullError::UnknownUpstream(namespace.to_owned())),
        }
    }

    fn resource(&self, path: &str, asked: Asked<'_>, naming: Naming) -> Result<(Endpoint, Named), Refusal> {
        let malformed = |error: PullError| Box::new(error_response(&error, "NAME_UNKNOWN"));
        let repository = |name| {
            let Some((upstream, named)) = naming.clone()? else {
                return self.by_path(name);
            };
            let is_read = asked.by_node;
            let name = if is_read {
                name
            } else {
                self.without_upstream(name, &upstream)
            };
            Ok((self.repository(&upstream, name)?, named))
        };
        let repository = |name| repository(name).map_err(malformed);
        let query = asked.query;
        if let Some((name, reference)) = split(path, "/manifests/") {
            let (at, named) = repository(name)?;
            let reference = reference
                .parse()
                .map_err(|error| malformed(PullError::Malformed(error)))?;
            Ok((Endpoint::Manifest(at, reference), named))
        } else if let Some((name, digest)) = split(path, "/blobs/") {
            let (at, named) = repository(name)?;
            Ok((Endpoint::Blob(at, parse_digest(digest).map_err(malformed)?), named))
        } else if let Some(name) = path.strip_suffix("/tags/list") {
            let parameter = |name| query.and_then(|query| parameter(query, name));
            let n = parameter("n")
                .map(|n| n.parse().map_err(|_| malformed(PullError::Number(n))))
                .transpose()?;
            let last = parameter("last");
            let (at, named) = repository(name)?;
            Ok((Endpoint::List(at, ListQuery::Tags { n, last }), named))
        } else if let Some((name, subject)) = split(path, "/referrers/") {
            let (at, named) = repository(name)?;
            let subject = parse_digest(subject).map_err(malformed)?;
            let artifact_type = query
                .and_then(|query| parameter(query, "artifactType"))
                .filter(|wanted| !wanted.is_empty());
            Ok((
                Endpoint::List(at, ListQuery::Referrers { subject, artifact_type }),
                named,
            ))
        } else {
            Err(not_found(
                "there is no such resource: /v2/<name>/ has manifests/<reference>, blobs/<digest>, tags/list and referrers/<digest>",
            ))
        }
    }

    /// A name without its first component, where that names the upstream once more.
    fn without_upstream<'a>(&self, name: &'a str, upstream: &str) -> &'a str {
        match name.split_once('/') {
            Some((first, rest)) if self.resolve(&with_port(first)).as_deref() == Some(upstream) => rest,
            _ => name,
        }
    }

    /// The first component is a host when it looks like one.
    fn by_path(&self, name: &str) -> Result<(Repository, Named), PullError> {
        if let Some((first, rest)) = name.split_once('/') {
            let said = with_port(first);
            if let Some(upstream) = self.resolve(&said) {
                return Ok((self.repository(&upstream, rest)?, Named::Path));
            }
            if said.contains(['.', ':']) && is_registry(&said) {
                return Err(PullError::UnknownUpstream(said));
            }
        } else if self.resolve(&with_port(name)).is_some() {
            return Err(PullError::Unknown(format!(
                "the path names the registry {name} and no repository of it: write {name}/<repository>"
            )));
        }
        name.parse::<RepositoryName>()?;
        let Some(upstream) = self.default_upstream() else {
            return Err(PullError::Unknown(format!(
                "the path names no registry, and there is no default here: write {}, or set default_upstream",
                self.example(name)
            )));
        };
        Ok((self.repository(upstream, name)?, Named::Default))
    }
}

fn no_resource(path: &str) -> Refusal {
    let Some((before, _)) = path.split_once("/v2/").filter(|(before, _)| before.len() > 1) else {
        return not_found("there is no such resource: a registry answers below /v2/");
    };
    let before = before.trim_matches('/');
    not_found(&format!(
        "there is no such resource: a mirror's path comes after /v2/, as in /v2/{before}/ (override_path in containerd's hosts.toml)"
    ))
}

fn not_found(message: &str) -> Refusal {
    Box::new(coded(StatusCode::NOT_FOUND, "UNSUPPORTED", message))
}

pub(super) fn bad_request(code: &str, message: &str) -> Refusal {
    Box::new(coded(StatusCode::BAD_REQUEST, code, message))
}

/// A port is written `host__port` in a path, since a colon is none of a path's.
fn with_port(component: &str) -> String {
    component.replace("__", ":")
}

/// Splits at the last `separator`; what follows is one component.
fn split<'a>(path: &'a str, separator: &str) -> Option<(&'a str, &'a str)> {
    let (name, last) = path.rsplit_once(separator)?;
    (!last.contains('/')).then_some((name, last))
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
    use axum::http::header;
    use piecemeal_upstream::UpstreamConfig;

    use super::*;

    fn upstreams() -> Vec<UpstreamConfig> {
        let urls = [
            ("docker.io", "https://registry-1.docker.io"),
            ("origin.test", "https://origin.test"),
            ("localhost:5000", "http://localhost:5000"),
        ];
        urls.map(|(name, url)| UpstreamConfig::new(name.to_owned(), vec![url.parse().unwrap()]))
            .into()
    }

    fn names() -> UpstreamNames {
        UpstreamNames::new(&upstreams(), Some("docker.io".to_owned()))
    }

    fn at(upstream: &str, name: &str) -> Repository {
        Repository {
            upstream: upstream.to_owned(),
            name: name.to_owned(),
        }
    }

    fn asked<'a>(path: &'a str, query: Option<&'a str>) -> Asked<'a> {
        Asked {
            path,
            query,
            ..Asked::default()
        }
    }

    /// The repository that `v1` is asked of, and by what it was named.
    fn repository(names: &UpstreamNames, asked: Asked<'_>) -> (String, Named) {
        let target = names.target(asked).map_err(|response| response.status()).unwrap();
        let Endpoint::Manifest(at, reference) = target.endpoint else {
            panic!("{asked:?}");
        };
        assert_eq!(reference, Reference::Tag("v1".to_owned()), "{asked:?}");
        (format!("{}/{}", at.upstream, at.name), target.named)
    }

    fn status(names: &UpstreamNames, asked: Asked<'_>) -> StatusCode {
        names.target(asked).unwrap_err().status()
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
            ("/v2/team/app/manifests/v1", None, at("docker.io", "team/app")),
            ("/v2/a/manifests/b/manifests/v1", None, at("docker.io", "a/manifests/b")),
        ];
        for (path, query, expected) in cases {
            let target = names()
                .target(asked(path, query))
                .map_err(|response| response.status())
                .unwrap();
            assert_eq!(
                target.endpoint,
                Endpoint::Manifest(expected, Reference::Tag("v1".to_owned())),
                "{path}"
            );
        }
    }

    #[test]
    fn an_official_image_of_docker_hub_is_found_without_its_folder_however_the_registry_is_named() {
        let host = Some("docker.io.piecemeal.internal:65001");
        for (path, query, host, named) in [
            ("/v2/alpine/manifests/v1", Some("ns=docker.io"), None, Named::Namespace),
            (
                "/v2/alpine/manifests/v1",
                Some("ns=index.docker.io"),
                None,
                Named::Namespace,
            ),
            ("/v2/docker.io/alpine/manifests/v1", None, None, Named::Path),
            ("/v2/registry-1.docker.io/alpine/manifests/v1", None, None, Named::Path),
            ("/v2/alpine/manifests/v1", None, None, Named::Default),
            ("/v2/alpine/manifests/v1", None, host, Named::Host),
            ("/v2/library/alpine/manifests/v1", None, host, Named::Host),
        ] {
            let asked = Asked {
                host,
                ..asked(path, query)
            };
            let expected = ("docker.io/library/alpine".to_owned(), named);
            assert_eq!(repository(&names(), asked), expected, "{asked:?}");
        }
        let elsewhere = repository(&names(), asked("/v2/origin.test/alpine/manifests/v1", None));
        assert_eq!(elsewhere.0, "origin.test/alpine", "it is docker.io's own rule");
    }

    #[test]
    fn a_path_that_repeats_the_upstream_of_ns_or_host_means_what_follows_it() {
        let host = Some("origin.test.piecemeal.internal:65001");
        for (path, query, host, expected) in [
            (
                "/v2/docker.io/library/a/manifests/v1",
                Some("ns=docker.io"),
                None,
                "docker.io/library/a",
            ),
            (
                "/v2/docker.io/a/manifests/v1",
                Some("ns=docker.io"),
                None,
                "docker.io/library/a",
            ),
            (
                "/v2/Docker.IO/a/b/manifests/v1",
                Some("ns=docker.io:443"),
                None,
                "docker.io/a/b",
            ),
            (
                "/v2/docker.io/a/b/manifests/v1",
                Some("ns=docker.io.piecemeal.internal:65001"),
                None,
                "docker.io/a/b",
            ),
            (
                "/v2/docker.io.piecemeal.internal__65001/a/b/manifests/v1",
                Some("ns=docker.io"),
                None,
                "docker.io/a/b",
            ),
            (
                "/v2/localhost__5000/a/manifests/v1",
                Some("ns=localhost:5000"),
                None,
                "localhost:5000/a",
            ),
            ("/v2/origin.test/a/manifests/v1", None, host, "origin.test/a"),
            // Named twice: that is the repository's name.
            (
                "/v2/docker.io/docker.io/a/manifests/v1",
                Some("ns=docker.io"),
                None,
                "docker.io/docker.io/a",
            ),
            // Another registry's name, or none that is known.
            (
                "/v2/origin.test/a/manifests/v1",
                Some("ns=docker.io"),
                None,
                "docker.io/origin.test/a",
            ),
            (
                "/v2/my.team/a/manifests/v1",
                Some("ns=origin.test"),
                None,
                "origin.test/my.team/a",
            ),
            ("/v2/my.team/a/manifests/v1", None, host, "origin.test/my.team/a"),
        ] {
            let asked = Asked {
                host,
                ..asked(path, query)
            };
            assert_eq!(repository(&names(), asked).0, expected, "{asked:?}");
        }
        let by_node = Asked {
            by_node: true,
            ..asked("/v2/docker.io/a/manifests/v1", Some("ns=docker.io"))
        };
        assert_eq!(
            repository(&names(), by_node).0,
            "docker.io/docker.io/a",
            "a node has read the name already"
        );
    }

    #[test]
    fn escapes_are_decoded_once_and_what_they_decode_to_is_judged() {
        let digest = Digest::of(b"x");
        let escaped = digest.to_string().replace(':', "%3A");
        for path in [
            format!("/v2/team%2Fapp/blobs/{escaped}"),
            format!("/v2/team%2fapp%2Fblobs/{digest}"),
            format!("/%76%32/team/%61pp/blobs/{}", digest.to_string().replace(':', "%3a")),
        ] {
            let target = names().target(asked(&path, Some("ns=origin.test"))).unwrap();
            assert_eq!(
                target.endpoint,
                Endpoint::Blob(at("origin.test", "team/app"), digest),
                "{path}"
            );
        }
        assert_eq!(
            repository(&names(), asked("/v2/origin%2Etest/app/manifests/v%31", None)).0,
            "origin.test/app"
        );
        let bad = [
            "/v2/team/%2E%2E/app/manifests/v1",
            "/v2/..%2Fapp/manifests/v1",
            "/v2/../app/manifests/v1",
            "/v2/team%2F%2Fapp/manifests/v1",
            "/v2/team//app/manifests/v1",
            "/v2//team/app/manifests/v1",
            "/v2/%2Fteam/app/manifests/v1",
            "/v2/team/app/manifests/v1%00",
            "/v2/team/app/manifests/v1%0A",
            "/v2/te%00am/app/manifests/v1",
            "/v2/team%252Fapp/manifests/v1",
            "/v2/team/app/manifests/v%2531",
            "/v2/team%5Capp/manifests/v1",
            "/v2/team/app/manifests/v%3",
            "/v2/team/app/manifests/v%zz",
            "/v2/team/app/manifests/v%+1",
            "/v2/team/app/manifests/v1%",
            "/v2/team/app/manifests/%ff",
            "/v2/team/app/manifests/%C3%BC",
        ];
        for path in bad {
            assert_eq!(status(&names(), asked(path, None)), StatusCode::BAD_REQUEST, "{path}");
        }
        let nowhere = [
            "/v2/team/app/manifests/..%2Fblobs",
            "/v2/team/app/manifests/a%2Fb",
            "/v2%2F%2F",
        ];
        for path in nowhere {
            assert_eq!(status(&names(), asked(path, None)), StatusCode::NOT_FOUND, "{path}");
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
            ("/v2/docker.io/manifests/v1", None, StatusCode::NOT_FOUND),
            ("//v2/app/manifests/v1", None, StatusCode::NOT_FOUND),
            ("/docker.io/v2/app/manifests/v1", None, StatusCode::NOT_FOUND),
            ("/v2app/manifests/v1", None, StatusCode::NOT_FOUND),
            ("/", None, StatusCode::NOT_FOUND),
            ("", None, StatusCode::NOT_FOUND),
        ];
        for (path, query, expected) in cases {
            let response = names().target(asked(path, query)).unwrap_err();
            assert_eq!(response.status(), expected, "{path}");
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json", "{path}");
        }
        let no_default = UpstreamNames::new(&upstreams(), None);
        assert_eq!(
            status(&no_default, asked("/v2/app/manifests/v1", None)),
            StatusCode::NOT_FOUND
        );
    }

    #[test]
    fn an_error_names_the_form_to_write() {
        let without_hub = UpstreamNames::new(&upstreams()[1..], None);
        let hub = UpstreamNames::new(&upstreams(), None);
        for (names, path, form) in [
            (
                &hub,
                "/v2/alpine/manifests/v1",
                "write docker.io/library/alpine, or set default_upstream",
            ),
            (&without_hub, "/v2/alpine/manifests/v1", "write <registry>/alpine, or"),
            (&hub, "/v2/origin.test/manifests/v1", "write origin.test/<repository>"),
            (
                &hub,
                "/docker.io/v2/a/b/manifests/v1",
                "as in /v2/docker.io/ (override_path",
            ),
            (&hub, "/elsewhere", "a registry answers below /v2/"),
        ] {
            let response = names.target(asked(path, None)).unwrap_err();
            let body = futures_util::FutureExt::now_or_never(axum::body::to_bytes(response.into_body(), 4096));
            let text = String::from_utf8(body.unwrap().unwrap().into()).unwrap();
            assert!(text.contains(form), "{path}: {text}");
        }
    }

    #[test]
    fn the_ping_names_what_ns_or_host_names_and_nothing_else() {
        let host = Some("origin.test.piecemeal.internal:65001");
        for (path, query, host, upstream) in [
            ("/v2", None, None, None),
            ("/v2/", None, Some("127.0.0.1:65001"), None),
            ("/v2/", None, host, Some("origin.test")),
            ("/v2/", Some("ns=docker.io"), host, Some("docker.io")),
            ("/v2/", Some("ns=evil.test"), None, None),
            ("/v2/", None, Some("evil.test.piecemeal.internal"), None),
        ] {
            let asked = Asked {
                host,
                ..asked(path, query)
            };
            let expected = Endpoint::Ping(upstream.map(str::to_owned));
            assert_eq!(names().target(asked).unwrap().endpoint, expected, "{asked:?}");
        }
    }
}
