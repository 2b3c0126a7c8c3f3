//! Interface of a daemon to the process that runs it.
//!
//! Invariant: only settings that are live change while a daemon runs.

use std::future::Future;

use piecemeal_mirror::{Mirror, MirrorConfig};
use piecemeal_peer::{Peer, PeerConfig};
use piecemeal_proxy::{Cache, ProxyConfig};
use piecemeal_runtimes::{Controller, ControllerConfig};
use piecemeal_scheduler::{Scheduler, SchedulerConfig};
use piecemeal_webhook::{Webhook, WebhookConfig};
use prometheus_client::registry::Registry;
use serde_json::Value;

/// A daemon that runs in this process.
pub(crate) trait Daemon: Sized + Send + Sync + 'static {
    /// The name of its subcommand.
    const NAME: &'static str;
    type Config: Clone + Send + Sync + 'static;

    fn start(config: Self::Config) -> impl Future<Output = anyhow::Result<Self>> + Send;
    fn register_metrics(&self, registry: &mut Registry);
    /// Each dependency, with its problem if it has one.
    fn readiness(&self) -> impl Future<Output = Vec<(String, Option<String>)>> + Send;
    fn status(&self) -> impl Future<Output = Value> + Send;
    /// Takes over the settings of `config` that are live; the others are not looked at.
    fn apply(&self, config: &Self::Config);
    /// The daemon's cache; `None` for one that keeps nothing.
    fn cache(&self) -> Option<Cache>;
    /// Drains: lets requests that are in progress end.
    fn shutdown(self) -> impl Future<Output = ()> + Send;
    /// The configuration of its proxy, if it is one.
    fn proxy_config(config: &mut Self::Config) -> Option<&mut ProxyConfig>;
    /// The flags whose values the system may refuse, each with its value.
    fn claims(config: &Self::Config) -> Vec<(&'static str, String)>;
}

macro_rules! daemon {
    ($daemon:ty, $config:ty, $name:literal, apply: $apply:expr, cache: $cache:expr, proxy_config: $proxy_config:expr, claims: $claims:expr) => {
        impl Daemon for $daemon {
            const NAME: &'static str = $name;
            type Config = $config;

            async fn start(config: $config) -> anyhow::Result<Self> {
                Ok(<$daemon>::start(config).await?)
            }

            fn register_metrics(&self, registry: &mut Registry) {
                <$daemon>::register_metrics(self, registry);
            }

            async fn readiness(&self) -> Vec<(String, Option<String>)> {
                <$daemon>::readiness(self).await
            }

            async fn status(&self) -> Value {
                <$daemon>::status(self).await
            }

            fn apply(&self, config: &$config) {
                let apply: fn(&$daemon, &$config) = $apply;
                apply(self, config);
            }

            fn cache(&self) -> Option<Cache> {
                let cache: fn(&Self) -> Option<Cache> = $cache;
                cache(self)
            }

            async fn shutdown(self) {
                <$daemon>::shutdown(self).await;
            }

            fn proxy_config(config: &mut $config) -> Option<&mut ProxyConfig> {
                let proxy_config: fn(&mut $config) -> Option<&mut ProxyConfig> = $proxy_config;
                proxy_config(config)
            }

            fn claims(config: &$config) -> Vec<(&'static str, String)> {
                let claims: fn(&$config) -> Vec<(&'static str, String)> = $claims;
                claims(config)
            }
        }
    };
}

daemon!(
    Mirror,
    MirrorConfig,
    "mirror",
    apply: Mirror::apply,
    cache: |mirror| Some(mirror.cache()),
    proxy_config: |config| Some(&mut config.proxy),
    claims: |config| claims(&config.proxy)
);
daemon!(
    Scheduler,
    SchedulerConfig,
    "scheduler",
    apply: Scheduler::apply,
    cache: |_| None,
    proxy_config: |_| None,
    claims: |config| vec![("--listen", config.listen.to_string())]
);
daemon!(
    Peer,
    PeerConfig,
    "peer",
    apply: Peer::apply,
    cache: |peer| Some(peer.cache()),
    proxy_config: |config| Some(&mut config.proxy),
    claims: |config| claims(&config.proxy)
);

daemon!(
    Webhook,
    WebhookConfig,
    "webhook",
    // Its only live setting is its process's: the log.
    apply: |_, _| {},
    cache: |_| None,
    proxy_config: |_| None,
    claims: |config| vec![("--listen", config.listen.to_string())]
);

daemon!(
    Controller,
    ControllerConfig,
    "node",
    // Its only live setting is its process's: the log.
    apply: |_, _| {},
    cache: |_| None,
    proxy_config: |_| None,
    claims: |config| vec![("--root", config.root.display().to_string())]
);

fn claims(config: &ProxyConfig) -> Vec<(&'static str, String)> {
    let listen = config.listen.iter();
    let mut claims: Vec<_> = listen.map(|address| ("--listen", address.to_string())).collect();
    claims.push(("--piece-listen", config.piece_listen.to_string()));
    claims.push(("--cache-dir", config.cache.dir.display().to_string()));
    claims
}
