//! `piecemeal up`: a whole site in one process. Its daemons talk over the same ports and protocols as those of a real site.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, anyhow};
use piecemeal_http::Sockets;
use piecemeal_mirror::Mirror;
use piecemeal_peer::Peer;
use piecemeal_proto::AuthorityKey;
use piecemeal_scheduler::Scheduler;
use tokio::time::{Instant, sleep};

use super::{
    cache_dir::CacheDir,
    daemon::{Log, Signals, Told, make_files_private, reload, say_good, start},
    http::runtime,
    keygen::{AUTHORITY_FILE, write_keys},
    settings::{DaemonArgs, read_settings},
};
use crate::{
    admin::Admin,
    config::{RawUp, SiteOfOne, UpSettings, site_of_one},
};

pub(super) fn run(args: DaemonArgs<RawUp>) -> anyhow::Result<()> {
    make_files_private();
    let (mut set, settings, warnings) = read_settings(&args.layers(), RawUp::validate)?;
    if args.check_config {
        say_good(&warnings);
        return Ok(());
    }
    let log = Log::start(&settings.log, &warnings);
    let runtime = runtime()?;
    let mut signals = Signals::listen(&runtime)?;
    let cache_dir = CacheDir::open(&settings.cache_dir)?;
    let dir = cache_dir.path();
    let mut site = site_of_one(&settings, dir, open_keys(dir)?);
    let served = runtime.block_on(async {
        let running = tokio::select! {
            running = Site::start(&site) => running?,
            () = signals.stop() => return Ok(()),
        };
        tokio::select! {
            unready = running.ready() => greet(&settings, dir, unready.as_deref()),
            () = signals.stop() => return Ok(()),
        }
        loop {
            match signals.next().await {
                Told::Stop => break,
                Told::Reload => {
                    let apply = async |new: UpSettings| {
                        site.take_live(&new);
                        running.apply(&site).await;
                        log.set(&new.log);
                    };
                    reload(&mut set, &args.layers(), RawUp::validate, apply).await;
                }
            }
        }
        println!("Stopping. Press Ctrl-C again to stop at once.");
        tokio::select! {
            () = running.stop() => Ok(()),
            () = signals.stop() => Err(anyhow!("told to stop again before everything had drained")),
        }
    });
    cache_dir.close_after(runtime);
    served
}

/// The keys in `dir`, made when they are absent.
fn open_keys(dir: &Path) -> anyhow::Result<AuthorityKey> {
    let path = dir.join(AUTHORITY_FILE);
    if !path.exists() {
        return write_keys(dir);
    }
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.parse().with_context(|| path.display().to_string())
}

struct Site {
    scheduler: Admin<Scheduler>,
    mirror: Admin<Mirror>,
    peer: Admin<Peer>,
}

impl Site {
    /// Each daemon finds the ones that it needs already there.
    async fn start(site: &SiteOfOne) -> anyhow::Result<Self> {
        let sockets = Sockets::default();
        Ok(Self {
            scheduler: start(&site.scheduler, &sockets).await?,
            mirror: start(&site.mirror, &sockets).await?,
            peer: start(&site.peer, &sockets).await?,
        })
    }

    /// Gives the daemons the live settings.
    async fn apply(&self, site: &SiteOfOne) {
        self.mirror.apply(&site.mirror.config).await;
        self.peer.apply(&site.peer.config).await;
    }

    /// Waits until every dependency of every daemon is there, and says what is still missing when that takes too long.
    async fn ready(&self) -> Option<String> {
        let deadline = Instant::now() + READY_TIME_MAX;
        loop {
            let problems = [
                self.scheduler.problems().await,
                self.mirror.problems().await,
                self.peer.problems().await,
            ]
            .concat();
            if problems.is_empty() || Instant::now() >= deadline {
                return (!problems.is_empty()).then(|| problems.join("; "));
            }
            sleep(READY_INTERVAL).await;
        }
    }

    /// Client streams end first, then what feeds them.
    async fn stop(self) {
        self.peer.drain().await;
        self.mirror.drain().await;
        self.scheduler.drain().await;
        tokio::join!(self.peer.stop(), self.mirror.stop(), self.scheduler.stop());
    }
}

fn greet(settings: &UpSettings, dir: &Path, unready: Option<&str>) {
    let address = settings
        .listen
        .first()
        .copied()
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 65001)));
    let host = if address.ip().is_loopback() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    };
    let kept = if settings.cache_dir.as_os_str().is_empty() {
        "is kept, until this process ends,"
    } else {
        "is kept"
    };
    match unready {
        None => println!("Piecemeal is ready. Content {kept} in {}.", dir.display()),
        Some(problems) => println!("Piecemeal runs, and is not ready yet: {problems}."),
    }
    let name = settings
        .default_upstream
        .as_deref()
        .or(settings.upstreams.first().map(|upstream| &*upstream.name));
    let image = match name {
        Some("docker.io") | None => "docker.io/library/alpine:3.20".to_owned(),
        // A colon has no place in a path.
        Some(name) => format!("{}/REPOSITORY:TAG", name.replace(':', "__")),
    };
    println!(
        "
Pull an image through it, with any of these:
    piecemeal pull {host}/{image}
    docker pull {host}/{image}
    ctr image pull --plain-http {host}/{image}

Or let containerd pull everything through it: write this to /etc/containerd/certs.d/_default/hosts.toml
    [host.\"http://{address}\"]
      capabilities = [\"pull\", \"resolve\"]

See what it does:   piecemeal status
Stop it:            Ctrl-C"
    );
}

const READY_TIME_MAX: Duration = Duration::from_secs(10);
const READY_INTERVAL: Duration = Duration::from_millis(20);
