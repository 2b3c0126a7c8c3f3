//! Configuration of a registry's client: the registry's name, its addresses, and the credentials for it.
//!
//! Invariant: it has no credential of the site's, only the source that one is read from.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use hyper_util::client::proxy::matcher::Matcher;
use url::Url;

use crate::{CredentialSource, reachable::AllowedTarget, rewrite::RewriteRule};

/// A registry that may be mirrored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// The registry's `host` or `host:port`, as clients name it: `docker.io`. `*.example.com` stands for every registry below
    /// that domain.
    pub name: String,
    /// Its base URLs, in the order of preference: `https://registry-1.docker.io`. A `*` at the host's beginning stands for what the
    /// name's stands for.
    pub urls: Vec<Url>,
    /// Certificates to trust there besides the usual ones, PEM.
    pub ca_file: Option<PathBuf>,
    /// A certificate and its key to show there, PEM.
    pub client_certificate_file: Option<PathBuf>,
    /// The site's own credentials there.
    pub credentials: Option<CredentialSource>,
    /// Token servers that those credentials may be sent to, besides the registry's own.
    pub token_servers: Vec<String>,
    /// Whether all clients on the LAN are served with those credentials, or admitted nodes only.
    pub serves_site: bool,
}

impl UpstreamConfig {
    /// One that needs nothing but its address.
    pub fn new(name: String, urls: Vec<Url>) -> Self {
        Self {
            name,
            urls,
            ca_file: None,
            client_certificate_file: None,
            credentials: None,
            token_servers: Vec::new(),
            serves_site: false,
        }
    }

    /// The registry `name` that this pattern stands for; `None` when its URL would make no sense.
    pub(crate) fn for_name(&self, name: &str) -> Option<Self> {
        let wild = name.strip_suffix(self.name.strip_prefix('*')?)?;
        let url = |url: &Url| -> Option<Url> {
            let mut url = url.clone();
            let host = url.host_str()?.replacen('*', wild, 1);
            url.set_host(Some(&host)).ok()?;
            Some(url)
        };
        Some(Self {
            name: name.to_owned(),
            urls: self.urls.iter().map(url).collect::<Option<_>>()?,
            ..self.clone()
        })
    }
}

/// Settings that all clients of a daemon share.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The time for which a right counts that an upstream has granted.
    pub verdict_ttl: Duration,
    /// Whether a credential may cross a network without TLS.
    pub allow_plain_credentials: bool,
    /// The HTTP proxy on the way to upstreams.
    pub proxy: HttpProxy,
    /// Rewrites of redirects to a nearer host of the same storage.
    pub rewrites: Vec<RewriteRule>,
    /// Targets that upstreams may lead to although their address is refused otherwise.
    pub allowed_targets: Vec<AllowedTarget>,
    /// The addresses at which this process itself listens: no upstream leads there.
    pub listeners: Vec<SocketAddr>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            verdict_ttl: Duration::from_secs(5 * 60),
            allow_plain_credentials: false,
            proxy: HttpProxy::default(),
            rewrites: Vec::new(),
            allowed_targets: Vec::new(),
            listeners: Vec::new(),
        }
    }
}

/// A proxy between the mirror and its upstreams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HttpProxy {
    /// As `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
    #[default]
    Environment,
    None,
    /// `no_proxy`: as in `NO_PROXY`.
    Url {
        url: Url,
        no_proxy: String,
    },
}

/// Requests that a proxy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyUse {
    Https,
    Http,
    All,
}

/// The variables that name a proxy, by use; of each use the first that is there counts.
const PROXY_VARIABLES: [[&str; 2]; 3] = [
    ["HTTPS_PROXY", "https_proxy"],
    ["HTTP_PROXY", "http_proxy"],
    ["ALL_PROXY", "all_proxy"],
];

impl HttpProxy {
    /// Whether the variables of [`HttpProxy::Environment`] name proxies. What names none would be ignored in silence.
    ///
    /// # Errors
    /// The variable, and what to write. Its value is not repeated: it may have a password.
    pub fn check_environment(variable: impl Fn(&str) -> Option<String>) -> Result<(), String> {
        for names in PROXY_VARIABLES {
            let found = names.iter().find_map(|name| Some((name, variable(name)?)));
            let Some((name, value)) = found.filter(|(_, value)| !value.is_empty()) else {
                continue;
            };
            if !Self::is_proxy(&value) {
                return Err(format!(
                    "{name} in the environment is not the URL of a proxy, such as http://proxy.example.com:3128 or \
                     socks5h://proxy.example.com:1080, with special characters of a user or password as %XX; correct it, or set \
                     --proxy none"
                ));
            }
        }
        Ok(())
    }

    /// The proxies that the variables name, in the order in which they apply.
    pub(crate) fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Vec<(ProxyUse, String)> {
        let uses = [ProxyUse::Https, ProxyUse::Http, ProxyUse::All];
        let named = uses.into_iter().zip(PROXY_VARIABLES).filter_map(|(of, names)| {
            let value = names.iter().find_map(|name| variable(name))?;
            (!value.is_empty()).then(|| (of, Self::resolving_there(&value)))
        });
        named.collect()
    }

    /// The proxy's URL as reqwest reads it: by `socks5` clients written in Go have the proxy resolve names, as others do by `socks5h`.
    pub(crate) fn resolving_there(url: &str) -> String {
        match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("socks5") => format!("socks5h://{rest}"),
            _ => url.to_owned(),
        }
    }

    /// Whether the text names a proxy that requests can go through.
    pub fn is_proxy(text: &str) -> bool {
        let matcher = Matcher::builder().all(text).build();
        let target = http::Uri::from_static("https://registry.example.com/");
        matcher.intercept(&target).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socks_proxy_resolves_names_itself_and_the_narrower_variable_comes_first() {
        let variables = |asked: &str| match asked {
            "ALL_PROXY" => Some("SOCKS5://proxy.test:1080".to_owned()),
            "http_proxy" => Some("proxy.test:3128".to_owned()),
            "HTTPS_PROXY" => Some(String::new()),
            _ => None,
        };
        let expected = [
            (ProxyUse::Http, "proxy.test:3128".to_owned()),
            (ProxyUse::All, "socks5h://proxy.test:1080".to_owned()),
        ];
        assert_eq!(HttpProxy::of_environment(variables), expected);
        for same in ["socks5h://a.test", "socks4a://a.test", "http://a.test", "a.test:1"] {
            assert_eq!(HttpProxy::resolving_there(same), same);
        }
    }

    #[test]
    fn a_variable_that_names_no_proxy_is_refused_by_its_name() {
        for (name, value, is_good) in [
            ("HTTP_PROXY", "http://proxy.test:3128", true),
            ("HTTP_PROXY", "proxy.test:3128", true),
            ("https_proxy", "http://user:p%40ss@proxy.test:3128/", true),
            ("ALL_PROXY", "socks5://proxy.test:1080", true),
            ("all_proxy", "socks5h://proxy.test", true),
            ("HTTP_PROXY", "", true),
            ("NO_PROXY", "::nonsense::", true),
            ("HTTP_PROXY", "::nonsense::", false),
            ("HTTPS_PROXY", "ftp://proxy.test", false),
            ("all_proxy", "socks6://proxy.test", false),
            ("http_proxy", "http://user:p ss@proxy.test", false),
        ] {
            let checked = HttpProxy::check_environment(|asked| (asked == name).then(|| value.to_owned()));
            assert_eq!(checked.is_ok(), is_good, "{name}={value}");
            if let Err(said) = checked {
                assert!(said.starts_with(name) && !said.contains("p ss"), "{said}");
            }
        }
    }
}
