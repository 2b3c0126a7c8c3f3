//! Accelerated names: what an image's registry is called when its pods are to pull through the node's own port.
//!
//! A registry at `*.cr.aliyuncs.com` gets the name that its owner keeps for this purpose: `distributed` after the first label.
//! For any other registry that name would be a stranger's domain (`docker.distributed.io`), to which a node without our
//! configuration would send the pod's credentials; it gets a name under `.internal`, a domain without an owner. The port is
//! the node's.
//!
//! | registry | accelerated |
//! |---|---|
//! | `test-registry-vpc.cn-hangzhou.cr.aliyuncs.com` | `test-registry-vpc.distributed.cn-hangzhou.cr.aliyuncs.com:65001` |
//! | `docker.io` | `docker.io.piecemeal.internal:65001` |
//! | `reg.example.com:5000` | `reg.example.com.5000.piecemeal.internal:65001` |

use std::net::Ipv4Addr;

use crate::is_registry;

/// The label that is put after a registry's first one.
const DISTRIBUTED: &str = "distributed";
/// The domain within which a registry's owner also owns its [`DISTRIBUTED`] name.
const DISTRIBUTED_WITHIN: &str = ".cr.aliyuncs.com";
/// The domain under which any registry has an accelerated name.
const DOMAIN: &str = ".piecemeal.internal";
const DNS_NAME_BYTES_MAX: usize = 253;

/// The accelerated name of the registry `original` (`host` or `host:port`, lower case), at a node whose port is `port`.
///
/// None for what no DNS name can say: an IPv6 address, a name that gets too long, a host that would be read as another.
pub fn name(original: &str, port: u16) -> Option<String> {
    let host = if original.ends_with(DISTRIBUTED_WITHIN) {
        let (first, rest) = original.split_once('.')?;
        format!("{first}.{DISTRIBUTED}.{rest}")
    } else {
        // No top-level domain is a number, so that a port as the last label says that it is one.
        format!("{}{DOMAIN}", original.replace(':', "."))
    };
    let is_sound = is_registry(original)
        && is_registry(&host)
        && host.len() <= DNS_NAME_BYTES_MAX
        && self::original(&host).next().as_deref() == Some(original);
    is_sound.then(|| format!("{host}:{port}"))
}

/// The registries that an accelerated name, with a port or without, may stand for; none for any other name.
pub fn original(name: &str) -> impl Iterator<Item = String> {
    let host = match name.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => name,
    };
    let within = host.strip_suffix(DOMAIN).map(with_port);
    let distributed = host.split_once('.').and_then(|(first, rest)| {
        let rest = rest.strip_prefix(DISTRIBUTED)?.strip_prefix('.')?;
        Some(format!("{first}.{rest}"))
    });
    within.into_iter().chain(distributed)
}

/// A last label that is a number is a port, but in an IPv4 address.
fn with_port(host: &str) -> String {
    match host.rsplit_once('.') {
        Some((name, port)) if port.parse::<u16>().is_ok() && host.parse::<Ipv4Addr>().is_err() => {
            format!("{name}:{port}")
        }
        _ => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_registry_has_one_accelerated_name_and_it_stands_for_that_registry() {
        let cases = [
            (
                "registry-vpc.cn-hangzhou.cr.aliyuncs.com",
                "registry-vpc.distributed.cn-hangzhou.cr.aliyuncs.com:65001",
            ),
            ("docker.io", "docker.io.piecemeal.internal:65001"),
            ("registry.example.com", "registry.example.com.piecemeal.internal:65001"),
            ("reg.example.com:5000", "reg.example.com.5000.piecemeal.internal:65001"),
            ("localhost:5000", "localhost.5000.piecemeal.internal:65001"),
            ("10.0.0.1", "10.0.0.1.piecemeal.internal:65001"),
            ("10.0.0.1:5000", "10.0.0.1.5000.piecemeal.internal:65001"),
            (
                "registry.distributed.example.com",
                "registry.distributed.example.com.piecemeal.internal:65001",
            ),
        ];
        for (registry, accelerated) in cases {
            assert_eq!(name(registry, 65001).as_deref(), Some(accelerated), "{registry}");
            assert_eq!(original(accelerated).next().as_deref(), Some(registry), "{accelerated}");
        }
    }

    #[test]
    fn what_a_dns_name_cannot_say_has_none() {
        let long = format!("{}.example.com", ["a"; 118].join("."));
        for registry in ["[::1]:5000", "[fd00::1]", "1.2.3:4", "reg_x.example.com", "", &long] {
            assert_eq!(name(registry, 65001), None, "{registry}");
        }
    }

    #[test]
    fn the_port_of_the_node_is_whatever_it_is() {
        let accelerated = "x-registry.distributed.cn-beijing.cr.aliyuncs.com:30000";
        let registry = "x-registry.cn-beijing.cr.aliyuncs.com";
        assert_eq!(original(accelerated).next().as_deref(), Some(registry));
        assert_eq!(
            original(accelerated.trim_end_matches(":30000")).next().as_deref(),
            Some(registry)
        );
    }

    #[test]
    fn the_vendor_s_form_is_read_for_any_registry() {
        let read = original("registry.distributed.example.com").next();
        assert_eq!(read.as_deref(), Some("registry.example.com"));
    }

    #[test]
    fn any_other_name_stands_for_none() {
        for name in [
            "docker.io",
            "127.0.0.1:65001",
            "distributed.example.com",
            "a.distributedx.example.com",
            "piecemeal.internal",
        ] {
            assert_eq!(original(name).next(), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_two_registries_share_an_accelerated_name(
            registry in r"[a-z0-9]{1,3}(\.[a-z0-9]{1,3}){0,5}(:[1-9][0-9]{0,3})?",
        ) {
            if let Some(name) = name(&registry, 65001) {
                prop_assert_eq!(original(&name).next(), Some(registry));
            }
        }
    }
}
