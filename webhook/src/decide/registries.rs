//! The accelerated registries, as the settings name them: by host, by pattern, or by an instance's id.
//!
//! Invariant: an item that cannot be read makes the whole setting an error, which names every such item.

use piecemeal_proto::is_registry;

/// The domain of the vendor's instances.
const VENDOR_DOMAIN: &str = "cr.aliyuncs.com";
/// The text that the vendor adds to the first label of an instance's name within its own network.
const VPC: &str = "-vpc";

/// The accelerated registries, as the settings name them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registries(Vec<Entry>);

/// Registries that were named together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pattern: Pattern,
    /// Named by an instance's id: the vendor accelerates such an image only together with a pull secret.
    pub is_instance: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Host(String),
    /// The end of a name: `.cn-hangzhou.cr.aliyuncs.com`.
    Suffix(String),
}

impl Registries {
    /// `items`: `docker.io`, `reg.example.com:5000`, `*.example.com`, `cri-xxx`, `cri-xxx=host1+host2`. `region`: of the instances
    /// whose hosts are not given; empty for any.
    ///
    /// # Errors
    /// Every item that is none of these, one sentence each.
    pub fn parse(items: &[String], region: &str) -> Result<Self, Vec<String>> {
        let (mut entries, mut problems) = (Vec::new(), Vec::new());
        for item in items {
            match parse_item(item.trim(), region) {
                Ok(read) => entries.extend(read),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() {
            Ok(Self(entries))
        } else {
            Err(problems)
        }
    }

    /// The entry that `registry` belongs to.
    pub(crate) fn find(&self, registry: &str) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.pattern.matches(registry))
    }

    /// The registries that are named without a pattern.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|entry| match &entry.pattern {
            Pattern::Host(host) => Some(host.as_str()),
            Pattern::Suffix(_) => None,
        })
    }
}

impl Pattern {
    fn matches(&self, registry: &str) -> bool {
        match self {
            Self::Host(host) => host == registry,
            Self::Suffix(suffix) => registry.len() > suffix.len() && registry.ends_with(suffix),
        }
    }
}

fn parse_item(item: &str, region: &str) -> Result<Vec<Entry>, String> {
    let entry = |pattern, is_instance| Entry { pattern, is_instance };
    if let Some((id, hosts)) = item.split_once('=') {
        if !is_instance_id(id) {
            return Err(format!(
                "{item:?}: only an instance's id has hosts, as in cri-xxx=host1+host2"
            ));
        }
        let patterns = hosts.split('+').map(|host| parse_host(host.trim()));
        return patterns.collect::<Result<Vec<_>, _>>().map(|patterns| {
            patterns
                .into_iter()
                .flat_map(with_both_endpoints)
                .map(|pattern| entry(pattern, true))
                .collect()
        });
    }
    if is_instance_id(item) {
        let region = if region.is_empty() {
            String::new()
        } else {
            format!("{region}.")
        };
        let suffix = format!(".{region}{VENDOR_DOMAIN}");
        return Ok(vec![entry(Pattern::Suffix(suffix), true)]);
    }
    parse_host(item).map(|pattern| vec![entry(pattern, false)])
}

fn is_instance_id(text: &str) -> bool {
    text.starts_with("cri-") && !text.contains(['.', ':', '*'])
}

fn parse_host(text: &str) -> Result<Pattern, String> {
    let host = text.to_ascii_lowercase();
    let host = if host == "index.docker.io" {
        "docker.io".to_owned()
    } else {
        host
    };
    match host.strip_prefix('*') {
        None if is_registry(&host) => Ok(Pattern::Host(host)),
        Some(suffix) if suffix.starts_with('.') && is_registry(&suffix[1..]) && suffix[1..].contains('.') => {
            Ok(Pattern::Suffix(suffix.to_owned()))
        }
        _ => Err(format!(
            "{text:?} is not a registry: write a host such as docker.io or reg.example.com:5000, a pattern such as *.example.com, or an \
             instance's id such as cri-xxx"
        )),
    }
}

/// An instance answers under two names, and a pod may use either.
fn with_both_endpoints(pattern: Pattern) -> Vec<Pattern> {
    let twin = match &pattern {
        Pattern::Host(host) if host.ends_with(VENDOR_DOMAIN) => host.split_once('.').map(|(first, rest)| {
            let first = first
                .strip_suffix(VPC)
                .map_or_else(|| format!("{first}{VPC}"), ToOwned::to_owned);
            Pattern::Host(format!("{first}.{rest}"))
        }),
        _ => None,
    };
    [pattern].into_iter().chain(twin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registries(items: &[&str], region: &str) -> Registries {
        let items: Vec<String> = items.iter().map(|item| (*item).to_owned()).collect();
        Registries::parse(&items, region).unwrap()
    }

    #[test]
    fn a_registry_is_found_by_host_pattern_or_instance() {
        let set = registries(
            &[
                "docker.io",
                "reg.example.com:5000",
                "*.corp.example",
                "cri-a",
                "cri-b=b-registry.eu-west-1.cr.aliyuncs.com+b.example.com",
            ],
            "cn-hangzhou",
        );
        let instance = |host: &str| set.find(host).map(|entry| entry.is_instance);
        for host in [
            "docker.io",
            "reg.example.com:5000",
            "x.corp.example",
            "x.y.corp.example",
        ] {
            assert_eq!(instance(host), Some(false), "{host}");
        }
        for host in [
            "test-registry-vpc.cn-hangzhou.cr.aliyuncs.com",
            "b-registry.eu-west-1.cr.aliyuncs.com",
            "b-registry-vpc.eu-west-1.cr.aliyuncs.com",
            "b.example.com",
        ] {
            assert_eq!(instance(host), Some(true), "{host}");
        }
        for host in [
            "reg.example.com",
            "corp.example",
            "test-registry.cn-beijing.cr.aliyuncs.com",
            "c-registry.eu-west-1.cr.aliyuncs.com",
            "b-vpc.example.com",
            "quay.io",
        ] {
            assert_eq!(instance(host), None, "{host}");
        }
    }

    #[test]
    fn an_instance_without_region_may_be_anywhere() {
        let set = registries(&["cri-a"], "");
        assert!(set.find("test-registry-vpc.cn-hangzhou.cr.aliyuncs.com").is_some());
        assert!(set.find("evilcr.aliyuncs.com").is_none());
    }

    #[test]
    fn docker_hub_has_one_name() {
        assert!(registries(&["index.docker.io"], "").find("docker.io").is_some());
    }

    #[test]
    fn every_wrong_item_is_told() {
        let items = ["", "*.io", "https://a.io", "a.io/team", "x=y", "cri-a=", "*"].map(ToOwned::to_owned);
        assert_eq!(Registries::parse(&items, "").unwrap_err().len(), items.len());
    }
}
