//! Accelerated names: what an image's registry is called when its pods are to pull through the node's own port.
//!
//! `registry-vpc.cn-hangzhou.aliyuncs.com` becomes `registry-vpc.distributed.cn-hangzhou.aliyuncs.com:65001`, and `docker.io`,
//! or any other, `docker.io.piecemeal.internal:65001`. The port is whatever the site has configured.

/// The label that is put after a registry's first one.
const DISTRIBUTED: &str = "distributed";
/// The domain under which any registry has an accelerated name.
const DOMAIN: &str = ".piecemeal.internal";

/// The registries that an accelerated name may stand for; none for any other name.
pub(super) fn original(name: &str) -> impl Iterator<Item = String> {
    let host = match name.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => name,
    };
    let within = host.strip_suffix(DOMAIN).map(|registry| registry.replace("__", ":"));
    let distributed = host.split_once('.').and_then(|(first, rest)| {
        let rest = rest.strip_prefix(DISTRIBUTED)?.strip_prefix('.')?;
        Some(format!("{first}.{rest}"))
    });
    within.into_iter().chain(distributed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accelerated_names_stand_for_their_registries() {
        let cases = [
            (
                "registry-vpc.distributed.cn-hangzhou.aliyuncs.com:65001",
                Some("registry-vpc.cn-hangzhou.aliyuncs.com"),
            ),
            (
                "x-registry.distributed.cn-beijing.cr.aliyuncs.com:30000",
                Some("x-registry.cn-beijing.cr.aliyuncs.com"),
            ),
            ("registry.distributed.example.com", Some("registry.example.com")),
            ("docker.io.piecemeal.internal:65001", Some("docker.io")),
            ("localhost__5000.piecemeal.internal:65001", Some("localhost:5000")),
            ("docker.io", None),
            ("127.0.0.1:65001", None),
            ("distributed.example.com", None),
            ("a.distributedx.example.com", None),
            ("piecemeal.internal", None),
        ];
        for (name, registry) in cases {
            assert_eq!(original(name).next().as_deref(), registry, "{name}");
        }
    }
}
