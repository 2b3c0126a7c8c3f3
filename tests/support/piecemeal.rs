//! The real `piecemeal` binary as the site's daemons.
//!
//! All of them listen where the deployment documents say. A daemon is started when its `/readyz` answers 200; its log and
//! its cache are in the site's folder, so a restart finds them again. `PIECEMEAL_TEST_LOG=debug` makes all of them talk more.

use std::{
    env,
    fmt::Display,
    net::{Ipv4Addr, SocketAddr},
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use super::{
    http::{Request, Response},
    netns::Netns,
    process::Process,
    site::{MIRROR_IP, ORIGIN_IP, Site, node_ip},
    tools::run,
};

/// The keys of one site.
#[derive(Clone, Debug)]
pub struct Keys {
    dir: PathBuf,
}

impl Keys {
    /// Runs `piecemeal keygen`.
    pub fn generate(dir: &Path) -> Self {
        run(Command::new(PIECEMEAL).arg("keygen").arg(dir));
        Self { dir: dir.to_owned() }
    }

    /// For mirror and scheduler.
    pub fn authority(&self) -> PathBuf {
        self.dir.join("authority.key")
    }

    /// For peers.
    pub fn join(&self) -> PathBuf {
        self.dir.join("join.key")
    }
}

/// How to start a mirror.
#[derive(Clone, Debug)]
pub struct MirrorOptions {
    /// This tree's, or the last release's.
    pub program: PathBuf,
    pub authority_key: PathBuf,
    /// `<host>=<url>` each.
    pub upstreams: Vec<String>,
    pub with_scheduler: bool,
    pub scheduler_url: String,
    pub cache_dir: Option<PathBuf>,
    pub extra_args: Vec<String>,
}

impl MirrorOptions {
    pub fn new(keys: &Keys) -> Self {
        Self {
            program: PIECEMEAL.into(),
            authority_key: keys.authority(),
            upstreams: vec![UPSTREAM.to_owned()],
            with_scheduler: true,
            scheduler_url: scheduler_url("http"),
            cache_dir: None,
            extra_args: Vec::new(),
        }
    }
}

/// How to start a scheduler.
#[derive(Clone, Debug)]
pub struct SchedulerOptions {
    /// This tree's, or the last release's.
    pub program: PathBuf,
    pub authority_key: PathBuf,
    pub extra_args: Vec<String>,
}

impl SchedulerOptions {
    pub fn new(keys: &Keys) -> Self {
        Self {
            program: PIECEMEAL.into(),
            authority_key: keys.authority(),
            extra_args: Vec::new(),
        }
    }
}

/// How to start a peer.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// This tree's, or the last release's.
    pub program: PathBuf,
    pub join_key: PathBuf,
    pub upstreams: Vec<String>,
    pub mirror_url: String,
    pub with_scheduler: bool,
    pub scheduler_url: String,
    pub zone: String,
    /// `0` is unlimited.
    pub ratelimit: String,
    /// `p2p` or `source`.
    pub download_pattern: String,
    pub cache_dir: Option<PathBuf>,
    pub extra_args: Vec<String>,
    pub env: Vec<(&'static str, String)>,
}

impl PeerOptions {
    pub fn new(keys: &Keys) -> Self {
        Self {
            program: PIECEMEAL.into(),
            join_key: keys.join(),
            upstreams: vec![UPSTREAM.to_owned()],
            mirror_url: mirror_url("http"),
            with_scheduler: true,
            scheduler_url: scheduler_url("http"),
            zone: "rack-1".to_owned(),
            ratelimit: "0".to_owned(),
            download_pattern: "p2p".to_owned(),
            cache_dir: None,
            extra_args: Vec::new(),
            env: Vec::new(),
        }
    }
}

/// The site's mirror.
#[derive(Debug)]
pub struct Mirror(Daemon);

impl Mirror {
    pub fn start(site: &Site, options: MirrorOptions) -> Self {
        Self::start_at("mirror", (site.mirror(), MIRROR_IP), site, options)
    }

    /// Starts another one at the far end of the WAN, which is none of the site's.
    pub fn start_beyond_wan(site: &Site, options: MirrorOptions) -> Self {
        Self::start_at("far-mirror", (site.origin(), ORIGIN_IP), site, options)
    }

    fn start_at(name: &str, (netns, ip): (&Netns, Ipv4Addr), site: &Site, options: MirrorOptions) -> Self {
        let mut plan = Plan::new(site, "mirror", netns, (Ipv4Addr::UNSPECIFIED, 65013).into());
        plan.admin = (ip, 65013).into();
        plan.name = name.to_owned();
        plan.program = options.program;
        plan.flag("--listen", format!("{ip}:65011"));
        plan.flag("--piece-listen", format!("{ip}:65002"));
        plan.keep_cache(options.cache_dir);
        plan.flag("--authority-key-file", options.authority_key.display());
        let scheduler = options.with_scheduler.then_some(options.scheduler_url);
        plan.join_site(scheduler, &options.upstreams);
        Self(plan.start(options.extra_args))
    }
}

/// The site's scheduler, on the mirror's machine.
#[derive(Debug)]
pub struct Scheduler(Daemon);

impl Scheduler {
    pub fn start(site: &Site, options: SchedulerOptions) -> Self {
        let mut plan = Plan::new(site, "scheduler", site.mirror(), (MIRROR_IP, 65014).into());
        plan.program = options.program;
        plan.flag("--listen", format!("{MIRROR_IP}:65012"));
        plan.flag("--authority-key-file", options.authority_key.display());
        Self(plan.start(options.extra_args))
    }
}

/// A node's peer.
#[derive(Debug)]
pub struct Peer(Daemon);

impl Peer {
    /// `node` is the node's index from 0.
    pub fn start(site: &Site, node: usize, options: PeerOptions) -> Self {
        let mut peer = Self::start_unready(site, node, options);
        peer.wait_until_ready();
        peer
    }

    /// Like [`Self::start`] for a peer that may never be ready.
    pub fn start_unready(site: &Site, node: usize, options: PeerOptions) -> Self {
        let mut plan = Plan::new(site, "peer", site.node(node), (Ipv4Addr::LOCALHOST, 65003).into());
        plan.name = format!("peer{}", node + 1);
        plan.program = options.program;
        plan.flag("--listen", "127.0.0.1:65001");
        plan.flag("--piece-listen", format!("{}:65002", node_ip(node)));
        plan.keep_cache(options.cache_dir);
        plan.flag("--mirror", options.mirror_url);
        plan.flag("--zone", options.zone);
        plan.flag("--join-key-file", options.join_key.display());
        plan.flag("--ratelimit", options.ratelimit);
        plan.flag("--download-pattern", options.download_pattern);
        let scheduler = options.with_scheduler.then_some(options.scheduler_url);
        plan.join_site(scheduler, &options.upstreams);
        plan.env = options.env;
        Self(plan.start_unready(options.extra_args))
    }
}

/// What mirror, scheduler and peer have in common. Signals are those of [`Process`].
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    netns: Netns,
    admin: SocketAddr,
    cache_dir: PathBuf,
}

impl Daemon {
    /// Where a mirror or a peer keeps content; a scheduler has nothing there.
    pub fn cache_dir(&self) -> PathBuf {
        self.cache_dir.clone()
    }

    /// Starts it once more with the same flags and the same cache, after [`Process::kill`] or [`Process::terminate`]; a
    /// daemon that still runs is killed.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process.start_again();
        self.wait_until_ready();
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Panics
    /// With its answer and the daemon's log, after ten seconds or when the daemon ends.
    pub fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + READY_TIME_MAX;
        loop {
            let answer = self
                .try_admin("/readyz")
                .map(|response| (response.status, response.text()));
            if matches!(answer, Ok((200, _))) {
                return;
            }
            let in_time = self.process.is_running() && Instant::now() < deadline;
            assert!(
                in_time,
                "not ready: /readyz said {answer:?}\n{}",
                self.process.log_tail()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A GET on the admin port.
    pub fn admin(&self, target: &str) -> Response {
        self.try_admin(target)
            .unwrap_or_else(|error| panic!("GET {target}: {error}\n{}", self.process.log_tail()))
    }

    /// All metrics in Prometheus' text format.
    pub fn metrics(&self) -> String {
        self.admin("/metrics").text()
    }

    /// One sample by its name and labels, exactly as `/metrics` prints them.
    ///
    /// # Panics
    /// When there is no such sample: a misspelt metric must not read as 0.
    pub fn metric(&self, sample: &str) -> f64 {
        let metrics = self.metrics();
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no metric {sample} in:\n{metrics}"))
    }

    /// Like [`Self::admin`] for a daemon that may be slow or gone.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn try_admin(&self, target: &str) -> std::io::Result<Response> {
        Request::get(self.admin, target)
            .patience(Duration::from_secs(5))
            .send_from(&self.netns)
    }
}

impl Deref for Daemon {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Daemon {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

macro_rules! is_a_daemon {
    ($($name:ident),*) => {$(
        impl Deref for $name {
            type Target = Daemon;

            fn deref(&self) -> &Daemon {
                &self.0
            }
        }

        impl DerefMut for $name {
            fn deref_mut(&mut self) -> &mut Daemon {
                &mut self.0
            }
        }
    )*};
}

is_a_daemon!(Mirror, Scheduler, Peer);

/// A daemon that is about to be started.
struct Plan<'a> {
    site: &'a Site,
    program: PathBuf,
    name: String,
    netns: &'a Netns,
    admin: SocketAddr,
    cache_dir: PathBuf,
    arguments: Vec<String>,
    env: Vec<(&'static str, String)>,
}

impl<'a> Plan<'a> {
    fn new(site: &'a Site, subcommand: &str, netns: &'a Netns, admin: SocketAddr) -> Self {
        let (name, arguments) = (subcommand.to_owned(), vec![subcommand.to_owned()]);
        let mut plan = Self {
            site,
            program: PIECEMEAL.into(),
            name,
            netns,
            admin,
            cache_dir: PathBuf::new(),
            arguments,
            env: Vec::new(),
        };
        plan.flag("--admin-listen", admin);
        plan
    }

    fn flag(&mut self, flag: &str, value: impl Display) {
        self.arguments.extend([flag.to_owned(), value.to_string()]);
    }

    fn keep_cache(&mut self, chosen: Option<PathBuf>) {
        self.cache_dir = chosen.unwrap_or_else(|| self.site.dir().join(format!("{}-cache", self.name)));
        self.flag("--cache-dir", self.cache_dir.display().to_string());
    }

    fn join_site(&mut self, scheduler: Option<String>, upstreams: &[String]) {
        self.flag("--pool", "site-a");
        if let Some(url) = scheduler {
            self.flag("--scheduler", url);
        }
        for upstream in upstreams {
            self.flag("--upstream", upstream);
        }
    }

    fn start(self, extra_arguments: Vec<String>) -> Daemon {
        let mut daemon = self.start_unready(extra_arguments);
        daemon.wait_until_ready();
        daemon
    }

    fn start_unready(self, extra_arguments: Vec<String>) -> Daemon {
        let mut command = self.netns.command(self.program.to_str().expect("its path is text"));
        command.args(self.arguments).args(extra_arguments).envs(self.env);
        if let Some(filter) = env::var_os("PIECEMEAL_TEST_LOG") {
            command.env("RUST_LOG", filter);
        }
        let log = self.site.dir().join(format!("{}.log", self.name));
        let process = Process::start(&self.name, command, &log);
        Daemon {
            process,
            netns: self.netns.clone(),
            admin: self.admin,
            cache_dir: self.cache_dir,
        }
    }
}

/// The mirror's registry port; `scheme` is `http` or `https`.
pub fn mirror_url(scheme: &str) -> String {
    format!("{scheme}://{MIRROR_IP}:65011")
}

/// The scheduler's port; `scheme` is `http` or `https`.
pub fn scheduler_url(scheme: &str) -> String {
    format!("{scheme}://{MIRROR_IP}:65012")
}

pub(super) const PIECEMEAL: &str = env!("CARGO_BIN_EXE_piecemeal");
/// The host name of images in tests, and the registry behind it.
const UPSTREAM: &str = "origin.test=http://10.99.0.2:5000";
const READY_TIME_MAX: Duration = Duration::from_secs(10);
