//! Home of a registry: the token servers that may get its held password.
//!
//! A registry names its token server itself, in the realm of a challenge, and one that is taken over can name any. The
//! password that the site holds goes only to a server that belongs to the registry's owner: the public suffix list tells the
//! owners of domains apart, and a short list has the registries whose token servers are elsewhere.
//!
//! Source: publicsuffix.org, its private part included; the vendors' documentation.

use url::{Host, Url};

/// Clouds below whose domains each name has an owner of its own, however many labels it has, whether the list says so or not.
const CLOUDS: [&str; 9] = [
    "aliyuncs.com",
    "amazonaws.com",
    "amazonaws.com.cn",
    "azurecr.cn",
    "azurecr.io",
    "azurecr.us",
    "jfrog.io",
    "myhuaweicloud.com",
    "tencentcloudcr.com",
];
/// Suffixes that count whether the list has them or not.
const SUFFIXES: [&str; 1] = ["co.uk"];
/// Registries and their token servers, each by its whole name.
const ELSEWHERE: [(&str, &str); 4] = [
    ("registry-1.docker.io", "auth.docker.io"),
    ("index.docker.io", "auth.docker.io"),
    ("docker.io", "auth.docker.io"),
    ("registry.gitlab.com", "gitlab.com"),
];

/// Whether `realm` is a token server of `registry`'s own: at its host or below it, at another host of the same owner, or one
/// that the administrator `named`.
pub(crate) fn is_home(realm: &Url, registry: &Url, named: &[String]) -> bool {
    let (Some(Host::Domain(realm)), Some(Host::Domain(registry))) = (realm.host(), registry.host()) else {
        let named = realm
            .host_str()
            .is_some_and(|host| named.iter().any(|named| named == host));
        return named || realm.host() == registry.host();
    };
    // A dot at the end is no label: with it, all of `.io.` would be one owner's.
    let [realm, registry] = [realm, registry].map(|name| name.strip_suffix('.').unwrap_or(name));
    // URLs allow what DNS does not: empty labels, which all hosts would have in common.
    let has_labels = |name: &str| name.split('.').all(|label| !label.is_empty());
    if !has_labels(realm) || !has_labels(registry) {
        return false;
    }
    named.iter().any(|named| named == realm)
        || realm == registry
        || (is_below(realm, registry) && !is_shared(registry))
        || ELSEWHERE.contains(&(registry, realm))
        || is_of_alibaba_cloud(realm, registry)
        || owner(realm).is_some_and(|domain| owner(registry) == Some(domain))
}

fn is_below(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

/// Whether the names below `domain` have several owners.
fn is_shared(domain: &str) -> bool {
    CLOUDS.contains(&domain) || SUFFIXES.contains(&domain) || psl::suffix_str(domain) == Some(domain)
}

/// The domain that the owner of `name` has registered; `None` where that does not tell owners apart.
fn owner(name: &str) -> Option<&str> {
    let domain = psl::domain_str(name)?;
    let is_a_clouds = CLOUDS.iter().any(|cloud| domain == *cloud || is_below(domain, cloud));
    (!is_a_clouds && !SUFFIXES.contains(&domain)).then_some(domain)
}

/// Container Registry of Alibaba Cloud: one token server for all registries of a region.
fn is_of_alibaba_cloud(realm: &str, registry: &str) -> bool {
    let Some(region) = alibaba_region(registry) else {
        return false;
    };
    if region == "cn-zhangjiakou" && realm == "dockerauth-cn-zhangjiakou.aliyuncs.com" {
        return true;
    }
    let Some((server, domain)) = realm.split_once('.') else {
        return false;
    };
    let servers = ["dockerauth", "dockerauth-ee", "dockerauth-vpc", "dockerauth-ee-vpc"];
    servers.contains(&server) && domain.strip_suffix(".aliyuncs.com") == Some(region)
}

/// `cn-hangzhou` of `team-registry-vpc.cn-hangzhou.cr.aliyuncs.com`, `crpi-x.cn-hangzhou.personal.cr.aliyuncs.com` and
/// `registry.cn-hangzhou.aliyuncs.com`.
fn alibaba_region(registry: &str) -> Option<&str> {
    let rest = registry.strip_suffix(".aliyuncs.com")?;
    let (instance, region) = match rest.strip_suffix(".cr") {
        Some(rest) => rest.strip_suffix(".personal").unwrap_or(rest).rsplit_once('.')?,
        None => {
            let registries = ["registry", "registry-vpc", "registry-internal"];
            rest.split_once('.').filter(|(first, _)| registries.contains(first))?
        }
    };
    (!instance.is_empty() && !region.contains('.')).then_some(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(registry: &str, realm: &str) -> bool {
        is_home(&Url::parse(realm).unwrap(), &Url::parse(registry).unwrap(), &[])
    }

    #[test]
    fn a_password_goes_to_token_servers_of_the_registrys_owner_only() {
        let cases = [
            // The registry's own host, and below.
            ("https://ghcr.io", "https://ghcr.io/token", true),
            ("https://quay.io", "https://quay.io/v2/auth", true),
            ("https://nvcr.io", "https://nvcr.io/proxy_auth", true),
            ("https://cgr.dev", "https://cgr.dev/token", true),
            ("https://public.ecr.aws", "https://public.ecr.aws/token/", true),
            (
                "https://europe-docker.pkg.dev",
                "https://europe-docker.pkg.dev/v2/token",
                true,
            ),
            ("https://us.icr.io", "https://us.icr.io/oauth/token", true),
            (
                "https://registry.example.co.uk",
                "https://auth.registry.example.co.uk/t",
                true,
            ),
            ("http://10.0.0.1:5000", "http://10.0.0.1:5001/token", true),
            ("https://[fd00::1]", "https://[fd00::1]:8443/token", true),
            // Another host of one owner.
            ("https://registry-1.docker.io", "https://auth.docker.io/token", true),
            ("https://registry.docker.io.", "https://auth.docker.io/token", true),
            (
                "https://registry.digitalocean.com",
                "https://api.digitalocean.com/v2/registry/auth",
                true,
            ),
            ("https://registry.example.co.uk", "https://auth.example.co.uk/t", true),
            ("https://registry.corp.example.com", "https://sso.example.com/t", true),
            // A short list.
            ("https://docker.io", "https://auth.docker.io/token", true),
            ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth", true),
            // Strangers.
            ("https://ghcr.io", "https://evil.io/token", false),
            ("https://ghcr.io", "https://ghcr.io.evil.io/token", false),
            ("https://ghcr.io", "https://evilghcr.io/token", false),
            ("https://reg.example.co.uk", "https://evil.co.uk/token", false),
            ("https://reg.example.com.cn", "https://evil.com.cn/token", false),
            ("https://team.azurecr.io", "https://evil.azurecr.io/oauth2/token", false),
            ("https://team.azurecr.io", "https://team.azurecr.io/oauth2/token", true),
            ("https://team.github.io", "https://evil.github.io/token", false),
            (
                "https://1.dkr.ecr.eu-west-1.amazonaws.com",
                "https://2.dkr.ecr.eu-west-1.amazonaws.com/t",
                false,
            ),
            (
                "https://1.dkr.ecr.eu-west-1.amazonaws.com",
                "https://evil.s3.amazonaws.com/t",
                false,
            ),
            ("https://gitlab.com", "https://evil.gitlab.io/t", false),
            ("https://localhost", "https://other/token", false),
            ("https://registry.internal", "https://evil.internal/token", false),
            (
                "https://registry.internal",
                "https://auth.registry.internal/token",
                true,
            ),
            ("https://a.corp.internal", "https://b.corp.internal/token", true),
            // What is a suffix itself has nothing of its own below it.
            ("https://azurecr.io", "https://evil.azurecr.io/token", false),
            ("https://github.io", "https://evil.github.io/token", false),
            ("http://10.0.0.1:5000", "http://10.0.0.2/token", false),
            ("http://10.0.0.1:5000", "http://10.0.0.1.evil.io/token", false),
            // Dots and empty labels.
            ("https://ghcr.io.", "https://evil.io./token", false),
            ("https://ghcr.io..", "https://evil.com..", false),
            ("https://a..io", "https://b..io", false),
        ];
        for (registry, realm, expected) in cases {
            assert_eq!(home(registry, realm), expected, "{registry} {realm}");
        }
    }

    #[test]
    fn registries_of_alibaba_cloud_have_the_token_servers_of_their_region() {
        let ee = "https://team-registry.cn-hangzhou.cr.aliyuncs.com";
        let cases = [
            (ee, "dockerauth.cn-hangzhou.aliyuncs.com", true),
            (ee, "dockerauth-ee.cn-hangzhou.aliyuncs.com", true),
            (ee, "dockerauth-vpc.cn-hangzhou.aliyuncs.com", true),
            (ee, "dockerauth-ee-vpc.cn-hangzhou.aliyuncs.com", true),
            (ee, "team-registry.cn-hangzhou.cr.aliyuncs.com", true),
            (ee, "dockerauth.cn-beijing.aliyuncs.com", false),
            (ee, "dockerauth-evil.cn-hangzhou.aliyuncs.com", false),
            (ee, "evil-registry.cn-hangzhou.cr.aliyuncs.com", false),
            (ee, "dockerauth.oss-cn-hangzhou.aliyuncs.com", false),
            (ee, "dockerauth-cn-zhangjiakou.aliyuncs.com", false),
            (ee, "dockerauth.cn-hangzhou.aliyuncs.com.evil.io", false),
            (ee, "x.dockerauth.cn-hangzhou.aliyuncs.com", false),
            (
                "https://team-registry-vpc.cn-beijing.cr.aliyuncs.com",
                "dockerauth-ee-vpc.cn-beijing.aliyuncs.com",
                true,
            ),
            (
                "https://team-registry.cn-zhangjiakou.cr.aliyuncs.com",
                "dockerauth-cn-zhangjiakou.aliyuncs.com",
                true,
            ),
            (
                "https://team-registry.cn-zhangjiakou.cr.aliyuncs.com",
                "dockerauth.cn-zhangjiakou.aliyuncs.com",
                true,
            ),
            (
                "https://crpi-1.cn-hangzhou.personal.cr.aliyuncs.com",
                "dockerauth.cn-hangzhou.aliyuncs.com",
                true,
            ),
            (
                "https://registry.cn-hangzhou.aliyuncs.com",
                "dockerauth.cn-hangzhou.aliyuncs.com",
                true,
            ),
            (
                "https://registry-vpc.cn-hangzhou.aliyuncs.com",
                "dockerauth-vpc.cn-hangzhou.aliyuncs.com",
                true,
            ),
            (
                "https://evil.cn-hangzhou.aliyuncs.com",
                "dockerauth.cn-hangzhou.aliyuncs.com",
                false,
            ),
            (
                "https://evil.oss-cn-hangzhou.aliyuncs.com",
                "dockerauth.oss-cn-hangzhou.aliyuncs.com",
                false,
            ),
        ];
        for (registry, realm, expected) in cases {
            assert_eq!(
                home(registry, &format!("https://{realm}/auth")),
                expected,
                "{registry} {realm}"
            );
        }
    }

    #[test]
    fn a_token_server_that_the_administrator_names_is_home_by_its_whole_name() {
        let named = ["api.scaleway.com".to_owned(), "10.0.0.9".to_owned()];
        let home = |realm: &str| {
            let registry = Url::parse("https://rg.fr-par.scw.cloud").unwrap();
            is_home(&Url::parse(realm).unwrap(), &registry, &named)
        };
        assert!(home("https://api.scaleway.com/registry-internal/v1/token"));
        assert!(home("https://10.0.0.9/token"));
        assert!(!home("https://evil.api.scaleway.com/token") && !home("https://evil.scaleway.com/token"));
    }
}
