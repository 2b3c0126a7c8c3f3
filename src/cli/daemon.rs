//! `piecemeal mirror`, `scheduler`, `peer`, `webhook` and `node run`: one daemon, its admin port and its signals.

use std::io::IsTerminal;

use anyhow::{Context, anyhow};
use piecemeal_http::Sockets;
use piecemeal_mirror::Mirror;
use piecemeal_peer::Peer;
use piecemeal_scheduler::Scheduler;
use piecemeal_webhook::Webhook;
use rustix::{
    fs::Mode,
    process::{Resource, Rlimit, getrlimit, setrlimit, umask},
};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use super::{
    cache_dir::CacheDir,
    http::runtime,
    settings::{DaemonArgs, read_settings},
};
use crate::{
    admin::Admin,
    config::{Changes, DaemonSettings, Layers, Problems, Raw, RawMirror, RawPeer, RawScheduler, RawWebhook, Settings},
    daemon::Daemon,
    handover,
};

pub(super) fn run_mirror(args: DaemonArgs<RawMirror>) -> anyhow::Result<()> {
    run::<Mirror, _>(args, RawMirror::validate)
}

pub(super) fn run_scheduler(args: DaemonArgs<RawScheduler>) -> anyhow::Result<()> {
    run::<Scheduler, _>(args, RawScheduler::validate)
}

pub(super) fn run_peer(args: DaemonArgs<RawPeer>) -> anyhow::Result<()> {
    run::<Peer, _>(args, RawPeer::validate)
}

pub(super) fn run_webhook(args: DaemonArgs<RawWebhook>) -> anyhow::Result<()> {
    run::<Webhook, _>(args, RawWebhook::validate)
}

type Validate<R, T> = fn(R, &mut Problems) -> Option<T>;

pub(super) fn run<D: Daemon, R: Raw + Clone>(
    args: DaemonArgs<R>,
    validate: Validate<R, DaemonSettings<D::Config>>,
) -> anyhow::Result<()> {
    make_files_private();
    let mut handed = handover::take();
    // Before the settings are read: SIGHUP ends a process that has no handler for it yet.
    let runtime = runtime()?;
    let mut signals = Signals::listen(&runtime)?;
    let (mut running, mut process, warnings) =
        read_settings(&args.layers(), validate).inspect_err(|_| handover::forget())?;
    if args.check_config {
        say_good(&warnings);
        return Ok(());
    }
    let log = Log::start(&process.log, &warnings);
    raise_descriptor_limit();
    let mut sockets = Sockets::default();
    let dir = match D::proxy_config(&mut process.config) {
        Some(proxy) => {
            let dir = CacheDir::open(&proxy.cache.dir)?;
            proxy.cache.dir = dir.path().to_owned();
            if handed.is_empty() {
                handed = handover::ask(dir.path());
            }
            sockets = Sockets::new(handed);
            proxy.sockets = sockets.clone();
            Some(dir)
        }
        None => None,
    };
    let served = runtime.block_on(async {
        let starting = start::<D>(&process, &sockets);
        let admin = tokio::select! {
            admin = starting => admin.map_err(|error| name_flags::<D>(error, &process))?,
            () = signals.stop() => return Ok(()),
        };
        loop {
            match signals.next().await {
                Told::Stop => break,
                Told::Reload => {
                    let apply = async |new: DaemonSettings<D::Config>| {
                        admin.apply(&new.config).await;
                        log.set(&new.log);
                    };
                    reload(&mut running, &args.layers(), validate, apply).await;
                }
            }
        }
        handover::keep(&sockets.open());
        let offer = dir
            .as_ref()
            .and_then(|dir| handover::Offer::start(dir.path(), sockets.clone()));
        info!("draining; a second signal ends it at once");
        tokio::select! {
            () = admin.drain() => {}
            () = signals.stop() => return Err(anyhow!("told to stop again before everything had drained")),
        }
        drop(offer);
        admin.stop().await;
        info!("stopped");
        Ok(())
    });
    match dir {
        Some(dir) => dir.close_after(runtime),
        None => runtime.shutdown_background(),
    }
    served
}

/// Whatever this process makes is for its own user, unless its code says otherwise: it keeps private images, and keys. What
/// runtimes read, which may run as other users, gets its mode explicitly.
pub(super) fn make_files_private() {
    umask(Mode::from_raw_mode(0o077));
}

/// As many descriptors as this process may have: a shell gives a thousand, and each client takes one.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, "the limit of open files stays at {:?}: {error}", limit.current);
    }
}

/// Starts a daemon with its admin port. `sockets`: of the process.
///
/// # Errors
/// A port or folder that cannot be had; whatever else the daemon cannot start without.
pub(super) async fn start<D: Daemon>(
    process: &DaemonSettings<D::Config>,
    sockets: &Sockets,
) -> anyhow::Result<Admin<D>> {
    let address = process.admin_listen;
    let starting = async {
        let admin = Admin::start(address, sockets).await;
        let admin = admin.with_context(|| format!("cannot listen on {address}"))?;
        info!(admin.address = %address, version = env!("CARGO_PKG_VERSION"), "starting the {}", D::NAME);
        admin.run(D::start(process.config.clone()).await?).await;
        anyhow::Ok(admin)
    };
    starting.await.with_context(|| format!("cannot start the {}", D::NAME))
}

/// Adds the flags that set what the error speaks of.
fn name_flags<D: Daemon>(error: anyhow::Error, process: &DaemonSettings<D::Config>) -> anyhow::Error {
    let text = super::error::describe(&error);
    let mut claims = D::claims(&process.config);
    claims.push(("--admin-listen", process.admin_listen.to_string()));
    let named = claims.into_iter().filter(|(_, value)| text.contains(value));
    let flags: Vec<String> = named.map(|(flag, value)| format!("{flag} {value}")).collect();
    if flags.is_empty() {
        error
    } else {
        anyhow!("{text} (set by {})", flags.join(", "))
    }
}

/// Handles SIGHUP: applies all live settings, or none if there is any problem. Files that settings name are read again, whether the
/// settings have changed or not. `running` then holds the settings in force, so that the next reload names again what still needs a
/// restart.
pub(super) async fn reload<R: Raw, T>(
    running: &mut Settings<R>,
    layers: &Layers<R>,
    validate: Validate<R, T>,
    apply: impl AsyncFnOnce(T),
) {
    let (settings, new, warnings) = match read_settings(layers, validate) {
        Ok(read) => read,
        Err(problems) => {
            error!("the running configuration is kept; the new one has {problems}");
            return;
        }
    };
    warn_all(&warnings);
    let Changes { live, restart } = running.changes(&settings);
    if live.is_empty() && restart.is_empty() {
        info!("nothing to reload: the configuration is as it was; the files that it names were read again");
    }
    apply(new).await;
    if !live.is_empty() {
        running.take_live(&settings);
        info!("applied: {}", live.join(", "));
    }
    if !restart.is_empty() {
        warn!("restart to apply what else has changed: {}", restart.join(", "));
    }
}

/// The answer to `--check-config`.
pub(super) fn say_good(warnings: &[String]) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    println!("configuration is good");
}

/// Logging, whose filter can be changed.
pub(super) struct Log(Box<dyn Fn(EnvFilter) -> Result<(), tracing_subscriber::reload::Error>>);

impl Log {
    /// Logs to standard error from here on, beginning with the configuration's warnings. `filter`: as in `RUST_LOG`.
    pub(super) fn start(filter: &str, warnings: &[String]) -> Self {
        let builder = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(filter))
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_filter_reloading();
        let handle = builder.reload_handle();
        builder.init();
        warn_all(warnings);
        Self(Box::new(move |filter| handle.reload(filter)))
    }

    /// Logs what `filter` lets through from here on.
    pub(super) fn set(&self, filter: &str) {
        if let Err(error) = self.0(EnvFilter::new(filter)) {
            warn!(%error, "the log filter stays as it was: {error}");
        }
    }
}

fn warn_all(warnings: &[String]) {
    for warning in warnings {
        warn!("{warning}");
    }
}

/// The request of a signal.
pub(super) enum Told {
    Stop,
    Reload,
}

pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Installs the signal handlers. Must come before anything is created that has to be removed at the end.
    pub(super) fn listen(runtime: &Runtime) -> anyhow::Result<Self> {
        let _inside = runtime.enter();
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    pub(super) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
        }
    }

    /// The next signal that asks to stop. One that asks to reload meanwhile is kept for [`Signals::next`].
    pub(super) async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
