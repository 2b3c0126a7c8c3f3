//! Names of the configured upstreams, as clients write them.
//!
//! Only configured upstreams are ever meant: no name is a way to reach other hosts. Names are compared without case, without a dot
//! at their end, and without the port that is the scheme's own where the upstream has a URL of that scheme.
//!
//! Wherever a name occurs it may be an accelerated one, which stands for the registry that it was made from.

use piecemeal_proto::{DOCKER_HUB, RepositoryName, accelerated, full_repository, is_docker_hub_alias, is_registry};
use piecemeal_store::Repository;
use piecemeal_upstream::{PullError, UpstreamConfig, matches_pattern};

/// The upstreams that may be named.
#[derive(Clone, Debug, Default)]
pub struct UpstreamNames {
    known: Vec<Known>,
    default: Option<String>,
}

/// A configured upstream.
#[derive(Clone, Debug)]
struct Known {
    /// Its name as configured, which may be a pattern.
    name: String,
    /// The same in the form that names are compared in.
    normal: String,
    /// The ports that its URLs' schemes imply.
    own_ports: Vec<&'static str>,
}

impl UpstreamNames {
    /// `default`: meant by a request that names none.
    pub fn new(upstreams: &[UpstreamConfig], default: Option<String>) -> Self {
        Self {
            known: upstreams.iter().map(Known::new).collect(),
            default,
        }
    }

    /// The upstream of requests that name none.
    pub(super) fn default_upstream(&self) -> Option<&str> {
        self.default.as_deref()
    }

    /// The configured upstream that a name stands for.
    pub(crate) fn resolve(&self, name: &str) -> Option<String> {
        let said = normal(name);
        let hub = || self.known.iter().find(|known| known.normal == DOCKER_HUB);
        let is_alias = |hub: &&Known| is_docker_hub_alias(hub.bare(&said));
        let by_alias = || hub().filter(is_alias).map(|hub| hub.name.clone());
        self.known(&said).or_else(|| self.accelerated(&said)).or_else(by_alias)
    }

    /// The upstream that a Host header names. Only an accelerated name shows that the client means a registry by it, and not just this
    /// daemon.
    pub(super) fn by_host(&self, host: &str) -> Option<String> {
        self.accelerated(&normal(host))
    }

    /// The repository `name` of the upstream that `upstream` stands for.
    ///
    /// # Errors
    /// [`PullError::UnknownUpstream`], [`PullError::Malformed`].
    pub fn repository(&self, upstream: &str, name: &str) -> Result<Repository, PullError> {
        let resolved = self.resolve(upstream);
        let upstream = resolved.ok_or_else(|| PullError::UnknownUpstream(upstream.to_owned()))?;
        let name: RepositoryName = full_repository(&upstream, name).parse()?;
        Ok(Repository {
            upstream,
            name: name.to_string(),
        })
    }

    /// An image behind this daemon's address, as an example of what may be written there.
    pub(super) fn example(&self, name: &str) -> String {
        match self.known(DOCKER_HUB) {
            Some(hub) => format!("{hub}/{}", full_repository(&hub, name)),
            None => format!("<registry>/{name}"),
        }
    }

    fn accelerated(&self, said: &str) -> Option<String> {
        accelerated::original(said).find_map(|original| self.known(&original))
    }

    /// `said`: in normal form.
    fn known(&self, said: &str) -> Option<String> {
        let exact = self.known.iter().find(|known| known.normal == said);
        let same = || {
            self.known
                .iter()
                .find(|known| known.bare(&known.normal) == known.bare(said))
        };
        let named = exact.or_else(same).map(|known| known.name.clone());
        named.or_else(|| self.known.iter().find_map(|known| known.stands_for(said)))
    }
}

impl Known {
    fn new(upstream: &UpstreamConfig) -> Self {
        let ports = [("https", "443"), ("http", "80")];
        let has = |scheme: &str| upstream.urls.iter().any(|url| url.scheme() == scheme);
        Self {
            name: upstream.name.clone(),
            normal: normal(&upstream.name),
            own_ports: ports
                .into_iter()
                .filter_map(|(scheme, port)| has(scheme).then_some(port))
                .collect(),
        }
    }

    /// `said` without a port that a URL of this upstream implies.
    fn bare<'a>(&self, said: &'a str) -> &'a str {
        match said.rsplit_once(':') {
            Some((host, port)) if self.own_ports.contains(&port) => host,
            _ => said,
        }
    }

    /// The registry that this pattern stands for.
    fn stands_for(&self, said: &str) -> Option<String> {
        let names = [self.bare(said), said];
        let found = names
            .into_iter()
            .find(|name| matches_pattern(&self.name, name) && is_registry(name));
        found.map(str::to_owned)
    }
}

/// In lower case, and without a dot at the end of the host.
fn normal(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    match name.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{}:{port}", without_last_dot(host))
        }
        _ => without_last_dot(&name).to_owned(),
    }
}

fn without_last_dot(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(upstreams: &[(&str, &str)]) -> UpstreamNames {
        let config = |(name, url): &(&str, &str)| UpstreamConfig::new((*name).to_owned(), vec![url.parse().unwrap()]);
        let upstreams: Vec<UpstreamConfig> = upstreams.iter().map(config).collect();
        UpstreamNames::new(&upstreams, None)
    }

    #[test]
    fn a_host_has_one_name_in_whatever_case_with_a_dot_at_its_end_or_the_schemes_own_port() {
        let names = names(&[
            ("reg.test", "https://reg.test"),
            ("plain.test", "http://plain.test"),
            ("ported.test:443", "https://ported.test"),
            ("odd.test:5000", "https://odd.test:5000"),
            ("[::1]:5000", "http://[::1]:5000"),
            ("*.wild.test", "https://*.wild.test"),
            ("*.wild.test:5000", "https://*.wild.test:5000"),
        ]);
        for (said, name) in [
            ("reg.test", Some("reg.test")),
            ("REG.Test", Some("reg.test")),
            ("reg.test.", Some("reg.test")),
            ("reg.test:443", Some("reg.test")),
            ("REG.TEST.:443", Some("reg.test")),
            ("reg.test:80", None),
            ("reg.test:5000", None),
            ("reg.test..", None),
            ("plain.test:80", Some("plain.test")),
            ("plain.test:443", None),
            ("ported.test", Some("ported.test:443")),
            ("ported.test:443", Some("ported.test:443")),
            ("Odd.test:5000", Some("odd.test:5000")),
            ("odd.test", None),
            ("[::1]:5000", Some("[::1]:5000")),
            ("A.Wild.test:443", Some("a.wild.test")),
            ("a.wild.test.", Some("a.wild.test")),
            ("a.wild.test:5000", Some("a.wild.test:5000")),
            ("wild.test", None),
            ("a/b.wild.test", None),
            ("", None),
            (".", None),
        ] {
            assert_eq!(names.resolve(said).as_deref(), name, "{said:?}");
        }
    }

    #[test]
    fn two_upstreams_whose_names_differ_in_the_port_alone_stay_two() {
        let names = names(&[("a.test:443", "https://one.test"), ("a.test", "https://two.test")]);
        for name in ["a.test", "a.test:443"] {
            assert_eq!(names.resolve(name).as_deref(), Some(name));
        }
    }

    #[test]
    fn accelerated_names_and_docker_hubs_other_names_stand_for_their_registries() {
        let hub = names(&[
            ("docker.io", "https://registry-1.docker.io"),
            ("reg.test:5000", "http://reg.test:5000"),
        ]);
        for (said, name) in [
            ("docker.io.piecemeal.internal:65001", "docker.io"),
            ("DOCKER.IO.Piecemeal.Internal.:65001", "docker.io"),
            ("reg.test.5000.piecemeal.internal:65001", "reg.test:5000"),
            ("index.docker.io", "docker.io"),
            ("registry-1.docker.io:443", "docker.io"),
        ] {
            assert_eq!(hub.resolve(said).as_deref(), Some(name), "{said}");
        }
        assert_eq!(hub.by_host("docker.io"), None, "that may be this daemon's own name");
        assert_eq!(
            hub.by_host("docker.io.piecemeal.internal").as_deref(),
            Some("docker.io")
        );
        let separate = names(&[
            ("docker.io", "https://a.test"),
            ("registry-1.docker.io", "https://registry-1.docker.io"),
        ]);
        assert_eq!(
            separate.resolve("registry-1.docker.io").as_deref(),
            Some("registry-1.docker.io")
        );
        let without = names(&[("ghcr.io", "https://ghcr.io")]);
        assert_eq!(without.resolve("index.docker.io"), None);
    }
}
