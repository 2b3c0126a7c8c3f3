//! Registries of the node's peer, and the names of each that lead to it.
//!
//! Invariant: a host that no upstream stands for is no registry of the peer's, and a name has one URL.

use std::collections::BTreeSet;

use piecemeal_proto::is_registry;
use url::Url;

/// A registry, or with `*.` a pattern of them, and where it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// `docker.io`, or `*.example.com` for every registry below that domain.
    pub name: String,
    /// A `*` stands for the same text as the name's `*`.
    pub url: Url,
}

/// A registry that pulls are to reach through the peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Registry {
    /// As images name it: `docker.io`, `reg.example.com:5000`.
    pub name: String,
    /// Its own URL.
    pub url: Url,
}

/// The names of a registry that lead to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// Only the accelerated one: pods that are to be accelerated are given it.
    Accelerated,
    /// Only its own: every pull of that registry on this node.
    Original,
    Both,
}

impl Names {
    pub(crate) fn has_accelerated(self) -> bool {
        matches!(self, Self::Accelerated | Self::Both)
    }

    pub(crate) fn has_original(self) -> bool {
        matches!(self, Self::Original | Self::Both)
    }
}

/// The registries that `upstreams` name, and those of the hosts in `met` that one of their patterns stands for. Sorted by name.
///
/// A host that no upstream stands for is left out: its peer would not know it.
pub fn registries<'a>(upstreams: &[Upstream], met: impl Iterator<Item = &'a str>) -> Vec<Registry> {
    let (patterns, named): (Vec<&Upstream>, Vec<&Upstream>) =
        upstreams.iter().partition(|upstream| upstream.name.starts_with('*'));
    let mut found: BTreeSet<Registry> = BTreeSet::new();
    for upstream in named {
        // Of a name that repeats, the first is where it answers.
        if !found.iter().any(|registry| registry.name == upstream.name) {
            found.insert(Registry {
                name: upstream.name.clone(),
                url: upstream.url.clone(),
            });
        }
    }
    for host in met.map(str::trim).filter(|host| is_registry(host)) {
        let known = found.iter().any(|registry| registry.name == host);
        if let Some(registry) = patterns.iter().find_map(|pattern| stands_for(pattern, host))
            && !known
        {
            found.insert(registry);
        }
    }
    found.into_iter().collect()
}

fn stands_for(pattern: &Upstream, host: &str) -> Option<Registry> {
    let wild = host.strip_suffix(pattern.name.strip_prefix('*')?)?;
    if wild.is_empty() {
        return None;
    }
    let mut url = pattern.url.clone();
    let at = url.host_str()?.replacen('*', wild, 1);
    url.set_host(Some(&at)).ok()?;
    Some(Registry {
        name: host.to_owned(),
        url,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(name: &str, url: &str) -> Upstream {
        Upstream {
            name: name.to_owned(),
            url: url.parse().unwrap(),
        }
    }

    #[test]
    fn named_registries_are_always_there_and_patterns_wait_for_a_host() {
        let upstreams = [
            upstream("docker.io", "https://registry-1.docker.io"),
            upstream("docker.io", "https://second.example.com"),
            upstream("*.cr.aliyuncs.com", "https://*.cr.aliyuncs.com"),
        ];
        let urls = |met: &[&str]| -> Vec<(String, String)> {
            let found = registries(&upstreams, met.iter().copied());
            found
                .into_iter()
                .map(|found| (found.name, found.url.to_string()))
                .collect()
        };
        let docker = ("docker.io".to_owned(), "https://registry-1.docker.io/".to_owned());
        assert_eq!(urls(&[]), std::slice::from_ref(&docker));
        let vendor = "a-registry.cn-hangzhou.cr.aliyuncs.com";
        assert_eq!(
            urls(&[
                vendor,
                "stranger.example.com",
                ".cr.aliyuncs.com",
                "../../etc",
                " docker.io ",
                vendor
            ]),
            [(vendor.to_owned(), format!("https://{vendor}/")), docker]
        );
    }
}
