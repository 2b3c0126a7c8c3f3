//! The HTTP clients of one upstream: one for the registry itself, which the administrator named, and one for each kind of target
//! that the registry leads to.
//!
//! A client of the second kind resolves every name by itself, judges each address (`reachable.rs`), and connects only to
//! those that pass: no second lookup comes between check and use. Its connections are kept apart by the zone of the host that
//! named the target, so that a host in a farther zone never uses a connection that one in a nearer zone has opened. Addresses
//! in a URL are judged before any client is used.

use std::{
    collections::HashMap,
    env,
    error::Error,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
};

use hyper_util::client::proxy::matcher::Matcher;
use parking_lot::Mutex;
use reqwest::{
    ClientBuilder, NoProxy, Proxy, Response,
    dns::{Addrs, Name, Resolve, Resolving},
};
use rustls::ClientConfig;
use url::{Host, Url};

use crate::PullError;
use crate::{
    answer::innermost,
    config::{HttpProxy, ProxyUse},
    reachable::{AllowedTarget, Refused, Target, Zone, judge, judge_name, plain},
    route::Route,
};

/// Recipe for this daemon's HTTP clients.
pub(crate) struct Recipe {
    pub(crate) base: fn() -> ClientBuilder,
    pub(crate) tls: ClientConfig,
    pub(crate) proxy: HttpProxy,
    pub(crate) rules: Arc<Rules>,
}

/// Facts that do not change while the daemon runs.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// As an error names it.
    pub(crate) upstream: String,
    pub(crate) allowed: Vec<AllowedTarget>,
    pub(crate) listeners: Vec<SocketAddr>,
}

impl Rules {
    fn misled(&self, refused: &Refused) -> PullError {
        PullError::Misled {
            upstream: self.upstream.clone(),
            target: refused.to_string(),
        }
    }

    fn judge(&self, guard: Guard, host: &str, address: IpAddr) -> Result<(), Refused> {
        let is_own = guard.own_port.is_some_and(|port| self.is_own(address, port));
        judge(guard.from, Target { host, address, is_own }, &self.allowed)
    }

    fn is_own(&self, address: IpAddr, port: u16) -> bool {
        let address = plain(address);
        self.listeners.iter().any(|listener| {
            let fits = listener.ip().is_unspecified() && is_of_this_machine(address) || plain(listener.ip()) == address;
            listener.port() == port && fits
        })
    }
}

/// The kernel binds a socket to no address but the machine's own.
fn is_of_this_machine(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// The rule that a client judges addresses by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Guard {
    from: Zone,
    /// The port asked for, when this process listens on one of that number somewhere.
    own_port: Option<u16>,
}

/// The clients.
pub(crate) struct Routes {
    registry: Route,
    /// `None`: the registry is the site's mirror, which never redirects elsewhere.
    led: Option<Led>,
}

struct Led {
    recipe: Recipe,
    matcher: Matcher,
    /// Each is made at the first request that needs it. At most one for each zone with each of this process's ports.
    clients: Mutex<HashMap<Guard, Route>>,
    /// The registry's host follows from a name that clients choose, so that its address is judged too.
    is_wild: bool,
}

impl Routes {
    /// A client of the site's mirror, without redirects' targets.
    pub(crate) fn to_mirror(mirror: Route) -> Self {
        Self {
            registry: mirror,
            led: None,
        }
    }

    /// # Errors
    /// As reqwest's.
    pub(crate) fn new(recipe: Recipe, is_wild: bool) -> reqwest::Result<Self> {
        let (registry, matcher) = match &recipe.proxy {
            HttpProxy::Environment => {
                let proxies = environment_proxies()?;
                let builder = || proxies.iter().cloned().fold(recipe.builder(), ClientBuilder::proxy);
                (Route::new(builder)?, Matcher::from_system())
            }
            HttpProxy::None => (Route::new(|| recipe.builder().no_proxy())?, Matcher::builder().build()),
            HttpProxy::Url { url, no_proxy } => {
                let proxy =
                    Proxy::all(HttpProxy::resolving_there(url.as_str()))?.no_proxy(NoProxy::from_string(no_proxy));
                let matcher = Matcher::builder().all(url.as_str()).no(no_proxy.as_str());
                (Route::new(|| recipe.builder().proxy(proxy.clone()))?, matcher.build())
            }
        };
        Ok(Self {
            registry,
            led: Some(Led {
                recipe,
                matcher,
                clients: Mutex::default(),
                is_wild,
            }),
        })
    }

    /// The route to `url`, which the registry's configuration states.
    ///
    /// # Errors
    /// [`PullError::Misled`], where the configuration is a pattern.
    pub(crate) fn registry(&self, url: &Url) -> Result<Route, PullError> {
        match &self.led {
            Some(led) if led.is_wild => self.to(Zone::Inside, url),
            _ => Ok(self.registry.clone()),
        }
    }

    /// The route to `url`, which a host in `from` has led to.
    ///
    /// # Errors
    /// [`PullError::Misled`].
    pub(crate) fn to(&self, from: Zone, url: &Url) -> Result<Route, PullError> {
        let Some(led) = &self.led else {
            let problem = "the mirror answered with a redirect, which mirrors never send";
            return Err(PullError::BadGateway(problem.to_owned()));
        };
        let rules = &led.recipe.rules;
        let misled = |refused: Refused| rules.misled(&refused);
        let guard = led.guard(from, url);
        let host = url.host_str().unwrap_or_default();
        match url.host() {
            Some(Host::Ipv4(ip)) => rules.judge(guard, host, ip.into()).map_err(misled)?,
            Some(Host::Ipv6(ip)) => rules.judge(guard, host, ip.into()).map_err(misled)?,
            Some(Host::Domain(_)) | None => {}
        }
        if led.proxy_for(url) {
            judge_name(from, host, &rules.allowed).map_err(misled)?;
            return Ok(self.registry.clone());
        }
        led.route(guard)
    }

    /// The refusal that a request ended with, if it did.
    pub(crate) fn refusal(&self, error: &reqwest::Error) -> Option<PullError> {
        let rules = &self.led.as_ref()?.recipe.rules;
        let mut cause: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(refused) = error.downcast_ref::<Refused>() {
                return Some(rules.misled(refused));
            }
            cause = error.source();
        }
        None
    }

    /// The zone from which the host of `url` has sent `response`.
    pub(crate) fn zone(&self, url: &Url, response: &Response) -> Zone {
        let is_proxied = self.led.as_ref().is_some_and(|led| led.proxy_for(url));
        match (url.host(), response.remote_addr()) {
            // The proxy makes the connection.
            (Some(Host::Ipv4(ip)), _) if is_proxied => Zone::of(ip.into()),
            (Some(Host::Ipv6(ip)), _) if is_proxied => Zone::of(ip.into()),
            (_, Some(address)) if !is_proxied => Zone::of(address.ip()),
            _ => Zone::Outside,
        }
    }
}

/// None where reqwest's own reading of the environment does.
fn environment_proxies() -> reqwest::Result<Vec<Proxy>> {
    let proxies = HttpProxy::of_environment(|name| env::var(name).ok());
    if !proxies.iter().any(|(_, url)| url.starts_with("socks5h://")) {
        return Ok(Vec::new());
    }
    let proxies = proxies.into_iter().map(|(of, url)| {
        let proxy = match of {
            ProxyUse::Https => Proxy::https(url),
            ProxyUse::Http => Proxy::http(url),
            ProxyUse::All => Proxy::all(url),
        };
        Ok(proxy?.no_proxy(NoProxy::from_env()))
    });
    proxies.collect()
}

impl Recipe {
    fn builder(&self) -> ClientBuilder {
        (self.base)().tls_backend_preconfigured(self.tls.clone())
    }
}

impl Led {
    fn guard(&self, from: Zone, url: &Url) -> Guard {
        let is_own = |port: &u16| {
            let listeners = &self.recipe.rules.listeners;
            listeners.iter().any(|listener| listener.port() == *port)
        };
        Guard {
            from,
            own_port: url.port_or_known_default().filter(is_own),
        }
    }

    fn proxy_for(&self, url: &Url) -> bool {
        let uri = url.as_str().parse::<http::Uri>();
        uri.is_ok_and(|uri| self.matcher.intercept(&uri).is_some())
    }

    fn route(&self, guard: Guard) -> Result<Route, PullError> {
        let mut clients = self.clients.lock();
        if let Some(route) = clients.get(&guard) {
            return Ok(route.clone());
        }
        let resolver = Arc::new(Resolver {
            guard,
            rules: Arc::clone(&self.recipe.rules),
        });
        // Proxied requests use no such client; it would judge the proxy's own name.
        let builder = || self.recipe.builder().no_proxy().dns_resolver(Arc::clone(&resolver));
        let route = Route::new(builder)
            .map_err(|error| PullError::Unavailable(format!("no client can be made: {}", innermost(&error))))?;
        clients.insert(guard, route.clone());
        Ok(route)
    }
}

/// Resolves a name to those of its addresses that may be connected to.
struct Resolver {
    guard: Guard,
    rules: Arc<Rules>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, rules) = (self.guard, Arc::clone(&self.rules));
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let good = passed(&rules, guard, name.as_str(), found)?;
            Ok(Box::new(good.into_iter()) as Addrs)
        })
    }
}

/// One good address among bad ones is enough, and the only one that is used.
fn passed(
    rules: &Rules,
    guard: Guard,
    name: &str,
    found: Vec<SocketAddr>,
) -> Result<Vec<SocketAddr>, Box<dyn Error + Send + Sync>> {
    let mut refused = None;
    let mut good = found;
    good.retain(|address| match rules.judge(guard, name, address.ip()) {
        Ok(()) => true,
        Err(refusal) => {
            refused = Some(refusal);
            false
        }
    });
    match refused {
        Some(refused) if good.is_empty() => Err(refused.into()),
        None if good.is_empty() => Err(io::Error::from(io::ErrorKind::NotFound).into()),
        _ => Ok(good),
    }
}

#[cfg(test)]
mod tests {
    use piecemeal_proto::AuthorityKey;
    use piecemeal_tls::{ServerRole, client_config};

    use super::*;

    fn rules(allowed: &[&str], listeners: &[&str]) -> Rules {
        Rules {
            upstream: "a.io".to_owned(),
            allowed: allowed.iter().map(|text| text.parse().unwrap()).collect(),
            listeners: listeners.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        let address = |text: &&str| SocketAddr::new(text.parse().unwrap(), 0);
        texts.iter().map(address).collect()
    }

    const OUTSIDE: Guard = Guard {
        from: Zone::Outside,
        own_port: None,
    };

    #[test]
    fn of_a_names_addresses_only_those_that_pass_are_connected_to() {
        let rules = rules(&[], &[]);
        let found = addresses(&["169.254.169.254", "203.0.113.9", "10.0.0.1", "::1"]);
        let good = passed(&rules, OUTSIDE, "both.example", found).unwrap();
        assert_eq!(good, addresses(&["203.0.113.9"]));
        let refused = passed(&rules, OUTSIDE, "bad.example", addresses(&["10.0.0.1", "::1"])).unwrap_err();
        assert!(refused.downcast_ref::<Refused>().is_some());
        assert!(passed(&rules, OUTSIDE, "none.example", Vec::new()).is_err());
    }

    #[test]
    fn a_daemon_s_own_listener_is_known_by_its_port_and_by_every_address_of_the_machine() {
        let rules = rules(&[], &["0.0.0.0:65013", "127.0.0.7:65002", "[::]:65001"]);
        let cases = [
            ("127.0.0.1", 65013, true),
            ("127.8.8.8", 65013, true),
            ("::1", 65001, true),
            ("127.0.0.1", 65001, true),
            ("::ffff:127.0.0.1", 65013, true),
            ("127.0.0.7", 65002, true),
            ("127.0.0.8", 65002, false),
            ("203.0.113.9", 65013, false),
            ("127.0.0.1", 5000, false),
        ];
        for (address, port, own) in cases {
            assert_eq!(rules.is_own(address.parse().unwrap(), port), own, "{address} {port}");
        }
    }

    fn routes(proxy: HttpProxy, is_wild: bool) -> Routes {
        let recipe = Recipe {
            base: reqwest::Client::builder,
            // Without the machine's certificates.
            tls: client_config(AuthorityKey::from_seed([1; 32]).public(), ServerRole::Mirror),
            proxy,
            rules: Arc::new(rules(&["10.9.9.9"], &["127.0.0.1:65013"])),
        };
        Routes::new(recipe, is_wild).unwrap()
    }

    #[test]
    fn addresses_in_urls_are_judged_however_they_are_written() {
        let routes = routes(HttpProxy::None, false);
        let cases = [
            ("http://169.254.169.254/latest", Zone::Loopback, false),
            ("http://0xa9fea9fe/", Zone::Loopback, false),
            ("http://2852039166/", Zone::Loopback, false),
            ("http://169.254.169.254./", Zone::Loopback, false),
            ("http://[::ffff:169.254.169.254]/", Zone::Loopback, false),
            ("http://[64:ff9b::a9fe:a9fe]/", Zone::Loopback, false),
            ("http://0x7f.1:5000/", Zone::Inside, false),
            ("http://0x7f.1:5000/", Zone::Loopback, true),
            ("http://127.0.0.1:65013/", Zone::Loopback, false),
            ("http://10.0.0.1/", Zone::Outside, false),
            ("http://10.9.9.9/", Zone::Outside, true),
            ("http://10.0.0.1/", Zone::Inside, true),
            ("https://storage.example/", Zone::Outside, true),
        ];
        for (url, from, may) in cases {
            let client = routes.to(from, &Url::parse(url).unwrap());
            assert_eq!(client.is_ok(), may, "{from:?} {url}: {:?}", client.err());
        }
    }

    #[test]
    fn a_registry_of_a_pattern_is_judged_and_one_that_is_named_is_not() {
        let metadata = Url::parse("http://169.254.169.254/v2/").unwrap();
        assert!(routes(HttpProxy::None, false).registry(&metadata).is_ok());
        let wild = routes(HttpProxy::None, true);
        assert!(wild.registry(&metadata).is_err());
        assert!(wild.registry(&Url::parse("http://10.0.0.1/v2/").unwrap()).is_ok());
    }

    #[test]
    fn through_a_proxy_only_the_name_is_judged() {
        let url = "http://127.0.0.1:3128".parse().unwrap();
        let no_proxy = "direct.example".to_owned();
        let routes = routes(HttpProxy::Url { url, no_proxy }, false);
        let to = |url: &str| routes.to(Zone::Outside, &Url::parse(url).unwrap());
        assert!(to("http://storage.example/x").is_ok());
        for bad in [
            "http://localhost/x",
            "http://10.0.0.1/x",
            "http://metadata.google.internal/x",
        ] {
            assert!(to(bad).is_err(), "{bad}");
        }
        assert!(routes.led.as_ref().unwrap().clients.lock().is_empty());
        assert!(to("http://direct.example/x").is_ok());
        assert_eq!(routes.led.as_ref().unwrap().clients.lock().len(), 1);
    }
}
