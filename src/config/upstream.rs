//! Settings of upstreams: their endpoints, the credentials and certificates for them, and how they are reached.
//!
//! Invariant: credentials, certificates and token servers are of an upstream that is configured.

use std::{env, net::SocketAddr, path::PathBuf, str::FromStr};

use piecemeal_proto::is_registry;
use piecemeal_upstream::{ClientConfig, CredentialSource, HttpProxy, UpstreamConfig};
use url::Url;

use super::{
    field::{self, Text, Texts},
    problems::Problems,
};

/// The texts of the settings about single upstreams.
#[derive(Default)]
pub(super) struct UpstreamTexts {
    pub upstream: Texts,
    pub upstream_ca: Texts,
    pub upstream_client_certificate: Texts,
    pub credentials: Texts,
    pub token_server: Texts,
    pub serve_site: Texts,
}

impl UpstreamTexts {
    /// At least one upstream. A name that occurs again has another endpoint.
    pub(super) fn validate(self, problems: &mut Problems) -> Option<Vec<UpstreamConfig>> {
        let mut upstreams = upstreams(problems, "upstream", self.upstream)?;
        let file = |text: &str| -> Result<PathBuf, String> {
            let path = PathBuf::from(text);
            let opened = std::fs::File::open(&path).map_err(|error| format!("cannot read {text}: {error}"));
            opened.map(|_| path)
        };
        let mut is_good = true;
        is_good &= each(
            problems,
            "upstream_ca",
            self.upstream_ca,
            &mut upstreams,
            |upstream, text| {
                upstream.ca_file = Some(file(text)?);
                Ok(())
            },
        );
        let certificate = self.upstream_client_certificate;
        is_good &= each(
            problems,
            "upstream_client_certificate",
            certificate,
            &mut upstreams,
            |upstream, text| {
                upstream.client_certificate_file = Some(file(text)?);
                Ok(())
            },
        );
        is_good &= each(
            problems,
            "credentials",
            self.credentials,
            &mut upstreams,
            |upstream, text| {
                upstream.credentials = Some(credential_source(text)?);
                Ok(())
            },
        );
        is_good &= each(
            problems,
            "token_server",
            self.token_server,
            &mut upstreams,
            |upstream, text| {
                if upstream.credentials.is_none() {
                    let name = &upstream.name;
                    return Err(format!("there are no credentials for {name}; give --credentials too"));
                }
                upstream.token_servers.push(host(text)?);
                Ok(())
            },
        );
        for name in self.serve_site.unwrap_or_default() {
            let name = name.to_ascii_lowercase();
            match upstreams.iter_mut().find(|upstream| upstream.name == name) {
                Some(upstream) if upstream.credentials.is_some() => upstream.serves_site = true,
                Some(_) => {
                    problems.add(
                        "serve_site",
                        format!("there are no credentials for {name}; give --credentials too"),
                    );
                    is_good = false;
                }
                None => {
                    problems.add("serve_site", format!("{name:?} is not among the upstreams"));
                    is_good = false;
                }
            }
        }
        is_good.then_some(upstreams)
    }
}

/// The texts of how upstreams are reached.
pub(super) struct ClientTexts {
    pub verdict_ttl: Text,
    pub allow_plain_credentials: Text,
    pub proxy: Text,
    pub no_proxy: Text,
    pub rewrite_redirects: Texts,
    pub allow_target: Texts,
    /// The addresses at which the daemon listens, as far as they are known.
    pub listeners: Vec<SocketAddr>,
}

impl ClientTexts {
    pub(super) fn validate(self, problems: &mut Problems) -> Option<ClientConfig> {
        let allowed = field::choice(
            problems,
            "allow_plain_credentials",
            self.allow_plain_credentials,
            &[("true", true), ("false", false)],
        );
        let verdict_ttl = field::duration(problems, "verdict_ttl", self.verdict_ttl);
        let proxy = proxy(problems, self.proxy, self.no_proxy);
        let rewrites = parsed(problems, "rewrite_redirects", self.rewrite_redirects);
        let allowed_targets = parsed(problems, "allow_target", self.allow_target);
        Some(ClientConfig {
            verdict_ttl: verdict_ttl?,
            allow_plain_credentials: allowed?,
            proxy: proxy?,
            rewrites: rewrites?,
            allowed_targets: allowed_targets?,
            listeners: self.listeners,
        })
    }
}

/// Every text as a value; each is looked at in any case, so that each problem is noted.
fn parsed<T: FromStr<Err = String>>(problems: &mut Problems, key: &str, texts: Texts) -> Option<Vec<T>> {
    let texts = texts.unwrap_or_default();
    let values: Vec<Option<T>> = texts.iter().map(|text| problems.check(key, text.parse())).collect();
    values.into_iter().collect()
}

/// The whole name of a host, or an address, and nothing else.
fn host(text: &str) -> Result<String, String> {
    let problem = || format!("{text:?} is not a host, such as auth.example.com");
    let url: Url = format!("https://{text}/").parse().map_err(|_| problem())?;
    let is_host = url.host_str() == Some(text) && url.port().is_none() && !text.contains('*');
    is_host.then(|| text.to_owned()).ok_or_else(problem)
}

fn proxy(problems: &mut Problems, text: Text, no_proxy: Text) -> Option<HttpProxy> {
    let text = problems.require("proxy", text)?;
    let proxy = match text.as_str() {
        "environment" => {
            let variable = |name: &str| env::var(name).ok();
            problems.check("proxy", HttpProxy::check_environment(variable))?;
            HttpProxy::Environment
        }
        "none" => HttpProxy::None,
        url => {
            let url = problems.check("proxy", proxy_url(url))?;
            let no_proxy = no_proxy.clone().unwrap_or_default();
            HttpProxy::Url { url, no_proxy }
        }
    };
    if no_proxy.is_some() && !matches!(proxy, HttpProxy::Url { .. }) {
        problems.add("no_proxy", "has an effect only with a --proxy that is a URL");
        return None;
    }
    Some(proxy)
}

/// A proxy that speaks HTTP or SOCKS.
fn proxy_url(text: &str) -> Result<Url, String> {
    let url: Url = match text.parse::<Url>() {
        Ok(url) if url.scheme().starts_with("socks") => url,
        _ => return field::parse_origin(text),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the URL must not carry credentials".to_owned());
    }
    let is_origin = url.host().is_some() && matches!(url.path(), "" | "/") && HttpProxy::is_proxy(text);
    is_origin
        .then_some(url)
        .ok_or_else(|| format!("{text:?} is not a proxy's URL, such as socks5h://proxy.example.com:1080"))
}

/// Reads `--upstream` by itself.
pub(crate) fn read_upstreams(problems: &mut Problems, texts: Vec<String>) -> Option<Vec<UpstreamConfig>> {
    upstreams(problems, "upstream", Some(texts))
}

/// `NAME=URL` each.
pub(super) fn upstreams(problems: &mut Problems, key: &str, texts: Texts) -> Option<Vec<UpstreamConfig>> {
    let texts = problems.require(key, texts.filter(|texts| !texts.is_empty()))?;
    let mut upstreams: Vec<UpstreamConfig> = Vec::new();
    let mut is_good = true;
    for text in &texts {
        match parse_upstream(text) {
            Err(problem) => {
                problems.add(key, problem);
                is_good = false;
            }
            Ok((name, url)) => {
                let url = without_api_path(problems, key, &name, url);
                match upstreams.iter_mut().find(|upstream| upstream.name == name) {
                    Some(upstream) if upstream.urls.contains(&url) => {
                        problems.add(key, format!("{text} is there twice"));
                        is_good = false;
                    }
                    Some(upstream) => upstream.urls.push(url),
                    None => upstreams.push(UpstreamConfig::new(name, vec![url])),
                }
            }
        }
    }
    is_good.then_some(upstreams)
}

/// The URL without the `/v2` that hosts files have and that every request adds.
fn without_api_path(problems: &mut Problems, key: &str, name: &str, url: Url) -> Url {
    let rest = match url.path().strip_prefix("/v2") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest.trim_end_matches('/').to_owned(),
        _ => return url,
    };
    let mut short = url.clone();
    short.set_path(&rest);
    let line = format!("{name}={}", short.as_str().trim_end_matches('/'));
    problems.warn(
        key,
        format!("{name}={url}: /v2 is added to every request; write {line}, which is what this is taken for"),
    );
    short
}

fn parse_upstream(text: &str) -> Result<(String, Url), String> {
    let Some((name, url)) = text.split_once('=') else {
        return Err(format!(
            "{text:?} is not NAME=URL, such as docker.io=https://registry-1.docker.io"
        ));
    };
    let name = &*name.to_ascii_lowercase();
    let suffix = name.strip_prefix('*');
    if !suffix.map_or_else(|| is_registry(name), is_pattern_suffix) {
        return Err(format!(
            "{name:?} is not the host or host:port of a registry, nor a * and the rest of one, as in *.example.com or *-vpc.example.com"
        ));
    }
    let url = field::parse_registry(url)?;
    if suffix.is_none() && url.host_str().is_some_and(|host| host.contains('*')) {
        return Err(format!("{url} has a *, and {name} has none"));
    }
    Ok((name.to_owned(), url))
}

/// Whether `suffix` may follow the `*` of a name: the rest of the first label, if any, and a domain that is more than a top-level
/// one.
fn is_pattern_suffix(suffix: &str) -> bool {
    let domain = suffix.split_once('.').map_or("", |(_, domain)| domain);
    suffix.starts_with(['.', '-']) && is_registry(&format!("x{suffix}")) && domain.contains('.')
}

/// `NAME=VALUE` each, for an upstream that there is.
fn each(
    problems: &mut Problems,
    key: &str,
    texts: Texts,
    upstreams: &mut [UpstreamConfig],
    mut set: impl FnMut(&mut UpstreamConfig, &str) -> Result<(), String>,
) -> bool {
    let mut is_good = true;
    for text in texts.unwrap_or_default() {
        let result = match text.split_once('=') {
            None => Err(format!("{text:?} is not NAME=VALUE")),
            Some((name, value)) => match upstreams
                .iter_mut()
                .find(|upstream| upstream.name.eq_ignore_ascii_case(name))
            {
                None => Err(format!("{name:?} is not among the upstreams")),
                Some(upstream) => set(upstream, value),
            },
        };
        is_good &= problems.check(key, result).is_some();
    }
    is_good
}

fn credential_source(text: &str) -> Result<CredentialSource, String> {
    match text.split_once(':') {
        Some(("file", path)) if !path.is_empty() => Ok(CredentialSource::File(path.into())),
        Some(("docker-config", path)) if !path.is_empty() => Ok(CredentialSource::DockerConfig(path.into())),
        Some(("helper", program)) if !program.is_empty() => Ok(CredentialSource::Helper(program.to_owned())),
        // Not repeated in the message: the text may be the password itself.
        _ => Err(
            "credentials are file:PATH (its first line is user:password), docker-config:PATH or helper:PROGRAM"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Texts {
        Some(texts.iter().map(|text| (*text).to_owned()).collect())
    }

    #[test]
    fn upstreams_have_endpoints_patterns_and_paths() {
        let mut problems = Problems::default();
        let read = UpstreamTexts {
            upstream: texts(&[
                "docker.io=https://registry-1.docker.io",
                "docker.io=https://mirror.example.com/docker.io",
                "*.cr.aliyuncs.com=https://*.cr.aliyuncs.com",
                "*-vpc.cn-hangzhou.cr.aliyuncs.com=https://*.cn-hangzhou.cr.aliyuncs.com",
            ]),
            credentials: texts(&["docker.io=docker-config:/root/.docker/config.json"]),
            token_server: texts(&["docker.io=login.example.com", "docker.io=10.0.0.9"]),
            serve_site: texts(&["docker.io"]),
            ..UpstreamTexts::default()
        };
        let upstreams = read.validate(&mut problems).unwrap();
        assert_eq!(upstreams[0].token_servers, ["login.example.com", "10.0.0.9"]);
        assert_eq!(upstreams.len(), 3);
        assert_eq!(upstreams[0].urls.len(), 2);
        assert!(upstreams[0].serves_site && upstreams[0].credentials.is_some());
        assert_eq!(upstreams[1].name, "*.cr.aliyuncs.com");
    }

    #[test]
    fn names_are_read_without_case_and_urls_without_the_path_that_requests_add() {
        let cases = [
            (
                "Docker.IO=https://registry-1.docker.io",
                "https://registry-1.docker.io/",
                false,
            ),
            (
                "docker.io=https://registry-1.docker.io/",
                "https://registry-1.docker.io/",
                false,
            ),
            (
                "docker.io=https://registry-1.docker.io/v2",
                "https://registry-1.docker.io/",
                true,
            ),
            (
                "docker.io=https://registry-1.docker.io/v2/",
                "https://registry-1.docker.io/",
                true,
            ),
            (
                "docker.io=https://cache.test/v2/docker.io",
                "https://cache.test/docker.io",
                true,
            ),
            (
                "docker.io=https://cache.test/v2/docker.io/",
                "https://cache.test/docker.io",
                true,
            ),
            ("docker.io=https://cache.test/v2x", "https://cache.test/v2x", false),
            (
                "docker.io=https://cache.test/docker.io/v2",
                "https://cache.test/docker.io/v2",
                false,
            ),
        ];
        for (text, url, warns) in cases {
            let mut problems = Problems::default();
            let read = UpstreamTexts {
                upstream: texts(&[text]),
                credentials: texts(&["DOCKER.io=file:/x"]),
                serve_site: texts(&["docker.IO"]),
                ..UpstreamTexts::default()
            };
            let upstreams = read.validate(&mut problems);
            let (upstreams, warnings) = problems.finish(upstreams).unwrap();
            assert_eq!(
                (&*upstreams[0].name, upstreams[0].urls[0].as_str()),
                ("docker.io", url),
                "{text}"
            );
            assert!(upstreams[0].serves_site, "{text}");
            assert_eq!(warnings.len(), usize::from(warns), "{text}: {warnings:?}");
            assert!(
                !warns || warnings[0].contains(url.trim_end_matches('/')),
                "{warnings:?}"
            );
        }
    }

    #[test]
    fn a_proxy_speaks_http_or_socks() {
        for (text, is_good) in [
            ("http://proxy.test:3128", true),
            ("https://proxy.test", true),
            ("socks5://proxy.test:1080", true),
            ("socks5h://proxy.test", true),
            ("socks4a://proxy.test:1080", true),
            ("socks6://proxy.test:1080", false),
            ("socks5://user:secret@proxy.test:1080", false),
            ("ftp://proxy.test", false),
            ("nonsense", false),
        ] {
            let mut problems = Problems::default();
            let read = proxy(&mut problems, Some(text.to_owned()), None);
            assert_eq!(read.is_some(), is_good, "{text}");
            if let Err(said) = problems.finish(read) {
                assert!(!said.to_string().contains("secret"), "{said}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let good = "a.io=https://a.io";
        let cases = [
            UpstreamTexts {
                upstream: texts(&["a.io=https://*.io"]),
                ..UpstreamTexts::default()
            },
            UpstreamTexts {
                upstream: texts(&["*.io=https://x"]),
                ..UpstreamTexts::default()
            },
            UpstreamTexts {
                upstream: texts(&[good, good]),
                ..UpstreamTexts::default()
            },
            UpstreamTexts {
                upstream: texts(&[good]),
                credentials: texts(&["a.io=user:pass"]),
                ..UpstreamTexts::default()
            },
            UpstreamTexts {
                upstream: texts(&[good]),
                credentials: texts(&["b.io=file:/x"]),
                ..UpstreamTexts::default()
            },
            UpstreamTexts {
                upstream: texts(&[good]),
                serve_site: texts(&["a.io"]),
                ..UpstreamTexts::default()
            },
            UpstreamTexts {
                upstream: texts(&[good]),
                token_server: texts(&["a.io=auth.io"]),
                ..UpstreamTexts::default()
            },
            UpstreamTexts {
                upstream: texts(&[good]),
                credentials: texts(&["a.io=file:/x"]),
                token_server: texts(&["a.io=*.auth.io"]),
                ..UpstreamTexts::default()
            },
            UpstreamTexts {
                upstream: texts(&[good]),
                credentials: texts(&["a.io=file:/x"]),
                token_server: texts(&["a.io=https://auth.io"]),
                ..UpstreamTexts::default()
            },
            UpstreamTexts {
                upstream: texts(&[good]),
                upstream_ca: texts(&["a.io=/nowhere.pem"]),
                ..UpstreamTexts::default()
            },
        ];
        for case in cases {
            let mut problems = Problems::default();
            assert!(case.validate(&mut problems).is_none());
            let said = problems.finish(None::<()>).unwrap_err().to_string();
            assert!(!said.contains("user:pass,"), "{said}");
        }
    }
}
