//! What the daemons have in common, seen from the process that runs them.

use std::{future::Future, net::SocketAddr};

use piecemeal_mirror::{Cache, CacheConfig, Mirror, MirrorConfig};
use piecemeal_peer::{Peer, PeerConfig};
use piecemeal_scheduler::{Scheduler, SchedulerConfig};
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
    /// What it keeps; `None` for one that keeps nothing.
    fn cache(&self) -> Option<Cache>;
    /// Lets what is in progress end.
    fn shutdown(self) -> impl Future<Output = ()> + Send;
    /// What it may fail to get from the system, with the flag that sets each.
    fn claims(config: &Self::Config) -> Vec<(&'static str, String)>;
}

macro_rules! daemon {
    ($daemon:ty, $config:ty, $name:literal, $cache:expr, $claims:expr) => {
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

            fn cache(&self) -> Option<Cache> {
                let cache: fn(&Self) -> Option<Cache> = $cache;
                cache(self)
            }

            async fn shutdown(self) {
                <$daemon>::shutdown(self).await;
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
    |mirror| Some(mirror.cache()),
    |config| claims(&config.listen, config.piece_listen, &config.cache)
);
daemon!(Scheduler, SchedulerConfig, "scheduler", |_| None, |config| vec![(
    "--listen",
    config.listen.to_string()
)]);
daemon!(Peer, PeerConfig, "peer", |peer| Some(peer.cache()), |config| claims(
    &config.listen,
    config.piece_listen,
    &config.cache
));

fn claims(listen: &[SocketAddr], piece_listen: SocketAddr, cache: &CacheConfig) -> Vec<(&'static str, String)> {
    let mut claims: Vec<_> = listen.iter().map(|address| ("--listen", address.to_string())).collect();
    claims.push(("--piece-listen", piece_listen.to_string()));
    claims.push(("--cache-dir", cache.dir.display().to_string()));
    claims
}
